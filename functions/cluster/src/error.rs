//! What an answer of the API server means. Rules and texts: Kubernetes 1.36 and controller-runtime's webhooks.

use kube::core::Status;
use thiserror::Error;

use crate::access::EndpointError;

/// What Kubernetes' `NewInternalError` puts before the cause.
const INTERNAL_ERROR: &str = "Internal error occurred: ";

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
    /// What was asked for is refused by the schema, a webhook or a policy.
    #[error("the cluster refuses it: {}", .0.message)]
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
    /// The API server asks to be asked later: priority and fairness turned the request away, or an admission plugin lost a
    /// race or is not ready. It had no effect.
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

/// Why a manifest or a change is refused, in the API server's words.
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
        // Before its number and its reason: whoever denies may choose any of them.
        if is_denial(message) {
            return Self::Rejected(Rejection::of(*status));
        }
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
            // Creations that count against one quota at the same moment; not the job's own conflict.
            (409, _) if message.starts_with("Operation cannot be fulfilled on resourcequotas ") => Self::later(status),
            (409, _) => Self::Changed,
            (410, _) => Self::ContinueExpired,
            // A token of another cluster, or of this one before it was restored from a backup.
            _ if message.contains("Too large resource version") => Self::ContinueExpired,
            (403, _) => Self::of_forbidden(status),
            (413, _) => Self::TooLarge,
            (422, _) => Self::Rejected(Rejection::of(*status)),
            (400, _) => Self::BadRequest(status.message),
            (401, _) => Self::Denied(status),
            (500, _) if without(message, INTERNAL_ERROR).starts_with("failed calling webhook ") => {
                Self::NotReady(status)
            }
            (500, _) if message.contains("request is too large") => Self::TooLarge,
            (429, _) => Self::later(status),
            (503, _) => Self::Busy(status),
            (504, _) => Self::TimedOut(Some(status)),
            _ => Self::Unexpected(Box::new(kube::Error::Api(status))),
        }
    }

    fn later(status: Box<Status>) -> Self {
        let seconds = status.details.as_ref().map(|details| details.retry_after_seconds);
        Self::Throttled { retry_after_seconds: seconds.filter(|seconds| *seconds > 0), status }
    }

    /// The authorizer answers 403, and so do the API server's own admission plugins; only their words tell them apart.
    fn of_forbidden(status: Box<Status>) -> Self {
        let message = status.message.as_str();
        let reason = reason_of_forbidden(message);
        let said = reason.unwrap_or(message);
        if said.starts_with("exceeded quota: ") {
            Self::QuotaExceeded(status.message)
        } else if said.starts_with("unable to create new content in namespace ") {
            Self::NamespaceTerminating
        } else if said.starts_with("status unknown for quota: ") || said == "not yet ready to handle request" {
            // The quota is new, or the API server has just started: of resourcequota's and the lifecycle's admission.
            Self::later(status)
        } else if reason.is_some_and(|reason| !reason.starts_with("User ")) {
            Self::Rejected(Rejection::of(*status))
        } else {
            Self::Denied(status)
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

/// Whether an admission webhook or policy denies the request. Only the message's beginning says so: what follows it quotes
/// whom it likes. Sources: `ToStatusErr` and `NewDryRunUnsupportedErr` of k8s.io/apiserver's webhook plugin, and its
/// `ValidatingAdmissionPolicy` plugin. A webhook that cannot be asked because the run is a dry one refuses it as well.
pub(crate) fn is_denial(message: &str) -> bool {
    let said = reason_of_forbidden(message).unwrap_or_else(|| without(message, INTERNAL_ERROR));
    if let Some(verb) = after_quoted(said, "admission webhook ", '"') {
        return verb.starts_with(" denied the request") || verb.starts_with(" does not support dry run");
    }
    after_quoted(said, "ValidatingAdmissionPolicy ", '\'')
        // A policy that cannot be evaluated denies without a binding.
        .map(|rest| after_quoted(rest, " with binding ", '\'').unwrap_or(rest))
        .is_some_and(|verb| verb.starts_with(" denied request: "))
}

/// Why something is forbidden: what follows `<resource> "<name>" is forbidden: `, where the name may be missing.
fn reason_of_forbidden(message: &str) -> Option<&str> {
    let (object, reason) = message.split_once(" is forbidden: ")?;
    let (resource, name) = object.split_once(' ').unwrap_or((object, r#""""#));
    let name = name.strip_prefix('"').and_then(|name| name.strip_suffix('"'))?;
    let is_plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-/".contains(&byte));
    (is_plain(resource) && is_plain(name)).then_some(reason)
}

/// What follows a word and a quoted name.
fn after_quoted<'a>(text: &'a str, word: &str, quote: char) -> Option<&'a str> {
    text.strip_prefix(word)?.strip_prefix(quote)?.split_once(quote).map(|(_, rest)| rest)
}

fn without<'a>(message: &'a str, prefix: &str) -> &'a str {
    message.strip_prefix(prefix).unwrap_or(message)
}

/// Whether the same request may well be answered the next moment: its connection broke, or the API server is busy and
/// does not say for how long.
pub(crate) fn is_transient(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) => matches!(status.code, 503 | 504),
        kube::Error::HyperError(_) | kube::Error::Service(_) => !is_not_connected(error),
        _ => false,
    }
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
            (
                409,
                "Conflict",
                r#"Operation cannot be fulfilled on resourcequotas "q": the object has been modified; please apply your changes to the latest version and try again"#,
                "Throttled",
            ),
            (
                403,
                "Forbidden",
                r#"pytorchjobs.kubeflow.org "x" is forbidden: status unknown for quota: q, resources: count/pytorchjobs.kubeflow.org"#,
                "Throttled",
            ),
            (
                403,
                "Forbidden",
                r#"pytorchjobs.kubeflow.org "x" is forbidden: not yet ready to handle request"#,
                "Throttled",
            ),
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

    /// Texts as the engines and the API server write them; codes and reasons as they answer, or may. A webhook's code
    /// below 400, or none, is made 400 by the API server.
    #[test]
    fn a_policys_denial_is_a_denial_whatever_number_it_carries() {
        let kyverno = "admission webhook \"validate.kyverno.svc-fail\" denied the request: \n\nresource \
                       PyTorchJob/training/hf-r was blocked due to the following policies \n\nrequire-labels:\n  \
                       check-for-labels: 'validation error: The label `cost-center` is required. rule check-for-labels failed \
                       at path /metadata/labels/cost-center/'\n";
        let gatekeeper = r#"admission webhook "validation.gatekeeper.sh" denied the request: [must-have-owner] you must provide labels: {"owner"}"#;
        let kubewarden = r#"admission webhook "clusterwide-safe-labels.kubewarden.admission" denied the request: Unsafe label: cost-center"#;
        let operator = r#"admission webhook "validator.pytorchjob.training-operator.kubeflow.org" denied the request: spec.pytorchReplicaSpecs: Required value"#;
        let silent = r#"admission webhook "validate.policy.example.com" denied the request without explanation"#;
        let quoting = r#"admission webhook "validate.policy.example.com" denied the request: exceeded quota: the job "x" is forbidden: failed calling webhook "y""#;
        let policy = r#"pytorchjobs.kubeflow.org "hf-r" is forbidden: ValidatingAdmissionPolicy 'cost-center' with binding 'all' denied request: cost-center is required"#;
        let broken = r#"pytorchjobs.kubeflow.org "hf-r" is forbidden: ValidatingAdmissionPolicy 'cost-center' denied request: failed to configure policy: no params found"#;
        let dry_run = r#"admission webhook "mutate.policy.example.com" does not support dry run"#;
        let quota = r#"pytorchjobs.kubeflow.org "hf-r" is forbidden: failed quota: compute: must specify limits.cpu for: pytorch"#;
        let limit_range = r#"pods "hf-r-master-0" is forbidden: [maximum cpu usage per Container is 8, but limit is 32, maximum memory usage per Container is 64Gi, but limit is 256Gi]"#;
        let pod_security = r#"pods "hf-r-master-0" is forbidden: violates PodSecurity "restricted:latest": allowPrivilegeEscalation != false (container "pytorch" must set securityContext.allowPrivilegeEscalation=false)"#;
        let priority = r#"pods "hf-r-master-0" is forbidden: no PriorityClass with name high was found"#;
        for (message, answers) in [
            (kyverno, [(400, ""), (400, "BadRequest"), (403, "Forbidden")].as_slice()),
            (gatekeeper, &[(403, "Forbidden"), (403, "[must-have-owner] you must provide labels"), (422, "")]),
            (kubewarden, &[(400, ""), (403, ""), (500, "")]),
            (operator, &[(403, "Forbidden"), (422, "Invalid"), (500, "InternalError")]),
            (silent, &[(400, ""), (401, "Unauthorized"), (404, "NotFound"), (409, "AlreadyExists"), (409, "Conflict")]),
            (
                quoting,
                &[(400, ""), (403, "Forbidden"), (410, "Gone"), (413, ""), (429, ""), (500, ""), (503, ""), (504, "")],
            ),
            (policy, &[(422, "Invalid"), (403, "Forbidden"), (401, "Unauthorized"), (413, "RequestEntityTooLarge")]),
            (broken, &[(422, "Invalid")]),
            (dry_run, &[(400, "BadRequest")]),
            (quota, &[(403, "Forbidden")]),
            (limit_range, &[(403, "Forbidden")]),
            (pod_security, &[(403, "Forbidden")]),
            (priority, &[(403, "Forbidden")]),
        ] {
            for (code, reason) in answers {
                let status = Status {
                    code: *code,
                    reason: (*reason).to_owned(),
                    message: message.to_owned(),
                    ..Status::default()
                };
                let error = ClusterError::from(kube::Error::Api(Box::new(status)));
                let is_refused =
                    matches!(&error, ClusterError::Rejected(rejection) if rejection.message.contains(message));
                assert!(is_refused && !error.is_ambiguous(), "{code} {reason} {message}: {error:?}");
            }
        }
    }

    #[test]
    fn what_only_quotes_a_denial_is_none() {
        let denial = r#"admission webhook "w" denied the request: no"#;
        for (code, reason, message, fact) in [
            (500, "InternalError", format!("Internal error occurred: failed calling webhook \"w\": {denial}"), "NotReady"),
            (500, "InternalError", format!("etcd: {denial}"), "Unexpected"),
            (503, "ServiceUnavailable", format!("not {denial}"), "Busy"),
            (403, "Forbidden", format!(r#"pytorchjobs.kubeflow.org is forbidden: User "{denial}" cannot create"#), "Denied"),
            (403, "Forbidden", format!(r#"pytorchjobs.kubeflow.org "x is forbidden: {denial}" is forbidden: User "u" cannot"#), "Denied"),
            (403, "Forbidden", format!("forbidden: User \"u\" cannot get path \"/{denial}\""), "Denied"),
            (409, "AlreadyExists", format!("pytorchjobs.kubeflow.org \"{denial}\" already exists"), "AlreadyExists"),
            (404, "NotFound", format!("pytorchjobs.kubeflow.org \"{denial}\" not found"), "NotFound"),
            (500, "InternalError", r#"Internal error occurred: admission webhook "w" attempted to modify the object, which is not supported for this operation"#.to_owned(), "Unexpected"),
        ] {
            assert_eq!(name(code, reason, &message), fact, "{code} {message}");
        }
    }
}
