//! One step's index entry: what its marker and its files say now, and the write that makes it so.
//!
//! The indexer does this for each event and `reindex` for each step that differs, so that the two cannot disagree.

use thiserror::Error;
use training_core::{
    index::IndexEntry,
    layout::{MAX_KEY_BYTES, RunKey, RunPrefix},
    marker::{self, File, Marker, MarkerError},
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
pub struct Look {
    marker: Seen,
    /// What it is.
    pub found: Found,
}

/// Which marker was looked at.
#[derive(Clone, Debug, PartialEq)]
enum Seen {
    Nothing,
    Object(Identity),
    /// One that S3 does not give, nor say which it is.
    Withheld,
}

/// What a look at a step found.
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

// === impl Store ===

impl Store {
    /// Look at a step: its marker, and a listing of the files that the marker names.
    ///
    /// # Errors
    /// S3 cannot be reached or denies the request.
    pub async fn look(&self, prefix: &RunPrefix, step: Step) -> Result<Look, StoreError> {
        let key = prefix.key(&RunKey::Marker(step));
        let object = match self.read(prefix.bucket(), &key, marker::MAX_BYTES).await? {
            Read::Object(object) => object,
            Read::Nothing => return Ok(Look { marker: Seen::Nothing, found: Found::Nothing }),
            Read::TooLarge(identity) => {
                return Ok(Look {
                    marker: Seen::Object(identity),
                    found: Found::Unusable(MarkerError::TooLarge.into()),
                });
            }
            Read::Withheld(why) => return Ok(Look { marker: Seen::Withheld, found: Found::Unusable(why.into()) }),
        };
        let found = match Marker::parse_at(&object.body, prefix, step) {
            Err(reason) => Found::Unusable(reason.into()),
            Ok(marker) => {
                let listing = self.list_checkpoint(prefix, &marker).await?;
                Found::Checkpoint(IndexEntry::new(prefix, &marker, object.identity.etag.clone(), &listing))
            }
        };
        Ok(Look { marker: Seen::Object(object.identity), found })
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

    /// Whether the marker is still the one that was looked at.
    async fn is_still(&self, bucket: &str, key: &str, seen: &Seen) -> Result<bool, StoreError> {
        match seen {
            Seen::Nothing => Ok(self.identity(bucket, key).await?.is_none()),
            Seen::Object(identity) => Ok(self.identity(bucket, key).await?.as_ref() == Some(identity)),
            Seen::Withheld => Ok(matches!(self.read(bucket, key, marker::MAX_BYTES).await?, Read::Withheld(_))),
        }
    }

    /// Make the entry of a step what its marker says now. The marker is looked at again after the write, so that of two
    /// who index one step the one that writes last has seen the newest marker.
    ///
    /// # Errors
    /// S3 cannot be reached or denies a request, or the marker does not come to rest. The entry may then be that of an
    /// older marker, until the step is indexed again.
    pub async fn index(&self, prefix: &RunPrefix, step: Step) -> Result<Found, IndexingError> {
        let bucket = prefix.bucket();
        let marker_key = prefix.key(&RunKey::Marker(step));
        let entry_key = prefix.key(&RunKey::IndexEntry(step));
        for _ in 0..ROUNDS {
            let Look { marker, found } = self.look(prefix, step).await?;
            match &found {
                Found::Checkpoint(entry) => self.put(bucket, &entry_key, entry.to_body()).await?,
                Found::Nothing | Found::Unusable(_) => self.delete(bucket, &entry_key).await?,
            }
            if self.is_still(bucket, &marker_key, &marker).await? {
                return Ok(found);
            }
        }
        Err(IndexingError::Restless(marker_key))
    }
}
