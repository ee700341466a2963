//! The components of the twin and what each one depends on. The order of starting and stopping follows from this alone.

use std::{fmt, str::FromStr};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::spec::order::Order;

/// A process that the supervisor keeps running.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Component {
    Etcd,
    KubeApiserver,
    Ministack,
    KubeControllerManager,
    KubeScheduler,
    TrainingOperator,
    TwinNode,
    Front,
}

// === impl Component ===

impl Component {
    pub(crate) const ALL: [Self; 8] = [
        Self::Etcd,
        Self::KubeApiserver,
        Self::Ministack,
        Self::KubeControllerManager,
        Self::KubeScheduler,
        Self::TrainingOperator,
        Self::TwinNode,
        Self::Front,
    ];

    /// The name in commands, in logs and of the log file.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::KubeApiserver => "kube-apiserver",
            Self::Ministack => "ministack",
            Self::KubeControllerManager => "kube-controller-manager",
            Self::KubeScheduler => "kube-scheduler",
            Self::TrainingOperator => "training-operator",
            Self::TwinNode => "twin-node",
            Self::Front => "front",
        }
    }

    /// The components that are ready before this one is started, and that are stopped after it.
    pub(crate) fn depends_on(self) -> &'static [Self] {
        match self {
            Self::Etcd | Self::Ministack => &[],
            // Its requests to MiniStack, which reviews tokens, and to the operator begin with the first job.
            Self::KubeApiserver => &[Self::Etcd],
            Self::KubeControllerManager | Self::KubeScheduler | Self::TrainingOperator => &[Self::KubeApiserver],
            // When the node stops, its pods end while the cluster and AWS still answer them.
            Self::TwinNode => {
                &[Self::KubeControllerManager, Self::KubeScheduler, Self::TrainingOperator, Self::Ministack]
            }
            // The functions run in MiniStack. The API opens last, so that the first job finds a node.
            Self::Front => &[Self::Ministack, Self::TwinNode],
        }
    }

    /// The order of all components.
    pub(crate) fn order() -> Result<Order<Self>> {
        Order::of(&Self::ALL, Self::depends_on)
    }
}

impl fmt::Display for Component {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for Component {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|component| component.name() == name);
        found.with_context(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("no component `{name}`; there are {names}")
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn every_component_comes_after_those_that_it_depends_on() {
        let order = Component::order().unwrap();
        let order = order.sequence();
        assert_eq!(order.len(), Component::ALL.len(), "each one once");
        for (place, component) in order.iter().enumerate() {
            for dependency in component.depends_on() {
                assert!(order[..place].contains(dependency), "{component} depends on {dependency}");
            }
        }
    }

    #[tokio::test]
    async fn components_stop_in_the_reverse_order() {
        let order = Component::order().unwrap();
        let stopped = Mutex::new(Vec::new());
        let stop = async |component| {
            stopped.lock().unwrap().push(component);
            Ok(())
        };
        order.stop(stop).await.unwrap();
        let stopped = stopped.into_inner().unwrap();
        assert_eq!(stopped.len(), Component::ALL.len(), "each one once");
        for (place, component) in stopped.iter().enumerate() {
            for dependency in component.depends_on() {
                assert!(stopped[place..].contains(dependency), "{dependency} outlives {component}");
            }
        }
    }

    #[test]
    fn names_are_the_same_everywhere() {
        for component in Component::ALL {
            assert_eq!(component.name().parse::<Component>().unwrap(), component);
            assert_eq!(serde_json::to_value(component).unwrap(), component.name());
        }
        assert!("pod".parse::<Component>().is_err());
    }
}
