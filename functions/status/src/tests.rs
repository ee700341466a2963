//! What the function answers, and what it leaves behind.

mod head;
mod logs;
mod provenance;
mod retry;
mod world;

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use aws_sdk_secretsmanager::operation::get_secret_value::GetSecretValueError;
use aws_smithy_mocks::{RuleMode, mock, mock_client};
use serde_json::{Value, json};
use training_http::token::TokenCheck;
use training_store::testing;

use world::{
    EVENTS, JOBS, PODS, RUN, SUBMISSION, TOKEN, World, checkpoint, job, job_row, list, owner, pod, refusal, row,
    running,
};

#[tokio::test]
async fn each_event_of_the_folder_is_answered_as_its_table_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../events");
    let expected: BTreeMap<String, Value> =
        serde_json::from_slice(&fs::read(folder.join("expected.json")).expect("the table")).expect("JSON");
    let world = || {
        let job = job("hf-demo");
        let script = vec![
            job_row(&job),
            row("continue=garbage", 400, refusal(400, "continue key is not valid")),
            row(format!("{JOBS}?"), 200, list(std::slice::from_ref(&job), "")),
            row(EVENTS, 200, list(&[], "")),
            row("/log?", 200, ""),
            row(format!("{PODS}?"), 200, list(&[running("hf-demo-master-0", 0)], "")),
            row(format!("{PODS}/hf-demo-master-0"), 200, running("hf-demo-master-0", 0)),
            row(format!("{PODS}/hf-demo-worker-0"), 200, running("hf-demo-worker-0", 0)),
        ];
        let objects = checkpoint(20, SUBMISSION, 1.0).into_iter().chain([owner("training", "hf-demo", SUBMISSION)]);
        World::new(script, testing::holding(objects))
    };
    let mut judged = 0;
    for (file, expected) in expected.iter().filter(|(file, _)| file.starts_with("status-")) {
        let event = fs::read_to_string(folder.join(file)).expect("an event").replace("${TRAINER_API_TOKEN}", TOKEN);
        let request = training_http::request_of(serde_json::from_str(&event).expect("an event"));
        let answer = world().answer(request).await;
        // Where the table leaves it open, it depends on what is there, and here everything is.
        let status = expected["status"].as_u64().unwrap_or(200);
        assert_eq!(
            (u64::from(answer.status), &answer.body["code"]),
            (status, &expected["code"]),
            "{file} {}",
            answer.text
        );
        judged += 1;
    }
    assert!(judged > 45, "only {judged} events");
}

#[tokio::test]
async fn nothing_is_told_without_a_token() {
    let world = World::with_cluster(vec![]);
    for path in [
        "/train",
        "/train/j",
        "/train/j/checkpoints",
        "/train/j/checkpoints/latest",
        "/train/j/checkpoints/best",
        "/train/j/checkpoints/5",
        "/train/j/logs",
        "/train/j/events",
        "/settings/hf",
        "/settings/jax",
        "/readyz",
        // The token comes before the parameters.
        "/train?unknown=1",
    ] {
        assert_eq!(world.send("GET", path, None).await.code(), "missing_token", "{path}");
        assert_eq!(world.send("GET", path, Some(&"x".repeat(43))).await.code(), "invalid_token", "{path}");
    }
    assert_eq!(world.sent(), [""; 0], "the cluster was asked for a stranger");
    let health = world.send("GET", "/healthz", None).await;
    assert_eq!((health.status, health.text.as_str()), (200, r#"{"status":"ok"}"#));
    for path in ["/healthz?x=1", "/openapi.json?format=yaml"] {
        assert_eq!(world.send("GET", path, None).await.code(), "invalid_request", "{path}");
    }
    let openapi = world.send("GET", "/openapi.json", None).await;
    assert_eq!((openapi.status, openapi.header("content-type")), (200, Some("application/json")));
    assert!(openapi.body.is_object());
}

#[tokio::test]
async fn what_is_wrong_with_a_request_is_said() {
    let job = job("j");
    let script = vec![
        row(format!("{JOBS}/gone"), 404, refusal(404, r#"pytorchjobs.kubeflow.org "gone" not found"#)),
        row("continue=old", 410, refusal(410, "The provided continue parameter is too old")),
        row("continue=bad", 400, refusal(400, "continue key is not valid")),
        job_row(&job),
        row(format!("{PODS}/j-master-0"), 404, refusal(404, r#"pods "j-master-0" not found"#)),
        row(format!("{PODS}/j-worker-0"), 200, pod("j-worker-0", "another", 0, &json!({"running": {}}))),
    ];
    let world = World::new(script, testing::holding([owner("training", "j", SUBMISSION)]));
    let long = format!("/train?continue={}", "x".repeat(5000));
    for (path, status, code, says) in [
        ("/train/gone", 404, "job_not_found", "`gone`"),
        ("/train/gone/checkpoints", 404, "job_not_found", ""),
        ("/train/gone/logs", 404, "job_not_found", ""),
        ("/train/gone/events", 404, "job_not_found", ""),
        ("/train/No_Name", 404, "job_not_found", "No_Name"),
        ("/train/a%2Fb", 404, "job_not_found", "a%2Fb"),
        ("/train/j?x=1", 422, "invalid_request", "?x"),
        ("/train/j?namespace=kube-system", 403, "namespace_not_allowed", "`training`, `two`"),
        ("/train?namespace=", 403, "namespace_not_allowed", ""),
        ("/train/j/checkpoints?limit=0", 422, "invalid_request", "1 to 500"),
        ("/train/j/checkpoints?before=x", 422, "invalid_request", "?before"),
        ("/train/j/checkpoints/best?mode=least", 422, "invalid_request", "`min` or `max`"),
        ("/train/j/checkpoints/best?metric=", 422, "invalid_request", "?metric"),
        ("/train/j/checkpoints/latest?limit=1", 422, "invalid_request", "?limit"),
        ("/train/j/checkpoints/latest", 404, "checkpoint_not_found", "no complete"),
        ("/train/j/checkpoints/best?metric=accuracy", 404, "checkpoint_not_found", "`accuracy`"),
        ("/train/j/checkpoints/5", 404, "checkpoint_not_found", "`5`"),
        ("/train/j/checkpoints/-5", 404, "checkpoint_not_found", "`-5`"),
        ("/train/j/checkpoints/9999999999999", 404, "checkpoint_not_found", ""),
        ("/train?limit=501", 422, "invalid_request", "1 to 500"),
        ("/train?framework=jax", 422, "invalid_request", "`nemo`"),
        ("/train?run_id=a%20b", 422, "invalid_request", "?run_id"),
        ("/train?status=done", 422, "invalid_request", "`succeeded`"),
        ("/train?continue=", 422, "invalid_request", "?continue"),
        (&long, 422, "invalid_request", "?continue"),
        ("/train?continue=bad", 422, "invalid_request", "?continue"),
        ("/train?continue=old", 410, "continue_expired", "first page"),
        ("/train/j/logs?tail=0", 422, "invalid_request", "1 to 10000"),
        ("/train/j/logs?tail=10001", 422, "invalid_request", "1 to 10000"),
        ("/train/j/logs?since=yesterday", 422, "invalid_request", "RFC 3339"),
        ("/train/j/logs?since=2026-11-24T03:00:00+01:00", 422, "invalid_request", "%2B"),
        ("/train/j/logs?replica=chief", 422, "invalid_request", "worker-<index>"),
        ("/train/j/logs?attempt=0", 422, "invalid_request", "?attempt"),
        ("/train/j/logs?replica=master&rank=2", 422, "invalid_request", "worker-0"),
        ("/train/j/logs?replica=worker-1", 404, "log_not_found", "1 workers"),
        ("/train/j/logs?rank=4", 404, "log_not_found", "4 ranks"),
        (
            "/train/j/logs",
            404,
            "log_not_found",
            "s3://bucket/runs/r/framework=hf/logs/01980000-0000-7000-8000-000000000001/attempt-<n>/rank-0.log",
        ),
        ("/train/j/logs?source=archive", 404, "log_not_found", "/attempt-<n>/rank-0.log"),
        ("/train/j/logs?source=archive&rank=3&attempt=4", 404, "log_not_found", "/attempt-4/rank-3.log"),
        ("/train/j/logs?source=pod", 422, "invalid_request", "`cluster` or `archive`"),
        ("/train/j/logs?source=archive&since=2026-11-24T03:00:00Z", 422, "invalid_request", "`tail`"),
        // A pod of that name, but of an older job.
        ("/train/j/logs?rank=3", 404, "log_not_found", "rank-3.log"),
        ("/settings/jax", 404, "settings_not_found", "no framework `jax`; there are `nemo`, `hf`, `meta`"),
        ("/settings/HF", 404, "settings_not_found", "`HF`"),
        ("/settings/hf?x=1", 422, "invalid_request", "?x"),
        ("/settings/hf?namespace=training", 422, "invalid_request", "?namespace"),
        ("/settings", 404, "route_not_found", "/settings"),
        ("/settings/hf/lr", 404, "route_not_found", "/settings/hf/lr"),
        ("/nothing", 404, "route_not_found", "/nothing"),
        ("/train/j/", 404, "route_not_found", ""),
    ] {
        let answer = world.get(path).await;
        assert_eq!((answer.status, answer.code()), (status, code), "{path}: {}", answer.text);
        assert!(answer.detail().contains(says), "{path}: {}", answer.detail());
        assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{path}");
    }
    for (method, path, allow) in [
        ("PUT", "/train", "GET, HEAD, POST"),
        ("POST", "/train/j/logs", "GET, HEAD"),
        ("PATCH", "/train/j", "DELETE, GET, HEAD"),
        ("DELETE", "/readyz", "GET, HEAD"),
        ("POST", "/settings/hf", "GET, HEAD"),
    ] {
        let answer = world.send(method, path, None).await;
        assert_eq!((answer.code(), answer.header("allow")), ("method_not_allowed", Some(allow)), "{method} {path}");
    }
    // The API gives these to the other function.
    for (method, path) in [("POST", "/train"), ("DELETE", "/train/j"), ("POST", "/train/j/suspend")] {
        assert_eq!(world.send(method, path, Some(TOKEN)).await.code(), "route_not_found", "{method} {path}");
    }
}

#[tokio::test]
async fn failures_behind_the_function_say_what_to_do_and_nothing_else() {
    for (status, message, code) in [
        (403, "pytorchjobs.kubeflow.org is forbidden: User \"arn:secret\" cannot get", "cluster_denied"),
        (404, "the server could not find the requested resource", "cluster_not_ready"),
        (429, "too many requests", "throttled"),
        (503, "etcd leader changed", "cluster_unavailable"),
        (500, "something private", "cluster_error"),
    ] {
        let world = World::with_cluster(vec![row(JOBS, status, refusal(status, message))]);
        for path in ["/train", "/train/j", "/train/j/logs", "/train/j/events"] {
            let answer = world.get(path).await;
            assert_eq!(answer.code(), code, "{path} {message}");
            assert!(!answer.text.contains("secret") && !answer.text.contains("private"), "{}", answer.text);
        }
    }
    let world = World::new(vec![job_row(&job("j")), row(PODS, 200, list(&[], ""))], testing::denied());
    for path in
        ["/train/j/checkpoints", "/train/j/checkpoints/latest", "/train/j/checkpoints/best", "/train/j/checkpoints/5"]
    {
        assert_eq!(world.get(path).await.code(), "storage_unavailable", "{path}");
    }
    // The bucket does not hide what the cluster says.
    let answer = world.get("/train/j").await;
    assert_eq!(
        (answer.status, &answer.body["status"], &answer.body["checkpoints"]),
        (200, &json!("running"), &Value::Null)
    );
    assert_eq!(answer.detail(), "running", "nobody could look how far it is");
}

#[tokio::test(start_paused = true)]
async fn storage_that_is_slow_is_told_from_a_slow_cluster() {
    let run = || {
        let entries = (1..=1_000).map(|step| {
            let entry = json!({"index": 1, "step": step, "state": "complete", "submission": null, "saved_at": 1.5,
                "size_bytes": 0, "file_count": 0, "metrics": {"loss": 1.0}, "parent": null, "marker_key": "k",
                "marker_etag": "e"});
            (format!("{RUN}/index/v1/{}", 999_999_999_999_u64 - step), entry.to_string())
        });
        testing::Bucket::holding(entries.chain([owner("training", "j", SUBMISSION)]))
    };
    let hanging = || run().store_judged_by(|_| std::future::ready(testing::Treatment::Hang));
    // Each answer is soon enough, and all together are not.
    let slow = || {
        run().store_judged_by(|_| async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            testing::Treatment::Serve
        })
    };
    for (path, stores) in [
        ("/train/j/checkpoints", vec![hanging(), slow()]),
        ("/train/j/checkpoints/latest", vec![hanging(), slow()]),
        ("/train/j/checkpoints/best", vec![hanging(), slow()]),
        ("/train/j/checkpoints/5", vec![hanging(), slow()]),
        ("/train/j/logs?source=archive", vec![hanging()]),
    ] {
        for store in stores {
            let answer = World::new(vec![job_row(&job("j"))], store).get(path).await;
            assert_eq!((answer.status, answer.code()), (504, "storage_timeout"), "{path}");
            assert_eq!(answer.header("retry-after"), Some("5"), "{path}");
        }
    }
}

#[tokio::test]
async fn a_list_is_read_some_jobs_at_a_time_and_linked_to_its_next_page() {
    let jobs = |from: usize, to: usize| (from..to).map(|number| job(&format!("j{number:02}"))).collect::<Vec<_>>();
    let world = World::with_cluster(vec![
        row("continue=c10", 200, list(&jobs(10, 15), "c15+/=")),
        row("limit=10", 200, list(&jobs(0, 10), "c10")),
    ]);
    let page = world.get("/train?limit=15&framework=hf&run_id=r&status=running").await;
    let names: Vec<_> = page.body["jobs"].as_array().into_iter().flatten().map(|job| job["name"].to_string()).collect();
    assert_eq!((page.status, names.len(), names.first().map(String::as_str)), (200, 15, Some("\"j00\"")));
    assert_eq!(page.body["continue"], "c15+/=");
    let next = "/train?limit=15&framework=hf&run%5Fid=r&status=running&continue=c15%2B%2F%3D";
    assert_eq!(page.body["links"]["next"], next.replace("%5F", "_"));
    let sent = world.sent();
    let selector = "labelSelector=trainer.deepfinery%2Fframework%3Dhf%2Ctrainer.deepfinery%2Frun-id%3Dr";
    assert!(sent.iter().all(|asked| asked.contains(selector)), "{sent:?}");
    assert!(sent[0].contains("limit=10") && sent[1].contains("limit=5"), "{sent:?}");

    // A filter by status may leave nothing of a page that has a next one.
    let world = World::with_cluster(vec![row("limit=10", 200, list(&jobs(0, 10), "c10"))]);
    let page = world.get("/train?limit=10&status=failed").await;
    assert_eq!((page.body["jobs"].as_array().map(Vec::len), &page.body["continue"]), (Some(0), &json!("c10")));

    let world = World::with_cluster(vec![row("/namespaces/two/pytorchjobs?", 200, list(&jobs(0, 2), ""))]);
    let page = world.get("/train?namespace=two").await;
    assert_eq!((&page.body["continue"], &page.body["links"]["next"]), (&Value::Null, &Value::Null));
    assert_eq!(page.body["jobs"].as_array().map(Vec::len), Some(2));
}

#[tokio::test]
async fn a_job_is_told_with_its_progress_and_its_own_pods() {
    let progress = json!({"submission": SUBMISSION, "attempt": 2, "step": 7, "total": 9, "loss": 1.0,
        "tokens_per_second": null, "eta_seconds": null, "updated_at": 1});
    let waiting = json!({"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}});
    let mut job = job("j");
    job["metadata"]["namespace"] = json!("two");
    let progress = (format!("{RUN}/progress/{SUBMISSION}"), progress.to_string());
    let store = || testing::holding([owner("two", "j", SUBMISSION), progress.clone()]);
    let script = |uid| {
        vec![
            row("/namespaces/two/pytorchjobs/j", 200, &job),
            row("/namespaces/two/pods?", 200, list(&[pod("j-worker-0", uid, 0, &waiting)], "")),
        ]
    };
    let answer = World::new(script("u1"), store()).get("/train/j?namespace=two").await;
    assert_eq!((&answer.body["attempts"], &answer.body["progress"]["step"]), (&json!(2), &json!(7)));
    assert_eq!(answer.body["diagnosis"]["code"], "image_pull");
    assert_eq!(answer.body["links"]["logs"], "/train/j/logs?namespace=two");
    assert!(
        answer.text.starts_with(r#"{"name":"j","status":"running","detail":"held up: no such image","framework":"hf""#)
    );

    let answer = World::new(script("another"), store()).get("/train/j?namespace=two").await;
    assert_eq!((&answer.body["diagnosis"], answer.detail()), (&Value::Null, "running, step 7 of 9, loss 1.0000"));
}

#[tokio::test]
async fn a_job_that_failed_is_told_with_the_reason_of_its_attempts() {
    let mut job = job("j");
    job["status"]["conditions"] = json!([{"type": "Failed", "status": "True", "message": "j has reached the limit."}]);
    let attempt = |submission: &str, number: u32, mut body: Value| {
        (body["pods"], body["started_at"]) = (json!(["uid"]), json!(1.5));
        (format!("{RUN}/attempts/{submission}/{number}"), body.to_string())
    };
    let store = || {
        testing::holding([
            owner("training", "j", SUBMISSION),
            attempt(SUBMISSION, 2, json!({"attempt": 2, "cause": "crash", "rank": 1, "message": "ValueError: no"})),
            attempt(
                SUBMISSION,
                10,
                json!({"attempt": 10, "cause": "out_of_memory", "rank": 3, "message": "too large"}),
            ),
            attempt(SUBMISSION, 11, json!({"attempt": 11, "cause": "of another version"})),
            attempt("01970000-0000-7000-8000-000000000001", 99, json!({"attempt": 99, "cause": "user_error"})),
        ])
    };
    let world = World::new(vec![job_row(&job)], store());
    let answer = world.get("/train/j").await;
    let message = "attempt 10 ended by out_of_memory: too large (rank 3)";
    assert_eq!(answer.detail(), format!("j has reached the limit: {message}"));
    assert_eq!(
        (&answer.body["diagnosis"]["code"], &answer.body["diagnosis"]["message"]),
        (&json!("failed"), &json!(message))
    );
    assert_eq!(answer.body["diagnosis"]["evidence"], json!([format!("s3://bucket/{RUN}/attempts/{SUBMISSION}/10")]));
    assert_eq!(world.sent().len(), 1, "its pods are gone: {:?}", world.sent());

    let answer = World::new(vec![job_row(&job)], testing::denied()).get("/train/j").await;
    assert_eq!((answer.status, answer.detail()), (200, "j has reached the limit."));
    assert_eq!(answer.body["diagnosis"], Value::Null);

    job["status"]["conditions"] = json!([{"type": "Succeeded", "status": "True"}]);
    let answer = World::new(vec![job_row(&job)], store()).get("/train/j").await;
    assert_eq!((answer.detail(), &answer.body["diagnosis"]), ("succeeded", &Value::Null));
}

#[tokio::test]
async fn checkpoints_are_told_and_chosen() {
    let older = "01970000-0000-7000-8000-000000000001";
    let objects = [
        checkpoint(10, SUBMISSION, 3.0),
        checkpoint(20, SUBMISSION, 1.0),
        checkpoint(30, SUBMISSION, 2.0),
        checkpoint(99, older, 0.5),
    ];
    let objects = objects.into_iter().flatten().chain([owner("training", "j", SUBMISSION)]);
    let world = World::new(vec![job_row(&job("j"))], testing::holding(objects));
    let page = world.get("/train/j/checkpoints?limit=3").await;
    let told: Vec<_> = page.body["checkpoints"].as_array().into_iter().flatten().collect();
    let told: Vec<_> = told.iter().map(|entry| (entry["step"].as_u64(), entry["superseded"].as_bool())).collect();
    assert_eq!(told, [(Some(99), Some(true)), (Some(30), Some(false)), (Some(20), Some(false))]);
    assert_eq!(page.body["links"]["next"], "/train/j/checkpoints?limit=3&before=20");
    for (path, step, superseded) in [
        ("latest", 30, false),
        ("best", 20, false),
        ("best?mode=max", 10, false),
        ("99", 99, true),
        ("000010", 10, false),
    ] {
        let answer = world.get(&format!("/train/j/checkpoints/{path}")).await;
        assert_eq!((answer.status, &answer.body["step"]), (200, &json!(step)), "{path}: {}", answer.text);
        assert_eq!(
            (&answer.body["superseded"], &answer.body["state"]),
            (&json!(superseded), &json!("complete")),
            "{path}"
        );
    }
}

#[tokio::test]
async fn a_run_that_was_started_anew_shows_its_own_checkpoint() {
    let entry = |step: u64, submission: &str| {
        let entry = json!({"index": 1, "step": step, "state": "complete", "submission": submission, "saved_at": 1.5,
            "size_bytes": 1, "file_count": 1, "metrics": {}, "parent": null, "marker_key": format!("m{step}"), "marker_etag": "e"});
        (format!("{RUN}/index/v1/{:012}", 999_999_999_999 - step), entry.to_string())
    };
    let older = (100..130).map(|step| entry(step, "01970000-0000-7000-8000-000000000001"));
    let objects: Vec<_> = older.chain([entry(5, SUBMISSION), owner("training", "j", SUBMISSION)]).collect();
    let world = World::new(vec![job_row(&job("j")), row(PODS, 200, list(&[], ""))], testing::holding(objects));
    let answer = world.get("/train/j").await;
    assert_eq!(
        answer.body["checkpoints"],
        json!({"latest_step": 5, "latest_uri": "s3://bucket/m5"}),
        "{}",
        answer.text
    );
}

#[tokio::test]
async fn a_prefix_outside_the_allowed_bases_is_not_followed() {
    let mut job = job("j");
    job["metadata"]["annotations"]["trainer.deepfinery/checkpoint-prefix"] = json!("s3://other/r/framework=hf");
    // A bucket that is asked all the same would refuse.
    let world = World::new(vec![job_row(&job), row(PODS, 200, list(&[], ""))], testing::denied());
    assert_eq!(world.get("/train/j/checkpoints").await.body["checkpoints"], json!([]));
    assert_eq!(world.get("/train/j/checkpoints/latest").await.code(), "checkpoint_not_found");
    assert_eq!(world.get("/train/j").await.status, 200);
}

#[tokio::test]
async fn events_of_the_job_and_its_pods_are_one_story() {
    let event = |kind: &str, name: &str, second: u32| {
        json!({"metadata": {}, "involvedObject": {"kind": kind, "name": name, "uid": "u1"}, "type": "Normal", "reason": "R",
            "message": name, "count": 1, "source": {"component": "c"}, "lastTimestamp": format!("2026-11-24T03:00:{second:02}Z")})
    };
    let world = World::with_cluster(vec![
        job_row(&job("j")),
        row(format!("{EVENTS}?&fieldSelector=involvedObject.uid%3Du1"), 200, list(&[event("PyTorchJob", "j", 5)], "")),
        row("continue=more", 200, list(&[event("Pod", "j-worker-0", 3)], "")),
        row(
            format!("{EVENTS}?&fieldSelector=involvedObject.kind%3DPod"),
            200,
            list(&[event("Pod", "j-master-0", 9), event("Pod", "other-master-0", 9)], "more"),
        ),
    ]);
    let answer = world.get("/train/j/events").await;
    let told: Vec<_> =
        answer.body["events"].as_array().into_iter().flatten().map(|event| event["message"].clone()).collect();
    assert_eq!(told, ["j-worker-0", "j", "j-master-0"], "{:?} {}", world.sent(), answer.text);
    assert_eq!(answer.body["truncated"], false);
}

#[tokio::test]
async fn the_settings_of_each_framework_are_the_trainers_own_schema() {
    for framework in ["hf", "nemo", "meta"] {
        // A token sees them whatever namespaces it is for, and nothing behind the function is asked.
        let world = World::limited_to(&["two"]);
        let answer = world.get(&format!("/settings/{framework}")).await;
        let file = format!("{}/../../trainer/settings/{framework}.json", env!("CARGO_MANIFEST_DIR"));
        assert_eq!((answer.status, answer.text), (200, fs::read_to_string(file).expect("a schema")), "{framework}");
        assert_eq!(answer.headers["content-type"], "application/json");
        assert_eq!(answer.headers["cache-control"], "no-store");
        assert_eq!(world.sent(), [""; 0]);
    }
}

#[tokio::test]
async fn readiness_tells_each_dependency() {
    let good = || vec![row(JOBS, 200, list(&[], ""))];
    let bad = || vec![row(JOBS, 404, refusal(404, "the server could not find the requested resource"))];
    let empty = || testing::holding::<String>([]);
    for (world, status, cluster, storage) in [
        (World::new(good(), empty()), 200, Value::Null, Value::Null),
        (World::new(bad(), empty()), 503, json!("cluster_not_ready"), Value::Null),
        (World::new(good(), testing::denied()), 503, Value::Null, json!("storage_unavailable")),
        (World::new(bad(), testing::denied()), 503, json!("cluster_not_ready"), json!("storage_unavailable")),
    ] {
        let answer = world.get("/readyz").await;
        assert_eq!((answer.status, &answer.body["ready"]), (status, &json!(status == 200)), "{}", answer.text);
        for (name, code) in [("token", Value::Null), ("cluster", cluster), ("storage", storage)] {
            let check = &answer.body[name];
            assert_eq!((&check["code"], &check["ok"]), (&code, &json!(code.is_null())), "{name}: {}", answer.text);
            assert_eq!(check["detail"].is_null(), code.is_null());
        }
    }
}

#[tokio::test]
async fn readiness_without_a_readable_secret_asks_nothing_else() {
    let mut world = World::with_cluster(vec![row(JOBS, 200, list(&[], ""))]);
    let gone = mock!(aws_sdk_secretsmanager::Client::get_secret_value)
        .then_error(|| GetSecretValueError::unhandled("Secrets Manager is away"));
    let secrets = mock_client!(aws_sdk_secretsmanager, RuleMode::MatchAny, &[&gone]);
    world.handler.token = TokenCheck::new(secrets, "arn".to_owned());
    let answer = world.get("/readyz").await;
    assert_eq!((answer.status, &answer.body["ready"]), (503, &json!(false)), "{}", answer.text);
    assert_eq!(answer.body["token"]["code"], "auth_unavailable");
    assert_eq!((&answer.body["cluster"], &answer.body["storage"]), (&Value::Null, &Value::Null));
    assert_eq!(world.sent(), [""; 0], "the cluster was asked for nobody");
    // Who sends no token is told so.
    assert_eq!(world.send("GET", "/readyz", None).await.code(), "missing_token");
}
