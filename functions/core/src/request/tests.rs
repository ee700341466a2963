//! Requests that are accepted, and what is said of the others.

use super::{resume::ResumeTarget, *};
use serde_json::json;
use training_run::names::Step;

/// What a deployment with one base and two kinds of image allows.
pub(crate) fn rules() -> Rules {
    Rules {
        runs_base_uris: vec!["s3://bucket/runs".parse().expect("a base")],
        default_image: "trainer:local".parse().expect("an image"),
        allowed_images: AllowedImages::from_list("team/"),
        allowed_secrets: vec!["hugging-face".to_owned()],
        namespaces: Namespaces::new(
            "training".parse().expect("a namespace"),
            vec!["training-two".parse().expect("a namespace")],
        ),
    }
}

/// The smallest good body.
pub(crate) fn body() -> Value {
    json!({
        "framework": "hf", "model_id": "tiny", "run_id": "aml_ruleset_v4",
        "checkpoint_base_uri": "s3://bucket/runs/", "dataset_uri": "s3://data/train.jsonl"
    })
}

fn parse(body: &Value) -> Result<TrainingJobRequest, Problem> {
    TrainingJobRequest::parse(body.to_string().as_bytes(), None, &rules(), &Caller::unrestricted())
}

#[test]
fn the_smallest_request_gets_the_defaults() {
    let request = parse(&body()).expect("a good request");
    assert_eq!(
        (request.num_nodes, request.gpus_per_node, request.cpus_per_node, request.memory_per_node_gb),
        (1, 1, 32, 256)
    );
    assert_eq!(request.image.as_str(), "trainer:local");
    assert_eq!(request.checkpoint_base_uri.to_string(), "s3://bucket/runs");
    assert_eq!((request.resume, request.job_name.as_str()), (Resume::No, "hf-aml-ruleset-v4"));
    assert_eq!(request.namespace.as_str(), "training");
}

#[test]
fn a_dataset_prefix_keeps_its_slash() {
    let mut body = body();
    body["dataset_uri"] = json!("s3://data/shards/");
    assert_eq!(parse(&body).expect("a good request").dataset_uri, "s3://data/shards/");
    body["dataset_uri"] = json!("s3://data/**/train-?.jsonl");
    assert_eq!(parse(&body).expect("a pattern is the trainer's to read").dataset_uri, "s3://data/**/train-?.jsonl");
}

#[test]
fn each_broken_rule_is_named_by_pointer_and_code() {
    for (field, value, pointer, code) in [
        ("framework", json!("jax"), "/framework", "format"),
        ("framework", json!(null), "/framework", "required"),
        ("model_id", json!(""), "/model_id", "format"),
        ("model_id", json!(5), "/model_id", "type"),
        ("run_id", json!("a/b"), "/run_id", "format"),
        ("checkpoint_base_uri", json!("s3://other/runs"), "/checkpoint_base_uri", "not_allowed"),
        ("checkpoint_base_uri", json!("s3://bucket/runs-of-others"), "/checkpoint_base_uri", "not_allowed"),
        ("checkpoint_base_uri", json!("file:///tmp"), "/checkpoint_base_uri", "format"),
        ("dataset_uri", json!("s3://data"), "/dataset_uri", "format"),
        ("image", json!("A B"), "/image", "format"),
        ("image", json!("evil/x"), "/image", "not_allowed"),
        ("num_nodes", json!(0), "/num_nodes", "range"),
        ("num_nodes", json!("2"), "/num_nodes", "type"),
        ("num_nodes", json!(2.5), "/num_nodes", "type"),
        ("num_nodes", json!(-1), "/num_nodes", "range"),
        ("gpus_per_node", json!(65), "/gpus_per_node", "range"),
        ("cpus_per_node", json!(true), "/cpus_per_node", "type"),
        ("resume_from_checkpoint", json!("yes"), "/resume_from_checkpoint", "format"),
        ("resume_from_checkpoint", json!(1), "/resume_from_checkpoint", "type"),
        ("extra_args", json!([]), "/extra_args", "type"),
        ("extra_args", json!({"x; touch pwn #": 1}), "/extra_args/x; touch pwn #", "format"),
        ("extra_args", json!({"run-id": "other"}), "/extra_args/run-id", "reserved"),
        ("extra_args", json!({"a": "x".repeat(70_000)}), "/extra_args", "too_long"),
        ("env", json!({"A": 1}), "/env/A", "type"),
        ("env", json!({"1A": "x"}), "/env/1A", "format"),
        ("env", json!({"PET_NNODES": "9"}), "/env/PET_NNODES", "reserved"),
        ("env", json!({"RUN_ID": "x"}), "/env/RUN_ID", "reserved"),
        ("env", json!({"POD_UID": "x"}), "/env/POD_UID", "reserved"),
        ("env", json!({"ROLE_NAME": "x"}), "/env/ROLE_NAME", "reserved"),
        ("env", json!({"GROUP_WORLD_SIZE": "x"}), "/env/GROUP_WORLD_SIZE", "reserved"),
        ("env", json!({"ROLE_WORLD_SIZE": "x"}), "/env/ROLE_WORLD_SIZE", "reserved"),
        ("env", json!({"A": "\u{0}"}), "/env/A", "format"),
        ("env", json!({"A": "x".repeat(33_000)}), "/env/A", "too_long"),
        ("a/b~c", json!(1), "/a~1b~0c", "unknown_field"),
        ("config_path", json!("relative.yaml"), "/config_path", "format"),
        ("config_path", json!("s3://bucket/folder/"), "/config_path", "format"),
        ("resume_from_checkpoint", json!("newest"), "/resume_from_checkpoint", "format"),
        ("resume_from_checkpoint", json!("step-"), "/resume_from_checkpoint", "format"),
        ("env_from_secrets", json!({"HF_TOKEN": "token"}), "/env_from_secrets/HF_TOKEN", "format"),
        ("env_from_secrets", json!({"HF_TOKEN": "other/token"}), "/env_from_secrets/HF_TOKEN", "not_allowed"),
        ("env_from_secrets", json!({"HF_TOKEN": "hugging-face/a b"}), "/env_from_secrets/HF_TOKEN", "format"),
        ("env_from_secrets", json!({"RANK": "hugging-face/token"}), "/env_from_secrets/RANK", "reserved"),
        ("labels", json!({"a b": "x"}), "/labels/a b", "format"),
        ("labels", json!({"a": 1}), "/labels/a", "type"),
        ("labels", json!({"trainer.deepfinery/run-id": "x"}), "/labels/trainer.deepfinery~1run-id", "reserved"),
        ("annotations", json!({"a": "x".repeat(66_000)}), "/annotations", "too_long"),
        ("annotations", json!({"x.kubernetes.io/a": ""}), "/annotations/x.kubernetes.io~1a", "reserved"),
        ("priority_class", json!("High"), "/priority_class", "format"),
        ("priority_class", json!("system-node-critical"), "/priority_class", "reserved"),
        ("checkpoint_base_uri", json!("s3://bucket/runs/r/framework=hf/index/v1"), "/checkpoint_base_uri", "reserved"),
        ("checkpoint_base_uri", json!("s3://bucket/runs/_jobs/x"), "/checkpoint_base_uri", "reserved"),
        (
            "checkpoint_base_uri",
            json!(format!("s3://bucket/runs/{}", "x".repeat(600))),
            "/checkpoint_base_uri",
            "too_long",
        ),
        ("queue", json!(""), "/queue", "format"),
        ("max_restarts", json!(101), "/max_restarts", "range"),
        ("max_runtime_seconds", json!(59), "/max_runtime_seconds", "range"),
        ("namespace", json!("Training"), "/namespace", "format"),
        ("job_name", json!("Mine"), "/job_name", "format"),
        ("job_name", json!("1a"), "/job_name", "format"),
        ("job_name", json!("a".repeat(55)), "/job_name", "too_long"),
    ] {
        let mut body = body();
        body[field] = value;
        let problem = parse(&body).expect_err(field);
        let errors: Vec<_> = problem.errors.iter().map(|error| (error.pointer.as_str(), error.code)).collect();
        assert_eq!(errors, [(pointer, code)], "{problem:?}");
    }
}

#[test]
fn the_originals_own_example_is_accepted_unchanged() {
    let body = json!({
        "framework": "nemo", "model_id": "nemotron-8b-fx", "run_id": "fx_ruleset_v3_2025_11_26_01",
        "num_nodes": 2, "gpus_per_node": 8, "cpus_per_node": 48, "memory_per_node_gb": 512,
        "image": "registry.example/deepfinery/trainer:latest",
        "checkpoint_base_uri": "s3://deepfinery-training/runs", "dataset_uri": "s3://deepfinery-datasets/fx/v3/",
        "resume_from_checkpoint": true,
        "extra_args": {"max_steps": 50000, "lr": 3e-5, "batch_size": 128, "dataset_text_field": "text", "save_steps": 500},
        "env": {"EXPERIMENT_NAME": "fx-ruleset-v3"},
        "labels": {"deepfinery.com/team": "fx"}, "annotations": {"deepfinery.com/experiment": "fx-ruleset"},
    });
    let rules = Rules {
        runs_base_uris: vec!["s3://deepfinery-training/runs".parse().expect("a base")],
        allowed_images: AllowedImages::from_list("registry.example/deepfinery/"),
        ..rules()
    };
    let request = TrainingJobRequest::parse(body.to_string().as_bytes(), None, &rules, &Caller::unrestricted())
        .expect("accepted");
    assert_eq!(request.job_name.as_str(), "nemo-fx-ruleset-v3-2025-11-26-01");
    assert_eq!((request.resume, request.dataset_uri.as_str()), (Resume::IfAny, "s3://deepfinery-datasets/fx/v3/"));
}

#[test]
fn a_checkpoint_to_resume_is_named_in_one_of_five_ways() {
    let step = |step| Resume::From(ResumeTarget::Step(Step::new(step).expect("in range")));
    for (value, resume) in [
        (json!(null), Resume::No),
        (json!(false), Resume::No),
        (json!(true), Resume::IfAny),
        (json!("latest"), Resume::From(ResumeTarget::Latest)),
        (json!("best"), Resume::From(ResumeTarget::Best)),
        (json!("step-500"), step(500)),
        (json!("step-000500"), step(500)),
    ] {
        let mut body = body();
        body["resume_from_checkpoint"] = value.clone();
        assert_eq!(parse(&body).expect("a good request").resume, resume, "{value}");
    }
}

#[test]
fn the_namespace_is_named_once_and_allowed() {
    let parse = |body: &Value, query| {
        TrainingJobRequest::parse(body.to_string().as_bytes(), query, &rules(), &Caller::unrestricted())
    };
    let mut two = body();
    two["namespace"] = json!("training-two");
    for (body, query) in [(&body(), Some("training-two")), (&two, None), (&two, Some("training-two"))] {
        assert_eq!(parse(body, query).expect("allowed").namespace.as_str(), "training-two");
    }
    let problem = parse(&two, Some("training")).expect_err("two namespaces");
    assert_eq!(problem.errors.first().map(|error| error.pointer.as_str()), Some("/namespace"));
    assert_eq!(parse(&body(), Some("kube-system")).expect_err("not allowed").code, Code::NamespaceNotAllowed);
}

#[test]
fn the_same_variable_is_not_set_twice() {
    let mut body = body();
    body["env"] = json!({"HF_TOKEN": "x"});
    body["env_from_secrets"] = json!({"HF_TOKEN": "hugging-face/token"});
    let problem = parse(&body).expect_err("set twice");
    assert_eq!(problem.errors.first().map(|error| error.code), Some("duplicate"));
}

#[test]
fn more_pods_leave_a_shorter_name() {
    let mut body = body();
    body["job_name"] = json!("a".repeat(53));
    body["num_nodes"] = json!(101);
    assert_eq!(parse(&body).expect("fits").job_name.as_str().len(), 53);
    body["num_nodes"] = json!(102);
    let problem = parse(&body).expect_err("too long");
    assert!(problem.detail.contains("at most 52"), "{}", problem.detail);
}

#[test]
fn a_misspelt_framework_is_guessed() {
    let mut body = body();
    body["framework"] = json!("Nemo");
    let problem = parse(&body).expect_err("misspelt");
    assert!(problem.detail.ends_with("did you mean `nemo`?"), "{}", problem.detail);
}

#[test]
fn all_broken_rules_are_told_at_once() {
    let problem = parse(&json!({"num_node": 2, "num_nodes": 0})).expect_err("a bad request");
    let pointers: Vec<_> = problem.errors.iter().map(|error| error.pointer.as_str()).collect();
    assert_eq!(
        pointers,
        ["/framework", "/model_id", "/run_id", "/checkpoint_base_uri", "/dataset_uri", "/num_nodes", "/num_node"]
    );
    let unknown = problem.errors.last().expect("the unknown field");
    assert!(unknown.detail.contains("did you mean `num_nodes`?"), "{}", unknown.detail);
}

#[test]
fn an_answer_stays_small_whatever_is_wrong() {
    let body: Map<String, Value> = (0..16_000).map(|index| (format!("{index}"), json!(1))).collect();
    let problem = parse(&Value::Object(body)).expect_err("unknown fields");
    assert!(problem.detail.starts_with("the request breaks 16005 rules"), "{}", problem.detail);
    let answer = serde_json::to_vec(&problem.document("r")).expect("serialisable");
    assert!(answer.len() < 20_000, "{} bytes", answer.len());
    let twice = format!(r#"{{"{0}": 1, "{0}": 2}}"#, "x".repeat(60_000));
    let problem =
        TrainingJobRequest::parse(twice.as_bytes(), None, &rules(), &Caller::unrestricted()).expect_err("twice");
    assert!(problem.detail.len() < 1_000, "{} bytes", problem.detail.len());
}

#[test]
fn what_is_not_an_object_is_refused() {
    assert_eq!(
        TrainingJobRequest::parse(b"{", None, &rules(), &Caller::unrestricted()).expect_err("broken").code,
        Code::MalformedJson
    );
    assert_eq!(
        TrainingJobRequest::parse(b"", None, &rules(), &Caller::unrestricted()).expect_err("empty").code,
        Code::MalformedJson
    );
    assert_eq!(
        TrainingJobRequest::parse(br#"{"a":1,"a":1}"#, None, &rules(), &Caller::unrestricted())
            .expect_err("twice")
            .code,
        Code::MalformedJson
    );
    assert_eq!(
        TrainingJobRequest::parse(b"[]", None, &rules(), &Caller::unrestricted()).expect_err("a list").code,
        Code::InvalidRequest
    );
}
