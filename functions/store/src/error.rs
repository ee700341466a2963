//! What S3's refusals mean: an object that is not there, one that nobody is given, another one, or a failure.

use aws_sdk_s3::{
    error::{ProvideErrorMetadata, SdkError},
    operation::{
        delete_object::DeleteObjectError, get_object::GetObjectError, head_object::HeadObjectError,
        list_objects_v2::ListObjectsV2Error, put_object::PutObjectError,
    },
};
use thiserror::Error;
use training_run::entry::IndexError;

/// S3 did not do what was asked.
#[derive(Debug, Error)]
#[error("cannot {verb} s3://{bucket}/{key}")]
pub struct StoreError {
    verb: &'static str,
    bucket: String,
    key: String,
    is_timeout: bool,
    #[source]
    source: Box<dyn std::error::Error + Send + Sync>,
}

/// Why S3 does not give an object: because of how it is stored, and not of who asks or when.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Withheld {
    /// In an archive, and not restored.
    #[error("is archived")]
    Archived,
    /// With a key of the writer's own (SSE-C), which nobody else has.
    #[error("is encrypted with a key that S3 does not keep")]
    Encrypted,
}

// === impl StoreError ===

impl StoreError {
    pub(crate) fn new(
        verb: &'static str,
        bucket: &str,
        key: &str,
        source: Box<dyn std::error::Error + Send + Sync>,
    ) -> Self {
        Self { verb, bucket: bucket.to_owned(), key: key.to_owned(), is_timeout: false, source }
    }

    pub(crate) fn of_sdk<E>(verb: &'static str, bucket: &str, key: &str, error: SdkError<E>) -> Self
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        let is_timeout = matches!(error, SdkError::TimeoutError(_));
        Self { is_timeout, ..Self::new(verb, bucket, key, Box::new(error)) }
    }

    /// Whether S3 was reached and did not answer in time.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        self.is_timeout
    }

    /// Whether repeating the call is of no use: S3 refuses it until somebody changes the deployment, or what is there cannot
    /// be read.
    #[must_use]
    pub fn is_final(&self) -> bool {
        let source = &*self.source;
        source.is::<Withheld>()
            || source.is::<IndexError>()
            || is_refused::<GetObjectError>(source)
            || is_refused::<HeadObjectError>(source)
            || is_refused::<ListObjectsV2Error>(source)
            || is_refused::<PutObjectError>(source)
            || is_refused::<DeleteObjectError>(source)
    }
}

/// Whether S3 refuses a call for a reason that does not pass: permissions, or a bucket or KMS key that is not there.
///
/// Source: Amazon S3 API Reference, "Error responses".
fn is_refused<E: ProvideErrorMetadata + std::error::Error + 'static>(
    source: &(dyn std::error::Error + Send + Sync + 'static),
) -> bool {
    let error = source.downcast_ref::<SdkError<E>>().and_then(SdkError::as_service_error);
    matches!(
        error.and_then(E::code),
        Some(
            "AccessDenied"
                | "AccountProblem"
                | "AllAccessDisabled"
                | "AuthorizationHeaderMalformed"
                | "InvalidAccessKeyId"
                | "InvalidBucketName"
                | "KMS.DisabledException"
                | "KMS.NotFoundException"
                | "NoSuchBucket"
                | "PermanentRedirect"
        )
    )
}

/// An absent object; a missing bucket is a failure of the deployment and not meant.
pub(crate) fn is_missing<E: ProvideErrorMetadata>(error: &SdkError<E>) -> bool {
    let status = error.raw_response().map(|response| response.status().as_u16());
    status == Some(404) && error.as_service_error().and_then(E::code) != Some("NoSuchBucket")
}

/// An object that S3 has and does not give because of how it is stored. A denial, of the object or of its KMS key, is not
/// meant: somebody may take it back.
pub(crate) fn withheld<E: ProvideErrorMetadata>(error: &SdkError<E>) -> Option<Withheld> {
    let error = error.as_service_error()?;
    match error.code()? {
        "InvalidObjectState" => Some(Withheld::Archived),
        // The code is that of many bad requests; the text says which.
        "InvalidRequest" if error.message()?.contains("Server Side Encryption") => Some(Withheld::Encrypted),
        _ => None,
    }
}

/// The object is another one than expected, or was being written at the same time (409), or is gone (404).
pub(crate) fn is_another<E: ProvideErrorMetadata>(error: &SdkError<E>) -> bool {
    let status = error.raw_response().map(|response| response.status().as_u16());
    matches!(status, Some(409 | 412)) || is_missing(error)
}
