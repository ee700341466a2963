//! From a request to the route that answers it, and what several routes need: the job, and its run.

use lambda_http::{Body, Error, Request, Response};
use training_cluster::Cluster;
use training_core::{
    access::{
        caller::{Caller, Scope},
        namespaces::Namespaces,
    },
    api::{
        problem::{Code, Problem},
        query::Query,
        readiness::{Health, HealthWord},
        route::{Route, Unrouted},
    },
    job::{
        provenance::Attribution,
        pytorchjob::{PyTorchJob, key},
    },
    request::extra_args,
};
use training_http::{Answer, Failure, answer::cluster_failure, boundary, token::TokenCheck};
use training_run::{
    layout::{RunPrefix, S3Uri},
    names::{Framework, JobName, Namespace},
    text::bounded,
};
use training_store::{Store, StoreError};

/// The description of the API; generated from the types.
const OPENAPI: &str = include_str!("../../../openapi.json");

/// Everything that a request needs.
pub(crate) struct Handler {
    pub(crate) token: TokenCheck,
    pub(crate) cluster: Cluster,
    pub(crate) namespaces: Namespaces,
    pub(crate) store: Store,
    pub(crate) runs_base_uris: Vec<S3Uri>,
}

/// A request that may read: its parameters, and who asks.
pub(crate) struct Asked {
    pub(crate) query: Query,
    caller: Caller,
}

// === impl Handler ===

impl Handler {
    pub(crate) async fn handle(&self, request: Request) -> Result<Response<Body>, Error> {
        // On the heap: the futures of the SDKs are large.
        boundary::answer(&request, &self.cluster, Box::pin(self.route(&request))).await
    }

    async fn route(&self, request: &Request) -> Result<Answer, Failure> {
        match boundary::route(request)? {
            Route::Health => {
                boundary::query(request).finish()?;
                Answer::json(200, &Health { status: HealthWord::Ok })
            }
            Route::OpenApi => {
                boundary::query(request).finish()?;
                Ok(as_it_is(OPENAPI))
            }
            Route::Readiness => self.readiness(self.admit(request).await).await,
            Route::List => self.list(self.admit(request).await?).await,
            Route::Status(name) => Box::pin(self.status(name, self.admit(request).await?)).await,
            Route::Checkpoints(name) => Box::pin(self.checkpoints(name, self.admit(request).await?)).await,
            Route::LatestCheckpoint(name) => self.latest_checkpoint(name, self.admit(request).await?).await,
            Route::BestCheckpoint(name) => self.best_checkpoint(name, self.admit(request).await?).await,
            Route::Checkpoint(name, step) => self.checkpoint(name, step, self.admit(request).await?).await,
            Route::Logs(name) => Box::pin(self.logs(name, self.admit(request).await?)).await,
            Route::Events(name) => self.events(name, self.admit(request).await?).await,
            Route::Settings(framework) => settings(framework, self.admit(request).await?),
            // The API sends these to the function that changes jobs.
            Route::Submit | Route::Cancel(_) | Route::Suspend(_) | Route::Resume(_) => {
                Err(Unrouted::Path.problem(request.method().as_str(), request.uri().path()).into())
            }
        }
    }

    /// Authenticates a caller; the request is read only then.
    async fn admit(&self, request: &Request) -> Result<Asked, Failure> {
        let caller = self.token.check(request, Scope::Read).await?;
        Ok(Asked { query: boundary::query(request), caller })
    }

    /// The namespace that is asked about, once all parameters are taken.
    pub(crate) fn namespace(&self, Asked { mut query, caller }: Asked) -> Result<Namespace, Failure> {
        let namespace = query.text("namespace");
        query.finish()?;
        let namespace = self.namespaces.choose(namespace.as_deref(), &caller)?;
        boundary::record("namespace", &namespace);
        Ok(namespace)
    }

    /// The namespace of the requested job, after all other parameters were read. Without access it is `job_not_found`, so that
    /// job names do not leak.
    pub(crate) fn namespace_of(&self, Asked { mut query, caller }: Asked, name: &str) -> Result<Namespace, Failure> {
        let namespace = query.text("namespace");
        query.finish()?;
        let namespace = self.namespaces.find(namespace.as_deref(), &caller)?;
        boundary::record("namespace", &namespace);
        if caller.sees(&namespace) { Ok(namespace) } else { Err(Problem::job_not_found(name, &namespace).into()) }
    }

    /// A job; a name that cannot be one is not found.
    pub(crate) async fn job(&self, namespace: &Namespace, name: &str) -> Result<(JobName, PyTorchJob), Failure> {
        let not_found = || Failure::from(Problem::job_not_found(name, namespace));
        let name: JobName = name.parse().map_err(|_| not_found())?;
        boundary::record("job", &name);
        let job = self.cluster.jobs(namespace).get(&name).await.map_err(cluster_failure)?;
        let job = job.ok_or_else(not_found)?;
        if let Some(run_id) = job.label(key::RUN_ID) {
            boundary::record("run_id", run_id);
        }
        Ok((name, job))
    }

    /// The run and the submission that a job's annotations name. Nothing of it goes into an answer before the bucket has
    /// confirmed it.
    pub(crate) fn attribution(&self, namespace: &Namespace, name: &JobName, job: &PyTorchJob) -> Option<Attribution> {
        Attribution::of(job, namespace, name, &self.runs_base_uris)
    }

    /// The run and the submission of a job; `None` for one that this API did not make, as far as the bucket says.
    pub(crate) async fn run(
        &self,
        namespace: &Namespace,
        name: &JobName,
        job: &PyTorchJob,
    ) -> Result<Option<Attribution>, StoreError> {
        let Some(attribution) = self.attribution(namespace, name, job) else { return Ok(None) };
        let provenance = Box::pin(self.store.provenance(&attribution)).await?;
        Ok(provenance.may_be_followed().then_some(attribution))
    }

    /// The run of a job, if all of its checkpoints are for those who see the job.
    ///
    /// # Errors
    /// The bucket does not tell.
    pub(crate) async fn run_with_checkpoints(
        &self,
        namespace: &Namespace,
        name: &JobName,
        job: &PyTorchJob,
    ) -> Result<Option<RunPrefix>, StoreError> {
        let Some(attribution) = self.attribution(namespace, name, job) else { return Ok(None) };
        let provenance = Box::pin(self.store.provenance(&attribution)).await?;
        Ok(provenance.shows_the_run().then_some(attribution.prefix))
    }
}

/// The settings of a framework, for whoever has a token: they are the same in all namespaces.
fn settings(framework: &str, asked: Asked) -> Result<Answer, Failure> {
    asked.query.finish()?;
    let framework: Framework = framework.parse().map_err(|_| {
        let frameworks = Framework::ALL.map(|framework| format!("`{framework}`")).join(", ");
        let detail = format!("there is no framework `{}`; there are {frameworks}", bounded(framework, 64));
        Failure::new(Code::SettingsNotFound, detail)
    })?;
    Ok(as_it_is(extra_args::schema(framework)))
}

/// A document that the function contains.
fn as_it_is(json: &'static str) -> Answer {
    Answer { status: 200, content_type: "application/json", body: json.as_bytes().to_vec(), headers: Vec::new() }
}
