//! From the Lambda runtime to a handler. `lambda_http` panics over events whose parts make no URI (a bare `<` in the
//! query, which clients may send and API Gateway passes on); such parts are escaped first, and refused later as what
//! they are.

use base64::{Engine, prelude::BASE64_STANDARD};
use lambda_http::{
    Adapter, Body, Error, LambdaEvent, Request, Response, aws_lambda_events::apigw::ApiGatewayV2httpRequest,
    http::header, lambda_runtime, request::LambdaRequest, service_fn, tower::ServiceBuilder,
};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

/// What may not stand bare in the query of a URI (RFC 3986, section 3.4); everything beyond ASCII is escaped too.
const NOT_IN_A_QUERY: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'#').add(b'<').add(b'>');

/// Serve requests until the environment is ended.
///
/// # Errors
/// The runtime's API fails.
pub async fn serve<F: Future<Output = Result<Response<Body>, Error>> + Send>(
    handler: impl Fn(Request) -> F,
) -> Result<(), Error> {
    let service = ServiceBuilder::new()
        .map_request(|event: LambdaEvent<LambdaRequest>| LambdaEvent { payload: harmless(event.payload), ..event })
        .layer_fn(Adapter::from)
        .service(service_fn(handler));
    lambda_runtime::run(service).await
}

/// The request of an event, as handlers get it.
#[must_use]
pub fn request_of(event: LambdaRequest) -> Request {
    harmless(event).into()
}

fn harmless(mut request: LambdaRequest) -> LambdaRequest {
    if let LambdaRequest::ApiGatewayV2(event) = &mut request {
        escape(event);
    }
    request
}

fn escape(event: &mut ApiGatewayV2httpRequest) {
    if let Some(query) = &mut event.raw_query_string {
        *query = utf8_percent_encode(query, NOT_IN_A_QUERY).to_string();
    }
    // Nobody reads them, and they can be wrong in more ways than can be told (a host with port 99999999).
    event.headers.remove(header::HOST);
    event.headers.remove("x-forwarded-proto");
    if event.is_base64_encoded && event.body.as_ref().is_some_and(|body| BASE64_STANDARD.decode(body).is_err()) {
        event.is_base64_encoded = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lambda_http::RequestExt;

    /// A request as the handlers get it.
    fn arriving(query: &str, body: &str, is_base64_encoded: bool) -> Request {
        let event = serde_json::json!({
            "version": "2.0", "routeKey": "$default", "rawPath": "/train", "rawQueryString": query,
            "headers": {"host": "a:99999999", "x-forwarded-proto": "a b"}, "body": body, "isBase64Encoded": is_base64_encoded,
            "requestContext": {
                "accountId": "1", "apiId": "a", "stage": "$default", "requestId": "r", "routeKey": "$default", "timeEpoch": 0,
                "http": {"method": "GET", "path": "/train", "protocol": "HTTP/1.1", "sourceIp": "127.0.0.1", "userAgent": ""},
            },
        });
        let event: LambdaRequest = serde_json::from_str(&event.to_string()).expect("an event");
        request_of(event)
    }

    #[test]
    fn what_makes_no_uri_arrives_all_the_same() {
        for query in ["a=<script>", "a=b c", "a=\"#\"", "a=é", "a=\u{1}"] {
            let request = arriving(query, "", false);
            let value = query.split_once('=').map(|(_, value)| value);
            assert_eq!(request.query_string_parameters().first("a"), value, "{query}");
        }
        assert_eq!(arriving("a=%3C&b=1%2B1", "", false).query_string_parameters().first("b"), Some("1+1"));
    }

    #[test]
    fn a_body_that_is_not_base64_is_taken_as_it_is() {
        assert_eq!(arriving("", "e30=", true).body().as_ref(), b"{}");
        assert_eq!(arriving("", "%%%", true).body().as_ref(), b"%%%");
    }
}
