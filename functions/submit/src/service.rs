//! What the function is made of, and what every route asks of it.

use training_cluster::Cluster;
use training_core::{
    job::{
        manifest::Platform,
        provenance::{Attribution, Provenance},
        pytorchjob::PyTorchJob,
    },
    request::Rules,
};
use training_http::{Failure, answer::storage_failure, token::TokenCheck};
use training_run::names::{JobName, Namespace};
use training_store::Store;

/// Everything that a request needs.
pub(crate) struct Service {
    pub(crate) token: TokenCheck,
    pub(crate) cluster: Cluster,
    pub(crate) store: Store,
    pub(crate) rules: Rules,
    pub(crate) platform: Platform,
}

// === impl Service ===

impl Service {
    /// Who made a job, as the bucket tells.
    ///
    /// # Errors
    /// The bucket does not answer.
    pub(crate) async fn provenance(
        &self,
        job: &PyTorchJob,
        namespace: &Namespace,
        name: &JobName,
    ) -> Result<Provenance, Failure> {
        match Attribution::of(job, namespace, name, &self.rules.runs_base_uris) {
            Some(attribution) => Box::pin(self.store.provenance(&attribution)).await.map_err(storage_failure),
            None => Ok(Provenance::Foreign),
        }
    }
}
