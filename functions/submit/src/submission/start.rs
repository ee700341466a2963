//! From which checkpoint the job starts, looked up where the request names one that must be there. A request that does not
//! say how to go on from a run's checkpoints is refused here: 409 `run_exists`.

use training_core::{
    api::problem::Code,
    job::{manifest::Start, replay::Restart},
    request::resume::{Resume, ResumeTarget},
};
use training_http::{Failure, answer::storage_failure, boundary::in_storage};
use training_run::{
    lineage::{DEFAULT_METRIC, Mode},
    marker::State,
    names::Submission,
};

use super::Submitting;

impl Submitting<'_> {
    /// Which checkpoint the job starts from, looked up where the request names one that must be there.
    pub(super) async fn resolve_start(&self) -> Result<Start, Failure> {
        let store = &self.service.store;
        let target = match self.request.resume {
            Resume::IfAny => return Ok(Start::NewestIfAny),
            Resume::No => {
                let is_restart = match &self.restart {
                    None => false,
                    Some(Restart::Finished) => true,
                    // Of the submission that trained the run last, and of no other.
                    Some(Restart::Submission(named)) => self.was_trained_last_by(named).await?,
                };
                if !is_restart {
                    self.check_untrained().await?;
                }
                return Ok(Start::Fresh);
            }
            Resume::From(target) => target,
        };
        let step = match target {
            ResumeTarget::Latest => in_storage(store.latest(&self.prefix)).await?.map(|entry| entry.step),
            ResumeTarget::Best => {
                let best = in_storage(store.best(&self.prefix, DEFAULT_METRIC, Mode::Min)).await?;
                best.map(|entry| entry.step)
            }
            ResumeTarget::Step(step) => {
                let found = store.checkpoint(&self.prefix, step).await.map_err(storage_failure)?;
                // One that lists no files cannot be checked here; the trainer checks it.
                found.filter(|entry| entry.state != State::Incomplete).map(|entry| entry.step)
            }
        };
        step.map(Start::Step).ok_or_else(|| {
            let run = &self.request.run_id;
            Failure::new(
                Code::ResumeTargetNotFound,
                format!("the run `{run}` has no complete checkpoint `{target}` to resume from"),
            )
        })
    }

    /// Whether this submission trained the run last: the owner's, or where the owner is a claim without a job, the one
    /// before it.
    pub(super) async fn was_trained_last_by(&self, named: &Submission) -> Result<bool, Failure> {
        let Some(owner) = &self.owner else { return Ok(false) };
        if owner.submission == *named {
            return Ok(true);
        }
        Ok(owner.is_claim() && owner.previous.as_ref() == Some(named) && !self.has_record(owner).await?)
    }

    /// Nobody trains over a run by a retry whose job is long gone.
    pub(super) async fn check_untrained(&self) -> Result<(), Failure> {
        let store = &self.service.store;
        let is_marker = |key: &str| self.prefix.is_marker(key);
        let has_checkpoints =
            store.has_key(self.prefix.bucket(), &self.prefix.markers(), is_marker).await.map_err(storage_failure)?;
        if !has_checkpoints {
            return Ok(());
        }
        let detail = format!(
            "the run `{}` has checkpoints already; send `resume_from_checkpoint` to resume from them, ?restart=true to \
             start from scratch, or choose another run_id",
            self.request.run_id
        );
        Err(Failure::new(Code::RunExists, detail))
    }
}
