//! The first process of a namespace inherits whatever its descendants leave behind and has to bury it.

use std::{collections::HashSet, fs, time::Duration};

use nix::{
    sys::wait::{WaitPidFlag, waitpid},
    unistd::Pid,
};
use tokio::time::sleep;

/// The supervisor's own children are waited for within milliseconds: what is still a zombie after a whole round is
/// nobody else's.
const ROUND: Duration = Duration::from_secs(5);

/// Buries inherited zombies, for ever.
pub(crate) async fn reap() {
    if std::process::id() != 1 {
        return;
    }
    let mut seen = HashSet::new();
    loop {
        sleep(ROUND).await;
        let zombies: HashSet<i32> = zombie_children().collect();
        for pid in zombies.intersection(&seen) {
            // An error means that it has been waited for after all.
            let _ = waitpid(Pid::from_raw(*pid), Some(WaitPidFlag::WNOHANG));
        }
        seen = zombies;
    }
}

fn zombie_children() -> impl Iterator<Item = i32> {
    fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        // The name, in parentheses, may hold anything; after it come the state and the parent.
        let mut fields = stat.rsplit_once(") ")?.1.split(' ');
        (fields.next()? == "Z" && fields.next()? == "1").then_some(pid)
    })
}
