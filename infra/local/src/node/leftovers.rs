//! Ends containers without their pods: those that an earlier node has left although their pods are gone, and all of
//! them when the node stops. Containers outlive the node, as they outlive a kubelet. `pod` adopts those whose pods
//! still exist.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use tracing::{info, warn};

use crate::{
    attempt::{self, AttemptFolder, Observation},
    short_paths,
};

/// How long a killed process may take to end.
const KILL_TIME: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(20);

/// Ends the containers of pods that are not on this node any more, and removes their folders.
pub(crate) fn remove_strangers(pods_dir: &Path, wanted: &HashSet<String>) {
    for folder in pod_folders(pods_dir) {
        let uid = folder.file_name().and_then(|name| name.to_str()?.rsplit('_').next()).unwrap_or_default();
        if wanted.contains(uid) {
            continue;
        }
        info!("removing {}, whose pod is gone", folder.display());
        end(&running(&folder), Duration::ZERO);
        if let Err(error) = fs::remove_dir_all(&folder) {
            warn!("cannot remove {}: {error}", folder.display());
        }
    }
    short_paths::remove_dangling(pods_dir);
}

/// Ends every container with SIGTERM, and with SIGKILL after the grace period.
pub(crate) fn end_everything(pods_dir: &Path, grace: Duration) {
    let running: Vec<AttemptFolder> = pod_folders(pods_dir).iter().flat_map(|folder| running(folder)).collect();
    info!("ending {} containers", running.len());
    end(&running, grace);
}

fn end(attempts: &[AttemptFolder], grace: Duration) {
    let is_running = |attempt: &&AttemptFolder| matches!(attempt.observe(), Observation::Running);
    let wait_until = |deadline: Instant| {
        while attempts.iter().any(|attempt| is_running(&attempt)) && Instant::now() < deadline {
            thread::sleep(POLL);
        }
    };
    if !grace.is_zero() {
        for attempt in attempts {
            attempt.signal(Signal::SIGTERM);
        }
        wait_until(Instant::now() + grace);
    }
    for attempt in attempts.iter().filter(is_running) {
        attempt.signal(Signal::SIGKILL);
    }
    wait_until(Instant::now() + KILL_TIME);
}

/// The running attempts of a pod's containers.
fn running(pod_folder: &Path) -> Vec<AttemptFolder> {
    let newest = |container: PathBuf| {
        let attempt = *attempt::attempts(&container).ok()?.last()?;
        Some(AttemptFolder::new(container.join(attempt.to_string())))
    };
    folders(pod_folder)
        .into_iter()
        .filter_map(newest)
        .filter(|attempt| matches!(attempt.observe(), Observation::Running))
        .collect()
}

fn pod_folders(pods_dir: &Path) -> Vec<PathBuf> {
    folders(pods_dir)
}

fn folders(parent: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(parent).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.filter(|path| path.is_dir()).collect()
}
