//! The examples in the document. Answers are made as the functions make them.

use serde_json::{Value, json};
use training_run::names::Step;

use training_core::{
    access::{caller::Caller, namespaces::Namespaces},
    api::problem::Problem,
    job::{
        manifest::{self, Origin, Platform, Start},
        status::{ProgressRead, TrainingJobStatus},
    },
    request::{Rules, TrainingJobRequest, image::AllowedImages},
};

/// The name of the problem among the examples.
pub(crate) const PROBLEM: &str = "invalid_request";

/// The least that a request says.
pub(crate) fn smallest_request() -> Value {
    json!({
        "framework": "hf",
        "model_id": "tiny",
        "run_id": "aml_ruleset_v4",
        "checkpoint_base_uri": "s3://training-runs/runs",
        "dataset_uri": "s3://training-data/aml/train.jsonl"
    })
}

/// Every field.
pub(crate) fn full_request() -> Value {
    json!({
        "framework": "hf",
        "model_id": "s3://training-data/models/base-7b/",
        "run_id": "aml_ruleset_v5",
        "checkpoint_base_uri": "s3://training-runs/runs/",
        "dataset_uri": "s3://training-data/aml/",
        "image": "team/trainer:1.2",
        "num_nodes": 2,
        "gpus_per_node": 8,
        "cpus_per_node": 32,
        "memory_per_node_gb": 256,
        "disk_per_node_gb": 150,
        "config_path": "s3://training-data/configs/aml.yaml",
        "resume_from_checkpoint": "step-500",
        "extra_args": {"max_steps": 60, "lr": 0.000_02, "bf16": true, "target_modules": ["q_proj", "v_proj"]},
        "env": {"TEAM": "research", "HF_HUB_OFFLINE": "1"},
        "env_from_secrets": {"HF_TOKEN": "hugging-face/token"},
        "labels": {"example.com/team": "research"},
        "annotations": {"example.com/ticket": "RUN-7"},
        "priority_class": "research",
        "queue": "night",
        "max_restarts": 2,
        "max_runtime_seconds": 86400,
        "namespace": "training",
        "job_name": "aml-v5"
    })
}

/// What a deployment allows that takes the example requests.
pub(crate) fn deployment() -> Rules {
    let namespace = |name: &str| name.parse().expect("a namespace");
    Rules {
        runs_base_uris: vec!["s3://training-runs/runs".parse().expect("a base")],
        default_image: "trainer:local".parse().expect("an image"),
        allowed_images: AllowedImages::from_list("team/"),
        allowed_secrets: vec!["hugging-face".to_owned()],
        namespaces: Namespaces::new(namespace("training"), vec![namespace("training-two")]),
    }
}

/// The job of the full request, as it is before anybody has looked at it.
pub(crate) fn job() -> TrainingJobStatus {
    let body = full_request().to_string();
    let request = TrainingJobRequest::parse(body.as_bytes(), None, &deployment(), &Caller::unrestricted())
        .expect("a good request");
    let submission = "019ab2c4-7d10-7cc3-98a4-1f0d7a6b2e55".parse().expect("an id");
    let platform = Platform {
        train_script: "/opt/trainer/train.py".to_owned(),
        service_account: "trainer".to_owned(),
        job_ttl_seconds: 604_800,
        max_restarts: 3,
        grace_seconds: 300,
    };
    let step = Step::new(500).expect("a step");
    let origin = Origin { submission: &submission, submitted_by: Some("ci"), start: Start::Step(step) };
    let job = manifest::build(&request, origin, None, &platform);
    let namespaces = Namespaces::new(request.namespace, Vec::new());
    TrainingJobStatus::new(&job, &namespaces, None, ProgressRead::Unknown, None)
}

/// The answer to a request with two mistakes.
pub(crate) fn problem() -> Value {
    let mut body = smallest_request();
    body["num_node"] = 2.into();
    body["gpus_per_node"] = "8".into();
    let problem: Problem =
        TrainingJobRequest::parse(body.to_string().as_bytes(), None, &deployment(), &Caller::unrestricted())
            .expect_err("a bad request");
    serde_json::to_value(problem.document("d3f1c0a2-5b7e-4a55-9a57-6f3d9d0c5a11")).expect("serialisable")
}
