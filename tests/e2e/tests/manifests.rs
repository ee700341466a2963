//! Every request that is accepted makes a job that the real API server and the operator's webhook take, and a dry run
//! shows exactly the job that is then made.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::{
    World, cluster,
    generate::{Chance, Deployment, accepted},
};
use futures::{StreamExt, stream};
use serde_json::{Value, json};
use tokio::time::sleep;
use training_core::request::FIELDS;

const REQUESTS: usize = 1_000;
const CREATED: usize = 60;
/// As many functions as the twin's two cores serve well.
const AT_ONCE: usize = 8;
/// More CPUs than the twin's node has: the jobs' pods wait, and cost nothing.
const CPUS_THAT_NO_NODE_HAS: u32 = 1024;
const INDEXED_WITHIN: Duration = Duration::from_secs(30);
const GONE_WITHIN: Duration = Duration::from_mins(1);

#[tokio::test]
async fn every_accepted_request_makes_a_job_that_the_cluster_takes() -> Result<()> {
    let (world, mut chance) = (World::meet()?, Chance::new()?);
    let deployment = Deployment::of(&world)?;
    train(&world, &deployment).await?;
    let (strategy, seed) = (accepted(&deployment), chance.seed);
    let requests = (0..REQUESTS).map(|_| chance.next(&strategy)).collect::<Result<Vec<_>>>()?;
    for field in FIELDS {
        let count = requests.iter().filter(|request| !request[field].is_null()).count();
        ensure!(count >= REQUESTS / 4, "SEED={seed}: only {count} requests have the field `{field}`");
    }
    let refusals: Vec<String> = stream::iter(requests.iter().enumerate())
        .map(|(number, request)| {
            let world = &world;
            async move {
                // The namespace may be named by the query too.
                let namespace = request["namespace"].as_str().filter(|_| number % 2 == 0);
                let query = namespace.map(|namespace| format!("&namespace={namespace}")).unwrap_or_default();
                let answer = world.twin.post(&format!("/train?dry_run=true{query}"), request).await?.expect(200)?;
                ensure!(
                    answer.body["dry_run"] == true && answer.number("/would_answer") == Some(201),
                    "{}",
                    answer.body
                );
                check_manifest(request, &answer.body["manifest"])
            }
        })
        .buffer_unordered(AT_ONCE)
        .zip(stream::iter(0..))
        .filter_map(async |(result, number): (Result<()>, usize)| Some(format!("{number}: {:#}", result.err()?)))
        .collect()
        .await;
    eprintln!("{REQUESTS} requests, SEED={seed}");
    ensure!(refusals.is_empty(), "SEED={seed}: {} refused: {}", refusals.len(), shortened(&refusals.join("\n")));
    Ok(())
}

#[tokio::test]
async fn a_dry_run_shows_the_job_that_is_then_made() -> Result<()> {
    let (world, mut chance) = (World::meet()?, Chance::new()?);
    let (strategy, seed) = (accepted(&Deployment::of(&world)?), chance.seed);
    let requests = (0..CREATED).map(|_| Ok(made_cheap(chance.next(&strategy)?))).collect::<Result<Vec<_>>>()?;
    let made: Vec<Result<String>> =
        stream::iter(&requests).map(|request| compare(&world, request)).buffer_unordered(AT_ONCE / 2).collect().await;
    let (paths, differences): (Vec<_>, Vec<_>) = made.into_iter().partition(Result::is_ok);
    let differences: Vec<_> = differences.into_iter().filter_map(|made| Some(format!("{:#}", made.err()?))).collect();
    eprintln!("{CREATED} jobs made, SEED={seed}");
    wait_until_gone(&world, paths.into_iter().flatten()).await?;
    ensure!(
        differences.is_empty(),
        "SEED={seed}: {} differ: {}",
        differences.len(),
        shortened(&differences.join("\n"))
    );
    Ok(())
}

/// Dry run, submit, compare, cancel; the path of the job.
async fn compare(world: &World, request: &Value) -> Result<String> {
    let shown = world.twin.post("/train?dry_run=true", request).await?.expect(200)?;
    let answer = world.twin.post("/train", request).await?.expect(201)?;
    let path = answer.text("/links/self").to_owned();
    let jobs = cluster::jobs(world, answer.text("/namespace")).await?;
    let made = jobs.get(answer.name()).await;
    world.twin.delete(&path).await?.expect(202)?;
    let made = serde_json::to_value(made?)?;
    for pointer in ["/spec", "/metadata/labels", "/metadata/annotations", "/metadata/name", "/metadata/namespace"] {
        let shown = part(&shown.body["manifest"], pointer, shown.text("/submission"))?;
        let made = part(&made, pointer, answer.text("/submission"))?;
        ensure!(shown == made, "{path}: {pointer}: shown {shown}, made {made}");
    }
    ensure!(shown.text("/submission") != answer.text("/submission"), "two submissions with one id");
    Ok(path)
}

/// A part of a manifest, whatever its submission is called.
fn part(manifest: &Value, pointer: &str, submission: &str) -> Result<Value> {
    let part = manifest.pointer(pointer).with_context(|| format!("no {pointer}: {manifest}"))?;
    Ok(serde_json::from_str(&part.to_string().replace(submission, "the submission"))?)
}

/// The same request with names of its own and without anything that runs.
fn made_cheap(mut request: Value) -> Value {
    request["run_id"] = World::run_id("generated").into();
    request["image"] = json!("stub");
    request["cpus_per_node"] = CPUS_THAT_NO_NODE_HAS.into();
    request["num_nodes"] = request["num_nodes"].as_u64().map(|nodes| nodes % 3 + 1).into();
    if request["job_name"].is_string() {
        request["job_name"] = World::run_id("made").into();
    }
    if request["resume_from_checkpoint"].is_string() {
        request["resume_from_checkpoint"] = json!(true);
    }
    request
}

/// What a caller sees of a request in the manifest.
fn check_manifest(request: &Value, manifest: &Value) -> Result<()> {
    let specs = &manifest["spec"]["pytorchReplicaSpecs"];
    let replicas = |kind: &str| specs[kind]["replicas"].as_u64().unwrap_or_default();
    let nodes = request["num_nodes"].as_u64().unwrap_or(1);
    ensure!(replicas("Master") == 1 && replicas("Worker") == nodes - 1, "{nodes} nodes: {specs}");
    if let Some(name) = request["job_name"].as_str() {
        ensure!(manifest["metadata"]["name"] == name, "not {name}: {}", manifest["metadata"]);
    }
    for field in ["labels", "annotations"] {
        for (key, value) in request[field].as_object().into_iter().flatten() {
            ensure!(manifest["metadata"][field][key] == *value, "{field}: {key}: {}", manifest["metadata"]);
        }
    }
    for (kind, spec) in specs.as_object().into_iter().flatten() {
        let container = &spec["template"]["spec"]["containers"][0];
        let variables = container["env"].as_array().context("no environment")?;
        let variable = |name: &str| variables.iter().find(|variable| variable["name"] == name).unwrap_or(&Value::Null);
        let mut names: Vec<_> = variables.iter().filter_map(|variable| variable["name"].as_str()).collect();
        names.sort_unstable();
        ensure!(names.windows(2).all(|pair| pair[0] != pair[1]), "{kind}: a variable twice: {names:?}");
        for (name, value) in request["env"].as_object().into_iter().flatten() {
            let value = value.as_str().unwrap_or_default().replace('$', "$$");
            ensure!(variable(name)["value"] == value.as_str(), "{kind}: {name}: {}", variable(name));
        }
        for (name, value) in request["env_from_secrets"].as_object().into_iter().flatten() {
            let key = &variable(name)["valueFrom"]["secretKeyRef"];
            let given = format!("{}/{}", key["name"].as_str().unwrap_or("-"), key["key"].as_str().unwrap_or("-"));
            ensure!(*value == given.as_str(), "{kind}: {name}: {given}");
        }
        let arguments = variable("TRAINING_EXTRA_ARGS_JSON")["value"].as_str().unwrap_or_default().replace("$$", "$");
        let given = if request["extra_args"].is_null() { json!({}) } else { request["extra_args"].clone() };
        ensure!(serde_json::from_str::<Value>(&arguments)? == given, "{kind}: {arguments}, not {given}");
        ensure!(container["args"].as_array().is_some_and(|arguments| arguments.len() == 2), "{kind}: {container}");
    }
    Ok(())
}

/// Give the run that requests resume its two checkpoints, unless an earlier test has.
async fn train(world: &World, deployment: &Deployment) -> Result<()> {
    let prefix = format!("runs/{}/framework=hf", deployment.trained_run);
    for step in deployment.trained_steps {
        let path = format!("checkpoint-{step}/model.safetensors");
        world.twin.put(&format!("{prefix}/checkpoints/{path}"), vec![0; 16]).await?;
        let marker = json!({
            "layout": 1, "framework": "hf", "step": step, "saved_at": 1.5, "metadata": {}, "metrics": {"loss": 2.5},
            "files": [{"path": path, "size": 16}],
        });
        let key = format!("{prefix}/checkpoints/step-{step:06}.json");
        world.twin.put(&key, marker.to_string().into_bytes()).await?;
    }
    let started = Instant::now();
    while world.keys(&format!("{prefix}/index/")).await?.len() < deployment.trained_steps.len() {
        ensure!(started.elapsed() < INDEXED_WITHIN, "the checkpoints of {prefix} are not indexed");
        sleep(Duration::from_millis(300)).await;
    }
    Ok(())
}

async fn wait_until_gone(world: &World, paths: impl Iterator<Item = String>) -> Result<()> {
    let started = Instant::now();
    for path in paths {
        while world.twin.get(&path).await?.status != 404 {
            ensure!(started.elapsed() < GONE_WITHIN, "{path} is still there");
            sleep(Duration::from_millis(300)).await;
        }
    }
    Ok(())
}

fn shortened(text: &str) -> String {
    text.chars().take(8_000).collect()
}
