//! What the index costs, at ten, a thousand and twenty thousand checkpoints: an event through the deployed indexer's own
//! program, and reads. S3 is in memory behind a real connection, so that what is measured is ours and not an S3's.
//!
//! Lambda's and S3's own times are not in it.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, Method, Response, Uri},
};
use e2e::{World, runtime::Function};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use training_run::{
    layout::{RunKey, RunPrefix},
    lineage::Mode,
    names::Step,
};
use training_store::{
    Store,
    testing::{Answer, Bucket},
};

const SIZES: [u64; 3] = [10, 1_000, 20_000];
/// All steps have as many digits, so that bytes can be compared.
const FIRST: u64 = 100_000;
const SUBMISSION: &str = "01980000-0000-7000-8000-00000000000b";
/// Of the submission that begins the run anew.
const ANEW: &str = "01990000-0000-7000-8000-00000000000c";
const RUN: &str = "s3://bucket/runs/r/framework=hf";
const WARM_UP: u32 = 20;
const EVENTS: u32 = 500;
const READS: u32 = 50;
/// Choices among all checkpoints.
const CHOICES: u32 = 5;
const PAGE: u32 = 10;

fn main() -> Result<()> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(run())
}

#[expect(clippy::print_stdout, reason = "the report is what the bench is for")]
async fn run() -> Result<()> {
    let world = World::meet()?;
    let prefix: RunPrefix = RUN.parse()?;
    println!("| what | checkpoints | requests | bytes | ms | events a second of one core |");
    println!("|---|---|---|---|---|---|");
    for count in SIZES {
        let bucket = Bucket::holding_run(&prefix, SUBMISSION, FIRST..FIRST + count).await;
        let address = serve(bucket.clone()).await?;
        let function = Function::spawn(&Function::bootstrap(&world, "indexer")?, environment(address)).await?;
        function.ready().await?;
        let event = event(FIRST + 5);
        for _ in 0..WARM_UP {
            function.answer(&event).await?;
        }
        let (computed, started) = (function.cpu_time()?, Instant::now());
        let _ = bucket.take_traffic();
        for _ in 0..EVENTS {
            let (_, answer) = function.answer(&event).await?;
            ensure!(answer.as_ref() == b"null", "{}", String::from_utf8_lossy(&answer));
        }
        let (wall, computed) = (started.elapsed(), function.cpu_time()?.saturating_sub(computed));
        let rate = f64::from(EVENTS) / computed.as_secs_f64();
        println!("| event | {count} | {} | {rate:.0} |", row(&bucket, EVENTS, wall));
        function.end().await?;

        let store = Store::new(client(address));
        let started = Instant::now();
        for _ in 0..READS {
            let latest = store.latest(&prefix).await?.context("no checkpoint")?;
            ensure!(latest.step.get() == FIRST + count - 1, "step {}", latest.step);
        }
        println!("| latest, files checked | {count} | {} | |", row(&bucket, READS, started.elapsed()));
        let started = Instant::now();
        for _ in 0..READS {
            let page = store.index_page(&prefix, PAGE, Some(Step::new(FIRST + count)?)).await?;
            ensure!(page.entries.len() == usize::try_from(PAGE)?, "{} entries", page.entries.len());
        }
        println!("| page of {PAGE} | {count} | {} | |", row(&bucket, READS, started.elapsed()));
        let started = Instant::now();
        for _ in 0..READS {
            store.lineage(&prefix).await?;
        }
        println!("| what is superseded | {count} | {} | |", row(&bucket, READS, started.elapsed()));
        let started = Instant::now();
        for _ in 0..CHOICES {
            store.best(&prefix, "loss", Mode::Min).await?.context("no checkpoint")?;
        }
        println!("| best, files checked | {count} | {} | |", row(&bucket, CHOICES, started.elapsed()));
        begin_anew(&bucket, &prefix).await?;
        let _ = bucket.take_traffic();
        let started = Instant::now();
        for _ in 0..CHOICES {
            let latest = store.latest(&prefix).await?.context("no checkpoint")?;
            ensure!(latest.step.get() == FIRST, "step {}", latest.step);
        }
        println!("| latest of a run begun anew | {count} | {} | |", row(&bucket, CHOICES, started.elapsed()));
    }
    Ok(())
}

/// Another submission owns the run, and has its first checkpoint at the lowest step.
async fn begin_anew(bucket: &Bucket, prefix: &RunPrefix) -> Result<()> {
    let key = |key: RunKey<'_>| prefix.key(&key);
    let marker = key(RunKey::Marker(Step::new(FIRST)?));
    for key in [marker, key(RunKey::Owner)] {
        let body = bucket.body(&key).context("no object")?;
        bucket.write(&key, &body.replace(SUBMISSION, ANEW));
    }
    bucket.store().index(prefix, Step::new(FIRST)?).await?;
    Ok(())
}

/// Requests, bytes and milliseconds of one of so many.
fn row(bucket: &Bucket, times: u32, wall: Duration) -> String {
    let traffic = bucket.take_traffic();
    let each = |number: usize| u32::try_from(number).map_or(f64::NAN, f64::from) / f64::from(times);
    let milliseconds = wall.as_secs_f64() * 1e3 / f64::from(times);
    format!("{:.1} | {:.0} | {milliseconds:.2}", each(traffic.calls.len()), each(traffic.bytes))
}

fn event(step: u64) -> Value {
    json!({"Records": [{
        "eventVersion": "2.1", "eventSource": "aws:s3", "eventName": "ObjectCreated:Put",
        "s3": {
            "bucket": {"name": "bucket"},
            "object": {"key": format!("runs/r/framework%3Dhf/checkpoints/step-{step}.json")},
        },
    }]})
}

/// What the program needs of Lambda's environment.
fn environment(s3: SocketAddr) -> HashMap<String, String> {
    let endpoint = format!("http://{s3}");
    let variables = [
        ("RUNS_BASE_URIS", "s3://bucket/runs"),
        ("AWS_ENDPOINT_URL", &endpoint),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AWS_LAMBDA_FUNCTION_NAME", "indexer"),
        ("AWS_LAMBDA_FUNCTION_VERSION", "1"),
        ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "128"),
        ("AWS_LAMBDA_LOG_GROUP_NAME", "bench"),
        ("AWS_LAMBDA_LOG_STREAM_NAME", "bench"),
    ];
    variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
}

fn client(s3: SocketAddr) -> aws_sdk_s3::Client {
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::from_static("us-east-1"))
        .credentials_provider(Credentials::new("key", "secret", None, None, "bench"))
        .endpoint_url(format!("http://{s3}"));
    aws_sdk_s3::Client::from_conf(config.build())
}

/// The bucket behind a real connection, for as long as this process lives.
async fn serve(bucket: Bucket) -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    let router = Router::new().fallback(answer).with_state(bucket);
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(address)
}

async fn answer(
    State(bucket): State<Bucket>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response<Body>, axum::http::StatusCode> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let Answer(status, etag, body) = bucket.answer(method.as_str(), &uri.to_string(), header, &body);
    let response = Response::builder().status(status);
    let response = match etag {
        Some(etag) => response.header("etag", etag),
        None => response,
    };
    response.body(body.into()).map_err(|_| axum::http::StatusCode::INTERNAL_SERVER_ERROR)
}
