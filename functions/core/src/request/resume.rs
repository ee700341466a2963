//! From which checkpoint a submission starts, as a request says it.

use std::{fmt, str::FromStr};

use thiserror::Error;

use training_run::names::Step;

/// Which checkpoint a submission starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// None.
    No,
    /// The newest complete one of the run, if there is any.
    IfAny,
    /// One that must be there.
    From(ResumeTarget),
}

/// A checkpoint that must be there to start from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResumeTarget {
    /// The newest complete one.
    Latest,
    /// The one with the least loss.
    Best,
    /// The one of this step.
    Step(Step),
}

/// A text is not a checkpoint to resume from.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("must be true, false, \"latest\", \"best\" or \"step-N\", N being the step")]
pub struct ResumeError;

// === impl ResumeTarget ===

impl FromStr for ResumeTarget {
    type Err = ResumeError;

    fn from_str(text: &str) -> Result<Self, ResumeError> {
        match text {
            "latest" => Ok(Self::Latest),
            "best" => Ok(Self::Best),
            other => {
                let step = other.strip_prefix("step-").ok_or(ResumeError)?;
                step.parse().map(Self::Step).map_err(|_| ResumeError)
            }
        }
    }
}

impl fmt::Display for ResumeTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => f.write_str("latest"),
            Self::Best => f.write_str("best"),
            Self::Step(step) => write!(f, "step-{step}"),
        }
    }
}
