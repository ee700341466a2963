//! The two kinds of container: how the node starts an attempt of each, and how it finds out that the attempt has ended.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use k8s_openapi::{
    api::core::v1::{Container as Spec, Pod},
    jiff::Timestamp,
};
use nix::sys::signal::Signal;
use tracing::{info, warn};

use crate::{
    attempt::{AttemptFolder, Exit, Observation},
    environment::{self, Additions},
    images, process,
    references::References,
    shared_state::Node,
    short_paths,
};

/// The init container that the training operator adds to workers. It waits until the master's name resolves.
const WAITS_FOR_MASTER: &str = "init-pytorch";
/// The exit code of a program that SIGKILL ended.
const KILLED: i32 = 137;

/// What carries out the attempts of a container.
#[derive(Debug)]
pub(crate) enum Runner {
    /// A program: each attempt is a process of this machine under a shim.
    Program(ProgramPaths),
    /// The node itself: the operator's init container only waits, and the node knows when the wait is over.
    MasterWait,
}

/// Where the files of a container's program lie in the folder of its pod.
#[derive(Debug)]
pub(crate) struct ProgramPaths {
    pid_file: PathBuf,
    home: PathBuf,
    volumes: PathBuf,
    short_volumes: PathBuf,
}

/// What a container needs from its pod to start.
pub(crate) struct Surroundings<'a> {
    pub(crate) node: &'a Node,
    pub(crate) pod: &'a Pod,
    pub(crate) job_port: Option<u16>,
    pub(crate) master_has_started: bool,
}

/// Why an attempt does not run.
#[derive(Debug)]
pub(crate) enum LaunchError {
    /// The image cannot be pulled. There is no attempt.
    Pull(String),
    /// Something that the container's configuration names cannot be read. There is no attempt.
    Configuration(String),
    /// The program cannot be started. The attempt has failed.
    Start(String),
}

/// What a signal has done to an attempt.
#[derive(Debug)]
pub(crate) enum Signalled {
    /// There was no process.
    Unreached,
    /// The process has the signal and ends when it chooses.
    Reached,
    /// The attempt has ended.
    Ended(Exit),
}

// === impl Runner ===

impl Runner {
    pub(crate) fn of(container: &Spec, pod_folder: &Path) -> Self {
        if container.name == WAITS_FOR_MASTER {
            return Self::MasterWait;
        }
        Self::Program(ProgramPaths {
            pid_file: pod_folder.join(format!("{}.pid", container.name)),
            home: pod_folder.join("work"),
            volumes: pod_folder.join("volumes"),
            short_volumes: short_paths::of(pod_folder),
        })
    }

    /// The number of the attempt that follows the newest one.
    pub(crate) fn next_attempt(&self, newest: Option<u32>) -> u32 {
        match self {
            Self::Program(_) => newest.map_or(0, |newest| newest + 1),
            // A wait that begins again is the same wait.
            Self::MasterWait => 0,
        }
    }

    /// Starts an attempt. `id` is its name in the log.
    pub(crate) async fn launch(
        &self,
        container: &Spec,
        id: &str,
        folder: &AttemptFolder,
        surroundings: &Surroundings<'_>,
    ) -> Result<(), LaunchError> {
        match self {
            Self::Program(paths) => {
                let shim = paths.launch(container, folder, surroundings).await?;
                info!("{id} started, watched by process {shim}");
                Ok(())
            }
            Self::MasterWait => Ok(()),
        }
    }

    /// How a running attempt has ended; `None` while it runs.
    pub(crate) fn observe(&self, folder: &AttemptFolder, started_at: Timestamp) -> Option<Exit> {
        match folder.observe() {
            Observation::Running => None,
            Observation::Ended(exit) => Some(exit),
            Observation::Lost => {
                let exit = self.lost(started_at)?;
                if let Err(error) = folder.record_exit(&exit) {
                    warn!("cannot record the end of a lost attempt: {error:#}");
                }
                Some(exit)
            }
        }
    }

    /// The end of an attempt that has neither a shim nor an exit on disk; `None` where it has not ended by that.
    pub(crate) fn lost(&self, started_at: Timestamp) -> Option<Exit> {
        match self {
            Self::Program(_) => Some(Exit::of_lost(started_at)),
            // The wait has no shim. Its folder is made when it ends.
            Self::MasterWait => None,
        }
    }

    /// How a running attempt ends because of what the node knows; `None` where it does not.
    pub(crate) fn finish(&self, master_has_started: bool, started_at: Timestamp) -> Option<Exit> {
        match self {
            Self::Program(_) => None,
            Self::MasterWait => master_has_started.then(|| end_of_wait(0, started_at)),
        }
    }

    /// Signals the container's first process, as a container runtime does. The others die with it.
    pub(crate) fn signal(&self, folder: &AttemptFolder, signal: Signal, started_at: Timestamp) -> Signalled {
        match self {
            Self::Program(_) if folder.signal(signal) => Signalled::Reached,
            Self::Program(_) => Signalled::Unreached,
            Self::MasterWait => Signalled::Ended(end_of_wait(KILLED, started_at)),
        }
    }
}

fn end_of_wait(code: i32, started_at: Timestamp) -> Exit {
    Exit { code, started_at, finished_at: Timestamp::now(), refused: None }
}

// === impl ProgramPaths ===

impl ProgramPaths {
    /// Returns the process id of the shim.
    async fn launch(
        &self,
        container: &Spec,
        folder: &AttemptFolder,
        surroundings: &Surroundings<'_>,
    ) -> Result<u32, LaunchError> {
        let Surroundings { node, pod, job_port, .. } = surroundings;
        let image = container.image.as_deref().unwrap_or_default();
        let image = images::pull(&node.config, image).map_err(LaunchError::Pull)?;
        let session = node.sessions.session().await;
        let session = session.map_err(|error| LaunchError::Configuration(format!("{error:#}")))?;
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let references = References::read(&node.client.0, namespace, container).await;
        let references = references.map_err(LaunchError::Configuration)?;
        let additions = Additions {
            config: &node.config,
            image,
            job_port: *job_port,
            termination: &folder.termination(),
            volumes: &self.volumes,
            short_volumes: &self.short_volumes,
            home: &self.home,
            session: &session,
            references: &references,
        };
        let environment = environment::environment(pod, container, &additions).map_err(LaunchError::Configuration)?;
        self.make_folders(pod, container, folder)
            .map_err(|error| LaunchError::Configuration(format!("cannot make the attempt's folder: {error}")))?;
        environment::command(container, &environment, image, &node.config)
            .and_then(|command| self.spawn(node, folder, &command, &environment))
            .map_err(LaunchError::Start)
    }

    fn make_folders(&self, pod: &Pod, container: &Spec, folder: &AttemptFolder) -> io::Result<()> {
        fs::create_dir_all(&self.home)?;
        for (name, _) in pod.spec.iter().flat_map(|spec| environment::own_volumes(spec, container)) {
            fs::create_dir_all(self.volumes.join(name))?;
        }
        short_paths::make(&self.short_volumes, &self.volumes)?;
        fs::create_dir_all(folder.path())?;
        fs::write(folder.termination(), "")
    }

    fn spawn(
        &self,
        node: &Node,
        folder: &AttemptFolder,
        command: &[String],
        environment: &BTreeMap<String, String>,
    ) -> Result<u32, String> {
        let program = process::Program { command, environment, home: &self.home, pid_file: &self.pid_file };
        process::spawn(&node.isolation, folder, &program).map_err(|error| format!("{error:#}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runner(name: &str) -> Runner {
        Runner::of(&Spec { name: name.to_owned(), ..Spec::default() }, Path::new("/pod"))
    }

    #[test]
    fn a_program_ends_by_itself_and_counts_its_attempts() {
        let program = runner("pytorch");
        let now = Timestamp::now();
        assert_eq!([None, Some(0), Some(4)].map(|newest| program.next_attempt(newest)), [0, 1, 5]);
        assert!(program.finish(true, now).is_none(), "whatever the master does");
        assert_eq!(program.lost(now).unwrap().code, 137);
        let folder = AttemptFolder::new(PathBuf::from("/nonexistent"));
        assert!(matches!(program.signal(&folder, Signal::SIGTERM, now), Signalled::Unreached));
    }

    #[test]
    fn the_wait_for_the_master_ends_when_the_master_has_started_or_by_a_signal() {
        let wait = runner("init-pytorch");
        let now = Timestamp::now();
        let folder = AttemptFolder::new(PathBuf::from("/nonexistent"));
        assert_eq!([None, Some(0), Some(4)].map(|newest| wait.next_attempt(newest)), [0, 0, 0]);
        assert!(wait.observe(&folder, now).is_none(), "without a shim it still waits");
        assert!(wait.finish(false, now).is_none());
        assert_eq!(wait.finish(true, now).unwrap().code, 0);
        assert!(matches!(wait.signal(&folder, Signal::SIGTERM, now), Signalled::Ended(exit) if exit.code == 137));
    }
}
