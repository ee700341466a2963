//! S3 events as they reach the indexer, bare or wrapped: which markers may have changed. The event's own story (created,
//! removed, size, order) is not used, because delivery is at least once and in any order: the object as it is now decides.
//!
//! ```text
//! S3 ─> Lambda            {"Records": [{"s3": ...}]}                        the key is form-encoded
//! EventBridge ─> Lambda   {"source": "aws.s3", "detail": ...}               the key stands as it is
//! SNS ─> Lambda           {"Records": [{"Sns": {"Message": "<event>"}}]}
//! SQS ─> Lambda           {"Records": [{"body": "<event>"}]}
//! SNS ─> SQS              {"Type": "Notification", "Message": "<event>"}    or, with raw delivery, <event>
//! ```
//!
//! `<event>` is any of them as JSON text. How deep they nest is bounded by their size: each text in a text doubles its
//! backslashes.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;
use serde_json::Value;
use thiserror::Error;

use crate::{
    layout::{RunPrefix, S3Uri},
    names::Step,
};

/// What the function was invoked with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// One event, which is retried as a whole.
    Event(Vec<Result<MarkerEvent, Unusable>>),
    /// Messages of an SQS queue, each of which is retried by itself.
    Messages(Vec<Message>),
}

/// A message of an SQS queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its id, by which a partial batch answer names it.
    pub id: String,
    /// What its event names.
    pub records: Vec<Result<MarkerEvent, Unusable>>,
}

/// One marker that an event names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MarkerEvent {
    /// The run of the marker.
    pub prefix: RunPrefix,
    /// The step of the marker.
    pub step: Step,
}

/// Why an event, or one record of it, is of no use.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum Unusable {
    /// S3 sends one when a notification is configured.
    #[error("a test event of S3")]
    TestEvent,
    /// Neither an S3 event nor an envelope around one.
    #[error("an event that is none of S3, EventBridge, SNS and SQS")]
    Unknown,
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

// === impl Delivery ===

impl Delivery {
    /// Read an event. Each record stands by itself: one bad record does not hide the others.
    #[must_use]
    pub fn parse(event: &Value, bases: &[S3Uri]) -> Self {
        let message = |record: &Value| {
            let (source, id) = (text(record, "/eventSource")?, text(record, "/messageId")?);
            (source == "aws:sqs").then(|| Message { id: id.to_owned(), records: of_record(record, bases) })
        };
        let records = event.get("Records").and_then(Value::as_array).filter(|records| !records.is_empty());
        match records.and_then(|records| records.iter().map(message).collect()) {
            Some(messages) => Self::Messages(messages),
            None => Self::Event(of_event(event, bases)),
        }
    }
}

// === impl Unusable ===

impl Unusable {
    /// Whether there may be a marker in it that this release cannot see. Such an event has to fail, so that it is retried and
    /// at last kept; delivering the others again would change nothing.
    #[must_use]
    pub fn may_hide_a_marker(&self) -> bool {
        match self {
            Self::Unknown | Self::Version(_) => true,
            Self::TestEvent | Self::Key(_) | Self::Foreign(_) => false,
        }
    }
}

fn of_event(event: &Value, bases: &[S3Uri]) -> Vec<Result<MarkerEvent, Unusable>> {
    if let Some(records) = event.get("Records").and_then(Value::as_array) {
        return records.iter().flat_map(|record| of_record(record, bases)).collect();
    }
    if text(event, "/Type") == Some("Notification") {
        return of_text(text(event, "/Message"), bases);
    }
    vec![match (text(event, "/Event"), text(event, "/source")) {
        (Some("s3:TestEvent"), _) => Err(Unusable::TestEvent),
        (_, Some("aws.s3")) => of_event_bridge(event, bases),
        _ => Err(Unusable::Unknown),
    }]
}

fn of_record(record: &Value, bases: &[S3Uri]) -> Vec<Result<MarkerEvent, Unusable>> {
    // SNS writes the name of this field with a capital letter.
    match (text(record, "/eventSource"), text(record, "/EventSource")) {
        (Some("aws:sqs"), _) => of_text(text(record, "/body"), bases),
        (_, Some("aws:sns")) => of_text(text(record, "/Sns/Message"), bases),
        _ => vec![of_notification(record, bases)],
    }
}

/// An event in an event.
fn of_text(inner: Option<&str>, bases: &[S3Uri]) -> Vec<Result<MarkerEvent, Unusable>> {
    match inner.and_then(|inner| serde_json::from_str(inner).ok()) {
        Some(event) => of_event(&event, bases),
        None => vec![Err(Unusable::Unknown)],
    }
}

/// Source: Amazon S3 User Guide, "Event message structure".
fn of_notification(record: &Value, bases: &[S3Uri]) -> Result<MarkerEvent, Unusable> {
    let version = text(record, "/eventVersion").ok_or(Unusable::Unknown)?;
    if !version.starts_with("2.") {
        return Err(Unusable::Version(version.to_owned()));
    }
    let (Some(bucket), Some(key)) = (text(record, "/s3/bucket/name"), text(record, "/s3/object/key")) else {
        return Err(Unusable::Unknown);
    };
    let key = form_decode(key).ok_or_else(|| Unusable::Key(key.to_owned()))?;
    of_key(bucket, &key, bases)
}

/// Source: Amazon S3 User Guide, "`EventBridge` event message structure". Older events name no version.
fn of_event_bridge(event: &Value, bases: &[S3Uri]) -> Result<MarkerEvent, Unusable> {
    if let Some(version) = text(event, "/detail/event-version").filter(|version| !version.starts_with("1.")) {
        return Err(Unusable::Version(version.to_owned()));
    }
    match (text(event, "/detail/bucket/name"), text(event, "/detail/object/key")) {
        (Some(bucket), Some(key)) => of_key(bucket, key, bases),
        _ => Err(Unusable::Unknown),
    }
}

fn of_key(bucket: &str, key: &str, bases: &[S3Uri]) -> Result<MarkerEvent, Unusable> {
    let marker = RunPrefix::of_marker(bucket, key, bases);
    let (prefix, step) = marker.ok_or_else(|| Unusable::Foreign(key.to_owned()))?;
    Ok(MarkerEvent { prefix, step })
}

fn text<'a>(value: &'a Value, pointer: &str) -> Option<&'a str> {
    value.pointer(pointer).and_then(Value::as_str)
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

    fn event_bridge(key: &str) -> Value {
        json!({"source": "aws.s3", "detail": {"bucket": {"name": "bucket"}, "object": {"key": key}}})
    }

    fn parse(event: &Value) -> Vec<Result<MarkerEvent, Unusable>> {
        match Delivery::parse(event, &["s3://bucket/runs".parse().expect("a base")]) {
            Delivery::Event(records) => records,
            Delivery::Messages(messages) => messages.into_iter().flat_map(|message| message.records).collect(),
        }
    }

    fn parse_one(event: &Value) -> Result<(String, u64), Unusable> {
        let mut parsed = parse(event);
        assert_eq!(parsed.len(), 1);
        parsed.remove(0).map(|event| (event.prefix.to_string(), event.step.get()))
    }

    #[test]
    fn keys_are_form_decoded() {
        let event = json!({"Records": [record("runs/a+b%2Bc/r/framework%3Dhf/checkpoints/step-000500.json")]});
        assert_eq!(parse_one(&event), Ok(("s3://bucket/runs/a b+c/r/framework=hf".to_owned(), 500)));
    }

    #[test]
    fn keys_of_event_bridge_stand_as_they_are() {
        for folder in ["a b+c", "a%20b", "100%", "modèle 模型"] {
            let event = event_bridge(&format!("runs/{folder}/r/framework=hf/checkpoints/step-000500.json"));
            assert_eq!(parse_one(&event), Ok((format!("s3://bucket/runs/{folder}/r/framework=hf"), 500)));
        }
    }

    #[test]
    fn what_cannot_be_used_says_why() {
        let newer = json!({"Records": [{"eventVersion": "3.0", "s3": {}}]});
        let mut newer_of_event_bridge = event_bridge("runs/r/framework=hf/checkpoints/step-000001.json");
        newer_of_event_bridge["detail"]["event-version"] = json!("2.0");
        let broken = json!({"Records": [record("runs/%FF/framework%3Dhf/checkpoints/step-000001.json")]});
        for (event, reason) in [
            (json!({"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "bucket"}), Unusable::TestEvent),
            (json!({"detail": {}}), Unusable::Unknown),
            (
                json!({"source": "aws.s3", "detail-type": "AWS API Call via CloudTrail", "detail": {}}),
                Unusable::Unknown,
            ),
            (json!({"Type": "SubscriptionConfirmation", "Message": "{}"}), Unusable::Unknown),
            (json!({"Type": "Notification", "Message": "no JSON"}), Unusable::Unknown),
            (json!("text"), Unusable::Unknown),
            (json!([record("runs/r/framework=hf/checkpoints/step-000001.json")]), Unusable::Unknown),
            (json!({"Records": [{}]}), Unusable::Unknown),
            (json!({"Records": [{"eventSource": "aws:sqs", "messageId": "1"}]}), Unusable::Unknown),
            (json!({"Records": [{"EventSource": "aws:sns", "Sns": {}}]}), Unusable::Unknown),
            (newer, Unusable::Version("3.0".to_owned())),
            (newer_of_event_bridge, Unusable::Version("2.0".to_owned())),
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
        assert_eq!(parse(&event).iter().map(Result::is_ok).collect::<Vec<_>>(), [false, true]);
    }

    #[test]
    fn messages_that_cannot_be_named_are_one_event() {
        let body = json!({"Records": [record("runs/r/framework=hf/checkpoints/step-000001.json")]}).to_string();
        let named = json!({"eventSource": "aws:sqs", "messageId": "1", "body": body});
        let nameless = json!({"eventSource": "aws:sqs", "body": body});
        for (records, is_batch) in [(json!([named]), true), (json!([named, nameless]), false), (json!([]), false)] {
            let delivery = Delivery::parse(&json!({"Records": records}), &[]);
            assert_eq!(matches!(delivery, Delivery::Messages(_)), is_batch, "{records}");
        }
    }
}
