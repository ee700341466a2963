//! The state that all pods of the node share.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
};

use k8s_openapi::api::core::v1::Pod;
use kube::{Client, ResourceExt as _};
use tokio::sync::watch;

use crate::{
    admission::Admission,
    config::Config,
    credentials::SessionSource,
    events::Recorder,
    ports::{JobPorts, PodAddresses},
    process::Isolation,
};

const JOB_ROLE: &str = "training.kubeflow.org/job-role";

/// The state of the node, and the pods that are assigned to it.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) config: Config,
    pub(crate) client: ClientHandle,
    pub(crate) isolation: Isolation,
    pub(crate) sessions: SessionSource,
    pub(crate) events: Recorder,
    admission: Mutex<Admission>,
    ports: Mutex<JobPorts>,
    addresses: Mutex<PodAddresses>,
    /// The pods as the API server last reported them, by uid.
    pods: RwLock<HashMap<String, Arc<Pod>>>,
    stopping: watch::Sender<bool>,
}

/// A client that implements `Debug`.
#[derive(Clone)]
pub(crate) struct ClientHandle(pub(crate) Client);

impl std::fmt::Debug for ClientHandle {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Client")
    }
}

// === impl Node ===

impl Node {
    pub(crate) async fn new(config: Config, client: Client) -> anyhow::Result<Self> {
        Ok(Self {
            isolation: Isolation::find().await?,
            sessions: SessionSource::new(&config).await,
            admission: Mutex::new(Admission::new(config.running_trainers_limit)),
            ports: Mutex::new(JobPorts::open(config.pods_dir.join("ports.json"))?),
            addresses: Mutex::default(),
            pods: RwLock::default(),
            stopping: watch::Sender::new(false),
            events: Recorder::start(&config.node_name, client.clone()),
            client: ClientHandle(client),
            config,
        })
    }

    pub(crate) fn admission(&self) -> MutexGuard<'_, Admission> {
        self.admission.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn ports(&self) -> MutexGuard<'_, JobPorts> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn addresses(&self) -> MutexGuard<'_, PodAddresses> {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores a pod as the API server has it now.
    pub(crate) fn remember(&self, pod: Arc<Pod>) {
        if let Some(uid) = pod.uid() {
            self.pods.write().unwrap_or_else(PoisonError::into_inner).insert(uid, pod);
        }
    }

    pub(crate) fn forget(&self, uid: &str) {
        self.pods.write().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }

    pub(crate) fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        let pods = self.pods.read().unwrap_or_else(PoisonError::into_inner);
        pods.values().find(|pod| pod.namespace().as_deref() == Some(namespace) && pod.name_any() == name).cloned()
    }

    /// All pods, the oldest first. Jobs are admitted in this order.
    pub(crate) fn pods_by_age(&self) -> Vec<Arc<Pod>> {
        let pods = self.pods.read().unwrap_or_else(PoisonError::into_inner);
        let mut pods: Vec<_> = pods.values().cloned().collect();
        pods.sort_by_key(|pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0));
        pods
    }

    /// The uids of the jobs that have a pod on this node.
    pub(crate) fn jobs(&self) -> HashSet<String> {
        let pods = self.pods.read().unwrap_or_else(PoisonError::into_inner);
        pods.values().filter_map(|pod| job_uid(pod)).collect()
    }

    /// Whether the master pod of a job runs or has run. In a cluster its name resolves from then on.
    pub(crate) fn master_has_started(&self, job: &str) -> bool {
        let pods = self.pods.read().unwrap_or_else(PoisonError::into_inner);
        pods.values().any(|pod| {
            job_uid(pod).as_deref() == Some(job)
                && pod.labels().get(JOB_ROLE).is_some_and(|role| role == "master")
                && pod
                    .status
                    .as_ref()
                    .and_then(|status| status.phase.as_deref())
                    .is_some_and(|phase| phase != "Pending")
        })
    }

    /// Ends the tasks of the pods. Their containers keep running.
    pub(crate) fn stop(&self) {
        self.stopping.send_replace(true);
    }

    /// Changes when the node stops.
    pub(crate) fn stopping(&self) -> watch::Receiver<bool> {
        self.stopping.subscribe()
    }
}

/// The uid of the job that a pod belongs to.
pub(crate) fn job_uid(pod: &Pod) -> Option<String> {
    pod.owner_references().iter().find(|owner| owner.controller == Some(true)).map(|owner| owner.uid.clone())
}
