//! What became of a job, told from the operator's conditions, the pods and the trainer's progress.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
#[cfg(feature = "schema")]
use k8s_openapi::jiff::Timestamp;
#[cfg(feature = "schema")]
use schemars::JsonSchema;
use serde::Serialize;
use training_run::{entry::IndexEntry, marker::State, names::Submission, progress::Progress};

use crate::{
    access::{namespaces::Namespaces, token::is_id},
    api::{
        links::{Links, PageLinks},
        problem::FieldError,
    },
    job::{
        diagnosis::Diagnosis,
        pytorchjob::{JobCondition, PyTorchJob, ReplicaStatus, key},
    },
};

/// The four words of the original contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Accepted; nothing trains yet.
    Submitted,
    /// Training, or about to resume after a restart.
    Running,
    /// Ended badly.
    Failed,
    /// Ended well.
    Succeeded,
}

/// The finer word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub enum Phase {
    /// No pod of rank 0 has run yet.
    Pending,
    /// The pod of rank 0 runs.
    Running,
    /// A pod was lost and is made again.
    Restarting,
    /// Held back.
    Suspended,
    /// Ended well.
    Succeeded,
    /// Ended badly.
    Failed,
}

/// A job as a list shows it; the first five fields are the original's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub struct JobSummary {
    /// Name of the job.
    pub name: String,
    /// The coarse word.
    pub status: Status,
    /// A sentence for a person.
    pub detail: String,
    /// The framework; null for a job that the platform did not make.
    pub framework: Option<String>,
    /// The run id; null for a job that the platform did not make.
    pub run_id: Option<String>,
    /// The finer word.
    pub phase: Phase,
    /// The operator's reason of the condition that decided.
    pub reason: Option<String>,
    /// Namespace of the job.
    pub namespace: Option<String>,
    /// The submission that made the job.
    pub submission: Option<String>,
    /// The id of the token that asked for the job, where tokens have ids.
    pub submitted_by: Option<String>,
    /// When the job was created.
    #[cfg_attr(feature = "schema", schemars(with = "Option<Timestamp>"))]
    pub created_at: Option<Time>,
    /// When the operator first saw it, or resumed it.
    #[cfg_attr(feature = "schema", schemars(with = "Option<Timestamp>"))]
    pub started_at: Option<Time>,
    /// When it ended.
    #[cfg_attr(feature = "schema", schemars(with = "Option<Timestamp>"))]
    pub finished_at: Option<Time>,
    /// Pods by type.
    pub replicas: Replicas,
    /// Where to read on.
    pub links: Links,
}

/// The answer of POST /train and GET /train/{name}: the summary, and what pods and bucket say of the job.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub struct TrainingJobStatus {
    /// The fields that a list has too.
    #[serde(flatten)]
    pub summary: JobSummary,
    /// How often the trainer has started, as its progress says.
    pub attempts: Option<u64>,
    /// The trainer's newest progress.
    pub progress: Option<Progress>,
    /// The newest complete checkpoint of this submission.
    pub checkpoints: Option<NewestCheckpoint>,
    /// What keeps the job from running, or why it failed; null when no reason is known.
    pub diagnosis: Option<Diagnosis>,
    /// What the default image's trainer would refuse of `extra_args`: in answers of POST alone, where there is something.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<FieldError>,
}

/// The answer of GET /train: some jobs in name order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub struct JobList {
    /// The jobs; a filter by status may leave fewer than asked for, or none, although more pages follow.
    pub jobs: Vec<JobSummary>,
    /// What to send as `?continue=` for the next page; null on the last one.
    pub r#continue: Option<String>,
    /// Where to read on.
    pub links: PageLinks,
}

/// Pods by type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub struct Replicas {
    /// The pod of node rank 0.
    pub master: ReplicaCounts,
    /// All others.
    pub worker: ReplicaCounts,
}

/// Pods of one type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub struct ReplicaCounts {
    /// Wanted.
    pub desired: i32,
    /// Pending or running.
    pub active: i32,
    /// Ended well.
    pub succeeded: i32,
    /// Failed.
    pub failed: i32,
}

/// The newest complete checkpoint of a submission.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub struct NewestCheckpoint {
    /// Its step.
    pub latest_step: u64,
    /// URI of its marker.
    pub latest_uri: String,
}

/// What the index says of a run, newest step first.
#[derive(Clone, Copy, Debug)]
pub struct Checkpoints<'a> {
    /// Bucket of the run.
    pub bucket: &'a str,
    /// The newest entries.
    pub entries: &'a [IndexEntry],
}

/// What a look for the trainer's progress has found.
#[derive(Clone, Debug)]
pub enum ProgressRead {
    /// Nobody looked, or what was found cannot be read.
    Unknown,
    /// No progress.
    Nothing,
    /// The newest progress.
    Found(Progress),
}

// === impl Status ===

impl Status {
    /// The word in answers and queries.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Submitted => "submitted",
            Self::Running => "running",
            Self::Failed => "failed",
            Self::Succeeded => "succeeded",
        }
    }
}

// === impl Phase ===

impl Phase {
    /// The coarse word.
    #[must_use]
    pub fn status(self) -> Status {
        match self {
            Self::Pending | Self::Suspended => Status::Submitted,
            Self::Running | Self::Restarting => Status::Running,
            Self::Succeeded => Status::Succeeded,
            Self::Failed => Status::Failed,
        }
    }

    /// Whether the job has ended.
    #[must_use]
    pub fn is_finished(self) -> bool {
        match self {
            Self::Succeeded | Self::Failed => true,
            Self::Pending | Self::Running | Self::Restarting | Self::Suspended => false,
        }
    }

    /// The phase of a job and the condition that decided it.
    ///
    /// Several conditions are "True" together (Restarting stays so after Failed), hence the order.
    #[must_use]
    pub fn of(job: &PyTorchJob) -> (Self, Option<&JobCondition>) {
        let conditions = job.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        let when =
            |name: &str| conditions.iter().find(|condition| condition.r#type == name && condition.status == "True");
        [
            (Self::Failed, "Failed"),
            (Self::Succeeded, "Succeeded"),
            (Self::Suspended, "Suspended"),
            (Self::Restarting, "Restarting"),
            (Self::Running, "Running"),
            (Self::Pending, "Created"),
        ]
        .into_iter()
        .find_map(|(phase, name)| when(name).map(|condition| (phase, Some(condition))))
        .unwrap_or((Self::Pending, None))
    }
}

// === impl JobSummary ===

impl JobSummary {
    /// Tell what the operator knows of a job.
    #[must_use]
    pub fn new(job: &PyTorchJob, namespaces: &Namespaces) -> Self {
        let (phase, condition) = Phase::of(job);
        let name = job.metadata.name.clone().unwrap_or_default();
        let status = job.status.as_ref();
        Self {
            status: phase.status(),
            detail: if job.metadata.deletion_timestamp.is_some() {
                "is being deleted: its name is free when its pods are gone".to_owned()
            } else {
                detail(phase, condition)
            },
            framework: job.label(key::FRAMEWORK).map(str::to_owned),
            run_id: job.label(key::RUN_ID).map(str::to_owned),
            phase,
            reason: condition.and_then(|condition| condition.reason.clone()),
            namespace: job.metadata.namespace.clone(),
            // Of jobs that other tools made, anything may stand there.
            submission: job
                .annotation(key::SUBMISSION)
                .filter(|text| text.parse::<Submission>().is_ok())
                .map(str::to_owned),
            submitted_by: job.annotation(key::SUBMITTED_BY).filter(|text| is_id(text)).map(str::to_owned),
            created_at: job.metadata.creation_timestamp.clone(),
            started_at: status.and_then(|status| status.start_time.clone()),
            finished_at: status.and_then(|status| status.completion_time.clone()),
            replicas: Replicas::of(job),
            links: Links::of(&name, job.metadata.namespace.as_deref(), namespaces),
            name,
        }
    }
}

// === impl TrainingJobStatus ===

impl TrainingJobStatus {
    /// Tell what became of a job. Progress and checkpoints of other submissions are left out. The diagnosis is that of its
    /// pods while it is not finished, and that of its attempts when it has failed.
    #[must_use]
    pub fn new(
        job: &PyTorchJob,
        namespaces: &Namespaces,
        diagnosis: Option<Diagnosis>,
        progress: ProgressRead,
        checkpoints: Option<Checkpoints<'_>>,
    ) -> Self {
        let mut summary = JobSummary::new(job, namespaces);
        let submission = summary.submission.as_deref();
        let was_read = !matches!(progress, ProgressRead::Unknown);
        let progress = match progress {
            ProgressRead::Found(progress) => {
                Some(progress).filter(|found| Some(found.submission.as_str()) == submission)
            }
            ProgressRead::Nothing | ProgressRead::Unknown => None,
        };
        let checkpoints = checkpoints.and_then(|Checkpoints { bucket, entries }| {
            let newest = newest_complete(entries, submission?)?;
            let latest_uri = format!("s3://{bucket}/{}", newest.marker_key);
            Some(NewestCheckpoint { latest_step: newest.step.get(), latest_uri })
        });
        if job.metadata.deletion_timestamp.is_none()
            && let Some(detail) = closer_detail(&summary, was_read, progress.as_ref(), diagnosis.as_ref())
        {
            summary.detail = detail;
        }
        let attempts = progress.as_ref().map(|progress| progress.attempt);
        Self { attempts, progress, checkpoints, diagnosis, summary, warnings: Vec::new() }
    }
}

// === impl Replicas ===

impl Replicas {
    fn of(job: &PyTorchJob) -> Self {
        let statuses = job.status.as_ref().and_then(|status| status.replica_statuses.as_ref());
        let counts = |kind: &str, desired: Option<i32>| {
            let ReplicaStatus { active, succeeded, failed } =
                statuses.and_then(|statuses| statuses.get(kind)).copied().unwrap_or_default();
            ReplicaCounts { desired: desired.unwrap_or_default(), active, succeeded, failed }
        };
        let specs = &job.spec.pytorch_replica_specs;
        let desired =
            |spec: &Option<crate::job::pytorchjob::ReplicaSpec>| spec.as_ref().map(|spec| spec.replicas.unwrap_or(1));
        Self { master: counts("Master", desired(&specs.master)), worker: counts("Worker", desired(&specs.worker)) }
    }
}

/// What the operator's conditions alone tell.
fn detail(phase: Phase, condition: Option<&JobCondition>) -> String {
    let said = condition.and_then(|condition| condition.message.as_deref());
    let detail = match phase {
        Phase::Pending => "waiting for its pods to start",
        Phase::Running => "running",
        Phase::Restarting => "restarting",
        Phase::Suspended => "suspended: its pods are gone, its checkpoints stay",
        Phase::Succeeded => "succeeded",
        Phase::Failed => said.unwrap_or("failed"),
    };
    detail.to_owned()
}

/// What pods, attempts and progress tell beyond that.
fn closer_detail(
    summary: &JobSummary,
    was_read: bool,
    progress: Option<&Progress>,
    diagnosis: Option<&Diagnosis>,
) -> Option<String> {
    let reached = |progress: &Progress| {
        let total = progress.total.map(|total| format!(" of {total}")).unwrap_or_default();
        let loss = progress.loss.map(|loss| format!(", loss {loss:.4}")).unwrap_or_default();
        format!("step {}{total}{loss}", progress.step)
    };
    match (summary.phase, diagnosis, progress) {
        (Phase::Pending, Some(diagnosis), _) => Some(format!("waiting: {}", diagnosis.message)),
        (Phase::Running | Phase::Restarting, Some(diagnosis), _) => Some(format!("held up: {}", diagnosis.message)),
        (Phase::Running, None, Some(progress)) => Some(format!("running, {}", reached(progress))),
        (Phase::Running, None, None) => was_read.then(|| "running, no step finished yet".to_owned()),
        (Phase::Restarting, None, Some(progress)) => Some(format!("restarting, had reached {}", reached(progress))),
        (Phase::Succeeded, _, Some(progress)) => Some(format!("succeeded at {}", reached(progress))),
        (Phase::Failed, Some(diagnosis), _) => {
            Some(format!("{}: {}", summary.detail.trim_end_matches('.'), diagnosis.message))
        }
        (Phase::Pending | Phase::Restarting | Phase::Succeeded, _, None)
        | (Phase::Pending, None, Some(_))
        | (Phase::Failed, None, _)
        | (Phase::Suspended, _, _) => None,
    }
}

/// The newest complete checkpoint that a submission wrote itself, of entries whose newest comes first.
#[must_use]
pub fn newest_complete<'a>(entries: &'a [IndexEntry], submission: &str) -> Option<&'a IndexEntry> {
    let writer = |entry: &IndexEntry| entry.submission.as_ref().is_some_and(|writer| writer.as_str() == submission);
    let own = |entry: &&IndexEntry| entry.state == State::Complete && writer(entry);
    entries.iter().find(own)
}

#[cfg(test)]
mod tests {
    use super::{
        ProgressRead::{Found, Nothing, Unknown},
        *,
    };
    use serde_json::{Value, json};

    const SUBMISSION: &str = "01980000-0000-7000-8000-000000000001";
    const OLDER: &str = "01970000-0000-7000-8000-000000000001";

    fn job(conditions: &Value) -> PyTorchJob {
        serde_json::from_value(json!({
            "apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob",
            "metadata": {"name": "hf-r", "namespace": "training", "annotations": {(key::SUBMISSION): SUBMISSION},
                         "labels": {(key::FRAMEWORK): "hf", (key::RUN_ID): "r"}},
            "spec": {"pytorchReplicaSpecs": {"Master": {"replicas": 1, "template": {}}, "Worker": {"replicas": 3, "template": {}}}},
            "status": {"conditions": conditions, "replicaStatuses": {"Worker": {"active": 2}}},
        }))
        .expect("a job")
    }

    #[test]
    fn annotations_of_other_tools_are_not_passed_on() {
        let told = |annotations: Value| {
            let mut job = job(&json!([]));
            job.metadata.annotations = serde_json::from_value(annotations).expect("annotations");
            let summary = JobSummary::new(&job, &namespaces());
            (summary.submission, summary.submitted_by)
        };
        let ours = json!({(key::SUBMISSION): SUBMISSION, (key::SUBMITTED_BY): "ci-1"});
        assert_eq!(told(ours), (Some(SUBMISSION.to_owned()), Some("ci-1".to_owned())));
        let long = "x".repeat(200_000);
        for text in ["", "not one", long.as_str()] {
            let theirs = json!({(key::SUBMISSION): text, (key::SUBMITTED_BY): format!("{text} ")});
            assert_eq!(told(theirs), (None, None));
        }
    }

    fn namespaces() -> Namespaces {
        Namespaces::new("training".parse().expect("a namespace"), vec![])
    }

    fn conditions(true_ones: &[&str]) -> Value {
        true_ones
            .iter()
            .map(|name| json!({"type": name, "status": "True", "reason": format!("PyTorchJob{name}"), "message": format!("is {name}")}))
            .collect()
    }

    fn progress(submission: &str) -> Progress {
        Progress {
            submission: submission.to_owned(),
            attempt: 1,
            step: 10,
            total: Some(60),
            loss: Some(5.123_45),
            tokens_per_second: None,
            eta_seconds: None,
            cut_off: None,
            micro_batch: None,
            expected_peak_bytes: None,
            updated_at: 1.5,
        }
    }

    #[test]
    fn conditions_that_stand_together_are_read_in_order() {
        for (true_ones, phase, status) in [
            (&[][..], Phase::Pending, Status::Submitted),
            (&["Created"], Phase::Pending, Status::Submitted),
            (&["Created", "Running"], Phase::Running, Status::Running),
            (&["Created", "Restarting"], Phase::Restarting, Status::Running),
            (&["Created", "Suspended"], Phase::Suspended, Status::Submitted),
            (&["Created", "Succeeded"], Phase::Succeeded, Status::Succeeded),
            (&["Created", "Restarting", "Failed"], Phase::Failed, Status::Failed),
            (&["Created", "Succeeded", "Failed"], Phase::Failed, Status::Failed),
        ] {
            let answer = TrainingJobStatus::new(&job(&conditions(true_ones)), &namespaces(), None, Unknown, None);
            assert_eq!((answer.summary.phase, answer.summary.status), (phase, status), "{true_ones:?}");
        }
        let over = json!([{"type": "Created", "status": "True"}, {"type": "Running", "status": "False"}]);
        assert_eq!(
            TrainingJobStatus::new(&job(&over), &namespaces(), None, Unknown, None).summary.phase,
            Phase::Pending
        );
    }

    #[test]
    fn the_original_five_fields_come_first() {
        let answer = TrainingJobStatus::new(
            &job(&conditions(&["Running"])),
            &namespaces(),
            None,
            Found(progress(SUBMISSION)),
            None,
        );
        let text = serde_json::to_string(&answer).expect("serialisable");
        assert!(text.starts_with(
            r#"{"name":"hf-r","status":"running","detail":"running, step 10 of 60, loss 5.1235","framework":"hf","run_id":"r","phase":"Running""#
        ), "{text}");
        assert_eq!(
            (
                answer.summary.replicas.master.desired,
                answer.summary.replicas.worker.desired,
                answer.summary.replicas.worker.active
            ),
            (1, 3, 2)
        );
    }

    #[test]
    fn a_list_tells_what_the_operator_knows() {
        let mut job = job(&conditions(&["Running"]));
        let summary = JobSummary::new(&job, &namespaces());
        assert_eq!((summary.detail.as_str(), summary.submitted_by.as_deref()), ("running", None));
        let fields = serde_json::to_value(&summary).expect("serialisable");
        let names: Vec<_> = fields.as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names[..6], ["name", "status", "detail", "framework", "run_id", "phase"]);
        job.metadata.annotations.get_or_insert_default().insert(key::SUBMITTED_BY.to_owned(), "ci".to_owned());
        assert_eq!(JobSummary::new(&job, &namespaces()).submitted_by.as_deref(), Some("ci"));
    }

    #[test]
    fn a_job_that_is_being_deleted_says_so_whatever_else_is_known() {
        for phase in ["Created", "Running", "Succeeded", "Failed"] {
            let mut job = job(&conditions(&[phase]));
            job.metadata.deletion_timestamp = Some(Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH));
            let answer = TrainingJobStatus::new(&job, &namespaces(), None, Found(progress(SUBMISSION)), None);
            assert!(answer.summary.detail.starts_with("is being deleted"), "{phase}: {}", answer.summary.detail);
        }
    }

    #[test]
    fn what_nobody_looked_for_is_not_said_to_be_missing() {
        let detail = |phase: &str, look| {
            TrainingJobStatus::new(&job(&conditions(&[phase])), &namespaces(), None, look, None).summary.detail
        };
        assert_eq!(detail("Running", Unknown), "running");
        assert_eq!(detail("Running", Nothing), "running, no step finished yet");
        assert_eq!(detail("Running", Found(progress("another"))), "running, no step finished yet");
        assert_eq!(detail("Restarting", Nothing), "restarting");
    }

    #[test]
    fn progress_of_another_submission_is_not_this_jobs() {
        let other = progress("01970000-0000-7000-8000-000000000001");
        assert_eq!(
            TrainingJobStatus::new(&job(&conditions(&["Running"])), &namespaces(), None, Found(other), None).progress,
            None
        );
    }

    #[test]
    fn a_pod_that_cannot_run_says_why() {
        let of_pods = crate::job::diagnosis::of_pods;
        let pod = |status: Value| {
            serde_json::from_value::<k8s_openapi::api::core::v1::Pod>(
                json!({"metadata": {"name": "p"}, "status": status}),
            )
            .expect("a pod")
        };
        let scheduler = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.";
        let waiting = pod(json!({"conditions": [{"type": "PodScheduled", "status": "False", "message": scheduler}]}));
        let pulling =
            pod(json!({"containerStatuses": [{"name": "pytorch", "image": "x", "imageID": "", "ready": false,
            "restartCount": 0, "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}]}));
        let pending = job(&conditions(&["Created"]));
        let answer =
            TrainingJobStatus::new(&pending, &namespaces(), of_pods(&[pulling.clone(), waiting]), Unknown, None);
        assert_eq!(answer.diagnosis.as_ref().map(|diagnosis| diagnosis.code), Some("unschedulable"));
        assert_eq!(answer.summary.detail, format!("waiting: {scheduler}"));
        let answer = TrainingJobStatus::new(&pending, &namespaces(), of_pods(&[pulling]), Unknown, None);
        assert_eq!(answer.diagnosis.map(|diagnosis| diagnosis.code), Some("image_pull"));
    }

    #[test]
    fn a_job_that_failed_says_what_operator_and_trainer_know() {
        let mut failed = conditions(&["Failed"]);
        failed[0]["message"] = json!("it has reached the backoff limit.");
        let reason =
            |message: &str| Diagnosis { code: "failed", message: message.to_owned(), evidence: vec![], next_step: "" };
        for (diagnosis, detail) in [
            (None, "it has reached the backoff limit."),
            (Some(reason("attempt 1 ended by crash")), "it has reached the backoff limit: attempt 1 ended by crash"),
        ] {
            let answer = TrainingJobStatus::new(&job(&failed), &namespaces(), diagnosis, Unknown, None);
            assert_eq!(answer.summary.detail, detail);
        }
    }

    #[test]
    fn the_newest_complete_checkpoint_of_the_submission_is_named() {
        let entry = |step: u64, state, submission: &str| IndexEntry {
            index: 1,
            step: step.try_into().expect("a step"),
            state,
            submission: Some(submission.parse().expect("a submission")),
            saved_at: 0.0,
            size_bytes: 0,
            file_count: 0,
            metrics: serde_json::Map::new(),
            parent: None,
            marker_key: format!("k{step}"),
            marker_etag: String::new(),
        };
        let entries = [
            entry(90, State::Complete, OLDER),
            entry(40, State::Incomplete, SUBMISSION),
            entry(30, State::Complete, SUBMISSION),
        ];
        let checkpoints = Checkpoints { bucket: "b", entries: &entries };
        let answer =
            TrainingJobStatus::new(&job(&conditions(&["Running"])), &namespaces(), None, Unknown, Some(checkpoints));
        let newest = answer.checkpoints.expect("a checkpoint");
        assert_eq!((newest.latest_step, newest.latest_uri.as_str()), (30, "s3://b/k30"));
    }
}
