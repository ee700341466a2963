//! Cancel, suspend and resume one job, if this API has made it.

use lambda_http::http::header;
use training_cluster::{ClusterError, Jobs};
use training_core::{
    api::problem::{Code, Problem},
    job::{
        pytorchjob::{PyTorchJob, key},
        replay,
        status::{Phase, ProgressRead, TrainingJobStatus},
    },
};
use training_http::{Answer, Failure, answer::cluster_failure};
use training_run::names::{JobName, Namespace};

use crate::service::Service;

/// How often a change is tried again when the job changed between reading and writing it. The operator writes a job's
/// status a few times in its first seconds, and then seldom.
const TRIES: usize = 5;

/// A change of one job.
pub(crate) struct Change<'a> {
    service: &'a Service,
    namespace: &'a Namespace,
    jobs: Jobs<'a>,
    name: JobName,
}

// === impl Change ===

impl<'a> Change<'a> {
    /// Of the job of this name; a text that is no name names no job.
    pub(crate) fn new(service: &'a Service, namespace: &'a Namespace, name: &str) -> Result<Self, Failure> {
        let parsed = name.parse().map_err(|_| Problem::job_not_found(name, namespace))?;
        Ok(Self { service, namespace, jobs: service.cluster.jobs(namespace), name: parsed })
    }

    /// Delete the job after its pods. Repeating it is the same as doing it once.
    pub(crate) async fn cancel(self) -> Result<Answer, Failure> {
        let job = self.read().await?;
        if job.metadata.deletion_timestamp.is_some() {
            return self.accepted(&job);
        }
        match self.jobs.cancel(&job).await {
            Ok(cancelled) => self.accepted(&cancelled.unwrap_or(job)),
            // It was replaced or removed at this moment: what was asked for has happened.
            Err(ClusterError::NotFound) => Err(self.not_found().into()),
            Err(ClusterError::Changed) => Err(Failure::new(
                Code::JobConflict,
                format!("the job `{}` was replaced while this request ran; read its status and retry", self.name),
            )),
            Err(error) => Err(cluster_failure(error)),
        }
    }

    /// Take the job's pods away, or let it have them again. Repeating it is the same as doing it once.
    pub(crate) async fn set_suspend(self, suspend: bool) -> Result<Answer, Failure> {
        for _ in 0..TRIES {
            let job = self.read().await?;
            self.check_changeable(&job)?;
            if job.spec.run_policy.suspend.unwrap_or_default() == suspend {
                return self.accepted(&job);
            }
            match self.jobs.set_suspend(&job, suspend).await {
                Ok(changed) => return self.accepted(&changed),
                Err(ClusterError::Changed) => {}
                Err(ClusterError::NotFound) => return Err(self.not_found().into()),
                Err(error) => return Err(cluster_failure(error)),
            }
        }
        Err(Failure::new(Code::ClusterUnavailable, format!("the job `{}` keeps changing; retry later", self.name)))
    }

    fn check_changeable(&self, job: &PyTorchJob) -> Result<(), Failure> {
        let name = &self.name;
        if job.metadata.deletion_timestamp.is_some() {
            return Err(replay::terminating(name.as_str()).into());
        }
        if Phase::of(job).0.is_finished() {
            return Err(Failure::new(Code::JobFinished, format!("the job `{name}` has ended")));
        }
        if let Some(queue) = job.label(key::QUEUE) {
            let detail = format!("the queue `{queue}` decides when the job `{name}` runs; ask its administrator");
            return Err(Failure::new(Code::QueueManaged, detail));
        }
        Ok(())
    }

    /// The job of the name, if it may be changed. Where the bucket cannot be asked, it may not.
    async fn read(&self) -> Result<PyTorchJob, Failure> {
        let job = self.jobs.get(&self.name).await.map_err(cluster_failure)?.ok_or_else(|| self.not_found())?;
        if self.service.provenance(&job, self.namespace, &self.name).await?.may_be_changed() {
            return Ok(job);
        }
        Err(replay::foreign(self.name.as_str()).into())
    }

    fn not_found(&self) -> Problem {
        Problem::job_not_found(self.name.as_str(), self.namespace)
    }

    fn accepted(&self, job: &PyTorchJob) -> Result<Answer, Failure> {
        let report = TrainingJobStatus::new(job, &self.service.rules.namespaces, None, ProgressRead::Unknown, None);
        let location = report.summary.links.itself.clone();
        Ok(Answer::json(202, &report)?.with_header(header::LOCATION, location))
    }
}
