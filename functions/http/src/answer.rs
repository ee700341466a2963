//! What a handler returns: an answer, or a failure that the boundary turns into a problem document.

use std::error::Error;

use lambda_http::http::{HeaderName, header};
use serde::Serialize;
use tokio::time::error::Elapsed;
use training_cluster::ClusterError;
use training_core::api::problem::{Code, Problem};
use training_store::StoreError;

/// A good answer.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Media type of the body.
    pub content_type: &'static str,
    /// The body.
    pub body: Vec<u8>,
    /// Further headers.
    pub headers: Vec<(HeaderName, String)>,
}

/// A refusal, or a failure with a cause that is logged and never shown.
#[derive(Debug)]
pub struct Failure {
    /// What the caller sees.
    pub problem: Problem,
    /// What the log shows.
    pub cause: Option<Box<dyn Error + Send + Sync>>,
    /// Headers of the answer beside those of every problem.
    pub headers: Vec<(HeaderName, String)>,
    /// Whether no repetition mends it, but only an operator: then the answer has no `Retry-After`, whatever its code.
    pub is_final: bool,
}

// === impl Answer ===

impl Answer {
    /// A JSON answer.
    ///
    /// # Errors
    /// The value cannot be written as JSON.
    pub fn json(status: u16, value: &impl Serialize) -> Result<Self, Failure> {
        let body = serde_json::to_vec(value)
            .map_err(|error| Failure::with_cause(Code::ClusterError, "the answer cannot be written", error))?;
        Ok(Self { status, content_type: "application/json", body, headers: Vec::new() })
    }

    /// A text answer.
    #[must_use]
    pub fn text(status: u16, text: String) -> Self {
        Self { status, content_type: "text/plain; charset=utf-8", body: text.into_bytes(), headers: Vec::new() }
    }

    /// The same answer with one more header.
    #[must_use]
    pub fn with_header(mut self, name: HeaderName, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

// === impl Failure ===

impl Failure {
    /// A refusal.
    #[must_use]
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Problem::new(code, detail).into()
    }

    /// A failure behind the function.
    #[must_use]
    pub fn with_cause(code: Code, detail: impl Into<String>, cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { cause: Some(cause.into()), ..Self::new(code, detail) }
    }

    /// The same failure, which no repetition mends where that is so.
    #[must_use]
    pub fn final_if(mut self, is_final: bool) -> Self {
        self.is_final = is_final;
        self
    }

    /// The same failure with one more header, in place of the one that its code alone would give.
    #[must_use]
    pub fn with_header(mut self, name: HeaderName, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self { problem, cause: None, headers: Vec::new(), is_final: false }
    }
}

/// What a caller is told when the runs bucket does not do what it should.
#[must_use]
pub fn storage_failure(error: impl Into<Box<dyn Error + Send + Sync>>) -> Failure {
    let error = error.into();
    if error.downcast_ref().is_some_and(StoreError::is_final) {
        let detail = "the runs bucket denied this service access, or an object in it cannot be read; ask your operator";
        return Failure::with_cause(Code::StorageUnavailable, detail, error).final_if(true);
    }
    let is_timeout = error.is::<Elapsed>() || error.downcast_ref().is_some_and(StoreError::is_timeout);
    if is_timeout {
        let detail = "the runs bucket did not answer in time; retry the same request (it is idempotent)";
        return Failure::with_cause(Code::StorageTimeout, detail, error);
    }
    Failure::with_cause(Code::StorageUnavailable, "the runs bucket is unavailable; retry later", error)
}

/// What a caller is told of a failure in the cluster; absent and existing objects are the handler's to explain.
#[must_use]
pub fn cluster_failure(error: ClusterError) -> Failure {
    let of = |code, detail: &str, error| Failure::with_cause(code, detail, error);
    match error {
        ClusterError::Rejected(rejection) => Problem::rejected_by_cluster(&rejection.message, &rejection.causes).into(),
        ClusterError::TooLarge => Failure::new(Code::BodyTooLarge, "the job's manifest exceeds the cluster's limit"),
        ClusterError::QuotaExceeded(message) => {
            Failure::new(Code::QuotaExceeded, format!("the namespace's quota has no room for the job: {message}"))
        }
        ClusterError::NamespaceTerminating => Failure::new(
            Code::NamespaceTerminating,
            "the namespace is being deleted; choose another one, or wait until it is created again",
        ),
        ClusterError::ContinueExpired => Failure::new(
            Code::ContinueExpired,
            "the token of the next page has expired; read the list again from its first page",
        ),
        ClusterError::Throttled { retry_after_seconds, .. } => {
            let failure = of(Code::Throttled, "the cluster is overloaded; retry later", error);
            match retry_after_seconds {
                Some(seconds) => failure.with_header(header::RETRY_AFTER, seconds.to_string()),
                None => failure,
            }
        }
        ClusterError::Denied(_) => of(
            Code::ClusterDenied,
            "the cluster denied this service access (a namespace that does not exist gets the same answer); ask your operator",
            error,
        ),
        ClusterError::SignIn(ref cause) if cause.is_final() => of(
            Code::ClusterDenied,
            "the configured cluster does not exist, or this service may not describe it; ask your operator",
            error,
        ),
        ClusterError::NotReady(ref status) => {
            // A webhook that does not answer may be starting; a namespace or a resource does not come by itself.
            let is_absent = status.code == 404;
            of(
                Code::ClusterNotReady,
                "the cluster is not ready for jobs (namespace, PyTorchJob resource or operator missing); ask your operator",
                error,
            )
            .final_if(is_absent)
        }
        ClusterError::TimedOut(_) => of(
            Code::ClusterTimeout,
            "the cluster did not answer in time; retry the same request (it is idempotent)",
            error,
        ),
        ClusterError::Busy(_) | ClusterError::Unreachable(_) | ClusterError::SignIn(_) => {
            of(Code::ClusterUnavailable, "the cluster is unreachable; retry later", error)
        }
        ClusterError::NotFound
        | ClusterError::AlreadyExists
        | ClusterError::Changed
        | ClusterError::BadRequest(_)
        | ClusterError::Unexpected(_) => of(Code::ClusterError, "the cluster answered unexpectedly", error),
    }
}
