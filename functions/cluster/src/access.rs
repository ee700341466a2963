//! Signing in: where the API server is, and a client with a token that is young enough. Both are kept between requests;
//! credentials are taken anew for each token, because those of a Lambda function rotate.

use std::time::{Duration, SystemTime};

use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use aws_sdk_eks::{Client as EksClient, error::ProvideErrorMetadata};
use base64::{Engine, prelude::BASE64_STANDARD};
use http::{Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use kube::{
    Client, Config,
    client::{ClientBuilder, DynBody},
    config::AuthInfo,
};
use serde_json::json;
use thiserror::Error;
use tokio::sync::Mutex;
use tower::util::MapResponseLayer;
use training_core::{
    access::namespaces::Namespaces,
    settings::{SettingError, Settings},
};

use crate::{moment::Moment, token};

/// A token lives 15 minutes; a call made with an older one could come too late.
const TOKEN_AGE: Duration = Duration::from_mins(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Where an API server is and which certificate authority signs for it.
#[derive(Clone, Debug)]
pub struct Endpoint {
    url: http::Uri,
    /// Certificates as DER.
    certificate_authority: Vec<Vec<u8>>,
}

/// Which cluster and namespaces a deployment is for.
#[derive(Clone, Debug)]
pub struct ClusterSettings {
    /// Name of the EKS cluster.
    pub cluster: String,
    /// The namespaces that are served.
    pub namespaces: Namespaces,
    /// Where the API server is, when EKS shall not be asked.
    pub endpoint: Option<Endpoint>,
}

/// Signs in to one cluster.
pub struct Access {
    eks: EksClient,
    credentials: SharedCredentialsProvider,
    region: String,
    cluster: String,
    /// Whether the endpoint came with the settings, and so is never looked up.
    is_given: bool,
    /// Held while signing in, so that concurrent requests wait for one sign-in.
    session: Mutex<Session>,
}

struct Session {
    endpoint: Option<Endpoint>,
    client: Option<(Client, Moment)>,
}

/// Why the cluster's endpoint or a token cannot be had.
#[derive(Debug, Error)]
pub enum EndpointError {
    /// EKS does not describe the cluster.
    #[error("cannot describe the cluster")]
    Describe(#[source] Box<aws_sdk_eks::Error>),
    /// EKS describes a cluster that nobody can connect to (yet).
    #[error("the cluster's description has no usable {0}")]
    Description(&'static str),
    /// There are no credentials to sign with.
    #[error("no credentials to sign a token with")]
    Credentials(#[source] aws_credential_types::provider::error::CredentialsError),
    /// The token cannot be signed.
    #[error("cannot sign a token")]
    Sign(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The client cannot be made.
    #[error("cannot make a client")]
    Client(#[source] Box<kube::Error>),
}

// === impl EndpointError ===

impl EndpointError {
    /// Whether trying again is of no use: EKS has no such cluster, or does not let us find it.
    #[must_use]
    pub fn is_final(&self) -> bool {
        match self {
            Self::Describe(error) => {
                matches!(error.code(), Some("AccessDeniedException" | "ResourceNotFoundException"))
            }
            Self::Description(_) | Self::Credentials(_) | Self::Sign(_) | Self::Client(_) => false,
        }
    }
}

// === impl Endpoint ===

impl Endpoint {
    /// An endpoint from a URL and a base64 PEM bundle, both as `DescribeCluster` gives them.
    ///
    /// # Errors
    /// One of them is not usable.
    pub fn new(url: &str, certificate_authority: &str) -> Result<Self, EndpointError> {
        let url: http::Uri = url.parse().map_err(|_| EndpointError::Description("endpoint"))?;
        if url.scheme() != Some(&http::uri::Scheme::HTTPS) {
            return Err(EndpointError::Description("endpoint"));
        }
        let unusable = || EndpointError::Description("certificate authority");
        let pem = BASE64_STANDARD.decode(certificate_authority).map_err(|_| unusable())?;
        let certificates = pem::parse_many(pem).map_err(|_| unusable())?;
        if certificates.is_empty() {
            return Err(unusable());
        }
        // kube wants DER here.
        let certificate_authority = certificates.into_iter().map(pem::Pem::into_contents).collect();
        Ok(Self { url, certificate_authority })
    }
}

// === impl ClusterSettings ===

impl ClusterSettings {
    /// Read `CLUSTER_NAME`, `NAMESPACE`, `ALLOWED_NAMESPACES`, and `CLUSTER_ENDPOINT` with `CLUSTER_CA`.
    ///
    /// # Errors
    /// One is missing or unusable, or only half of the endpoint is given.
    pub fn read<F: Fn(&'static str) -> Option<String>>(settings: &Settings<F>) -> Result<Self, SettingError> {
        let url: Option<String> = settings.optional("CLUSTER_ENDPOINT")?;
        let authority: Option<String> = settings.optional("CLUSTER_CA")?;
        let endpoint = match (url, authority) {
            (None, None) => None,
            (Some(url), Some(authority)) => Some(Endpoint::new(&url, &authority).map_err(|error| {
                SettingError::Bad { name: "CLUSTER_ENDPOINT with CLUSTER_CA", reason: error.to_string() }
            })?),
            (Some(_), None) => return Err(SettingError::Missing("CLUSTER_CA")),
            (None, Some(_)) => return Err(SettingError::Missing("CLUSTER_ENDPOINT")),
        };
        let namespaces = Namespaces::new(settings.required("NAMESPACE")?, settings.list_or_none("ALLOWED_NAMESPACES")?);
        Ok(Self { cluster: settings.required("CLUSTER_NAME")?, namespaces, endpoint })
    }
}

// === impl Access ===

impl Access {
    /// Access to a cluster; nothing is called before the first request. With an endpoint given, EKS is never asked.
    #[must_use]
    pub fn new(
        settings: ClusterSettings,
        eks: EksClient,
        credentials: SharedCredentialsProvider,
        region: String,
    ) -> Self {
        let ClusterSettings { cluster, endpoint, .. } = settings;
        let is_given = endpoint.is_some();
        Self { eks, credentials, region, cluster, is_given, session: Mutex::new(Session { endpoint, client: None }) }
    }

    /// A client whose token is young enough.
    pub(crate) async fn client(&self) -> Result<Client, EndpointError> {
        let mut session = self.session.lock().await;
        if let Some((client, minted_at)) = &session.client
            && minted_at.age() < TOKEN_AGE
        {
            return Ok(client.clone());
        }
        let endpoint = match &session.endpoint {
            Some(endpoint) => endpoint.clone(),
            None => session.endpoint.insert(self.describe().await?).clone(),
        };
        let client = self.sign_in(endpoint).await?;
        session.client = Some((client.clone(), Moment::now()));
        Ok(client)
    }

    /// Forget the token, so that the next client has a new one.
    pub(crate) async fn sign_out(&self) {
        self.session.lock().await.client = None;
    }

    /// Forget where the cluster is and who signs for it, so that the next client asks EKS again.
    pub(crate) async fn look_up_again(&self) {
        let mut session = self.session.lock().await;
        session.client = None;
        if !self.is_given {
            session.endpoint = None;
        }
    }

    async fn describe(&self) -> Result<Endpoint, EndpointError> {
        let answer = self.eks.describe_cluster().name(&self.cluster).send().await;
        let cluster = answer
            .map_err(|error| EndpointError::Describe(Box::new(error.into())))?
            .cluster
            .ok_or(EndpointError::Description("cluster"))?;
        let url = cluster.endpoint.ok_or(EndpointError::Description("endpoint"))?;
        let authority = cluster.certificate_authority.and_then(|authority| authority.data);
        Endpoint::new(&url, &authority.ok_or(EndpointError::Description("certificate authority"))?)
    }

    async fn sign_in(&self, endpoint: Endpoint) -> Result<Client, EndpointError> {
        let credentials = self.credentials.provide_credentials().await.map_err(EndpointError::Credentials)?;
        let token =
            token::mint(credentials, &self.region, &self.cluster, SystemTime::now()).map_err(EndpointError::Sign)?;
        let mut config = Config::new(endpoint.url);
        config.root_cert = Some(endpoint.certificate_authority);
        config.auth_info = AuthInfo { token: Some(token), ..AuthInfo::default() };
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        // A read timeout of kube's would count the time for which a kept connection was idle, too, and look like a broken
        // connection. Calls have a budget.
        config.read_timeout = None;
        // kube would repeat a POST for minutes; what may be repeated is decided by the caller.
        config.default_retry = false;
        client_of(config).map_err(|error| EndpointError::Client(Box::new(error)))
    }
}

fn client_of(config: Config) -> kube::Result<Client> {
    Ok(ClientBuilder::try_from(config)?.with_layer(&MapResponseLayer::new(keep_retry_after)).build())
}

/// Priority and fairness answers in plain text and says only in a header how long to wait, and kube drops the headers of
/// refusals. So such an answer becomes the `Status` that other parts of the API server send.
fn keep_retry_after(response: Response<Box<DynBody>>) -> Response<Box<DynBody>> {
    let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
    let is_status = header(header::CONTENT_TYPE).is_some_and(|media_type| media_type.starts_with("application/json"));
    let seconds = header(header::RETRY_AFTER).and_then(|seconds| seconds.parse::<u32>().ok());
    let (StatusCode::TOO_MANY_REQUESTS, Some(seconds), false) = (response.status(), seconds, is_status) else {
        return response;
    };
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "TooManyRequests",
        "code": StatusCode::TOO_MANY_REQUESTS.as_u16(), "message": "the API server has too much to do",
        "details": {"retryAfterSeconds": seconds},
    });
    let body = Full::from(status.to_string()).map_err(Into::into);
    response.map(|_| Box::new(body) as Box<DynBody>)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ClusterError;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    const PEM: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";

    #[test]
    fn a_description_is_used_only_when_it_is_whole() {
        let authority = BASE64_STANDARD.encode(PEM);
        assert_eq!(
            Endpoint::new("https://127.0.0.1:6443", &authority).expect("usable").certificate_authority,
            [[0, 0, 0]]
        );
        for (url, authority) in [
            ("http://127.0.0.1", authority.as_str()),
            ("127.0.0.1", &authority),
            ("", &authority),
            ("https://127.0.0.1", ""),
            ("https://127.0.0.1", "not base64"),
        ] {
            assert!(Endpoint::new(url, authority).is_err(), "{url} {authority}");
        }
    }

    /// What a call comes to that is answered with these lines.
    async fn answered(head: &str, body: &str) -> ClusterError {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let answer = format!("HTTP/1.1 {head}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let _ = stream.read(&mut [0; 4096]).await.expect("a request");
            stream.write_all(answer.as_bytes()).await.expect("an answer");
        });
        let mut config = Config::new(format!("http://{address}").parse().expect("a URI"));
        config.default_retry = false;
        let client = client_of(config).expect("a client");
        client.apiserver_version().await.expect_err("refused").into()
    }

    #[tokio::test]
    async fn how_long_to_wait_is_kept_wherever_the_api_server_says_it() {
        let status = r#"{"kind": "Status", "code": 429, "message": "no", "details": {"retryAfterSeconds": 3}}"#;
        for (head, body, seconds) in [
            ("429 Too Many Requests\r\nRetry-After: 7\r\nContent-Type: text/plain; charset=utf-8", "Too many", Some(7)),
            ("429 Too Many Requests\r\nRetry-After: 7", "Too many requests", Some(7)),
            ("429 Too Many Requests\r\nRetry-After: 3\r\nContent-Type: application/json", status, Some(3)),
            ("429 Too Many Requests", "Too many requests", None),
            ("429 Too Many Requests\r\nRetry-After: Tue, 24 Nov 2026 00:00:00 GMT", "Too many requests", None),
        ] {
            let error = answered(head, body).await;
            let ClusterError::Throttled { retry_after_seconds, .. } = &error else { panic!("{head}: {error:?}") };
            assert_eq!(*retry_after_seconds, seconds, "{head}");
        }
        let unavailable = answered("503 Service Unavailable\r\nRetry-After: 7", "starting").await;
        assert!(matches!(unavailable, ClusterError::Busy(_)), "{unavailable:?}");
    }
}
