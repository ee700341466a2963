//! A proxy between the functions and an upstream service: the Kubernetes API or AWS.
//!
//! Without a fault it changes nothing. Each connection of a client has its own connection to the upstream service, and
//! requests and answers pass byte for byte, so that signatures stay valid.

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

use crate::faults::{
    active::Faults,
    fault::{Door, Kind, parse_header},
};

/// The longest request that the proxy answers itself.
const MAX_BODY_BYTES: usize = 16 * 1024 * 1024;
const LISTEN_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// One proxy.
#[derive(Clone)]
pub(crate) struct Proxy {
    pub(crate) listen: SocketAddr,
    pub(crate) upstream: SocketAddr,
    /// Without TLS, both sides are plain HTTP.
    pub(crate) tls: Option<Tls>,
    pub(crate) faults: Arc<Faults>,
}

/// TLS on both sides of a proxy.
#[derive(Clone)]
pub(crate) struct Tls {
    /// Has the certificate that clients trust.
    pub(crate) server: Arc<ServerConfig>,
    /// Has a certificate of another authority.
    pub(crate) strange: Arc<ServerConfig>,
    pub(crate) client: Arc<ClientConfig>,
}

// === impl Proxy ===

impl Proxy {
    /// Serves until it is dropped. A change of the door closes every connection, so that clients connect again.
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
        // Every connection is closed when this future is dropped.
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
        // This comes first, so that the client has no connection where the upstream service does not listen.
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
        // The upstream service has closed the connection. The client still gets its earlier answers.
        in_front.as_mut().graceful_shutdown();
        Ok(in_front.await?)
    }

    /// Answers a request. An error closes the connection.
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
                // An answer that is sent before the whole request has arrived can be lost.
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

#[cfg(test)]
mod tests {
    use std::{
        fs,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use axum::{Router, extract::State, http::StatusCode};
    use reqwest::{Certificate, Client};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::{faults::fault::Fault, paths::Paths, setup::pki};

    /// A proxy before a server that counts its requests and echoes each one.
    struct Scene {
        faults: Arc<Faults>,
        address: SocketAddr,
        requests: Arc<AtomicUsize>,
    }

    async fn echo(State(requests): State<Arc<AtomicUsize>>, request: Request<Body>) -> String {
        requests.fetch_add(1, Ordering::Relaxed);
        let head = format!("{} {} {:?}", request.method(), request.uri(), request.headers().get("host"));
        let body = to_bytes(request.into_body(), usize::MAX).await.unwrap();
        format!("{head} {}", String::from_utf8_lossy(&body))
    }

    async fn free() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
    }

    fn proxy(listen: SocketAddr, upstream: SocketAddr, tls: Option<Tls>) -> Arc<Faults> {
        let faults = Arc::new(Faults::default());
        tokio::spawn(Proxy { listen, upstream, tls, faults: Arc::clone(&faults) }.run());
        faults
    }

    async fn plain() -> Scene {
        let requests = Arc::new(AtomicUsize::new(0));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (upstream, address) = (listener.local_addr().unwrap(), free().await);
        let router = Router::new().fallback(echo).with_state(Arc::clone(&requests));
        tokio::spawn(async { axum::serve(listener, router).await });
        Scene { faults: proxy(address, upstream, None), address, requests }
    }

    impl Scene {
        fn fault(&self, kind: Kind, times: Option<u32>) {
            self.faults.add(Fault { kind, method: None, path: None, service: None, after: None, times, seconds: 60 });
        }

        async fn post(&self) -> reqwest::Result<(u16, String)> {
            let response = Client::new().post(format!("http://{}/a", self.address)).body("body").send().await?;
            Ok((response.status().as_u16(), response.text().await?))
        }
    }

    /// A task that listens needs a moment to begin.
    async fn connect(address: SocketAddr) -> TcpStream {
        loop {
            match TcpStream::connect(address).await {
                Ok(stream) => return stream,
                Err(_) => sleep(Duration::from_millis(5)).await,
            }
        }
    }

    #[tokio::test]
    async fn requests_go_through_as_they_were_written_on_one_connection() {
        let scene = plain().await;
        let mut stream = connect(scene.address).await;
        let request = |end: &str| {
            format!("PUT /a%2Fb/../c//?q=1&q=%20 HTTP/1.1\r\nhost: signed:1\r\ncontent-length: 4\r\n{end}\r\nbody")
        };
        stream.write_all((request("") + &request("connection: close\r\n")).as_bytes()).await.unwrap();
        let mut answers = String::new();
        stream.read_to_string(&mut answers).await.unwrap();
        let echoed = "PUT /a%2Fb/../c//?q=1&q=%20 Some(\"signed:1\") body";
        assert_eq!(answers.matches(echoed).count(), 2, "{answers}");
    }

    #[tokio::test]
    async fn faults_of_requests_do_what_they_say() {
        let scene = plain().await;
        connect(scene.address).await;
        let headers = vec!["retry-after: 7".into()];
        scene.fault(Kind::Answer { status: 429, headers, body: "no".into() }, Some(1));
        assert_eq!(scene.post().await.unwrap(), (429, "no".into()));
        scene.fault(Kind::Cut, None);
        assert!(scene.post().await.is_err());
        assert_eq!(scene.requests.load(Ordering::Relaxed), 0, "nothing was passed on");
        scene.faults.clear();
        scene.fault(Kind::Lose, Some(1));
        assert!(scene.post().await.is_err());
        assert_eq!(scene.requests.load(Ordering::Relaxed), 1, "it was done, and nobody was told");
        scene.fault(Kind::Slow { delay: 1 }, Some(1));
        let started = std::time::Instant::now();
        assert_eq!(scene.post().await.unwrap().0, 200);
        assert!(started.elapsed() >= Duration::from_secs(1));
    }

    #[tokio::test]
    async fn who_refuses_ends_open_connections_and_listens_to_nobody_until_the_end() {
        let scene = plain().await;
        let mut open = connect(scene.address).await;
        scene.fault(Kind::Refuse, None);
        assert_eq!(open.read(&mut [0]).await.unwrap_or(0), 0, "the connection has ended");
        assert!(TcpStream::connect(scene.address).await.is_err());
        scene.faults.clear();
        connect(scene.address).await;
        assert_eq!(scene.post().await.unwrap().0, 200);
    }

    #[tokio::test]
    async fn where_nobody_is_behind_the_connection_ends() {
        let (address, upstream) = (free().await, free().await);
        proxy(address, upstream, None);
        assert_eq!(connect(address).await.read(&mut [0]).await.unwrap_or(0), 0);
    }

    #[tokio::test]
    async fn another_authority_is_not_believed() {
        // Each test process installs it once.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let paths = Paths::at(folder.path());
        pki::make(&paths).unwrap();
        pki::make_other(&paths).unwrap();
        let (upstream, address) = (free().await, free().await);
        let server = Arc::new(pki::server_config(&paths, "server").unwrap());
        let config = axum_server::tls_rustls::RustlsConfig::from_config(Arc::clone(&server));
        let router = Router::new().fallback(|| async { StatusCode::NO_CONTENT });
        tokio::spawn(axum_server::bind_rustls(upstream, config).serve(router.into_make_service()));
        let tls = Tls {
            server,
            strange: Arc::new(pki::server_config(&paths, "other").unwrap()),
            client: Arc::new(pki::client_config(&paths).unwrap()),
        };
        let faults = proxy(address, upstream, Some(tls));
        drop((connect(upstream).await, connect(address).await));
        let client = |authority: &str| {
            let authority = Certificate::from_pem(&fs::read(paths.pki(authority)).unwrap()).unwrap();
            Client::builder().tls_certs_only([authority]).build().unwrap()
        };
        let (believing, strange) = (client(pki::CA), client(pki::OTHER_CA));
        let url = format!("https://{address}/");
        assert_eq!(believing.get(&url).send().await.unwrap().status(), 204);
        faults.add(Fault {
            kind: Kind::Authority,
            method: None,
            path: None,
            service: None,
            after: None,
            times: None,
            seconds: 60,
        });
        drop(connect(address).await);
        assert!(believing.get(&url).send().await.is_err());
        assert_eq!(strange.get(&url).send().await.unwrap().status(), 204);
        faults.clear();
        drop(connect(address).await);
        assert_eq!(believing.get(&url).send().await.unwrap().status(), 204);
    }
}
