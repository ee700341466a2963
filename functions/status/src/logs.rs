//! GET /train/{name}/logs: what a pod of the job prints, as long as the cluster has it.

use std::time::Duration;

use futures::{AsyncBufReadExt, io};
use lambda_http::http::HeaderName;
use tokio::time::{Instant, timeout_at};
use tracing::warn;
use training_cluster::{ClusterError, LogOptions, LogStream};
use training_core::{
    cause::chain,
    layout::RunPrefix,
    logs::{ChoiceError, Instance, MAX_LOG_BYTES, Replica, Tail, rfc3339},
    problem::{Code, FieldError, Problem},
    pytorchjob::{PyTorchJob, key},
};
use training_http::{Answer, Failure, answer::cluster_failure};

use crate::handler::{Asked, Handler};

/// Lines of an answer.
const DEFAULT_TAIL: u32 = 500;
const MAX_TAIL: u32 = 10_000;
/// The last rank of the largest job: 1,000 nodes with 64 processes each.
const MAX_RANK: u32 = 63_999;
const MAX_ATTEMPT: u32 = 1_000_000;
/// Reading ends here; API Gateway gives up after 30 s.
const BUDGET: Duration = Duration::from_secs(20);
/// `true` when older lines were left out to keep the answer within its size.
const TRUNCATED: HeaderName = HeaderName::from_static("log-truncated");
/// `true` when the newest lines are missing, because the cluster took too long to give them.
const INCOMPLETE: HeaderName = HeaderName::from_static("log-incomplete");

// === impl Handler ===

impl Handler {
    pub(crate) async fn logs(&self, name: &str, mut asked: Asked) -> Result<Answer, Failure> {
        let deadline = Instant::now() + BUDGET;
        let replica: Option<Replica> = asked.query.value("replica");
        let rank = asked.query.number("rank", 0, MAX_RANK);
        let attempt = asked.query.number("attempt", 1, MAX_ATTEMPT);
        let tail_lines = asked.query.number("tail", 1, MAX_TAIL).unwrap_or(DEFAULT_TAIL);
        let since = asked.query.text("since").map(|since| rfc3339(&since));
        if let Some(None) = since {
            let detail =
                "must be a time as RFC 3339 writes it, such as 2026-11-24T03:00:00Z (a plus sign is sent as %2B)";
            asked.query.refuse("since", "format", detail);
        }
        let namespace = self.namespace_of(asked, name)?;
        let (name, job) = self.job(&namespace, name).await?;
        let elsewhere = elsewhere(&job, self.prefix(&job).as_ref(), rank);
        let not_found = |what: &str| Failure::new(Code::LogNotFound, format!("{what}{elsewhere}"));

        let replica = Replica::choose(&job, replica, rank).map_err(|error| match error {
            ChoiceError::NoReplica(..) | ChoiceError::NoRank(..) => Failure::new(Code::LogNotFound, error.to_string()),
            ChoiceError::RanksUnknown | ChoiceError::Contradiction(..) => {
                let pointer = "?rank".to_owned();
                Problem::invalid(vec![FieldError { pointer, code: "conflict", detail: error.to_string() }]).into()
            }
        })?;
        let pod_name = replica.pod_name(name.as_str());
        let jobs = self.cluster.jobs(&namespace);
        let pod = jobs.pod(&pod_name).await.map_err(cluster_failure)?.filter(|pod| job.owns(&pod.metadata));
        let pod = pod.ok_or_else(|| not_found(&format!("there is no pod `{pod_name}` now")))?;
        let instance =
            Instance::choose(&pod, attempt).map_err(|error| not_found(&format!("of the pod `{pod_name}`: {error}")))?;

        let options = LogOptions { instance, tail_lines, since: since.flatten() };
        let log = jobs.log(&pod_name, &options).await.map_err(|error| match error {
            ClusterError::NotFound => not_found(&format!("there is no pod `{pod_name}` any more")),
            ClusterError::BadRequest(message) => not_found(&format!("of the pod `{pod_name}`: {message}")),
            // The API server could not reach the node, and says so with a 500.
            ClusterError::Unexpected(cause) => {
                let detail = format!("the node of the pod `{pod_name}` does not answer now; try again{elsewhere}");
                Failure::with_cause(Code::ClusterUnavailable, detail, cause)
            }
            error => cluster_failure(error),
        })?;
        let (text, truncated, incomplete) = read(log, deadline).await?;
        let mut answer = Answer::text(200, text);
        if truncated {
            answer = answer.with_header(TRUNCATED, "true");
        }
        if incomplete {
            answer = answer.with_header(INCOMPLETE, "true");
        }
        Ok(answer)
    }
}

/// Read a log until it ends or time is up: its newest part, whether older lines were dropped, and whether newer ones did
/// not come.
async fn read(mut log: LogStream, deadline: Instant) -> Result<(String, bool, bool), Failure> {
    let mut tail = Tail::new(MAX_LOG_BYTES);
    let reading = async {
        loop {
            let bytes = log.fill_buf().await?;
            let count = bytes.len();
            if count == 0 {
                return Ok::<(), io::Error>(());
            }
            tail.push(bytes);
            log.consume_unpin(count);
        }
    };
    let end = timeout_at(deadline, reading).await;
    let (text, truncated) = tail.finish();
    match end {
        Ok(Ok(())) => Ok((text, truncated, false)),
        // What has come is worth more than nothing.
        Ok(Err(error)) if !text.is_empty() => {
            warn!(cause = chain(&error), "the log broke off");
            Ok((text, truncated, true))
        }
        Err(_) if !text.is_empty() => Ok((text, truncated, true)),
        Ok(Err(error)) => {
            Err(Failure::with_cause(Code::ClusterUnavailable, "the log cannot be read now; try again", error))
        }
        Err(_) => Err(cluster_failure(ClusterError::TimedOut(None))),
    }
}

/// Where the trainer keeps its own logs, for one that the cluster does not have.
fn elsewhere(job: &PyTorchJob, prefix: Option<&RunPrefix>, rank: Option<u32>) -> String {
    let (Some(prefix), Some(submission)) = (prefix, job.annotation(key::SUBMISSION)) else { return String::new() };
    let rank = rank.map_or_else(|| "<r>".to_owned(), |rank| rank.to_string());
    let archive = prefix.uri(&format!("logs/{submission}/attempt-<n>/rank-{rank}.log"));
    format!("; an image that archives its logs keeps them as {archive}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::{StreamExt, TryStreamExt, stream};

    #[tokio::test]
    async fn what_has_come_is_told_when_the_rest_does_not() {
        let broken = || stream::iter([Err(io::Error::other("gone"))]).boxed();
        for (case, first, rest, told) in [
            ("ends", "a\n", stream::empty().boxed(), Ok(("a\n", false))),
            ("breaks off", "a\n", broken(), Ok(("a\n", true))),
            ("stalls", "a\nb", stream::pending().boxed(), Ok(("a\nb", true))),
            ("breaks off at once", "", broken(), Err(Code::ClusterUnavailable)),
            ("stalls at once", "", stream::pending().boxed(), Err(Code::ClusterTimeout)),
            ("is empty", "", stream::empty().boxed(), Ok(("", false))),
        ] {
            let first = (!first.is_empty()).then(|| Ok(first.as_bytes().to_vec()));
            let log = stream::iter(first).chain(rest).into_async_read();
            let answer = read(Box::pin(log), Instant::now() + Duration::from_millis(50)).await;
            let answer = answer.map(|(text, truncated, incomplete)| {
                assert!(!truncated, "{case}");
                (text, incomplete)
            });
            let told = told.map(|(text, incomplete)| (text.to_owned(), incomplete));
            assert_eq!(answer.map_err(|failure| failure.problem.code), told, "{case}");
        }
    }
}
