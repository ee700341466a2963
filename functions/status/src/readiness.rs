//! GET /readyz: whether everything behind the API answers, asked as its requests ask.

use futures::future;
use tracing::warn;
use training_core::{
    api::{
        problem::Code,
        readiness::{Check, Readiness},
    },
    cause::chain,
};
use training_http::{
    Answer, Failure,
    answer::{cluster_failure, storage_failure},
};
use training_run::names::Namespace;

use crate::handler::{Asked, Handler};

// === impl Handler ===

impl Handler {
    pub(crate) async fn readiness(&self, asked: Result<Asked, Failure>) -> Result<Answer, Failure> {
        let readiness = match asked {
            // Nobody can be let in now, and for nobody the cluster and the bucket are asked.
            Err(failure) if failure.problem.code == Code::AuthUnavailable => {
                Readiness::new(check("token", Err(failure)), None, None)
            }
            asked => {
                let namespace = self.namespace(asked?)?;
                let (cluster, storage) = tokio::join!(self.cluster_answers(&namespace), self.storage_answers());
                let (cluster, storage) = (check("cluster", cluster), check("storage", storage));
                // The token of this very request was checked against its secret.
                Readiness::new(Check::ok(), Some(cluster), Some(storage))
            }
        };
        Answer::json(if readiness.ready { 200 } else { 503 }, &readiness)
    }

    async fn cluster_answers(&self, namespace: &Namespace) -> Result<(), Failure> {
        self.cluster.jobs(namespace).page("", 1, None).await.map_err(cluster_failure)?;
        Ok(())
    }

    async fn storage_answers(&self) -> Result<(), Failure> {
        let lists = self.runs_base_uris.iter().map(|base| async move {
            self.store.list_keys(base.bucket(), base.key(), None, 1).await.map_err(storage_failure)
        });
        future::try_join_all(lists).await?;
        Ok(())
    }
}

fn check(name: &str, answer: Result<(), Failure>) -> Check {
    match answer {
        Ok(()) => Check::ok(),
        Err(failure) => {
            let cause = failure.cause.as_deref().map(|cause| chain(cause)).unwrap_or_default();
            warn!(check = name, code = failure.problem.code.as_str(), cause, "not ready: {}", failure.problem.detail);
            Check::failed(&failure.problem)
        }
    }
}
