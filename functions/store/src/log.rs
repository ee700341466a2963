//! The newest parts of an archived log, however many it has: what a process prints is in a new object every ten seconds.
//!
//! A listing that starts after a part says whether there are later ones, whatever is missing between, and gives a
//! thousand of them at once. So the last one is found by going twice as far each time, and then by halves.

use training_run::{
    layout::{MAX_LOG_PART, RunKey, RunPrefix, parse_log_part},
    names::Submission,
};

use crate::{Store, StoreError, decoded};

/// Parts of one listing: as many as S3 gives.
const LISTING: u32 = 1_000;
/// Pages without a single part that are passed over at most.
const MAX_PAGES_OF_OTHERS: usize = 20;

/// An object of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogPart {
    /// Its number, counted from 0.
    pub number: u32,
    /// Its size when it was listed.
    pub bytes: u64,
}

/// What was listed.
struct Page {
    /// In the order of their numbers.
    parts: Vec<LogPart>,
    /// Whether there are further keys.
    has_more: bool,
}

// === impl Store ===

impl Store {
    /// The newest parts of a log, at most 1,000, the newest first. Takes one listing for a log of that many, and about
    /// 2 log2(n / 1,000) for one of n.
    ///
    /// # Errors
    /// S3 cannot be reached or denies the request.
    pub async fn newest_log_parts(
        &self,
        prefix: &RunPrefix,
        submission: &Submission,
        attempt: u32,
        rank: u32,
    ) -> Result<Vec<LogPart>, StoreError> {
        let key = |part| prefix.key(&RunKey::Log { submission, attempt, rank, part });
        let first = key(0);
        let page_after = |after: Option<u32>| self.log_page(prefix.bucket(), &first, after.map(key));

        let mut page = page_after(None).await?;
        let Some(mut last) = page.last() else { return Ok(Vec::new()) };
        if page.has_more {
            // There is a part `last`, and none after `beyond`.
            let (mut step, mut beyond) = (LISTING, None::<u32>);
            while page.has_more {
                let probe = match beyond.map(|beyond| beyond.saturating_sub(last)) {
                    None => last.saturating_add(step).min(MAX_LOG_PART),
                    Some(distance) if distance > LISTING => last + distance / 2,
                    Some(_) => last,
                };
                step = step.saturating_mul(2);
                let after_probe = page_after(Some(probe)).await?;
                match after_probe.last() {
                    Some(later) => (page, last) = (after_probe, later),
                    None if probe == last => break,
                    None => beyond = Some(probe),
                }
            }
            page = page_after(last.checked_sub(LISTING)).await?;
            for _ in 0..MAX_PAGES_OF_OTHERS {
                let Some(end) = page.last().filter(|end| *end < last) else { break };
                page.parts.append(&mut page_after(Some(end)).await?.parts);
            }
            if page.last() < Some(last) {
                let reason = "too many objects of others lie between the log's own";
                return Err(StoreError::new("list", prefix.bucket(), &first, reason.into()));
            }
        }
        page.parts.reverse();
        page.parts.truncate(usize::try_from(LISTING).unwrap_or(usize::MAX));
        Ok(page.parts)
    }

    /// The next parts of the log whose first key this is, after a key. Objects of others may lie between them.
    async fn log_page(&self, bucket: &str, first: &str, mut after: Option<String>) -> Result<Page, StoreError> {
        let mut page = Page { parts: Vec::new(), has_more: true };
        for _ in 0..MAX_PAGES_OF_OTHERS {
            let request = self.listing(bucket, first).set_start_after(after).max_keys(LISTING.cast_signed());
            let listed = request.send().await.map_err(|error| StoreError::of_sdk("list", bucket, first, error))?;
            after = None;
            for object in listed.contents.into_iter().flatten() {
                let Some(key) = decoded(object.key) else { continue };
                if let (Some(number), Ok(bytes)) =
                    (parse_log_part(first, &key), u64::try_from(object.size.unwrap_or_default()))
                {
                    page.parts.push(LogPart { number, bytes });
                }
                after = Some(key);
            }
            page.has_more = listed.is_truncated.unwrap_or_default() && after.is_some();
            if !page.parts.is_empty() || !page.has_more {
                break;
            }
        }
        Ok(page)
    }
}

// === impl Page ===

impl Page {
    /// The number of the last part.
    fn last(&self) -> Option<u32> {
        self.parts.last().map(|part| part.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Bucket;

    /// The numbers that are found among these keys of a log, newest first, and how many requests it took.
    async fn found(keys: impl Iterator<Item = String>) -> (Vec<u32>, usize) {
        let prefix: RunPrefix = "s3://bucket/runs/r/framework=hf".parse().expect("a prefix");
        let submission = "01980000-0000-7000-8000-000000000001".parse().expect("a submission");
        let first = prefix.key(&RunKey::Log { submission: &submission, attempt: 2, rank: 1, part: 0 });
        let others =
            ["", ".x", ".000002.bak", ".000000"].map(|end| format!("{}0.log{end}", first.trim_end_matches(".log")));
        let objects = keys.map(|end| format!("{first}{end}")).chain(others).map(|key| (key, "a\n".to_owned()));
        let bucket = Bucket::holding(objects);
        let parts = bucket.store().newest_log_parts(&prefix, &submission, 2, 1).await.expect("an answer");
        assert!(parts.iter().all(|part| part.bytes == 2));
        (parts.iter().map(|part| part.number).collect(), bucket.take_traffic().calls.len())
    }

    fn end_of_key(part: u32) -> String {
        match part {
            0 => String::new(),
            1..1_000_000 => format!(".{part:06}"),
            part => format!(".z{part:09}"),
        }
    }

    #[tokio::test]
    async fn the_end_of_a_log_takes_few_requests_however_long_it_is() {
        for (count, most) in [(0, 1), (1, 1), (1_000, 1), (1_001, 5), (8_640, 9), (60_480, 14), (259_200, 18)] {
            let (parts, requests) = found((0..count).map(end_of_key)).await;
            assert!(parts.iter().copied().eq((count.saturating_sub(1_000)..count).rev()), "{count}: {parts:?}");
            assert!(requests <= most, "{count}: {requests} requests");
        }
    }

    #[tokio::test]
    async fn numbers_of_more_digits_come_last() {
        let (parts, _) = found((998_000..1_000_500).map(end_of_key)).await;
        assert!(parts.into_iter().eq((999_500..1_000_500).rev()));
        let (parts, _) = found([7, MAX_LOG_PART].map(end_of_key).into_iter()).await;
        assert_eq!(parts, [MAX_LOG_PART, 7]);
    }

    #[tokio::test]
    async fn what_is_missing_hides_no_later_part() {
        let missing = |part: &u32| !(10..4_000).contains(part) && !(20_000..20_700).contains(part) && *part != 30_000;
        let (parts, _) = found((0..30_500).filter(missing).map(end_of_key)).await;
        assert_eq!((parts.first(), parts.last(), parts.len()), (Some(&30_499), Some(&29_500), 999));
        let (parts, _) = found((25_000..30_500).map(end_of_key)).await;
        assert_eq!((parts.first(), parts.len()), (Some(&30_499), 1_000));
    }

    #[tokio::test]
    async fn other_keys_are_no_parts_and_hide_none() {
        let foreign = (0..900).map(|number| format!(".000004.{number:04}"));
        let odd = [".00001", ".0000001", ".z000000007", ".z00000000", "x", ".txt"].map(str::to_owned);
        let (parts, requests) = found((0..2_000).map(end_of_key).chain(foreign).chain(odd)).await;
        assert!(parts.into_iter().eq((1_000..2_000).rev()));
        assert!(requests < 10, "{requests} requests");

        // Whole pages of them, before the parts and between them.
        let before = (0..2_500).map(|number| format!("-{number:04}"));
        let between = (0..2_500).map(|number| format!(".000004.{number:04}"));
        let (parts, requests) = found((0..500).map(end_of_key).chain(before).chain(between)).await;
        assert!(parts.iter().copied().eq((0..500).rev()), "{} parts", parts.len());
        assert!(requests < 30, "{requests} requests");
    }
}
