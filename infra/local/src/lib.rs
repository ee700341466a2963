//! A running twin as its callers see it. The demo and the end-to-end tests go this way and no other.
//!
//! ```text
//! .local/env ─> Twin ─┬─ requests, with the token ─> API_URL ─> Answer
//!                     └─ s3, as the account's root ─> the runs bucket
//! ```
//! A [`Twin`](client::Twin) is a caller of it, and an [`Answer`](client::Answer) what the API said. The twin itself is the
//! program in `main.rs`. This library starts nothing.

pub mod client;
