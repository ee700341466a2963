//! The local twin: the whole system on this machine, where only the machines are simulated.
//!
//! ```text
//! twin up ──starts──> twin supervise ──runs──> etcd <─ kube-apiserver <─ controller-manager, scheduler, operator, twin-node
//!    └──asks by .local/state/twin.sock ──┘        └──> ministack (the deployed template.yaml) <─ front
//!
//! deployed functions ──> proxies in the supervisor (faults, `twin fault`) ──> kube-apiserver, ministack
//! ```
//!
//! Servers listen on 127.0.0.1 only; everything is below `.local`; nothing outlives the supervisor.

mod cli;
mod components;
mod control;
mod faults;
mod front;
mod log_tail;
mod names;
mod paths;
mod ports;
mod private_file;
mod setup;
mod spec;
mod supervisor;

use std::{net::SocketAddr, process::ExitCode};

use anyhow::{Result, anyhow};
use clap::{Parser, Subcommand};

use crate::{
    cli::{commands, demo},
    components::component::Component,
    control::Request,
    faults::fault::{Fault, Target},
    paths::Paths,
    supervisor::server,
};

#[derive(Parser)]
#[command(name = "twin", about = "The whole system on this machine: the real components, simulated machines.")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Makes the tools, starts everything and deploys; on a running twin, brings up to date what has changed.
    Up {
        /// The control plane, the operator and MiniStack only: no node, no functions, no .local/env.
        #[arg(long, hide = true)]
        bare: bool,
    },
    /// Stops everything and keeps the state (ports, cluster, bucket, deployment).
    Down,
    /// Stops everything and deletes the state.
    Clean {
        /// Deletes the tools too: the next start takes minutes.
        #[arg(long)]
        all: bool,
    },
    /// Shows each component: state, process id, port, restarts.
    Status {
        #[arg(long)]
        json: bool,
    },
    /// Brings back a component that was stopped, and waits until it is ready.
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
    /// Lets something go wrong between the functions and what is behind them, for tests; `twin status` shows what does.
    ///
    /// For example: `twin fault cluster answer 429 --header retry-after:7 --seconds 10`,
    /// `twin fault cluster lose --method POST --path /pytorchjobs --times 1`, `twin fault aws cut --service s3`.
    Fault {
        #[command(subcommand)]
        command: FaultCommand,
    },
    /// Runs the main job on a twin that is up, and shows each step.
    Demo,
    /// The detached process behind `up`.
    #[command(hide = true)]
    Supervise,
    /// The listener in front of the HTTP API.
    #[command(hide = true)]
    Front {
        #[arg(long)]
        listen: SocketAddr,
        #[arg(long)]
        upstream: String,
    },
}

#[derive(Subcommand)]
enum FaultCommand {
    /// Between the functions and the Kubernetes API.
    Cluster(Fault),
    /// Between the functions and AWS (S3, Secrets Manager, EKS).
    Aws(Fault),
    /// Ends all faults now.
    Clear,
}

#[tokio::main]
async fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    match run(Arguments::parse().command).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("twin: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> Result<()> {
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .map_err(|_| anyhow!("a TLS provider is there already"))?;
    match command {
        Command::Up { bare } => commands::up(&Paths::find()?, bare).await,
        Command::Down => commands::down(&Paths::find()?).await,
        Command::Clean { all } => commands::clean(&Paths::find()?, all).await,
        Command::Status { json } => Paths::find().map(|_| commands::status(json))?.await,
        Command::Start { component } => ask(Request::Start { component }).await,
        Command::Stop { component } => ask(Request::Stop { component }).await,
        Command::Kill { pod, signal, container, namespace } => {
            ask(Request::Kill { pod, container, namespace, signal }).await
        }
        Command::Fault { command: FaultCommand::Cluster(fault) } => {
            ask(Request::Fault { target: Target::Cluster, fault }).await
        }
        Command::Fault { command: FaultCommand::Aws(fault) } => {
            ask(Request::Fault { target: Target::Aws, fault }).await
        }
        Command::Fault { command: FaultCommand::Clear } => ask(Request::ClearFaults).await,
        Command::Demo => demo::run(&Paths::find()?).await,
        Command::Supervise => server::run(Paths::find()?).await,
        Command::Front { listen, upstream } => front::serve(listen, upstream).await,
    }
}

async fn ask(request: Request) -> Result<()> {
    Paths::find()?;
    commands::request(&request).await.map(|_| ())
}
