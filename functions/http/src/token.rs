//! Who may call: the header `X-TRAINER-TOKEN` against the secret in Secrets Manager. Fails closed: a token that cannot be
//! checked is refused.

use std::time::{Duration, Instant};

use aws_sdk_secretsmanager::Client;
use lambda_http::{Request, http::HeaderValue};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};
use thiserror::Error;
use tokio::sync::Mutex;
use training_core::problem::Code;

use crate::Failure;

const HEADER: &str = "x-trainer-token";
/// How long a secret that was read is used. A removed token is dead after this time.
const CACHE: Duration = Duration::from_secs(45);
/// An unknown token makes the secret be read again (it may be a new one), at most this often.
const REFRESH: Duration = Duration::from_secs(1);
/// A shorter token could be guessed.
const MIN_TOKEN_LENGTH: usize = 32;

/// Checks tokens, remembering the secret's digests for a while.
pub struct TokenCheck {
    client: Client,
    secret_arn: String,
    /// Held while the secret is read, so that concurrent requests wait for one read.
    known: Mutex<Option<Known>>,
}

struct Known {
    read_at: Instant,
    digests: Vec<[u8; 32]>,
}

/// Why no token can be checked.
#[derive(Debug, Error)]
enum SecretError {
    #[error("cannot read the token secret")]
    Read(#[source] Box<aws_sdk_secretsmanager::Error>),
    #[error("the token secret has no text")]
    NoText,
    #[error("the token secret is a JSON object without the text field `token`")]
    NoToken,
    #[error("the token in the secret is shorter than {MIN_TOKEN_LENGTH} characters")]
    TooShort,
}

// === impl TokenCheck ===

impl TokenCheck {
    /// A check against this secret; nothing is read before the first request.
    #[must_use]
    pub fn new(client: Client, secret_arn: String) -> Self {
        Self { client, secret_arn, known: Mutex::new(None) }
    }

    /// Let a request pass or refuse it.
    ///
    /// # Errors
    /// `missing_token`, `invalid_token`, or `auth_unavailable` when the secret cannot be read.
    pub async fn check(&self, request: &Request) -> Result<(), Failure> {
        let mut values = request.headers().get_all(HEADER).iter();
        let token = match (values.next().map(HeaderValue::as_bytes), values.next()) {
            (None | Some(b""), _) => {
                return Err(Failure::new(Code::MissingToken, "send the token in the header X-TRAINER-TOKEN"));
            }
            (Some(token), None) => token,
            (Some(_), Some(_)) => return Err(invalid()),
        };
        let digest: [u8; 32] = Sha256::digest(token).into();
        let mut known = self.known.lock().await;
        let age = known.as_ref().map(|known| known.read_at.elapsed());
        if age.is_none_or(|age| age > CACHE) {
            // Forget first: when the read fails, nobody passes.
            *known = None;
            *known = Some(self.read().await.map_err(unavailable)?);
        } else if age.is_some_and(|age| age > REFRESH) && !known.as_ref().is_some_and(|known| known.holds(&digest)) {
            *known = Some(self.read().await.map_err(unavailable)?);
        }
        if known.as_ref().is_some_and(|known| known.holds(&digest)) { Ok(()) } else { Err(invalid()) }
    }

    async fn read(&self) -> Result<Known, SecretError> {
        let secret = self
            .client
            .get_secret_value()
            .secret_id(&self.secret_arn)
            .send()
            .await
            .map_err(|error| SecretError::Read(Box::new(error.into())))?;
        let text = SecretString::from(secret.secret_string.ok_or(SecretError::NoText)?);
        let token = token_in(&text)?;
        Ok(Known { read_at: Instant::now(), digests: vec![Sha256::digest(token.expose_secret()).into()] })
    }
}

// === impl Known ===

impl Known {
    /// Digests are compared, so lengths are equal, and all of them in constant time.
    fn holds(&self, digest: &[u8; 32]) -> bool {
        let found = self.digests.iter().fold(Choice::from(0), |found, known| found | known.ct_eq(digest));
        found.into()
    }
}

/// The token in a secret: `{"token": "..."}`, or the whole text when it is not a JSON object.
fn token_in(secret: &SecretString) -> Result<SecretString, SecretError> {
    #[derive(Deserialize)]
    struct Object {
        token: Option<SecretString>,
    }
    let text = secret.expose_secret().trim_end_matches(['\r', '\n']);
    let token = if text.trim_start().starts_with('{') {
        let object: Object = serde_json::from_str(text).map_err(|_| SecretError::NoToken)?;
        object.token.ok_or(SecretError::NoToken)?
    } else {
        SecretString::from(text)
    };
    if token.expose_secret().len() < MIN_TOKEN_LENGTH { Err(SecretError::TooShort) } else { Ok(token) }
}

fn invalid() -> Failure {
    Failure::new(Code::InvalidToken, "the token in X-TRAINER-TOKEN is not valid")
}

fn unavailable(error: SecretError) -> Failure {
    Failure::with_cause(Code::AuthUnavailable, "the token cannot be checked now; try again", error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_sdk_secretsmanager::operation::get_secret_value::{GetSecretValueError, GetSecretValueOutput};
    use aws_smithy_mocks::{RuleMode, mock, mock_client};
    use lambda_http::Body;

    const TOKEN: &str = "0123456789abcdef0123456789abcdef";

    fn request(token: Option<&str>) -> Request {
        let mut request = lambda_http::http::Request::builder().uri("/train");
        if let Some(token) = token {
            request = request.header("X-TRAINER-TOKEN", token);
        }
        request.body(Body::Empty).expect("a request")
    }

    async fn code(check: &TokenCheck, token: Option<&str>) -> Option<Code> {
        check.check(&request(token)).await.err().map(|failure| failure.problem.code)
    }

    fn check_with(secret: &'static str) -> TokenCheck {
        let rule = mock!(Client::get_secret_value)
            .match_requests(|input| input.secret_id() == Some("arn"))
            .then_output(move || GetSecretValueOutput::builder().secret_string(secret).build());
        let client = mock_client!(aws_sdk_secretsmanager, RuleMode::MatchAny, &[&rule]);
        TokenCheck::new(client, "arn".to_owned())
    }

    #[tokio::test]
    async fn only_the_secrets_token_passes() {
        for secret in [TOKEN, "0123456789abcdef0123456789abcdef\n", r#"{"token": "0123456789abcdef0123456789abcdef"}"#]
        {
            let check = check_with(secret);
            assert_eq!(code(&check, Some(TOKEN)).await, None);
            assert_eq!(code(&check, Some("0123456789abcdef0123456789abcdeg")).await, Some(Code::InvalidToken));
            assert_eq!(code(&check, Some("0")).await, Some(Code::InvalidToken));
            assert_eq!(code(&check, Some("")).await, Some(Code::MissingToken));
            assert_eq!(code(&check, None).await, Some(Code::MissingToken));
        }
    }

    #[tokio::test]
    async fn a_secret_that_is_no_token_lets_nobody_in() {
        for secret in ["", "short", "{}", r#"{"token": ""}"#, r#"{"token": null}"#, r#"{"token": 5}"#, "{"] {
            let check = check_with(secret);
            for token in [TOKEN, secret, "null", "5"] {
                let expected = if token.is_empty() { Code::MissingToken } else { Code::AuthUnavailable };
                assert_eq!(code(&check, Some(token)).await, Some(expected), "{secret} {token}");
            }
        }
    }

    #[tokio::test]
    async fn an_unreadable_secret_lets_nobody_in() {
        let rule =
            mock!(Client::get_secret_value).then_error(|| GetSecretValueError::unhandled("Secrets Manager is away"));
        let check = TokenCheck::new(mock_client!(aws_sdk_secretsmanager, &[&rule]), "arn".to_owned());
        assert_eq!(code(&check, Some(TOKEN)).await, Some(Code::AuthUnavailable));
    }

    #[tokio::test]
    async fn a_rotated_token_is_found_and_the_old_one_refused() {
        const NEW: &str = "fedcba9876543210fedcba9876543210";
        let rule = mock!(Client::get_secret_value)
            .sequence()
            .output(|| GetSecretValueOutput::builder().secret_string(TOKEN).build())
            .output(|| GetSecretValueOutput::builder().secret_string(NEW).build())
            .build();
        let check = TokenCheck::new(mock_client!(aws_sdk_secretsmanager, &[&rule]), "arn".to_owned());
        assert_eq!(code(&check, Some(TOKEN)).await, None);
        assert_eq!(code(&check, Some(NEW)).await, Some(Code::InvalidToken), "read a moment ago: not read again");
        tokio::time::sleep(REFRESH + Duration::from_millis(50)).await;
        assert_eq!(code(&check, Some(NEW)).await, None);
        assert_eq!(code(&check, Some(TOKEN)).await, Some(Code::InvalidToken));
    }
}
