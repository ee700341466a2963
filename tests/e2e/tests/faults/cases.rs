//! The rows of the table: what goes wrong, who asks for what meanwhile, and what is answered.

const UNAUTHORIZED: &str = r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"Unauthorized","reason":"Unauthorized","code":401}"#;
const INTERNAL: &str = r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"etcdserver: leader changed","code":500}"#;
/// Priority and fairness answers in plain text.
const TOO_MANY: &str = "Too many requests, please try again later.\n";
/// So does the API server where it has no such resource.
const NO_RESOURCE: &str = "404 page not found\n";
const THROTTLED: &str = r#"{"__type":"ThrottlingException","message":"Rate exceeded"}"#;
const DENIED: &str = r#"{"__type":"AccessDeniedException","message":"not authorized to perform: eks:DescribeCluster"}"#;
const DENIED_S3: &str =
    "<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>";
const BUSY: &str = r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"storage is (re)initializing","reason":"ServiceUnavailable","code":503}"#;
const EXPIRED: &str =
    r#"{"__type":"ExpiredTokenException","message":"The security token included in the request is expired"}"#;
const EXPIRED_S3: &str =
    "<?xml version=\"1.0\"?><Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>";

pub(crate) const POLICY: &str = "no-jobs-in-training-faults";
pub(crate) const POLICY_SAYS: &str = "denied request: nobody trains here today";

/// What goes wrong.
pub(crate) enum Trouble {
    /// As `twin fault` is told.
    Told(&'static [&'static [&'static str]]),
    /// The same, for a function that has just started and knows nothing yet.
    ToldNew(&'static [&'static [&'static str]]),
    Nothing,
    /// The function's clock is off by so much, in the way that libfaketime reads it.
    Clock(&'static str),
    /// The certificate is another authority's, and EKS says so.
    OtherAuthority,
    OperatorStopped,
    NoRoleBinding,
    QuotaUsedUp,
    Terminating,
    SecretDeleted,
    SecretEmpty,
    /// A `ValidatingAdmissionPolicy` that refuses with this reason.
    Policy(&'static str),
}

/// Who asks for what.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ask {
    Submit,
    SubmitWhereNothingIs,
    DryRun,
    /// Of a finished job.
    Restart,
    /// After a stranger, for whom the secret has been looked at again.
    SubmitAfterStranger,
    /// A job's status.
    Read,
    Ready,
    /// Submit with a token that nobody knows.
    Stranger,
}

pub(crate) struct Case {
    pub(crate) fault: &'static str,
    pub(crate) trouble: Trouble,
    pub(crate) ask: Ask,
    /// Codes, or statuses of good answers; each is right.
    pub(crate) expected: &'static [&'static str],
    /// Stands in the answer.
    pub(crate) says: &'static str,
    pub(crate) retry_after: Option<&'static str>,
    /// Whether trying again is of no use.
    pub(crate) is_final: bool,
}

pub(crate) const CASES: &[Case] = &[
    case("API server down", Trouble::Told(&[&["cluster", "refuse"]]), Ask::Submit, &["cluster_unavailable"]),
    case("API server down", Trouble::Told(&[&["cluster", "refuse"]]), Ask::Read, &["cluster_unavailable"]),
    case("slow: every answer 20 s", Trouble::Told(&[&["cluster", "slow", "20"]]), Ask::Submit, &["cluster_timeout"]),
    case("slow: every answer 20 s", Trouble::Told(&[&["cluster", "slow", "20"]]), Ask::Read, &["cluster_timeout"]),
    case("slow: writes 20 s", Trouble::Told(&[&["cluster", "slow", "20", "--method", "POST"]]), Ask::Submit, &["201"]),
    case(
        "slow: writes 20 s, and cut after that",
        Trouble::Told(&[
            &["cluster", "slow", "20", "--method", "POST"],
            // The first one finds no job.
            &["cluster", "cut", "--method", "GET", "--path", "/pytorchjobs/", "--after", "1"],
        ]),
        Ask::Submit,
        &["cluster_timeout"],
    ),
    case(
        "slow: cluster 7 s, AWS 2 s",
        // Each call is in time, and all together are not.
        Trouble::Told(&[&["cluster", "slow", "7"], &["aws", "slow", "2"]]),
        Ask::Submit,
        &["cluster_timeout"],
    ),
    case(
        "429 with Retry-After",
        Trouble::Told(&[&["cluster", "answer", "429", "--header", "Retry-After: 7", "--body", TOO_MANY]]),
        Ask::Submit,
        &["throttled"],
    )
    .retry_after("7"),
    case("500", Trouble::Told(&[&["cluster", "answer", "500", "--body", INTERNAL]]), Ask::Submit, &["cluster_error"]),
    case("webhook down", Trouble::OperatorStopped, Ask::Submit, &["cluster_not_ready"]),
    case("webhook down", Trouble::OperatorStopped, Ask::DryRun, &["cluster_not_ready"]),
    case("policy refuses: Invalid", Trouble::Policy("Invalid"), Ask::Submit, &["rejected_by_cluster"])
        .says(POLICY_SAYS),
    case("policy refuses: Forbidden", Trouble::Policy("Forbidden"), Ask::Submit, &["rejected_by_cluster"])
        .says(POLICY_SAYS),
    // RBAC comes first: a namespace that does not exist has no Role in it.
    case("namespace missing", Trouble::Nothing, Ask::SubmitWhereNothingIs, &["cluster_denied"]),
    case("RBAC missing", Trouble::NoRoleBinding, Ask::Submit, &["cluster_denied"]),
    case("quota used up", Trouble::QuotaUsedUp, Ask::Submit, &["quota_exceeded"]),
    case("namespace terminating", Trouble::Terminating, Ask::Submit, &["namespace_terminating"]),
    case(
        "CRD missing",
        Trouble::Told(&[&["cluster", "answer", "404", "--path", "/pytorchjobs", "--body", NO_RESOURCE]]),
        Ask::Submit,
        &["cluster_not_ready"],
    )
    .for_good(),
    case(
        "CRD missing",
        Trouble::Told(&[&["cluster", "answer", "404", "--path", "/pytorchjobs", "--body", NO_RESOURCE]]),
        Ask::Read,
        &["cluster_not_ready"],
    )
    .for_good(),
    case(
        "cluster token refused once",
        Trouble::Told(&[&["cluster", "answer", "401", "--times", "1", "--body", UNAUTHORIZED]]),
        Ask::Submit,
        &["201"],
    ),
    case(
        "cluster token refused always",
        Trouble::Told(&[&["cluster", "answer", "401", "--body", UNAUTHORIZED]]),
        Ask::Submit,
        &["cluster_denied"],
    ),
    case(
        "credentials expired",
        Trouble::Told(&[
            &["cluster", "answer", "401", "--body", UNAUTHORIZED],
            &["aws", "answer", "400", "--service", "secretsmanager", "--body", EXPIRED],
            &["aws", "answer", "400", "--service", "eks", "--body", EXPIRED],
            &["aws", "answer", "400", "--service", "s3", "--body", EXPIRED_S3],
        ]),
        Ask::Submit,
        &["cluster_denied"],
    ),
    // A kept connection breaks while nobody looks; what changes nothing is asked once more.
    case(
        "connection cut once",
        Trouble::Told(&[&["cluster", "cut", "--method", "GET", "--times", "1"]]),
        Ask::Read,
        &["200"],
    ),
    case(
        "API server busy once",
        Trouble::Told(&[&["cluster", "answer", "503", "--times", "1", "--body", BUSY]]),
        Ask::Read,
        &["200"],
    ),
    case(
        "API server busy",
        Trouble::Told(&[&["cluster", "answer", "503", "--body", BUSY]]),
        Ask::Read,
        &["cluster_unavailable"],
    ),
    case(
        "EKS denies, cold start",
        Trouble::ToldNew(&[&["aws", "answer", "403", "--service", "eks", "--body", DENIED]]),
        Ask::Submit,
        &["cluster_denied"],
    ),
    case(
        "EKS slow: 20 s, cold start",
        Trouble::ToldNew(&[&["aws", "slow", "20", "--service", "eks"]]),
        Ask::Submit,
        &["cluster_unavailable"],
    ),
    case(
        "Secrets Manager down, cold start",
        Trouble::ToldNew(&[&["aws", "cut", "--service", "secretsmanager"]]),
        Ask::Submit,
        &["auth_unavailable"],
    ),
    case(
        "Secrets Manager slow: 20 s, cold start",
        Trouble::ToldNew(&[&["aws", "slow", "20", "--service", "secretsmanager"]]),
        Ask::Submit,
        &["auth_unavailable"],
    ),
    // AWS tells its time, by which the SDK signs; the token for the cluster has the function's own, and lives 15 minutes.
    case("clock 20 minutes fast", Trouble::Clock("+20m"), Ask::Submit, &["cluster_denied"]),
    case("clock 20 minutes slow", Trouble::Clock("-20m"), Ask::Submit, &["cluster_denied"]),
    case("clock 2 minutes slow", Trouble::Clock("-2m"), Ask::Submit, &["201"]),
    case(
        "certificate authority changed",
        Trouble::Told(&[&["cluster", "authority"]]),
        Ask::Submit,
        &["cluster_unavailable"],
    ),
    case("certificate authority changed, EKS says so", Trouble::OtherAuthority, Ask::Submit, &["201"]),
    case(
        "cut after the write",
        Trouble::Told(&[&["cluster", "lose", "--method", "POST", "--times", "1"]]),
        Ask::Submit,
        &["201"],
    ),
    case(
        "cut after every answer",
        Trouble::Told(&[&["cluster", "lose", "--path", "/pytorchjobs"]]),
        Ask::Submit,
        &["cluster_unavailable"],
    ),
    // The first deletion and the first creation are dry runs.
    case(
        "cut after the deletion",
        Trouble::Told(&[&["cluster", "lose", "--method", "DELETE", "--after", "1", "--times", "1"]]),
        Ask::Restart,
        &["201"],
    ),
    case(
        "cut after the write",
        Trouble::Told(&[&["cluster", "lose", "--method", "POST", "--after", "1", "--times", "1"]]),
        Ask::Restart,
        &["201"],
    ),
    case(
        "cut after a write into S3",
        Trouble::Told(&[&["aws", "lose", "--service", "s3", "--method", "PUT", "--times", "1"]]),
        Ask::Submit,
        &["201"],
    ),
    case("S3 down", Trouble::Told(&[&["aws", "cut", "--service", "s3"]]), Ask::Submit, &["storage_unavailable"]),
    case(
        "S3 denies",
        Trouble::Told(&[&["aws", "answer", "403", "--service", "s3", "--body", DENIED_S3]]),
        Ask::Submit,
        &["storage_unavailable"],
    )
    .for_good(),
    case("S3 down", Trouble::Told(&[&["aws", "cut", "--service", "s3"]]), Ask::Ready, &["503"])
        .says("storage_unavailable"),
    case(
        "S3 slow: 20 s",
        Trouble::Told(&[&["aws", "slow", "20", "--service", "s3"]]),
        Ask::Submit,
        &["storage_timeout"],
    ),
    case(
        "Secrets Manager down",
        Trouble::Told(&[&["aws", "cut", "--service", "secretsmanager"]]),
        Ask::Stranger,
        &["auth_unavailable"],
    ),
    // What the secret said last counts for ten minutes.
    case(
        "Secrets Manager down",
        Trouble::Told(&[&["aws", "cut", "--service", "secretsmanager"]]),
        Ask::Submit,
        &["201"],
    ),
    case(
        "Secrets Manager throttled",
        Trouble::Told(&[&["aws", "answer", "400", "--service", "secretsmanager", "--body", THROTTLED]]),
        Ask::Stranger,
        &["auth_unavailable"],
    ),
    case(
        "Secrets Manager denies",
        Trouble::Told(&[&["aws", "answer", "400", "--service", "secretsmanager", "--body", DENIED]]),
        Ask::Stranger,
        &["auth_unavailable"],
    )
    .for_good(),
    case("secret deleted", Trouble::SecretDeleted, Ask::Stranger, &["auth_unavailable"]).for_good(),
    case("secret deleted", Trouble::SecretDeleted, Ask::SubmitAfterStranger, &["auth_unavailable"]).for_good(),
    case("secret empty", Trouble::SecretEmpty, Ask::SubmitAfterStranger, &["auth_unavailable"]).for_good(),
];

const fn case(fault: &'static str, trouble: Trouble, ask: Ask, expected: &'static [&'static str]) -> Case {
    Case { fault, trouble, ask, expected, says: "", retry_after: None, is_final: false }
}

// === impl Case ===

impl Case {
    const fn says(self, says: &'static str) -> Self {
        Self { says, ..self }
    }

    const fn for_good(self) -> Self {
        Self { is_final: true, ..self }
    }

    const fn retry_after(self, seconds: &'static str) -> Self {
        Self { retry_after: Some(seconds), ..self }
    }
}
