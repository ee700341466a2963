//! How the functions reach AWS: time limits, and whose certificates are believed.
//!
//! ```text
//! region, AWS_CA_BUNDLE ─> trust store ─┐
//! attempt and call time limits ─────────┴─> SdkConfig ─> clients of S3, EKS and Secrets Manager
//! ```
//! The SDK alone would read the system's 140 certificates at every cold start. Endpoints of AWS' commercial regions are
//! signed by Amazon's own five authorities, which are built in; other partitions have others, and there the system's
//! are read. `AWS_CA_BUNDLE`, known from the AWS CLI, takes the place of both: for endpoints behind a proxy that ends TLS.
//!
//! [`config`] makes the one configuration of all clients, and a [`ConfigError`] says why it cannot.

use std::{env, fs, io, time::Duration};

use aws_config::{BehaviorVersion, SdkConfig, timeout::TimeoutConfig};
use aws_smithy_http_client::{
    Builder,
    tls::{self, TlsContext, TrustStore, rustls_provider::CryptoMode},
};
use thiserror::Error;

/// Amazon Root CA 1 to 4 and Starfield Services Root CA - G2, until 2037 at least. Source: amazontrust.com/repository.
const AMAZON_ROOTS: &str = include_str!("amazon-roots.pem");
/// How the names of regions begin whose endpoints may be signed by others: China, `GovCloud`, the isolated and the
/// European sovereign partitions.
const OTHER_PARTITIONS: [&str; 5] = ["cn-", "us-gov-", "us-iso", "eu-isoe-", "eusc-"];
const CONNECT_WITHIN: Duration = Duration::from_secs(2);

/// Why AWS cannot be reached in the way that the settings ask for.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file of `AWS_CA_BUNDLE` cannot be read.
    #[error("AWS_CA_BUNDLE: cannot read {0}")]
    Unreadable(String, #[source] io::Error),
    /// It holds something else.
    #[error("AWS_CA_BUNDLE: {0} holds no certificates in PEM")]
    NoCertificates(String),
    /// The TLS library refuses the settings.
    #[error("TLS to AWS cannot be set up")]
    Tls(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// The configuration of all AWS clients, from the environment as Lambda gives it. Without time limits the SDK would wait
/// for ever.
///
/// # Errors
/// The certificates of `AWS_CA_BUNDLE` cannot be used.
pub async fn config(attempt_within: Duration, call_within: Duration) -> Result<SdkConfig, ConfigError> {
    let region = env::var("AWS_REGION").unwrap_or_default();
    let bundle = env::var("AWS_CA_BUNDLE").ok().filter(|bundle| !bundle.is_empty());
    let context = TlsContext::builder()
        .with_trust_store(trust_store(&region, bundle.as_deref())?)
        .build()
        .map_err(|error| ConfigError::Tls(error.into()))?;
    let http_client =
        Builder::new().tls_provider(tls::Provider::Rustls(CryptoMode::AwsLc)).tls_context(context).build_https();
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(CONNECT_WITHIN)
        .operation_attempt_timeout(attempt_within)
        .operation_timeout(call_within)
        .build();
    Ok(aws_config::defaults(BehaviorVersion::latest()).http_client(http_client).timeout_config(timeouts).load().await)
}

fn trust_store(region: &str, bundle: Option<&str>) -> Result<TrustStore, ConfigError> {
    if let Some(path) = bundle {
        let certificates = fs::read(path).map_err(|error| ConfigError::Unreadable(path.to_owned(), error))?;
        let are_certificates = pem::parse_many(&certificates)
            .is_ok_and(|parts| !parts.is_empty() && parts.iter().all(|part| part.tag() == "CERTIFICATE"));
        // The SDK panics over others.
        return are_certificates
            .then(|| TrustStore::empty().with_pem_certificate(certificates))
            .ok_or_else(|| ConfigError::NoCertificates(path.to_owned()));
    }
    let is_commercial = !region.is_empty() && !OTHER_PARTITIONS.iter().any(|other| region.starts_with(other));
    Ok(if is_commercial { TrustStore::empty().with_pem_certificate(AMAZON_ROOTS) } else { TrustStore::default() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};

    /// As published with the certificates.
    const FINGERPRINTS: [&str; 5] = [
        "8ecde6884f3d87b1125ba31ac3fcb13d7016de7f57cc904fe1cb97c6ae98196e",
        "1ba5b2aa8c65401a82960118f80bec4f62304d83cec4713a19c39c011ea46db4",
        "18ce6cfe7bf14e60b2e347b8dfe868cb31d02ebb3ada271569f50343b46db3a4",
        "e35d28419ed02025cfa69038cd623962458da5c695fbdea3c22b0bfb25897092",
        "568d6905a2c88708a4b3025190edcfedb1974a606a13c6e5290fcb2ae63edab5",
    ];

    /// Whether a store is the system's.
    fn is_native(region: &str) -> bool {
        format!("{:?}", trust_store(region, None).expect("a store")).contains("enable_native_roots: true")
    }

    #[test]
    fn the_built_in_authorities_are_amazons() {
        let certificates = pem::parse_many(AMAZON_ROOTS).expect("PEM");
        let fingerprints: Vec<_> =
            certificates.iter().map(|certificate| format!("{:x}", Sha256::digest(certificate.contents()))).collect();
        assert_eq!(fingerprints, FINGERPRINTS);
    }

    #[test]
    fn only_commercial_regions_are_known_to_be_signed_by_them() {
        for region in ["us-east-1", "eu-central-2", "ap-southeast-5", "il-central-1", "us-west-2"] {
            assert!(!is_native(region), "{region}");
        }
        for region in ["", "cn-north-1", "us-gov-west-1", "us-iso-east-1", "us-isob-east-1", "eusc-de-east-1"] {
            assert!(is_native(region), "{region}");
        }
    }

    #[test]
    fn a_bundle_without_certificates_is_refused() {
        let absent = trust_store("us-east-1", Some("/absent")).expect_err("no file").to_string();
        assert!(absent.contains("cannot read /absent"), "{absent}");
        let other =
            trust_store("us-east-1", Some(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))).expect_err("no PEM");
        assert!(other.to_string().contains("holds no certificates"), "{other}");
        let own = concat!(env!("CARGO_MANIFEST_DIR"), "/src/amazon-roots.pem");
        assert!(trust_store("cn-north-1", Some(own)).is_ok());
    }
}
