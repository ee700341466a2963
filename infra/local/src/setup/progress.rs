//! The progress lines of `twin up`: one for each step with its time, and an announcement of a step that takes long.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use tokio::{sync::mpsc::UnboundedSender, time::sleep};

/// A step that takes longer than this is announced.
const LONG: Duration = Duration::from_secs(2);

/// Where the lines of one request go: to the terminal that asked, and to the supervisor's log.
#[derive(Debug, Clone)]
pub(crate) struct Progress {
    started: Instant,
    lines: UnboundedSender<String>,
}

impl Progress {
    pub(crate) fn new(lines: UnboundedSender<String>) -> Self {
        Self { started: Instant::now(), lines }
    }

    /// Writes a line with the time since the request.
    pub(crate) fn say(&self, text: &str) {
        let line = format!("{:>6.1} s  {text}", self.started.elapsed().as_secs_f64());
        tracing::info!("{line}");
        // This fails when the request was cancelled. Its steps are about to be dropped.
        let _ = self.lines.send(line);
    }

    /// Runs a step and writes its time. The error of a step that fails names the step.
    pub(crate) async fn step<T>(&self, name: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
        let started = Instant::now();
        let announce = async {
            sleep(LONG).await;
            self.say(&format!("{name} ..."));
            std::future::pending::<()>().await;
        };
        let result = tokio::select! {
            result = work => result,
            () = announce => unreachable!("the announcement never ends"),
        };
        let value = result.with_context(|| format!("{name} failed"))?;
        self.say(&format!("{name}: done in {:.1} s", started.elapsed().as_secs_f64()));
        Ok(value)
    }
}
