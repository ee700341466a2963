//! The object `owner` of a run: which submission may write there. Submit writes it before it creates a job; the trainer
//! reads it before each marker and stops when it is another's.

use serde::{Deserialize, Serialize};

/// How long after its submission was made a claim's job may still appear, in milliseconds: longer than any request takes.
pub const CLAIM_LIFETIME_MS: u64 = 35_000;

/// Who may write into a run.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
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

/// Whether a run can be claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunState {
    /// Its owner has ended, or is the job that the request is about to make.
    Free,
    /// It was claimed a moment ago, and the job of that claim may be about to appear.
    Busy,
    /// Its owner trains it.
    Active,
    /// Its owner is not for the caller to see.
    Hidden,
    /// The owner's job has to be read first.
    Unknown,
}

/// Whether a submission's trainer may write into a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// The run is the submission's.
    Allowed,
    /// It is another's.
    Superseded,
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

    /// Where a run with the owner `found` stands for a request with this claim. `job` says of the owner's job whether it has
    /// finished, `Some(None)` where none trains the run. A run that was trained in a namespace belongs to those who see that
    /// namespace, also when its job has ended.
    #[must_use]
    pub fn standing(&self, found: &Self, is_visible: bool, job: Option<Option<bool>>, now: u64) -> RunState {
        if found.is_job(&self.namespace, &self.job) {
            // Names decide between the two.
            return RunState::Free;
        }
        match job {
            _ if !is_visible => RunState::Hidden,
            None => RunState::Unknown,
            Some(Some(true)) => RunState::Free,
            Some(Some(false)) => RunState::Active,
            Some(None) if found.is_young(now) => RunState::Busy,
            Some(None) => RunState::Free,
        }
    }

    /// Whether the trainer of this submission may write into the run: the rule of the trainer's `owner.py`.
    #[must_use]
    pub fn write(&self, submission: &str) -> Write {
        if self.submission == submission { Write::Allowed } else { Write::Superseded }
    }

    /// Whether the job of a claim may still be about to appear. A submission's id begins with the time at which it was made.
    #[must_use]
    pub fn is_young(&self, now: u64) -> bool {
        let made_at = self.submission.parse::<uuid::Uuid>().ok().and_then(|id| id.get_timestamp()).map(|timestamp| {
            let (seconds, nanoseconds) = timestamp.to_unix();
            seconds * 1000 + u64::from(nanoseconds) / 1_000_000
        });
        // One from the future is young as well: clocks differ a little.
        !self.released && made_at.is_some_and(|made_at| now < made_at + CLAIM_LIFETIME_MS)
    }
}
