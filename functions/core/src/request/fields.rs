//! The fields of POST /train, each said once: name, whether it is required, what its value must be, default, and words for
//! people. The reader takes names, bounds and defaults from here, the fingerprint what says nothing, and the crate
//! `openapi` makes the schema and docs/reference/request-fields.md of it.
//!
//! A field is read only where it stands here, and one that stands here and that nobody reads is refused as unknown. So a new
//! field needs more than its line here: a field of `TrainingJobRequest` and its `read_...` (`mod.rs`), its place in the job
//! (`job/manifest.rs`), and one in the example of `openapi` (`functions/openapi/src/examples.rs`). Then run `make openapi`.
//!
//! What a schema cannot say (which buckets, images and secrets the deployment allows, sizes in bytes, reserved names, the
//! name's length by the number of pods) stands in the descriptions.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

/// Longest `model_id`, in characters.
pub(super) const MAX_MODEL_ID_CHARACTERS: usize = 256;

const DNS_LABEL: &str = "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$";
const DNS_LABEL_FROM_A_LETTER: &str = "^[a-z]([a-z0-9-]*[a-z0-9])?$";
const DNS_SUBDOMAIN: &str = "^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$";
const RUN_ID: &str = "^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$";
const S3_FOLDER: &str = "^s3://[a-z0-9.-]{3,63}(/[^/]+)*/*$";
const S3_OBJECT_OR_PREFIX: &str = "^s3://[a-z0-9.-]{3,63}(/[^/]+)+/?$";
const S3_OBJECT_OR_PATH: &str = "^(s3://[a-z0-9.-]{3,63}(/[^/]+)+|/.*[^/])$";
const SECRET_KEY: &str = "^[^/]+/[A-Za-z0-9._-]{1,253}$";
const LABEL_VALUE: &str = "^([A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)?$";
const SETTING: Text = Text::at_most(256).matching("^[A-Za-z][A-Za-z0-9_-]*$");
const VARIABLE: Text = Text::at_most(256).matching("^[A-Za-z_][A-Za-z0-9_]*$");
const METADATA_KEY: Text = Text::at_most(253 + 1 + 63)
    .matching("^([a-z0-9]([a-z0-9.-]*[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$");

/// One field of the body.
#[derive(Debug)]
pub struct Field {
    /// Its name in the body.
    pub name: &'static str,
    /// Whether a body without it is refused.
    pub is_required: bool,
    /// What its value must be.
    pub shape: Shape,
    /// What it means, for people.
    pub description: &'static str,
}

/// What a field's value must be, as far as a schema can say it.
#[derive(Debug)]
pub enum Shape {
    /// The name of a framework.
    Framework,
    /// A text.
    Text(Text),
    /// A whole number.
    Count {
        /// The least and the greatest one.
        bounds: RangeInclusive<u32>,
        /// The one that counts where the field is absent, if the contract itself says one.
        default: Option<u32>,
    },
    /// A boolean, false where it is absent, or a text.
    BooleanOr(Text),
    /// An object of any JSON, empty where it is absent; its names are such texts.
    Object(Text),
    /// An object of texts, empty where it is absent: such names, and such values.
    Texts(Text, Text),
}

/// What a text must be.
#[derive(Clone, Copy, Debug)]
pub struct Text {
    /// The least number of characters.
    pub min: Option<usize>,
    /// The greatest number of characters.
    pub max: Option<usize>,
    /// A regular expression (ECMA-262) that it matches. The tests of `openapi` compare it with the rule that is applied.
    pub pattern: Option<&'static str>,
}

/// All fields, in the order in which messages name them.
pub const FIELDS: &[Field] = &[
    Field {
        name: "framework",
        is_required: true,
        shape: Shape::Framework,
        description: "Which runner trains: `hf` (the transformers Trainer), `nemo` (Lightning) or `meta` (FSDP2).",
    },
    Field {
        name: "model_id",
        is_required: true,
        shape: Shape::Text(Text { min: Some(1), ..Text::at_most(MAX_MODEL_ID_CHARACTERS) }),
        description: "What is trained: `s3://.../` (a folder as Hugging Face writes it), an absolute path in the image, a \
                      folder's name under the image's `MODEL_DIR`, or a hub name. No control characters.",
    },
    Field {
        name: "run_id",
        is_required: true,
        shape: Shape::Text(Text::at_most(63).matching(RUN_ID)),
        description: "The caller's name of the run: a label value and one segment of its checkpoints' keys.",
    },
    Field {
        name: "checkpoint_base_uri",
        is_required: true,
        shape: Shape::Text(Text::ANY.matching(S3_FOLDER)),
        description: "Where runs keep their checkpoints: at or below one of the deployment's `RUNS_BASE_URIS`. Slashes at \
                      the end are dropped. The key has at most 512 bytes, and no segment that is empty, `.`, `..` or \
                      `_jobs`, or begins with `framework=`.",
    },
    Field {
        name: "dataset_uri",
        is_required: true,
        shape: Shape::Text(Text::ANY.matching(S3_OBJECT_OR_PREFIX)),
        description: "A JSON-lines object, with one slash at the end all objects below a prefix, or those of a pattern: \
                      `*` is anything within a folder, `**` anything, `?` one character (`s3://data/**/train-*.jsonl`).",
    },
    Field {
        name: "image",
        is_required: false,
        shape: Shape::Text(Text { min: Some(1), ..Text::at_most(512) }),
        description: "The trainer image: `DEFAULT_IMAGE` when absent, otherwise one that `ALLOWED_IMAGES` allows.",
    },
    Field {
        name: "num_nodes",
        is_required: false,
        shape: Shape::Count { bounds: 1..=1000, default: Some(1) },
        description: "Number of pods.",
    },
    Field {
        name: "gpus_per_node",
        is_required: false,
        shape: Shape::Count { bounds: 0..=64, default: Some(1) },
        description: "GPUs and processes a pod; 0 is a CPU job with one process a pod.",
    },
    Field {
        name: "cpus_per_node",
        is_required: false,
        shape: Shape::Count { bounds: 1..=1024, default: Some(32) },
        description: "CPUs a pod.",
    },
    Field {
        name: "memory_per_node_gb",
        is_required: false,
        shape: Shape::Count { bounds: 1..=65_536, default: Some(256) },
        description: "Memory a pod in GiB.",
    },
    Field {
        name: "disk_per_node_gb",
        is_required: false,
        // No default: submit does not know the model, and any number would be too much for the disks of some nodes.
        shape: Shape::Count { bounds: 1..=65_536, default: None },
        description: "Disk a pod in GiB, for models, data, checkpoints, temporary files and caches: the pod gets a node that \
                      has so much, and may use no more. When absent the pod asks for none, and may use what its node has \
                      free. A model of 8 billion parameters needs 150: 16 to 32 GB of weights, up to 17 GB of data, and a \
                      checkpoint of 96 GB (12 bytes a parameter), which each node reads whole when it resumes.",
    },
    Field {
        name: "config_path",
        is_required: false,
        shape: Shape::Text(Text::at_most(1024).matching(S3_OBJECT_OR_PATH)),
        description: "An object in S3 or an absolute path in the image: JSON or YAML with the keys of `extra_args`, which \
                      override it.",
    },
    Field {
        name: "resume_from_checkpoint",
        is_required: false,
        shape: Shape::BooleanOr(Text::ANY.matching("^(latest|best|step-[0-9]+)$")),
        description: "Which checkpoint of the run to start from: none; with true the newest complete one if there is any; \
                      or one that must be there, `latest`, `best` (least loss) or `step-N`, else 409 \
                      `resume_target_not_found`.",
    },
    Field {
        name: "extra_args",
        is_required: false,
        shape: Shape::Object(SETTING),
        description: "Settings of the runner: any JSON. At most 64 KiB; names that the platform sets are refused. With the \
                      default image, so is what `GET /settings/{framework}` does not allow.",
    },
    Field {
        name: "env",
        is_required: false,
        shape: Shape::Texts(VARIABLE, Text::at_most(32 * 1024)),
        description: "Additional environment variables of the container: each at most 32 KiB, together 64 KiB. Names that \
                      the platform, the operator or torchrun set are refused (`RANK`, `MASTER_*`, `PET_*`, `CHECKPOINT*` \
                      and others), and so are those that choose code, credentials, endpoints or certificates (`LD_*`, \
                      `PYTHON*`, `PATH`, `HOME`, `CC`, `AWS_*`, `*_PROXY`, `SSL_*`, `NCCL_*_PLUGIN` and others: \
                      functions/core/src/request/environment.rs). An operator sets these in the image or in \
                      `training-defaults`. Other `NCCL_*`, `TORCH_*`, `HF_*` and `WANDB_*` are the caller's.",
    },
    Field {
        name: "env_from_secrets",
        is_required: false,
        shape: Shape::Texts(VARIABLE, Text::ANY.matching(SECRET_KEY)),
        description: "Environment variables whose values are keys of Kubernetes Secrets in the job's namespace, as \
                      `secret/key`, of the Secrets that `ALLOWED_SECRETS` lists. A name stands here or in `env`, by the \
                      same rules.",
    },
    Field {
        name: "labels",
        is_required: false,
        shape: Shape::Texts(METADATA_KEY, Text::at_most(63).matching(LABEL_VALUE)),
        description: "Labels of the job and its pods. The prefixes of Kubernetes, Kubeflow and the platform are refused.",
    },
    Field {
        name: "annotations",
        is_required: false,
        shape: Shape::Texts(METADATA_KEY, Text::ANY),
        description: "Annotations of the job, together at most 64 KiB. The same prefixes are refused as for labels.",
    },
    Field {
        name: "priority_class",
        is_required: false,
        shape: Shape::Text(Text::at_most(253).matching(DNS_SUBDOMAIN)),
        description: "Name of the pods' `PriorityClass`.",
    },
    Field {
        name: "queue",
        is_required: false,
        shape: Shape::Text(Text::at_most(63).matching(DNS_SUBDOMAIN)),
        description: "Name of the Kueue queue that decides when the job runs; without Kueue it is only a label.",
    },
    Field {
        name: "max_restarts",
        is_required: false,
        shape: Shape::Count { bounds: 0..=100, default: None },
        description: "Failed attempts after which the trainer starts again; `MAX_RESTARTS` (usually 3) when absent. \
                      Whatever the image, the job is given up after `num_nodes` × (2 × `max_restarts` + 5) restarts of \
                      containers.",
    },
    Field {
        name: "max_runtime_seconds",
        is_required: false,
        shape: Shape::Count { bounds: 60..=31_536_000, default: None },
        description: "The job is ended as failed after this long; never when absent.",
    },
    Field {
        name: "namespace",
        is_required: false,
        shape: Shape::Text(Text::at_most(63).matching(DNS_LABEL)),
        description: "Namespace of the job, one of `ALLOWED_NAMESPACES`; `NAMESPACE` when absent. Must agree with \
                      `?namespace=`.",
    },
    Field {
        name: "job_name",
        is_required: false,
        shape: Shape::Text(Text::at_most(63 - "-worker-0".len()).matching(DNS_LABEL_FROM_A_LETTER)),
        description: "Name of the job, else made of framework and run id. From 12 nodes it has at most 53 characters, from \
                      102 at most 52.",
    },
];

/// The names of all fields.
#[must_use]
pub fn names() -> Vec<&'static str> {
    FIELDS.iter().map(|field| field.name).collect()
}

// === impl Field ===

impl Field {
    /// The field of that name.
    pub(super) fn named(name: &str) -> Option<&'static Self> {
        FIELDS.iter().find(|field| field.name == name)
    }

    /// Whether a value says what the field's absence says too.
    pub(super) fn is_absence(&self, value: &Value) -> bool {
        value.is_null()
            || match &self.shape {
                Shape::Framework | Shape::Text(_) => false,
                Shape::Count { default, .. } => default.is_some_and(|default| value.as_u64() == Some(default.into())),
                Shape::BooleanOr(_) => *value == Value::Bool(false),
                Shape::Object(_) | Shape::Texts(..) => value.as_object().is_some_and(Map::is_empty),
            }
    }
}

// === impl Text ===

impl Text {
    const ANY: Self = Self { min: None, max: None, pattern: None };

    const fn at_most(characters: usize) -> Self {
        Self { max: Some(characters), ..Self::ANY }
    }

    const fn matching(self, pattern: &'static str) -> Self {
        Self { pattern: Some(pattern), ..self }
    }
}
