//! `twin up` in the supervisor: makes the tools, starts the components, deploys, and writes `.local/env`. A step is
//! skipped when its result is there, so the first start, the next one and a redeployment are the same sequence.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::{sync::SetOnce, time::timeout};

use crate::{
    components::{component::Component, control_plane, front, ministack, node},
    paths::Paths,
    ports::Ports,
    setup::{
        cluster_objects,
        deploy::{self, Deployment},
        env_file, functions,
        progress::Progress,
        stamp::Stamp,
        tools::Tools,
    },
    spec::{Ready, Spec, order::Order},
    supervisor::{lifecycle::Supervisor, probe::Probe},
};

/// The first request after a start takes longer, because it also starts the function.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);
/// The components of a bare twin. Those that they depend on are started too.
const BARE: [Component; 4] =
    [Component::Ministack, Component::KubeControllerManager, Component::KubeScheduler, Component::TrainingOperator];

/// The parts of the running twin that a request uses.
pub(crate) struct Twin {
    pub(crate) paths: Paths,
    pub(crate) ports: Ports,
    pub(crate) supervisor: Supervisor,
    pub(crate) probe: Probe,
}

/// One `twin up`.
struct Up<'a> {
    twin: &'a Twin,
    tools: Tools,
    /// The stamp of the functions, set when they are built.
    build: SetOnce<Stamp>,
    /// Set before the front is started.
    deployment: SetOnce<Deployment>,
}

// === impl Twin ===

impl Twin {
    /// Starts everything and writes `.local/env` last. A bare twin has neither node nor functions, for work on those.
    pub(crate) async fn up(&self, progress: &Progress, bare: bool) -> Result<()> {
        let tools = Tools { paths: self.paths.clone(), progress: progress.clone() };
        tools.uv().await?;
        let up = Up { twin: self, tools, build: SetOnce::new(), deployment: SetOnce::new() };
        if bare {
            let order = Order::of(&BARE, Component::depends_on)?;
            return order.start(|component| up.start(component)).await;
        }
        let order = Component::order()?;
        tokio::try_join!(order.start(|component| up.start(component)), up.build(), up.tools.trainer())?;
        let deployment = up.deployment.get().context("the front was started without a deployment")?;
        env_file::write(&self.paths, &self.ports, deployment)?;
        progress.say("ready: .local/env is written");
        Ok(())
    }
}

// === impl Up ===

impl Up<'_> {
    /// Makes what a component needs beside the components that it depends on, and starts it.
    async fn start(&self, component: Component) -> Result<()> {
        let (paths, ports) = (&self.twin.paths, &self.twin.ports);
        let spec = match component {
            Component::Etcd => {
                // This builds the programs of the others too, which depend on etcd.
                self.tools.go_binaries().await?;
                control_plane::etcd(paths, ports)
            }
            Component::KubeApiserver => control_plane::apiserver(paths, ports),
            Component::Ministack => {
                self.tools.virtual_env("ministack").await?;
                ministack::spec(paths, ports)?
            }
            Component::KubeControllerManager => control_plane::controller_manager(paths, ports),
            Component::KubeScheduler => control_plane::scheduler(paths, ports),
            Component::TrainingOperator => control_plane::operator(paths, ports),
            Component::TwinNode => node::spec(paths, ports)?,
            Component::Front => {
                let deployment = self.deploy(self.build.wait().await).await?;
                let spec = front::spec(paths, ports, &deployment.url(ports))?;
                self.deployment.set(deployment).ok().context("deployed twice")?;
                spec
            }
        };
        self.ensure(component, spec).await?;
        if component == Component::KubeApiserver {
            // The components that depend on the API server find these objects there.
            cluster_objects::apply(paths, ports, &self.tools).await?;
        }
        Ok(())
    }

    async fn ensure(&self, component: Component, spec: Spec) -> Result<()> {
        let supervisor = &self.twin.supervisor;
        if supervisor.runs(component, &spec) {
            return Ok(());
        }
        self.tools.progress.step(&format!("starting {component}"), supervisor.ensure(component, spec)).await
    }

    /// Builds the functions.
    async fn build(&self) -> Result<()> {
        self.tools.virtual_env("sam").await?;
        self.tools.virtual_env("lambda").await?;
        let build = functions::build(&self.twin.paths, &self.tools).await?;
        self.build.set(build).ok().context("built twice")
    }

    /// Deploys unless the same is deployed and answers.
    async fn deploy(&self, build: &Stamp) -> Result<Deployment> {
        let Twin { paths, ports, supervisor, probe } = self.twin;
        let stamp = deploy::stamp(paths, build)?;
        if let Some(deployment) = deploy::present(paths, &stamp)? {
            // A MiniStack that was killed has lost what it had not saved.
            let answers = Ready::Succeeds(format!("{}/healthz", deployment.url(ports)));
            if timeout(ANSWERS_WITHIN, probe.until(&answers)).await.is_ok() {
                return Ok(deployment);
            }
            self.tools.progress.say("the deployment does not answer: deploying again");
        }
        // MiniStack saves its state only when it ends. A later crash does not cost the deployment then.
        let save = async {
            supervisor.stop(Component::Ministack).await?;
            supervisor.start(Component::Ministack).await
        };
        deploy::deploy(paths, ports, &self.tools, &stamp, save).await
    }
}
