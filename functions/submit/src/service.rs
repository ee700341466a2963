//! What the function is made of, and what every route asks of it.

use training_cluster::Cluster;
use training_core::{
    job::{manifest::Platform, provenance::Attribution, pytorchjob::PyTorchJob},
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
    /// Whether a job may be changed: whether this API made it, as the bucket tells.
    pub(crate) async fn may_change(
        &self,
        job: &PyTorchJob,
        namespace: &Namespace,
        name: &JobName,
    ) -> Result<bool, Failure> {
        let Some(attribution) = Attribution::of(job, namespace, name, &self.rules.runs_base_uris) else {
            return Ok(false);
        };
        let provenance = Box::pin(self.store.provenance(&attribution)).await.map_err(storage_failure)?;
        Ok(provenance.may_be_changed())
    }
}
