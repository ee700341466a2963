//! Starts a container's program under a shim, as the first process of its own process-id namespace. With the program,
//! the kernel ends every process that it has started, also those in other sessions.

use std::{
    collections::BTreeMap,
    env,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, bail};
use k8s_openapi::jiff::Timestamp;
use tokio::process::Command;
use tracing::warn;

use crate::{attempt::AttemptFolder, images::is_executable};

/// How this machine puts a program into its own namespace.
#[derive(Debug)]
pub(crate) struct Isolation {
    /// Runs the shim, whose children get the namespace.
    outer: Vec<String>,
    /// This program, which is also the shim.
    shim: PathBuf,
    /// Runs the container's program so that the shim's death kills it.
    inner: Vec<String>,
}

/// What to run for one attempt.
pub(crate) struct Program<'a> {
    pub(crate) command: &'a [String],
    pub(crate) environment: &'a BTreeMap<String, String>,
    pub(crate) home: &'a Path,
    pub(crate) pid_file: &'a Path,
}

// === impl Isolation ===

impl Isolation {
    /// Finds out how this machine makes namespaces: directly, or for other users than root inside a user namespace.
    pub(crate) async fn find() -> anyhow::Result<Self> {
        let unshare = find_tool("unshare")?;
        let setpriv = find_tool("setpriv")?;
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        for outer in [words(&[&unshare, "--pid", "--"]), words(&[&unshare, "--user", "--map-root-user", "--pid", "--"])]
        {
            let (program, options) = outer.split_first().context("no command")?;
            let attempt = Command::new(program).args(options).arg("true").stderr(Stdio::null()).status().await;
            if attempt.is_ok_and(|status| status.success()) {
                let shim = env::current_exe().context("cannot find this program")?;
                return Ok(Self { outer, shim, inner: words(&[&setpriv, "--pdeathsig", "KILL", "--"]) });
            }
        }
        bail!(
            "this machine does not let `unshare` make a process-id namespace, neither at once nor in a user namespace"
        )
    }
}

fn find_tool(name: &str) -> anyhow::Result<String> {
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).map(|folder| folder.join(name)).find(|file| is_executable(file));
    let found = found.with_context(|| format!("the program `{name}` (util-linux) is not in PATH"))?;
    Ok(found.to_str().with_context(|| format!("the path of `{name}` is not text"))?.to_owned())
}

/// Starts the shim of an attempt and returns its process id. The attempt's folder shows how it ends.
pub(crate) fn spawn(isolation: &Isolation, folder: &AttemptFolder, program: &Program<'_>) -> anyhow::Result<u32> {
    let (first, options) = isolation.outer.split_first().context("no command")?;
    let mut shim = Command::new(first)
        .args(options)
        .arg(&isolation.shim)
        .arg("shim")
        .arg("--folder")
        .arg(folder.path())
        .arg("--pid-file")
        .arg(program.pid_file)
        .arg("--")
        .args(&isolation.inner)
        .args(program.command)
        .env_clear()
        .envs(program.environment)
        .current_dir(program.home)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // The shim gets its own group, so that a Ctrl-C in the terminal does not reach it.
        .process_group(0)
        .spawn()
        .context("cannot start the container's process")?;
    let id = shim.id().context("the shim ended at once")?;
    tokio::spawn(async move {
        if let Err(error) = shim.wait().await {
            warn!("cannot wait for shim {id}: {error}");
        }
    });
    Ok(id)
}

/// When the attempt in a folder was started, as far as the folder shows it.
pub(crate) fn started_at(folder: &AttemptFolder) -> Timestamp {
    let made = folder.termination().metadata().and_then(|file| file.created());
    made.ok().and_then(|time| Timestamp::try_from(time).ok()).unwrap_or_else(Timestamp::now)
}

/// The folder of a pod.
pub(crate) fn pod_folder(pods_dir: &Path, namespace: &str, name: &str, uid: &str) -> PathBuf {
    pods_dir.join(format!("{namespace}_{name}_{uid}"))
}
