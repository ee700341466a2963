//! What callers see: routes and their queries, answers and their links, and every problem.

pub mod checkpoints;
pub mod dry_run;
pub mod links;
pub mod problem;
pub mod query;
pub mod readiness;
pub mod route;
