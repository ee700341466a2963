//! The image `stub`: a training job without training. It counts steps, writes the progress object that the trainer would
//! write, and ends as it is told to, for tests with many jobs.
//!
//! ```text
//! TRAINING_EXTRA_ARGS_JSON ─> Orders ─> steps, one line each ─┬─> progress object (rank 0, where the job names a run)
//!                                                             └─> message ─> termination log, exit code
//! ```
//! `Orders` are what the job asks for, and a `ProgressObject` says where progress is written.
//!
//! `TRAINING_EXTRA_ARGS_JSON` says how: `{"seconds": 1, "steps": 10, "exit_code": 0, "message": "...", "stop_seconds": 0}`,
//! all optional. The message goes where a container leaves its last words. SIGTERM ends it with exit code 143, after
//! `stop_seconds`.

use std::{env, fs::OpenOptions, io::Write as _, process::ExitCode, time::Duration};

use anyhow::Context as _;
use aws_config::BehaviorVersion;
use serde::Deserialize;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{self, Instant},
};
use training_run::{
    layout::{RunKey, RunPrefix},
    names::Submission,
    progress::Progress,
};

/// The exit code of a program that SIGTERM ends.
const TERMINATED: u8 = 143;
/// Progress is written at most so often, and at the last step.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// What the job's `extra_args` ask for. Others are the trainer's, and ignored.
#[derive(Debug, Deserialize)]
#[serde(default)]
struct Orders {
    seconds: f64,
    steps: u64,
    exit_code: u8,
    message: String,
    stop_seconds: f64,
}

/// Where the master writes how far it is.
struct ProgressObject {
    client: aws_sdk_s3::Client,
    prefix: RunPrefix,
    submission: Submission,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<ExitCode> {
    let mut terminate = signal(SignalKind::terminate())?;
    let orders = Orders::from_environment()?;
    tokio::select! {
        code = train(&orders) => return code,
        _ = terminate.recv() => {}
    }
    time::sleep(Duration::try_from_secs_f64(orders.stop_seconds)?).await;
    Ok(ExitCode::from(TERMINATED))
}

async fn train(orders: &Orders) -> anyhow::Result<ExitCode> {
    // Only the master of a job that knows where its run is has something to write.
    let progress =
        if env::var("RANK").is_ok_and(|rank| rank == "0") { ProgressObject::from_environment().await? } else { None };
    let step_time =
        Duration::try_from_secs_f64(orders.seconds)?.div_f64(f64::from(u32::try_from(orders.steps.max(1))?));
    let begin = Instant::now();
    let mut written_at: Option<Instant> = None;
    for step in 1..=orders.steps {
        time::sleep_until(begin + step_time.mul_f64(f64::from(u32::try_from(step)?))).await;
        print(&format!("step {step}/{}", orders.steps))?;
        let due = step == orders.steps || written_at.is_none_or(|written_at| written_at.elapsed() >= PROGRESS_INTERVAL);
        if let Some(progress) = progress.as_ref().filter(|_| due) {
            progress.write(step, orders.steps, step_time).await?;
            written_at = Some(Instant::now());
        }
    }
    time::sleep_until(begin + Duration::try_from_secs_f64(orders.seconds)?).await;
    if !orders.message.is_empty() {
        print(&orders.message)?;
        leave_message(&orders.message)?;
    }
    Ok(ExitCode::from(orders.exit_code))
}

// === impl Orders ===

impl Orders {
    fn from_environment() -> anyhow::Result<Self> {
        match env::var("TRAINING_EXTRA_ARGS_JSON") {
            Ok(text) => serde_json::from_str(&text).context("TRAINING_EXTRA_ARGS_JSON is not valid"),
            Err(_) => Ok(Self::default()),
        }
    }
}

impl Default for Orders {
    fn default() -> Self {
        Self { seconds: 1.0, steps: 10, exit_code: 0, message: String::new(), stop_seconds: 0.0 }
    }
}

// === impl ProgressObject ===

impl ProgressObject {
    /// `None` in a pod that was not made by submit.
    async fn from_environment() -> anyhow::Result<Option<Self>> {
        let (Ok(prefix), Ok(submission)) = (env::var("CHECKPOINT_PREFIX"), env::var("SUBMISSION")) else {
            return Ok(None);
        };
        let sdk = aws_config::load_defaults(BehaviorVersion::latest()).await;
        // The emulator has no host name for each bucket.
        let settings = aws_sdk_s3::config::Builder::from(&sdk).force_path_style(true).build();
        Ok(Some(Self {
            client: aws_sdk_s3::Client::from_conf(settings),
            prefix: prefix.parse().context("CHECKPOINT_PREFIX is not valid")?,
            submission: submission.parse().context("SUBMISSION is not valid")?,
        }))
    }

    async fn write(&self, step: u64, total: u64, step_time: Duration) -> anyhow::Result<()> {
        let remaining = u32::try_from(total - step)?;
        let progress = Progress {
            submission: self.submission.to_string(),
            attempt: 1,
            step,
            total: Some(total),
            loss: Some(1.0 / f64::from(u32::try_from(step)?)),
            tokens_per_second: None,
            eta_seconds: Some(step_time.mul_f64(f64::from(remaining)).as_secs_f64()),
            cut_off: None,
            micro_batch: None,
            expected_peak_bytes: None,
            updated_at: now()?,
        };
        let key = self.prefix.key(&RunKey::Progress(&self.submission));
        let body = serde_json::to_vec(&progress)?;
        self.client
            .put_object()
            .bucket(self.prefix.bucket())
            .key(key)
            .content_type("application/json")
            .body(body.into())
            .send()
            .await
            .context("cannot write progress")?;
        Ok(())
    }
}

/// Seconds since 1970.
fn now() -> anyhow::Result<f64> {
    Ok(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs_f64())
}

fn print(line: &str) -> anyhow::Result<()> {
    let mut output = std::io::stdout().lock();
    writeln!(output, "{line}")?;
    Ok(output.flush()?)
}

/// Append to the container's termination message, if somebody has said where that is.
fn leave_message(message: &str) -> anyhow::Result<()> {
    let Some(file) = env::var_os("TERMINATION_LOG") else { return Ok(()) };
    Ok(OpenOptions::new().append(true).create(true).open(file)?.write_all(message.as_bytes())?)
}
