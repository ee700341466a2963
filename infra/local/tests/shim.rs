//! The node's shim with real processes: a container's end is told as it was and takes every process along, whoever dies
//! first.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

/// Starts a process in a session of its own that lives for ever and shows it by writing the file `beat`.
const GRANDCHILD: &str = "setsid sh -c 'while :; do date +%s%N > beat; sleep 0.05; done' > /dev/null 2>&1 &";

struct Attempt {
    folder: tempfile::TempDir,
    shim: Child,
}

// === impl Attempt ===

impl Attempt {
    /// Run a shell script as the node runs a container.
    fn start(script: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let shim = Command::new("unshare")
            .args(namespace())
            .arg("--")
            .arg(env!("CARGO_BIN_EXE_twin-node"))
            .args(["shim", "--folder"])
            .arg(folder.path())
            .arg("--pid-file")
            .arg(folder.path().join("pid"))
            .args(["--", "setpriv", "--pdeathsig", "KILL", "--", "sh", "-c", script])
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Self { folder, shim }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The exit code and what the script has written, without times.
    fn end(mut self) -> (i64, String) {
        self.shim.wait().unwrap();
        let exit: Value = serde_json::from_slice(&fs::read(self.path("exit")).unwrap()).unwrap();
        let log = fs::read_to_string(self.path("log")).unwrap();
        let lines = log.lines().map(|entry| entry.splitn(4, ' ').nth(3).unwrap());
        assert!(!self.path("pid").exists(), "nobody may signal that number any more");
        assert!(is_silent(&self.path("beat")), "the grandchild lives on");
        (exit["code"].as_i64().unwrap(), lines.collect::<Vec<_>>().join("\n"))
    }

    fn container(&self) -> u32 {
        fs::read_to_string(self.path("pid")).unwrap().trim().parse().unwrap()
    }
}

/// The options that give this user a process-id namespace.
fn namespace() -> &'static [&'static str] {
    let works = |options: &[&str]| Command::new("unshare").args(options).arg("true").status().unwrap().success();
    [&["--pid"][..], &["--user", "--map-root-user", "--pid"]].into_iter().find(|options| works(options)).unwrap()
}

fn kill(process: u32) {
    let status = Command::new("kill").args(["-KILL", &process.to_string()]).status().unwrap();
    assert!(status.success());
}

/// Whether nobody writes the file any more.
fn is_silent(beat: &Path) -> bool {
    let before = fs::read(beat).ok();
    thread::sleep(Duration::from_millis(300));
    fs::read(beat).ok() == before
}

fn wait_for(what: &Path) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !what.exists() {
        assert!(Instant::now() < deadline, "{} did not come", what.display());
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn an_end_is_told_as_it_was() {
    let cases = [
        ("success", "echo one; echo two >&2".to_owned(), (0, "one\ntwo")),
        ("failure", "echo no; exit 3".to_owned(), (3, "no")),
        ("a line without an end", "printf half".to_owned(), (0, "half")),
        ("a process left behind", format!("{GRANDCHILD} sleep 0.2; exit 4"), (4, "")),
        ("first in its namespace", "echo $$".to_owned(), (0, "1")),
    ];
    for (label, script, (code, output)) in cases {
        assert_eq!(Attempt::start(&script).end(), (code, output.to_owned()), "{label}");
    }
}

#[test]
fn a_killed_container_ends_with_137_and_takes_everything_along() {
    let attempt = Attempt::start(&format!("{GRANDCHILD} sleep 600"));
    wait_for(&attempt.path("beat"));
    kill(attempt.container());
    assert_eq!(attempt.end(), (137, String::new()));
}

#[test]
fn nothing_outlives_a_killed_shim() {
    let mut attempt = Attempt::start(&format!("{GRANDCHILD} sleep 600"));
    wait_for(&attempt.path("beat"));
    kill(attempt.shim.id());
    attempt.shim.wait().unwrap();
    assert!(is_silent(&attempt.path("beat")));
    assert!(!attempt.path("exit").exists(), "there was nobody to tell");
}
