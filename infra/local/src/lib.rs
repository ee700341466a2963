//! A running twin as its callers see it. The demo and the end-to-end tests go this way and no other.

pub mod client;
