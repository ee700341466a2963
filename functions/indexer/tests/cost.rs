//! What an event and a read cost in requests and bytes, and that they cost the same at any number of checkpoints.

mod common;

use std::collections::BTreeMap;

use common::{NEW, OLD, delete, event, indexer, marker_key, prefix, save};
use serde_json::json;
use training_core::names::Step;
use training_store::testing::{Bucket, Traffic};

const SIZES: [u64; 3] = [10, 1_000, 10_000];
/// The steps of a run: all as long as each other when written, so that bytes can be compared.
const FIRST: u64 = 100_000;
const PAGE: u32 = 5;

/// A run of this many checkpoints, indexed; its owner is the submission that wrote them.
async fn run(count: u64) -> Bucket {
    Bucket::holding_run(&prefix(), OLD, FIRST..FIRST + count).await
}

fn owner(submission: &str) -> String {
    json!({"submission": submission, "namespace": "training", "job": "hf-r"}).to_string()
}

/// The verbs of the requests and the bytes of their bodies and answers.
fn cost(traffic: &Traffic) -> (Vec<&'static str>, usize) {
    let mut verbs: Vec<_> = traffic.calls.iter().map(|call| call.verb).collect();
    // Reads that go together come in any order.
    verbs.sort_unstable();
    (verbs, traffic.bytes)
}

#[tokio::test]
#[expect(clippy::print_stdout, reason = "the figures are shown with --nocapture")]
async fn events_and_reads_cost_the_same_at_ten_and_at_ten_thousand_checkpoints() {
    let mut costs: BTreeMap<&str, Vec<(Vec<&str>, usize)>> = BTreeMap::new();
    for count in SIZES {
        let bucket = run(count).await;
        let (store, indexer) = (bucket.store(), indexer(bucket.store()));
        let next = FIRST + count;
        let mut note = |what, bucket: &Bucket| costs.entry(what).or_default().push(cost(&bucket.take_traffic()));

        for write in save(next, OLD, 1) {
            write.apply(&bucket);
        }
        let _ = bucket.take_traffic();
        indexer.handle(&event("ObjectCreated:Put", &marker_key(next))).await.expect("indexed");
        note("created", &bucket);
        indexer.handle(&event("ObjectCreated:Put", &marker_key(next))).await.expect("indexed");
        note("created, again", &bucket);
        for write in delete(FIRST + 1) {
            write.apply(&bucket);
        }
        indexer.handle(&event("ObjectRemoved:Delete", &marker_key(FIRST + 1))).await.expect("indexed");
        note("removed", &bucket);

        let latest = store.latest(&prefix()).await.expect("an answer");
        assert_eq!(latest.map(|entry| entry.step), Some(next));
        note("latest", &bucket);
        let page = store.index_page(&prefix(), PAGE, None).await.expect("a page");
        assert_eq!(page.entries.len(), usize::try_from(PAGE).expect("a small number"));
        note("page", &bucket);
        let lineage = store.lineage(&prefix()).await.expect("a lineage");
        assert!(!lineage.supersedes(Some(OLD), next) && lineage.supersedes(Some(NEW), next));
        note("lineage", &bucket);
        let step = Step::new(FIRST + 5).expect("a step");
        assert!(store.checkpoint(&prefix(), step).await.expect("an answer").is_some());
        note("checkpoint", &bucket);
    }
    for (what, costs) in &costs {
        let [(verbs, bytes), rest @ ..] = costs.as_slice() else { unreachable!("three sizes") };
        println!("{what}: {} requests, {bytes} bytes: {verbs:?}", verbs.len());
        assert!(rest.iter().all(|cost| cost == &costs[0]), "{what}: {costs:?}");
    }
    let requests = |what: &str| costs[what][0].0.clone();
    assert_eq!(requests("created"), ["GET", "HEAD", "LIST", "PUT"]);
    assert_eq!(requests("removed"), ["DELETE", "GET", "HEAD"]);
    // Two to find it, two to look at its files once more.
    assert_eq!(requests("latest"), ["GET", "GET", "LIST", "LIST"]);
    assert_eq!(requests("page").len(), 1 + usize::try_from(PAGE).expect("a small number"));
    assert_eq!(requests("lineage"), ["GET", "GET", "LIST"]);
}

#[tokio::test]
async fn where_the_owner_does_not_have_the_highest_step_the_answer_is_as_right() {
    // Begun anew: the former life's steps are higher.
    let bucket = run(30).await;
    for write in save(FIRST + 3, NEW, 2) {
        write.apply(&bucket);
    }
    indexer(bucket.store()).handle(&event("ObjectCreated:Put", &marker_key(FIRST + 3))).await.expect("indexed");
    for submission in [NEW, "01990000-0000-7000-8000-00000000000c", "nobody"] {
        bucket.write("runs/r/framework=hf/owner", &owner(submission));
        let latest = bucket.store().latest(&prefix()).await.expect("an answer").expect("a checkpoint");
        assert_eq!(latest.step, FIRST + 3, "{submission}");
    }
    bucket.remove("runs/r/framework=hf/owner");
    let latest = bucket.store().latest(&prefix()).await.expect("an answer").expect("a checkpoint");
    assert_eq!(latest.step, FIRST + 3);
}
