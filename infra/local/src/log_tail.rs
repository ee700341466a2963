//! The end of a log, which the error of a failed program quotes.

use std::path::Path;

const TAIL_LINES: usize = 30;

/// The last lines of a log, indented for quoting in an error.
pub(crate) fn tail(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let first = lines.len().saturating_sub(TAIL_LINES);
    lines.iter().skip(first).map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
}
