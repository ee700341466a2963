//! The answer of `POST /train?dry_run=true`: what would be answered, and the manifest that would be created.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
#[cfg(feature = "schema")]
use schemars::JsonSchema;
use serde::Serialize;
#[cfg(feature = "schema")]
use serde_json::{Map, Value};

use crate::job::{pytorchjob::PyTorchJob, status::TrainingJobStatus};

/// What a real request would do.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub struct DryRun {
    /// The job's status as the real request would answer it.
    #[serde(flatten)]
    pub job: TrainingJobStatus,
    /// Always true: nothing was created.
    pub dry_run: bool,
    /// The HTTP status that the real request would be answered with: 201 when it creates the job, 200 when it is a replay.
    pub would_answer: u16,
    /// The job as it would be created; only the submission id would be another.
    #[cfg_attr(feature = "schema", schemars(with = "Map<String, Value>"))]
    pub manifest: PyTorchJob,
}

// === impl DryRun ===

impl DryRun {
    /// The answer for a job that the API server accepted, without what only the API server sets.
    #[must_use]
    pub fn new(job: TrainingJobStatus, would_answer: u16, accepted: PyTorchJob) -> Self {
        let metadata = ObjectMeta {
            name: accepted.metadata.name,
            namespace: accepted.metadata.namespace,
            labels: accepted.metadata.labels,
            annotations: accepted.metadata.annotations,
            ..ObjectMeta::default()
        };
        Self { job, dry_run: true, would_answer, manifest: PyTorchJob::new(metadata, accepted.spec) }
    }
}
