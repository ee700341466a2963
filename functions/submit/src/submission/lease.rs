//! Who may write into the run: the calls about its `owner` and about the job's record.

use lambda_http::http::header;
use serde::Serialize;
use training_core::{
    api::problem::Code,
    job::{
        protocol::{OwnerRead, Reply},
        pytorchjob::{PyTorchJob, key},
        status::Phase,
    },
};
use training_http::{
    Failure,
    answer::{cluster_failure, storage_failure},
};
use training_run::{
    layout::{RunKey, job_record_key},
    names::Submission,
    owner::{CLAIM_LIFETIME_MS, JobRecord, Owner, OwnersJob},
};
use training_store::{Expected, OwnerFound};

use super::Submitting;

/// How often a record is read again that another request has just changed.
const RECORD_TRIES: usize = 3;
/// Later jobs of a submission that its record tells of.
const MOST_UIDS: usize = 100;

impl Submitting<'_> {
    pub(super) async fn read_owner(&mut self) -> Result<Reply, Failure> {
        let (owner, identity) = match self.service.store.owner(&self.prefix).await.map_err(storage_failure)? {
            OwnerFound::Owner(owner, identity) => (*owner, identity),
            OwnerFound::Nothing => {
                self.owner = None;
                return Ok(Reply::Owner(None));
            }
            OwnerFound::NotUnderstood => return Err(self.not_understood()),
        };
        let is_visible =
            owner.is_job(&self.request.namespace, &self.request.job_name) || self.caller.sees(&owner.namespace);
        self.owner = Some(owner.clone());
        Ok(Reply::Owner(Some(OwnerRead { owner, etag: identity.etag, is_visible })))
    }

    /// Whether the job of an owner has existed, as far as its record tells, or the ledger of its trainer: whoever made the
    /// job may have died before it wrote a record.
    pub(super) async fn has_record(&self, owner: &Owner) -> Result<bool, Failure> {
        let store = &self.service.store;
        let base = &self.request.checkpoint_base_uri;
        let key = job_record_key(base, &owner.namespace, &owner.job, &owner.submission);
        if store.identity(base.bucket(), &key).await.map_err(storage_failure)?.is_some() {
            return Ok(true);
        }
        let attempts = self.prefix.attempts_folder(&owner.submission);
        store.has_key(self.prefix.bucket(), &attempts, |_| true).await.map_err(storage_failure)
    }

    pub(super) async fn read_owners_job(&self, owner: &Owner) -> Result<Reply, Failure> {
        let namespace = self.service.rules.namespaces.choose(Some(owner.namespace.as_str()), self.caller);
        let namespace = namespace.map_err(|_| self.not_understood())?;
        let job = self.service.cluster.jobs(&namespace).get(&owner.job).await.map_err(cluster_failure)?;
        let prefix = self.prefix.to_string();
        let is_its = |job: &PyTorchJob| match &owner.uid {
            // What a confirmed job says of itself is anybody's to change.
            Some(uid) => job.metadata.uid.as_ref() == Some(uid),
            // By the run and not by the submission: another one's claim may stand there for a moment.
            None => job.annotation(key::CHECKPOINT_PREFIX) == Some(prefix.as_str()),
        };
        let job = job.filter(is_its);
        Ok(Reply::OwnersJob(match job {
            None => OwnersJob::Absent,
            Some(job) if Phase::of(&job).0.is_finished() => OwnersJob::Finished,
            Some(_) => OwnersJob::Active,
        }))
    }

    pub(super) async fn write_owner(&self, owner: &Owner, over: Option<String>) -> Result<Reply, Failure> {
        let expected = over.map_or(Expected::Absent, Expected::Etag);
        let key = self.prefix.key(&RunKey::Owner);
        let written = self.service.store.put_if(self.prefix.bucket(), &key, to_body(owner)?, expected).await;
        written.map(Reply::Written).map_err(storage_failure)
    }

    /// The refusal when nobody can tell whether the run is being trained.
    fn not_understood(&self) -> Failure {
        let key = self.prefix.key(&RunKey::Owner);
        let detail = format!(
            "cannot read this run's owner record, so another job may be training it; if none is, ask your operator to delete \
             {key} from the runs bucket"
        );
        Failure::new(Code::RunActive, detail)
    }

    /// Record the job, if that was not done yet. The next equal request mends a loss, so it is only logged.
    pub(super) async fn record(&self) {
        let Some(job) = &self.job else { return };
        let Some(Ok(submission)) = job.annotation(key::SUBMISSION).map(str::parse::<Submission>) else { return };
        let record = JobRecord {
            submission,
            namespace: self.request.namespace.clone(),
            job: self.request.job_name.clone(),
            uid: job.metadata.uid.clone(),
            later_uids: Vec::new(),
            checkpoint_prefix: self.prefix.clone(),
            created_at: job.metadata.creation_timestamp.as_ref().map(|time| time.0.to_string()),
        };
        if let Err(failure) = self.write_record(&record).await {
            self.warn(&failure);
        }
    }

    /// Write a record, or add its job to the one that is there. What is there and no record is written over.
    async fn write_record(&self, record: &JobRecord) -> Result<(), Failure> {
        let store = &self.service.store;
        let bucket = self.request.checkpoint_base_uri.bucket();
        let key = job_record_key(&self.request.checkpoint_base_uri, &record.namespace, &record.job, &record.submission);
        let mut expected = Expected::Absent;
        let mut wanted = record.clone();
        for _ in 0..RECORD_TRIES {
            if store.put_if(bucket, &key, to_body(&wanted)?, expected).await.map_err(storage_failure)?.is_some() {
                return Ok(());
            }
            let Some(identity) = store.identity(bucket, &key).await.map_err(storage_failure)? else {
                expected = Expected::Absent;
                continue;
            };
            wanted = record.clone();
            if let Some(found) = store.record(bucket, &key).await.map_err(storage_failure)? {
                let Some(uid) = record.uid.as_deref().filter(|uid| !found.has(uid)) else { return Ok(()) };
                wanted = found;
                wanted.later_uids.push(uid.to_owned());
                wanted.later_uids.drain(..wanted.later_uids.len().saturating_sub(MOST_UIDS));
            }
            expected = Expected::Etag(identity.etag);
        }
        Ok(())
    }

    /// The refusal while another request's claim may still become a job.
    pub(super) fn claim_pending(owner: &Owner) -> Failure {
        let seconds = CLAIM_LIFETIME_MS / 1000;
        let detail = format!(
            "another request claimed this run for the job `{}` less than {seconds} s ago, and that job may still appear; retry \
             the same request in {seconds} s, or read the status of that job",
            owner.job
        );
        Failure::new(Code::RunActive, detail).with_header(header::RETRY_AFTER, seconds.to_string())
    }

    /// The refusal for a caller who may not see the owner's namespace: the same whatever that job does or did.
    pub(super) fn run_hidden() -> Failure {
        let detail = "this run belongs to a namespace that the token cannot access; choose another run_id or checkpoint_base_uri";
        Failure::new(Code::RunActive, detail)
    }

    pub(super) fn run_active(owner: &Owner) -> Failure {
        Failure::new(
            Code::RunActive,
            format!(
                "the job `{}` in the namespace `{}` trains this run; wait for its end or delete it, or choose another run_id",
                owner.job, owner.namespace
            ),
        )
    }
}

fn to_body(value: &impl Serialize) -> Result<Vec<u8>, Failure> {
    serde_json::to_vec(value).map_err(storage_failure)
}
