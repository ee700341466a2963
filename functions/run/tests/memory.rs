//! What reading a marker takes of memory at most, whoever wrote it: the indexer has 128 MiB, and one that a marker ends is
//! ended by it at each delivery.
#![cfg(target_os = "linux")]

use training_run::marker::{MAX_BYTES, Marker};

/// What the indexer has beside its own some 15 MiB, the body and a listing, and some room.
const MOST_BYTES: usize = 48 * 1024 * 1024;

/// Of this process, so far.
fn peak_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("a status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") * 1024
}

/// As large as a marker may be: a part over and over, between a head and a tail.
fn filled(head: &str, part: &str, tail: &str) -> String {
    let head = format!(r#"{{"framework": "hf", "step": 1, "saved_at": 1.0, {head}"#);
    let times = (MAX_BYTES - head.len() - tail.len() - 1) / part.len();
    format!("{head}{}{tail}}}", part.repeat(times))
}

#[test]
fn no_marker_takes_more_memory_than_the_indexer_has() {
    let before = peak_bytes();
    for (case, body) in [
        ("numbers that nobody reads", filled(r#""later": [0"#, ",0", "]")),
        ("lists that nobody reads", filled(r#""later": [0"#, ",[]", "]")),
        ("numbers for files", filled(r#""files": [0"#, ",0", "]")),
        ("numbers for a file's field", filled(r#""files": [{"path": [0"#, ",0", "]}]")),
        ("short files", filled(r#""files": [{"path":"c/a","size":1}"#, r#",{"path":"c/a","size":1}"#, "]")),
        ("a metric of numbers", filled(r#""metrics": {"loss": [0"#, ",0", "]}")),
        ("metrics of numbers", filled(r#""metrics": {"": 0"#, r#","":[0,0,0,0,0,0,0,0]"#, "}")),
        ("short metrics", filled(r#""metrics": {"": 0"#, r#","":0"#, "}")),
        ("metadata of short fields", filled(r#""metadata": {"": 0"#, r#","":0"#, "}")),
        ("short fields", filled(r#""": 0"#, r#","":0"#, "")),
    ] {
        let _ = Marker::parse(body.as_bytes());
        let took = peak_bytes().saturating_sub(before);
        assert!(took < MOST_BYTES, "{case}: {} MiB", took / 1024 / 1024);
    }
}
