//! The trainer's ledger of a submission's starts. It outlives the job's pods and their last words.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::json::{BadField, Fields, is_too_deep};

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
    /// Another submission or pod trains the run now.
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
}

// === impl AttemptError ===

impl From<BadField> for AttemptError {
    fn from(BadField(name): BadField) -> Self {
        Self::Field(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_cause_of_the_trainer_is_known() {
        let source = include_str!("../../../trainer/training/errors.py");
        let names: Vec<&str> = source
            .lines()
            .filter_map(|line| line.strip_suffix('"')?.split_once(" = \""))
            .map(|(_, name)| name)
            .collect();
        assert!(names.contains(&"out_of_memory") && names.len() == 7, "{names:?}");
        for name in names {
            let cause: Cause = serde_json::from_value(json!(name)).expect(name);
            assert_eq!(serde_json::to_value(cause).expect("a text"), name);
        }
    }
}
