//! What becomes of the run's owner and of the job's record when requests die or are refused.

use lambda_http::http::Method;
use serde_json::{Value, json};

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
