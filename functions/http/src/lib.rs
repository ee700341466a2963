//! What both HTTP functions share: who may call, how an answer looks, what is logged. It serves no route itself.
//!
//! ```text
//! request ─> boundary ─> handler: route, token, work ─> Result<Answer, Failure> ─> boundary ─> response and one log line
//! ```
//! The domain's objects: a [`token::TokenCheck`] knows the secret and says who calls, an [`Answer`] is a good answer, and a
//! [`Failure`] a problem with the cause that is logged and never shown.

pub mod answer;
pub mod boundary;
mod serve;
mod telemetry;
pub mod token;

use std::time::Duration;

pub use answer::{Answer, Failure};
pub use serve::{request_of, serve};

/// How long one attempt at a call of AWS may take.
pub const AWS_ATTEMPT_WITHIN: Duration = Duration::from_secs(3);
/// How long a call of AWS may take with its repetitions: API Gateway gives up after 30 s.
pub const AWS_CALL_WITHIN: Duration = Duration::from_secs(7);
