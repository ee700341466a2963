//! What the function answers, and what it leaves behind.

mod claims;
mod confirmed;
mod foreign;
mod settings;
mod world;

use std::{collections::BTreeMap, fs, path::Path};

use lambda_http::http::Method;
use serde_json::{Value, json};
use training_store::testing::{self, Bucket};

use world::{Fault, Jobs, MARKER, OWNER, TOKEN, World, request};

/// Submissions of July 2025.
const THEIRS: &str = "01980000-0000-7000-8000-000000000009";
const LATE: &str = "01980000-0000-7000-8000-00000000000a";

#[tokio::test]
async fn each_event_of_the_folder_is_answered_as_its_table_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../events");
    let expected: BTreeMap<String, Value> =
        serde_json::from_slice(&fs::read(folder.join("expected.json")).expect("the table")).expect("JSON");
    let mut judged = 0;
    for (file, expected) in expected.iter().filter(|(file, _)| file.starts_with("submit-")) {
        let event = fs::read_to_string(folder.join(file)).expect("an event");
        let event = event
            .replace("${TRAINER_API_TOKEN}", TOKEN)
            .replace("${RUNS_BASE_URI}", "s3://bucket/runs")
            .replace("${RUNS_BUCKET}", "bucket");
        let world = World::new();
        if event.contains("/train/hf-demo") {
            let mut demo = request();
            demo["run_id"] = json!("demo");
            world.post("/train", &demo).await;
        }
        let answer = world.event(&event).await;
        match expected["status"].as_u64() {
            Some(status) => {
                assert_eq!((u64::from(answer.status), &answer.body["code"]), (status, &expected["code"]), "{file}");
            }
            // Depends on what is there, and here everything is as it should be.
            None => assert!(answer.status < 300, "{file}: {answer:?}"),
        }
        judged += 1;
    }
    assert!(judged > 40, "only {judged} events");
}

#[tokio::test]
async fn a_job_is_made_with_its_owner_and_its_record() {
    let world = World::new();
    let answer = world.post("/train", &request()).await;
    assert_eq!((answer.outcome(), answer.header("location")), ((201, ""), Some("/train/hf-r")));
    let (owner, job) = world.owner_and_job("hf-r");
    assert_eq!(owner, job);
    let confirmed: Value = serde_json::from_str(&world.bucket.body(OWNER).expect("an owner")).expect("JSON");
    assert_eq!(confirmed["uid"], world.server(|server| server.jobs["hf-r"]["metadata"]["uid"].clone()));
    assert_eq!(world.bucket.keys(), [format!("runs/_jobs/training/hf-r/{job}"), OWNER.to_owned()]);
}

#[tokio::test]
async fn an_answer_that_was_lost_is_found_and_nothing_is_made_twice() {
    let world = World::new().fault(Method::POST, Fault::CutAfter);
    assert_eq!(world.post("/train", &request()).await.outcome(), (201, ""));
    assert_eq!(world.post("/train", &request()).await.outcome(), (200, ""));

    let world = World::new().fault(Method::POST, Fault::Refuses(504, "Timeout", "request did not complete"));
    assert_eq!(world.post("/train", &request()).await.outcome(), (504, "cluster_timeout"));
    assert_eq!(world.names(), [""; 0]);
    assert_eq!(world.post("/train", &request()).await.outcome(), (201, ""), "the claim that was left harms nobody");
    let (owner, job) = world.owner_and_job("hf-r");
    assert_eq!(owner, job);

    let world = World::new().fault(Method::POST, Fault::CutBefore);
    assert_eq!(world.post("/train", &request()).await.outcome(), (503, "cluster_unavailable"));
    assert_eq!(world.post("/train", &request()).await.outcome(), (201, ""));
}

/// An equal request's claim a moment after it was made, and the job that it is about to make.
async fn equal_request() -> (String, Value) {
    let other = World::new();
    other.post("/train", &request()).await;
    let mut claim: Value = serde_json::from_str(&other.bucket.body(OWNER).expect("an owner")).expect("JSON");
    assert!(claim.as_object_mut().is_some_and(|claim| claim.remove("uid").is_some()), "confirmed: {claim}");
    (claim.to_string(), other.server(|server| server.jobs["hf-r"].clone()))
}

#[tokio::test]
async fn a_later_claim_of_an_equal_request_does_not_disown_the_job() {
    // The other's job appears after we have read that the name is free, and ours is refused for what is judged before the
    // name: a quota, for example. That is no answer to a request whose job is there.
    for (status, reason, message) in [
        (403, "Forbidden", "pytorchjobs is forbidden: exceeded quota: one"),
        (429, "TooManyRequests", "please try again later"),
        (500, "InternalError", "failed calling webhook \"x\": connection refused"),
        (422, "Invalid", "spec: Invalid value"),
        (409, "AlreadyExists", "already exists"),
    ] {
        let (claim, theirs) = equal_request().await;
        let world = World::new();
        world.bucket.write(OWNER, &claim);
        let before = theirs.clone();
        let appears = move |jobs: &mut Jobs| {
            jobs.insert("hf-r".to_owned(), theirs);
        };
        // The first GET reads the name, the second one the platform's defaults.
        let world = world
            .fault(Method::GET, Fault::Meanwhile(Box::new(|_: &mut Jobs| {})))
            .fault(Method::GET, Fault::Meanwhile(Box::new(appears)))
            .fault(Method::POST, Fault::Refuses(status, reason, message));
        let answer = world.post("/train", &request()).await;
        assert_eq!((answer.status, answer.header("idempotent-replayed")), (200, Some("true")), "{message}: {answer:?}");
        let (owner, job) = world.owner_and_job("hf-r");
        assert_eq!(owner, job, "{message}");
        let released = world.bucket.body(OWNER).is_some_and(|owner| owner.contains("released"));
        assert!(!released && world.server(|server| server.jobs["hf-r"] == before), "{message}");
    }

    // Something else has written another owner after all: the next request puts it right.
    let world = World::new();
    world.post("/train", &request()).await;
    world.bucket.write(OWNER, &json!({"submission": LATE, "namespace": "training", "job": "hf-r"}).to_string());
    assert_eq!(world.post("/train", &request()).await.outcome(), (200, ""));
    let (owner, job) = world.owner_and_job("hf-r");
    assert_eq!(owner, job);
}

#[tokio::test]
async fn an_equal_request_makes_the_job_of_a_claim_whose_request_has_died() {
    let (claim, _) = equal_request().await;
    let owner: Value = serde_json::from_str(&claim).expect("JSON");
    let world = World::new();
    world.bucket.write(OWNER, &claim);
    let answer = world.post("/train", &request()).await;
    assert_eq!((answer.outcome(), &answer.body["submission"]), ((201, ""), &owner["submission"]));
    let (now, job) = world.owner_and_job("hf-r");
    assert_eq!(now, job);

    // Once that job has had its life, another one gets a submission of its own.
    world.server(|server| server.jobs.clear());
    let answer = world.post("/train", &request()).await;
    assert_eq!(answer.outcome(), (201, ""));
    assert_ne!(answer.body["submission"], owner["submission"]);
}

#[tokio::test]
async fn a_refused_request_puts_back_what_was_there_before_its_claim() {
    let before = json!({"submission": "01980000-0000-7000-8000-000000000009", "namespace": "training", "job": "hf-r"})
        .to_string();
    let world = World::new().fault(Method::POST, Fault::Refuses(422, "Invalid", "no"));
    world.bucket.write(OWNER, &before);
    assert_eq!(world.post("/train", &request()).await.outcome(), (422, "rejected_by_cluster"));
    assert_eq!(world.bucket.body(OWNER), Some(before));

    // A claim that an equal request has joined stays: its job may be about to appear.
    let world = World::new();
    let bucket = world.bucket.clone();
    let joins = move |_: &mut Jobs| {
        let mut owner: Value = serde_json::from_str(&bucket.body(OWNER).expect("our claim")).expect("JSON");
        owner["claimed_by"] = json!(uuid::Uuid::now_v7().to_string());
        bucket.write(OWNER, &owner.to_string());
    };
    let world = world.fault(Method::POST, Fault::Meanwhile(Box::new(joins)));
    let world = world.fault(Method::POST, Fault::Refuses(422, "Invalid", "no"));
    assert_eq!(world.post("/train", &request()).await.outcome(), (422, "rejected_by_cluster"));
    let owner: Value = serde_json::from_str(&world.bucket.body(OWNER).expect("an owner")).expect("JSON");
    assert!(owner["released"].is_null() && owner["submission"] != owner["claimed_by"], "{owner}");
}

#[tokio::test]
async fn a_wait_for_another_requests_claim_ends_with_what_was_waited_for() {
    let world = World::new();
    let claim =
        json!({"submission": uuid::Uuid::now_v7().to_string(), "namespace": "training", "job": "other"}).to_string();
    world.bucket.write(OWNER, &claim);
    let answer = world.post("/train", &request()).await;
    assert_eq!((answer.outcome(), answer.header("retry-after")), ((409, "run_active"), Some("35")));
    let detail = answer.body["detail"].as_str().unwrap_or_default();
    assert!(detail.contains("`other`") && detail.contains("may still appear"), "{detail}");
    assert_eq!((world.names(), world.bucket.body(OWNER)), (Vec::new(), Some(claim)));
}

#[tokio::test]
async fn another_job_that_got_the_run_first_keeps_it() {
    let other = json!({
        "apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "spec": {},
        "metadata": {"name": "other", "uid": "o", "annotations": {
            "trainer.deepfinery/submission": THEIRS, "trainer.deepfinery/checkpoint-prefix": "s3://bucket/runs/r/framework=hf",
        }},
    });
    let claim = json!({"submission": THEIRS, "namespace": "training", "job": "other"}).to_string();

    let world = World::new();
    world.bucket.write(OWNER, &claim);
    world.server(|server| server.jobs.insert("other".to_owned(), other.clone()));
    let answer = world.post("/train", &request()).await;
    assert_eq!(answer.outcome(), (409, "run_active"));
    assert!(answer.body["detail"].as_str().is_some_and(|detail| detail.contains("`other`")), "{answer:?}");

    assert_eq!(world.post("/train?dry_run=true", &request()).await.outcome(), (409, "run_active"));
    // What it has written is no reason to restart it.
    world.bucket.write(MARKER, "{}");
    for path in ["/train", "/train?dry_run=true"] {
        assert_eq!(world.post(path, &request()).await.outcome(), (409, "run_active"), "{path}");
    }

    // It has claimed the run, and its job is about to appear: we wait for it.
    let world = World::new();
    let young =
        json!({"submission": uuid::Uuid::now_v7().to_string(), "namespace": "training", "job": "other"}).to_string();
    world.bucket.write(OWNER, &young);
    let theirs = other.clone();
    let nothing = || Fault::Meanwhile(Box::new(|_: &mut Jobs| {}));
    let appears = Fault::Meanwhile(Box::new(move |jobs: &mut Jobs| {
        jobs.insert("other".to_owned(), theirs);
    }));
    let mut faults: Vec<Fault> = (0..8).map(|_| nothing()).collect();
    faults.push(appears);
    let world = faults.into_iter().fold(world, |world, fault| world.fault(Method::GET, fault));
    assert_eq!(world.post("/train", &request()).await.outcome(), (409, "run_active"));
    assert_eq!((world.names(), world.bucket.body(OWNER).as_deref()), (vec!["other".to_owned()], Some(young.as_str())));

    // A claim whose job never appeared is old at last, or was given up.
    for left in [
        json!({"submission": "01980000-0000-7000-8000-000000000009", "namespace": "training", "job": "other"}),
        json!({"submission": uuid::Uuid::now_v7().to_string(), "namespace": "training", "job": "other", "released": true}),
    ] {
        let world = World::new();
        world.bucket.write(OWNER, &left.to_string());
        assert_eq!(world.post("/train", &request()).await.outcome(), (201, ""), "{left}");
    }

    // An owner that cannot be looked at is not passed over.
    for strange in [
        "{",
        r#"{"submission": "x", "namespace": "training", "job": "other"}"#,
        r#"{"submission": "01980000-0000-7000-8000-000000000009", "namespace": "retired", "job": "other"}"#,
    ] {
        let world = World::new();
        world.bucket.write(OWNER, strange);
        let answer = world.post("/train", &request()).await;
        assert_eq!(answer.outcome(), (409, "run_active"), "{strange}");
        assert!(answer.body["detail"].as_str().is_some_and(|detail| detail.contains(OWNER)), "{answer:?}");
    }

    // Between our claim and our creation: our job is taken back.
    let world = World::new();
    let (bucket, theirs, late_claim) = (world.bucket.clone(), other.clone(), claim.clone());
    let world = world.fault(
        Method::POST,
        Fault::Meanwhile(Box::new(move |jobs| {
            bucket.write(OWNER, &late_claim);
            jobs.insert("other".to_owned(), theirs);
        })),
    );
    assert_eq!(world.post("/train", &request()).await.outcome(), (409, "run_active"));
    assert_eq!(world.names(), ["other"]);
    assert_eq!(world.bucket.body(OWNER).as_deref(), Some(claim.as_str()));

    // Finished: the run is free.
    world.finish("other");
    assert_eq!(world.post("/train", &request()).await.outcome(), (201, ""));
}

#[tokio::test]
async fn a_run_of_a_namespace_that_the_token_does_not_see_is_refused_in_one_way() {
    let job = |condition: &str| {
        json!({
            "apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "spec": {},
            "metadata": {
                "name": "secret", "uid": "s",
                "annotations": {"trainer.deepfinery/checkpoint-prefix": "s3://bucket/runs/r/framework=hf"},
            },
            "status": {"conditions": [{"type": condition, "status": "True"}]},
        })
    };
    let old = "01980000-0000-7000-8000-000000000009";
    let claim = |submission: &str, namespace: &str, released: bool| {
        json!({"submission": submission, "namespace": namespace, "job": "secret", "released": released}).to_string()
    };
    let young = uuid::Uuid::now_v7().to_string();
    let mut resumed = request();
    resumed["resume_from_checkpoint"] = json!(true);
    let restart_named = format!("/train?namespace=training-two&restart={old}");
    let mut details = Vec::new();
    for (label, owner, theirs) in [
        ("running", claim(old, "training", false), Some(job("Running"))),
        ("ended", claim(old, "training", false), Some(job("Succeeded"))),
        ("gone", claim(old, "training", false), None),
        ("about to appear", claim(&young, "training", false), None),
        ("given up", claim(&young, "training", true), None),
        ("of a namespace that is served no more", claim(old, "retired", false), None),
    ] {
        for has_own in [false, true] {
            let world = World::limited_to(&["training-two"]);
            if has_own {
                // A job of the caller's that trained the run before.
                world.post("/train?namespace=training-two", &request()).await;
                world.finish("hf-r");
            }
            world.bucket.write(OWNER, &owner);
            world.bucket.write(MARKER, "{}");
            world.server(|server| theirs.clone().map(|job| server.jobs.insert("secret".to_owned(), job)));
            let before = world.names();
            for (path, body) in [
                ("/train?namespace=training-two", &request()),
                ("/train?namespace=training-two", &resumed),
                ("/train?namespace=training-two&restart=true", &request()),
                ("/train?namespace=training-two&restart=true", &resumed),
                (restart_named.as_str(), &request()),
            ] {
                if has_own && !path.contains("restart=true") {
                    continue;
                }
                for path in [path.to_owned(), format!("{path}&dry_run=true")] {
                    let answer = world.post(&path, body).await;
                    assert_eq!(answer.outcome(), (409, "run_active"), "{label} {has_own} {path}: {answer:?}");
                    details.push(answer.body["detail"].as_str().expect("a detail").to_owned());
                }
            }
            assert_eq!(world.names(), before, "{label}");
            assert_eq!(world.bucket.body(OWNER).as_deref(), Some(owner.as_str()), "{label}");
        }
    }
    details.dedup();
    assert_eq!(details.len(), 1, "{details:?}");
    assert!(!details.iter().any(|detail| detail.contains("secret") || detail.contains("`training`")), "{details:?}");

    // Who sees the owner's namespace, by a list or because nothing limits the token, goes on.
    let seen = claim(old, "training", false);
    for world in [World::limited_to(&["training", "training-two"]), World::new()] {
        world.bucket.write(OWNER, &seen);
        world.server(|server| server.jobs.insert("secret".to_owned(), job("Running")));
        let answer = world.post("/train?namespace=training-two", &request()).await;
        assert_eq!(answer.outcome(), (409, "run_active"));
        assert!(answer.body["detail"].as_str().is_some_and(|detail| detail.contains("`secret`")), "{answer:?}");
        world.finish("secret");
        assert_eq!(world.post("/train?namespace=training-two", &request()).await.outcome(), (201, ""));
    }

    // Somebody who sees more claims the run between our claim and our creation: our job is taken back.
    let world = World::limited_to(&["training-two"]);
    let (bucket, late) = (world.bucket.clone(), seen.clone());
    let world = world.fault(Method::POST, Fault::Meanwhile(Box::new(move |_| bucket.write(OWNER, &late))));
    assert_eq!(world.post("/train?namespace=training-two", &request()).await.outcome(), (409, "run_active"));
    assert_eq!((world.names(), world.bucket.body(OWNER)), (Vec::new(), Some(seen)));
}

#[tokio::test]
async fn a_different_request_that_came_too_late_leaves_the_run_to_the_job() {
    // It claims the run after the job was made, and finds the name taken.
    let world = World::new();
    let mut taken = request();
    taken["num_nodes"] = json!(2);
    let other = World::new();
    other.post("/train", &taken).await;
    let theirs = other.server(|server| server.jobs["hf-r"].clone());
    // The claim that the job's request made is too old to be a reason to wait.
    let mut claim: Value = serde_json::from_str(&other.bucket.body(OWNER).expect("an owner")).expect("JSON");
    claim["claimed_by"] = json!("01980000-0000-7000-8000-000000000001");
    let claim = claim.to_string();
    world.bucket.write(OWNER, &claim);
    let world = world.fault(
        Method::POST,
        Fault::Meanwhile(Box::new(move |jobs| {
            jobs.insert("hf-r".to_owned(), theirs);
        })),
    );
    assert_eq!(world.post("/train", &request()).await.outcome(), (409, "job_conflict"));
    assert_eq!(world.bucket.body(OWNER), Some(claim));

    // A request that is refused gives its claim up.
    let world = World::new().fault(Method::POST, Fault::Refuses(422, "Invalid", "no"));
    assert_eq!(world.post("/train", &request()).await.outcome(), (422, "rejected_by_cluster"));
    let mut renamed = request();
    renamed["job_name"] = json!("another");
    assert_eq!(world.post("/train", &renamed).await.outcome(), (201, ""));
}

#[tokio::test]
async fn a_restart_that_would_be_refused_deletes_nothing() {
    let claim = json!({"submission": THEIRS, "namespace": "training", "job": "other"}).to_string();
    let other = json!({
        "apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "spec": {},
        "metadata": {"name": "other", "annotations": {"trainer.deepfinery/checkpoint-prefix": "s3://bucket/runs/r/framework=hf"}},
    });
    let mut resumed = request();
    resumed["resume_from_checkpoint"] = json!("step-5");
    for (label, body, code) in
        [("a checkpoint is missing", resumed, "resume_target_not_found"), ("another trains", request(), "run_active")]
    {
        let world = World::new();
        world.post("/train", &request()).await;
        world.finish("hf-r");
        if code == "run_active" {
            world.bucket.write(OWNER, &claim);
            world.server(|server| server.jobs.insert("other".to_owned(), other.clone()));
        }
        assert_eq!(world.post("/train?restart=true", &body).await.outcome(), (409, code), "{label}");
        assert!(world.names().contains(&"hf-r".to_owned()), "{label}");
    }
}

#[tokio::test]
async fn a_bucket_that_fails_stops_a_job_before_it_is_made() {
    let world = World::with_store(testing::denied(), Bucket::default());
    assert_eq!(world.post("/train", &request()).await.outcome(), (503, "storage_unavailable"));
    assert_eq!(world.names(), [""; 0]);

    // Nor is one deleted to be replaced.
    let other = World::new();
    other.post("/train", &request()).await;
    other.finish("hf-r");
    let ended = other.server(|server| server.jobs["hf-r"].clone());
    world.server(|server| server.jobs.insert("hf-r".to_owned(), ended));
    assert_eq!(world.post("/train?restart=true", &request()).await.outcome(), (503, "storage_unavailable"));
    assert_eq!(world.names(), ["hf-r"]);
    // One that is there is answered all the same.
    assert_eq!(world.post("/train", &request()).await.outcome(), (200, ""));
}

#[tokio::test]
async fn a_restart_replaces_what_it_saw_and_nothing_else() {
    let world = World::new();
    world.post("/train", &request()).await;
    assert_eq!(world.post("/train?restart=true", &request()).await.outcome(), (409, "job_running"));
    world.finish("hf-r");
    assert_eq!(world.post("/train?dry_run=true&restart=true", &request()).await.outcome(), (200, ""));
    let before = world.owner_and_job("hf-r");
    assert_eq!(world.post("/train?restart=true", &request()).await.outcome(), (201, ""));
    let after = world.owner_and_job("hf-r");
    assert_ne!(before.1, after.1);
    assert_eq!(after.0, after.1);

    // What it has written is no reason to refuse the job that takes its place, once the old one is gone.
    world.finish("hf-r");
    world.bucket.write(MARKER, "{}");
    let before = world.owner_and_job("hf-r");
    assert_eq!(world.post("/train?restart=true", &request()).await.outcome(), (201, ""));
    assert_ne!(world.owner_and_job("hf-r").1, before.1);

    // Somebody else restarts it between our look and our deletion.
    world.finish("hf-r");
    let world = world.fault(
        Method::DELETE,
        Fault::Meanwhile(Box::new(|jobs| {
            let job = jobs.get_mut("hf-r").expect("the job");
            job["metadata"]["uid"] = json!("another");
            job["status"] = json!({});
        })),
    );
    assert_eq!(world.post("/train?restart=true", &request()).await.outcome(), (409, "job_running"));
    assert_eq!(world.server(|server| server.jobs["hf-r"]["metadata"]["uid"].clone()), "another");

    // The deletion's answer is lost.
    world.finish("hf-r");
    let world = world.fault(Method::DELETE, Fault::CutAfter);
    assert_eq!(world.post("/train?restart=true", &request()).await.outcome(), (201, ""));
}

#[tokio::test]
async fn a_trained_run_is_started_anew_only_by_who_names_it() {
    let world = World::new();
    let made = world.post("/train", &request()).await;
    let submission = made.body["submission"].as_str().expect("a submission").to_owned();
    world.bucket.write(MARKER, "{}");
    world.server(|server| server.jobs.clear());
    let unknown = "/train?restart=01980000-0000-7000-8000-000000000009";
    for path in ["/train", "/train?dry_run=true", unknown] {
        assert_eq!(world.post(path, &request()).await.outcome(), (409, "run_exists"), "{path}");
    }
    let named = format!("/train?restart={submission}");
    assert_eq!(world.post(&format!("{named}&dry_run=true"), &request()).await.outcome(), (200, ""));
    assert_eq!(world.post(&named, &request()).await.outcome(), (201, ""));
    assert_eq!(world.post(&named, &request()).await.outcome(), (200, ""), "repeated");
}

#[tokio::test]
async fn what_the_cluster_refuses_has_its_own_code() {
    let webhook = "admission webhook \"validator.pytorchjob.training-operator.kubeflow.org\" denied the request: no";
    let policy = "pytorchjobs.kubeflow.org \"hf-r\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: no";
    for (code, reason, message, status, problem) in [
        (422, "Invalid", "spec: Invalid value", 422, "rejected_by_cluster"),
        (403, "Forbidden", webhook, 422, "rejected_by_cluster"),
        (403, "Forbidden", policy, 422, "rejected_by_cluster"),
        (403, "Forbidden", "pytorchjobs is forbidden: exceeded quota: q", 403, "quota_exceeded"),
        (
            403,
            "Forbidden",
            "unable to create new content in namespace x because it is being terminated",
            409,
            "namespace_terminating",
        ),
        (403, "Forbidden", "pytorchjobs is forbidden: User cannot create", 502, "cluster_denied"),
        (404, "NotFound", "the server could not find the requested resource", 503, "cluster_not_ready"),
        (500, "InternalError", "failed calling webhook \"x\": connection refused", 503, "cluster_not_ready"),
        (500, "InternalError", "etcdserver: request is too large", 413, "body_too_large"),
        (500, "InternalError", "something", 502, "cluster_error"),
        (429, "TooManyRequests", "please try again later", 429, "throttled"),
        (503, "ServiceUnavailable", "apiserver is shutting down", 503, "cluster_unavailable"),
        (504, "Timeout", "request did not complete", 504, "cluster_timeout"),
    ] {
        let world = World::new().fault(Method::POST, Fault::Refuses(code, reason, message));
        let answer = world.post("/train", &request()).await;
        assert_eq!(answer.outcome(), (status, problem), "{code} {message}");
        assert_eq!(world.names(), [""; 0], "{message}");
        if code == 429 {
            assert_eq!(answer.header("retry-after"), Some("7"));
        }
    }
}

#[tokio::test]
async fn a_policys_denial_is_told_in_its_words_whatever_was_asked() {
    let words = "admission webhook \"validate.policy.example.com\" denied the request: label cost-center is required";
    for (code, reason) in
        [(400, ""), (401, "Unauthorized"), (403, "Forbidden"), (404, "NotFound"), (409, "AlreadyExists")]
            .into_iter()
            .chain([(409, "Conflict"), (500, "InternalError"), (503, "ServiceUnavailable"), (504, "Timeout")])
    {
        for (method, path) in
            [(Method::POST, "/train"), (Method::PATCH, "/train/hf-r/suspend"), (Method::DELETE, "/train/hf-r")]
        {
            let world = World::new();
            if method != Method::POST {
                world.post("/train", &request()).await;
            }
            let jobs = world.names();
            let world = world.fault(method.clone(), Fault::Refuses(code, reason, words));
            let verb = if method == Method::DELETE { "DELETE" } else { "POST" };
            let answer = world.send(verb, path, &request()).await;
            assert_eq!(answer.outcome(), (422, "rejected_by_cluster"), "{code} {path}");
            assert!(answer.body["detail"].as_str().is_some_and(|detail| detail.ends_with(words)), "{answer:?}");
            assert_eq!(world.names(), jobs, "{code} {path}");
        }
    }
}

#[tokio::test]
async fn a_manifest_that_the_platforms_defaults_make_too_large_is_refused() {
    // It stands in the manifest twice, once a replica.
    for (bytes, outcome) in [(400 * 1024, (201, "")), (600 * 1024, (413, "body_too_large"))] {
        let world = World::new();
        world.server(|server| server.default_variable = Some("x".repeat(bytes)));
        let mut body = request();
        body["num_nodes"] = json!(2);
        assert_eq!(world.post("/train", &body).await.outcome(), outcome, "{bytes}");
    }
}

#[tokio::test]
async fn an_answer_says_of_a_running_job_only_what_was_looked_at() {
    let world = World::new();
    world.post("/train", &request()).await;
    world.server(|server| {
        let job = server.jobs.get_mut("hf-r").expect("the job");
        job["status"] = json!({"conditions": [{"type": "Running", "status": "True"}]});
    });
    for path in ["/train", "/train/hf-r/suspend", "/train/hf-r/resume"] {
        let answer = world.post(path, &request()).await;
        assert!(answer.status < 300, "{answer:?}");
        assert_eq!(answer.body["detail"], "running", "{path}");
    }
}

#[tokio::test]
async fn a_job_that_changes_while_it_is_suspended_is_read_again() {
    let world = World::new();
    world.post("/train", &request()).await;
    let world = world.fault(
        Method::PATCH,
        Fault::Meanwhile(Box::new(|jobs| {
            jobs.get_mut("hf-r").expect("the job")["metadata"]["resourceVersion"] = json!("2");
        })),
    );
    assert_eq!(world.post("/train/hf-r/suspend", &json!({})).await.outcome(), (202, ""));
    assert_eq!(world.server(|server| server.jobs["hf-r"]["spec"]["runPolicy"]["suspend"].clone()), true);
    assert_eq!(world.post("/train/hf-r/suspend", &json!({})).await.outcome(), (202, ""), "twice is the same as once");
    assert_eq!(world.post("/train/hf-r/resume", &json!({})).await.outcome(), (202, ""));
    assert_eq!(world.send("DELETE", "/train/hf-r", &json!({})).await.outcome(), (202, ""));
    assert_eq!(world.send("DELETE", "/train/hf-r", &json!({})).await.outcome(), (404, "job_not_found"));
}

#[tokio::test]
async fn a_route_of_the_other_function_is_refused() {
    let world = World::new();
    for (method, path, outcome) in [
        ("GET", "/train/hf-r", (404, "route_not_found")),
        ("PUT", "/train", (405, "method_not_allowed")),
        ("POST", "/train/", (404, "route_not_found")),
    ] {
        assert_eq!(world.send(method, path, &json!({})).await.outcome(), outcome, "{method} {path}");
    }
}
