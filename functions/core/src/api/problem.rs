//! Problems: every refusal and failure that a caller sees, as RFC 9457 documents. The code is the contract; texts may change.

use std::fmt::Display;

#[cfg(feature = "schema")]
use schemars::JsonSchema;
use serde::Serialize;

use training_run::text::bounded;

/// What went wrong, as a stable word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", schemars(rename = "ProblemCode"))]
pub enum Code {
    /// The body is not JSON.
    MalformedJson,
    /// The request breaks rules; all of them are listed.
    InvalidRequest,
    /// No token was sent.
    MissingToken,
    /// The token is not in the secret, or has expired.
    InvalidToken,
    /// The token does not have the scope that this needs.
    ScopeNotAllowed,
    /// A namespace that this deployment does not serve.
    NamespaceNotAllowed,
    /// A `ResourceQuota` of the namespace has no room for the job.
    QuotaExceeded,
    /// No job of that name.
    JobNotFound,
    /// The run has no such checkpoint.
    CheckpointNotFound,
    /// The pod, or that start of it, is not in the cluster, and no archive was found or looked for.
    LogNotFound,
    /// No framework of that name, and so no settings.
    SettingsNotFound,
    /// No such route.
    RouteNotFound,
    /// The path has routes, with other methods.
    MethodNotAllowed,
    /// A job of that name exists and was submitted with other fields.
    JobConflict,
    /// A job of that name is not finished.
    JobRunning,
    /// The job has ended, and nothing can be done to it.
    JobFinished,
    /// A job of that name is being deleted.
    JobTerminating,
    /// Another tool made the job, and this API does not change it.
    ForeignJob,
    /// The run has checkpoints of an earlier submission, and the request does not say to resume.
    RunExists,
    /// Another job writes into the run.
    RunActive,
    /// The checkpoint to resume is missing or not complete.
    ResumeTargetNotFound,
    /// The namespace is being deleted.
    NamespaceTerminating,
    /// Kueue decides when the job runs.
    QueueManaged,
    /// The token of the next page is too old.
    ContinueExpired,
    /// The body, or the manifest made of it, is over its limit.
    BodyTooLarge,
    /// The body is declared to be something else than JSON.
    UnsupportedMediaType,
    /// The API server, a policy or the operator's webhook refused the job, or the change of it.
    RejectedByCluster,
    /// The API server's priority and fairness turned the request away.
    Throttled,
    /// The cluster refuses the function's sign-in, or this call.
    ClusterDenied,
    /// The cluster's answer was unexpected.
    ClusterError,
    /// The cluster cannot be reached.
    ClusterUnavailable,
    /// The `PyTorchJob` resource or the operator's webhook is not there.
    ClusterNotReady,
    /// The token cannot be checked.
    AuthUnavailable,
    /// The runs bucket cannot be read or written.
    StorageUnavailable,
    /// The cluster did not answer in time; the request is safe to repeat.
    ClusterTimeout,
    /// The runs bucket did not answer in time; the request is safe to repeat.
    StorageTimeout,
}

/// Violated rules that one answer names; how many there are, it says in any case.
pub const MAX_ERRORS: usize = 100;

/// One violated rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub struct FieldError {
    /// JSON Pointer (RFC 6901) into the body, or `?name` for a query parameter.
    pub pointer: String,
    /// Which kind of rule, as a stable word.
    pub code: &'static str,
    /// What to write instead.
    pub detail: String,
}

/// A problem document without its request id, which the boundary adds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What went wrong.
    pub code: Code,
    /// One sentence for the caller.
    pub detail: String,
    /// Each violated rule, when the request breaks some.
    pub errors: Vec<FieldError>,
}

/// The body of a problem answer (RFC 9457, media type `application/problem+json`).
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
#[cfg_attr(feature = "schema", schemars(rename = "Problem"))]
pub struct Document<'a> {
    /// A URI that does not change and ends in the code.
    #[serde(rename = "type")]
    kind: String,
    /// What the code means, in the same words each time.
    title: &'static str,
    /// The HTTP status.
    status: u16,
    /// What happened this time, and what to change.
    detail: &'a str,
    /// What went wrong, as a word to match on.
    code: Code,
    /// The id under which the request stands in the service's log.
    request_id: &'a str,
    /// Each violated rule, when the request breaks some.
    errors: &'a [FieldError],
}

// === impl Code ===

impl Code {
    /// All codes, in the order of their statuses.
    pub const ALL: [Self; 36] = [
        Self::MalformedJson,
        Self::InvalidRequest,
        Self::MissingToken,
        Self::InvalidToken,
        Self::ScopeNotAllowed,
        Self::NamespaceNotAllowed,
        Self::QuotaExceeded,
        Self::JobNotFound,
        Self::CheckpointNotFound,
        Self::LogNotFound,
        Self::SettingsNotFound,
        Self::RouteNotFound,
        Self::MethodNotAllowed,
        Self::JobConflict,
        Self::JobRunning,
        Self::JobFinished,
        Self::JobTerminating,
        Self::ForeignJob,
        Self::RunExists,
        Self::RunActive,
        Self::ResumeTargetNotFound,
        Self::NamespaceTerminating,
        Self::QueueManaged,
        Self::ContinueExpired,
        Self::BodyTooLarge,
        Self::UnsupportedMediaType,
        Self::RejectedByCluster,
        Self::Throttled,
        Self::ClusterDenied,
        Self::ClusterError,
        Self::ClusterUnavailable,
        Self::ClusterNotReady,
        Self::AuthUnavailable,
        Self::StorageUnavailable,
        Self::ClusterTimeout,
        Self::StorageTimeout,
    ];

    /// The word that callers match on.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.row().0
    }

    /// The HTTP status.
    #[must_use]
    pub fn status(self) -> u16 {
        self.row().1
    }

    /// A short text that does not change from one occurrence to the next.
    #[must_use]
    pub fn title(self) -> &'static str {
        self.row().2
    }

    /// Seconds after which repeating the request makes sense, where it does; not of a failure that only an operator mends.
    #[must_use]
    pub fn retry_after_seconds(self) -> Option<u32> {
        match self.row().3 {
            0 => None,
            seconds => Some(seconds),
        }
    }

    /// Word, status, title, and seconds to wait (0: repeating does not help).
    fn row(self) -> (&'static str, u16, &'static str, u32) {
        match self {
            Self::MalformedJson => ("malformed_json", 400, "The body is not JSON", 0),
            Self::InvalidRequest => ("invalid_request", 422, "The request breaks rules", 0),
            Self::MissingToken => ("missing_token", 401, "No token was sent", 0),
            Self::InvalidToken => ("invalid_token", 401, "The token is not valid", 0),
            Self::ScopeNotAllowed => ("scope_not_allowed", 403, "The token may not do this", 0),
            Self::NamespaceNotAllowed => ("namespace_not_allowed", 403, "The namespace is not allowed", 0),
            Self::QuotaExceeded => ("quota_exceeded", 403, "The namespace's quota is used up", 0),
            Self::JobNotFound => ("job_not_found", 404, "No such job", 0),
            Self::CheckpointNotFound => ("checkpoint_not_found", 404, "No such checkpoint", 0),
            Self::LogNotFound => ("log_not_found", 404, "No such log", 0),
            Self::SettingsNotFound => ("settings_not_found", 404, "No such framework", 0),
            Self::RouteNotFound => ("route_not_found", 404, "No such route", 0),
            Self::MethodNotAllowed => ("method_not_allowed", 405, "The route does not take this method", 0),
            Self::JobConflict => ("job_conflict", 409, "Another job of that name exists", 0),
            Self::JobRunning => ("job_running", 409, "The job is not finished", 0),
            Self::JobFinished => ("job_finished", 409, "The job is finished", 0),
            Self::JobTerminating => ("job_terminating", 409, "The job is being deleted", 5),
            Self::ForeignJob => ("foreign_job", 409, "Another tool made the job", 0),
            Self::RunExists => ("run_exists", 409, "The run has checkpoints", 0),
            Self::RunActive => ("run_active", 409, "The run is being trained", 0),
            Self::ResumeTargetNotFound => ("resume_target_not_found", 409, "The checkpoint to resume is not there", 0),
            Self::NamespaceTerminating => ("namespace_terminating", 409, "The namespace is being deleted", 0),
            Self::QueueManaged => ("queue_managed", 409, "A queue manages the job", 0),
            Self::ContinueExpired => ("continue_expired", 410, "The page token has expired", 0),
            Self::BodyTooLarge => ("body_too_large", 413, "The body is too large", 0),
            Self::UnsupportedMediaType => ("unsupported_media_type", 415, "The media type of the body is not JSON", 0),
            Self::RejectedByCluster => ("rejected_by_cluster", 422, "The cluster refused the request", 0),
            Self::Throttled => ("throttled", 429, "The cluster is overloaded", 1),
            Self::ClusterDenied => ("cluster_denied", 502, "The cluster denied access", 0),
            Self::ClusterError => ("cluster_error", 502, "The cluster answered unexpectedly", 0),
            Self::ClusterUnavailable => ("cluster_unavailable", 503, "The cluster cannot be reached", 5),
            Self::ClusterNotReady => ("cluster_not_ready", 503, "The cluster is not ready for jobs", 30),
            Self::AuthUnavailable => ("auth_unavailable", 503, "The token cannot be checked", 5),
            Self::StorageUnavailable => ("storage_unavailable", 503, "The runs bucket cannot be used", 5),
            Self::ClusterTimeout => ("cluster_timeout", 504, "The cluster did not answer in time", 5),
            Self::StorageTimeout => ("storage_timeout", 504, "The runs bucket did not answer in time", 5),
        }
    }
}

// === impl Problem ===

impl Problem {
    /// A problem with one sentence.
    #[must_use]
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), errors: Vec::new() }
    }

    /// The problem of a request that breaks rules: how many, the first one in words, and each of the first hundred.
    #[must_use]
    pub fn invalid(mut errors: Vec<FieldError>) -> Self {
        let rules = if errors.len() == 1 { "1 rule".to_owned() } else { format!("{} rules", errors.len()) };
        let place = |pointer: &str| if pointer.is_empty() { "the body".to_owned() } else { pointer.to_owned() };
        let first = errors.first().map(|error| format!(": {} {}", place(&error.pointer), error.detail));
        let first = first.unwrap_or_default();
        errors.truncate(MAX_ERRORS);
        Self { code: Code::InvalidRequest, detail: format!("the request breaks {rules}{first}"), errors }
    }

    /// The problem of a name that no job has, or that no job can have.
    #[must_use]
    pub fn job_not_found(name: &str, namespace: &impl Display) -> Self {
        let detail = format!("there is no job `{}` in the namespace `{namespace}`", bounded(name, 64));
        Self::new(Code::JobNotFound, detail)
    }

    /// The problem of a job or a change that the API server, a policy or the operator's webhook refused: its own words, and
    /// the field of the request that it means, where that can be told.
    ///
    /// `causes` are pairs of a path in the manifest and a sentence, as Kubernetes gives them.
    #[must_use]
    pub fn rejected_by_cluster(message: &str, causes: &[(String, String)]) -> Self {
        let errors = causes
            .iter()
            .filter_map(|(path, sentence)| {
                let pointer = field_of_manifest(path)?;
                Some(FieldError { pointer: pointer.to_owned(), code: "rejected", detail: bounded(sentence, 512) })
            })
            .collect();
        let detail = format!("the cluster refused the request: {}", bounded(message, 1024));
        Self { code: Code::RejectedByCluster, detail, errors }
    }

    /// The document to send.
    #[must_use]
    pub fn document<'a>(&'a self, request_id: &'a str) -> Document<'a> {
        Document {
            kind: format!("urn:trainer.deepfinery:problem:{}", self.code.as_str()),
            title: self.code.title(),
            status: self.code.status(),
            detail: &self.detail,
            code: self.code,
            request_id,
            errors: &self.errors,
        }
    }
}

/// The field of the request that a path in the manifest was made from.
fn field_of_manifest(path: &str) -> Option<&'static str> {
    [
        ("metadata.name", "/job_name"),
        ("metadata.labels", "/labels"),
        ("metadata.annotations", "/annotations"),
        (".priorityClassName", "/priority_class"),
        (".image", "/image"),
        (".env", "/env"),
        (".replicas", "/num_nodes"),
        ("nprocPerNode", "/gpus_per_node"),
        ("ephemeral-storage", "/disk_per_node_gb"),
        ("sizeLimit", "/disk_per_node_gb"),
        (".resources", "/memory_per_node_gb"),
        ("activeDeadlineSeconds", "/max_runtime_seconds"),
        ("backoffLimit", "/max_restarts"),
    ]
    .into_iter()
    .find_map(|(part, pointer)| path.contains(part).then_some(pointer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_on_the_wire_is_the_word_in_the_type() {
        let problem = Problem::new(Code::JobConflict, "exists");
        let document = serde_json::to_value(problem.document("r-1")).expect("serialisable");
        assert_eq!(document["code"], "job_conflict");
        assert_eq!(document["code"], problem.code.as_str());
        assert_eq!(document["type"], "urn:trainer.deepfinery:problem:job_conflict");
        assert_eq!((&document["status"], &document["request_id"]), (&409.into(), &"r-1".into()));
    }

    #[test]
    fn every_code_is_its_own_word() {
        let mut words: Vec<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), Code::ALL.len());
        for code in Code::ALL {
            assert_eq!(serde_json::to_value(code).expect("serialisable"), code.as_str());
            assert!((400..600).contains(&code.status()), "{code:?}");
        }
    }
}
