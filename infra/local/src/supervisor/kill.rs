//! `twin kill`: sends a signal to a pod's running container, as somebody outside of the cluster could.

use std::{fs, str::FromStr};

use anyhow::{Context, Result};
use nix::{
    sys::signal::{Signal, kill as send},
    unistd::Pid,
};

use crate::paths::Paths;

/// Signals the process whose id the node has written for the container, and returns the id.
pub(crate) fn kill(paths: &Paths, namespace: &str, pod: &str, container: &str, signal: &str) -> Result<i32> {
    let name = signal.to_ascii_uppercase();
    let name = if name.starts_with("SIG") { name } else { format!("SIG{name}") };
    let signal = Signal::from_str(&name).with_context(|| format!("no signal `{signal}`"))?;
    let prefix = format!("{namespace}_{pod}_");
    // Earlier pods of the same name can have folders too. The newest one counts.
    let file = fs::read_dir(paths.pods())?
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .map(|entry| entry.path().join(format!("{container}.pid")))
        .filter_map(|file| Some((fs::metadata(&file).ok()?.modified().ok()?, file)))
        .max()
        .map(|(_, file)| file)
        .with_context(|| format!("no running container `{container}` of pod {namespace}/{pod} on this node"))?;
    let pid: i32 =
        fs::read_to_string(&file)?.trim().parse().with_context(|| format!("no number in {}", file.display()))?;
    send(Pid::from_raw(pid), signal).with_context(|| format!("process {pid} of {pod} cannot be signalled"))?;
    Ok(pid)
}

#[cfg(test)]
mod tests {
    use std::{os::unix::process::ExitStatusExt, process::Command};

    use super::*;

    #[test]
    fn the_newest_pod_of_a_name_is_signalled() {
        let folder = tempfile::tempdir().unwrap();
        let paths = Paths::at(folder.path());
        let mut process = Command::new("sleep").arg("60").spawn().unwrap();
        // The older pod's process id is one that cannot be signalled.
        for (uid, pid) in [("1", i32::MAX), ("2", i32::try_from(process.id()).unwrap())] {
            let pod = paths.pods().join(format!("training_job-master-0_{uid}"));
            fs::create_dir_all(&pod).unwrap();
            fs::write(pod.join("pytorch.pid"), format!("{pid}\n")).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        kill(&paths, "training", "job-master-0", "pytorch", "TERM").unwrap();
        assert_eq!(process.wait().unwrap().signal(), Some(15));
        assert!(kill(&paths, "training", "job-master", "pytorch", "KILL").is_err(), "part of a name is no name");
        assert!(kill(&paths, "training", "job-master-0", "pytorch", "NONE").is_err(), "no such signal");
    }
}
