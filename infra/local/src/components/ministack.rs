//! `MiniStack`: its environment, and the EKS cluster that is written into its state while it is stopped.
//! The cluster is never made with `CreateCluster`: where a Docker daemon answers, that would start a container.

use std::{collections::BTreeMap, fs, time::Duration};

use anyhow::Result;
use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::json;

use crate::{
    names::{ACCOUNT, CLUSTER_NAME, REGION},
    paths::Paths,
    ports::Ports,
    setup::{command::clean_environment, pki, token_review::auth_token},
    spec::{Ready, Spec, seed::Seed},
};

pub(crate) fn spec(paths: &Paths, ports: &Ports) -> Result<Spec> {
    Ok(Spec {
        program: paths.venv("ministack").join("bin/ministack"),
        arguments: Vec::new(),
        environment: environment(paths, ports),
        port: ports.ministack,
        ready: Ready::Succeeds(format!("{}/_ministack/ready", ports.ministack_url())),
        // It saves its state on SIGTERM only.
        grace: Duration::from_secs(30),
        seed: Some(seed(paths, ports)?),
    })
}

/// The cluster that `DescribeCluster` answers with. The rest of the stored state, the access entries, stays as it is.
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
        "_auth_token": auth_token(paths)?,
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

/// The functions inherit all of this, so it is as clean as Lambda's own.
fn environment(paths: &Paths, ports: &Ports) -> BTreeMap<String, String> {
    let mut environment = clean_environment(paths);
    let folder = paths.ministack();
    let mut set = |name: &str, value: String| environment.insert(name.into(), value);
    set("BIND_HOST", "127.0.0.1".into());
    // A name: with an address, the host name of the HTTP API would be one that lambda_http cannot parse.
    set("MINISTACK_HOST", "localhost".into());
    set("GATEWAY_PORT", ports.ministack.to_string());
    // For the functions: without it they would call the real AWS.
    set("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{}", ports.aws_proxy));
    set("AUTH", "true".into());
    set("PERSIST_STATE", "1".into());
    set("S3_PERSIST", "1".into());
    set("STATE_DIR", paths.ministack_state().display().to_string());
    set("S3_DATA_DIR", folder.join("s3").display().to_string());
    set("TMPDIR", folder.join("tmp").display().to_string());
    set("LAMBDA_EXECUTOR", "local".into());
    // These two would listen on every interface.
    set("IOT_MTLS_ENABLED", "0".into());
    set("SFTP_ENABLED", "0".into());
    // At its start and end it removes the containers of any MiniStack that it finds; a daemon is none of its business here.
    set("DOCKER_HOST", format!("unix://{}", folder.join("no-docker.sock").display()));
    environment
}
