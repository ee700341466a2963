//! The body of POST /train: parsed into a [`TrainingJobRequest`], or refused with every violated rule at once.
//!
//! What the API server, the operator's webhook or the kubelet would refuse later is refused here.
//!
//! ```text
//! bytes ─> strict_json ─> object ─┬─> fingerprint
//!                                 └─> reader: each field by its line in fields ─> TrainingJobRequest, or all violations
//!                                        rules, environment, image, resume: of single values
//!                                        extra_args: against the schemas of the trainer's settings
//! ```
//! `job::manifest` makes the job of it.

mod environment;
pub mod extra_args;
pub mod fields;
pub mod fingerprint;
pub mod image;
mod json_schema;
#[cfg(test)]
mod properties;
mod reader;
pub mod resume;
mod rules;
pub mod strict_json;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use training_run::{
    layout::{S3Uri, UriError},
    names::{Framework, JobName, Namespace, RunId},
};

use crate::{
    access::{caller::Caller, namespaces::Namespaces},
    api::problem::{Code, FieldError, Problem},
    nearest::nearest,
    request::{
        fingerprint::Fingerprint,
        image::{AllowedImages, ImageReference},
    },
};

use fields::MAX_MODEL_ID_CHARACTERS;
use reader::{Reader, pointer};
use resume::{Resume, ResumeError};

/// Longest key of a base: a run's keys are longer, and S3 takes 1,024 bytes.
const MAX_BASE_KEY_BYTES: usize = 512;
/// Longest path or URI, in bytes.
const MAX_PATH_BYTES: usize = 1024;
/// Largest `extra_args`, as JSON text, in bytes.
const MAX_EXTRA_ARGS_BYTES: usize = 64 * 1024;
/// Largest value of one environment variable, and of all together, in bytes. Linux refuses to start a process with a
/// string over 131,072 bytes, which the API server would accept.
const MAX_ENV_VALUE_BYTES: usize = 32 * 1024;
const MAX_ENV_BYTES: usize = 64 * 1024;
/// Largest annotations together, in bytes; Kubernetes takes 256 KiB in all.
const MAX_ANNOTATIONS_BYTES: usize = 64 * 1024;

/// What the deployment allows.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Where runs may keep their checkpoints.
    pub runs_base_uris: Vec<S3Uri>,
    /// The image of a request that names none.
    pub default_image: ImageReference,
    /// The images that a request may name.
    pub allowed_images: AllowedImages,
    /// The Kubernetes Secrets whose keys a request may ask for.
    pub allowed_secrets: Vec<String>,
    /// The namespaces that a request may name.
    pub namespaces: Namespaces,
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
    /// Disk a pod in GiB; nothing is kept for it when absent.
    pub disk_per_node_gb: Option<u32>,
    /// An object in S3 or a path in the image: settings of the runner that `extra_args` override.
    pub config_path: Option<String>,
    /// Which checkpoint to start from.
    pub resume: Resume,
    /// Settings of the runner.
    pub extra_args: Map<String, Value>,
    /// What the trainer of the default image would refuse of them.
    pub findings: Vec<FieldError>,
    /// Additional environment variables of the container.
    pub env: BTreeMap<String, String>,
    /// Environment variables whose values are keys of Kubernetes Secrets.
    pub env_from_secrets: BTreeMap<String, SecretKey>,
    /// Labels of the job and its pods.
    pub labels: BTreeMap<String, String>,
    /// Annotations of the job.
    pub annotations: BTreeMap<String, String>,
    /// Name of the pods' `PriorityClass`.
    pub priority_class: Option<String>,
    /// Name of the Kueue queue that decides when the job runs.
    pub queue: Option<String>,
    /// Failures that the run may survive; the deployment's number when absent.
    pub max_restarts: Option<u32>,
    /// The job is ended after this long.
    pub max_runtime_seconds: Option<u32>,
    /// Namespace of the job.
    pub namespace: Namespace,
    /// Name of the job.
    pub job_name: JobName,
    /// Digests of the fields as sent, by which a repeated request is known.
    pub fingerprint: Fingerprint,
}

/// One key of a Kubernetes Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretKey {
    /// Name of the Secret.
    pub secret: String,
    /// Key in it.
    pub key: String,
}

// === impl TrainingJobRequest ===

impl TrainingJobRequest {
    /// Parse a body. The namespace may also be named by the query.
    ///
    /// # Errors
    /// `malformed_json`, `invalid_request` with every violated rule, or `namespace_not_allowed`.
    pub fn parse(body: &[u8], query_namespace: Option<&str>, rules: &Rules, caller: &Caller) -> Result<Self, Problem> {
        let body = strict_json::parse(body)
            .map_err(|error| Problem::new(Code::MalformedJson, format!("the body is not valid JSON: {error}")))?;
        let Value::Object(body) = body else {
            return Err(Problem::invalid(vec![FieldError {
                pointer: String::new(),
                code: "type",
                detail: "must be a JSON object".to_owned(),
            }]));
        };
        let digests = Fingerprint::of(&body);
        let mut body = Reader::new(body);

        let framework = read_framework(&mut body);
        let model_id = read_model_id(&mut body);
        let run_id: Option<RunId> = body.value("run_id");
        let base = read_base(&mut body, rules);
        let dataset_uri = read_dataset(&mut body);
        let image = read_image(&mut body, rules);
        let num_nodes = body.count("num_nodes");
        let gpus_per_node = body.count("gpus_per_node");
        let cpus_per_node = body.count("cpus_per_node");
        let memory_per_node_gb = body.count("memory_per_node_gb");
        let disk_per_node_gb = body.count("disk_per_node_gb");
        let config_path = read_config_path(&mut body);
        let resume = read_resume(&mut body);
        let extra_args = read_extra_args(&mut body);
        let findings = framework.map(|framework| extra_args::findings(framework, &extra_args)).unwrap_or_default();
        let env = read_env(&mut body);
        let env_from_secrets = read_env_from_secrets(&mut body, rules, &env);
        let labels = body.texts("labels", rules::label);
        let annotations = read_annotations(&mut body);
        let priority_class = read_priority_class(&mut body);
        let queue = read_name(&mut body, "queue", |name| rules::is_subdomain(name) && rules::is_label_value(name));
        let max_restarts = body.count("max_restarts");
        let max_runtime_seconds = body.count("max_runtime_seconds");
        let namespace = read_namespace(&mut body, query_namespace);
        let job_name = read_job_name(&mut body, num_nodes);

        let finished = body.finish();
        let is_default_image = image.as_ref() == Some(&rules.default_image);
        let required = (framework, model_id, run_id, base, dataset_uri, image);
        let sizes = (num_nodes, gpus_per_node, cpus_per_node, memory_per_node_gb);
        let (
            Ok(()),
            (Some(framework), Some(model_id), Some(run_id), Some(checkpoint_base_uri), Some(dataset_uri), Some(image)),
            (Some(num_nodes), Some(gpus_per_node), Some(cpus_per_node), Some(memory_per_node_gb)),
        ) = (&finished, required, sizes)
        else {
            let mut errors = finished.err().unwrap_or_default();
            if is_default_image {
                errors.extend(findings);
            }
            return Err(Problem::invalid(errors));
        };
        Ok(Self {
            namespace: rules.namespaces.choose(namespace.as_deref(), caller)?,
            job_name: job_name.unwrap_or_else(|| JobName::of_run(framework, &run_id, num_nodes)),
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
            disk_per_node_gb,
            config_path,
            resume,
            extra_args,
            findings,
            env,
            env_from_secrets,
            labels,
            annotations,
            priority_class,
            queue,
            max_restarts,
            max_runtime_seconds,
            fingerprint: digests,
        })
    }

    /// Why no job is made of this request, whatever else it says: the default image's trainer would refuse its settings.
    /// Of another image that is not known. A job that is there already answers an equal request all the same, because an
    /// older release may have made it.
    #[must_use]
    pub fn settings_problem(&self, rules: &Rules) -> Option<Problem> {
        let is_refused = self.image == rules.default_image && !self.findings.is_empty();
        is_refused.then(|| Problem::invalid(self.findings.clone()))
    }
}

fn read_framework(body: &mut Reader) -> Option<Framework> {
    let text = body.text("framework")?;
    text.parse()
        .map_err(|error: training_run::names::NameError| {
            let guess = nearest(&text, &Framework::ALL.map(Framework::as_str));
            let guess = guess.map(|guess| format!("; did you mean `{guess}`?")).unwrap_or_default();
            body.refuse("/framework", "format", format!("{error}{guess}"));
        })
        .ok()
}

fn read_model_id(body: &mut Reader) -> Option<String> {
    let text = body.text("model_id")?;
    if (1..=MAX_MODEL_ID_CHARACTERS).contains(&text.chars().count()) && !text.contains(char::is_control) {
        return Some(text);
    }
    let detail = format!("must be 1 to {MAX_MODEL_ID_CHARACTERS} characters, none of them a control character");
    body.refuse("/model_id", "format", detail);
    None
}

fn read_base(body: &mut Reader, rules: &Rules) -> Option<S3Uri> {
    let uri: S3Uri = body.value("checkpoint_base_uri")?;
    if uri.key().len() > MAX_BASE_KEY_BYTES {
        let detail = format!("must have a key of at most {MAX_BASE_KEY_BYTES} bytes, so that the run's own keys fit");
        body.refuse("/checkpoint_base_uri", "too_long", detail);
        return None;
    }
    if uri.has_reserved_segment() {
        body.refuse("/checkpoint_base_uri", "reserved", UriError::Reserved.to_string());
        return None;
    }
    if rules.runs_base_uris.iter().any(|base| uri.is_within(base)) {
        return Some(uri);
    }
    let allowed: Vec<_> = rules.runs_base_uris.iter().map(|base| format!("`{base}`")).collect();
    body.refuse("/checkpoint_base_uri", "not_allowed", format!("must be or lie below {}", allowed.join(" or ")));
    None
}

fn read_dataset(body: &mut Reader) -> Option<String> {
    let text = body.text("dataset_uri")?;
    let detail = match text.parse::<S3Uri>() {
        Ok(uri) if uri.key().is_empty() => "must name an object, or end its prefix with a slash".to_owned(),
        Ok(_) if text.ends_with("//") => "must end in at most one slash".to_owned(),
        Ok(_) => return Some(text),
        Err(error) => error.to_string(),
    };
    body.refuse("/dataset_uri", "format", detail);
    None
}

fn read_image(body: &mut Reader, rules: &Rules) -> Option<ImageReference> {
    let Some(text) = body.text("image") else { return Some(rules.default_image.clone()) };
    let image: ImageReference = text
        .parse()
        .map_err(|error: crate::request::image::ImageError| body.refuse("/image", "format", error.to_string()))
        .ok()?;
    if image == rules.default_image || rules.allowed_images.allow(&image) {
        return Some(image);
    }
    let detail =
        format!("must be `{}` or an image that one of these allows: {}", rules.default_image, rules.allowed_images);
    body.refuse("/image", "not_allowed", detail);
    None
}

fn read_config_path(body: &mut Reader) -> Option<String> {
    let text = body.text("config_path")?;
    let is_path = text.len() <= MAX_PATH_BYTES && !text.contains(char::is_control);
    let is_object = || text.parse::<S3Uri>().is_ok_and(|uri| !uri.key().is_empty()) && !text.ends_with('/');
    if is_path && (is_object() || (text.starts_with('/') && text.len() > 1 && !text.ends_with('/'))) {
        return Some(text);
    }
    body.refuse("/config_path", "format", "must be the s3:// URI of an object, or an absolute path in the image");
    None
}

fn read_resume(body: &mut Reader) -> Resume {
    match body.take("resume_from_checkpoint") {
        None | Some(Value::Bool(false)) => Resume::No,
        Some(Value::Bool(true)) => Resume::IfAny,
        Some(Value::String(text)) => {
            let target = text.parse().map(Resume::From);
            target.unwrap_or_else(|error: ResumeError| {
                body.refuse("/resume_from_checkpoint", "format", error.to_string());
                Resume::No
            })
        }
        Some(_) => {
            body.refuse("/resume_from_checkpoint", "type", ResumeError.to_string());
            Resume::No
        }
    }
}

fn read_extra_args(body: &mut Reader) -> Map<String, Value> {
    let arguments = body.object("extra_args");
    for key in arguments.keys() {
        if let Some((code, detail)) = rules::argument_name(key) {
            body.refuse(&pointer("extra_args", key), code, detail);
        }
    }
    if Value::Object(arguments.clone()).to_string().len() > MAX_EXTRA_ARGS_BYTES {
        body.refuse(
            "/extra_args",
            "too_long",
            "must be at most 64 KiB of JSON; put more into an object and name it by `config_path`",
        );
        return Map::new();
    }
    arguments
}

fn read_env(body: &mut Reader) -> BTreeMap<String, String> {
    let variables = body.texts("env", |name, value| {
        environment::variable(name, Some(value)).or_else(|| {
            if value.len() > MAX_ENV_VALUE_BYTES {
                Some(("too_long", "must be at most 32 KiB".to_owned()))
            } else if value.contains('\0') {
                Some(("format", "must not contain a NUL character".to_owned()))
            } else {
                None
            }
        })
    });
    if bytes(&variables) > MAX_ENV_BYTES {
        body.refuse("/env", "too_long", "must be at most 64 KiB together");
    }
    variables
}

fn read_env_from_secrets(
    body: &mut Reader,
    rules: &Rules,
    env: &BTreeMap<String, String>,
) -> BTreeMap<String, SecretKey> {
    let texts = body.texts("env_from_secrets", |name, value| {
        environment::variable(name, None).or_else(|| {
            if env.contains_key(name) {
                return Some(("duplicate", "is set in `env` already; keep one of the two".to_owned()));
            }
            let Some(SecretKey { secret, key }) = SecretKey::of(value) else {
                return Some((
                    "format",
                    "must be \"secret/key\": the name of a Kubernetes Secret and a key in it".to_owned(),
                ));
            };
            if rules.allowed_secrets.contains(&secret) {
                return (!is_secret_key(&key))
                    .then(|| ("format", "must name a key of at most 253 of A-Z a-z 0-9 . _ -".to_owned()));
            }
            let allowed = match rules.allowed_secrets.as_slice() {
                [] => "this deployment allows no secrets".to_owned(),
                allowed => format!("must name one of the allowed secrets: {}", allowed.join(", ")),
            };
            Some(("not_allowed", allowed))
        })
    });
    texts.into_iter().filter_map(|(name, value)| Some((name, SecretKey::of(&value)?))).collect()
}

fn read_annotations(body: &mut Reader) -> BTreeMap<String, String> {
    let annotations = body.texts("annotations", |key, _| rules::metadata_key(key));
    if bytes(&annotations) > MAX_ANNOTATIONS_BYTES {
        body.refuse("/annotations", "too_long", "must be at most 64 KiB together");
    }
    annotations
}

fn read_name(body: &mut Reader, field: &str, is_good: impl Fn(&str) -> bool) -> Option<String> {
    let name = body.text(field)?;
    if is_good(&name) {
        return Some(name);
    }
    let detail = "must be the name of a Kubernetes object: a-z 0-9 - ., beginning and ending with a letter or digit";
    body.refuse(&format!("/{field}"), "format", detail);
    None
}

fn read_priority_class(body: &mut Reader) -> Option<String> {
    let name = read_name(body, "priority_class", rules::is_subdomain)?;
    if name.starts_with("system-") {
        let detail = "must not be one of Kubernetes' own, which outrank every other pod of the cluster";
        body.refuse("/priority_class", "reserved", detail);
        return None;
    }
    Some(name)
}

fn read_namespace(body: &mut Reader, from_query: Option<&str>) -> Option<String> {
    let from_body = body.value::<Namespace>("namespace").map(|namespace| namespace.to_string());
    match (from_body, from_query) {
        (Some(named), Some(query)) if named != query => {
            body.refuse("/namespace", "conflict", "must agree with the parameter ?namespace=; name it once");
            None
        }
        (named, query) => named.or_else(|| query.map(str::to_owned)),
    }
}

fn read_job_name(body: &mut Reader, num_nodes: Option<u32>) -> Option<JobName> {
    let name: JobName = body.value("job_name")?;
    // Of a number that is refused, the name that fits one pod is not refused too.
    let num_nodes = num_nodes.unwrap_or(1);
    let limit = JobName::max_length(num_nodes);
    if name.as_str().len() <= limit {
        return Some(name);
    }
    let detail =
        format!("must be at most {limit} characters, so that the services of its {num_nodes} pods can be named");
    body.refuse("/job_name", "too_long", detail);
    None
}

// === impl SecretKey ===

impl SecretKey {
    /// A secret's name and a key, from `secret/key`.
    fn of(text: &str) -> Option<Self> {
        let (secret, key) = text.split_once('/')?;
        (!secret.is_empty() && !key.is_empty()).then(|| Self { secret: secret.to_owned(), key: key.to_owned() })
    }
}

/// A key of a Secret (Kubernetes, `IsConfigMapKey`).
fn is_secret_key(key: &str) -> bool {
    let is_good = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    key.len() <= 253 && key.bytes().all(is_good) && key != "." && !key.starts_with("..")
}

fn bytes(entries: &BTreeMap<String, String>) -> usize {
    entries.iter().map(|(name, value)| name.len() + value.len()).sum()
}
