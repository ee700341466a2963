//! openapi.json: the description of the API, made of the types that it describes. `make openapi` writes the file, and a test
//! compares it with what is made here. The functions only serve the file, and contain nothing of this crate. The reference of
//! the request's fields is made of it too.
//!
//! ```text
//! Route ─> operation ─> paths ──────┐
//! types ─> schemas ─> components ───┴─> openapi.json ─> docs/reference/request-fields.md
//! ```

mod document;
mod examples;
mod operation;
mod reference;
mod request;
mod routes;
mod schemas;
#[cfg(test)]
mod tests;

pub use document::text;
pub use reference::request_fields;
