pub(crate) mod cluster_objects;
pub(crate) mod command;
pub(crate) mod deploy;
pub(crate) mod pki;
pub(crate) mod progress;
pub(crate) mod stamp;
pub(crate) mod tools;
