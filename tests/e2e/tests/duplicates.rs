//! Equal requests at once, where the second creation is refused for another reason than its name: a quota, which is judged
//! before the name, throttling, or a webhook that is away. Every pair, and a hundred at once, make one job, the answers are
//! good, and the job trains. With real trainers, which read whose the run is.
//!
//! `PAIRS` (12 when not set) is how many pairs meet the quota.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::World;
use futures::future;
use serde_json::{Value, json};
use tokio::time::sleep;
use twin::client::Answer;

const NAMESPACE: &str = "training-two";
const QUOTA: &str = "one-job";
const MINUTE: Duration = Duration::from_mins(1);
/// The first process of a container is deaf to SIGTERM until it handles it: a pod that is deleted in its first moments ends
/// with its grace period of five minutes.
const GONE_WITHIN: Duration = Duration::from_mins(6);
const TRAINED_WITHIN: Duration = Duration::from_mins(3);
/// Longest time between the two requests of a pair.
const APART: Duration = Duration::from_millis(30);

const THROTTLES: &[&str] =
    &["429", "--header", "Retry-After: 1", "--body", "Too many requests, please try again later.\n"];
const WEBHOOK_AWAY: &[&str] = &[
    "500",
    "--body",
    r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","reason":"InternalError","code":500,"message":"Internal error occurred: failed calling webhook \"validator.pytorchjob.training-operator.kubeflow.org\": connection refused"}"#,
];

/// A request whose job trains, or one whose job can be deleted at once: the stub stops when it is told to.
fn request(world: &World, dataset_uri: &str, is_trained: bool) -> Result<Value> {
    let run_id = World::run_id("pair");
    if is_trained {
        world.twin.two_node_request(&run_id, dataset_uri, 20, 10)
    } else {
        let mut request = world.stub_request(&run_id, json!({"seconds": 60}))?;
        request["num_nodes"] = json!(1);
        Ok(request)
    }
}

/// Send a request twice, so far apart.
async fn pair(world: &World, request: &Value, apart: Duration) -> Result<[Answer; 2]> {
    let second = async {
        sleep(apart).await;
        world.twin.post("/train", request).await
    };
    let (first, second) = tokio::join!(world.twin.post("/train", request), second);
    Ok([first?, second?])
}

/// One of the requests made the job, all were answered with it, and it owns its run. Returns its path.
async fn one_job(world: &World, answers: &[Answer], label: &str) -> Result<String> {
    let mut statuses: Vec<_> = answers.iter().map(|answer| answer.status).collect();
    statuses.sort_unstable();
    let told = || answers.iter().map(|answer| answer.body.to_string()).collect::<Vec<_>>().join("\n");
    let (made, replayed) = statuses.split_last().context("no answer")?;
    ensure!(*made == 201 && replayed.iter().all(|status| *status == 200), "{label}: {statuses:?}\n{}", told());
    let first = answers.first().context("no answer")?;
    let (submission, run_id) = (first.text("/submission"), first.text("/run_id"));
    ensure!(answers.iter().all(|answer| answer.text("/submission") == submission), "{label}: {}", told());
    let owner = world.twin.object(&format!("runs/{run_id}/framework=hf/owner")).await?;
    let owner: Value = serde_json::from_slice(&owner)?;
    ensure!(owner["submission"] == submission && owner["released"].is_null(), "{label}: the owner is {owner}");
    let made = answers.iter().find(|answer| answer.status == 201).context("nobody made it")?;
    Ok(made.location.clone())
}

async fn trains(world: &World, path: &str) -> Result<()> {
    let ended = |answer: &Answer| matches!(answer.text("/status"), "succeeded" | "failed");
    let done = world.wait(path, TRAINED_WITHIN, ended).await?;
    ensure!(done.text("/status") == "succeeded", "{}", done.body);
    remove(world, path).await
}

async fn remove(world: &World, path: &str) -> Result<()> {
    world.twin.delete(path).await?.expect(202)?;
    let started = Instant::now();
    while world.twin.get(path).await?.status != 404 {
        ensure!(started.elapsed() < GONE_WITHIN, "{path} is still there");
        sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}

/// Give the namespace room for one more job than it has.
async fn set_quota(world: &World) -> Result<()> {
    let output = world.kubectl(&["--namespace", NAMESPACE, "get", "pytorchjobs", "--output", "name"], None).await?;
    let there = String::from_utf8(output.stdout)?.lines().count();
    let quota = json!({
        "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": QUOTA, "namespace": NAMESPACE},
        "spec": {"hard": {"count/pytorchjobs.kubeflow.org": (there + 1).to_string()}},
    });
    let output = world.kubectl(&["--namespace", NAMESPACE, "apply"], Some(&quota)).await?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // A quota counts from when its controller has seen it.
    let started = Instant::now();
    loop {
        let output =
            world.kubectl(&["--namespace", NAMESPACE, "get", "resourcequota", QUOTA, "--output", "json"], None).await?;
        let quota: Value = serde_json::from_slice(&output.stdout)?;
        if quota["status"]["used"]["count/pytorchjobs.kubeflow.org"].is_string() {
            return Ok(());
        }
        ensure!(started.elapsed() < MINUTE, "the quota is not counted: {quota}");
        sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test]
async fn equal_requests_under_a_quota_for_one_job_make_one_job_that_trains() -> Result<()> {
    let world = World::meet()?;
    set_quota(&world).await?;
    let done = under_the_quota(&world).await;
    world.kubectl(&["--namespace", NAMESPACE, "delete", "resourcequota", QUOTA], None).await?;
    done
}

async fn under_the_quota(world: &World) -> Result<()> {
    let pairs: u32 = std::env::var("PAIRS").ok().and_then(|pairs| pairs.parse().ok()).unwrap_or(12);
    let dataset_uri = world.twin.put_data_set().await?;
    let request = |is_trained| -> Result<Value> {
        let mut request = request(world, &dataset_uri, is_trained)?;
        request["namespace"] = json!(NAMESPACE);
        Ok(request)
    };
    for number in 0..pairs {
        let apart = APART * number / pairs.max(2).saturating_sub(1);
        let is_trained = number % 12 == 0;
        let answers = pair(world, &request(is_trained)?, apart).await?;
        let path = one_job(world, &answers, &format!("pair {number}, {apart:?} apart")).await?;
        if is_trained { trains(world, &path).await? } else { remove(world, &path).await? }
    }
    eprintln!("{pairs} pairs under a quota: each one job, both answers good");

    let request = request(true)?;
    let answers = future::try_join_all((0..100).map(|_| world.twin.post("/train", &request))).await?;
    trains(world, &one_job(world, &answers, "a hundred").await?).await
}

#[tokio::test]
async fn an_equal_request_that_is_throttled_or_meets_no_webhook_finds_the_job() -> Result<()> {
    let world = World::meet()?;
    let dataset_uri = world.twin.put_data_set().await?;
    for (label, answer) in [("throttled", THROTTLES), ("no webhook", WEBHOOK_AWAY)] {
        for number in 0..6 {
            let request = request(&world, &dataset_uri, number == 0)?;
            // The first creation goes well, and the next one does not.
            let mut fault = vec!["fault", "cluster", "answer"];
            fault.extend(answer);
            fault.extend(["--method", "POST", "--path", "/pytorchjobs", "--after", "1", "--times", "1"]);
            world.tell(&fault).await?;
            let answers = pair(&world, &request, APART * number / 5).await;
            world.tell(&["fault", "clear"]).await?;
            let path = one_job(&world, &answers?, &format!("{label}, pair {number}")).await?;
            if number == 0 { trains(&world, &path).await? } else { remove(&world, &path).await? }
        }
    }
    Ok(())
}
