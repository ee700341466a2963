//! The front: a plain listener that passes every request on to the deployed HTTP API, whose host name clients cannot
//! resolve. The path goes through as it was written: no decoding, no normalising.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use axum::{
    Router,
    body::Body,
    extract::{DefaultBodyLimit, Request, State},
    http::{StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::net::TcpListener;

#[derive(Clone)]
struct Upstream {
    /// Without a slash at its end.
    base: String,
    client: Client<HttpConnector, Body>,
}

/// Serves until it is killed.
pub(crate) async fn serve(listen: SocketAddr, base: String) -> Result<()> {
    let listener = TcpListener::bind(listen).await.with_context(|| format!("cannot listen on {listen}"))?;
    let upstream = Upstream { base, client: Client::builder(TokioExecutor::new()).build_http() };
    let router = Router::new().fallback(pass).layer(DefaultBodyLimit::disable()).with_state(upstream);
    axum::serve(listener, router).await?;
    Ok(())
}

async fn pass(State(upstream): State<Upstream>, mut request: Request) -> Response {
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    let Ok(uri) = format!("{}{path}", upstream.base).parse::<Uri>() else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    *request.uri_mut() = uri;
    // Named anew by the client: the API is found by its path, not by the name under which the front was called.
    request.headers_mut().remove(header::HOST);
    match upstream.client.request(request).await {
        Ok(response) => response.map(Body::new),
        Err(error) => {
            tracing::warn!("the HTTP API does not answer: {error}");
            StatusCode::BAD_GATEWAY.into_response()
        }
    }
}
