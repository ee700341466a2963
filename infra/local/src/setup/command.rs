//! Runs tools with their output in a log file. The error of a tool that fails quotes the end of the log.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    path::Path,
    process::Stdio,
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::process::Command;

use crate::{log_tail::tail, paths::Paths};

/// The process group of a tool. When a step is cancelled (Ctrl-C), the compilers that the tool has started end with it.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // The group may have ended in the meantime.
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

/// Runs the tool; its output replaces the log.
pub(crate) async fn run(command: &mut Command, log: &Path) -> Result<()> {
    let file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    command.stdout(file.try_clone()?).stderr(file);
    // The future is large, and every step contains one.
    Box::pin(wait(command, log)).await.map(|_| ())
}

/// Runs the tool and returns what it printed; only its standard error goes to the log.
pub(crate) async fn output(command: &mut Command, log: &Path) -> Result<Vec<u8>> {
    let file = OpenOptions::new().create(true).append(true).open(log)?;
    command.stdout(Stdio::piped()).stderr(file);
    Box::pin(wait(command, log)).await
}

async fn wait(command: &mut Command, log: &Path) -> Result<Vec<u8>> {
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    let child =
        command.stdin(Stdio::null()).process_group(0).spawn().with_context(|| format!("cannot start {program}"))?;
    let mut group = Group(child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw));
    let output = child.wait_with_output().await?;
    group.0 = None;
    if output.status.success() {
        return Ok(output.stdout);
    }
    bail!("{program} ended with {}; the end of {}:\n{}", output.status, log.display(), tail(log))
}

/// The environment of components and tools. Nothing comes from the shell in which `twin up` was typed: no proxy, no
/// credentials, no settings.
pub(crate) fn clean_environment(paths: &Paths) -> BTreeMap<String, String> {
    BTreeMap::from([
        ("PATH".to_string(), "/usr/local/bin:/usr/bin:/bin".to_string()),
        ("HOME".to_string(), paths.home().display().to_string()),
    ])
}
