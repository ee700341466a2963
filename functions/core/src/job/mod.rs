//! The job in the cluster: how it is made, who made it, and what its state means.
//!
//! ```text
//! request ─> manifest ─> pytorchjob      protocol, replay: what a request does about the job that has its name
//!            └ disk                      where work files lie
//! pytorchjob, pods ─> status, diagnosis  events, logs: what the cluster tells; failure: what the trainer's ledger tells
//! pytorchjob, bucket ─> provenance       whether this API made it; log_source: where a log is read
//! ```

pub mod diagnosis;
mod disk;
pub mod events;
pub mod failure;
pub mod log_source;
pub mod logs;
pub mod manifest;
pub mod protocol;
pub mod provenance;
pub mod pytorchjob;
pub mod replay;
pub mod status;
