//! What the supervisor has to know of a component: how it is started, probed and stopped. `order` derives the order of
//! starting and stopping from what each component depends on.

pub(crate) mod order;
pub(crate) mod seed;

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use seed::Seed;

/// How a component is started, probed and stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Spec {
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<String>,
    pub(crate) environment: BTreeMap<String, String>,
    pub(crate) port: u16,
    pub(crate) ready: Ready,
    /// How long a SIGTERM may take before SIGKILL follows.
    pub(crate) grace: Duration,
    /// What is written into the component's stored state each time before the process starts.
    pub(crate) seed: Option<Seed>,
}

/// How the supervisor finds out that a component is ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ready {
    /// The URL answers with success.
    Succeeds(String),
    /// The URL is served: it answers with anything but 404.
    Routed(String),
    /// The port accepts connections.
    Accepts(u16),
}
