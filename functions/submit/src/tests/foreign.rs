//! Jobs that this API did not make are not changed, and those that it made are.

use serde_json::{Value, json};
use training_store::testing::{self, Bucket};

use super::world::{OWNER, World, request};

const OTHER: &str = "01980000-0000-7000-8000-000000000002";
const CHANGES: [(&str, &str); 3] = [("POST", "/suspend"), ("POST", "/resume"), ("DELETE", "")];

/// A job `hf-r` that the API has made, and its record's key.
async fn made() -> (World, String) {
    let world = World::new();
    world.post("/train", &request()).await;
    let record = world.bucket.keys().into_iter().find(|key| key.contains("/_jobs/")).expect("a record");
    (world, record)
}

fn owner(namespace: &str, job: &str) -> String {
    json!({"submission": OTHER, "namespace": namespace, "job": job}).to_string()
}

/// Try every change of `hf-r`: all are accepted, or all are refused with this code and change nothing.
async fn change(world: &World, label: &str, refusal: Option<(u16, &str)>) {
    let before = world.server(|server| server.jobs.clone());
    for (method, action) in CHANGES {
        let answer = world.send(method, &format!("/train/hf-r{action}"), &json!({})).await;
        assert_eq!(answer.outcome(), refusal.unwrap_or((202, "")), "{label}: {method} {action}: {answer:?}");
    }
    if refusal.is_some() {
        assert_eq!(world.server(|server| server.jobs.clone()), before, "{label}");
    } else {
        assert_eq!(world.names(), [""; 0], "{label}");
    }
}

#[tokio::test]
async fn a_job_of_another_tool_is_not_changed() {
    let foreign = Some((409, "foreign_job"));
    let plain = json!({
        "apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "spec": {},
        "metadata": {"name": "hf-r", "uid": "u", "resourceVersion": "1"},
    });
    let annotated = |prefix: &str| {
        let mut job = plain.clone();
        job["metadata"]["annotations"] = json!({
            "trainer.deepfinery/submission": OTHER, "trainer.deepfinery/checkpoint-prefix": prefix,
        });
        job
    };
    let run = "s3://bucket/runs/r/framework=hf";
    for (label, job, owner) in [
        ("without annotations", plain.clone(), None),
        ("of a run that nobody owns", annotated(run), None),
        ("of another job's run", annotated(run), Some(owner("training", "other"))),
        ("of a run of another namespace", annotated(run), Some(owner("training-two", "hf-r"))),
        ("of a run whose owner cannot be read", annotated(run), Some("{".to_owned())),
        ("of a run outside the bases", annotated("s3://other/r/framework=hf"), Some(owner("training", "hf-r"))),
    ] {
        let world = World::new();
        world.server(|server| server.jobs.insert("hf-r".to_owned(), job));
        if let Some(owner) = owner {
            world.bucket.write(OWNER, &owner);
        }
        change(&world, label, foreign).await;
    }

    // One that was made again with what the API's job had, after the run went to another one.
    let (world, _) = made().await;
    world.bucket.write(OWNER, &owner("training", "other"));
    world.server(|server| server.jobs.get_mut("hf-r").expect("the job")["metadata"]["uid"] = json!("another"));
    change(&world, "copied", foreign).await;
    // The answer says who may change it.
    let answer = world.send("DELETE", "/train/hf-r", &Value::Null).await;
    assert!(answer.body["detail"].as_str().is_some_and(|detail| detail.contains("`hf-r`")), "{answer:?}");
}

#[tokio::test]
async fn a_job_of_another_tool_is_neither_replayed_nor_replaced() {
    // With everything that a job of the API says of itself, in a bucket that has heard of nothing.
    let (theirs, _) = made().await;
    theirs.finish("hf-r");
    let finished = theirs.server(|server| server.jobs["hf-r"].clone());
    let mut running = finished.clone();
    running["status"] = json!({});
    for (label, job) in [("running", running), ("finished", finished)] {
        // The run may be that of an earlier job of the name.
        for owner in [None, Some(owner("training", "other")), Some(owner("training", "hf-r"))] {
            let world = World::new();
            world.server(|server| server.jobs.insert("hf-r".to_owned(), job.clone()));
            if let Some(owner) = &owner {
                world.bucket.write(OWNER, owner);
            }
            for query in ["", "?dry_run=true", "?restart=true", "?restart=true&dry_run=true"] {
                // A live one is not replaced, whoever made it.
                let code =
                    if label == "running" && query.starts_with("?restart") { "job_running" } else { "foreign_job" };
                let answer = world.post(&format!("/train{query}"), &request()).await;
                assert_eq!(answer.outcome(), (409, code), "{label} {query}: {answer:?}");
            }
            assert_eq!(world.server(|server| server.jobs["hf-r"].clone()), job, "{label}");
            assert_eq!(world.bucket.body(OWNER), owner, "{label}");
        }
    }
}

#[tokio::test]
async fn a_job_of_this_api_is_changed_as_long_as_its_owner_or_its_record_is_there() {
    for (label, new_owner, keeps_record, refusal) in [
        ("its record is lost", None, false, None),
        ("another job's run by now", Some(owner("training", "other")), true, None),
        ("another namespace's run by now", Some(owner("training-two", "hf-r")), true, None),
        ("an owner that cannot be read", Some("{".to_owned()), true, None),
        ("an equal request's claim, its record not written yet", Some(owner("training", "hf-r")), false, None),
        ("neither", Some(owner("training", "other")), false, Some((409, "foreign_job"))),
    ] {
        let (world, record) = made().await;
        if let Some(owner) = new_owner {
            world.bucket.write(OWNER, &owner);
        }
        if !keeps_record {
            world.bucket.remove(&record);
        }
        change(&world, label, refusal).await;
    }
}

#[tokio::test]
async fn a_bucket_that_fails_leaves_a_job_as_it_is() {
    let (world, _) = made().await;
    let denied = World::with_store(testing::denied(), Bucket::default());
    denied.server(|server| server.jobs = world.server(|server| server.jobs.clone()));
    change(&denied, "nobody can tell whose it is", Some((503, "storage_unavailable"))).await;
    // A name that no job has needs no bucket.
    assert_eq!(denied.send("DELETE", "/train/none", &Value::Null).await.outcome(), (404, "job_not_found"));
}
