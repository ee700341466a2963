//! The task of one component: it starts the process, waits until it is ready, restarts it when it dies, and stops it.

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
    control::status::{State, Status},
    paths::Paths,
    spec::Spec,
    supervisor::probe::Probe,
};

/// After a run of this length, the next restart is quick again.
const STABLE_AFTER: Duration = Duration::from_secs(30);
const FIRST_BACK_OFF: Duration = Duration::from_millis(250);
const LONGEST_BACK_OFF: Duration = Duration::from_secs(10);
const LONGEST_LOG_BYTES: u64 = 16 * 1024 * 1024;

/// What is wanted from a component: that it is stopped, or that it runs from this specification.
pub(crate) type Wanted = Option<Launch>;

/// A specification, and the time when its program was built. A rebuilt program has to be started again.
#[derive(Debug, Clone)]
pub(crate) struct Launch {
    pub(crate) spec: Spec,
    pub(crate) built: Option<SystemTime>,
    /// The number rises with each launch, so that the state of an old process is not taken for that of the new one.
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
    /// Runs until the supervisor is dropped.
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
            // The process gets its own group, so that the processes that it leaves behind can be killed.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}", spec.program.display()))
    }

    /// Watches a process until it dies or is not wanted any more.
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

    /// Opens the log for appending. A log that has grown large is renamed first.
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

/// Kills the processes that a component has left in its group. The containers of the node have their own groups and
/// outlive it, as they outlive a kubelet.
fn kill_group(pid: Option<u32>) {
    if let Some(pid) = pid.and_then(|pid| i32::try_from(pid).ok()) {
        // The group is mostly empty.
        let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
    }
}
