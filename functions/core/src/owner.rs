//! The object `owner` of a run: which submission may write there. Submit writes it before it creates a job; the trainer
//! reads it before each marker and stops when it is another's.

use serde::{Deserialize, Serialize};

/// Who may write into a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The submission.
    pub submission: String,
    /// Namespace of its job.
    pub namespace: String,
    /// Name of its job.
    pub job: String,
    /// Whether the job of this claim is known never to appear.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub released: bool,
}

/// What is kept of each created job, beside the runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRecord {
    /// The submission.
    pub submission: String,
    /// Namespace of the job.
    pub namespace: String,
    /// Name of the job.
    pub job: String,
    /// The cluster's id of the job.
    pub uid: Option<String>,
    /// The run's prefix.
    pub checkpoint_prefix: String,
    /// When the cluster made the job, in RFC 3339.
    pub created_at: Option<String>,
}

// === impl Owner ===

impl Owner {
    /// Whether it is a job of this name.
    #[must_use]
    pub fn is_job(&self, namespace: &str, job: &str) -> bool {
        self.namespace == namespace && self.job == job
    }
}
