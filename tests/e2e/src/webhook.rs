//! An admission webhook in the test's own process, which denies what it is told to, with the status that it is told.

use std::{
    net::{Ipv4Addr, TcpListener},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result, ensure};
use axum::{Json, Router, extract::State, routing::post};
use axum_server::tls_rustls::RustlsConfig;
use base64::{Engine, prelude::BASE64_STANDARD};
use rustls::{
    ServerConfig,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::World;

/// The status of a denial; without one everything is allowed.
type Denial = Arc<Mutex<Option<Value>>>;

/// Asked about jobs of one label. The server ends with this value; its registration ends with [`Webhook::remove`].
pub struct Webhook {
    /// As denials name it.
    pub name: String,
    configuration: Value,
    denial: Denial,
    task: JoinHandle<()>,
}

// === impl Webhook ===

impl Webhook {
    /// Serve on loopback, for the training jobs that have this label.
    ///
    /// # Errors
    /// No port is free, or no certificate can be made.
    pub fn start(name: &str, label: (&str, &str)) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let url = format!("https://{}/", listener.local_addr()?);
        let certificate = rcgen::generate_simple_self_signed([Ipv4Addr::LOCALHOST.to_string()])?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(certificate.signing_key.serialize_der()));
        let tls = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.cert.der().clone()], key)?;
        let denial = Denial::default();
        let routes = Router::new().route("/", post(review)).with_state(Arc::clone(&denial));
        let server = axum_server::from_tcp_rustls(listener, RustlsConfig::from_config(Arc::new(tls)))?;
        let task = tokio::spawn(async move {
            let _ = server.serve(routes.into_make_service()).await;
        });
        let configuration = json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
            "metadata": {"name": name},
            "webhooks": [{
                "name": name,
                "clientConfig": {"url": url, "caBundle": BASE64_STANDARD.encode(certificate.cert.pem())},
                "rules": [{
                    "apiGroups": ["kubeflow.org"], "apiVersions": ["v1"], "resources": ["pytorchjobs"],
                    "operations": ["CREATE", "UPDATE", "DELETE"],
                }],
                "objectSelector": {"matchLabels": {label.0: label.1}},
                "failurePolicy": "Ignore", "sideEffects": "None", "admissionReviewVersions": ["v1"], "timeoutSeconds": 3,
            }],
        });
        Ok(Self { name: name.to_owned(), configuration, denial, task })
    }

    /// Let the API server ask it, from a moment later on.
    ///
    /// # Errors
    /// The API server does not take the registration.
    pub async fn register(&self, world: &World) -> Result<()> {
        let output = world.kubectl(&["apply"], Some(&self.configuration)).await?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// Let the API server forget it.
    ///
    /// # Errors
    /// The API server does not.
    pub async fn remove(&self, world: &World) -> Result<()> {
        let arguments = ["delete", "validatingwebhookconfiguration", &self.name, "--ignore-not-found"];
        let output = world.kubectl(&arguments, None).await.context("the webhook stays registered")?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// Deny everything with this status, or nothing.
    pub fn deny(&self, status: Option<Value>) {
        *self.denial.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }
}

impl Drop for Webhook {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn review(State(denial): State<Denial>, Json(review): Json<Value>) -> Json<Value> {
    let denial = denial.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let mut response = json!({"uid": review["request"]["uid"], "allowed": denial.is_none()});
    if let Some(status) = denial {
        response["status"] = status;
    }
    Json(json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}))
}
