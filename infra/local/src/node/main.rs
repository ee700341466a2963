//! The twin's node: runs the pods that the scheduler assigns to it as processes of this machine, by the kubelet's
//! rules, and serves their logs. It stands for the machines of a cluster. The API server, the scheduler and the
//! operator are the real ones.
//!
//! ```text
//! API server ── its pods ──> assignments ──> pod (a task each) ──> container ──> runner ──> shim ──> program
//!     ^                                        │                                              └─> log, exit (files)
//!     └──────────────── status ── publisher <──┘                                                        │
//!     └──────────────── logs ────────────────────────────────────────────────────── server <────────────┘
//! ```
//! The objects: the `Node` has the pods that are assigned to it. A `Container` has had some attempts, each in an
//! `AttemptFolder`; a `Runner` carries them out, as the `Image` says. A `PodView` with its `ContainerView`s is what a status
//! is made of, and a `Publisher` what the API server has of one pod.
//!
//! The node does not isolate: a container sees this machine's files and network. Only its processes are its own.
//!
//! SIGTERM ends the containers with five seconds of grace, and then the node. The next node finds them ended and
//! applies their restart policy, as after a reboot. A node that is killed leaves its containers running, as a kubelet
//! does, and the next node adopts them. Nothing outlives the twin, because all its processes are in one namespace.

mod admission;
mod assignments;
mod attempt;
mod back_off;
mod config;
mod container;
mod credentials;
mod environment;
mod events;
mod expansion;
mod images;
mod leftovers;
mod log_format;
mod logs;
mod pod;
mod ports;
mod process;
mod publisher;
mod references;
mod registration;
mod runner;
mod server;
mod shared_state;
mod shim;
mod short_paths;
mod status;
mod termination;

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use clap::{Parser, Subcommand};
use kube::{
    Client,
    config::{KubeConfigOptions, Kubeconfig},
};
use tokio::{
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
    task,
};
use tracing::{info, level_filters::LevelFilter};
use tracing_subscriber::{filter::Targets, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use crate::{config::Config, shared_state::Node};

/// The grace period of the containers when the twin stops.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// The twin's node.
#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Arguments {
    /// The configuration file.
    #[arg(long)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<InternalCommand>,
}

#[derive(Debug, Subcommand)]
enum InternalCommand {
    /// Watch one container; the node starts it.
    #[command(hide = true)]
    Shim(shim::ShimArguments),
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    if let Some(InternalCommand::Shim(arguments)) = &arguments.command {
        return shim::run(arguments);
    }
    let Some(config) = arguments.config else { bail!("--config is required") };
    let lines = tracing_subscriber::fmt::layer().with_ansi(false).with_target(false).with_writer(std::io::stderr);
    // The client logs each failed request, and the caller logs it again with its meaning.
    let levels = Targets::new().with_default(LevelFilter::INFO).with_target("kube_client", LevelFilter::OFF);
    tracing_subscriber::registry().with(lines).with(levels).init();
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        bail!("another TLS provider is installed already");
    }
    Runtime::new()?.block_on(serve(Config::read(&config)?))
}

async fn serve(config: Config) -> anyhow::Result<()> {
    fs::create_dir_all(&config.pods_dir).with_context(|| format!("cannot make {}", config.pods_dir.display()))?;
    let kubeconfig = Kubeconfig::read_from(&config.kubeconfig)?;
    let client_config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    let node = Arc::new(Node::new(config, Client::try_from(client_config)?).await?);
    let listener = server::listen(&node)?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    info!("node {} serves logs on {}", node.config.node_name, node.config.listen);
    tokio::spawn(registration::run(Arc::clone(&node)));
    tokio::spawn(assignments::run(Arc::clone(&node)));
    tokio::select! {
        ended = server::run(Arc::clone(&node), listener) => ended,
        _ = terminate.recv() => stop(&node).await,
        _ = interrupt.recv() => stop(&node).await,
    }
}

/// The API server does not learn of the ends here. The next node finds and reports them, as after a reboot.
async fn stop(node: &Node) -> anyhow::Result<()> {
    info!("stopping");
    node.stop();
    let pods_dir = node.config.pods_dir.clone();
    task::spawn_blocking(move || leftovers::end_everything(&pods_dir, STOP_GRACE)).await?;
    Ok(())
}
