//! The process of one component.

use std::{
    fs::{self, File, OpenOptions},
    process::Stdio,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{
    process::{Child, Command},
    sync::watch,
    time::{Instant, sleep, timeout},
};

use crate::{
    components::component::Component,
    paths::Paths,
    spec::Spec,
    supervisor::{
        probe::Probe,
        status::{State, Status},
    },
};

/// A component that ran for so long has recovered: its next restart is quick again.
const STABLE_AFTER: Duration = Duration::from_secs(30);
const FIRST_BACK_OFF: Duration = Duration::from_millis(250);
const LONGEST_BACK_OFF: Duration = Duration::from_secs(10);
const LONGEST_LOG_BYTES: u64 = 16 * 1024 * 1024;

/// What a component is to be: stopped, or running from this specification.
pub(crate) type Wanted = Option<Launch>;

/// A specification and the age of its program: a rebuilt program is another one.
#[derive(Debug, Clone)]
pub(crate) struct Launch {
    pub(crate) spec: Spec,
    pub(crate) built: Option<SystemTime>,
    /// Rises with each one, so that the state of an old process cannot pass for that of the new one.
    pub(crate) number: u64,
}

/// The task of one component.
pub(crate) struct Task {
    pub(crate) component: Component,
    pub(crate) paths: Paths,
    pub(crate) probe: Probe,
    pub(crate) wanted: watch::Receiver<Wanted>,
    pub(crate) status: watch::Sender<Status>,
}

/// Why a process is no longer running.
enum Ended {
    Died(String),
    Unwanted,
}

// === impl Task ===

impl Task {
    pub(crate) async fn run(mut self) {
        let mut back_off = FIRST_BACK_OFF;
        loop {
            let launch = self.wanted.borrow_and_update().clone();
            let Some(launch) = launch else {
                self.set(State::Stopped, None);
                if self.wanted.changed().await.is_err() {
                    return;
                }
                self.status.send_modify(|status| (status.restarts, status.last_exit) = (0, None));
                back_off = FIRST_BACK_OFF;
                continue;
            };
            let started = Instant::now();
            let ended = match self.spawn(&launch.spec) {
                Ok(child) => self.watch(&launch, child).await,
                Err(error) => Ended::Died(format!("{error:#}")),
            };
            let Ended::Died(reason) = ended else { continue };
            tracing::warn!("{} died: {reason}", self.component);
            if started.elapsed() > STABLE_AFTER {
                back_off = FIRST_BACK_OFF;
            }
            self.status.send_modify(|status| {
                status.restarts += 1;
                status.last_exit = Some(reason);
            });
            self.set(State::BackOff, None);
            tokio::select! {
                () = sleep(back_off) => back_off = (back_off * 2).min(LONGEST_BACK_OFF),
                changed = self.wanted.changed() => if changed.is_err() { return },
            }
        }
    }

    fn spawn(&self, spec: &Spec) -> Result<Child> {
        if let Some(seed) = &spec.seed {
            seed.write()?;
        }
        self.status.send_modify(|status| status.port = spec.port);
        let log = self.open_log()?;
        Command::new(&spec.program)
            .args(&spec.arguments)
            .env_clear()
            .envs(&spec.environment)
            .current_dir(self.paths.state())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // A group of its own, to be killed with what it leaves behind.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}", spec.program.display()))
    }

    /// Sees a process through its life.
    async fn watch(&mut self, launch: &Launch, mut child: Child) -> Ended {
        let spec = &launch.spec;
        let pid = child.id();
        self.status.send_modify(|status| status.launch = launch.number);
        self.set(State::Starting, pid);
        let mut wanted = self.wanted.clone();
        let died = tokio::select! {
            status = child.wait() => Some(status),
            _ = wanted.changed() => None,
            () = self.probe.until(&spec.ready) => {
                self.set(State::Ready, pid);
                tokio::select! {
                    status = child.wait() => Some(status),
                    _ = wanted.changed() => None,
                }
            }
        };
        if let Some(status) = died {
            kill_group(pid);
            return Ended::Died(status.map_or_else(|error| error.to_string(), |status| status.to_string()));
        }
        self.set(State::Stopping, pid);
        signal(pid, Signal::SIGTERM);
        if timeout(spec.grace, child.wait()).await.is_err() {
            tracing::info!("{} did not end within {} s of SIGTERM: killed", self.component, spec.grace.as_secs());
            signal(pid, Signal::SIGKILL);
            let _ = child.wait().await;
        }
        kill_group(pid);
        Ended::Unwanted
    }

    fn set(&self, state: State, pid: Option<u32>) {
        self.status.send_modify(|status| (status.state, status.pid) = (state, pid));
    }

    /// Appends; a log that has grown large becomes the old one first.
    fn open_log(&self) -> Result<File> {
        let log = self.paths.log(self.component.name());
        if fs::metadata(&log).is_ok_and(|metadata| metadata.len() > LONGEST_LOG_BYTES) {
            fs::rename(&log, log.with_extension("log.old"))?;
        }
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("cannot write {}", log.display()))
    }
}

pub(crate) fn signal(pid: Option<u32>, signal: Signal) {
    if let Some(pid) = pid.and_then(|pid| i32::try_from(pid).ok()) {
        // The process may have ended by itself in the meantime.
        let _ = nix::sys::signal::kill(Pid::from_raw(pid), signal);
    }
}

/// Ends what a component leaves behind. (The node's containers have groups of their own and outlive it, as they do a
/// kubelet.)
fn kill_group(pid: Option<u32>) {
    if let Some(pid) = pid.and_then(|pid| i32::try_from(pid).ok()) {
        // Mostly there is nothing left.
        let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
    }
}
