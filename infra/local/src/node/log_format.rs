//! The format of the log files, which is that of container runtimes: `<time> <stream> <F|P> <text>`. F marks a whole
//! line or the last part of one, and P another part of a line. Pure.

use k8s_openapi::jiff::Timestamp;

/// One entry of a log.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Entry<'a> {
    pub(crate) time: &'a str,
    pub(crate) whole: bool,
    pub(crate) text: &'a [u8],
}

// === impl Entry ===

impl<'a> Entry<'a> {
    /// Parses an entry without its line end. `None` for the rest of an entry whose head is missing.
    pub(crate) fn parse(line: &'a [u8]) -> Option<Self> {
        let mut fields = line.splitn(4, |byte| *byte == b' ');
        let time = std::str::from_utf8(fields.next()?).ok()?;
        let stream = fields.next()?;
        let tag = fields.next()?;
        let text = fields.next()?;
        let known = matches!(stream, b"stdout" | b"stderr") && matches!(tag, b"F" | b"P");
        known.then_some(Self { time, whole: tag == b"F", text })
    }

    pub(crate) fn timestamp(&self) -> Option<Timestamp> {
        self.time.parse().ok()
    }

    /// Appends what the container wrote, and before it the time if asked for.
    pub(crate) fn write(&self, with_time: bool, output: &mut Vec<u8>) {
        if with_time {
            output.extend_from_slice(self.time.as_bytes());
            output.push(b' ');
        }
        output.extend_from_slice(self.text);
        if self.whole {
            output.push(b'\n');
        }
    }
}

/// Everything that the container wrote.
pub(crate) fn text(log: &[u8]) -> Vec<u8> {
    let mut output = Vec::with_capacity(log.len());
    for entry in log.split(|byte| *byte == b'\n').filter_map(Entry::parse) {
        entry.write(false, &mut output);
    }
    output
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_back() {
        let line = |text: &'static [u8]| Some(Entry { time: "2026-01-01T00:00:00.000000001Z", whole: true, text });
        let part = |text: &'static [u8]| line(text).map(|entry| Entry { whole: false, ..entry });
        let cases: [(&str, &[u8], Option<Entry<'_>>); 7] = [
            ("a line", b"2026-01-01T00:00:00.000000001Z stdout F step 1/2", line(b"step 1/2")),
            ("a part", b"2026-01-01T00:00:00.000000001Z stderr P half", part(b"half")),
            ("an empty line", b"2026-01-01T00:00:00.000000001Z stdout F ", line(b"")),
            ("spaces are kept", b"2026-01-01T00:00:00.000000001Z stdout F  a  b ", line(b" a  b ")),
            ("not UTF-8", b"2026-01-01T00:00:00.000000001Z stdout F \xff", line(b"\xff")),
            ("cut off", b"01T00:00:00Z", None),
            ("the end of the file", b"", None),
        ];
        for (label, bytes, expected) in cases {
            assert_eq!(Entry::parse(bytes), expected, "{label}");
        }
    }

    #[test]
    fn parts_become_one_line_again() {
        let log = b"t stdout P one \nt stdout F line\nt stderr F other\n";
        assert_eq!(text(log), b"one line\nother\n");
    }
}
