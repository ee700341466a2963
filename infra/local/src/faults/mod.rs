pub(crate) mod fault;
pub(crate) mod proxy;
