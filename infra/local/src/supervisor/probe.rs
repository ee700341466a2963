//! Finds out whether a component is ready. The probe trusts only the twin's two certificate authorities.

use std::{fs, time::Duration};

use anyhow::Result;
use reqwest::{Certificate, Client, StatusCode};
use tokio::{net::TcpStream, time::sleep};

use crate::{paths::Paths, setup::pki, spec::Ready};

const PAUSE: Duration = Duration::from_millis(50);

#[derive(Debug, Clone)]
pub(crate) struct Probe {
    client: Client,
}

// === impl Probe ===

impl Probe {
    pub(crate) fn new(paths: &Paths) -> Result<Self> {
        let mut authorities = Vec::new();
        for name in [pki::CA, pki::WEBHOOK_CA] {
            authorities.push(Certificate::from_pem(&fs::read(paths.pki(name))?)?);
        }
        let client =
            Client::builder().tls_certs_only(authorities).no_proxy().timeout(Duration::from_secs(2)).build()?;
        Ok(Self { client })
    }

    /// Waits until the component is ready.
    pub(crate) async fn until(&self, ready: &Ready) {
        while !self.is_ready(ready).await {
            sleep(PAUSE).await;
        }
    }

    async fn is_ready(&self, ready: &Ready) -> bool {
        match ready {
            Ready::Succeeds(url) => self.ask(url).await.is_some_and(|status| status.is_success()),
            Ready::Routed(url) => self.ask(url).await.is_some_and(|status| status != StatusCode::NOT_FOUND),
            Ready::Accepts(port) => TcpStream::connect(("127.0.0.1", *port)).await.is_ok(),
        }
    }

    async fn ask(&self, url: &str) -> Option<StatusCode> {
        Some(self.client.get(url).send().await.ok()?.status())
    }
}
