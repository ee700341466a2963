//! What both HTTP functions share: who may call, how an answer looks, what is logged. It knows no route.
//!
//! ```text
//! request ─> token ─> handler ─> Result<Answer, Failure> ─> boundary ─> response and one log line
//! ```

pub mod answer;
pub mod boundary;
mod serve;
mod telemetry;
pub mod token;

use std::time::Duration;

pub use answer::{Answer, Failure};
use aws_sdk_secretsmanager::config::timeout::TimeoutConfig;
pub use serve::{request_of, serve};

/// Time limits of all AWS calls: API Gateway gives up after 30 s, and the SDK alone would wait for ever.
#[must_use]
pub fn aws_timeouts() -> TimeoutConfig {
    TimeoutConfig::builder()
        .connect_timeout(Duration::from_secs(2))
        .operation_attempt_timeout(Duration::from_secs(3))
        .operation_timeout(Duration::from_secs(7))
        .build()
}
