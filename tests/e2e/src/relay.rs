//! A relay between a function and what it calls, which measures for how long the function waits.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_rustls::TlsAcceptor;

/// Passes bytes on as they are. It ends with this value.
pub struct Relay {
    /// Where it listens.
    pub address: SocketAddr,
    waits: Arc<Mutex<Vec<(Instant, Instant)>>>,
    task: JoinHandle<()>,
}

/// Ends TLS in front of what speaks without, and writes other bytes in place of some of its answers'. It ends with this
/// value.
pub struct TlsEnd {
    /// Where it listens.
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

/// Bytes and what stands in their place, of the same length.
type Replaced = Option<(Vec<u8>, Vec<u8>)>;

// === impl Relay ===

impl Relay {
    /// Listen in front of an address.
    ///
    /// # Errors
    /// No port is free.
    pub async fn start(upstream: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let waits = Arc::new(Mutex::default());
        let kept = Arc::clone(&waits);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(relay(stream, upstream, Arc::clone(&kept)));
            }
        });
        Ok(Self { address, waits, task })
    }

    /// When somebody in front had asked and had not had the last part of the answer, since this was called last.
    #[must_use]
    pub fn take_waits(&self) -> Vec<(Instant, Instant)> {
        std::mem::take(&mut self.waits.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// For how long at least one of these went on.
#[must_use]
pub fn union(mut waits: Vec<(Instant, Instant)>) -> Duration {
    waits.sort();
    let mut total = Duration::ZERO;
    let mut end = None;
    for (from, to) in waits {
        let from = end.map_or(from, |end| from.max(end));
        total += to.saturating_duration_since(from);
        end = end.max(Some(to));
    }
    total
}

async fn relay(front: TcpStream, upstream: SocketAddr, waits: Arc<Mutex<Vec<(Instant, Instant)>>>) {
    let Ok(behind) = TcpStream::connect(upstream).await else { return };
    let _ = (front.set_nodelay(true), behind.set_nodelay(true));
    let ((mut front_in, mut front_out), (mut behind_in, mut behind_out)) = (front.into_split(), behind.into_split());
    let mut since = None;
    let (mut asked, mut answered) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    loop {
        tokio::select! {
            read = front_in.read(&mut asked) => {
                let Ok(length @ 1..) = read else { return };
                since = Some(Instant::now());
                if behind_out.write_all(asked.get(..length).unwrap_or_default()).await.is_err() { return }
            }
            read = behind_in.read(&mut answered) => {
                let Ok(length @ 1..) = read else { return };
                // An answer has several parts: TLS 1.3 sends a session ticket before the first.
                let now = Instant::now();
                if let Some(since) = since.replace(now) {
                    waits.lock().unwrap_or_else(PoisonError::into_inner).push((since, now));
                }
                if front_out.write_all(answered.get(..length).unwrap_or_default()).await.is_err() { return }
            }
        }
    }
}

// === impl TlsEnd ===

impl TlsEnd {
    /// Listen in front of an address, with a certificate and its key in PEM.
    ///
    /// # Errors
    /// The files are unusable, or no port is free.
    pub async fn start(upstream: SocketAddr, certificate: &Path, key: &Path, replaced: Replaced) -> Result<Self> {
        let chain = CertificateDer::pem_file_iter(certificate)?.collect::<Result<_, _>>()?;
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(chain, PrivateKeyDer::from_pem_file(key).context("no key")?)?;
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, replaced) = (acceptor.clone(), replaced.clone());
                tokio::spawn(async move {
                    let (Ok(front), Ok(behind)) = tokio::join!(acceptor.accept(stream), TcpStream::connect(upstream))
                    else {
                        return;
                    };
                    let _ = (front.get_ref().0.set_nodelay(true), behind.set_nodelay(true));
                    let (front_in, front_out) = tokio::io::split(front);
                    let (behind_in, behind_out) = behind.into_split();
                    tokio::join!(copy(front_in, behind_out, None), copy(behind_in, front_out, replaced));
                });
            }
        });
        Ok(Self { address, task })
    }
}

impl Drop for TlsEnd {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Until one of them ends. What is to be replaced is expected whole in one read: answers are small.
async fn copy(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, replaced: Replaced) {
    let mut bytes = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut bytes).await {
        let Some(read) = bytes.get_mut(..length) else { return };
        if let Some((old, new)) = &replaced
            && let Some(at) = read.windows(old.len()).position(|window| window == old)
            && let Some(place) = read.get_mut(at..at + new.len())
        {
            place.copy_from_slice(new);
        }
        if to.write_all(read).await.is_err() || to.flush().await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
}
