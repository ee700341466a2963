//! Names that several parts of the twin have to agree on.

/// The AWS region and account of everything in `MiniStack`.
pub(crate) const REGION: &str = "us-east-1";
pub(crate) const ACCOUNT: &str = "000000000000";
/// The name of the cluster in EKS.
pub(crate) const CLUSTER_NAME: &str = "training";
/// The namespace of a job that names none.
pub(crate) const NAMESPACE: &str = "training";
/// Further namespaces that a job may name. Tests use them for a list of jobs, for many jobs, and for faults.
pub(crate) const FURTHER_NAMESPACES: [&str; 3] = ["training-two", "training-list", "training-faults"];
pub(crate) const TRAINER_IMAGE: &str = "trainer:local";
pub(crate) const TRAINER_ROLE_ARN: &str = "arn:aws:iam::000000000000:role/trainer";
