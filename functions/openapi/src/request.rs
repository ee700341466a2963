//! The body of POST /train as a schema. The parser decides what is taken; the tests hold the two together.
//!
//! What a schema cannot say (which buckets, images and secrets the deployment allows, sizes in bytes, reserved names, the
//! name's length by the number of pods) stands in the descriptions.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde_json::{Map, Value, json};
use training_run::names::{Framework, JobName};

use training_core::request::limits::{MAX_MODEL_ID_CHARACTERS, bounds, defaults};

const DNS_LABEL: &str = "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$";
const DNS_LABEL_FROM_A_LETTER: &str = "^[a-z]([a-z0-9-]*[a-z0-9])?$";
const DNS_SUBDOMAIN: &str = "^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$";
const RUN_ID: &str = "^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$";
const S3_FOLDER: &str = "^s3://[a-z0-9.-]{3,63}(/[^/]+)*/*$";
const S3_OBJECT_OR_PREFIX: &str = "^s3://[a-z0-9.-]{3,63}(/[^/]+)+/?$";
const S3_OBJECT_OR_PATH: &str = "^(s3://[a-z0-9.-]{3,63}(/[^/]+)+|/.*[^/])$";
const STEP_OR_WORD: &str = "^(latest|best|step-[0-9]+)$";
const SECRET_KEY: &str = "^[^/]+/[A-Za-z0-9._-]{1,253}$";

/// One training job. Unknown fields, duplicate keys and values of another type are refused; null means absent. The body
/// has at most 128 KiB.
#[derive(JsonSchema)]
#[schemars(rename = "TrainingJobRequest", deny_unknown_fields)]
#[expect(dead_code, reason = "only its schema is used")]
pub(crate) struct RequestBody {
    /// Which runner trains: `hf` (the transformers Trainer), `nemo` (Lightning) or `meta` (FSDP2).
    framework: Framework,
    /// What is trained: `s3://.../` (a folder as Hugging Face writes it), an absolute path in the image, a folder's name
    /// under the image's `MODEL_DIR`, or a hub name. No control characters.
    #[schemars(length(min = 1, max = MAX_MODEL_ID_CHARACTERS))]
    model_id: String,
    /// The caller's name of the run: a label value and one segment of its checkpoints' keys.
    #[schemars(length(max = 63), regex(pattern = RUN_ID))]
    run_id: String,
    /// Where runs keep their checkpoints: at or below one of the deployment's `RUNS_BASE_URIS`. Slashes at the end are dropped.
    /// The key has at most 512 bytes, and no segment that is empty, `.`, `..` or `_jobs`, or begins with `framework=`.
    #[schemars(regex(pattern = S3_FOLDER))]
    checkpoint_base_uri: String,
    /// A JSON-lines object, with one slash at the end all objects below a prefix, or those of a pattern: `*` is anything
    /// within a folder, `**` anything, `?` one character (`s3://data/**/train-*.jsonl`).
    #[schemars(regex(pattern = S3_OBJECT_OR_PREFIX))]
    dataset_uri: String,
    /// The trainer image: `DEFAULT_IMAGE` when absent, otherwise one that `ALLOWED_IMAGES` allows.
    #[schemars(length(min = 1, max = 512))]
    image: Option<String>,
    /// Number of pods.
    #[schemars(
        range(min = *bounds::NUM_NODES.start(), max = *bounds::NUM_NODES.end()),
        extend("default" = defaults::NUM_NODES)
    )]
    num_nodes: Option<u32>,
    /// GPUs and processes a pod; 0 is a CPU job with one process a pod.
    #[schemars(
        range(min = *bounds::GPUS_PER_NODE.start(), max = *bounds::GPUS_PER_NODE.end()),
        extend("default" = defaults::GPUS_PER_NODE)
    )]
    gpus_per_node: Option<u32>,
    /// CPUs a pod.
    #[schemars(
        range(min = *bounds::CPUS_PER_NODE.start(), max = *bounds::CPUS_PER_NODE.end()),
        extend("default" = defaults::CPUS_PER_NODE)
    )]
    cpus_per_node: Option<u32>,
    /// Memory a pod in GiB.
    #[schemars(
        range(min = *bounds::MEMORY_PER_NODE_GB.start(), max = *bounds::MEMORY_PER_NODE_GB.end()),
        extend("default" = defaults::MEMORY_PER_NODE_GB)
    )]
    memory_per_node_gb: Option<u32>,
    /// An object in S3 or an absolute path in the image: JSON or YAML with the keys of `extra_args`, which override it.
    #[schemars(length(max = 1024), regex(pattern = S3_OBJECT_OR_PATH))]
    config_path: Option<String>,
    /// Which checkpoint of the run to start from: none; with true the newest complete one if there is any; or one that
    /// must be there, `latest`, `best` (least loss) or `step-N`, else 409 `resume_target_not_found`.
    #[schemars(extend("default" = false))]
    resume_from_checkpoint: Option<ResumeFrom>,
    /// Settings of the runner: any JSON. At most 64 KiB; names that the platform sets are refused. With the default image,
    /// so is what `GET /settings/{framework}` does not allow.
    #[schemars(extend("propertyNames" = json!({"maxLength": 256, "pattern": "^[A-Za-z][A-Za-z0-9_-]*$"})))]
    extra_args: Option<Map<String, Value>>,
    /// Additional environment variables of the container: each at most 32 KiB, together 64 KiB. Names that the platform,
    /// the operator or torchrun set are refused (`RANK`, `MASTER_*`, `PET_*`, `CHECKPOINT*` and others), and so are those that
    /// choose code, credentials, endpoints or certificates (`LD_*`, `PYTHON*`, `PATH`, `HOME`, `CC`, `AWS_*`, `*_PROXY`,
    /// `SSL_*`, `NCCL_*_PLUGIN` and others: functions/core/src/request/environment.rs). An operator sets these in the image or
    /// in `training-defaults`. Other `NCCL_*`, `TORCH_*`, `HF_*` and `WANDB_*` are the caller's.
    #[schemars(extend(
        "propertyNames" = variable_names(),
        "additionalProperties" = json!({"type": "string", "maxLength": 32 * 1024})
    ))]
    env: Option<BTreeMap<String, String>>,
    /// Environment variables whose values are keys of Kubernetes Secrets in the job's namespace, as `secret/key`, of the
    /// Secrets that `ALLOWED_SECRETS` lists. A name stands here or in `env`, by the same rules.
    #[schemars(extend(
        "propertyNames" = variable_names(),
        "additionalProperties" = json!({"type": "string", "pattern": SECRET_KEY})
    ))]
    env_from_secrets: Option<BTreeMap<String, String>>,
    /// Labels of the job and its pods. The prefixes of Kubernetes, Kubeflow and the platform are refused.
    #[schemars(extend(
        "propertyNames" = metadata_keys(),
        "additionalProperties" = json!({
            "type": "string", "maxLength": 63, "pattern": "^([A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)?$"
        })
    ))]
    labels: Option<BTreeMap<String, String>>,
    /// Annotations of the job, together at most 64 KiB. The same prefixes are refused as for labels.
    #[schemars(extend("propertyNames" = metadata_keys()))]
    annotations: Option<BTreeMap<String, String>>,
    /// Name of the pods' `PriorityClass`.
    #[schemars(length(max = 253), regex(pattern = DNS_SUBDOMAIN))]
    priority_class: Option<String>,
    /// Name of the Kueue queue that decides when the job runs; without Kueue it is only a label.
    #[schemars(length(max = 63), regex(pattern = DNS_SUBDOMAIN))]
    queue: Option<String>,
    /// Failed attempts after which the trainer starts again; `MAX_RESTARTS` (usually 3) when absent. Whatever the image, the job
    /// is given up after `num_nodes` × (2 × `max_restarts` + 5) restarts of containers.
    #[schemars(range(min = *bounds::MAX_RESTARTS.start(), max = *bounds::MAX_RESTARTS.end()))]
    max_restarts: Option<u32>,
    /// The job is ended as failed after this long; never when absent.
    #[schemars(range(min = *bounds::MAX_RUNTIME_SECONDS.start(), max = *bounds::MAX_RUNTIME_SECONDS.end()))]
    max_runtime_seconds: Option<u32>,
    /// Namespace of the job, one of `ALLOWED_NAMESPACES`; `NAMESPACE` when absent. Must agree with `?namespace=`.
    #[schemars(length(max = 63), regex(pattern = DNS_LABEL))]
    namespace: Option<String>,
    /// Name of the job, else made of framework and run id. From 12 nodes it has at most 53 characters, from 102 at most 52.
    #[schemars(length(max = JobName::max_length(1)), regex(pattern = DNS_LABEL_FROM_A_LETTER))]
    job_name: Option<String>,
}

#[derive(JsonSchema)]
#[schemars(inline, untagged)]
#[expect(dead_code, reason = "only its schema is used")]
enum ResumeFrom {
    IfAny(bool),
    Named(#[schemars(regex(pattern = STEP_OR_WORD))] String),
}

fn variable_names() -> Value {
    json!({"maxLength": 256, "pattern": "^[A-Za-z_][A-Za-z0-9_]*$"})
}

fn metadata_keys() -> Value {
    json!({
        "maxLength": 253 + 1 + 63,
        "pattern": "^([a-z0-9]([a-z0-9.-]*[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$"
    })
}
