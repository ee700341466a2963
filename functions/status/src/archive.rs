//! The logs that the trainer has written into the runs bucket: the bytes of one or several objects for each rank and attempt.

use training_core::{
    layout::{RunKey, RunPrefix, newest_logged},
    logs::{MAX_LOG_BYTES, Tail},
    names::Submission,
};
use training_store::{Store, StoreError};

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

/// The newest lines of a rank's log, of the newest attempt that has logs when none is given; `None` when there is none.
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
    let attempt = match attempt {
        Some(attempt) => attempt,
        None => match newest_logged(&store.list_folders(bucket, &prefix.logs_folder(submission)).await?) {
            Some(newest) => newest,
            None => return Ok(None),
        },
    };
    let first = prefix.key(&RunKey::Log { submission, attempt, rank, part: 0 });
    let mut keys = store.list_names(bucket, &first).await?;
    keys.retain(|key| key.strip_prefix(&first).is_some_and(|part| part.is_empty() || is_later_part(part)));
    if keys.is_empty() {
        return Ok(None);
    }
    // From the end, as much as can be told of it. One line more, because the first may have begun in the part before.
    let (mut parts, mut newlines, mut bytes) = (Vec::new(), 0, 0);
    for key in keys.iter().rev() {
        let Some(object) = store.get(bucket, key).await? else { continue };
        newlines += object.body.split(|byte| *byte == b'\n').skip(1).count();
        bytes += object.body.len();
        parts.push(object.body);
        if newlines > lines || bytes > MAX_LOG_BYTES {
            break;
        }
    }
    let mut tail = Tail::new(MAX_LOG_BYTES).of_lines(lines);
    parts.iter().rev().for_each(|part| tail.push(part));
    let (text, truncated) = tail.finish();
    Ok(Some(Archived { attempt, text, truncated }))
}

/// What a later part's key has more than the first one's.
fn is_later_part(end: &str) -> bool {
    end.strip_prefix('.').is_some_and(|digits| digits.len() == 6 && digits.bytes().all(|byte| byte.is_ascii_digit()))
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
        assert_eq!(read_of(&objects, Some(11), 1, 5).await, None);
        assert_eq!(read_of(&objects[5..], None, 1, 5).await, None);
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
