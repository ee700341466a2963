//! The program that this process runs.

use std::{fs, time::UNIX_EPOCH};

use anyhow::Result;

/// Tells one build of this program from another.
pub(crate) fn build() -> Result<String> {
    // This is the file that the process was started from, also where a rebuild has replaced it.
    let metadata = fs::metadata("/proc/self/exe")?;
    let modified = metadata.modified()?.duration_since(UNIX_EPOCH)?;
    Ok(format!("{}-{}", modified.as_nanos(), metadata.len()))
}
