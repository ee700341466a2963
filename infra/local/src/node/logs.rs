//! The log of a container for the API server: `kubectl logs` and its options, answered as the kubelet does.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    path::Path,
    time::Duration,
};

use futures::{Stream, stream};
use k8s_openapi::{
    api::core::v1::{ContainerStatus, Pod},
    jiff::{SignedDuration, Timestamp},
};
use serde::Deserialize;
use tokio::time;

use crate::{
    attempt::{AttemptFolder, Observation},
    log_format::Entry,
};

/// How often a followed log is read.
const POLL: Duration = Duration::from_millis(200);

/// The options of a request.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Options {
    pub(crate) follow: bool,
    pub(crate) previous: bool,
    pub(crate) timestamps: bool,
    pub(crate) tail_lines: Option<usize>,
    pub(crate) since_seconds: Option<i64>,
    pub(crate) since_time: Option<Timestamp>,
    pub(crate) limit_bytes: Option<usize>,
}

/// Reads a log, and keeps reading while its container runs if it is followed.
#[derive(Debug)]
struct Reader {
    folder: AttemptFolder,
    offset: u64,
    follow: bool,
    timestamps: bool,
    since: Option<Timestamp>,
    tail_lines: Option<usize>,
    /// How many bytes may still be sent.
    limit: usize,
}

/// The attempt whose log is requested. The error is the text of a 400.
pub(crate) fn attempt_of(pod: &Pod, container: &str, previous: bool) -> Result<u32, String> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let status = container_status(pod, container)
        .ok_or_else(|| format!("container \"{container}\" in pod \"{name}\" is not available"))?;
    let state = status.state.as_ref();
    let last = status.last_state.as_ref().and_then(|state| state.terminated.as_ref());
    let last = last.and_then(|terminated| terminated.container_id.as_deref());
    let waiting = state.and_then(|state| state.waiting.as_ref()).and_then(|waiting| waiting.reason.as_deref());
    let id = if previous {
        last.ok_or_else(|| format!("previous terminated container \"{container}\" in pod \"{name}\" not found"))?
    } else if waiting.is_none() {
        status.container_id.as_deref().unwrap_or_default()
    } else {
        last.ok_or_else(|| {
            let why = match waiting {
                Some("ErrImagePull") => "image can't be pulled",
                Some("ImagePullBackOff") => "trying and failing to pull image",
                other => other.unwrap_or("unknown"),
            };
            format!("container \"{container}\" in pod \"{name}\" is waiting to start: {why}")
        })?
    };
    let number = id.rsplit('/').next().and_then(|number| number.parse().ok());
    number.ok_or_else(|| format!("container \"{container}\" in pod \"{name}\" has no log"))
}

fn container_status<'a>(pod: &'a Pod, container: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    let statuses = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
    statuses.into_iter().find(|status| status.name == container)
}

/// Streams what the container wrote; with `follow`, until that attempt has ended.
pub(crate) fn stream(
    folder: AttemptFolder,
    options: &Options,
    now: Timestamp,
) -> impl Stream<Item = io::Result<Vec<u8>>> + use<> {
    let since = options.since_seconds.and_then(|seconds| now.checked_sub(SignedDuration::from_secs(seconds)).ok());
    let reader = Reader {
        folder,
        offset: 0,
        follow: options.follow,
        timestamps: options.timestamps,
        since: options.since_time.or(since),
        tail_lines: options.tail_lines,
        limit: options.limit_bytes.unwrap_or(usize::MAX),
    };
    stream::unfold(Some(reader), |reader| async {
        let mut reader = reader?;
        loop {
            // This comes before reading, so that everything up to the end is read.
            let ended = !reader.follow || !matches!(reader.folder.observe(), Observation::Running);
            match reader.read() {
                Err(error) => return Some((Err(error), None)),
                Ok(text) => {
                    let over = ended || reader.limit == 0;
                    if over && text.is_empty() {
                        return None;
                    }
                    if !text.is_empty() {
                        return Some((Ok(text), (!over).then_some(reader)));
                    }
                }
            }
            time::sleep(POLL).await;
        }
    })
}

// === impl Reader ===

impl Reader {
    /// Reads everything that is new.
    fn read(&mut self) -> io::Result<Vec<u8>> {
        let bytes = read_from(&self.folder.log(), self.offset)?;
        // The last entry may be half written.
        let length = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |position| position + 1);
        self.offset += length as u64;
        let mut text = select(&bytes[..length], self.since, self.tail_lines.take(), self.timestamps);
        text.truncate(self.limit);
        self.limit -= text.len();
        Ok(text)
    }
}

fn read_from(log: &Path, offset: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    match File::open(log) {
        Ok(mut file) => {
            file.seek(SeekFrom::Start(offset))?;
            file.read_to_end(&mut bytes)?;
            Ok(bytes)
        }
        // Nothing has been written yet, or the pod is gone.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(bytes),
        Err(error) => Err(error),
    }
}

/// The requested entries of a log as text.
fn select(log: &[u8], since: Option<Timestamp>, tail_lines: Option<usize>, timestamps: bool) -> Vec<u8> {
    let entries: Vec<Entry<'_>> = log
        .split(|byte| *byte == b'\n')
        .filter_map(Entry::parse)
        .filter(|entry| since.is_none_or(|since| entry.timestamp().is_some_and(|time| time >= since)))
        .collect();
    let first = match tail_lines {
        None => 0,
        Some(0) => entries.len(),
        Some(count) => {
            // A line begins after a whole entry. The last line may be unfinished and counts as one.
            let ends = entries.iter().enumerate().rev().skip(1).filter(|(_, entry)| entry.whole);
            ends.map(|(index, _)| index + 1).nth(count - 1).unwrap_or(0)
        }
    };
    let mut text = Vec::new();
    let mut at_line_start = true;
    for entry in &entries[first..] {
        entry.write(timestamps && at_line_start, &mut text);
        at_line_start = entry.whole;
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const LOG: &[u8] = b"2026-01-01T00:00:01.000000000Z stdout F one\n\
        2026-01-01T00:00:02.000000000Z stderr P tw\n\
        2026-01-01T00:00:03.000000000Z stderr F o\n\
        2026-01-01T00:00:04.000000000Z stdout F three\n";

    #[test]
    fn lines_are_chosen_as_asked() {
        let cases = [
            ("all", None, None, false, "one\ntwo\nthree\n"),
            ("the last", None, Some(1), false, "three\n"),
            ("the last two, one of them in parts", None, Some(2), false, "two\nthree\n"),
            ("more than there are", None, Some(9), false, "one\ntwo\nthree\n"),
            ("none", None, Some(0), false, ""),
            ("since a time", Some("2026-01-01T00:00:04Z"), None, false, "three\n"),
            (
                "with their times",
                None,
                Some(2),
                true,
                "2026-01-01T00:00:02.000000000Z two\n2026-01-01T00:00:04.000000000Z three\n",
            ),
        ];
        for (label, since, tail_lines, timestamps, expected) in cases {
            let since = since.map(|time| time.parse().unwrap());
            let text = select(LOG, since, tail_lines, timestamps);
            assert_eq!(String::from_utf8(text).unwrap(), expected, "{label}");
        }
    }

    #[test]
    fn the_attempt_is_the_one_the_kubelet_would_show() {
        let id = |attempt: u32| format!("twin://u/pytorch/{attempt}");
        let ended = |attempt: u32| json!({"terminated": {"exitCode": 1, "containerID": id(attempt)}});
        let running = json!({"running": {}});
        let waiting = |reason: &str| json!({"waiting": {"reason": reason}});
        let missing = |why: &str| Err(format!("container \"pytorch\" in pod \"p\" is waiting to start: {why}"));
        let no_previous = || Err("previous terminated container \"pytorch\" in pod \"p\" not found".to_owned());
        let cases = [
            ("runs", json!({"state": running, "containerID": id(0)}), Ok(0), no_previous()),
            ("runs again", json!({"state": running, "containerID": id(2), "lastState": ended(1)}), Ok(2), Ok(1)),
            ("ended", json!({"state": ended(0), "containerID": id(0)}), Ok(0), no_previous()),
            (
                "waits for its restart",
                json!({"state": waiting("CrashLoopBackOff"), "containerID": id(1), "lastState": ended(1)}),
                Ok(1),
                Ok(1),
            ),
            (
                "is not there yet",
                json!({"state": waiting("ContainerCreating")}),
                missing("ContainerCreating"),
                no_previous(),
            ),
            (
                "has no image",
                json!({"state": waiting("ErrImagePull")}),
                missing("image can't be pulled"),
                no_previous(),
            ),
            (
                "still has no image",
                json!({"state": waiting("ImagePullBackOff")}),
                missing("trying and failing to pull image"),
                no_previous(),
            ),
        ];
        for (label, status, expected, expected_previous) in cases {
            let mut fields = json!({"name": "pytorch", "image": "i", "imageID": "", "ready": false, "restartCount": 0});
            fields.as_object_mut().unwrap().extend(status.as_object().unwrap().clone());
            let pod: Pod = serde_json::from_value(json!({
                "metadata": {"name": "p"}, "status": {"containerStatuses": [fields]},
            }))
            .unwrap();
            assert_eq!(attempt_of(&pod, "pytorch", false), expected, "{label}");
            assert_eq!(attempt_of(&pod, "pytorch", true), expected_previous, "{label}, previous");
        }
    }
}
