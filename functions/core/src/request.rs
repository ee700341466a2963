//! The body of POST /train: parsed into a [`TrainingJobRequest`], or refused with every violated rule at once.
//!
//! What the API server, the operator's webhook or the kubelet would refuse later is refused here.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::{
    image::{AllowedImages, ImageReference},
    layout::S3Uri,
    names::{Framework, RunId},
    problem::{Code, FieldError, Problem},
    strict_json,
};

/// Largest `extra_args`, as JSON text, in bytes.
const MAX_EXTRA_ARGS_BYTES: usize = 64 * 1024;
/// Largest value of one environment variable, and of all together, in bytes. Linux refuses to start a process with a
/// string over 131,072 bytes, which the API server would accept.
const MAX_ENV_VALUE_BYTES: usize = 32 * 1024;
const MAX_ENV_BYTES: usize = 64 * 1024;

/// The fields of a request, in the order in which messages name them.
const FIELDS: [&str; 13] = [
    "framework",
    "model_id",
    "run_id",
    "checkpoint_base_uri",
    "dataset_uri",
    "image",
    "num_nodes",
    "gpus_per_node",
    "cpus_per_node",
    "memory_per_node_gb",
    "resume_from_checkpoint",
    "extra_args",
    "env",
];

/// Names that the platform gives to the trainer itself; an argument of that name would contradict it.
const RESERVED_ARGUMENTS: [&str; 12] = [
    "framework",
    "model_id",
    "run_id",
    "dataset_uri",
    "checkpoint_base_uri",
    "checkpoint_prefix",
    "checkpoints_uri",
    "logs_uri",
    "config_uri",
    "config_path",
    "resume",
    "submission",
];

/// Environment variables that the platform, the operator or torchrun set.
const RESERVED_VARIABLES: [&str; 20] = [
    "FRAMEWORK",
    "MODEL_ID",
    "RUN_ID",
    "NUM_NODES",
    "GPUS_PER_NODE",
    "DATASET_URI",
    "LOGS_URI",
    "CONFIG_URI",
    "CONFIG_PATH",
    "SUBMISSION",
    "RESUME",
    "TRAINING_EXTRA_ARGS_JSON",
    "OMP_NUM_THREADS",
    "NVIDIA_VISIBLE_DEVICES",
    "RANK",
    "LOCAL_RANK",
    "GROUP_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "PYTHONUNBUFFERED",
];
const RESERVED_VARIABLE_PREFIXES: [&str; 5] = ["CHECKPOINT", "MASTER_", "PET_", "TORCHELASTIC_", "TORCH_ELASTIC_"];

/// What the deployment allows.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Where runs may keep their checkpoints.
    pub runs_base_uris: Vec<S3Uri>,
    /// The image of a request that names none.
    pub default_image: ImageReference,
    /// The images that a request may name.
    pub allowed_images: AllowedImages,
}

/// A request that keeps every rule.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainingJobRequest {
    /// Which runner trains.
    pub framework: Framework,
    /// What is trained: a folder in S3 or in the image, a folder's name under `MODEL_DIR`, or a hub name.
    pub model_id: String,
    /// The caller's name of the run.
    pub run_id: RunId,
    /// Where the run's prefix lies.
    pub checkpoint_base_uri: S3Uri,
    /// An object, or with a trailing slash a prefix; kept as sent, because the slash means something.
    pub dataset_uri: String,
    /// The trainer image.
    pub image: ImageReference,
    /// Number of pods.
    pub num_nodes: u32,
    /// GPUs and processes a pod; 0 is a CPU job with one process a pod.
    pub gpus_per_node: u32,
    /// CPUs a pod.
    pub cpus_per_node: u32,
    /// Memory a pod in GiB.
    pub memory_per_node_gb: u32,
    /// Whether to go on from the run's newest complete checkpoint.
    pub resume_from_checkpoint: bool,
    /// Settings of the runner.
    pub extra_args: Map<String, Value>,
    /// Additional environment variables of the container.
    pub env: BTreeMap<String, String>,
}

/// The fields of a body that are still to be read, and the rules found broken so far.
struct Fields {
    fields: Map<String, Value>,
    errors: Vec<FieldError>,
}

// === impl TrainingJobRequest ===

impl TrainingJobRequest {
    /// Parse a body.
    ///
    /// # Errors
    /// `malformed_json`, or `invalid_request` with every violated rule.
    pub fn parse(body: &[u8], rules: &Rules) -> Result<Self, Problem> {
        let body = strict_json::parse(body)
            .map_err(|error| Problem::new(Code::MalformedJson, format!("the body is not valid JSON: {error}")))?;
        let Value::Object(fields) = body else {
            return Err(Problem::invalid(vec![FieldError {
                pointer: String::new(),
                code: "type",
                detail: "must be a JSON object".to_owned(),
            }]));
        };
        let mut fields = Fields { fields, errors: Vec::new() };

        let framework = fields.text("framework", true).and_then(|text| fields.name("framework", &text));
        let model_id = fields.text("model_id", true).and_then(|text| fields.model_id(text));
        let run_id = fields.text("run_id", true).and_then(|text| fields.name("run_id", &text));
        let base = fields
            .text("checkpoint_base_uri", true)
            .and_then(|text| fields.name("checkpoint_base_uri", &text))
            .and_then(|uri| fields.base(uri, rules));
        let dataset_uri = fields.text("dataset_uri", true).and_then(|text| fields.dataset(text));
        let image = match fields.text("image", false) {
            Some(text) => fields.name("image", &text).and_then(|image| fields.image(image, rules)),
            None => Some(rules.default_image.clone()),
        };
        let num_nodes = fields.count("num_nodes", 1, 1, 1000);
        let gpus_per_node = fields.count("gpus_per_node", 1, 0, 64);
        let cpus_per_node = fields.count("cpus_per_node", 32, 1, 1024);
        let memory_per_node_gb = fields.count("memory_per_node_gb", 256, 1, 65_536);
        let resume_from_checkpoint = fields.flag("resume_from_checkpoint");
        let extra_args = fields.extra_args();
        let env = fields.env();
        fields.refuse_the_rest();

        match (framework, model_id, run_id, base, dataset_uri, image) {
            (
                Some(framework),
                Some(model_id),
                Some(run_id),
                Some(checkpoint_base_uri),
                Some(dataset_uri),
                Some(image),
            ) if fields.errors.is_empty() => Ok(Self {
                framework,
                model_id,
                run_id,
                checkpoint_base_uri,
                dataset_uri,
                image,
                num_nodes,
                gpus_per_node,
                cpus_per_node,
                memory_per_node_gb,
                resume_from_checkpoint,
                extra_args,
                env,
            }),
            _ => Err(Problem::invalid(fields.errors)),
        }
    }
}

// === impl Fields ===

impl Fields {
    fn refuse(&mut self, pointer: &str, code: &'static str, detail: impl Into<String>) {
        self.errors.push(FieldError { pointer: pointer.to_owned(), code, detail: detail.into() });
    }

    /// Take a field; null means absent.
    fn take(&mut self, field: &str) -> Option<Value> {
        self.fields.remove(field).filter(|value| !value.is_null())
    }

    fn text(&mut self, field: &str, required: bool) -> Option<String> {
        match self.take(field) {
            Some(Value::String(text)) => Some(text),
            Some(_) => {
                self.refuse(&format!("/{field}"), "type", "must be a string");
                None
            }
            None if required => {
                self.refuse(&format!("/{field}"), "required", "is required");
                None
            }
            None => None,
        }
    }

    fn name<T: std::str::FromStr<Err: std::fmt::Display>>(&mut self, field: &str, text: &str) -> Option<T> {
        match text.parse() {
            Ok(name) => Some(name),
            Err(error) => {
                self.refuse(&format!("/{field}"), "format", error.to_string());
                None
            }
        }
    }

    fn count(&mut self, field: &str, default: u32, min: u32, max: u32) -> u32 {
        let Some(value) = self.take(field) else { return default };
        let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
        if let Some(number) = number.filter(|number| (min..=max).contains(number)) {
            return number;
        }
        let code = if value.is_i64() || value.is_u64() { "range" } else { "type" };
        self.refuse(&format!("/{field}"), code, format!("must be a whole number from {min} to {max}, not in quotes"));
        default
    }

    fn flag(&mut self, field: &str) -> bool {
        match self.take(field) {
            None => false,
            Some(Value::Bool(flag)) => flag,
            Some(_) => {
                self.refuse(&format!("/{field}"), "type", "must be true or false, not in quotes");
                false
            }
        }
    }

    fn model_id(&mut self, text: String) -> Option<String> {
        let length = text.chars().count();
        if (1..=256).contains(&length) && !text.contains(char::is_control) {
            return Some(text);
        }
        self.refuse("/model_id", "format", "must be 1 to 256 characters, none of them a control character");
        None
    }

    fn base(&mut self, uri: S3Uri, rules: &Rules) -> Option<S3Uri> {
        if rules.runs_base_uris.iter().any(|base| uri.is_within(base)) {
            return Some(uri);
        }
        let allowed: Vec<_> = rules.runs_base_uris.iter().map(|base| format!("`{base}`")).collect();
        self.refuse("/checkpoint_base_uri", "not_allowed", format!("must be or lie below {}", allowed.join(" or ")));
        None
    }

    fn dataset(&mut self, text: String) -> Option<String> {
        match text.parse::<S3Uri>() {
            Ok(uri) if uri.key().is_empty() => {
                self.refuse("/dataset_uri", "format", "must name an object, or end its prefix with a slash");
                None
            }
            Ok(_) if text.ends_with("//") => {
                self.refuse("/dataset_uri", "format", "must end in at most one slash");
                None
            }
            Ok(_) => Some(text),
            Err(error) => {
                self.refuse("/dataset_uri", "format", error.to_string());
                None
            }
        }
    }

    fn image(&mut self, image: ImageReference, rules: &Rules) -> Option<ImageReference> {
        if image == rules.default_image || rules.allowed_images.allow(&image) {
            return Some(image);
        }
        let allowed = &rules.allowed_images;
        self.refuse(
            "/image",
            "not_allowed",
            format!("must be `{}` or begin with one of: {allowed}", rules.default_image),
        );
        None
    }

    fn object(&mut self, field: &str) -> Map<String, Value> {
        match self.take(field) {
            None => Map::new(),
            Some(Value::Object(object)) => object,
            Some(_) => {
                self.refuse(&format!("/{field}"), "type", "must be an object");
                Map::new()
            }
        }
    }

    fn extra_args(&mut self) -> Map<String, Value> {
        let arguments = self.object("extra_args");
        for key in arguments.keys() {
            let pointer = pointer("extra_args", key);
            if RESERVED_ARGUMENTS.contains(&key.replace('-', "_").as_str()) {
                self.refuse(&pointer, "reserved", "is set by the platform; use the request's own field");
            } else if !is_word(key, "_-", false) {
                self.refuse(
                    &pointer,
                    "format",
                    "must have a name of letters, digits, _ and -, beginning with a letter",
                );
            }
        }
        if Value::Object(arguments.clone()).to_string().len() > MAX_EXTRA_ARGS_BYTES {
            self.refuse("/extra_args", "too_long", "must be at most 64 KiB of JSON");
        }
        arguments
    }

    fn env(&mut self) -> BTreeMap<String, String> {
        let mut variables = BTreeMap::new();
        let mut total = 0;
        for (name, value) in self.object("env") {
            let pointer = pointer("env", &name);
            let Value::String(value) = value else {
                self.refuse(&pointer, "type", "must be a string");
                continue;
            };
            total += name.len() + value.len();
            if !is_word(&name, "_", true) {
                self.refuse(
                    &pointer,
                    "format",
                    "must have a name of letters, digits and _, not beginning with a digit",
                );
            } else if is_reserved_variable(&name) {
                self.refuse(&pointer, "reserved", "is set by the platform; choose another name");
            } else if value.len() > MAX_ENV_VALUE_BYTES {
                self.refuse(&pointer, "too_long", "must be at most 32 KiB");
            } else if value.contains('\0') {
                self.refuse(&pointer, "format", "must not contain a NUL character");
            } else {
                variables.insert(name, value);
            }
        }
        if total > MAX_ENV_BYTES {
            self.refuse("/env", "too_long", "must be at most 64 KiB together");
        }
        variables
    }

    /// Whatever is left is a field that nobody knows.
    fn refuse_the_rest(&mut self) {
        for field in std::mem::take(&mut self.fields).keys() {
            let nearest = FIELDS
                .into_iter()
                .map(|known| (strsim::normalized_damerau_levenshtein(field, known), known))
                .max_by(|a, b| a.0.total_cmp(&b.0))
                .filter(|(likeness, _)| *likeness > 0.6);
            let detail = match nearest {
                Some((_, known)) => format!("is not a field of this request; did you mean `{known}`?"),
                None => format!("is not a field of this request; the fields are {}", FIELDS.join(", ")),
            };
            self.refuse(&format!("/{}", escape(field)), "unknown_field", detail);
        }
    }
}

fn pointer(field: &str, key: &str) -> String {
    format!("/{field}/{}", escape(key))
}

/// Escape one reference token of a JSON Pointer (RFC 6901, section 3), bounded so that a hostile key cannot fill an answer.
fn escape(token: &str) -> String {
    let bounded: String = token.chars().take(128).collect();
    bounded.replace('~', "~0").replace('/', "~1")
}

fn is_word(text: &str, also: &str, may_begin_with_underscore: bool) -> bool {
    let begins =
        text.chars().next().is_some_and(|c| c.is_ascii_alphabetic() || (may_begin_with_underscore && c == '_'));
    begins && text.len() <= 256 && text.chars().all(|c| c.is_ascii_alphanumeric() || also.contains(c))
}

fn is_reserved_variable(name: &str) -> bool {
    RESERVED_VARIABLES.contains(&name) || RESERVED_VARIABLE_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::json;

    /// What a deployment with one base and two kinds of image allows.
    pub(crate) fn rules() -> Rules {
        Rules {
            runs_base_uris: vec!["s3://bucket/runs".parse().expect("a base")],
            default_image: "trainer:local".parse().expect("an image"),
            allowed_images: AllowedImages::from_list("team/"),
        }
    }

    /// The smallest good body.
    pub(crate) fn body() -> Value {
        json!({
            "framework": "hf", "model_id": "tiny", "run_id": "aml_ruleset_v4",
            "checkpoint_base_uri": "s3://bucket/runs/", "dataset_uri": "s3://data/train.jsonl"
        })
    }

    fn parse(body: &Value) -> Result<TrainingJobRequest, Problem> {
        TrainingJobRequest::parse(body.to_string().as_bytes(), &rules())
    }

    #[test]
    fn the_smallest_request_gets_the_defaults() {
        let request = parse(&body()).expect("a good request");
        assert_eq!(
            (request.num_nodes, request.gpus_per_node, request.cpus_per_node, request.memory_per_node_gb),
            (1, 1, 32, 256)
        );
        assert_eq!(request.image.as_str(), "trainer:local");
        assert_eq!(request.checkpoint_base_uri.to_string(), "s3://bucket/runs");
        assert!(!request.resume_from_checkpoint);
    }

    #[test]
    fn a_dataset_prefix_keeps_its_slash() {
        let mut body = body();
        body["dataset_uri"] = json!("s3://data/shards/");
        assert_eq!(parse(&body).expect("a good request").dataset_uri, "s3://data/shards/");
    }

    #[test]
    fn each_broken_rule_is_named_by_pointer_and_code() {
        for (field, value, pointer, code) in [
            ("framework", json!("jax"), "/framework", "format"),
            ("framework", json!(null), "/framework", "required"),
            ("model_id", json!(""), "/model_id", "format"),
            ("model_id", json!(5), "/model_id", "type"),
            ("run_id", json!("a/b"), "/run_id", "format"),
            ("checkpoint_base_uri", json!("s3://other/runs"), "/checkpoint_base_uri", "not_allowed"),
            ("checkpoint_base_uri", json!("s3://bucket/runs-of-others"), "/checkpoint_base_uri", "not_allowed"),
            ("checkpoint_base_uri", json!("file:///tmp"), "/checkpoint_base_uri", "format"),
            ("dataset_uri", json!("s3://data"), "/dataset_uri", "format"),
            ("image", json!("A B"), "/image", "format"),
            ("image", json!("evil/x"), "/image", "not_allowed"),
            ("num_nodes", json!(0), "/num_nodes", "range"),
            ("num_nodes", json!("2"), "/num_nodes", "type"),
            ("num_nodes", json!(2.5), "/num_nodes", "type"),
            ("num_nodes", json!(-1), "/num_nodes", "range"),
            ("gpus_per_node", json!(65), "/gpus_per_node", "range"),
            ("cpus_per_node", json!(true), "/cpus_per_node", "type"),
            ("resume_from_checkpoint", json!("yes"), "/resume_from_checkpoint", "type"),
            ("extra_args", json!([]), "/extra_args", "type"),
            ("extra_args", json!({"x; touch pwn #": 1}), "/extra_args/x; touch pwn #", "format"),
            ("extra_args", json!({"run-id": "other"}), "/extra_args/run-id", "reserved"),
            ("extra_args", json!({"a": "x".repeat(70_000)}), "/extra_args", "too_long"),
            ("env", json!({"A": 1}), "/env/A", "type"),
            ("env", json!({"1A": "x"}), "/env/1A", "format"),
            ("env", json!({"PET_NNODES": "9"}), "/env/PET_NNODES", "reserved"),
            ("env", json!({"RUN_ID": "x"}), "/env/RUN_ID", "reserved"),
            ("env", json!({"A": "\u{0}"}), "/env/A", "format"),
            ("env", json!({"A": "x".repeat(33_000)}), "/env/A", "too_long"),
            ("a/b~c", json!(1), "/a~1b~0c", "unknown_field"),
        ] {
            let mut body = body();
            body[field] = value;
            let problem = parse(&body).expect_err(field);
            let errors: Vec<_> = problem.errors.iter().map(|error| (error.pointer.as_str(), error.code)).collect();
            assert_eq!(errors, [(pointer, code)], "{problem:?}");
        }
    }

    #[test]
    fn all_broken_rules_are_told_at_once() {
        let problem = parse(&json!({"num_node": 2, "num_nodes": 0})).expect_err("a bad request");
        let pointers: Vec<_> = problem.errors.iter().map(|error| error.pointer.as_str()).collect();
        assert_eq!(
            pointers,
            ["/framework", "/model_id", "/run_id", "/checkpoint_base_uri", "/dataset_uri", "/num_nodes", "/num_node"]
        );
        let unknown = problem.errors.last().expect("the unknown field");
        assert!(unknown.detail.contains("did you mean `num_nodes`?"), "{}", unknown.detail);
    }

    #[test]
    fn what_is_not_an_object_is_refused() {
        assert_eq!(TrainingJobRequest::parse(b"{", &rules()).expect_err("broken").code, Code::MalformedJson);
        assert_eq!(TrainingJobRequest::parse(b"", &rules()).expect_err("empty").code, Code::MalformedJson);
        assert_eq!(
            TrainingJobRequest::parse(br#"{"a":1,"a":1}"#, &rules()).expect_err("twice").code,
            Code::MalformedJson
        );
        assert_eq!(TrainingJobRequest::parse(b"[]", &rules()).expect_err("a list").code, Code::InvalidRequest);
    }
}
