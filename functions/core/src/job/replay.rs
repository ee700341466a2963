//! What POST /train does about a job that already has the name: it replays, replaces or refuses, and never makes a second
//! one.

use std::{collections::HashMap, str::FromStr};

use thiserror::Error;
use training_run::names::Submission;

use crate::{
    api::problem::{Code, FieldError, Problem},
    job::{
        pytorchjob::{PyTorchJob, key},
        status::Phase,
    },
    request::fingerprint::Fingerprint,
};

/// What `?restart=` asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Restart {
    /// Replace a finished job of the name, whichever it is.
    Finished,
    /// Replace the job of this submission once it is finished. Safe to repeat: what took its place is not replaced.
    Submission(Submission),
}

/// A text is not a value of `?restart=`.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("must be true, or the submission id of the job to replace")]
pub struct RestartError;

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It is the job that we made: only the answer to that was lost.
    Ours,
    /// It is the job that the same request made before.
    Replay,
    /// Delete it and wait until its name is free.
    Replace,
    /// It is being deleted already: wait until its name is free.
    Await,
}

// === impl Restart ===

impl FromStr for Restart {
    type Err = RestartError;

    fn from_str(text: &str) -> Result<Self, RestartError> {
        match text {
            "true" => Ok(Self::Finished),
            other => other.parse().map(Self::Submission).map_err(|_| RestartError),
        }
    }
}

// === impl Decision ===

impl Decision {
    /// Decide. `wanted` is the job that the request makes; `restart` is `None` also once a job was replaced, so that a
    /// request replaces at most one.
    ///
    /// # Errors
    /// `job_conflict`, `job_running` or `job_terminating`.
    pub fn of(found: &PyTorchJob, wanted: &PyTorchJob, restart: Option<&Restart>) -> Result<Self, Problem> {
        let submission = found.annotation(key::SUBMISSION);
        if submission.is_some() && submission == wanted.annotation(key::SUBMISSION) {
            return Ok(Self::Ours);
        }
        let name = found.metadata.name.as_deref().unwrap_or_default();
        let differences = Differences::between(found, wanted);
        let is_leaving = found.metadata.deletion_timestamp.is_some();
        // Names of different runs may meet (`a_b`, `a-b`), runs of different bases have the same labels, and labels alone make
        // no job ours: other tools group jobs by them.
        let is_same_run = submission.is_some()
            && found.annotation(key::CHECKPOINT_PREFIX) == wanted.annotation(key::CHECKPOINT_PREFIX)
            && [key::FRAMEWORK, key::RUN_ID].iter().all(|label| found.label(label) == wanted.label(label));
        match restart {
            Some(_) if !is_same_run => Err(differences.conflict(name)),
            Some(Restart::Submission(named)) if submission != Some(named.as_str()) => {
                if is_leaving {
                    Err(terminating(name))
                } else if differences.is_empty() {
                    Ok(Self::Replay)
                } else {
                    Err(differences.conflict(name))
                }
            }
            Some(_) if is_leaving => Ok(Self::Await),
            Some(_) if Phase::of(found).0.is_finished() => Ok(Self::Replace),
            Some(_) => Err(Problem::new(
                Code::JobRunning,
                format!(
                    "the job `{name}` is not finished; only a finished job is replaced (DELETE /train/{name} stops it)"
                ),
            )),
            None if is_leaving => Err(terminating(name)),
            None if differences.is_empty() => Ok(Self::Replay),
            None => Err(differences.conflict(name)),
        }
    }
}

/// The fields in which two requests differ; `None` when that cannot be told.
struct Differences(Option<Vec<String>>);

// === impl Differences ===

impl Differences {
    fn between(found: &PyTorchJob, wanted: &PyTorchJob) -> Self {
        let read = |job: &PyTorchJob| Fingerprint::from_annotation(job.annotation(key::REQUEST)?);
        let differences = read(found).zip(read(wanted));
        Self(differences.map(|(found, wanted)| found.differences(&wanted).into_iter().map(str::to_owned).collect()))
    }

    fn is_empty(&self) -> bool {
        self.0.as_ref().is_some_and(Vec::is_empty)
    }

    fn conflict(&self, name: &str) -> Problem {
        let mut problem = Problem::new(
            Code::JobConflict,
            match &self.0 {
                Some(fields) if !fields.is_empty() => format!(
                    "the job `{name}` was submitted with another {}; choose another run_id, or send ?restart=true once that \
                     job has finished",
                    fields.join(", ")
                ),
                _ => format!("another request made the job `{name}`; choose another run_id or job_name"),
            },
        );
        problem.errors = self
            .0
            .iter()
            .flatten()
            .map(|field| FieldError {
                pointer: format!("/{field}"),
                code: "differs",
                detail: "differs from the request that made the job".to_owned(),
            })
            .collect();
        problem
    }
}

/// The refusal while an old job's pods are still there.
#[must_use]
pub fn terminating(name: &str) -> Problem {
    Problem::new(
        Code::JobTerminating,
        format!("the job `{name}` is being deleted and its pods are still stopping; retry the same request"),
    )
}

/// The refusal to replay, replace or change a job whose maker the bucket does not confirm.
#[must_use]
pub fn foreign(name: &str) -> Problem {
    Problem::new(Code::ForeignJob, format!("this API did not make the job `{name}`; change it with the tool that did"))
}

/// Whether a quota that refused one object more, in the API server's words, has room for it when another is gone. Words
/// that are not understood say so too: what a quota counts beside objects nobody knows here.
#[must_use]
pub fn has_room_without_one(said: &str) -> bool {
    let numbers = |word: &str| -> HashMap<&str, u64> {
        let list = said.split_once(word).map_or("", |(_, rest)| rest);
        // The next word follows a comma and a space, and so does nothing within a list.
        let list = list.split_once(", ").map_or(list, |(list, _)| list);
        list.split(',')
            .filter_map(|entry| entry.rsplit_once('='))
            .filter_map(|(of, n)| Some((of, n.parse().ok()?)))
            .collect()
    };
    let (used, limited) = (numbers(" used: "), numbers(" limited: "));
    limited.iter().all(|(of, limit)| used.get(of).is_none_or(|used| used <= limit))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const MINE: &str = "01980000-0000-7000-8000-000000000002";
    const OLD: &str = "01980000-0000-7000-8000-000000000001";

    /// A job of a submission whose request had this value in one field.
    fn job(submission: &str, steps: u32, condition: Option<&str>, is_leaving: bool) -> PyTorchJob {
        let request = json!({"run_id": "r", "extra_args": {"max_steps": steps}});
        let fingerprint = Fingerprint::of(request.as_object().expect("an object")).to_annotation();
        let conditions: Vec<_> =
            condition.into_iter().map(|condition| json!({"type": condition, "status": "True"})).collect();
        let mut job = json!({
            "apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "spec": {},
            "metadata": {
                "name": "hf-r", "labels": {(key::FRAMEWORK): "hf", (key::RUN_ID): "r"},
                "annotations": {(key::SUBMISSION): submission, (key::REQUEST): fingerprint},
            },
            "status": {"conditions": conditions},
        });
        if is_leaving {
            job["metadata"]["deletionTimestamp"] = json!("2026-11-24T00:00:00Z");
        }
        serde_json::from_value(job).expect("a job")
    }

    #[test]
    fn a_quota_that_is_exceeded_by_more_than_one_has_no_room_for_another_in_its_place() {
        let quota = "pytorchjobs.kubeflow.org \"a\" is forbidden: exceeded quota: jobs, requested: count/p.k.org=1";
        for (said, has_room) in [
            (format!("{quota}, used: count/p.k.org=1, limited: count/p.k.org=1"), true),
            (format!("{quota}, used: count/p.k.org=2, limited: count/p.k.org=1"), false),
            (format!("{quota}, used: count/p.k.org=1,count/x=5, limited: count/p.k.org=1,count/x=4"), false),
            (format!("{quota}, used: count/p.k.org=1,x=1Gi, limited: count/p.k.org=1,x=1Gi"), true),
            (format!("{quota}, used: , limited: "), true),
            ("exceeded quota".to_owned(), true),
        ] {
            assert_eq!(has_room_without_one(&said), has_room, "{said}");
        }
    }

    #[test]
    fn each_meeting_has_one_outcome() {
        let wanted = job(MINE, 1, None, false);
        let finished = Some(Restart::Finished);
        let old: Option<Restart> = Some(OLD.parse().expect("a submission"));
        let other: Option<Restart> = Some("01980000-0000-7000-8000-000000000009".parse().expect("a submission"));
        let succeeded = Some("Succeeded");
        let running = Some("Running");
        for (label, found, restart, outcome) in vec![
            ("our own write", job(MINE, 1, None, false), &None, Ok(Decision::Ours)),
            ("equal and running", job(OLD, 1, running, false), &None, Ok(Decision::Replay)),
            ("equal and finished", job(OLD, 1, succeeded, false), &None, Ok(Decision::Replay)),
            ("different", job(OLD, 2, running, false), &None, Err(Code::JobConflict)),
            ("leaving", job(OLD, 1, succeeded, true), &None, Err(Code::JobTerminating)),
            ("restart of a finished one", job(OLD, 2, succeeded, false), &finished, Ok(Decision::Replace)),
            ("restart of a failed one", job(OLD, 1, Some("Failed"), false), &finished, Ok(Decision::Replace)),
            ("restart of a live one", job(OLD, 1, running, false), &finished, Err(Code::JobRunning)),
            ("restart of a new one", job(OLD, 1, None, false), &finished, Err(Code::JobRunning)),
            ("restart of a leaving one", job(OLD, 1, running, true), &finished, Ok(Decision::Await)),
            ("restart of the named one", job(OLD, 2, succeeded, false), &old, Ok(Decision::Replace)),
            ("restart of the named, live one", job(OLD, 1, running, false), &old, Err(Code::JobRunning)),
            ("restart repeated", job(OLD, 1, running, false), &other, Ok(Decision::Replay)),
            ("restart repeated after the end", job(OLD, 1, succeeded, false), &other, Ok(Decision::Replay)),
            ("restart of one that another replaced", job(OLD, 2, succeeded, false), &other, Err(Code::JobConflict)),
        ] {
            let decided = Decision::of(&found, &wanted, restart.as_ref()).map_err(|problem| problem.code);
            assert_eq!(decided, outcome, "{label}");
        }
    }

    #[test]
    fn a_conflict_names_the_fields_and_no_values() {
        let problem = Decision::of(&job(OLD, 2, None, false), &job(MINE, 1, None, false), None).expect_err("differs");
        let errors: Vec<_> = problem.errors.iter().map(|error| (error.pointer.as_str(), error.code)).collect();
        assert_eq!(errors, [("/extra_args", "differs")]);
    }

    #[test]
    fn a_job_of_another_run_or_another_maker_is_never_touched() {
        let wanted = job(MINE, 1, None, false);
        let mut other_run = job(OLD, 1, Some("Succeeded"), false);
        other_run.metadata.labels.as_mut().expect("labels").insert(key::RUN_ID.to_owned(), "R".to_owned());
        let mut foreign = job(OLD, 1, Some("Succeeded"), false);
        foreign.metadata.annotations = None;
        foreign.metadata.labels = None;
        let mut labelled = job(OLD, 1, Some("Succeeded"), false);
        labelled.metadata.annotations = None;
        for found in [other_run, foreign.clone(), labelled] {
            let problem = Decision::of(&found, &wanted, Some(&Restart::Finished)).expect_err("another's");
            assert_eq!(problem.code, Code::JobConflict);
        }
        assert_eq!(Decision::of(&foreign, &wanted, None).expect_err("another's").code, Code::JobConflict);
    }
}
