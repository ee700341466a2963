//! The rules of the control plane as pure functions: no AWS, no Kubernetes client, no async, no clock, no environment.
//!
//! ```text
//! JSON body ─> request ─> manifest ─> PyTorchJob            S3 event ─> event ─> layout ─> marker ─> index entry
//!                                         │                                                           │
//!                     pods, progress ─> status <──────────────────────── checkpoints <────────────────┘
//!                                         └─> answer or problem
//! ```
//! What talks to the outside (`training-store`, `training-cluster`, `training-http`) depends on this crate, never the
//! other way round.

pub mod attempt;
pub mod caller;
pub mod cause;
pub mod checkpoints;
pub mod diagnosis;
pub mod digest;
pub mod dry_run;
pub mod events;
pub mod existing;
pub mod failure;
mod fields;
pub mod fingerprint;
pub mod image;
pub mod index;
pub mod layout;
pub mod lineage;
pub mod links;
pub mod logs;
pub mod manifest;
pub mod marker;
pub mod names;
pub mod namespace;
pub mod nearest;
#[cfg(test)]
mod openapi;
pub mod owner;
pub mod problem;
pub mod progress;
pub mod protocol;
pub mod provenance;
pub mod pytorchjob;
pub mod query;
pub mod readiness;
pub mod request;
pub mod route;
pub mod s3_event;
pub mod settings;
pub mod status;
pub mod strict_json;
pub mod text;
pub mod token;
