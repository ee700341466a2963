//! Which of a job's logs a caller means, and the newest part of one that fits an answer. Reading it is not done here.

use std::{collections::VecDeque, fmt, str::FromStr};

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
pub use k8s_openapi::jiff::Timestamp;
use thiserror::Error;

use crate::job::pytorchjob::{CONTAINER, PyTorchJob};

/// Most text that an answer holds, in bytes of JSON: a function's answer travels as a JSON string, of at most 6 MB.
pub const MAX_LOG_BYTES: usize = 4 * 1024 * 1024;
/// Longest time at the beginning of a line, with its space: `2026-11-24T03:00:00.123456789+00:00 `.
const MAX_TIME_BYTES: usize = 40;

/// One pod of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replica {
    /// The pod of node rank 0.
    Master,
    /// Another one, by its index from 0.
    Worker(u32),
}

/// A text is not a replica.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("must be `master` or `worker-<index>`")]
pub struct ReplicaError;

/// Why a job has no such pod.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ChoiceError {
    /// The replica is not one of the job's.
    #[error("the job has no {0}: it has {1} and {2} workers")]
    NoReplica(Replica, &'static str, u32),
    /// The rank is not one of the job's.
    #[error("the job has no rank {0}: it has {1} ranks, counted from 0")]
    NoRank(u32, u64),
    /// How many ranks a pod has is decided when it starts.
    #[error("the job does not say how many ranks a pod has; name a replica")]
    RanksUnknown,
    /// The rank runs elsewhere.
    #[error("rank {0} runs in {2}, not in {1}; send `rank` or `replica`, not both")]
    Contradiction(u32, Replica, Replica),
}

/// Which start of a container is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instance {
    /// The newest one.
    Current,
    /// The one before.
    Previous,
}

/// Why a pod has no such log.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum InstanceError {
    /// The container waits for its first start, for this reason.
    #[error("its container has not started yet ({0})")]
    NotStarted(String),
    /// Of a container's starts the cluster keeps the last two at most.
    #[error("the cluster has no log of attempt {wanted}; the newest is attempt {newest}")]
    NotKept {
        /// The one asked for.
        wanted: u32,
        /// The newest there is.
        newest: u32,
    },
}

/// Keeps the newest lines of a log, as many as fit.
///
/// Broken UTF-8 becomes U+FFFD. A line that is too long alone loses its front, and keeps its time.
#[derive(Debug)]
pub struct Tail {
    limit: usize,
    max_lines: usize,
    /// Whole lines with their newlines.
    lines: VecDeque<String>,
    /// Bytes of `lines` in JSON.
    size: usize,
    /// The line that is not at its end yet.
    line: Vec<u8>,
    /// Lines so far, dropped ones too.
    count: usize,
    /// Which of them was the last to lose something because there was no room.
    last_cut: Option<usize>,
}

// === impl Replica ===

impl Replica {
    /// The pod of a job that a replica, a rank or neither names: without either it is the master.
    ///
    /// # Errors
    /// The job has none, or replica and rank name different ones.
    pub fn choose(job: &PyTorchJob, replica: Option<Self>, rank: Option<u32>) -> Result<Self, ChoiceError> {
        let specs = &job.spec.pytorch_replica_specs;
        let workers = specs.worker.as_ref().map_or(0, |spec| u32::try_from(spec.replicas.unwrap_or(1)).unwrap_or(0));
        let masters = u32::from(specs.master.is_some());
        let chosen = match (replica, rank) {
            (replica, None) => replica.unwrap_or(Self::Master),
            (replica, Some(rank)) => {
                let ranks = ranks_of_a_pod(job)?;
                let total = u64::from(masters + workers) * u64::from(ranks);
                if u64::from(rank) >= total {
                    return Err(ChoiceError::NoRank(rank, total));
                }
                let node = rank / ranks;
                let of_rank = node.checked_sub(masters).map_or(Self::Master, Self::Worker);
                if let Some(replica) = replica.filter(|replica| *replica != of_rank) {
                    return Err(ChoiceError::Contradiction(rank, replica, of_rank));
                }
                of_rank
            }
        };
        let exists = match chosen {
            Self::Master => masters > 0,
            Self::Worker(index) => index < workers,
        };
        let has_master = if masters > 0 { "a master" } else { "no master" };
        if exists { Ok(chosen) } else { Err(ChoiceError::NoReplica(chosen, has_master, workers)) }
    }

    /// The first of the pod's ranks.
    ///
    /// # Errors
    /// The job does not say how many a pod has.
    pub fn first_rank(self, job: &PyTorchJob) -> Result<u32, ChoiceError> {
        let node = match self {
            Self::Master => 0,
            Self::Worker(index) => u32::from(job.spec.pytorch_replica_specs.master.is_some()).saturating_add(index),
        };
        if node == 0 { Ok(0) } else { Ok(node.saturating_mul(ranks_of_a_pod(job)?)) }
    }

    /// The name that the operator gives to this pod.
    #[must_use]
    pub fn pod_name(self, job: &str) -> String {
        match self {
            Self::Master => format!("{job}-master-0"),
            Self::Worker(index) => format!("{job}-worker-{index}"),
        }
    }
}

fn ranks_of_a_pod(job: &PyTorchJob) -> Result<u32, ChoiceError> {
    let ranks = job.spec.nproc_per_node.as_deref().and_then(|ranks| ranks.parse::<u32>().ok());
    ranks.filter(|ranks| *ranks > 0).ok_or(ChoiceError::RanksUnknown)
}

impl fmt::Display for Replica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Master => f.write_str("master"),
            Self::Worker(index) => write!(f, "worker-{index}"),
        }
    }
}

impl FromStr for Replica {
    type Err = ReplicaError;

    fn from_str(text: &str) -> Result<Self, ReplicaError> {
        if text == "master" {
            return Ok(Self::Master);
        }
        let index = text.strip_prefix("worker-").ok_or(ReplicaError)?;
        // `parse` alone would accept a plus sign, and pods are not called `worker-01`.
        let is_plain = index.bytes().all(|byte| byte.is_ascii_digit()) && (index == "0" || !index.starts_with('0'));
        index.parse().ok().filter(|_| is_plain).map(Self::Worker).ok_or(ReplicaError)
    }
}

// === impl Instance ===

impl Instance {
    /// The start of a pod's container that is meant, by its number from 1; without one, the newest.
    ///
    /// # Errors
    /// There is none yet, or the cluster keeps it no longer.
    pub fn choose(pod: &Pod, attempt: Option<u32>) -> Result<Self, InstanceError> {
        let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_deref()).unwrap_or_default();
        let Some(status) = statuses.iter().find(|status| status.name == CONTAINER) else {
            return Err(InstanceError::NotStarted("the pod waits for a node".to_owned()));
        };
        let last_ended = status.last_state.as_ref().is_some_and(|state| state.terminated.is_some());
        let newest = u32::try_from(status.restart_count).unwrap_or(0).saturating_add(1);
        let waiting = waiting_reason(status);
        if let (Some(reason), false) = (&waiting, last_ended) {
            return Err(InstanceError::NotStarted(reason.clone()));
        }
        match attempt {
            None => Ok(Self::Current),
            Some(attempt) if attempt == newest => Ok(Self::Current),
            // While it waits for its next start, the newest is the one that ended last, and no other is kept.
            Some(attempt) if attempt.saturating_add(1) == newest && waiting.is_none() && last_ended => {
                Ok(Self::Previous)
            }
            Some(wanted) => Err(InstanceError::NotKept { wanted, newest }),
        }
    }
}

/// Why a container waits; `None` when it runs or has ended.
fn waiting_reason(status: &ContainerStatus) -> Option<String> {
    let state = status.state.as_ref();
    if state.is_some_and(|state| state.running.is_some() || state.terminated.is_some()) {
        return None;
    }
    let waiting = state.and_then(|state| state.waiting.as_ref());
    let reason = waiting.and_then(|waiting| waiting.reason.as_deref()).unwrap_or("waiting");
    let message = waiting.and_then(|waiting| waiting.message.as_deref());
    Some(message.map_or_else(|| reason.to_owned(), |message| format!("{reason}: {message}")))
}

// === impl Tail ===

impl Tail {
    /// Nothing yet, and room for so many bytes of JSON.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            max_lines: usize::MAX,
            lines: VecDeque::new(),
            size: 0,
            line: Vec::new(),
            count: 0,
            last_cut: None,
        }
    }

    /// No more than so many lines, which are what was asked for: older ones are not missed.
    #[must_use]
    pub fn of_lines(self, max_lines: usize) -> Self {
        Self { max_lines, ..self }
    }

    /// Take the next bytes of the log.
    pub fn push(&mut self, mut bytes: &[u8]) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let (line, rest) = bytes.split_at(end + 1);
            self.extend_line(line);
            self.end_line();
            bytes = rest;
        }
        self.extend_line(bytes);
    }

    /// The text, and whether text is missing for want of room.
    #[must_use]
    pub fn finish(mut self) -> (String, bool) {
        self.end_line();
        let truncated = self.last_cut.is_some_and(|number| self.count - number < self.max_lines);
        (self.lines.into_iter().collect(), truncated)
    }

    fn extend_line(&mut self, bytes: &[u8]) {
        for bytes in bytes.chunks(self.limit.max(1)) {
            self.line.extend_from_slice(bytes);
            // No byte becomes less than a byte of JSON, so what is further from the end than the limit cannot stay. The
            // time at the front can.
            let too_many = self.line.len().saturating_sub(self.limit + MAX_TIME_BYTES);
            if too_many > self.limit {
                self.line.drain(MAX_TIME_BYTES..MAX_TIME_BYTES + too_many);
            }
        }
    }

    fn end_line(&mut self) {
        if self.line.is_empty() {
            return;
        }
        let mut line = String::from_utf8_lossy(&self.line).into_owned();
        self.line.clear();
        self.count += 1;
        if json_bytes(&line) > self.limit {
            line = without_front(&line, self.limit);
            // What stands before a gap is not the end of the log.
            self.lines.clear();
            self.size = 0;
            self.last_cut = Some(self.count);
        }
        self.size += json_bytes(&line);
        self.lines.push_back(line);
        while self.lines.len() > self.max_lines {
            let Some(oldest) = self.lines.pop_front() else { break };
            self.size -= json_bytes(&oldest);
        }
        while self.size > self.limit {
            let Some(oldest) = self.lines.pop_front() else { break };
            self.size -= json_bytes(&oldest);
            self.last_cut = Some(self.count - self.lines.len());
        }
    }
}

/// A line's time and as much of its end as fits with it.
fn without_front(line: &str, limit: usize) -> String {
    let time = line.split_inclusive(' ').next().unwrap_or_default();
    let is_time = time.len() <= MAX_TIME_BYTES && time.trim_end().parse::<Timestamp>().is_ok();
    let time = if is_time { time } else { "" };
    let mut room = limit.saturating_sub(json_bytes(time));
    let mut start = line.len();
    for (position, character) in line.char_indices().rev() {
        let Some(left) = room.checked_sub(json_bytes_of(character)) else { break };
        if position < time.len() {
            break;
        }
        (room, start) = (left, position);
    }
    let end = line.get(start..).unwrap_or_default();
    format!("{time}{end}")
}

fn json_bytes(text: &str) -> usize {
    text.chars().map(json_bytes_of).sum()
}

/// Bytes of a character in a JSON string, as `serde_json` writes it.
fn json_bytes_of(character: char) -> usize {
    match character {
        '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
        '\0'..'\u{20}' => 6,
        other => other.len_utf8(),
    }
}

/// A time as RFC 3339 writes it, and in no other of the many ways of ISO 8601.
#[must_use]
pub fn rfc3339(text: &str) -> Option<Timestamp> {
    let is_date_and_time = |text: &str| {
        text.len() == 19
            && text.bytes().zip("0000-00-00T00:00:00".bytes()).all(|(byte, form)| match form {
                b'0' => byte.is_ascii_digit(),
                b'T' => matches!(byte, b'T' | b't'),
                other => byte == other,
            })
    };
    let (date_and_time, rest) = text.split_at_checked(19)?;
    let zone = match rest.strip_prefix('.') {
        Some(fraction) => fraction.trim_start_matches(|character: char| character.is_ascii_digit()),
        None => rest,
    };
    let is_offset =
        |zone: &str| zone.len() == 6 && zone.starts_with(['+', '-']) && zone.as_bytes().get(3) == Some(&b':');
    let is_zone = matches!(zone, "Z" | "z") || is_offset(zone);
    if is_date_and_time(date_and_time) && is_zone { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_rfc_3339() {
        for good in ["2026-11-24T03:00:00Z", "2026-11-24t03:00:00.123456z", "2026-11-24T03:00:00+01:00"] {
            assert!(rfc3339(good).is_some(), "{good}");
        }
        for bad in [
            "",
            "5m",
            "2026-11-24",
            "2026-11-24T03Z",
            "20261124T030000Z",
            "2026-11-24T03:00:00",
            "2026-11-24T03:00:00[UTC]",
            "2026-11-24T03:00:00Z[UTC]",
            "2026-13-24T03:00:00Z",
            "-000001-01-01T00:00:00Z",
            "2026-11-24T03:00:00\u{e9}",
        ] {
            assert!(rfc3339(bad).is_none(), "{bad}");
        }
    }
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn job(nproc: &str, workers: Option<u32>) -> PyTorchJob {
        let worker = workers.map(|replicas| json!({"replicas": replicas, "template": {}}));
        serde_json::from_value(json!({
            "apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "metadata": {"name": "j"},
            "spec": {"nprocPerNode": nproc, "pytorchReplicaSpecs": {"Master": {"replicas": 1, "template": {}}, "Worker": worker}},
        }))
        .expect("a job")
    }

    #[test]
    fn replicas_are_called_as_their_pods() {
        for (text, replica, pod) in [
            ("master", Replica::Master, "j-master-0"),
            ("worker-0", Replica::Worker(0), "j-worker-0"),
            ("worker-10", Replica::Worker(10), "j-worker-10"),
        ] {
            assert_eq!(text.parse(), Ok(replica));
            assert_eq!((replica.to_string().as_str(), replica.pod_name("j").as_str()), (text, pod));
        }
        for bad in ["", "Master", "master-0", "worker", "worker-", "worker-+1", "worker-01", "worker--1", "worker-1 "] {
            assert_eq!(bad.parse::<Replica>(), Err(ReplicaError), "{bad}");
        }
    }

    #[test]
    fn ranks_and_replicas_name_one_pod() {
        use Replica::{Master, Worker};
        for (nproc, workers, replica, rank, pod) in [
            ("8", Some(2), None, None, Ok(Master)),
            ("8", Some(2), Some(Worker(1)), None, Ok(Worker(1))),
            ("8", Some(2), None, Some(7), Ok(Master)),
            ("8", Some(2), None, Some(8), Ok(Worker(0))),
            ("8", Some(2), None, Some(23), Ok(Worker(1))),
            ("8", Some(2), Some(Worker(1)), Some(16), Ok(Worker(1))),
            ("8", Some(2), None, Some(24), Err(ChoiceError::NoRank(24, 24))),
            ("8", Some(2), Some(Master), Some(8), Err(ChoiceError::Contradiction(8, Master, Worker(0)))),
            ("1", None, Some(Worker(0)), None, Err(ChoiceError::NoReplica(Worker(0), "a master", 0))),
            ("auto", None, None, Some(0), Err(ChoiceError::RanksUnknown)),
            ("0", None, None, Some(0), Err(ChoiceError::RanksUnknown)),
            ("auto", None, Some(Master), None, Ok(Master)),
        ] {
            let chosen = Replica::choose(&job(nproc, workers), replica, rank);
            assert_eq!(chosen, pod, "{nproc} {workers:?} {replica:?} {rank:?}");
        }
    }

    #[test]
    fn of_a_containers_starts_two_are_kept() {
        let (running, ended) = (json!({"running": {}}), json!({"terminated": {"exitCode": 1}}));
        let waiting = json!({"waiting": {"reason": "CrashLoopBackOff"}});
        let not_kept = |wanted, newest| Err(InstanceError::NotKept { wanted, newest });
        let not_started = |why: &str| Err(InstanceError::NotStarted(why.to_owned()));
        for (case, state, last, restarts, attempt, instance) in [
            ("first, newest", &running, None, 0, None, Ok(Instance::Current)),
            ("first, by number", &running, None, 0, Some(1), Ok(Instance::Current)),
            ("first, a later one", &running, None, 0, Some(2), not_kept(2, 1)),
            ("first, none", &running, None, 0, Some(0), not_kept(0, 1)),
            ("third, newest", &running, Some(&ended), 2, Some(3), Ok(Instance::Current)),
            ("third, the one before", &running, Some(&ended), 2, Some(2), Ok(Instance::Previous)),
            ("third, the first", &running, Some(&ended), 2, Some(1), not_kept(1, 3)),
            ("the node forgot the one before", &running, None, 2, Some(2), not_kept(2, 3)),
            ("ended", &ended, None, 0, None, Ok(Instance::Current)),
            ("between starts", &waiting, Some(&ended), 1, None, Ok(Instance::Current)),
            ("between starts, the one before", &waiting, Some(&ended), 1, Some(1), not_kept(1, 2)),
            ("not started", &waiting, None, 0, None, not_started("CrashLoopBackOff")),
        ] {
            let status = json!({"name": "pytorch", "image": "", "imageID": "", "ready": false, "restartCount": restarts,
                "state": state, "lastState": last.cloned().unwrap_or(json!({}))});
            let sidecar = json!({"name": "sidecar", "image": "", "imageID": "", "ready": false, "restartCount": 9});
            let pod = json!({"metadata": {}, "status": {"containerStatuses": [sidecar, status]}});
            let pod: Pod = serde_json::from_value(pod).expect("a pod");
            assert_eq!(Instance::choose(&pod, attempt), instance, "{case}");
        }
        let pending: Pod = serde_json::from_value(json!({"metadata": {}, "status": {}})).expect("a pod");
        assert_eq!(Instance::choose(&pending, None), not_started("the pod waits for a node"));
    }

    fn tail(limit: usize, chunks: &[&[u8]]) -> (String, bool) {
        let mut tail = Tail::new(limit);
        for chunk in chunks {
            tail.push(chunk);
        }
        tail.finish()
    }

    #[test]
    fn the_newest_lines_that_fit_are_kept() {
        let time = "2026-11-24T03:00:00.123456789Z";
        let long = format!("{time} {}\n", "x".repeat(200));
        let cut = format!("{time} {}\n", "x".repeat(17));
        for (case, limit, log, text, truncated) in [
            ("nothing", 50, "", "", false),
            ("all", 50, "a\nb\n", "a\nb\n", false),
            ("without a last newline", 50, "a\nb", "a\nb", false),
            ("empty lines are lines", 50, "\n\n", "\n\n", false),
            ("just fits", 6, "a\nb\n", "a\nb\n", false),
            ("one too many", 5, "a\nb\n", "b\n", true),
            ("escapes count", 7, "\"\n\u{1}x\n", "x\n", true),
            ("a giant line keeps its time", 50, &long, &cut, true),
            ("a giant line without a time", 5, "abcdef\n", "def\n", true),
            ("a short line after a giant one", 50, &format!("{long}b\n"), "b\n", true),
        ] {
            assert_eq!(tail(limit, &[log.as_bytes()]), (text.to_owned(), truncated), "{case}");
        }
        assert_eq!(tail(50, &[b"a\xff\xf0\x9f\n", b"\xe2\x82", b"\xac\n"]).0, "a\u{fffd}\u{fffd}\n€\n");
    }

    #[test]
    fn older_lines_than_were_asked_for_are_not_missed() {
        for (case, limit, log, text, truncated) in [
            ("fewer", 50, "a\n", "a\n", false),
            ("as many", 50, "a\nb\n", "a\nb\n", false),
            ("more", 50, "a\nb\nc", "b\nc", false),
            ("more than fits too", 5, "a\nb\nc\n", "c\n", true),
            ("one that did not fit, long ago", 6, "abcdefgh\nb\nc\n", "b\nc\n", false),
            ("one that did not fit just before", 6, "abcdefgh\nc\n", "c\n", true),
        ] {
            let mut tail = Tail::new(limit).of_lines(2);
            tail.push(log.as_bytes());
            assert_eq!(tail.finish(), (text.to_owned(), truncated), "{case}");
        }
    }

    #[test]
    fn a_pod_has_a_first_rank() {
        use Replica::{Master, Worker};
        for (nproc, replica, rank) in [
            ("8", Master, Ok(0)),
            ("8", Worker(0), Ok(8)),
            ("8", Worker(2), Ok(24)),
            ("auto", Master, Ok(0)),
            ("auto", Worker(0), Err(ChoiceError::RanksUnknown)),
        ] {
            assert_eq!(replica.first_rank(&job(nproc, Some(3))), rank, "{nproc} {replica}");
        }
    }

    #[test]
    fn json_is_counted_as_it_is_written() {
        for character in ('\0'..='\u{2ff}').chain(['\u{2028}', '\u{fffd}', '\u{1f600}']) {
            let written = Value::String(character.to_string()).to_string();
            assert_eq!(json_bytes_of(character), written.len() - 2, "{character:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_kept_is_the_end_of_the_log_and_fits(
            log in proptest::collection::vec(prop_oneof![4 => any::<u8>(), 1 => Just(b'\n'), 2 => Just(b'"')], 0..400),
            cuts in proptest::collection::vec(0_usize..400, 0..6),
            limit in 1_usize..300,
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(log.len())).collect();
            cuts.extend([0, log.len()]);
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|ends| &log[ends[0]..ends[1]]).collect();
            let (text, truncated) = tail(limit, &chunks);
            let whole = String::from_utf8_lossy(&log).into_owned();
            prop_assert!(serde_json::to_string(&text).expect("text").len() - 2 <= limit);
            prop_assert_eq!(truncated, json_bytes(&whole) > limit);
            prop_assert!(whole.ends_with(&text), "{:?} of {:?}", text, whole);
            if truncated {
                // It begins with a whole line, or with the end of one that alone is too long.
                let before = &whole[..whole.len() - text.len()];
                let start = before.rfind('\n').map_or(0, |newline| newline + 1);
                let first = whole[start..].split_inclusive('\n').next().unwrap_or_default();
                prop_assert!(start == before.len() || json_bytes(first) > limit);
            } else {
                prop_assert_eq!(text, whole);
            }
        }
    }
}
