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
//!
//! The domain's objects, room by room:
//!
//! - A [`TokenSet`](access::token::TokenSet) holds the tokens that count, and a [`Caller`](access::caller::Caller) is what
//!   one of them may do.
//! - A [`TrainingJobRequest`](request::TrainingJobRequest) is a body that keeps the deployment's
//!   [`Rules`](request::Rules); its [`Fingerprint`](request::fingerprint::Fingerprint) knows an equal request.
//! - A [`PyTorchJob`](job::pytorchjob::PyTorchJob) is built of a request, of what the deployment adds
//!   ([`Platform`](job::manifest::Platform)) and of what the submission adds ([`Origin`](job::manifest::Origin), with its
//!   [`Start`](job::manifest::Start)).
//! - The [`Protocol`](job::protocol::Protocol) says which [`Call`](job::protocol::Call) comes next until there is exactly
//!   one job, and which [`Ending`](job::protocol::Ending) the request has. A [`Decision`](job::replay::Decision) says what
//!   becomes of the job that has its name already.
//! - [`Provenance`](job::provenance::Provenance) says whether this API made a job, [`Status`](job::status::Status) how it
//!   is, in one word, and a [`Diagnosis`](job::diagnosis::Diagnosis) why it does not run. A
//!   [`TrainingJobStatus`](job::status::TrainingJobStatus) is the answer that has them all.
//! - A [`Route`](api::route::Route) is what a request asks for, and a [`Problem`](api::problem::Problem) a refusal or a
//!   failure as a caller sees it.

pub mod access;
pub mod api;
pub mod cause;
pub mod job;
pub mod nearest;
pub mod request;
pub mod settings;
