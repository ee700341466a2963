//! From an S3 event to index entries.
//!
//! An event that is of no use is logged and acknowledged: delivering it again would change nothing. A failure outside is
//! an error, so that Lambda delivers it again and at last puts it into the dead-letter queue.

use tracing::{error, info, warn};
use training_core::{
    cause::chain,
    index::IndexEntry,
    layout::{RunKey, S3Uri},
    marker::{Marker, MarkerError},
    s3_event::{self, MarkerEvent},
};
use training_store::{Object, Store, StoreError};

/// A marker that changes this often while it is indexed is left to its next events.
const ROUNDS: usize = 5;

/// Writes the index.
pub(crate) struct Indexer {
    pub(crate) store: Store,
    pub(crate) runs_base_uris: Vec<S3Uri>,
}

/// What an event came to.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Indexed,
    Removed,
    Refused(MarkerError),
}

/// Why an event has to come again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IndexingError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the marker `{0}` changed {ROUNDS} times while it was indexed")]
    Restless(String),
}

// === impl Indexer ===

impl Indexer {
    pub(crate) async fn handle(&self, event: serde_json::Value) -> Result<(), lambda_runtime::Error> {
        let mut failure = None;
        for record in s3_event::parse(&event, &self.runs_base_uris) {
            let marker = match record {
                Ok(marker) => marker,
                Err(reason) => {
                    warn!("ignored {reason}");
                    continue;
                }
            };
            let (run, step) = (marker.prefix.to_string(), marker.step.get());
            match self.index(&marker).await {
                Ok(Outcome::Refused(reason)) => warn!(run, step, "ignored a marker that cannot be used: {reason}"),
                Ok(outcome) => info!(run, step, "{outcome:?} the checkpoint"),
                // The other records are still worth handling; the event comes again for this one.
                Err(error) => {
                    error!(run, step, cause = chain(&error), "failed: the event will come again");
                    failure = Some(error);
                }
            }
        }
        failure.map_or(Ok(()), |error| Err(error.into()))
    }

    /// Make the entry what the marker says now. The marker is looked at again after each write, so that of two indexers
    /// at work on one checkpoint the one that wrote last has seen the newest marker.
    async fn index(&self, event: &MarkerEvent) -> Result<Outcome, IndexingError> {
        let MarkerEvent { prefix, step } = event;
        let bucket = prefix.bucket();
        let marker_key = prefix.key(&RunKey::Marker(*step));
        let entry_key = prefix.key(&RunKey::IndexEntry(*step));
        for _ in 0..ROUNDS {
            let object = self.store.get(bucket, &marker_key).await?;
            let outcome = if let Some(object) = &object {
                self.index_marker(event, object, &entry_key).await?
            } else {
                self.store.delete(bucket, &entry_key).await?;
                Outcome::Removed
            };
            if self.store.etag(bucket, &marker_key).await? == object.map(|object| object.etag) {
                return Ok(outcome);
            }
        }
        Err(IndexingError::Restless(marker_key))
    }

    async fn index_marker(
        &self,
        MarkerEvent { prefix, step }: &MarkerEvent,
        object: &Object,
        entry_key: &str,
    ) -> Result<Outcome, IndexingError> {
        let bucket = prefix.bucket();
        let marker = match Marker::parse_at(&object.body, prefix, *step) {
            Ok(marker) => marker,
            Err(reason) => {
                // What stands there is no checkpoint (any more).
                self.store.delete(bucket, entry_key).await?;
                return Ok(Outcome::Refused(reason));
            }
        };
        let folder = prefix.checkpoints_folder();
        let listing = if marker.files.as_ref().is_some_and(|files| !files.is_empty()) {
            self.store.list_files(bucket, &folder, &format!("{folder}{}", marker.listing_prefix())).await?
        } else {
            Vec::new()
        };
        let entry = IndexEntry::new(prefix, &marker, object.etag.clone(), &listing);
        self.store.put(bucket, entry_key, entry.to_body()).await?;
        Ok(Outcome::Indexed)
    }
}
