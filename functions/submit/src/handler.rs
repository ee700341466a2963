//! The routes that change jobs: which one a request is for, and what it asks for. What is then done is `submission` and
//! `change`.

use std::time::Instant;

use lambda_http::{
    Body, Error, Request, Response,
    http::{HeaderName, header},
};
use training_cluster::{Cluster, Effect};
use training_core::{
    dry_run::DryRun,
    existing::Restart,
    manifest::Platform,
    namespace::Namespace,
    problem::Code,
    query::Query,
    request::{Rules, TrainingJobRequest},
    route::Route,
    status::TrainingJobStatus,
};
use training_http::{Answer, Failure, boundary, token::TokenCheck};
use training_store::Store;

use crate::{
    change::Change,
    submission::{Placed, Submitting},
};

/// Tells a replay from the first answer. Source: the Idempotency-Key drafts' implementations (Stripe's header).
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// Everything that a request needs.
pub(crate) struct Handler {
    pub(crate) token: TokenCheck,
    pub(crate) cluster: Cluster,
    pub(crate) store: Store,
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
        let route = boundary::route(request)?;
        match route {
            Route::Submit => {
                self.token.check(request).await?;
                Box::pin(self.submit(request)).await
            }
            Route::Cancel(name) => {
                self.token.check(request).await?;
                let namespace = self.namespace(boundary::query(request))?;
                Change::new(self, &namespace, name)?.cancel().await
            }
            Route::Suspend(name) => {
                self.token.check(request).await?;
                let namespace = self.namespace(boundary::query(request))?;
                Change::new(self, &namespace, name)?.set_suspend(true).await
            }
            Route::Resume(name) => {
                self.token.check(request).await?;
                let namespace = self.namespace(boundary::query(request))?;
                Change::new(self, &namespace, name)?.set_suspend(false).await
            }
            // The gateway sends them to the other function.
            Route::Health
            | Route::Readiness
            | Route::OpenApi
            | Route::List
            | Route::Status(_)
            | Route::Checkpoints(_)
            | Route::LatestCheckpoint(_)
            | Route::BestCheckpoint(_)
            | Route::Checkpoint(..)
            | Route::Logs(_)
            | Route::Events(_) => Err(Failure::new(
                Code::RouteNotFound,
                "this function does not serve that route: the gateway is misconfigured",
            )),
        }
    }

    async fn submit(&self, request: &Request) -> Result<Answer, Failure> {
        let mut query = boundary::query(request);
        let dry_run = query.word("dry_run", [("true", true), ("false", false)]).unwrap_or_default();
        let restart = query.text("restart").filter(|restart| restart != "false").and_then(|text| {
            text.parse::<Restart>().map_err(|error| query.refuse("restart", "format", error.to_string())).ok()
        });
        let namespace = query.text("namespace");
        query.finish()?;
        let body = boundary::json_body(request)?;
        let training = TrainingJobRequest::parse(body, namespace.as_deref(), &self.rules)?;
        let effect = if dry_run { Effect::DryRun } else { Effect::Real };

        let (status, job) = match Box::pin(Submitting::new(self, &training, restart, effect).run()).await? {
            Placed::Created(job) => (201, job),
            Placed::Replayed(job) => (200, job),
        };
        let report = TrainingJobStatus::new(&job, &self.rules.namespaces, &[], None, None);
        let location = report.summary.links.itself.clone();
        let answer = match effect {
            Effect::DryRun => Answer::json(200, &DryRun::new(report, status, job))?,
            Effect::Real => Answer::json(status, &report)?.with_header(header::LOCATION, location),
        };
        Ok(if status == 200 { answer.with_header(REPLAYED, "true") } else { answer })
    }

    /// The namespace that the query of a request without further parameters names.
    fn namespace(&self, mut query: Query) -> Result<Namespace, Failure> {
        let namespace = query.text("namespace");
        query.finish()?;
        Ok(self.rules.namespaces.choose(namespace.as_deref())?)
    }
}
