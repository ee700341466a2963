//! The way into the EKS cluster and the few calls that are made there. It knows nothing of HTTP routes or of S3.
//!
//! ```text
//! DescribeCluster ─> endpoint, CA ─┐
//! credentials ─> presigned token ──┴─> kube client ─> PyTorchJobs, pods ─> ClusterError says what an answer means
//! ```

mod access;
mod error;
mod token;

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, PostParams, Preconditions},
};
use training_core::{
    names::JobName,
    pytorchjob::{PyTorchJob, key},
};

pub use access::{Access, ClusterSettings, Endpoint, EndpointError};
pub use error::ClusterError;

/// Longest time that one call may take, connecting and a repeated sign-in included. API Gateway gives up after 30 s.
const CALL_BUDGET: Duration = Duration::from_secs(8);

/// The jobs of one namespace.
pub struct Cluster {
    access: Access,
    namespace: String,
}

// === impl Cluster ===

impl Cluster {
    /// The jobs of this namespace, reached this way.
    #[must_use]
    pub fn new(access: Access, namespace: String) -> Self {
        Self { access, namespace }
    }

    /// Create a job.
    ///
    /// # Errors
    /// [`ClusterError::AlreadyExists`] when the name is taken, [`ClusterError::Rejected`] when the manifest is refused.
    pub async fn create(&self, job: &PyTorchJob) -> Result<PyTorchJob, ClusterError> {
        self.call(|client| async move { self.jobs(client).create(&PostParams::default(), job).await }).await
    }

    /// Read a job; `None` when there is none.
    ///
    /// # Errors
    /// The cluster does not answer or does not let us read.
    pub async fn get(&self, name: &JobName) -> Result<Option<PyTorchJob>, ClusterError> {
        match self.call(|client| async move { self.jobs(client).get(name.as_str()).await }).await {
            Err(ClusterError::NotFound) => Ok(None),
            answer => answer.map(Some),
        }
    }

    /// Delete exactly the job that was read, after its pods: its name stays taken until they are gone.
    ///
    /// # Errors
    /// [`ClusterError::Changed`] when it is another one by now; [`ClusterError::NotFound`] when it is gone.
    pub async fn delete(&self, job: &PyTorchJob) -> Result<(), ClusterError> {
        let name = job.metadata.name.clone().unwrap_or_default();
        let params = DeleteParams::foreground().preconditions(Preconditions {
            uid: job.metadata.uid.clone(),
            resource_version: job.metadata.resource_version.clone(),
        });
        let (name, params) = (&name, &params);
        self.call(|client| async move { self.jobs(client).delete(name, params).await.map(|_| ()) }).await
    }

    /// The pods that the operator made for a job.
    ///
    /// # Errors
    /// The cluster does not answer or does not let us read.
    pub async fn pods(&self, name: &JobName) -> Result<Vec<Pod>, ClusterError> {
        let of_job = &ListParams::default().labels(&format!("{}={name}", key::OPERATOR_JOB_NAME));
        let pods = self
            .call(|client| async move { Api::<Pod>::namespaced(client, &self.namespace).list(of_job).await })
            .await?;
        Ok(pods.items)
    }

    fn jobs(&self, client: Client) -> Api<PyTorchJob> {
        Api::namespaced(client, &self.namespace)
    }

    /// Make a call, signing in again once when the cluster does not know us: a refused call had no effect.
    async fn call<T, F: Future<Output = kube::Result<T>>>(
        &self,
        operation: impl Fn(Client) -> F,
    ) -> Result<T, ClusterError> {
        let attempts = async {
            match operation(self.access.client().await?).await {
                Err(kube::Error::Api(status)) if status.code == 401 => {
                    self.access.sign_out().await;
                    Ok(operation(self.access.client().await?).await?)
                }
                answer => Ok(answer?),
            }
        };
        tokio::time::timeout(CALL_BUDGET, attempts).await.unwrap_or(Err(ClusterError::TimedOut))
    }
}
