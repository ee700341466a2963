//! Who may do what: the tokens of the secret, the callers that they stand for, and the namespaces that are served.
//!
//! ```text
//! secret ─> TokenSecret ─> TokenSet ─┐
//! header's token ────────────────────┴─> Caller: scopes, namespaces ─┐
//! `namespace` of the query or body, or the default ──────────────────┴─> Namespaces ─> the job's namespace, or a problem
//! ```
//! When the secret is read, and what holds while it cannot be, is `training-http`'s.

pub mod caller;
pub mod namespaces;
pub mod token;
