//! The one place where results become HTTP and where a request is logged: one line each, never with bodies, tokens or
//! headers.

use std::{
    fmt::Display,
    time::{Duration, Instant},
};

use lambda_http::{
    Body, Request, RequestExt, Response,
    http::{Method, StatusCode, header},
};
use tracing::{Instrument, Span, error, field::Empty, info, info_span};
use training_cluster::Cluster;
use training_core::{
    api::{
        problem::Code,
        query::Query,
        route::{Route, Unrouted},
    },
    cause::chain,
};
use training_run::text::bounded;
use training_store::StoreError;

use crate::{
    Answer, Failure,
    answer::storage_failure,
    telemetry::{self, Measured},
};

/// How long a request may take. API Gateway gives up after 30 s and says nothing of what happened.
const ANSWER_WITHIN: Duration = Duration::from_secs(27);
/// So much earlier storage has to be done, so that the slow service is named.
const ROOM_TO_SAY_SO: Duration = Duration::from_millis(250);
/// Every answer is for one caller, and true only now.
const NOT_KEPT: &str = "no-store";
/// Longest body that is looked at, in bytes.
const MAX_BODY_BYTES: usize = 128 * 1024;

tokio::task_local! {
    /// Until when the request that is being answered may wait for storage.
    static STORAGE_UNTIL: tokio::time::Instant;
}

/// Answer a request with the result of its work, in time, and tell of it: one log line, and one line of metrics.
///
/// The log lines of the work carry what [`record`] was given.
///
/// # Errors
/// Never in practice: only when a header value that we made is not one.
pub async fn answer(
    request: &Request,
    cluster: &Cluster,
    work: impl Future<Output = Result<Answer, Failure>>,
) -> Result<Response<Body>, lambda_http::Error> {
    let started = Instant::now();
    let span = info_span!("request", namespace = Empty, job = Empty, run_id = Empty, caller = Empty);
    let result = in_time(work).instrument(span.clone()).await;
    let _entered = span.enter();
    let code = result.as_ref().err().map(|failure| failure.problem.code);
    let mut response = respond(request, started, result)?;
    if request.method() == Method::HEAD {
        leave_body_out(&mut response);
    }
    telemetry::emit(&Measured {
        code,
        duration: started.elapsed(),
        cluster: cluster.take_time_spent(),
        function: function_name(request),
    });
    Ok(response)
}

/// Tell the log what a request is about, once that is known.
pub fn record(field: &'static str, value: impl Display) {
    Span::current().record(field, tracing::field::display(value));
}

/// The result of a request's work, or `cluster_timeout` when it takes too long: every change is safe to repeat.
async fn in_time(work: impl Future<Output = Result<Answer, Failure>>) -> Result<Answer, Failure> {
    let work = STORAGE_UNTIL.scope(tokio::time::Instant::now() + ANSWER_WITHIN - ROOM_TO_SAY_SO, work);
    tokio::time::timeout(ANSWER_WITHIN, work).await.unwrap_or_else(|elapsed| {
        let detail = "an upstream service timed out; retry the same request (it is idempotent)";
        Err(Failure::with_cause(Code::ClusterTimeout, detail, elapsed))
    })
}

/// The result of many requests to the runs bucket, or `storage_timeout` when the request's time ends meanwhile.
///
/// # Errors
/// What [`storage_failure`] makes of an error.
pub fn in_storage<T>(work: impl Future<Output = Result<T, StoreError>>) -> impl Future<Output = Result<T, Failure>> {
    // On the heap: the futures of the SDKs are large.
    let work = Box::pin(work);
    async move {
        let result = match STORAGE_UNTIL.try_with(|until| *until) {
            Ok(until) => tokio::time::timeout_at(until, work).await.map_err(storage_failure)?,
            // Nobody waits for an answer.
            Err(_) => work.await,
        };
        result.map_err(storage_failure)
    }
}

/// The route of a request.
///
/// # Errors
/// `route_not_found`, or `method_not_allowed` with an `Allow` header.
pub fn route(request: &Request) -> Result<Route<'_>, Failure> {
    let (method, path) = (request.method().as_str(), request.raw_http_path());
    Route::of(method, path).map_err(|unrouted| {
        let failure = Failure::from(unrouted.problem(method, path));
        match unrouted {
            Unrouted::Path => failure,
            Unrouted::Method { allow } => failure.with_header(header::ALLOW, allow),
        }
    })
}

/// The parameters of a request, decoded.
#[must_use]
pub fn query(request: &Request) -> Query {
    Query::new(request.query_string_parameters().iter())
}

/// The body of a request that should be JSON. A request that declares no media type is read as JSON.
///
/// # Errors
/// `unsupported_media_type` or `body_too_large`.
pub fn json_body(request: &Request) -> Result<&[u8], Failure> {
    let content_type = request.headers().get(header::CONTENT_TYPE).map(|value| value.to_str().unwrap_or("?"));
    if !content_type.is_none_or(is_json) {
        let detail = format!(
            "the body must be JSON; send `Content-Type: application/json`, not `{}`",
            bounded(content_type.unwrap_or_default(), 64)
        );
        return Err(Failure::new(Code::UnsupportedMediaType, detail));
    }
    let body = request.body().as_ref();
    if body.len() > MAX_BODY_BYTES {
        let detail = format!("the body has {} bytes; at most {MAX_BODY_BYTES} are taken", body.len());
        return Err(Failure::new(Code::BodyTooLarge, detail));
    }
    Ok(body)
}

/// Whether a media type is JSON (RFC 8259, or a `+json` suffix of RFC 6839) in UTF-8.
fn is_json(content_type: &str) -> bool {
    let mut parts = content_type.split(';').map(|part| part.trim().to_ascii_lowercase());
    let essence = parts.next().unwrap_or_default();
    let is_json = essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"));
    let charset =
        parts.find_map(|part| part.strip_prefix("charset=").map(|charset| charset.trim_matches('"').to_owned()));
    is_json && charset.is_none_or(|charset| charset == "utf-8")
}

fn respond(
    request: &Request,
    started: Instant,
    result: Result<Answer, Failure>,
) -> Result<Response<Body>, lambda_http::Error> {
    let request_id = request_id(request);
    let duration_ms = started.elapsed().as_millis();
    let (method, path) = (request.method(), bounded(request.raw_http_path(), 256));
    match result {
        Ok(Answer { status, content_type, body, headers }) => {
            info!(request_id, %method, path, status, duration_ms, "answered");
            let response = Response::builder().status(status).header(header::CONTENT_TYPE, content_type);
            let response = response.header(header::CACHE_CONTROL, NOT_KEPT);
            let response = headers.into_iter().fold(response, |response, (name, value)| response.header(name, value));
            // As text: a binary body would be sent in base64.
            let body = String::from_utf8(body).map_or_else(|error| Body::from(error.into_bytes()), Body::from);
            Ok(response.body(body)?)
        }
        Err(Failure { problem, cause, headers, is_final }) => {
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
                .header(header::CACHE_CONTROL, NOT_KEPT);
            if let Some(seconds) = code.retry_after_seconds()
                && !is_final
                && !headers.iter().any(|(name, _)| *name == header::RETRY_AFTER)
            {
                response = response.header(header::RETRY_AFTER, seconds);
            }
            let response = headers.into_iter().fold(response, |response, (name, value)| response.header(name, value));
            Ok(response.body(Body::from(serde_json::to_string(&problem.document(&request_id))?))?)
        }
    }
}

/// Make the answer to a GET that to a HEAD: the length is that of the body that it does not have (RFC 9110, section 8.6).
fn leave_body_out(response: &mut Response<Body>) {
    let length = response.body().len();
    response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    *response.body_mut() = Body::Empty;
}

fn function_name(request: &Request) -> String {
    let context = request.lambda_context_ref();
    context.map(|context| context.env_config.function_name.clone()).unwrap_or_default()
}

/// The id under which the request stands in the log and in problem documents.
#[must_use]
pub fn request_id(request: &Request) -> String {
    request.lambda_context_ref().map(|context| context.request_id.clone()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn work_that_takes_too_long_is_answered_in_time() {
        let started = tokio::time::Instant::now();
        let storage = in_storage(std::future::pending::<Result<Answer, _>>());
        let cluster = std::future::pending();
        for (failure, code) in
            [(in_time(storage).await, Code::StorageTimeout), (in_time(cluster).await, Code::ClusterTimeout)]
        {
            assert_eq!(failure.expect_err("too long").problem.code, code);
        }
        assert!(started.elapsed() <= Duration::from_secs(2 * 28), "{:?}", started.elapsed());
    }

    #[test]
    fn no_answer_is_kept_on_its_way() {
        let refusal = Failure::new(Code::JobNotFound, "no such job");
        for result in [Answer::json(200, &"here it is"), Err(refusal)] {
            let response = respond(&Request::default(), Instant::now(), result).expect("a response");
            assert_eq!(response.headers().get_all(header::CACHE_CONTROL).iter().collect::<Vec<_>>(), ["no-store"]);
        }
    }

    #[test]
    fn json_is_known_by_its_media_type() {
        for good in [
            "application/json",
            "application/json; charset=utf-8",
            "Application/JSON;charset=\"UTF-8\"",
            "application/merge-patch+json",
        ] {
            assert!(is_json(good), "{good}");
        }
        for bad in ["", "text/plain", "text/json+x", "application/jsonp", "application/json; charset=latin1", "?"] {
            assert!(!is_json(bad), "{bad}");
        }
    }
}
