//! The rules of the API as pure functions: no AWS, no Kubernetes client, no async, no clock, no environment.
//!
//! ```text
//! token ─> access ─┐
//! JSON body ───────┴─> request ─> job: manifest ─> PyTorchJob       (protocol: how a request becomes exactly one job)
//!                                          │
//!          pods, events, logs, attempts ─> job: status, diagnosis ─> api: answer or problem
//! ```
//! Four rooms: [`access`] is who may do what, [`request`] what was asked for, [`job`] what the cluster has and what it means,
//! [`api`] what callers see. Beside them stand three helpers: [`cause`] (errors in one line), [`nearest`] (misspelt words) and
//! [`settings`] (the functions' environment). What lies in the bucket is `training-run`. What talks to the outside (`training-store`,
//! `training-cluster`, `training-http`) depends on this crate, never the other way round.

pub mod access;
pub mod api;
pub mod cause;
pub mod job;
pub mod nearest;
pub mod request;
pub mod settings;
