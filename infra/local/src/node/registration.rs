//! The Node object: with it the scheduler assigns pods to this process, and the API server requests logs from it.

use std::{sync::Arc, time::Duration};

use k8s_openapi::{api::core::v1::Node as NodeObject, jiff::Timestamp};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::time;
use tracing::{info, warn};

use crate::shared_state::Node;

const FIELD_MANAGER: &str = "twin-node";
/// The API server gives every new node this taint. The node removes it when it is ready.
const NOT_READY: &str = "node.kubernetes.io/not-ready";
const HEARTBEAT: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(1);
const ANSWER_TIME: Duration = Duration::from_secs(5);

/// Registers the node and keeps it ready until the process ends. Failures are retried.
pub(crate) async fn run(node: Arc<Node>) {
    let ready_since = Timestamp::now();
    let mut known = None;
    loop {
        let registered = time::timeout(ANSWER_TIME, register(&node, ready_since)).await;
        let registered = registered.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer")));
        let changed = known.replace(registered.is_ok()) != Some(registered.is_ok());
        match &registered {
            Ok(()) if changed => info!("node {} is ready", node.config.node_name),
            Err(error) if changed => warn!("cannot register, and trying on: {error:#}"),
            Ok(()) | Err(_) => {}
        }
        time::sleep(if registered.is_ok() { HEARTBEAT } else { RETRY }).await;
    }
}

async fn register(node: &Node, ready_since: Timestamp) -> anyhow::Result<()> {
    let name = &node.config.node_name;
    let api: Api<NodeObject> = Api::all(Client::clone(&node.client.0));
    let parameters = PatchParams::apply(FIELD_MANAGER).force();
    let present = api.patch(name, &parameters, &Patch::Apply(object(name))).await?;
    let taints = present.spec.and_then(|spec| spec.taints).unwrap_or_default();
    if taints.iter().any(|taint| taint.key == NOT_READY) {
        let others: Vec<_> = taints.into_iter().filter(|taint| taint.key != NOT_READY).collect();
        api.patch(name, &PatchParams::default(), &Patch::Merge(json!({"spec": {"taints": others}}))).await?;
    }
    let status = status(node.config.listen.port(), ready_since, Timestamp::now());
    api.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await?;
    Ok(())
}

fn object(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {
            "kubernetes.io/hostname": name,
            "kubernetes.io/os": "linux",
        }},
    })
}

/// The resources are more than any machine here has. Scheduling is real, resources are not.
fn status(log_port: u16, ready_since: Timestamp, now: Timestamp) -> Value {
    let resources =
        json!({"cpu": "64", "memory": "1Ti", "pods": "250", "nvidia.com/gpu": "8", "ephemeral-storage": "1Ti"});
    let condition = |kind: &str, holds: &str, reason: &str| json!({"type": kind, "status": holds, "reason": reason, "lastHeartbeatTime": now, "lastTransitionTime": ready_since});
    json!({"status": {
        "capacity": resources,
        "allocatable": resources,
        "conditions": [
            condition("MemoryPressure", "False", "TwinHasSufficientMemory"),
            condition("DiskPressure", "False", "TwinHasNoDiskPressure"),
            condition("PIDPressure", "False", "TwinHasSufficientPID"),
            condition("Ready", "True", "TwinReady"),
        ],
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}, {"type": "Hostname", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": log_port}},
        "nodeInfo": {
            "architecture": std::env::consts::ARCH, "operatingSystem": "linux", "kubeletVersion": "v1.36.3-twin",
            "bootID": "", "containerRuntimeVersion": "twin://1", "kernelVersion": "", "kubeProxyVersion": "",
            "machineID": "", "osImage": "twin", "systemUUID": "",
        },
    }})
}
