//! The state of a component.

use serde::{Deserialize, Serialize};

/// What `twin status` shows of a component.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) name: String,
    pub(crate) state: State,
    /// The process id in the supervisor's namespace.
    pub(crate) pid: Option<u32>,
    pub(crate) port: u16,
    pub(crate) restarts: u32,
    pub(crate) last_exit: Option<String>,
    /// The number of the launch that this is the state of.
    #[serde(skip)]
    pub(crate) launch: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum State {
    Stopped,
    Starting,
    Ready,
    Stopping,
    BackOff,
}
