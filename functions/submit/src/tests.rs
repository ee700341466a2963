//! The whole function with the wire faked: an API server that keeps jobs and can fail at a chosen call, a bucket in memory,
//! and a secret.

use std::{
    collections::{BTreeMap, VecDeque},
    fs,
    path::Path,
    sync::{Arc, Mutex},
};

use aws_sdk_secretsmanager::operation::get_secret_value::GetSecretValueOutput;
use aws_smithy_mocks::{RuleMode, mock, mock_client};
use kube::client::Body as KubeBody;
use lambda_http::{
    Body,
    http::{self, Method, header},
};
use serde_json::{Value, json};
use training_cluster::Cluster;
use training_core::{image::AllowedImages, manifest::Platform, namespace::Namespaces, request::Rules};
use training_http::token::TokenCheck;
use training_store::{
    Store,
    testing::{self, Bucket},
};

use crate::handler::Handler;

const TOKEN: &str = "0123456789abcdef0123456789abcdef0123456789a";
const OWNER: &str = "runs/r/framework=hf/owner";
const MARKER: &str = "runs/r/framework=hf/checkpoints/step-000010.json";

/// What goes wrong at one call.
enum Fault {
    /// The connection breaks before the API server does anything.
    CutBefore,
    /// The connection breaks after it did what was asked.
    CutAfter,
    /// It refuses.
    Refuses(u16, &'static str, &'static str),
    /// Something happens elsewhere before it does what was asked.
    Meanwhile(Box<dyn FnOnce(&mut Jobs) + Send>),
}

/// The jobs by name.
type Jobs = BTreeMap<String, Value>;

/// The API server.
#[derive(Default)]
struct ApiServer {
    jobs: Jobs,
    /// A variable of every job in the platform's defaults.
    default_variable: Option<String>,
    /// The first fault whose method is called happens, once; dry runs are spared.
    faults: VecDeque<(Method, Fault)>,
    created: usize,
}

/// The function and what is behind it.
struct World {
    handler: Handler,
    cluster: Arc<Mutex<ApiServer>>,
    bucket: Bucket,
}

/// An answer of the function.
#[derive(Debug)]
struct Answer {
    status: u16,
    headers: header::HeaderMap,
    body: Value,
}

// === impl ApiServer ===

impl ApiServer {
    /// Answer a call; `None` when the connection breaks.
    fn call(&mut self, method: &Method, path: &str, query: &str, body: &Value) -> Option<(u16, Value)> {
        let is_real = !is_dry_run(query, body);
        let fault = self.faults.iter().position(|(at, _)| at == method && is_real);
        let fault = fault.and_then(|at| self.faults.remove(at));
        match fault.map(|(_, fault)| fault) {
            None => Some(self.act(method, path, query, body)),
            Some(Fault::CutBefore) => None,
            Some(Fault::CutAfter) => {
                self.act(method, path, query, body);
                None
            }
            Some(Fault::Refuses(code, reason, message)) => Some(refusal(code, reason, message)),
            Some(Fault::Meanwhile(act)) => {
                act(&mut self.jobs);
                Some(self.act(method, path, query, body))
            }
        }
    }

    fn act(&mut self, method: &Method, path: &str, query: &str, body: &Value) -> (u16, Value) {
        let name = path.rsplit('/').next().unwrap_or_default();
        let is_dry_run = is_dry_run(query, body);
        if path.contains("/podtemplates/") {
            if let Some(value) = &self.default_variable {
                let container = json!({"name": "pytorch", "env": [{"name": "DEFAULT", "value": value}]});
                return (200, json!({"metadata": {}, "template": {"spec": {"containers": [container]}}}));
            }
            return refusal(404, "NotFound", r#"podtemplates "training-defaults" not found"#);
        }
        match *method {
            Method::POST => {
                let name = body["metadata"]["name"].as_str().expect("a name").to_owned();
                if self.jobs.contains_key(&name) {
                    return refusal(409, "AlreadyExists", "already exists");
                }
                let mut job = body.clone();
                self.created += 1;
                job["metadata"]["uid"] = json!(format!("uid-{}", self.created));
                job["metadata"]["resourceVersion"] = json!("1");
                if !is_dry_run {
                    self.jobs.insert(name, job.clone());
                }
                (201, job)
            }
            Method::GET => self.jobs.get(name).map_or_else(|| not_found(name), |job| (200, job.clone())),
            Method::DELETE => {
                let Some(job) = self.jobs.get(name) else { return not_found(name) };
                let wanted = &body["preconditions"];
                let differs = |field: &str| !wanted[field].is_null() && wanted[field] != job["metadata"][field];
                if differs("uid") || differs("resourceVersion") {
                    return refusal(409, "Conflict", "Precondition failed");
                }
                let job = job.clone();
                if !is_dry_run {
                    self.jobs.remove(name);
                }
                (200, job)
            }
            Method::PATCH => {
                let Some(job) = self.jobs.get_mut(name) else { return not_found(name) };
                if body["metadata"]["resourceVersion"] != job["metadata"]["resourceVersion"] {
                    return refusal(409, "Conflict", "the object has been modified");
                }
                job["spec"]["runPolicy"]["suspend"] = body["spec"]["runPolicy"]["suspend"].clone();
                (200, job.clone())
            }
            _ => refusal(405, "MethodNotAllowed", "no"),
        }
    }
}

// === impl World ===

impl World {
    fn new() -> Self {
        let bucket = Bucket::default();
        Self::with_store(bucket.store(), bucket)
    }

    fn with_store(store: Store, bucket: Bucket) -> Self {
        Self::with_secret(TOKEN.to_owned(), store, bucket)
    }

    /// Whose token sees these namespaces only.
    fn limited_to(namespaces: &[&str]) -> Self {
        // SHA-256 of TOKEN.
        let sha256 = "263b9741bfc84598b8f5688c5481887c8493d40b0b557de2f2f9b0329139c5db";
        let entry = json!({"id": "limited", "sha256": sha256, "scopes": ["submit"], "namespaces": namespaces});
        let bucket = Bucket::default();
        Self::with_secret(json!({"tokens": [entry]}).to_string(), bucket.store(), bucket)
    }

    fn with_secret(secret: String, store: Store, bucket: Bucket) -> Self {
        let secret = mock!(aws_sdk_secretsmanager::Client::get_secret_value)
            .then_output(move || GetSecretValueOutput::builder().secret_string(&secret).build());
        let secrets = mock_client!(aws_sdk_secretsmanager, RuleMode::MatchAny, &[&secret]);
        let cluster = Arc::new(Mutex::new(ApiServer::default()));
        let handler = Handler {
            token: TokenCheck::new(secrets, "arn".to_owned()),
            cluster: Cluster::from_client(client_of(Arc::clone(&cluster))),
            store,
            rules: Rules {
                runs_base_uris: vec!["s3://bucket/runs".parse().expect("a base")],
                default_image: "trainer:local".parse().expect("an image"),
                allowed_images: AllowedImages::from_list("stub"),
                allowed_secrets: Vec::new(),
                namespaces: Namespaces::new(
                    "training".parse().expect("a namespace"),
                    vec!["training-two".parse().expect("a namespace")],
                ),
            },
            platform: Platform {
                train_script: "/opt/trainer/train.py".to_owned(),
                service_account: "trainer".to_owned(),
                job_ttl_seconds: 604_800,
                max_restarts: 3,
                grace_seconds: 300,
            },
        };
        Self { handler, cluster, bucket }
    }

    fn fault(self, method: Method, fault: Fault) -> Self {
        self.server(|server| server.faults.push_back((method, fault)));
        self
    }

    /// Give a job its end.
    fn finish(&self, name: &str) {
        self.server(|server| {
            let job = server.jobs.get_mut(name).expect("the job");
            job["status"] = json!({"conditions": [{"type": "Succeeded", "status": "True"}]});
        });
    }

    fn server<T>(&self, act: impl FnOnce(&mut ApiServer) -> T) -> T {
        act(&mut self.cluster.lock().expect("no poison"))
    }

    fn names(&self) -> Vec<String> {
        self.server(|server| server.jobs.keys().cloned().collect())
    }

    /// The submission in the run's `owner`, and that of a job.
    fn owner_and_job(&self, name: &str) -> (String, String) {
        let owner: Value = serde_json::from_str(&self.bucket.body(OWNER).expect("an owner")).expect("JSON");
        let job =
            self.server(|server| server.jobs[name]["metadata"]["annotations"]["trainer.deepfinery/submission"].clone());
        (owner["submission"].as_str().expect("text").to_owned(), job.as_str().expect("text").to_owned())
    }

    async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, body).await
    }

    async fn send(&self, method: &str, path: &str, body: &Value) -> Answer {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let event = json!({
            "version": "2.0", "routeKey": "$default", "rawPath": path, "rawQueryString": query,
            "headers": {"host": "api", "x-trainer-token": TOKEN}, "body": body.to_string(), "isBase64Encoded": false,
            "requestContext": {
                "accountId": "1", "apiId": "a", "stage": "$default", "requestId": "r", "routeKey": "$default", "timeEpoch": 0,
                "http": {"method": method, "path": path, "protocol": "HTTP/1.1", "sourceIp": "127.0.0.1", "userAgent": ""},
            },
        });
        self.event(&event.to_string()).await
    }

    async fn event(&self, event: &str) -> Answer {
        let request = training_http::request_of(serde_json::from_str(event).expect("an event"));
        let (parts, body) = self.handler.handle(request).await.expect("an answer").into_parts();
        let Body::Text(text) = body else { panic!("not text: {body:?}") };
        let body = serde_json::from_str(&text).unwrap_or_default();
        Answer { status: parts.status.as_u16(), headers: parts.headers, body }
    }
}

// === impl Answer ===

impl Answer {
    /// The status, and the code of a problem.
    fn outcome(&self) -> (u16, &str) {
        (self.status, self.body["code"].as_str().unwrap_or_default())
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

fn client_of(server: Arc<Mutex<ApiServer>>) -> kube::Client {
    let (service, mut handle) = tower_test::mock::pair::<http::Request<KubeBody>, http::Response<KubeBody>>();
    tokio::spawn(async move {
        while let Some((request, respond)) = handle.next_request().await {
            let (parts, body) = request.into_parts();
            let body = body.collect_bytes().await.expect("a body");
            let body: Value = serde_json::from_slice(&body).unwrap_or_default();
            let query = parts.uri.query().unwrap_or_default();
            let answer = server.lock().expect("no poison").call(&parts.method, parts.uri.path(), query, &body);
            match answer {
                Some((status, body)) => {
                    let body = KubeBody::from(body.to_string().into_bytes());
                    respond.send_response(http::Response::builder().status(status).body(body).expect("a response"));
                }
                None => respond.send_error("connection reset"),
            }
        }
    });
    kube::Client::new(service, "training")
}

fn is_dry_run(query: &str, body: &Value) -> bool {
    query.contains("dryRun=All") || !body["dryRun"].is_null()
}

fn refusal(code: u16, reason: &str, message: &str) -> (u16, Value) {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": code, "reason": reason,
        "message": message, "details": {"retryAfterSeconds": if code == 429 { 7 } else { 0 }},
    });
    (code, status)
}

fn not_found(name: &str) -> (u16, Value) {
    refusal(404, "NotFound", &format!(r#"pytorchjobs.kubeflow.org "{name}" not found"#))
}

fn request() -> Value {
    json!({
        "framework": "hf", "model_id": "tiny", "run_id": "r", "checkpoint_base_uri": "s3://bucket/runs",
        "dataset_uri": "s3://data/x.jsonl",
    })
}

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

#[tokio::test]
async fn a_later_claim_of_an_equal_request_does_not_disown_the_job() {
    // It claims the run between our claim and our creation, and will find the name taken.
    let world = World::new();
    let bucket = world.bucket.clone();
    let claim = json!({"submission": "late", "namespace": "training", "job": "hf-r"}).to_string();
    let world = world.fault(Method::POST, Fault::Meanwhile(Box::new(move |_| bucket.write(OWNER, &claim))));
    assert_eq!(world.post("/train", &request()).await.outcome(), (201, ""));
    let (owner, job) = world.owner_and_job("hf-r");
    assert_eq!(owner, job);

    // It claims after we had a look: its own look, or the next request's, puts it right.
    world.bucket.write(OWNER, &json!({"submission": "late", "namespace": "training", "job": "hf-r"}).to_string());
    assert_eq!(world.post("/train", &request()).await.outcome(), (200, ""));
    let (owner, job) = world.owner_and_job("hf-r");
    assert_eq!(owner, job);
}

#[tokio::test]
async fn another_job_that_got_the_run_first_keeps_it() {
    let other = json!({
        "apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "spec": {},
        "metadata": {"name": "other", "uid": "o", "annotations": {
            "trainer.deepfinery/submission": "theirs", "trainer.deepfinery/checkpoint-prefix": "s3://bucket/runs/r/framework=hf",
        }},
    });
    let claim = json!({"submission": "theirs", "namespace": "training", "job": "other"}).to_string();

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
    for strange in ["{", r#"{"submission": "x", "namespace": "retired", "job": "other"}"#] {
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
    let submission = theirs["metadata"]["annotations"]["trainer.deepfinery/submission"].clone();
    let world = world.fault(
        Method::POST,
        Fault::Meanwhile(Box::new(move |jobs| {
            jobs.insert("hf-r".to_owned(), theirs);
        })),
    );
    assert_eq!(world.post("/train", &request()).await.outcome(), (409, "job_conflict"));
    let (owner, job) = world.owner_and_job("hf-r");
    assert_eq!((&owner, job.as_str()), (&job, submission.as_str().expect("text")));

    // A request that is refused gives its claim up.
    let world = World::new().fault(Method::POST, Fault::Refuses(422, "Invalid", "no"));
    assert_eq!(world.post("/train", &request()).await.outcome(), (422, "rejected_by_cluster"));
    let mut renamed = request();
    renamed["job_name"] = json!("another");
    assert_eq!(world.post("/train", &renamed).await.outcome(), (201, ""));
}

#[tokio::test]
async fn a_restart_that_would_be_refused_deletes_nothing() {
    let claim = json!({"submission": "theirs", "namespace": "training", "job": "other"}).to_string();
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
