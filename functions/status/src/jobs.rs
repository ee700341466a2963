//! GET /train and GET /train/{name}.

use std::time::{Duration, Instant};

use futures::future::join_all;
use tokio::time::timeout;
use tracing::warn;
use training_cluster::ClusterError;
use training_core::{
    api::{
        links::{PageLinks, link},
        problem::{FieldError, Problem},
        route::LIMIT,
    },
    cause::chain,
    job::{
        diagnosis::{self, Diagnosis},
        failure,
        provenance::Attribution,
        pytorchjob::key,
        status::{Checkpoints, JobList, JobSummary, Phase, ProgressRead, Status, TrainingJobStatus, newest_complete},
    },
};
use training_http::{Answer, Failure, answer::cluster_failure};
use training_run::{
    MAX_STATEMENT_BYTES,
    attempt::{Attempt, MAX_ATTEMPT_BYTES},
    entry::IndexEntry,
    layout::{RunKey, RunPrefix, newest_attempts},
    names::{Framework, RunId, Step, Submission},
    progress::Progress,
};
use training_store::Read;

use crate::handler::{Asked, Handler};

/// Longest token of a next page that is passed on; those of the API server have some hundred characters.
const MAX_CONTINUE_LENGTH: usize = 4096;
/// A page that takes longer ends where it is; API Gateway gives up after 30 s.
const LIST_BUDGET: Duration = Duration::from_secs(12);
/// A bucket that takes longer does not hide what the cluster says.
const TRACES_WITHIN: Duration = Duration::from_secs(10);
/// Entries looked through for the newest complete checkpoint of a job: nearly always it is among the first, but a run that
/// was started anew has higher steps of the submission before.
const NEWEST: [u32; 2] = [10, 200];

/// What the trainer has left of a job in the bucket.
struct Traces {
    /// Why the job failed.
    reason: Option<Diagnosis>,
    progress: ProgressRead,
    /// The newest ones of the run's index.
    entries: Vec<IndexEntry>,
}

// === impl Traces ===

impl Default for Traces {
    fn default() -> Self {
        Self { reason: None, progress: ProgressRead::Unknown, entries: Vec::new() }
    }
}

// === impl Handler ===

impl Handler {
    pub(crate) async fn list(&self, mut asked: Asked) -> Result<Answer, Failure> {
        let started = Instant::now();
        let limit = asked.query.number("limit", LIMIT).unwrap_or_default();
        let framework: Option<Framework> = asked.query.value("framework");
        let run_id: Option<RunId> = asked.query.value("run_id");
        let status = asked.query.word(
            "status",
            [Status::Submitted, Status::Running, Status::Failed, Status::Succeeded].map(|word| (word.as_str(), word)),
        );
        let after = asked.query.text("continue");
        if after.as_ref().is_some_and(|token| token.is_empty() || token.len() > MAX_CONTINUE_LENGTH) {
            asked.query.refuse("continue", "format", "must be the `continue` of an earlier page");
        }
        let namespace = self.namespace(asked)?;
        let selector = [
            framework.map(|framework| format!("{}={framework}", key::FRAMEWORK)),
            run_id.as_ref().map(|run_id| format!("{}={run_id}", key::RUN_ID)),
        ];
        let selector = selector.into_iter().flatten().collect::<Vec<_>>().join(",");

        let (mut jobs, mut next, mut left) = (Vec::new(), after, limit);
        loop {
            let page = self.cluster.jobs(&namespace).page(&selector, left, next.as_deref()).await;
            let page = page.map_err(|error| list_failure(error, next.is_some()))?;
            left = left.saturating_sub(u32::try_from(page.items.len()).unwrap_or(u32::MAX).max(1));
            // Only the summaries are kept: manifests may be large.
            let summaries = page.items.iter().map(|job| JobSummary::new(job, &self.namespaces));
            jobs.extend(summaries.filter(|job| status.is_none_or(|status| job.status == status)));
            next = page.next;
            if next.is_none() || left == 0 || started.elapsed() > LIST_BUDGET {
                break;
            }
        }
        let next_page = next.as_ref().map(|token| {
            let parameters = [
                ("limit", Some(limit.to_string())),
                ("framework", framework.map(|framework| framework.to_string())),
                ("run_id", run_id.map(|run_id| run_id.to_string())),
                ("status", status.map(|status| status.as_str().to_owned())),
                ("continue", Some(token.clone())),
            ];
            link("/train", parameters, Some(namespace.as_str()), &self.namespaces)
        });
        Answer::json(200, &JobList { jobs, r#continue: next, links: PageLinks { next: next_page } })
    }

    pub(crate) async fn status(&self, name: &str, asked: Asked) -> Result<Answer, Failure> {
        let namespace = self.namespace_of(asked, name)?;
        let (name, job) = self.job(&namespace, name).await?;
        let phase = Phase::of(&job).0;
        let run = self.attribution(&namespace, &name, &job);
        let of_pods = async {
            // Those of a job that has ended are gone, and their last words with them.
            if phase.is_finished() {
                return Ok::<_, Failure>(None);
            }
            let mut pods = self.cluster.jobs(&namespace).pods(&name).await.map_err(cluster_failure)?;
            pods.retain(|pod| job.owns(&pod.metadata));
            Ok(diagnosis::of_pods(&pods))
        };
        let (of_pods, traces) = tokio::join!(of_pods, self.traces(run.as_ref(), phase));
        let Traces { reason, progress, entries } = traces;
        let checkpoints = run.as_ref().map(|run| Checkpoints { bucket: run.prefix.bucket(), entries: &entries });
        Answer::json(200, &TrainingJobStatus::new(&job, &self.namespaces, of_pods?.or(reason), progress, checkpoints))
    }

    /// What the trainer has left of a job in the bucket; nothing where the bucket does not confirm that the run is the
    /// job's. The question is asked together with all others, so that the answer costs no time.
    async fn traces(&self, run: Option<&Attribution>, phase: Phase) -> Traces {
        let Some(run) = run else { return Traces::default() };
        let traces = Box::pin(timeout(TRACES_WITHIN, self.read_traces(run, phase))).await;
        traces.unwrap_or_else(|_| {
            warn!(run = %run.prefix, "the bucket does not say in time what the trainer has left");
            Traces::default()
        })
    }

    async fn read_traces(&self, run: &Attribution, phase: Phase) -> Traces {
        let reason = async { if phase == Phase::Failed { self.reason(run).await } else { None } };
        let (provenance, reason, progress, entries) =
            tokio::join!(self.store.provenance(run), reason, self.progress(run), self.newest(run));
        match provenance {
            Ok(provenance) if provenance.may_be_followed() => Traces { reason, progress, entries },
            Ok(provenance) => {
                warn!(run = %run.prefix, ?provenance, "the job names a run that the bucket does not confirm");
                Traces::default()
            }
            Err(error) => {
                warn!(cause = chain(&error), "nobody can tell whether the run is the job's");
                Traces::default()
            }
        }
    }

    /// Why a job failed, as the trainer's ledger says. A bucket that cannot be read does not hide what the cluster says.
    async fn reason(&self, run: &Attribution) -> Option<Diagnosis> {
        let Attribution { prefix, submission, .. } = run;
        let (bucket, folder) = (prefix.bucket(), prefix.attempts_folder(submission));
        let keys = self.store.list_names(bucket, &folder).await;
        let keys = keys.inspect_err(|error| warn!(cause = chain(error), "no attempts")).ok()?;
        let numbers = newest_attempts(keys.iter().filter_map(|key| key.strip_prefix(&folder)));
        let attempts = numbers.iter().map(|number| self.attempt(prefix, submission, *number));
        let attempts: Vec<Attempt> = join_all(attempts).await.into_iter().flatten().collect();
        failure::of_attempts(&attempts, &format!("s3://{bucket}/{folder}"))
    }

    async fn attempt(&self, prefix: &RunPrefix, submission: &Submission, number: u32) -> Option<Attempt> {
        let key = prefix.key(&RunKey::Attempt(submission, number));
        match self.store.read(prefix.bucket(), &key, MAX_ATTEMPT_BYTES).await {
            Ok(Read::Object(object)) => Attempt::parse(number, &object.body)
                .inspect_err(|error| warn!(cause = chain(error), key, "an attempt is not readable"))
                .ok(),
            Ok(other) => {
                warn!(?other, key, "an attempt is not readable");
                None
            }
            Err(error) => {
                warn!(cause = chain(&error), "no attempt");
                None
            }
        }
    }

    /// The newest progress. A bucket that cannot be read does not hide what the cluster says.
    async fn progress(&self, run: &Attribution) -> ProgressRead {
        let Attribution { prefix, submission, .. } = run;
        let key = prefix.key(&RunKey::Progress(submission));
        let object = match self.store.read(prefix.bucket(), &key, MAX_STATEMENT_BYTES).await {
            Ok(Read::Object(object)) => object,
            Ok(Read::Nothing) => return ProgressRead::Nothing,
            Ok(other @ (Read::TooLarge(_) | Read::Withheld(_))) => {
                warn!(?other, key, "the progress object is not readable");
                return ProgressRead::Unknown;
            }
            Err(error) => {
                warn!(cause = chain(&error), "no progress");
                return ProgressRead::Unknown;
            }
        };
        Progress::parse(&object.body)
            .inspect_err(|error| warn!(cause = chain(error), %submission, "the progress object is not readable"))
            .map_or(ProgressRead::Unknown, ProgressRead::Found)
    }

    /// The newest index entries, down to a complete one of the job's own submission. A bucket that cannot be read does not
    /// hide what the cluster says.
    async fn newest(&self, run: &Attribution) -> Vec<IndexEntry> {
        let (mut entries, mut before): (Vec<IndexEntry>, Option<Step>) = (Vec::new(), None);
        for limit in NEWEST {
            let page = self.store.index_page(&run.prefix, limit, before).await;
            let Ok(page) = page.inspect_err(|error| warn!(cause = chain(error), "no checkpoints")) else { break };
            entries.extend(page.entries);
            before = page.next;
            if before.is_none() || newest_complete(&entries, run.submission.as_str()).is_some() {
                break;
            }
        }
        entries
    }
}

/// A token that the API server does not know is the caller's mistake.
fn list_failure(error: ClusterError, has_token: bool) -> Failure {
    match error {
        ClusterError::BadRequest(_) if has_token => Problem::invalid(vec![FieldError {
            pointer: "?continue".to_owned(),
            code: "format",
            detail: "must be the `continue` of an earlier page".to_owned(),
        }])
        .into(),
        error => cluster_failure(error),
    }
}
