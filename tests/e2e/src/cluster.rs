//! The cluster's API as its administrator has it, where kubectl would be too slow.

use anyhow::{Result, ensure};
use kube::{
    Api, Client, Config,
    api::{ApiResource, DynamicObject},
    config::{KubeConfigOptions, Kubeconfig},
    core::GroupVersionKind,
};

use serde_json::{Value, json};

use crate::World;

/// Revisions that a young cluster may still know, and in which nobody is interested.
const FIRST_REVISIONS: u64 = 100;

/// The training jobs of a namespace, without any type of ours.
///
/// # Errors
/// The twin's kubeconfig cannot be used.
pub async fn jobs(world: &World, namespace: &str) -> Result<Api<DynamicObject>> {
    let kubeconfig = Kubeconfig::read_from(world.twin.setting("KUBECONFIG")?)?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("kubeflow.org", "v1", "PyTorchJob"));
    Ok(Api::namespaced_with(Client::try_from(config)?, namespace, &kind))
}

/// Make the API server forget its first objects' first versions, as it does some minutes after its start.
///
/// # Errors
/// Its store does not answer.
pub async fn forget_first_revisions(world: &World) -> Result<()> {
    let ports: Value = serde_json::from_slice(&tokio::fs::read(world.root.join(".local/state/ports.json")).await?)?;
    let url = format!("http://127.0.0.1:{}/v3/kv/compaction", ports["etcd"]);
    let answer = reqwest::Client::new().post(url).json(&json!({"revision": FIRST_REVISIONS})).send().await?;
    let (status, text) = (answer.status(), answer.text().await?);
    ensure!(status.is_success() || text.contains("has been compacted"), "{status}: {text}");
    Ok(())
}
