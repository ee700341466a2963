//! Faults between the functions and their upstream services, for tests: `twin fault`. Two proxies carry them out.

pub(crate) mod active;
pub(crate) mod fault;
pub(crate) mod proxies;
pub(crate) mod proxy;
