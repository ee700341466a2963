//! The marker: the object that makes files a checkpoint. Written last by the trainer, read by everybody else.
//!
//! `tests/contract/marker.json` holds the vectors that the trainer runs too.

use std::collections::HashMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use thiserror::Error;

use crate::{
    layout::RunPrefix,
    names::{Framework, Step, Submission},
};

/// The newest layout that this release reads.
const LAYOUT: u64 = 1;

/// What a marker says of its checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Marker {
    /// The framework that wrote it.
    pub framework: Framework,
    /// The step that was reached.
    pub step: Step,
    /// When it was written, in seconds since 1970, by the trainer's clock.
    pub saved_at: f64,
    /// The submission that wrote it; other images' markers may have none.
    pub submission: Option<Submission>,
    /// The submission and step from which that submission went on.
    pub parent: Option<Parent>,
    /// The checkpoint's files; `None` when the marker does not list them.
    pub files: Option<Vec<File>>,
    /// Metrics of that one step.
    pub metrics: Map<String, Value>,
}

/// Where a submission that resumes another one started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ParentCheckpoint")]
pub struct Parent {
    /// The submission that was resumed.
    pub submission: String,
    /// The step that was resumed.
    pub step: u64,
}

/// One file of a checkpoint, or one object of a listing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Path relative to `checkpoints/`.
    pub path: String,
    /// Size in bytes.
    pub size: u64,
    /// `ETag` with its quotes, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
}

/// Whether a checkpoint can be resumed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(rename = "CheckpointState")]
pub enum State {
    /// Every listed file is there as the marker says.
    Complete,
    /// A file is missing or is another one.
    Incomplete,
    /// The marker lists no files, so nobody can tell.
    Unverified,
}

/// Why an object is not a marker that this release reads; the word is the field at fault.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum MarkerError {
    /// Not a JSON object.
    #[error("is not a JSON object")]
    Json,
    /// A field is missing, of a wrong type or out of range.
    #[error("its field `{0}` is missing or not what it must be")]
    Field(&'static str),
    /// Content and key name different things.
    #[error("its {0} is not the one in its key")]
    ContradictsKey(&'static str),
}

// === impl Marker ===

impl Marker {
    /// Parse a marker's body.
    ///
    /// # Errors
    /// [`MarkerError`] names the field at fault.
    pub fn parse(body: &[u8]) -> Result<Self, MarkerError> {
        let Ok(Value::Object(object)) = serde_json::from_slice(body) else { return Err(MarkerError::Json) };
        let field = |name: &'static str| object.get(name).filter(|value| !value.is_null());
        if field("layout").is_some_and(|layout| layout.as_u64().is_none_or(|layout| layout == 0 || layout > LAYOUT)) {
            return Err(MarkerError::Field("layout"));
        }
        Ok(Self {
            framework: required(
                field("framework").and_then(Value::as_str).and_then(|text| text.parse().ok()),
                "framework",
            )?,
            step: required(field("step").and_then(Value::as_u64).and_then(|step| Step::new(step).ok()), "step")?,
            saved_at: required(field("saved_at").and_then(Value::as_f64), "saved_at")?,
            submission: optional(field("submission"), "submission", |value| value.as_str()?.parse().ok())?,
            parent: optional(field("parent"), "parent", |value| Parent::deserialize(value).ok())?,
            files: optional(field("files"), "files", parse_files)?,
            metrics: optional(field("metrics"), "metrics", |value| value.as_object().cloned())?.unwrap_or_default(),
        })
    }

    /// Parse a marker and check that it is the one that its key names.
    ///
    /// # Errors
    /// As [`Marker::parse`], and when framework or step contradict the key.
    pub fn parse_at(body: &[u8], prefix: &RunPrefix, step: Step) -> Result<Self, MarkerError> {
        let marker = Self::parse(body)?;
        if prefix.framework() != Some(marker.framework) {
            return Err(MarkerError::ContradictsKey("framework"));
        }
        if marker.step != step {
            return Err(MarkerError::ContradictsKey("step"));
        }
        Ok(marker)
    }

    /// The longest text with which all its files' paths begin: what a listing must cover, and little else.
    #[must_use]
    pub fn listing_prefix(&self) -> &str {
        let mut files = self.files.iter().flatten().map(|file| file.path.as_str());
        let Some(first) = files.next() else { return "" };
        files.fold(first, |prefix, path| {
            let common: usize =
                prefix.chars().zip(path.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum();
            prefix.get(..common).unwrap_or_default()
        })
    }

    /// Compare the listed files with a listing, both relative to `checkpoints/`.
    #[must_use]
    pub fn state(&self, listing: &[File]) -> State {
        let Some(files) = &self.files else { return State::Unverified };
        let there: HashMap<&str, &File> = listing.iter().map(|file| (file.path.as_str(), file)).collect();
        let as_said = |file: &File| {
            there
                .get(file.path.as_str())
                .is_some_and(|found| found.size == file.size && (file.etag.is_none() || file.etag == found.etag))
        };
        // An empty list describes no checkpoint: nothing could be loaded from it.
        if !files.is_empty() && files.iter().all(as_said) { State::Complete } else { State::Incomplete }
    }
}

fn required<T>(value: Option<T>, field: &'static str) -> Result<T, MarkerError> {
    value.ok_or(MarkerError::Field(field))
}

fn optional<T>(
    value: Option<&Value>,
    field: &'static str,
    parse: impl FnOnce(&Value) -> Option<T>,
) -> Result<Option<T>, MarkerError> {
    value.map(|value| required(parse(value), field)).transpose()
}

fn parse_files(value: &Value) -> Option<Vec<File>> {
    let files = Vec::<File>::deserialize(value).ok()?;
    let inside = |file: &File| !file.path.split('/').any(|segment| matches!(segment, "" | "." | ".."));
    files.iter().all(inside).then_some(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marker(paths: &[&str]) -> Marker {
        let files: Vec<_> = paths.iter().map(|path| serde_json::json!({"path": path, "size": 1})).collect();
        let body = serde_json::json!({"framework": "hf", "step": 1, "saved_at": 1.0, "metadata": {}, "files": files});
        Marker::parse(body.to_string().as_bytes()).expect("a marker")
    }

    #[test]
    fn a_listing_covers_all_files_of_the_step() {
        for (paths, prefix) in [
            (&["checkpoint-1/a", "checkpoint-1/b/c"][..], "checkpoint-1/"),
            (&["step-000001.pt"], "step-000001.pt"),
            (&["step-000001/.metadata", "step-000001/__0_0.distcp", "step-000001/__1_0.distcp"], "step-000001/"),
            (&["é/a", "è/a"], ""),
            (&[], ""),
        ] {
            assert_eq!(marker(paths).listing_prefix(), prefix);
        }
    }

    #[test]
    fn a_marker_that_contradicts_its_key_is_refused() {
        let body = br#"{"framework":"hf","step":5,"saved_at":1.0}"#;
        let at = |prefix: &str, step| {
            Marker::parse_at(body, &prefix.parse().expect("a prefix"), Step::new(step).expect("a step")).map(|_| ())
        };
        assert_eq!(at("s3://bucket/r/framework=hf", 5), Ok(()));
        assert_eq!(at("s3://bucket/r/framework=meta", 5), Err(MarkerError::ContradictsKey("framework")));
        assert_eq!(at("s3://bucket/r/framework=hf", 6), Err(MarkerError::ContradictsKey("step")));
    }
}
