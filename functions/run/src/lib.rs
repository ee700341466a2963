//! What lies in the bucket: the names, keys and bodies of a run's objects, and the rules by which they are read. Pure, and
//! shared with the trainer, which has those that it needs in Python: `tests/contract` holds both to them. FORMAT.md is the
//! specification.
//!
//! ```text
//! base ─── record            which job was made for a submission
//! run ──── owner             which submission may write
//!  ├── submission ─ attempts, progress, logs, model
//!  └── step ─────── marker ─> checkpoint (its files) ─> entry and digest of the index
//!                      └──── lineage: which checkpoints count, and from which one a submission resumes
//! S3 event ─> the marker that may have changed
//! ```
//! The domain's objects: [`names::RunId`], [`names::Submission`] and [`names::Step`] name things; [`layout::RunPrefix`] and
//! [`layout::RunKey`] say where they lie; [`owner::Owner`], [`owner::JobRecord`], [`marker::Marker`], [`entry::IndexEntry`],
//! [`digest::Digest`], [`attempt::Attempt`] and [`progress::Progress`] are what lies there; [`lineage::candidates`] chooses.

pub mod attempt;
pub mod digest;
pub mod entry;
mod json;
pub mod layout;
pub mod lineage;
pub mod marker;
pub mod names;
pub mod owner;
pub mod progress;
pub mod s3_event;
pub mod text;

pub use json::{MAX_STATEMENT_BYTES, StatementError};
