//! API tokens: what the secret says about who may do what. A token is 256 random bits, so its plain SHA-256 can be stored:
//! nobody can go through the values that it might have.

use std::collections::HashSet;

use k8s_openapi::jiff::Timestamp;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConstantTimeEq};
use thiserror::Error;

use crate::namespace::Namespace;

/// A shorter token could be guessed.
pub const MIN_TOKEN_LENGTH: usize = 32;
/// More entries would not fit into a secret (64 KiB) with room to spare.
pub const MAX_TOKENS: usize = 200;
/// Longest id of a token: it is written into annotations and logs.
const MAX_ID_LENGTH: usize = 63;

/// The SHA-256 of a token.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenDigest([u8; 32]);

/// What a token may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Create, replace, cancel, suspend and resume jobs.
    Submit,
    /// Read jobs, checkpoints, logs and events.
    Read,
}

/// Who calls: what the token that was sent may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The token's id; `None` for the single token of a deployment.
    pub id: Option<String>,
    /// `None`: all.
    scopes: Option<HashSet<Scope>>,
    /// `None`: all that the deployment serves.
    namespaces: Option<HashSet<Namespace>>,
}

/// The tokens of a secret.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenSet(Vec<Entry>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    digest: TokenDigest,
    expires_at: Option<Timestamp>,
    caller: Caller,
}

/// A parsed secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenSecret {
    /// One token; the secret's previous version counts too, so that it can be rotated.
    Single(TokenSet),
    /// A list of tokens; only the current version counts, and rotation means overlapping entries.
    List(TokenSet),
}

/// Why a secret cannot be used. The texts never hold any of it.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum TokenSecretError {
    /// Neither form.
    #[error("the token secret is neither a text, nor a JSON object with the text `token` or the list `tokens`")]
    Form,
    /// A single token that could be guessed.
    #[error("the token in the secret is shorter than {MIN_TOKEN_LENGTH} characters")]
    TooShort,
    /// A single token that is none, as a list is that lacks its `tokens`: its text would be the token.
    #[error("the token in the secret has other characters than letters, digits and -._~+/=")]
    Characters,
    /// An entry of the list is not one.
    #[error("entry {0} of the token list {1}")]
    Entry(usize, &'static str),
    /// More than [`MAX_TOKENS`].
    #[error("the token list has more than {MAX_TOKENS} entries")]
    TooMany,
}

/// What it does not know could be a restriction of the token, so unknown fields are refused.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Object {
    token: Option<String>,
    tokens: Option<Vec<serde_json::Value>>,
}

/// An entry as it is written; what it does not know could be a restriction, so unknown fields are refused.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    id: String,
    sha256: String,
    scopes: Vec<Scope>,
    namespaces: Option<Vec<String>>,
    expires_at: Option<Timestamp>,
}

// === impl TokenDigest ===

impl TokenDigest {
    /// The digest of a token.
    #[must_use]
    pub fn of(token: &[u8]) -> Self {
        Self(Sha256::digest(token).into())
    }

    fn from_hex(hex: &str) -> Option<Self> {
        let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        let (pairs, rest) = hex.as_bytes().as_chunks::<2>();
        let bytes: Option<Vec<u8>> = pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect();
        if rest.is_empty() { Some(Self(bytes?.try_into().ok()?)) } else { None }
    }
}

impl std::fmt::Debug for TokenDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TokenDigest(..)")
    }
}

// === impl Caller ===

impl Caller {
    /// Who may do all in every namespace.
    #[must_use]
    pub fn unrestricted() -> Self {
        Self { id: None, scopes: None, namespaces: None }
    }

    /// Who may do all in these namespaces.
    #[cfg(test)]
    pub(crate) fn limited_to(namespaces: impl IntoIterator<Item = Namespace>) -> Self {
        Self { namespaces: Some(namespaces.into_iter().collect()), ..Self::unrestricted() }
    }

    /// Whether the caller may do such things.
    #[must_use]
    pub fn may(&self, scope: Scope) -> bool {
        self.scopes.as_ref().is_none_or(|scopes| scopes.contains(&scope))
    }

    /// Whether there is a namespace for the caller.
    #[must_use]
    pub fn sees(&self, namespace: &Namespace) -> bool {
        self.namespaces.as_ref().is_none_or(|namespaces| namespaces.contains(namespace))
    }
}

// === impl TokenSet ===

impl TokenSet {
    /// The caller whose token this is. All digests are compared, each in constant time.
    #[must_use]
    pub fn find(&self, digest: &TokenDigest, now: Timestamp) -> Option<&Caller> {
        let mut found = None;
        for entry in &self.0 {
            let is_this: Choice = entry.digest.0.ct_eq(&digest.0);
            let is_alive = entry.expires_at.is_none_or(|expires_at| now < expires_at);
            if bool::from(is_this) && is_alive {
                found = Some(&entry.caller);
            }
        }
        found
    }

    /// Take the tokens of another set in as well.
    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }
}

// === impl TokenSecret ===

impl TokenSecret {
    /// Read the text of a secret.
    ///
    /// # Errors
    /// It cannot be used; nobody gets in with it.
    pub fn parse(text: &str) -> Result<Self, TokenSecretError> {
        let text = text.trim_end_matches(['\r', '\n']);
        if !text.trim_start().starts_with('{') {
            return single(text);
        }
        let object: Object = serde_json::from_str(text).map_err(|_| TokenSecretError::Form)?;
        match object {
            Object { token: Some(token), tokens: None } => single(&token),
            Object { token: None, tokens: Some(tokens) } if tokens.len() > MAX_TOKENS => Err(TokenSecretError::TooMany),
            Object { token: None, tokens: Some(tokens) } => {
                let entries = tokens
                    .into_iter()
                    .enumerate()
                    .map(|(index, value)| entry(value).map_err(|reason| TokenSecretError::Entry(index, reason)));
                let entries = entries.collect::<Result<Vec<_>, _>>()?;
                let (mut ids, mut digests) = (HashSet::new(), HashSet::new());
                for (index, entry) in entries.iter().enumerate() {
                    if !ids.insert(&entry.caller.id) {
                        return Err(TokenSecretError::Entry(index, "has the id of another entry"));
                    }
                    if !digests.insert(entry.digest) {
                        return Err(TokenSecretError::Entry(index, "has the digest of another entry"));
                    }
                }
                Ok(Self::List(TokenSet(entries)))
            }
            _ => Err(TokenSecretError::Form),
        }
    }
}

fn single(token: &str) -> Result<TokenSecret, TokenSecretError> {
    if token.len() < MIN_TOKEN_LENGTH {
        return Err(TokenSecretError::TooShort);
    }
    if !token.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte)) {
        return Err(TokenSecretError::Characters);
    }
    let digest = TokenDigest::of(token.as_bytes());
    Ok(TokenSecret::Single(TokenSet(vec![Entry { digest, expires_at: None, caller: Caller::unrestricted() }])))
}

fn entry(value: serde_json::Value) -> Result<Entry, &'static str> {
    let written: Written = serde_json::from_value(value).map_err(
        |_| "is not {id, sha256, scopes of `submit` and `read`, optional namespaces and expires_at (RFC 3339)}",
    )?;
    let is_id_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if written.id.is_empty() || written.id.len() > MAX_ID_LENGTH || !written.id.bytes().all(is_id_byte) {
        return Err("has no id of 1 to 63 of A-Z a-z 0-9 . _ -");
    }
    let digest = TokenDigest::from_hex(&written.sha256).ok_or("has no sha256 of 64 hex digits")?;
    let namespaces = match written.namespaces {
        Some(names) => {
            Some(names.iter().map(|name| name.parse()).collect::<Result<_, _>>().map_err(|_| "names no namespace")?)
        }
        None => None,
    };
    let caller = Caller { id: Some(written.id), scopes: Some(written.scopes.into_iter().collect()), namespaces };
    Ok(Entry { digest, expires_at: written.expires_at, caller })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const TOKEN: &str = "0123456789abcdef0123456789abcdef";

    fn now() -> Timestamp {
        "2026-11-24T00:00:00Z".parse().expect("a time")
    }

    fn list(entry: &Value) -> Result<TokenSecret, TokenSecretError> {
        TokenSecret::parse(&json!({"tokens": [entry]}).to_string())
    }

    fn sha256() -> String {
        format!("{:x}", Sha256::digest(TOKEN))
    }

    fn caller(secret: TokenSecret, token: &str) -> Option<Caller> {
        let (TokenSecret::Single(set) | TokenSecret::List(set)) = secret;
        set.find(&TokenDigest::of(token.as_bytes()), now()).cloned()
    }

    #[test]
    fn a_single_token_may_do_everything() {
        for text in [TOKEN.to_owned(), format!("{TOKEN}\n"), json!({"token": TOKEN}).to_string()] {
            let secret = TokenSecret::parse(&text).expect("a secret");
            let found = caller(secret.clone(), TOKEN).expect("the token");
            assert!(
                found.may(Scope::Submit) && found.may(Scope::Read) && found.sees(&"any".parse().expect("a namespace"))
            );
            assert_eq!(caller(secret, "0123456789abcdef0123456789abcdeg"), None);
        }
    }

    #[test]
    fn an_entry_may_do_what_it_says() {
        let entry = json!({
            "id": "ci", "sha256": sha256(), "scopes": ["read"], "namespaces": ["training"], "expires_at": "2026-11-25T00:00:00Z",
        });
        let found = caller(list(&entry).expect("a list"), TOKEN).expect("the token");
        assert_eq!(found.id.as_deref(), Some("ci"));
        assert!(found.may(Scope::Read) && !found.may(Scope::Submit));
        assert!(found.sees(&"training".parse().expect("a namespace")));
        assert!(!found.sees(&"training-two".parse().expect("a namespace")));

        let mut expired = entry.clone();
        expired["expires_at"] = json!("2026-11-24T00:00:00Z");
        assert_eq!(caller(list(&expired).expect("a list"), TOKEN), None, "from that moment on");
        assert!(TokenSecret::parse(r#"{"tokens": []}"#).is_ok(), "nobody gets in");
    }

    #[test]
    fn a_secret_that_cannot_be_understood_lets_nobody_in() {
        for text in ["{", "{}", "null{", r#"{"token": 5}"#, r#"{"token": null}"#, r#"{"tokens": {}}"#] {
            assert!(TokenSecret::parse(text).is_err(), "{text}");
        }
        let good = json!({"id": "ci", "sha256": sha256(), "scopes": ["read"]});
        for text in [
            json!([good]).to_string(),
            format!("\u{feff}{}", json!({"tokens": [good]})),
            format!("\"{TOKEN}\""),
            format!("{}x", " ".repeat(40)),
        ] {
            assert_eq!(TokenSecret::parse(&text), Err(TokenSecretError::Characters), "{text}");
        }
        let restricted = json!({"token": TOKEN, "scopes": ["read"]}).to_string();
        assert_eq!(TokenSecret::parse(&restricted), Err(TokenSecretError::Form));
        let both = json!({"token": TOKEN, "tokens": []}).to_string();
        assert_eq!(TokenSecret::parse(&both), Err(TokenSecretError::Form));
        for text in ["", "short", r#"{"token": ""}"#] {
            assert_eq!(TokenSecret::parse(text), Err(TokenSecretError::TooShort), "{text}");
        }
        for (field, value) in [
            ("id", json!("")),
            ("id", json!("a b")),
            ("id", json!("a".repeat(64))),
            ("sha256", json!("00")),
            ("sha256", json!(format!("{}g", "0".repeat(63)))),
            ("scopes", json!(["admin"])),
            ("scopes", json!("read")),
            ("namespaces", json!(["Not A Namespace"])),
            ("expires_at", json!("tomorrow")),
            ("not_before", json!("2026-11-24T00:00:00Z")),
        ] {
            let mut entry = good.clone();
            entry[field] = value;
            assert!(matches!(list(&entry), Err(TokenSecretError::Entry(0, _))), "{entry}");
        }
        let twice = TokenSecret::parse(&json!({"tokens": [good, good]}).to_string());
        assert_eq!(twice, Err(TokenSecretError::Entry(1, "has the id of another entry")));
        let mut renamed = good.clone();
        renamed["id"] = json!("another");
        let same = TokenSecret::parse(&json!({"tokens": [good, renamed]}).to_string());
        assert_eq!(same, Err(TokenSecretError::Entry(1, "has the digest of another entry")));
        let many = vec![good; MAX_TOKENS + 1];
        assert_eq!(TokenSecret::parse(&json!({"tokens": many}).to_string()), Err(TokenSecretError::TooMany));
    }

    #[test]
    fn no_text_of_ours_holds_a_digest() {
        let secret = TokenSecret::parse(TOKEN).expect("a secret");
        assert!(!format!("{secret:?}").contains(&sha256()));
    }
}
