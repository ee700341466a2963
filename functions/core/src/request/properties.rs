//! Whatever is sent: no panic, and either the job that was asked for or a reason.

use std::collections::BTreeSet;

use super::{tests::rules, *};
use crate::job::manifest::{self, Origin, Platform, Start};
use proptest::prelude::*;
use serde_json::json;

/// Any JSON value, with the names of fields among its keys.
fn json_value() -> impl Strategy<Value = Value> {
    let text = prop_oneof![
        any::<String>().prop_map(Value::from),
        proptest::sample::select(vec![
            "hf",
            "s3://bucket/runs",
            "s3://bucket/../x",
            "latest",
            "step-5",
            "",
            "$(X)",
            "a/b"
        ])
        .prop_map(Value::from),
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        text,
    ];
    leaf.prop_recursive(3, 24, 6, |inner| {
        let key = prop_oneof![any::<String>(), proptest::sample::select(fields::names()).prop_map(str::to_owned)];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key, inner), 0..6).prop_map(|entries| Value::Object(entries.into_iter().collect())),
        ]
    })
}

/// A body that keeps every rule.
fn good() -> impl Strategy<Value = Value> {
    let text = "[ -~é]{0,20}";
    let places = (
        proptest::sample::select(vec!["hf", "nemo", "meta"]),
        "[A-Za-z0-9]([A-Za-z0-9._-]{0,20}[A-Za-z0-9])?",
        proptest::sample::select(vec!["s3://bucket/runs", "s3://bucket/runs/", "s3://bucket/runs/team a+b"]),
        proptest::option::of(proptest::sample::select(vec!["training", "training-two"])),
        proptest::option::of("[a-z][a-z0-9-]{0,20}[a-z0-9]"),
        proptest::option::of(proptest::sample::select(vec!["trainer:local", "team/trainer:2"])),
    );
    let sizes = (
        proptest::option::of(1..=1000_u32),
        proptest::option::of(0..=64_u32),
        proptest::option::of(1..=1024_u32),
        proptest::option::of(1..=65_536_u32),
        proptest::option::of(1..=65_536_u32),
        proptest::option::of(0..=100_u32),
        proptest::option::of(60..=31_536_000_u32),
    );
    let maps = (
        proptest::option::of(prop::collection::btree_map("my_[a-z]{1,6}", text, 0..4)),
        proptest::option::of(prop::collection::btree_map("MY_[A-Z]{1,6}", text, 0..4)),
        proptest::option::of(prop::collection::btree_map("SECRET_[A-Z]{1,6}", Just("hugging-face/token"), 0..3)),
        proptest::option::of(prop::collection::btree_map("example[.]com/[a-z]{1,6}", "[a-z]{1,9}", 0..3)),
        proptest::option::of(prop::collection::btree_map("example[.]com/[a-z]{1,6}", text, 0..3)),
        proptest::option::of(proptest::sample::select(vec!["low", "high"])),
    );
    (places, sizes, maps).prop_map(|(places, sizes, maps)| {
        let (framework, run_id, base, namespace, job_name, image) = places;
        let (num_nodes, gpus, cpus, memory, disk, max_restarts, max_runtime_seconds) = sizes;
        let (extra_args, env, env_from_secrets, labels, annotations, class) = maps;
        json!({
            "framework": framework, "model_id": "$(tiny) $$", "run_id": run_id, "checkpoint_base_uri": base,
            "dataset_uri": "s3://data/train.jsonl", "namespace": namespace, "job_name": job_name, "image": image,
            "num_nodes": num_nodes, "gpus_per_node": gpus, "cpus_per_node": cpus, "memory_per_node_gb": memory, "disk_per_node_gb": disk,
            "max_restarts": max_restarts, "max_runtime_seconds": max_runtime_seconds, "extra_args": extra_args,
            "env": env, "env_from_secrets": env_from_secrets, "labels": labels, "annotations": annotations,
            "priority_class": class, "queue": class,
        })
    })
}

/// A good body with some fields replaced by anything.
fn nearly_good() -> impl Strategy<Value = Value> {
    let changes = prop::collection::vec((proptest::sample::select(fields::names()), json_value()), 0..4);
    (good(), changes).prop_map(|(mut body, changes)| {
        for (field, value) in changes {
            body[field] = value;
        }
        body
    })
}

fn platform() -> Platform {
    Platform {
        train_script: "/opt/trainer/train.py".to_owned(),
        service_account: "trainer".to_owned(),
        job_ttl_seconds: 604_800,
        max_restarts: 3,
        grace_seconds: 300,
    }
}

fn answer(body: &[u8]) -> Result<Value, Problem> {
    let request = TrainingJobRequest::parse(body, None, &rules(), &Caller::unrestricted())?;
    let submission = "01980000-0000-7000-8000-000000000001".parse().expect("an id");
    let origin = Origin { submission: &submission, submitted_by: None, start: Start::Fresh };
    Ok(serde_json::to_value(manifest::build(&request, origin, None, &platform())).expect("serialisable"))
}

/// Either a reason, or the job that the body asks for.
fn check(body: &[u8]) {
    match answer(body) {
        Ok(job) => check_job(&serde_json::from_slice(body).expect("JSON, as it was accepted"), &job),
        Err(problem) => {
            assert!(!problem.detail.is_empty());
            assert_eq!(problem.code == Code::InvalidRequest, !problem.errors.is_empty());
            for error in &problem.errors {
                assert!(error.pointer.is_empty() || error.pointer.starts_with('/'), "{error:?}");
            }
        }
    }
}

/// The job is what the README says of the body's fields, told here once more from the body and not from what was parsed.
fn check_job(body: &Value, job: &Value) {
    let given = |field: &str| body.get(field).filter(|value| !value.is_null());
    let text = |field: &str| given(field).and_then(Value::as_str).map(str::to_owned);
    let number = |field: &str, default: u64| given(field).map_or(Some(default), Value::as_u64).expect("a whole number");
    let entries = |field: &str| given(field).and_then(Value::as_object).cloned().unwrap_or_default();
    let (framework, run_id) = (text("framework").expect("required"), text("run_id").expect("required"));
    let base = text("checkpoint_base_uri").expect("required");
    let prefix = format!("{}/{run_id}/framework={framework}", base.trim_end_matches('/'));

    let metadata = &job["metadata"];
    let name = metadata["name"].as_str().expect("a name");
    assert!(name.parse::<JobName>().is_ok(), "{name}");
    assert!(text("job_name").is_none_or(|job_name| job_name == name), "{name}");
    assert_eq!(metadata["namespace"], text("namespace").unwrap_or_else(|| "training".to_owned()));
    assert_eq!(metadata["annotations"]["trainer.deepfinery/checkpoint-prefix"], prefix);
    let queue = given("queue").map(|queue| ("kueue.x-k8s.io/queue-name".to_owned(), queue.clone()));
    let mut labels = entries("labels");
    labels.insert("trainer.deepfinery/framework".to_owned(), framework.clone().into());
    labels.insert("trainer.deepfinery/run-id".to_owned(), run_id.into());
    let of_job: BTreeMap<_, _> = labels.clone().into_iter().chain(queue).collect();
    assert_eq!(metadata["labels"], json!(of_job));
    for (key, value) in entries("annotations") {
        assert_eq!(metadata["annotations"][&key], value, "{key}");
    }

    let (nodes, gpus) = (number("num_nodes", 1), number("gpus_per_node", 1));
    let replicas = &job["spec"]["pytorchReplicaSpecs"];
    assert_eq!(replicas["Master"]["replicas"], 1);
    assert_eq!(replicas["Worker"]["replicas"].as_u64().unwrap_or_default(), nodes - 1);
    assert!(nodes == 1 || replicas["Worker"]["template"] == replicas["Master"]["template"], "pods differ");
    assert_eq!(job["spec"]["nprocPerNode"], gpus.max(1).to_string());
    let restarts = number("max_restarts", 3);
    assert_eq!(job["spec"]["runPolicy"]["backoffLimit"], nodes * (2 * restarts + 5));
    assert_eq!(job["spec"]["runPolicy"].get("activeDeadlineSeconds"), given("max_runtime_seconds"));

    let template = &replicas["Master"]["template"];
    assert_eq!(template["metadata"]["labels"], json!(labels.into_iter().collect::<BTreeMap<_, _>>()));
    assert_eq!(template["spec"].get("priorityClassName"), given("priority_class"));
    let [container] = template["spec"]["containers"].as_array().expect("containers").as_slice() else {
        panic!("not one container")
    };
    assert_eq!(container["image"], text("image").unwrap_or_else(|| "trainer:local".to_owned()));
    // Nothing that a caller sends is an argument.
    let command = (&container["command"], &container["args"]);
    assert_eq!(command, (&json!(["torchrun"]), &json!(["--max-restarts=0", "/opt/trainer/train.py"])));
    let mut amounts = json!({
        "cpu": number("cpus_per_node", 32).to_string(), "memory": format!("{}Gi", number("memory_per_node_gb", 256)),
    });
    if let Some(disk) = given("disk_per_node_gb") {
        amounts["ephemeral-storage"] = format!("{disk}Gi").into();
    }
    if gpus > 0 {
        amounts["nvidia.com/gpu"] = gpus.to_string().into();
    }
    assert_eq!(container["resources"], json!({"limits": amounts, "requests": amounts}));

    let variables = container["env"].as_array().expect("env");
    let names: BTreeSet<_> = variables.iter().filter_map(|variable| variable["name"].as_str()).collect();
    assert_eq!(names.len(), variables.len(), "a variable is named twice");
    let variable = |name: &str| variables.iter().find(|variable| variable["name"] == name);
    // The kubelet takes `$$` for `$`.
    let value = |name: &str| {
        variable(name).and_then(|variable| variable["value"].as_str()).map(|value| {
            assert!(!value.replace("$$", "").contains('$'), "{name} is expanded: {value}");
            value.replace("$$", "$")
        })
    };
    for (name, expected) in [
        ("FRAMEWORK", Some(framework)),
        ("MODEL_ID", text("model_id")),
        ("DATASET_URI", text("dataset_uri")),
        ("CONFIG_PATH", text("config_path")),
        ("CHECKPOINT_PREFIX", Some(prefix)),
        ("NUM_NODES", Some(nodes.to_string())),
        ("GPUS_PER_NODE", Some(gpus.to_string())),
        ("MAX_RESTARTS", Some(restarts.to_string())),
        ("TRAINING_EXTRA_ARGS_JSON", Some(Value::from(entries("extra_args")).to_string())),
    ] {
        assert_eq!(value(name), expected, "{name}");
    }
    for (name, expected) in entries("env") {
        assert_eq!(value(&name).map(Value::from), Some(expected), "{name}");
    }
    for (name, expected) in entries("env_from_secrets") {
        let (secret, key) = expected.as_str().and_then(|place| place.split_once('/')).expect("secret/key");
        let place = json!({"secretKeyRef": {"name": secret, "key": key}});
        assert_eq!(variable(&name).map(|variable| &variable["valueFrom"]), Some(&place), "{name}");
    }
}

proptest! {
    #[test]
    fn no_bytes_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
        check(&body);
    }

    #[test]
    fn no_json_panics(body in json_value()) {
        check(body.to_string().as_bytes());
    }

    #[test]
    fn a_nearly_good_body_is_the_job_that_it_asks_for_or_says_what_is_wrong(body in nearly_good()) {
        check(body.to_string().as_bytes());
    }

    #[test]
    fn a_good_body_is_the_job_that_it_asks_for(body in good()) {
        let job = answer(body.to_string().as_bytes());
        prop_assert!(job.is_ok(), "{job:?}");
        check_job(&body, &job.expect("a job"));
    }
}
