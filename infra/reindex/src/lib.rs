//! Compares the index of checkpoints with the markers and files that are there, and repairs it.
//!
//! ```text
//! base URIs ─> runs ─> steps that have a marker or an entry ─> read again ─> difference ─> index anew, if asked to
//! ```
//! A [`Place`] is a step of a run. A [`Difference`] says how its entry differs from what it should be, and a [`Compared`]
//! also whether it was repaired.
//!
//! What an entry should be, and how it is written, is the indexer's own code. So this may run at any time, also while
//! trainers and the indexer are at work, may be ended at any time, and may be run again.

use std::{collections::BTreeSet, fmt};

use anyhow::Result;
use futures::{StreamExt, future, stream};
use training_run::{
    entry::{IndexEntry, IndexError},
    layout::{RunKey, RunPrefix, S3Uri},
    names::Step,
};
use training_store::{Found, Store, StoreError, digest_key};

/// What is not run prefixes and not to be looked through for them: the records of jobs.
const RECORDS: &str = "_jobs/";

/// A run and one of its steps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The run.
    pub prefix: RunPrefix,
    /// The step.
    pub step: Step,
}

/// How an entry differs from what it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// There is a checkpoint and no entry.
    Missing,
    /// The entry is another one than the marker and its files make.
    Stale,
    /// There is an entry and no checkpoint.
    Orphaned,
    /// The entry is as it should be, and its digest is missing, as those of older releases are, or there is another one.
    Undigested,
    /// The entry is of a later release, which this one leaves alone.
    Newer(u64),
}

/// What came of a step.
#[derive(Debug)]
pub struct Compared {
    /// How its entry differed, if it did.
    pub difference: Option<Difference>,
    /// Whether it was indexed anew.
    pub is_repaired: bool,
}

/// The runs at and below some URIs, each of them a base or a run's own prefix. `failed` hears of each folder that cannot
/// be looked through; the others still are.
pub async fn runs(store: &Store, uris: &[S3Uri], mut failed: impl FnMut(&S3Uri, StoreError)) -> Vec<RunPrefix> {
    let mut found = Vec::new();
    let mut folders: Vec<S3Uri> = uris.to_vec();
    while let Some(folder) = folders.pop() {
        if let Ok(prefix) = folder.to_string().parse() {
            found.push(prefix);
            continue;
        }
        let below = if folder.key().is_empty() { String::new() } else { format!("{}/", folder.key()) };
        let names = match store.list_folders(folder.bucket(), &below).await {
            Ok(names) => names,
            Err(error) => {
                failed(&folder, error);
                continue;
            }
        };
        let names = names.iter().filter(|name| *name != RECORDS).map(|name| name.trim_end_matches('/'));
        // An empty name, as of a key with `//`, would lead to the same folder again.
        let names = names.filter(|name| !name.is_empty());
        // A name that is none of ours has no runs below it.
        folders.extend(names.filter_map(|name| folder.join(name).to_string().parse().ok()));
    }
    found.sort_by_key(ToString::to_string);
    found.dedup();
    found
}

/// The steps of a run that have a marker or an index entry, in order.
///
/// # Errors
/// S3 cannot be reached or denies the request.
pub async fn places(store: &Store, prefix: &RunPrefix) -> Result<Vec<Place>> {
    let (markers, entries, digests) = (prefix.markers(), prefix.index_folder(), prefix.digests_folder());
    let markers = store.list_names(prefix.bucket(), &markers);
    let entries = store.list_names(prefix.bucket(), &entries);
    let digests = store.list_all(prefix.bucket(), &digests);
    let (markers, entries, digests) = future::try_join3(markers, entries, digests).await?;
    let marked = markers.iter().filter_map(|key| prefix.marker_step(key));
    let indexed = entries.iter().filter_map(|key| prefix.index_step(key));
    let digested = digests.iter().filter_map(|key| prefix.index_digest(key)).map(|(step, _)| step);
    let steps: BTreeSet<Step> = marked.chain(indexed).chain(digested).collect();
    Ok(steps.into_iter().map(|step| Place { prefix: prefix.clone(), step }).collect())
}

/// Compare one step. What differs is looked at twice: the indexer may have been at work.
///
/// # Errors
/// S3 cannot be reached or denies a request.
pub async fn compare(store: &Store, place: &Place) -> Result<Option<Difference>> {
    match compare_once(store, place).await? {
        None => Ok(None),
        Some(_) => compare_once(store, place).await,
    }
}

async fn compare_once(store: &Store, Place { prefix, step }: &Place) -> Result<Option<Difference>> {
    let entry_key = prefix.key(&RunKey::IndexEntry(*step));
    let entry = store.get(prefix.bucket(), &entry_key);
    let (look, entry, digests) =
        future::try_join3(store.snapshot(prefix, *step), entry, store.digests_of(prefix, *step)).await?;
    let (wanted, digest) = match look.found {
        Found::Checkpoint(entry) => (Some(entry.to_body()), digest_key(prefix, *step, &entry)),
        Found::Nothing | Found::Unusable(_) => (None, None),
    };
    let there = entry.map(|entry| entry.body);
    if let Some(Err(IndexError::Newer(version))) = there.as_deref().map(IndexEntry::parse) {
        return Ok(Some(Difference::Newer(version)));
    }
    let is_digested = digests == digest.into_iter().collect::<Vec<_>>();
    Ok(match (wanted, there) {
        (Some(_), None) => Some(Difference::Missing),
        (None, Some(_)) => Some(Difference::Orphaned),
        (Some(wanted), Some(there)) if wanted != there => Some(Difference::Stale),
        (Some(_), Some(_)) | (None, None) if !is_digested => Some(Difference::Undigested),
        (Some(_), Some(_)) | (None, None) => None,
    })
}

/// Index a step that differs anew; whether that may be done.
///
/// # Errors
/// S3 cannot be reached or denies a request, or the marker does not come to rest.
pub async fn repair(store: &Store, place: &Place, difference: &Difference) -> Result<bool> {
    if matches!(difference, Difference::Newer(_)) {
        return Ok(false);
    }
    store.index(&place.prefix, place.step).await?;
    Ok(true)
}

/// Compare all steps, this many at a time, and repair them if asked to; `report` hears of each what came of it. One that
/// fails does not keep the others from it.
pub async fn reindex(
    store: &Store,
    places: Vec<Place>,
    parallel: usize,
    is_writing: bool,
    mut report: impl FnMut(&Place, Result<Compared>),
) {
    let compared = stream::iter(places).map(|place| async move {
        let compared = async {
            let difference = compare(store, &place).await?;
            let is_repaired = match &difference {
                Some(difference) if is_writing => repair(store, &place, difference).await?,
                _ => false,
            };
            Ok(Compared { difference, is_repaired })
        };
        let compared = compared.await;
        (place, compared)
    });
    let heard = compared.buffer_unordered(parallel).for_each(|(place, compared)| {
        report(&place, compared);
        future::ready(())
    });
    heard.await;
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "step {} of {}", self.step, self.prefix)
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("missing"),
            Self::Stale => f.write_str("stale"),
            Self::Orphaned => f.write_str("orphaned"),
            Self::Undigested => f.write_str("undigested"),
            Self::Newer(version) => write!(f, "of index version {version}, which this release leaves alone"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use training_store::testing::{Bucket, ETAG, Treatment};

    const RUN: &str = "runs/team/r/framework=hf";

    fn marker(step: u64) -> (String, String) {
        let file = json!({"path": format!("checkpoint-{step}/a"), "size": 4});
        let marker = json!({"framework": "hf", "step": step, "saved_at": 1.5, "files": [file]});
        (format!("{RUN}/checkpoints/step-{step:06}.json"), marker.to_string())
    }

    fn entry_key(step: u64) -> String {
        format!("{RUN}/index/v1/{:012}", Step::MAX - step)
    }

    /// Steps 1 to 4: as it should be, without entry, with another's entry, with an entry only; 5 is of a later release.
    async fn bucket() -> Bucket {
        let bucket = Bucket::holding((1..=3).map(marker));
        let foreign = [
            "runs/_jobs/training/r/framework=hf/checkpoints/step-000001.json",
            "runs/team/r/framework=hf/checkpoints/step-000009/a",
            "runs/team/r/framework=hf/checkpoints/step-7.json",
            "runs/team/r/framework=hf/index/v1/README",
            "runs/team/other/notes.txt",
            "runs//notes.txt",
        ];
        for key in foreign {
            bucket.write(key, "{}");
        }
        for step in 1..=3 {
            bucket.write(&format!("{RUN}/checkpoints/checkpoint-{step}/a"), "data");
            bucket.store().index(&prefix(), Step::new(step).expect("a step")).await.expect("indexed");
        }
        bucket.remove(&entry_key(2));
        let first = bucket.body(&entry_key(1)).expect("an entry");
        bucket.write(&entry_key(3), &first);
        bucket.write(&entry_key(4), &first);
        bucket.write(&entry_key(5), r#"{"index": 2}"#);
        bucket
    }

    fn prefix() -> RunPrefix {
        format!("s3://bucket/{RUN}").parse().expect("a prefix")
    }

    async fn run(bucket: &Bucket, is_writing: bool) -> Vec<(u64, String, bool)> {
        let store = bucket.store();
        let runs = found(&store, &["s3://bucket/runs"]).await;
        assert_eq!(runs, [prefix()]);
        let mut heard = Vec::new();
        let places = places(&store, &runs[0]).await.expect("places");
        let report = |place: &Place, compared: Result<Compared>| {
            let Compared { difference, is_repaired } = compared.expect("compared");
            heard.push((place.step.get(), difference.map(|found| found.to_string()).unwrap_or_default(), is_repaired));
        };
        reindex(&store, places, 2, is_writing, report).await;
        heard.sort();
        heard
    }

    #[tokio::test]
    async fn what_differs_is_told_and_repaired_only_when_asked() {
        let bucket = bucket().await;
        let before = bucket.objects("");
        let newer = "of index version 2, which this release leaves alone";
        let differing = [(2, "missing"), (3, "stale"), (4, "orphaned"), (5, newer)];
        let expected = |repaired: &[u64]| {
            let rows = differing.map(|(step, what)| (step, what.to_owned(), repaired.contains(&step)));
            [vec![(1, String::new(), false)], rows.to_vec()].concat()
        };
        assert_eq!(run(&bucket, false).await, expected(&[]));
        assert_eq!(bucket.objects(""), before, "nothing is written unless asked");
        assert_eq!(run(&bucket, true).await, expected(&[2, 3, 4]));
        let left: Vec<_> = run(&bucket, false).await.into_iter().filter(|(_, what, _)| !what.is_empty()).collect();
        assert_eq!(left, [(5, newer.to_owned(), false)]);
        assert_eq!(bucket.body(&entry_key(5)).as_deref(), Some(r#"{"index": 2}"#));
        let others = |objects: std::collections::BTreeMap<String, String>| {
            objects.into_iter().filter(|(key, _)| !key.contains("/index/v1/9")).collect::<Vec<_>>()
        };
        assert_eq!(others(bucket.objects("")), others(before), "nothing but entries is written");
    }

    #[tokio::test]
    async fn an_entry_that_cannot_be_read_is_repaired_even_where_it_is_what_its_marker_says() {
        let (marker_key, marker) = marker(1);
        let bucket = Bucket::holding([(marker_key.clone(), marker.clone())]);
        let step = Step::new(1).expect("a step");
        bucket.store().index(&prefix(), step).await.expect("indexed");
        let entry = bucket.body(&entry_key(1)).expect("an entry");
        // As releases wrote it that took any depth.
        let metrics = format!(r#""metrics":{{"x":{}{}}}"#, "[".repeat(126), "]".repeat(126));
        let deep_entry = entry.replace(r#""metrics":{}"#, &metrics);
        let deep_marker = format!("{{{metrics},{}", marker.trim_start_matches('{'));
        for (case, marker, difference) in
            [("the marker too", &deep_marker, "orphaned"), ("not the marker", &marker, "stale")]
        {
            bucket.write(&marker_key, marker);
            let etag = |etag: &str| serde_json::to_string(etag).expect("a text");
            let its_own = etag(&bucket.etag(&marker_key).expect("a marker"));
            bucket.write(&entry_key(1), &deep_entry.replace(&etag(ETAG), &its_own));
            let body = bucket.body(&entry_key(1)).expect("an entry");
            assert!(IndexEntry::parse(body.as_bytes()).is_err(), "{case}");
            assert_eq!(run(&bucket, true).await, [(1, difference.to_owned(), true)], "{case}");
            bucket.store().index_page(&prefix(), 5, None).await.expect("an index");
        }
    }

    #[tokio::test]
    async fn a_run_can_be_named_itself() {
        let store = bucket().await.store();
        assert_eq!(found(&store, &[&prefix().to_string(), "s3://bucket/runs/team"]).await, [prefix()]);
        assert_eq!(found(&store, &["s3://bucket"]).await, [prefix()]);
    }

    async fn found(store: &Store, uris: &[&str]) -> Vec<RunPrefix> {
        let uris: Vec<_> = uris.iter().map(|uri| uri.parse().expect("a URI")).collect();
        runs(store, &uris, |folder, error| unreachable!("{folder}: {error}")).await
    }

    #[tokio::test]
    async fn what_fails_is_told_and_keeps_nothing_else_from_repair() {
        let bucket = bucket().await;
        let store = bucket.store_judged_by(|call| {
            let is_denied = call.key.ends_with("step-000002.json") || call.key == "runs/closed/";
            std::future::ready(if is_denied { Treatment::Refuse(403, "AccessDenied") } else { Treatment::Serve })
        });
        bucket.write("runs/closed/r/framework=hf/owner", "{}");
        let mut closed = Vec::new();
        let uris = ["s3://bucket/runs".parse().expect("a URI")];
        let runs = runs(&store, &uris, |folder, _| closed.push(folder.to_string())).await;
        assert_eq!((runs, closed), (vec![prefix()], vec!["s3://bucket/runs/closed".to_owned()]));
        let (mut failed, mut repaired) = (Vec::new(), Vec::new());
        let places = places(&store, &prefix()).await.expect("places");
        let report = |place: &Place, compared: Result<Compared>| match compared {
            Ok(compared) => repaired.extend(compared.is_repaired.then_some(place.step.get())),
            Err(_) => failed.push(place.step.get()),
        };
        // One after the other, so that what comes after the failure is told from what went before.
        reindex(&store, places, 1, true, report).await;
        assert_eq!((failed, repaired), (vec![2], vec![3, 4]));
    }
}
