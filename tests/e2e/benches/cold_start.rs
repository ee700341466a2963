//! What a cold start costs: from the start of a function's process to its first question for an event, compared with a
//! function that does nothing; then the first request and a second one, without the time in which others were waited for.
//!
//! Processes on whole cores against the running twin: Lambda's own share (the sandbox, the download of the code, fewer
//! cores with less memory) is not in it. Every round starts each function once, so that all see the same noise.

use std::{
    collections::HashMap,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use e2e::{
    World,
    relay::{Relay, TlsEnd, union},
    runtime::{Event, EventBody, Function, environment},
};
use serde_json::{Value, json};

const ROUNDS: usize = 20;
/// Before them, so that programs and certificates are in the page cache.
const WARM_UP_ROUNDS: usize = 2;

/// One function and what it is asked.
struct Subject {
    name: &'static str,
    program: PathBuf,
    environment: HashMap<String, String>,
    event: Option<Value>,
}

/// What is measured of a request.
#[derive(Clone, Copy)]
struct Request {
    wall: Duration,
    waited: Duration,
    computed: Duration,
}

struct Sample {
    start: Duration,
    memory: u64,
    requests: Option<[Request; 2]>,
}

/// The ways to what is behind the functions, over which all calls go.
struct Upstreams {
    cluster: Relay,
    aws: Relay,
    /// AWS speaks TLS; the twin's does not.
    _tls: TlsEnd,
}

fn main() -> Result<()> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(run())
}

async fn run() -> Result<()> {
    let world = World::meet()?;
    let upstreams = Upstreams::start(&world).await?;
    let job = world.submit(&world.stub_request(&World::run_id("bench"), json!({}))?).await?;
    let subjects = subjects(&world, &upstreams, &job).await?;
    let mut samples: Vec<Vec<Sample>> = subjects.iter().map(|_| Vec::new()).collect();
    for round in 0..WARM_UP_ROUNDS + ROUNDS {
        for (subject, samples) in subjects.iter().zip(&mut samples) {
            let sample = subject.measure(&upstreams).await.with_context(|| subject.name)?;
            if round >= WARM_UP_ROUNDS {
                samples.push(sample);
            }
        }
    }
    world.twin.delete(&format!("/train/{job}")).await?.expect(202)?;
    report(&subjects, &samples);
    Ok(())
}

async fn subjects(world: &World, upstreams: &Upstreams, job: &str) -> Result<Vec<Subject>> {
    let token = ("x-trainer-token".to_owned(), world.twin.setting("TRAINER_API_TOKEN")?.to_owned());
    let event = |method: &str, path: &str, query: &str, body: EventBody| {
        let headers = vec![token.clone(), ("content-type".to_owned(), "application/json".to_owned())];
        Event { method: method.to_owned(), path: path.to_owned(), query: query.to_owned(), headers, body }.to_json()
    };
    let request = EventBody::Text(world.stub_request(&World::run_id("bench"), json!({}))?.to_string());
    let records: Value = serde_json::from_slice(&std::fs::read(world.root.join("events/indexer-test-event.json"))?)?;
    let events = [
        ("submit", event("POST", "/train", "dry_run=true", request)),
        ("status", event("GET", &format!("/train/{job}"), "", EventBody::Absent)),
        ("indexer", records),
    ];
    let mut subjects = vec![Subject {
        name: "empty",
        program: world.root.join("target/release/empty"),
        environment: HashMap::from([("AWS_LAMBDA_FUNCTION_NAME".to_owned(), "empty".to_owned())]),
        event: None,
    }];
    // What Lambda sets for every function.
    let common = environment(world, "indexer").await?;
    subjects[0].environment.extend(common.into_iter().filter(|(name, _)| name.starts_with("AWS_LAMBDA_")));
    for (name, event) in events {
        let mut environment = environment(world, name).await?;
        environment.extend(upstreams.environment(world));
        subjects.push(Subject { name, program: Function::bootstrap(world, name)?, environment, event: Some(event) });
    }
    Ok(subjects)
}

// === impl Upstreams ===

impl Upstreams {
    async fn start(world: &World) -> Result<Self> {
        let cluster = Relay::start(world.address("cluster_proxy")?).await?;
        // EKS describes the way to the cluster; here it is the one over the relay.
        let described = world.address("cluster_proxy")?.to_string().into_bytes();
        let instead = cluster.address.to_string().into_bytes();
        ensure!(described.len() == instead.len(), "the ports have other lengths: run it again");
        let pki = world.root.join(".local/state/pki");
        let (certificate, key) = (pki.join("server.crt"), pki.join("server.key"));
        let tls = TlsEnd::start(world.address("aws_proxy")?, &certificate, &key, Some((described, instead))).await?;
        Ok(Self { cluster, aws: Relay::start(tls.address).await?, _tls: tls })
    }

    fn environment(&self, world: &World) -> [(String, String); 2] {
        let authority = world.root.join(".local/state/pki/ca.crt").display().to_string();
        [
            ("AWS_ENDPOINT_URL".to_owned(), format!("https://{}", self.aws.address)),
            ("AWS_CA_BUNDLE".to_owned(), authority),
        ]
    }

    fn take_waits(&self) -> Vec<(Instant, Instant)> {
        self.cluster.take_waits().into_iter().chain(self.aws.take_waits()).collect()
    }
}

// === impl Subject ===

impl Subject {
    async fn measure(&self, upstreams: &Upstreams) -> Result<Sample> {
        let function = Function::spawn(&self.program, self.environment.clone()).await?;
        let start = function.ready().await?;
        let requests = match &self.event {
            Some(event) => {
                let first = request(&function, event, upstreams).await?;
                Some([first, request(&function, event, upstreams).await?])
            }
            None => None,
        };
        let memory = function.peak_memory_bytes()?;
        function.end().await?;
        Ok(Sample { start, memory, requests })
    }
}

async fn request(function: &Function, event: &Value, upstreams: &Upstreams) -> Result<Request> {
    let _ = upstreams.take_waits();
    let (computed, started) = (function.cpu_time()?, Instant::now());
    let (_, answer) = function.answer(event).await?;
    let wall = started.elapsed();
    let answer: Value = serde_json::from_slice(&answer)?;
    ensure!(answer.get("statusCode").is_none_or(|status| status == 200), "{answer}");
    Ok(Request { wall, waited: union(upstreams.take_waits()), computed: function.cpu_time()?.saturating_sub(computed) })
}

#[expect(clippy::print_stdout, reason = "the report is what the bench is for")]
fn report(subjects: &[Subject], samples: &[Vec<Sample>]) {
    println!("{ROUNDS} rounds; milliseconds: median (least to 90th percentile)\n");
    println!("| function | start | x empty | peak MiB |");
    println!("|---|---|---|---|");
    let starts = |samples: &[Sample]| -> Vec<f64> { samples.iter().map(|sample| milliseconds(sample.start)).collect() };
    let empty = samples.first().map_or(f64::NAN, |samples| quantile(&starts(samples), 0.5));
    for (subject, samples) in subjects.iter().zip(samples) {
        let start = starts(samples);
        let memory = samples.iter().map(|sample| sample.memory).max().unwrap_or_default() / 1024 / 1024;
        println!("| {} | {} | {:.1} | {memory} |", subject.name, spread(&start), quantile(&start, 0.5) / empty);
    }
    println!("\n| request | whole | less waiting | computing |");
    println!("|---|---|---|---|");
    for (subject, samples) in subjects.iter().zip(samples) {
        for (at, which) in ["first", "second"].into_iter().enumerate() {
            let requests: Vec<Request> = samples
                .iter()
                .filter_map(|sample| sample.requests.and_then(|requests| requests.get(at).copied()))
                .collect();
            if requests.is_empty() {
                continue;
            }
            let all = |part: fn(&Request) -> Duration| -> Vec<f64> {
                requests.iter().map(|request| milliseconds(part(request))).collect()
            };
            let own = all(|request| request.wall.saturating_sub(request.waited));
            let (wall, computed) = (all(|request| request.wall), all(|request| request.computed));
            println!("| {}, {which} | {} | {} | {} |", subject.name, spread(&wall), spread(&own), spread(&computed));
        }
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn spread(values: &[f64]) -> String {
    format!("{:.1} ({:.1} to {:.1})", quantile(values, 0.5), quantile(values, 0.0), quantile(values, 0.9))
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a place in a short list"
)]
fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = ((sorted.len().saturating_sub(1)) as f64 * share).round() as usize;
    sorted.get(at).copied().unwrap_or(f64::NAN)
}
