//! What each route does and may answer, in words and types. The bounds of parameters stand beside the routes;
//! the client test sends each of them.

use serde_json::{Value, json};
use training_run::{
    lineage::DEFAULT_METRIC,
    names::{Framework, Step},
};

use crate::{
    examples,
    operation::{Access, Operation, answer, header, parameter, with_example, with_headers},
    request::RequestBody,
    schemas::Schemas,
};
use training_core::{
    api::{
        checkpoints::{CheckpointAnswer, CheckpointList},
        dry_run::DryRun,
        problem::Code,
        readiness::{Health, Readiness},
        route::{ATTEMPT, Count, LIMIT, RANK, Route, TAIL},
    },
    job::{
        events::EventList,
        status::{JobList, Status, TrainingJobStatus},
    },
};

/// Every route, with its parameters' names in place of their values.
pub(crate) const ROUTES: [Route<'static>; 16] = [
    Route::Submit,
    Route::List,
    Route::Status("{name}"),
    Route::Cancel("{name}"),
    Route::Suspend("{name}"),
    Route::Resume("{name}"),
    Route::Checkpoints("{name}"),
    Route::LatestCheckpoint("{name}"),
    Route::BestCheckpoint("{name}"),
    Route::Checkpoint("{name}", "{step}"),
    Route::Logs("{name}"),
    Route::Events("{name}"),
    Route::Settings("{framework}"),
    Route::Health,
    Route::Readiness,
    Route::OpenApi,
];

/// What may come of asking the cluster.
const CLUSTER: [Code; 6] = [
    Code::Throttled,
    Code::ClusterDenied,
    Code::ClusterError,
    Code::ClusterUnavailable,
    Code::ClusterNotReady,
    Code::ClusterTimeout,
];
/// What may come of asking the runs bucket.
const STORAGE: [Code; 2] = [Code::StorageUnavailable, Code::StorageTimeout];
/// What may come of making a job, beside what comes of asking the cluster.
const CREATION: [Code; 14] = [
    Code::MalformedJson,
    Code::BodyTooLarge,
    Code::UnsupportedMediaType,
    Code::QuotaExceeded,
    Code::JobConflict,
    Code::JobRunning,
    Code::JobTerminating,
    Code::RunExists,
    Code::RunActive,
    Code::ResumeTargetNotFound,
    Code::NamespaceTerminating,
    Code::RejectedByCluster,
    Code::StorageUnavailable,
    Code::StorageTimeout,
];

/// What may come of changing any job, beside what comes of asking the cluster.
const CHANGE: [Code; 3] = [Code::JobNotFound, Code::ForeignJob, Code::StorageUnavailable];

/// Method and path of a route.
pub(crate) fn place(route: Route<'static>) -> (&'static str, &'static str) {
    match route {
        Route::Submit => ("post", "/train"),
        Route::List => ("get", "/train"),
        Route::Status(_) => ("get", "/train/{name}"),
        Route::Cancel(_) => ("delete", "/train/{name}"),
        Route::Suspend(_) => ("post", "/train/{name}/suspend"),
        Route::Resume(_) => ("post", "/train/{name}/resume"),
        Route::Checkpoints(_) => ("get", "/train/{name}/checkpoints"),
        Route::LatestCheckpoint(_) => ("get", "/train/{name}/checkpoints/latest"),
        Route::BestCheckpoint(_) => ("get", "/train/{name}/checkpoints/best"),
        Route::Checkpoint(..) => ("get", "/train/{name}/checkpoints/{step}"),
        Route::Logs(_) => ("get", "/train/{name}/logs"),
        Route::Events(_) => ("get", "/train/{name}/events"),
        Route::Settings(_) => ("get", "/settings/{framework}"),
        Route::Health => ("get", "/healthz"),
        Route::Readiness => ("get", "/readyz"),
        Route::OpenApi => ("get", "/openapi.json"),
    }
}

/// What is told of a route.
pub(crate) fn operation(route: Route<'static>, schemas: &mut Schemas) -> Operation {
    match route {
        Route::Submit => submit(schemas),
        Route::List => list(schemas),
        Route::Status(_) => status(schemas),
        Route::Cancel(_) => cancel(schemas),
        Route::Suspend(_) => Operation {
            id: "suspend_job",
            summary: "Suspend a job: its pods go until it is resumed",
            ..of_switch(schemas)
        },
        Route::Resume(_) => {
            Operation { id: "resume_job", summary: "Resume a suspended job: its pods come back", ..of_switch(schemas) }
        }
        Route::Checkpoints(_) => checkpoints(schemas),
        Route::LatestCheckpoint(_) => Operation {
            id: "get_latest_checkpoint",
            summary: "Get the newest complete checkpoint of a job's run",
            description: "Its files were checked for this answer.",
            ..of_checkpoint(schemas)
        },
        Route::BestCheckpoint(_) => best_checkpoint(schemas),
        Route::Checkpoint(..) => {
            Operation { id: "get_checkpoint", summary: "Get the checkpoint of one step", ..of_checkpoint(schemas) }
        }
        Route::Logs(_) => logs(),
        Route::Events(_) => events(schemas),
        Route::Settings(_) => settings(),
        Route::Health => health(schemas),
        Route::Readiness => readiness(schemas),
        Route::OpenApi => openapi(),
    }
}

fn submit(schemas: &mut Schemas) -> Operation {
    let job = schemas.answer::<TrainingJobStatus>();
    let either = json!({"anyOf": [schemas.answer::<DryRun>(), job]});
    let replayed = header("Idempotent-Replayed", "`true`: the same request made the job before.", &only_true());
    let created = with_example(answer("The job was created", &job), json!(examples::job()));
    let restart = json!({"type": "string", "pattern": "^(true|false|[0-9A-Fa-f-]{36})$"});
    Operation {
        id: "submit_job",
        summary: "Submit a job",
        description: "Safe to repeat: the same request never makes a second job. A request that differs from the job of its \
                      name is refused, with one error for each field that differs. Of the default image, each setting in \
                      `extra_args` that its trainer would refuse is an error; of another image it is one of the answer's \
                      `warnings`.",
        parameters: vec![
            parameter(
                "dry_run",
                "`true`: answer what the request would do, and the manifest; create nothing.",
                &json!({"type": "boolean", "default": false}),
            ),
            parameter(
                "restart",
                "`true`: replace a finished job of the same name. A submission id: replace the job of that submission, once, \
                 however often the request is sent.",
                &restart,
            ),
        ],
        body: Some(json!({
            "required": true,
            "content": {"application/json": {
                "schema": schemas.request::<RequestBody>(),
                "examples": {
                    "smallest": {"summary": "One node with one GPU", "value": examples::smallest_request()},
                    "full": {"summary": "Every field", "value": examples::full_request()}
                }
            }}
        })),
        answers: vec![
            (
                200,
                with_headers(
                    answer("The same request made the job before; or the dry run's answer", &either),
                    [location(), replayed],
                ),
            ),
            (201, with_headers(created, [location()])),
        ],
        problems: [CLUSTER.as_slice(), &CREATION].concat(),
        ..of_job()
    }
}

fn list(schemas: &mut Schemas) -> Operation {
    let token = json!({"type": "string", "minLength": 1, "maxLength": 4096});
    let run_id = json!({"type": "string", "minLength": 1, "maxLength": 63});
    Operation {
        id: "list_jobs",
        summary: "List jobs in the order of their names",
        description: "A page may hold fewer jobs than `limit`, or none; the list ends where `continue` is null.",
        parameters: vec![
            limit("Jobs read for a page."),
            parameter("continue", "`continue` of the page before.", &token),
            parameter("framework", "Only jobs of this framework.", &schemas.request::<Framework>()),
            parameter("run_id", "Only jobs of this run.", &run_id),
            parameter("status", "Only jobs of this status.", &schemas.answer::<Status>()),
        ],
        answers: vec![(200, answer("A page of jobs", &schemas.answer::<JobList>()))],
        problems: [CLUSTER.as_slice(), &[Code::ContinueExpired]].concat(),
        ..of_job()
    }
}

fn status(schemas: &mut Schemas) -> Operation {
    let job = answer("The job", &schemas.answer::<TrainingJobStatus>());
    Operation {
        id: "get_job",
        summary: "Get the status of a job",
        answers: vec![(200, with_example(job, json!(examples::job())))],
        ..of_job()
    }
}

fn cancel(schemas: &mut Schemas) -> Operation {
    Operation {
        id: "cancel_job",
        summary: "Delete a job; its checkpoints stay",
        description: "Its pods are asked to save and end; the name is free when they are gone. Repeating it is harmless.",
        problems: [CLUSTER.as_slice(), &CHANGE, &[Code::JobConflict, Code::RejectedByCluster]].concat(),
        ..of_switch(schemas)
    }
}

fn checkpoints(schemas: &mut Schemas) -> Operation {
    Operation {
        id: "list_checkpoints",
        summary: "List the checkpoints of a job's run, greatest step first",
        description: "A listed checkpoint may be incomplete or superseded, and says so.",
        parameters: vec![
            limit("Checkpoints of a page."),
            parameter("before", "Only checkpoints of lesser steps.", &step()),
        ],
        answers: vec![(200, answer("A page of checkpoints", &schemas.answer::<CheckpointList>()))],
        problems: [CLUSTER.as_slice(), &[Code::JobNotFound], &STORAGE].concat(),
        ..of_checkpoint(schemas)
    }
}

fn best_checkpoint(schemas: &mut Schemas) -> Operation {
    let metric = json!({"type": "string", "minLength": 1, "maxLength": 256, "default": DEFAULT_METRIC});
    let mode = json!({"type": "string", "enum": ["min", "max"], "default": "min"});
    Operation {
        id: "get_best_checkpoint",
        summary: "Get the complete checkpoint with the best metric",
        parameters: vec![
            parameter("metric", "Name of the metric.", &metric),
            parameter("mode", "Whether the least or the greatest value is the best.", &mode),
        ],
        ..of_checkpoint(schemas)
    }
}

fn logs() -> Operation {
    let replica = json!({"type": "string", "pattern": "^(master|worker-[0-9]+)$"});
    let rank = count(RANK);
    let attempt = count(ATTEMPT);
    let source = json!({"type": "string", "enum": ["cluster", "archive"]});
    let tail = count(TAIL);
    let since = json!({"type": "string", "format": "date-time"});
    let truncated = "`true`: older lines were left out, because the answer has at most 4 MiB, and the archive is read for \
                     at most 1,000 objects and a limited time.";
    let incomplete = "`true`: the newest lines are missing, because the cluster took too long.";
    let from = "`cluster`, where each line begins with its time, or `archive`, where lines are as they were printed.";
    let of_attempt = "The attempt of the submission that printed an archived log.";
    let text = json!({
        "description": "The newest lines",
        "content": {"text/plain": {"schema": {"type": "string"}}}
    });
    Operation {
        id: "get_logs",
        summary: "Get what a pod of the job prints",
        description: "The cluster has the last two starts of each pod that exists. The trainer archives what each rank prints \
                      in the runs bucket, within 15 seconds.",
        parameters: vec![
            parameter("replica", "`master` (the default) or `worker-<index>`.", &replica),
            parameter(
                "rank",
                "The pod that runs this rank, in place of `replica`; of the archive, that rank's log.",
                &rank,
            ),
            parameter(
                "attempt",
                "Which start, from 1; the newest when absent. The cluster counts those of the pod that exists, the archive \
                 those of the submission.",
                &attempt,
            ),
            parameter(
                "source",
                "Where to read. When absent, in the cluster, and then in the archive unless `since`, or `attempt` of a pod that \
                 exists, is given.",
                &source,
            ),
            parameter("tail", "How many of the newest lines.", &tail),
            parameter("since", "Only lines from this time on. Lines of the archive have no times.", &since),
        ],
        answers: vec![(
            200,
            with_headers(
                text,
                [
                    header("Log-Source", from, &source),
                    header("Log-Attempt", of_attempt, &attempt),
                    header("Log-Truncated", truncated, &only_true()),
                    header("Log-Incomplete", incomplete, &only_true()),
                ],
            ),
        )],
        problems: [CLUSTER.as_slice(), &[Code::JobNotFound, Code::LogNotFound], &STORAGE].concat(),
        ..of_job()
    }
}

fn events(schemas: &mut Schemas) -> Operation {
    Operation {
        id: "list_events",
        summary: "List what the cluster says of a job and its pods, oldest first",
        answers: vec![(200, answer("The events", &schemas.answer::<EventList>()))],
        ..of_job()
    }
}

fn settings() -> Operation {
    Operation {
        id: "get_settings",
        summary: "Get the settings that a framework has in the default image, as a JSON Schema of `extra_args`",
        description: "`x-expected` says what a value must be, `x-refusal` why other values are refused, `x-refusal-of` why one \
                      value is, and `x-setting` of which setting this is another name.",
        answers: vec![(200, answer("JSON Schema, draft 2020-12", &json!({"type": "object"})))],
        problems: vec![Code::SettingsNotFound],
        ..of_service(Access::AnyToken)
    }
}

fn health(schemas: &mut Schemas) -> Operation {
    Operation {
        id: "get_health",
        summary: "Check that the function runs",
        answers: vec![(200, answer("It does", &schemas.answer::<Health>()))],
        ..of_service(Access::Everybody)
    }
}

fn readiness(schemas: &mut Schemas) -> Operation {
    let readiness = schemas.answer::<Readiness>();
    Operation {
        id: "get_readiness",
        summary: "Check the upstream services: token secret, cluster and bucket",
        answers: vec![
            (200, answer("Everything does", &readiness)),
            (503, answer("One of them is not available, or the token cannot be checked", &readiness)),
        ],
        ..of_service(Access::Token)
    }
}

fn openapi() -> Operation {
    Operation {
        id: "get_openapi",
        summary: "Get this document",
        answers: vec![(200, answer("OpenAPI 3.1", &json!({"type": "object"})))],
        ..of_service(Access::Everybody)
    }
}

/// One that needs a token and asks the cluster for a job.
fn of_job() -> Operation {
    Operation {
        id: "",
        tag: "jobs",
        summary: "",
        description: "",
        parameters: Vec::new(),
        body: None,
        answers: Vec::new(),
        access: Access::Token,
        problems: [CLUSTER.as_slice(), &[Code::JobNotFound]].concat(),
    }
}

/// One that changes a job.
fn of_switch(schemas: &mut Schemas) -> Operation {
    let accepted = answer("Accepted: the job as it is now", &schemas.answer::<TrainingJobStatus>());
    let codes = [Code::JobFinished, Code::JobTerminating, Code::QueueManaged, Code::RejectedByCluster];
    Operation {
        description: "Repeating it is harmless.",
        answers: vec![(202, with_headers(accepted, [location()]))],
        problems: [CLUSTER.as_slice(), &CHANGE, &codes].concat(),
        ..of_job()
    }
}

/// One that gives a single checkpoint.
fn of_checkpoint(schemas: &mut Schemas) -> Operation {
    let codes = [Code::JobNotFound, Code::CheckpointNotFound];
    Operation {
        tag: "checkpoints",
        answers: vec![(200, answer("The checkpoint", &schemas.answer::<CheckpointAnswer>()))],
        problems: [CLUSTER.as_slice(), &codes, &STORAGE].concat(),
        ..of_job()
    }
}

fn of_service(access: Access) -> Operation {
    Operation { tag: "service", access, problems: Vec::new(), ..of_job() }
}

/// The schema of a step.
pub(crate) fn step() -> Value {
    json!({"type": "integer", "format": "int64", "minimum": 0, "maximum": Step::MAX})
}

fn count(Count { min, max, default }: Count) -> Value {
    let mut schema = json!({"type": "integer", "minimum": min, "maximum": max});
    if let Some(default) = default {
        schema["default"] = default.into();
    }
    schema
}

fn limit(description: &str) -> Value {
    parameter("limit", description, &count(LIMIT))
}

fn location() -> (&'static str, Value) {
    header("Location", "Path of the job.", &json!({"type": "string", "format": "uri-reference"}))
}

fn only_true() -> Value {
    json!({"type": "string", "const": "true"})
}
