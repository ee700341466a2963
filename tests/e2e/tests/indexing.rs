//! The index of checkpoints on the twin: its S3, and its own delivery of events to the deployed indexer.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use aws_sdk_s3::{Client, primitives::ByteStream};
use e2e::World;
use futures::future::try_join_all;
use indexer::Indexer;
use reindex::{Compared, Place, places, reindex};
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::sleep};
use training_run::{layout::RunPrefix, marker::State, names::Step};
use training_store::Store;

const EVENTS: usize = 1_000;
const STEPS: u64 = 100;
const INDEXERS: usize = 8;
/// As many as of a large job's ranks or of many jobs may come in one moment.
const AT_ONCE: u64 = 40;
/// Each event starts a process on the twin.
const INDEXED_WITHIN: Duration = Duration::from_mins(2);

/// A run that is written by hand.
struct Run {
    s3: Client,
    prefix: RunPrefix,
    key: String,
}

// === impl Run ===

impl Run {
    fn new(s3: &Client, bucket: &str, run_id: &str) -> Result<Self> {
        let key = format!("runs/{run_id}/framework=hf");
        Ok(Self { s3: s3.clone(), prefix: format!("s3://{bucket}/{key}").parse()?, key })
    }

    fn marker_key(&self, step: u64) -> String {
        format!("{}/checkpoints/step-{step:06}.json", self.key)
    }

    /// Save a checkpoint of one file, as the trainer does: marker away, file, marker.
    async fn save(&self, step: u64, content: u64) -> Result<()> {
        self.delete(&self.marker_key(step)).await?;
        let path = format!("checkpoint-{step}/model.safetensors");
        let body = content.to_string();
        let etag = self.put(&format!("{}/checkpoints/{path}", self.key), &body).await?;
        let file = json!({"path": path, "size": body.len(), "etag": etag});
        let marker = json!({
            "layout": 1, "framework": "hf", "step": step, "saved_at": content, "metadata": {}, "files": [file],
        });
        self.put(&self.marker_key(step), &marker.to_string()).await?;
        Ok(())
    }

    async fn put(&self, key: &str, body: &str) -> Result<String> {
        let body = ByteStream::from(body.as_bytes().to_vec());
        let put = self.s3.put_object().bucket(self.prefix.bucket()).key(key).body(body).send().await?;
        put.e_tag.context("no ETag")
    }

    async fn delete(&self, key: &str) -> Result<()> {
        self.s3.delete_object().bucket(self.prefix.bucket()).key(key).send().await?;
        Ok(())
    }

    /// The event of a marker, as S3 words it.
    fn event(&self, name: &str, step: u64) -> Value {
        json!({"Records": [{
            "eventVersion": "2.1", "eventSource": "aws:s3", "eventName": name,
            "s3": {"bucket": {"name": self.prefix.bucket()}, "object": {"key": self.marker_key(step).replace('=', "%3D")}},
        }]})
    }

    /// All objects of the index, an entry and a digest a checkpoint: key and `ETag`, and so their bytes.
    async fn index(&self) -> Result<Vec<(String, String)>> {
        let folder = self.prefix.index_folder();
        let mut pages = self.s3.list_objects_v2().bucket(self.prefix.bucket()).prefix(&folder).into_paginator().send();
        let mut entries = Vec::new();
        while let Some(page) = pages.next().await {
            let objects = page?.contents.into_iter().flatten();
            entries.extend(objects.filter_map(|object| Some((object.key?, object.e_tag?))));
        }
        Ok(entries)
    }
}

#[tokio::test]
async fn after_a_thousand_events_the_index_is_what_a_rebuild_makes() -> Result<()> {
    let world = World::meet()?;
    // Of its own, so that the deployed indexer does not help.
    let bucket = World::run_id("indexing");
    world.twin.s3.create_bucket().bucket(&bucket).send().await?;
    let run = Arc::new(Run::new(&world.twin.s3, &bucket, "r")?);
    let indexer =
        Indexer { store: Store::new(world.twin.s3.clone()), runs_base_uris: vec![format!("s3://{bucket}").parse()?] };

    // One writer and eight indexers; each event comes once to three times, in any order.
    let waiting = Arc::new(Mutex::new((Vec::new(), false)));
    let mut tasks = JoinSet::new();
    tasks.spawn({
        let (run, waiting) = (Arc::clone(&run), Arc::clone(&waiting));
        async move {
            let mut chance = fastrand::Rng::with_seed(1);
            let mut sent = 0;
            while sent < EVENTS {
                let step = chance.u64(0..STEPS);
                let events = if chance.u8(0..10) < 3 {
                    run.delete(&run.marker_key(step)).await?;
                    vec![run.event("ObjectRemoved:Delete", step)]
                } else {
                    run.save(step, sent.try_into()?).await?;
                    vec![run.event("ObjectRemoved:Delete", step), run.event("ObjectCreated:Put", step)]
                };
                sent += events.len();
                let mut waiting = waiting.lock().map_err(|_| anyhow!("a panic"))?;
                for event in events {
                    waiting.0.extend(std::iter::repeat_n(event, chance.usize(1..=3)));
                }
            }
            waiting.lock().map_err(|_| anyhow!("a panic"))?.1 = true;
            anyhow::Ok(())
        }
    });
    for worker in 0..INDEXERS {
        let (indexer, waiting) = (indexer.clone(), Arc::clone(&waiting));
        tasks.spawn(async move {
            let mut chance = fastrand::Rng::with_seed(100 + u64::try_from(worker)?);
            loop {
                let (event, is_over) = {
                    let mut waiting = waiting.lock().map_err(|_| anyhow!("a panic"))?;
                    let count = waiting.0.len();
                    ((count > 0).then(|| waiting.0.swap_remove(chance.usize(0..count))), waiting.1)
                };
                match event {
                    Some(event) => drop(indexer.handle(&event).await?),
                    None if is_over => return Ok(()),
                    None => sleep(Duration::from_millis(20)).await,
                }
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }

    let store = &indexer.store;
    let mut differing = Vec::new();
    let report = |place: &Place, compared: Result<Compared>| match compared {
        Ok(compared) => differing.extend(compared.difference.map(|found| (place.step.get(), found.to_string()))),
        Err(error) => differing.push((place.step.get(), format!("{error:#}"))),
    };
    reindex(store, places(store, &run.prefix).await?, 16, false, report).await;
    ensure!(differing.is_empty(), "the index differs: {differing:?}");

    let kept = run.index().await?;
    ensure!(kept.len() > 40, "{} objects", kept.len());
    try_join_all(kept.iter().map(|(key, _)| run.delete(key))).await?;
    let report = |place: &Place, compared: Result<Compared>| assert!(compared.is_ok(), "{place}: {compared:?}");
    reindex(store, places(store, &run.prefix).await?, 16, true, report).await;
    assert_eq!(run.index().await?, kept, "rebuilt, and kept by events");
    empty(&world.twin.s3, &bucket).await
}

/// Take a bucket away with all that is in it.
async fn empty(s3: &Client, bucket: &str) -> Result<()> {
    loop {
        let keys = s3.list_objects_v2().bucket(bucket).send().await?.contents.unwrap_or_default();
        if keys.is_empty() {
            break;
        }
        let keys = keys.into_iter().filter_map(|object| object.key);
        try_join_all(keys.map(|key| s3.delete_object().bucket(bucket).key(key).send())).await?;
    }
    s3.delete_bucket().bucket(bucket).send().await?;
    Ok(())
}

#[tokio::test]
async fn forty_events_at_once_make_forty_entries_and_unmake_them() -> Result<()> {
    let world = World::meet()?;
    let run = Run::new(&world.twin.s3, world.twin.setting("RUNS_BUCKET")?, &World::run_id("at-once"))?;
    try_join_all((1..=AT_ONCE).map(|step| run.save(step, step))).await?;
    wait_for_entries(&run, usize::try_from(AT_ONCE)?).await?;
    let store = Store::new(world.twin.s3.clone());
    let page = store.index_page(&run.prefix, 100, None).await?;
    ensure!(page.entries.iter().all(|entry| entry.state == State::Complete), "{:?}", page.entries);
    let steps: Vec<_> = page.entries.iter().map(|entry| entry.step.get()).collect();
    assert_eq!(steps, (1..=AT_ONCE).rev().collect::<Vec<_>>());

    // keep_last: what is deleted leaves the index by its own event.
    let kept = Step::new(AT_ONCE)?;
    try_join_all((1..AT_ONCE).map(|step| {
        let key = run.marker_key(step);
        let run = &run;
        async move { run.delete(&key).await }
    }))
    .await?;
    wait_for_entries(&run, 1).await?;
    let latest = store.latest(&run.prefix).await?.context("no checkpoint")?;
    assert_eq!(latest.step, kept);
    Ok(())
}

async fn wait_for_entries(run: &Run, count: usize) -> Result<()> {
    let started = Instant::now();
    loop {
        let objects = run.index().await?.len();
        if objects == 2 * count {
            return Ok(());
        }
        ensure!(started.elapsed() < INDEXED_WITHIN, "{objects} objects, not two for each of {count} checkpoints");
        sleep(Duration::from_millis(300)).await;
    }
}
