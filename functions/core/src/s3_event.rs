//! S3 event notifications as they reach the indexer: which markers may have changed. The event's own story (created,
//! removed, size, order) is not used, because delivery is at least once and in any order: the object as it is now decides.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;
use serde_json::Value;
use thiserror::Error;

use crate::{
    layout::{RunPrefix, S3Uri},
    names::Step,
};

/// One marker that an event names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MarkerEvent {
    /// The run of the marker.
    pub prefix: RunPrefix,
    /// The step of the marker.
    pub step: Step,
}

/// Why an event, or one record of it, is of no use; never a reason to deliver it again.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Unusable {
    /// S3 sends one when a notification is configured.
    #[error("a test event of S3")]
    TestEvent,
    /// Not an S3 event notification.
    #[error("not an S3 event notification")]
    NotS3,
    /// Of a major version that this release does not know.
    #[error("an event of version {0}")]
    Version(String),
    /// The key does not decode to UTF-8.
    #[error("a key that is not form-encoded UTF-8: {0}")]
    Key(String),
    /// A key that is no marker of a run below one of the bases.
    #[error("the key `{0}`, which is no marker of a run")]
    Foreign(String),
}

/// The markers that an event names, each record by itself: one bad record does not hide the others.
#[must_use]
pub fn parse(event: &Value, bases: &[S3Uri]) -> Vec<Result<MarkerEvent, Unusable>> {
    match event.get("Records").and_then(Value::as_array) {
        Some(records) => records.iter().map(|record| parse_record(record, bases)).collect(),
        None if event.get("Event").and_then(Value::as_str) == Some("s3:TestEvent") => vec![Err(Unusable::TestEvent)],
        None => vec![Err(Unusable::NotS3)],
    }
}

fn parse_record(record: &Value, bases: &[S3Uri]) -> Result<MarkerEvent, Unusable> {
    let text = |pointer: &str| record.pointer(pointer).and_then(Value::as_str);
    let version = text("/eventVersion").ok_or(Unusable::NotS3)?;
    if !version.starts_with("2.") {
        return Err(Unusable::Version(version.to_owned()));
    }
    let (Some(bucket), Some(key)) = (text("/s3/bucket/name"), text("/s3/object/key")) else {
        return Err(Unusable::NotS3);
    };
    let key = form_decode(key).ok_or_else(|| Unusable::Key(key.to_owned()))?;
    let (prefix, step) =
        RunPrefix::of_marker(bucket, &key, bases).ok_or_else(|| Unusable::Foreign(key.into_owned()))?;
    Ok(MarkerEvent { prefix, step })
}

/// `application/x-www-form-urlencoded`, as S3 writes keys in events and in listings of `encoding-type=url`: a plus sign is a
/// space, and only then `%XX` is decoded. `None` where that is no UTF-8.
///
/// Source: Amazon S3 User Guide, "Event message structure".
#[must_use]
pub fn form_decode(key: &str) -> Option<Cow<'_, str>> {
    if !key.contains('+') {
        return percent_decode_str(key).decode_utf8().ok();
    }
    let spaced = key.replace('+', " ");
    let decoded = percent_decode_str(&spaced).decode_utf8().ok()?;
    Some(Cow::Owned(decoded.into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn record(key: &str) -> Value {
        json!({"eventVersion": "2.1", "eventName": "ObjectCreated:Put", "s3": {"bucket": {"name": "bucket"}, "object": {"key": key}}})
    }

    fn parse_one(event: &Value) -> Result<(String, u64), Unusable> {
        let bases = ["s3://bucket/runs".parse().expect("a base")];
        let mut parsed = parse(event, &bases);
        assert_eq!(parsed.len(), 1);
        parsed.remove(0).map(|event| (event.prefix.to_string(), event.step.get()))
    }

    #[test]
    fn keys_are_form_decoded() {
        let event = json!({"Records": [record("runs/a+b%2Bc/r/framework%3Dhf/checkpoints/step-000500.json")]});
        assert_eq!(parse_one(&event), Ok(("s3://bucket/runs/a b+c/r/framework=hf".to_owned(), 500)));
    }

    #[test]
    fn what_cannot_be_used_says_why() {
        let newer = json!({"Records": [{"eventVersion": "3.0", "s3": {}}]});
        let broken = json!({"Records": [record("runs/%FF/framework%3Dhf/checkpoints/step-000001.json")]});
        for (event, reason) in [
            (json!({"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "bucket"}), Unusable::TestEvent),
            (json!({"detail": {}}), Unusable::NotS3),
            (json!("text"), Unusable::NotS3),
            (json!({"Records": [{}]}), Unusable::NotS3),
            (newer, Unusable::Version("3.0".to_owned())),
            (broken, Unusable::Key("runs/%FF/framework%3Dhf/checkpoints/step-000001.json".to_owned())),
            (
                json!({"Records": [record("runs/r/framework%3Dhf/config/run.json")]}),
                Unusable::Foreign("runs/r/framework=hf/config/run.json".to_owned()),
            ),
        ] {
            assert_eq!(parse_one(&event), Err(reason), "{event}");
        }
    }

    #[test]
    fn a_bad_record_does_not_hide_a_good_one() {
        let event = json!({"Records": [record("x"), record("runs/r/framework=hf/checkpoints/step-000001.json")]});
        let bases = ["s3://bucket/runs".parse().expect("a base")];
        assert_eq!(parse(&event, &bases).iter().map(Result::is_ok).collect::<Vec<_>>(), [false, true]);
    }
}
