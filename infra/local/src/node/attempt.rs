//! One attempt of a container on disk: the folder that the shim writes and the node reads, so that either may die.
//!
//! ```text
//! <pods_dir>/<namespace>_<pod>_<uid>/<container>.pid             the container's first process, while it runs
//! <pods_dir>/<namespace>_<pod>_<uid>/<container>/<attempt>/log         output in the format of container runtimes
//!                                                          termination what the container has to say about its end
//!                                                          shim        who watches it
//!                                                          process     its first process, as seen from outside
//!                                                          exit        how it ended, written last
//! ```

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use k8s_openapi::jiff::Timestamp;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// How long a shim may take to say that it is there, on a very busy machine.
const SHIM_START_TIME: Duration = Duration::from_secs(20);

/// The folder of one attempt.
#[derive(Clone, Debug)]
pub(crate) struct AttemptFolder(PathBuf);

/// A process that cannot be mistaken for a later one of the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessId {
    pub(crate) pid: u32,
    /// When it started, in clock ticks since the machine's start.
    started: u64,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Exit {
    pub(crate) exit_code: i32,
    pub(crate) started_at: Timestamp,
    pub(crate) finished_at: Timestamp,
    /// Why the program could not even be started.
    pub(crate) refused: Option<String>,
}

/// What can be said of an attempt now.
#[derive(Debug)]
pub(crate) enum Observation {
    /// The shim watches it.
    Running,
    /// It ended.
    Ended(Exit),
    /// The shim is gone without a word: the machine or the twin went down.
    Lost,
}

// === impl Exit ===

impl Exit {
    /// The end of an attempt that nobody saw.
    pub(crate) fn of_lost(started_at: Timestamp) -> Self {
        Self { exit_code: 137, started_at, finished_at: Timestamp::now(), refused: None }
    }

    /// The end of an attempt that never began.
    pub(crate) fn of_refused(why: String) -> Self {
        let now = Timestamp::now();
        Self { exit_code: 128, started_at: now, finished_at: now, refused: Some(why) }
    }
}

// === impl AttemptFolder ===

impl AttemptFolder {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.0.join("log")
    }

    pub(crate) fn termination(&self) -> PathBuf {
        self.0.join("termination")
    }

    pub(crate) fn write_shim(&self, shim: ProcessId) -> anyhow::Result<()> {
        self.write("shim", &shim)
    }

    pub(crate) fn write_process(&self, process: ProcessId) -> anyhow::Result<()> {
        self.write("process", &process)
    }

    pub(crate) fn write_exit(&self, exit: &Exit) -> anyhow::Result<()> {
        self.write("exit", exit)
    }

    pub(crate) fn exit(&self) -> Option<Exit> {
        self.read("exit")
    }

    pub(crate) fn observe(&self) -> Observation {
        // In this order: a shim that ends between the two looks has written the exit before.
        let watched = match self.read::<ProcessId>("shim") {
            Some(shim) => shim.is_alive(),
            None => self.is_new(),
        };
        match self.exit() {
            Some(exit) => Observation::Ended(exit),
            None if watched => Observation::Running,
            None => Observation::Lost,
        }
    }

    /// Send a signal to the container's first process; `false` while there is none.
    pub(crate) fn signal(&self, signal: Signal) -> bool {
        let process = self.read::<ProcessId>("process").filter(|process| process.is_alive());
        process.and_then(ProcessId::for_kill).is_some_and(|pid| kill(pid, signal).is_ok())
    }

    /// Whether a shim may still be on its way.
    fn is_new(&self) -> bool {
        let modified = self.0.metadata().and_then(|folder| folder.modified());
        modified.is_ok_and(|time| time.elapsed().is_ok_and(|age| age < SHIM_START_TIME))
    }

    fn write(&self, name: &str, content: &impl Serialize) -> anyhow::Result<()> {
        let path = self.0.join(name);
        let unfinished = path.with_extension("new");
        fs::write(&unfinished, serde_json::to_vec(content)?)
            .and_then(|()| fs::rename(&unfinished, &path))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        serde_json::from_slice(&fs::read(self.0.join(name)).ok()?).ok()
    }
}

/// The numbers of a container's attempts, in order; empty when it has none.
pub(crate) fn attempts(container_folder: &Path) -> io::Result<Vec<u32>> {
    let entries = match fs::read_dir(container_folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut attempts: Vec<u32> = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    attempts.sort_unstable();
    Ok(attempts)
}

// === impl ProcessId ===

impl ProcessId {
    /// The process that has this number now.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let (_, started) = state_and_start(pid)?;
        Some(Self { pid, started })
    }

    /// Whether it is there and not a zombie: whose parent is gone may never be reaped.
    pub(crate) fn is_alive(self) -> bool {
        state_and_start(self.pid).is_some_and(|(state, started)| started == self.started && !matches!(state, 'Z' | 'X'))
    }

    fn for_kill(self) -> Option<Pid> {
        i32::try_from(self.pid).ok().filter(|pid| *pid > 1).map(Pid::from_raw)
    }
}

/// Fields 3 and 22 of `/proc/<pid>/stat`; the second field is a name in brackets that may itself hold brackets.
fn state_and_start(pid: u32) -> Option<(char, u64)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    let state = fields.next()?.chars().next()?;
    let started = fields.nth(18)?.parse().ok()?;
    Some((state, started))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_used_again_is_another_process() {
        let this = ProcessId::of(std::process::id()).unwrap();
        assert!(this.is_alive());
        assert!(!ProcessId { started: this.started + 1, ..this }.is_alive());
    }

    #[test]
    fn a_zombie_is_not_alive() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let process = ProcessId::of(child.id()).unwrap();
        while process.is_alive() {
            std::thread::yield_now();
        }
        assert!(Path::new(&format!("/proc/{}", child.id())).exists(), "not reaped yet");
        child.wait().unwrap();
    }

    #[test]
    fn attempts_are_counted_as_numbers() {
        let folder = tempfile::tempdir().unwrap();
        assert!(attempts(&folder.path().join("missing")).unwrap().is_empty());
        for name in ["10", "9", "0", "other"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        assert_eq!(attempts(folder.path()).unwrap(), [0, 9, 10]);
    }
}
