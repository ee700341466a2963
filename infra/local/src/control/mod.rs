//! The protocol of the control socket. The client writes one request as a line of JSON, and reads lines of progress and
//! then one result. Only the owner of the checkout can open the socket.

pub(crate) mod status;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    components::component::Component,
    faults::fault::{Fault, Target},
};

/// A request to the running twin.
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

/// A line of the answer. The last one is `Done` or `Failed`.
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
    /// Whether this twin has written `.local/env`.
    pub(crate) ready: bool,
    /// The build of the program that the supervisor runs.
    pub(crate) program: String,
    pub(crate) components: Vec<status::Status>,
    /// The active faults, each with the seconds that it has left. A supervisor of an earlier build sends none.
    #[serde(default)]
    pub(crate) faults: Vec<(Target, Fault, u64)>,
}
