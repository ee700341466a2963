//! What lies in the bucket: the names, keys and bodies of a run's objects, and the rules by which they are read. Pure, and
//! shared with the trainer, which has those that it needs in Python: `tests/contract` holds both to them. FORMAT.md is the
//! specification.
//!
//! ```text
//! base ─── record            which job was made for a submission
//! run ──── owner             which submission may write
//!  ├── submission ─ attempts, progress, logs, config and data, model
//!  └── step ─────── marker ─> checkpoint (its files) ─> entry and digest of the index
//!                      └──── lineage: which checkpoints count, and from which one a submission resumes
//! S3 event ─> the marker that may have changed
//! ```
//! The domain's objects:
//!
//! - [`names::RunId`], [`names::Framework`], [`names::Namespace`], [`names::JobName`], [`names::Submission`] and
//!   [`names::Step`] name things.
//! - [`layout::S3Uri`] is a base or another place in S3; [`layout::RunPrefix`] and [`layout::RunKey`] say where a run's
//!   objects lie.
//! - [`owner::Owner`] says whose a run is, and [`owner::JobRecord`] that a job was created. An [`owner::Claimant`] is a
//!   request that would own the run, and an [`owner::LeaseState`] whether it may, by its [`owner::Evidence`] of the
//!   [`owner::OwnersJob`]. An [`owner::Write`] says whether a trainer may write.
//! - [`marker::Marker`] is a checkpoint: its [`marker::File`]s, its [`marker::State`], and the [`marker::Parent`] that was
//!   resumed. [`entry::IndexEntry`] and [`digest::Digest`] are what the index has of it.
//! - [`lineage::Known`] is what choosing needs of a checkpoint, and [`lineage::Lineage`] which checkpoints count.
//!   [`lineage::candidates`] orders them by a [`lineage::Preference`]: the newest first, or the best by a [`lineage::Mode`].
//! - [`attempt::Attempt`] is a start of a submission, [`attempt::Cause`] why it ended, and [`progress::Progress`] how far
//!   training is. What the trainer alone reads, such as `config/<submission>/data.json`, has a key here and no type.
//! - [`s3_event::Delivery`] is what the indexer is invoked with, and [`s3_event::MarkerEvent`] one marker that it names.

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
