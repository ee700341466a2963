//! What a handler returns: an answer, or a failure that the boundary turns into a problem document.

use std::error::Error;

use serde::Serialize;
use training_cluster::ClusterError;
use training_core::problem::{Code, Problem};

/// A good answer.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// JSON body.
    pub body: Vec<u8>,
    /// `Location` header, where the answer has one.
    pub location: Option<String>,
}

/// A refusal, or a failure with a cause that is logged and never shown.
#[derive(Debug)]
pub struct Failure {
    /// What the caller sees.
    pub problem: Problem,
    /// What the log shows.
    pub cause: Option<Box<dyn Error + Send + Sync>>,
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
        Ok(Self { status, body, location: None })
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
        Self { problem: Problem::new(code, detail), cause: Some(cause.into()) }
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self { problem, cause: None }
    }
}

/// What a caller is told of a failure in the cluster; absent and existing objects are the handler's to explain.
#[must_use]
pub fn cluster_failure(error: ClusterError) -> Failure {
    match error {
        ClusterError::Rejected(message) => {
            Failure::new(Code::RejectedByCluster, format!("the cluster refused the job: {message}"))
        }
        error @ ClusterError::Denied(_) => {
            let detail = "the cluster does not let this service in, or not do this; tell its operator";
            Failure::with_cause(Code::ClusterDenied, detail, error)
        }
        error @ (ClusterError::NotReady(_)
        | ClusterError::Busy(_)
        | ClusterError::Unreachable(_)
        | ClusterError::TimedOut
        | ClusterError::SignIn(_)) => {
            Failure::with_cause(Code::ClusterUnavailable, "the cluster cannot be reached now; try again", error)
        }
        error @ (ClusterError::NotFound
        | ClusterError::AlreadyExists
        | ClusterError::Changed
        | ClusterError::Unexpected(_)) => {
            Failure::with_cause(Code::ClusterError, "the cluster answered unexpectedly", error)
        }
    }
}
