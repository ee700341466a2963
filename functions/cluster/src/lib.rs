//! The way into the EKS cluster and the few calls that are made there. It knows nothing of HTTP routes or of S3.
//!
//! ```text
//! DescribeCluster ─> endpoint, CA ─┐
//! credentials ─> presigned token ──┴─> kube client ─> PyTorchJobs, pods ─> ClusterError says what an answer means
//! ```
//! The domain's objects:
//!
//! - [`ClusterSettings`] say which cluster it is. [`Access`] signs in to it, at its [`Endpoint`], and a [`Cluster`] is one
//!   that is signed in to.
//! - [`Jobs`] are the calls about one namespace's jobs. An [`Effect`] says whether a write is done or only checked, a
//!   [`Page`] is a part of a list, and a [`LogStream`] a log as it arrives.
//! - A [`ClusterError`] says why a call did not do what was asked.
//! - A [`Moment`] is a time whose age counts on while Lambda freezes the function.

mod access;
mod error;
mod moment;
mod read;
mod token;

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::PodTemplate;
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
};
use serde_json::json;
use training_core::job::pytorchjob::{PLATFORM_DEFAULTS, PyTorchJob};
use training_run::names::{JobName, Namespace};

pub use access::{Access, ClusterSettings, Endpoint, EndpointError};
pub use error::{ClusterError, Rejection};
pub use moment::Moment;
pub use read::{LogOptions, LogStream, Page};

/// Longest pause before a read is repeated; a random part of it is waited, so that clients do not come back together.
const LONGEST_PAUSE: Duration = Duration::from_millis(200);
/// Longest time that one call may take, connecting and a repeated sign-in included. API Gateway gives up after 30 s.
const CALL_BUDGET: Duration = Duration::from_secs(8);

/// One cluster.
pub struct Cluster {
    entrance: Entrance,
    /// In microseconds, since it was taken last.
    time_spent: AtomicU64,
}

enum Entrance {
    /// Signs in, and again when a token has aged.
    SignIn(Box<Access>),
    /// Is signed in already.
    Open(Client),
}

/// The training jobs of one namespace, and what belongs to them.
#[derive(Clone, Copy)]
pub struct Jobs<'a> {
    cluster: &'a Cluster,
    namespace: &'a Namespace,
}

/// What a call changes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Changes {
    Something,
    Nothing,
}

/// Whether a write has its effect, or is only checked by everybody who would check it (schema, webhooks, quotas).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It is done.
    Real,
    /// It is checked: the API server's `dryRun=All`.
    DryRun,
}

// === impl Cluster ===

impl Cluster {
    /// The cluster that is reached this way.
    #[must_use]
    pub fn new(access: Access) -> Self {
        Self { entrance: Entrance::SignIn(Box::new(access)), time_spent: AtomicU64::new(0) }
    }

    /// The cluster behind a client that is signed in already, as tests have.
    #[must_use]
    pub fn from_client(client: Client) -> Self {
        Self { entrance: Entrance::Open(client), time_spent: AtomicU64::new(0) }
    }

    /// The jobs of a namespace.
    #[must_use]
    pub fn jobs<'a>(&'a self, namespace: &'a Namespace) -> Jobs<'a> {
        Jobs { cluster: self, namespace }
    }

    /// Make a call, and once more when it had no effect for a reason that we can do something about: a token that the
    /// cluster does not take (any more), or an endpoint where it is not (any more). What changes nothing is also repeated
    /// when its connection broke, as kept ones do, or the API server was busy for a moment.
    async fn call<T, F: Future<Output = kube::Result<T>>>(
        &self,
        changes: Changes,
        operation: impl Fn(Client) -> F,
    ) -> Result<T, ClusterError> {
        let attempts = async {
            match operation(self.entrance.client().await?).await {
                Err(kube::Error::Api(status)) if status.code == 401 && !error::is_denial(&status.message) => {
                    self.entrance.sign_out().await;
                }
                Err(error) if error::is_not_connected(&error) => self.entrance.look_up_again().await,
                Err(error) if changes == Changes::Nothing && error::is_transient(&error) => {
                    tokio::time::sleep(LONGEST_PAUSE.mul_f64(fastrand::f64())).await;
                }
                answer => return Ok(answer?),
            }
            Ok(operation(self.entrance.client().await?).await?)
        };
        let started = Instant::now();
        let answer = tokio::time::timeout(CALL_BUDGET, attempts).await.unwrap_or(Err(ClusterError::TimedOut(None)));
        let spent = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.time_spent.fetch_add(spent, Ordering::Relaxed);
        answer
    }

    /// How long the cluster was waited for since this was asked last; calls at the same time count each.
    pub fn take_time_spent(&self) -> Duration {
        Duration::from_micros(self.time_spent.swap(0, Ordering::Relaxed))
    }
}

// === impl Entrance ===

impl Entrance {
    async fn client(&self) -> Result<Client, EndpointError> {
        match self {
            Self::SignIn(access) => access.client().await,
            Self::Open(client) => Ok(client.clone()),
        }
    }

    async fn sign_out(&self) {
        match self {
            Self::SignIn(access) => access.sign_out().await,
            Self::Open(_) => {}
        }
    }

    async fn look_up_again(&self) {
        match self {
            Self::SignIn(access) => access.look_up_again().await,
            Self::Open(_) => {}
        }
    }
}

// === impl Jobs ===

impl Jobs<'_> {
    /// Create a job.
    ///
    /// # Errors
    /// [`ClusterError::AlreadyExists`] when the name is taken, [`ClusterError::Rejected`] when the manifest is refused.
    pub async fn create(&self, job: &PyTorchJob, effect: Effect) -> Result<PyTorchJob, ClusterError> {
        let params = &PostParams { dry_run: effect.is_dry_run(), ..PostParams::default() };
        self.write(|client| async move { self.api(client).create(params, job).await }).await
    }

    /// Read a job; `None` when there is none.
    ///
    /// # Errors
    /// The cluster does not answer or does not let us read.
    pub async fn get(&self, name: &JobName) -> Result<Option<PyTorchJob>, ClusterError> {
        found(self.read(|client| async move { self.api(client).get(name.as_str()).await }).await)
    }

    /// Delete exactly the job that was read, after its pods: its name stays taken until they are gone.
    ///
    /// # Errors
    /// [`ClusterError::Changed`] when it is another one by now, or changed since it was read; [`ClusterError::NotFound`]
    /// when it is gone.
    pub async fn delete(&self, job: &PyTorchJob, effect: Effect) -> Result<(), ClusterError> {
        let preconditions =
            Preconditions { uid: job.metadata.uid.clone(), resource_version: job.metadata.resource_version.clone() };
        let params =
            &DeleteParams { dry_run: effect.is_dry_run(), ..DeleteParams::foreground() }.preconditions(preconditions);
        let name = job.metadata.name.as_deref().unwrap_or_default();
        self.write(|client| async move { self.api(client).delete(name, params).await.map(|_| ()) }).await
    }

    /// Delete the job that was read, however its status has changed since, after its pods; the job as it is then.
    ///
    /// # Errors
    /// [`ClusterError::Changed`] when another job has its name by now; [`ClusterError::NotFound`] when it is gone.
    pub async fn cancel(&self, job: &PyTorchJob) -> Result<Option<PyTorchJob>, ClusterError> {
        let preconditions = Preconditions { uid: job.metadata.uid.clone(), resource_version: None };
        let params = &DeleteParams::foreground().preconditions(preconditions);
        let name = job.metadata.name.as_deref().unwrap_or_default();
        let deleted = self.write(|client| async move { self.api(client).delete(name, params).await }).await?;
        Ok(deleted.left())
    }

    /// Suspend or resume exactly the job that was read.
    ///
    /// # Errors
    /// [`ClusterError::Changed`] when it has changed since it was read; [`ClusterError::NotFound`] when it is gone.
    pub async fn set_suspend(&self, job: &PyTorchJob, suspend: bool) -> Result<PyTorchJob, ClusterError> {
        let name = job.metadata.name.as_deref().unwrap_or_default();
        let patch = &Patch::Merge(json!({
            "metadata": {"uid": job.metadata.uid, "resourceVersion": job.metadata.resource_version},
            "spec": {"runPolicy": {"suspend": suspend}},
        }));
        let params = &PatchParams::default();
        self.write(|client| async move { self.api(client).patch(name, params, patch).await }).await
    }

    /// The pod template that the cluster's owner keeps for all jobs of the namespace; `None` when there is none.
    ///
    /// # Errors
    /// The cluster does not answer or does not let us read.
    pub async fn platform_defaults(&self) -> Result<Option<PodTemplate>, ClusterError> {
        let namespace = self.namespace.as_str();
        found(
            self.read(|client| async move {
                Api::<PodTemplate>::namespaced(client, namespace).get(PLATFORM_DEFAULTS).await
            })
            .await,
        )
    }

    fn api(&self, client: Client) -> Api<PyTorchJob> {
        Api::namespaced(client, self.namespace.as_str())
    }

    async fn read<T, F: Future<Output = kube::Result<T>>>(
        &self,
        operation: impl Fn(Client) -> F,
    ) -> Result<T, ClusterError> {
        self.cluster.call(Changes::Nothing, operation).await
    }

    async fn write<T, F: Future<Output = kube::Result<T>>>(
        &self,
        operation: impl Fn(Client) -> F,
    ) -> Result<T, ClusterError> {
        self.cluster.call(Changes::Something, operation).await
    }
}

// === impl Effect ===

impl Effect {
    fn is_dry_run(self) -> bool {
        self == Self::DryRun
    }
}

fn found<T>(answer: Result<T, ClusterError>) -> Result<Option<T>, ClusterError> {
    match answer {
        Err(ClusterError::NotFound) => Ok(None),
        answer => answer.map(Some),
    }
}
