//! POST /train: from the body to a created job, and `?restart=true` for a finished one.

use std::time::{Duration, Instant};

use lambda_http::{Body, Error, Request, RequestExt, Response};
use training_cluster::{Cluster, ClusterError};
use training_core::{
    manifest::{self, Platform},
    names::JobName,
    problem::{Code, FieldError, Problem},
    pytorchjob::{PyTorchJob, key},
    request::{Rules, TrainingJobRequest},
    status::{Phase, TrainingJobStatus},
};
use training_http::{Answer, Failure, answer::cluster_failure, boundary, token::TokenCheck};
use uuid::Uuid;

/// How long a restart waits for the old job to be gone. API Gateway gives up after 30 s.
const DELETION_WAIT: Duration = Duration::from_secs(15);
const DELETION_POLL: Duration = Duration::from_millis(250);

/// Everything that a request needs.
pub(crate) struct Handler {
    pub(crate) token: TokenCheck,
    pub(crate) cluster: Cluster,
    pub(crate) rules: Rules,
    pub(crate) platform: Platform,
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
        if (request.method().as_str(), request.raw_http_path()) != ("POST", "/train") {
            return Err(boundary::no_route(request));
        }
        self.token.check(request).await?;
        let restart = restart_wanted(request)?;
        let training = TrainingJobRequest::parse(request.body().as_ref(), &self.rules)?;
        let job = manifest::build(&training, &Uuid::now_v7().into(), &self.platform);
        let name = manifest::job_name(&training);
        let created = match self.create(&name, &job).await {
            Err(ClusterError::AlreadyExists) if restart => {
                self.remove_finished(&name, &job).await?;
                self.create(&name, &job).await
            }
            result => result,
        };
        match created {
            Ok(job) => {
                let mut answer = Answer::json(201, &TrainingJobStatus::new(&job, &[], None, None))?;
                answer.location = Some(format!("/train/{name}"));
                Ok(answer)
            }
            Err(ClusterError::AlreadyExists) => Err(conflict(&name)),
            Err(error) => Err(cluster_failure(error)),
        }
    }

    /// Create a job. When no answer came, one look tells whether it was created all the same: it then carries our own
    /// submission id.
    async fn create(&self, name: &JobName, job: &PyTorchJob) -> Result<PyTorchJob, ClusterError> {
        let error = match self.cluster.create(job).await {
            Err(error) if error.is_ambiguous() => error,
            result => return result,
        };
        match self.cluster.get(name).await {
            Ok(Some(found)) if found.annotation(key::SUBMISSION) == job.annotation(key::SUBMISSION) => Ok(found),
            _ => Err(error),
        }
    }

    /// Delete the finished job of the same run and wait until its name is free.
    async fn remove_finished(&self, name: &JobName, wanted: &PyTorchJob) -> Result<(), Failure> {
        let started = Instant::now();
        let mut removing: Option<String> = None;
        while started.elapsed() < DELETION_WAIT {
            let Some(found) = self.cluster.get(name).await.map_err(cluster_failure)? else { return Ok(()) };
            if removing.is_none() || removing != found.metadata.uid {
                if removing.is_some() {
                    // Someone else was quicker to take the name that we freed.
                    return Err(conflict(name));
                }
                check_replaceable(name, &found, wanted)?;
                if found.metadata.deletion_timestamp.is_none() {
                    match self.cluster.delete(&found).await {
                        // It changed since we read it: read it again and decide anew.
                        Err(ClusterError::Changed) => continue,
                        Ok(()) | Err(ClusterError::NotFound) => {}
                        Err(error) => return Err(cluster_failure(error)),
                    }
                }
                removing = found.metadata.uid;
            }
            tokio::time::sleep(DELETION_POLL).await;
        }
        Err(Failure::new(
            Code::JobTerminating,
            format!("the pods of the old job `{name}` are still stopping; send the same request again"),
        ))
    }
}

/// Only a finished job of the same run is replaced: names of different runs may meet (`a_b`, `a-b`).
fn check_replaceable(name: &JobName, found: &PyTorchJob, wanted: &PyTorchJob) -> Result<(), Failure> {
    let is_same_run = [key::FRAMEWORK, key::RUN_ID].iter().all(|label| found.label(label) == wanted.label(label));
    if !is_same_run {
        return Err(Failure::new(
            Code::JobConflict,
            format!("the job `{name}` belongs to another run; choose another run_id"),
        ));
    }
    if !Phase::of(found).0.is_finished() && found.metadata.deletion_timestamp.is_none() {
        return Err(Failure::new(
            Code::JobRunning,
            format!("the job `{name}` is not finished; only a finished job can be restarted"),
        ));
    }
    Ok(())
}

/// Whether the query asks for a restart. Anything else in the query is refused: a caller who asks for a dry run of a
/// release that has none must not get a real job.
fn restart_wanted(request: &Request) -> Result<bool, Failure> {
    let query = request.query_string_parameters();
    let mut restart = false;
    let mut errors = Vec::new();
    for (name, value) in query.iter() {
        match (name, value) {
            ("restart", "true") => restart = true,
            ("restart", "false") => {}
            ("restart", _) => errors.push(("?restart".to_owned(), "format", "must be true or false")),
            (other, _) => {
                let name: String = other.chars().take(64).collect();
                errors.push((
                    format!("?{name}"),
                    "unknown_parameter",
                    "is not a parameter of this route; it has `restart`",
                ));
            }
        }
    }
    if errors.is_empty() {
        return Ok(restart);
    }
    let error =
        |(pointer, code, detail): (String, &'static str, &str)| FieldError { pointer, code, detail: detail.to_owned() };
    Err(Problem::invalid(errors.into_iter().map(error).collect()).into())
}

fn conflict(name: &JobName) -> Failure {
    let detail = format!("a job `{name}` exists; choose another run_id, or send ?restart=true once it is finished");
    Failure::new(Code::JobConflict, detail)
}
