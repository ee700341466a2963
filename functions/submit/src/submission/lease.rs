//! Who may write into the run: the calls about its `owner` and about the job's record.

use lambda_http::http::header;
use serde::Serialize;
use training_core::{
    api::problem::Code,
    job::{
        protocol::{OwnerRead, Reply},
        pytorchjob::key,
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
use training_store::Expected;

use super::Submitting;

impl Submitting<'_> {
    pub(super) async fn read_owner(&mut self) -> Result<Reply, Failure> {
        let key = self.prefix.key(&RunKey::Owner);
        let Some(object) = self.service.store.get(self.prefix.bucket(), &key).await.map_err(storage_failure)? else {
            self.owner = None;
            return Ok(Reply::Owner(None));
        };
        let owner: Owner = serde_json::from_slice(&object.body).map_err(|_| self.not_understood())?;
        let is_visible =
            owner.is_job(&self.request.namespace, &self.request.job_name) || self.caller.sees(&owner.namespace);
        self.owner = Some(owner.clone());
        Ok(Reply::Owner(Some(OwnerRead { owner, etag: object.identity.etag, is_visible })))
    }

    /// Whether the job of an owner has existed, as far as its record tells.
    pub(super) async fn has_record(&self, owner: &Owner) -> Result<bool, Failure> {
        let base = &self.request.checkpoint_base_uri;
        let key = job_record_key(base, &owner.namespace, &owner.job, &owner.submission);
        Ok(self.service.store.get(base.bucket(), &key).await.map_err(storage_failure)?.is_some())
    }

    pub(super) async fn read_owners_job(&self, owner: &Owner) -> Result<Reply, Failure> {
        let namespace = self.service.rules.namespaces.choose(Some(owner.namespace.as_str()), self.caller);
        let namespace = namespace.map_err(|_| self.not_understood())?;
        let job = self.service.cluster.jobs(&namespace).get(&owner.job).await.map_err(cluster_failure)?;
        // By the run and not by the submission: another one's claim may stand there for a moment.
        let prefix = self.prefix.to_string();
        let job = job.filter(|job| job.annotation(key::CHECKPOINT_PREFIX) == Some(prefix.as_str()));
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
            checkpoint_prefix: self.prefix.clone(),
            created_at: job.metadata.creation_timestamp.as_ref().map(|time| time.0.to_string()),
        };
        let base = &self.request.checkpoint_base_uri;
        let key = job_record_key(base, &record.namespace, &record.job, &record.submission);
        let written = async {
            let body = to_body(&record)?;
            self.service.store.put_if(base.bucket(), &key, body, Expected::Absent).await.map_err(storage_failure)
        };
        if let Err(failure) = written.await {
            self.warn(&failure);
        }
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
