//! Who may do what: the tokens of the secret, the callers that they stand for, and the namespaces that are served.

pub mod caller;
pub mod namespaces;
pub mod token;
