//! What the twin makes, each thing once: tools, keys, configuration files, objects of the cluster, functions and their
//! deployment. Nothing here knows the components or the supervisor.

pub(crate) mod cluster_objects;
pub(crate) mod command;
pub(crate) mod deploy;
pub(crate) mod env_file;
pub(crate) mod functions;
pub(crate) mod kubeconfigs;
pub(crate) mod pki;
pub(crate) mod prepare;
pub(crate) mod progress;
pub(crate) mod stamp;
pub(crate) mod token_review;
pub(crate) mod tools;
