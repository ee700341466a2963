//! The progress object that the trainer rewrites while it trains.

#[cfg(feature = "schema")]
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The newest progress of a submission.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
    /// RFC 3339 time or seconds since 1970, as the trainer writes it.
    pub updated_at: serde_json::Value,
}
