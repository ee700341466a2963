//! The answers about a run's checkpoints.

#[cfg(feature = "schema")]
use schemars::JsonSchema;
use serde::Serialize;
use training_run::{entry::IndexEntry, lineage::Lineage};

use crate::api::links::PageLinks;

/// A checkpoint as a caller sees it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
#[cfg_attr(feature = "schema", schemars(rename = "Checkpoint"))]
pub struct CheckpointAnswer {
    /// What is known of it.
    #[serde(flatten)]
    pub entry: IndexEntry,
    /// Whether a newer submission went another way: it is listed, and never chosen as latest or best.
    pub superseded: bool,
}

/// Some checkpoints, greatest step first.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub struct CheckpointList {
    /// The checkpoints.
    pub checkpoints: Vec<CheckpointAnswer>,
    /// Where to read on.
    pub links: PageLinks,
}

// === impl CheckpointAnswer ===

impl CheckpointAnswer {
    /// A checkpoint and its place in the run's history.
    #[must_use]
    pub fn new(entry: IndexEntry, lineage: &Lineage) -> Self {
        Self { superseded: lineage.supersedes(entry.submission.as_ref(), entry.step), entry }
    }
}
