//! The commands in the terminal. Most of their work is done by the supervisor, which gets a request.

use std::{
    fs,
    process::Child,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use tokio::{net::UnixStream, time::sleep};

use crate::{
    cli::{
        connection::{ask, connect},
        launch, process_ids,
        terminal::say,
    },
    control::{Report, Request},
    log_tail::tail,
    paths::Paths,
    program,
};

/// How long the twin may take to end. It is longer than `MiniStack` may take to save its state.
const END_WITHIN: Duration = Duration::from_mins(1);
const SOCKET_WITHIN: Duration = Duration::from_secs(15);

/// Starts a twin, or brings the running one up to date.
pub(crate) async fn up(paths: &Paths, bare: bool) -> Result<()> {
    if let Some(report) = report().await?
        && report.program != program::build()?
    {
        say("the twin itself was rebuilt: restarting it");
        down(paths).await?;
    }
    let stream = match connect().await {
        Some(stream) => stream,
        None => start(paths).await?,
    };
    ask(stream, &Request::Up { bare }).await.map(|_| ()).inspect_err(|_| {
        // The supervisor undoes an unfinished start. This only waits for it.
        let _ = launch::wait_for_end(paths, END_WITHIN);
    })
}

/// Stops everything and keeps the state.
pub(crate) async fn down(paths: &Paths) -> Result<()> {
    match connect().await {
        Some(stream) => ask(stream, &Request::Down).await.map(|_| ())?,
        None if launch::is_alive(paths)? => {}
        None => {
            say("the twin is not running");
            return Ok(());
        }
    }
    launch::wait_for_end(paths, END_WITHIN)?;
    say("the twin is stopped; its state is kept");
    Ok(())
}

/// Stops everything and deletes the state; with `all`, the tools too.
pub(crate) async fn clean(paths: &Paths, all: bool) -> Result<()> {
    down(paths).await?;
    let folders = if all { vec![paths.local()] } else { vec![paths.state(), paths.pods()] };
    for folder in folders {
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot delete {}", folder.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Prints the state of each component and the active faults.
pub(crate) async fn status(as_json: bool) -> Result<()> {
    let Some(stream) = connect().await else { bail!("the twin is not running; `make up` starts it") };
    let supervisor = stream.peer_cred()?.pid();
    let mut report: Report = serde_json::from_value(ask(stream, &Request::Status).await?)?;
    process_ids::translate(supervisor, &mut report.components);
    if as_json {
        say(&serde_json::to_string_pretty(&report)?);
        return Ok(());
    }
    say(&format!("{:<24} {:<9} {:>8} {:>6} {:>8}  last exit", "component", "state", "pid", "port", "restarts"));
    for component in report.components {
        let state = serde_json::to_value(component.state)?;
        let pid = component.pid.map_or_else(|| "-".to_string(), |pid| pid.to_string());
        say(&format!(
            "{:<24} {:<9} {:>8} {:>6} {:>8}  {}",
            component.name,
            state.as_str().unwrap_or_default(),
            pid,
            component.port,
            component.restarts,
            component.last_exit.unwrap_or_default()
        ));
    }
    for (target, fault, seconds) in report.faults {
        let (target, fault) = (serde_json::to_value(target)?, serde_json::to_string(&fault)?);
        say(&format!("fault: {} {fault}, {seconds} s more", target.as_str().unwrap_or_default()));
    }
    Ok(())
}

async fn report() -> Result<Option<Report>> {
    let Some(stream) = connect().await else { return Ok(None) };
    Ok(Some(serde_json::from_value(ask(stream, &Request::Status).await?)?))
}

async fn start(paths: &Paths) -> Result<UnixStream> {
    // A twin that is just ending still holds ports and files.
    launch::wait_for_end(paths, END_WITHIN)?;
    let mut supervisor = launch::supervisor(paths)?;
    let started = Instant::now();
    loop {
        if let Some(stream) = connect().await {
            return Ok(stream);
        }
        if ended(&mut supervisor)? || started.elapsed() > SOCKET_WITHIN {
            let log = paths.log("supervisor");
            bail!("the supervisor did not start; the end of {}:\n{}", log.display(), tail(&log));
        }
        sleep(Duration::from_millis(20)).await;
    }
}

fn ended(child: &mut Child) -> Result<bool> {
    Ok(child.try_wait()?.is_some())
}
