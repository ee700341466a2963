//! GET /train/{name}/logs: what a pod of the job prints, as long as the cluster has it, and after that what the trainer has
//! written of it into the bucket. Which of the two is read is decided in `training_core::job::log_source`; here both are
//! read, the second by `archive`.

use std::{error::Error, fmt::Display, time::Duration};

use futures::{AsyncBufReadExt, io};
use lambda_http::http::HeaderName;
use tokio::time::{Instant, timeout_at};
use tracing::warn;
use training_cluster::{ClusterError, LogOptions, LogStream};
use training_core::{
    api::{
        problem::{Code, FieldError, Problem},
        route::{ATTEMPT, RANK, TAIL},
    },
    cause::chain,
    job::{
        log_source::{self, End, Hint, Next, Question, Source},
        logs::{ChoiceError, Instance, MAX_LOG_BYTES, Replica, Tail, Timestamp, rfc3339},
        provenance::Attribution,
        pytorchjob::PyTorchJob,
    },
};
use training_http::{
    Answer, Failure,
    answer::{cluster_failure, storage_failure},
};
use training_run::names::{JobName, Namespace};
use training_store::StoreError;

use crate::{
    archive,
    handler::{Asked, Handler},
};

/// Reading what the cluster has ends here, reading parts of the archive then, and finding them later; API Gateway gives up
/// after 30 s.
const BUDGET: Duration = Duration::from_secs(18);
const BUDGET_OF_PARTS: Duration = Duration::from_secs(24);
const BUDGET_OF_ARCHIVE: Duration = Duration::from_secs(25);
/// `true` when older lines were left out to keep the answer within its size and time.
const TRUNCATED: HeaderName = HeaderName::from_static("log-truncated");
/// `true` when the newest lines are missing, because the cluster took too long to give them.
const INCOMPLETE: HeaderName = HeaderName::from_static("log-incomplete");
/// `cluster` or `archive`.
const SOURCE: HeaderName = HeaderName::from_static("log-source");
/// Which attempt of the submission an archived log is of.
const LOG_ATTEMPT: HeaderName = HeaderName::from_static("log-attempt");

/// Why the bucket did not tell what it has.
type Unknown = Box<dyn Error + Send + Sync>;

/// The log that is asked for.
struct Wanted {
    replica: Replica,
    /// The one asked for, or else the pod's first; `None` when the job does not say which that is.
    rank: Option<u32>,
    attempt: Option<u32>,
    tail_lines: u32,
    since: Option<Timestamp>,
}

/// The cluster gave no log.
struct Unprinted {
    failure: Failure,
    may_be_archived: bool,
}

// === impl Handler ===

impl Handler {
    pub(crate) async fn logs(&self, name: &str, mut asked: Asked) -> Result<Answer, Failure> {
        let began = Instant::now();
        let source = asked.query.word("source", [("cluster", Source::Cluster), ("archive", Source::Archive)]);
        let replica: Option<Replica> = asked.query.value("replica");
        let rank = asked.query.number("rank", RANK);
        let attempt = asked.query.number("attempt", ATTEMPT);
        let tail_lines = asked.query.number("tail", TAIL).unwrap_or_default();
        let since = asked.query.text("since").map(|since| rfc3339(&since));
        if let Some(None) = since {
            let detail =
                "must be a time as RFC 3339 writes it, such as 2026-11-24T03:00:00Z (a plus sign is sent as %2B)";
            asked.query.refuse("since", "format", detail);
        } else if since.is_some() && source == Some(Source::Archive) {
            asked.query.refuse("since", "conflict", "lines of the archive have no times; send `tail` instead");
        }
        let namespace = self.namespace_of(asked, name)?;
        let (name, job) = self.job(&namespace, name).await?;
        let replica = Replica::choose(&job, replica, rank).map_err(|error| match error {
            ChoiceError::NoReplica(..) | ChoiceError::NoRank(..) => Failure::new(Code::LogNotFound, error.to_string()),
            ChoiceError::RanksUnknown | ChoiceError::Contradiction(..) => {
                let pointer = "?rank".to_owned();
                Problem::invalid(vec![FieldError { pointer, code: "conflict", detail: error.to_string() }]).into()
            }
        })?;
        let rank = rank.or_else(|| replica.first_rank(&job).ok());
        let wanted = Wanted { replica, rank, attempt, tail_lines, since: since.flatten() };

        let deadline = began + BUDGET_OF_ARCHIVE;
        let run = async || -> Result<Option<Attribution>, Unknown> {
            Ok(timeout_at(deadline, self.run(&namespace, &name, &job)).await??)
        };
        let question = Question { source, has_since: wanted.since.is_some(), has_rank: wanted.rank.is_some() };
        let (mut printed, mut archived) = (None, None);
        let end = loop {
            match question.next(printed.as_ref().map(of_cluster), archived.as_ref().map(of_archive)) {
                Next::Read(Source::Cluster) => {
                    printed = Some(self.printed(&namespace, &name, &job, &wanted, began + BUDGET).await);
                }
                Next::Read(Source::Archive) => {
                    archived = Some(match run().await {
                        Ok(run) => match timeout_at(deadline, self.archived(run.as_ref(), &wanted, began)).await {
                            Ok(Ok(answer)) => Ok((run, answer)),
                            Ok(Err(error)) => Err(error.into()),
                            Err(late) => Err(late.into()),
                        },
                        Err(error) => Err(error),
                    });
                }
                Next::Done(end) => break end,
            }
        };
        match (end, printed, archived) {
            (End::Serve(Source::Cluster), Some(Ok(answer)), _)
            | (End::Serve(Source::Archive), _, Some(Ok((_, Some(answer))))) => Ok(answer),
            (End::RefuseUnarchived, _, Some(Ok((run, _)))) => {
                let place = archive_of(run.as_ref(), &wanted, " at ");
                Err(Failure::new(Code::LogNotFound, format!("there is no readable archived log{place}")))
            }
            (End::RefuseUnknown, _, Some(Err(error))) => Err(storage_failure(error)),
            (End::RefuseAbsentAndUnknown, Some(Err(unprinted)), Some(Err(error))) => {
                let mut unknown = storage_failure(error);
                unknown.problem.detail = format!("{}; {}", unprinted.failure.problem.detail, unknown.problem.detail);
                Err(unknown)
            }
            (End::Refuse(hint), Some(Err(Unprinted { mut failure, .. })), archived) => {
                let run = match archived {
                    Some(archived) => archived.map(|(run, _)| run),
                    None => run().await,
                };
                let words = match hint {
                    Hint::NotArchived => "; there is no readable archived log at ",
                    Hint::MayBeArchived | Hint::None => "; retry with source=archive if the trainer archives it at ",
                };
                match run {
                    Ok(run) => failure.problem.detail.push_str(&archive_of(run.as_ref(), &wanted, words)),
                    Err(error) => warn!(cause = chain(&*error), "no archived log"),
                }
                Err(failure)
            }
            // Each ending has what it was made of.
            _ => Err(Failure::new(
                Code::ClusterError,
                "this service found neither a log nor a reason; retry the same request",
            )),
        }
    }

    /// The log as the cluster has it.
    async fn printed(
        &self,
        namespace: &Namespace,
        name: &JobName,
        job: &PyTorchJob,
        wanted: &Wanted,
        deadline: Instant,
    ) -> Result<Answer, Unprinted> {
        let other = |failure: Failure| Unprinted { failure, may_be_archived: false };
        let no_pod = |what: String| Unprinted { failure: Failure::new(Code::LogNotFound, what), may_be_archived: true };
        let no_start = |failure: Failure| Unprinted { failure, may_be_archived: wanted.attempt.is_none() };

        let pod_name = wanted.replica.pod_name(name.as_str());
        let jobs = self.cluster.jobs(namespace);
        let pod = jobs.pod(&pod_name).await.map_err(|error| other(cluster_failure(error)))?;
        let pod = pod.filter(|pod| job.owns(&pod.metadata));
        let pod = pod.ok_or_else(|| no_pod(format!("the pod `{pod_name}` does not exist now")))?;
        let of_the_pod = |what: &dyn Display| Failure::new(Code::LogNotFound, format!("the pod `{pod_name}`: {what}"));
        let instance = Instance::choose(&pod, wanted.attempt).map_err(|error| no_start(of_the_pod(&error)))?;

        let options = LogOptions { instance, tail_lines: wanted.tail_lines, since: wanted.since };
        let log = jobs.log(&pod_name, &options).await.map_err(|error| match error {
            ClusterError::NotFound => no_pod(format!("the pod `{pod_name}` no longer exists")),
            ClusterError::BadRequest(message) => no_start(of_the_pod(&message)),
            // The API server could not reach the node, and says so with a 500.
            ClusterError::Unexpected(cause) => {
                let detail = format!("the node of the pod `{pod_name}` is not responding; retry later");
                no_start(Failure::with_cause(Code::ClusterUnavailable, detail, cause))
            }
            error @ (ClusterError::Denied(_) | ClusterError::NotReady(_)) => other(cluster_failure(error)),
            // Its pod was told just now: what takes too long is the node.
            error => no_start(cluster_failure(error)),
        })?;
        let (text, truncated, incomplete) = read(log, deadline).await.map_err(no_start)?;
        Ok(answer(text, Source::Cluster, truncated, incomplete))
    }

    /// The log as the trainer has archived it, if it has.
    async fn archived(
        &self,
        run: Option<&Attribution>,
        wanted: &Wanted,
        began: Instant,
    ) -> Result<Option<Answer>, StoreError> {
        let (Some(Attribution { prefix, submission, .. }), Some(rank)) = (run, wanted.rank) else { return Ok(None) };
        let lines = usize::try_from(wanted.tail_lines).unwrap_or(usize::MAX);
        let deadline = began + BUDGET_OF_PARTS;
        let found = archive::read(&self.store, prefix, submission, wanted.attempt, rank, lines, deadline).await?;
        Ok(found.map(|found| {
            answer(found.text, Source::Archive, found.truncated, false)
                .with_header(LOG_ATTEMPT, found.attempt.to_string())
        }))
    }
}

fn of_cluster(printed: &Result<Answer, Unprinted>) -> log_source::Printed {
    match printed {
        Ok(_) => log_source::Printed::Log,
        Err(Unprinted { failure, may_be_archived }) if failure.problem.code == Code::LogNotFound => {
            log_source::Printed::Absent { may_be_archived: *may_be_archived }
        }
        Err(Unprinted { may_be_archived, .. }) => log_source::Printed::Unknown { may_be_archived: *may_be_archived },
    }
}

fn of_archive(archived: &Result<(Option<Attribution>, Option<Answer>), Unknown>) -> log_source::Archived {
    match archived {
        Ok((_, Some(_))) => log_source::Archived::Log,
        Ok((_, None)) => log_source::Archived::Absent,
        Err(_) => log_source::Archived::Unknown,
    }
}

/// Where the trainer keeps the log, after these words; nothing when it cannot be said.
fn archive_of(run: Option<&Attribution>, wanted: &Wanted, words: &str) -> String {
    let Some(Attribution { prefix, submission, .. }) = run else { return String::new() };
    let [attempt, rank] = [(wanted.attempt, "<n>"), (wanted.rank, "<r>")]
        .map(|(number, any)| number.map_or_else(|| any.to_owned(), |number| number.to_string()));
    let uri = prefix.uri(&format!("logs/{submission}/attempt-{attempt}/rank-{rank}.log"));
    format!("{words}{uri}")
}

fn answer(text: String, source: Source, truncated: bool, incomplete: bool) -> Answer {
    let source = match source {
        Source::Cluster => "cluster",
        Source::Archive => "archive",
    };
    let mut answer = Answer::text(200, text).with_header(SOURCE, source);
    if truncated {
        answer = answer.with_header(TRUNCATED, "true");
    }
    if incomplete {
        answer = answer.with_header(INCOMPLETE, "true");
    }
    answer
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
            Err(Failure::with_cause(Code::ClusterUnavailable, "the log cannot be read now; retry later", error))
        }
        Err(_) => Err(cluster_failure(ClusterError::TimedOut(None))),
    }
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
