//! From a request to the `PyTorchJob`: pure, typed, no text templates. The call that creates it is elsewhere.

use std::{collections::BTreeMap, fmt};

use k8s_openapi::{
    DeepMerge,
    api::core::v1::{
        Container, EmptyDirVolumeSource, EnvVar, EnvVarSource, ObjectFieldSelector, PodSpec, PodTemplateSpec,
        ResourceRequirements, SecretKeySelector, Volume, VolumeMount,
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::ObjectMeta},
};
use serde_json::Value;
use training_run::{
    layout::RunPrefix,
    names::{Step, Submission},
};

use crate::{
    job::disk,
    job::pytorchjob::{CONTAINER, PyTorchJob, PyTorchJobSpec, ReplicaSpec, ReplicaSpecs, RunPolicy, key},
    request::TrainingJobRequest,
};

/// torchrun kills its workers this long before the kubelet would kill torchrun.
const SHUTDOWN_MARGIN_SECONDS: u32 = 20;

/// Where a container leaves its last words; Kubernetes' own default.
const TERMINATION_LOG: &str = "/dev/termination-log";
/// Where the trainer keeps what it prints until that is in the bucket. It outlives the container.
const LOG_DIR: &str = "/var/log/trainer";
/// The extended resource that NVIDIA's device plugin counts.
const GPU: &str = "nvidia.com/gpu";
/// A pod's own deadline comes this long after the job's. The operator looks at the job's deadline only when a pod or the
/// job changes, and the pod's end is such a change; the pod's deadline alone would make it start anew.
const DEADLINE_MARGIN_SECONDS: i64 = 30;

/// What the deployment adds to each job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
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

/// Where a submission starts: what the request asks for, looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// At step 0.
    Fresh,
    /// At the newest complete checkpoint that the trainer finds, or at step 0.
    NewestIfAny,
    /// At this step's checkpoint and nowhere else.
    Step(Step),
}

/// What one submission adds to a request.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    /// Its id.
    pub submission: &'a Submission,
    /// Id of the caller's token.
    pub submitted_by: Option<&'a str>,
    /// Where it starts.
    pub start: Start,
}

/// The run prefix of a request.
#[must_use]
pub fn run_prefix(request: &TrainingJobRequest) -> RunPrefix {
    RunPrefix::new(&request.checkpoint_base_uri, &request.run_id, request.framework)
}

/// Render the job of a request. `defaults` is what the cluster's owner gives to every training pod of the namespace;
/// what the request and the platform say wins over it.
#[must_use]
pub fn build(
    request: &TrainingJobRequest,
    origin: Origin<'_>,
    defaults: Option<&PodTemplateSpec>,
    platform: &Platform,
) -> PyTorchJob {
    let mut labels = request.labels.clone();
    labels.insert(key::FRAMEWORK.to_owned(), request.framework.to_string());
    labels.insert(key::RUN_ID.to_owned(), request.run_id.to_string());
    let mut job_labels = labels.clone();
    job_labels.extend(request.queue.iter().map(|queue| (key::QUEUE.to_owned(), queue.clone())));
    let mut annotations = request.annotations.clone();
    annotations.insert(key::SUBMISSION.to_owned(), origin.submission.to_string());
    annotations.extend(origin.submitted_by.map(|id| (key::SUBMITTED_BY.to_owned(), id.to_owned())));
    annotations.insert(key::CHECKPOINT_PREFIX.to_owned(), run_prefix(request).to_string());
    annotations.insert(key::REQUEST.to_owned(), request.fingerprint.to_annotation());
    let metadata = ObjectMeta {
        name: Some(request.job_name.to_string()),
        namespace: Some(request.namespace.to_string()),
        labels: Some(job_labels),
        annotations: Some(annotations),
        ..ObjectMeta::default()
    };
    let template = PodTemplateSpec {
        // The operator does not copy the job's labels to its pods.
        metadata: Some(ObjectMeta { labels: Some(labels), ..ObjectMeta::default() }),
        spec: Some(pod(request, origin, platform)),
    };
    let mut template = match defaults {
        Some(defaults) => with_defaults(template, defaults.clone()),
        None => template,
    };
    disk::say_limit(&mut template);
    let replica = |replicas: u32| ReplicaSpec {
        replicas: i32::try_from(replicas).ok(),
        restart_policy: Some("OnFailure".to_owned()),
        template: template.clone(),
    };
    let workers = request.num_nodes.saturating_sub(1);
    let max_restarts = request.max_restarts.unwrap_or(platform.max_restarts);
    PyTorchJob::new(
        metadata,
        PyTorchJobSpec {
            nproc_per_node: Some(request.gpus_per_node.max(1).to_string()),
            run_policy: RunPolicy {
                // Frees the GPUs of pods that hang after the end, and keeps the logs of those that finished.
                clean_pod_policy: Some("Running".to_owned()),
                backoff_limit: Some(backoff_limit(request.num_nodes, max_restarts)),
                ttl_seconds_after_finished: Some(platform.job_ttl_seconds),
                active_deadline_seconds: request.max_runtime_seconds.map(i64::from),
                // The schema's default, written out: what a dry run shows is then what is stored.
                suspend: Some(false),
                managed_by: None,
            },
            pytorch_replica_specs: ReplicaSpecs {
                master: Some(replica(1)),
                worker: (workers > 0).then(|| replica(workers)),
            },
        },
    )
}

/// Put a pod over the platform's defaults: lists are merged by name, as `kubectl apply` merges them, and what names the
/// same thing as the pod does gives way as a whole.
fn with_defaults(mut pod: PodTemplateSpec, mut defaults: PodTemplateSpec) -> PodTemplateSpec {
    // Only what pods of a job can have: no name, and the restart policy is the replica's.
    defaults.metadata = defaults.metadata.map(|metadata| ObjectMeta {
        labels: metadata.labels,
        annotations: metadata.annotations,
        ..ObjectMeta::default()
    });
    if let (Some(base), Some(top)) = (&mut defaults.spec, &mut pod.spec) {
        base.restart_policy = None;
        disk::leave_volume(base, top);
        let volumes = top.volumes.iter().flatten().map(|volume| volume.name.as_str()).collect::<Vec<_>>();
        base.volumes.iter_mut().for_each(|base| base.retain(|volume| !volumes.contains(&volume.name.as_str())));
        for base in base.containers.iter_mut().filter(|container| container.name == CONTAINER) {
            for top in top.containers.iter().filter(|container| container.name == CONTAINER) {
                give_way(base, top);
            }
        }
    }
    defaults.merge_from(pod);
    defaults
}

/// Take out of the defaults' training container what the job's own says in another way.
fn give_way(base: &mut Container, top: &Container) {
    let variables = top.env.iter().flatten().map(|variable| variable.name.as_str()).collect::<Vec<_>>();
    base.env.iter_mut().for_each(|base| base.retain(|variable| !variables.contains(&variable.name.as_str())));
    // The API server has written this out for an image that is not used.
    base.image_pull_policy = None;
    let path = |mount: &VolumeMount| mount.mount_path.trim_end_matches('/').to_owned();
    let paths = top.volume_mounts.iter().flatten().map(path).collect::<Vec<_>>();
    base.volume_mounts.iter_mut().for_each(|base| base.retain(|mount| !paths.contains(&path(mount))));
    // The number of GPUs is the request's also when it is none.
    if let Some(resources) = &mut base.resources {
        for amounts in [&mut resources.limits, &mut resources.requests].into_iter().flatten() {
            amounts.remove(GPU);
        }
    }
}

/// The coarse outer stop. The operator sums the restarts of all pods' containers, one death restarts every pod at least
/// once, and slow image pulls restart init containers.
fn backoff_limit(num_nodes: u32, max_restarts: u32) -> i32 {
    let limit = num_nodes.saturating_mul(max_restarts.saturating_add(1).saturating_mul(2).saturating_add(3));
    i32::try_from(limit).unwrap_or(i32::MAX)
}

fn pod(request: &TrainingJobRequest, origin: Origin<'_>, platform: &Platform) -> PodSpec {
    PodSpec {
        active_deadline_seconds: request
            .max_runtime_seconds
            .map(|seconds| i64::from(seconds) + DEADLINE_MARGIN_SECONDS),
        priority_class_name: request.priority_class.clone(),
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
            env: Some(environment(request, origin, platform)),
            resources: Some(resources(request)),
            termination_message_path: Some(TERMINATION_LOG.to_owned()),
            termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
            volume_mounts: Some(vec![
                mount("shm", "/dev/shm"),
                mount("logs", LOG_DIR),
                mount(disk::VOLUME, disk::WORK_DIR),
            ]),
            ..Container::default()
        }],
        // NCCL and data loaders need more than the 64 MiB that containers get.
        volumes: Some(vec![
            empty_dir("shm", Some("Memory"), None),
            empty_dir("logs", None, None),
            empty_dir(disk::VOLUME, None, request.disk_per_node_gb.map(disk::gibibytes)),
        ]),
        ..PodSpec::default()
    }
}

fn mount(volume: &str, path: &str) -> VolumeMount {
    VolumeMount { name: volume.to_owned(), mount_path: path.to_owned(), ..VolumeMount::default() }
}

fn empty_dir(name: &str, medium: Option<&str>, size_limit: Option<Quantity>) -> Volume {
    let source = EmptyDirVolumeSource { medium: medium.map(str::to_owned), size_limit };
    Volume { name: name.to_owned(), empty_dir: Some(source), ..Volume::default() }
}

fn resources(request: &TrainingJobRequest) -> ResourceRequirements {
    let mut amounts = BTreeMap::from([
        ("cpu".to_owned(), Quantity(request.cpus_per_node.to_string())),
        ("memory".to_owned(), disk::gibibytes(request.memory_per_node_gb)),
    ]);
    amounts.extend(request.disk_per_node_gb.map(|disk| (disk::RESOURCE.to_owned(), disk::gibibytes(disk))));
    if request.gpus_per_node > 0 {
        amounts.insert(GPU.to_owned(), Quantity(request.gpus_per_node.to_string()));
    }
    ResourceRequirements { requests: Some(amounts.clone()), limits: Some(amounts), ..ResourceRequirements::default() }
}

fn environment(request: &TrainingJobRequest, origin: Origin<'_>, platform: &Platform) -> Vec<EnvVar> {
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
        ("SUBMISSION", origin.submission.to_string()),
        ("RESUME", origin.start.to_string()),
        ("MAX_RESTARTS", request.max_restarts.unwrap_or(platform.max_restarts).to_string()),
        ("TRAINING_EXTRA_ARGS_JSON", Value::Object(request.extra_args.clone()).to_string()),
        ("TERMINATION_LOG", TERMINATION_LOG.to_owned()),
        ("TRAINER_LOG_DIR", LOG_DIR.to_owned()),
        ("TRAINER_WORK_DIR", disk::WORK_DIR.to_owned()),
        ("TMPDIR", disk::WORK_DIR.to_owned()),
        // HF_HOME lies there too, unless the request or the operator say another place.
        ("XDG_CACHE_HOME", format!("{}/cache", disk::WORK_DIR)),
        ("TRITON_CACHE_DIR", format!("{}/cache/triton", disk::WORK_DIR)),
        ("OMP_NUM_THREADS", "1".to_owned()),
        // As a variable and not as a flag: other images may hold a torchrun that does not know it.
        ("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", shutdown_seconds.to_string()),
    ];
    if request.gpus_per_node == 0 {
        // Without it the NVIDIA runtime shows every GPU of the node to a pod that asked for none.
        variables.push(("NVIDIA_VISIBLE_DEVICES", "none".to_owned()));
    }
    variables.extend(request.config_path.iter().map(|path| ("CONFIG_PATH", path.clone())));
    let user = request.env.iter().map(|(name, value)| (name.as_str(), value.clone()));
    let plain = variables.into_iter().chain(user).map(|(name, value)| EnvVar {
        name: name.to_owned(),
        value: Some(literal(&value)),
        value_from: None,
    });
    // A pod with another one has been moved by the cluster; a container that starts again in the same has failed.
    let uid = EnvVar {
        name: "POD_UID".to_owned(),
        value: None,
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector { api_version: None, field_path: "metadata.uid".to_owned() }),
            ..EnvVarSource::default()
        }),
    };
    let secret = request.env_from_secrets.iter().map(|(name, key)| EnvVar {
        name: name.clone(),
        value: None,
        value_from: Some(EnvVarSource {
            secret_key_ref: Some(SecretKeySelector { name: key.secret.clone(), key: key.key.clone(), optional: None }),
            ..EnvVarSource::default()
        }),
    });
    plain.chain([uid]).chain(secret).collect()
}

/// A value that the kubelet leaves alone: it would replace `$(NAME)` and `$$` in values.
fn literal(value: &str) -> String {
    value.replace('$', "$$")
}

// === impl Start ===

impl fmt::Display for Start {
    /// As the trainer reads it in `RESUME`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fresh => f.write_str("false"),
            Self::NewestIfAny => f.write_str("true"),
            Self::Step(step) => write!(f, "step-{step}"),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::{
        access::caller::Caller,
        request::tests::{body, rules},
    };
    use serde_json::json;

    fn platform() -> Platform {
        Platform {
            train_script: "/opt/trainer/train.py".to_owned(),
            service_account: "trainer".to_owned(),
            job_ttl_seconds: 604_800,
            max_restarts: 3,
            grace_seconds: 300,
        }
    }

    pub(crate) fn manifest(changes: &Value) -> Value {
        manifest_over(changes, None)
    }

    /// The manifest over these defaults, given as a `PodTemplate`'s template.
    pub(crate) fn manifest_over(changes: &Value, defaults: Option<Value>) -> Value {
        let mut body = body();
        for (field, value) in changes.as_object().expect("an object") {
            body[field] = value.clone();
        }
        let request = TrainingJobRequest::parse(body.to_string().as_bytes(), None, &rules(), &Caller::unrestricted())
            .expect("a good request");
        let submission = "01980000-0000-7000-8000-000000000001".parse().expect("an id");
        let defaults = defaults.map(|defaults| serde_json::from_value(defaults).expect("a pod template"));
        let start = Start::Step(Step::new(300).expect("in range"));
        let origin = Origin { submission: &submission, submitted_by: Some("ci"), start };
        serde_json::to_value(build(&request, origin, defaults.as_ref(), &platform())).expect("serialisable")
    }

    pub(crate) fn master(manifest: &Value) -> &Value {
        &manifest["spec"]["pytorchReplicaSpecs"]["Master"]["template"]
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
    fn no_variable_of_the_platform_can_be_set_by_a_request() {
        // Of these, a person may set none.
        const EXCEPTIONS: [&str; 0] = [];
        let made = manifest(&json!({"gpus_per_node": 0, "config_path": "/opt/settings.yaml"}));
        let variables = master(&made)["spec"]["containers"][0]["env"].as_array().expect("variables").clone();
        assert!(variables.len() > 20, "{variables:?}");
        for name in variables.iter().filter_map(|variable| variable["name"].as_str()) {
            let mut changed = body();
            changed["env"] = json!({name: "1"});
            let parsed =
                TrainingJobRequest::parse(changed.to_string().as_bytes(), None, &rules(), &Caller::unrestricted());
            assert_eq!(parsed.is_ok(), EXCEPTIONS.contains(&name), "{name}");
        }
    }

    #[test]
    fn every_field_of_the_request_is_in_the_manifest() {
        let manifest = manifest(&json!({
            "labels": {"example.com/team": "a"}, "annotations": {"example.com/note": "any text, é"},
            "priority_class": "high", "queue": "team-a", "max_restarts": 1, "max_runtime_seconds": 3600,
            "namespace": "training-two", "job_name": "mine", "config_path": "/opt/$x.yaml",
            "env_from_secrets": {"HF_TOKEN": "hugging-face/token"},
        }));
        let metadata = &manifest["metadata"];
        assert_eq!((&metadata["name"], &metadata["namespace"]), (&json!("mine"), &json!("training-two")));
        assert_eq!(metadata["labels"]["example.com/team"], "a");
        assert_eq!(metadata["labels"]["kueue.x-k8s.io/queue-name"], "team-a");
        assert_eq!(metadata["annotations"]["example.com/note"], "any text, é");
        assert!(
            metadata["annotations"]["trainer.deepfinery/request"].as_str().is_some_and(|text| text.starts_with("v1:"))
        );
        let policy = &manifest["spec"]["runPolicy"];
        assert_eq!((&policy["backoffLimit"], &policy["activeDeadlineSeconds"]), (&json!(7), &json!(3600)));
        let template = master(&manifest);
        assert_eq!(
            template["metadata"]["labels"],
            json!({
                "example.com/team": "a", "trainer.deepfinery/framework": "hf", "trainer.deepfinery/run-id": "aml_ruleset_v4"
            })
        );
        assert_eq!(template["spec"]["activeDeadlineSeconds"], 3630);
        assert_eq!(template["spec"]["priorityClassName"], "high");
        let env = template["spec"]["containers"][0]["env"].as_array().expect("env");
        for variable in [
            json!({"name": "RESUME", "value": "step-300"}),
            json!({"name": "MAX_RESTARTS", "value": "1"}),
            json!({"name": "CONFIG_PATH", "value": "/opt/$$x.yaml"}),
            json!({"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hugging-face", "key": "token"}}}),
        ] {
            assert!(env.contains(&variable), "{variable}");
        }
    }

    #[test]
    fn platform_defaults_lie_under_the_job() {
        let defaults = json!({
            "metadata": {"name": "x", "labels": {"owner": "ops", "trainer.deepfinery/run-id": "spoofed"}, "annotations": {"a": "b"}},
            "spec": {
                "restartPolicy": "Always",
                "nodeSelector": {"pool": "gpu"},
                "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
                "imagePullSecrets": [{"name": "registry"}],
                "securityContext": {"runAsUser": 1000},
                "volumes": [{"name": "shm", "hostPath": {"path": "/dev/shm"}}, {"name": "cache", "emptyDir": {}}],
                "containers": [
                    {
                        "name": "pytorch", "image": "ignored", "imagePullPolicy": "Always", "command": ["sh"],
                        "env": [
                            {"name": "NCCL_DEBUG", "value": "INFO"},
                            {"name": "RUN_ID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}},
                        ],
                        "resources": {
                            "limits": {"vpc.amazonaws.com/efa": "4", "nvidia.com/gpu": "8", "cpu": "1"},
                            "requests": {"vpc.amazonaws.com/efa": "4", "nvidia.com/gpu": "8"},
                        },
                        "volumeMounts": [{"name": "cache", "mountPath": "/cache"}, {"name": "cache", "mountPath": "/dev/shm/"}],
                    },
                    {"name": "sidecar", "image": "proxy"},
                ],
            },
        });
        let manifest = manifest_over(&json!({"gpus_per_node": 0}), Some(defaults));
        let template = master(&manifest);
        assert_eq!(template["metadata"].get("name"), None);
        assert_eq!(template["metadata"]["annotations"], json!({"a": "b"}));
        assert_eq!(
            template["metadata"]["labels"],
            json!({
                "owner": "ops", "trainer.deepfinery/framework": "hf", "trainer.deepfinery/run-id": "aml_ruleset_v4"
            })
        );
        let pod = &template["spec"];
        assert_eq!(pod.get("restartPolicy"), None);
        for (field, value) in [
            ("nodeSelector", json!({"pool": "gpu"})),
            ("tolerations", json!([{"key": "nvidia.com/gpu", "operator": "Exists"}])),
            ("imagePullSecrets", json!([{"name": "registry"}])),
            ("securityContext", json!({"runAsUser": 1000})),
            (
                "volumes",
                json!([
                    {"name": "cache", "emptyDir": {}},
                    {"name": "shm", "emptyDir": {"medium": "Memory"}},
                    {"name": "logs", "emptyDir": {}},
                    {"name": "trainer-work", "emptyDir": {}},
                ]),
            ),
        ] {
            assert_eq!(pod[field], value, "{field}");
        }
        assert_eq!(pod["containers"].as_array().map(Vec::len), Some(2));
        let container = &pod["containers"][0];
        assert_eq!(container.get("imagePullPolicy"), None);
        assert_eq!((&container["image"], &container["command"]), (&json!("trainer:local"), &json!(["torchrun"])));
        assert_eq!(
            container["resources"]["limits"],
            json!({"cpu": "32", "memory": "256Gi", "vpc.amazonaws.com/efa": "4"})
        );
        assert_eq!(
            container["volumeMounts"],
            json!([
                {"name": "cache", "mountPath": "/cache"},
                {"name": "shm", "mountPath": "/dev/shm"},
                {"name": "logs", "mountPath": "/var/log/trainer"},
                {"name": "trainer-work", "mountPath": "/var/lib/trainer"},
            ])
        );
        let env = container["env"].as_array().expect("env");
        assert!(env.contains(&json!({"name": "NCCL_DEBUG", "value": "INFO"})));
        let run_ids: Vec<_> = env.iter().filter(|variable| variable["name"] == "RUN_ID").collect();
        assert_eq!(run_ids, [&json!({"name": "RUN_ID", "value": "aml_ruleset_v4"})]);
    }

    #[test]
    fn the_outer_stop_grows_with_the_nodes() {
        assert_eq!(backoff_limit(1, 3), 11);
        assert_eq!(backoff_limit(2, 3), 22);
        assert_eq!(backoff_limit(u32::MAX, u32::MAX), i32::MAX);
    }
}
