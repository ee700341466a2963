//! The settings in `.local/env`, the HTTP API, and the bucket: what a user of the platform has.

use std::{collections::BTreeMap, fmt::Write, path::Path, time::Duration};

use anyhow::{Context, Result, bail};
use aws_sdk_s3::{
    config::{BehaviorVersion, Credentials, Region},
    primitives::ByteStream,
};
use serde_json::{Value, json};

/// Longer than any answer may take: API Gateway gives up after 30 s.
const ANSWER_WITHIN: Duration = Duration::from_secs(35);

/// A caller of a running twin.
#[derive(Clone, Debug)]
pub struct Twin {
    settings: BTreeMap<String, String>,
    http: reqwest::Client,
    /// The bucket, as the account's root.
    pub s3: aws_sdk_s3::Client,
}

/// An answer of the API.
#[derive(Clone, Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// `Content-Type`.
    pub content_type: String,
    /// `Location`, or nothing.
    pub location: String,
    /// All headers.
    pub headers: reqwest::header::HeaderMap,
    /// The body; null when it is not JSON.
    pub body: Value,
    /// The body as text.
    pub text_body: String,
}

// === impl Twin ===

impl Twin {
    /// Read what `twin up` wrote.
    ///
    /// # Errors
    /// There is no such file, so no twin is up, or a setting is missing.
    pub fn connect(env: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(env)
            .with_context(|| format!("no twin is up ({} is missing): run `make up`", env.display()))?;
        let settings: BTreeMap<_, _> = text
            .lines()
            .filter_map(|line| line.trim_start_matches("export ").split_once('='))
            .map(|(name, value)| (name.to_owned(), value.trim_matches(['\'', '"']).to_owned()))
            .collect();
        let get = |name: &str| settings.get(name).cloned().with_context(|| format!("{} has no {name}", env.display()));
        let credentials =
            Credentials::new(get("AWS_ACCESS_KEY_ID")?, get("AWS_SECRET_ACCESS_KEY")?, None, None, "twin");
        let s3 = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(get("AWS_REGION")?))
            .endpoint_url(get("AWS_ENDPOINT_URL")?)
            .credentials_provider(credentials)
            .force_path_style(true)
            .build();
        let http = reqwest::Client::builder().timeout(ANSWER_WITHIN).build()?;
        Ok(Self { s3: aws_sdk_s3::Client::from_conf(s3), settings, http })
    }

    /// A setting of `.local/env`.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn setting(&self, name: &str) -> Result<&str> {
        self.settings.get(name).map(String::as_str).with_context(|| format!(".local/env has no {name}"))
    }

    /// GET with the token.
    ///
    /// # Errors
    /// No answer came.
    pub async fn get(&self, path: &str) -> Result<Answer> {
        self.send(reqwest::Method::GET, path, Some(self.setting("TRAINER_API_TOKEN")?), None).await
    }

    /// POST with the token.
    ///
    /// # Errors
    /// No answer came.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Answer> {
        let token = self.setting("TRAINER_API_TOKEN")?;
        self.send(reqwest::Method::POST, path, Some(token), Some(body.to_string())).await
    }

    /// DELETE with the token.
    ///
    /// # Errors
    /// No answer came.
    pub async fn delete(&self, path: &str) -> Result<Answer> {
        self.send(reqwest::Method::DELETE, path, Some(self.setting("TRAINER_API_TOKEN")?), None).await
    }

    /// Any request.
    ///
    /// # Errors
    /// No answer came.
    pub async fn send(
        &self,
        method: reqwest::Method,
        path: &str,
        token: Option<&str>,
        body: Option<String>,
    ) -> Result<Answer> {
        let mut request = self.http.request(method, format!("{}{path}", self.setting("API_URL")?));
        if let Some(token) = token {
            request = request.header("X-TRAINER-TOKEN", token);
        }
        if let Some(body) = body {
            request = request.header("Content-Type", "application/json").body(body);
        }
        let response = request.send().await?;
        let header = |name: &str| {
            let value = response.headers().get(name).and_then(|value| value.to_str().ok());
            value.unwrap_or_default().to_owned()
        };
        let (status, content_type, location) = (response.status().as_u16(), header("content-type"), header("location"));
        let headers = response.headers().clone();
        let text_body = response.text().await?;
        let body = serde_json::from_str(&text_body).unwrap_or_default();
        Ok(Answer { status, content_type, location, headers, body, text_body })
    }

    /// Put an object into the runs bucket.
    ///
    /// # Errors
    /// S3 does not take it.
    pub async fn put(&self, key: &str, body: Vec<u8>) -> Result<()> {
        let request = self.s3.put_object().bucket(self.setting("RUNS_BUCKET")?).key(key);
        request.body(ByteStream::from(body)).send().await?;
        Ok(())
    }

    /// Read an object of the runs bucket.
    ///
    /// # Errors
    /// There is none, or S3 does not give it.
    pub async fn object(&self, key: &str) -> Result<Vec<u8>> {
        let output = self.s3.get_object().bucket(self.setting("RUNS_BUCKET")?).key(key).send().await?;
        Ok(output.body.collect().await?.to_vec())
    }

    /// Put a small data set into the bucket: 500 lines, the same each time.
    ///
    /// # Errors
    /// S3 does not take it.
    pub async fn put_data_set(&self) -> Result<String> {
        self.put("datasets/sample.jsonl", data_set().into_bytes()).await?;
        Ok(format!("s3://{}/datasets/sample.jsonl", self.setting("RUNS_BUCKET")?))
    }

    /// A request that trains the tiny model on two CPU nodes of the twin.
    ///
    /// # Errors
    /// A setting is missing.
    pub fn two_node_request(&self, run_id: &str, dataset_uri: &str, max_steps: u64, save_steps: u64) -> Result<Value> {
        Ok(json!({
            "framework": "hf",
            "model_id": self.setting("DEMO_MODEL")?,
            "run_id": run_id,
            "checkpoint_base_uri": self.setting("RUNS_BASE_URI")?,
            "dataset_uri": dataset_uri,
            "num_nodes": 2,
            "gpus_per_node": 0,
            "cpus_per_node": 2,
            "memory_per_node_gb": 4,
            "extra_args": {
                "max_steps": max_steps, "save_steps": save_steps, "batch_size": 128, "max_seq_len": 64, "lr": 1e-3, "seed": 7,
            },
        }))
    }
}

// === impl Answer ===

impl Answer {
    /// The answer itself when it has this status.
    ///
    /// # Errors
    /// It has another one; the message shows the body.
    pub fn expect(self, status: u16) -> Result<Self> {
        if self.status == status {
            return Ok(self);
        }
        bail!("expected {status}, got {}: {}", self.status, self.text_body);
    }

    /// A header's value, if it is there.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The name of the job that the answer tells of.
    #[must_use]
    pub fn name(&self) -> &str {
        self.text("/name")
    }

    /// A text of the body by JSON Pointer; empty when there is none.
    #[must_use]
    pub fn text(&self, pointer: &str) -> &str {
        self.body.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }

    /// A number of the body by JSON Pointer.
    #[must_use]
    pub fn number(&self, pointer: &str) -> Option<u64> {
        self.body.pointer(pointer).and_then(Value::as_u64)
    }
}

/// JSONL with sentences of 8 to 40 words.
fn data_set() -> String {
    const WORDS: [&str; 24] = [
        "the", "model", "learns", "a", "rule", "from", "each", "line", "of", "data", "and", "then", "saves", "its",
        "state", "so", "that", "no", "step", "is", "lost", "when", "nodes", "fail",
    ];
    let mut state: u64 = 42;
    let mut below = |limit: usize| {
        // Knuth's MMIX generator; the high bits are the good ones.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 40).unwrap_or_default() % limit
    };
    (0..500).fold(String::new(), |mut lines, _| {
        let count = 8 + below(33);
        let sentence: Vec<_> = (0..count).filter_map(|_| WORDS.get(below(WORDS.len())).copied()).collect();
        // Writing to a String cannot fail.
        let _ = writeln!(lines, "{}", json!({"text": sentence.join(" ")}));
        lines
    })
}
