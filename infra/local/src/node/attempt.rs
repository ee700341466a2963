//! One attempt of a container on disk: the shim writes its folder and the node reads it, so that either may die.
//!
//! ```text
//! <pods_dir>/<namespace>_<pod>_<uid>/<container>.pid               the container's first process, while it runs
//! <pods_dir>/<namespace>_<pod>_<uid>/volumes/<name>/               a volume of the pod's own; see also `short_paths`
//! <pods_dir>/<namespace>_<pod>_<uid>/<container>/<attempt>/shim         locked while the shim lives
//!                                                          process      the container's first process
//!                                                          log          output, in the format of container runtimes
//!                                                          termination  what the container says about its end
//!                                                          exit         how it ended, written last
//! ```

use std::{
    fs::{self, File, TryLockError},
    io,
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

/// How long a shim may take to claim its folder on a very busy machine.
const SHIM_START_TIME: Duration = Duration::from_secs(20);

/// The folder of one attempt.
#[derive(Clone, Debug)]
pub(crate) struct AttemptFolder(PathBuf);

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Exit {
    pub(crate) code: i32,
    pub(crate) started_at: Timestamp,
    pub(crate) finished_at: Timestamp,
    /// Why the program could not be started.
    pub(crate) refused: Option<String>,
}

/// The state of an attempt.
#[derive(Debug)]
pub(crate) enum Observation {
    /// A shim watches it.
    Running,
    /// It ended.
    Ended(Exit),
    /// The shim has died without writing an exit: the machine or the twin went down.
    Lost,
}

// === impl Exit ===

impl Exit {
    /// The end of an attempt that no shim has watched to its end.
    pub(crate) fn of_lost(started_at: Timestamp) -> Self {
        Self { code: 137, started_at, finished_at: Timestamp::now(), refused: None }
    }

    /// The end of an attempt that never began.
    pub(crate) fn of_refused(why: String) -> Self {
        let now = Timestamp::now();
        Self { code: 128, started_at: now, finished_at: now, refused: Some(why) }
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

    /// Claims the folder for a shim while the returned file is open. The kernel unlocks it however the shim ends.
    pub(crate) fn claim(&self) -> anyhow::Result<File> {
        let unfinished = self.0.join("shim.new");
        let file = File::create(&unfinished)?;
        file.lock()?;
        fs::rename(&unfinished, self.shim())?;
        Ok(file)
    }

    pub(crate) fn write_process(&self, pid: u32) -> anyhow::Result<()> {
        self.write("process", &pid)
    }

    pub(crate) fn write_exit(&self, exit: &Exit) -> anyhow::Result<()> {
        self.write("exit", exit)
    }

    /// Writes the exit of an attempt that no shim has watched to its end. The folder may be missing.
    pub(crate) fn record_exit(&self, exit: &Exit) -> anyhow::Result<()> {
        fs::create_dir_all(&self.0)?;
        self.write_exit(exit)
    }

    pub(crate) fn exit(&self) -> Option<Exit> {
        self.read("exit")
    }

    pub(crate) fn observe(&self) -> Observation {
        // The order matters: a shim that ends between the two reads has written the exit before.
        let watched = self.is_watched();
        match self.exit() {
            Some(exit) => Observation::Ended(exit),
            None if watched => Observation::Running,
            None => Observation::Lost,
        }
    }

    /// Signals the container's first process; `false` while there is none.
    pub(crate) fn signal(&self, signal: Signal) -> bool {
        // While the shim lives and has written no exit, the process id is that of its child.
        if !matches!(self.observe(), Observation::Running) {
            return false;
        }
        let process = self.read::<i32>("process").filter(|pid| *pid > 1);
        process.is_some_and(|pid| kill(Pid::from_raw(pid), signal).is_ok())
    }

    fn is_watched(&self) -> bool {
        if let Ok(file) = File::open(self.shim()) {
            return matches!(file.try_lock(), Err(TryLockError::WouldBlock));
        }
        // The shim may be about to start.
        let modified = self.0.metadata().and_then(|folder| folder.modified());
        modified.is_ok_and(|time| time.elapsed().is_ok_and(|age| age < SHIM_START_TIME))
    }

    fn shim(&self) -> PathBuf {
        self.0.join("shim")
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

/// The numbers of a container's attempts in ascending order.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_is_what_its_folder_says() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = AttemptFolder::new(scratch.path().to_owned());
        assert!(matches!(folder.observe(), Observation::Running), "its shim is on its way");
        let shim = folder.claim().unwrap();
        assert!(matches!(folder.observe(), Observation::Running));
        assert!(!folder.signal(Signal::SIGTERM), "there is no process yet");
        drop(shim);
        // A process that another test starts just now holds a copy of the lock until it has become another program.
        while !matches!(folder.observe(), Observation::Lost) {
            std::thread::yield_now();
        }
        let exit = Exit::of_refused("why".to_owned());
        folder.write_exit(&exit).unwrap();
        assert!(matches!(folder.observe(), Observation::Ended(end) if end == exit));
    }

    #[test]
    fn a_process_is_signalled_only_while_its_shim_lives() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = AttemptFolder::new(scratch.path().to_owned());
        let mut process = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let shim = folder.claim().unwrap();
        folder.write_process(process.id()).unwrap();
        drop(shim);
        assert!(!folder.signal(Signal::SIGKILL), "the number may be another's by now");
        let _shim = folder.claim().unwrap();
        assert!(folder.signal(Signal::SIGKILL));
        assert_eq!(process.wait().unwrap().code(), None);
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
