//! Starts the supervisor, detached from this terminal and in its own process namespace. Finds out whether one lives.
//!
//! No process of such a namespace outlives the first one. That also holds when the supervisor crashes, and for a
//! trainer that has left its process group.

use std::{
    fs::{self, File, OpenOptions},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{log_tail::tail, paths::Paths};

const NAMESPACE: [&str; 4] = ["--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc"];
/// A user who may not make namespaces first becomes root of a user namespace.
const AS_USER: [&str; 2] = ["--user", "--map-root-user"];

/// Starts `twin supervise`.
///
/// `flock` holds the lock until the namespace has ended, and passes it on to every process inside. So the lock is held
/// while any process of the twin lives.
pub(crate) fn supervisor(paths: &Paths) -> Result<Child> {
    fs::create_dir_all(paths.state())?;
    fs::create_dir_all(paths.logs())?;
    restrict(paths)?;
    let log = paths.log("supervisor");
    let log_file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let mut command = Command::new("setsid");
    // `cargo run` sets variables about the package that it runs. The cargo of `sam build` must not read them.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name == "CARGO" || ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|prefix| name.starts_with(prefix)) {
            command.env_remove(&*name);
        }
    }
    command
        .args(["flock", "--nonblock"])
        .arg(paths.lock())
        .arg("unshare")
        .args(unshare_flags()?)
        .arg(std::env::current_exe()?)
        .arg("supervise")
        .current_dir(paths.root())
        .stdin(Stdio::null())
        .stdout(log_file.try_clone()?)
        .stderr(log_file)
        .spawn()
        .context("cannot start the supervisor: setsid, flock and unshare (util-linux) are needed")
}

/// The flags of `unshare` that make a process namespace on this machine.
fn unshare_flags() -> Result<Vec<&'static str>> {
    let as_root = NAMESPACE.to_vec();
    let as_user = [&AS_USER[..], &NAMESPACE[..]].concat();
    for flags in [as_root, as_user] {
        let works = Command::new("unshare").args(&flags).arg("true").stderr(Stdio::null()).status();
        if works.context("no `unshare` (util-linux) on the PATH")?.success() {
            return Ok(flags);
        }
    }
    bail!(
        "this machine lets neither root nor this user make a process namespace (unshare --user --pid); \
         on Ubuntu: sysctl kernel.apparmor_restrict_unprivileged_userns=0"
    )
}

/// Whether any process of the twin lives.
pub(crate) fn is_alive(paths: &Paths) -> Result<bool> {
    if !paths.lock().exists() {
        return Ok(false);
    }
    let lock = OpenOptions::new().read(true).open(paths.lock())?;
    match lock.try_lock() {
        Ok(()) => Ok(false),
        Err(fs::TryLockError::WouldBlock) => Ok(true),
        Err(fs::TryLockError::Error(error)) => Err(error).context("cannot ask for the lock"),
    }
}

/// Waits until no process of the twin lives.
pub(crate) fn wait_for_end(paths: &Paths, longest: Duration) -> Result<()> {
    let started = Instant::now();
    while is_alive(paths)? {
        if started.elapsed() > longest {
            let log = paths.log("supervisor");
            bail!(
                "the twin has not ended after {} s; the end of {}:\n{}",
                longest.as_secs(),
                log.display(),
                tail(&log)
            );
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Lets only the owner into `.local`, because state, logs and pods hold keys and tokens.
fn restrict(paths: &Paths) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(paths.local(), fs::Permissions::from_mode(0o700))?;
    Ok(())
}
