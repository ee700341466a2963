//! Waits for orphaned processes. The first process of a namespace inherits them, and they stay zombies until it does.

use std::{collections::HashSet, fs, time::Duration};

use nix::{
    sys::wait::{WaitPidFlag, waitpid},
    unistd::Pid,
};
use tokio::time::sleep;

/// The supervisor waits for its own children within milliseconds. Only an orphan is still a zombie after a whole round.
const ROUND: Duration = Duration::from_secs(5);

/// Waits for inherited zombies, for ever.
pub(crate) async fn reap() {
    if std::process::id() != 1 {
        return;
    }
    let mut seen = HashSet::new();
    loop {
        sleep(ROUND).await;
        let zombies: HashSet<i32> = zombie_children().collect();
        for pid in zombies.intersection(&seen) {
            // This fails for a process that has been waited for in the meantime.
            let _ = waitpid(Pid::from_raw(*pid), Some(WaitPidFlag::WNOHANG));
        }
        seen = zombies;
    }
}

fn zombie_children() -> impl Iterator<Item = i32> {
    fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        // The name in parentheses may hold anything. The state and the parent follow it.
        let mut fields = stat.rsplit_once(") ")?.1.split(' ');
        (fields.next()? == "Z" && fields.next()? == "1").then_some(pid)
    })
}
