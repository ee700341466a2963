//! The node's configuration: one JSON file written by whoever starts the node, with absolute paths.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use serde::Deserialize;

/// Everything the node has to be told.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// Name of the Node object, and the `spec.nodeName` of the pods to run.
    pub(crate) node_name: String,
    /// How to reach the API server.
    pub(crate) kubeconfig: PathBuf,
    /// Where the log server listens; a loopback address.
    pub(crate) listen: SocketAddr,
    /// The CA that signed the API server's client certificate. With it, nobody else is served logs.
    #[serde(default)]
    pub(crate) client_ca: Option<PathBuf>,
    /// One folder per pod, which lives as long as the pod.
    pub(crate) pods_dir: PathBuf,
    /// What stands for `/opt/trainer` in the trainer image.
    pub(crate) trainer_dir: PathBuf,
    /// What stands for the trainer image: the `bin` folder of its Python environment.
    pub(crate) trainer_bin: PathBuf,
    /// The name of the trainer image.
    pub(crate) trainer_image: String,
    /// Models that the trainer finds without a download.
    pub(crate) model_dir: PathBuf,
    /// The program that every container of the image `stub` runs.
    pub(crate) stub_binary: PathBuf,
    /// The emulator that stands for AWS.
    pub(crate) aws_endpoint_url: String,
    /// The region of everything in it.
    pub(crate) aws_region: String,
    /// The role whose session the containers get, as EKS Pod Identity would give it.
    pub(crate) trainer_role_arn: String,
    /// How many pods of the trainer image run at once; the rest wait as `ContainerCreating`.
    pub(crate) running_trainers_limit: usize,
    /// The first delay of the restart back-off and of the pull back-off.
    pub(crate) back_off_base_seconds: u64,
}

// === impl Config ===

impl Config {
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let config: Self = serde_json::from_str(&text).with_context(|| format!("{} is not valid", path.display()))?;
        ensure!(config.listen.ip().is_loopback(), "listen must be a loopback address, not {}", config.listen);
        ensure!(config.running_trainers_limit > 0, "running_trainers_limit must be at least 1");
        Ok(config)
    }
}
