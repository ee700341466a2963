//! GET /train/{name}/events.

use std::time::{Duration, Instant};

use training_cluster::ClusterError;
use training_core::job::events::EventGatherer;
use training_http::{Answer, Failure, answer::cluster_failure};

use crate::handler::{Asked, Handler};

/// Pages of a namespace's events that are looked through.
const MAX_PAGES: usize = 20;
/// What is found by then is told; API Gateway gives up after 30 s.
const BUDGET: Duration = Duration::from_secs(12);

// === impl Handler ===

impl Handler {
    pub(crate) async fn events(&self, name: &str, asked: Asked) -> Result<Answer, Failure> {
        let started = Instant::now();
        let namespace = self.namespace_of(asked, name)?;
        let (_, job) = self.job(&namespace, name).await?;
        let mut events = EventGatherer::new(&job);
        // Of a job's pods the names are known, but not the uids of those that are gone.
        let of_job = format!("involvedObject.uid={}", job.metadata.uid.as_deref().unwrap_or_default());
        for fields in [of_job.as_str(), "involvedObject.kind=Pod"] {
            let mut next = None;
            for page in 1.. {
                let found = match self.cluster.jobs(&namespace).events(fields, next.as_deref()).await {
                    // Between two pages; a caller can do nothing about it.
                    Err(ClusterError::ContinueExpired) => {
                        events.give_up();
                        break;
                    }
                    found => found.map_err(cluster_failure)?,
                };
                events.add(found.items);
                next = found.next;
                if next.is_none() {
                    break;
                }
                if page == MAX_PAGES || started.elapsed() > BUDGET {
                    events.give_up();
                    break;
                }
            }
        }
        Answer::json(200, &events.finish())
    }
}
