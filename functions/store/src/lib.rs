//! The runs bucket: the verbs that the functions need, with S3's answers turned into facts, and what takes several calls:
//! choosing a checkpoint, writing an entry, finding a log's end. Keys and rules are `training-run`'s.
//!
//! ```text
//! Store ─┬─ get, read, identity, has_key, list_*, put, put_if, delete ─> S3      here: the verbs
//!        ├─ checkpoints: latest, best, one step, index_page, lineage             which checkpoint is meant
//!        ├─ entries: read a marker, write its entry and digest
//!        ├─ log: the newest parts of an archived log
//!        └─ provenance: a run's owner, a job's record, and which job they confirm
//! ```
//! The domain's objects:
//!
//! - A [`Store`] is a client of the bucket, and a [`StoreError`] says that S3 did not do what was asked.
//! - A [`Read`] says what reading a key came to, and [`Withheld`] why S3 gives an object to nobody. An [`Object`] is one that
//!   was read, its [`Identity`] which one it was, and [`Expected`] which one a write may replace.
//! - A [`Snapshot`] is what stands at a step now. Its [`Found`] says whether that is a checkpoint, with the entry that the
//!   index should have. An [`IndexPage`] has some entries of the index.
//! - [`OwnerFound`] is what stands where a run's owner is kept, and a [`LogPart`] one object of a log.

mod checkpoints;
mod entries;
mod error;
mod log;
mod provenance;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

use aws_sdk_s3::{
    Client, operation::list_objects_v2::builders::ListObjectsV2FluentBuilder, primitives::ByteStream,
    types::EncodingType,
};
use training_run::{marker::File, s3_event::form_decode};

pub use checkpoints::IndexPage;
pub use entries::{Found, IndexingError, Snapshot, Unusable, digest_key};
pub use error::{StoreError, Withheld};
use error::{is_another, is_missing, withheld};
pub use log::LogPart;
pub use provenance::OwnerFound;

/// Largest object that is read, in bytes: all that the functions read is text, and a function has little memory.
const MAX_OBJECT_BYTES: usize = 16 * 1024 * 1024;

/// Keys of one page of a listing: as many as S3 gives.
const MAX_PAGE: i32 = 1_000;

/// A client of one S3 endpoint.
#[derive(Clone, Debug)]
pub struct Store {
    client: Client,
}

/// An object that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// The content.
    pub body: Vec<u8>,
    /// Which object it was.
    pub identity: Identity,
}

/// What reading a key came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Read {
    /// No object.
    Nothing,
    /// An object.
    Object(Object),
    /// An object that is larger than what was asked for, and was not read.
    TooLarge(Identity),
    /// An object that S3 gives to nobody who asks as we do.
    Withheld(Withheld),
}

/// Which object stands at a key. Where the bucket keeps versions, one that was written again with the same content is
/// another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// `ETag` with its quotes.
    pub etag: String,
    /// Version, in a bucket that keeps them.
    pub version: Option<String>,
}

/// What must be there for a conditional write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Nothing.
    Absent,
    /// The object that has this `ETag`.
    Etag(String),
}

// === impl Store ===

impl Store {
    /// A store behind this client.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    /// Read an object; `None` when there is none.
    ///
    /// # Errors
    /// S3 cannot be reached or denies the request, or the object cannot be read.
    pub async fn get(&self, bucket: &str, key: &str) -> Result<Option<Object>, StoreError> {
        self.get_within(bucket, key, MAX_OBJECT_BYTES).await
    }

    /// Read an object that has at most so many bytes; `None` when it does not exist.
    async fn get_within(&self, bucket: &str, key: &str, max_bytes: usize) -> Result<Option<Object>, StoreError> {
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| StoreError::new("read", bucket, key, source);
        match self.read(bucket, key, max_bytes).await? {
            Read::Nothing => Ok(None),
            Read::Object(object) => Ok(Some(object)),
            Read::TooLarge(_) => Err(failed(format!("it is larger than {max_bytes} bytes").into())),
            Read::Withheld(why) => Err(failed(Box::new(why))),
        }
    }

    /// Read an object of at most so many bytes, if it can be read at all.
    ///
    /// # Errors
    /// S3 cannot be reached or denies the request, which may be otherwise the next time.
    pub async fn read(&self, bucket: &str, key: &str, max_bytes: usize) -> Result<Read, StoreError> {
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| StoreError::new("read", bucket, key, source);
        let output = match self.client.get_object().bucket(bucket).key(key).send().await {
            Ok(output) => output,
            Err(error) if is_missing(&error) => return Ok(Read::Nothing),
            Err(error) => match withheld(&error) {
                Some(why) => return Ok(Read::Withheld(why)),
                None => return Err(StoreError::of_sdk("read", bucket, key, error)),
            },
        };
        let identity = Identity { etag: output.e_tag.unwrap_or_default(), version: output.version_id };
        let bytes = output.content_length.and_then(|bytes| usize::try_from(bytes).ok());
        if bytes.is_some_and(|bytes| bytes > max_bytes) {
            return Ok(Read::TooLarge(identity));
        }
        let body = output.body.collect().await.map_err(|error| failed(Box::new(error)))?;
        Ok(Read::Object(Object { body: body.to_vec(), identity }))
    }

    /// Which object stands at a key; `None` when there is none.
    ///
    /// # Errors
    /// S3 cannot be reached or denies the request.
    pub async fn identity(&self, bucket: &str, key: &str) -> Result<Option<Identity>, StoreError> {
        match self.client.head_object().bucket(bucket).key(key).send().await {
            Ok(output) => Ok(Some(Identity { etag: output.e_tag.unwrap_or_default(), version: output.version_id })),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(StoreError::of_sdk("read the metadata of", bucket, key, error)),
        }
    }

    /// Write an object.
    ///
    /// # Errors
    /// S3 cannot be reached or denies the request.
    pub async fn put(&self, bucket: &str, key: &str, body: Vec<u8>) -> Result<(), StoreError> {
        let request = self.client.put_object().bucket(bucket).key(key).content_type("application/json");
        match request.body(ByteStream::from(body)).send().await {
            Ok(_) => Ok(()),
            Err(error) => Err(StoreError::of_sdk("write", bucket, key, error)),
        }
    }

    /// Write an object where only the expected one is; the new one's `ETag`, or `None` when another writer was quicker.
    ///
    /// # Errors
    /// S3 cannot be reached or denies the request.
    pub async fn put_if(
        &self,
        bucket: &str,
        key: &str,
        body: Vec<u8>,
        expected: Expected,
    ) -> Result<Option<String>, StoreError> {
        let request = self.client.put_object().bucket(bucket).key(key).content_type("application/json");
        let request = match expected {
            Expected::Absent => request.if_none_match("*"),
            Expected::Etag(etag) => request.if_match(etag),
        };
        match request.body(ByteStream::from(body)).send().await {
            Ok(output) => Ok(Some(output.e_tag.unwrap_or_default())),
            Err(error) if is_another(&error) => Ok(None),
            Err(error) => Err(StoreError::of_sdk("write", bucket, key, error)),
        }
    }

    /// A listing whose keys and folders come encoded: XML cannot hold every character, and a page with such a key would not
    /// be read at all.
    fn listing(&self, bucket: &str, prefix: &str) -> ListObjectsV2FluentBuilder {
        self.client.list_objects_v2().bucket(bucket).prefix(prefix).encoding_type(EncodingType::Url)
    }

    /// All keys directly in the folder that `prefix` lies in that begin with it.
    ///
    /// # Errors
    /// S3 cannot be reached or denies the request.
    pub async fn list_names(&self, bucket: &str, prefix: &str) -> Result<Vec<String>, StoreError> {
        let request = self.listing(bucket, prefix).delimiter("/");
        let mut pages = request.into_paginator().send();
        let mut keys = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|error| StoreError::of_sdk("list", bucket, prefix, error))?;
            keys.extend(page.contents.into_iter().flatten().filter_map(|object| decoded(object.key)));
        }
        Ok(keys)
    }

    /// All keys that begin with `prefix`.
    ///
    /// # Errors
    /// S3 cannot be reached or denies the request.
    pub async fn list_all(&self, bucket: &str, prefix: &str) -> Result<Vec<String>, StoreError> {
        let mut pages = self.listing(bucket, prefix).into_paginator().send();
        let mut keys = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|error| StoreError::of_sdk("list", bucket, prefix, error))?;
            keys.extend(page.contents.into_iter().flatten().filter_map(|object| decoded(object.key)));
        }
        Ok(keys)
    }

    /// The names of the folders directly in a folder, each with its slash; `folder` is empty or ends in one.
    ///
    /// # Errors
    /// S3 cannot be reached or denies the request.
    pub async fn list_folders(&self, bucket: &str, folder: &str) -> Result<Vec<String>, StoreError> {
        let request = self.listing(bucket, folder).delimiter("/");
        let mut pages = request.into_paginator().send();
        let mut names = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|error| StoreError::of_sdk("list", bucket, folder, error))?;
            let prefixes = page.common_prefixes.into_iter().flatten().filter_map(|common| decoded(common.prefix));
            names.extend(prefixes.filter_map(|prefix| Some(prefix.strip_prefix(folder)?.to_owned())));
        }
        Ok(names)
    }

    /// Whether a key directly in the folder that `prefix` lies in begins with it and is a wanted one.
    ///
    /// # Errors
    /// S3 cannot be reached or denies the request.
    pub async fn has_key(
        &self,
        bucket: &str,
        prefix: &str,
        is_wanted: impl Fn(&str) -> bool,
    ) -> Result<bool, StoreError> {
        let request = self.listing(bucket, prefix).delimiter("/");
        let mut pages = request.into_paginator().send();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|error| StoreError::of_sdk("list", bucket, prefix, error))?;
            if page.contents.into_iter().flatten().filter_map(|object| decoded(object.key)).any(|key| is_wanted(&key)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Delete an object, if there is one.
    ///
    /// # Errors
    /// S3 cannot be reached or denies the request.
    pub async fn delete(&self, bucket: &str, key: &str) -> Result<(), StoreError> {
        match self.client.delete_object().bucket(bucket).key(key).send().await {
            Ok(_) => Ok(()),
            Err(error) => Err(StoreError::of_sdk("delete", bucket, key, error)),
        }
    }

    /// List the objects whose keys begin with `prefix`, in the order of their keys, and no further pages once there are
    /// `most`; the paths returned are relative to `folder`, which `prefix` begins with.
    ///
    /// # Errors
    /// S3 cannot be reached or denies the request.
    pub async fn list_files(
        &self,
        bucket: &str,
        folder: &str,
        prefix: &str,
        most: usize,
    ) -> Result<Vec<File>, StoreError> {
        let request = self.listing(bucket, prefix);
        let mut pages = request.max_keys(i32::try_from(most).unwrap_or(i32::MAX).min(MAX_PAGE)).into_paginator().send();
        let mut files = Vec::new();
        while files.len() < most
            && let Some(page) = pages.next().await
        {
            let page = page.map_err(|error| StoreError::of_sdk("list", bucket, prefix, error))?;
            files.extend(page.contents.into_iter().flatten().filter_map(|object| {
                Some(File {
                    path: decoded(object.key)?.strip_prefix(folder)?.to_owned(),
                    size: u64::try_from(object.size.unwrap_or_default()).ok()?,
                    etag: object.e_tag,
                })
            }));
        }
        Ok(files)
    }

    /// The first `limit` (at most 1,000) keys that begin with `prefix` and come after `after`.
    ///
    /// # Errors
    /// S3 cannot be reached or denies the request.
    pub async fn list_keys(
        &self,
        bucket: &str,
        prefix: &str,
        after: Option<String>,
        limit: i32,
    ) -> Result<Vec<String>, StoreError> {
        let request = self.listing(bucket, prefix).set_start_after(after);
        match request.max_keys(limit).send().await {
            Ok(page) => Ok(page.contents.into_iter().flatten().filter_map(|object| decoded(object.key)).collect()),
            Err(error) => Err(StoreError::of_sdk("list", bucket, prefix, error)),
        }
    }
}

/// A key or folder as a listing has it; S3 has none that is not UTF-8.
fn decoded(text: Option<String>) -> Option<String> {
    Some(form_decode(&text?)?.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_sdk_s3::operation::{get_object::GetObjectOutput, list_objects_v2::ListObjectsV2Output};
    use aws_sdk_s3::types::Object as Listed;
    use aws_smithy_mocks::{RuleMode, mock, mock_client};

    fn refusing(status: u16, code: &str, message: &str) -> Store {
        let body = format!("<Error><Code>{code}</Code><Message>{message}</Message></Error>");
        let rule = mock!(Client::get_object).then_http_response(move || {
            aws_sdk_s3::config::http::HttpResponse::new(status.try_into().expect("a status"), body.clone().into())
        });
        let client = mock_client!(aws_sdk_s3, RuleMode::MatchAny, &[&rule], |config| config
            .retry_config(aws_sdk_s3::config::retry::RetryConfig::disabled()));
        Store::new(client)
    }

    fn missing(code: &str) -> Store {
        refusing(404, code, "")
    }

    #[tokio::test]
    async fn an_absent_object_is_none_and_an_absent_bucket_a_failure() {
        assert_eq!(missing("NoSuchKey").get("bucket", "key").await.expect("an answer"), None);
        let error = missing("NoSuchBucket").get("bucket", "key").await.expect_err("no bucket");
        assert_eq!(error.to_string(), "cannot read s3://bucket/key");
    }

    #[tokio::test]
    async fn what_nobody_is_given_is_told_from_what_is_denied() {
        let sse_c = "The object was stored using a form of Server Side Encryption. The correct parameters must be \
                     provided to retrieve the object.";
        for (status, code, message, read) in [
            (
                403,
                "InvalidObjectState",
                "The operation is not valid for the object's storage class",
                Some("is archived"),
            ),
            (400, "InvalidRequest", sse_c, Some("is encrypted with a key that S3 does not keep")),
            (400, "InvalidRequest", "Missing required header", None),
            (403, "AccessDenied", "Access Denied", None),
            (400, "KMS.DisabledException", "the key is disabled", None),
            (403, "KMS.AccessDeniedException", "the key is denied", None),
            (503, "SlowDown", "Please reduce your request rate.", None),
            (500, "InternalError", "", None),
        ] {
            let store = refusing(status, code, message);
            let found = store.read("bucket", "key", 1).await.ok().map(|read| match read {
                Read::Withheld(why) => why.to_string(),
                other => format!("{other:?}"),
            });
            assert_eq!(found.as_deref(), read, "{code}: {message}");
            assert!(store.get("bucket", "key").await.is_err(), "{code}: {message}");
        }
    }

    #[tokio::test]
    async fn a_refusal_that_does_not_pass_is_told_from_one_that_may() {
        for (status, code, is_final) in [
            (403, "AccessDenied", true),
            (404, "NoSuchBucket", true),
            (301, "PermanentRedirect", true),
            (403, "InvalidObjectState", true),
            (400, "KMS.DisabledException", true),
            (400, "ExpiredToken", false),
            (503, "SlowDown", false),
            (500, "InternalError", false),
        ] {
            let error = refusing(status, code, "").get("bucket", "key").await.expect_err("refused");
            assert_eq!(error.is_final(), is_final, "{code}: {error:?}");
        }
        let store = testing::denied();
        let refusals = [
            store.list_names("bucket", "r/").await.map(drop),
            store.list_keys("bucket", "r/", None, 1).await.map(drop),
            store.put("bucket", "key", Vec::new()).await,
            store.put_if("bucket", "key", Vec::new(), Expected::Absent).await.map(drop),
            store.delete("bucket", "key").await,
        ];
        for refusal in refusals {
            assert!(refusal.as_ref().is_err_and(StoreError::is_final), "{refusal:?}");
        }
    }

    #[tokio::test]
    async fn an_object_comes_with_its_etag() {
        let rule = mock!(Client::get_object)
            .then_output(|| GetObjectOutput::builder().e_tag("\"e\"").body(ByteStream::from_static(b"x")).build());
        let store = Store::new(mock_client!(aws_sdk_s3, &[&rule]));
        let object = store.get("bucket", "key").await.expect("an answer").expect("an object");
        assert_eq!((object.body.as_slice(), object.identity.etag.as_str()), (&b"x"[..], "\"e\""));
    }

    #[tokio::test]
    async fn a_conditional_write_tells_a_lost_race_from_a_failure() {
        for (status, written) in [(412, Some(None)), (409, Some(None)), (404, Some(None)), (403, None), (500, None)] {
            let rule = mock!(Client::put_object).then_http_response(move || {
                aws_sdk_s3::config::http::HttpResponse::new(status.try_into().expect("a status"), "".into())
            });
            let client = mock_client!(aws_sdk_s3, RuleMode::MatchAny, &[&rule], |config| config
                .retry_config(aws_sdk_s3::config::retry::RetryConfig::disabled()));
            let answer = Store::new(client).put_if("bucket", "key", Vec::new(), Expected::Absent).await;
            assert_eq!(answer.ok(), written, "{status}");
        }
        let rule = mock!(Client::put_object)
            .match_requests(|input| input.if_match() == Some("\"e\"") && input.if_none_match().is_none())
            .then_output(|| aws_sdk_s3::operation::put_object::PutObjectOutput::builder().e_tag("\"f\"").build());
        let store = Store::new(mock_client!(aws_sdk_s3, &[&rule]));
        let etag = store.put_if("bucket", "key", Vec::new(), Expected::Etag("\"e\"".to_owned())).await;
        assert_eq!(etag.expect("an answer").as_deref(), Some("\"f\""));
    }

    #[tokio::test]
    async fn an_object_that_takes_too_much_memory_is_not_read() {
        for (bytes, is_read) in [(MAX_OBJECT_BYTES, true), (MAX_OBJECT_BYTES + 1, false)] {
            let rule = mock!(Client::get_object).then_output(move || {
                let bytes = bytes.try_into().expect("a length");
                GetObjectOutput::builder().content_length(bytes).body(ByteStream::from_static(b"x")).build()
            });
            let store = Store::new(mock_client!(aws_sdk_s3, &[&rule]));
            assert_eq!(store.get("bucket", "key").await.is_ok(), is_read, "{bytes}");
        }
    }

    #[tokio::test]
    async fn no_key_spoils_a_listing_for_the_others() {
        let keys = ["r/\u{1}", "r/a b+c%2B&é/x", "r/a b+c%2B&é/\u{ffff}/x", "r/m"];
        let bucket = testing::Bucket::holding(keys.map(|key| (key, "data".to_owned())));
        let store = bucket.store();
        assert_eq!(store.list_names("bucket", "r/").await.expect("a listing"), ["r/\u{1}", "r/m"]);
        assert_eq!(store.list_folders("bucket", "r/").await.expect("a listing"), ["a b+c%2B&é/"]);
        assert!(store.has_key("bucket", "r/", |key| key == "r/m").await.expect("an answer"));
        let after = store.list_keys("bucket", "r/", Some("r/\u{1}".to_owned()), 5).await.expect("a listing");
        assert_eq!(after, keys[1..]);
        let files = store.list_files("bucket", "r/", "r/a b+", 5).await.expect("a listing");
        let paths: Vec<_> = files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(paths, ["a b+c%2B&é/x", "a b+c%2B&é/\u{ffff}/x"]);
    }

    #[tokio::test]
    async fn listings_are_read_to_the_end_and_relative() {
        let page = |key: &str, next: Option<&str>| {
            ListObjectsV2Output::builder()
                .contents(Listed::builder().key(key).size(3).e_tag("\"e\"").build())
                .set_next_continuation_token(next.map(str::to_owned))
                .is_truncated(next.is_some())
                .build()
        };
        let first = mock!(Client::list_objects_v2)
            .match_requests(|input| input.continuation_token().is_none() && input.prefix() == Some("r/checkpoints/c"))
            .then_output(move || page("r/checkpoints/c/a", Some("more")));
        let second = mock!(Client::list_objects_v2)
            .match_requests(|input| input.continuation_token() == Some("more"))
            .then_output(move || page("r/checkpoints/c/b", None));
        let store = Store::new(mock_client!(aws_sdk_s3, RuleMode::MatchAny, &[&first, &second]));
        let files = store.list_files("bucket", "r/checkpoints/", "r/checkpoints/c", 2).await.expect("a listing");
        let file = |path: &str| File { path: path.to_owned(), size: 3, etag: Some("\"e\"".to_owned()) };
        assert_eq!(files, [file("c/a"), file("c/b")]);
        let first = store.list_files("bucket", "r/checkpoints/", "r/checkpoints/c", 1).await.expect("a listing");
        assert_eq!(first, [file("c/a")], "no page more than it takes");
    }
}
