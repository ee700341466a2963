//! The answers of GET /healthz and GET /readyz: does the function run, and does everything behind it answer.

#[cfg(feature = "schema")]
use schemars::JsonSchema;
use serde::Serialize;

use crate::api::problem::{Code, Problem};

/// The function runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub struct Health {
    /// Always `ok`.
    pub status: HealthWord,
}

/// The one word there is: a function that does not run does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum HealthWord {
    /// The function runs.
    Ok,
}

/// Whether jobs can be submitted and read now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub struct Readiness {
    /// Whether everything answers.
    pub ready: bool,
    /// The secret that holds the tokens.
    pub token: Check,
    /// The API server, the `PyTorchJob` resource and the namespace; null while no token can be checked.
    pub cluster: Option<Check>,
    /// The runs bucket; null while no token can be checked.
    pub storage: Option<Check>,
}

/// How one of them answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
#[cfg_attr(feature = "schema", schemars(rename = "DependencyState"))]
pub struct Check {
    /// Whether it does what it should.
    pub ok: bool,
    /// The problem code that requests get for now; null when it is ok.
    pub code: Option<Code>,
    /// A sentence for a person; null when it is ok.
    pub detail: Option<String>,
}

// === impl Readiness ===

impl Readiness {
    /// The state of all, given what each of them said. What was not asked is not ready.
    #[must_use]
    pub fn new(token: Check, cluster: Option<Check>, storage: Option<Check>) -> Self {
        let is_ok = |check: &Option<Check>| check.as_ref().is_some_and(|check| check.ok);
        Self { ready: token.ok && is_ok(&cluster) && is_ok(&storage), token, cluster, storage }
    }
}

// === impl Check ===

impl Check {
    /// It answers as it should.
    #[must_use]
    pub fn ok() -> Self {
        Self { ok: true, code: None, detail: None }
    }

    /// It does not.
    #[must_use]
    pub fn failed(problem: &Problem) -> Self {
        Self { ok: false, code: Some(problem.code), detail: Some(problem.detail.clone()) }
    }
}
