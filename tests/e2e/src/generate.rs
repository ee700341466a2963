//! Requests by chance that must be accepted, up to every limit of the contract.
//!
//! A run is known by its seed, which every test prints when it fails; `SEED=<number>` repeats it.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow};
use proptest::{
    collection::vec,
    prelude::*,
    sample::select,
    strategy::ValueTree,
    string::string_regex,
    test_runner::{RngAlgorithm, TestRng, TestRunner},
};
use serde_json::{Map, Value, json};

use crate::World;

/// Sizes of the contract, in bytes.
pub(crate) const MAX_BODY: usize = 128 * 1024;
const MAX_ENV_VALUE: usize = 32 * 1024;
const MAX_TOGETHER: usize = 64 * 1024;
const MAX_KEY: usize = 900;
const MAX_BASE_KEY: usize = 512;
/// What `serde_json` takes: an object in `extra_args` is the third level already.
const DEEPEST: usize = 120;
/// The twin's.
const DEFAULT_IMAGE: &str = "trainer:local";

/// Where values come from.
pub struct Chance {
    runner: TestRunner,
    /// By which the same values come again.
    pub seed: u64,
}

/// What the deployment lets requests name.
#[derive(Clone, Debug)]
pub struct Deployment {
    /// Where runs are kept.
    pub runs_base_uri: String,
    /// A run of `hf` there that has complete checkpoints, two of them those of `trained_steps`.
    pub trained_run: String,
    /// Steps of `trained_run`.
    pub trained_steps: [u64; 2],
    /// Namespaces.
    pub namespaces: Vec<String>,
}

/// One thing of a request that is as large as it may be.
#[derive(Clone, Debug)]
enum Large {
    EnvValue(char),
    Env(char),
    ExtraArgs(char),
    DeepExtraArgs,
    Annotations(char),
    Labels,
}

// === impl Chance ===

impl Chance {
    /// With the seed of the variable SEED, or else a new one.
    ///
    /// # Errors
    /// SEED is no number.
    pub fn new() -> Result<Self> {
        let seed = match std::env::var("SEED") {
            Ok(seed) => seed.parse().context("SEED must be a number")?,
            Err(_) => u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros())?,
        };
        let mut bytes = [0; 32];
        bytes.iter_mut().zip(seed.to_le_bytes()).for_each(|(byte, seed)| *byte = seed);
        let random = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        Ok(Self { runner: TestRunner::new_with_rng(ProptestConfig::default(), random), seed })
    }

    /// The next value.
    ///
    /// # Errors
    /// The strategy gives none.
    pub fn next<T: std::fmt::Debug>(&mut self, strategy: &impl Strategy<Value = T>) -> Result<T> {
        let tree = strategy.new_tree(&mut self.runner).map_err(|reason| anyhow!("no value: {reason}"))?;
        Ok(tree.current())
    }
}

// === impl Deployment ===

impl Deployment {
    /// The twin's.
    ///
    /// # Errors
    /// A setting is missing.
    pub fn of(world: &World) -> Result<Self> {
        Ok(Self {
            runs_base_uri: world.twin.setting("RUNS_BASE_URI")?.to_owned(),
            trained_run: "generated-trained".to_owned(),
            trained_steps: [20, 40],
            namespaces: vec!["training".to_owned(), "training-two".to_owned()],
        })
    }
}

/// Bodies that must be accepted.
pub fn accepted(deployment: &Deployment) -> BoxedStrategy<Value> {
    let base = deployment.runs_base_uri.clone();
    let base_key = base.splitn(4, '/').nth(3).map_or(0, str::len);
    let required = vec![
        ("framework", select(vec!["hf", "nemo", "meta"]).prop_map(Value::from).boxed()),
        ("model_id", printable(1, 256)),
        ("run_id", run_id()),
        (
            "checkpoint_base_uri",
            (key_below(MAX_BASE_KEY - base_key), "/{0,2}")
                .prop_map(move |(key, end)| json!(format!("{base}{key}{end}")))
                .boxed(),
        ),
        (
            "dataset_uri",
            (bucket(), key_below(MAX_KEY - "x".len()), "/?")
                .prop_map(|(bucket, key, end)| json!(format!("s3://{bucket}/x{key}{end}")))
                .boxed(),
        ),
    ];
    let required: Vec<_> =
        required.into_iter().map(|(field, value)| value.prop_map(move |value| (field, value))).collect();
    let optional: Vec<_> = optional(deployment)
        .into_iter()
        .map(|(field, value)| {
            // A null says the same as nothing.
            let value = prop_oneof![8 => value, 1 => Just(Value::Null)];
            proptest::option::of(value.prop_map(move |value| (field, value)))
        })
        .collect();
    let resumed = proptest::option::weighted(0.05, resumed(deployment));
    let large = proptest::option::weighted(0.08, large());
    (required, optional, resumed, large)
        .prop_map(|(required, optional, resumed, large)| {
            let fields =
                required.into_iter().chain(optional.into_iter().flatten()).chain(resumed.into_iter().flatten());
            let mut body: Map<String, Value> = fields.map(|(field, value)| (field.to_owned(), value)).collect();
            if let Some(large) = large {
                large.put_into(&mut body);
            }
            cut_job_name(&mut body);
            name_an_image_of_any_settings(&mut body);
            Value::Object(body)
        })
        .prop_filter("larger than a body may be", |body| body.to_string().len() <= MAX_BODY)
        .prop_filter("as if it had not been UTF-8", |body| !body.to_string().contains('\u{fffd}'))
        .boxed()
}

fn optional(deployment: &Deployment) -> Vec<(&'static str, BoxedStrategy<Value>)> {
    let entries = |name: BoxedStrategy<String>, value: BoxedStrategy<Value>| {
        vec((name, value), 0..6).prop_map(|entries| Value::Object(entries.into_iter().collect())).boxed()
    };
    let variable = text("[A-Za-z_][A-Za-z0-9_]{0,40}").prop_map(|name| format!("USER_{name}")).boxed();
    let secret_variable = text("[A-Z_][A-Z0-9_]{0,40}").prop_map(|name| format!("SECRET_{name}")).boxed();
    let key = prop_oneof![
        3 => text("[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"),
        3 => text(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?(\.[a-z0-9]{1,20}){1,3}/[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"),
        1 => text(r"([a-z]{60}\.){4}[a-z]{9}/[a-z]{63}"),
    ].boxed();
    let name = |regex| text(regex).prop_map(Value::from).boxed();
    vec![
        ("image", image()),
        ("num_nodes", number(1, 1000)),
        ("gpus_per_node", number(0, 64)),
        ("cpus_per_node", number(1, 1024)),
        ("memory_per_node_gb", number(1, 65_536)),
        ("disk_per_node_gb", number(1, 65_536)),
        (
            "config_path",
            prop_oneof![
                (bucket(), key_below(MAX_KEY - "x".len()))
                    .prop_map(|(bucket, key)| json!(format!("s3://{bucket}/x{key}"))),
                printable(1, 250).prop_map(|path| json!(format!("/{}x", path.as_str().unwrap_or_default()))),
            ]
            .boxed(),
        ),
        ("resume_from_checkpoint", any::<bool>().prop_map(Value::from).boxed()),
        ("extra_args", entries(text("arg[A-Za-z0-9_-]{0,60}"), json_value())),
        ("env", entries(variable, any::<String>().prop_map(|value| json!(value.replace('\0', "$"))).boxed())),
        (
            "env_from_secrets",
            entries(secret_variable, name("(hugging-face|second-secret)/[A-Za-z0-9_-][A-Za-z0-9._-]{0,60}")),
        ),
        ("labels", entries(key.clone(), name("([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?"))),
        ("annotations", entries(key, any::<String>().prop_map(Value::from).boxed())),
        ("priority_class", name(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]{1,50}){0,3}")),
        ("queue", name(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?(\.[a-z0-9]{1,19}){0,2}|[a-z]{63}")),
        ("max_restarts", number(0, 100)),
        ("max_runtime_seconds", number(60, 31_536_000)),
        ("namespace", select(deployment.namespaces.clone()).prop_map(Value::from).boxed()),
        // As long as any number of nodes allows; cut later.
        ("job_name", name("[a-z]([a-z0-9-]{0,52}[a-z0-9])?")),
    ]
}

/// A start from a checkpoint that is there.
fn resumed(deployment: &Deployment) -> BoxedStrategy<Vec<(&'static str, Value)>> {
    let [first, second] = deployment.trained_steps;
    let targets = vec!["latest".to_owned(), "best".to_owned(), format!("step-{first}"), format!("step-{second:012}")];
    let (base, run) = (deployment.runs_base_uri.clone(), deployment.trained_run.clone());
    let fields = move |target: String| {
        vec![
            ("framework", json!("hf")),
            ("run_id", json!(run)),
            ("checkpoint_base_uri", json!(base)),
            ("resume_from_checkpoint", json!(target)),
        ]
    };
    select(targets).prop_map(fields).boxed()
}

fn large() -> impl Strategy<Value = Large> {
    let filling = || select(vec!['x', '$', 'é', '語', '~']);
    prop_oneof![
        prop_oneof![filling(), Just('"'), Just('\\')].prop_map(Large::EnvValue),
        filling().prop_map(Large::Env),
        prop_oneof![filling(), Just('"'), Just('\n')].prop_map(Large::ExtraArgs),
        Just(Large::DeepExtraArgs),
        filling().prop_map(Large::Annotations),
        Just(Large::Labels),
    ]
}

/// The default image takes the settings alone that its trainer has.
fn name_an_image_of_any_settings(body: &mut Map<String, Value>) {
    let is_default = body.get("image").is_none_or(|image| image.is_null() || image == DEFAULT_IMAGE);
    if is_default && body.get("extra_args").is_some_and(|arguments| arguments != &json!({}) && !arguments.is_null()) {
        body.insert("image".to_owned(), "stub".into());
    }
}

// === impl Large ===

impl Large {
    fn put_into(self, body: &mut Map<String, Value>) {
        // What else may be large gives way.
        for field in ["extra_args", "env", "annotations"] {
            body.remove(field);
        }
        let (field, value) = match self {
            Self::EnvValue(filling) => ("env", json!({"A": filled(filling, MAX_ENV_VALUE)})),
            Self::Env(filling) => {
                let half = MAX_TOGETHER / 2 - "A".len();
                ("env", json!({"A": filled(filling, half), "B": filled(filling, half)}))
            }
            Self::ExtraArgs(filling) => {
                let escaped = Value::from(filling.to_string()).to_string().len() - 2;
                let room = (MAX_TOGETHER - r#"{"a":""}"#.len()) / escaped;
                ("extra_args", json!({"a": filling.to_string().repeat(room)}))
            }
            Self::DeepExtraArgs => {
                let deep = (0..DEEPEST)
                    .fold(json!(1), |value, depth| if depth % 2 == 0 { json!([value]) } else { json!({"a": value}) });
                ("extra_args", json!({"a": deep}))
            }
            Self::Annotations(filling) => ("annotations", json!({"a": filled(filling, MAX_TOGETHER - 1)})),
            Self::Labels => {
                ("labels", (0..500).map(|label| (format!("label-{label}"), json!("v".repeat(63)))).collect())
            }
        };
        body.insert(field.to_owned(), value);
    }
}

/// As many bytes of a character as fit.
fn filled(filling: char, bytes: usize) -> String {
    filling.to_string().repeat(bytes / filling.len_utf8())
}

/// The length that the number of pods allows: `<name>-worker-<last index>` must be a DNS label.
fn cut_job_name(body: &mut Map<String, Value>) {
    let nodes = body.get("num_nodes").and_then(Value::as_u64).unwrap_or(1);
    let limit = 63 - format!("-worker-{}", nodes.saturating_sub(2)).len();
    if let Some(Value::String(name)) = body.get_mut("job_name") {
        name.truncate(limit);
        *name = name.trim_end_matches('-').to_owned();
    }
}

/// A number, often one of its bounds.
fn number(min: u32, max: u32) -> BoxedStrategy<Value> {
    prop_oneof![1 => Just(min), 1 => Just(max), 4 => min..=max].prop_map(Value::from).boxed()
}

/// One of some words.
pub fn words(words: &[&'static str]) -> BoxedStrategy<String> {
    select(words.to_vec()).prop_map(str::to_owned).boxed()
}

/// Texts that a regular expression matches.
///
/// # Panics
/// It is none.
pub fn text(regex: &str) -> BoxedStrategy<String> {
    string_regex(regex).unwrap_or_else(|error| unreachable!("{regex}: {error}")).boxed()
}

/// A text of any characters but control characters, sometimes as long as it may be.
fn printable(min: usize, max: usize) -> BoxedStrategy<Value> {
    let character = any::<char>().prop_map(|character| if character.is_control() { '$' } else { character });
    prop_oneof![4 => vec(character.clone(), min..=40), 1 => vec(character, max)]
        .prop_map(|characters| Value::from(characters.into_iter().collect::<String>()))
        .boxed()
}

fn run_id() -> BoxedStrategy<Value> {
    prop_oneof![
        4 => text("[A-Za-z0-9][A-Za-z0-9._-]{4,40}[A-Za-z0-9]"),
        1 => text("[A-Za-z0-9]{63}"),
        1 => text(r"[A-Za-z0-9][._-]{61}[A-Za-z0-9]"),
    ]
    .prop_map(Value::from)
    .boxed()
}

fn bucket() -> BoxedStrategy<String> {
    text(r"[a-z0-9][a-z0-9-]{1,28}[a-z0-9](\.[a-z0-9]{1,8}){0,3}")
}

/// Nothing, or more segments of a key, sometimes as many bytes as it may have.
fn key_below(longest: usize) -> BoxedStrategy<String> {
    let segment = prop_oneof![
        text("[A-Za-z0-9_ -]{1,20}"),
        vec(any::<char>(), 1..8).prop_map(|characters| {
            let good = |character: &char| !character.is_control() && !"/\u{fffe}\u{ffff}".contains(*character);
            characters.into_iter().filter(good).chain(['x']).collect()
        }),
    ];
    prop_oneof![
        3 => Just(String::new()),
        6 => vec(segment, 1..4).prop_map(|segments| format!("/{}", segments.join("/"))),
        1 => Just(format!("/{}", "k".repeat(longest - 1))),
    ]
    .boxed()
}

fn image() -> BoxedStrategy<Value> {
    let digest = text("@sha256:[0-9a-f]{64}");
    let tag = text("(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?");
    let path = text("unknown[.]invalid/[a-z0-9]{1,20}((-|__|[.])[a-z0-9]{1,20}){0,3}(/[a-z0-9]{1,30}){0,4}");
    prop_oneof![
        Just(DEFAULT_IMAGE.to_owned()),
        tag.clone().prop_map(|tag| format!("stub{tag}")),
        (path, tag, proptest::option::of(digest))
            .prop_map(|(path, tag, digest)| format!("{path}{tag}{}", digest.unwrap_or_default())),
    ]
    .prop_map(Value::from)
    .boxed()
}

/// Any JSON value.
pub(crate) fn json_value() -> BoxedStrategy<Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        select(vec![
            "",
            "$(X)",
            "$$",
            "'\"\\`;&|",
            "s3://bucket/../x",
            "latest",
            "step-5",
            "\u{202e}\u{0}\u{7f}",
            "true",
            "1"
        ])
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 6, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            vec((any::<String>(), inner), 0..4).prop_map(|entries| Value::Object(entries.into_iter().collect())),
        ]
    })
    .boxed()
}
