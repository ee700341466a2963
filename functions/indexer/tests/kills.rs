//! Death at every point: an indexer that is killed around each of its calls to S3, and a trainer that is stopped after
//! each of its own.

mod common;

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use common::{
    NEW, OLD, Write, check_readable, delete, delete_and_save, differences, event, indexer, marker_key, rebuilt, save,
    torn_and_called_complete,
};
use serde_json::Value;
use tokio::sync::Notify;
use training_store::testing::{Bucket, Treatment};

const STEP: u64 = 500;

/// A story: what is there and indexed, and what then happens to the checkpoint.
struct Story {
    name: &'static str,
    before: Vec<Write>,
    change: Vec<Write>,
}

fn unusable() -> Write {
    Write::Put(marker_key(STEP), r#"{"framework": "hf", "step": 501, "saved_at": 1.5}"#.to_owned())
}

fn stories() -> Vec<Story> {
    vec![
        Story { name: "a new checkpoint", before: vec![], change: save(STEP, OLD, 1) },
        Story { name: "a checkpoint is deleted", before: save(STEP, OLD, 1), change: delete(STEP) },
        Story { name: "a checkpoint is saved again", before: save(STEP, OLD, 1), change: save(STEP, NEW, 2) },
        Story { name: "it is saved anew", before: save(STEP, OLD, 1), change: delete_and_save(STEP, NEW, 2) },
        Story { name: "its marker becomes unusable", before: save(STEP, OLD, 1), change: vec![unusable()] },
        Story { name: "nothing was there and is", before: vec![], change: delete(STEP) },
    ]
}

/// What happens while the indexer is at the point of its death.
fn meanwhiles() -> Vec<(&'static str, Vec<Write>)> {
    vec![
        ("nothing", vec![]),
        ("it is deleted", delete(STEP)),
        ("it is saved again", save(STEP, NEW, 3)),
        ("it is deleted and saved again", [delete(STEP), save(STEP, OLD, 4)].concat()),
    ]
}

/// Do some writes; the events of them.
fn apply(bucket: &Bucket, writes: &[Write]) -> Vec<Value> {
    writes.iter().filter_map(|write| write.apply(bucket)).collect()
}

async fn deliver(bucket: &Bucket, event: &Value) {
    indexer(bucket.store()).handle(event).await.expect("indexed");
}

async fn begin(story: &Story) -> (Bucket, Value) {
    let bucket = Bucket::default();
    for event in apply(&bucket, &story.before) {
        deliver(&bucket, &event).await;
    }
    let events = apply(&bucket, &story.change);
    let _ = bucket.take_traffic();
    // Of a deletion where nothing was, S3 tells nobody; a late event of an earlier one comes all the same.
    let late = || event("ObjectRemoved:Delete", &marker_key(STEP));
    (bucket, events.last().cloned().unwrap_or_else(late))
}

// The clock stands: on a busy machine the victim's own time-outs would end it before its time.
#[tokio::test(start_paused = true)]
async fn an_indexer_killed_at_any_point_leaves_an_index_that_can_be_read_and_the_next_event_repairs_it() {
    let mut points = 0;
    for story in stories() {
        let (bucket, event) = begin(&story).await;
        deliver(&bucket, &event).await;
        let calls = bucket.take_traffic().calls.len();
        assert!((4..=7).contains(&calls), "{}: {calls} calls", story.name);
        for (meanwhile, writes) in meanwhiles() {
            for at in 0..calls {
                for is_done in [false, true] {
                    let case = format!("{}, {meanwhile}, killed at call {at}, which is done: {is_done}", story.name);
                    killed_at(&story, &writes, at, is_done, &case).await;
                    points += 1;
                }
            }
        }
    }
    assert!(points >= 4 * 2 * 4 * 6, "{points} points");
}

async fn killed_at(story: &Story, meanwhile: &[Write], at: usize, is_done: bool, case: &str) {
    let (bucket, event) = begin(story).await;
    let (calls, reached) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let (other, go_on) = (bucket.clone(), Arc::new(Notify::new()));
    let judge = (Arc::clone(&calls), Arc::clone(&reached), Arc::clone(&go_on));
    let judged = bucket.store_judged_by(move |_| {
        let (calls, reached, go_on) = judge.clone();
        async move {
            if calls.fetch_add(1, Ordering::Relaxed) != at {
                return Treatment::Serve;
            }
            reached.notify_one();
            go_on.notified().await;
            if is_done { Treatment::DoAndHang } else { pending().await }
        }
    });
    let victim = tokio::spawn({
        let event = event.clone();
        async move { indexer(judged).handle(&event).await }
    });
    reached.notified().await;
    // Its last call is on its way, and all this comes first.
    let events = apply(&other, meanwhile);
    for event in &events {
        deliver(&bucket, event).await;
    }
    go_on.notify_one();
    // As long as it takes for the call to arrive and to be done.
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    victim.abort();
    assert!(victim.await.expect_err("killed").is_cancelled(), "{case}");

    check_readable(&bucket).await;
    // Lambda delivers the event of the dead one again.
    deliver(&bucket, &event).await;
    assert_eq!(differences(&bucket).await, [], "{case}");
    assert_eq!(bucket.objects("/index/"), rebuilt(&bucket).await, "{case}");
}

/// What a trainer does with its storage, each as a list of calls.
fn works() -> Vec<(&'static str, Vec<Write>, Vec<Write>)> {
    vec![
        ("saves", save(400, OLD, 1), save(STEP, OLD, 2)),
        ("saves again", save(STEP, OLD, 1), save(STEP, OLD, 2)),
        ("saves over another's", save(STEP, OLD, 1), save(STEP, NEW, 2)),
        ("deletes and saves", save(STEP, OLD, 1), delete_and_save(STEP, NEW, 2)),
        ("deletes and saves again", delete_and_save(STEP, OLD, 1), delete_and_save(STEP, OLD, 2)),
        (
            "saves and keeps the last",
            [save(300, OLD, 1), save(400, OLD, 2)].concat(),
            [save(STEP, OLD, 3), delete(300)].concat(),
        ),
        ("deletes", save(STEP, OLD, 1), delete(STEP)),
    ]
}

#[tokio::test]
async fn of_a_trainer_stopped_between_any_two_calls_no_torn_checkpoint_is_listed_as_complete() {
    let (mut points, mut torn) = (0, 0);
    for (work, before, calls) in works() {
        for stopped_after in 0..=calls.len() {
            // Events are delivered at once, or all in the end, newest first.
            for is_late in [false, true] {
                let bucket = Bucket::default();
                for event in apply(&bucket, &before) {
                    deliver(&bucket, &event).await;
                }
                let mut waiting = Vec::new();
                for call in &calls[..stopped_after] {
                    let events = call.apply(&bucket);
                    if is_late {
                        waiting.extend(events);
                    } else if let Some(event) = events {
                        deliver(&bucket, &event).await;
                        torn += torn_and_called_complete(&bucket).await.len();
                    }
                }
                for event in waiting.iter().rev() {
                    deliver(&bucket, event).await;
                }
                let found = torn_and_called_complete(&bucket).await;
                assert_eq!(found, Vec::<u64>::new(), "{work}, stopped after call {stopped_after}, late: {is_late}");
                torn += found.len();
                let latest =
                    bucket.store().latest(&common::prefix()).await.expect("an answer").map(|entry| entry.step.get());
                let whole: Vec<_> =
                    [300, 400, STEP].into_iter().filter(|step| bucket.body(&marker_key(*step)).is_some()).collect();
                assert_eq!(latest, whole.last().copied(), "{work}, stopped after call {stopped_after}");
                assert_eq!(differences(&bucket).await, [], "{work}, stopped after call {stopped_after}");
                points += 1;
            }
        }
    }
    assert!(points > 50, "{points} points");
    assert_eq!(torn, 0);
}
