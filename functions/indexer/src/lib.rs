//! From an S3 event to index entries.
//!
//! An event that is of no use is logged and acknowledged: delivering it again would change nothing. A failure outside is
//! an error, so that Lambda delivers it again and at last puts it into the dead-letter queue.

use serde_json::Value;
use tracing::{error, info, warn};
use training_core::{cause::chain, layout::S3Uri, s3_event};
use training_store::{Found, IndexingError, Store};

/// Writes the index.
#[derive(Clone, Debug)]
pub struct Indexer {
    /// The buckets of the runs.
    pub store: Store,
    /// Where runs are; markers elsewhere are not indexed.
    pub runs_base_uris: Vec<S3Uri>,
}

// === impl Indexer ===

impl Indexer {
    /// Index every checkpoint that an event names.
    ///
    /// # Errors
    /// One of them could not be indexed: the event has to come again. The others were.
    pub async fn handle(&self, event: &Value) -> Result<(), IndexingError> {
        let mut failure = None;
        for record in s3_event::parse(event, &self.runs_base_uris) {
            let marker = match record {
                Ok(marker) => marker,
                Err(reason) => {
                    warn!("ignored {reason}");
                    continue;
                }
            };
            let (run, step) = (marker.prefix.to_string(), marker.step.get());
            match self.store.index(&marker.prefix, marker.step).await {
                Ok(Found::Checkpoint(entry)) => info!(run, step, state = ?entry.state, "indexed the checkpoint"),
                Ok(Found::Nothing) => info!(run, step, "removed the checkpoint"),
                Ok(Found::Unusable(reason)) => warn!(run, step, "ignored a marker that cannot be used: {reason}"),
                // The other records are still worth handling; the event comes again for this one.
                Err(error) => {
                    error!(run, step, cause = chain(&error), "failed: the event will come again");
                    failure = Some(error);
                }
            }
        }
        failure.map_or(Ok(()), Err)
    }
}
