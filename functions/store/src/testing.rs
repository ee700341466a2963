//! A bucket in memory behind the real client, for tests: the wire is faked, and nothing of ours. It can be read and listed.

use std::{collections::BTreeMap, sync::Arc};

use aws_sdk_s3::{
    Client,
    config::http::HttpResponse,
    operation::{get_object::GetObjectOutput, list_objects_v2::ListObjectsV2Output},
    primitives::ByteStream,
    types::Object,
};
use aws_smithy_mocks::{MockResponse, RuleMode, mock, mock_client};

use crate::Store;

/// The `ETag` of every object.
pub const ETAG: &str = "\"e\"";

/// A store whose bucket, whatever it is called, holds these objects.
///
/// # Panics
/// When the fake itself is wrong.
#[must_use]
pub fn holding<K: Into<String>>(objects: impl IntoIterator<Item = (K, String)>) -> Store {
    let objects: BTreeMap<String, String> = objects.into_iter().map(|(key, body)| (key.into(), body)).collect();
    let objects = Arc::new(objects);
    let listed = Arc::clone(&objects);
    let get =
        mock!(Client::get_object).then_compute_response(move |input| match input.key().map(|key| objects.get(key)) {
            Some(Some(body)) => {
                let length = i64::try_from(body.len()).unwrap_or(i64::MAX);
                let body = ByteStream::from(body.clone().into_bytes());
                MockResponse::Output(GetObjectOutput::builder().e_tag(ETAG).content_length(length).body(body).build())
            }
            Some(None) | None => MockResponse::Http(HttpResponse::new(
                404.try_into().expect("a status"),
                "<Error><Code>NoSuchKey</Code></Error>".into(),
            )),
        });
    let list = mock!(Client::list_objects_v2).then_compute_output(move |input| {
        let (prefix, after) = (input.prefix().unwrap_or_default(), input.start_after().unwrap_or_default());
        let limit = usize::try_from(input.max_keys().unwrap_or(1_000)).unwrap_or_default();
        let found = listed.iter().filter(|(key, _)| key.starts_with(prefix) && key.as_str() > after).take(limit);
        let found = found.map(|(key, body)| {
            let size = i64::try_from(body.len()).unwrap_or(i64::MAX);
            Object::builder().key(key).size(size).e_tag(ETAG).build()
        });
        ListObjectsV2Output::builder().set_contents(Some(found.collect())).is_truncated(false).build()
    });
    Store::new(mock_client!(aws_sdk_s3, RuleMode::MatchAny, &[&get, &list]))
}

/// A store whose bucket nobody may use.
///
/// # Panics
/// When the fake itself is wrong.
#[must_use]
pub fn denied() -> Store {
    fn forbidden() -> HttpResponse {
        HttpResponse::new(403.try_into().expect("a status"), "<Error><Code>AccessDenied</Code></Error>".into())
    }
    let get = mock!(Client::get_object).then_http_response(forbidden);
    let list = mock!(Client::list_objects_v2).then_http_response(forbidden);
    Store::new(mock_client!(aws_sdk_s3, RuleMode::MatchAny, &[&get, &list]))
}
