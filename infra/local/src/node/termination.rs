//! The termination message of a container.

use std::{
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    path::Path,
};

use crate::{attempt::AttemptFolder, log_format};

/// The kubelet keeps the end of the file, so a long message loses its beginning.
const LONGEST_MESSAGE: u64 = 4096;
/// How much of the log can replace a missing message.
const LONGEST_LOG: usize = 2048;
const LOG_LINES: usize = 80;

/// What the container wrote into its termination file, or the end of its log if that is asked for.
pub(crate) fn message(folder: &AttemptFolder, fall_back_to_log: bool) -> Option<String> {
    let message = last_bytes(&folder.termination(), LONGEST_MESSAGE).unwrap_or_default();
    if !message.is_empty() {
        return Some(String::from_utf8_lossy(&message).into_owned());
    }
    if !fall_back_to_log {
        return None;
    }
    // Each line of the log also carries its time. Four times the bytes hold enough lines, as most of them are short.
    let log = last_bytes(&folder.log(), 4 * LONGEST_MESSAGE).unwrap_or_default();
    let text = log_format::text(&log);
    let lines: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').collect();
    let text = lines[lines.len().saturating_sub(LOG_LINES)..].concat();
    let text = &text[text.len().saturating_sub(LONGEST_LOG)..];
    (!text.is_empty()).then(|| String::from_utf8_lossy(text).into_owned())
}

fn last_bytes(path: &Path, length: u64) -> std::io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(length)))?;
    let mut bytes = Vec::new();
    file.take(length).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn messages_are_what_the_kubelet_keeps() {
        let entry = |text: &str| format!("2026-01-01T00:00:00.000000000Z stderr F {text}\n");
        let lengthy = "x".repeat(5000);
        let lines = |range: std::ops::Range<u32>| range.map(|line| format!("line {line}")).collect::<Vec<_>>();
        let log = lines(0..100).iter().map(|line| entry(line)).collect::<Vec<_>>().concat();
        let eighty = lines(20..100).join("\n") + "\n";
        let cases = [
            ("a message", "out of memory", "", false, Some("out of memory".to_owned())),
            ("the end of a long one", &lengthy, "", false, Some("x".repeat(4096))),
            ("none", "", &log, false, None),
            ("none, the log instead", "", &log, true, Some(eighty)),
            ("a message and a log", "message", &log, true, Some("message".to_owned())),
            ("the end of a long log", "", &entry(&lengthy), true, Some(format!("{}\n", "x".repeat(2047)))),
            ("neither", "", "", true, None),
        ];
        for (label, written, log, fall_back, expected) in cases {
            let scratch = tempfile::tempdir().unwrap();
            let folder = AttemptFolder::new(scratch.path().to_owned());
            fs::write(folder.termination(), written).unwrap();
            fs::write(folder.log(), log).unwrap();
            assert_eq!(message(&folder, fall_back), expected, "{label}");
        }
    }
}
