//! The `PyTorchJob` resource of Kubeflow's training operator (`kubeflow.org/v1`), as far as the platform writes and reads it.
//!
//! Source: the CRD of training-operator v1.9.4. Defaults are applied in the operator's memory only, so a job that is read
//! holds what was sent.

use std::{borrow::Cow, collections::BTreeMap};

use k8s_openapi::{
    NamespaceResourceScope,
    api::core::v1::PodTemplateSpec,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use serde::{Deserialize, Serialize};

/// Labels and annotations that the platform sets on a job; the labels also on its pods.
pub mod key {
    /// Label: the framework.
    pub const FRAMEWORK: &str = "trainer.deepfinery/framework";
    /// Label: the run id.
    pub const RUN_ID: &str = "trainer.deepfinery/run-id";
    /// Annotation: the submission id.
    pub const SUBMISSION: &str = "trainer.deepfinery/submission";
    /// Annotation: the run's prefix in the runs bucket.
    pub const CHECKPOINT_PREFIX: &str = "trainer.deepfinery/checkpoint-prefix";
    /// Annotation: digests of the request's fields, by which a repeated request is known.
    pub const REQUEST: &str = "trainer.deepfinery/request";
    /// Annotation: the id of the token that asked for the job.
    pub const SUBMITTED_BY: &str = "trainer.deepfinery/submitted-by";
    /// Prefix of all keys that are the platform's own.
    pub const PLATFORM_PREFIX: &str = "trainer.deepfinery/";
    /// Label: the queue of Kueue that decides when the job runs.
    pub const QUEUE: &str = "kueue.x-k8s.io/queue-name";
    /// Label that the operator puts on each pod: the job's name.
    pub const OPERATOR_JOB_NAME: &str = "training.kubeflow.org/job-name";
    /// Label that the operator puts on each pod: `master` or `worker`.
    pub const OPERATOR_REPLICA_TYPE: &str = "training.kubeflow.org/replica-type";
}

/// The container that the operator's webhook insists on and whose environment it completes.
pub const CONTAINER: &str = "pytorch";

/// Name of the `PodTemplate` in which a cluster's owner keeps what every training pod of a namespace gets.
pub const PLATFORM_DEFAULTS: &str = "training-defaults";

/// A training job: one Master pod and any number of Worker pods.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PyTorchJob {
    /// Always `kubeflow.org/v1`.
    pub api_version: Cow<'static, str>,
    /// Always `PyTorchJob`.
    pub kind: Cow<'static, str>,
    /// Name, labels, annotations.
    pub metadata: ObjectMeta,
    /// What is wanted.
    #[serde(default)]
    pub spec: PyTorchJobSpec,
    /// What the operator reports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<JobStatus>,
}

/// What is wanted of a job.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PyTorchJobSpec {
    /// Processes a pod, as text: a JSON number is refused by the schema.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nproc_per_node: Option<String>,
    /// Limits and cleaning.
    pub run_policy: RunPolicy,
    /// The pods.
    pub pytorch_replica_specs: ReplicaSpecs,
}

/// Limits and cleaning.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RunPolicy {
    /// Which pods are deleted when the job ends: None, Running, All.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clean_pod_policy: Option<String>,
    /// The job fails when its running pods' containers have restarted this often together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backoff_limit: Option<i32>,
    /// The job is deleted this long after its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl_seconds_after_finished: Option<i32>,
    /// The job fails when it has been active this long; looked at only when something else happens to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active_deadline_seconds: Option<i64>,
    /// Whether the job has no pods for now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suspend: Option<bool>,
    /// Who looks after the job, when it is not the operator.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub managed_by: Option<String>,
}

/// The two kinds of replica that the webhook allows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ReplicaSpecs {
    /// The pod of node rank 0; the job succeeds when it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub master: Option<ReplicaSpec>,
    /// All further pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker: Option<ReplicaSpec>,
}

/// Equal pods.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReplicaSpec {
    /// Number of pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
    /// Always, `OnFailure`, Never, `ExitCode`; overwrites the template's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restart_policy: Option<String>,
    /// The pod.
    pub template: PodTemplateSpec,
}

/// What the operator reports.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct JobStatus {
    /// Created, Running, Restarting, Succeeded, Failed, Suspended; several stand together.
    pub conditions: Option<Vec<JobCondition>>,
    /// Counts by replica type, `Master` and `Worker`; zero counts are left out.
    pub replica_statuses: Option<BTreeMap<String, ReplicaStatus>>,
    /// When the operator first saw the job, or resumed it.
    pub start_time: Option<Time>,
    /// When it succeeded or failed.
    pub completion_time: Option<Time>,
}

/// One condition of a job.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct JobCondition {
    /// Which condition.
    pub r#type: String,
    /// True, False or Unknown.
    pub status: String,
    /// A word for machines.
    pub reason: Option<String>,
    /// A sentence for people.
    pub message: Option<String>,
}

/// Counts of one replica type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReplicaStatus {
    /// Pods that are pending or running.
    pub active: i32,
    /// Pods that ended well.
    pub succeeded: i32,
    /// Pods that failed.
    pub failed: i32,
}

// === impl PyTorchJob ===

impl PyTorchJob {
    /// A job with this metadata and specification.
    #[must_use]
    pub fn new(metadata: ObjectMeta, spec: PyTorchJobSpec) -> Self {
        use k8s_openapi::Resource;
        Self { api_version: Self::API_VERSION.into(), kind: Self::KIND.into(), metadata, spec, status: None }
    }

    /// Whether the operator made this pod or service for this very job, not for another one of its name.
    #[must_use]
    pub fn owns(&self, metadata: &ObjectMeta) -> bool {
        metadata.owner_references.iter().flatten().any(|owner| Some(&owner.uid) == self.metadata.uid.as_ref())
    }

    /// The value of a label.
    #[must_use]
    pub fn label(&self, key: &str) -> Option<&str> {
        self.metadata.labels.as_ref()?.get(key).map(String::as_str)
    }

    /// The value of an annotation.
    #[must_use]
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.metadata.annotations.as_ref()?.get(key).map(String::as_str)
    }
}

impl k8s_openapi::Resource for PyTorchJob {
    const API_VERSION: &'static str = "kubeflow.org/v1";
    const GROUP: &'static str = "kubeflow.org";
    const KIND: &'static str = "PyTorchJob";
    const VERSION: &'static str = "v1";
    const URL_PATH_SEGMENT: &'static str = "pytorchjobs";
    type Scope = NamespaceResourceScope;
}

impl k8s_openapi::Metadata for PyTorchJob {
    type Ty = ObjectMeta;

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn metadata_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}
