//! The command line.

use std::net::SocketAddr;

use clap::{Parser, Subcommand};

use crate::{components::component::Component, faults::fault::Fault, names};

#[derive(Parser)]
#[command(name = "twin", about = "The whole system on this machine: the real components, simulated machines.")]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Makes the tools, starts all components and deploys. On a running twin, updates what has changed.
    Up {
        /// Starts the control plane, the operator and MiniStack only, and writes no .local/env.
        #[arg(long, hide = true)]
        bare: bool,
    },
    /// Stops everything and keeps the state (ports, cluster, bucket, deployment).
    Down,
    /// Stops everything and deletes the state.
    Clean {
        /// Deletes the tools too. The next start then takes minutes.
        #[arg(long)]
        all: bool,
    },
    /// Shows the state, process id, port and restarts of each component, and the active faults.
    Status {
        #[arg(long)]
        json: bool,
    },
    /// Starts a component that was stopped, and waits until it is ready.
    Start { component: Component },
    /// Stops a component and keeps it stopped.
    Stop { component: Component },
    /// Sends a signal to a pod's running container.
    Kill {
        pod: String,
        #[arg(long, default_value = "KILL")]
        signal: String,
        #[arg(long, default_value = "pytorch")]
        container: String,
        #[arg(long, default_value = names::NAMESPACE)]
        namespace: String,
    },
    /// Injects a fault between the functions and an upstream service, for tests. `twin status` shows the active faults.
    ///
    /// For example: `twin fault cluster answer 429 --header retry-after:7 --seconds 10`,
    /// `twin fault cluster lose --method POST --path /pytorchjobs --times 1`, `twin fault aws cut --service s3`.
    Fault {
        #[command(subcommand)]
        command: FaultCommand,
    },
    /// Runs the main job on a twin that is up, and shows each step.
    Demo,
    /// Runs the supervisor, the detached process that `up` starts.
    #[command(hide = true)]
    Supervise,
    /// Runs the front, which passes requests on to the deployed HTTP API.
    #[command(hide = true)]
    Front {
        #[arg(long)]
        listen: SocketAddr,
        #[arg(long)]
        upstream: String,
    },
}

#[derive(Subcommand)]
pub(crate) enum FaultCommand {
    /// Injects a fault between the functions and the Kubernetes API.
    Cluster(Fault),
    /// Injects a fault between the functions and AWS (S3, Secrets Manager, EKS).
    Aws(Fault),
    /// Ends all faults.
    Clear,
}
