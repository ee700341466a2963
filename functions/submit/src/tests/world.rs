//! The whole function with the wire faked: an API server that keeps jobs and can fail at a chosen call, a bucket in memory,
//! and a secret.

use std::{
    collections::{BTreeMap, VecDeque},
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
use training_core::{
    access::namespaces::Namespaces,
    job::manifest::Platform,
    request::{Rules, image::AllowedImages},
};
use training_http::token::TokenCheck;
use training_store::{Store, testing::Bucket};

use crate::service::Service;

pub(super) const TOKEN: &str = "0123456789abcdef0123456789abcdef0123456789a";
pub(super) const OWNER: &str = "runs/r/framework=hf/owner";
pub(super) const MARKER: &str = "runs/r/framework=hf/checkpoints/step-000010.json";

/// What goes wrong at one call.
pub(super) enum Fault {
    /// The connection breaks before the API server does anything.
    CutBefore,
    /// The connection breaks after it did what was asked.
    CutAfter,
    /// It refuses.
    Refuses(u16, &'static str, &'static str),
    /// Something happens elsewhere before it does what was asked, or meets the next fault of the method.
    Meanwhile(Box<dyn FnOnce(&mut Jobs) + Send>),
}

/// The jobs by name.
pub(super) type Jobs = BTreeMap<String, Value>;

/// The API server.
#[derive(Default)]
pub(super) struct ApiServer {
    pub(super) jobs: Jobs,
    /// A variable of every job in the platform's defaults.
    pub(super) default_variable: Option<String>,
    /// The first fault whose method is called happens, once; dry runs are spared.
    pub(super) faults: VecDeque<(Method, Fault)>,
    pub(super) created: usize,
}

/// The function and what is behind it.
pub(super) struct World {
    pub(super) service: Service,
    pub(super) cluster: Arc<Mutex<ApiServer>>,
    pub(super) bucket: Bucket,
}

/// An answer of the function.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: header::HeaderMap,
    pub(super) body: Value,
}

// === impl ApiServer ===

impl ApiServer {
    /// Answer a call; `None` when the connection breaks.
    pub(super) fn call(&mut self, method: &Method, path: &str, query: &str, body: &Value) -> Option<(u16, Value)> {
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
                match self.faults.front() {
                    Some((next, Fault::Refuses(..))) if next == method => self.call(method, path, query, body),
                    _ => Some(self.act(method, path, query, body)),
                }
            }
        }
    }

    pub(super) fn act(&mut self, method: &Method, path: &str, query: &str, body: &Value) -> (u16, Value) {
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
    pub(super) fn new() -> Self {
        let bucket = Bucket::default();
        Self::with_store(bucket.store(), bucket)
    }

    pub(super) fn with_store(store: Store, bucket: Bucket) -> Self {
        Self::with_secret(TOKEN.to_owned(), store, bucket)
    }

    /// Whose token sees these namespaces only.
    pub(super) fn limited_to(namespaces: &[&str]) -> Self {
        // SHA-256 of TOKEN.
        let sha256 = "263b9741bfc84598b8f5688c5481887c8493d40b0b557de2f2f9b0329139c5db";
        let entry = json!({"id": "limited", "sha256": sha256, "scopes": ["submit"], "namespaces": namespaces});
        let bucket = Bucket::default();
        Self::with_secret(json!({"tokens": [entry]}).to_string(), bucket.store(), bucket)
    }

    pub(super) fn with_secret(secret: String, store: Store, bucket: Bucket) -> Self {
        let secret = mock!(aws_sdk_secretsmanager::Client::get_secret_value)
            .then_output(move || GetSecretValueOutput::builder().secret_string(&secret).build());
        let secrets = mock_client!(aws_sdk_secretsmanager, RuleMode::MatchAny, &[&secret]);
        let cluster = Arc::new(Mutex::new(ApiServer::default()));
        let service = Service {
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
        Self { service, cluster, bucket }
    }

    pub(super) fn fault(self, method: Method, fault: Fault) -> Self {
        self.server(|server| server.faults.push_back((method, fault)));
        self
    }

    /// Give a job its end.
    pub(super) fn finish(&self, name: &str) {
        self.server(|server| {
            let job = server.jobs.get_mut(name).expect("the job");
            job["status"] = json!({"conditions": [{"type": "Succeeded", "status": "True"}]});
        });
    }

    pub(super) fn server<T>(&self, act: impl FnOnce(&mut ApiServer) -> T) -> T {
        act(&mut self.cluster.lock().expect("no poison"))
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.server(|server| server.jobs.keys().cloned().collect())
    }

    /// The submission in the run's `owner`, and that of a job.
    pub(super) fn owner_and_job(&self, name: &str) -> (String, String) {
        let owner: Value = serde_json::from_str(&self.bucket.body(OWNER).expect("an owner")).expect("JSON");
        let job =
            self.server(|server| server.jobs[name]["metadata"]["annotations"]["trainer.deepfinery/submission"].clone());
        (owner["submission"].as_str().expect("text").to_owned(), job.as_str().expect("text").to_owned())
    }

    pub(super) async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, body).await
    }

    pub(super) async fn send(&self, method: &str, path: &str, body: &Value) -> Answer {
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

    pub(super) async fn event(&self, event: &str) -> Answer {
        let request = training_http::request_of(serde_json::from_str(event).expect("an event"));
        let (parts, body) = self.service.handle(request).await.expect("an answer").into_parts();
        let Body::Text(text) = body else { panic!("not text: {body:?}") };
        let body = serde_json::from_str(&text).unwrap_or_default();
        Answer { status: parts.status.as_u16(), headers: parts.headers, body }
    }
}

// === impl Answer ===

impl Answer {
    /// The status, and the code of a problem.
    pub(super) fn outcome(&self) -> (u16, &str) {
        (self.status, self.body["code"].as_str().unwrap_or_default())
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

pub(super) fn client_of(server: Arc<Mutex<ApiServer>>) -> kube::Client {
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

pub(super) fn is_dry_run(query: &str, body: &Value) -> bool {
    query.contains("dryRun=All") || !body["dryRun"].is_null()
}

pub(super) fn refusal(code: u16, reason: &str, message: &str) -> (u16, Value) {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": code, "reason": reason,
        "message": message, "details": {"retryAfterSeconds": if code == 429 { 7 } else { 0 }},
    });
    (code, status)
}

pub(super) fn not_found(name: &str) -> (u16, Value) {
    refusal(404, "NotFound", &format!(r#"pytorchjobs.kubeflow.org "{name}" not found"#))
}

pub(super) fn request() -> Value {
    json!({
        "framework": "hf", "model_id": "tiny", "run_id": "r", "checkpoint_base_uri": "s3://bucket/runs",
        "dataset_uri": "s3://data/x.jsonl",
    })
}
