//! Inputs after public bug reports and after a security review, each sent as it was sent there. Those that need more than
//! a request are here; `make cases` runs them all:
//!
//! | what was sent | where |
//! |---|---|
//! | an admission webhook that denies without a code, or with another one | `refusals.rs` |
//! | `sam build && sam deploy` for another architecture | `tests/template/test_architecture.py` |
//! | S3 events that come through EventBridge, SNS or SQS | here |
//! | two equal requests under a quota for one job | `duplicates.rs` |
//! | a checkpoint whose `.metadata`, or an entry of a `.distcp` file, is a pickle that calls a function | here |
//! | `env` that makes Python start a shell, or sends credentials elsewhere | `refusals.rs`, `trainer/tests/test_environment.py` |
//! | a job that kubectl made, with the annotations of another namespace's run, or without any | `foreign.rs` |

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use aws_sdk_s3::primitives::ByteStream;
use e2e::{World, runtime::Function};
use serde_json::{Value, json};
use tokio::time::sleep;
use twin::client::Answer;

const TRAINED_WITHIN: Duration = Duration::from_mins(4);
const INDEXED_WITHIN: Duration = Duration::from_mins(1);

/// The event of a marker in each form in which S3's events reach a function.
fn wrapped(bucket: &str, key: &str) -> Vec<(&'static str, Value)> {
    let plain = json!({"Records": [{
        "eventVersion": "2.1", "eventSource": "aws:s3", "eventName": "ObjectCreated:Put",
        "s3": {"bucket": {"name": bucket}, "object": {"key": key.replace('=', "%3D")}},
    }]});
    let eventbridge = json!({
        "version": "0", "id": "1", "detail-type": "Object Created", "source": "aws.s3", "account": "000000000000",
        "time": "2026-11-29T10:00:00Z", "region": "us-east-1", "resources": [format!("arn:aws:s3:::{bucket}")],
        "detail": {
            "version": "0", "bucket": {"name": bucket},
            "object": {"key": key, "size": 200, "etag": "x", "sequencer": "0"},
            "request-id": "x", "requester": "1", "reason": "PutObject",
        },
    });
    let sns = json!({"Records": [{"EventSource": "aws:sns", "EventVersion": "1.0", "Sns": {
        "Type": "Notification", "MessageId": "1", "TopicArn": "arn:aws:sns:us-east-1:0:t",
        "Subject": "Amazon S3 Notification", "Message": plain.to_string(),
    }}]});
    let sqs = json!({"Records": [{
        "messageId": "1", "receiptHandle": "x", "body": plain.to_string(), "attributes": {}, "messageAttributes": {},
        "eventSource": "aws:sqs", "awsRegion": "us-east-1",
    }]});
    vec![("bare", plain), ("EventBridge", eventbridge), ("SNS", sns), ("SQS", sqs)]
}

#[tokio::test]
async fn a_wrapped_event_is_indexed() -> Result<()> {
    let world = World::meet()?;
    let (bucket, run_id) = (world.twin.setting("RUNS_BUCKET")?.to_owned(), World::run_id("wrapped"));
    let checkpoints = format!("runs/{run_id}/framework=hf/checkpoints");
    world.twin.put(&format!("{checkpoints}/checkpoint-5/model.safetensors"), vec![0; 16]).await?;
    let marker = json!({
        "layout": 1, "framework": "hf", "step": 5, "saved_at": 1.5, "metadata": {}, "metrics": {"loss": 1.0},
        "files": [{"path": "checkpoint-5/model.safetensors", "size": 16}],
    });
    let key = format!("{checkpoints}/step-000005.json");
    world.twin.put(&key, marker.to_string().into_bytes()).await?;

    // The bucket's own notification indexes it first. What is taken away then comes back by the event alone.
    let folder = format!("runs/{run_id}/framework=hf/index/");
    let mut indexed = world.keys(&folder).await?;
    let started = Instant::now();
    while indexed.len() < 2 {
        ensure!(started.elapsed() < INDEXED_WITHIN, "the index has {indexed:?}");
        sleep(Duration::from_millis(200)).await;
        indexed = world.keys(&folder).await?;
    }
    let function = Function::start(&world, "indexer").await?;
    for (form, event) in wrapped(&bucket, &key) {
        for key in &indexed {
            world.twin.s3.delete_object().bucket(&bucket).key(key).send().await?;
        }
        ensure!(world.keys(&folder).await?.is_empty(), "the index is not empty");
        let (_, answer) = function.answer(&event).await.with_context(|| form.to_owned())?;
        ensure!(world.keys(&folder).await? == indexed, "{form}: {}", String::from_utf8_lossy(&answer));
    }
    Ok(())
}

/// A pickle that makes a directory where it is loaded.
fn trap(directory: &Path) -> Vec<u8> {
    format!("cos\nmkdir\n(V{}\ntR.", directory.display()).into_bytes()
}

/// Write over the beginning of a checkpoint's file and let its marker agree, as who may write to the bucket can.
async fn plant(world: &World, marker_key: &str, path: &str, body: &[u8]) -> Result<()> {
    let mut marker: Value = serde_json::from_slice(&world.twin.object(marker_key).await?)?;
    let files = marker["files"].as_array_mut().context("the marker has no files")?;
    let named = |file: &&mut Value| file["path"].as_str().is_some_and(|named| named.ends_with(path));
    let file = files.iter_mut().find(named).with_context(|| format!("the checkpoint has no {path}"))?;
    let (folder, _) = marker_key.rsplit_once('/').context("the marker has no folder")?;
    let key = format!("{folder}/{}", file["path"].as_str().unwrap_or_default());
    let mut bytes = world.twin.object(&key).await?;
    ensure!(body.len() < bytes.len(), "{path} is too short");
    bytes.splice(..body.len(), body.iter().copied());
    let bucket = world.twin.setting("RUNS_BUCKET")?;
    let put = world.twin.s3.put_object().bucket(bucket).key(&key).body(ByteStream::from(bytes)).send().await?;
    if file["etag"].is_string() {
        file["etag"] = json!(put.e_tag);
    }
    world.twin.put(marker_key, marker.to_string().into_bytes()).await
}

#[tokio::test]
async fn code_in_a_checkpoint_is_the_users_error_and_does_not_run() -> Result<()> {
    let world = World::meet()?;
    let dataset_uri = world.twin.put_data_set().await?;
    // A bytes entry is the first thing in a file of torch's distributed checkpoints.
    for file in [".metadata", "__0_0.distcp"] {
        let run_id = World::run_id("hostile");
        let mut request = world.twin.two_node_request(&run_id, &dataset_uri, 2, 2)?;
        request["framework"] = json!("meta");
        let name = world.submit(&request).await?;
        let path = format!("/train/{name}");
        world.wait_for_status(&name, "succeeded", TRAINED_WITHIN).await?;

        let snapped = std::env::temp_dir().join(&run_id);
        let marker = format!("runs/{run_id}/framework=meta/checkpoints/step-000002.json");
        plant(&world, &marker, file, &trap(&snapped)).await?;
        request["resume_from_checkpoint"] = json!(true);
        request["extra_args"]["max_steps"] = json!(4);
        world.twin.post("/train?restart=true", &request).await?.expect(201)?;
        let ended = |answer: &Answer| {
            answer.text("/diagnosis/code") == "crash_loop" || matches!(answer.text("/status"), "succeeded" | "failed")
        };
        let answer = world.wait(&path, TRAINED_WITHIN, ended).await?;
        world.twin.delete(&path).await?.expect(202)?;
        let message = answer.text("/diagnosis/message");
        ensure!(message.starts_with("user_error: ") && message.contains(file), "{file}: {}", answer.body);
        ensure!(!snapped.exists(), "code from {file} ran");
    }
    Ok(())
}
