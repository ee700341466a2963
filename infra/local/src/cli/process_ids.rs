//! Process ids in this terminal's namespace. The supervisor only knows those in its own namespace.

use std::fs;

use crate::control::status::Status;

/// Replaces each process id in the supervisor's namespace by the one in this namespace.
pub(crate) fn translate(supervisor: Option<i32>, components: &mut [Status]) {
    let Some(supervisor) = supervisor else { return };
    let children: Vec<(u32, u32)> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| ids(&fs::read_to_string(entry.path().join("status")).ok()?, supervisor))
        .collect();
    for component in components {
        component.pid = component
            .pid
            .and_then(|inner| children.iter().find(|(_, candidate)| *candidate == inner).map(|(outer, _)| *outer));
    }
}

/// The process ids of a child of the supervisor: the one in this namespace and the one in the innermost.
fn ids(status: &str, supervisor: i32) -> Option<(u32, u32)> {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    let parent: i32 = field("PPid:")?.trim().parse().ok()?;
    let mut ids = field("NSpid:")?.split_whitespace().map(str::parse);
    let outer = ids.next()?.ok()?;
    let inner = ids.next_back().and_then(Result::ok).unwrap_or(outer);
    (parent == supervisor).then_some((outer, inner))
}
