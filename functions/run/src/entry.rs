//! The index entry of a checkpoint: one small object a step, so that an event costs the same at any number of checkpoints.
//! The key is [`RunKey::IndexEntry`]; this is the body.

#[cfg(feature = "schema")]
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};
use thiserror::Error;

use crate::{
    json::{BadField, Fields, Plain, StatementError},
    layout::{RunKey, RunPrefix},
    marker::{self, File, Marker, Parent, State},
    names::{Step, Submission},
};

/// The version of the format that this release reads and writes.
const VERSION: u64 = 1;

/// What the index knows of one checkpoint: a function of its marker and of a listing of its files, and of nothing else.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub struct IndexEntry {
    /// Version of this format.
    pub index: u64,
    /// The step that was reached.
    #[cfg_attr(feature = "schema", schemars(with = "u64"))]
    pub step: Step,
    /// Whether the files were there when the marker's last event was handled.
    pub state: State,
    /// The submission that wrote it.
    #[cfg_attr(feature = "schema", schemars(with = "Option<String>"))]
    pub submission: Option<Submission>,
    /// When the marker was written, in seconds since 1970, by the trainer's clock.
    pub saved_at: f64,
    /// Sum of the listed files' sizes in bytes.
    pub size_bytes: u64,
    /// Number of listed files.
    pub file_count: usize,
    /// Metrics of that one step.
    pub metrics: Map<String, Value>,
    /// The checkpoint that the submission resumed.
    pub parent: Option<Parent>,
    /// Full key of the marker in the runs bucket.
    pub marker_key: String,
    /// `ETag` of the marker, with its quotes.
    pub marker_etag: String,
}

/// Why an object is not an entry that this release reads.
#[derive(Debug, Error)]
pub enum IndexError {
    /// Not an index entry.
    #[error("is not an index entry")]
    Format(#[source] StatementError),
    /// Archived, or encrypted with a key that S3 does not have.
    #[error("is an index entry that S3 gives to nobody: it is archived, or encrypted with a key that S3 does not have")]
    Withheld,
    /// Written by a later release.
    #[error("is of index version {0}, and this release reads version {VERSION}: update the functions")]
    Newer(u64),
}

// === impl IndexEntry ===

impl IndexEntry {
    /// The entry of a marker, given a listing of its files.
    #[must_use]
    pub fn new(prefix: &RunPrefix, marker: &Marker, marker_etag: String, listing: &[File]) -> Self {
        let files = marker.files.as_deref().unwrap_or_default();
        Self {
            index: VERSION,
            step: marker.step,
            state: marker.state(listing),
            submission: marker.submission.clone(),
            saved_at: marker.saved_at,
            size_bytes: files.iter().map(|file| file.size).fold(0, u64::saturating_add),
            file_count: files.len(),
            metrics: marker.metrics.clone(),
            parent: marker.parent.clone(),
            marker_key: prefix.key(&RunKey::Marker(marker.step)),
            marker_etag,
        }
    }

    /// Parse an entry's body, whatever its key. `tests/contract/index.json` holds vectors.
    ///
    /// # Errors
    /// The body is no entry, or one of a later version.
    pub fn parse(body: &[u8]) -> Result<Self, IndexError> {
        // First, since a later version may have other bounds.
        let index = Fields::parse(body).and_then(|fields| fields.required("index").ok());
        if let Some(newer) = index.filter(|index| *index > VERSION) {
            return Err(IndexError::Newer(newer));
        }
        let fields = Fields::of_statement(body).map_err(IndexError::Format)?;
        Ok(Self {
            index: fields
                .parsed("index", |index: u64| (index == VERSION).then_some(index))?
                .ok_or(BadField("index"))?,
            step: fields.required("step")?,
            state: fields.required("state")?,
            submission: fields.text("submission")?,
            saved_at: fields.required("saved_at")?,
            size_bytes: fields.required("size_bytes")?,
            file_count: fields.required("file_count")?,
            metrics: fields.parsed("metrics", of_object)?.ok_or(BadField("metrics"))?,
            parent: fields.parsed("parent", |parent| marker::parse_parent(&parent))?,
            marker_key: fields.required("marker_key")?,
            marker_etag: fields.required("marker_etag")?,
        })
    }

    /// Parse an entry and check that its step is the one that its key names.
    ///
    /// # Errors
    /// As [`IndexEntry::parse`], and when the step contradicts the key.
    pub fn parse_at(body: &[u8], step: Step) -> Result<Self, IndexError> {
        let entry = Self::parse(body)?;
        if entry.step != step {
            return Err(BadField("step").into());
        }
        Ok(entry)
    }

    /// The body to store.
    ///
    /// # Panics
    /// Never: an entry has text keys, and its numbers came from JSON and so are finite.
    #[must_use]
    pub fn to_body(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("text keys and finite numbers only")
    }
}

// === impl IndexError ===

impl From<BadField> for IndexError {
    fn from(field: BadField) -> Self {
        Self::Format(field.into())
    }
}

fn of_object(Plain(value): Plain) -> Option<Map<String, Value>> {
    if let Value::Object(fields) = value { Some(fields) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_metrics_a_marker_has_its_entry_can_be_read_again() {
        let prefix = "s3://bucket/runs/r/framework=hf".parse().expect("a prefix");
        let nested = |levels| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        let mut entries = 0;
        for levels in 1..130 {
            // The second one is a text, which serde_json's own values read as what it says.
            let raw = format!(r#"{{"$serde_json::private::RawValue":"{}"}}"#, nested(levels));
            for metric in [nested(levels), raw] {
                let body = format!(r#"{{"framework":"hf","step":5,"saved_at":1.5,"metrics":{{"x":{metric}}}}}"#);
                let Ok(marker) = Marker::parse(body.as_bytes()) else { continue };
                let entry = IndexEntry::new(&prefix, &marker, "\"e\"".to_owned(), &[]);
                assert_eq!(IndexEntry::parse(&entry.to_body()).ok(), Some(entry), "{levels} levels");
                entries += 1;
            }
        }
        assert!(entries > 100, "{entries}");
    }

    /// An entry with these fields after those that must be there.
    fn parse(fields: &str) -> Result<IndexEntry, IndexError> {
        let parent = r#"{"submission": "01970000-0000-7000-8000-000000000001", "step": 3}"#;
        let body = format!(
            r#"{{"index": 1, "step": 5, "state": "complete", "submission": null, "saved_at": 1.5, "size_bytes": 2,
                "file_count": 1, "metrics": {{}}, "parent": {parent}, "marker_key": "k", "marker_etag": "e"{fields}}}"#
        );
        IndexEntry::parse(body.as_bytes())
    }

    #[test]
    fn an_entry_is_read_as_all_bodies_are() {
        let lists = |levels: usize| format!(r#", "x": {}{}"#, "[".repeat(levels), "]".repeat(levels));
        let capitals = r#", "submission": "019AD3F0-5D1C-7000-8000-00000000000B""#;
        for fields in [
            "",
            capitals,
            r#", "index": 2, "index": 1"#,
            r#", "step": 4, "step": 5"#,
            r#", "size_bytes": "x", "size_bytes": 2"#,
            r#", "parent": 1, "parent": null"#,
            r#", "parent": {"step": "x", "step": 3, "submission": "01970000-0000-7000-8000-000000000001"}"#,
            r#", "metrics": {"loss": 1.5, "loss": 2.5}"#,
            r#", "x": 1e999, "y": "\ud800""#,
            &lists(63),
        ] {
            let entry = parse(fields).expect(fields);
            assert_eq!((entry.step.get(), entry.size_bytes), (5, 2), "{fields}");
        }
        let submission = parse(capitals).expect("an entry").submission;
        assert_eq!(submission.expect("a submission").as_str(), "019ad3f0-5d1c-7000-8000-00000000000b");
        assert_eq!(parse(r#", "metrics": {"loss": 1.5, "loss": 2.5}"#).expect("an entry").metrics["loss"], 2.5);
        for (fields, error) in [
            (lists(64).as_str(), StatementError::Json),
            (r#", "x": NaN"#, StatementError::Json),
            (r#", "\ud800": 1"#, StatementError::Json),
            (r#", "step": 5, "step": 5.0"#, StatementError::Field("step")),
            (r#", "state": "done""#, StatementError::Field("state")),
            (r#", "parent": {"step": 3}"#, StatementError::Field("parent")),
            (r#", "metrics": null"#, StatementError::Field("metrics")),
            (r#", "saved_at": 1e999"#, StatementError::Field("saved_at")),
            (&format!(r#", "x": "{}""#, "x".repeat(16 * 1024)), StatementError::TooLarge),
        ] {
            let Err(IndexError::Format(refused)) = parse(fields) else { panic!("not refused: {fields}") };
            assert_eq!(refused, error, "{fields}");
        }
        for later in [r#", "step": "x""#, &lists(64), &format!(r#", "x": "{}""#, "x".repeat(16 * 1024))] {
            assert!(matches!(parse(&format!(r#"{later}, "index": 2"#)), Err(IndexError::Newer(2))), "{later}");
        }
    }

    #[test]
    fn an_entry_survives_its_own_format_and_refuses_a_newer_one() {
        let prefix = "s3://bucket/runs/r/framework=hf".parse().expect("a prefix");
        let body = br#"{"framework":"hf","step":5,"saved_at":1.5,"files":[{"path":"c/a","size":2},{"path":"c/b","size":3}],"metrics":{"loss":2.25}}"#;
        let marker = Marker::parse(body).expect("a marker");
        let entry = IndexEntry::new(&prefix, &marker, "\"e\"".to_owned(), &[]);
        assert_eq!((entry.size_bytes, entry.file_count, entry.state), (5, 2, State::Incomplete));
        assert_eq!(entry.marker_key, "runs/r/framework=hf/checkpoints/step-000005.json");
        let stored = entry.to_body();
        assert_eq!(IndexEntry::parse(&stored).expect("an entry"), entry);
        let newer = String::from_utf8(stored).expect("text").replace(r#""index":1"#, r#""index":2"#);
        assert!(matches!(IndexEntry::parse(newer.as_bytes()), Err(IndexError::Newer(2))));
    }
}
