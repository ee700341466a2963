//! The trainer's ledger of a submission's starts, as far as it tells why a job failed: the operator deletes the pods of
//! such a job, and their last words with them.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    diagnosis::Diagnosis,
    fields::{BadField, Fields, is_too_deep},
    problem::{MAX_MESSAGE, bounded},
};

/// Largest entry that is read, in bytes; a thousand pods' UIDs take some forty thousand.
pub const MAX_ATTEMPT_BYTES: usize = 128 * 1024;

/// One start of a submission: `attempts/<submission>/<attempt>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Its number, from 1; its key has it.
    pub attempt: u32,
    /// Why it ended; `None` while it runs, and when it was killed before it could say so.
    pub cause: Option<Cause>,
    /// The global rank that knew.
    pub rank: Option<u32>,
    /// Its words.
    pub message: Option<String>,
}

/// Why an attempt ends, as `trainer/training/errors.py` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// It trained to the last step.
    Finished,
    /// Something that no restart mends, such as a setting.
    UserError,
    /// Memory ran out.
    OutOfMemory,
    /// The bucket or a disk could not be used.
    Storage,
    /// Anything else that went wrong.
    Crash,
    /// It was told to stop, or its pod was moved.
    Preempted,
    /// Another submission or pod goes on with the run.
    Superseded,
}

/// Why an object is not an entry of the ledger.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum AttemptError {
    /// Larger than any entry.
    #[error("is larger than {MAX_ATTEMPT_BYTES} bytes")]
    TooLarge,
    /// Not a JSON object, or one that nests without end.
    #[error("is not a JSON object")]
    Json,
    /// A field is missing, of a wrong type or out of range.
    #[error("its field `{0}` is missing or not what it must be")]
    Field(&'static str),
}

// === impl Attempt ===

impl Attempt {
    /// Read an entry. `tests/contract/attempts.json` holds the vectors that the trainer runs too: what it refuses counts as
    /// a crash there, so the fields that are of no use here are read too.
    ///
    /// # Errors
    /// It is not one. The trainer, which has to decide whether there is another start, takes it for a crash.
    pub fn parse(attempt: u32, body: &[u8]) -> Result<Self, AttemptError> {
        if body.len() > MAX_ATTEMPT_BYTES {
            return Err(AttemptError::TooLarge);
        }
        let fields = Fields::parse(body).filter(|_| !is_too_deep(body)).ok_or(AttemptError::Json)?;
        fields.get::<Vec<String>>("pods")?.ok_or(AttemptError::Field("pods"))?;
        fields.get::<f64>("started_at")?.ok_or(AttemptError::Field("started_at"))?;
        fields.get::<f64>("ended_at")?;
        if !fields.has("cause") {
            return Err(AttemptError::Field("cause"));
        }
        Ok(Self { attempt, cause: fields.get("cause")?, rank: fields.get("rank")?, message: fields.get("message")? })
    }

    fn sentence(&self) -> String {
        let number = self.attempt;
        let Some(cause) = self.cause else { return format!("attempt {number} has not said how it ended") };
        let rank = self.rank.map(|rank| format!(" (rank {rank})")).unwrap_or_default();
        let message = self.message.as_deref().map(|message| format!(": {message}{rank}")).unwrap_or_default();
        format!("attempt {number} {}{message}", cause.words())
    }
}

// === impl AttemptError ===

impl From<BadField> for AttemptError {
    fn from(BadField(name): BadField) -> Self {
        Self::Field(name)
    }
}

// === impl Cause ===

impl Cause {
    /// Whether it explains that a job failed.
    fn is_failure(self) -> bool {
        match self {
            Self::UserError | Self::OutOfMemory | Self::Storage | Self::Crash | Self::Superseded => true,
            Self::Finished | Self::Preempted => false,
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::UserError => "ended by user_error",
            Self::OutOfMemory => "ended by out_of_memory",
            Self::Storage => "ended by storage",
            Self::Crash => "ended by crash",
            Self::Preempted => "was told to stop",
            Self::Superseded => "was superseded",
        }
    }

    fn next_step(self) -> &'static str {
        match self {
            Self::UserError => "change what the message names, and send the request with ?restart=true",
            Self::OutOfMemory => {
                "lower batch_size or max_seq_len, or ask for more memory, and send the request with ?restart=true, and with \
                 resume_from_checkpoint to go on"
            }
            Self::Storage => {
                "make sure that the trainer may use the bucket and has room on its disk; then send the request with \
                 ?restart=true, and with resume_from_checkpoint to go on"
            }
            Self::Superseded => "look at the job that has the run now",
            Self::Crash | Self::Finished | Self::Preempted => READ_ITS_LOG,
        }
    }
}

const READ_ITS_LOG: &str = "read its log (/logs?source=archive); then send the request with ?restart=true, and with \
                            resume_from_checkpoint to go on";

/// Why a job failed, told from its newest attempts in any order: the newest that says what went wrong, and how the newest
/// of all ended where that is another one. `None` where they know of nothing wrong: the operator's own words are all then.
///
/// `folder` is the URI of the submission's ledger.
#[must_use]
pub fn diagnosis(attempts: &[Attempt], folder: &str) -> Option<Diagnosis> {
    let newest = attempts.iter().max_by_key(|attempt| attempt.attempt)?;
    let told = attempts.iter().filter(|attempt| attempt.cause.is_some_and(Cause::is_failure));
    let told = told.max_by_key(|attempt| attempt.attempt);
    let failed = told.or_else(|| Some(newest).filter(|newest| newest.cause.is_none()))?;
    let mut message = failed.sentence();
    if failed.attempt != newest.attempt {
        message = format!("{message}; {}", newest.sentence());
    }
    Some(Diagnosis {
        code: "failed",
        message: bounded(&message, MAX_MESSAGE),
        evidence: vec![format!("{folder}{}", failed.attempt)],
        next_step: failed.cause.map_or(READ_ITS_LOG, Cause::next_step),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn attempt(number: u32, cause: Option<&str>, message: Option<&str>) -> Attempt {
        let rank = message.map(|_| 3);
        let body = json!({"attempt": number, "pods": ["uid"], "started_at": 1.5, "cause": cause, "rank": rank,
            "message": message, "ended_at": cause.map(|_| 2.5)});
        Attempt::parse(number, body.to_string().as_bytes()).expect("an entry")
    }

    #[test]
    fn the_newest_that_went_wrong_is_told() {
        let memory = attempt(1, Some("out_of_memory"), Some("lower batch_size"));
        let crash = attempt(2, Some("crash"), None);
        let stopped = attempt(3, Some("preempted"), Some("told to stop"));
        let open = attempt(4, None, None);
        let finished = attempt(5, Some("finished"), None);
        let says_memory = "attempt 1 ended by out_of_memory: lower batch_size (rank 3)";
        for (attempts, told) in [
            (vec![], None),
            (vec![&memory], Some((says_memory.to_owned(), 1))),
            (vec![&memory, &crash], Some(("attempt 2 ended by crash".to_owned(), 2))),
            (
                vec![&stopped, &memory],
                Some((format!("{says_memory}; attempt 3 was told to stop: told to stop (rank 3)"), 1)),
            ),
            (vec![&memory, &open], Some((format!("{says_memory}; attempt 4 has not said how it ended"), 1))),
            (vec![&open, &stopped], Some(("attempt 4 has not said how it ended".to_owned(), 4))),
            (vec![&stopped], None),
            (vec![&open, &finished], None),
        ] {
            let attempts: Vec<_> = attempts.into_iter().cloned().collect();
            let found = diagnosis(&attempts, "s3://b/attempts/s/");
            assert_eq!(found.as_ref().map(|found| found.code), told.as_ref().map(|_| "failed"), "{told:?}");
            let found = found.map(|found| (found.message, found.evidence));
            assert_eq!(found, told.map(|(message, number)| (message, vec![format!("s3://b/attempts/s/{number}")])));
        }
    }

    #[test]
    fn each_cause_of_the_trainer_has_a_word_and_a_next_step() {
        let source = include_str!("../../../trainer/training/errors.py");
        let names: Vec<&str> = source
            .lines()
            .filter_map(|line| line.strip_suffix('"')?.split_once(" = \""))
            .map(|(_, name)| name)
            .collect();
        assert!(names.contains(&"out_of_memory") && names.len() == 7, "{names:?}");
        for name in names {
            let cause: Cause = serde_json::from_value(json!(name)).expect(name);
            assert!(!cause.words().is_empty() && !cause.next_step().is_empty());
        }
    }

    #[test]
    fn long_words_are_cut() {
        let long = attempt(1, Some("crash"), Some(&"x".repeat(5000)));
        let found = diagnosis(&[long], "").expect("a diagnosis");
        assert_eq!(found.message.chars().count(), MAX_MESSAGE);
    }
}
