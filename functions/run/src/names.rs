//! Newtypes of everything that has a name: valid by construction, so that no later code has to ask again.

use std::{fmt, str::FromStr};

#[cfg(feature = "schema")]
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

/// The training framework, which chooses the runner inside the trainer image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Framework {
    /// PyTorch Lightning.
    Nemo,
    /// Hugging Face transformers' `Trainer`.
    Hf,
    /// FSDP2 with `torch.distributed.checkpoint`.
    Meta,
}

/// The caller's name of a run: a Kubernetes label value and one segment of an S3 key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RunId(String);

/// The name of a `PyTorchJob`: a DNS-1035 label short enough that its pods' services can be named too.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct JobName(String);

/// A global training step, 0 to 999,999,999,999.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u64")]
pub struct Step(u64);

/// The id of one really created job (`UUIDv7`): pods restarted by the cluster keep it, a new POST has a new one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct Submission(String);

/// Why a text is not the name that it should be.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum NameError {
    /// Not one of the frameworks.
    #[error("must be one of `nemo`, `hf`, `meta`")]
    Framework,
    /// Not a run id.
    #[error("must be 1 to 63 characters of A-Z a-z 0-9 . _ - that begin and end with a letter or digit")]
    RunId,
    /// Not the name of a job.
    #[error("must be a DNS-1035 label: a-z 0-9 -, beginning with a letter, ending with a letter or digit")]
    JobName,
    /// Not a step.
    #[error("must be a whole number of at most twelve digits")]
    Step,
    /// Not a submission id.
    #[error("must be a UUID")]
    Submission,
}

/// The name of a Kubernetes namespace: a DNS-1123 label.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct Namespace(String);

/// A text is not the name of a namespace.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("must be a DNS-1123 label: at most 63 of a-z 0-9 -, beginning and ending with a letter or digit")]
pub struct NamespaceError;

// === impl Framework ===

impl Framework {
    /// All frameworks, in the order in which messages name them.
    pub const ALL: [Self; 3] = [Self::Nemo, Self::Hf, Self::Meta];

    /// The word used in requests, labels and keys.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nemo => "nemo",
            Self::Hf => "hf",
            Self::Meta => "meta",
        }
    }
}

impl fmt::Display for Framework {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Framework {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::ALL.into_iter().find(|framework| framework.as_str() == text).ok_or(NameError::Framework)
    }
}

// === impl RunId ===

impl RunId {
    /// The text of the id.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for RunId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        let bytes = text.as_bytes();
        if bytes.len() <= 63 && edge(bytes.first()) && edge(bytes.last()) && bytes.iter().all(|b| inner(*b)) {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError::RunId)
        }
    }
}

// === impl JobName ===

impl JobName {
    /// The name of the job of a run: `hf` and `aml_ruleset_v4` give `hf-aml-ruleset-v4`.
    ///
    /// Pods and headless services are called `<job>-worker-<index>`, and a service's name has at most 63 characters, so
    /// the more workers, the shorter the name may be. A longer one is cut and ends in 8 hex digits of a hash of the run.
    #[must_use]
    pub fn of_run(framework: Framework, run_id: &RunId, num_nodes: u32) -> Self {
        let limit = Self::max_length(num_nodes);
        let mut name = format!("{framework}-{run_id}").to_ascii_lowercase().replace(['.', '_'], "-");
        if name.len() > limit {
            let digest = Sha256::digest(format!("{framework}\0{run_id}"));
            let hash = digest.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes));
            name.truncate(limit - "-01234567".len());
            name = format!("{}-{hash:08x}", name.trim_end_matches('-'));
        }
        Self(name)
    }

    /// Longest name of a job with so many pods, in characters.
    #[must_use]
    pub fn max_length(num_nodes: u32) -> usize {
        let last_worker = num_nodes.saturating_sub(2);
        63 - "-worker-".len() - last_worker.to_string().len()
    }

    /// The text of the name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for JobName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl fmt::Display for JobName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for JobName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let bytes = text.as_bytes();
        let inner = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-';
        if bytes.len() <= 63
            && bytes.first().is_some_and(u8::is_ascii_lowercase)
            && bytes.last().is_some_and(|byte| *byte != b'-')
            && bytes.iter().all(inner)
        {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError::JobName)
        }
    }
}

// === impl Step ===

impl Step {
    /// The greatest step that the index can order.
    pub const MAX: u64 = 999_999_999_999;
    /// The greatest step.
    pub const LAST: Self = Self(Self::MAX);

    /// A step from its number.
    ///
    /// # Errors
    /// When the number is greater than [`Step::MAX`].
    pub fn new(step: u64) -> Result<Self, NameError> {
        if step <= Self::MAX { Ok(Self(step)) } else { Err(NameError::Step) }
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> u64 {
        self.0
    }
}

impl TryFrom<u64> for Step {
    type Error = NameError;

    fn try_from(step: u64) -> Result<Self, NameError> {
        Self::new(step)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Step {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        // `parse` alone would accept a plus sign.
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(NameError::Step);
        }
        Self::new(text.parse().map_err(|_| NameError::Step)?)
    }
}

// === impl Submission ===

impl Submission {
    /// The text of the id.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<uuid::Uuid> for Submission {
    fn from(id: uuid::Uuid) -> Self {
        Self(id.to_string())
    }
}

impl TryFrom<String> for Submission {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl fmt::Display for Submission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Submission {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        // The common form alone; `parse` takes others too, in braces or without hyphens.
        if text.len() != uuid::fmt::Hyphenated::LENGTH {
            return Err(NameError::Submission);
        }
        let id: uuid::Uuid = text.parse().map_err(|_| NameError::Submission)?;
        Ok(id.into())
    }
}

// === impl Namespace ===

impl Namespace {
    /// The text of the name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Namespace {
    type Error = NamespaceError;

    fn try_from(text: String) -> Result<Self, NamespaceError> {
        text.parse()
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Namespace {
    type Err = NamespaceError;

    fn from_str(text: &str) -> Result<Self, NamespaceError> {
        let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let bytes = text.as_bytes();
        if bytes.len() <= 63
            && bytes.first().is_some_and(alphanumeric)
            && bytes.last().is_some_and(alphanumeric)
            && bytes.iter().all(|byte| alphanumeric(byte) || *byte == b'-')
        {
            Ok(Self(text.to_owned()))
        } else {
            Err(NamespaceError)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_ids_are_label_values_and_key_segments() {
        let longest = "a".repeat(63);
        for good in ["a", "aml_ruleset_v4", "A.b-c_9", longest.as_str()] {
            assert!(good.parse::<RunId>().is_ok(), "{good}");
        }
        let too_long = "a".repeat(64);
        for bad in ["", "_a", "a_", "a/b", "a b", "..", "é", "a\n", too_long.as_str()] {
            assert_eq!(bad.parse::<RunId>(), Err(NameError::RunId), "{bad:?}");
        }
    }

    #[test]
    fn job_names_follow_the_run_and_fit_their_services() {
        let name = |run_id: &str, nodes| {
            JobName::of_run(Framework::Hf, &run_id.parse().expect("a valid run id"), nodes).to_string()
        };
        assert_eq!(name("aml_ruleset_v4", 1), "hf-aml-ruleset-v4");
        assert_eq!(name("A.b", 2), "hf-a-b");
        let long = "x".repeat(63);
        for (nodes, limit) in [(1, 54), (2, 54), (11, 54), (12, 53), (101, 53), (102, 52), (1000, 52)] {
            let cut = name(&long, nodes);
            assert_eq!(cut.len(), limit, "{nodes} nodes");
            assert!(cut.parse::<JobName>().is_ok());
            assert!(format!("{cut}-worker-{}", nodes.max(2) - 2).len() <= 63);
        }
        assert_ne!(name(&long, 1), name(&format!("{}y", "x".repeat(62)), 1), "the hash tells cut names apart");
    }

    #[test]
    fn steps_are_plain_digits() {
        assert_eq!("000500".parse(), Ok(Step(500)));
        assert_eq!("999999999999".parse(), Ok(Step(Step::MAX)));
        for bad in ["", "+5", "-5", "5.0", "٥", "1000000000000", "99999999999999999999999"] {
            assert_eq!(bad.parse::<Step>(), Err(NameError::Step), "{bad:?}");
        }
    }

    #[test]
    fn namespaces_are_dns_labels() {
        let longest = "a".repeat(63);
        for good in ["a", "training-two", "0a", longest.as_str()] {
            assert!(good.parse::<Namespace>().is_ok(), "{good}");
        }
        let too_long = "a".repeat(64);
        for bad in ["", "-a", "a-", "A", "a.b", "a/b", "a\n", too_long.as_str()] {
            assert!(bad.parse::<Namespace>().is_err(), "{bad:?}");
        }
    }
}
