//! A run in a bucket in memory: a trainer that writes and deletes checkpoints step by step, the events that S3 would send
//! of it, and what the index should be in the end.
//!
//! The trainer's order of calls is that of `saving.py` and `retention.py` in `trainer/training/checkpoint`.

#![expect(dead_code, unreachable_pub, reason = "each test uses a part of it")]

use std::collections::BTreeMap;

use indexer::Indexer;
use reindex::{Difference, places, reindex};
use serde_json::{Value, json};
use training_run::{entry::IndexEntry, layout::RunPrefix, lineage::Mode, marker::State};
use training_store::{Store, testing::Bucket};

pub const RUN: &str = "runs/r/framework=hf";
pub const OLD: &str = "01970000-0000-7000-8000-00000000000a";
pub const NEW: &str = "01980000-0000-7000-8000-00000000000b";

/// One call of a trainer to the storage.
#[derive(Clone, Debug)]
pub enum Write {
    Put(String, String),
    Delete(String),
    /// Delete all that lies in a folder, but not what lies in that one below it.
    Clear(String, Option<String>),
}

// === impl Write ===

impl Write {
    /// Do it; the event that S3 sends of it, if it is a marker's and changes something.
    pub fn apply(&self, bucket: &Bucket) -> Option<Value> {
        match self {
            Self::Put(key, body) => {
                bucket.write(key, body);
                is_marker(key).then(|| event("ObjectCreated:Put", key))
            }
            Self::Delete(key) => {
                let was_there = bucket.body(key).is_some();
                bucket.remove(key);
                (was_there && is_marker(key)).then(|| event("ObjectRemoved:Delete", key))
            }
            Self::Clear(folder, kept) => {
                let is_kept = |key: &str| kept.as_ref().is_some_and(|kept| key.starts_with(kept));
                for key in bucket.objects(folder).into_keys().filter(|key| !is_kept(key)) {
                    bucket.remove(&key);
                }
                None
            }
        }
    }
}

pub fn prefix() -> RunPrefix {
    format!("s3://bucket/{RUN}").parse().expect("a prefix")
}

fn is_marker(key: &str) -> bool {
    key.contains("/step-")
}

pub fn marker_key(step: u64) -> String {
    format!("{RUN}/checkpoints/step-{step:06}.json")
}

pub fn entry_key(step: u64) -> String {
    format!("{RUN}/index/v1/{:012}", 999_999_999_999 - step)
}

/// The folder of a step's files, with its slash.
fn folder(step: u64) -> String {
    format!("{RUN}/checkpoints/checkpoint-{step}/")
}

/// Saving, as the trainer does it: new files beside those that are there, the marker in place of the one that is there, and
/// then the other files away. `content` tells one saving from another.
pub fn save(step: u64, submission: &str, content: u64) -> Vec<Write> {
    let new = format!("{}{submission}-{content}/", folder(step));
    [files_and_marker(step, submission, content, &new), vec![Write::Clear(folder(step), Some(new))]].concat()
}

/// Saving, as other images may: the step's old marker away, its old files away, files of the same names, the marker.
pub fn delete_and_save(step: u64, submission: &str, content: u64) -> Vec<Write> {
    [delete(step), files_and_marker(step, submission, content, &folder(step))].concat()
}

fn files_and_marker(step: u64, submission: &str, content: u64, folder: &str) -> Vec<Write> {
    let body = format!("{content:08}");
    let keys = ["model.safetensors", "trainer_state.pt"].map(|name| format!("{folder}{name}"));
    let listed = keys.clone().map(|key| {
        let path = key.strip_prefix(&format!("{RUN}/checkpoints/")).expect("a file of the run").to_owned();
        // The ETag that the file will have.
        let probe = Bucket::default();
        probe.write(&key, &body);
        json!({"path": path, "size": body.len(), "etag": probe.etag(&key)})
    });
    let saved_at = f64::from(u32::try_from(content).expect("a small number"));
    let marker = json!({
        "layout": 1, "framework": "hf", "step": step, "saved_at": saved_at, "submission": submission, "parent": null,
        "files": listed, "metrics": {"loss": 1.0}, "metadata": {},
    });
    let puts = keys.map(|key| Write::Put(key, body.clone()));
    [puts.to_vec(), vec![Write::Put(marker_key(step), marker.to_string())]].concat()
}

/// Deleting: the marker first, then the files.
pub fn delete(step: u64) -> Vec<Write> {
    vec![Write::Delete(marker_key(step)), Write::Clear(folder(step), None)]
}

/// What S3 sends, as the indexer gets it; the key is form-encoded.
pub fn event(name: &str, key: &str) -> Value {
    json!({"Records": [{
        "eventVersion": "2.1", "eventSource": "aws:s3", "eventName": name,
        "s3": {"bucket": {"name": "bucket"}, "object": {"key": key.replace('=', "%3D")}},
    }]})
}

pub fn indexer(store: Store) -> Indexer {
    Indexer { store, runs_base_uris: vec!["s3://bucket/runs".parse().expect("a base")] }
}

/// The steps whose entries differ from what a rebuild makes.
pub async fn differences(bucket: &Bucket) -> Vec<(u64, Difference)> {
    let store = bucket.store();
    let places = places(&store, &prefix()).await.expect("a listing");
    let mut found = Vec::new();
    reindex(&store, places, 8, false, |place, compared| {
        found.extend(compared.expect("compared").difference.map(|difference| (place.step.get(), difference)));
    })
    .await;
    found
}

/// The index that a rebuild makes of the same markers and files when there is none.
pub async fn rebuilt(bucket: &Bucket) -> BTreeMap<String, String> {
    let fresh = Bucket::default();
    for (key, body) in bucket.objects("").iter().filter(|(key, _)| !key.contains("/index/")) {
        fresh.write(key, body);
    }
    let store = fresh.store();
    let places = places(&store, &prefix()).await.expect("a listing");
    reindex(&store, places, 8, true, |_, compared| assert!(compared.is_ok(), "{compared:?}")).await;
    fresh.objects("/index/")
}

/// What an index must be, whatever happened: readable, and never calling a checkpoint complete whose files are not all
/// those of one saving.
pub async fn check_readable(bucket: &Bucket) {
    let page = bucket.store().index_page(&prefix(), 1_000, None).await.expect("an index that can be read");
    bucket.store().latest(&prefix()).await.expect("an answer");
    let objects = bucket.objects("/index/v1/");
    assert_eq!(page.entries.len(), objects.keys().filter(|key| !key.contains("/digest/")).count());
    bucket.store().best(&prefix(), "loss", Mode::Min).await.expect("an answer");
}

/// The steps that the index calls complete, and whose files are not all there as one saving wrote them.
pub async fn torn_and_called_complete(bucket: &Bucket) -> Vec<u64> {
    let page = bucket.store().index_page(&prefix(), 1_000, None).await.expect("an index");
    let is_torn = |entry: &&IndexEntry| {
        let Some(marker) = bucket.body(&marker_key(entry.step.get())) else { return true };
        let marker: Value = serde_json::from_str(&marker).expect("a marker");
        let content = marker["saved_at"].as_f64().expect("a number");
        let paths =
            marker["files"].as_array().expect("files").iter().map(|file| file["path"].as_str().expect("a path"));
        let mut bodies = paths.map(|path| bucket.body(&format!("{RUN}/checkpoints/{path}")));
        bodies.any(|body| body != Some(format!("{content:08}")))
    };
    page.entries
        .iter()
        .filter(|entry| entry.state == State::Complete)
        .filter(is_torn)
        .map(|entry| entry.step.get())
        .collect()
}
