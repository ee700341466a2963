//! Markers that can never be used: each event of one is acknowledged, no entry of an older marker stays, and what can be
//! otherwise tomorrow is a failure. And what an event may cost at most, whatever lies around a checkpoint.

mod common;

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use common::{NEW, OLD, differences, entry_key, event, indexer, marker_key, prefix, save};
use serde_json::json;
use training_run::{
    entry::IndexEntry,
    layout::{RunKey, RunPrefix},
    marker::{MAX_BYTES, State},
    names::Step,
};
use training_store::testing::{Bucket, Treatment};

/// Steps 400 and 500, saved and indexed.
async fn two_checkpoints() -> Bucket {
    let bucket = Bucket::default();
    for step in [400, 500] {
        for write in save(step, OLD, step) {
            write.apply(&bucket);
        }
        indexer(bucket.store()).handle(&event("ObjectCreated:Put", &marker_key(step))).await.expect("indexed");
    }
    bucket
}

fn step(number: u64) -> Step {
    Step::new(number).expect("a step")
}

/// The steps that have an entry.
fn indexed(bucket: &Bucket) -> Vec<u64> {
    [400, 500].into_iter().filter(|step| bucket.body(&entry_key(*step)).is_some()).collect()
}

#[tokio::test]
async fn a_marker_that_is_too_large_takes_its_entry_away_and_stops_nobody() {
    let bucket = two_checkpoints().await;
    let good = bucket.body(&marker_key(500)).expect("a marker");
    bucket.write(&marker_key(500), &format!("{good:<width$}", width = 60_000).repeat(MAX_BYTES / 60_000 + 1));
    let _ = bucket.take_traffic();
    indexer(bucket.store()).handle(&event("ObjectCreated:Put", &marker_key(500))).await.expect("acknowledged");
    assert_eq!(indexed(&bucket), [400]);
    let latest = bucket.store().latest(&prefix()).await.expect("an answer");
    assert_eq!(latest.map(|entry| entry.step.get()), Some(400));
    assert_eq!(differences(&bucket).await, []);
}

#[tokio::test]
async fn a_marker_that_nobody_is_given_has_no_entry_and_one_that_is_denied_is_a_failure() {
    for (status, code, is_acknowledged) in [
        (403, "InvalidObjectState", true),
        (403, "AccessDenied", false),
        (400, "KMS.DisabledException", false),
        (503, "SlowDown", false),
    ] {
        let bucket = two_checkpoints().await;
        let store = bucket.store_judged_by(move |call| {
            let is_marker = call.verb == "GET" && call.key == marker_key(500);
            std::future::ready(if is_marker { Treatment::Refuse(status, code) } else { Treatment::Serve })
        });
        let handled = indexer(store.clone()).handle(&event("ObjectCreated:Put", &marker_key(500))).await;
        assert_eq!(handled.is_ok(), is_acknowledged, "{code}");
        assert_eq!(indexed(&bucket), if is_acknowledged { vec![400] } else { vec![400, 500] }, "{code}");
        let latest = store.latest(&prefix()).await.ok().flatten().map(|entry| entry.step.get());
        assert_eq!(latest, is_acknowledged.then_some(400), "{code}");
    }
}

#[tokio::test]
async fn a_marker_that_is_saved_again_while_an_archived_one_is_taken_away_is_indexed() {
    let bucket = two_checkpoints().await;
    let (is_archived, other) = (Arc::new(AtomicBool::new(true)), bucket.clone());
    let store = bucket.store_judged_by(move |call| {
        if call.verb == "DELETE" {
            for write in save(500, NEW, 9) {
                write.apply(&other);
            }
            is_archived.store(false, Ordering::Relaxed);
        }
        let is_withheld = call.verb == "GET" && call.key == marker_key(500) && is_archived.load(Ordering::Relaxed);
        std::future::ready(if is_withheld { Treatment::Refuse(403, "InvalidObjectState") } else { Treatment::Serve })
    });
    indexer(store).handle(&event("ObjectCreated:Put", &marker_key(500))).await.expect("indexed");
    assert_eq!(differences(&bucket).await, []);
    assert_eq!(indexed(&bucket), [400, 500]);
}

/// Index a marker of this run; its entry, and how many requests that took.
async fn index(bucket: &Bucket, prefix: &RunPrefix, paths: &[String]) -> (IndexEntry, usize) {
    let files: Vec<_> = paths.iter().map(|path| json!({"path": path, "size": 4})).collect();
    let marker = json!({"framework": "hf", "step": 7, "saved_at": 1.5, "files": files});
    bucket.write(&prefix.key(&RunKey::Marker(step(7))), &marker.to_string());
    let _ = bucket.take_traffic();
    bucket.store().index(prefix, step(7)).await.expect("indexed");
    let calls = bucket.take_traffic().calls.len();
    let entry = bucket.body(&prefix.key(&RunKey::IndexEntry(step(7)))).expect("an entry");
    (IndexEntry::parse(entry.as_bytes()).expect("an entry"), calls)
}

#[tokio::test]
async fn a_file_whose_key_would_be_too_long_is_missing_and_s3_is_not_asked_for_it() {
    // As S3 does: no key has more than 1,024 bytes, and a question about one is refused.
    let bucket = Bucket::default();
    let long: RunPrefix = format!("s3://bucket/runs/{}/r/framework=hf", "x".repeat(800)).parse().expect("a prefix");
    let longest = 1_024 - long.checkpoints_folder().len();
    for (bytes, calls, state) in [(longest, 6, State::Complete), (longest + 1, 5, State::Incomplete)] {
        let path = "p".repeat(bytes);
        bucket.write(&format!("{}{path}", long.checkpoints_folder()), "data");
        let (entry, took) = index(&bucket, &long, &[path]).await;
        assert_eq!((entry.state, took), (state, calls), "{bytes} bytes");
    }
}

#[tokio::test]
async fn other_objects_cost_no_event_more_than_twenty_pages() {
    let bucket = Bucket::default();
    let folder = prefix().checkpoints_folder();
    for at in 0..20_500 {
        bucket.write(&format!("{folder}checkpoint-7/{at:06}"), "");
        bucket.write(&format!("{folder}step-000007.pt.{at:06}"), "");
        bucket.write(&format!("{folder}checkpoint-70/{at:06}"), "");
    }
    for name in ["checkpoint-7/model", "checkpoint-7/state", "step-000007.pt", "checkpoint-8/a", "checkpoint-8/b"] {
        bucket.write(&format!("{folder}{name}"), "data");
    }
    for (case, paths, state, calls) in [
        ("behind many others", &["checkpoint-7/model", "checkpoint-7/state"][..], State::Incomplete, 5 + 20),
        ("before many others", &["checkpoint-7/000000"], State::Incomplete, 6),
        ("one file, and many whose names go on", &["step-000007.pt"], State::Complete, 6),
        ("beside many others", &["checkpoint-8/a", "checkpoint-8/b"], State::Complete, 6),
    ] {
        let paths: Vec<_> = paths.iter().map(|path| (*path).to_owned()).collect();
        let (entry, took) = index(&bucket, &prefix(), &paths).await;
        assert_eq!((entry.state, took), (state, calls), "{case}");
    }
}
