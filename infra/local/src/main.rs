//! The local twin: the whole system on this machine. Only AWS and the machines of the cluster are simulated.
//!
//! ```text
//! twin up ──starts──> twin supervise ──runs──> etcd <─ kube-apiserver <─ controller-manager, scheduler, operator, twin-node
//!    └─requests: .local/state/twin.sock ──┘        └──> ministack (the deployed template.yaml) <─ front
//!
//! deployed functions ──> proxies in the supervisor (faults, `twin fault`) ──> kube-apiserver, ministack
//! ```
//!
//! The objects:
//!
//! - A `Component` is a process that is kept running, and its `Spec` says how it is started, probed and stopped. The
//!   `Supervisor` has all of them, in an `Order` by what each one depends on.
//! - A `Request` reaches the supervisor by its socket, and a `Report` says how each component is.
//! - A `Fault` is what fails, for which requests and how long. `Faults` are those of one proxy, and `Proxies` has both.
//! - A `Deployment` is what the twin has to know of the deployed template.
//!
//! Servers listen on 127.0.0.1 only. All files lie below `.local`. No process outlives the supervisor.

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
mod program;
mod setup;
mod spec;
mod supervisor;

use std::process::ExitCode;

use anyhow::{Result, anyhow};
use clap::Parser;

use crate::{
    cli::{
        arguments::{Arguments, Command, FaultCommand},
        commands, connection, demo,
    },
    control::Request,
    faults::fault::Target,
    paths::Paths,
    supervisor::server,
};

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
    connection::request(&request).await.map(|_| ())
}
