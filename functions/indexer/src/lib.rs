//! From an S3 event to index entries.
//!
//! ```text
//! event (bare, or by EventBridge, SNS or SQS) ─> markers ─> store: read the marker, list its files ─> entry and digest
//! ```
//! The [`Indexer`] has a store, and the bases below which markers count. An [`EventError`] says why an event has to be
//! redelivered, and a [`BatchAnswer`] which messages of a batch. The rules of an entry are `training_run`'s, the calls
//! `training_store`'s.
//!
//! An event that is of no use is logged and acknowledged: delivering it again would change nothing. A failure outside is
//! an error, so that Lambda delivers it again and at last puts it into the dead-letter queue. So is an event that this
//! release cannot read, because there may be a marker in it.

use serde::Serialize;
use thiserror::Error;
use tracing::{error, info, warn};
use training_core::cause::chain;
use training_run::{
    layout::S3Uri,
    s3_event::{Delivery, MarkerEvent, Unusable},
};
use training_store::{Found, IndexingError, Store};

/// Writes the index.
#[derive(Clone, Debug)]
pub struct Indexer {
    /// The buckets of the runs.
    pub store: Store,
    /// Where runs are; markers elsewhere are not indexed.
    pub runs_base_uris: Vec<S3Uri>,
}

/// Why an event has to be redelivered.
#[derive(Debug, Error)]
pub enum EventError {
    /// A checkpoint could not be indexed.
    #[error(transparent)]
    Indexing(#[from] IndexingError),
    /// There may be a marker in it that cannot be seen.
    #[error("cannot read {0}")]
    Unreadable(Unusable),
}

/// Which messages of a batch have to be redelivered. It counts only where the queue's event source mapping has
/// `ReportBatchItemFailures`; elsewhere Lambda takes any answer for a success.
///
/// Source: AWS Lambda Developer Guide, "Implementing partial batch responses".
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BatchAnswer {
    /// Those that failed.
    pub batch_item_failures: Vec<BatchItemFailure>,
}

/// A message that has to be redelivered.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BatchItemFailure {
    /// Its id.
    pub item_identifier: String,
}

// === impl Indexer ===

impl Indexer {
    /// Index every checkpoint that an event names; the answer is for SQS alone.
    ///
    /// # Errors
    /// The event, or each message of a batch, has to be redelivered. What could be indexed was.
    pub async fn handle(&self, event: &serde_json::Value) -> Result<Option<BatchAnswer>, EventError> {
        let messages = match Delivery::parse(event, &self.runs_base_uris) {
            Delivery::Event(records) => return self.index(records).await.map(|()| None),
            Delivery::Messages(messages) => messages,
        };
        let (mut succeeded, mut failure, mut batch_item_failures) = (0, None, Vec::new());
        for message in messages {
            match self.index(message.records).await {
                Ok(()) => succeeded += 1,
                Err(error) => {
                    batch_item_failures.push(BatchItemFailure { item_identifier: message.id });
                    failure = Some(error);
                }
            }
        }
        match failure {
            // The same to a queue that understands the answer, and nothing is lost from one that does not.
            Some(error) if succeeded == 0 => Err(error),
            _ => Ok(Some(BatchAnswer { batch_item_failures })),
        }
    }

    /// Index each of the markers, whatever comes of the others.
    async fn index(&self, records: Vec<Result<MarkerEvent, Unusable>>) -> Result<(), EventError> {
        let mut failure = None;
        for record in records {
            let marker = match record {
                Ok(marker) => marker,
                Err(reason) if reason.may_hide_a_marker() => {
                    error!("failed to read {reason}: it will be redelivered");
                    failure = Some(EventError::Unreadable(reason));
                    continue;
                }
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
                // The other records are still worth handling; the event is redelivered for this one.
                Err(error) => {
                    error!(run, step, cause = chain(&error), "failed: the event will be redelivered");
                    failure = Some(error.into());
                }
            }
        }
        failure.map_or(Ok(()), Err)
    }
}
