//! One request, one job: replays, conflicts, restarts, races and lost answers, against the real API server and operator.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::World;
use futures::future;
use serde_json::{Value, json};
use tokio::time::sleep;
use twin::client::Answer;

/// The first process of a container is deaf to SIGTERM until it handles it: a pod that is deleted in its first moments ends
/// with its grace period of five minutes.
const GONE_WITHIN: Duration = Duration::from_mins(6);
const MINUTE: Duration = Duration::from_mins(1);

/// A stub request with some fields replaced.
fn with(request: &Value, changes: &Value) -> Value {
    let mut request = request.clone();
    for (field, value) in changes.as_object().into_iter().flatten() {
        request[field] = value.clone();
    }
    request
}

/// How many jobs a run has in the cluster.
async fn jobs_of(world: &World, run_id: &str) -> Result<usize> {
    let selector = format!("--selector=trainer.deepfinery/run-id={run_id}");
    let output = world.kubectl(&["get", "pytorchjobs", &selector, "--output", "name"], None).await?;
    Ok(String::from_utf8(output.stdout)?.lines().count())
}

async fn owner(world: &World, run_id: &str) -> Result<Value> {
    Ok(serde_json::from_slice(&world.twin.object(&format!("runs/{run_id}/framework=hf/owner")).await?)?)
}

async fn gone(world: &World, path: &str) -> Result<()> {
    let started = Instant::now();
    while world.twin.get(path).await?.status != 404 {
        ensure!(started.elapsed() < GONE_WITHIN, "{path} is still there");
        sleep(Duration::from_millis(300)).await;
    }
    Ok(())
}

/// Codes of problems, or statuses of good answers.
fn outcomes(answers: &[Answer]) -> Vec<String> {
    let outcome = |answer: &Answer| match answer.text("/code") {
        "" => answer.status.to_string(),
        code => code.to_owned(),
    };
    let mut outcomes: Vec<_> = answers.iter().map(outcome).collect();
    outcomes.sort_unstable();
    outcomes
}

/// Whether a process of this machine, where the twin's pods are processes, has all these variables.
fn is_in_an_environment(variables: &[&str]) -> bool {
    std::fs::read_dir("/proc").into_iter().flatten().flatten().any(|process| {
        let environment = std::fs::read(process.path().join("environ")).unwrap_or_default();
        let has = |variable: &&str| environment.split(|byte| *byte == 0).any(|entry| entry == variable.as_bytes());
        variables.iter().all(has)
    })
}

#[tokio::test]
async fn the_same_request_is_replayed_and_another_one_is_told_where_it_differs() -> Result<()> {
    let world = World::meet()?;
    let run_id = World::run_id("replayed_1");
    let request = world.stub_request(&run_id, json!({"seconds": 2}))?;
    let first = world.twin.post("/train", &request).await?.expect(201)?;
    assert_eq!(first.header("idempotent-replayed"), None);
    let again = world.twin.post("/train", &request).await?.expect(200)?;
    assert_eq!(again.header("idempotent-replayed"), Some("true"));
    assert_eq!(
        (again.text("/submission"), again.location.as_str()),
        (first.text("/submission"), first.location.as_str())
    );

    let other = with(&request, &json!({"extra_args": {"seconds": 3}, "labels": {"a": "secret-value"}}));
    let conflict = world.twin.post("/train", &other).await?.expect(409)?;
    assert_eq!(conflict.text("/code"), "job_conflict");
    let pointers: Vec<_> =
        conflict.body["errors"].as_array().into_iter().flatten().map(|e| e["pointer"].clone()).collect();
    assert_eq!(pointers, ["/extra_args", "/labels"]);
    ensure!(!conflict.body.to_string().contains("secret-value"), "a value is echoed: {}", conflict.body);

    // Another run whose job would have the same name is never mistaken for this one.
    let namesake = with(&request, &json!({"run_id": run_id.replace('_', "-")}));
    for path in ["/train", "/train?restart=true"] {
        let refused = world.twin.post(path, &namesake).await?.expect(409)?;
        assert_eq!((refused.text("/code"), refused.text("/errors/0/pointer")), ("job_conflict", "/run_id"), "{path}");
    }

    let name = first.name();
    world.wait_for_status(name, "succeeded", MINUTE).await?;
    let after = world.twin.post("/train", &request).await?.expect(200)?;
    assert_eq!((after.text("/status"), after.text("/submission")), ("succeeded", first.text("/submission")));
    Ok(())
}

#[tokio::test]
async fn a_request_is_the_same_however_it_is_written() -> Result<()> {
    let world = World::meet()?;
    let base = world.twin.setting("RUNS_BASE_URI")?;
    let least = json!({
        "framework": "hf", "model_id": "tiny", "run_id": World::run_id("written"), "checkpoint_base_uri": base,
        "dataset_uri": "s3://data/none.jsonl", "image": "stub", "extra_args": {"seconds": 1, "steps": 2},
    });
    let created = world.twin.post("/train", &least).await?.expect(201)?;
    // Each default of the contract, nulls, another order, slashes and a number's other form.
    let whole = json!({
        "priority_class": null, "queue": null, "max_restarts": null, "max_runtime_seconds": null, "config_path": null,
        "annotations": {}, "labels": {}, "env_from_secrets": {}, "env": {}, "extra_args": {"steps": 2, "seconds": 1.0},
        "resume_from_checkpoint": false, "disk_per_node_gb": null, "memory_per_node_gb": 256, "cpus_per_node": 32, "gpus_per_node": 1,
        "num_nodes": 1, "image": "stub", "dataset_uri": "s3://data/none.jsonl", "checkpoint_base_uri": format!("{base}//"),
        "run_id": least["run_id"], "model_id": "tiny", "framework": "hf", "namespace": "training",
        "job_name": created.name(),
    });
    let replayed = world.twin.post("/train?restart=false", &whole).await?.expect(200)?;
    assert_eq!(replayed.text("/submission"), created.text("/submission"));
    world.twin.delete(&created.location).await?.expect(202)?;
    Ok(())
}

#[tokio::test]
async fn a_hundred_equal_requests_at_once_make_one_job() -> Result<()> {
    let world = World::meet()?;
    let run_id = World::run_id("hundred");
    let request = world.stub_request(&run_id, json!({"seconds": 1}))?;
    let answers = future::try_join_all((0..100).map(|_| world.twin.post("/train", &request))).await?;
    let created = answers.iter().filter(|answer| answer.status == 201).count();
    let replayed = answers.iter().filter(|answer| answer.status == 200).count();
    ensure!((created, replayed) == (1, 99), "{:?}", outcomes(&answers));
    let submission = answers.first().map(|answer| answer.text("/submission").to_owned()).unwrap_or_default();
    ensure!(answers.iter().all(|answer| answer.text("/submission") == submission), "several submissions");
    assert_eq!(jobs_of(&world, &run_id).await?, 1);
    assert_eq!(owner(&world, &run_id).await?["submission"], submission.as_str(), "the job owns its run");
    Ok(())
}

#[tokio::test]
async fn a_restart_replaces_a_finished_job_once() -> Result<()> {
    let world = World::meet()?;
    let run_id = World::run_id("restarted");
    let request = world.stub_request(&run_id, json!({"seconds": 2}))?;
    let first = world.twin.post("/train", &request).await?.expect(201)?;
    let name = first.name().to_owned();
    for path in ["/train?restart=true".to_owned(), format!("/train?restart={}", first.text("/submission"))] {
        assert_eq!(world.twin.post(&path, &request).await?.expect(409)?.text("/code"), "job_running", "{path}");
    }
    world.wait_for_status(&name, "succeeded", MINUTE).await?;

    // Of two at once, one makes the job and the other finds it.
    let restart = || world.twin.post("/train?restart=true", &request);
    let (one, two) = tokio::join!(restart(), restart());
    let answers = [one?, two?];
    let found = outcomes(&answers);
    ensure!(found == ["200", "201"] || found == ["201", "job_running"], "{found:?}");
    assert_eq!(jobs_of(&world, &run_id).await?, 1);
    let done = world.wait_for_status(&name, "succeeded", MINUTE).await?;
    let created = answers.iter().find(|answer| answer.status == 201).map(|answer| answer.text("/submission"));
    assert_eq!(Some(done.text("/submission")), created);
    ensure!(done.text("/submission") != first.text("/submission"), "the old job is still there");

    // A changed request may take its place, too.
    let changed = with(&request, &json!({"extra_args": {"seconds": 1, "steps": 2}}));
    let third = world.twin.post("/train?restart=true", &changed).await?.expect(201)?;
    let record = format!("runs/_jobs/{}/{name}/{}", world.twin.setting("NAMESPACE")?, third.text("/submission"));
    let record: Value = serde_json::from_slice(&world.twin.object(&record).await?)?;
    assert_eq!(record["job"], name.as_str());
    assert_eq!(owner(&world, &run_id).await?["submission"], third.text("/submission"));
    Ok(())
}

#[tokio::test]
async fn a_restart_whose_answer_was_lost_can_be_sent_again() -> Result<()> {
    let world = World::meet()?;
    let run_id = World::run_id("lost");
    let request = world.stub_request(&run_id, json!({"seconds": 1}))?;
    let first = world.twin.post("/train", &request).await?.expect(201)?;
    let name = first.name().to_owned();
    world.wait_for_status(&name, "succeeded", MINUTE).await?;

    // The caller hangs up at once; the function goes on, as nobody else does.
    let path = format!("/train?restart={}", first.text("/submission"));
    let hung_up = tokio::time::timeout(Duration::from_millis(30), world.twin.post(&path, &request)).await;
    ensure!(hung_up.is_err(), "it was answered before the caller hung up");
    let started = Instant::now();
    let made = loop {
        ensure!(started.elapsed() < MINUTE, "nothing was restarted");
        let found = world.twin.get(&format!("/train/{name}")).await?;
        if found.status == 200 && found.text("/submission") != first.text("/submission") {
            break found.text("/submission").to_owned();
        }
        sleep(Duration::from_millis(200)).await;
    };
    for _ in 0..3 {
        let again = world.twin.post(&path, &request).await?.expect(200)?;
        assert_eq!(again.text("/submission"), made, "each repetition is answered with the same job");
    }
    assert_eq!(jobs_of(&world, &run_id).await?, 1);
    let elsewhere = world.twin.post(&path, &with(&request, &json!({"num_nodes": 1}))).await?.expect(409)?;
    assert_eq!(elsewhere.text("/code"), "job_conflict");
    Ok(())
}

#[tokio::test]
async fn a_request_for_a_job_that_is_being_deleted_waits_or_is_told_to() -> Result<()> {
    let world = World::meet()?;
    let run_id = World::run_id("leaving");
    // Its pods take their time to stop.
    let request = world.stub_request(&run_id, json!({"seconds": 600, "stop_seconds": 5}))?;
    let first = world.twin.post("/train", &request).await?.expect(201)?;
    let name = first.name().to_owned();
    world.wait_for_status(&name, "running", MINUTE).await?;

    let path = format!("/train/{name}");
    for _ in 0..2 {
        let leaving = world.twin.delete(&path).await?.expect(202)?;
        ensure!(leaving.text("/detail").contains("deleted"), "{}", leaving.body);
    }
    let told = world.twin.post("/train", &request).await?.expect(409)?;
    assert_eq!((told.text("/code"), told.header("retry-after")), ("job_terminating", Some("5")));
    for action in ["suspend", "resume"] {
        let refused = world.twin.post(&format!("{path}/{action}"), &json!({})).await?.expect(409)?;
        assert_eq!(refused.text("/code"), "job_terminating");
    }
    let second = world.twin.post("/train?restart=true", &request).await?.expect(201)?;
    ensure!(second.text("/submission") != first.text("/submission"), "the old submission");
    assert_eq!(jobs_of(&world, &run_id).await?, 1);
    world.wait_for_status(&name, "running", MINUTE).await?;
    world.twin.delete(&path).await?.expect(202)?;
    gone(&world, &path).await?;
    assert_eq!(world.twin.delete(&path).await?.expect(404)?.text("/code"), "job_not_found");
    Ok(())
}

#[tokio::test]
async fn a_restart_does_not_wait_longer_than_its_caller_would() -> Result<()> {
    let world = World::meet()?;
    // Its pods take longer to stop than a restart waits, and less than twice as long.
    let request = world.stub_request(&World::run_id("slow-to-leave"), json!({"seconds": 600, "stop_seconds": 25}))?;
    let first = world.twin.post("/train", &request).await?.expect(201)?;
    world.wait_for_status(first.name(), "running", MINUTE).await?;
    world.twin.delete(&first.location).await?.expect(202)?;
    let started = Instant::now();
    let told = world.twin.post("/train?restart=true", &request).await?.expect(409)?;
    let waited = started.elapsed().as_secs();
    assert_eq!((told.text("/code"), told.header("retry-after")), ("job_terminating", Some("5")));
    ensure!((14..=20).contains(&waited), "answered after {waited} s");
    let second = world.twin.post("/train?restart=true", &request).await?.expect(201)?;
    ensure!(second.text("/submission") != first.text("/submission"), "the old submission");
    world.twin.delete(&second.location).await?.expect(202)?;
    Ok(())
}

#[tokio::test]
async fn a_run_with_checkpoints_is_never_trained_over_by_a_retry() -> Result<()> {
    let world = World::meet()?;
    let run_id = World::run_id("trained");
    let request = world.stub_request(&run_id, json!({"seconds": 1}))?;
    let prefix = format!("runs/{run_id}/framework=hf");
    let marker = |step: u64, loss: f64, size: usize| {
        json!({
            "layout": 1, "framework": "hf", "step": step, "saved_at": 1.0, "submission": "01980000-0000-7000-8000-000000000001",
            "world_size": 1, "files": [{"path": format!("checkpoint-{step}/model"), "size": size}],
            "metrics": {"loss": loss}, "metadata": {},
        })
    };
    // Step 30 is torn: its file is shorter than its marker says.
    for (step, loss, size) in [(10, 1.5, 4), (20, 2.5, 4), (30, 0.5, 5)] {
        world.twin.put(&format!("{prefix}/checkpoints/checkpoint-{step}/model"), b"1234".to_vec()).await?;
        let key = format!("{prefix}/checkpoints/step-{step:06}.json");
        world.twin.put(&key, marker(step, loss, size).to_string().into_bytes()).await?;
    }
    let started = Instant::now();
    while world.keys(&format!("{prefix}/index/v1/9")).await?.len() < 3 {
        ensure!(started.elapsed() < MINUTE, "the index does not have the three checkpoints");
        sleep(Duration::from_millis(200)).await;
    }

    assert_eq!(world.twin.post("/train", &request).await?.expect(409)?.text("/code"), "run_exists");
    for missing in ["step-30", "step-15"] {
        let request = with(&request, &json!({"resume_from_checkpoint": missing}));
        let refused = world.twin.post("/train", &request).await?.expect(409)?;
        assert_eq!(refused.text("/code"), "resume_target_not_found", "{missing}");
    }
    for (wanted, resume) in
        [(json!("latest"), "step-20"), (json!("best"), "step-10"), (json!("step-10"), "step-10"), (json!(true), "true")]
    {
        let request = with(&request, &json!({"resume_from_checkpoint": wanted}));
        let answer = world.twin.post("/train?dry_run=true", &request).await?.expect(200)?;
        let manifest = &answer.body["manifest"];
        let env =
            manifest["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]["containers"][0]["env"].as_array();
        let found = env.into_iter().flatten().find(|variable| variable["name"] == "RESUME").map(|v| v["value"].clone());
        assert_eq!(found, Some(json!(resume)), "{wanted}");
    }
    // What `latest` means is decided once: a newer checkpoint makes no other request of it.
    let resumed = with(&request, &json!({"resume_from_checkpoint": "latest"}));
    let pinned = world.twin.post("/train", &resumed).await?.expect(201)?;
    world.twin.put(&format!("{prefix}/checkpoints/checkpoint-30/model"), b"12345".to_vec()).await?;
    let checkpoints = format!("/train/{}/checkpoints", pinned.name());
    assert_eq!(world.twin.get(&format!("{checkpoints}/30")).await?.expect(200)?.text("/state"), "complete");
    let replayed = world.twin.post("/train", &resumed).await?.expect(200)?;
    assert_eq!(replayed.text("/submission"), pinned.text("/submission"));
    world.wait_for_status(pinned.name(), "succeeded", MINUTE).await?;

    let started_anew = world.twin.post("/train?restart=true", &request).await?.expect(201)?;
    world.wait_for_status(started_anew.name(), "succeeded", MINUTE).await?;
    // The checkpoints outlive the job, and the next one goes on from them.
    world.twin.delete(&started_anew.location).await?.expect(202)?;
    gone(&world, &started_anew.location).await?;
    let markers = world.keys(&format!("{prefix}/checkpoints/step-")).await?;
    assert_eq!(markers, [10, 20, 30].map(|step| format!("{prefix}/checkpoints/step-{step:06}.json")));
    assert_eq!(world.twin.post("/train", &request).await?.expect(409)?.text("/code"), "run_exists");
    world.twin.post("/train", &with(&request, &json!({"resume_from_checkpoint": true}))).await?.expect(201)?;
    Ok(())
}

#[tokio::test]
async fn one_run_has_one_active_job_whatever_its_name() -> Result<()> {
    let world = World::meet()?;
    let run_id = World::run_id("owned");
    let request = world.stub_request(&run_id, json!({"seconds": 20}))?;
    let named = |name: &str| with(&request, &json!({"job_name": format!("{name}-{}", run_id.replace('_', "-"))}));
    let requests: Vec<_> = ["a", "b", "c", "d"].map(named).into();
    let answers = future::try_join_all(requests.iter().map(|request| world.twin.post("/train", request))).await?;
    assert_eq!(outcomes(&answers), ["201", "run_active", "run_active", "run_active"]);
    let winner =
        answers.iter().find(|answer| answer.status == 201).map(|answer| answer.name().to_owned()).unwrap_or_default();
    assert_eq!(owner(&world, &run_id).await?["job"], winner.as_str());
    // Those that lost the race late take their jobs back.
    let started = Instant::now();
    while jobs_of(&world, &run_id).await? != 1 {
        ensure!(started.elapsed() < MINUTE, "several jobs of one run");
        sleep(Duration::from_millis(300)).await;
    }
    let refused = world.twin.post("/train?namespace=training-two", &request).await?.expect(409)?;
    assert_eq!(refused.text("/code"), "run_active");
    ensure!(refused.text("/detail").contains(&winner), "{}", refused.body);
    // What it has written by now is no reason to restart it.
    let marker = json!({"layout": 1, "framework": "hf", "step": 5, "saved_at": 1.0, "files": [], "metadata": {}});
    let key = format!("runs/{run_id}/framework=hf/checkpoints/step-000005.json");
    world.twin.put(&key, marker.to_string().into_bytes()).await?;
    for path in ["/train", "/train?dry_run=true", "/train?restart=true"] {
        assert_eq!(world.twin.post(path, &named("e")).await?.expect(409)?.text("/code"), "run_active", "{path}");
    }
    world.twin.delete(&format!("/train/{winner}")).await?.expect(202)?;
    Ok(())
}

#[tokio::test]
async fn a_dry_run_creates_nothing_and_says_what_would_be_answered() -> Result<()> {
    let world = World::meet()?;
    let run_id = World::run_id("rehearsed");
    let request = world.stub_request(&run_id, json!({"seconds": 1}))?;
    let dry = world.twin.post("/train?dry_run=true", &request).await?.expect(200)?;
    assert_eq!((dry.number("/would_answer"), dry.body["dry_run"].as_bool()), (Some(201), Some(true)));
    assert_eq!(jobs_of(&world, &run_id).await?, 0);
    ensure!(world.keys(&format!("runs/{run_id}/")).await?.is_empty(), "a dry run wrote into the bucket");

    let created = world.twin.post("/train", &request).await?.expect(201)?;
    let name = created.name();
    let replayed = world.twin.post("/train?dry_run=true", &request).await?.expect(200)?;
    assert_eq!(replayed.number("/would_answer"), Some(200));
    let other = with(&request, &json!({"num_nodes": 1}));
    assert_eq!(world.twin.post("/train?dry_run=true", &other).await?.expect(409)?.text("/code"), "job_conflict");
    world.wait_for_status(name, "succeeded", MINUTE).await?;
    let restarted = world.twin.post("/train?dry_run=true&restart=true", &other).await?.expect(200)?;
    assert_eq!(restarted.number("/would_answer"), Some(201));
    let present = world.twin.get(&format!("/train/{name}")).await?.expect(200)?;
    assert_eq!(present.text("/submission"), created.text("/submission"), "the dry run replaced nothing");
    let made = world.twin.post("/train?restart=true", &other).await?.expect(201)?;
    let job = world.resource("pytorchjob", name).await?;
    for part in ["/spec", "/metadata/labels", "/metadata/annotations"] {
        let unnamed = |manifest: &Value, answer: &Answer| {
            manifest.pointer(part).map(|part| part.to_string().replace(answer.text("/submission"), "it"))
        };
        let shown = unnamed(&restarted.body["manifest"], &restarted).context("not shown")?;
        let made = unnamed(&job, &made).context("not made")?;
        assert_eq!(serde_json::from_str::<Value>(&shown)?, serde_json::from_str::<Value>(&made)?, "{part}");
    }

    // RBAC comes first: a namespace that does not exist has no Role in it.
    let absent = world.twin.post("/train?dry_run=true&namespace=training-absent", &request).await?.expect(502)?;
    assert_eq!(absent.text("/code"), "cluster_denied");
    Ok(())
}

#[tokio::test]
async fn a_job_is_suspended_and_resumed_unless_a_queue_decides() -> Result<()> {
    let world = World::meet()?;
    let request = world.stub_request(&World::run_id("suspended"), json!({"seconds": 600, "steps": 600}))?;
    let name = world.submit(&request).await?;
    let path = format!("/train/{name}");
    let running = world.wait(&path, MINUTE, |answer| answer.number("/progress/step").is_some()).await?;
    ensure!(running.text("/detail").starts_with("running, step "), "{}", running.body);
    // Those that do not look how far it is do not say that it is nowhere.
    assert_eq!(world.twin.post("/train", &request).await?.expect(200)?.text("/detail"), "running");
    for _ in 0..2 {
        let held = world.twin.post(&format!("{path}/suspend"), &json!({})).await?.expect(202)?;
        ensure!(!held.text("/detail").contains("no step"), "{}", held.body);
    }
    let held = world.wait(&path, MINUTE, |answer| answer.text("/phase") == "Suspended").await?;
    assert_eq!(held.text("/status"), "submitted");
    let started = Instant::now();
    while !world.pods(&name).await?.is_empty() {
        ensure!(started.elapsed() < MINUTE, "a suspended job has pods");
        sleep(Duration::from_millis(300)).await;
    }
    world.twin.post(&format!("{path}/resume"), &json!({})).await?.expect(202)?;
    world.wait(&path, MINUTE, |answer| answer.text("/phase") == "Running").await?;
    world.twin.delete(&path).await?.expect(202)?;

    let queued =
        with(&world.stub_request(&World::run_id("queued"), json!({"seconds": 10}))?, &json!({"queue": "team-a"}));
    let name = world.submit(&queued).await?;
    for action in ["suspend", "resume"] {
        let refused = world.twin.post(&format!("/train/{name}/{action}"), &json!({})).await?.expect(409)?;
        assert_eq!(refused.text("/code"), "queue_managed", "{action}");
    }
    world.wait_for_status(&name, "succeeded", MINUTE).await?;
    for action in ["suspend", "resume"] {
        let refused = world.twin.post(&format!("/train/{name}/{action}"), &json!({})).await?.expect(409)?;
        assert_eq!(refused.text("/code"), "job_finished", "{action}");
    }
    Ok(())
}

#[tokio::test]
async fn platform_defaults_and_secrets_reach_the_pods() -> Result<()> {
    let world = World::meet()?;
    let namespace = "training-two";
    let apply = |kind: Value| {
        let world = &world;
        async move {
            // By the server, because a large object does not fit into the annotation that kubectl would make of it.
            let arguments = ["apply", "--server-side", "--force-conflicts", "--namespace", namespace];
            let output = world.kubectl(&arguments, Some(&kind)).await?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            anyhow::Ok(())
        }
    };
    let defaults = |debug: &str| {
        json!({
            "apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "training-defaults"},
            "template": {
                "metadata": {"labels": {"owner": "platform"}},
                "spec": {
                    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
                    "containers": [
                        {"name": "pytorch", "image": "ignored", "env": [{"name": "NCCL_DEBUG", "value": debug}]},
                        {"name": "sidecar", "image": "stub"},
                    ],
                },
            },
        })
    };
    // Two of them are more than an object may have.
    apply(defaults(&"x".repeat(600 * 1024))).await?;
    let path = format!("/train?namespace={namespace}");
    let large = world.stub_request(&World::run_id("large"), json!({}))?;
    assert_eq!(world.twin.post(&path, &large).await?.expect(413)?.text("/code"), "body_too_large");
    apply(defaults("INFO")).await?;
    apply(json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "hugging-face"}, "stringData": {"token": "hf_secret"},
    }))
    .await?;
    let run_id = World::run_id("defaults");
    let request = with(
        &world.stub_request(&run_id, json!({"seconds": 5}))?,
        &json!({"env_from_secrets": {"HF_TOKEN": "hugging-face/token"}, "labels": {"example.com/team": "a"}, "max_runtime_seconds": 600}),
    );
    let toleration = json!({"key": "nvidia.com/gpu", "operator": "Exists"});
    let is_whole = |pod: &Value| {
        let names: Vec<_> =
            pod["containers"].as_array().into_iter().flatten().map(|container| &container["name"]).collect();
        let has_toleration = pod["tolerations"].as_array().is_some_and(|all| all.contains(&toleration));
        names == ["pytorch", "sidecar"] && has_toleration && pod["containers"][0]["image"] == "stub"
    };
    let dry = world.twin.post(&format!("{path}&dry_run=true"), &request).await?.expect(200)?;
    for (kind, replica) in dry.body["manifest"]["spec"]["pytorchReplicaSpecs"].as_object().into_iter().flatten() {
        ensure!(is_whole(&replica["template"]["spec"]), "{kind}: {replica}");
    }
    let created = world.twin.post(&path, &request).await?.expect(201)?;
    assert_eq!(created.location, format!("/train/{}?namespace={namespace}", created.name()));
    let started = Instant::now();
    while !is_in_an_environment(&[&format!("RUN_ID={run_id}"), "HF_TOKEN=hf_secret"]) {
        ensure!(started.elapsed() < MINUTE, "no process of the job has the secret");
        sleep(Duration::from_millis(100)).await;
    }
    let done = world.wait(&created.location, MINUTE, |answer| answer.text("/status") == "succeeded").await?;
    assert_eq!(done.text("/namespace"), namespace);

    let output = world
        .kubectl(
            &["get", "pod", &format!("{}-master-0", created.name()), "--namespace", namespace, "--output", "json"],
            None,
        )
        .await?;
    let pod: Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(pod["metadata"]["labels"]["owner"], "platform");
    assert_eq!(pod["metadata"]["labels"]["example.com/team"], "a");
    assert_eq!(pod["spec"]["activeDeadlineSeconds"], 630);
    ensure!(is_whole(&pod["spec"]), "{}", pod["spec"]);
    let env = pod["spec"]["containers"][0]["env"].as_array().cloned().unwrap_or_default();
    ensure!(env.contains(&json!({"name": "NCCL_DEBUG", "value": "INFO"})), "{env:?}");
    ensure!(!pod.to_string().contains("hf_secret"), "the secret stands in clear text in the pod");
    let logs =
        world.kubectl(&["logs", &format!("{}-master-0", created.name()), "--namespace", namespace], None).await?;
    ensure!(logs.status.success(), "{}", String::from_utf8_lossy(&logs.stderr));
    // In the default namespace there is no such job.
    assert_eq!(
        world.twin.get(&format!("/train/{}", created.name())).await?.expect(404)?.text("/code"),
        "job_not_found"
    );
    let output = world.kubectl(&["delete", "podtemplate", "training-defaults", "--namespace", namespace], None).await?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
