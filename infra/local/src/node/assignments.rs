//! Watches the pods that the scheduler assigns to this node, and starts one task for each.

use std::{
    collections::{HashMap, HashSet},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, ResourceExt as _,
    runtime::{WatchStreamExt as _, utils::Backoff, watcher},
};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::{leftovers, pod, shared_state::Node};

/// The watch retries every second while the API server is away. One client with no longer pause does no harm.
#[derive(Debug)]
struct EverySecond;

/// The tasks by the uid of their pods. A task that receives `None` kills its pod and ends.
type Tasks = HashMap<String, watch::Sender<Option<Arc<Pod>>>>;

// === impl EverySecond ===

impl Iterator for EverySecond {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(Duration::from_secs(1))
    }
}

impl Backoff for EverySecond {
    fn reset(&mut self) {}
}

/// Watches for ever. While the API server is away, the pods keep running.
pub(crate) async fn run(node: Arc<Node>) {
    let api: Api<Pod> = Api::all(Client::clone(&node.client.0));
    let selection = watcher::Config::default().fields(&format!("spec.nodeName={}", node.config.node_name));
    let mut events = pin!(watcher(api, selection).backoff(EverySecond));
    let mut away = false;
    let mut tasks = Tasks::new();
    let mut listed = HashSet::new();
    let mut first_list = true;
    while let Some(event) = events.next().await {
        if event.is_ok() {
            away = false;
        }
        match event {
            Ok(watcher::Event::Init) => listed.clear(),
            Ok(watcher::Event::InitApply(pod)) => {
                listed.extend(pod.uid());
                node.remember(Arc::new(pod));
            }
            Ok(watcher::Event::InitDone) => {
                let gone: Vec<String> = tasks.keys().filter(|uid| !listed.contains(*uid)).cloned().collect();
                for uid in &gone {
                    forget(&node, &mut tasks, uid);
                }
                if std::mem::take(&mut first_list) {
                    leftovers::remove_strangers(&node.config.pods_dir, &listed);
                    if let Err(error) = node.ports().keep_only(&node.jobs()) {
                        warn!("{error:#}");
                    }
                    info!("{} pods were here before", listed.len());
                }
                // The pods start after the whole list is stored, because a pod may depend on its job's master.
                for pod in node.pods_by_age() {
                    assign(&node, &mut tasks, pod);
                }
            }
            Ok(watcher::Event::Apply(pod)) => {
                let pod = Arc::new(pod);
                node.remember(Arc::clone(&pod));
                assign(&node, &mut tasks, pod);
            }
            Ok(watcher::Event::Delete(pod)) => {
                if let Some(uid) = pod.uid() {
                    forget(&node, &mut tasks, &uid);
                }
            }
            Err(_) if away => {}
            Err(error) => {
                warn!("cannot follow the pods, and trying on: {error}");
                away = true;
            }
        }
    }
}

fn assign(node: &Arc<Node>, tasks: &mut Tasks, pod: Arc<Pod>) {
    let Some(uid) = pod.uid() else { return };
    if let Some(task) = tasks.get(&uid) {
        task.send_replace(Some(pod));
        return;
    }
    info!("pod {} in {} is here", pod.name_any(), pod.namespace().unwrap_or_default());
    match pod::start(node, pod) {
        Ok(task) => {
            tasks.insert(uid, task);
        }
        Err(error) => warn!("cannot look after a pod: {error:#}"),
    }
}

fn forget(node: &Node, tasks: &mut Tasks, uid: &str) {
    node.forget(uid);
    if let Some(task) = tasks.remove(uid) {
        task.send_replace(None);
    }
}
