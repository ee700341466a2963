//! The control socket: one JSON line in, lines of progress and one result out. Only its owner can open it.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    components::component::Component,
    faults::fault::{Fault, Target},
};

/// What can be asked of a running twin.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Request {
    /// Make, start and deploy what is missing.
    Up {
        bare: bool,
    },
    Down,
    Status,
    Start {
        component: Component,
    },
    Stop {
        component: Component,
    },
    Kill {
        pod: String,
        container: String,
        namespace: String,
        signal: String,
    },
    Fault {
        target: Target,
        fault: Fault,
    },
    ClearFaults,
}

/// The lines that come back; the last is `Done` or `Failed`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Reply {
    Say(String),
    Done(Value),
    Failed(String),
}

/// The answer to `Status`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Whether `.local/env` has been written by this twin.
    pub(crate) ready: bool,
    /// Age and size of the program that the supervisor was started from.
    pub(crate) program: String,
    pub(crate) components: Vec<crate::supervisor::status::Status>,
    /// Each with the seconds that it has left. A supervisor of an earlier build tells of none.
    #[serde(default)]
    pub(crate) faults: Vec<(Target, Fault, u64)>,
}
