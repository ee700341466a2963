//! `twin front`: a listener that passes each request on to the deployed HTTP API. Clients need it because they cannot
//! resolve the API's host name. The path is passed on as it was written, neither decoded nor normalised.

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
    /// The URL of the HTTP API, without a slash at its end.
    base: String,
    client: Client<HttpConnector, Body>,
}

/// Serves until it is killed.
pub(crate) async fn serve(listen: SocketAddr, base: String) -> Result<()> {
    let listener = TcpListener::bind(listen).await.with_context(|| format!("cannot listen on {listen}"))?;
    axum::serve(listener, router(base)).await?;
    Ok(())
}

fn router(base: String) -> Router {
    let client = Client::builder(TokioExecutor::new()).build_http();
    Router::new().fallback(pass).layer(DefaultBodyLimit::disable()).with_state(Upstream { base, client })
}

async fn pass(State(upstream): State<Upstream>, mut request: Request) -> Response {
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    let Ok(uri) = format!("{}{path}", upstream.base).parse::<Uri>() else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    *request.uri_mut() = uri;
    // The client sets the host again. MiniStack finds the API by its path and not by its host.
    request.headers_mut().remove(header::HOST);
    match upstream.client.request(request).await {
        Ok(response) => response.map(Body::new),
        Err(error) => {
            tracing::warn!("the HTTP API does not answer: {error}");
            StatusCode::BAD_GATEWAY.into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    use super::*;

    /// Answers with the request.
    async fn echo(request: Request) -> String {
        let head = format!("{} {} {:?}", request.method(), request.uri(), request.headers().get("x-test"));
        let body = to_bytes(request.into_body(), usize::MAX).await.unwrap();
        format!("{head} {}", String::from_utf8_lossy(&body))
    }

    async fn start(router: Router) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async { axum::serve(listener, router).await });
        address
    }

    #[tokio::test]
    async fn a_request_goes_through_as_it_was_written() {
        let upstream = start(Router::new().fallback(echo)).await;
        let front = start(router(format!("http://{upstream}/base"))).await;
        let mut stream = TcpStream::connect(front).await.unwrap();
        let request = "DELETE /train/a%2Fb/../c//?q=1&q=%20 HTTP/1.1\r\nhost: x\r\nx-test: y\r\n\
                       content-length: 4\r\nconnection: close\r\n\r\nbody";
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.ends_with("DELETE /base/train/a%2Fb/../c//?q=1&q=%20 Some(\"y\") body"), "{answer}");
    }

    #[tokio::test]
    async fn an_upstream_that_is_gone_is_a_bad_gateway() {
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let front = start(router(format!("http://{gone}"))).await;
        let client = Client::builder(TokioExecutor::new()).build_http::<Body>();
        let answer = client.get(format!("http://{front}/").parse().unwrap()).await.unwrap();
        assert_eq!(answer.status(), StatusCode::BAD_GATEWAY);
    }
}
