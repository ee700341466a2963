//! What the status function reads: lists of jobs, their pods, what those print, and events.
//!
//! Manifests may have a MiB each and a function has little memory, so lists are read some objects at a time, and of each
//! object only what is told of it is kept.

use std::{collections::BTreeMap, pin::Pin};

use futures::AsyncBufRead;
use k8s_openapi::{
    api::core::v1::{Event, Pod, PodStatus},
    apimachinery::pkg::apis::meta::v1::{ListMeta, ObjectMeta, OwnerReference, Time},
    jiff::{RoundMode, Timestamp, TimestampRound, Unit},
};
use kube::{
    Api, Client, Resource,
    api::{ListParams, LogParams},
    core::Request,
};
use serde::{Deserialize, de::DeserializeOwned};
use training_core::job::{
    logs::Instance,
    pytorchjob::{CONTAINER, JobStatus, PyTorchJob, PyTorchJobSpec, ReplicaSpec, ReplicaSpecs, key},
};
use training_run::names::JobName;

use crate::{ClusterError, Jobs, found};

/// Jobs read at once: each takes four times its size while its page is parsed.
const JOBS_AT_ONCE: u32 = 10;
/// Pods read at once. Where there are many, a pod has at most half the size of its job, which holds two templates.
const PODS_AT_ONCE: u32 = 20;
/// Events read at once; they are small.
const EVENTS_AT_ONCE: u32 = 500;

/// Some objects of a list.
#[derive(Clone, Debug, PartialEq)]
pub struct Page<T> {
    /// The objects, in name order.
    pub items: Vec<T>,
    /// What to ask for the next page with; `None` at the end.
    pub next: Option<String>,
}

/// Which lines of a container's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogOptions {
    /// Which start of the container.
    pub instance: Instance,
    /// At most so many lines, the newest.
    pub tail_lines: u32,
    /// Only lines from this time on; Kubernetes looks at whole seconds.
    pub since: Option<Timestamp>,
}

/// A log as it arrives.
pub type LogStream = Pin<Box<dyn AsyncBufRead + Send>>;

#[derive(Deserialize)]
struct List<T> {
    #[serde(default)]
    metadata: ListMeta,
    items: Vec<T>,
}

/// A job without its pods' templates.
#[derive(Deserialize)]
struct JobOutline {
    metadata: Metadata,
    #[serde(default)]
    spec: SpecOutline,
    status: Option<JobStatus>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct SpecOutline {
    nproc_per_node: Option<String>,
    pytorch_replica_specs: ReplicaSpecOutlines,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct ReplicaSpecOutlines {
    master: Option<ReplicaSpecOutline>,
    worker: Option<ReplicaSpecOutline>,
}

#[derive(Deserialize)]
struct ReplicaSpecOutline {
    replicas: Option<i32>,
}

/// A pod without its specification.
#[derive(Deserialize)]
struct PodOutline {
    metadata: Metadata,
    status: Option<PodStatus>,
}

/// Metadata without the fields' owners, which take more room than the fields.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
    creation_timestamp: Option<Time>,
    deletion_timestamp: Option<Time>,
    owner_references: Option<Vec<OwnerReference>>,
}

// === impl Jobs ===

impl Jobs<'_> {
    /// Some jobs in name order, without their pods' templates. `limit` is cut to what is read at once.
    ///
    /// # Errors
    /// [`ClusterError::ContinueExpired`] when `after` is too old, [`ClusterError::BadRequest`] when it is none of ours.
    pub async fn page(
        &self,
        selector: &str,
        limit: u32,
        after: Option<&str>,
    ) -> Result<Page<PyTorchJob>, ClusterError> {
        let selector = (!selector.is_empty()).then(|| selector.to_owned());
        let params = ListParams { label_selector: selector, ..ListParams::default() };
        let page = self.list::<PyTorchJob, JobOutline>(params, limit.min(JOBS_AT_ONCE), after).await?;
        Ok(Page { items: page.items.into_iter().map(PyTorchJob::from).collect(), next: page.next })
    }

    /// The pods that the operator made for a job, without their specifications.
    ///
    /// # Errors
    /// The cluster does not answer or does not let us read.
    pub async fn pods(&self, name: &JobName) -> Result<Vec<Pod>, ClusterError> {
        let mut pods = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let of_job = ListParams::default().labels(&format!("{}={name}", key::OPERATOR_JOB_NAME));
            let page = self.list::<Pod, PodOutline>(of_job, PODS_AT_ONCE, after.as_deref()).await?;
            pods.extend(page.items.into_iter().map(Pod::from));
            after = page.next;
            if after.is_none() {
                return Ok(pods);
            }
        }
    }

    /// One pod; `None` when there is none.
    ///
    /// # Errors
    /// The cluster does not answer or does not let us read.
    pub async fn pod(&self, name: &str) -> Result<Option<Pod>, ClusterError> {
        let namespace = self.namespace.as_str();
        found(self.read(|client| async move { Api::<Pod>::namespaced(client, namespace).get(name).await }).await)
    }

    /// What the training container of a pod prints, each line after its time.
    ///
    /// # Errors
    /// [`ClusterError::NotFound`] when there is no such pod, [`ClusterError::BadRequest`] when its container has no such
    /// log.
    pub async fn log(&self, pod: &str, options: &LogOptions) -> Result<LogStream, ClusterError> {
        // The client would round to the nearest second, and so lose lines.
        let down = TimestampRound::new().smallest(Unit::Second).mode(RoundMode::Floor);
        let params = &LogParams {
            container: Some(CONTAINER.to_owned()),
            previous: options.instance == Instance::Previous,
            since_time: options.since.and_then(|since| since.round(down).ok()),
            tail_lines: Some(options.tail_lines.into()),
            timestamps: true,
            ..LogParams::default()
        };
        let namespace = self.namespace.as_str();
        self.read(|client| async move {
            let log = Api::<Pod>::namespaced(client, namespace).log_stream(pod, params).await?;
            Ok(Box::pin(log) as LogStream)
        })
        .await
    }

    /// Some events of the namespace, by fields of theirs (`involvedObject.kind=Pod`).
    ///
    /// # Errors
    /// The cluster does not answer or does not let us read.
    pub async fn events(&self, fields: &str, after: Option<&str>) -> Result<Page<Event>, ClusterError> {
        self.list::<Event, Event>(ListParams::default().fields(fields), EVENTS_AT_ONCE, after).await
    }

    async fn list<K, T>(&self, params: ListParams, limit: u32, after: Option<&str>) -> Result<Page<T>, ClusterError>
    where
        K: Resource<DynamicType = ()>,
        T: DeserializeOwned,
    {
        let params = &ListParams { limit: Some(limit), continue_token: after.map(str::to_owned), ..params };
        let path = &K::url_path(&(), Some(self.namespace.as_str()));
        let list: List<T> = self
            .read(|client: Client| async move {
                let request = Request::new(path).list(params).map_err(kube::Error::BuildRequest)?;
                client.request(request).await
            })
            .await?;
        Ok(Page { items: list.items, next: list.metadata.continue_.filter(|token| !token.is_empty()) })
    }
}

// === impl JobOutline ===

impl From<JobOutline> for PyTorchJob {
    fn from(JobOutline { metadata, spec, status }: JobOutline) -> Self {
        let replicas = |spec: ReplicaSpecOutline| ReplicaSpec { replicas: spec.replicas, ..ReplicaSpec::default() };
        let SpecOutline { nproc_per_node, pytorch_replica_specs: specs } = spec;
        let specs = ReplicaSpecs { master: specs.master.map(replicas), worker: specs.worker.map(replicas) };
        let spec = PyTorchJobSpec { nproc_per_node, pytorch_replica_specs: specs, ..PyTorchJobSpec::default() };
        Self { status, ..Self::new(metadata.into(), spec) }
    }
}

// === impl PodOutline ===

impl From<PodOutline> for Pod {
    fn from(PodOutline { metadata, status }: PodOutline) -> Self {
        Self { metadata: metadata.into(), spec: None, status }
    }
}

// === impl Metadata ===

impl From<Metadata> for ObjectMeta {
    fn from(metadata: Metadata) -> Self {
        Self {
            name: metadata.name,
            namespace: metadata.namespace,
            uid: metadata.uid,
            labels: metadata.labels,
            annotations: metadata.annotations,
            creation_timestamp: metadata.creation_timestamp,
            deletion_timestamp: metadata.deletion_timestamp,
            owner_references: metadata.owner_references,
            ..Self::default()
        }
    }
}
