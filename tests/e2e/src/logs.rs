//! What the functions logged, as `CloudWatch` Logs has it.

use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::World;

/// Requests are looked for among the lines of this time.
const RECENT: Duration = Duration::from_mins(2);

/// The lines of a function (`submit`, `status`) that tell of the failure of a request.
///
/// # Errors
/// The log cannot be read.
pub async fn failures(world: &World, function: &str, request_id: &str) -> Result<Vec<String>> {
    ensure!(!request_id.is_empty(), "an answer without a request id");
    let since = (SystemTime::now() - RECENT).duration_since(SystemTime::UNIX_EPOCH)?.as_millis();
    let mut query = json!({
        "logGroupName": format!("/aws/lambda/training-{function}"),
        "startTime": u64::try_from(since)?,
        "filterPattern": format!("\"{request_id}\""),
    });
    let mut lines = Vec::new();
    loop {
        let page = filter(world, &query).await?;
        let events = page["events"].as_array().context("no events")?;
        lines.extend(events.iter().filter_map(|event| event["message"].as_str()).map(str::to_owned));
        match &page["nextToken"] {
            Value::Null => break,
            token => query["nextToken"] = token.clone(),
        }
    }
    lines.retain(|line| line.contains(request_id) && tells_of_failure(line));
    Ok(lines)
}

/// Whether a line, in JSON or as text, tells that something failed.
#[must_use]
pub fn tells_of_failure(line: &str) -> bool {
    line.starts_with("ERROR") || level(line) == "ERROR"
}

/// The cause that a line names; empty when it names none.
#[must_use]
pub fn cause(line: &str) -> &str {
    let after = ["cause=\"", "\"cause\":\""].iter().find_map(|start| Some(line.split_once(start)?.1));
    after.unwrap_or_default().trim_end_matches(['"', '}', '\n']).split("\",\"").next().unwrap_or_default()
}

fn level(line: &str) -> String {
    let line: Value = serde_json::from_str(line).unwrap_or_default();
    line["level"].as_str().unwrap_or_default().to_owned()
}

/// `FilterLogEvents`, without the SDK of a whole service for one call. The twin takes the word of its account's root.
async fn filter(world: &World, query: &Value) -> Result<Value> {
    let (key, region) = (world.twin.setting("AWS_ACCESS_KEY_ID")?, world.twin.setting("AWS_REGION")?);
    let authorization = format!(
        "AWS4-HMAC-SHA256 Credential={key}/20260101/{region}/logs/aws4_request, SignedHeaders=host, Signature=0"
    );
    let answer = reqwest::Client::new()
        .post(world.twin.setting("AWS_ENDPOINT_URL")?)
        .header("Authorization", authorization)
        .header("Content-Type", "application/x-amz-json-1.1")
        .header("X-Amz-Target", "Logs_20140328.FilterLogEvents")
        .body(query.to_string())
        .send()
        .await?;
    let (status, text) = (answer.status(), answer.text().await?);
    ensure!(status.is_success(), "{status}: {text}");
    Ok(serde_json::from_str(&text)?)
}
