//! The node's configuration: a JSON file with absolute paths, which the supervisor writes.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use serde::Deserialize;

/// The settings of the node.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// Name of the Node object, and the `spec.nodeName` of the pods to run.
    pub(crate) node_name: String,
    /// The kubeconfig file that leads to the API server.
    pub(crate) kubeconfig: PathBuf,
    /// The address of the log server, on the loopback interface.
    pub(crate) listen: SocketAddr,
    /// The CA that signed the API server's client certificate. With it, the log server serves nobody else.
    #[serde(default)]
    pub(crate) client_ca: Option<PathBuf>,
    /// Has a folder for each pod, which lives as long as the pod.
    pub(crate) pods_dir: PathBuf,
    /// Stands for `/opt/trainer` in the trainer image.
    pub(crate) trainer_dir: PathBuf,
    /// Stands for the trainer image: the `bin` folder of its Python environment.
    pub(crate) trainer_bin: PathBuf,
    /// The name of the trainer image.
    pub(crate) trainer_image: String,
    /// Models that the trainer finds without a download.
    pub(crate) model_dir: PathBuf,
    /// The program that every container of the image `stub` runs.
    pub(crate) stub_binary: PathBuf,
    /// The URL of the emulator that stands for AWS.
    pub(crate) aws_endpoint_url: String,
    /// The AWS region in the emulator.
    pub(crate) aws_region: String,
    /// The role whose session the containers get, as EKS Pod Identity would give it.
    pub(crate) trainer_role_arn: String,
    /// How many pods of the trainer image run at once. The others wait in `ContainerCreating`.
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
