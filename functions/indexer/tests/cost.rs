//! What an event and a read cost in requests and bytes: the same at any number of checkpoints, but for what has to look at
//! all of them, which takes two listings a thousand and reads none.

mod common;

use std::collections::BTreeMap;

use common::{NEW, OLD, delete, differences, event, indexer, marker_key, prefix, save};
use reindex::Difference;
use serde_json::json;
use training_run::{
    lineage::{Lineage, Mode},
    names::Step,
};
use training_store::testing::{Bucket, Traffic};

const SIZES: [u64; 3] = [10, 1_000, 20_000];
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

fn supersedes(lineage: &Lineage, submission: &str, step: u64) -> bool {
    let submission = submission.parse().expect("a submission");
    lineage.supersedes(Some(&submission), Step::new(step).expect("a step"))
}

#[tokio::test]
#[expect(clippy::print_stdout, reason = "the figures are shown with --nocapture")]
async fn events_and_reads_cost_the_same_at_ten_and_at_twenty_thousand_checkpoints() {
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
        assert_eq!(latest.map(|entry| entry.step.get()), Some(next));
        note("latest", &bucket);
        let page = store.index_page(&prefix(), PAGE, None).await.expect("a page");
        assert_eq!(page.entries.len(), usize::try_from(PAGE).expect("a small number"));
        note("page", &bucket);
        let last =
            store.index_page(&prefix(), PAGE, Some(Step::new(FIRST + 3).expect("a step"))).await.expect("a page");
        assert_eq!((last.entries.len(), last.next), (2, None), "one of three is deleted");
        note("last page", &bucket);
        let lineage = store.lineage(&prefix()).await.expect("a lineage");
        assert!(!supersedes(&lineage, OLD, next) && supersedes(&lineage, NEW, next));
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
    assert_eq!(requests("created"), ["GET", "HEAD", "LIST", "LIST", "PUT", "PUT"]);
    assert_eq!(requests("removed"), ["DELETE", "DELETE", "GET", "HEAD", "LIST"]);
    // Two to find it, two to look at its files once more.
    assert_eq!(requests("latest"), ["GET", "GET", "LIST", "LIST"]);
    assert_eq!(requests("page").len(), 1 + usize::try_from(PAGE).expect("a small number"));
    // It does not go on through the digests.
    assert_eq!(requests("last page"), ["GET", "GET", "LIST"]);
    assert_eq!(requests("lineage"), ["GET", "GET", "LIST"]);
}

/// The listings and reads of a choice among all checkpoints.
fn listings_and_reads(bucket: &Bucket) -> (u64, u64) {
    let traffic = bucket.take_traffic();
    let of = |verb: &str| traffic.calls.iter().filter(|call| call.verb == verb).count() as u64;
    assert_eq!(of("LIST") + of("GET"), traffic.calls.len() as u64);
    (of("LIST"), of("GET"))
}

#[tokio::test]
async fn a_choice_among_all_checkpoints_reads_none_but_the_chosen_one() {
    for count in SIZES {
        let bucket = run(count).await;
        // Pages of entries and of digests; one more where the last is full.
        let pages = 2 * (count / 1_000 + 1);
        let best = bucket.store().best(&prefix(), "loss", Mode::Min).await.expect("an answer");
        assert_eq!(best.map(|entry| entry.step.get()), Some(FIRST + count - 1), "of equal ones the newest");
        assert_eq!(listings_and_reads(&bucket), (pages + 1, 1), "best of {count}");
        let absent = bucket.store().best(&prefix(), "accuracy", Mode::Max).await.expect("an answer");
        assert_eq!((absent, listings_and_reads(&bucket)), (None, (pages, 0)), "a metric that none of {count} has");

        // Begun anew: the former life's steps are higher.
        for write in save(FIRST + 3, NEW, 2) {
            write.apply(&bucket);
        }
        indexer(bucket.store()).handle(&event("ObjectCreated:Put", &marker_key(FIRST + 3))).await.expect("indexed");
        bucket.write("runs/r/framework=hf/owner", &owner(NEW));
        let _ = bucket.take_traffic();
        let latest = bucket.store().latest(&prefix()).await.expect("an answer");
        assert_eq!(latest.map(|entry| entry.step.get()), Some(FIRST + 3));
        // The owner, the highest step and its checkpoint, which is not the owner's; then the one that is.
        assert_eq!(listings_and_reads(&bucket), (2 + pages + 1, 2 + 1), "latest of {count}");
        let lineage = bucket.store().lineage(&prefix()).await.expect("a lineage");
        assert!(supersedes(&lineage, OLD, FIRST + 1) && !supersedes(&lineage, NEW, FIRST + 3));
        assert_eq!(listings_and_reads(&bucket), (1 + pages, 2), "lineage of {count}");
    }
}

#[tokio::test]
async fn entries_of_a_release_without_digests_are_read_until_they_are_indexed_anew() {
    let bucket = run(30).await;
    for key in bucket.objects("/index/v1/digest/").into_keys() {
        bucket.remove(&key);
    }
    let choices = async || {
        let _ = bucket.take_traffic();
        let best = bucket.store().best(&prefix(), "loss", Mode::Max).await.expect("an answer");
        (best.map(|entry| entry.step.get()), listings_and_reads(&bucket).1)
    };
    assert_eq!(choices().await, (Some(FIRST + 29), 31));
    for write in save(FIRST + 5, NEW, 2) {
        write.apply(&bucket);
    }
    indexer(bucket.store()).handle(&event("ObjectCreated:Put", &marker_key(FIRST + 5))).await.expect("indexed");
    assert_eq!(choices().await, (Some(FIRST + 5), 30), "one that is indexed anew is told with those that are not");
    let mut differing = differences(&bucket).await;
    differing.retain(|(_, difference)| *difference == Difference::Undigested);
    assert_eq!(differing.len(), 29);
    let before = bucket.objects("");
    let (store, places) = (bucket.store(), reindex::places(&bucket.store(), &prefix()).await.expect("places"));
    reindex::reindex(&store, places, 8, true, |_, compared| assert!(compared.is_ok(), "{compared:?}")).await;
    assert_eq!(differences(&bucket).await, []);
    let mut after = bucket.objects("");
    after.retain(|key, _| !key.contains("/index/v1/digest/") || before.contains_key(key));
    assert_eq!(after, before, "nothing but digests was written");
    assert_eq!(choices().await, (Some(FIRST + 5), 1));
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
        assert_eq!(latest.step.get(), FIRST + 3, "{submission}");
    }
    bucket.remove("runs/r/framework=hf/owner");
    let latest = bucket.store().latest(&prefix()).await.expect("an answer").expect("a checkpoint");
    assert_eq!(latest.step.get(), FIRST + 3);
}
