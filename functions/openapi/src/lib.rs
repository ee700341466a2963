//! openapi.json: the description of the API, made of the types that it describes. `make openapi` writes the file, and a test
//! compares it with what is made here. The functions only serve the file, and contain nothing of this crate. The reference of
//! the request's fields is made of it too.
//!
//! ```text
//! Route ─> operation ─> paths ──────┐
//! types ─> schemas ─> components ───┴─> openapi.json ─> docs/reference/request-fields.md
//! ```

mod examples;
mod operation;
mod reference;
mod request;
mod routes;
#[cfg(test)]
mod tests;

use std::fmt::Write;

use schemars::{
    JsonSchema, Schema,
    generate::{SchemaGenerator, SchemaSettings},
    transform::transform_subschemas,
};
use serde_json::{Map, Value, json};

use operation::parameter;
pub use reference::request_fields;

const DESCRIPTION: &str = "A serverless control plane for training jobs on Kubernetes: one JSON document becomes one \
    PyTorchJob.\n\nEvery refusal and failure is a problem document (RFC 9457, `application/problem+json`) whose `code` is \
    stable. Errors that API Gateway makes by itself have the form `{\"message\": \"...\"}`, as `application/json`: 413 above \
    10 MB, 429, 500, and 503 or 504 when a function does not answer within 30 s.";

/// The schemas of all types that were asked for.
struct Schemas {
    answers: SchemaGenerator,
    requests: SchemaGenerator,
}

/// The document as the file has it.
///
/// # Panics
/// Never, as long as the crate's tests pass: its examples are good ones.
#[must_use]
pub fn text() -> String {
    format!("{:#}\n", document())
}

/// The whole document.
fn document() -> Value {
    let mut schemas = Schemas::new();
    let mut paths: Map<String, Value> = Map::new();
    for route in routes::ROUTES {
        let (method, path) = routes::place(route);
        let operation = routes::operation(route, &mut schemas).render(path, &mut schemas);
        paths.entry(path).or_insert_with(|| json!({}))[method] = operation;
    }
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
                "step": of_path("step", "A training step.", &routes::step())
            },
            "examples": {examples::PROBLEM: {"value": examples::problem()}},
            "schemas": schemas.finish()
        }
    })
}

fn of_path(name: &str, description: &str, schema: &Value) -> Value {
    json!({"name": name, "in": "path", "required": true, "description": description, "schema": schema})
}

// === impl Schemas ===

impl Schemas {
    fn new() -> Self {
        let settings = SchemaSettings::draft2020_12().with_transform(for_people).with(|settings| {
            settings.definitions_path = "/components/schemas".into();
            settings.meta_schema = None;
        });
        let answers = settings.clone().for_serialize().into_generator();
        Self { answers, requests: settings.for_deserialize().into_generator() }
    }

    /// A reference to the schema of what is written.
    fn answer<T: JsonSchema>(&mut self) -> Value {
        self.answers.subschema_for::<T>().into()
    }

    /// A reference to the schema of what is read.
    fn request<T: JsonSchema>(&mut self) -> Value {
        self.requests.subschema_for::<T>().into()
    }

    fn finish(mut self) -> Map<String, Value> {
        let mut schemas = self.requests.take_definitions(true);
        schemas.extend(self.answers.take_definitions(true));
        schemas.sort_keys();
        schemas
    }
}

/// Comments lose their line breaks; words with a meaning each become one `enum`, which more generators know than
/// alternatives of one word.
fn for_people(schema: &mut Schema) {
    let mut description = schema.get("description").and_then(Value::as_str).map(one_line);
    if let Some(words) = schema.get("oneOf").and_then(Value::as_array).and_then(|words| words_with_meanings(words)) {
        let description = description.get_or_insert_default();
        description.push('\n');
        for (word, meaning) in &words {
            // Writing to a String cannot fail.
            let _ = write!(description, "\n- `{word}`: {meaning}");
        }
        schema.remove("oneOf");
        schema.insert("type".to_owned(), "string".into());
        schema.insert("enum".to_owned(), words.into_iter().map(|(word, _)| word).collect());
    }
    if let Some(description) = description {
        schema.insert("description".to_owned(), description.into());
    }
    transform_subschemas(&mut for_people, schema);
}

fn one_line(text: &str) -> String {
    text.split("\n\n").map(|paragraph| paragraph.replace('\n', " ")).collect::<Vec<_>>().join("\n\n")
}

fn words_with_meanings(alternatives: &[Value]) -> Option<Vec<(String, String)>> {
    let word = |alternative: &Value| {
        let meaning = alternative.get("description").and_then(Value::as_str).map(one_line).unwrap_or_default();
        Some((alternative.get("const")?.as_str()?.to_owned(), meaning))
    };
    alternatives.iter().map(word).collect()
}
