//! The progress object that the trainer rewrites while it trains.

#[cfg(feature = "schema")]
use schemars::JsonSchema;
use serde::Serialize;

use crate::{
    json::{Fields, StatementError},
    names::Submission,
};

/// The newest progress of a submission.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub struct Progress {
    /// The submission that trains.
    pub submission: String,
    /// The number of its start, from 1.
    pub attempt: u64,
    /// The last finished step.
    pub step: u64,
    /// The step at which training ends.
    pub total: Option<u64>,
    /// Loss of that step; `None` when it is not finite.
    pub loss: Option<f64>,
    /// Tokens a second over all ranks.
    pub tokens_per_second: Option<f64>,
    /// Seconds to the last step at this pace.
    pub eta_seconds: Option<f64>,
    /// Of the data set's tokens, the part that `max_seq_len` cuts off, from 0 to 1; `None` where nobody counted.
    pub cut_off: Option<f64>,
    /// Texts that a process takes at a time: the micro-batch.
    pub micro_batch: Option<u64>,
    /// Bytes of a GPU that are expected at the peak; `None` without GPUs, and where nobody could tell.
    pub expected_peak_bytes: Option<u64>,
    /// When it was written, in seconds since 1970, by the trainer's clock.
    pub updated_at: f64,
}

// === impl Progress ===

impl Progress {
    /// Parse a progress object's body. `tests/contract/progress.json` holds vectors of what is read and refused.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(body: &[u8]) -> Result<Self, StatementError> {
        let fields = Fields::of_statement(body)?;
        Ok(Self {
            submission: fields.required_text::<Submission>("submission")?.to_string(),
            attempt: fields.required("attempt")?,
            step: fields.required("step")?,
            total: fields.get("total")?,
            loss: fields.get("loss")?,
            tokens_per_second: fields.get("tokens_per_second")?,
            eta_seconds: fields.get("eta_seconds")?,
            cut_off: fields.get("cut_off")?,
            micro_batch: fields.get("micro_batch")?,
            expected_peak_bytes: fields.get("expected_peak_bytes")?,
            updated_at: fields.required("updated_at")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "019ad3f0-5d1c-7000-8000-000000000002";

    /// The body with these fields after those that must be there.
    fn parse(fields: &str) -> Result<Progress, StatementError> {
        let body = format!(r#"{{"submission": "{ID}", "attempt": 1, "step": 5, "updated_at": 1.5{fields}}}"#);
        Progress::parse(body.as_bytes())
    }

    #[test]
    fn progress_is_read_as_all_bodies_are() {
        let lists = |levels: usize| format!(r#", "x": {}{}"#, "[".repeat(levels), "]".repeat(levels));
        let capitals = format!(r#", "submission": "{}""#, ID.to_uppercase());
        let hidden = r#", "step": 6, "loss": "x", "loss": 2.5"#;
        for (fields, step, loss) in [
            ("", 5, None),
            (hidden, 6, Some(2.5)),
            (capitals.as_str(), 5, None),
            (r#", "x": 1e999, "y": "\ud800""#, 5, None),
            (lists(63).as_str(), 5, None),
        ] {
            let progress = parse(fields).expect(fields);
            assert_eq!((progress.step, progress.loss), (step, loss), "{fields}");
            assert_eq!((progress.submission.as_str(), progress.updated_at), (ID, 1.5), "{fields}");
        }
        for (fields, error) in [
            (lists(64).as_str(), StatementError::Json),
            (r#", "x": NaN"#, StatementError::Json),
            (r#", "loss": NaN"#, StatementError::Json),
            (r#", "\ud800": 1"#, StatementError::Json),
            (r#", "loss": 1e999"#, StatementError::Field("loss")),
            (r#", "step": 5.0"#, StatementError::Field("step")),
            (r#", "submission": "x""#, StatementError::Field("submission")),
            (r#", "updated_at": null"#, StatementError::Field("updated_at")),
            (&format!(r#", "x": "{}""#, "x".repeat(16 * 1024)), StatementError::TooLarge),
        ] {
            assert_eq!(parse(fields).map(drop), Err(error), "{fields}");
        }
    }
}
