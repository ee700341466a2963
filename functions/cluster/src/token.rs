//! The bearer token of an EKS cluster: a presigned STS `GetCallerIdentity` URL, made here without any call.
//!
//! Source: aws-iam-authenticator `pkg/token/token.go`, whose server side accepts these query parameters only, insists on the
//! signed header `x-k8s-aws-id`, and lets a token live for 15 minutes from its `X-Amz-Date`.

use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::{
    http_request::{SignableBody, SignableRequest, SignatureLocation, SigningSettings, sign},
    sign::v4,
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use secrecy::SecretString;

const HEADER: &str = "x-k8s-aws-id";

/// Mint a token for a cluster.
///
/// # Errors
/// The credentials or names cannot be signed with.
pub(crate) fn mint(
    credentials: Credentials,
    region: &str,
    cluster: &str,
    now: SystemTime,
) -> Result<SecretString, Box<dyn std::error::Error + Send + Sync>> {
    let mut settings = SigningSettings::default();
    settings.signature_location = SignatureLocation::QueryParams;
    settings.expires_in = Some(Duration::from_mins(1));
    let identity = credentials.into();
    let params = v4::SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name("sts")
        .time(now)
        .settings(settings)
        .build()?;
    let url = format!("https://sts.{region}.{}/?Action=GetCallerIdentity&Version=2011-06-15", domain(region));
    let signable = SignableRequest::new("GET", &url, std::iter::once((HEADER, cluster)), SignableBody::Bytes(&[]))?;
    let (instructions, _) = sign(signable, &params.into())?.into_parts();
    let mut request = http::Request::builder().uri(&url).header(HEADER, cluster).body(())?;
    instructions.apply_to_request_http1x(&mut request);
    Ok(format!("k8s-aws-v1.{}", BASE64_URL_SAFE_NO_PAD.encode(request.uri().to_string())).into())
}

/// The domain of a region's partition. Source: botocore `data/partitions.json`, `dnsSuffix`.
fn domain(region: &str) -> &'static str {
    const PARTITIONS: [(&str, &str); 6] = [
        ("cn-", "amazonaws.com.cn"),
        ("us-iso-", "c2s.ic.gov"),
        ("us-isob-", "sc2s.sgov.gov"),
        ("us-isof-", "csp.hci.ic.gov"),
        ("eu-isoe-", "cloud.adc-e.uk"),
        ("eusc-", "amazonaws.eu"),
    ];
    let found = PARTITIONS.iter().find(|(prefix, _)| region.starts_with(prefix));
    // Commercial regions and GovCloud.
    found.map_or("amazonaws.com", |(_, domain)| domain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::ExposeSecret;

    #[test]
    fn a_token_holds_what_the_authenticator_accepts_and_no_more() {
        let credentials = Credentials::new("AKID", "secret", Some("session".to_owned()), None, "test");
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_468_558);
        for (region, host) in [
            ("eu-west-1", "sts.eu-west-1.amazonaws.com"),
            ("us-gov-west-1", "sts.us-gov-west-1.amazonaws.com"),
            ("cn-north-1", "sts.cn-north-1.amazonaws.com.cn"),
            ("us-isob-east-1", "sts.us-isob-east-1.sc2s.sgov.gov"),
            ("eusc-de-east-1", "sts.eusc-de-east-1.amazonaws.eu"),
        ] {
            let token = mint(credentials.clone(), region, "training", now).expect("a token");
            let encoded = token.expose_secret().strip_prefix("k8s-aws-v1.").expect("the prefix");
            let url = String::from_utf8(BASE64_URL_SAFE_NO_PAD.decode(encoded).expect("base64url")).expect("text");
            let (base, query) = url.split_once("/?").expect("a query");
            assert_eq!(base, format!("https://{host}"));
            let mut names: Vec<_> = query.split('&').filter_map(|pair| Some(pair.split_once('=')?.0)).collect();
            names.sort_unstable();
            assert_eq!(
                names,
                [
                    "Action",
                    "Version",
                    "X-Amz-Algorithm",
                    "X-Amz-Credential",
                    "X-Amz-Date",
                    "X-Amz-Expires",
                    "X-Amz-Security-Token",
                    "X-Amz-Signature",
                    "X-Amz-SignedHeaders",
                ]
            );
            assert!(query.contains("X-Amz-SignedHeaders=host%3Bx-k8s-aws-id"), "{query}");
            assert!(query.contains("X-Amz-Expires=60"), "{query}");
            assert!(encoded.len() < 4096);
        }
    }
}
