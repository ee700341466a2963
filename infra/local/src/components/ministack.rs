//! `MiniStack`, the emulator of AWS, and the EKS cluster that is written into its stored state.
//!
//! The cluster is not made with `CreateCluster`, which would start a container where a Docker daemon answers.

use std::{collections::BTreeMap, fs, time::Duration};

use anyhow::Result;
use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::json;

use crate::{
    names::{ACCOUNT, CLUSTER_NAME, REGION},
    paths::Paths,
    ports::Ports,
    setup::{command::clean_environment, pki, token_review},
    spec::{Ready, Spec, seed::Seed},
};

pub(crate) fn spec(paths: &Paths, ports: &Ports) -> Result<Spec> {
    Ok(Spec {
        program: paths.venv("ministack").join("bin/ministack"),
        arguments: Vec::new(),
        environment: environment(paths, ports),
        port: ports.ministack,
        ready: Ready::Succeeds(format!("{}/_ministack/ready", ports.ministack_url())),
        // MiniStack saves its state on SIGTERM only.
        grace: Duration::from_secs(30),
        seed: Some(seed(paths, ports)?),
    })
}

/// The cluster that `DescribeCluster` returns. The rest of the file, the access entries, stays as it is.
fn seed(paths: &Paths, ports: &Ports) -> Result<Seed> {
    let cluster = json!({
        "name": CLUSTER_NAME,
        "arn": format!("arn:aws:eks:{REGION}:{ACCOUNT}:cluster/{CLUSTER_NAME}"),
        "createdAt": 0,
        "version": "1.36",
        "endpoint": format!("https://127.0.0.1:{}", ports.cluster_proxy),
        "roleArn": format!("arn:aws:iam::{ACCOUNT}:role/eks"),
        "resourcesVpcConfig": {},
        "status": "ACTIVE",
        "certificateAuthority": {"data": BASE64_STANDARD.encode(fs::read(paths.pki(pki::CA))?)},
        "platformVersion": "eks.1",
        "tags": {},
        "accessConfig": {"authenticationMode": "API"},
        "_auth_token": token_review::secret(paths)?,
    });
    let keys = |keys: &[&str]| keys.iter().map(ToString::to_string).collect();
    let id = format!("{ACCOUNT}\0{REGION}\0'{CLUSTER_NAME}'");
    Ok(Seed {
        file: paths.ministack_state().join("eks.json"),
        empty: json!({"__ministack_format__": 3, "payload": {}}),
        values: vec![
            (keys(&["payload", "clusters", "__account_region_scoped__"]), json!(true)),
            (keys(&["payload", "clusters", "data", &id]), cluster),
        ],
    })
}

/// The functions inherit this environment, so it holds as little as Lambda's own.
fn environment(paths: &Paths, ports: &Ports) -> BTreeMap<String, String> {
    let mut environment = clean_environment(paths);
    let folder = paths.ministack();
    let mut set = |name: &str, value: String| environment.insert(name.into(), value);
    set("BIND_HOST", "127.0.0.1".into());
    // With an address in place of this name, lambda_http could not parse the host name of the HTTP API.
    set("MINISTACK_HOST", "localhost".into());
    set("GATEWAY_PORT", ports.ministack.to_string());
    // The functions would call the real AWS without this.
    set("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{}", ports.aws_proxy));
    set("AUTH", "true".into());
    set("PERSIST_STATE", "1".into());
    set("S3_PERSIST", "1".into());
    set("STATE_DIR", paths.ministack_state().display().to_string());
    set("S3_DATA_DIR", folder.join("s3").display().to_string());
    set("TMPDIR", folder.join("tmp").display().to_string());
    set("LAMBDA_EXECUTOR", "local".into());
    // These two servers would listen on every interface.
    set("IOT_MTLS_ENABLED", "0".into());
    set("SFTP_ENABLED", "0".into());
    // It must reach no Docker daemon: at its start and end it removes the containers of every other MiniStack.
    set("DOCKER_HOST", format!("unix://{}", folder.join("no-docker.sock").display()));
    environment
}
