//! Problems: every refusal and failure that a caller sees, as RFC 9457 documents. The code is the contract; texts may change.

use serde::Serialize;

/// What went wrong, as a stable word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// The body is not JSON.
    MalformedJson,
    /// The request breaks rules; all of them are listed.
    InvalidRequest,
    /// No token was sent.
    MissingToken,
    /// The token is not one of ours.
    InvalidToken,
    /// No job of that name.
    JobNotFound,
    /// No such route.
    RouteNotFound,
    /// A job of that name exists.
    JobConflict,
    /// A job of that name is not finished.
    JobRunning,
    /// A job of that name is being deleted.
    JobTerminating,
    /// The API server or the operator's webhook refused the manifest.
    RejectedByCluster,
    /// The cluster does not let the function in, or not do this.
    ClusterDenied,
    /// The cluster answered what nobody expected.
    ClusterError,
    /// The cluster cannot be reached.
    ClusterUnavailable,
    /// The token cannot be checked.
    AuthUnavailable,
    /// The runs bucket cannot be read.
    StorageUnavailable,
}

/// One violated rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
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
pub struct Document<'a> {
    #[serde(rename = "type")]
    kind: String,
    title: &'static str,
    status: u16,
    detail: &'a str,
    code: Code,
    request_id: &'a str,
    errors: &'a [FieldError],
}

// === impl Code ===

impl Code {
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

    fn title(self) -> &'static str {
        self.row().2
    }

    fn row(self) -> (&'static str, u16, &'static str) {
        match self {
            Self::MalformedJson => ("malformed_json", 400, "The body is not JSON"),
            Self::InvalidRequest => ("invalid_request", 422, "The request breaks rules"),
            Self::MissingToken => ("missing_token", 401, "No token was sent"),
            Self::InvalidToken => ("invalid_token", 401, "The token is not valid"),
            Self::JobNotFound => ("job_not_found", 404, "No such job"),
            Self::RouteNotFound => ("route_not_found", 404, "No such route"),
            Self::JobConflict => ("job_conflict", 409, "A job of that name exists"),
            Self::JobRunning => ("job_running", 409, "The job is not finished"),
            Self::JobTerminating => ("job_terminating", 409, "The job is being deleted"),
            Self::RejectedByCluster => ("rejected_by_cluster", 422, "The cluster refused the job"),
            Self::ClusterDenied => ("cluster_denied", 502, "The cluster denied access"),
            Self::ClusterError => ("cluster_error", 502, "The cluster answered unexpectedly"),
            Self::ClusterUnavailable => ("cluster_unavailable", 503, "The cluster cannot be reached"),
            Self::AuthUnavailable => ("auth_unavailable", 503, "The token cannot be checked"),
            Self::StorageUnavailable => ("storage_unavailable", 503, "The runs bucket cannot be read"),
        }
    }

    /// Seconds after which repeating the request makes sense, where it does.
    #[must_use]
    pub fn retry_after_seconds(self) -> Option<u32> {
        match self {
            Self::JobTerminating | Self::ClusterUnavailable | Self::AuthUnavailable | Self::StorageUnavailable => {
                Some(5)
            }
            Self::MalformedJson
            | Self::InvalidRequest
            | Self::MissingToken
            | Self::InvalidToken
            | Self::JobNotFound
            | Self::RouteNotFound
            | Self::JobConflict
            | Self::JobRunning
            | Self::RejectedByCluster
            | Self::ClusterDenied
            | Self::ClusterError => None,
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

    /// The problem of a request that breaks rules.
    #[must_use]
    pub fn invalid(errors: Vec<FieldError>) -> Self {
        let rules = if errors.len() == 1 { "1 rule".to_owned() } else { format!("{} rules", errors.len()) };
        let first = errors.first().map(|error| format!(": {} {}", error.pointer, error.detail)).unwrap_or_default();
        Self { code: Code::InvalidRequest, detail: format!("the request breaks {rules}{first}"), errors }
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
}
