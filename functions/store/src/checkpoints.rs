//! The checkpoints of a run as the index tells them, and as they are now: the index is of each marker's last event, so
//! whoever is to load a checkpoint gets one whose files were checked again.
//!
//! Which checkpoints count is decided by the run's newest submission, and entries are in the order of their steps. Nearly
//! always the highest step is the newest submission's: `owner` says so, and then a few requests are enough, however many
//! checkpoints there are. Else (after a restart from scratch, until training passes the previous highest step, or with markers that name no
//! submission), and for a metric, all entries and digests are listed, a thousand a request, and only entries that have no
//! digest are read: those of an older release, and those that are being indexed.

use std::collections::HashMap;

use futures::{StreamExt, TryStreamExt, future, stream};
use training_run::{
    MAX_STATEMENT_BYTES, StatementError,
    digest::Digest,
    entry::{IndexEntry, IndexError},
    layout::{RunKey, RunPrefix},
    lineage::{Known, Lineage, Mode, Preference, Trace, candidates},
    marker::State,
    names::{Step, Submission},
};

use crate::{Found, OwnerFound, Read, Store, StoreError};

/// Entries read at once.
const PARALLEL_READS: usize = 32;
/// Checkpoints checked at once: a marker and a listing of its files take some megabytes each.
const PARALLEL_LOOKS: usize = 8;
/// Keys of one listing: as many as S3 gives.
const LISTING: usize = 1_000;

/// Some entries of an index, newest first.
#[derive(Clone, Debug, PartialEq)]
pub struct IndexPage {
    /// Those that were still there when they were read.
    pub entries: Vec<IndexEntry>,
    /// What to ask below for the next page; `None` at the end.
    pub next: Option<Step>,
}

struct Listed {
    /// Keys of entries.
    keys: Vec<String>,
    /// The last of them, after which the listing may continue.
    after: Option<String>,
}

// === impl Store ===

impl Store {
    /// The newest `limit` entries (at most 1,000) below a step, newest first.
    ///
    /// # Errors
    /// S3 cannot be reached or denies the request, or an entry cannot be read.
    pub async fn index_page(
        &self,
        prefix: &RunPrefix,
        limit: u32,
        before: Option<Step>,
    ) -> Result<IndexPage, StoreError> {
        let limit = usize::try_from(limit).unwrap_or(LISTING);
        let after = before.map(|step| prefix.key(&RunKey::IndexEntry(step)));
        let Listed { keys, after } = self.index_keys(prefix, limit, after).await?;
        let next = after.and_then(|key| prefix.index_step(&key));
        let steps = keys.iter().filter_map(|key| prefix.index_step(key)).collect();
        Ok(IndexPage { entries: self.entries(prefix, steps, |entry| entry).await?, next })
    }

    /// Which of a run's checkpoints belong to its newest submission.
    ///
    /// # Errors
    /// As [`Store::index_page`].
    pub async fn lineage(&self, prefix: &RunPrefix) -> Result<Lineage, StoreError> {
        match Box::pin(self.lineage_of_owner(prefix)).await? {
            Some(lineage) => Ok(lineage),
            None => Ok(Lineage::of(&self.known(prefix, None).await?)),
        }
    }

    /// The newest checkpoint that is complete now and not superseded.
    ///
    /// # Errors
    /// As [`Store::index_page`].
    pub async fn latest(&self, prefix: &RunPrefix) -> Result<Option<IndexEntry>, StoreError> {
        if let Some(entry) = Box::pin(self.latest_of_owner(prefix)).await? {
            return Ok(Some(entry));
        }
        let known = self.known(prefix, None).await?;
        self.first_complete(prefix, &candidates(&known, Preference::Newest)).await
    }

    /// The checkpoint with the best metric that is complete now and not superseded. Two listings for each
    /// thousand entries.
    ///
    /// # Errors
    /// As [`Store::index_page`].
    pub async fn best(&self, prefix: &RunPrefix, metric: &str, mode: Mode) -> Result<Option<IndexEntry>, StoreError> {
        let known = self.known(prefix, Some(metric)).await?;
        self.first_complete(prefix, &candidates(&known, Preference::Best(mode))).await
    }

    /// The checkpoint of a step with its state as it is now, not as the index has it; `None` when the step has no marker,
    /// or one that cannot be used.
    ///
    /// # Errors
    /// S3 cannot be reached or denies the request.
    pub async fn checkpoint(&self, prefix: &RunPrefix, step: Step) -> Result<Option<IndexEntry>, StoreError> {
        match self.snapshot(prefix, step).await?.found {
            Found::Checkpoint(entry) => Ok(Some(entry)),
            Found::Nothing | Found::Unusable(_) => Ok(None),
        }
    }

    /// The submission that may write into the run, and so its newest; `None` where nothing tells.
    async fn writer(&self, prefix: &RunPrefix) -> Result<Option<Submission>, StoreError> {
        Ok(match self.owner(prefix).await? {
            OwnerFound::Owner(owner, _) => Some(owner.submission),
            OwnerFound::Nothing | OwnerFound::NotUnderstood => None,
        })
    }

    /// The highest step that has an entry.
    async fn highest(&self, prefix: &RunPrefix) -> Result<Option<Step>, StoreError> {
        let Listed { keys, .. } = self.index_keys(prefix, 1, None).await?;
        Ok(keys.first().and_then(|key| prefix.index_step(key)))
    }

    /// The highest checkpoint, where it is the owner's and complete now.
    async fn latest_of_owner(&self, prefix: &RunPrefix) -> Result<Option<IndexEntry>, StoreError> {
        let (owner, highest) = future::try_join(self.writer(prefix), self.highest(prefix)).await?;
        let (Some(owner), Some(step)) = (owner, highest) else { return Ok(None) };
        let is_owners = |entry: &IndexEntry| entry.submission.as_ref() == Some(&owner);
        let entry = self.checkpoint(prefix, step).await?;
        Ok(entry.filter(|entry| entry.state == State::Complete && is_owners(entry)))
    }

    /// The lineage where the highest checkpoint is the owner's, and each ancestor still has the checkpoint from which its
    /// child resumed: one read a submission.
    async fn lineage_of_owner(&self, prefix: &RunPrefix) -> Result<Option<Lineage>, StoreError> {
        let (owner, highest) = future::try_join(self.writer(prefix), self.index_page(prefix, 1, None)).await?;
        let (Some(owner), Some(highest)) = (owner, highest.entries.first()) else { return Ok(None) };
        if highest.submission.as_ref() != Some(&owner) {
            return Ok(None);
        }
        let mut trace = Trace::of(&owner);
        trace.go_on(highest.parent.as_ref());
        while let Some((submission, step)) = trace.asks() {
            let found = self.entries(prefix, vec![step], |entry| entry).await?;
            let teller = found.into_iter().find(|entry| entry.submission.as_ref() == Some(submission));
            let Some(teller) = teller else { return Ok(None) };
            trace.go_on(teller.parent.as_ref());
        }
        Ok(Some(trace.into_lineage()))
    }

    /// The first of some steps whose checkpoint is complete now. The first is checked alone, since it nearly always is.
    async fn first_complete(&self, prefix: &RunPrefix, steps: &[Step]) -> Result<Option<IndexEntry>, StoreError> {
        let (first, rest) = steps.split_at(steps.len().min(1));
        for steps in std::iter::once(first).chain(rest.chunks(PARALLEL_LOOKS)) {
            let looks = steps.iter().map(|step| async move { self.checkpoint(prefix, *step).await });
            let found = future::try_join_all(looks).await?;
            if let Some(entry) = found.into_iter().flatten().find(|entry| entry.state == State::Complete) {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }

    /// What choosing needs to know of all checkpoints.
    async fn known(&self, prefix: &RunPrefix, metric: Option<&str>) -> Result<Vec<Known>, StoreError> {
        let (entries, mut digests) = future::try_join(self.all_entries(prefix), self.digests(prefix, metric)).await?;
        let (mut known, mut untold) = (Vec::new(), Vec::new());
        for step in entries {
            match digests.remove(&step).flatten() {
                Some(digest) => known.push(digest),
                None => untold.push(step),
            }
        }
        known.extend(self.entries(prefix, untold, |entry| Known::of(&entry, metric)).await?);
        Ok(known)
    }

    /// The steps that have an entry.
    async fn all_entries(&self, prefix: &RunPrefix) -> Result<Vec<Step>, StoreError> {
        let (mut steps, mut after) = (Vec::new(), None);
        loop {
            let listed = self.index_keys(prefix, LISTING, after).await?;
            steps.extend(listed.keys.iter().filter_map(|key| prefix.index_step(key)));
            after = listed.after;
            if after.is_none() {
                return Ok(steps);
            }
        }
    }

    /// What the digests tell, by step; `None` where a step has several, as while it is indexed, or one that does not say.
    async fn digests(
        &self,
        prefix: &RunPrefix,
        metric: Option<&str>,
    ) -> Result<HashMap<Step, Option<Known>>, StoreError> {
        let (folder, mut known, mut after) = (prefix.digests_folder(), HashMap::new(), None);
        loop {
            let keys =
                self.list_keys(prefix.bucket(), &folder, after, i32::try_from(LISTING).unwrap_or(i32::MAX)).await?;
            for (step, name) in keys.iter().filter_map(|key| prefix.index_digest(key)) {
                let digest: Option<Digest> = name.parse().ok();
                let told = digest.and_then(|digest| digest.known(step, metric));
                known.entry(step).and_modify(|known| *known = None).or_insert(told);
            }
            if keys.len() < LISTING {
                return Ok(known);
            }
            after = keys.into_iter().next_back();
        }
    }

    async fn index_keys(&self, prefix: &RunPrefix, limit: usize, after: Option<String>) -> Result<Listed, StoreError> {
        let limit = limit.min(LISTING);
        let last_entry = prefix.last_index_entry();
        let mut most = limit;
        let (mut entries, mut from) = (Vec::new(), after);
        loop {
            let listing = i32::try_from(most).unwrap_or(i32::MAX);
            let keys = self.list_keys(prefix.bucket(), &prefix.index_folder(), from, listing).await?;
            // Behind the last key that an entry can have is none: not among the digests either.
            let is_end = keys.len() < most || keys.last().is_some_and(|key| *key > last_entry);
            from = keys.last().cloned();
            // What lies there and is no entry is nobody's business here.
            entries.extend(keys.into_iter().filter(|key| prefix.index_step(key).is_some()));
            let is_enough = entries.len() >= limit;
            if is_end || is_enough {
                entries.truncate(limit);
                let after = entries.last().filter(|_| is_enough).cloned();
                return Ok(Listed { keys: entries, after });
            }
            // Rarely: then all at once, however few are wanted.
            most = LISTING;
        }
    }

    /// The entries of some steps, each made small as soon as it is read. In place of one that is refused the marker is read,
    /// from which an entry is made: whoever spoils one hides no checkpoint, and stops no reader.
    async fn entries<T>(
        &self,
        prefix: &RunPrefix,
        steps: Vec<Step>,
        keep: impl Fn(IndexEntry) -> T,
    ) -> Result<Vec<T>, StoreError> {
        let (bucket, keep) = (prefix.bucket(), &keep);
        stream::iter(steps)
            .map(|step| async move {
                let key = prefix.key(&RunKey::IndexEntry(step));
                let entry = match self.read(bucket, &key, MAX_STATEMENT_BYTES).await? {
                    Read::Object(object) => IndexEntry::parse_at(&object.body, step),
                    Read::Nothing => return Ok(None), // deleted since it was listed
                    Read::TooLarge(_) => Err(IndexError::Format(StatementError::TooLarge)),
                    Read::Withheld(_) => Err(IndexError::Withheld),
                };
                match entry {
                    Ok(entry) => Ok(Some(keep(entry))),
                    Err(IndexError::Format(_) | IndexError::Withheld) => {
                        Ok(match Box::pin(self.snapshot(prefix, step)).await?.found {
                            Found::Checkpoint(entry) => Some(keep(entry)),
                            Found::Nothing | Found::Unusable(_) => None,
                        })
                    }
                    Err(error) => Err(StoreError::new("read", bucket, &key, Box::new(error))),
                }
            })
            .buffered(PARALLEL_READS)
            .try_filter_map(|entry| future::ready(Ok(entry)))
            .try_collect()
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Bucket, ETAG, Treatment, denied, holding};
    use serde_json::{Value, json};
    use training_run::marker::Marker;

    const A: &str = "01970000-0000-7000-8000-00000000000a";
    const B: &str = "01980000-0000-7000-8000-00000000000b";
    const RUN: &str = "runs/r/framework=hf";

    fn prefix() -> RunPrefix {
        format!("s3://bucket/{RUN}").parse().expect("a prefix")
    }

    fn step(number: u64) -> Step {
        Step::new(number).expect("a step")
    }

    /// A checkpoint as the trainer and the indexer left it: marker, one file and index entry.
    fn checkpoint(number: u64, submission: Option<&str>, parent: &Value, loss: &Value) -> Vec<(String, String)> {
        let path = format!("checkpoint-{number}/model.safetensors");
        let marker = json!({
            "layout": 1, "framework": "hf", "step": number, "saved_at": 1.5, "submission": submission, "parent": parent,
            "files": [{"path": path, "size": 4, "etag": ETAG}], "metrics": {"loss": loss}, "metadata": {},
        });
        let parsed = Marker::parse(marker.to_string().as_bytes()).expect("a marker");
        let file = training_run::marker::File { path: path.clone(), size: 4, etag: Some(ETAG.to_owned()) };
        let entry = IndexEntry::new(&prefix(), &parsed, ETAG.to_owned(), &[file]);
        vec![
            (prefix().key(&RunKey::Marker(step(number))), marker.to_string()),
            (format!("{RUN}/checkpoints/{path}"), "data".to_owned()),
            (
                prefix().key(&RunKey::IndexEntry(step(number))),
                String::from_utf8(entry.to_body()).expect("an entry is text"),
            ),
        ]
    }

    /// Steps 10 and 20 of one submission, 15 and 30 of another that went on from 10.
    fn run() -> Vec<(String, String)> {
        let parent = json!({"submission": A, "step": 10});
        [
            checkpoint(10, Some(A), &Value::Null, &json!(3.0)),
            checkpoint(15, Some(B), &parent, &json!(1.0)),
            checkpoint(20, Some(A), &Value::Null, &json!(0.5)),
            checkpoint(30, Some(B), &parent, &json!(2.0)),
        ]
        .concat()
    }

    fn without(objects: Vec<(String, String)>, part: &str) -> Vec<(String, String)> {
        objects.into_iter().filter(|(key, _)| !key.contains(part)).collect()
    }

    fn at(entry: Option<IndexEntry>) -> Option<u64> {
        entry.map(|entry| entry.step.get())
    }

    #[tokio::test]
    async fn an_entry_that_is_none_is_made_from_its_marker() {
        let key = prefix().key(&RunKey::IndexEntry(step(20)));
        let of_another_step =
            Bucket::holding(run()).body(&prefix().key(&RunKey::IndexEntry(step(10)))).expect("an entry");
        let deep = format!("{{\"a\":{}", "[".repeat(9999));
        for garbage in ["{", "[]", &deep, &" ".repeat(3 * MAX_STATEMENT_BYTES), &of_another_step] {
            let bucket = Bucket::holding(run());
            bucket.write(&key, garbage);
            let store = bucket.store();
            let page = store.index_page(&prefix(), 10, None).await.expect("a page");
            assert_eq!(page.entries.iter().map(|entry| entry.step.get()).collect::<Vec<_>>(), [30, 20, 15, 10]);
            assert_eq!(at(store.best(&prefix(), "loss", Mode::Min).await.expect("an answer")), Some(15));
            // Nor does an entry without a checkpoint.
            bucket.remove(&prefix().key(&RunKey::Marker(step(20))));
            let page = store.index_page(&prefix(), 10, None).await.expect("a page");
            assert_eq!(page.entries.iter().map(|entry| entry.step.get()).collect::<Vec<_>>(), [30, 15, 10]);
        }
        let archived = Bucket::holding(run());
        let entry = key.clone();
        let store = archived.store_judged_by(move |call| {
            let is_it = call.verb == "GET" && call.key == entry;
            future::ready(if is_it { Treatment::Refuse(403, "InvalidObjectState") } else { Treatment::Serve })
        });
        let page = store.index_page(&prefix(), 10, None).await.expect("a page");
        assert_eq!(page.entries.iter().map(|entry| entry.step.get()).collect::<Vec<_>>(), [30, 20, 15, 10]);
        let newer = Bucket::holding(run());
        newer.write(&key, "{\"index\": 2}");
        assert!(newer.store().index_page(&prefix(), 10, None).await.expect_err("of a later release").is_final());
    }

    #[tokio::test]
    async fn pages_go_down_from_the_newest() {
        let store = holding(run());
        for (limit, before, steps) in [
            (10, None, &[30, 20, 15, 10][..]),
            (2, None, &[30, 20]),
            (2, Some(20), &[15, 10]),
            (2, Some(17), &[15, 10]),
            (2, Some(10), &[]),
        ] {
            let page = store.index_page(&prefix(), limit, before.map(step)).await.expect("a page").entries;
            let found: Vec<_> = page.iter().map(|entry| entry.step.get()).collect();
            assert_eq!(found, steps, "{limit} before {before:?}");
        }
    }

    #[tokio::test]
    async fn what_lies_among_the_entries_and_is_none_hides_nothing() {
        // The first is what the console makes of a new folder; the others come before, between and behind the entries.
        let foreign = ["", "0", "1", "99", "999999999984.bak", "99999999998a", "README", "digest/", "digest/x/-/-/-"];
        let foreign = foreign.map(|name| (format!("{RUN}/index/v1/{name}"), String::new()));
        let store = holding([foreign.to_vec(), run()].concat());
        for limit in 1..=5_u32 {
            let (mut found, mut before) = (Vec::new(), None);
            loop {
                let page = store.index_page(&prefix(), limit, before).await.expect("a page");
                found.push(page.entries.iter().map(|entry| entry.step.get()).collect::<Vec<_>>());
                before = page.next;
                if before.is_none() {
                    break;
                }
            }
            assert!(found.iter().rev().skip(1).all(|page| Ok(page.len()) == limit.try_into()), "{limit}: {found:?}");
            assert_eq!(found.concat(), [30, 20, 15, 10], "{limit}: {found:?}");
        }
        assert_eq!(store.highest(&prefix()).await.expect("an answer"), Some(step(30)));
        assert_eq!(at(store.best(&prefix(), "loss", Mode::Min).await.expect("an answer")), Some(15));
    }

    #[tokio::test]
    async fn what_is_chosen_is_in_line_and_complete_now() {
        for (case, objects, latest, best, worst) in [
            ("all", run(), Some(30), Some(15), Some(10)),
            ("the newest file is gone", without(run(), "checkpoint-30/"), Some(15), Some(15), Some(10)),
            ("the best file is gone", without(run(), "checkpoint-15/"), Some(30), Some(30), Some(10)),
            ("the newest marker is gone", without(run(), "step-000030"), Some(15), Some(15), Some(10)),
            ("no file is left", without(run(), "checkpoint-"), None, None, None),
            ("nothing is left", without(run(), "runs"), None, None, None),
            (
                "other images",
                [checkpoint(10, None, &Value::Null, &json!(1.0)), checkpoint(20, None, &Value::Null, &json!("low"))]
                    .concat(),
                Some(20),
                Some(10),
                Some(10),
            ),
        ] {
            let store = holding(objects);
            assert_eq!(at(store.latest(&prefix()).await.expect("an answer")), latest, "{case}");
            let of = async |mode| at(store.best(&prefix(), "loss", mode).await.expect("an answer"));
            assert_eq!((of(Mode::Min).await, of(Mode::Max).await), (best, worst), "{case}");
            assert_eq!(at(store.best(&prefix(), "accuracy", Mode::Max).await.expect("an answer")), None, "{case}");
        }
    }

    #[tokio::test]
    async fn a_step_is_told_by_its_one_digest_and_else_by_its_entry() {
        let digest = |number, name: &str| (prefix().key(&RunKey::IndexDigest(step(number), name)), String::new());
        let of_a = |number, loss: &str| digest(number, &format!("{A}/-/-/loss={loss}"));
        let of_b = |number, loss: &str| digest(number, &format!("{B}/{A}/10/loss={loss}"));
        for (case, digests, best, reads) in [
            ("none, as in an older release", vec![], 15, 4),
            ("each has one", vec![of_a(10, "3e0"), of_b(15, "1e0"), of_a(20, "5e-1"), of_b(30, "2e0")], 15, 0),
            ("some have one", vec![of_b(15, "1e0"), of_a(20, "5e-1")], 15, 2),
            // The entry says 1.0.
            ("one has two, of which one is old", vec![of_b(15, "9e0"), of_b(15, "8e0")], 15, 4),
            ("one is none", vec![digest(15, "loss=1")], 15, 4),
            ("one has no entry", vec![of_b(16, "1e-9")], 15, 4),
            ("one does not say", vec![digest(30, &format!("{B}/{A}/10/more"))], 15, 4),
            ("a metric that it does not have", vec![digest(15, &format!("{B}/{A}/10"))], 30, 3),
        ] {
            let bucket = Bucket::holding([run(), digests].concat());
            let found = bucket.store().best(&prefix(), "loss", Mode::Min).await.expect("an answer");
            assert_eq!(at(found), Some(best), "{case}");
            let calls = bucket.take_traffic().calls;
            let entries = calls.iter().filter(|call| call.verb == "GET" && call.key.contains("/index/"));
            assert_eq!(entries.count(), reads, "{case}");
        }
    }

    #[tokio::test]
    async fn a_long_run_of_torn_checkpoints_is_passed_over() {
        let all = (1..=60).flat_map(|number| checkpoint(number, Some(A), &Value::Null, &json!(1.0)));
        let torn = |key: &str| (8..=60).any(|number| key.contains(&format!("checkpoint-{number}/")));
        let store = holding(all.filter(|(key, _)| !torn(key)));
        assert_eq!(at(store.latest(&prefix()).await.expect("an answer")), Some(7));
    }

    #[tokio::test]
    async fn a_steps_state_is_that_of_now() {
        let store = holding(without(run(), "checkpoint-30/"));
        for (number, state) in [(30, Some(State::Incomplete)), (10, Some(State::Complete)), (11, None)] {
            let found = store.checkpoint(&prefix(), step(number)).await.expect("an answer");
            assert_eq!(found.map(|entry| entry.state), state, "{number}");
        }
        let lying = holding([(
            prefix().key(&RunKey::Marker(step(5))),
            r#"{"framework":"hf","step":6,"saved_at":1}"#.to_owned(),
        )]);
        assert_eq!(lying.checkpoint(&prefix(), step(5)).await.expect("an answer"), None);
    }

    #[tokio::test]
    async fn an_index_that_cannot_be_read_is_a_failure_and_not_an_empty_run() {
        let newer = [(prefix().key(&RunKey::IndexEntry(step(5))), r#"{"index": 2}"#.to_owned())];
        for store in [denied(), holding(newer)] {
            assert!(store.latest(&prefix()).await.is_err());
            assert!(store.index_page(&prefix(), 5, None).await.is_err());
        }
    }
}
