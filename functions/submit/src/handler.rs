//! The routes that change jobs: which one a request is for, and what it asks for. What is then done is `submission` and
//! `change`.

use lambda_http::{
    Body, Error, Request, Response,
    http::{HeaderName, header},
};
use training_cluster::Effect;
use training_core::{
    access::caller::{Caller, Scope},
    api::{
        dry_run::DryRun,
        problem::{Code, MAX_ERRORS, Problem},
        route::Route,
    },
    job::{
        replay::Restart,
        status::{ProgressRead, TrainingJobStatus},
    },
    request::TrainingJobRequest,
};
use training_http::{Answer, Failure, boundary};
use training_run::{names::Namespace, text::bounded};

use crate::{
    change::Change,
    service::Service,
    submission::{Placed, Submitting},
};

/// Tells a replay from the first answer. Source: the Idempotency-Key drafts' implementations (Stripe's header).
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

// === impl Service ===

impl Service {
    pub(crate) async fn handle(&self, request: Request) -> Result<Response<Body>, Error> {
        // On the heap: the futures of the SDKs are large.
        boundary::answer(&request, &self.cluster, Box::pin(self.route(&request))).await
    }

    async fn route(&self, request: &Request) -> Result<Answer, Failure> {
        let route = boundary::route(request)?;
        match route {
            Route::Submit => {
                let caller = self.token.check(request, Scope::Submit).await?;
                Box::pin(self.submit(request, &caller)).await
            }
            Route::Cancel(name) => {
                let namespace = self.namespace_of(request, name).await?;
                Change::new(self, &namespace, name)?.cancel().await
            }
            Route::Suspend(name) => {
                let namespace = self.namespace_of(request, name).await?;
                Change::new(self, &namespace, name)?.set_suspend(true).await
            }
            Route::Resume(name) => {
                let namespace = self.namespace_of(request, name).await?;
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
            | Route::Events(_)
            | Route::Settings(_) => Err(Failure::new(
                Code::RouteNotFound,
                "this function does not serve that route: the gateway is misconfigured",
            )),
        }
    }

    async fn submit(&self, request: &Request, caller: &Caller) -> Result<Answer, Failure> {
        let mut query = boundary::query(request);
        let dry_run = query.word("dry_run", [("true", true), ("false", false)]).unwrap_or_default();
        let restart = query.text("restart").filter(|restart| restart != "false").and_then(|text| {
            text.parse::<Restart>().map_err(|error| query.refuse("restart", "format", error.to_string())).ok()
        });
        let namespace = query.text("namespace");
        query.finish()?;
        let body = boundary::json_body(request)?;
        let training = TrainingJobRequest::parse(body, namespace.as_deref(), &self.rules, caller)?;
        boundary::record("namespace", &training.namespace);
        boundary::record("job", &training.job_name);
        boundary::record("run_id", &training.run_id);
        let effect = if dry_run { Effect::DryRun } else { Effect::Real };

        let (status, job) = match Box::pin(Submitting::new(self, &training, caller, restart, effect).run()).await? {
            Placed::Created(job) => (201, job),
            Placed::Replayed(job) => (200, job),
        };
        let mut report = TrainingJobStatus::new(&job, &self.rules.namespaces, None, ProgressRead::Unknown, None);
        report.warnings = training.findings.into_iter().take(MAX_ERRORS).collect();
        let location = report.summary.links.itself.clone();
        let answer = match effect {
            Effect::DryRun => Answer::json(200, &DryRun::new(report, status, job))?,
            Effect::Real => Answer::json(status, &report)?.with_header(header::LOCATION, location),
        };
        Ok(if status == 200 { answer.with_header(REPLAYED, "true") } else { answer })
    }

    /// Authorize a change, and return the requested namespace. Without access it is `job_not_found`, so that job names do not
    /// leak.
    async fn namespace_of(&self, request: &Request, name: &str) -> Result<Namespace, Failure> {
        let caller = self.token.check(request, Scope::Submit).await?;
        let mut query = boundary::query(request);
        let namespace = query.text("namespace");
        query.finish()?;
        let namespace = self.rules.namespaces.find(namespace.as_deref(), &caller)?;
        boundary::record("namespace", &namespace);
        boundary::record("job", bounded(name, 64));
        if caller.sees(&namespace) { Ok(namespace) } else { Err(Problem::job_not_found(name, &namespace).into()) }
    }
}
