//! The part of the kubelet's HTTPS server that the API server uses for `kubectl logs`.

use std::{fs, net::TcpListener, path::Path as FilePath, sync::Arc};

use anyhow::Context as _;
use axum::{
    Router,
    body::Body,
    extract::{Path, Query, State},
    http::StatusCode,
    response::{IntoResponse as _, Response},
    routing::get,
};
use axum_server::tls_rustls::RustlsConfig;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt as _;
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};

use crate::{
    attempt::AttemptFolder,
    logs::{self, Options},
    process,
    shared_state::Node,
};

/// Listens before anything else happens, so that a taken port stops the start.
pub(crate) fn listen(node: &Node) -> anyhow::Result<TcpListener> {
    let address = node.config.listen;
    let listener = TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Serves until the process ends.
pub(crate) async fn run(node: Arc<Node>, listener: TcpListener) -> anyhow::Result<()> {
    let tls = tls(node.config.client_ca.as_deref())?;
    let routes = Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/containerLogs/{namespace}/{pod}/{container}", get(container_logs))
        .with_state(node);
    axum_server::from_tcp_rustls(listener, RustlsConfig::from_config(Arc::new(tls)))?
        .serve(routes.into_make_service())
        .await
        .context("the log server ended")
}

async fn container_logs(
    State(node): State<Arc<Node>>,
    Path((namespace, name, container)): Path<(String, String, String)>,
    Query(options): Query<Options>,
) -> Response {
    let Some(pod) = node.pod(&namespace, &name) else {
        return (StatusCode::NOT_FOUND, format!("pod \"{name}\" does not exist\n")).into_response();
    };
    match logs::attempt_of(&pod, &container, options.previous) {
        Err(why) => (StatusCode::BAD_REQUEST, why).into_response(),
        Ok(attempt) => {
            let uid = pod.uid().unwrap_or_default();
            let folder = process::pod_folder(&node.config.pods_dir, &namespace, &name, &uid);
            let folder = AttemptFolder::new(folder.join(&container).join(attempt.to_string()));
            Body::from_stream(logs::stream(folder, &options, Timestamp::now())).into_response()
        }
    }
}

/// The server signs its own certificate, because the API server does not check it unless configured to. Clients need a
/// certificate of the cluster's CA, if that CA is known.
fn tls(client_ca: Option<&FilePath>) -> anyhow::Result<ServerConfig> {
    let own = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()])?;
    let certificate = vec![own.cert.der().clone()];
    let key = PrivateKeyDer::try_from(own.signing_key.serialize_der()).map_err(anyhow::Error::msg)?;
    let builder = ServerConfig::builder();
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(file) => {
            let text = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
            let mut roots = RootCertStore::empty();
            for certificate in CertificateDer::pem_slice_iter(&text) {
                roots.add(certificate.with_context(|| format!("{} is not valid", file.display()))?)?;
            }
            builder.with_client_cert_verifier(WebPkiClientVerifier::builder(Arc::new(roots)).build()?)
        }
    };
    let mut config = builder.with_single_cert(certificate, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}
