//! The whole document: its head, every route's operation, and what operations refer to.

use serde_json::{Map, Value, json};
use training_run::names::Framework;

use crate::{examples, operation::parameter, routes, schemas::Schemas};

const DESCRIPTION: &str = "A serverless control plane for training jobs on Kubernetes: one JSON document becomes one \
    PyTorchJob.\n\nEvery refusal and failure is a problem document (RFC 9457, `application/problem+json`) whose `code` is \
    stable. Errors that API Gateway makes by itself have the form `{\"message\": \"...\"}`, as `application/json`: 413 above \
    10 MB, 429, 500, and 503 or 504 when a function does not answer within 30 s.";

/// The document as the file has it.
///
/// # Panics
/// Never, as long as the crate's tests pass: its examples are good ones.
#[must_use]
pub fn text() -> String {
    format!("{:#}\n", document())
}

/// The whole document.
pub(crate) fn document() -> Value {
    let mut schemas = Schemas::new();
    let mut paths: Map<String, Value> = Map::new();
    for route in routes::ROUTES {
        let (method, path) = routes::place(route);
        let operation = routes::operation(route, &mut schemas).render(path, &mut schemas);
        paths.entry(path).or_insert_with(|| json!({}))[method] = operation;
    }
    let framework = schemas.request::<Framework>();
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Training jobs",
            "version": env!("CARGO_PKG_VERSION"),
            "description": DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"}
        },
        "servers": [{"url": "/", "description": "Where this document is served"}],
        "security": [{"token": []}],
        "tags": [
            {"name": "jobs", "description": "Submit jobs, follow them, end them"},
            {"name": "checkpoints", "description": "What a job's run has saved, as the index knows it"},
            {"name": "service", "description": "The service itself"}
        ],
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {
                "type": "apiKey", "in": "header", "name": "X-TRAINER-TOKEN", "description": "The deployment's token"
            }},
            "parameters": {
                "namespace": parameter(
                    "namespace",
                    "One of the namespaces that the deployment serves; its default one when absent.",
                    &json!({"type": "string"}),
                ),
                "name": of_path("name", "Name of the job.", &json!({"type": "string"})),
                "step": of_path("step", "A training step.", &routes::step()),
                "framework": of_path("framework", "Which runner trains.", &framework)
            },
            "examples": {examples::PROBLEM: {"value": examples::problem()}},
            "schemas": schemas.finish()
        }
    })
}

fn of_path(name: &str, description: &str, schema: &Value) -> Value {
    json!({"name": name, "in": "path", "required": true, "description": description, "schema": schema})
}
