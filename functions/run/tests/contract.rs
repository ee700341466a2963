//! Runs `tests/contract/*.json`, which the trainer runs too. An operation that this language does not know fails, unless its
//! file says that it is the trainer's alone, and so does one of this language's operations that has no vector.

#![expect(clippy::panic, reason = "a test fails by panicking, in its helpers too")]

use std::{collections::BTreeSet, fmt::Display, str::FromStr};

use serde_json::{Value, json};
use training_run::{
    attempt::{Attempt, AttemptError},
    digest::Digest,
    entry::{IndexEntry, IndexError},
    layout::{self, RunKey, RunPrefix, S3Uri},
    lineage::{Known, Lineage, Preference, candidates},
    marker::{File, Marker, MarkerError},
    names::{Framework, JobName, Namespace, RunId, Step, Submission},
    owner::{Owner, Write},
    progress::Progress,
};

type Operation = (&'static str, fn(&Value) -> Value);

/// The vectors of a file, less those of operations that the trainer alone has.
fn vectors(file: &str) -> Vec<Value> {
    let path = format!("{}/../../tests/contract/{file}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let mut document: Value = serde_json::from_str(&text).expect("the vectors are JSON");
    let Value::Array(mut vectors) = document["vectors"].take() else { panic!("{path}: no list of vectors") };
    let trainer_only = document["trainer_only"].as_array().cloned().unwrap_or_default();
    vectors.retain(|vector| !trainer_only.contains(&vector["op"]));
    vectors
}

fn run(file: &str, operations: &[Operation]) {
    let mut seen = BTreeSet::new();
    for vector in vectors(file) {
        let name = vector["op"].as_str().expect("an operation");
        let (_, operation) = operations
            .iter()
            .find(|(known, _)| *known == name)
            .unwrap_or_else(|| panic!("{file}: the operation `{name}` is not known here"));
        seen.insert(name.to_owned());
        assert_eq!(operation(&vector["input"]), vector["output"], "{file}: {name}: {}", vector["case"]);
    }
    let known: BTreeSet<_> = operations.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(seen, known, "{file}: operations with a vector, and operations");
}

fn text<'a>(input: &'a Value, field: &str) -> &'a str {
    input[field].as_str().expect("a text")
}

fn submission(input: &Value) -> Submission {
    text(input, "submission").parse().expect("a submission")
}

fn run_prefix(input: &Value) -> Value {
    let base = text(input, "checkpoint_base_uri").parse().expect("a base");
    let run_id: RunId = text(input, "run_id").parse().expect("a run id");
    let framework: Framework = text(input, "framework").parse().expect("a framework");
    RunPrefix::new(&base, &run_id, framework).to_string().into()
}

fn step(input: &Value) -> Step {
    Step::new(input["step"].as_u64().expect("a number")).expect("a step")
}

fn marker_key(input: &Value) -> Value {
    RunKey::Marker(step(input)).relative().into()
}

fn parse_marker_key(input: &Value) -> Value {
    json!(layout::parse_marker_key(text(input, "key")).map(Step::get))
}

fn progress_key(input: &Value) -> Value {
    RunKey::Progress(&submission(input)).relative().into()
}

fn number(input: &Value, field: &str) -> u32 {
    input[field].as_u64().and_then(|number| u32::try_from(number).ok()).expect("a number")
}

fn attempt_key(input: &Value) -> Value {
    RunKey::Attempt(&submission(input), number(input, "attempt")).relative().into()
}

fn log_key(input: &Value) -> Value {
    let submission = submission(input);
    let [attempt, rank, part] = ["attempt", "rank", "part"].map(|field| number(input, field));
    RunKey::Log { submission: &submission, attempt, rank, part }.relative().into()
}

fn parse_log_part(input: &Value) -> Value {
    json!(layout::parse_log_part(text(input, "first"), text(input, "key")))
}

fn model_prefix(input: &Value) -> Value {
    layout::model_folder(&submission(input)).into()
}

fn config_keys(input: &Value) -> Value {
    json!([RunKey::NewestConfig.relative(), RunKey::Config(&submission(input)).relative()])
}

fn data_key(input: &Value) -> Value {
    RunKey::Data(&submission(input)).relative().into()
}

fn owner_key(_: &Value) -> Value {
    RunKey::Owner.relative().into()
}

fn record_key(input: &Value) -> Value {
    let base = text(input, "checkpoint_base_uri").parse().expect("a base");
    let namespace = text(input, "namespace").parse().expect("a namespace");
    let job = text(input, "job").parse().expect("a job's name");
    layout::job_record_key(&base, &namespace, &job, &submission(input)).into()
}

/// A name as it is kept; null where it is none.
fn name<T: FromStr + Display>(input: &Value) -> Value {
    json!(text(input, "text").parse::<T>().ok().map(|name| name.to_string()))
}

fn parse(input: &Value) -> Value {
    let marker = Marker::parse(input.to_string().as_bytes()).expect("a marker");
    json!({
        "framework": marker.framework,
        "step": marker.step,
        "submission": marker.submission,
        "files": marker.files.map(|files| files.len()),
    })
}

fn reject(input: &Value) -> Value {
    reject_text(&json!({"text": input.to_string()}))
}

fn reject_text(input: &Value) -> Value {
    match Marker::parse(text(input, "text").as_bytes()) {
        Err(MarkerError::Field(field)) => field.into(),
        Err(MarkerError::Json | MarkerError::TooDeep) => "JSON".into(),
        other => panic!("not refused for what it says: {other:?}"),
    }
}

/// A marker that is filled up with spaces.
fn of_size(input: &Value) -> Value {
    let mut body = br#"{"framework": "hf", "step": 1, "saved_at": 1.0, "metadata": {}}"#.to_vec();
    body.resize(input["bytes"].as_u64().and_then(|bytes| usize::try_from(bytes).ok()).expect("a number"), b' ');
    match Marker::parse(&body) {
        Ok(_) => "read".into(),
        Err(MarkerError::TooLarge) => "too large".into(),
        Err(other) => panic!("not refused for its size: {other:?}"),
    }
}

/// A marker that has a part many times, and what closes it as often.
fn repeats(input: &Value) -> Value {
    let times = usize::try_from(number(input, "times")).expect("a length");
    let [open, close] = ["open", "close"].map(|part| text(input, part).repeat(times));
    let body = format!("{}{open}{close}{}", text(input, "head"), text(input, "tail"));
    if Marker::parse(body.as_bytes()).is_ok() { "read".into() } else { reject_text(&json!({"text": body})) }
}

fn complete(input: &Value) -> Value {
    let marker = Marker::parse(input["marker"].to_string().as_bytes()).expect("a marker");
    let listing: Vec<File> = serde_json::from_value(input["listing"].clone()).expect("a listing");
    json!(marker.state(&listing))
}

/// Checkpoints of which only step, submission and parent are told.
fn checkpoints(input: &Value) -> Vec<Known> {
    let known = |told: &Value| {
        let mut marker = json!({"framework": "hf", "saved_at": 1.0});
        marker.as_object_mut().expect("an object").extend(told.as_object().expect("an object").clone());
        let marker = Marker::parse(marker.to_string().as_bytes()).expect("a marker");
        Known { step: marker.step, submission: marker.submission, parent: marker.parent, metric: None }
    };
    input["checkpoints"].as_array().expect("a list").iter().map(known).collect()
}

fn in_line(input: &Value) -> Value {
    json!(candidates(&checkpoints(input), Preference::Newest))
}

fn superseded(input: &Value) -> Value {
    let checkpoints = checkpoints(input);
    let lineage = Lineage::of(&checkpoints);
    let superseded = checkpoints.iter().filter(|known| lineage.supersedes(known.submission.as_ref(), known.step));
    json!(superseded.map(|known| known.step).collect::<BTreeSet<_>>())
}

fn attempt_number(input: &Value) -> Value {
    json!(layout::parse_attempt(text(input, "name")))
}

/// The body of a vector: `repeated` stands `times` times before the end.
fn body(input: &Value) -> Vec<u8> {
    if let Some(bytes) = input.get("bytes") {
        return serde_json::from_value(bytes.clone()).expect("bytes");
    }
    let part = |name: &str| input.get(name).and_then(Value::as_str).unwrap_or_default();
    let times = input.get("times").map_or(0, |_| usize::try_from(number(input, "times")).expect("a length"));
    format!("{}{}{}", part("text"), part("repeated").repeat(times), part("end")).into_bytes()
}

/// What is no entry counts as a crash for whoever has to decide whether there is another start.
fn read_attempt(input: &Value) -> Value {
    match Attempt::parse(1, &body(input)) {
        Ok(Attempt { attempt: 1, cause, rank, message }) => json!({"cause": cause, "rank": rank, "message": message}),
        Ok(other) => panic!("another attempt's: {other:?}"),
        Err(AttemptError::TooLarge | AttemptError::Json | AttemptError::Field(_)) => {
            json!({"cause": "crash", "rank": null, "message": null})
        }
    }
}

#[test]
fn the_checkpoints_that_count_are_the_trainers() {
    run("lineage.json", &[("in_line", in_line), ("superseded", superseded)]);
}

#[test]
fn the_ledger_is_read_as_the_trainer_reads_it() {
    run("attempts.json", &[("number", attempt_number), ("read", read_attempt)]);
}

/// Nothing here writes progress: what the trainer writes is read whole, and passed on as it is.
#[test]
fn progress_is_passed_on_as_the_trainer_writes_it() {
    let mut seen = BTreeSet::new();
    for vector in vectors("progress.json") {
        let (operation, input, output) = (text(&vector, "op"), &vector["input"], &vector["output"]);
        let read = match operation {
            "report" => Progress::parse(output.to_string().as_bytes()),
            "read" => Progress::parse(&body(input)),
            other => panic!("the operation `{other}` is not known here"),
        };
        assert_eq!(&read.map_or("refused".into(), |progress| json!(progress)), output, "{}", vector["case"]);
        seen.insert(operation.to_owned());
    }
    assert_eq!(Vec::from_iter(seen), ["read", "report"]);
}

#[test]
fn names_are_the_trainers() {
    run(
        "names.json",
        &[
            ("run_id", name::<RunId>),
            ("framework", name::<Framework>),
            ("namespace", name::<Namespace>),
            ("job", name::<JobName>),
            ("id", name::<Submission>),
            ("s3_uri", name::<S3Uri>),
            ("checkpoint_prefix", name::<RunPrefix>),
        ],
    );
}

fn entry(input: &Value) -> Value {
    let prefix = text(input, "prefix").parse().expect("a prefix");
    let marker = Marker::parse(text(input, "marker").as_bytes()).expect("a marker");
    let listing: Vec<File> = serde_json::from_value(input["listing"].clone()).expect("a listing");
    let entry = IndexEntry::new(&prefix, &marker, text(input, "marker_etag").to_owned(), &listing);
    String::from_utf8(entry.to_body()).expect("text").into()
}

/// The names of the marker's metrics that its entry has.
fn kept(input: &Value) -> Value {
    json!(Marker::parse(&body(input)).expect("a marker").metrics.keys().collect::<Vec<_>>())
}

/// The same in whatever run, and whatever files are there.
fn digest(input: &Value) -> Value {
    let prefix = "s3://bucket/r/framework=hf".parse().expect("a prefix");
    let marker = Marker::parse(&body(input)).expect("a marker");
    Digest::of(&IndexEntry::new(&prefix, &marker, String::new(), &[])).to_string().into()
}

fn read_entry(input: &Value) -> Value {
    match IndexEntry::parse_at(&body(input), step(input)) {
        Ok(_) => "read".into(),
        Err(IndexError::Format(_)) => "refused".into(),
        Err(IndexError::Newer(_)) => "newer".into(),
        Err(other) => panic!("no body is at fault for this: {other:?}"),
    }
}

fn entry_key(input: &Value) -> Value {
    RunKey::IndexEntry(step(input)).relative().into()
}

fn parse_entry_key(input: &Value) -> Value {
    let prefix: RunPrefix = "s3://bucket/r/framework=hf".parse().expect("a prefix");
    json!(prefix.index_step(&format!("r/framework=hf/{}", text(input, "key"))))
}

fn digest_key(input: &Value) -> Value {
    RunKey::IndexDigest(step(input), text(input, "name")).relative().into()
}

/// Nothing of the trainer's reads or writes the index.
#[test]
fn the_index_is_what_the_format_says() {
    run(
        "index.json",
        &[
            ("entry", entry),
            ("kept", kept),
            ("digest", digest),
            ("read", read_entry),
            ("entry_key", entry_key),
            ("parse_entry_key", parse_entry_key),
            ("digest_key", digest_key),
        ],
    );
}

#[test]
fn the_layout_is_the_trainers() {
    run(
        "layout.json",
        &[
            ("run_prefix", run_prefix),
            ("marker_key", marker_key),
            ("parse_marker_key", parse_marker_key),
            ("progress_key", progress_key),
            ("attempt_key", attempt_key),
            ("log_key", log_key),
            ("parse_log_part", parse_log_part),
            ("model_prefix", model_prefix),
            ("config_keys", config_keys),
            ("data_key", data_key),
            ("owner_key", owner_key),
            ("record_key", record_key),
        ],
    );
}

#[test]
fn markers_are_read_as_the_trainer_writes_them() {
    run(
        "marker.json",
        &[
            ("parse", parse),
            ("reject", reject),
            ("reject_text", reject_text),
            ("of_size", of_size),
            ("repeats", repeats),
            ("complete", complete),
        ],
    );
}

/// What of an owner decides who may write.
fn read_owner(input: &Value) -> Value {
    Owner::parse(&body(input)).map_or(
        "refused".into(),
        |owner| json!({"submission": owner.submission, "claimed_by": owner.claimed_by, "released": owner.released}),
    )
}

fn write(input: &Value) -> Value {
    let owner = Owner::parse(input["owner"].to_string().as_bytes()).expect("an owner");
    match owner.write(&submission(input), input["now_ms"].as_u64().expect("a time")) {
        Write::Allowed => "allowed".into(),
        Write::Wait => "wait".into(),
        Write::Superseded => "superseded".into(),
    }
}

#[test]
fn whose_a_run_is_follows_the_contract() {
    run("owner.json", &[("read", read_owner), ("write", write)]);
}
