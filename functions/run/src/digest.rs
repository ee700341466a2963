//! What choosing among checkpoints needs to know of one, as the name of an empty object: a listing tells a thousand of
//! them, where a read tells of one. The index entry says more; the key is [`RunKey::IndexDigest`].
//!
//! [`RunKey::IndexDigest`]: crate::layout::RunKey::IndexDigest

use std::{fmt, str::FromStr};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use thiserror::Error;

use crate::{
    entry::IndexEntry,
    lineage::{Known, finite},
    marker::Parent,
    names::{Step, Submission},
};

/// Longest name, in bytes: with the longest prefix of a run that the API makes, it is a key of S3 still.
const MAX_NAME_BYTES: usize = 400;
/// What is not known.
const NONE: &str = "-";
/// The last segment, where not all metrics fit.
const MORE: &str = "more";
/// What a metric's name must not have, to be in any key: all but letters, digits and these.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'_').remove(b'-').remove(b'.');

/// What choosing needs to know of one checkpoint: a function of its marker alone.
#[derive(Clone, Debug, PartialEq)]
pub struct Digest {
    submission: Option<Submission>,
    parent: Option<Parent>,
    /// The metrics that are finite numbers, in the marker's order.
    metrics: Vec<(String, f64)>,
    /// Whether these are all of them.
    is_whole: bool,
}

/// A text is not the name of a digest.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("is not the name of a digest")]
pub struct NotADigest;

// === impl Digest ===

impl Digest {
    /// The digest of an entry's checkpoint, with as many metrics as fit.
    #[must_use]
    pub fn of(entry: &IndexEntry) -> Self {
        let mut digest = Self {
            submission: entry.submission.clone(),
            parent: entry.parent.clone(),
            metrics: Vec::new(),
            is_whole: true,
        };
        let mut room = MAX_NAME_BYTES - digest.to_string().len() - "/".len() - MORE.len();
        for (name, value) in &entry.metrics {
            let Some(value) = finite(value) else { continue };
            let Some(left) = room.checked_sub("/".len() + segment(name, value).len()) else {
                digest.is_whole = false;
                break;
            };
            room = left;
            digest.metrics.push((name.clone(), value));
        }
        digest
    }

    /// What is known of the checkpoint of a step, with one of its metrics if that is asked for; `None` where only the entry
    /// can say.
    #[must_use]
    pub fn known(&self, step: Step, metric: Option<&str>) -> Option<Known> {
        let metric = match metric {
            None => None,
            Some(metric) => match self.metrics.iter().find(|(name, _)| name == metric) {
                Some((_, value)) => Some(*value),
                None if self.is_whole => None,
                None => return None,
            },
        };
        Some(Known { step, submission: self.submission.clone(), parent: self.parent.clone(), metric })
    }

    fn parse(name: &str) -> Option<Self> {
        let mut segments = name.split('/');
        let mut text = || segments.next().map(|text| (text != NONE).then_some(text));
        let submission = text()?.map(str::parse).transpose().ok()?;
        let parent = match (text()?, text()?) {
            (Some(submission), Some(step)) => {
                Some(Parent { submission: submission.parse().ok()?, step: step.parse().ok()? })
            }
            (None, None) => None,
            _ => return None,
        };
        let mut digest = Self { submission, parent, metrics: Vec::new(), is_whole: true };
        for segment in segments {
            match segment.split_once('=') {
                Some((name, value)) => {
                    let name = percent_decode_str(&name.replace('!', "%")).decode_utf8().ok()?.into_owned();
                    let value = value.parse().ok().filter(|value: &f64| value.is_finite())?;
                    digest.metrics.push((name, value));
                }
                None if segment == MORE => digest.is_whole = false,
                None => return None,
            }
        }
        Some(digest)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.submission {
            Some(submission) => write!(f, "{submission}")?,
            None => f.write_str(NONE)?,
        }
        match &self.parent {
            Some(Parent { submission, step }) => write!(f, "/{submission}/{step}")?,
            None => write!(f, "/{NONE}/{NONE}")?,
        }
        for (name, value) in &self.metrics {
            write!(f, "/{}", segment(name, *value))?;
        }
        if self.is_whole { Ok(()) } else { write!(f, "/{MORE}") }
    }
}

impl FromStr for Digest {
    type Err = NotADigest;

    fn from_str(name: &str) -> Result<Self, NotADigest> {
        Self::parse(name).filter(|digest| digest.to_string() == name).ok_or(NotADigest)
    }
}

/// A metric as a segment of a key: the name's other characters as `!` and two hexadecimal digits a byte, and the shortest
/// decimal number that is read as the same value.
fn segment(name: &str, value: f64) -> String {
    format!("{}={value:e}", utf8_percent_encode(name, ENCODED).to_string().replace('%', "!"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        layout::{MAX_KEY_BYTES, RunKey, RunPrefix, can_be_listed},
        marker::Marker,
    };
    use proptest::prelude::*;
    use serde_json::{Map, Value, json};

    const A: &str = "01970000-0000-7000-8000-00000000000a";
    const B: &str = "01980000-0000-7000-8000-00000000000b";

    fn prefix() -> RunPrefix {
        "s3://bucket/runs/r/framework=hf".parse().expect("a prefix")
    }

    fn entry(submission: Option<&str>, parent: Option<(&str, u64)>, metrics: &Map<String, Value>) -> IndexEntry {
        let parent = parent.map(|(submission, step)| json!({"submission": submission, "step": step}));
        let marker = json!({"framework": "hf", "step": 5, "saved_at": 1.5, "submission": submission, "parent": parent,
            "metrics": metrics});
        let marker = Marker::parse(marker.to_string().as_bytes()).expect("a marker");
        IndexEntry::new(&prefix(), &marker, "\"e\"".to_owned(), &[])
    }

    fn metrics(value: &Value) -> Map<String, Value> {
        value.as_object().expect("an object").clone()
    }

    #[test]
    fn a_name_says_what_choosing_needs() {
        let none = metrics(&json!({}));
        for (entry, name) in [
            (entry(None, None, &none), "-/-/-".to_owned()),
            (
                entry(Some(A), None, &metrics(&json!({"loss": 2.31, "note": "x", "left": null}))),
                format!("{A}/-/-/loss=2.31e0"),
            ),
            (
                entry(
                    Some(B),
                    Some((A, 300)),
                    &metrics(&json!({"val/loss": -0.0, "größe": 7, ".": 1e300, "a=b!": 1e-9})),
                ),
                format!("{B}/{A}/300/val!2Floss=-0e0/gr!C3!B6!C3!9Fe=7e0/.=1e300/a!3Db!21=1e-9"),
            ),
        ] {
            assert_eq!(Digest::of(&entry).to_string(), name);
            assert_eq!(name.parse(), Ok(Digest::of(&entry)));
        }
    }

    #[test]
    fn where_a_metric_does_not_fit_the_entry_is_asked() {
        let many: Map<String, Value> = (0..100).map(|number| (format!("metric-{number}"), json!(number))).collect();
        let digest = Digest::of(&entry(Some(B), Some((A, Step::MAX)), &many));
        let name = digest.to_string();
        assert!(name.ends_with("/more") && (MAX_NAME_BYTES - 20..=MAX_NAME_BYTES).contains(&name.len()), "{name}");
        let step = Step::new(5).expect("a step");
        let metric = |metric| digest.known(step, metric).map(|known| known.metric);
        assert_eq!(metric(Some("metric-3")), Some(Some(3.0)));
        assert_eq!(metric(Some("metric-99")), None);
        assert_eq!(metric(Some("absent")), None);
        assert_eq!(metric(None), Some(None));
        let few = Digest::of(&entry(Some(B), None, &metrics(&json!({"loss": 1}))));
        assert_eq!(few.known(step, Some("absent")).map(|known| known.metric), Some(None));
    }

    #[test]
    fn with_the_longest_prefix_it_is_a_key() {
        let base = format!("s3://bucket/{}", "b".repeat(512));
        let prefix = RunPrefix::new(
            &base.parse().expect("a base"),
            &"r".repeat(63).parse().expect("a run"),
            crate::names::Framework::Nemo,
        );
        let name = "n".repeat(MAX_NAME_BYTES);
        let key = prefix.key(&RunKey::IndexDigest(Step::new(0).expect("a step"), &name));
        assert!(key.len() <= MAX_KEY_BYTES, "{} bytes", key.len());
    }

    #[test]
    fn other_names_are_none() {
        for name in [
            String::new(),
            "-".to_owned(),
            "-/-".to_owned(),
            "-/-/5".to_owned(),
            format!("-/{A}/-"),
            format!("{}/-/-", A.to_uppercase()),
            "x/-/-".to_owned(),
            format!("-/{A}/05"),
            "-/-/-/".to_owned(),
            "-/-/-/loss".to_owned(),
            "-/-/-/loss=2.5".to_owned(),
            "-/-/-/loss=NaN".to_owned(),
            "-/-/-/loss=inf".to_owned(),
            "-/-/-/a b=1e0".to_owned(),
            "-/-/-/!ff=1e0".to_owned(),
            "-/-/-/more/loss=1e0".to_owned(),
        ] {
            assert_eq!(name.parse::<Digest>(), Err(NotADigest), "{name}");
        }
    }

    fn submission() -> impl Strategy<Value = Option<&'static str>> {
        prop::sample::select(vec![None, Some(A), Some(B)])
    }

    proptest! {
        #[test]
        fn it_is_read_as_it_was_written_and_says_what_the_entry_says(
            submission in submission(),
            parent in submission(),
            step in 0..=Step::MAX,
            numbers in prop::collection::vec((any::<String>(), any::<f64>()), 0..12),
        ) {
            let metrics: Map<String, Value> = numbers.iter().map(|(name, number)| (name.clone(), json!(number))).collect();
            let entry = entry(submission, parent.map(|parent| (parent, step)), &metrics);
            let digest = Digest::of(&entry);
            let name = digest.to_string();
            prop_assert!(name.len() <= MAX_NAME_BYTES && can_be_listed(&name) && name.is_ascii(), "{name}");
            prop_assert!(!name.split('/').any(|segment| matches!(segment, "" | "." | "..")), "{name}");
            let starts_the_indexer = std::path::Path::new(&name).extension().is_some_and(|extension| extension == "json");
            prop_assert!(!starts_the_indexer, "{name}");
            prop_assert_eq!(name.parse(), Ok(digest.clone()));
            let step = Step::new(5).expect("a step");
            for metric in metrics.keys().map(String::as_str).chain(["absent"]) {
                if let Some(known) = digest.known(step, Some(metric)) {
                    prop_assert_eq!(known, Known::of(&entry, Some(metric)));
                }
            }
            prop_assert_eq!(digest.known(step, None), Some(Known::of(&entry, None)));
        }
    }
}
