//! S3 events in the envelopes of `EventBridge`, SNS and SQS: what they name is indexed as of a bare one, and what cannot be
//! read or done fails as its sender wants it told.

mod common;

use std::{collections::BTreeMap, path::Path};

use common::{OLD, event, indexer, marker_key};
use serde_json::{Value, json};
use training_run::layout::RunPrefix;
use training_store::testing::{Bucket, Treatment};

/// How an event reaches the function.
struct Envelope {
    label: &'static str,
    wrap: fn(&Value) -> Value,
    /// Whether it is a batch, in which each message fails by itself.
    is_batch: bool,
}

const ENVELOPES: [Envelope; 6] = [
    Envelope { label: "bare", wrap: Value::clone, is_batch: false },
    Envelope { label: "SNS", wrap: in_sns, is_batch: false },
    Envelope { label: "SQS", wrap: |event| in_sqs(&[event]), is_batch: true },
    Envelope { label: "SNS in SQS", wrap: |event| in_sqs(&[&notification(event)]), is_batch: true },
    Envelope { label: "SNS in SNS", wrap: |event| in_sns(&in_sns(event)), is_batch: false },
    Envelope { label: "a dead letter of SQS with SNS", wrap: notification, is_batch: false },
];

/// How an event says which key has changed.
/// Who sends, and how it writes a key.
type Sender = (&'static str, fn(&str) -> Value);

const SENDERS: [Sender; 2] = [("S3", notified), ("EventBridge", event_bridge)];

/// As S3 writes keys: form-encoded.
fn notified(key: &str) -> Value {
    let encode = |byte: u8| match byte {
        b' ' => "+".to_owned(),
        b'/' | b'-' | b'.' | b'_' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    let mut event = event("ObjectCreated:Put", "");
    event["Records"][0]["s3"]["object"]["key"] = key.bytes().map(encode).collect::<String>().into();
    event
}

/// As `EventBridge` writes them: as they are.
fn event_bridge(key: &str) -> Value {
    json!({
        "version": "0", "detail-type": "Object Created", "source": "aws.s3",
        "detail": {"version": "0", "bucket": {"name": "bucket"}, "object": {"key": key}, "reason": "PutObject"},
    })
}

/// What SNS puts into a queue without raw delivery.
fn notification(event: &Value) -> Value {
    json!({"Type": "Notification", "MessageId": "1", "TopicArn": "arn", "Message": event.to_string()})
}

fn in_sns(event: &Value) -> Value {
    json!({"Records": [{"EventSource": "aws:sns", "EventVersion": "1.0", "Sns": notification(event)}]})
}

/// A batch whose messages are called 1, 2 and so on.
fn in_sqs(events: &[&Value]) -> Value {
    let records = events.iter().enumerate().map(|(index, event)| {
        json!({"messageId": (index + 1).to_string(), "receiptHandle": "x", "body": event.to_string(), "eventSource": "aws:sqs"})
    });
    json!({"Records": records.collect::<Vec<_>>()})
}

fn failures(ids: &[&str]) -> Value {
    let failed: Vec<_> = ids.iter().map(|id| json!({"itemIdentifier": id})).collect();
    json!({"batchItemFailures": failed})
}

/// What the function answers, as Lambda gets it; `None` where it fails.
async fn answer(bucket: &Bucket, event: &Value) -> Option<Value> {
    let handled = indexer(bucket.store()).handle(event).await;
    handled.ok().map(|answer| serde_json::to_value(answer).expect("JSON"))
}

/// A checkpoint at this run's step 500; the key of its marker, and of its entry.
fn saved(bucket: &Bucket, run: &str) -> (String, String) {
    let marker = json!({"framework": "hf", "step": 500, "saved_at": 1.5, "submission": OLD, "files": []});
    let key = format!("{run}/checkpoints/step-000500.json");
    bucket.write(&key, &marker.to_string());
    (key, format!("{run}/index/v1/999999999499"))
}

#[tokio::test]
async fn a_marker_is_indexed_whatever_the_event_came_in_and_whatever_its_key() {
    for folder in ["plain", "two words", "a+b", "a%2Bb", "modèle 模型", "a&b=c#d"] {
        let run = format!("runs/{folder}/r/framework=hf");
        let prefix: Result<RunPrefix, _> = format!("s3://bucket/{run}").parse();
        assert!(prefix.is_ok(), "{run} can be a run");
        for (sender, event) in SENDERS {
            for Envelope { label, wrap, is_batch } in ENVELOPES {
                let bucket = Bucket::default();
                let (marker, entry) = saved(&bucket, &run);
                let expected = if is_batch { failures(&[]) } else { Value::Null };
                let answer = answer(&bucket, &wrap(&event(&marker))).await;
                assert_eq!(answer, Some(expected), "{sender}, {label}: {marker}");
                assert!(bucket.body(&entry).is_some(), "{sender}, {label}: {marker} is not indexed");
            }
        }
    }
}

#[tokio::test]
async fn test_events_and_foreign_keys_are_acknowledged_in_every_envelope_and_touch_nothing() {
    let foreign = SENDERS.map(|(_, event)| event("runs/r/framework=hf/config/run.json"));
    for event in [foreign.as_slice(), &[json!({"Service": "Amazon S3", "Event": "s3:TestEvent"})]].concat() {
        for Envelope { label, wrap, is_batch } in ENVELOPES {
            let bucket = Bucket::default();
            let expected = if is_batch { failures(&[]) } else { Value::Null };
            assert_eq!(answer(&bucket, &wrap(&event)).await, Some(expected), "{label}: {event}");
            assert_eq!(bucket.take_traffic().calls, [], "{label}: {event}");
        }
    }
}

#[tokio::test]
async fn what_nobody_knows_fails_in_every_envelope() {
    for event in [
        json!({"source": "aws.events", "detail-type": "Scheduled Event", "detail": {}}),
        json!({"source": "aws.s3", "detail-type": "AWS API Call via CloudTrail", "detail": {"requestParameters": {}}}),
        json!({"Records": [{"eventSource": "aws:kinesis", "kinesis": {"data": "e30="}}]}),
        json!({"Records": [{"eventVersion": "3.0", "s3": {"bucket": {"name": "bucket"}, "object": {"key": "x"}}}]}),
        json!([event("ObjectCreated:Put", &marker_key(500))]),
        json!({}),
        json!(null),
    ] {
        for Envelope { label, wrap, .. } in ENVELOPES {
            let bucket = Bucket::default();
            // Of one message alone, so that a queue without partial answers keeps it too.
            assert_eq!(answer(&bucket, &wrap(&event)).await, None, "{label}: {event}");
        }
    }
}

#[tokio::test]
async fn each_message_of_a_batch_fails_by_itself() {
    let bucket = Bucket::default();
    let runs = ["a", "b", "c"].map(|run| format!("runs/{run}/framework=hf"));
    let places = runs.each_ref().map(|run| saved(&bucket, run));
    let unknown = json!({"detail": {}});
    // Two good records and what nobody knows in one message: it fails, and its good ones are indexed.
    let both = json!({"Records": [
        notified(&places[0].0)["Records"][0], {"eventSource": "aws:kinesis"}, notified(&places[1].0)["Records"][0],
    ]});
    let batch = in_sqs(&[&both, &event_bridge(&places[2].0), &unknown]);
    assert_eq!(answer(&bucket, &batch).await, Some(failures(&["1", "3"])));
    for (marker, entry) in &places {
        assert!(bucket.body(entry).is_some(), "{marker}");
    }
}

#[tokio::test]
async fn what_s3_refuses_fails_for_its_message_alone_and_a_batch_of_such_as_a_whole() {
    let bucket = Bucket::default();
    let runs = ["a", "b"].map(|run| format!("runs/{run}/framework=hf"));
    let [(good, entry), (refused, _)] = runs.each_ref().map(|run| saved(&bucket, run));
    let key = refused.clone();
    let store = bucket.store_judged_by(move |call| {
        let is_refused = call.key == key;
        std::future::ready(if is_refused { Treatment::Refuse(403, "AccessDenied") } else { Treatment::Serve })
    });
    let indexer = indexer(store);
    let handled = indexer.handle(&in_sqs(&[&notified(&refused), &notified(&good)])).await.expect("a partial answer");
    assert_eq!(serde_json::to_value(handled).expect("JSON"), failures(&["1"]));
    assert!(bucket.body(&entry).is_some());
    for event in [in_sqs(&[&notified(&refused)]), in_sns(&notified(&refused)), event_bridge(&refused)] {
        assert!(indexer.handle(&event).await.is_err(), "{event}");
    }
}

/// The events in `events/`, as they are sent with `sam local invoke` too.
#[tokio::test]
async fn the_sample_events_are_answered_as_expected() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../events");
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).expect("a file");
    let expected: BTreeMap<String, Value> = serde_json::from_str(&read("expected.json")).expect("JSON");
    let mut count = 0;
    for (name, expected) in expected.iter().filter(|(name, _)| name.starts_with("indexer-")) {
        let event = serde_json::from_str(&read(name).replace("${RUNS_BUCKET}", "bucket")).expect("JSON");
        let bucket = Bucket::default();
        let (_, entry) = saved(&bucket, "runs/demo/framework=hf");
        assert_eq!(answer(&bucket, &event).await.as_ref(), expected.get("answer"), "{name}");
        assert_eq!(expected.get("answer").is_none(), expected["fails"] == true, "{name}");
        let names_it = !["foreign-key", "test-event", "unknown"].iter().any(|kind| name.contains(kind));
        assert_eq!(bucket.body(&entry).is_some(), names_it, "{name}");
        count += 1;
    }
    assert_eq!(count, 13);
}
