//! Every rule of a request's fields, as a caller of the deployed API meets it: which field is named, and by which code. And
//! requests as clients of the original API send them, which break none. And what a cluster's own policies refuse.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use e2e::{World, webhook::Webhook};
use futures::{StreamExt, stream};
use serde_json::{Value, json};
use tokio::time::sleep;
use twin::client::Answer;

/// As many functions as the twin's two cores serve well.
const AT_ONCE: usize = 8;
const KIB: usize = 1024;
/// More CPUs than the twin's node has: the job's pods wait, and cost nothing.
const CPUS_THAT_NO_NODE_HAS: u32 = 1024;
/// The API server learns of a webhook a moment after it is registered.
const REGISTERED_WITHIN: Duration = Duration::from_secs(20);
const POLICY: &str = "validate.policy.example.com";
const POLICY_LABEL: &str = "policy.example.com/judged";
const POLICY_SAYS: &str = "policy require-cost-center: label cost-center is required on every training job";

/// Fields that break one rule, and how it is told.
type Case = (Value, &'static str, &'static str);

/// What the caller asks for, of where it is kept, and with what.
fn sources(base: &str) -> Vec<Case> {
    let below = |key: &str| json!({"checkpoint_base_uri": format!("{base}/{key}")});
    vec![
        (json!({"framework": "jax"}), "/framework", "format"),
        (json!({"framework": null}), "/framework", "required"),
        (json!({"framework": 1}), "/framework", "type"),
        (json!({"model_id": ""}), "/model_id", "format"),
        (json!({"model_id": "é".repeat(257)}), "/model_id", "format"),
        (json!({"model_id": "a\u{7}b"}), "/model_id", "format"),
        (json!({"model_id": 5}), "/model_id", "type"),
        (json!({"run_id": "a/b"}), "/run_id", "format"),
        (json!({"run_id": "a".repeat(64)}), "/run_id", "format"),
        (json!({"run_id": "-a"}), "/run_id", "format"),
        (json!({"checkpoint_base_uri": "file:///tmp"}), "/checkpoint_base_uri", "format"),
        (json!({"checkpoint_base_uri": "s3://elsewhere/runs"}), "/checkpoint_base_uri", "not_allowed"),
        (json!({"checkpoint_base_uri": format!("{base}-of-others")}), "/checkpoint_base_uri", "not_allowed"),
        (below("../x"), "/checkpoint_base_uri", "format"),
        (below("./x"), "/checkpoint_base_uri", "format"),
        (below("a//b"), "/checkpoint_base_uri", "format"),
        (below("r/framework=hf"), "/checkpoint_base_uri", "reserved"),
        (below("_jobs/x"), "/checkpoint_base_uri", "reserved"),
        (below(&"x".repeat(512)), "/checkpoint_base_uri", "too_long"),
        (json!({"dataset_uri": "https://data/x"}), "/dataset_uri", "format"),
        (json!({"dataset_uri": "s3://data"}), "/dataset_uri", "format"),
        (json!({"dataset_uri": "s3://data/x//"}), "/dataset_uri", "format"),
        (json!({"dataset_uri": "s3://data/../x"}), "/dataset_uri", "format"),
        (json!({"image": "A B"}), "/image", "format"),
        (json!({"image": "evil/x"}), "/image", "not_allowed"),
        (json!({"config_path": "relative.yaml"}), "/config_path", "format"),
        (json!({"config_path": "s3://bucket/folder/"}), "/config_path", "format"),
        (json!({"config_path": format!("/{}", "x".repeat(KIB))}), "/config_path", "format"),
        (json!({"resume_from_checkpoint": "newest"}), "/resume_from_checkpoint", "format"),
        (json!({"resume_from_checkpoint": "step-"}), "/resume_from_checkpoint", "format"),
        (json!({"resume_from_checkpoint": 500}), "/resume_from_checkpoint", "type"),
    ]
}

/// How large it is, and how long it may go on.
fn sizes() -> Vec<Case> {
    vec![
        (json!({"num_nodes": 0}), "/num_nodes", "range"),
        (json!({"num_nodes": 1001}), "/num_nodes", "range"),
        (json!({"num_nodes": "2"}), "/num_nodes", "type"),
        (json!({"num_nodes": 2.5}), "/num_nodes", "type"),
        (json!({"gpus_per_node": -1}), "/gpus_per_node", "range"),
        (json!({"gpus_per_node": 65}), "/gpus_per_node", "range"),
        (json!({"gpus_per_node": true}), "/gpus_per_node", "type"),
        (json!({"cpus_per_node": 0}), "/cpus_per_node", "range"),
        (json!({"cpus_per_node": 1025}), "/cpus_per_node", "range"),
        (json!({"memory_per_node_gb": 0}), "/memory_per_node_gb", "range"),
        (json!({"memory_per_node_gb": 65_537}), "/memory_per_node_gb", "range"),
        (json!({"memory_per_node_gb": "256Gi"}), "/memory_per_node_gb", "type"),
        (json!({"disk_per_node_gb": 0}), "/disk_per_node_gb", "range"),
        (json!({"max_restarts": -1}), "/max_restarts", "range"),
        (json!({"max_restarts": 101}), "/max_restarts", "range"),
        (json!({"max_runtime_seconds": 59}), "/max_runtime_seconds", "range"),
        (json!({"max_runtime_seconds": 31_536_001}), "/max_runtime_seconds", "range"),
    ]
}

/// What the runner and the process get.
fn settings() -> Vec<Case> {
    let third = "x".repeat(22 * KIB);
    vec![
        (json!({"extra_args": []}), "/extra_args", "type"),
        (json!({"extra_args": {"x; touch pwn #": 1}}), "/extra_args/x; touch pwn #", "format"),
        (json!({"extra_args": {"1st": 1}}), "/extra_args/1st", "format"),
        (json!({"extra_args": {"run-id": "other"}}), "/extra_args/run-id", "reserved"),
        (json!({"extra_args": {"a": "x".repeat(64 * KIB)}}), "/extra_args", "too_long"),
        (json!({"env": {"A": 1}}), "/env/A", "type"),
        (json!({"env": {"1A": "x"}}), "/env/1A", "format"),
        (json!({"env": {"A/B": "x"}}), "/env/A~1B", "format"),
        (json!({"env": {"PET_NNODES": "9"}}), "/env/PET_NNODES", "reserved"),
        (json!({"env": {"RUN_ID": "x"}}), "/env/RUN_ID", "reserved"),
        (json!({"env": {"ROLE_WORLD_SIZE": "x"}}), "/env/ROLE_WORLD_SIZE", "reserved"),
        (json!({"env": {"PYTHONWARNINGS": "all:0:antigravity.x:0:0"}}), "/env/PYTHONWARNINGS", "not_allowed"),
        (json!({"env": {"BROWSER": "/bin/sh -c \"id\" #%s"}}), "/env/BROWSER", "not_allowed"),
        (json!({"env": {"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1"}}), "/env/AWS_ENDPOINT_URL_S3", "not_allowed"),
        (json!({"env": {"A": "a\u{0}b"}}), "/env/A", "format"),
        (json!({"env": {"A": "x".repeat(32 * KIB + 1)}}), "/env/A", "too_long"),
        (json!({"env": {"A": third, "B": third, "C": third}}), "/env", "too_long"),
        (json!({"env_from_secrets": {"HF_TOKEN": "token"}}), "/env_from_secrets/HF_TOKEN", "format"),
        (json!({"env_from_secrets": {"HF_TOKEN": "hugging-face/a b"}}), "/env_from_secrets/HF_TOKEN", "format"),
        (json!({"env_from_secrets": {"HF_TOKEN": "other/token"}}), "/env_from_secrets/HF_TOKEN", "not_allowed"),
        (json!({"env_from_secrets": {"RANK": "hugging-face/token"}}), "/env_from_secrets/RANK", "reserved"),
        (
            json!({"env_from_secrets": {"LD_PRELOAD": "hugging-face/token"}}),
            "/env_from_secrets/LD_PRELOAD",
            "not_allowed",
        ),
        (
            json!({"env": {"HF_TOKEN": "x"}, "env_from_secrets": {"HF_TOKEN": "hugging-face/token"}}),
            "/env_from_secrets/HF_TOKEN",
            "duplicate",
        ),
    ]
}

/// Its names in the cluster.
fn names() -> Vec<Case> {
    vec![
        (json!({"labels": {"a b": "x"}}), "/labels/a b", "format"),
        (json!({"labels": {"Example.com/a": "x"}}), "/labels/Example.com~1a", "format"),
        (json!({"labels": {"a": "x".repeat(64)}}), "/labels/a", "format"),
        (json!({"labels": {"a": 1}}), "/labels/a", "type"),
        (json!({"labels": {"trainer.deepfinery/run-id": "x"}}), "/labels/trainer.deepfinery~1run-id", "reserved"),
        (json!({"labels": {"kueue.x-k8s.io/queue-name": "x"}}), "/labels/kueue.x-k8s.io~1queue-name", "reserved"),
        (json!({"annotations": {"a/": "x"}}), "/annotations/a~1", "format"),
        (json!({"annotations": {"x.kubernetes.io/a": ""}}), "/annotations/x.kubernetes.io~1a", "reserved"),
        (json!({"annotations": {"kubeflow.org/a": ""}}), "/annotations/kubeflow.org~1a", "reserved"),
        (json!({"annotations": {"a": "x".repeat(64 * KIB)}}), "/annotations", "too_long"),
        (json!({"priority_class": "High"}), "/priority_class", "format"),
        (json!({"priority_class": "system-node-critical"}), "/priority_class", "reserved"),
        (json!({"queue": ""}), "/queue", "format"),
        (json!({"queue": "q".repeat(64)}), "/queue", "format"),
        (json!({"namespace": "Training"}), "/namespace", "format"),
        (json!({"job_name": "Mine"}), "/job_name", "format"),
        (json!({"job_name": "1a"}), "/job_name", "format"),
        (json!({"job_name": "a.b"}), "/job_name", "format"),
        (json!({"job_name": "a".repeat(55)}), "/job_name", "too_long"),
        (json!({"job_name": "a".repeat(54), "num_nodes": 12}), "/job_name", "too_long"),
        (json!({"job_name": "a".repeat(53), "num_nodes": 102}), "/job_name", "too_long"),
        (json!({"num_node": 2}), "/num_node", "unknown_field"),
        (json!({"a/b~c": 1}), "/a~1b~0c", "unknown_field"),
    ]
}

#[tokio::test]
async fn each_broken_rule_is_named_by_pointer_and_code() -> Result<()> {
    let world = World::meet()?;
    let good = world.stub_request(&World::run_id("refused"), json!({}))?;
    world.twin.post("/train?dry_run=true", &good).await?.expect(200)?;
    let cases = [sources(world.twin.setting("RUNS_BASE_URI")?), sizes(), settings(), names()].concat();
    let wrong: Vec<String> = stream::iter(&cases)
        .map(async |(changes, pointer, code)| {
            let mut body = good.clone();
            for (field, value) in changes.as_object().into_iter().flatten() {
                body[field] = value.clone();
            }
            let answer = world.twin.post("/train?dry_run=true", &body).await?.expect(422)?;
            ensure!(answer.text("/code") == "invalid_request", "{}", answer.body);
            let errors = answer.body["errors"].as_array().map(Vec::as_slice).unwrap_or_default();
            let [error] = errors else { anyhow::bail!("{pointer} {code}: {} errors: {errors:?}", errors.len()) };
            ensure!(error["pointer"] == *pointer && error["code"] == *code, "{pointer} {code}: {error}");
            // The sentence says it, too, and is the first thing that a person reads.
            let detail = error["detail"].as_str().unwrap_or_default();
            ensure!(
                answer.text("/detail") == format!("the request breaks 1 rule: {pointer} {detail}"),
                "{}",
                answer.body
            );
            Ok(())
        })
        .buffer_unordered(AT_ONCE)
        .filter_map(async |result: Result<()>| Some(format!("{:#}", result.err()?)))
        .collect()
        .await;
    ensure!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));

    let mut named = good.clone();
    named["namespace"] = json!("training");
    let conflict = world.twin.post("/train?dry_run=true&namespace=training-two", &named).await?.expect(422)?;
    assert_eq!((conflict.text("/errors/0/pointer"), conflict.text("/errors/0/code")), ("/namespace", "conflict"));
    Ok(())
}

#[tokio::test]
async fn the_default_image_takes_the_settings_of_its_trainer_alone() -> Result<()> {
    let world = World::meet()?;
    let mut request = world.twin.two_node_request(&World::run_id("settings"), "s3://data/none.jsonl", 1, 1)?;
    let usual = json!({
        "output_dir": "out", "num_train_epochs": 3, "max_steps": -1, "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8, "gradient_accumulation_steps": 4, "eval_strategy": "steps", "eval_steps": 200,
        "save_strategy": "steps", "save_steps": 200, "save_total_limit": 3, "learning_rate": 1e-4, "weight_decay": 0.0,
        "warmup_steps": 0.05, "lr_scheduler_type": "cosine", "logging_steps": 10, "logging_first_step": true,
        "bf16": true, "tf32": true, "gradient_checkpointing": true, "optim": "adamw_torch_fused",
        "report_to": ["tensorboard"], "load_best_model_at_end": true, "metric_for_best_model": "eval_loss",
        "greater_is_better": false, "ddp_timeout": 3600, "push_to_hub": false, "remove_unused_columns": false,
        "dataloader_num_workers": 4, "seed": 7,
    });
    for good in [json!({}), usual, json!({"max_steps": 5.0, "save_steps": 0.1, "bf16": true, "fp16": false})] {
        request["extra_args"] = good;
        let answer = world.twin.post("/train?dry_run=true", &request).await?.expect(200)?;
        ensure!(answer.body["warnings"].is_null(), "{}", answer.body);
    }
    request["extra_args"] = json!({
        "learning_rat": 1e-3, "batch_size": "4", "max_steps": 0, "scheduler": "lineal", "push_to_hub": true,
        "lr": 1e-3, "learning_rate": 1e-3, "optim": "galore_adamw", "seed": 7,
    });
    let findings = [
        ("/extra_args/learning_rat", "unknown_field", "did you mean `learning_rate`?"),
        ("/extra_args/batch_size", "type", "must be a whole number of at least 1 and at most 1048576, not \"4\""),
        ("/extra_args/max_steps", "range", "must be a whole number of at least 1, not 0"),
        ("/extra_args/scheduler", "format", "must be one of linear, cosine, constant, null, not \"lineal\""),
        ("/extra_args/push_to_hub", "not_allowed", "cannot be set: nothing is sent to a hub"),
        ("/extra_args/learning_rate", "duplicate", "is another name of `lr`"),
        ("/extra_args/optim", "not_allowed", "it needs the package galore_torch"),
    ];
    let is_told = |answer: &Answer, list: &str| -> Result<()> {
        let told = answer.body[list].as_array().map(Vec::as_slice).unwrap_or_default();
        ensure!(told.len() == findings.len(), "{}", answer.body);
        for (told, (pointer, code, says)) in told.iter().zip(findings) {
            ensure!(told["pointer"] == pointer && told["code"] == code, "{pointer} {code}: {told}");
            ensure!(told["detail"].as_str().is_some_and(|detail| detail.contains(says)), "{says}: {told}");
        }
        Ok(())
    };
    let image = world.twin.setting("TRAINER_IMAGE")?;
    for (image, path) in [(Value::Null, "/train?dry_run=true"), (Value::Null, "/train"), (json!(image), "/train")] {
        request["image"] = image;
        let answer = world.twin.post(path, &request).await?.expect(422)?;
        assert_eq!(answer.text("/code"), "invalid_request", "{path}");
        is_told(&answer, "errors")?;
    }
    request["image"] = json!("stub");
    is_told(&world.twin.post("/train?dry_run=true", &request).await?.expect(200)?, "warnings")?;
    request["cpus_per_node"] = CPUS_THAT_NO_NODE_HAS.into();
    let made = world.twin.post("/train", &request).await?.expect(201)?;
    is_told(&made, "warnings")?;
    is_told(&world.twin.post("/train", &request).await?.expect(200)?, "warnings")?;
    world.twin.delete(&made.location).await?.expect(202)?;
    Ok(())
}

#[tokio::test]
async fn requests_of_the_original_api_are_accepted_unchanged() -> Result<()> {
    let world = World::meet()?;
    let base = world.twin.setting("RUNS_BASE_URI")?;
    let image = world.twin.setting("TRAINER_IMAGE")?;
    let run_id = World::run_id("fx_ruleset_v3_2025_11_26_01");
    // Everything that the original takes, with a data set that is a prefix, and labels of a domain.
    let full = json!({
        "framework": "nemo", "model_id": "nemotron-8b-fx", "run_id": run_id, "num_nodes": 2, "gpus_per_node": 8,
        "cpus_per_node": 48, "memory_per_node_gb": 512, "image": image,
        "checkpoint_base_uri": base, "dataset_uri": "s3://deepfinery-datasets/fx/v3/", "resume_from_checkpoint": true,
        "extra_args": {"max_steps": 50000, "lr": 3e-5, "batch_size": 128, "dataset_text_field": "text", "save_steps": 500},
        "env": {"EXPERIMENT_NAME": "fx-ruleset-v3", "NCCL_DEBUG": "INFO"},
        "labels": {"deepfinery.com/team": "fx"}, "annotations": {"deepfinery.com/experiment": "fx-ruleset"},
    });
    // The least that it takes, with a base that ends in a slash.
    let least = json!({
        "framework": "hf", "model_id": "meta-llama/Llama-3.1-8B", "run_id": run_id,
        "checkpoint_base_uri": format!("{base}/"), "dataset_uri": "s3://deepfinery-datasets/aml/train.jsonl",
    });
    for (request, name) in [(&full, "nemo"), (&least, "hf")] {
        let answer = world.twin.post("/train?dry_run=true", request).await?.expect(200)?;
        assert_eq!(answer.number("/would_answer"), Some(201));
        assert_eq!(answer.name(), format!("{name}-{}", run_id.replace('_', "-")));
        let container =
            &answer.body["manifest"]["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]["containers"][0];
        let env = container["env"].as_array().cloned().unwrap_or_default();
        for (variable, field) in [("DATASET_URI", "dataset_uri"), ("MODEL_ID", "model_id"), ("RUN_ID", "run_id")] {
            ensure!(env.contains(&json!({"name": variable, "value": request[field]})), "{variable}: {env:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_policys_denial_is_told_in_its_words_whatever_number_it_carries() -> Result<()> {
    let world = World::meet()?;
    let run_id = World::run_id("denied");
    let webhook = Webhook::start(POLICY, (POLICY_LABEL, &run_id))?;
    let judged = judge(&world, &webhook, &run_id).await;
    webhook.deny(None);
    webhook.remove(&world).await?;
    judged
}

async fn judge(world: &World, webhook: &Webhook, run_id: &str) -> Result<()> {
    let mut request = world.stub_request(run_id, json!({}))?;
    request["cpus_per_node"] = CPUS_THAT_NO_NODE_HAS.into();
    request["labels"] = json!({POLICY_LABEL: run_id});
    webhook.deny(Some(json!({"message": POLICY_SAYS})));
    webhook.register(world).await?;
    let registered = Instant::now();
    while world.twin.post("/train?dry_run=true", &request).await?.status == 200 {
        ensure!(registered.elapsed() < REGISTERED_WITHIN, "the API server does not ask the webhook");
        sleep(Duration::from_millis(200)).await;
    }

    // Kyverno gives no code; of the codes some mean something else to this API, and some to its own client.
    let codes = [200, 400, 401, 403, 404, 409, 410, 413, 422, 429, 500, 503, 504];
    let statuses = [json!({"message": POLICY_SAYS}), json!({"reason": POLICY_SAYS})]
        .into_iter()
        .chain(codes.map(|code| json!({"message": POLICY_SAYS, "code": code})))
        .chain(
            ["AlreadyExists", "Conflict"].map(|reason| json!({"message": POLICY_SAYS, "code": 409, "reason": reason})),
        );
    let statuses: Vec<_> = statuses.collect();
    for status in &statuses {
        webhook.deny(Some(status.clone()));
        for path in ["/train?dry_run=true", "/train"] {
            let answer = world.twin.post(path, &request).await?;
            check_denied(&answer, &format!("POST {path}, {status}"))?;
        }
    }

    webhook.deny(None);
    let path = format!("/train/{}", world.submit(&request).await?);
    for status in &statuses {
        webhook.deny(Some(status.clone()));
        let suspended = world.twin.post(&format!("{path}/suspend"), &json!({})).await?;
        check_denied(&suspended, &format!("suspend, {status}"))?;
        check_denied(&world.twin.delete(&path).await?, &format!("DELETE, {status}"))?;
    }
    webhook.deny(None);
    world.twin.delete(&path).await?.expect(202)?;
    Ok(())
}

fn check_denied(answer: &Answer, asked: &str) -> Result<()> {
    let words = format!("admission webhook \"{POLICY}\" denied the request: {POLICY_SAYS}");
    let is_told = answer.text("/code") == "rejected_by_cluster" && answer.text("/detail").ends_with(&words);
    ensure!(answer.status == 422 && is_told, "{asked}: {} {}", answer.status, answer.body);
    Ok(())
}
