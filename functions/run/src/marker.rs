//! The marker: the object that makes files a checkpoint. Written last by the trainer, read by everybody else.
//!
//! `tests/contract/marker.json` holds the vectors that the trainer runs too.

use std::{collections::HashMap, fmt};

#[cfg(feature = "schema")]
use schemars::JsonSchema;
use serde::{
    Deserialize, Serialize,
    de::{Deserializer, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value, value::RawValue};
use thiserror::Error;

use crate::{
    json::{BadField, Fields, MAX_DEPTH, Plain, is_too_deep},
    layout::{self, RunPrefix},
    names::{Framework, Step, Submission},
};

/// Largest marker, in bytes: ten thousand files take some 1.5 MB. The indexer has 128 MiB and holds a marker, what it
/// says and a listing at once; one that ends it would do so again at each delivery.
pub const MAX_BYTES: usize = 2 * 1024 * 1024;
/// The newest layout that this release reads.
const LAYOUT: u64 = 1;
/// Longest path of a file: longer ones are in no key of S3, whatever the run.
const MAX_PATH_BYTES: usize = layout::MAX_KEY_BYTES - "checkpoints/".len();
/// Metrics that are kept, in bytes of JSON: a page of index entries is one answer.
const MAX_METRICS_BYTES: usize = 4 * 1024;

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
    /// The submission and step that the submission resumed.
    pub parent: Option<Parent>,
    /// The checkpoint's files; `None` when the marker does not list them.
    pub files: Option<Vec<File>>,
    /// Metrics of that one step: whole ones in the marker's order, as far as they fit into 4 KiB.
    pub metrics: Map<String, Value>,
}

/// Where a submission that resumes another one started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
#[cfg_attr(feature = "schema", schemars(rename = "ParentCheckpoint"))]
pub struct Parent {
    /// The submission that was resumed.
    #[cfg_attr(feature = "schema", schemars(with = "String"))]
    pub submission: Submission,
    /// The step that was resumed.
    #[cfg_attr(feature = "schema", schemars(with = "u64"))]
    pub step: Step,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "schema", schemars(rename = "CheckpointState"))]
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
    /// Larger than any marker.
    #[error("is larger than {MAX_BYTES} bytes")]
    TooLarge,
    /// Nested deeper than any marker.
    #[error("is nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
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

/// JSON whose texts are whole and whose numbers are in range, down to its last one; nothing of it is kept.
struct Sound;

// === impl Marker ===

impl Marker {
    /// Parse a marker's body.
    ///
    /// # Errors
    /// [`MarkerError`] names the field at fault.
    pub fn parse(body: &[u8]) -> Result<Self, MarkerError> {
        if body.len() > MAX_BYTES {
            return Err(MarkerError::TooLarge);
        }
        if is_too_deep(body) {
            return Err(MarkerError::TooDeep);
        }
        let fields = Fields::parse(body).ok_or(MarkerError::Json)?;
        if fields.get("layout")?.is_some_and(|layout: u64| layout == 0 || layout > LAYOUT) {
            return Err(MarkerError::Field("layout"));
        }
        // Of no use here; but what the trainer refuses is no checkpoint.
        for unused in ["attempt", "world_size"] {
            fields.get::<u64>(unused)?;
        }
        fields.get::<Fields<'_>>("metadata")?;
        Ok(Self {
            framework: required(fields.text("framework")?, "framework")?,
            step: required(parse_step(&fields)?, "step")?,
            saved_at: required(fields.get("saved_at")?, "saved_at")?,
            submission: fields.text("submission")?,
            parent: fields.parsed("parent", |parent| parse_parent(&parent))?,
            files: fields.parsed("files", |files: Vec<&RawValue>| parse_files(&files))?,
            metrics: fields.parsed("metrics", |metrics| parse_metrics(&metrics))?.unwrap_or_default(),
        })
    }

    /// Parse a marker and check that it is the one that its key names.
    ///
    /// # Errors
    /// As [`Marker::parse`], and when framework or step contradict the key.
    pub fn parse_at(body: &[u8], prefix: &RunPrefix, step: Step) -> Result<Self, MarkerError> {
        let marker = Self::parse(body)?;
        if prefix.framework() != marker.framework {
            return Err(MarkerError::ContradictsKey("framework"));
        }
        if marker.step != step {
            return Err(MarkerError::ContradictsKey("step"));
        }
        Ok(marker)
    }

    /// What a listing must cover, and little else: the path of the one file, or the innermost folder in which all of them
    /// lie, with its slash, so that a listing of `checkpoint-5/` has nothing of `checkpoint-50/`.
    #[must_use]
    pub fn listing_prefix(&self) -> &str {
        let Some((first, rest)) = self.files.as_deref().and_then(<[File]>::split_first) else { return "" };
        if rest.is_empty() {
            return &first.path;
        }
        rest.iter().fold(folder_of(&first.path), |mut folder, file| {
            while !file.path.starts_with(folder) {
                folder = folder_of(folder.trim_end_matches('/'));
            }
            folder
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

// === impl MarkerError ===

impl From<BadField> for MarkerError {
    fn from(BadField(name): BadField) -> Self {
        Self::Field(name)
    }
}

// === impl Sound ===

impl<'de> Deserialize<'de> for Sound {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for Sound {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self, A::Error> {
        while seq.next_element::<Self>()?.is_some() {}
        Ok(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self, A::Error> {
        while map.next_entry::<Self, Self>()?.is_some() {}
        Ok(self)
    }
}

fn required<T>(value: Option<T>, field: &'static str) -> Result<T, MarkerError> {
    value.ok_or(MarkerError::Field(field))
}

fn parse_step(fields: &Fields<'_>) -> Result<Option<Step>, BadField> {
    fields.parsed("step", |step: u64| Step::new(step).ok())
}

pub(crate) fn parse_parent(fields: &Fields<'_>) -> Option<Parent> {
    Some(Parent { submission: fields.text("submission").ok()??, step: parse_step(fields).ok()?? })
}

/// The files of one checkpoint: one file, or all below one folder, so that a listing of it covers no other checkpoint.
fn parse_files(values: &[&RawValue]) -> Option<Vec<File>> {
    let files: Vec<File> = values.iter().map(|value| parse_file(value)).collect::<Option<_>>()?;
    let folder = files.first().and_then(|file| file.path.split_once('/')).map(|(folder, _)| folder);
    let is_beside = |file: &File| folder.is_some() && file.path.split_once('/').map(|(folder, _)| folder) == folder;
    (files.len() < 2 || files.iter().all(is_beside)).then_some(files)
}

fn parse_file(value: &RawValue) -> Option<File> {
    let fields = Fields::parse(value.get().as_bytes())?;
    let path: String = fields.get("path").ok()??;
    let is_inside = !path.split('/').any(|segment| matches!(segment, "" | "." | ".."));
    let can_be_there = path.len() <= MAX_PATH_BYTES && layout::can_be_listed(&path);
    let file = File { path, size: fields.get("size").ok()??, etag: fields.get("etag").ok()? };
    (is_inside && can_be_there).then_some(file)
}

fn parse_metrics(fields: &Fields<'_>) -> Option<Map<String, Value>> {
    // All of them, also those that are not kept: the trainer refuses what has a bad one.
    if !fields.0.iter().all(|(_, value)| serde_json::from_str::<Sound>(value.get()).is_ok()) {
        return None;
    }
    let mut metrics = Map::new();
    let mut room = MAX_METRICS_BYTES - "{}".len();
    for (name, value) in &fields.0 {
        // What is too long as a text is not made a value: that takes much more memory.
        if value.get().len() > MAX_METRICS_BYTES {
            break;
        }
        let Plain(value) = serde_json::from_str(value.get()).ok()?;
        // As it will be written, with a comma.
        let written = format!("{}:{value},", Value::from(name.as_str()));
        let Some(left) = room.checked_sub(written.len()) else { break };
        room = left;
        metrics.insert(name.clone(), value);
    }
    Some(metrics)
}

/// The part of a path before its last segment, with its slash; empty where there is none.
fn folder_of(path: &str) -> &str {
    path.rsplit_once('/').and_then(|(folder, _)| path.get(..=folder.len())).unwrap_or_default()
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
            (&["checkpoint-1/rank-0", "checkpoint-1/rank-1"], "checkpoint-1/"),
            (&["checkpoint-1/a1/x", "checkpoint-1/a2/x"], "checkpoint-1/"),
            (&["checkpoint-1/a/x/y", "checkpoint-1/a/z"], "checkpoint-1/a/"),
            (&["step-000001.pt"], "step-000001.pt"),
            (&["step-000001/one/file"], "step-000001/one/file"),
            (&["step-000001/.metadata", "step-000001/__0_0.distcp", "step-000001/__1_0.distcp"], "step-000001/"),
            (&[], ""),
        ] {
            assert_eq!(marker(paths).listing_prefix(), prefix);
        }
    }

    #[test]
    fn metrics_are_kept_as_far_as_they_fit_when_written() {
        let kept = |metrics: &str| {
            let body = format!(r#"{{"framework":"hf","step":1,"saved_at":1.0,"metrics":{metrics}}}"#);
            Marker::parse(body.as_bytes()).expect("a marker").metrics
        };
        let plain = (0..1_000).map(|at| format!(r#""m{at}": {at}"#)).collect::<Vec<_>>().join(", ");
        let escaped = (0..1_000).map(|at| format!(r#""\u0001\u0001{at}": "\u0002""#)).collect::<Vec<_>>().join(", ");
        for all in [format!("{{{plain}}}"), format!("{{{escaped}}}")] {
            let metrics = kept(&all);
            let written = serde_json::to_string(&metrics).expect("metrics").len();
            assert!((MAX_METRICS_BYTES - 32..=MAX_METRICS_BYTES).contains(&written), "{written} bytes");
            let first: Map<String, Value> = serde_json::from_str(&all).expect("metrics");
            assert!(metrics.iter().eq(first.iter().take(metrics.len())), "the first ones, whole");
        }
        let long = format!(r#"{{"loss": 1.5, "histogram": [{}0], "last": 1}}"#, "0, ".repeat(MAX_METRICS_BYTES));
        assert_eq!(Value::Object(kept(&long)), serde_json::json!({"loss": 1.5}));
        assert_eq!(kept("null"), Map::new());
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
