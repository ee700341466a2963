//! Jobs that other tools made: they are shown as the cluster has them, but not changed, and their annotations lead nowhere
//! that the bucket does not confirm.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::World;
use reqwest::Method;
use serde_json::{Value, json};

const MINUTE: Duration = Duration::from_mins(1);
const CHANGES: [(Method, &str); 3] = [(Method::POST, "/suspend"), (Method::POST, "/resume"), (Method::DELETE, "")];

/// Make a job as kubectl does, held back so that it has no pods.
async fn make(world: &World, namespace: &str, name: &str, metadata: &Value) -> Result<()> {
    let template = json!({"spec": {"containers": [{"name": "pytorch", "image": "stub"}]}});
    let mut job = json!({
        "apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "metadata": {"name": name},
        "spec": {
            "nprocPerNode": "1",
            "runPolicy": {"suspend": true},
            "pytorchReplicaSpecs": {"Master": {"replicas": 1, "restartPolicy": "OnFailure", "template": template}},
        },
    });
    for field in ["labels", "annotations"] {
        job["metadata"][field] = metadata[field].clone();
    }
    let output = world.kubectl(&["--namespace", namespace, "create"], Some(&job)).await?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

async fn delete(world: &World, namespace: &str, name: &str) -> Result<()> {
    let output = world.kubectl(&["--namespace", namespace, "delete", "pytorchjob", name, "--wait=false"], None).await?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

async fn specification(world: &World, namespace: &str, name: &str) -> Result<Value> {
    let arguments = ["--namespace", namespace, "get", "pytorchjob", name, "--output", "json"];
    let output = world.kubectl(&arguments, None).await?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let job: Value = serde_json::from_slice(&output.stdout)?;
    Ok(json!([job["metadata"]["uid"], job["metadata"]["deletionTimestamp"], job["spec"]]))
}

#[tokio::test]
async fn annotations_of_another_jobs_run_are_not_followed() -> Result<()> {
    let world = World::meet()?;
    let run_id = World::run_id("forged");
    let request = world.stub_request(&run_id, json!({"seconds": 1}))?;
    let made = world.twin.post("/train", &request).await?.expect(201)?;
    let (name, submission) = (made.name().to_owned(), made.text("/submission").to_owned());
    let prefix = format!("runs/{run_id}/framework=hf");
    let log = format!("{prefix}/logs/{submission}/attempt-1/rank-0.log");
    world.twin.put(&log, b"a private line\n".to_vec()).await?;
    world.twin.put(&format!("{prefix}/checkpoints/checkpoint-7/model.safetensors"), vec![0; 16]).await?;
    let marker = json!({
        "layout": 1, "framework": "hf", "step": 7, "saved_at": 1.5, "submission": submission, "metadata": {},
        "files": [{"path": "checkpoint-7/model.safetensors", "size": 16}], "metrics": {"loss": 1.0},
    });
    world.twin.put(&format!("{prefix}/checkpoints/step-000007.json"), marker.to_string().into_bytes()).await?;

    // The run's own job tells all of it.
    let path = format!("/train/{name}");
    world.wait(&path, MINUTE, |answer| answer.number("/checkpoints/latest_step") == Some(7)).await?;
    world.wait(&path, MINUTE, |answer| answer.number("/progress/step").is_some()).await?;
    let archived = world.twin.get(&format!("{path}/logs?source=archive")).await?.expect(200)?;
    assert_eq!(archived.text_body, "a private line\n");

    let metadata = world.resource("pytorchjob", &name).await?["metadata"].clone();
    let other = format!("{name}-copy");
    for (namespace, name) in [("training-two", &name), ("training-two", &other), ("training", &other)] {
        make(&world, namespace, name, &metadata).await?;
        let case = format!("{namespace}/{name}");
        let get = async |tail: &str| {
            let query = if tail.contains('?') { '&' } else { '?' };
            world.twin.get(&format!("/train/{name}{tail}{query}namespace={namespace}")).await
        };
        let status = get("").await?.expect(200)?;
        for field in ["progress", "attempts", "checkpoints", "diagnosis"] {
            assert_eq!(status.body[field], Value::Null, "{case}: {}", status.body);
        }
        assert_eq!(get("/checkpoints").await?.expect(200)?.body["checkpoints"], json!([]), "{case}");
        for (tail, code) in [
            ("/checkpoints/latest", "checkpoint_not_found"),
            ("/checkpoints/best", "checkpoint_not_found"),
            ("/checkpoints/7", "checkpoint_not_found"),
            ("/logs", "log_not_found"),
            ("/logs?source=archive", "log_not_found"),
        ] {
            let answer = get(tail).await?.expect(404)?;
            assert_eq!(answer.text("/code"), code, "{case}{tail}: {}", answer.body);
            ensure!(!answer.text_body.contains("private") && !answer.text_body.contains(&submission), "{case}{tail}");
        }
        // It has the digests of the request, too.
        let mut again = request.clone();
        again["namespace"] = json!(namespace);
        again["job_name"] = json!(name);
        for path in ["/train", "/train?restart=true", "/train?dry_run=true"] {
            let answer = world.twin.post(path, &again).await?.expect(409)?;
            let code = if path.contains("restart") { "job_running" } else { "foreign_job" };
            assert_eq!(answer.text("/code"), code, "{case} POST {path}: {}", answer.body);
        }
        for (method, action) in CHANGES {
            let path = format!("/train/{name}{action}?namespace={namespace}");
            let answer = world.twin.send(method, &path, Some(world.twin.setting("TRAINER_API_TOKEN")?), None).await?;
            assert_eq!((answer.status, answer.text("/code")), (409, "foreign_job"), "{path}: {}", answer.body);
        }
        delete(&world, namespace, name).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_job_that_kubectl_made_is_not_changed() -> Result<()> {
    let world = World::meet()?;
    let name = World::run_id("foreign");
    make(&world, "training", &name, &json!({})).await?;
    let before = specification(&world, "training", &name).await?;
    for (method, action) in CHANGES {
        let path = format!("/train/{name}{action}");
        let answer = world.twin.send(method, &path, Some(world.twin.setting("TRAINER_API_TOKEN")?), None).await?;
        assert_eq!((answer.status, answer.text("/code")), (409, "foreign_job"), "{path}: {}", answer.body);
    }
    assert_eq!(specification(&world, "training", &name).await?, before);
    world.twin.get(&format!("/train/{name}")).await?.expect(200)?;
    delete(&world, "training", &name).await
}

#[tokio::test]
async fn a_job_of_the_api_is_changed_through_its_owner_or_its_record() -> Result<()> {
    let world = World::meet()?;
    let namespace = "training-list";
    for lost in ["record", "owner"] {
        let run_id = World::run_id(&format!("lost-{lost}"));
        let request = world.stub_request(&run_id, json!({"seconds": 600}))?;
        let made = world.twin.post(&format!("/train?namespace={namespace}"), &request).await?.expect(201)?;
        let (name, submission) = (made.name(), made.text("/submission"));
        if lost == "record" {
            let (bucket, key) =
                (world.twin.setting("RUNS_BUCKET")?, format!("runs/_jobs/{namespace}/{name}/{submission}"));
            world.twin.object(&key).await?;
            world.twin.s3.delete_object().bucket(bucket).key(key).send().await?;
        } else {
            let theirs =
                json!({"submission": uuid::Uuid::new_v4().to_string(), "namespace": "training", "job": "another"});
            let key = format!("runs/{run_id}/framework=hf/owner");
            world.twin.put(&key, theirs.to_string().into_bytes()).await?;
        }
        for action in ["suspend", "resume"] {
            let path = format!("/train/{name}/{action}?namespace={namespace}");
            let changed = world.twin.post(&path, &json!({})).await?.expect(202)?;
            assert_eq!(changed.location, format!("/train/{name}?namespace={namespace}"), "without its {lost}");
        }
        world.twin.delete(&format!("/train/{name}?namespace={namespace}")).await?.expect(202)?;
    }
    Ok(())
}
