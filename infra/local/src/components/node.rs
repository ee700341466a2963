//! The node, which runs pods. Its program is `twin-node`.

use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use crate::{
    names,
    paths::{Paths, sibling},
    ports::Ports,
    setup::{command::clean_environment, pki},
    spec::{Ready, Spec},
};

/// Also writes the configuration file of the node.
pub(crate) fn spec(paths: &Paths, ports: &Ports) -> Result<Spec> {
    let config = paths.state().join("node.json");
    let settings = json!({
        "node_name": "twin",
        "kubeconfig": paths.admin_kubeconfig(),
        "client_ca": paths.pki(pki::CA),
        "listen": format!("127.0.0.1:{}", ports.node),
        "pods_dir": paths.pods(),
        "trainer_dir": paths.source("trainer"),
        "trainer_bin": paths.venv("trainer").join("bin"),
        "trainer_image": names::TRAINER_IMAGE,
        "model_dir": paths.models(),
        "stub_binary": sibling("twin-stub")?,
        "aws_endpoint_url": ports.ministack_url(),
        "aws_region": names::REGION,
        "trainer_role_arn": names::TRAINER_ROLE_ARN,
        "running_trainers_limit": 4,
        "back_off_base_seconds": 10,
    });
    std::fs::write(&config, serde_json::to_vec_pretty(&settings)?)?;
    Ok(Spec {
        program: sibling("twin-node")?,
        arguments: vec!["--config".into(), config.display().to_string()],
        environment: clean_environment(paths),
        port: ports.node,
        ready: Ready::Accepts(ports.node),
        // The node's pods get five seconds of these.
        grace: Duration::from_secs(8),
        seed: None,
    })
}
