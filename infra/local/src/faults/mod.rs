pub(crate) mod active;
pub(crate) mod fault;
pub(crate) mod proxies;
pub(crate) mod proxy;
