//! What the run's owner and the job's record say decides, and not what a job says of itself.

use std::sync::atomic::{AtomicBool, Ordering};

use lambda_http::http::Method;
use serde_json::{Value, json};
use training_store::testing::{Bucket, Treatment};

use super::world::{Fault, Jobs, MARKER, OWNER, World, request};

const FIRST: &str = "01980000-0000-7000-8000-000000000001";
const SECOND: &str = "01980000-0000-7000-8000-000000000002";
const PREFIX: &str = "trainer.deepfinery/checkpoint-prefix";

/// The same run under another job name.
fn other() -> Value {
    let mut other = request();
    other["job_name"] = json!("other");
    other
}

/// Where another job gets the run and is confirmed, before the request's own is made.
fn another_is_quicker() -> World {
    let world = World::new();
    let owner =
        json!({"submission": FIRST, "namespace": "training", "job": "other", "claimed_by": FIRST, "uid": "uid-o"});
    let theirs = json!({
        "apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "spec": {}, "metadata": {"name": "other", "uid": "uid-o"},
    });
    let bucket = world.bucket.clone();
    let quicker = move |jobs: &mut Jobs| {
        jobs.insert("other".to_owned(), theirs);
        bucket.write(OWNER, &owner.to_string());
    };
    world.fault(Method::POST, Fault::Meanwhile(Box::new(quicker)))
}

fn record_of(world: &World, job: &str) -> (String, Value) {
    let folder = format!("runs/_jobs/training/{job}/");
    let key = world.bucket.keys().into_iter().find(|key| key.starts_with(&folder)).expect("a record");
    let record = serde_json::from_str(&world.bucket.body(&key).expect("a record")).expect("JSON");
    (key, record)
}

#[tokio::test]
async fn a_job_keeps_its_run_when_somebody_takes_its_annotations() {
    let world = World::new();
    assert_eq!(world.post("/train", &request()).await.outcome(), (201, ""));
    world.server(|server| {
        let annotations = server.jobs["hf-r"]["metadata"]["annotations"].as_object().expect("annotations").clone();
        let left = annotations.into_iter().filter(|(name, _)| name != PREFIX).collect();
        server.jobs.get_mut("hf-r").expect("the job")["metadata"]["annotations"] = Value::Object(left);
    });
    assert_eq!(world.post("/train", &other()).await.outcome(), (409, "run_active"));

    // The reverse: a job of another tool that takes the name and the annotation holds up nobody.
    world.server(|server| {
        let job = server.jobs.get_mut("hf-r").expect("the job");
        job["metadata"]["uid"] = json!("another");
        job["metadata"]["annotations"] = json!({PREFIX: "s3://bucket/runs/r/framework=hf"});
    });
    assert_eq!(world.post("/train", &other()).await.outcome(), (201, ""));
}

#[tokio::test]
async fn what_a_job_trained_is_known_by_its_ledger_where_nobody_recorded_it() {
    let world = World::new();
    let claim = json!({
        "submission": SECOND, "namespace": "training", "job": "hf-r", "claimed_by": SECOND, "previous": FIRST,
    });
    world.bucket.write(OWNER, &claim.to_string());
    world.bucket.write(MARKER, "{}");
    let attempt = format!("runs/r/framework=hf/attempts/{SECOND}/1");
    world.bucket.write(&attempt, "{}");
    let restart = format!("/train?restart={FIRST}");
    assert_eq!(world.post(&restart, &request()).await.outcome(), (409, "run_exists"), "the second one trained last");
    world.bucket.remove(&attempt);
    assert_eq!(world.post(&restart, &request()).await.outcome(), (201, ""));
}

#[tokio::test]
async fn a_job_is_recorded_before_it_is_confirmed() {
    // Another request gets the run between the creation and the confirmation, and ours cannot be taken back.
    let world = another_is_quicker()
        .fault(Method::DELETE, Fault::Refuses(403, "Forbidden", "admission webhook \"p\" denied the request: no"));
    assert_eq!(world.post("/train", &request()).await.status, 422);
    let (_, record) = record_of(&world, "hf-r");
    assert_eq!(record["uid"], world.server(|server| server.jobs["hf-r"]["metadata"]["uid"].clone()));
    assert_eq!(world.send("DELETE", "/train/hf-r", &Value::Null).await.status, 202, "it is no other tool's job");
}

#[tokio::test]
async fn a_job_that_is_gone_when_it_is_to_be_taken_back_was_taken_back() {
    let world = another_is_quicker().fault(Method::DELETE, Fault::Refuses(404, "NotFound", "not found"));
    assert_eq!(world.post("/train", &request()).await.outcome(), (409, "run_active"));
}

#[tokio::test]
async fn a_record_tells_of_every_job_of_its_submission() {
    let world = World::new();
    world.post("/train", &request()).await;
    let (key, first) = record_of(&world, "hf-r");
    // A slow request with the same claim makes the job again after it was deleted.
    world.server(|server| server.jobs.get_mut("hf-r").expect("the job")["metadata"]["uid"] = json!("later"));
    assert_eq!(world.post("/train", &request()).await.outcome(), (200, ""));
    let (_, record) = record_of(&world, "hf-r");
    assert_eq!((&record["uid"], &record["later_uids"]), (&first["uid"], &json!(["later"])));
    // Another job has the run now, and this one can still be deleted.
    let owner = json!({"submission": FIRST, "namespace": "training", "job": "other", "claimed_by": FIRST, "uid": "o"});
    world.bucket.write(OWNER, &owner.to_string());
    assert_eq!(world.send("DELETE", "/train/hf-r", &Value::Null).await.status, 202);

    // What is there and no record is written over.
    let world = World::new();
    world.post("/train", &request()).await;
    for garbage in ["{", "[]", &" ".repeat(20_000)] {
        world
            .bucket
            .write(&key.replace(key.rsplit('/').next().expect("a name"), &world.owner_and_job("hf-r").1), garbage);
        assert_eq!(world.post("/train", &request()).await.outcome(), (200, ""));
        let (_, record) = record_of(&world, "hf-r");
        assert_eq!(record["uid"], world.server(|server| server.jobs["hf-r"]["metadata"]["uid"].clone()));
    }
}

#[tokio::test]
async fn a_claim_whose_answer_was_lost_is_its_own() {
    let bucket = Bucket::default();
    let is_first = AtomicBool::new(true);
    let store = bucket.store_judged_by(move |call| {
        let is_claim = call.verb == "PUT" && call.key == OWNER && is_first.swap(false, Ordering::SeqCst);
        std::future::ready(if is_claim { Treatment::DoAndCut } else { Treatment::Serve })
    });
    let world = World::with_store(store, bucket.clone())
        .fault(Method::POST, Fault::Refuses(403, "Forbidden", "pytorchjobs is forbidden: exceeded quota: one"));
    assert_eq!(world.post("/train", &request()).await.status, 403);
    // Nothing was there before, and nobody has joined: others need not wait.
    let owner: Value = serde_json::from_str(&bucket.body(OWNER).expect("an owner")).expect("JSON");
    assert_eq!(owner["released"], true);
}
