//! Submitting: from a request to exactly one job in the cluster, however often it is sent and whatever is cut off. The
//! protocol (`training_core::job::protocol`) says which call comes next; here it is made: what is asked of the cluster in
//! this file, who may write into the run in `lease`, and from which checkpoint the job starts in `start`, which refuses a run
//! that is trained already (409 `run_exists`).

mod lease;
mod start;

use std::time::{Duration, Instant, SystemTime};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use sha2::{Digest, Sha256};
use tokio::time::sleep;
use tracing::warn;
use training_cluster::{ClusterError, Effect, Jobs};
use training_core::{
    access::caller::Caller,
    api::problem::{Code, Problem},
    cause::chain,
    job::{
        manifest::{self, Origin, Start},
        protocol::{Call, Ending, Found, Protocol, Reply, Verdict},
        provenance::Provenance,
        pytorchjob::{PyTorchJob, key},
        replay::{self, Decision, Restart},
        status::Phase,
    },
    request::TrainingJobRequest,
};
use training_http::{Failure, answer::cluster_failure};
use training_run::{
    layout::RunPrefix,
    names::Submission,
    owner::{Claimant, Owner},
};
use uuid::Uuid;

use crate::service::Service;

/// How long one request may go on. API Gateway gives up after 30 s, and a last call may take 8 s.
const BUDGET: Duration = Duration::from_secs(20);
/// How long a restart waits for the old job to be gone.
const DELETION_WAIT: Duration = Duration::from_secs(15);
const DELETION_POLL: Duration = Duration::from_millis(250);
/// Between two looks after a lost race.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Largest manifest, in bytes; etcd takes 1.5 MiB, and the operator adds its status.
const MAX_MANIFEST_BYTES: usize = 1024 * 1024;

/// One request on its way, and what its calls have brought.
pub(crate) struct Submitting<'a> {
    service: &'a Service,
    request: &'a TrainingJobRequest,
    caller: &'a Caller,
    restart: Option<Restart>,
    /// A request replaces at most one job, whatever it finds afterwards.
    has_replaced: bool,
    effect: Effect,
    /// The one that the job was created with last.
    submission: Submission,
    prefix: RunPrefix,
    jobs: Jobs<'a>,
    started: Instant,
    /// The job that has the name, or that was made.
    job: Option<PyTorchJob>,
    /// Whether the job that has the name is being deleted already.
    is_leaving: bool,
    /// The run's owner as it was read last.
    owner: Option<Owner>,
    /// What the manifest needs from outside.
    prepared: Option<(Start, Option<PodTemplateSpec>)>,
    /// Why a call failed, why the creation did, and why the job that has the name is not what was asked for.
    failure: Option<Failure>,
    refusal: Option<Failure>,
    conflict: Option<Failure>,
}

/// How it ended.
pub(crate) enum Placed {
    /// This request made the job.
    Created(PyTorchJob),
    /// An earlier, equal request made it.
    Replayed(PyTorchJob),
}

// === impl Submitting ===

impl<'a> Submitting<'a> {
    pub(crate) fn new(
        service: &'a Service,
        request: &'a TrainingJobRequest,
        caller: &'a Caller,
        restart: Option<Restart>,
        effect: Effect,
    ) -> Self {
        Self {
            service,
            request,
            caller,
            restart,
            has_replaced: false,
            effect,
            submission: Uuid::now_v7().into(),
            prefix: manifest::run_prefix(request),
            jobs: service.cluster.jobs(&request.namespace),
            started: Instant::now(),
            job: None,
            is_leaving: false,
            owner: None,
            prepared: None,
            failure: None,
            refusal: None,
            conflict: None,
        }
    }

    pub(crate) async fn run(mut self) -> Result<Placed, Failure> {
        let claimant = Claimant {
            namespace: self.request.namespace.clone(),
            job: self.request.job_name.clone(),
            request: self.digest(),
        };
        let mut protocol = Protocol::new(claimant, self.effect == Effect::DryRun);
        let mut reply = Reply::Done;
        let ending = loop {
            reply = match protocol.next(reply, now(), &Uuid::now_v7().into()) {
                Call::End(ending) => break ending,
                call => Box::pin(self.make(call)).await,
            };
        };
        let job = self.job.ok_or_else(lost_track);
        match ending {
            Ending::Created => job.map(Placed::Created),
            Ending::Replayed => job.map(Placed::Replayed),
            Ending::RunActive(owner) => Err(Self::run_active(&owner)),
            Ending::ClaimPending(owner) => Err(Self::claim_pending(&owner)),
            Ending::RunHidden => Err(Self::run_hidden()),
            Ending::NotCreated => Err(self.refusal.unwrap_or_else(lost_track)),
            Ending::Conflict => Err(self.conflict.unwrap_or_else(lost_track)),
            Ending::Failed => Err(self.failure.unwrap_or_else(lost_track)),
        }
    }

    /// Make a call.
    async fn make(&mut self, call: Call) -> Reply {
        let answer = match call {
            Call::ReadOwner => self.read_owner().await,
            Call::ReadRecord(owner) => self.has_record(&owner).await.map(Reply::Recorded),
            Call::ReadJob => self.read_job().await,
            Call::ReadOwnersJob(owner) => self.read_owners_job(&owner).await,
            Call::ReadWhetherActive { uid } => self.is_active(&uid).await.map(Reply::IsActive),
            Call::Prepare => Box::pin(self.prepare()).await,
            Call::RehearseReplacing => self.rehearse_replacing().await,
            Call::WriteOwner { owner, over } => self.write_owner(&owner, over).await,
            Call::Create { submission } => return self.create(submission).await,
            Call::Replace => Box::pin(self.replace()).await,
            Call::TakeBack => self.take_back().await,
            Call::Record => {
                self.record().await;
                Ok(Reply::Done)
            }
            Call::Pause => self.pause().await,
            Call::End(_) => Ok(Reply::Done),
        };
        answer.unwrap_or_else(|failure| {
            self.warn(&failure);
            self.failure = Some(failure);
            Reply::Refused
        })
    }

    async fn pause(&self) -> Result<Reply, Failure> {
        if self.started.elapsed() >= BUDGET {
            let detail = "concurrent requests kept changing this job; retry the same request";
            return Err(Failure::new(Code::ClusterTimeout, detail));
        }
        sleep(LOOK_AGAIN).await;
        Ok(Reply::Done)
    }

    async fn read_job(&mut self) -> Result<Reply, Failure> {
        self.job = self.jobs.get(&self.request.job_name).await.map_err(cluster_failure)?;
        let Some(found) = &self.job else { return Ok(Reply::Job(None)) };
        let (decision, is_proven) = self.decide(found).await?;
        let verdict = match decision {
            Ok(Decision::Ours | Decision::Replay) => Verdict::Replay,
            Ok(decision @ (Decision::Replace | Decision::Await)) => {
                self.is_leaving = decision == Decision::Await;
                Verdict::Replace
            }
            Err(problem) => {
                self.conflict = Some(problem.into());
                Verdict::Refuse
            }
        };
        // A job of another run may have the name.
        let is_this_run = found.annotation(key::CHECKPOINT_PREFIX) == Some(self.prefix.to_string().as_str());
        let submission = found.annotation(key::SUBMISSION).filter(|_| is_proven && is_this_run);
        let submission = submission.and_then(|submission| submission.parse().ok());
        let is_finished = Phase::of(found).0.is_finished();
        Ok(Reply::Job(Some(Found { submission, uid: uid_of(found), verdict, is_finished })))
    }

    /// Whether the job that has the request's name is this one, and has not ended.
    async fn is_active(&self, uid: &str) -> Result<bool, Failure> {
        let job = self.jobs.get(&self.request.job_name).await.map_err(cluster_failure)?;
        Ok(job.is_some_and(|job| job.metadata.uid.as_deref() == Some(uid) && !Phase::of(&job).0.is_finished()))
    }

    /// What the request does about the job that has its name, and whether the bucket confirms what the job says of itself.
    /// Only such a job is replayed or replaced, but one is also replayed while the bucket does not answer.
    async fn decide(&self, found: &PyTorchJob) -> Result<(Result<Decision, Problem>, bool), Failure> {
        let wanted = self.render(&self.submission, Start::Fresh, None);
        let restart = self.restart.as_ref().filter(|_| !self.has_replaced);
        let decision = Decision::of(found, &wanted, restart);
        match &decision {
            Ok(Decision::Ours) => return Ok((decision, true)),
            Err(_) => return Ok((decision, false)),
            Ok(Decision::Replay | Decision::Replace | Decision::Await) => {}
        }
        let provenance = self.service.provenance(found, &self.request.namespace, &self.request.job_name).await;
        Ok(match provenance {
            Ok(Provenance::Proven | Provenance::Former) => (decision, true),
            Ok(Provenance::Plausible | Provenance::Foreign) => {
                (Err(replay::foreign(self.request.job_name.as_str())), false)
            }
            Err(failure) if matches!(decision, Ok(Decision::Replace | Decision::Await)) => return Err(failure),
            Err(_) => (decision, false),
        })
    }

    /// Everything that the manifest needs from outside, and the manifest.
    async fn prepare(&mut self) -> Result<Reply, Failure> {
        if let Some(problem) = self.request.settings_problem(&self.service.rules) {
            return Err(problem.into());
        }
        let (start, defaults) = tokio::join!(self.resolve_start(), self.jobs.platform_defaults());
        let defaults = defaults.map_err(cluster_failure)?;
        let (start, defaults) = (start?, defaults.and_then(|defaults| defaults.template));
        let job = self.render(&self.submission, start, defaults.as_ref());
        let bytes = serde_json::to_vec(&job)
            .map_err(|error| Failure::with_cause(Code::ClusterError, "the manifest cannot be written", error))?
            .len();
        if bytes > MAX_MANIFEST_BYTES {
            let detail = format!("the job's manifest has {bytes} bytes; at most {MAX_MANIFEST_BYTES} are stored");
            return Err(Failure::new(Code::BodyTooLarge, detail));
        }
        self.prepared = Some((start, defaults));
        Ok(Reply::Done)
    }

    fn render(&self, submission: &Submission, start: Start, defaults: Option<&PodTemplateSpec>) -> PyTorchJob {
        let origin = Origin { submission, submitted_by: self.caller.id.as_deref(), start };
        manifest::build(self.request, origin, defaults, &self.service.platform)
    }

    async fn create(&mut self, submission: Submission) -> Reply {
        let Some((start, defaults)) = &self.prepared else {
            self.refusal = Some(lost_track());
            return Reply::Refused;
        };
        let manifest = self.render(&submission, *start, defaults.as_ref());
        self.submission = submission;
        match self.jobs.create(&manifest, self.effect).await {
            Ok(job) => {
                let uid = uid_of(&job);
                self.job = Some(job);
                Reply::Created(uid)
            }
            Err(ClusterError::AlreadyExists) => Reply::AlreadyExists,
            Err(error) => {
                let reply = if error.is_ambiguous() { Reply::Unanswered } else { Reply::Refused };
                self.refusal = Some(cluster_failure(error));
                reply
            }
        }
    }

    /// Would the old job be deleted, and the new one be taken in its place? Its name is still taken, which the API server
    /// says last, after everything else was checked; and a quota that is used up has room when the old job is gone.
    async fn rehearse_replacing(&mut self) -> Result<Reply, Failure> {
        let (Some(found), Some((start, defaults))) = (&self.job, &self.prepared) else { return Err(lost_track()) };
        let manifest = self.render(&self.submission, *start, defaults.as_ref());
        if found.metadata.deletion_timestamp.is_none() {
            match self.jobs.delete(found, Effect::DryRun).await {
                Ok(()) => {}
                Err(ClusterError::NotFound | ClusterError::Changed) => return Ok(Reply::Replaced(false)),
                Err(error) => return Err(cluster_failure(error)),
            }
        }
        match self.jobs.create(&manifest, Effect::DryRun).await {
            Err(ClusterError::QuotaExceeded(said)) if !replay::has_room_without_one(&said) => {
                Err(cluster_failure(ClusterError::QuotaExceeded(said)))
            }
            Ok(_) | Err(ClusterError::AlreadyExists | ClusterError::QuotaExceeded(_)) => {
                if self.effect == Effect::DryRun {
                    self.job = Some(manifest);
                }
                Ok(Reply::Done)
            }
            Err(error) => Err(cluster_failure(error)),
        }
    }

    /// Delete a finished job, or wait for one that is being deleted, until its name is free.
    async fn replace(&mut self) -> Result<Reply, Failure> {
        let Some(found) = self.job.take() else { return Err(lost_track()) };
        if !self.is_leaving {
            match self.jobs.delete(&found, Effect::Real).await {
                Ok(()) | Err(ClusterError::NotFound) => {}
                Err(ClusterError::Changed) => return Ok(Reply::Replaced(false)),
                // Perhaps it is being deleted, perhaps not: reading it again tells.
                Err(error) if error.is_ambiguous() => return Ok(Reply::Replaced(false)),
                Err(error) => return Err(cluster_failure(error)),
            }
        }
        while self.started.elapsed() < DELETION_WAIT {
            match self.jobs.get(&self.request.job_name).await.map_err(cluster_failure)? {
                Some(present) if present.metadata.uid == found.metadata.uid => sleep(DELETION_POLL).await,
                _ => {
                    self.has_replaced = true;
                    return Ok(Reply::Replaced(true));
                }
            }
        }
        Err(replay::terminating(self.request.job_name.as_str()).into())
    }

    /// By which an equal request is known.
    fn digest(&self) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(Sha256::digest(self.request.fingerprint.to_annotation()))
    }

    fn warn(&self, failure: &Failure) {
        if let Some(cause) = &failure.cause {
            warn!(job = %self.request.job_name, cause = chain(&**cause), "{}", failure.problem.detail);
        }
    }

    async fn take_back(&self) -> Result<Reply, Failure> {
        let Some(created) = &self.job else { return Err(lost_track()) };
        match self.jobs.cancel(created).await {
            // Another job may have the name by now.
            Ok(_) | Err(ClusterError::NotFound | ClusterError::Changed) => Ok(Reply::Done),
            Err(error) => Err(cluster_failure(error)),
        }
    }
}

/// The cluster gives one to every job that it keeps.
fn uid_of(job: &PyTorchJob) -> String {
    job.metadata.uid.clone().unwrap_or_default()
}

/// Milliseconds since 1970.
fn now() -> u64 {
    let elapsed = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}

/// The protocol ended without what its ending needs, which no order of calls does.
fn lost_track() -> Failure {
    Failure::new(Code::ClusterError, "this service found neither a job nor a reason; retry the same request")
}
