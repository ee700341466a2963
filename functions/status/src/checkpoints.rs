//! GET /train/{name}/checkpoints and what is below it.

use futures::future::try_join;
use training_core::api::{
    checkpoints::{CheckpointAnswer, CheckpointList},
    links::{PageLinks, link},
    problem::Code,
    route::LIMIT,
};
use training_http::{Answer, Failure, boundary::in_storage};
use training_run::{
    entry::IndexEntry,
    layout::RunPrefix,
    lineage::{DEFAULT_METRIC, Mode},
    names::{Namespace, Step},
    text::bounded,
};

use crate::handler::{Asked, Handler};

const MAX_METRIC_LENGTH: usize = 256;

// === impl Handler ===

impl Handler {
    pub(crate) async fn checkpoints(&self, name: &str, mut asked: Asked) -> Result<Answer, Failure> {
        let limit = asked.query.number("limit", LIMIT).unwrap_or_default();
        let before: Option<Step> = asked.query.value("before");
        let namespace = self.namespace_of(asked, name)?;
        let (name, job) = self.job(&namespace, name).await?;
        let Some(prefix) = in_storage(self.run_with_checkpoints(&namespace, &name, &job)).await? else {
            return Answer::json(200, &CheckpointList { checkpoints: Vec::new(), links: PageLinks { next: None } });
        };
        let page = in_storage(self.store.index_page(&prefix, limit, before));
        let (page, lineage) = try_join(page, in_storage(self.store.lineage(&prefix))).await?;
        let next = page.next.map(|step| {
            let parameters = [("limit", Some(limit.to_string())), ("before", Some(step.to_string()))];
            let path = format!("/train/{name}/checkpoints");
            link(&path, parameters, Some(namespace.as_str()), &self.namespaces)
        });
        let checkpoints = page.entries.into_iter().map(|entry| CheckpointAnswer::new(entry, &lineage)).collect();
        Answer::json(200, &CheckpointList { checkpoints, links: PageLinks { next } })
    }

    pub(crate) async fn latest_checkpoint(&self, name: &str, asked: Asked) -> Result<Answer, Failure> {
        let prefix = self.run_of(name, self.namespace_of(asked, name)?).await?;
        let latest = in_storage(self.store.latest(&prefix)).await?;
        chosen(latest.ok_or("the run has no complete checkpoint"))
    }

    pub(crate) async fn best_checkpoint(&self, name: &str, mut asked: Asked) -> Result<Answer, Failure> {
        let metric = asked.query.text("metric").unwrap_or_else(|| DEFAULT_METRIC.to_owned());
        if metric.is_empty() || metric.len() > MAX_METRIC_LENGTH {
            asked.query.refuse("metric", "format", format!("must have 1 to {MAX_METRIC_LENGTH} bytes"));
        }
        let mode = asked.query.word("mode", [("min", Mode::Min), ("max", Mode::Max)]).unwrap_or(Mode::Min);
        let prefix = self.run_of(name, self.namespace_of(asked, name)?).await?;
        let best = in_storage(self.store.best(&prefix, &metric, mode)).await?;
        chosen(best.ok_or_else(|| format!("the run has no complete checkpoint with the metric `{metric}`")))
    }

    pub(crate) async fn checkpoint(&self, name: &str, step: &str, asked: Asked) -> Result<Answer, Failure> {
        let prefix = self.run_of(name, self.namespace_of(asked, name)?).await?;
        let not_found = || not_found(format!("the run has no checkpoint of step `{}`", bounded(step, 32)));
        let step: Step = step.parse().map_err(|_| not_found())?;
        let entry = in_storage(self.store.checkpoint(&prefix, step));
        let (entry, lineage) = try_join(entry, in_storage(self.store.lineage(&prefix))).await?;
        Answer::json(200, &CheckpointAnswer::new(entry.ok_or_else(not_found)?, &lineage))
    }

    /// The run of a job, of which one checkpoint is asked for.
    async fn run_of(&self, name: &str, namespace: Namespace) -> Result<RunPrefix, Failure> {
        let (name, job) = self.job(&namespace, name).await?;
        let run = in_storage(self.run_with_checkpoints(&namespace, &name, &job)).await?;
        run.ok_or_else(|| not_found("this API knows no run of the job, or the run belongs to another namespace now"))
    }
}

/// A checkpoint that was chosen, and so is superseded by none.
fn chosen(entry: Result<IndexEntry, impl Into<String>>) -> Result<Answer, Failure> {
    let entry = entry.map_err(not_found)?;
    Answer::json(200, &CheckpointAnswer { entry, superseded: false })
}

fn not_found(detail: impl Into<String>) -> Failure {
    Failure::new(Code::CheckpointNotFound, detail)
}
