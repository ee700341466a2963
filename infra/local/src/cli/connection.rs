//! The terminal's end of the control socket.

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
    signal::unix::{SignalKind, signal},
};

use crate::{
    cli::terminal::say,
    control::{Reply, Request},
    paths::Paths,
};

/// Sends a request to the running twin.
pub(crate) async fn request(request: &Request) -> Result<Value> {
    let Some(stream) = connect().await else { bail!("the twin is not running; `make up` starts it") };
    ask(stream, request).await
}

/// Connects to the supervisor; `None` when there is none.
pub(crate) async fn connect() -> Option<UnixStream> {
    UnixStream::connect(Paths::socket()).await.ok()
}

/// Sends a request and prints its progress until the result arrives. Ctrl-C closes the connection, which ends the
/// request.
pub(crate) async fn ask(stream: UnixStream, request: &Request) -> Result<Value> {
    let (reader, mut writer) = stream.into_split();
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    writer.write_all(&line).await?;
    let mut lines = BufReader::new(reader).lines();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    loop {
        let line = tokio::select! {
            line = lines.next_line() => line?.context("the supervisor is gone")?,
            _ = interrupt.recv() => bail!("interrupted"),
            _ = terminate.recv() => bail!("terminated"),
        };
        match serde_json::from_str(&line)? {
            Reply::Say(text) => say(&text),
            Reply::Done(value) => return Ok(value),
            Reply::Failed(reason) => bail!(reason),
        }
    }
}
