//! Who may call: the header `X-TRAINER-TOKEN` against the secret in Secrets Manager. Fails closed: a token that cannot be
//! checked is refused. What a secret says is `training_core::access::token`.

use std::{collections::HashMap, time::Duration};

use aws_sdk_secretsmanager::{
    Client,
    error::{ProvideErrorMetadata, SdkError},
    operation::get_secret_value::GetSecretValueError,
    types::error::ResourceNotFoundException,
};
use k8s_openapi::jiff::Timestamp;
use lambda_http::{Request, http::HeaderValue};
use secrecy::{ExposeSecret, SecretString};
use thiserror::Error;
use tokio::{sync::Mutex, time::sleep};
use tracing::warn;
use training_cluster::Moment;
use training_core::{
    access::{
        caller::{Caller, Scope},
        token::{TokenDigest, TokenSecret, TokenSecretError, TokenSet},
    },
    api::problem::Code,
    cause::chain,
};

use crate::{Failure, boundary};

const HEADER: &str = "x-trainer-token";
/// How long a secret that was read is used. A removed token is dead after this time.
const CACHE: Duration = Duration::from_secs(45);
/// While the secret cannot be read, what it said last is used this long.
const STALE: Duration = Duration::from_mins(10);
/// The secret is read at most this often: an unknown token makes it be read, because it may be a new one.
const REFRESH: Duration = Duration::from_secs(1);
/// While what was read before is used in place of what cannot be read, the next try comes after this time.
const RETRY: Duration = Duration::from_secs(5);
/// How long a token that is not in the secret is refused without another look.
const REFUSED: Duration = Duration::from_secs(5);
/// Refused tokens that are remembered; with more of them, somebody is guessing.
const MAX_REFUSED: usize = 1_000;

/// Checks tokens, remembering for a while what the secret says.
pub struct TokenCheck {
    client: Client,
    secret_arn: String,
    /// Held while the secret is read, so that concurrent requests wait for one read.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    known: Option<Known>,
    tried_at: Option<Moment>,
    refused: HashMap<TokenDigest, Moment>,
}

struct Known {
    tokens: TokenSet,
    read_at: Moment,
}

/// Why no token can be checked.
#[derive(Debug, Error)]
enum SecretError {
    /// It may be there, unchanged.
    #[error("cannot read the token secret")]
    Read(#[source] Box<SdkError<GetSecretValueError>>),
    /// There is none any more.
    #[error("the token secret is gone")]
    Gone(#[source] Box<SdkError<GetSecretValueError>>),
    #[error("the token secret has no text")]
    NoText,
    #[error("the token secret cannot be used")]
    Unusable(#[source] TokenSecretError),
}

// === impl SecretError ===

impl SecretError {
    /// Whether trying again is of no use: Secrets Manager does not give us the secret, or there is none that can be used.
    fn is_final(&self) -> bool {
        match self {
            Self::Read(error) => {
                matches!(
                    error.code(),
                    Some("AccessDeniedException" | "DecryptionFailure" | "InvalidParameterException")
                )
            }
            Self::Gone(_) | Self::NoText | Self::Unusable(_) => true,
        }
    }
}

// === impl TokenCheck ===

impl TokenCheck {
    /// A check against this secret; nothing is read before the first request.
    #[must_use]
    pub fn new(client: Client, secret_arn: String) -> Self {
        Self { client, secret_arn, state: Mutex::default() }
    }

    /// Let a request for something of this kind pass, or refuse it.
    ///
    /// # Errors
    /// `missing_token`, `invalid_token`, `scope_not_allowed`, or `auth_unavailable` when the secret cannot be read.
    pub async fn check(&self, request: &Request, scope: Scope) -> Result<Caller, Failure> {
        let mut values = request.headers().get_all(HEADER).iter();
        let token = match (values.next().map(HeaderValue::as_bytes), values.next()) {
            (None | Some(b""), _) => {
                return Err(Failure::new(Code::MissingToken, "send the token in the header X-TRAINER-TOKEN"));
            }
            (Some(token), None) => token,
            (Some(_), Some(_)) => return Err(invalid()),
        };
        let caller = self.identify(&TokenDigest::of(token)).await?;
        if let Some(id) = &caller.id {
            boundary::record("caller", id);
        }
        if caller.may(scope) {
            return Ok(caller);
        }
        let needed = match scope {
            Scope::Submit => "submit",
            Scope::Read => "read",
        };
        Err(Failure::new(Code::ScopeNotAllowed, format!("this needs a token with the scope `{needed}`")))
    }

    async fn identify(&self, digest: &TokenDigest) -> Result<Caller, Failure> {
        let mut state = self.state.lock().await;
        if state.is_usable()
            && let Some(caller) = state.find(digest)
        {
            return Ok(caller);
        }
        if state.refused.get(digest).is_some_and(|refused_at| refused_at.age() < REFUSED) {
            return Err(invalid());
        }
        // Either what is known is old, or the token may be newer than it.
        let read = self.refresh(&mut state).await;
        match (state.find(digest), read) {
            (Some(caller), _) => Ok(caller),
            (None, Ok(())) => {
                state.refuse(*digest);
                Err(invalid())
            }
            // It may be a new token: that cannot be told now.
            (None, Err(error)) => Err(unavailable(error)),
        }
    }

    /// Read the secret again, not more often than allowed. What is known is forgotten when it must not be used any more.
    async fn refresh(&self, state: &mut State) -> Result<(), SecretError> {
        if let Some(tried_at) = state.tried_at {
            sleep(REFRESH.saturating_sub(tried_at.age())).await;
        }
        state.tried_at = Some(Moment::now());
        let error = match self.read().await {
            Ok(tokens) => {
                state.known = Some(Known { tokens, read_at: Moment::now() });
                return Ok(());
            }
            Err(error) => error,
        };
        let may_be_stale = matches!(error, SecretError::Read(_));
        state.known = state.known.take().filter(|known| may_be_stale && known.read_at.age() < STALE);
        if state.known.is_some() {
            warn!(cause = chain(&error), "cannot read the token secret; its last version is used for now");
        }
        Err(error)
    }

    async fn read(&self) -> Result<TokenSet, SecretError> {
        let current = self.version("AWSCURRENT").await?;
        let mut tokens = match TokenSecret::parse(current.expose_secret()).map_err(SecretError::Unusable)? {
            TokenSecret::List { tokens, refused } => {
                for entry in refused {
                    warn!("{entry}: the entry is ignored");
                }
                return Ok(tokens);
            }
            TokenSecret::Single(tokens) => tokens,
        };
        // A single token is rotated by a new version; until the callers have it, the one before counts too.
        match self.version("AWSPREVIOUS").await {
            Ok(previous) => {
                if let Ok(TokenSecret::Single(previous)) = TokenSecret::parse(previous.expose_secret()) {
                    tokens.extend(previous);
                }
                Ok(tokens)
            }
            Err(SecretError::Gone(_) | SecretError::NoText) => Ok(tokens),
            Err(error) => Err(error),
        }
    }

    async fn version(&self, stage: &str) -> Result<SecretString, SecretError> {
        let request = self.client.get_secret_value().secret_id(&self.secret_arn).version_stage(stage);
        match request.send().await {
            Ok(secret) => secret.secret_string.map(SecretString::from).ok_or(SecretError::NoText),
            Err(error) if is_gone(&error) => Err(SecretError::Gone(Box::new(error))),
            Err(error) => Err(SecretError::Read(Box::new(error))),
        }
    }
}

// === impl State ===

impl State {
    /// Whether a token that is known needs no look at the secret.
    fn is_usable(&self) -> bool {
        let has_just_failed = self.tried_at.is_some_and(|tried_at| tried_at.age() < RETRY);
        let limit = if has_just_failed { STALE } else { CACHE };
        self.known.as_ref().is_some_and(|known| known.read_at.age() < limit)
    }

    fn find(&self, digest: &TokenDigest) -> Option<Caller> {
        self.known.as_ref()?.tokens.find(digest, Timestamp::now()).cloned()
    }

    fn refuse(&mut self, digest: TokenDigest) {
        if self.refused.len() >= MAX_REFUSED {
            self.refused.clear();
        }
        self.refused.insert(digest, Moment::now());
    }
}

/// No such secret or version, or one that is marked as deleted.
fn is_gone(error: &SdkError<GetSecretValueError>) -> bool {
    error.as_service_error().is_some_and(|error| {
        matches!(error, GetSecretValueError::ResourceNotFoundException(ResourceNotFoundException { .. }))
            || error.is_invalid_request_exception()
    })
}

fn invalid() -> Failure {
    Failure::new(Code::InvalidToken, "the token in X-TRAINER-TOKEN is not valid")
}

fn unavailable(error: SecretError) -> Failure {
    let is_final = error.is_final();
    let detail = if is_final {
        "this service cannot use its secret, so it cannot check the token; ask your operator"
    } else {
        "this service cannot check the token now; retry later"
    };
    Failure::with_cause(Code::AuthUnavailable, detail, error).final_if(is_final)
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_sdk_secretsmanager::{
        config::retry::RetryConfig, error::ErrorMetadata, operation::get_secret_value::GetSecretValueOutput,
    };
    use aws_smithy_mocks::{MockResponse, RuleMode, mock, mock_client};
    use lambda_http::Body;
    use std::sync::{Arc, Mutex};
    use tokio::time::Instant;

    const TOKEN: &str = "0123456789abcdef0123456789abcdef";
    const NEW: &str = "fedcba9876543210fedcba9876543210";

    /// Secrets Manager.
    #[derive(Clone, Default)]
    struct Secrets(Arc<Mutex<Versions>>);

    #[derive(Default)]
    struct Versions {
        current: Option<String>,
        previous: Option<String>,
        /// What Secrets Manager answers in place of each version.
        refusal: Option<&'static str>,
        reads: usize,
    }

    impl Secrets {
        fn with(current: &str) -> Self {
            let secrets = Self::default();
            secrets.set(|versions| versions.current = Some(current.to_owned()));
            secrets
        }

        fn set<T>(&self, change: impl FnOnce(&mut Versions) -> T) -> T {
            change(&mut self.0.lock().expect("no poison"))
        }

        fn check(&self) -> TokenCheck {
            let secrets = self.clone();
            let rule = mock!(Client::get_secret_value).then_compute_response(move |input| {
                let is_current = input.version_stage() == Some("AWSCURRENT");
                secrets.set(|versions| {
                    versions.reads += usize::from(is_current);
                    let version = if is_current { &versions.current } else { &versions.previous };
                    if let Some(code) = versions.refusal {
                        let refusal = ErrorMetadata::builder().code(code).build();
                        return MockResponse::Error(GetSecretValueError::generic(refusal));
                    }
                    match version {
                        Some(text) => MockResponse::Output(GetSecretValueOutput::builder().secret_string(text).build()),
                        None => MockResponse::Error(GetSecretValueError::ResourceNotFoundException(
                            ResourceNotFoundException::builder().build(),
                        )),
                    }
                })
            });
            // The mock answers a call once.
            let client = mock_client!(aws_sdk_secretsmanager, RuleMode::MatchAny, &[&rule], |config| config
                .retry_config(RetryConfig::disabled()));
            TokenCheck::new(client, "arn".to_owned())
        }
    }

    /// The code of the refusal, if it is one.
    async fn code(check: &TokenCheck, token: Option<&str>) -> Option<Code> {
        refusal(check, token, Scope::Read).await
    }

    async fn refusal(check: &TokenCheck, token: Option<&str>, scope: Scope) -> Option<Code> {
        check.check(&request(token), scope).await.err().map(|failure| failure.problem.code)
    }

    fn request(token: Option<&str>) -> Request {
        let mut request = lambda_http::http::Request::builder().uri("/train");
        if let Some(token) = token {
            request = request.header("X-TRAINER-TOKEN", token);
        }
        request.body(Body::Empty).expect("a request")
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_secrets_token_passes() {
        for secret in [TOKEN, "0123456789abcdef0123456789abcdef\n", r#"{"token": "0123456789abcdef0123456789abcdef"}"#]
        {
            let check = Secrets::with(secret).check();
            assert_eq!(code(&check, Some(TOKEN)).await, None);
            assert_eq!(code(&check, Some("0123456789abcdef0123456789abcdeg")).await, Some(Code::InvalidToken));
            assert_eq!(code(&check, Some("0")).await, Some(Code::InvalidToken));
            assert_eq!(code(&check, Some("")).await, Some(Code::MissingToken));
            assert_eq!(code(&check, None).await, Some(Code::MissingToken));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_secret_that_is_no_token_lets_nobody_in() {
        for secret in ["", "short", "{}", r#"{"token": ""}"#, r#"{"token": null}"#, r#"{"token": 5}"#, "{"] {
            let check = Secrets::with(secret).check();
            for token in [TOKEN, secret, "null", "5"] {
                let expected = if token.is_empty() { Code::MissingToken } else { Code::AuthUnavailable };
                assert_eq!(code(&check, Some(token)).await, Some(expected), "{secret} {token}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn trying_again_is_advised_only_where_it_may_help() {
        let good = Some(TOKEN.to_owned());
        for (current, refusal, is_final) in [
            (good.clone(), Some("InternalServiceError"), false),
            (good.clone(), Some("ThrottlingException"), false),
            (good.clone(), Some("AccessDeniedException"), true),
            (good, Some("DecryptionFailure"), true),
            (None, None, true),
            (Some("{}".to_owned()), None, true),
            (Some("short".to_owned()), None, true),
        ] {
            let secrets = Secrets::default();
            secrets.set(|versions| (versions.current, versions.refusal) = (current.clone(), refusal));
            let failure = secrets.check().check(&request(Some(TOKEN)), Scope::Read).await.expect_err("nobody gets in");
            let told = (failure.problem.code, failure.is_final, failure.problem.detail.contains("ask your operator"));
            assert_eq!(told, (Code::AuthUnavailable, is_final, is_final), "{current:?} {refusal:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_mistake_in_one_entry_keeps_nobody_else_out() {
        let digest = format!("{:x}", <sha2::Sha256 as sha2::Digest>::digest(TOKEN));
        let bad = r#"{"id": "bad", "sha256": "00", "scopes": ["read"]}"#;
        let good = format!(r#"{{"id": "ci", "sha256": "{digest}", "scopes": ["read"]}}"#);
        let check = Secrets::with(&format!("\u{feff}{{\"tokens\": [{bad}, {good}], \"comment\": \"\"}}")).check();
        assert_eq!(code(&check, Some(TOKEN)).await, None);
        assert_eq!(code(&check, Some(NEW)).await, Some(Code::InvalidToken));
    }

    #[tokio::test(start_paused = true)]
    async fn a_rotated_token_is_never_refused_and_the_one_before_counts_too() {
        let secrets = Secrets::with(TOKEN);
        let check = secrets.check();
        assert_eq!(code(&check, Some(TOKEN)).await, None);
        secrets.set(|versions| versions.previous = versions.current.replace(NEW.to_owned()));
        // Read a moment ago, and read again for the sake of the new token.
        assert_eq!(code(&check, Some(NEW)).await, None);
        assert_eq!(code(&check, Some(TOKEN)).await, None);
        // The next rotation drops it.
        secrets.set(|versions| versions.previous = Some(NEW.to_owned()));
        sleep(CACHE).await;
        assert_eq!(code(&check, Some(TOKEN)).await, Some(Code::InvalidToken));
        assert_eq!(code(&check, Some(NEW)).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn an_entry_of_a_list_has_its_scopes() {
        let digest = format!("{:x}", <sha2::Sha256 as sha2::Digest>::digest(TOKEN));
        let secret = format!(r#"{{"tokens": [{{"id": "ci", "sha256": "{digest}", "scopes": ["read"]}}]}}"#);
        let secrets = Secrets::with(&secret);
        // Only the current version of a list counts.
        secrets.set(|versions| versions.previous = Some(NEW.to_owned()));
        let check = secrets.check();
        assert_eq!(refusal(&check, Some(TOKEN), Scope::Read).await, None);
        assert_eq!(refusal(&check, Some(TOKEN), Scope::Submit).await, Some(Code::ScopeNotAllowed));
        assert_eq!(refusal(&check, Some(NEW), Scope::Read).await, Some(Code::InvalidToken));
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_is_bridged_for_known_tokens_and_not_for_ever() {
        let secrets = Secrets::with(TOKEN);
        let check = secrets.check();
        assert_eq!(code(&check, Some(TOKEN)).await, None);
        secrets.set(|versions| versions.refusal = Some("InternalServiceError"));
        sleep(CACHE).await;
        assert_eq!(code(&check, Some(TOKEN)).await, None);
        assert_eq!(code(&check, Some(NEW)).await, Some(Code::AuthUnavailable), "it may be a new one");
        sleep(Duration::from_secs(520)).await;
        assert_eq!(code(&check, Some(TOKEN)).await, None);
        sleep(CACHE).await;
        assert_eq!(code(&check, Some(TOKEN)).await, Some(Code::AuthUnavailable));
        secrets.set(|versions| versions.refusal = None);
        sleep(REFRESH).await;
        assert_eq!(code(&check, Some(TOKEN)).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_secret_that_is_gone_or_broken_is_not_bridged() {
        for broken in [None, Some(String::new()), Some("{}".to_owned())] {
            let secrets = Secrets::with(TOKEN);
            let check = secrets.check();
            assert_eq!(code(&check, Some(TOKEN)).await, None);
            secrets.set(|versions| versions.current = broken);
            sleep(CACHE).await;
            assert_eq!(code(&check, Some(TOKEN)).await, Some(Code::AuthUnavailable));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_that_came_too_early_counts_as_soon_as_anybody_has_read_it() {
        let secrets = Secrets::with(TOKEN);
        let check = secrets.check();
        assert_eq!(code(&check, Some(NEW)).await, Some(Code::InvalidToken));
        secrets.set(|versions| versions.current = Some(NEW.to_owned()));
        assert_eq!(
            code(&check, Some(&format!("{NEW}0"))).await,
            Some(Code::InvalidToken),
            "a stranger makes it be read"
        );
        assert_eq!(code(&check, Some(NEW)).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn all_who_come_at_once_wait_for_one_read() {
        let secrets = Secrets::with(TOKEN);
        let check = secrets.check();
        let codes = futures::future::join_all((0..50).map(|_| code(&check, Some(TOKEN)))).await;
        assert!(codes.iter().all(Option::is_none), "{codes:?}");
        assert_eq!(secrets.set(|versions| versions.reads), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_expires_while_its_secret_is_remembered() {
        let digest = format!("{:x}", <sha2::Sha256 as sha2::Digest>::digest(TOKEN));
        let expires_at = Timestamp::now() + Duration::from_millis(300);
        let entry =
            format!(r#"{{"id": "ci", "sha256": "{digest}", "scopes": ["read"], "expires_at": "{expires_at}"}}"#);
        let check = Secrets::with(&format!(r#"{{"tokens": [{entry}]}}"#)).check();
        assert_eq!(code(&check, Some(TOKEN)).await, None);
        std::thread::sleep(Duration::from_millis(400));
        assert_eq!(code(&check, Some(TOKEN)).await, Some(Code::InvalidToken));
    }

    #[tokio::test(start_paused = true)]
    async fn guessing_does_not_make_the_secret_be_read_all_the_time() {
        let secrets = Secrets::with(TOKEN);
        let check = secrets.check();
        for _ in 0..50 {
            assert_eq!(code(&check, Some(NEW)).await, Some(Code::InvalidToken));
        }
        assert_eq!(secrets.set(|versions| versions.reads), 1, "remembered as refused");
        let started = Instant::now();
        for guess in 0..10 {
            assert_eq!(code(&check, Some(&format!("{NEW}{guess}"))).await, Some(Code::InvalidToken));
        }
        assert!(started.elapsed() >= REFRESH * 9, "once a second at most");
        sleep(REFUSED).await;
        secrets.set(|versions| versions.current = Some(NEW.to_owned()));
        assert_eq!(code(&check, Some(NEW)).await, None, "not remembered for ever");
    }
}
