//! `twin supervise`: owns the components and answers the control socket. It is the first process of the twin's own
//! namespace, so every process of the twin ends with it.

use std::{fs, os::unix::fs::PermissionsExt, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream, unix::OwnedWriteHalf},
    signal::unix::{SignalKind, signal},
    sync::{Mutex, Notify, mpsc, watch},
    time::{sleep, timeout},
};

use crate::{
    control::{Reply, Report, Request},
    faults::proxies::Proxies,
    paths::Paths,
    program,
    setup::{prepare, progress::Progress},
    supervisor::{kill, lifecycle::Supervisor, probe::Probe, reaper, up::Twin},
};

/// The client that starts the supervisor sends a request at once. Without a request the supervisor ends.
const FIRST_REQUEST_WITHIN: Duration = Duration::from_secs(20);

struct Server {
    twin: Twin,
    proxies: Proxies,
    /// Whether an `up` has succeeded. Before that, a failure or Ctrl-C ends the twin.
    ready: watch::Sender<bool>,
    /// Lets one `up` run at a time.
    up: Mutex<()>,
    /// Set when the twin is to end. A running `up` is then cancelled.
    closing: watch::Sender<bool>,
    /// Notified by each request.
    asked: Notify,
}

/// Runs until asked to end.
pub(crate) async fn run(paths: Paths) -> Result<()> {
    let _ = fs::remove_file(paths.env());
    let socket = Paths::socket();
    let _ = fs::remove_file(&socket);
    let ports = prepare::prepare(&paths)?;
    let probe = Probe::new(&paths)?;
    let supervisor = Supervisor::new(&paths, &probe)?;
    let proxies = Proxies::start(&paths, &ports)?;
    let server = Arc::new(Server {
        twin: Twin { paths, ports, supervisor, probe },
        proxies,
        ready: watch::Sender::new(false),
        up: Mutex::new(()),
        closing: watch::Sender::new(false),
        asked: Notify::new(),
    });
    tokio::spawn(reaper::reap());

    let listener = UnixListener::bind(&socket).context("cannot make the control socket")?;
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o600))?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut closing = server.closing.subscribe();
    let unasked = async {
        if timeout(FIRST_REQUEST_WITHIN, server.asked.notified()).await.is_ok() {
            std::future::pending::<()>().await;
        }
    };
    tokio::pin!(unasked);
    loop {
        tokio::select! {
            connection = listener.accept() => {
                let (stream, _) = connection?;
                tokio::spawn(Arc::clone(&server).serve(stream));
            }
            _ = closing.wait_for(|closing| *closing) => break,
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            () = &mut unasked => break,
        }
    }
    tracing::info!("ending");
    server.closing.send_replace(true);
    let _ = fs::remove_file(&socket);
    let _ = fs::remove_file(server.twin.paths.env());
    server.twin.supervisor.stop_all().await?;
    // The last answers still have to reach their terminals.
    sleep(Duration::from_millis(100)).await;
    Ok(())
}

// === impl Server ===

impl Server {
    async fn serve(self: Arc<Self>, stream: UnixStream) {
        let (reader, mut writer) = stream.into_split();
        let mut lines = BufReader::new(reader).lines();
        let Ok(Some(line)) = lines.next_line().await else { return };
        self.asked.notify_one();
        let request = match serde_json::from_str::<Request>(&line) {
            Ok(request) => request,
            Err(error) => {
                reply(&mut writer, &Reply::Failed(format!("not a request: {error}"))).await;
                return;
            }
        };
        let starts = matches!(request, Request::Up { .. });
        let (say, mut said) = mpsc::unbounded_channel();
        let mut closing = self.closing.subscribe();
        let mut closing = Box::pin(async move { closing.wait_for(|closing| *closing).await.is_ok() });
        let mut work = Box::pin(self.answer(request, Progress::new(say)));
        let result = loop {
            tokio::select! {
                biased;
                Some(text) = said.recv() => reply(&mut writer, &Reply::Say(text)).await,
                result = &mut work => break Some(result),
                // A client sends only one line, so the client has disconnected.
                _ = lines.next_line() => break None,
                _ = &mut closing, if starts => break Some(Err(anyhow::anyhow!("the twin is ending"))),
            }
        };
        drop(work);
        let failed = match result {
            Some(Ok(value)) => {
                while let Ok(text) = said.try_recv() {
                    reply(&mut writer, &Reply::Say(text)).await;
                }
                reply(&mut writer, &Reply::Done(value)).await;
                false
            }
            Some(Err(error)) => {
                reply(&mut writer, &Reply::Failed(format!("{error:#}"))).await;
                true
            }
            None => true,
        };
        if starts && failed && !*self.ready.borrow() {
            self.closing.send_replace(true);
        }
    }

    async fn answer(&self, request: Request, progress: Progress) -> Result<Value> {
        let supervisor = &self.twin.supervisor;
        match request {
            Request::Up { bare } => {
                let Ok(_alone) = self.up.try_lock() else { bail!("another `twin up` is at work") };
                Box::pin(self.twin.up(&progress, bare)).await?;
                self.ready.send_replace(true);
            }
            Request::Down => {
                self.closing.send_replace(true);
            }
            Request::Status => {
                let report = Report {
                    ready: *self.ready.borrow(),
                    program: program::build()?,
                    components: supervisor.status(),
                    faults: self.proxies.list(),
                };
                return Ok(serde_json::to_value(report)?);
            }
            Request::Start { component } => supervisor.start(component).await?,
            Request::Stop { component } => supervisor.stop(component).await?,
            Request::Kill { pod, container, namespace, signal } => {
                let pid = kill::kill(&self.twin.paths, &namespace, &pod, &container, &signal)?;
                return Ok(json!({ "pid": pid }));
            }
            Request::Fault { target, fault } => self.proxies.add(target, fault)?,
            Request::ClearFaults => self.proxies.clear(),
        }
        Ok(Value::Null)
    }
}

async fn reply(writer: &mut OwnedWriteHalf, reply: &Reply) {
    if let Ok(mut line) = serde_json::to_vec(reply) {
        line.push(b'\n');
        // The client may have disconnected.
        let _ = writer.write_all(&line).await;
    }
}
