//! The bucket's HTTP side: the SDK's requests become calls, and what the bucket does becomes S3's answers.
//!
//! Source: "Amazon S3 REST API" of AWS' documentation: `GetObject`, `HeadObject`, `PutObject`, `DeleteObject`,
//! `ListObjectsV2`.

use std::{
    fmt::{self, Write},
    ops::Bound,
    sync::{Arc, PoisonError},
};

use aws_sdk_s3::{
    config::{
        SharedHttpClient,
        http::{HttpRequest, HttpResponse},
    },
    primitives::SdkBody,
};
use aws_smithy_runtime_api::client::{
    http::{HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn},
    result::ConnectorError,
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::{Bucket, Call, Judge, Objects, Treatment, etag_of};

/// Keys of one listing at most.
const MAX_KEYS: usize = 1_000;

/// What S3 encodes in a listing's keys when it is asked to; then it writes a space as a plus.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'_').remove(b'.').remove(b'*');

/// A client whose connections all end in this bucket.
pub(super) fn client(bucket: Bucket, judge: Arc<Judge>) -> SharedHttpClient {
    let connector = SharedHttpConnector::new(Connector { bucket, judge });
    http_client_fn(move |_, _| connector.clone())
}

struct Connector {
    bucket: Bucket,
    judge: Arc<Judge>,
}

/// A request taken apart.
struct Request {
    call: Call,
    query: Vec<(String, String)>,
    if_match: Option<String>,
    if_none_match: Option<String>,
    body: String,
}

/// An answer: status, `ETag`, body.
#[derive(Clone, Debug)]
pub struct Answer(pub u16, pub Option<String>, pub String);

// === impl Connector ===

impl HttpConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let body = request.body().bytes().expect("what we write is in memory");
        let header = |name: &str| request.headers().get(name).map(str::to_owned);
        let request = Request::read(request.method(), request.uri(), header, body);
        let (bucket, judge) = (self.bucket.clone(), Arc::clone(&self.judge));
        HttpConnectorFuture::new(async move {
            let treatment = judge(&request.call).await;
            let serve = || bucket.serve(&request);
            let answer = match treatment {
                Treatment::Serve => serve(),
                Treatment::Refuse(status, code) => refusal(status, code),
                Treatment::DoAndRefuse(status, code) => {
                    serve();
                    refusal(status, code)
                }
                Treatment::Hang => std::future::pending().await,
                Treatment::DoAndHang => {
                    serve();
                    std::future::pending().await
                }
                Treatment::DoAndCut => {
                    serve();
                    return Err(ConnectorError::io("the connection was cut".into()));
                }
            };
            bucket.count(request, &answer);
            Ok(answer.into_http())
        })
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").finish_non_exhaustive()
    }
}

// === impl Request ===

impl Request {
    fn read(method: &str, uri: &str, header: impl Fn(&str) -> Option<String>, body: &[u8]) -> Self {
        let uri: http::Uri = uri.parse().expect("the SDK writes URIs");
        let decode = |text: &str| percent_decode_str(text).decode_utf8().expect("keys are UTF-8").into_owned();
        let query: Vec<_> = uri
            .query()
            .into_iter()
            .flat_map(|query| query.split('&'))
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .map(|(name, value)| (decode(name), decode(value)))
            .collect();
        let key = uri.path().trim_start_matches('/').split_once('/').map_or("", |(_, key)| key);
        let verb = match (method, key) {
            ("GET", "") => "LIST",
            ("GET", _) => "GET",
            ("HEAD", _) => "HEAD",
            ("PUT", _) => "PUT",
            ("DELETE", _) => "DELETE",
            (other, _) => unreachable!("no function of ours sends {other}"),
        };
        let mut read = Self {
            call: Call { verb, key: decode(key) },
            query,
            if_match: header("if-match"),
            if_none_match: header("if-none-match"),
            body: String::from_utf8(body.to_vec()).expect("what we write is text"),
        };
        if verb == "LIST" {
            read.call.key = read.parameter("prefix").unwrap_or_default().to_owned();
        }
        read
    }

    fn parameter(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }
}

// === impl Answer ===

impl Answer {
    fn into_http(self) -> HttpResponse {
        let Self(status, etag, body) = self;
        let length = body.len().to_string();
        let mut response = HttpResponse::new(status.try_into().expect("a status"), SdkBody::from(body.into_bytes()));
        response.headers_mut().insert("content-length", length);
        if let Some(etag) = etag {
            response.headers_mut().insert("etag", etag);
        }
        response
    }
}

fn refusal(status: u16, code: &str) -> Answer {
    Answer(status, None, format!("<Error><Code>{code}</Code></Error>"))
}

// === impl Bucket ===

impl Bucket {
    /// Answer an HTTP request, for a server in front of the bucket.
    ///
    /// # Panics
    /// When it is none that the functions send.
    #[must_use]
    pub fn answer(&self, method: &str, uri: &str, header: impl Fn(&str) -> Option<String>, body: &[u8]) -> Answer {
        let request = Request::read(method, uri, header, body);
        let answer = self.serve(&request);
        self.count(request, &answer);
        answer
    }

    fn count(&self, request: Request, answer: &Answer) {
        let mut traffic = self.traffic.lock().unwrap_or_else(PoisonError::into_inner);
        traffic.bytes += request.body.len() + answer.2.len();
        traffic.calls.push(request.call);
    }

    /// One request, at once and whole.
    fn serve(&self, request: &Request) -> Answer {
        let key = &request.call.key;
        self.with(|objects| match request.call.verb {
            "LIST" => list(objects, request),
            "PUT" => put(objects, request),
            "DELETE" => {
                objects.remove(key);
                Answer(204, None, String::new())
            }
            verb => match objects.get(key) {
                Some((_, etag)) if verb == "HEAD" => Answer(200, Some(etag.clone()), String::new()),
                Some((body, etag)) => Answer(200, Some(etag.clone()), body.clone()),
                None if verb == "HEAD" => Answer(404, None, String::new()),
                None => refusal(404, "NoSuchKey"),
            },
        })
    }
}

fn put(objects: &mut Objects, request: &Request) -> Answer {
    let key = &request.call.key;
    let present = objects.get(key).map(|(_, etag)| etag);
    match (&request.if_match, present) {
        (Some(_), None) => return refusal(404, "NoSuchKey"),
        (Some(expected), Some(present)) if expected != present => return refusal(412, "PreconditionFailed"),
        _ if request.if_none_match.is_some() && present.is_some() => return refusal(412, "PreconditionFailed"),
        _ => {}
    }
    let etag = etag_of(&request.body);
    objects.insert(key.clone(), (request.body.clone(), etag.clone()));
    Answer(200, Some(etag), String::new())
}

fn list(objects: &Objects, request: &Request) -> Answer {
    let prefix = request.call.key.as_str();
    let after = request.parameter("continuation-token").or(request.parameter("start-after")).unwrap_or_default();
    let limit = request.parameter("max-keys").map_or(MAX_KEYS, |keys| keys.parse().expect("a number")).min(MAX_KEYS);
    let delimiter = request.parameter("delimiter").filter(|delimiter| !delimiter.is_empty());
    let written_key = |key: &str| match request.parameter("encoding-type") {
        Some(_) => utf8_percent_encode(key, ENCODED).to_string().replace("%20", "+"),
        None => escaped(key),
    };
    let (mut contents, mut folders) = (String::new(), String::new());
    let (mut count, mut last, mut is_truncated) = (0, "", false);
    let from = if after >= prefix { Bound::Excluded(after) } else { Bound::Included(prefix) };
    for (key, (body, etag)) in objects.range::<str, _>((from, Bound::Unbounded)) {
        let Some(rest) = key.strip_prefix(prefix) else { break };
        let folder = delimiter.and_then(|delimiter| rest.split_once(delimiter).map(|(name, _)| name));
        let folder = folder.map(|name| &key[..=prefix.len() + name.len()]);
        // All below a folder is one item of the answer, which was given where this listing goes on after it.
        if folder.is_some_and(|folder| folder == last || after.starts_with(folder)) {
            continue;
        }
        if count == limit {
            is_truncated = true;
            break;
        }
        count += 1;
        last = folder.unwrap_or(key);
        let written = match folder {
            Some(folder) => {
                write!(folders, "<CommonPrefixes><Prefix>{}</Prefix></CommonPrefixes>", written_key(folder))
            }
            None => write!(
                contents,
                "<Contents><Key>{}</Key><ETag>{}</ETag><Size>{}</Size></Contents>",
                written_key(key),
                escaped(etag),
                body.len()
            ),
        };
        written.expect("a text can be written to");
    }
    let token = if is_truncated {
        format!("<NextContinuationToken>{}</NextContinuationToken>", escaped(last))
    } else {
        String::new()
    };
    let body = format!(
        "<ListBucketResult><IsTruncated>{is_truncated}</IsTruncated>{token}{contents}{folders}</ListBucketResult>"
    );
    Answer(200, None, body)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
