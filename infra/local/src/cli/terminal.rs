//! What the terminal shows.

use std::io::Write as _;

/// Prints a line.
pub(crate) fn say(text: &str) {
    // A closed terminal is no reason to fail.
    let _ = writeln!(std::io::stdout(), "{text}");
}
