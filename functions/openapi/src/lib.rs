//! openapi.json: the description of the API, made of the types that it describes. `make openapi` writes the file, and a test
//! compares it with what is made here. The functions only serve the file, and contain nothing of this crate. The reference of
//! the request's fields is made of it too.
//!
//! ```text
//! Route ─> operation ─> paths ──────┐
//! types ─> schemas ─> components ───┴─> openapi.json ─> docs/reference/request-fields.md
//! ```
//! An `Operation` is what is told of one route beside its path and method, and its `Access` says who may call it. `Schemas`
//! collect the types that operations ask for; `RequestBody` is the one type that is described by core's table of fields.
//! [`text`] is the whole document, and [`request_fields`] the reference.

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
