//! One operation of the document: what its answers and problems look like, whichever it is.

use serde_json::{Map, Value, json};

use crate::{examples, schemas::Schemas};
use training_core::api::problem::{Code, Document};

/// What a caller with a token may always meet.
const GATE: [Code; 6] = [
    Code::MissingToken,
    Code::InvalidToken,
    Code::ScopeNotAllowed,
    Code::NamespaceNotAllowed,
    Code::InvalidRequest,
    Code::AuthUnavailable,
];
/// What a path or method gets that is none of ours, so that no operation tells of it.
pub(crate) const UNROUTED: [Code; 2] = [Code::RouteNotFound, Code::MethodNotAllowed];

/// What is told of one route beside its path and method.
pub(crate) struct Operation {
    pub(crate) id: &'static str,
    pub(crate) tag: &'static str,
    pub(crate) summary: &'static str,
    pub(crate) description: &'static str,
    /// Without the path's own and without `namespace`.
    pub(crate) parameters: Vec<Value>,
    pub(crate) body: Option<Value>,
    /// By HTTP status.
    pub(crate) answers: Vec<(u16, Value)>,
    pub(crate) access: Access,
    /// Beside those of the access.
    pub(crate) problems: Vec<Code>,
}

/// Who may call.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Everybody,
    /// Whoever has a token, whichever namespaces it is for.
    AnyToken,
    /// Whoever has a token for the namespace.
    Token,
}

// === impl Operation ===

impl Operation {
    /// The codes of its problems, in the order of their statuses.
    fn codes(&self) -> Vec<Code> {
        let is_of_gate = |code: Code| match self.access {
            Access::Everybody => false,
            Access::AnyToken => GATE.contains(&code) && code != Code::NamespaceNotAllowed,
            Access::Token => GATE.contains(&code),
        };
        Code::ALL.into_iter().filter(|code| is_of_gate(*code) || self.problems.contains(code)).collect()
    }

    /// The operation object (`OpenAPI` 3.1, section 4.8.10).
    pub(crate) fn render(self, path: &str, schemas: &mut Schemas) -> Value {
        let codes = self.codes();
        let mut operation = json!({"operationId": self.id, "tags": [self.tag], "summary": self.summary});
        if !self.description.is_empty() {
            operation["description"] = self.description.into();
        }
        let mut parameters: Vec<Value> = ["name", "step", "framework"]
            .into_iter()
            .filter(|name| path.contains(&format!("{{{name}}}")))
            .map(|name| json!({"$ref": format!("#/components/parameters/{name}")}))
            .collect();
        parameters.extend(self.parameters);
        if self.access == Access::Token {
            parameters.push(json!({"$ref": "#/components/parameters/namespace"}));
        }
        if !parameters.is_empty() {
            operation["parameters"] = parameters.into();
        }
        if let Some(body) = self.body {
            operation["requestBody"] = body;
        }
        operation["responses"] = responses(self.answers, &codes, schemas).into();
        operation["x-problem-codes"] = codes.into_iter().map(Code::as_str).collect();
        if self.access == Access::Everybody {
            operation["security"] = json!([]);
        }
        operation
    }
}

fn responses(answers: Vec<(u16, Value)>, codes: &[Code], schemas: &mut Schemas) -> Map<String, Value> {
    let problem = schemas.answer::<Document<'_>>();
    let answers = answers.into_iter().map(|(status, answer)| (status.to_string(), answer));
    let mut responses: Map<String, Value> = answers.collect();
    for code in codes {
        let response = responses.entry(code.status().to_string()).or_insert_with(|| json!({"description": ""}));
        add_problem(response, *code, &problem);
    }
    let mut other = json!({"description": "Any other problem"});
    for code in UNROUTED {
        add_problem(&mut other, code, &problem);
    }
    let allow = json!({"description": "With 405: the methods of the path.", "schema": {"type": "string"}});
    other["headers"] = json!({"Allow": allow});
    responses.insert("default".to_owned(), other);
    responses.sort_keys();
    responses
}

/// Tell of one more problem of a status.
fn add_problem(response: &mut Value, code: Code, problem: &Value) {
    let told = response["description"].as_str().unwrap_or_default();
    let separator = if told.is_empty() { "" } else { "\n" };
    response["description"] = format!("{told}{separator}- `{}`: {}", code.as_str(), code.title()).into();
    response["content"]["application/problem+json"]["schema"] = problem.clone();
    if code == Code::InvalidRequest {
        let example = json!({"$ref": format!("#/components/examples/{}", examples::PROBLEM)});
        response["content"]["application/problem+json"]["examples"] = json!({examples::PROBLEM: example});
    }
    if code.retry_after_seconds().is_some() {
        let seconds = json!({"type": "integer", "minimum": 1});
        response["headers"]["Retry-After"] = json!({"description": "Seconds after which to retry.", "schema": seconds});
    }
}

/// A good answer as JSON.
pub(crate) fn answer(description: &str, schema: &Value) -> Value {
    json!({"description": description, "content": {"application/json": {"schema": schema}}})
}

pub(crate) fn with_example(mut answer: Value, example: Value) -> Value {
    answer["content"]["application/json"]["example"] = example;
    answer
}

pub(crate) fn with_headers<const N: usize>(mut answer: Value, headers: [(&str, Value); N]) -> Value {
    for (name, header) in headers {
        answer["headers"][name] = header;
    }
    answer
}

pub(crate) fn header(name: &'static str, description: &str, schema: &Value) -> (&'static str, Value) {
    (name, json!({"description": description, "schema": schema}))
}

/// A parameter of the query.
pub(crate) fn parameter(name: &str, description: &str, schema: &Value) -> Value {
    json!({"name": name, "in": "query", "description": description, "schema": schema})
}
