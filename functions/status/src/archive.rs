//! The logs that the trainer has written into the runs bucket: for each rank and attempt the bytes of its parts. Whether the
//! archive is read at all is decided in `training_core::job::log_source`.
//!
//! A part may hold a line or 4 MiB: what was printed in ten seconds, or of older trainers all that fits. So an answer reads
//! from the end, more at once each time, and never more than 1,000 parts and an answer's bytes.

use futures::future::try_join_all;
use tokio::time::{Instant, timeout_at};
use tracing::warn;
use training_core::{
    cause::chain,
    job::logs::{MAX_LOG_BYTES, Tail},
};
use training_run::{
    layout::{MAX_LOG_PART_BYTES, RunKey, RunPrefix, newest_attempts},
    names::Submission,
};
use training_store::{LogPart, Read, Store, StoreError};

/// Parts read at once.
const PARALLEL_READS: usize = 32;

/// The end of an archived log.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Archived {
    /// Which attempt of the submission it is of, from 1.
    pub(crate) attempt: u32,
    /// Its newest lines.
    pub(crate) text: String,
    /// Whether older ones of those that were asked for are left out, to keep it within its size, its parts and its time.
    pub(crate) truncated: bool,
}

/// The newest lines of a rank's log, of the newest attempt that has one when none is given; `None` when there is none that
/// can be read. At the deadline it is what has come by then, but for the first part, which is waited for.
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
    deadline: Instant,
) -> Result<Option<Archived>, StoreError> {
    let attempts = if let Some(attempt) = attempt {
        vec![attempt]
    } else {
        let folders = store.list_folders(prefix.bucket(), &prefix.logs_folder(submission)).await?;
        newest_attempts(folders.iter().filter_map(|name| name.strip_prefix("attempt-")?.strip_suffix('/')))
    };
    for attempt in attempts {
        let parts = store.newest_log_parts(prefix, submission, attempt, rank).await?;
        if !parts.is_empty() {
            let key = |part: &LogPart| prefix.key(&RunKey::Log { submission, attempt, rank, part: part.number });
            let end = end_of(store, prefix.bucket(), needed(&parts), key, lines, deadline).await?;
            return Ok(end.map(|(text, truncated)| Archived { attempt, text, truncated }));
        }
    }
    Ok(None)
}

/// Those of the newest parts, newest first, that an answer can be of: down to a missing one, or until they fill it.
fn needed(parts: &[LogPart]) -> &[LogPart] {
    let last = parts.first().map_or(0, |part| part.number);
    let mut bytes: u64 = 0;
    let is_needed = |(part, number): &(&LogPart, u32)| {
        let has_room = bytes <= MAX_LOG_BYTES as u64;
        bytes = bytes.saturating_add(part.bytes);
        has_room && part.number == *number
    };
    let count = parts.iter().zip((0..=last).rev()).take_while(is_needed).count();
    parts.get(..count).unwrap_or(parts)
}

/// The newest lines of a log with these parts, newest first, and whether older ones of them are missing.
async fn end_of(
    store: &Store,
    bucket: &str,
    mut parts: &[LogPart],
    key: impl Fn(&LogPart) -> String,
    lines: usize,
    deadline: Instant,
) -> Result<Option<(String, bool)>, StoreError> {
    let (mut bodies, mut newlines, mut at_once) = (Vec::new(), 0, 1);
    let mut reached = u32::MAX;
    // One line more than asked for, because the first may have begun in the part before.
    'parts: while newlines <= lines && !parts.is_empty() {
        let (now, older) = parts.split_at(at_once.min(parts.len()));
        let reading = try_join_all(now.iter().map(|part| async {
            let read = store.read(bucket, &key(part), MAX_LOG_PART_BYTES).await?;
            Ok::<_, StoreError>((part.number, read))
        }));
        let read = if bodies.is_empty() {
            reading.await?
        } else {
            // What has come is worth more than nothing.
            match timeout_at(deadline, reading).await {
                Ok(Ok(read)) => read,
                Ok(Err(error)) => {
                    warn!(cause = chain(&error), "the archived log broke off");
                    break;
                }
                Err(_) => break,
            }
        };
        for (number, read) in read {
            let Read::Object(object) = read else { break 'parts };
            newlines += object.body.split(|byte| *byte == b'\n').count() - 1;
            bodies.push(object.body);
            reached = number;
        }
        (parts, at_once) = (older, PARALLEL_READS.min(2 * at_once));
    }
    if bodies.is_empty() {
        return Ok(None);
    }
    let mut tail = Tail::new(MAX_LOG_BYTES).of_lines(lines);
    bodies.iter().rev().for_each(|body| tail.push(body));
    let (text, truncated) = tail.finish();
    Ok(Some((text, truncated || (newlines <= lines && reached > 0))))
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        time::Duration,
    };

    use super::*;
    use training_store::testing::{Bucket, Treatment, holding};

    const RUN: &str = "runs/r/framework=hf";
    const SUBMISSION: &str = "01980000-0000-7000-8000-000000000001";
    const AMPLE: Duration = Duration::from_mins(1);

    async fn read_of(objects: &[(&str, &str)], attempt: Option<u32>, rank: u32, lines: usize) -> Option<Archived> {
        let objects = objects.iter().map(|(key, body)| (format!("{RUN}/logs/{SUBMISSION}/{key}"), (*body).to_owned()));
        read_from(&holding(objects), attempt, rank, lines, AMPLE).await.expect("an answer")
    }

    async fn read_from(
        store: &Store,
        attempt: Option<u32>,
        rank: u32,
        lines: usize,
        within: Duration,
    ) -> Result<Option<Archived>, StoreError> {
        let prefix = format!("s3://bucket/{RUN}").parse().expect("a prefix");
        let submission = SUBMISSION.parse().expect("a submission");
        let deadline = Instant::now() + within;
        read(store, &prefix, &submission, attempt, rank, lines, deadline).await
    }

    /// Parts of one rank's log, as the trainer numbers them.
    fn parts(bodies: impl Iterator<Item = String>) -> Vec<(String, String)> {
        let key = |part| match part {
            0 => format!("{RUN}/logs/{SUBMISSION}/attempt-1/rank-0.log"),
            part => format!("{RUN}/logs/{SUBMISSION}/attempt-1/rank-0.log.{part:06}"),
        };
        bodies.enumerate().map(|(part, body)| (key(part), body)).collect()
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

    #[tokio::test]
    async fn the_tail_of_a_week_takes_no_more_requests_than_it_must() {
        // A part every ten seconds.
        let week = 60_480;
        let numbered = |lines: usize| parts((0..week).map(move |part| format!("{part}\n").repeat(lines)));
        for (case, objects, lines, truncated, told, most_reads) in [
            ("a line each", numbered(1), 500, false, 500, 1_000),
            ("a line each, all that may be asked for", numbered(1), 10_000, true, 1_000, 1_000),
            ("a hundred lines each", numbered(100), 500, false, 500, 12),
            ("one line of many", numbered(100), 1, false, 1, 1),
        ] {
            let bucket = Bucket::holding(objects);
            let found = read_from(&bucket.store(), None, 0, lines, AMPLE).await.expect("an answer").expect("a log");
            assert_eq!((found.truncated, found.text.lines().count()), (truncated, told), "{case}");
            assert!(found.text.ends_with(&format!("{}\n", week - 1)), "{case}");
            let calls = bucket.take_traffic().calls;
            let reads = calls.iter().filter(|call| call.verb == "GET").count();
            assert!(reads <= most_reads, "{case}: {reads} reads");
            assert!(calls.len() - reads <= 15, "{case}: {} listings", calls.len() - reads);
        }
    }

    #[tokio::test]
    async fn few_parts_are_read_at_once() {
        let bucket = Bucket::holding(parts((0..400).map(|part| format!("{part}\n"))));
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let seen = Arc::clone(&most);
        let store = bucket.store_judged_by(move |_| {
            let (now, most) = (Arc::clone(&now), Arc::clone(&most));
            async move {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(1)).await;
                now.fetch_sub(1, Ordering::SeqCst);
                Treatment::Serve
            }
        });
        let found = read_from(&store, None, 0, 500, AMPLE).await.expect("an answer").expect("a log");
        assert_eq!(found.text.lines().count(), 400);
        let most = seen.load(Ordering::SeqCst);
        assert!((16..=PARALLEL_READS).contains(&most), "{most}");
    }

    #[tokio::test]
    async fn what_has_come_is_told_when_older_parts_do_not() {
        let bucket = Bucket::holding(parts((0..20).map(|part| format!("{part}\n"))));
        // Longer than the first parts take, and shorter than a request that hangs is waited for.
        let within = Duration::from_secs(3);
        for (case, treatment) in [("never", Treatment::Hang), ("are denied", Treatment::Refuse(403, "AccessDenied"))] {
            let treating = |from: &'static str| {
                bucket.store_judged_by(move |call| {
                    let is_old = call.verb == "GET" && *call.key.rsplit('.').next().unwrap_or_default() < *from;
                    std::future::ready(if is_old { treatment } else { Treatment::Serve })
                })
            };
            // One, two and four are read at a time.
            let found = read_from(&treating("000015"), None, 0, 500, within).await.expect("an answer");
            let text = "17\n18\n19\n".to_owned();
            assert_eq!(found, Some(Archived { attempt: 1, text, truncated: true }), "{case}");
            let found = read_from(&treating("000015"), None, 0, 2, within).await.expect("an answer");
            assert_eq!(found, Some(archived(1, "18\n19\n")), "{case}: they are not needed");
        }
        let denied = |call: &training_store::testing::Call| call.verb == "GET";
        let store = bucket.store_judged_by(move |call| {
            std::future::ready(if denied(call) { Treatment::Refuse(403, "AccessDenied") } else { Treatment::Serve })
        });
        assert!(read_from(&store, None, 0, 500, AMPLE).await.is_err(), "nobody knows what it says");
    }

    #[tokio::test]
    async fn attempts_of_older_trainers_are_read_beside_newer_ones() {
        let full = format!("{}\n", "x".repeat(1023)).repeat(4096);
        let objects = [
            // Objects that were written again while they grew, up to 4 MiB.
            ("attempt-1/rank-0.log", full.as_str()),
            ("attempt-1/rank-0.log.000001", "old\n"),
            ("attempt-2/rank-0.log", "a\n"),
            ("attempt-2/rank-0.log.000001", "b"),
            ("attempt-2/rank-0.log.000002", ""),
            ("attempt-2/rank-0.log.000003", "c\n"),
        ];
        assert_eq!(read_of(&objects, None, 0, 9).await, Some(archived(2, "a\nbc\n")));
        let line = "x".repeat(1023);
        assert_eq!(read_of(&objects, Some(1), 0, 2).await, Some(archived(1, &format!("{line}\nold\n"))));
        // No trainer writes larger ones: what stands there is not read.
        let larger = format!("{full}x");
        let objects = [("attempt-1/rank-0.log", larger.as_str()), ("attempt-1/rank-0.log.000001", "new\n")];
        let found = read_of(&objects, None, 0, 9).await.expect("a log");
        assert_eq!((found.text.as_str(), found.truncated), ("new\n", true));
    }
}
