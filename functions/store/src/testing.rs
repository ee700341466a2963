//! A bucket in memory behind the real client, for tests: the wire is faked, and nothing of ours.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use aws_sdk_s3::{
    Client,
    config::http::HttpResponse,
    operation::{
        get_object::GetObjectOutput,
        list_objects_v2::ListObjectsV2Output,
        put_object::{PutObjectInput, PutObjectOutput},
    },
    primitives::ByteStream,
    types::Object,
};
use aws_smithy_mocks::{MockResponse, RuleMode, mock, mock_client};

use crate::Store;

/// The `ETag` of every object that was there from the beginning.
pub const ETAG: &str = "\"e\"";

/// Key to body and `ETag`.
type Objects = BTreeMap<String, (String, String)>;

/// A bucket, whatever it is called, that can be read, listed and written, also on conditions.
#[derive(Clone, Debug, Default)]
pub struct Bucket(Arc<Mutex<Objects>>);

// === impl Bucket ===

impl Bucket {
    /// A bucket that holds these objects.
    #[must_use]
    pub fn holding<K: Into<String>>(objects: impl IntoIterator<Item = (K, String)>) -> Self {
        let objects = objects.into_iter().map(|(key, body)| (key.into(), (body, ETAG.to_owned())));
        Self(Arc::new(Mutex::new(objects.collect())))
    }

    /// A store of this bucket.
    ///
    /// # Panics
    /// When the fake itself is wrong.
    #[must_use]
    pub fn store(&self) -> Store {
        let (read, listed, written) = (self.clone(), self.clone(), self.clone());
        let get = mock!(Client::get_object).then_compute_response(move |input| {
            match input.key().and_then(|key| read.with(|objects| objects.get(key).cloned())) {
                Some((body, etag)) => {
                    let length = i64::try_from(body.len()).unwrap_or(i64::MAX);
                    let body = ByteStream::from(body.into_bytes());
                    MockResponse::Output(
                        GetObjectOutput::builder().e_tag(etag).content_length(length).body(body).build(),
                    )
                }
                None => MockResponse::Http(refusal(404, "NoSuchKey")),
            }
        });
        let list = mock!(Client::list_objects_v2).then_compute_output(move |input| {
            let (prefix, after) = (input.prefix().unwrap_or_default(), input.start_after().unwrap_or_default());
            let limit = usize::try_from(input.max_keys().unwrap_or(1_000)).unwrap_or_default();
            let found = listed.with(|objects| {
                let found =
                    objects.iter().filter(|(key, _)| key.starts_with(prefix) && key.as_str() > after).take(limit);
                let object = |(key, (body, etag)): (&String, &(String, String))| {
                    let size = i64::try_from(body.len()).unwrap_or(i64::MAX);
                    Object::builder().key(key).size(size).e_tag(etag).build()
                };
                found.map(object).collect()
            });
            ListObjectsV2Output::builder().set_contents(Some(found)).is_truncated(false).build()
        });
        let put = mock!(Client::put_object).then_compute_response(move |input| written.put(input));
        Store::new(mock_client!(aws_sdk_s3, RuleMode::MatchAny, &[&get, &list, &put]))
    }

    /// The body of an object.
    #[must_use]
    pub fn body(&self, key: &str) -> Option<String> {
        self.with(|objects| objects.get(key).map(|(body, _)| body.clone()))
    }

    /// All keys.
    #[must_use]
    pub fn keys(&self) -> Vec<String> {
        self.with(|objects| objects.keys().cloned().collect())
    }

    /// Put an object there past the store, as another writer does.
    pub fn write(&self, key: &str, body: &str) {
        self.with(|objects| {
            let etag = format!("\"{}\"", objects.len() + body.len());
            objects.insert(key.to_owned(), (body.to_owned(), etag))
        });
    }

    fn put(
        &self,
        input: &PutObjectInput,
    ) -> MockResponse<PutObjectOutput, aws_sdk_s3::operation::put_object::PutObjectError> {
        let key = input.key().unwrap_or_default();
        let body = String::from_utf8_lossy(input.body().bytes().unwrap_or_default()).into_owned();
        self.with(|objects| {
            let present = objects.get(key).map(|(_, etag)| etag.clone());
            let is_expected = match (input.if_match(), input.if_none_match()) {
                (Some(etag), _) => present.as_deref() == Some(etag),
                (None, Some(_)) => present.is_none(),
                (None, None) => true,
            };
            if !is_expected {
                return MockResponse::Http(refusal(412, "PreconditionFailed"));
            }
            // Never the one before.
            let etag = format!("{}+", present.unwrap_or_default());
            objects.insert(key.to_owned(), (body, etag.clone()));
            MockResponse::Output(PutObjectOutput::builder().e_tag(etag).build())
        })
    }

    fn with<T>(&self, act: impl FnOnce(&mut Objects) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

/// A store whose bucket holds these objects.
#[must_use]
pub fn holding<K: Into<String>>(objects: impl IntoIterator<Item = (K, String)>) -> Store {
    Bucket::holding(objects).store()
}

/// A store whose bucket nobody may use.
///
/// # Panics
/// When the fake itself is wrong.
#[must_use]
pub fn denied() -> Store {
    fn forbidden() -> HttpResponse {
        refusal(403, "AccessDenied")
    }
    let get = mock!(Client::get_object).then_http_response(forbidden);
    let list = mock!(Client::list_objects_v2).then_http_response(forbidden);
    Store::new(mock_client!(aws_sdk_s3, RuleMode::MatchAny, &[&get, &list]))
}

fn refusal(status: u16, code: &str) -> HttpResponse {
    let body = format!("<Error><Code>{code}</Code></Error>");
    HttpResponse::new(status.try_into().expect("a status"), body.into())
}
