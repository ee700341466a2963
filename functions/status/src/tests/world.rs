//! The whole function with the wire faked: an API server that gives the answers written down here, a bucket in memory, and a
//! secret.

use std::sync::{Arc, Mutex};

use aws_sdk_secretsmanager::operation::get_secret_value::GetSecretValueOutput;
use aws_smithy_mocks::{RuleMode, mock, mock_client};
use kube::client::Body as KubeBody;
use lambda_http::{
    Body, Request,
    http::{Response, header},
    request::LambdaRequest,
};
use serde_json::{Value, json};
use training_cluster::Cluster;
use training_core::access::namespaces::Namespaces;
use training_http::token::TokenCheck;
use training_store::{Store, testing};

use crate::handler::Handler;

pub(super) const TOKEN: &str = "0123456789abcdef0123456789abcdef0123456789a";
pub(super) const SUBMISSION: &str = "01980000-0000-7000-8000-000000000001";
pub(super) const RUN: &str = "runs/r/framework=hf";
pub(super) const JOBS: &str = "/apis/kubeflow.org/v1/namespaces/training/pytorchjobs";
pub(super) const PODS: &str = "/api/v1/namespaces/training/pods";
pub(super) const EVENTS: &str = "/api/v1/namespaces/training/events";

/// What the API server answers: the first row whose text stands in the request's path and query. Anything else is an error.
pub(super) type Script = Vec<(String, u16, String)>;

/// The function, and the requests that it sent to the API server.
pub(super) struct World {
    pub(super) handler: Handler,
    pub(super) sent: Arc<Mutex<Vec<String>>>,
}

/// An answer of the function.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: header::HeaderMap,
    pub(super) text: String,
    pub(super) body: Value,
}

// === impl World ===

impl World {
    pub(super) fn new(script: Script, store: Store) -> Self {
        Self::with_secret(TOKEN.to_owned(), script, store)
    }

    /// Whose token sees these namespaces only.
    pub(super) fn limited_to(namespaces: &[&str]) -> Self {
        // SHA-256 of TOKEN.
        let sha256 = "263b9741bfc84598b8f5688c5481887c8493d40b0b557de2f2f9b0329139c5db";
        let entry = json!({"id": "limited", "sha256": sha256, "scopes": ["read"], "namespaces": namespaces});
        Self::with_secret(json!({"tokens": [entry]}).to_string(), vec![], testing::denied())
    }

    fn with_secret(secret: String, script: Script, store: Store) -> Self {
        let secret = mock!(aws_sdk_secretsmanager::Client::get_secret_value)
            .then_output(move || GetSecretValueOutput::builder().secret_string(&secret).build());
        let secrets = mock_client!(aws_sdk_secretsmanager, RuleMode::MatchAny, &[&secret]);
        let sent = Arc::new(Mutex::new(Vec::new()));
        let handler = Handler {
            token: TokenCheck::new(secrets, "arn".to_owned()),
            cluster: Cluster::from_client(api_server(script, Arc::clone(&sent))),
            namespaces: Namespaces::new(
                "training".parse().expect("a namespace"),
                vec!["two".parse().expect("a namespace")],
            ),
            store,
            runs_base_uris: vec!["s3://bucket/runs".parse().expect("a base")],
        };
        Self { handler, sent }
    }

    pub(super) fn with_cluster(script: Script) -> Self {
        Self::new(script, testing::holding::<String>([]))
    }

    pub(super) async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, Some(TOKEN)).await
    }

    pub(super) async fn send(&self, method: &str, path: &str, token: Option<&str>) -> Answer {
        self.answer(request(method, path, token)).await
    }

    pub(super) async fn answer(&self, request: Request) -> Answer {
        let response = self.handler.handle(request).await.expect("an answer");
        let (parts, body) = response.into_parts();
        let text = match body {
            Body::Text(text) => text,
            Body::Empty => String::new(),
            other => panic!("not text: {other:?}"),
        };
        let body = serde_json::from_str(&text).unwrap_or_default();
        Answer { status: parts.status.as_u16(), headers: parts.headers, text, body }
    }

    pub(super) fn sent(&self) -> Vec<String> {
        self.sent.lock().expect("no poison").clone()
    }
}

// === impl Answer ===

impl Answer {
    pub(super) fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or_default()
    }

    pub(super) fn detail(&self) -> &str {
        self.body["detail"].as_str().unwrap_or_default()
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

pub(super) fn api_server(script: Script, sent: Arc<Mutex<Vec<String>>>) -> kube::Client {
    let (service, mut handle) = tower_test::mock::pair::<lambda_http::http::Request<KubeBody>, Response<KubeBody>>();
    tokio::spawn(async move {
        while let Some((request, respond)) = handle.next_request().await {
            let asked = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
            let found = script.iter().find(|(part, _, _)| asked.contains(part.as_str()));
            let (status, body) = found.map_or_else(
                || (500, refusal(500, &format!("nobody expected {asked}"))),
                |(_, status, body)| (*status, body.clone()),
            );
            sent.lock().expect("no poison").push(asked);
            let response = Response::builder().status(status).body(KubeBody::from(body.into_bytes()));
            respond.send_response(response.expect("a response"));
        }
    });
    kube::Client::new(service, "training")
}

pub(super) fn request(method: &str, path: &str, token: Option<&str>) -> Request {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let mut headers = json!({"host": "api"});
    if let Some(token) = token {
        headers["x-trainer-token"] = json!(token);
    }
    let event = json!({
        "version": "2.0", "routeKey": "$default", "rawPath": path, "rawQueryString": query, "headers": headers,
        "isBase64Encoded": false,
        "requestContext": {
            "accountId": "1", "apiId": "a", "stage": "$default", "requestId": "r", "routeKey": "$default", "timeEpoch": 0,
            "http": {"method": method, "path": path, "protocol": "HTTP/1.1", "sourceIp": "127.0.0.1", "userAgent": ""},
        },
    });
    serde_json::from_str::<LambdaRequest>(&event.to_string()).expect("an event").into()
}

pub(super) fn refusal(code: u16, message: &str) -> String {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": message, "reason": "", "metadata": {}})
        .to_string()
}

#[expect(clippy::needless_pass_by_value, reason = "its many calls read better")]
pub(super) fn row(asked: impl Into<String>, status: u16, body: impl ToString) -> (String, u16, String) {
    (asked.into(), status, body.to_string())
}

pub(super) fn list(items: &[Value], next: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "List", "metadata": {"continue": next}, "items": items})
}

/// A running job with two nodes of two ranks.
pub(super) fn job(name: &str) -> Value {
    json!({
        "apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob",
        "metadata": {
            "name": name, "namespace": "training", "uid": "u1", "creationTimestamp": "2026-11-24T03:00:00Z",
            "labels": {"trainer.deepfinery/framework": "hf", "trainer.deepfinery/run-id": "r"},
            "annotations": {
                "trainer.deepfinery/submission": SUBMISSION,
                "trainer.deepfinery/checkpoint-prefix": format!("s3://bucket/{RUN}"),
            },
        },
        "spec": {"nprocPerNode": "2", "pytorchReplicaSpecs": {
            "Master": {"replicas": 1, "template": {"spec": {"containers": []}}},
            "Worker": {"replicas": 1, "template": {"spec": {"containers": []}}},
        }},
        "status": {"conditions": [{"type": "Running", "status": "True", "reason": "PyTorchJobRunning"}]},
    })
}

pub(super) fn job_row(job: &Value) -> (String, u16, String) {
    row(format!("{JOBS}/{}", job["metadata"]["name"].as_str().expect("a name")), 200, job)
}

pub(super) fn pod(name: &str, owner: &str, restarts: u32, state: &Value) -> Value {
    let last = if restarts > 0 { json!({"terminated": {"exitCode": 1}}) } else { json!({}) };
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "ownerReferences": [
            {"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "name": "j", "uid": owner},
        ]},
        "status": {"containerStatuses": [{"name": "pytorch", "image": "", "imageID": "", "ready": true,
            "restartCount": restarts, "state": state, "lastState": last}]},
    })
}

pub(super) fn running(name: &str, restarts: u32) -> Value {
    pod(name, "u1", restarts, &json!({"running": {}}))
}

/// The object that makes a job the run's owner.
pub(super) fn owner(namespace: &str, job: &str, submission: &str) -> (String, String) {
    let owner = json!({"submission": submission, "namespace": namespace, "job": job});
    (format!("{RUN}/owner"), owner.to_string())
}

/// The record of a job.
pub(super) fn record(namespace: &str, job: &str, submission: &str, uid: &str) -> (String, String) {
    let record = json!({"submission": submission, "namespace": namespace, "job": job, "uid": uid,
        "checkpoint_prefix": format!("s3://bucket/{RUN}"), "created_at": null});
    (format!("runs/_jobs/{namespace}/{job}/{submission}"), record.to_string())
}

/// The objects of a complete checkpoint, with its entry of the index.
pub(super) fn checkpoint(step: u64, submission: &str, loss: f64) -> [(String, String); 3] {
    let path = format!("checkpoint-{step}/a");
    let marker = json!({"layout": 1, "framework": "hf", "step": step, "saved_at": 1.5, "submission": submission,
        "files": [{"path": path, "size": 1}], "metrics": {"loss": loss}, "metadata": {}});
    let entry = json!({"index": 1, "step": step, "state": "complete", "submission": submission, "saved_at": 1.5,
        "size_bytes": 1, "file_count": 1, "metrics": {"loss": loss}, "parent": null, "marker_key": "k", "marker_etag": "e"});
    [
        (format!("{RUN}/checkpoints/step-{step:06}.json"), marker.to_string()),
        (format!("{RUN}/checkpoints/{path}"), "x".to_owned()),
        (format!("{RUN}/index/v1/{:012}", 999_999_999_999 - step), entry.to_string()),
    ]
}
