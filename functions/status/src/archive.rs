//! The logs that the trainer has written into the runs bucket: the bytes of one or several objects for each rank and attempt.

use training_core::{
    layout::{RunKey, RunPrefix, newest_attempts},
    logs::{MAX_LOG_BYTES, Tail},
    names::Submission,
};
use training_store::{Read, Store, StoreError};

/// Largest part that is read; the trainer's have at most 4 MiB.
const MAX_PART_BYTES: usize = 16 * 1024 * 1024;

/// The end of an archived log.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Archived {
    /// Which attempt of the submission it is of, from 1.
    pub(crate) attempt: u32,
    /// Its newest lines.
    pub(crate) text: String,
    /// Whether older ones of those that were asked for are left out, to keep it within its size.
    pub(crate) truncated: bool,
}

/// The newest lines of a rank's log, of the newest attempt that has one when none is given; `None` when there is none that
/// can be read.
///
/// # Errors
/// S3 cannot be reached or denies the request.
pub(crate) async fn read(
    store: &Store,
    prefix: &RunPrefix,
    submission: &Submission,
    attempt: Option<u32>,
    rank: u32,
    lines: usize,
) -> Result<Option<Archived>, StoreError> {
    let bucket = prefix.bucket();
    let attempts = if let Some(attempt) = attempt {
        vec![attempt]
    } else {
        let folders = store.list_folders(bucket, &prefix.logs_folder(submission)).await?;
        newest_attempts(folders.iter().filter_map(|name| name.strip_prefix("attempt-")?.strip_suffix('/')))
    };
    for attempt in attempts {
        let first = prefix.key(&RunKey::Log { submission, attempt, rank, part: 0 });
        let keys = store.list_names(bucket, &first).await?;
        let last = keys.iter().filter_map(|key| part_of(key.strip_prefix(&first)?)).max();
        if let Some(last) = last {
            let key = |part| prefix.key(&RunKey::Log { submission, attempt, rank, part });
            let end = end_of(store, bucket, last, key, lines).await?;
            return Ok(end.map(|(text, truncated)| Archived { attempt, text, truncated }));
        }
    }
    Ok(None)
}

/// The newest lines of a log whose last part this is, and whether older ones of them are missing.
async fn end_of(
    store: &Store,
    bucket: &str,
    last: u32,
    key: impl Fn(u32) -> String,
    lines: usize,
) -> Result<Option<(String, bool)>, StoreError> {
    // From the end, as much as can be told of it. One line more, because the first may have begun in the part before.
    let (mut parts, mut newlines, mut bytes, mut gap) = (Vec::new(), 0, 0, false);
    for part in (0..=last).rev() {
        let Read::Object(object) = store.read(bucket, &key(part), MAX_PART_BYTES).await? else {
            gap = true;
            break;
        };
        newlines += object.body.split(|byte| *byte == b'\n').skip(1).count();
        bytes += object.body.len();
        parts.push(object.body);
        if newlines > lines || bytes > MAX_LOG_BYTES {
            break;
        }
    }
    if parts.is_empty() {
        return Ok(None);
    }
    let mut tail = Tail::new(MAX_LOG_BYTES).of_lines(lines);
    parts.iter().rev().for_each(|part| tail.push(part));
    let (text, truncated) = tail.finish();
    Ok(Some((text, truncated || gap)))
}

/// The part of a log, counted from 0, by what its key has after that of the first one.
fn part_of(end: &str) -> Option<u32> {
    if end.is_empty() {
        return Some(0);
    }
    let digits = end.strip_prefix('.').filter(|digits| digits.len() == 6)?;
    digits.parse().ok().filter(|part| *part > 0 && digits.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use training_store::testing::holding;

    const RUN: &str = "runs/r/framework=hf";
    const SUBMISSION: &str = "01980000-0000-7000-8000-000000000001";

    async fn read_of(objects: &[(&str, &str)], attempt: Option<u32>, rank: u32, lines: usize) -> Option<Archived> {
        let objects = objects.iter().map(|(key, body)| (format!("{RUN}/logs/{SUBMISSION}/{key}"), (*body).to_owned()));
        let prefix = format!("s3://bucket/{RUN}").parse().expect("a prefix");
        let submission = SUBMISSION.parse().expect("a submission");
        read(&holding(objects), &prefix, &submission, attempt, rank, lines).await.expect("an answer")
    }

    fn archived(attempt: u32, text: &str) -> Archived {
        Archived { attempt, text: text.to_owned(), truncated: false }
    }

    #[tokio::test]
    async fn a_log_is_found_by_attempt_and_rank() {
        let objects = [
            ("attempt-9/rank-1.log", "nine\n"),
            ("attempt-10/rank-1.log", "ten\n"),
            ("attempt-10/rank-10.log", "another's\n"),
            ("attempt-10/rank-1.log.txt", "no part\n"),
            ("attempt-x/rank-1.log", "no attempt\n"),
            ("tensorboard/events", "no log\n"),
        ];
        assert_eq!(read_of(&objects, None, 1, 5).await, Some(archived(10, "ten\n")));
        assert_eq!(read_of(&objects, Some(9), 1, 5).await, Some(archived(9, "nine\n")));
        assert_eq!(read_of(&objects, Some(9), 10, 5).await, None);
        // Rank 0 is there first, and the newest attempt may have ended before the others came.
        let objects =
            [&objects[..], &[("attempt-11/rank-0.log", "eleven\n"), ("attempt-+12/rank-1.log", "no attempt\n")]]
                .concat();
        assert_eq!(read_of(&objects, None, 1, 5).await, Some(archived(10, "ten\n")));
        assert_eq!(read_of(&objects, None, 0, 5).await, Some(archived(11, "eleven\n")));
        assert_eq!(read_of(&objects, Some(11), 1, 5).await, None);
        assert_eq!(read_of(&[("tensorboard/events", "no log\n")], None, 1, 5).await, None);
    }

    #[tokio::test]
    async fn its_parts_are_one_text() {
        let objects = [
            ("attempt-1/rank-0.log", "a\nb\nc"),
            ("attempt-1/rank-0.log.000001", "d\ne\nf"),
            ("attempt-1/rank-0.log.000002", "g\n"),
        ];
        for (lines, text) in [(1, "fg\n"), (2, "e\nfg\n"), (3, "cd\ne\nfg\n"), (9, "a\nb\ncd\ne\nfg\n")] {
            assert_eq!(read_of(&objects, None, 0, lines).await, Some(archived(1, text)), "{lines}");
        }
    }

    #[tokio::test]
    async fn what_stands_before_a_missing_part_is_not_its_end() {
        let objects = [("attempt-1/rank-0.log", "a\n"), ("attempt-1/rank-0.log.000002", "b\nc\n")];
        let read = read_of(&objects, None, 0, 9).await.expect("a log");
        assert_eq!((read.text.as_str(), read.truncated), ("b\nc\n", true));
        assert_eq!(read_of(&objects, None, 0, 1).await, Some(archived(1, "c\n")), "it is not needed");
    }

    #[tokio::test]
    async fn what_does_not_fit_is_not_read() {
        let line = format!("{}\n", "x".repeat(1023));
        let (old, new) = (format!("old {}", line.repeat(4096)), line.repeat(4096));
        let objects = [("attempt-1/rank-0.log", old.as_str()), ("attempt-1/rank-0.log.000001", new.as_str())];
        let found = read_of(&objects, None, 0, 10_000).await.expect("a log");
        assert!(found.truncated);
        assert!((MAX_LOG_BYTES - 10_000..MAX_LOG_BYTES).contains(&found.text.len()), "{}", found.text.len());
        assert!(found.text.starts_with('x'));
    }
}
