//! GET /train/{name}, GET /train/{name}/checkpoints, GET /healthz; anything else is no route.

use std::time::Instant;

use futures::{StreamExt, TryStreamExt, future, stream};
use lambda_http::{Body, Error, Request, RequestExt, Response};
use serde_json::json;
use tracing::warn;
use training_cluster::Cluster;
use training_core::{
    cause::chain,
    index::IndexEntry,
    layout::{RunKey, RunPrefix, S3Uri},
    names::{JobName, Step, Submission},
    problem::{Code, FieldError, Problem},
    progress::Progress,
    pytorchjob::{PyTorchJob, key},
    status::{Checkpoints, Phase, TrainingJobStatus},
};
use training_http::{Answer, Failure, answer::cluster_failure, boundary, token::TokenCheck};
use training_store::Store;

/// Entries of a page of checkpoints.
const DEFAULT_LIMIT: i32 = 50;
const MAX_LIMIT: i32 = 500;
/// Entries looked through for the newest complete checkpoint of a job.
const NEWEST: i32 = 10;
/// Index entries read at once.
const PARALLEL_READS: usize = 16;

/// Everything that a request needs.
pub(crate) struct Handler {
    pub(crate) token: TokenCheck,
    pub(crate) cluster: Cluster,
    pub(crate) store: Store,
    pub(crate) runs_base_uris: Vec<S3Uri>,
}

/// A page of checkpoints, newest first.
struct Page {
    limit: i32,
    before: Option<Step>,
}

// === impl Handler ===

impl Handler {
    pub(crate) async fn handle(&self, request: Request) -> Result<Response<Body>, Error> {
        let started = Instant::now();
        // On the heap: the futures of the SDKs are large.
        let result = Box::pin(self.route(&request)).await;
        boundary::respond(&request, started, result)
    }

    async fn route(&self, request: &Request) -> Result<Answer, Failure> {
        let path: Vec<&str> = request.raw_http_path().split('/').skip(1).collect();
        match (request.method().as_str(), path.as_slice()) {
            ("GET", ["healthz"]) => Answer::json(200, &json!({"status": "ok"})),
            ("GET", ["train", name]) if !name.is_empty() => {
                self.token.check(request).await?;
                no_query(request)?;
                Box::pin(self.status(name)).await
            }
            ("GET", ["train", name, "checkpoints"]) if !name.is_empty() => {
                self.token.check(request).await?;
                let page = Page::of(request)?;
                self.checkpoints(name, &page).await
            }
            _ => Err(boundary::no_route(request)),
        }
    }

    async fn status(&self, name: &str) -> Result<Answer, Failure> {
        let (name, job) = self.job(name).await?;
        let prefix = self.prefix(&job);
        let pods = async {
            // A finished job's pods explain nothing, and may be gone.
            if Phase::of(&job).0.is_finished() { Ok(Vec::new()) } else { self.cluster.pods(&name).await }
        };
        let (pods, progress, entries) =
            tokio::join!(pods, self.progress(&job, prefix.as_ref()), self.newest(prefix.as_ref()));
        let pods = pods.map_err(cluster_failure)?;
        let checkpoints = prefix.as_ref().map(|prefix| Checkpoints { bucket: prefix.bucket(), entries: &entries });
        Answer::json(200, &TrainingJobStatus::new(&job, &pods, progress, checkpoints))
    }

    async fn checkpoints(&self, name: &str, page: &Page) -> Result<Answer, Failure> {
        let (_, job) = self.job(name).await?;
        let entries = match self.prefix(&job) {
            Some(prefix) => self.entries(&prefix, page).await?,
            None => Vec::new(),
        };
        // A full page may have a next one: it begins below its last step.
        let is_full = i32::try_from(entries.len()).is_ok_and(|count| count == page.limit);
        let next = entries
            .last()
            .filter(|_| is_full)
            .map(|last| format!("/train/{}/checkpoints?limit={}&before={}", name, page.limit, last.step));
        Answer::json(200, &json!({"checkpoints": entries, "links": {"next": next}}))
    }

    async fn job(&self, name: &str) -> Result<(JobName, PyTorchJob), Failure> {
        let not_found = || {
            let name: String = name.chars().take(64).collect();
            Failure::new(Code::JobNotFound, format!("there is no job `{name}`"))
        };
        let name: JobName = name.parse().map_err(|_| not_found())?;
        let job = self.cluster.get(&name).await.map_err(cluster_failure)?.ok_or_else(not_found)?;
        Ok((name, job))
    }

    /// The run's prefix, as the job says; `None` for a job that the platform did not make. Whoever may write jobs could
    /// name any bucket there, so a prefix outside the allowed bases is not followed.
    fn prefix(&self, job: &PyTorchJob) -> Option<RunPrefix> {
        let prefix: RunPrefix = job.annotation(key::CHECKPOINT_PREFIX)?.parse().ok()?;
        self.runs_base_uris.iter().any(|base| prefix.is_within(base)).then_some(prefix)
    }

    /// The newest progress. A bucket that cannot be read does not hide what the cluster says.
    async fn progress(&self, job: &PyTorchJob, prefix: Option<&RunPrefix>) -> Option<Progress> {
        let submission: Submission = TrainingJobStatus::submission_of(job)?;
        let prefix = prefix?;
        let object = self.store.get(prefix.bucket(), &prefix.key(&RunKey::Progress(&submission))).await;
        let object = object.inspect_err(|error| warn!(cause = chain(error), "no progress")).ok()??;
        serde_json::from_slice(&object.body)
            .inspect_err(|error| warn!(cause = chain(error), %submission, "the progress object is not readable"))
            .ok()
    }

    /// The newest index entries. A bucket that cannot be read does not hide what the cluster says.
    async fn newest(&self, prefix: Option<&RunPrefix>) -> Vec<IndexEntry> {
        let Some(prefix) = prefix else { return Vec::new() };
        let page = Page { limit: NEWEST, before: None };
        let entries = self.entries(prefix, &page).await;
        entries
            .inspect_err(|failure| {
                let cause = failure.cause.as_deref().map(|cause| chain(cause)).unwrap_or_default();
                warn!(cause, "no checkpoints");
            })
            .unwrap_or_default()
    }

    async fn entries(&self, prefix: &RunPrefix, page: &Page) -> Result<Vec<IndexEntry>, Failure> {
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
            Failure::with_cause(Code::StorageUnavailable, "the runs bucket cannot be read now; try again", error)
        };
        let after = page.before.map(|step| prefix.key(&RunKey::IndexEntry(step)));
        let bucket = prefix.bucket();
        let keys = self
            .store
            .list_keys(bucket, &prefix.index_folder(), after, page.limit)
            .await
            .map_err(|error| failed(error.into()))?;
        stream::iter(keys)
            .map(|key| async move {
                let object = self.store.get(bucket, &key).await.map_err(|error| failed(error.into()))?;
                // None: deleted since it was listed.
                object.map(|object| IndexEntry::parse(&object.body).map_err(|error| failed(error.into()))).transpose()
            })
            .buffered(PARALLEL_READS)
            .try_filter_map(|entry| future::ready(Ok(entry)))
            .try_collect()
            .await
    }
}

// === impl Page ===

impl Page {
    fn of(request: &Request) -> Result<Self, Failure> {
        let mut page = Self { limit: DEFAULT_LIMIT, before: None };
        let mut errors = Vec::new();
        for (name, value) in request.query_string_parameters().iter() {
            match name {
                "limit" => match value.parse() {
                    Ok(limit) if (1..=MAX_LIMIT).contains(&limit) => page.limit = limit,
                    _ => {
                        errors.push(query_error(
                            name,
                            "range",
                            format!("must be a whole number from 1 to {MAX_LIMIT}"),
                        ));
                    }
                },
                "before" => match value.parse() {
                    Ok(step) => page.before = Some(step),
                    Err(_) => errors.push(query_error(name, "format", "must be a step".to_owned())),
                },
                _ => errors.push(unknown_parameter(name, "it has `limit` and `before`")),
            }
        }
        if errors.is_empty() { Ok(page) } else { Err(Problem::invalid(errors).into()) }
    }
}

fn no_query(request: &Request) -> Result<(), Failure> {
    let query = request.query_string_parameters();
    let errors: Vec<_> = query.iter().map(|(name, _)| unknown_parameter(name, "it has none")).collect();
    if errors.is_empty() { Ok(()) } else { Err(Problem::invalid(errors).into()) }
}

fn unknown_parameter(name: &str, known: &str) -> FieldError {
    query_error(name, "unknown_parameter", format!("is not a parameter of this route; {known}"))
}

fn query_error(name: &str, code: &'static str, detail: String) -> FieldError {
    let name: String = name.chars().take(64).collect();
    FieldError { pointer: format!("?{name}"), code, detail }
}
