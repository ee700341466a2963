//! The proxies between the functions and what is behind them: the Kubernetes API and AWS. Without a fault they change
//! nothing: one connection behind for each one in front, and every byte of a request and its answer as it was sent, so
//! that signatures still hold.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, Result, anyhow};
use axum::{
    body::{Body, to_bytes},
    http::{Request, Response},
};
use hyper::{body::Incoming, client::conn::http1 as client, server::conn::http1 as server, service::service_fn};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, ServerConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    pin,
    sync::Mutex,
    task::JoinSet,
    time::sleep,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::fault::{Door, Faults, Kind, parse_header};

/// Longest request that is read and answered here.
const MAX_BODY_BYTES: usize = 16 * 1024 * 1024;
const LISTEN_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// One proxy.
#[derive(Clone)]
pub(crate) struct Proxy {
    pub(crate) listen: SocketAddr,
    pub(crate) upstream: SocketAddr,
    /// Without it, both sides are plain.
    pub(crate) tls: Option<Tls>,
    pub(crate) faults: Arc<Faults>,
}

/// Both sides of a proxy that ends TLS and begins it anew.
#[derive(Clone)]
pub(crate) struct Tls {
    /// With the certificate that clients believe.
    pub(crate) server: Arc<ServerConfig>,
    /// With one of another authority.
    pub(crate) strange: Arc<ServerConfig>,
    pub(crate) client: Arc<ClientConfig>,
}

// === impl Proxy ===

impl Proxy {
    /// Serves until it is dropped. When the door changes, every connection ends: those who come back meet the new one.
    pub(crate) async fn run(self) {
        let mut door = self.faults.door();
        loop {
            let now = *door.borrow_and_update();
            tokio::select! {
                _ = door.changed() => {}
                () = self.listen(now) => {}
            }
        }
    }

    async fn listen(&self, door: Door) {
        if door == Door::Closed {
            std::future::pending::<()>().await;
        }
        let listener = match TcpListener::bind(self.listen).await {
            Ok(listener) => listener,
            Err(error) => {
                tracing::warn!("cannot listen on {}: {error}", self.listen);
                return sleep(LISTEN_AGAIN_AFTER).await;
            }
        };
        // Dropped with this future, and with it every connection.
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                Some(_) = connections.join_next() => {}
                accepted = listener.accept() => if let Ok((stream, _)) = accepted {
                    let proxy = self.clone();
                    connections.spawn(async move {
                        if let Err(error) = proxy.serve(stream, door).await {
                            tracing::debug!("a connection to {} ended: {error:#}", proxy.listen);
                        }
                    });
                },
            }
        }
    }

    async fn serve(&self, stream: TcpStream, door: Door) -> Result<()> {
        // First, so that a client meets nobody where nobody is.
        let upstream = TcpStream::connect(self.upstream).await.context("nobody listens behind")?;
        stream.set_nodelay(true)?;
        upstream.set_nodelay(true)?;
        let Some(tls) = &self.tls else { return self.pass(stream, upstream).await };
        let name = ServerName::from(self.upstream.ip());
        let upstream = TlsConnector::from(Arc::clone(&tls.client)).connect(name, upstream).await?;
        let config = if door == Door::Strange { &tls.strange } else { &tls.server };
        let stream = TlsAcceptor::from(Arc::clone(config)).accept(stream).await?;
        self.pass(stream, upstream).await
    }

    async fn pass<S, U>(&self, stream: S, upstream: U) -> Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin + 'static,
        U: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let (sender, behind) = client::handshake(TokioIo::new(upstream)).await?;
        let sender = Mutex::new(sender);
        let in_front = server::Builder::new()
            .serve_connection(TokioIo::new(stream), service_fn(|request| self.answer(&sender, request)));
        pin!(in_front, behind);
        tokio::select! {
            result = &mut in_front => return Ok(result?),
            _ = &mut behind => {}
        }
        // The server has ended the connection. What it had answered before still goes out.
        in_front.as_mut().graceful_shutdown();
        Ok(in_front.await?)
    }

    /// An error ends the connection.
    async fn answer(
        &self,
        sender: &Mutex<client::SendRequest<Incoming>>,
        request: Request<Incoming>,
    ) -> Result<Response<Body>> {
        let (parts, body) = request.into_parts();
        let fault = self.faults.strike(&parts);
        match &fault {
            Some(Kind::Cut) => return Err(anyhow!("cut")),
            Some(Kind::Answer { status, headers, body: answer }) => {
                // Who answers before the end of the request may find the answer lost.
                to_bytes(Body::new(body), MAX_BODY_BYTES).await?;
                let mut response = Response::builder().status(*status);
                for header in headers {
                    let (name, value) = parse_header(header)?;
                    response = response.header(name, value);
                }
                return Ok(response.body(Body::from(answer.clone()))?);
            }
            Some(Kind::Slow { .. } | Kind::Lose | Kind::Refuse | Kind::Authority) | None => {}
        }
        let mut sender = sender.lock().await;
        sender.ready().await?;
        let response = sender.send_request(Request::from_parts(parts, body)).await?;
        match fault {
            Some(Kind::Slow { delay }) => sleep(Duration::from_secs(delay)).await,
            Some(Kind::Lose) => return Err(anyhow!("the answer is lost")),
            Some(Kind::Answer { .. } | Kind::Cut | Kind::Refuse | Kind::Authority) | None => {}
        }
        Ok(response.map(Body::new))
    }
}
