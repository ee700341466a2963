//! FORMAT.md's examples are what the code reads and writes.

use std::{collections::BTreeMap, fmt::Debug};

use serde::Serialize;
use serde_json::Value;
use training_run::{
    attempt::{Attempt, Cause},
    digest::Digest,
    entry::IndexEntry,
    layout::{RunKey, RunPrefix},
    marker::Marker,
    names::{Step, Submission},
    owner::{JobRecord, Owner},
    progress::Progress,
};

const FORMAT: &str = include_str!("../FORMAT.md");

/// The JSON blocks by the word behind `json`.
fn examples() -> BTreeMap<&'static str, &'static str> {
    let blocks = FORMAT.split("```json ").skip(1);
    blocks.map(|block| block.split_once("```").expect("an end").0.split_once('\n').expect("a word")).collect()
}

/// An example is the whole of what a type writes.
fn check_round_trip<T: Serialize, E: Debug>(example: &str, parse: impl FnOnce(&[u8]) -> Result<T, E>) -> T {
    let value = parse(example.as_bytes()).expect(example);
    let written: Value = serde_json::to_value(&value).expect("JSON");
    assert_eq!(written, serde_json::from_str::<Value>(example).expect("JSON"));
    value
}

#[test]
fn each_example_is_read_and_nothing_of_it_is_made_up() {
    let examples = examples();
    let words: Vec<_> = examples.keys().copied().collect();
    assert_eq!(words, ["attempt", "data", "entry", "marker", "owner", "progress", "record"]);

    check_round_trip(examples["owner"], Owner::parse);
    check_round_trip(examples["record"], JobRecord::parse);
    check_round_trip(examples["progress"], Progress::parse);
    let entry = check_round_trip(examples["entry"], IndexEntry::parse);
    assert_eq!(examples["entry"].trim_end().as_bytes(), entry.to_body(), "byte for byte");

    let attempt = Attempt::parse(2, examples["attempt"].as_bytes()).expect("an attempt");
    assert_eq!((attempt.cause, attempt.rank), (Some(Cause::OutOfMemory), Some(3)));
    let marker = Marker::parse(examples["marker"].as_bytes()).expect("a marker");
    assert_eq!((marker.step.get(), marker.files.as_ref().map(Vec::len)), (500, Some(1)));
    // The entry is that of the marker.
    let told = (entry.step, entry.size_bytes, &entry.metrics, &entry.parent);
    assert_eq!(told, (Step::new(500).expect("a step"), 532_490, &marker.metrics, &marker.parent));
    let name = format!("`index/v1/digest/999999999499/{}`", Digest::of(&entry));
    assert!(FORMAT.contains(&name), "{name}");
}

#[test]
fn the_keys_are_those_of_the_layout() {
    let prefix: RunPrefix = "s3://runs/team/first/framework=hf".parse().expect("a prefix");
    let submission: Submission = "019ad3f0-5d1c-7000-8000-000000000002".parse().expect("a submission");
    let step = Step::new(500).expect("a step");
    let log = |part| RunKey::Log { submission: &submission, attempt: 2, rank: 3, part };
    for (key, written) in [
        (RunKey::Owner, "owner"),
        (RunKey::Marker(step), "checkpoints/step-<step>.json"),
        (RunKey::Attempt(&submission, 2), "attempts/<submission>/<attempt>"),
        (RunKey::Progress(&submission), "progress/<submission>"),
        (log(0), "logs/<submission>/attempt-<attempt>/rank-<rank>.log"),
        (RunKey::NewestConfig, "config/run.json"),
        (RunKey::Config(&submission), "config/<submission>/run.json"),
        (RunKey::IndexEntry(step), "index/v1/<999999999999 - step>"),
    ] {
        assert!(FORMAT.contains(&format!("`{written}`")), "{written}");
        let example = written
            .replace("<999999999999 - step>", "999999999499")
            .replace("<submission>", submission.as_str())
            .replace("<step>", "000500")
            .replace("<attempt>", "2")
            .replace("<rank>", "3");
        assert_eq!(prefix.key(&key), format!("team/first/framework=hf/{example}"));
    }
    assert!(prefix.key(&log(1)).ends_with("rank-3.log.000001"));
}
