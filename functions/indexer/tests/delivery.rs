//! S3's delivery at its worst: each event one to three times, in any order, to eight indexers at once, while trainers
//! save, save again in place and delete, and S3 itself refuses, hangs and cuts connections. In the end the index is what a rebuild makes.
//!
//! The clock is virtual, so that the SDK's own waits and time-outs are in it and cost nothing.

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use common::{
    NEW, OLD, delete, delete_and_save, differences, entry_key, event, indexer, marker_key, prefix, rebuilt, save,
};
use serde_json::Value;
use tokio::{task::JoinSet, time::sleep};
use training_run::marker::State;
use training_store::testing::{Bucket, Call, Treatment};

const CHECKPOINTS: u64 = 1_000;
const EVENTS: usize = 10_000;
const WRITERS: u64 = 8;
const INDEXERS: u64 = 8;

/// A source of chance; its clones are the same source.
#[derive(Clone)]
struct Chance(Arc<Mutex<fastrand::Rng>>);

/// The events that wait for delivery, and how many there were.
#[derive(Clone, Default)]
struct Pool(Arc<Mutex<Waiting>>);

#[derive(Default)]
struct Waiting {
    /// With the step of each.
    events: Vec<(u64, Value)>,
    sent: usize,
    deliveries: usize,
    failures: usize,
    writers: usize,
    /// Deliveries that are to come.
    delayed: usize,
    /// The steps that are being indexed.
    in_flight: Vec<u64>,
}

// === impl Chance ===

impl Chance {
    fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(fastrand::Rng::with_seed(seed))))
    }

    fn below(&self, bound: u64) -> u64 {
        self.0.lock().expect("no panic").u64(0..bound)
    }

    /// Some time, and now and then twenty times as much: enough for others to come and go.
    async fn pause(&self, at_most_ms: u64) {
        let factor = if self.below(10) == 0 { 20 } else { 1 };
        sleep(Duration::from_millis(self.below(at_most_ms) * factor)).await;
    }

    /// What S3 does with a request: one in seven goes wrong.
    fn treatment(&self, call: &Call) -> Treatment {
        let is_write = matches!(call.verb, "PUT" | "DELETE");
        match self.below(200) {
            0..8 => Treatment::Refuse(500, "InternalError"),
            8..14 => Treatment::Refuse(503, "SlowDown"),
            14..17 => Treatment::Hang,
            17..20 => Treatment::DoAndHang,
            20..23 => Treatment::DoAndCut,
            23..26 => Treatment::DoAndRefuse(500, "InternalError"),
            26..28 if is_write => Treatment::Refuse(409, "ConditionalRequestConflict"),
            28..30 if is_write => Treatment::Refuse(412, "PreconditionFailed"),
            _ => Treatment::Serve,
        }
    }
}

// === impl Pool ===

impl Pool {
    fn with<T>(&self, act: impl FnOnce(&mut Waiting) -> T) -> T {
        act(&mut self.0.lock().expect("no panic"))
    }

    /// An event happened: it will be delivered one to three times, each at once or later than others that come after it.
    fn send(&self, step: u64, event: &Value, chance: &Chance) {
        let times = 1 + chance.below(3);
        self.with(|waiting| {
            waiting.sent += 1;
            waiting.delayed += usize::try_from(times).expect("a small number");
        });
        for _ in 0..times {
            let delay = if chance.below(2) == 0 { 0 } else { chance.below(30_000) };
            let (pool, event) = (self.clone(), event.clone());
            tokio::spawn(async move {
                sleep(Duration::from_millis(delay)).await;
                pool.with(|waiting| {
                    waiting.delayed -= 1;
                    waiting.events.push((step, event));
                });
            });
        }
    }

    /// The newest event or any other; `None` when there will be no more.
    async fn take(&self, chance: &Chance) -> Option<(u64, Value)> {
        loop {
            let taken = self.with(|waiting| {
                if waiting.events.is_empty() {
                    return if waiting.writers + waiting.delayed + waiting.in_flight.len() == 0 {
                        Some(None)
                    } else {
                        None
                    };
                }
                let count = waiting.events.len() as u64;
                let at = if chance.below(2) == 0 { count - 1 } else { chance.below(count) };
                let taken = waiting.events.swap_remove(usize::try_from(at).expect("an index"));
                waiting.in_flight.push(taken.0);
                Some(Some(taken))
            });
            if let Some(taken) = taken {
                return taken;
            }
            chance.pause(50).await;
        }
    }

    /// A delivery has ended; one that failed is redelivered, as from Lambda's retries and the dead-letter queue.
    fn end(&self, step: u64, event: Value, is_done: bool) {
        self.with(|waiting| {
            let at = waiting.in_flight.iter().position(|found| *found == step).expect("it was taken");
            waiting.in_flight.swap_remove(at);
            waiting.deliveries += 1;
            if !is_done {
                waiting.failures += 1;
                waiting.events.push((step, event));
            }
        });
    }
}

/// Save and delete some checkpoints, over and over, until enough events have happened. A step has one writer.
async fn write(bucket: Bucket, pool: Pool, chance: Chance, remainder: u64) {
    let mut content = remainder;
    while pool.with(|waiting| waiting.sent) < EVENTS {
        // Often one that is being indexed just now.
        let own = pool.with(|waiting| waiting.in_flight.iter().copied().find(|step| step % WRITERS == remainder));
        let any = chance.below(CHECKPOINTS / WRITERS) * WRITERS + remainder;
        let step = own.filter(|_| chance.below(2) == 0).unwrap_or(any);
        content += WRITERS;
        let mut writes = match chance.below(10) {
            0..4 => delete(step),
            4..6 => save(step, OLD, content),
            6..8 => save(step, NEW, content),
            _ => delete_and_save(step, NEW, content),
        };
        // Sometimes it is stopped on the way.
        if chance.below(10) == 0 {
            writes.truncate(usize::try_from(chance.below(writes.len() as u64)).expect("a length"));
        }
        for write in writes {
            if let Some(event) = write.apply(&bucket) {
                pool.send(step, &event, &chance);
            }
            // Slower than the indexers, so that no late delivery mends what an earlier one did.
            chance.pause(600).await;
        }
    }
    pool.with(|waiting| waiting.writers -= 1);
}

async fn deliver(bucket: Bucket, pool: Pool, chance: Chance, faults: Arc<Mutex<BTreeMap<String, usize>>>) {
    let judge = chance.clone();
    let store = bucket.store_judged_by(move |call| {
        let (chance, faults, call) = (judge.clone(), Arc::clone(&faults), call.clone());
        async move {
            chance.pause(60).await;
            let treatment = chance.treatment(&call);
            *faults.lock().expect("no panic").entry(format!("{treatment:?}")).or_default() += 1;
            treatment
        }
    });
    let indexer = indexer(store);
    while let Some((step, event)) = pool.take(&chance).await {
        let is_done = indexer.handle(&event).await.is_ok();
        pool.end(step, event, is_done);
    }
}

async fn index_equals_rebuild(seed: u64) {
    let (bucket, pool, chance) = (Bucket::default(), Pool::default(), Chance::new(seed));
    let faults = Arc::new(Mutex::new(BTreeMap::new()));
    pool.with(|waiting| waiting.writers = WRITERS.try_into().expect("a small number"));
    let mut tasks = JoinSet::new();
    for writer in 0..WRITERS {
        tasks.spawn(write(bucket.clone(), pool.clone(), chance.clone(), writer));
    }
    for _ in 0..INDEXERS {
        tasks.spawn(deliver(bucket.clone(), pool.clone(), chance.clone(), Arc::clone(&faults)));
    }
    while let Some(ended) = tasks.join_next().await {
        ended.expect("no panic");
    }

    // Every kind of fault came, and some were more than the SDK's retries could take.
    let faults = faults.lock().expect("no panic").clone();
    assert_eq!(faults.len(), 9, "seed {seed}: {faults:?}");
    let (sent, deliveries, failures) = pool.with(|waiting| (waiting.sent, waiting.deliveries, waiting.failures));
    assert!(sent >= EVENTS && deliveries > sent && failures > 0, "seed {seed}: {sent} {deliveries} {failures}");

    let markers: BTreeSet<_> = (0..CHECKPOINTS).filter(|step| bucket.body(&marker_key(*step)).is_some()).collect();
    let entries: BTreeSet<_> = (0..CHECKPOINTS).filter(|step| bucket.body(&entry_key(*step)).is_some()).collect();
    assert!(markers.len() > 100, "seed {seed}: {} markers are left", markers.len());
    assert_eq!(entries, markers, "seed {seed}");
    assert_eq!(bucket.objects("/index/"), rebuilt(&bucket).await, "seed {seed}: the index, and a rebuilt one");
    assert_eq!(differences(&bucket).await, [], "seed {seed}");
    // A marker comes after its files and goes before them, so what has one has its files.
    let page = bucket.store().index_page(&prefix(), 1_000, None).await.expect("an index");
    assert!(page.entries.iter().all(|entry| entry.state == State::Complete), "seed {seed}");
}

#[tokio::test(start_paused = true)]
async fn the_index_equals_a_rebuilt_one_after_seed_1() {
    index_equals_rebuild(1).await;
}

#[tokio::test(start_paused = true)]
async fn the_index_equals_a_rebuilt_one_after_seed_2() {
    index_equals_rebuild(2).await;
}

#[tokio::test(start_paused = true)]
async fn the_index_equals_a_rebuilt_one_after_seed_3() {
    index_equals_rebuild(3).await;
}

#[tokio::test(start_paused = true)]
#[ignore = "long: make soak"]
async fn the_index_equals_a_rebuilt_one_after_50_more_seeds() {
    for seed in 100..150 {
        index_equals_rebuild(seed).await;
    }
}

#[tokio::test]
async fn what_is_no_marker_of_a_run_is_acknowledged_and_touches_nothing() {
    let bucket = Bucket::default();
    let indexer = indexer(bucket.store());
    for key in [
        // What the original wrote beside its markers.
        "runs/r/framework=nemo/checkpoints/step-000500.ckpt",
        "runs/r/framework=meta/checkpoints/step-000500.pt",
        "runs/r/framework=hf/checkpoints/checkpoint-500/trainer_state.json",
        "runs/r/framework=hf/config/run.json",
        "elsewhere/r/framework=hf/checkpoints/step-000500.json",
    ] {
        indexer.handle(&event("ObjectCreated:Put", key)).await.expect("acknowledged");
    }
    indexer.handle(&serde_json::json!({"Event": "s3:TestEvent"})).await.expect("acknowledged");
    assert_eq!(bucket.take_traffic().calls, []);
}

#[tokio::test]
async fn a_marker_of_the_original_is_unverified_and_one_that_contradicts_its_key_is_no_checkpoint() {
    let bucket = Bucket::default();
    let indexer = indexer(bucket.store());
    bucket.write(&marker_key(500), r#"{"framework": "hf", "step": 500, "saved_at": 1.5, "metadata": {}}"#);
    indexer.handle(&event("ObjectCreated:Put", &marker_key(500))).await.expect("indexed");
    let page = bucket.store().index_page(&prefix(), 10, None).await.expect("an index");
    assert_eq!(page.entries.iter().map(|entry| entry.state).collect::<Vec<_>>(), [State::Unverified]);

    bucket.write(&marker_key(500), r#"{"framework": "hf", "step": 501, "saved_at": 1.5, "metadata": {}}"#);
    indexer.handle(&event("ObjectCreated:Put", &marker_key(500))).await.expect("acknowledged");
    assert_eq!(bucket.objects("/index/"), BTreeMap::new());
}

#[tokio::test]
async fn one_event_of_several_records_indexes_each_and_fails_for_one() {
    let bucket = Bucket::default();
    for step in [1, 2, 3] {
        for write in save(step, OLD, step) {
            write.apply(&bucket);
        }
    }
    let refused = marker_key(2);
    let store = bucket.store_judged_by(move |call| {
        let is_refused = call.key == refused;
        std::future::ready(if is_refused { Treatment::Refuse(403, "AccessDenied") } else { Treatment::Serve })
    });
    let records: Vec<_> =
        [1, 2, 3].map(|step| event("ObjectCreated:Put", &marker_key(step))["Records"][0].clone()).into();
    let event = serde_json::json!({"Records": records});
    assert!(indexer(store).handle(&event).await.is_err());
    assert_eq!(differences(&bucket).await, [(2, reindex::Difference::Missing)]);
}
