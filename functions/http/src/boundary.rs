//! The one place where results become HTTP and where a request is logged: one line each, never with bodies, tokens or
//! headers.

use std::time::Instant;

use lambda_http::{
    Body, Request, RequestExt, Response,
    http::{StatusCode, header},
};
use tracing::{error, info};
use training_core::{cause::chain, problem::Code};

use crate::{Answer, Failure};

/// Answer a request with what its handler returned.
///
/// # Errors
/// Never in practice: only when a header value that we made is not one.
pub fn respond(
    request: &Request,
    started: Instant,
    result: Result<Answer, Failure>,
) -> Result<Response<Body>, lambda_http::Error> {
    let request_id = request_id(request);
    let duration_ms = started.elapsed().as_millis();
    let (method, path) = (request.method(), request.raw_http_path());
    match result {
        Ok(answer) => {
            info!(request_id, %method, path, status = answer.status, duration_ms, "answered");
            let mut response =
                Response::builder().status(answer.status).header(header::CONTENT_TYPE, "application/json");
            if let Some(location) = answer.location {
                response = response.header(header::LOCATION, location);
            }
            Ok(response.body(Body::from(answer.body))?)
        }
        Err(Failure { problem, cause }) => {
            let code = problem.code;
            let status = StatusCode::from_u16(code.status())?;
            if status.is_server_error() {
                let cause = cause.map(|cause| chain(cause.as_ref())).unwrap_or_default();
                error!(request_id, %method, path, status = status.as_u16(), code = code.as_str(), duration_ms, cause, "failed: {}", problem.detail);
            } else {
                info!(request_id, %method, path, status = status.as_u16(), code = code.as_str(), duration_ms, "refused");
            }
            let mut response = Response::builder()
                .status(status)
                .header(header::CONTENT_TYPE, "application/problem+json")
                .header(header::CACHE_CONTROL, "no-store");
            if let Some(seconds) = code.retry_after_seconds() {
                response = response.header(header::RETRY_AFTER, seconds);
            }
            let body = serde_json::to_vec(&problem.document(&request_id))?;
            Ok(response.body(Body::from(body))?)
        }
    }
}

/// The refusal of a request that no route takes.
#[must_use]
pub fn no_route(request: &Request) -> Failure {
    let path: String = request.raw_http_path().chars().take(256).collect();
    Failure::new(Code::RouteNotFound, format!("there is no {} {path}", request.method()))
}

/// The id under which the request stands in the log and in problem documents.
#[must_use]
pub fn request_id(request: &Request) -> String {
    request.lambda_context_ref().map(|context| context.request_id.clone()).unwrap_or_default()
}
