//! One step's index entry: what its marker and its files say now, and the write that makes it so.
//!
//! The indexer does this for each event and `reindex` for each step that differs, so that the two cannot disagree.

use thiserror::Error;
use training_core::{
    index::IndexEntry,
    layout::{RunKey, RunPrefix},
    marker::{Marker, MarkerError},
    names::Step,
};

use crate::{Identity, Store, StoreError};

/// A marker that changes this often while it is indexed is left to its next events.
const ROUNDS: usize = 5;

/// What stands at a step now.
#[derive(Clone, Debug, PartialEq)]
pub struct Look {
    /// Which marker was read.
    marker: Option<Identity>,
    /// What it is.
    pub found: Found,
}

/// What a look at a step found.
#[derive(Clone, Debug, PartialEq)]
pub enum Found {
    /// No marker.
    Nothing,
    /// A marker that cannot be used: what stands there is no checkpoint.
    Unusable(MarkerError),
    /// A checkpoint; this is what the index should have of it.
    Checkpoint(IndexEntry),
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
        let bucket = prefix.bucket();
        let Some(object) = self.get(bucket, &prefix.key(&RunKey::Marker(step))).await? else {
            return Ok(Look { marker: None, found: Found::Nothing });
        };
        let marker = Some(object.identity.clone());
        let found = match Marker::parse_at(&object.body, prefix, step) {
            Err(reason) => Found::Unusable(reason),
            Ok(marker) => {
                let listing = if marker.files.as_ref().is_some_and(|files| !files.is_empty()) {
                    let folder = prefix.checkpoints_folder();
                    self.list_files(bucket, &folder, &format!("{folder}{}", marker.listing_prefix())).await?
                } else {
                    Vec::new()
                };
                Found::Checkpoint(IndexEntry::new(prefix, &marker, object.identity.etag, &listing))
            }
        };
        Ok(Look { marker, found })
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
            if self.identity(bucket, &marker_key).await? == marker {
                return Ok(found);
            }
        }
        Err(IndexingError::Restless(marker_key))
    }
}
