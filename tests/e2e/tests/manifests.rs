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
use training_core::request::fields::names;

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
    for field in names() {
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
                check_manifest(request, &answer.body["manifest"])?;
                check_platform(request, &answer.body["manifest"], world.twin.setting("TRAINER_IMAGE")?)
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
    check_name(request, nodes, manifest["metadata"]["name"].as_str().unwrap_or_default())?;
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

/// The name that was asked for, or the run's, cut and with a hash where it is too long.
fn check_name(request: &Value, nodes: u64, name: &str) -> Result<()> {
    // `<name>-worker-<last index>` is a DNS label.
    let limit = 63 - format!("-worker-{}", nodes.saturating_sub(2)).len();
    ensure!(name.len() <= limit, "{name} has more than {limit} characters");
    if let Some(asked) = request["job_name"].as_str() {
        ensure!(name == asked, "{name}, not {asked}");
        return Ok(());
    }
    let text = |field: &str| request[field].as_str().unwrap_or_default();
    let whole = format!("{}-{}", text("framework"), text("run_id")).to_lowercase().replace(['.', '_'], "-");
    if whole.len() <= limit {
        ensure!(name == whole, "{name}, not {whole}");
        return Ok(());
    }
    let (start, hash) = name.rsplit_once('-').context("no hash")?;
    let is_hash = hash.len() == 8 && hash.bytes().all(|byte| b"0123456789abcdef".contains(&byte));
    ensure!(is_hash && whole.starts_with(start), "{name} of {whole}");
    Ok(())
}

/// What the platform makes of a request's numbers, and what it adds.
fn check_platform(request: &Value, manifest: &Value, default_image: &str) -> Result<()> {
    let number = |field: &str, default: u64| request[field].as_u64().unwrap_or(default);
    let same = |what: &str, found: &Value, wanted: Value| {
        ensure!(*found == wanted, "{what}: {found}, not {wanted}");
        Ok(())
    };
    let (spec, gpus) = (&manifest["spec"], number("gpus_per_node", 1));
    same("nprocPerNode", &spec["nprocPerNode"], gpus.max(1).to_string().into())?;
    let policy = &spec["runPolicy"];
    let restarts = number("num_nodes", 1) * (2 * number("max_restarts", 3) + 5);
    same("backoffLimit", &policy["backoffLimit"], restarts.into())?;
    same("activeDeadlineSeconds", &policy["activeDeadlineSeconds"], request["max_runtime_seconds"].clone())?;
    same("cleanPodPolicy", &policy["cleanPodPolicy"], "Running".into())?;
    let queue = &manifest["metadata"]["labels"]["kueue.x-k8s.io/queue-name"];
    same("queue", queue, request["queue"].clone())?;

    let mut amounts = json!({
        "cpu": number("cpus_per_node", 32).to_string(), "memory": format!("{}Gi", number("memory_per_node_gb", 256)),
    });
    if let Some(disk) = request["disk_per_node_gb"].as_u64() {
        amounts["ephemeral-storage"] = format!("{disk}Gi").into();
    }
    if gpus > 0 {
        amounts["nvidia.com/gpu"] = gpus.to_string().into();
    }
    for (kind, replica) in spec["pytorchReplicaSpecs"].as_object().into_iter().flatten() {
        let pod = &replica["template"]["spec"];
        let container = &pod["containers"][0];
        let same = |what: &str, found: &Value, wanted| same(&format!("{kind}: {what}"), found, wanted);
        same("restart policy", &replica["restartPolicy"], "OnFailure".into())?;
        same("limits", &container["resources"]["limits"], amounts.clone())?;
        same("requests", &container["resources"]["requests"], amounts.clone())?;
        same("image", &container["image"], request["image"].as_str().unwrap_or(default_image).into())?;
        same("command", &container["command"], json!(["torchrun"]))?;
        same("service account", &pod["serviceAccountName"], "trainer".into())?;
        same("priority class", &pod["priorityClassName"], request["priority_class"].clone())?;
        same("grace", &pod["terminationGracePeriodSeconds"], 300.into())?;
        let deadline = request["max_runtime_seconds"].as_u64().map(|seconds| seconds + 30);
        same("deadline", &pod["activeDeadlineSeconds"], deadline.into())?;
        let variables = container["env"].as_array().context("no environment")?;
        let variable = |name: &str| {
            let variable = variables.iter().find(|variable| variable["name"] == name);
            variable.map_or(Value::Null, |variable| variable["value"].clone())
        };
        let config = request["config_path"].as_str().map(|path| path.replace('$', "$$"));
        same("CONFIG_PATH", &variable("CONFIG_PATH"), config.into())?;
        let resume = match &request["resume_from_checkpoint"] {
            Value::Null | Value::Bool(false) => "false",
            Value::Bool(true) => "true",
            // Both checkpoints have the same loss, and of two best ones it is the newer.
            Value::String(target) if target.ends_with("20") => "step-20",
            _ => "step-40",
        };
        same("RESUME", &variable("RESUME"), resume.into())?;
        same("NUM_NODES", &variable("NUM_NODES"), number("num_nodes", 1).to_string().into())?;
        same("GPUS_PER_NODE", &variable("GPUS_PER_NODE"), gpus.to_string().into())?;
        let prefix = format!(
            "{}/{}/framework={}",
            request["checkpoint_base_uri"].as_str().unwrap_or_default().trim_end_matches('/'),
            request["run_id"].as_str().unwrap_or_default(),
            request["framework"].as_str().unwrap_or_default()
        );
        same("CHECKPOINT_PREFIX", &variable("CHECKPOINT_PREFIX"), prefix.replace('$', "$$").into())?;
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
    while world.keys(&format!("{prefix}/index/v1/9")).await?.len() < deployment.trained_steps.len() {
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
