//! Submitting: from a request to exactly one job in the cluster, however often it is sent and whatever is cut off.
//!
//! ```text
//! look: is the name taken? ── yes ─> ours, replay, replace (and look again), or refuse
//!        └─ no ─> prepare (start, defaults, manifest) ─> claim the run ─> create ─> hold the run ─> record
//!                                                           └─ lost ─┴─ name taken by now ─> look again
//! ```
//! The API server decides which of several equal requests makes the job: names are unique. The run's `owner` object says
//! which job may write checkpoints; it is claimed before the job exists, so that a claim without a job harms nobody. A
//! young claim is left alone by requests for jobs of other names: its job may be about to appear. So of jobs with several
//! names only one is made.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant, SystemTime},
};

use k8s_openapi::api::core::v1::PodTemplateSpec;
use serde::Serialize;
use tokio::time::sleep;
use tracing::warn;
use training_cluster::{ClusterError, Effect, Jobs};
use training_core::{
    cause::chain,
    existing::{self, Decision, Restart},
    layout::{RunKey, RunPrefix, job_record_key},
    lineage::Mode,
    manifest::{self, Origin, Start},
    marker::State,
    names::{Step, Submission},
    owner::{JobRecord, Owner},
    problem::Code,
    pytorchjob::{PyTorchJob, key},
    request::{Resume, ResumeTarget, TrainingJobRequest},
    status::Phase,
    token::Caller,
};
use training_http::{
    Failure,
    answer::{cluster_failure, storage_failure},
};
use training_store::Expected;
use uuid::Uuid;

use crate::handler::Handler;

/// How long one request may go on. API Gateway gives up after 30 s, and a last call may take 8 s.
const BUDGET: Duration = Duration::from_secs(20);
/// How long a restart waits for the old job to be gone.
const DELETION_WAIT: Duration = Duration::from_secs(15);
const DELETION_POLL: Duration = Duration::from_millis(250);
/// Between two looks after a lost race.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// How long after its submission was made a claim's job may still appear: longer than any request takes.
const CLAIM_LIFETIME: Duration = Duration::from_secs(35);
/// Largest manifest, in bytes; etcd takes 1.5 MiB, and the operator adds its status.
const MAX_MANIFEST_BYTES: usize = 1024 * 1024;
/// The metric by which `"best"` is chosen, least first.
const BEST_METRIC: &str = "loss";

/// One request on its way.
pub(crate) struct Submitting<'a> {
    handler: &'a Handler,
    request: &'a TrainingJobRequest,
    caller: &'a Caller,
    restart: Option<Restart>,
    effect: Effect,
    submission: Submission,
    prefix: RunPrefix,
    jobs: Jobs<'a>,
    started: Instant,
    /// Whether this request has become the run's owner.
    has_claimed: AtomicBool,
}

/// How it ended.
pub(crate) enum Placed {
    /// This request made the job.
    Created(PyTorchJob),
    /// An earlier, equal request made it.
    Replayed(PyTorchJob),
}

/// The outcome of one try.
enum Tried {
    Placed(Box<Placed>),
    /// Somebody else was quicker at something.
    LookAgain,
}

// === impl Tried ===

impl Tried {
    fn placed(placed: Placed) -> Self {
        Self::Placed(Box::new(placed))
    }
}

// === impl Submitting ===

impl<'a> Submitting<'a> {
    pub(crate) fn new(
        handler: &'a Handler,
        request: &'a TrainingJobRequest,
        caller: &'a Caller,
        restart: Option<Restart>,
        effect: Effect,
    ) -> Self {
        Self {
            handler,
            request,
            caller,
            restart,
            effect,
            submission: Uuid::now_v7().into(),
            prefix: manifest::run_prefix(request),
            jobs: handler.cluster.jobs(&request.namespace),
            started: Instant::now(),
            has_claimed: AtomicBool::new(false),
        }
    }

    pub(crate) async fn run(self) -> Result<Placed, Failure> {
        // A request replaces at most one job, whatever it finds afterwards.
        let mut restart = self.restart.as_ref();
        while self.started.elapsed() < BUDGET {
            let found = self.jobs.get(&self.request.job_name).await.map_err(cluster_failure)?;
            let tried = match found {
                None => Box::pin(self.start()).await?,
                Some(found) => {
                    let wanted = self.render(Start::Fresh, None);
                    let decision = Decision::of(&found, &wanted, restart);
                    if decision.is_err() && self.has_claimed.load(Ordering::Relaxed) {
                        // The run that we claimed belongs to the job that was quicker.
                        self.hold_for(&found).await;
                    }
                    match decision? {
                        Decision::Ours => Box::pin(self.keep(found)).await?,
                        Decision::Replay => {
                            self.hold_for(&found).await;
                            Tried::placed(Placed::Replayed(found))
                        }
                        decision @ (Decision::Replace | Decision::Await) => {
                            // Before anything is deleted: the new job must not be refused afterwards.
                            let rehearsed = Box::pin(self.rehearse_replacing(&found)).await?;
                            if self.effect == Effect::DryRun {
                                rehearsed
                            } else {
                                if matches!(rehearsed, Tried::Placed(_)) && self.remove(&found, decision).await? {
                                    restart = None;
                                }
                                Tried::LookAgain
                            }
                        }
                    }
                }
            };
            match tried {
                Tried::Placed(placed) => return Ok(*placed),
                Tried::LookAgain => sleep(LOOK_AGAIN).await,
            }
        }
        let detail = "other requests for this job came in between all the time; send the same request again";
        Err(Failure::new(Code::ClusterTimeout, detail))
    }

    /// Make the job of a name that is free.
    async fn start(&self) -> Result<Tried, Failure> {
        let previous = self.read_owner().await?;
        let owner = previous.as_ref().map(|(owner, _)| owner);
        let standing = self.standing(owner).await?;
        if let Standing::Taken(refusal) = standing {
            // Before all else: what its job has written is no reason to restart it.
            return Err(refusal);
        }
        let job = self.prepare(owner).await?;
        if matches!(standing, Standing::Busy) {
            return Ok(Tried::LookAgain);
        }
        if self.effect == Effect::DryRun {
            return match self.jobs.create(&job, Effect::DryRun).await {
                Ok(job) => Ok(Tried::placed(Placed::Created(job))),
                Err(ClusterError::AlreadyExists) => Ok(Tried::LookAgain),
                Err(error) => Err(cluster_failure(error)),
            };
        }
        if !self.claim(previous.as_ref()).await? {
            return Ok(Tried::LookAgain);
        }
        let created = match self.create(&job).await {
            Ok(created) => created,
            Err(ClusterError::AlreadyExists) => return Ok(Tried::LookAgain),
            Err(error) => {
                if !error.is_ambiguous() {
                    self.release().await;
                }
                return Err(cluster_failure(error));
            }
        };
        Box::pin(self.keep(created)).await
    }

    /// Our job exists: hold the run for it and keep a record.
    async fn keep(&self, created: PyTorchJob) -> Result<Tried, Failure> {
        if let Some(refusal) = self.hold_for(&created).await {
            // Another job of the same run was created meanwhile, under another name. Two must not write into one run.
            self.jobs.cancel(&created).await.map_err(cluster_failure)?;
            return Err(refusal);
        }
        self.record(&created).await;
        Ok(Tried::placed(Placed::Created(created)))
    }

    /// Everything that the manifest needs from outside, and the manifest.
    async fn prepare(&self, owner: Option<&Owner>) -> Result<PyTorchJob, Failure> {
        let (start, defaults) = tokio::join!(self.resolve_start(owner), self.jobs.platform_defaults());
        let defaults = defaults.map_err(cluster_failure)?;
        let job = self.render(start?, defaults.and_then(|defaults| defaults.template).as_ref());
        let bytes = serde_json::to_vec(&job)
            .map_err(|error| Failure::with_cause(Code::ClusterError, "the manifest cannot be written", error))?
            .len();
        if bytes > MAX_MANIFEST_BYTES {
            let detail = format!("the job's manifest has {bytes} bytes; at most {MAX_MANIFEST_BYTES} are stored");
            return Err(Failure::new(Code::BodyTooLarge, detail));
        }
        Ok(job)
    }

    fn render(&self, start: Start, defaults: Option<&PodTemplateSpec>) -> PyTorchJob {
        let origin = Origin { submission: &self.submission, submitted_by: self.caller.id.as_deref(), start };
        manifest::build(self.request, origin, defaults, &self.handler.platform)
    }

    /// Which checkpoint the job starts from, looked up where the request names one that must be there.
    async fn resolve_start(&self, owner: Option<&Owner>) -> Result<Start, Failure> {
        let store = &self.handler.store;
        let target = match self.request.resume {
            Resume::IfAny => return Ok(Start::NewestIfAny),
            Resume::No => {
                let is_restart = match &self.restart {
                    None => false,
                    Some(Restart::Finished) => true,
                    // Of the submission that trained the run last, and of no other.
                    Some(Restart::Submission(named)) => owner.is_some_and(|owner| owner.submission == named.as_str()),
                };
                if !is_restart {
                    self.check_untrained().await?;
                }
                return Ok(Start::Fresh);
            }
            Resume::From(target) => target,
        };
        let step = match target {
            ResumeTarget::Latest => store.latest(&self.prefix).await.map_err(storage_failure)?.map(|entry| entry.step),
            ResumeTarget::Best => {
                let best = store.best(&self.prefix, BEST_METRIC, Mode::Min).await.map_err(storage_failure)?;
                best.map(|entry| entry.step)
            }
            ResumeTarget::Step(step) => {
                let found = store.checkpoint(&self.prefix, step).await.map_err(storage_failure)?;
                // One that lists no files cannot be looked at; the trainer will see.
                found.filter(|entry| entry.state != State::Incomplete).map(|entry| entry.step)
            }
        };
        let step = step.and_then(|step| Step::new(step).ok());
        step.map(Start::Step).ok_or_else(|| {
            let run = &self.request.run_id;
            Failure::new(
                Code::ResumeTargetNotFound,
                format!("the run `{run}` has no complete checkpoint `{target}` to resume from"),
            )
        })
    }

    /// Nobody trains over a run by a retry whose job is long gone.
    async fn check_untrained(&self) -> Result<(), Failure> {
        let store = &self.handler.store;
        let is_marker = |key: &str| self.prefix.is_marker(key);
        let has_checkpoints =
            store.has_key(self.prefix.bucket(), &self.prefix.markers(), is_marker).await.map_err(storage_failure)?;
        if !has_checkpoints {
            return Ok(());
        }
        let detail = format!(
            "the run `{}` has checkpoints already; send `resume_from_checkpoint` to go on from them, ?restart=true to train \
             it anew, or choose another run_id",
            self.request.run_id
        );
        Err(Failure::new(Code::RunExists, detail))
    }

    /// Create the job. When no good answer came, one look tells whether it was created all the same.
    async fn create(&self, job: &PyTorchJob) -> Result<PyTorchJob, ClusterError> {
        let error = match self.jobs.create(job, Effect::Real).await {
            Err(error) if error.is_ambiguous() => error,
            result => return result,
        };
        match self.jobs.get(&self.request.job_name).await {
            Ok(Some(found)) if found.annotation(key::SUBMISSION) == Some(self.submission.as_str()) => Ok(found),
            Ok(Some(_)) => Err(ClusterError::AlreadyExists),
            // It may still come: the caller repeats, and finds it or makes it.
            Ok(None) | Err(_) => Err(error),
        }
    }

    /// Delete a finished job, or wait for one that is being deleted, until its name is free; `false` when it changed
    /// before it could be deleted, and has to be looked at again.
    async fn remove(&self, found: &PyTorchJob, decision: Decision) -> Result<bool, Failure> {
        if decision == Decision::Replace {
            match self.jobs.delete(found, Effect::Real).await {
                Ok(()) | Err(ClusterError::NotFound) => {}
                Err(ClusterError::Changed) => return Ok(false),
                // Perhaps it is being deleted, perhaps not: looking again tells.
                Err(error) if error.is_ambiguous() => return Ok(false),
                Err(error) => return Err(cluster_failure(error)),
            }
        }
        while self.started.elapsed() < DELETION_WAIT {
            match self.jobs.get(&self.request.job_name).await.map_err(cluster_failure)? {
                Some(present) if present.metadata.uid == found.metadata.uid => sleep(DELETION_POLL).await,
                _ => return Ok(true),
            }
        }
        Err(existing::terminating(self.request.job_name.as_str()).into())
    }

    /// Would the old job be deleted, and the new one be taken in its place? Its name is still taken, which the API server
    /// says last, after everything else was checked; and a quota that is used up has room when the old job is gone.
    async fn rehearse_replacing(&self, found: &PyTorchJob) -> Result<Tried, Failure> {
        let previous = self.read_owner().await?;
        let owner = previous.as_ref().map(|(owner, _)| owner);
        let standing = self.standing(owner).await?;
        if let Standing::Taken(refusal) = standing {
            // Before all else: what its job has written is no reason to restart it.
            return Err(refusal);
        }
        let job = self.prepare(owner).await?;
        if matches!(standing, Standing::Busy) {
            return Ok(Tried::LookAgain);
        }
        if found.metadata.deletion_timestamp.is_none() {
            match self.jobs.delete(found, Effect::DryRun).await {
                Ok(()) => {}
                Err(ClusterError::NotFound | ClusterError::Changed) => return Ok(Tried::LookAgain),
                Err(error) => return Err(cluster_failure(error)),
            }
        }
        match self.jobs.create(&job, Effect::DryRun).await {
            Ok(_) | Err(ClusterError::AlreadyExists | ClusterError::QuotaExceeded(_)) => {
                Ok(Tried::placed(Placed::Created(job)))
            }
            Err(error) => Err(cluster_failure(error)),
        }
    }
}

/// Who may write into the run.
impl Submitting<'_> {
    /// The run's owner and the object's `ETag`.
    async fn read_owner(&self) -> Result<Option<(Owner, String)>, Failure> {
        let key = self.prefix.key(&RunKey::Owner);
        let Some(object) = self.handler.store.get(self.prefix.bucket(), &key).await.map_err(storage_failure)? else {
            return Ok(None);
        };
        let owner = serde_json::from_slice(&object.body).map_err(|_| self.not_understood())?;
        Ok(Some((owner, object.identity.etag)))
    }

    /// Where the run stands with this owner. A run that was trained in a namespace belongs to those who see that namespace,
    /// also when its job has ended; nobody else learns more than that.
    async fn standing(&self, owner: Option<&Owner>) -> Result<Standing, Failure> {
        let Some(owner) = owner else { return Ok(Standing::Free) };
        if owner.is_job(self.request.namespace.as_str(), self.request.job_name.as_str()) {
            // Names decide between us.
            return Ok(Standing::Free);
        }
        if !owner.namespace.parse().is_ok_and(|namespace| self.caller.sees(&namespace)) {
            return Ok(Standing::Taken(run_hidden()));
        }
        let (Ok(namespace), Ok(name)) =
            (self.handler.rules.namespaces.choose(Some(&owner.namespace), self.caller), owner.job.parse())
        else {
            return Err(self.not_understood());
        };
        let job = self.handler.cluster.jobs(&namespace).get(&name).await.map_err(cluster_failure)?;
        // By the run and not by the submission: another one's claim may stand there for a moment.
        let prefix = self.prefix.to_string();
        let job = job.filter(|job| job.annotation(key::CHECKPOINT_PREFIX) == Some(prefix.as_str()));
        Ok(match job {
            Some(job) if Phase::of(&job).0.is_finished() => Standing::Free,
            Some(_) => Standing::Taken(run_active(owner)),
            None if is_young(owner) => Standing::Busy,
            None => Standing::Free,
        })
    }

    /// Become the owner in place of the one that was read; `false` when somebody else was quicker.
    async fn claim(&self, previous: Option<&(Owner, String)>) -> Result<bool, Failure> {
        let written = self.write_owner(self.owner(), previous.map(|(_, etag)| etag.clone())).await?;
        self.has_claimed.store(written.is_some(), Ordering::Relaxed);
        Ok(written.is_some())
    }

    /// Tell others that the job of our claim will not appear. When that fails, they wait until the claim is old.
    async fn release(&self) {
        let released = async {
            match self.read_owner().await? {
                Some((owner, etag)) if owner == self.owner() => {
                    self.write_owner(Owner { released: true, ..owner }, Some(etag)).await
                }
                _ => Ok(None),
            }
        };
        if let Err(failure) = released.await {
            self.warn(&failure, "the run stays claimed for a while");
        }
    }

    /// See to it that the run's owner is this job, which exists: an equal request that came later may have claimed the run
    /// and then found the name taken. Returns the refusal when the run is another's.
    ///
    /// A bucket that fails now does not undo the job: it was claimed a moment ago, or the next request sees to it.
    async fn hold_for(&self, job: &PyTorchJob) -> Option<Failure> {
        if self.effect == Effect::DryRun || Phase::of(job).0.is_finished() {
            return None;
        }
        let owner = Owner { submission: job.annotation(key::SUBMISSION)?.to_owned(), ..self.owner() };
        while self.started.elapsed() < BUDGET {
            let held = async {
                let previous = self.read_owner().await?;
                if previous.as_ref().is_some_and(|(previous, _)| *previous == owner) {
                    return Ok(Held::Yes);
                }
                if let Some((previous, _)) = &previous
                    && let Standing::Taken(refusal) = self.standing(Some(previous)).await?
                {
                    return Ok(Held::Not(refusal));
                }
                let written = self.write_owner(owner.clone(), previous.map(|(_, etag)| etag)).await?;
                Ok::<_, Failure>(if written.is_some() { Held::Yes } else { Held::LookAgain })
            };
            match held.await {
                Ok(Held::Yes) => return None,
                Ok(Held::Not(refusal)) => return Some(refusal),
                Ok(Held::LookAgain) => sleep(LOOK_AGAIN).await,
                Err(failure) => {
                    self.warn(&failure, "cannot make sure that the job owns its run");
                    return None;
                }
            }
        }
        None
    }

    fn warn(&self, failure: &Failure, what: &str) {
        let cause = failure.cause.as_deref().map(|cause| chain(cause)).unwrap_or_default();
        warn!(job = %self.request.job_name, cause, "{what}");
    }

    /// The refusal when nobody can tell whether the run is being trained.
    fn not_understood(&self) -> Failure {
        let key = self.prefix.key(&RunKey::Owner);
        let detail = format!(
            "the owner of this run cannot be looked at, so it may be being trained; when it is not, its operator removes the \
             object {key} from the bucket"
        );
        Failure::new(Code::RunActive, detail)
    }

    fn owner(&self) -> Owner {
        Owner {
            submission: self.submission.to_string(),
            namespace: self.request.namespace.to_string(),
            job: self.request.job_name.to_string(),
            released: false,
        }
    }

    async fn write_owner(&self, owner: Owner, etag: Option<String>) -> Result<Option<String>, Failure> {
        let expected = etag.map_or(Expected::Absent, Expected::Etag);
        let key = self.prefix.key(&RunKey::Owner);
        self.handler.store.put_if(self.prefix.bucket(), &key, to_body(&owner)?, expected).await.map_err(storage_failure)
    }

    /// Keep a record of the job. It outlives the job but does not decide anything, so its loss is only logged.
    async fn record(&self, job: &PyTorchJob) {
        let record = JobRecord {
            submission: self.submission.to_string(),
            namespace: self.request.namespace.to_string(),
            job: self.request.job_name.to_string(),
            uid: job.metadata.uid.clone(),
            checkpoint_prefix: self.prefix.to_string(),
            created_at: job.metadata.creation_timestamp.as_ref().map(|time| time.0.to_string()),
        };
        let base = &self.request.checkpoint_base_uri;
        let key = job_record_key(base, &record.namespace, &record.job, &self.submission);
        let written =
            async { self.handler.store.put(base.bucket(), &key, to_body(&record)?).await.map_err(storage_failure) };
        if let Err(failure) = written.await {
            self.warn(&failure, "no record of the job was kept");
        }
    }
}

/// Whether a run can be claimed.
enum Standing {
    /// Its owner is none, or has ended, or is the job that we are about to make.
    Free,
    /// It was claimed a moment ago, and the job of that claim may be about to appear.
    Busy,
    /// Its owner trains it, or is not for the caller to see.
    Taken(Failure),
}

/// Whether the job of a claim may still be about to appear. A submission's id begins with the time at which it was made.
fn is_young(owner: &Owner) -> bool {
    let made_at = owner.submission.parse::<Uuid>().ok().and_then(|id| id.get_timestamp()).map(|timestamp| {
        let (seconds, nanoseconds) = timestamp.to_unix();
        SystemTime::UNIX_EPOCH + Duration::new(seconds, nanoseconds)
    });
    // One from the future is young as well: clocks differ a little.
    !owner.released
        && made_at.is_some_and(|made_at| {
            made_at.elapsed().is_ok_and(|age| age < CLAIM_LIFETIME) || made_at.elapsed().is_err()
        })
}

/// Whether a job owns its run.
enum Held {
    Yes,
    Not(Failure),
    LookAgain,
}

fn to_body(value: &impl Serialize) -> Result<Vec<u8>, Failure> {
    serde_json::to_vec(value).map_err(storage_failure)
}

/// The refusal for a caller who may not see the owner's namespace: the same whatever that job does or did.
fn run_hidden() -> Failure {
    let detail =
        "this run belongs to a namespace that the token does not see; choose another run_id or checkpoint_base_uri";
    Failure::new(Code::RunActive, detail)
}

fn run_active(owner: &Owner) -> Failure {
    Failure::new(
        Code::RunActive,
        format!(
            "the job `{}` in the namespace `{}` trains this run; wait for its end or delete it, or choose another run_id",
            owner.job, owner.namespace
        ),
    )
}
