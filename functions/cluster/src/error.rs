//! What an answer of the API server means. Rules and texts: Kubernetes 1.36 and controller-runtime's webhooks.

use kube::core::Status;
use thiserror::Error;

use crate::access::EndpointError;

/// Why a call did not do what was asked.
#[derive(Debug, Error)]
pub enum ClusterError {
    /// There is no such object.
    #[error("the object does not exist")]
    NotFound,
    /// An object of that name exists, or is still being deleted.
    #[error("an object of that name exists")]
    AlreadyExists,
    /// The object is another one by now.
    #[error("the object has changed")]
    Changed,
    /// The manifest is refused by the schema or a webhook.
    #[error("the manifest is refused: {}", .0.message)]
    Rejected(Rejection),
    /// The manifest is larger than the API server or etcd takes.
    #[error("the manifest is too large")]
    TooLarge,
    /// A `ResourceQuota` has no room, in the API server's words.
    #[error("the quota is used up: {0}")]
    QuotaExceeded(String),
    /// Nothing can be made in a namespace that is being deleted.
    #[error("the namespace is being deleted")]
    NamespaceTerminating,
    /// The token of a list's next page is too old.
    #[error("the continue token has expired")]
    ContinueExpired,
    /// Something else in the request is refused, in the API server's words.
    #[error("the request is refused: {0}")]
    BadRequest(String),
    /// The cluster does not know us, or does not let us do this.
    #[error("the cluster denies access")]
    Denied(#[source] Box<Status>),
    /// The namespace or the `PyTorchJob` resource is absent, or the operator's webhook does not answer.
    #[error("the cluster is not ready")]
    NotReady(#[source] Box<Status>),
    /// Priority and fairness turned the request away; it had no effect.
    #[error("the cluster throttles")]
    Throttled {
        /// How long the API server asks us to wait.
        retry_after_seconds: Option<u32>,
        /// Its answer.
        #[source]
        status: Box<Status>,
    },
    /// The API server is overloaded or starting.
    #[error("the cluster is busy")]
    Busy(#[source] Box<Status>),
    /// The API server does not answer.
    #[error("the cluster cannot be reached")]
    Unreachable(#[source] Box<kube::Error>),
    /// The call took longer than its budget; it may have had its effect.
    #[error("the cluster did not answer in time")]
    TimedOut(
        /// The API server's answer, where it was the API server that gave up.
        #[source]
        Option<Box<Status>>,
    ),
    /// The cluster's endpoint or our token cannot be had.
    #[error("cannot sign in to the cluster")]
    SignIn(#[source] EndpointError),
    /// Anything else.
    #[error("the cluster answered unexpectedly")]
    Unexpected(#[source] Box<kube::Error>),
}

/// Why a manifest is refused, in the API server's words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rejection {
    /// The whole sentence.
    pub message: String,
    /// Paths in the manifest and what is wrong there.
    pub causes: Vec<(String, String)>,
}

// === impl Rejection ===

impl Rejection {
    fn of(status: Status) -> Self {
        let causes = status.details.map(|details| details.causes).unwrap_or_default();
        let causes = causes.into_iter().map(|cause| (cause.field, cause.message)).collect();
        Self { message: status.message, causes }
    }
}

// === impl ClusterError ===

impl ClusterError {
    /// Whether a write may have had its effect although no good answer came: a gateway time-out may come after it.
    #[must_use]
    pub fn is_ambiguous(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::TimedOut(_) | Self::Busy(_) | Self::Unexpected(_) => true,
            Self::NotFound
            | Self::AlreadyExists
            | Self::Changed
            | Self::Rejected(_)
            | Self::TooLarge
            | Self::QuotaExceeded(_)
            | Self::NamespaceTerminating
            | Self::ContinueExpired
            | Self::BadRequest(_)
            | Self::Denied(_)
            | Self::NotReady(_)
            | Self::Throttled { .. }
            | Self::SignIn(_) => false,
        }
    }

    fn of_status(status: Box<Status>) -> Self {
        let message = status.message.as_str();
        match (status.code, status.reason.as_str()) {
            // The resource or the namespace is absent, not the job.
            (404, _)
                if message == "404 page not found"
                    || message.contains("the server could not find the requested resource")
                    || message.starts_with("namespaces ") =>
            {
                Self::NotReady(status)
            }
            (404, _) => Self::NotFound,
            (409, "AlreadyExists") => Self::AlreadyExists,
            (409, _) => Self::Changed,
            (410, _) => Self::ContinueExpired,
            // A token of another cluster, or of this one before it was restored from a backup.
            _ if message.contains("Too large resource version") => Self::ContinueExpired,
            // A webhook's or a policy's refusal is a 403 too, and only its words tell it from RBAC's; so are the next two.
            (403, _) if message.starts_with("admission webhook ") || is_of_policy(message) => {
                Self::Rejected(Rejection::of(*status))
            }
            (403, _) if message.contains("exceeded quota") => Self::QuotaExceeded(status.message),
            (403, _) if message.contains("because it is being terminated") => Self::NamespaceTerminating,
            (413, _) => Self::TooLarge,
            (422, _) => Self::Rejected(Rejection::of(*status)),
            (400, _) => Self::BadRequest(status.message),
            (401 | 403, _) => Self::Denied(status),
            (500, _) if message.contains("failed calling webhook") => Self::NotReady(status),
            (500, _) if message.contains("request is too large") => Self::TooLarge,
            (429, _) => {
                let seconds = status.details.as_ref().map(|details| details.retry_after_seconds);
                Self::Throttled { retry_after_seconds: seconds.filter(|seconds| *seconds > 0), status }
            }
            (503, _) => Self::Busy(status),
            (504, _) => Self::TimedOut(Some(status)),
            _ => Self::Unexpected(Box::new(kube::Error::Api(status))),
        }
    }
}

impl From<kube::Error> for ClusterError {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::of_status(status),
            kube::Error::HyperError(_) | kube::Error::Service(_) => Self::Unreachable(Box::new(error)),
            other => Self::Unexpected(Box::new(other)),
        }
    }
}

impl From<EndpointError> for ClusterError {
    fn from(error: EndpointError) -> Self {
        Self::SignIn(error)
    }
}

/// Whether no connection came about (nobody listens, or a certificate of another authority), so that nothing was sent.
pub(crate) fn is_not_connected(error: &kube::Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if error.downcast_ref().is_some_and(hyper_util::client::legacy::Error::is_connect) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Whether a `ValidatingAdmissionPolicy` speaks, after the API server's "<resource> \"<name>\" is forbidden: ".
fn is_of_policy(message: &str) -> bool {
    message.contains(" is forbidden: ValidatingAdmissionPolicy '") && message.contains(" denied request: ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(code: u16, reason: &str, message: &str) -> String {
        let status = Status { code, reason: reason.to_owned(), message: message.to_owned(), ..Status::default() };
        let error = ClusterError::from(kube::Error::Api(Box::new(status)));
        format!("{error:?}").split(['(', ' ', '{']).next().unwrap_or_default().to_owned()
    }

    #[tokio::test]
    async fn nobody_listening_is_told_from_a_broken_connection() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
        let config = kube::Config::new(format!("http://{free}").parse().expect("a URI"));
        let client = kube::Client::try_from(config).expect("a client");
        let error = client.apiserver_version().await.expect_err("nobody listens");
        assert!(is_not_connected(&error), "{error:?}");
        assert!(!is_not_connected(&kube::Error::Service("connection reset".into())));
    }

    #[test]
    fn answers_become_facts() {
        for (code, reason, message, fact) in [
            (404, "NotFound", r#"pytorchjobs.kubeflow.org "x" not found"#, "NotFound"),
            (404, "NotFound", r#"namespaces "training" not found"#, "NotReady"),
            (404, "Failed to parse error data", "404 page not found", "NotReady"),
            (404, "", "the server could not find the requested resource", "NotReady"),
            (409, "AlreadyExists", r#"pytorchjobs.kubeflow.org "x" already exists"#, "AlreadyExists"),
            (409, "Conflict", "Precondition failed: UID in precondition: a, UID in object meta: b", "Changed"),
            (403, "Forbidden", r#"admission webhook "validator.pytorchjob" denied the request: no"#, "Rejected"),
            (403, "Forbidden", r#"pytorchjobs.kubeflow.org is forbidden: User "x" cannot create"#, "Denied"),
            (
                403,
                "Forbidden",
                r#"pytorchjobs.kubeflow.org "x" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: no"#,
                "Rejected",
            ),
            (401, "Unauthorized", "Unauthorized", "Denied"),
            (422, "Invalid", "spec: Invalid value", "Rejected"),
            (429, "TooManyRequests", "too many requests, please try again later", "Throttled"),
            (503, "ServiceUnavailable", "storage is (re)initializing", "Busy"),
            (504, "Timeout", "request did not complete within the allotted timeout", "TimedOut"),
            (
                403,
                "Forbidden",
                r#"pytorchjobs.kubeflow.org "x" is forbidden: exceeded quota: q, requested"#,
                "QuotaExceeded",
            ),
            (
                403,
                "Forbidden",
                "unable to create new content in namespace x because it is being terminated",
                "NamespaceTerminating",
            ),
            (504, "Timeout", "Timeout: Too large resource version: 9, current: 1", "ContinueExpired"),
            (410, "Expired", "The provided continue parameter is too old", "ContinueExpired"),
            (413, "RequestEntityTooLarge", "limit is 3145728", "TooLarge"),
            (500, "", "etcdserver: request is too large", "TooLarge"),
            (400, "BadRequest", "invalid continue token", "BadRequest"),
            (500, "InternalError", "failed calling webhook \"validator\": connection refused", "NotReady"),
            (500, "InternalError", "etcd is gone", "Unexpected"),
        ] {
            assert_eq!(name(code, reason, message), fact, "{code} {message}");
        }
    }
}
