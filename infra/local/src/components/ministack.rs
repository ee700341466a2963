//! `MiniStack`: its environment, and the EKS cluster that is written into its state while it is stopped.
//! The cluster is never made with `CreateCluster`: where a Docker daemon answers, that would start a container.

use std::{collections::BTreeMap, fs};

use anyhow::Result;
use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use serde_json::json;

use crate::{
    names::{ACCOUNT, CLUSTER_NAME, REGION},
    paths::Paths,
    ports::Ports,
    private_file::write_private,
    setup::{command::clean_environment, pki},
    spec::seed::Seed,
};

/// The cluster that `DescribeCluster` answers with. The rest of the stored state, the access entries, stays as it is.
pub(crate) fn seed(paths: &Paths, ports: &Ports) -> Result<Seed> {
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

/// Where the API server has tokens reviewed. The address has a part that only the two sides know.
pub(crate) fn token_review_url(paths: &Paths, ports: &Ports) -> Result<String> {
    let secret = auth_token(paths)?;
    Ok(format!("{}/_ministack/eks-auth/{ACCOUNT}/{REGION}/{CLUSTER_NAME}/{secret}", ports.ministack_url()))
}

/// The functions inherit all of this, so it is as clean as Lambda's own.
pub(crate) fn environment(paths: &Paths, ports: &Ports) -> BTreeMap<String, String> {
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

/// Makes the folders that `MiniStack` expects.
pub(crate) fn make_folders(paths: &Paths) -> Result<()> {
    fs::create_dir_all(paths.ministack_state())?;
    fs::create_dir_all(paths.ministack().join("tmp"))?;
    Ok(())
}

/// The secret of the `TokenReview` address, made once.
fn auth_token(paths: &Paths) -> Result<String> {
    let file = paths.state().join("eks-auth-token");
    if let Ok(token) = fs::read_to_string(&file) {
        return Ok(token);
    }
    let mut bytes = [0; 32];
    rustls::crypto::aws_lc_rs::default_provider()
        .secure_random
        .fill(&mut bytes)
        .map_err(|_| anyhow::anyhow!("no random bytes"))?;
    let token = BASE64_URL_SAFE_NO_PAD.encode(bytes);
    write_private(&file, &token)?;
    Ok(token)
}
