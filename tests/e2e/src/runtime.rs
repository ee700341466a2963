//! A built function without Lambda: its bootstrap as a process, and the Runtime API from which it takes its events. It
//! has the environment and the role of the deployed function; the twin stands behind it.
//!
//! Source: "Using the Lambda runtime API" of AWS' documentation. Bounds of time and memory are not Lambda's.

use std::{
    collections::HashMap,
    fs::File,
    net::Ipv4Addr,
    path::{Path as FilePath, PathBuf},
    process::Stdio,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use axum::{
    Router,
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, Path, State},
    http::{Response, StatusCode},
    routing::{get, post},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use tokio::{
    net::TcpListener,
    process::{Child, Command},
    sync::{Mutex as AsyncMutex, mpsc, oneshot, watch},
    task::JoinHandle,
    time::timeout,
};

use crate::World;

/// API Gateway would have given up by then.
const ANSWERS_WITHIN: Duration = Duration::from_secs(35);
/// Largest answer that Lambda takes from a function: 6 MB.
const MAX_RESPONSE_BYTES: usize = 6 * 1024 * 1024;
/// The X-Ray trace of every invocation.
pub const TRACE_ID: &str = "Root=1-6742a1f0-0a1b2c3d4e5f60718293a4b5;Sampled=0";
const EXPLAIN_ENVIRONMENT: &str =
    "import invoke, json, sys; print(json.dumps(invoke.environment(sys.argv[1], invoke.read_settings())))";

/// A running function. It ends with this value.
pub struct Function {
    process: Child,
    api: JoinHandle<()>,
    events: mpsc::Sender<Invocation>,
    started: Instant,
    first_next: watch::Receiver<Option<Instant>>,
    ids: AtomicU64,
    log: NamedTempFile,
}

/// What the API gives to the function, and where its answer goes.
struct Invocation {
    id: String,
    event: String,
    outcome: oneshot::Sender<Outcome>,
}

/// What the function says of an event.
enum Outcome {
    Answered(Bytes),
    Failed(Bytes),
}

struct Api {
    events: AsyncMutex<mpsc::Receiver<Invocation>>,
    waiting: Mutex<HashMap<String, oneshot::Sender<Outcome>>>,
    first_next: watch::Sender<Option<Instant>>,
}

/// An HTTP request as API Gateway describes it to a function.
#[derive(Clone, Debug)]
pub struct Event {
    /// Method.
    pub method: String,
    /// Path as the client wrote it.
    pub path: String,
    /// Query as the client wrote it.
    pub query: String,
    /// Headers beside those that are always there; names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: EventBody,
}

/// How a body travels in an event.
#[derive(Clone, Debug)]
pub enum EventBody {
    /// Nothing was sent.
    Absent,
    /// As text.
    Text(String),
    /// In base64, as API Gateway sends what is not text.
    Base64(Vec<u8>),
    /// A text that is said to be base64 and may not be.
    SaidToBeBase64(String),
}

/// An answer as the function gives it to API Gateway.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The id that Lambda gave to the invocation.
    pub request_id: String,
    /// HTTP status.
    pub status: u16,
    /// Headers; names in lower case.
    pub headers: HashMap<String, String>,
    /// The body.
    pub body: Vec<u8>,
}

// === impl Function ===

impl Function {
    /// Start the function of this name (`submit`, `status`) as the twin has it deployed.
    ///
    /// # Errors
    /// It is not built or not deployed, or does not start.
    pub async fn start(world: &World, name: &str) -> Result<Self> {
        let (bootstrap, environment) = (Self::bootstrap(world, name)?, environment(world, name).await?);
        let function = Self::spawn(&bootstrap, environment).await?;
        function.ready().await?;
        Ok(function)
    }

    /// The program of a deployed function.
    ///
    /// # Errors
    /// There is no such function.
    pub fn bootstrap(world: &World, name: &str) -> Result<PathBuf> {
        let folder = match name {
            "submit" => "SubmitFunction",
            "status" => "StatusFunction",
            "indexer" => "IndexerFunction",
            other => bail!("there is no function `{other}`"),
        };
        Ok(world.root.join(".local/sam").join(folder).join("bootstrap"))
    }

    /// Start a program as a function with these variables.
    ///
    /// # Errors
    /// It is not there.
    pub async fn spawn(program: &FilePath, environment: HashMap<String, String>) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let (events, received) = mpsc::channel(1);
        let api = Arc::new(Api {
            events: AsyncMutex::new(received),
            waiting: Mutex::default(),
            first_next: watch::Sender::new(None),
        });
        let first_next = api.first_next.subscribe();
        let routes = Router::new()
            .route("/2018-06-01/runtime/invocation/next", get(next))
            .route("/2018-06-01/runtime/invocation/{id}/response", post(answered))
            .route("/2018-06-01/runtime/invocation/{id}/error", post(failed))
            .layer(DefaultBodyLimit::disable())
            .with_state(api);
        let api = tokio::spawn(async move {
            // It ends only when it is aborted.
            let _ = axum::serve(listener, routes).await;
        });
        let log = NamedTempFile::new()?;
        let started = Instant::now();
        // It ends by itself when its Runtime API is gone, as after a killed test.
        let process = Command::new(program)
            .env_clear()
            .envs(environment)
            .env("AWS_LAMBDA_RUNTIME_API", address.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::from(File::create(log.path())?))
            .stderr(Stdio::from(File::options().append(true).open(log.path())?))
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        Ok(Self { process, api, events, started, first_next, ids: AtomicU64::new(1), log })
    }

    /// Wait until it asks for its first event; how long after its start that was.
    ///
    /// # Errors
    /// It does not.
    pub async fn ready(&self) -> Result<Duration> {
        let mut first_next = self.first_next.clone();
        let asked = timeout(ANSWERS_WITHIN, first_next.wait_for(Option::is_some)).await;
        let at = asked.with_context(|| format!("it did not start:\n{}", self.log_tail()))??;
        Ok(at.context("no time")?.duration_since(self.started))
    }

    /// Give it one event and take its answer.
    ///
    /// # Errors
    /// It fails, as over a panic; it dies; it does not answer; or its answer is none that API Gateway would pass on.
    pub async fn invoke(&self, event: &Value) -> Result<Reply> {
        let (id, answer) = self.answer(event).await?;
        Reply::read(id, &answer)
    }

    /// Give it one event and take what it answers, whatever that is, with the id of the invocation.
    ///
    /// # Errors
    /// It fails, as over a panic; it dies; or it does not answer.
    pub async fn answer(&self, event: &Value) -> Result<(String, Bytes)> {
        let id = format!("00000000-0000-4000-8000-{:012x}", self.ids.fetch_add(1, Ordering::Relaxed));
        let (outcome, ended) = oneshot::channel();
        let invocation = Invocation { id: id.clone(), event: event.to_string(), outcome };
        let ended = timeout(ANSWERS_WITHIN, async {
            self.events.send(invocation).await.map_err(|_| anyhow!("the Runtime API is gone"))?;
            Ok::<_, anyhow::Error>(ended.await?)
        });
        match ended.await.with_context(|| format!("no answer; the log ends in:\n{}", self.log_tail()))?? {
            Outcome::Answered(answer) => Ok((id, answer)),
            Outcome::Failed(error) => bail!("the function failed: {}", String::from_utf8_lossy(&error)),
        }
    }

    /// The most memory that it has had so far, in bytes.
    ///
    /// # Errors
    /// It has ended.
    pub fn peak_memory_bytes(&self) -> Result<u64> {
        let id = self.process.id().context("the function has ended")?;
        let status = std::fs::read_to_string(format!("/proc/{id}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
    }

    /// For how long its threads have computed so far.
    ///
    /// # Errors
    /// It has ended.
    pub fn cpu_time(&self) -> Result<Duration> {
        let id = self.process.id().context("the function has ended")?;
        let mut nanoseconds = 0;
        for thread in std::fs::read_dir(format!("/proc/{id}/task"))? {
            let times = std::fs::read_to_string(thread?.path().join("schedstat"))?;
            nanoseconds += times.split(' ').next().context("no time")?.parse::<u64>()?;
        }
        Ok(Duration::from_nanos(nanoseconds))
    }

    /// End it; all that it has printed.
    ///
    /// # Errors
    /// It had ended before, or what it printed cannot be read.
    pub async fn end(mut self) -> Result<String> {
        ensure!(self.process.try_wait()?.is_none(), "the function had died; its log ends in:\n{}", self.log_tail());
        self.process.kill().await?;
        self.api.abort();
        Ok(String::from_utf8_lossy(&std::fs::read(self.log.path())?).into_owned())
    }

    fn log_tail(&self) -> String {
        let text = std::fs::read(self.log.path()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines.get(lines.len().saturating_sub(20)..).unwrap_or_default().join("\n")
    }
}

impl Drop for Function {
    fn drop(&mut self) {
        self.api.abort();
    }
}

// === impl Event ===

impl Event {
    /// The event of API Gateway's payload format 2.0.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut headers = serde_json::Map::new();
        for (name, value) in [("host", "api.example.com"), ("x-forwarded-proto", "https"), ("user-agent", "e2e")] {
            headers.insert(name.to_owned(), value.into());
        }
        headers.extend(self.headers.iter().map(|(name, value)| (name.clone(), value.as_str().into())));
        let mut event = json!({
            "version": "2.0", "routeKey": "$default", "rawPath": self.path, "rawQueryString": self.query, "headers": headers,
            "requestContext": {
                "accountId": "123456789012", "apiId": "a1b2c3d4e5", "domainName": "api.example.com", "domainPrefix": "api",
                "http": {
                    "method": self.method, "path": self.path, "protocol": "HTTP/1.1", "sourceIp": "203.0.113.7",
                    "userAgent": "e2e",
                },
                "requestId": "JKJaXmPLvHcESHA=", "routeKey": "$default", "stage": "$default",
                "time": "24/Nov/2026:09:30:00 +0000", "timeEpoch": 1_795_512_600_000_u64,
            },
            "isBase64Encoded": matches!(self.body, EventBody::Base64(_) | EventBody::SaidToBeBase64(_)),
        });
        match &self.body {
            EventBody::Absent => {}
            EventBody::Text(text) | EventBody::SaidToBeBase64(text) => event["body"] = text.as_str().into(),
            EventBody::Base64(bytes) => event["body"] = BASE64_STANDARD.encode(bytes).into(),
        }
        event
    }
}

// === impl Reply ===

impl Reply {
    /// Read the answer of a function.
    fn read(request_id: String, bytes: &[u8]) -> Result<Self> {
        ensure!(bytes.len() <= MAX_RESPONSE_BYTES, "the answer has {} bytes: Lambda refuses it", bytes.len());
        let answer: Value = serde_json::from_slice(bytes).context("the answer is not JSON")?;
        let status = answer["statusCode"].as_u64().context("the answer has no status")?;
        let body = answer["body"].as_str().unwrap_or_default();
        let body = if answer["isBase64Encoded"] == true { BASE64_STANDARD.decode(body)? } else { body.into() };
        let headers = answer["headers"].as_object().into_iter().flatten();
        let headers = headers
            .map(|(name, value)| (name.to_ascii_lowercase(), value.as_str().unwrap_or_default().to_owned()))
            .collect();
        Ok(Self { request_id, status: u16::try_from(status)?, headers, body })
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// It is none.
    pub fn json(&self) -> Result<Value> {
        Ok(serde_json::from_slice(&self.body)?)
    }
}

/// The variables of the deployed function and a session of its role, as `make invoke` gives them to it.
///
/// # Errors
/// It is not deployed.
pub async fn environment(world: &World, name: &str) -> Result<HashMap<String, String>> {
    let output = Command::new(world.root.join(".local/venv/sam/bin/python"))
        .args(["-c", EXPLAIN_ENVIRONMENT, name])
        .current_dir(world.root.join("infra/local"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .await?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).context("no environment")
}

async fn next(State(api): State<Arc<Api>>) -> Result<Response<Body>, StatusCode> {
    api.first_next.send_if_modified(|first| first.is_none() && first.replace(Instant::now()).is_none());
    let Invocation { id, event, outcome } = api.events.lock().await.recv().await.ok_or(StatusCode::GONE)?;
    api.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), outcome);
    let deadline = std::time::SystemTime::now() + ANSWERS_WITHIN;
    let deadline = deadline.duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_millis();
    Response::builder()
        .header("Lambda-Runtime-Aws-Request-Id", id)
        .header("Lambda-Runtime-Deadline-Ms", deadline.to_string())
        .header("Lambda-Runtime-Invoked-Function-Arn", "arn:aws:lambda:us-east-1:123456789012:function:e2e")
        .header("Lambda-Runtime-Trace-Id", TRACE_ID)
        .header("Content-Type", "application/json")
        .body(event.into())
        .map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
}

async fn answered(State(api): State<Arc<Api>>, Path(id): Path<String>, body: Bytes) -> StatusCode {
    api.end(&id, Outcome::Answered(body))
}

async fn failed(State(api): State<Arc<Api>>, Path(id): Path<String>, body: Bytes) -> StatusCode {
    api.end(&id, Outcome::Failed(body))
}

// === impl Api ===

impl Api {
    fn end(&self, id: &str, outcome: Outcome) -> StatusCode {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        match waiting.map(|waiting| waiting.send(outcome)) {
            Some(_) => StatusCode::ACCEPTED,
            None => StatusCode::NOT_FOUND,
        }
    }
}
