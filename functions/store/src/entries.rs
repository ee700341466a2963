//! One step's index entry and its digest: what its marker and its files say now, and the writes that make them so.
//!
//! The indexer does this for each event and `reindex` for each step that differs, so that the two cannot disagree.

use futures::future;
use thiserror::Error;
use training_run::{
    digest::Digest,
    entry::IndexEntry,
    layout::{MAX_KEY_BYTES, RunKey, RunPrefix},
    marker::{self, File, Marker, MarkerError, State},
    names::Step,
};

use crate::{Identity, Read, Store, StoreError, Withheld};

/// A marker that changes this often while it is indexed is left to its next events.
const ROUNDS: usize = 5;
/// Objects of a checkpoint's folder that are listed at most, in twenty pages: more than a marker can name. A file behind
/// more foreign ones counts as missing, so that a folder that is full of them cannot make each event cost without end.
const MAX_LISTED: usize = 20_000;

/// What stands at a step now.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    marker: Seen,
    /// What it is.
    pub found: Found,
}

/// Which marker was read.
#[derive(Clone, Debug, PartialEq)]
enum Seen {
    Nothing,
    Object(Identity),
    /// One that S3 does not give, nor say which it is.
    Withheld,
}

/// What was found of a step.
#[derive(Clone, Debug, PartialEq)]
pub enum Found {
    /// No marker.
    Nothing,
    /// A marker that cannot be used: what stands there is no checkpoint.
    Unusable(Unusable),
    /// A checkpoint; this is what the index should have of it.
    Checkpoint(IndexEntry),
}

/// Why a marker cannot be used, which no further delivery of its event would change.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Unusable {
    /// What it says is not a marker's.
    #[error("it {0}")]
    Content(#[from] MarkerError),
    /// Nobody is given it.
    #[error("it {0}")]
    Withheld(#[from] Withheld),
}

/// Why a step could not be indexed.
#[derive(Debug, Error)]
pub enum IndexingError {
    /// S3 did not do what was asked.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Somebody writes the marker all the time.
    #[error("the marker `{0}` changed {ROUNDS} times while it was indexed")]
    Restless(String),
}

// === impl Snapshot ===

impl Snapshot {
    fn is_incomplete(&self) -> bool {
        matches!(&self.found, Found::Checkpoint(entry) if entry.state == State::Incomplete)
    }
}

// === impl Store ===

impl Store {
    /// Read a step: its marker, and a listing of the files that the marker names. Where they are not there, the step may
    /// have been saved again in between, or deleted: then it is read again.
    ///
    /// # Errors
    /// S3 cannot be reached or denies the request.
    pub async fn snapshot(&self, prefix: &RunPrefix, step: Step) -> Result<Snapshot, StoreError> {
        let key = prefix.key(&RunKey::Marker(step));
        let mut look = self.snapshot_once(prefix, step).await?;
        for _ in 1..ROUNDS {
            if !look.is_incomplete() || self.is_still(prefix.bucket(), &key, &look.marker).await? {
                break;
            }
            look = self.snapshot_once(prefix, step).await?;
        }
        Ok(look)
    }

    async fn snapshot_once(&self, prefix: &RunPrefix, step: Step) -> Result<Snapshot, StoreError> {
        let key = prefix.key(&RunKey::Marker(step));
        let object = match self.read(prefix.bucket(), &key, marker::MAX_BYTES).await? {
            Read::Object(object) => object,
            Read::Nothing => return Ok(Snapshot { marker: Seen::Nothing, found: Found::Nothing }),
            Read::TooLarge(identity) => {
                return Ok(Snapshot {
                    marker: Seen::Object(identity),
                    found: Found::Unusable(MarkerError::TooLarge.into()),
                });
            }
            Read::Withheld(why) => return Ok(Snapshot { marker: Seen::Withheld, found: Found::Unusable(why.into()) }),
        };
        let found = match Marker::parse_at(&object.body, prefix, step) {
            Err(reason) => Found::Unusable(reason.into()),
            Ok(marker) => {
                let listing = self.list_checkpoint(prefix, &marker).await?;
                Found::Checkpoint(IndexEntry::new(prefix, &marker, object.identity.etag.clone(), &listing))
            }
        };
        Ok(Snapshot { marker: Seen::Object(object.identity), found })
    }

    /// Those of a marker's files that are there, and others of the same folder.
    async fn list_checkpoint(&self, prefix: &RunPrefix, marker: &Marker) -> Result<Vec<File>, StoreError> {
        let folder = prefix.checkpoints_folder();
        let listed = marker.listing_prefix();
        let keys = format!("{folder}{listed}");
        // There is no key of that length, and S3 takes no question about one.
        if listed.is_empty() || keys.len() > MAX_KEY_BYTES {
            return Ok(Vec::new());
        }
        // One file is the first of all keys that begin as its own does.
        let most = if listed.ends_with('/') { MAX_LISTED } else { 1 };
        self.list_files(prefix.bucket(), &folder, &keys, most).await
    }

    /// Whether the marker is still the one that was read.
    async fn is_still(&self, bucket: &str, key: &str, seen: &Seen) -> Result<bool, StoreError> {
        match seen {
            Seen::Nothing => Ok(self.identity(bucket, key).await?.is_none()),
            Seen::Object(identity) => Ok(self.identity(bucket, key).await?.as_ref() == Some(identity)),
            Seen::Withheld => Ok(matches!(self.read(bucket, key, marker::MAX_BYTES).await?, Read::Withheld(_))),
        }
    }

    /// Make the entry of a step and its digest what its marker says now. The marker is read again after the writes, so
    /// that of two who index one step the one that writes last has seen the newest marker.
    ///
    /// # Errors
    /// S3 cannot be reached or denies a request, or the marker does not come to rest. The entry may then be that of an
    /// older marker, until the step is indexed again.
    pub async fn index(&self, prefix: &RunPrefix, step: Step) -> Result<Found, IndexingError> {
        let bucket = prefix.bucket();
        let marker_key = prefix.key(&RunKey::Marker(step));
        let entry_key = prefix.key(&RunKey::IndexEntry(step));
        for _ in 0..ROUNDS {
            let Snapshot { marker, found } = self.snapshot_once(prefix, step).await?;
            let digest = match &found {
                Found::Checkpoint(entry) => digest_key(prefix, step, entry),
                Found::Nothing | Found::Unusable(_) => None,
            };
            // Listed after the marker was read, or one that an older marker's indexer wrote in between would stay. Without a
            // digest an entry is read itself, so what is there of an older one goes before its entry changes.
            let stale = self.digests_of(prefix, step).await?.into_iter().filter(|key| Some(key) != digest.as_ref());
            future::try_join_all(stale.map(|key| async move { self.delete(bucket, &key).await })).await?;
            match &found {
                Found::Checkpoint(entry) => self.put(bucket, &entry_key, entry.to_body()).await?,
                Found::Nothing | Found::Unusable(_) => self.delete(bucket, &entry_key).await?,
            }
            if let Some(key) = digest {
                self.put(bucket, &key, Vec::new()).await?;
            }
            if self.is_still(bucket, &marker_key, &marker).await? {
                return Ok(found);
            }
        }
        Err(IndexingError::Restless(marker_key))
    }

    /// The keys of all digests of a step: one, unless something is amiss.
    ///
    /// # Errors
    /// S3 cannot be reached or denies the request.
    pub async fn digests_of(&self, prefix: &RunPrefix, step: Step) -> Result<Vec<String>, StoreError> {
        self.list_all(prefix.bucket(), &prefix.key(&RunKey::IndexDigest(step, ""))).await
    }
}

/// The key of an entry's digest; `None` where it is none of S3: then the entry is read.
#[must_use]
pub fn digest_key(prefix: &RunPrefix, step: Step, entry: &IndexEntry) -> Option<String> {
    let key = prefix.key(&RunKey::IndexDigest(step, &Digest::of(entry).to_string()));
    (key.len() <= MAX_KEY_BYTES).then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Bucket, Treatment};
    use serde_json::json;

    const MARKER: &str = "runs/r/framework=hf/checkpoints/step-000005.json";

    fn prefix() -> RunPrefix {
        "s3://bucket/runs/r/framework=hf".parse().expect("a prefix")
    }

    fn file(attempt: usize) -> (String, String) {
        let path = format!("checkpoint-5/{attempt}/a");
        (format!("runs/r/framework=hf/checkpoints/{path}"), path)
    }

    fn save(bucket: &Bucket, attempt: usize) {
        let (key, path) = file(attempt);
        bucket.write(&key, "data");
        let files = json!([{"path": path, "size": 4, "etag": bucket.etag(&key)}]);
        let marker = json!({"framework": "hf", "step": 5, "saved_at": attempt, "files": files});
        bucket.write(MARKER, &marker.to_string());
    }

    /// The checkpoint that is seen, and with which requests, where the step is saved again this often, each time between
    /// the look at the marker and that at the files.
    async fn seen_beside(savings: usize) -> (Option<IndexEntry>, Vec<&'static str>) {
        let bucket = Bucket::default();
        save(&bucket, 0);
        let (trainer, saved) = (bucket.clone(), std::sync::Mutex::new(0));
        let store = bucket.store_judged_by(move |call| {
            let mut saved = saved.lock().expect("no panic");
            if call.verb == "LIST" && *saved < savings {
                *saved += 1;
                save(&trainer, *saved);
                trainer.remove(&file(*saved - 1).0);
            }
            std::future::ready(Treatment::Serve)
        });
        let found = store.checkpoint(&prefix(), Step::new(5).expect("a step")).await.expect("an answer");
        (found, bucket.take_traffic().calls.iter().map(|call| call.verb).collect())
    }

    #[tokio::test]
    async fn a_checkpoint_that_is_saved_again_meanwhile_is_not_taken_for_a_torn_one() {
        for savings in 1..ROUNDS {
            let (found, _) = seen_beside(savings).await;
            let found = found.expect("a checkpoint");
            let last = f64::from(u32::try_from(savings).expect("a small number"));
            assert_eq!((found.state, found.saved_at), (State::Complete, last), "{savings}");
        }
        let (found, calls) = seen_beside(usize::MAX).await;
        assert_eq!(found.map(|entry| entry.state), Some(State::Incomplete));
        assert_eq!(calls.len(), 3 * ROUNDS - 1, "it ends: {calls:?}");
        assert_eq!(seen_beside(0).await.1, ["GET", "LIST"], "nothing more where the files are there");
    }
}
