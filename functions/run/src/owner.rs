//! The object `owner` of a run: which submission may write there, and until its job exists, which request has claimed it.
//! Submit writes it before it creates a job; the trainer reads it before each marker and stops when it is another's.
//!
//! ```text
//! absent ── claim ─> pending ── its job appears ─> confirmed ── its job ends or goes ─> claimed over
//!                      │  └─ an equal request joins: the same submission, another `claimed_by`
//!                      └─ refused, and nobody joined: what was there before, or a tombstone (`released`)
//! ```

use serde::Serialize;

use crate::{
    json::{Fields, StatementError},
    layout::RunPrefix,
    names::{JobName, Namespace, Submission},
};

/// How long after a claim its job may still appear, in milliseconds: longer than any request takes. A function's answer is
/// cut at 27 s.
pub const CLAIM_LIFETIME_MS: u64 = 35_000;

/// Who may write into a run.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Owner {
    /// The submission.
    pub submission: Submission,
    /// Namespace of its job.
    pub namespace: Namespace,
    /// Name of its job.
    pub job: JobName,
    /// Fresh id (`UUIDv7`) of the claim, of the request that joined it last, or of the confirmation; older versions wrote none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claimed_by: Option<String>,
    /// The cluster's id of the submission's job, once somebody has seen that job: the owner is confirmed. Older versions never
    /// wrote one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// Digest of the request's fields, by which an equal request knows the claim as its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    /// The submission whose run it was before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous: Option<Submission>,
    /// Whether the job of this claim is known never to appear.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub released: bool,
}

/// A request for a job that would own a run.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Claimant {
    /// Namespace of the job.
    pub namespace: Namespace,
    /// Name of the job.
    pub job: JobName,
    /// Digest of the request's fields.
    pub request: String,
}

/// Whether a request may claim a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LeaseState {
    /// Its owner has ended or is gone.
    Free,
    /// An equal request has claimed it, and the job of that claim may be about to appear.
    Joinable,
    /// Another request has claimed it, and the job of that claim may be about to appear.
    Pending,
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
    /// The run is the submission's, or nobody's: its claim was given up, and nothing was there before.
    Allowed,
    /// It has become another's a moment ago, or that claim was given up: who owns the run is about to be settled.
    Wait,
    /// It is another's.
    Superseded,
}

/// What a request knows of a run's owner.
#[derive(Clone, Copy, Debug)]
pub struct Evidence {
    /// Whether the caller sees the owner's namespace.
    pub is_visible: bool,
    /// Whether the owner's job has a record, so that it has existed. Read before the job itself is.
    pub is_recorded: bool,
    /// The owner's job, where it has another name than the request's.
    pub job: OwnersJob,
}

/// The job that a run's owner names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OwnersJob {
    /// It was not read.
    NotRead,
    /// There is none that trains this run.
    Absent,
    /// It is there and has not finished.
    Active,
    /// It has finished.
    Finished,
}

/// What is kept of each created job, beside the runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct JobRecord {
    /// The submission.
    pub submission: Submission,
    /// Namespace of the job.
    pub namespace: Namespace,
    /// Name of the job.
    pub job: JobName,
    /// The cluster's id of the job.
    pub uid: Option<String>,
    /// Those of further jobs of the submission: a request that was slow made one when the first was deleted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub later_uids: Vec<String>,
    /// The run's prefix.
    pub checkpoint_prefix: RunPrefix,
    /// When the cluster made the job, in RFC 3339.
    pub created_at: Option<String>,
}

// === impl Claimant ===

impl Claimant {
    /// This request's job as an owner.
    #[must_use]
    pub fn owner(&self, submission: Submission) -> Owner {
        Owner {
            submission,
            namespace: self.namespace.clone(),
            job: self.job.clone(),
            claimed_by: None,
            uid: None,
            request: Some(self.request.clone()),
            previous: None,
            released: false,
        }
    }
}

// === impl JobRecord ===

impl JobRecord {
    /// Parse a record's body.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(body: &[u8]) -> Result<Self, StatementError> {
        let fields = Fields::of_statement(body)?;
        Ok(Self {
            submission: fields.required_text("submission")?,
            namespace: fields.required_text("namespace")?,
            job: fields.required_text("job")?,
            uid: fields.get("uid")?,
            later_uids: fields.get("later_uids")?.unwrap_or_default(),
            checkpoint_prefix: fields.required_text("checkpoint_prefix")?,
            created_at: fields.get("created_at")?,
        })
    }

    /// Whether it tells of this job.
    #[must_use]
    pub fn has(&self, uid: &str) -> bool {
        self.uid.iter().chain(&self.later_uids).any(|recorded| recorded == uid)
    }
}

// === impl Owner ===

impl Owner {
    /// Parse an owner's body. `tests/contract/owner.json` holds the vectors that the trainer runs too.
    ///
    /// # Errors
    /// It is none: whose the run is, nobody can tell.
    pub fn parse(body: &[u8]) -> Result<Self, StatementError> {
        let fields = Fields::of_statement(body)?;
        Ok(Self {
            submission: fields.required_text("submission")?,
            namespace: fields.required_text("namespace")?,
            job: fields.required_text("job")?,
            claimed_by: fields.get("claimed_by")?,
            uid: fields.get("uid")?,
            request: fields.get("request")?,
            previous: fields.text("previous")?,
            released: fields.get("released")?.unwrap_or_default(),
        })
    }

    /// Whether it is a job of this name.
    #[must_use]
    pub fn is_job(&self, namespace: &Namespace, job: &JobName) -> bool {
        self.namespace == *namespace && self.job == *job
    }

    /// Whether the job of this claim may still be about to appear, as far as the time tells; `now` is in milliseconds since
    /// 1970.
    #[must_use]
    pub fn is_young(&self, now: u64) -> bool {
        !self.released && self.uid.is_none() && self.is_recent(now)
    }

    /// Whether it is a claim whose job nobody has confirmed.
    #[must_use]
    pub fn is_claim(&self) -> bool {
        self.claimed_by.is_some() && self.uid.is_none()
    }

    /// Whether it is confirmed to be this job.
    #[must_use]
    pub fn is_confirmed(&self, submission: &Submission, uid: &str) -> bool {
        !self.released && self.submission == *submission && self.uid.as_deref() == Some(uid)
    }

    /// Whether this was claimed, joined or confirmed a moment ago, given up since or not: the id begins with the time. That
    /// may be ahead by as much as it may be behind, since clocks differ a little.
    fn is_recent(&self, now: u64) -> bool {
        let id = self.claimed_by.as_deref().unwrap_or(self.submission.as_str());
        // The form that ids have, and no other of a UUID.
        let id = id.parse::<Submission>().ok().and_then(|id| id.as_str().parse::<uuid::Uuid>().ok());
        let id = id.filter(|id| id.get_version_num() == 7);
        let made_at = id.and_then(|id| id.get_timestamp()).map(|timestamp| {
            let (seconds, nanoseconds) = timestamp.to_unix();
            seconds * 1000 + u64::from(nanoseconds) / 1_000_000
        });
        made_at.is_some_and(|made_at| now.abs_diff(made_at) < CLAIM_LIFETIME_MS)
    }

    /// Where this run stands for a request that would claim it. All evidence was read after this owner was, and
    /// the claim is a compare-and-swap of this owner: a claim that came in between is never written over.
    ///
    /// A run that was trained in a namespace belongs to those who see that namespace, also when its job has ended.
    #[must_use]
    pub fn lease_state(&self, claimant: &Claimant, evidence: Evidence, now: u64) -> LeaseState {
        let is_pending = self.is_young(now) && !evidence.is_recorded;
        if self.is_job(&claimant.namespace, &claimant.job) {
            // The name is free, or its job is the one to be replaced.
            return match is_pending {
                false => LeaseState::Free,
                true if self.request.as_ref() == Some(&claimant.request) => LeaseState::Joinable,
                true => LeaseState::Pending,
            };
        }
        match evidence.job {
            _ if !evidence.is_visible => LeaseState::Hidden,
            OwnersJob::NotRead => LeaseState::Unknown,
            OwnersJob::Active => LeaseState::Active,
            OwnersJob::Absent if is_pending => LeaseState::Pending,
            OwnersJob::Absent | OwnersJob::Finished => LeaseState::Free,
        }
    }

    /// This claim, joined by an equal request.
    #[must_use]
    pub fn joined_by(&self, id: &Submission) -> Self {
        Self { claimed_by: Some(id.to_string()), ..self.clone() }
    }

    /// What a request that was refused writes over its claim: what was there before, or a tombstone.
    #[must_use]
    pub fn given_up(&self, previous: Option<&Self>) -> Self {
        previous.cloned().unwrap_or_else(|| Self { released: true, ..self.clone() })
    }

    /// The submission that trained the run last, as far as this owner tells: its own where its job has existed
    /// (`is_recorded`), or else the one before it.
    #[must_use]
    pub fn trained_last(&self, is_recorded: bool) -> Submission {
        let previous = self.previous.clone().filter(|_| self.is_claim() && !is_recorded);
        previous.unwrap_or_else(|| self.submission.clone())
    }

    /// Whether the trainer of this submission may write into the run: the rule of the trainer's `owner.py`. A claim that was
    /// given up where nothing was before claims nothing, once no request can be about to claim the run.
    #[must_use]
    pub fn write(&self, submission: &Submission, now: u64) -> Write {
        if self.submission == *submission {
            Write::Allowed
        } else if self.is_recent(now) {
            Write::Wait
        } else if self.released {
            Write::Allowed
        } else {
            Write::Superseded
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const A: &str = "019a0000-0000-7000-8000-00000000000a";

    #[test]
    fn an_empty_uid_confirms() {
        let body = |uid| json!({"submission": A, "namespace": "training", "job": "hf-r", "claimed_by": A, "uid": uid});
        for (uid, is_claim) in [(None, true), (Some(""), false), (Some("u"), false)] {
            let owner = Owner::parse(body(uid).to_string().as_bytes()).expect("an owner");
            assert_eq!(owner.is_claim(), is_claim, "{uid:?}");
        }
    }

    #[test]
    fn a_record_with_a_name_that_is_none_is_refused() {
        let record = json!({"submission": A, "namespace": "training", "job": "hf-r",
            "checkpoint_prefix": "s3://bucket/r/framework=hf"});
        assert!(JobRecord::parse(record.to_string().as_bytes()).is_ok());
        for (field, name) in
            [("submission", "x"), ("namespace", "Training"), ("job", "1-r"), ("checkpoint_prefix", "s3://bucket/r")]
        {
            let mut record = record.clone();
            record[field] = name.into();
            assert_eq!(JobRecord::parse(record.to_string().as_bytes()), Err(StatementError::Field(field)));
        }
    }
}
