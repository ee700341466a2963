//! From a request to the `PyTorchJob`: pure, typed, no text templates. The call that creates it is elsewhere.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{
        Container, EmptyDirVolumeSource, EnvVar, PodSpec, PodTemplateSpec, ResourceRequirements, Volume, VolumeMount,
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::ObjectMeta},
};
use serde_json::Value;

use crate::{
    layout::RunPrefix,
    names::{JobName, Submission},
    pytorchjob::{CONTAINER, PyTorchJob, PyTorchJobSpec, ReplicaSpec, ReplicaSpecs, RunPolicy, key},
    request::TrainingJobRequest,
};

/// torchrun kills its workers this long before the kubelet would kill torchrun.
const SHUTDOWN_MARGIN_SECONDS: u32 = 20;

/// What the deployment adds to each job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    /// Namespace of the jobs.
    pub namespace: String,
    /// Absolute path of the script in the image that torchrun starts.
    pub train_script: String,
    /// The pods' service account.
    pub service_account: String,
    /// A finished job is deleted after this long.
    pub job_ttl_seconds: i32,
    /// How many failures a run may survive.
    pub max_restarts: u32,
    /// From SIGTERM to SIGKILL, in seconds.
    pub grace_seconds: u32,
}

/// The run prefix of a request.
#[must_use]
pub fn run_prefix(request: &TrainingJobRequest) -> RunPrefix {
    RunPrefix::new(&request.checkpoint_base_uri, &request.run_id, request.framework)
}

/// The job's name of a request.
#[must_use]
pub fn job_name(request: &TrainingJobRequest) -> JobName {
    JobName::of_run(request.framework, &request.run_id, request.num_nodes)
}

/// Render the job of a request.
#[must_use]
pub fn build(request: &TrainingJobRequest, submission: &Submission, platform: &Platform) -> PyTorchJob {
    let labels = BTreeMap::from([
        (key::FRAMEWORK.to_owned(), request.framework.to_string()),
        (key::RUN_ID.to_owned(), request.run_id.to_string()),
    ]);
    let metadata = ObjectMeta {
        name: Some(job_name(request).to_string()),
        namespace: Some(platform.namespace.clone()),
        labels: Some(labels.clone()),
        annotations: Some(BTreeMap::from([
            (key::SUBMISSION.to_owned(), submission.to_string()),
            (key::CHECKPOINT_PREFIX.to_owned(), run_prefix(request).to_string()),
        ])),
        ..ObjectMeta::default()
    };
    let replica = |replicas: u32| ReplicaSpec {
        replicas: i32::try_from(replicas).ok(),
        restart_policy: Some("OnFailure".to_owned()),
        template: PodTemplateSpec {
            // The operator does not copy the job's labels to its pods.
            metadata: Some(ObjectMeta { labels: Some(labels.clone()), ..ObjectMeta::default() }),
            spec: Some(pod(request, submission, platform)),
        },
    };
    let workers = request.num_nodes.saturating_sub(1);
    PyTorchJob::new(
        metadata,
        PyTorchJobSpec {
            nproc_per_node: Some(request.gpus_per_node.max(1).to_string()),
            run_policy: RunPolicy {
                // Frees the GPUs of pods that hang after the end, and keeps the logs of those that finished.
                clean_pod_policy: Some("Running".to_owned()),
                backoff_limit: Some(backoff_limit(request.num_nodes, platform.max_restarts)),
                ttl_seconds_after_finished: Some(platform.job_ttl_seconds),
            },
            pytorch_replica_specs: ReplicaSpecs {
                master: Some(replica(1)),
                worker: (workers > 0).then(|| replica(workers)),
            },
        },
    )
}

/// The coarse outer stop. The operator sums the restarts of all pods' containers, one death restarts every pod at least
/// once, and slow image pulls restart init containers.
fn backoff_limit(num_nodes: u32, max_restarts: u32) -> i32 {
    let limit = num_nodes.saturating_mul(max_restarts.saturating_add(1).saturating_mul(2).saturating_add(3));
    i32::try_from(limit).unwrap_or(i32::MAX)
}

fn pod(request: &TrainingJobRequest, submission: &Submission, platform: &Platform) -> PodSpec {
    PodSpec {
        service_account_name: Some(platform.service_account.clone()),
        termination_grace_period_seconds: Some(platform.grace_seconds.into()),
        // The trainer reaches S3 with credentials of its own and never the API server.
        automount_service_account_token: Some(false),
        containers: vec![Container {
            name: CONTAINER.to_owned(),
            image: Some(request.image.to_string()),
            // No shell: each argument is one element, and nothing that a caller sends is one of them.
            command: Some(vec!["torchrun".to_owned()]),
            // Static rendezvous from the operator's PET_* variables. With restarts by torchrun it hangs after a rank's
            // death, so the cluster restarts the containers.
            args: Some(vec!["--max-restarts=0".to_owned(), platform.train_script.clone()]),
            env: Some(environment(request, submission, platform)),
            resources: Some(resources(request)),
            termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
            volume_mounts: Some(vec![VolumeMount {
                name: "shm".to_owned(),
                mount_path: "/dev/shm".to_owned(),
                ..VolumeMount::default()
            }]),
            ..Container::default()
        }],
        // NCCL and data loaders need more than the 64 MiB that containers get.
        volumes: Some(vec![Volume {
            name: "shm".to_owned(),
            empty_dir: Some(EmptyDirVolumeSource { medium: Some("Memory".to_owned()), size_limit: None }),
            ..Volume::default()
        }]),
        ..PodSpec::default()
    }
}

fn resources(request: &TrainingJobRequest) -> ResourceRequirements {
    let mut amounts = BTreeMap::from([
        ("cpu".to_owned(), Quantity(request.cpus_per_node.to_string())),
        ("memory".to_owned(), Quantity(format!("{}Gi", request.memory_per_node_gb))),
    ]);
    if request.gpus_per_node > 0 {
        amounts.insert("nvidia.com/gpu".to_owned(), Quantity(request.gpus_per_node.to_string()));
    }
    ResourceRequirements { requests: Some(amounts.clone()), limits: Some(amounts), ..ResourceRequirements::default() }
}

fn environment(request: &TrainingJobRequest, submission: &Submission, platform: &Platform) -> Vec<EnvVar> {
    let prefix = run_prefix(request);
    let shutdown_seconds = platform.grace_seconds.saturating_sub(SHUTDOWN_MARGIN_SECONDS).max(1);
    let mut variables = vec![
        ("FRAMEWORK", request.framework.to_string()),
        ("MODEL_ID", request.model_id.clone()),
        ("RUN_ID", request.run_id.to_string()),
        ("NUM_NODES", request.num_nodes.to_string()),
        ("GPUS_PER_NODE", request.gpus_per_node.to_string()),
        ("DATASET_URI", request.dataset_uri.clone()),
        ("CHECKPOINT_BASE_URI", request.checkpoint_base_uri.to_string()),
        ("CHECKPOINT_PREFIX", prefix.to_string()),
        ("CHECKPOINTS_URI", prefix.uri("checkpoints").to_string()),
        ("LOGS_URI", prefix.uri("logs").to_string()),
        ("CONFIG_URI", prefix.uri("config").to_string()),
        ("SUBMISSION", submission.to_string()),
        ("RESUME", request.resume_from_checkpoint.to_string()),
        ("TRAINING_EXTRA_ARGS_JSON", Value::Object(request.extra_args.clone()).to_string()),
        ("OMP_NUM_THREADS", "1".to_owned()),
        // As a variable and not as a flag: other images may hold a torchrun that does not know it.
        ("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", shutdown_seconds.to_string()),
    ];
    if request.gpus_per_node == 0 {
        // Without it the NVIDIA runtime shows every GPU of the node to a pod that asked for none.
        variables.push(("NVIDIA_VISIBLE_DEVICES", "none".to_owned()));
    }
    let user = request.env.iter().map(|(name, value)| (name.as_str(), value.clone()));
    variables
        .into_iter()
        .chain(user)
        .map(|(name, value)| EnvVar { name: name.to_owned(), value: Some(literal(&value)), value_from: None })
        .collect()
}

/// A value that the kubelet leaves alone: it would replace `$(NAME)` and `$$` in values.
fn literal(value: &str) -> String {
    value.replace('$', "$$")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::tests::{body, rules};
    use serde_json::json;

    fn platform() -> Platform {
        Platform {
            namespace: "training".to_owned(),
            train_script: "/opt/trainer/train.py".to_owned(),
            service_account: "trainer".to_owned(),
            job_ttl_seconds: 604_800,
            max_restarts: 3,
            grace_seconds: 300,
        }
    }

    fn manifest(changes: &Value) -> Value {
        let mut body = body();
        for (field, value) in changes.as_object().expect("an object") {
            body[field] = value.clone();
        }
        let request = TrainingJobRequest::parse(body.to_string().as_bytes(), &rules()).expect("a good request");
        let submission = "01980000-0000-7000-8000-000000000001".parse().expect("an id");
        serde_json::to_value(build(&request, &submission, &platform())).expect("serialisable")
    }

    #[test]
    fn a_two_node_job_looks_as_the_webhook_wants_it() {
        insta::assert_json_snapshot!(manifest(&json!({
            "num_nodes": 2, "gpus_per_node": 8, "extra_args": {"max_steps": 60}, "env": {"HF_HUB_OFFLINE": "1"}
        })));
    }

    #[test]
    fn a_cpu_job_has_one_process_a_node_and_no_gpu() {
        let manifest = manifest(&json!({"gpus_per_node": 0}));
        assert_eq!(manifest["spec"]["nprocPerNode"], "1");
        let pod = &manifest["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]["containers"][0];
        assert_eq!(pod["resources"]["limits"], json!({"cpu": "32", "memory": "256Gi"}));
        assert!(
            pod["env"].as_array().expect("env").contains(&json!({"name": "NVIDIA_VISIBLE_DEVICES", "value": "none"}))
        );
        assert_eq!(manifest["spec"]["pytorchReplicaSpecs"].get("Worker"), None);
    }

    #[test]
    fn no_value_of_a_caller_is_expanded_or_named_twice() {
        let manifest = manifest(&json!({"model_id": "$(RUN_ID) $$x", "env": {"A": "$(HOME)"}}));
        let container = &manifest["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]["containers"][0];
        let env = container["env"].as_array().expect("env");
        assert!(env.contains(&json!({"name": "MODEL_ID", "value": "$$(RUN_ID) $$$$x"})));
        assert!(env.contains(&json!({"name": "A", "value": "$$(HOME)"})));
        let mut names: Vec<_> = env.iter().map(|variable| variable["name"].to_string()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), env.len());
    }

    #[test]
    fn the_outer_stop_grows_with_the_nodes() {
        assert_eq!(backoff_limit(1, 3), 11);
        assert_eq!(backoff_limit(2, 3), 22);
        assert_eq!(backoff_limit(u32::MAX, u32::MAX), i32::MAX);
    }
}
