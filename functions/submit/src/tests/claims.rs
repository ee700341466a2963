//! What becomes of the run's owner and of the job's record when requests die or are refused.

use lambda_http::http::Method;
use serde_json::{Value, json};
use training_store::testing::{Bucket, Treatment};

use super::world::{Fault, MARKER, OWNER, World, request};

/// Submissions of July 2025: claims of these are old.
const FIRST: &str = "01980000-0000-7000-8000-000000000001";
const OLD: &str = "01980000-0000-7000-8000-000000000002";

fn owner(world: &World) -> Value {
    serde_json::from_str(&world.bucket.body(OWNER).expect("an owner")).expect("JSON")
}

/// Let the claim that is there have been made long ago.
fn age(world: &World) {
    let mut claim = owner(world);
    claim["submission"] = json!(OLD);
    claim["claimed_by"] = json!(OLD);
    world.bucket.write(OWNER, &claim.to_string());
}

#[tokio::test]
async fn claims_that_never_became_jobs_do_not_hide_who_trained_the_run() {
    let world = World::new();
    world.bucket.write(OWNER, &json!({"submission": FIRST, "namespace": "training", "job": "hf-r"}).to_string());
    world.bucket.write(MARKER, "{}");
    let restart = format!("/train?restart={FIRST}");
    for _ in 0..3 {
        world.server(|server| server.faults.push_back((Method::POST, Fault::CutBefore)));
        assert_eq!(world.post(&restart, &request()).await.outcome(), (503, "cluster_unavailable"));
        assert_eq!(owner(&world)["previous"], FIRST);
        age(&world);
    }
    assert_eq!(world.post(&restart, &request()).await.outcome(), (201, ""));

    // One that became a job did train it.
    world.server(|server| server.jobs.clear());
    let trained = owner(&world)["submission"].clone();
    let restart = format!("/train?restart={}", trained.as_str().expect("a submission"));
    // Its claim is young still, but its record shows that it has had its job.
    assert_eq!(world.post(&restart, &request()).await.outcome(), (201, ""));
    assert_eq!(owner(&world)["previous"], trained);
}

#[tokio::test]
async fn a_record_that_was_lost_is_written_by_the_next_equal_request() {
    let world = World::new();
    world.post("/train", &request()).await;
    let record = world.bucket.keys().into_iter().find(|key| key.contains("/_jobs/")).expect("a record");
    let before = world.bucket.body(&record);
    for label in ["running", "finished"] {
        world.bucket.remove(&record);
        if label == "finished" {
            world.finish("hf-r");
        }
        assert_eq!(world.post("/train?dry_run=true", &request()).await.outcome(), (200, ""), "{label}");
        assert_eq!(world.bucket.body(&record), None, "{label}: by a dry run");
        assert_eq!(world.post("/train", &request()).await.outcome(), (200, ""), "{label}");
        assert_eq!(world.bucket.body(&record), before, "{label}");
    }
}

#[tokio::test]
async fn a_refused_request_leaves_the_claim_that_it_had_joined_as_it_was() {
    // The claim of an equal request that may still make its job.
    let (claim, _) = super::equal_request().await;

    let world = World::new().fault(Method::POST, Fault::Refuses(422, "Invalid", "no"));
    world.bucket.write(OWNER, &claim);
    assert_eq!(world.post("/train", &request()).await.outcome(), (422, "rejected_by_cluster"));
    // So it blocks other requests for no longer than it did.
    assert_eq!(world.bucket.body(OWNER), Some(claim));
}

#[tokio::test]
async fn a_restart_replaces_no_job_of_another_base() {
    let world = World::new();
    let mut theirs = request();
    theirs["checkpoint_base_uri"] = json!("s3://bucket/runs/one");
    assert_eq!(world.post("/train", &theirs).await.outcome(), (201, ""));
    world.finish("hf-r");
    let before = world.server(|server| server.jobs.clone());
    let mut ours = request();
    ours["checkpoint_base_uri"] = json!("s3://bucket/runs/two");
    for path in ["/train?restart=true", "/train?restart=true&dry_run=true", "/train"] {
        assert_eq!(world.post(path, &ours).await.outcome(), (409, "job_conflict"), "{path}");
    }
    assert_eq!(world.server(|server| server.jobs.clone()), before);
}

#[tokio::test]
async fn an_owner_that_nobody_can_read_is_no_failure_that_passes() {
    let owner = json!({"submission": FIRST, "namespace": "training", "job": "hf-r"}).to_string();
    let too_large = format!("{owner}{}", " ".repeat(17 * 1024 * 1024));
    let too_deep = owner.replace('{', &format!("{{\"x\": {}{},", "[".repeat(64), "]".repeat(64)));
    for (label, body, treatment) in [
        ("too large", &too_large, Treatment::Serve),
        ("too deep", &too_deep, Treatment::Serve),
        ("archived", &owner, Treatment::Refuse(403, "InvalidObjectState")),
    ] {
        let bucket = Bucket::default();
        bucket.write(OWNER, body);
        let store = bucket.store_judged_by(move |call| {
            let is_read = call.verb == "GET" && call.key == OWNER;
            std::future::ready(if is_read { treatment } else { Treatment::Serve })
        });
        let world = World::with_store(store, bucket);
        let answer = world.post("/train", &request()).await;
        assert_eq!(answer.outcome(), (409, "run_active"), "{label}");
        assert!(answer.body["detail"].as_str().is_some_and(|detail| detail.contains("cannot read")), "{answer:?}");
    }
    // Of two fields of one name the last counts, and this one's claim is old.
    let world = World::new();
    world.bucket.write(OWNER, &owner.replace('{', "{\"job\": \"other\","));
    assert_eq!(world.post("/train", &request()).await.outcome(), (201, ""));
}
