//! GET /train and GET /train/{name}.

use std::time::{Duration, Instant};

use futures::future::join_all;
use tracing::warn;
use training_cluster::ClusterError;
use training_core::{
    attempt::{self, Attempt, MAX_ATTEMPT_BYTES},
    cause::chain,
    diagnosis::{self, Diagnosis},
    index::IndexEntry,
    layout::{RunKey, RunPrefix, newest_attempts},
    links::{PageLinks, link},
    names::{Framework, RunId, Step, Submission},
    problem::{FieldError, Problem},
    pytorchjob::{PyTorchJob, key},
    status::{Checkpoints, JobList, JobSummary, Look, Phase, Status, TrainingJobStatus, newest_complete},
};
use training_http::{Answer, Failure, answer::cluster_failure};
use training_store::Read;

use crate::handler::{Asked, Handler};

/// Jobs of a page.
const DEFAULT_LIMIT: u32 = 50;
const MAX_LIMIT: u32 = 500;
/// Longest token of a next page that is passed on; those of the API server have some hundred characters.
const MAX_CONTINUE_LENGTH: usize = 4096;
/// A page that takes longer ends where it is; API Gateway gives up after 30 s.
const LIST_BUDGET: Duration = Duration::from_secs(12);
/// Largest progress object that is passed on; the trainer's have some hundred bytes.
const MAX_PROGRESS_BYTES: usize = 16 * 1024;
/// Entries looked through for the newest complete checkpoint of a job: nearly always it is among the first, but a run that
/// was started anew has higher steps of the submission before.
const NEWEST: [u32; 2] = [10, 200];

// === impl Handler ===

impl Handler {
    pub(crate) async fn list(&self, mut asked: Asked) -> Result<Answer, Failure> {
        let started = Instant::now();
        let limit = asked.query.number("limit", 1, MAX_LIMIT).unwrap_or(DEFAULT_LIMIT);
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
        let prefix = self.prefix(&job);
        let diagnosis = async {
            match Phase::of(&job).0 {
                Phase::Succeeded => Ok::<_, Failure>(None),
                // Its pods are gone, and their last words with them.
                Phase::Failed => Ok(self.reason(&job, prefix.as_ref()).await),
                Phase::Pending | Phase::Running | Phase::Restarting | Phase::Suspended => {
                    let mut pods = self.cluster.jobs(&namespace).pods(&name).await.map_err(cluster_failure)?;
                    pods.retain(|pod| job.owns(&pod.metadata));
                    Ok(diagnosis::of_pods(&pods))
                }
            }
        };
        let (diagnosis, progress, entries) =
            tokio::join!(diagnosis, self.progress(&job, prefix.as_ref()), self.newest(&job, prefix.as_ref()));
        let checkpoints = prefix.as_ref().map(|prefix| Checkpoints { bucket: prefix.bucket(), entries: &entries });
        Answer::json(200, &TrainingJobStatus::new(&job, &self.namespaces, diagnosis?, progress, checkpoints))
    }

    /// Why a job failed, as the trainer's ledger says. A bucket that cannot be read does not hide what the cluster says.
    async fn reason(&self, job: &PyTorchJob, prefix: Option<&RunPrefix>) -> Option<Diagnosis> {
        let (prefix, submission) = (prefix?, TrainingJobStatus::submission_of(job)?);
        let (bucket, folder) = (prefix.bucket(), prefix.attempts_folder(&submission));
        let keys = self.store.list_names(bucket, &folder).await;
        let keys = keys.inspect_err(|error| warn!(cause = chain(error), "no attempts")).ok()?;
        let numbers = newest_attempts(keys.iter().filter_map(|key| key.strip_prefix(&folder)));
        let attempts = numbers.iter().map(|number| self.attempt(prefix, &submission, *number));
        let attempts: Vec<Attempt> = join_all(attempts).await.into_iter().flatten().collect();
        attempt::diagnosis(&attempts, &format!("s3://{bucket}/{folder}"))
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
    async fn progress(&self, job: &PyTorchJob, prefix: Option<&RunPrefix>) -> Look {
        let (Some(prefix), Some(submission)) = (prefix, TrainingJobStatus::submission_of(job)) else {
            return Look::Unknown;
        };
        let object = match self.store.get(prefix.bucket(), &prefix.key(&RunKey::Progress(&submission))).await {
            Ok(Some(object)) => object,
            Ok(None) => return Look::Nothing,
            Err(error) => {
                warn!(cause = chain(&error), "no progress");
                return Look::Unknown;
            }
        };
        if object.body.len() > MAX_PROGRESS_BYTES {
            warn!(%submission, bytes = object.body.len(), "the progress object is too large");
            return Look::Unknown;
        }
        serde_json::from_slice(&object.body)
            .inspect_err(|error| warn!(cause = chain(error), %submission, "the progress object is not readable"))
            .map_or(Look::Unknown, Look::Found)
    }

    /// The newest index entries, down to a complete one of the job's own submission. A bucket that cannot be read does not
    /// hide what the cluster says.
    async fn newest(&self, job: &PyTorchJob, prefix: Option<&RunPrefix>) -> Vec<IndexEntry> {
        let (Some(prefix), Some(submission)) = (prefix, job.annotation(key::SUBMISSION)) else { return Vec::new() };
        let (mut entries, mut before): (Vec<IndexEntry>, Option<Step>) = (Vec::new(), None);
        for limit in NEWEST {
            let page = self.store.index_page(prefix, limit, before).await;
            let Ok(page) = page.inspect_err(|error| warn!(cause = chain(error), "no checkpoints")) else { break };
            entries.extend(page.entries);
            before = page.next;
            if before.is_none() || newest_complete(&entries, submission).is_some() {
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
