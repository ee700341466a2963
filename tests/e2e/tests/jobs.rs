//! The API on the twin, with the stub image where nothing has to be learned.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::World;
use reqwest::Method;
use serde_json::{Value, json};

const MINUTE: Duration = Duration::from_mins(1);

#[tokio::test]
async fn a_job_runs_to_its_end_through_the_real_operator() -> Result<()> {
    let world = World::meet()?;
    let request = world.stub_request(&World::run_id("stub"), json!({"seconds": 2, "steps": 4}))?;
    let created = world.twin.post("/train", &request).await?.expect(201)?;
    let name = created.name().to_owned();
    assert_eq!(created.location, format!("/train/{name}"));
    assert_eq!((created.text("/status"), created.text("/framework")), ("submitted", "hf"));

    let done = world.wait_for_status(&name, "succeeded", MINUTE).await?;
    assert_eq!((done.number("/progress/step"), done.number("/progress/total")), (Some(4), Some(4)));
    assert_eq!(done.text("/submission"), created.text("/submission"));
    assert_eq!(done.body["replicas"]["worker"]["desired"], 1);

    let job = world.resource("pytorchjob", &name).await?;
    let conditions: Vec<_> = job["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|condition| {
            (condition["type"].as_str().unwrap_or_default(), condition["reason"].as_str().unwrap_or_default())
        })
        .collect();
    assert_eq!(conditions.first(), Some(&("Created", "PyTorchJobCreated")));
    assert_eq!(conditions.last(), Some(&("Succeeded", "PyTorchJobSucceeded")));

    let logs = world.kubectl(&["logs", &format!("{name}-master-0")], None).await?;
    let text = String::from_utf8_lossy(&logs.stdout);
    ensure!(text.contains("step 4/4"), "kubectl logs: {text}{}", String::from_utf8_lossy(&logs.stderr));
    Ok(())
}

#[tokio::test]
async fn what_is_wrong_with_a_request_is_said_as_a_problem() -> Result<()> {
    let world = World::meet()?;
    let token = world.twin.setting("TRAINER_API_TOKEN")?;
    let good = world.stub_request(&World::run_id("refused"), json!({}))?;
    let wrong = "0".repeat(43);
    let with = |field: &str, value: Value| {
        let mut body = good.clone();
        body[field] = value;
        body.to_string()
    };
    for (method, path, token, body, status, code) in [
        (Method::POST, "/train", None, Some(good.to_string()), 401, "missing_token"),
        (Method::POST, "/train", Some(wrong.as_str()), Some(good.to_string()), 401, "invalid_token"),
        (Method::GET, "/train/x", Some(&wrong), None, 401, "invalid_token"),
        (Method::GET, "/train/x", None, None, 401, "missing_token"),
        (Method::GET, "/train/no-such-job", Some(token), None, 404, "job_not_found"),
        (Method::GET, "/train/No_Name", Some(token), None, 404, "job_not_found"),
        // The gateway decodes the path before it is routed.
        (Method::GET, "/train/a%2Fb", None, None, 404, "route_not_found"),
        (Method::DELETE, "/train/a%2Fb", None, None, 404, "route_not_found"),
        (Method::GET, "/train/x%2Flogs", Some(token), None, 404, "job_not_found"),
        (Method::GET, "/train/a%00b", Some(token), None, 404, "job_not_found"),
        (Method::GET, "/train/", None, None, 404, "route_not_found"),
        (Method::GET, "/healthz?verbose=1", None, None, 422, "invalid_request"),
        (Method::GET, "/train/no-such-job/checkpoints", Some(token), None, 404, "job_not_found"),
        (Method::GET, "/train/no-such-job/logs", Some(token), None, 404, "job_not_found"),
        (Method::GET, "/train/no-such-job/events", Some(token), None, 404, "job_not_found"),
        (Method::GET, "/nothing", None, None, 404, "route_not_found"),
        (Method::DELETE, "/train/no-such-job", Some(token), None, 404, "job_not_found"),
        (Method::DELETE, "/train/no-such-job", None, None, 401, "missing_token"),
        (Method::POST, "/train/no-such-job/suspend", Some(token), None, 404, "job_not_found"),
        (Method::POST, "/train/No_Name/resume", Some(token), None, 404, "job_not_found"),
        (Method::POST, "/train/no-such-job/pause", None, None, 404, "route_not_found"),
        (Method::POST, "/train/", None, None, 404, "route_not_found"),
        (Method::PUT, "/train", None, None, 405, "method_not_allowed"),
        (Method::PATCH, "/train/x", None, None, 405, "method_not_allowed"),
        (Method::POST, "/train", Some(token), Some("{".to_owned()), 400, "malformed_json"),
        (Method::POST, "/train", Some(token), Some("[]".to_owned()), 422, "invalid_request"),
        (Method::POST, "/train", Some(token), Some(with("num_node", json!(2))), 422, "invalid_request"),
        (Method::POST, "/train", Some(token), Some(with("image", json!("evil/x"))), 422, "invalid_request"),
        (Method::POST, "/train?dryrun=true", Some(token), Some(good.to_string()), 422, "invalid_request"),
        (Method::POST, "/train?dry_run=yes", Some(token), Some(good.to_string()), 422, "invalid_request"),
        (
            Method::POST,
            "/train?namespace=kube-system",
            Some(token),
            Some(good.to_string()),
            403,
            "namespace_not_allowed",
        ),
        (
            Method::POST,
            "/train",
            Some(token),
            Some(with("namespace", json!("kube-system"))),
            403,
            "namespace_not_allowed",
        ),
        (Method::POST, "/train?namespace=training-absent", Some(token), Some(good.to_string()), 502, "cluster_denied"),
        (Method::POST, "/train", Some(token), Some(" ".repeat(128 * 1024 + 1)), 413, "body_too_large"),
        (Method::POST, "/train?restart=yes", Some(token), Some(good.to_string()), 422, "invalid_request"),
    ] {
        let answer = world.twin.send(method.clone(), path, token, body).await?;
        let case = format!("{method} {path}: {}", answer.body);
        assert_eq!((answer.status, answer.text("/code")), (status, code), "{case}");
        assert_eq!(answer.content_type, "application/problem+json", "{case}");
        assert_eq!(answer.number("/status"), Some(u64::from(status)), "{case}");
        assert!(answer.text("/type").ends_with(code) && !answer.text("/request_id").is_empty(), "{case}");
        assert!(!answer.text("/detail").is_empty(), "{case}");
    }
    // A body that is declared as nothing is read as JSON.
    let bare = reqwest::Client::new().post(format!("{}/train?dry_run=true", world.twin.setting("API_URL")?));
    let bare = bare.header("x-trainer-token", token).body(good.to_string()).send().await?;
    assert_eq!(bare.status(), 200, "without Content-Type");
    let health = world.twin.send(Method::GET, "/healthz", None, None).await?.expect(200)?;
    assert_eq!(health.body, json!({"status": "ok"}));
    Ok(())
}

#[tokio::test]
async fn the_operators_webhook_refuses_a_container_of_another_name() -> Result<()> {
    let world = World::meet()?;
    let name = World::run_id("webhook");
    let job = |container: &str| {
        let template = json!({"spec": {"containers": [{"name": container, "image": "stub"}]}});
        json!({
            "apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "metadata": {"name": name},
            "spec": {"pytorchReplicaSpecs": {"Master": {"replicas": 1, "restartPolicy": "Never", "template": template}}},
        })
    };
    let refused = world.kubectl(&["create"], Some(&job("trainer"))).await?;
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success());
    assert!(
        message.contains(r#"admission webhook "validator.pytorchjob.training-operator.kubeflow.org" denied"#),
        "{message}"
    );
    // The same job with the right name passes: it was the name that was refused.
    let taken = world.kubectl(&["create", "--dry-run=server"], Some(&job("pytorch"))).await?;
    assert!(taken.status.success(), "{}", String::from_utf8_lossy(&taken.stderr));
    Ok(())
}

#[tokio::test]
async fn a_job_that_fits_no_node_says_what_the_scheduler_says() -> Result<()> {
    let world = World::meet()?;
    for (field, amount, resource) in
        [("gpus_per_node", 9, "nvidia.com/gpu"), ("disk_per_node_gb", 1025, "ephemeral-storage")]
    {
        let mut request = world.stub_request(&World::run_id("large"), json!({}))?;
        request[field] = json!(amount);
        let name = world.submit(&request).await?;
        let path = format!("/train/{name}");
        let answer = world.wait(&path, MINUTE, |answer| answer.text("/diagnosis/code") == "unschedulable").await?;
        assert_eq!((answer.text("/status"), answer.text("/phase")), ("submitted", "Pending"));
        assert!(answer.text("/detail").contains(&format!("Insufficient {resource}")), "{}", answer.body);
        let names_disk = answer.text("/diagnosis/next_step").contains("disk_per_node_gb");
        assert_eq!(names_disk, field == "disk_per_node_gb", "{}", answer.body);
        world.kubectl(&["delete", "pytorchjob", &name], None).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_job_whose_image_cannot_be_pulled_says_so() -> Result<()> {
    let world = World::meet()?;
    let mut request = world.stub_request(&World::run_id("image"), json!({}))?;
    request["image"] = json!("unknown.invalid/trainer:1");
    let name = world.submit(&request).await?;
    let path = format!("/train/{name}");
    world.wait(&path, MINUTE, |answer| answer.text("/diagnosis/code") == "image_pull").await?;
    world.kubectl(&["delete", "pytorchjob", &name], None).await?;
    Ok(())
}

#[tokio::test]
async fn a_job_whose_container_cannot_start_or_dies_says_so() -> Result<()> {
    let world = World::meet()?;
    let mut secret = world.stub_request(&World::run_id("secret"), json!({}))?;
    secret["env_from_secrets"] = json!({"HF_TOKEN": "second-secret/no-such-key"});
    let dying =
        world.stub_request(&World::run_id("dying"), json!({"seconds": 1, "exit_code": 1, "message": "no data"}))?;
    for (request, code, says) in [(secret, "container_config", "second-secret"), (dying, "crash_loop", "no data")] {
        let name = world.submit(&request).await?;
        let path = format!("/train/{name}");
        let answer = world.wait(&path, MINUTE, |answer| answer.text("/diagnosis/code") == code).await?;
        ensure!(answer.body["diagnosis"].to_string().contains(says), "{}", answer.body);
        ensure!(answer.text("/detail").contains(answer.text("/diagnosis/message")), "{}", answer.body);
        world.kubectl(&["delete", "pytorchjob", &name, "--wait=false"], None).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_failed_job_is_failed() -> Result<()> {
    let world = World::meet()?;
    let name = World::run_id("failed");
    let template = json!({"spec": {"containers": [
        {"name": "pytorch", "image": "stub", "env": [{"name": "TRAINING_EXTRA_ARGS_JSON", "value": r#"{"seconds": 1, "exit_code": 3}"#}]},
    ]}});
    let job = json!({
        "apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "metadata": {"name": name},
        "spec": {"pytorchReplicaSpecs": {"Master": {"replicas": 1, "restartPolicy": "Never", "template": template}}},
    });
    let created = world.kubectl(&["create"], Some(&job)).await?;
    ensure!(created.status.success(), "{}", String::from_utf8_lossy(&created.stderr));
    let path = format!("/train/{name}");
    let answer = world.wait(&path, MINUTE, |answer| answer.text("/status") == "failed").await?;
    assert_eq!((answer.text("/phase"), answer.text("/reason")), ("Failed", "PyTorchJobFailed"));
    // The platform did not make this job, and does not pretend to know its run.
    assert_eq!(answer.body["run_id"], Value::Null);
    Ok(())
}

#[tokio::test]
async fn markers_become_entries_and_leave_with_them() -> Result<()> {
    let world = World::meet()?;
    let run_id = World::run_id("index");
    let name = world.submit(&world.stub_request(&run_id, json!({"seconds": 1}))?).await?;
    let (prefix, path) = (format!("runs/{run_id}/framework=hf"), format!("/train/{name}/checkpoints"));
    let marker = |step: u64| format!("{prefix}/checkpoints/step-{step:06}.json");
    let put = async |step: u64, with_file: bool| -> Result<()> {
        if with_file {
            world.twin.put(&format!("{prefix}/checkpoints/checkpoint-{step}/model.safetensors"), vec![0; 16]).await?;
        }
        let body = json!({
            "layout": 1, "framework": "hf", "step": step, "saved_at": 1.5, "metadata": {}, "metrics": {"loss": 2.5},
            "files": [{"path": format!("checkpoint-{step}/model.safetensors"), "size": 16}],
        });
        world.twin.put(&marker(step), body.to_string().into_bytes()).await
    };
    put(10, true).await?;
    put(20, true).await?;
    put(30, false).await?;
    let listed = |count: usize| {
        move |answer: &twin::client::Answer| answer.body["checkpoints"].as_array().map(Vec::len) == Some(count)
    };
    let page = world.wait(&path, MINUTE, listed(3)).await?;
    let states: Vec<_> = (0..3)
        .map(|row| (page.number(&format!("/checkpoints/{row}/step")), page.text(&format!("/checkpoints/{row}/state"))))
        .collect();
    assert_eq!(states, [(Some(30), "incomplete"), (Some(20), "complete"), (Some(10), "complete")]);

    let first = world.twin.get(&format!("{path}?limit=2")).await?.expect(200)?;
    let second = world.twin.get(first.text("/links/next")).await?.expect(200)?;
    assert_eq!(second.number("/checkpoints/0/step"), Some(10));
    assert_eq!(world.twin.get(&format!("{path}?limit=0")).await?.expect(422)?.text("/code"), "invalid_request");

    let bucket = world.twin.setting("RUNS_BUCKET")?;
    world.twin.s3.delete_object().bucket(bucket).key(marker(20)).send().await?;
    world.wait(&path, MINUTE, listed(2)).await?;
    // Each entry with its digest.
    for (folder, count) in [("index/v1/9", 2), ("index/v1/digest/", 2), ("index/", 4)] {
        assert_eq!(world.keys(&format!("{prefix}/{folder}")).await?.len(), count, "{folder}");
    }
    Ok(())
}
