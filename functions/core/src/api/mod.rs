//! What callers see: routes and their queries, answers and their links, and every problem.
//!
//! ```text
//! method, path ─> route ─┐              ┌─> checkpoints, dry_run, readiness (a job's status: crate::job) ─> links
//! query string ─> query ─┴─> a handler ─┤
//!                                       └─> problem: code, status, words
//! ```
//! The handlers are submit's and status'. `openapi.json` is made of these types by the crate `openapi`.

pub mod checkpoints;
pub mod dry_run;
pub mod links;
pub mod problem;
pub mod query;
pub mod readiness;
pub mod route;
