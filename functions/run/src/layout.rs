//! The S3 layout of a run: every key that anything in the system reads or writes is built and parsed here.
//!
//! It is a contract with the trainer: `tests/contract/layout.json` holds the vectors that both languages run.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::names::{Framework, JobName, Namespace, RunId, Step, Submission};

/// Length of an index entry's name. Counting down from the greatest step makes a plain listing newest first, and step 0
/// still has twelve digits.
const INDEX_DIGITS: usize = 12;

/// Most bytes of a log's part.
pub const MAX_LOG_PART_BYTES: usize = 4 * 1024 * 1024;
/// Greatest number of a log's part: the keys of all up to here sort as their numbers do.
pub const MAX_LOG_PART: u32 = 999_999_999;
/// Parts below this one have six digits, which last 115 days at a part every ten seconds.
const FIRST_LONG_LOG_PART: u32 = 1_000_000;
/// Digits of an attempt's number at most.
const MAX_ATTEMPT_DIGITS: usize = 9;

/// Longest key of an object, in bytes: S3's own limit.
pub const MAX_KEY_BYTES: usize = 1_024;

/// An `s3://bucket/key` URI, the key without leading or trailing slashes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct S3Uri {
    bucket: String,
    key: String,
}

/// Why a text is not an S3 URI that the platform takes.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum UriError {
    /// Another scheme, or none.
    #[error("must begin with `s3://`")]
    Scheme,
    /// The bucket's name is not one.
    #[error("must name a bucket: 3 to 63 characters of a-z 0-9 . -")]
    Bucket,
    /// A segment of the key is empty, `.` or `..`, or has a character that S3 cannot list.
    #[error("must not have empty, `.` or `..` segments, control characters or U+FFFE and U+FFFF in its key")]
    Segment,
    /// A segment of a base is one of the platform's.
    #[error("must not have a segment `framework=...` or `_jobs`")]
    Reserved,
    /// Longer than S3 allows.
    #[error("must have a key of at most 900 bytes")]
    TooLong,
}

/// Where one run keeps everything: `<checkpoint_base_uri>/<run_id>/framework=<framework>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RunPrefix {
    base: S3Uri,
    framework: Framework,
    /// All of it.
    uri: S3Uri,
}

/// One object of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunKey<'a> {
    /// The marker that makes a step's files a checkpoint.
    Marker(Step),
    /// The newest progress of a submission.
    Progress(&'a Submission),
    /// The ledger's entry of a submission's start, counted from 1.
    Attempt(&'a Submission, u32),
    /// A part of what one process of a start printed. The log is the bytes of all parts, in the order of their keys.
    Log {
        /// The submission.
        submission: &'a Submission,
        /// Its start, counted from 1.
        attempt: u32,
        /// The process.
        rank: u32,
        /// The part, counted from 0.
        part: u32,
    },
    /// The configuration of the run's newest submission.
    NewestConfig,
    /// The configuration of a submission.
    Config(&'a Submission),
    /// The objects of the data set that a submission trains on.
    Data(&'a Submission),
    /// The submission that may write here.
    Owner,
    /// The index entry of a step.
    IndexEntry(Step),
    /// The digest of a step's index entry, by its name.
    IndexDigest(Step, &'a str),
}

// === impl S3Uri ===

impl S3Uri {
    /// The bucket's name.
    #[must_use]
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// The key without slashes at its ends; empty for the whole bucket.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// This URI with one more path below it.
    #[must_use]
    pub fn join(&self, path: &str) -> Self {
        let key = if self.key.is_empty() { path.to_owned() } else { format!("{}/{path}", self.key) };
        Self { bucket: self.bucket.clone(), key }
    }

    /// Whether a segment of the key is one of the platform's, so that this is no base of runs: below `framework=...` lies
    /// what belongs to a run, and below `_jobs` the records.
    #[must_use]
    pub fn has_reserved_segment(&self) -> bool {
        self.key.split('/').any(|segment| segment.starts_with("framework=") || segment == "_jobs")
    }

    /// Whether this URI is `base` or lies below it, by whole segments.
    #[must_use]
    pub fn is_within(&self, base: &Self) -> bool {
        self.bucket == base.bucket
            && (base.key.is_empty()
                || self.key.strip_prefix(&base.key).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
    }
}

impl fmt::Display for S3Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.key.is_empty() {
            write!(f, "s3://{}", self.bucket)
        } else {
            write!(f, "s3://{}/{}", self.bucket, self.key)
        }
    }
}

impl FromStr for S3Uri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        let rest = text.strip_prefix("s3://").ok_or(UriError::Scheme)?;
        let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
        let bucket_byte = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-".contains(&byte);
        if !(3..=63).contains(&bucket.len()) || !bucket.bytes().all(bucket_byte) {
            return Err(UriError::Bucket);
        }
        let key = key.trim_end_matches('/');
        let bad_segment = |segment: &str| matches!(segment, "" | "." | "..");
        if !key.is_empty() && (key.split('/').any(bad_segment) || !can_be_listed(key)) {
            return Err(UriError::Segment);
        }
        if key.len() > 900 {
            return Err(UriError::TooLong);
        }
        Ok(Self { bucket: bucket.to_owned(), key: key.to_owned() })
    }
}

// === impl RunPrefix ===

impl RunPrefix {
    /// The prefix of a run below a base.
    #[must_use]
    pub fn new(checkpoint_base_uri: &S3Uri, run_id: &RunId, framework: Framework) -> Self {
        let uri = checkpoint_base_uri.join(&format!("{run_id}/framework={framework}"));
        Self { base: checkpoint_base_uri.clone(), framework, uri }
    }

    /// The run and step that a marker's full key belongs to; `None` when the key is no marker below one of the bases.
    #[must_use]
    pub fn of_marker(bucket: &str, key: &str, bases: &[S3Uri]) -> Option<(Self, Step)> {
        let (prefix, tail) = key.rsplit_once("/checkpoints/")?;
        let step = parse_marker_key(&format!("checkpoints/{tail}"))?;
        let prefix: Self = format!("s3://{bucket}/{prefix}").parse().ok()?;
        bases.iter().any(|base| prefix.is_within(base)).then_some((prefix, step))
    }

    /// The bucket of the run.
    #[must_use]
    pub fn bucket(&self) -> &str {
        &self.uri.bucket
    }

    /// The base below which the run lies.
    #[must_use]
    pub fn base(&self) -> &S3Uri {
        &self.base
    }

    /// The framework that trains the run.
    #[must_use]
    pub fn framework(&self) -> Framework {
        self.framework
    }

    /// The URI of a path below the run.
    #[must_use]
    pub fn uri(&self, path: &str) -> S3Uri {
        self.uri.join(path)
    }

    /// Whether the run lies below this base.
    #[must_use]
    pub fn is_within(&self, base: &S3Uri) -> bool {
        self.uri.is_within(base)
    }

    /// The full key of one of the run's objects.
    #[must_use]
    pub fn key(&self, key: &RunKey<'_>) -> String {
        format!("{}/{}", self.uri.key, key.relative())
    }

    /// The full key of the folder of checkpoint files, with its trailing slash.
    #[must_use]
    pub fn checkpoints_folder(&self) -> String {
        format!("{}/checkpoints/", self.uri.key)
    }

    /// What every marker's full key begins with.
    #[must_use]
    pub fn markers(&self) -> String {
        format!("{}/checkpoints/step-", self.uri.key)
    }

    /// Whether a full key is one of the run's markers.
    #[must_use]
    pub fn is_marker(&self, key: &str) -> bool {
        self.marker_step(key).is_some()
    }

    /// The step whose marker a full key is.
    #[must_use]
    pub fn marker_step(&self, key: &str) -> Option<Step> {
        parse_marker_key(key.strip_prefix(&self.uri.key)?.strip_prefix('/')?)
    }

    /// The step whose index entry a full key is.
    #[must_use]
    pub fn index_step(&self, key: &str) -> Option<Step> {
        step_of_index_name(key.strip_prefix(&self.index_folder())?)
    }

    /// The step and the name of a digest, by its full key.
    #[must_use]
    pub fn index_digest<'key>(&self, key: &'key str) -> Option<(Step, &'key str)> {
        let (step, name) = key.strip_prefix(&self.digests_folder())?.split_once('/')?;
        Some((step_of_index_name(step)?, name))
    }

    /// The full key of the folder of a submission's attempts, with its trailing slash.
    #[must_use]
    pub fn attempts_folder(&self, submission: &Submission) -> String {
        format!("{}/attempts/{submission}/", self.uri.key)
    }

    /// The full key of the folder of a submission's logs, with its trailing slash.
    #[must_use]
    pub fn logs_folder(&self, submission: &Submission) -> String {
        format!("{}/logs/{submission}/", self.uri.key)
    }

    /// The full key of the folder of index entries, with its trailing slash.
    #[must_use]
    pub fn index_folder(&self) -> String {
        format!("{}/index/v1/", self.uri.key)
    }

    /// The greatest full key that an index entry can have: step 0's.
    #[must_use]
    pub fn last_index_entry(&self) -> String {
        format!("{}{}", self.index_folder(), Step::MAX)
    }

    /// The full key of the folder of digests, with its trailing slash. A listing of the entries has it behind the last of
    /// them.
    #[must_use]
    pub fn digests_folder(&self) -> String {
        format!("{}digest/", self.index_folder())
    }
}

impl fmt::Display for RunPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.uri.fmt(f)
    }
}

impl FromStr for RunPrefix {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        let uri: S3Uri = text.parse()?;
        let (run, framework) = uri.key.rsplit_once("/framework=").ok_or(UriError::Segment)?;
        let framework = framework.parse().map_err(|_| UriError::Segment)?;
        let (base, run_id) = run.rsplit_once('/').unwrap_or(("", run));
        let _: RunId = run_id.parse().map_err(|_| UriError::Segment)?;
        let base = S3Uri { bucket: uri.bucket.clone(), key: base.to_owned() };
        if base.has_reserved_segment() {
            return Err(UriError::Reserved);
        }
        Ok(Self { base, framework, uri })
    }
}

impl TryFrom<String> for RunPrefix {
    type Error = UriError;

    fn try_from(text: String) -> Result<Self, UriError> {
        text.parse()
    }
}

impl From<RunPrefix> for String {
    fn from(prefix: RunPrefix) -> Self {
        prefix.to_string()
    }
}

// === impl RunKey ===

impl RunKey<'_> {
    /// The key relative to the run's prefix.
    #[must_use]
    pub fn relative(&self) -> String {
        match self {
            Self::Marker(step) => format!("checkpoints/step-{:06}.json", step.get()),
            Self::Progress(submission) => format!("progress/{submission}"),
            Self::Attempt(submission, attempt) => format!("attempts/{submission}/{attempt}"),
            Self::Log { submission, attempt, rank, part } => {
                let part = match *part {
                    0 => String::new(),
                    1..FIRST_LONG_LOG_PART => format!(".{part:06}"),
                    // A letter sorts after the digits.
                    FIRST_LONG_LOG_PART.. => format!(".z{part:09}"),
                };
                format!("logs/{submission}/attempt-{attempt}/rank-{rank}.log{part}")
            }
            Self::NewestConfig => "config/run.json".to_owned(),
            Self::Config(submission) => format!("config/{submission}/run.json"),
            Self::Data(submission) => format!("config/{submission}/data.json"),
            Self::Owner => "owner".to_owned(),
            Self::IndexEntry(step) => format!("index/v1/{}", index_name(*step)),
            Self::IndexDigest(step, name) => format!("index/v1/digest/{}/{name}", index_name(*step)),
        }
    }
}

/// The number of a log's part by its key and that of part 0; `None` for any other key.
#[must_use]
pub fn parse_log_part(first: &str, key: &str) -> Option<u32> {
    let end = key.strip_prefix(first)?;
    if end.is_empty() {
        return Some(0);
    }
    let end = end.strip_prefix('.')?;
    let (digits, length, numbers) = match end.strip_prefix('z') {
        Some(digits) => (digits, 9, FIRST_LONG_LOG_PART..=MAX_LOG_PART),
        None => (end, 6, 1..=FIRST_LONG_LOG_PART - 1),
    };
    let is_number = digits.len() == length && digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|part| is_number && numbers.contains(part))
}

/// What an index entry is called, and the folder of its digest.
fn index_name(step: Step) -> String {
    format!("{:0width$}", Step::MAX - step.get(), width = INDEX_DIGITS)
}

fn step_of_index_name(name: &str) -> Option<Step> {
    let down: Step = name.parse().ok().filter(|_| name.len() == INDEX_DIGITS)?;
    Step::new(Step::MAX - down.get()).ok()
}

/// The full key of the record of a job, beside the runs below a base.
#[must_use]
pub fn job_record_key(base: &S3Uri, namespace: &Namespace, job: &JobName, submission: &Submission) -> String {
    base.join(&format!("_jobs/{namespace}/{job}/{submission}")).key
}

/// The folder of a submission's final export, relative to the run's prefix.
#[must_use]
pub fn model_folder(submission: &Submission) -> String {
    format!("model/{submission}/")
}

/// Attempts that are looked through where any of the newest may tell: the cluster may have moved some, and not all of an
/// attempt's ranks need have begun.
const NEWEST_ATTEMPTS: usize = 10;

/// The newest attempts among these texts of a listing, the newest first; what is no number as a key has it is left out.
#[must_use]
pub fn newest_attempts<'a>(listed: impl Iterator<Item = &'a str>) -> Vec<u32> {
    let mut attempts: Vec<u32> = listed.filter_map(parse_attempt).collect();
    attempts.sort_unstable_by(|one, other| other.cmp(one));
    attempts.truncate(NEWEST_ATTEMPTS);
    attempts
}

/// The attempt that the last part of a key names: a number from 1 of at most nine digits, without zeros before it.
#[must_use]
pub fn parse_attempt(name: &str) -> Option<u32> {
    let is_number = name.bytes().all(|byte| byte.is_ascii_digit()) && !name.starts_with('0');
    name.parse().ok().filter(|_| is_number && name.len() <= MAX_ATTEMPT_DIGITS)
}

/// Whether S3 can tell of a key with this text: it answers lists as XML, which cannot hold control characters and two more.
#[must_use]
pub(crate) fn can_be_listed(text: &str) -> bool {
    !text.contains(|character: char| character.is_control() || matches!(character, '\u{fffe}' | '\u{ffff}'))
}

/// The step of a marker's key relative to the run's prefix; `None` for any other key. A step's marker has one key, so that
/// an event, a listing and the index speak of the same object.
#[must_use]
pub fn parse_marker_key(key: &str) -> Option<Step> {
    let step = key.strip_prefix("checkpoints/step-")?.strip_suffix(".json")?.parse().ok()?;
    (RunKey::Marker(step).relative() == key).then_some(step)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(text: &str) -> S3Uri {
        text.parse().expect("a valid URI")
    }

    #[test]
    fn the_newest_attempts_come_first_and_are_not_all() {
        let listed = ["9", "007", "+8", "0", "-1", "", "x", "4294967296", "10"];
        assert_eq!(newest_attempts(listed.into_iter()), [10, 9]);
        let many: Vec<String> = (1..=30).map(|number: u32| number.to_string()).collect();
        assert_eq!(newest_attempts(many.iter().map(String::as_str)), (21..=30).rev().collect::<Vec<u32>>());
    }

    #[test]
    fn uris_are_normalised_or_refused() {
        assert_eq!(uri("s3://bucket/a/b//").to_string(), "s3://bucket/a/b");
        assert_eq!(uri("s3://bucket").to_string(), "s3://bucket");
        for (bad, error) in [
            ("http://bucket/a", UriError::Scheme),
            ("s3:///a", UriError::Bucket),
            ("s3://Bucket/a", UriError::Bucket),
            ("s3://bucket//a", UriError::Segment),
            ("s3://bucket/a/../b", UriError::Segment),
            ("s3://bucket/a/\u{0}", UriError::Segment),
            ("s3://bucket/a\u{fffe}", UriError::Segment),
        ] {
            assert_eq!(bad.parse::<S3Uri>(), Err(error), "{bad}");
        }
    }

    #[test]
    fn a_base_holds_whole_segments_only() {
        let base = uri("s3://bucket/runs");
        assert!(uri("s3://bucket/runs").is_within(&base));
        assert!(uri("s3://bucket/runs/team").is_within(&base));
        assert!(!uri("s3://bucket/runs-of-others").is_within(&base));
        assert!(!uri("s3://other/runs").is_within(&base));
    }

    #[test]
    fn a_run_lies_below_its_base() {
        let run_id = "r".parse().expect("a run id");
        for base in ["s3://bucket", "s3://bucket/runs", "s3://bucket/runs/team/a"] {
            let prefix = RunPrefix::new(&uri(base), &run_id, Framework::Hf);
            assert_eq!(*prefix.base(), uri(base));
        }
    }

    #[test]
    fn only_markers_below_a_base_are_markers() {
        let bases = [uri("s3://bucket/runs")];
        let of =
            |key| RunPrefix::of_marker("bucket", key, &bases).map(|(prefix, step)| (prefix.to_string(), step.get()));
        assert_eq!(
            of("runs/r/framework=hf/checkpoints/step-000007.json"),
            Some(("s3://bucket/runs/r/framework=hf".to_owned(), 7))
        );
        for foreign in [
            "runs/r/framework=hf/checkpoints/checkpoint-7/config.json",
            "runs/r/framework=jax/checkpoints/step-000007.json",
            "elsewhere/r/framework=hf/checkpoints/step-000007.json",
            "runs/r/framework=hf/index/v1/checkpoints/step-000007.json",
            "runs/framework=hf/checkpoints/step-000007.json.bak",
            "runs/r/framework=hf/checkpoints/step-7.json",
            "step-000007.json",
        ] {
            assert_eq!(of(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn index_keys_tell_their_step() {
        let prefix: RunPrefix = "s3://bucket/runs/r/framework=hf".parse().expect("a prefix");
        for step in [0, 500, Step::MAX] {
            let step = Step::new(step).expect("in range");
            assert_eq!(prefix.index_step(&prefix.key(&RunKey::IndexEntry(step))), Some(step));
            let digest = prefix.key(&RunKey::IndexDigest(step, "-/-/-"));
            assert_eq!((prefix.index_digest(&digest), prefix.index_step(&digest)), (Some((step, "-/-/-")), None));
            assert!(digest > prefix.last_index_entry(), "behind all entries");
        }
        let last = prefix.key(&RunKey::IndexEntry(Step::new(0).expect("in range")));
        assert_eq!(last, prefix.last_index_entry());
        for foreign in ["1", "_jobs/training/x/y", "0000000000000", "99999999949a", ""] {
            assert_eq!(prefix.index_step(&format!("runs/r/framework=hf/index/v1/{foreign}")), None, "{foreign}");
        }
    }

    #[test]
    fn index_keys_list_the_newest_step_first() {
        let key = |step| RunKey::IndexEntry(Step::new(step).expect("in range")).relative();
        assert_eq!(key(500), "index/v1/999999999499");
        assert!(key(501) < key(500));
        assert!(key(1) < key(0), "step 0 is the last");
        assert_eq!(key(Step::MAX), "index/v1/000000000000");
    }
}
