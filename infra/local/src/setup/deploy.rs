//! `sam deploy` of the unchanged template into MiniStack, and what MiniStack's CloudFormation leaves out (`deploy.py`).

use std::{collections::BTreeMap, fs, path::PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use tokio::process::Command;

use crate::{
    names::{CLUSTER_NAME, FURTHER_NAMESPACES, NAMESPACE, REGION, TRAINER_IMAGE},
    paths::Paths,
    ports::Ports,
    private_file::write_private,
    setup::{
        command::{self, clean_environment},
        functions::{architecture, build_folder},
        stamp::{Stamp, short_hash},
        tools::Tools,
    },
};

/// An allowed namespace that does not exist, for tests.
const ABSENT_NAMESPACE: &str = "training-absent";
const STACK: &str = "training";
const ALLOWED_IMAGES: &str = "trainer:local,stub,unknown.invalid/";
/// The tests make the Secrets that they need.
const ALLOWED_SECRETS: &str = "hugging-face,second-secret";

/// What the twin has to know of the deployment. `deploy.py` prints it.
#[derive(Serialize, Deserialize)]
pub(crate) struct Deployment {
    api_id: String,
    /// The token that the API asks for.
    pub(crate) token: String,
}

// === impl Deployment ===

impl Deployment {
    /// Where `MiniStack` serves the HTTP API to callers that cannot resolve its host name.
    pub(crate) fn url(&self, ports: &Ports) -> String {
        format!("{}/_aws/execute-api/{}/$default", ports.ministack_url(), self.api_id)
    }
}

/// The stamp of a deployment of these functions.
pub(crate) fn stamp(paths: &Paths, build: &Stamp) -> Result<Stamp> {
    let parameters = parameters(paths);
    let settings: Vec<&str> = parameters.iter().map(String::as_str).chain([build.hash()]).collect();
    Stamp::new(paths.state_stamp("deploy"), &[script(paths)], &settings)
}

/// The present deployment, if its inputs have not changed.
pub(crate) fn present(paths: &Paths, stamp: &Stamp) -> Result<Option<Deployment>> {
    if !stamp.is_current() {
        return Ok(None);
    }
    serde_json::from_slice(&fs::read(file(paths))?).map(Some).context("deployment.json is damaged")
}

/// Deploys, and then runs `save`, which makes `MiniStack` write its state to disk.
pub(crate) async fn deploy(
    paths: &Paths,
    ports: &Ports,
    tools: &Tools,
    stamp: &Stamp,
    save: impl Future<Output = Result<()>>,
) -> Result<Deployment> {
    let file = file(paths);
    let work = async {
        let mut sam = aws(paths, ports, &paths.venv("sam").join("bin/sam"));
        sam.args(["deploy", "--config-env", "twin", "--stack-name", STACK, "--region", REGION])
            .args(["--resolve-s3", "--capabilities", "CAPABILITY_IAM", "--no-confirm-changeset"])
            .args(["--no-fail-on-empty-changeset", "--no-progressbar", "--template-file"])
            .arg(build_folder(paths).join("template.yaml"))
            .arg("--parameter-overrides")
            .args(parameters(paths));
        tools.progress.step("sam deploy", command::run(&mut sam, &paths.log("sam-deploy"))).await?;

        let mut complete = aws(paths, ports, &paths.venv("sam").join("bin/python3"));
        complete.arg(script(paths)).args([STACK, CLUSTER_NAME, &bucket(paths)]);
        let log = paths.log("deploy");
        let printed = command::output(&mut complete, &log);
        let printed = tools.progress.step("routes, access entries and the trainer's role", printed).await?;
        let deployment: Deployment = serde_json::from_slice(&printed).context("deploy.py printed no deployment")?;
        write_private(&file, &serde_json::to_string(&deployment)?)?;
        tools.progress.step("saving the deployment", save).await
    };
    stamp.make(work).await?;
    Ok(serde_json::from_slice(&fs::read(&file)?)?)
}

fn script(paths: &Paths) -> PathBuf {
    paths.source("infra/local/deploy.py")
}

fn file(paths: &Paths) -> PathBuf {
    paths.state().join("deployment.json")
}

fn parameters(paths: &Paths) -> Vec<String> {
    vec![
        format!("Architecture={}", architecture()),
        format!("ClusterName={CLUSTER_NAME}"),
        format!("Namespace={NAMESPACE}"),
        format!("AllowedNamespaces={}", allowed_namespaces()),
        "ManageAccessEntries=false".into(),
        format!("RunsBucketName={}", bucket(paths)),
        format!("DefaultImage={TRAINER_IMAGE}"),
        format!("AllowedImages={ALLOWED_IMAGES}"),
        format!("AllowedSecrets={ALLOWED_SECRETS}"),
    ]
}

pub(crate) fn allowed_namespaces() -> String {
    [&[NAMESPACE], FURTHER_NAMESPACES.as_slice(), &[ABSENT_NAMESPACE]].concat().join(",")
}

/// The runs bucket. Each checkout has its own.
pub(crate) fn bucket(paths: &Paths) -> String {
    format!("twin-runs-{}", short_hash(&paths.root().to_string_lossy()))
}

/// A command whose AWS is `MiniStack`.
fn aws(paths: &Paths, ports: &Ports, program: &PathBuf) -> Command {
    let mut environment: BTreeMap<String, String> = clean_environment(paths);
    for (name, value) in [
        ("AWS_ENDPOINT_URL", ports.ministack_url().as_str()),
        ("AWS_REGION", REGION),
        ("AWS_DEFAULT_REGION", REGION),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
        ("SAM_CLI_TELEMETRY", "0"),
    ] {
        environment.insert(name.into(), value.into());
    }
    let mut command = Command::new(program);
    command.env_clear().envs(environment).current_dir(paths.root());
    command
}
