//! What the end-to-end tests share: a caller of the running twin, an operator with kubectl's rights, and patience.
//!
//! ```text
//! test ─> World ─┬─ twin ────────────> HTTP API, bucket          generate, malformed: bodies by chance
//!                ├─ kubectl, cluster ─> API server               webhook: one that denies
//!                ├─ wait_for_status ──> until it is so           logs: what the functions logged
//!                └─ runtime ──────────> a function's bootstrap, behind a relay that measures
//! ```
//! The objects:
//!
//! - A [`World`] is a caller of the twin who is also its operator.
//! - A [`Function`](runtime::Function) is one that runs outside the twin. It gets an [`Event`](runtime::Event) as API Gateway
//!   makes it, and gives a [`Reply`](runtime::Reply). A [`Relay`](relay::Relay) passes its connections on.
//! - [`Chance`](generate::Chance) draws requests of what a [`Deployment`](generate::Deployment) lets them name. A
//!   [`Malformed`](malformed::Malformed) is a body that is no good request.
//! - A [`Webhook`](webhook::Webhook) is asked by the API server about jobs of one label.
//!
//! Tests run beside each other against one twin and are told apart by run id. They fail when no twin is up.

pub mod cluster;
pub mod generate;
pub mod logs;
pub mod malformed;
pub mod relay;
pub mod runtime;
pub mod webhook;

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Output,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::{process::Command, time::sleep};
use twin::client::{Answer, Twin};

/// How often something is looked at that is waited for.
const POLL: Duration = Duration::from_millis(300);

/// A caller of the twin who is also its operator.
pub struct World {
    /// The caller's side.
    pub twin: Twin,
    /// The project's folder.
    pub root: PathBuf,
}

// === impl World ===

impl World {
    /// Meet the running twin.
    ///
    /// # Errors
    /// None is up.
    pub fn meet() -> Result<Self> {
        // Every test of a process comes here; only the first one installs the provider.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize()?;
        Ok(Self { twin: Twin::connect(&root.join(".local/env"))?, root })
    }

    /// Where a part of the twin listens.
    ///
    /// # Errors
    /// There is no such part.
    pub fn address(&self, name: &str) -> Result<SocketAddr> {
        let ports: Value = serde_json::from_slice(&std::fs::read(self.root.join(".local/state/ports.json"))?)?;
        let port = ports[name].as_u64().with_context(|| format!("no port of {name}"))?;
        Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, u16::try_from(port)?)))
    }

    /// A run id that no other test has.
    #[must_use]
    pub fn run_id(test: &str) -> String {
        let id = uuid::Uuid::new_v4().simple().to_string();
        format!("{test}-{}", id.get(..8).unwrap_or_default())
    }

    /// A request for the stub image, which trains nothing and does what its arguments say.
    ///
    /// # Errors
    /// A setting of the twin is missing.
    pub fn stub_request(&self, run_id: &str, arguments: Value) -> Result<Value> {
        let mut request = self.twin.two_node_request(run_id, "s3://data/none.jsonl", 1, 1)?;
        request["image"] = json!("stub");
        request["extra_args"] = arguments;
        Ok(request)
    }

    /// POST /train, which must create the job.
    ///
    /// # Errors
    /// It does not.
    pub async fn submit(&self, request: &Value) -> Result<String> {
        Ok(self.twin.post("/train", request).await?.expect(201)?.name().to_owned())
    }

    /// Ask for a job until something holds.
    ///
    /// # Errors
    /// It does not hold in time; the message shows the last answer.
    pub async fn wait(&self, path: &str, within: Duration, holds: impl Fn(&Answer) -> bool) -> Result<Answer> {
        let started = Instant::now();
        loop {
            let answer = self.twin.get(path).await?.expect(200)?;
            if holds(&answer) {
                return Ok(answer);
            }
            ensure!(started.elapsed() < within, "not within {within:?}: GET {path}: {}", answer.body);
            sleep(POLL).await;
        }
    }

    /// Wait until a job has this status. A job that fails instead is not waited for.
    ///
    /// # Errors
    /// It does not get there in time.
    pub async fn wait_for_status(&self, name: &str, status: &str, within: Duration) -> Result<Answer> {
        let ended = |answer: &Answer| answer.text("/status") == status || answer.text("/status") == "failed";
        let answer = self.wait(&format!("/train/{name}"), within, ended).await?;
        if answer.text("/status") == status { Ok(answer) } else { bail!("the job failed: {}", answer.body) }
    }

    /// Run the twin's kubectl as the cluster's administrator.
    ///
    /// # Errors
    /// It cannot be started.
    pub async fn kubectl(&self, arguments: &[&str], input: Option<&Value>) -> Result<Output> {
        let mut command = Command::new(self.root.join(".local/bin/kubectl"));
        command.arg("--kubeconfig").arg(self.twin.setting("KUBECONFIG")?);
        command.arg("--namespace").arg(self.twin.setting("NAMESPACE")?).args(arguments);
        if let Some(input) = input {
            let file = std::env::temp_dir().join(format!("{}.json", uuid::Uuid::new_v4()));
            tokio::fs::write(&file, input.to_string()).await?;
            let output = command.arg("--filename").arg(&file).output().await;
            tokio::fs::remove_file(&file).await?;
            return output.context("cannot start kubectl");
        }
        command.output().await.context("cannot start kubectl")
    }

    /// A JSON object of the cluster.
    ///
    /// # Errors
    /// There is none.
    pub async fn resource(&self, kind: &str, name: &str) -> Result<Value> {
        let output = self.kubectl(&["get", kind, name, "--output", "json"], None).await?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// The names of a job's pods.
    ///
    /// # Errors
    /// They cannot be listed.
    pub async fn pods(&self, job: &str) -> Result<Vec<String>> {
        let selector = format!("--selector=training.kubeflow.org/job-name={job}");
        let output = self.kubectl(&["get", "pods", &selector, "--output", "name"], None).await?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?.lines().map(str::to_owned).collect())
    }

    /// Tell the twin something, as `twin <arguments>` does.
    ///
    /// # Errors
    /// It refuses.
    pub async fn tell(&self, arguments: &[&str]) -> Result<()> {
        self.told(arguments).await.map(drop)
    }

    /// What the twin says to something, as `twin <arguments>` prints it.
    ///
    /// # Errors
    /// It refuses.
    pub async fn told(&self, arguments: &[&str]) -> Result<String> {
        let output =
            Command::new(self.root.join("target/debug/twin")).args(arguments).current_dir(&self.root).output().await?;
        ensure!(output.status.success(), "twin {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }

    /// All keys below a run's prefix.
    ///
    /// # Errors
    /// S3 does not list them.
    pub async fn keys(&self, prefix: &str) -> Result<Vec<String>> {
        let bucket = self.twin.setting("RUNS_BUCKET")?;
        let mut pages = self.twin.s3.list_objects_v2().bucket(bucket).prefix(prefix).into_paginator().send();
        let mut keys = Vec::new();
        while let Some(page) = pages.next().await {
            keys.extend(page?.contents.into_iter().flatten().filter_map(|object| object.key));
        }
        Ok(keys)
    }
}
