//! API tokens: what the secret says about who may do what. A token is 256 random bits, so its plain SHA-256 can be stored:
//! nobody can go through the values that it might have.
//!
//! A mistake costs those whom it is about and nobody else: an entry of a list that cannot be understood is refused, and the
//! others count. What is not known is never taken for a permission: an unknown field of an entry could be a restriction, so
//! the entry is refused; beside `token` or `tokens`, where there are no restrictions, it means nothing.

use std::{
    collections::{BTreeMap, HashMap},
    hash::Hash,
};

use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, de::IgnoredAny};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConstantTimeEq};
use thiserror::Error;

use crate::{
    access::caller::{Caller, Scope},
    nearest::nearest,
};

/// A shorter token could be guessed.
pub const MIN_TOKEN_LENGTH: usize = 32;
/// More entries would not fit into a secret (64 KiB) with room to spare.
pub const MAX_TOKENS: usize = 200;
/// Longest id of a token: it is written into annotations and logs.
const MAX_ID_LENGTH: usize = 63;
/// Fields of an entry that restrict its token; nothing of that kind may stand elsewhere and be passed over.
const RESTRICTIONS: [&str; 3] = ["scopes", "namespaces", "expires_at"];

/// The SHA-256 of a token.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenDigest([u8; 32]);

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
    List {
        /// Those that can be used.
        tokens: TokenSet,
        /// The others, which let nobody in.
        refused: Vec<RefusedEntry>,
    },
}

/// An entry of a list that lets nobody in. Its text has the id, and nothing else of the secret.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{entry} of the token list {reason}")]
pub struct RefusedEntry {
    entry: String,
    reason: &'static str,
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
    /// A field that would restrict an entry stands where it restricts nothing.
    #[error("the token secret has a field like `{0}` beside its token or list, where it restricts nothing")]
    Restriction(&'static str),
}

/// A secret in JSON. Other fields mean nothing; a known one that stands twice is an error.
#[derive(Deserialize)]
struct Object {
    token: Option<String>,
    tokens: Option<Vec<Box<RawValue>>>,
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

/// What may be legible of an entry that is no good one.
#[derive(Default, Deserialize)]
struct Legible {
    id: Option<String>,
    sha256: Option<String>,
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

// === impl Legible ===

impl Legible {
    fn of(entry: &RawValue) -> Self {
        serde_json::from_str(entry.get()).unwrap_or_default()
    }

    fn digest(&self) -> Option<TokenDigest> {
        TokenDigest::from_hex(self.sha256.as_deref()?)
    }

    /// The entry's name for a log: its id, and where that is none, its place.
    fn name(&self, index: usize) -> String {
        match self.id.as_deref().filter(|id| is_id(id)) {
            Some(id) => format!("the entry `{id}`"),
            None => format!("entry {index}"),
        }
    }
}

// === impl TokenSecret ===

impl TokenSecret {
    /// Read the text of a secret.
    ///
    /// # Errors
    /// It cannot be used; nobody gets in with it.
    pub fn parse(text: &str) -> Result<Self, TokenSecretError> {
        // Some editors and shells put a mark before a text (U+FEFF), and many a line break after it.
        let text = text.trim_start_matches('\u{feff}').trim();
        if !text.starts_with('{') {
            return single(text);
        }
        let object: Object = serde_json::from_str(text).map_err(|_| TokenSecretError::Form)?;
        #[expect(clippy::zero_sized_map_values, reason = "serde reads an object with any values as a map only")]
        let fields: BTreeMap<String, IgnoredAny> = serde_json::from_str(text).map_err(|_| TokenSecretError::Form)?;
        if let Some(restriction) = fields.keys().find_map(|field| nearest(field, &RESTRICTIONS)) {
            return Err(TokenSecretError::Restriction(restriction));
        }
        match object {
            Object { token: Some(token), tokens: None } => single(&token),
            Object { token: None, tokens: Some(entries) } => Ok(list(&entries)),
            _ => Err(TokenSecretError::Form),
        }
    }
}

fn list(entries: &[Box<RawValue>]) -> TokenSecret {
    let legible: Vec<_> = entries.iter().map(|entry| Legible::of(entry)).collect();
    let ids = counts(legible.iter().filter_map(|entry| entry.id.clone()));
    let digests = counts(legible.iter().filter_map(Legible::digest));
    let is_shared = |count: Option<&usize>| count.is_some_and(|count| *count > 1);
    let (mut tokens, mut refused) = (TokenSet::default(), Vec::new());
    for (index, (written, legible)) in entries.iter().zip(legible).enumerate() {
        // Which of two entries was meant cannot be told.
        let entry = if index >= MAX_TOKENS {
            Err("is one too many: at most 200 count")
        } else if legible.id.as_ref().is_some_and(|id| is_shared(ids.get(id))) {
            Err("has the id of another entry")
        } else if legible.digest().is_some_and(|digest| is_shared(digests.get(&digest))) {
            Err("has the digest of another entry")
        } else {
            entry(written)
        };
        match entry {
            Ok(entry) => tokens.0.push(entry),
            Err(reason) => refused.push(RefusedEntry { entry: legible.name(index), reason }),
        }
    }
    TokenSecret::List { tokens, refused }
}

fn counts<T: Eq + Hash>(items: impl Iterator<Item = T>) -> HashMap<T, usize> {
    let mut counts = HashMap::new();
    for item in items {
        *counts.entry(item).or_default() += 1;
    }
    counts
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

/// Whether a text can be the id of a token.
#[must_use]
pub fn is_id(text: &str) -> bool {
    let is_id_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    !text.is_empty() && text.len() <= MAX_ID_LENGTH && text.bytes().all(is_id_byte)
}

fn entry(written: &RawValue) -> Result<Entry, &'static str> {
    let written: Written = serde_json::from_str(written.get()).map_err(
        |_| "is not {id, sha256, scopes of `submit` and `read`, optional namespaces and expires_at (RFC 3339)}",
    )?;
    if !is_id(&written.id) {
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

    /// A secret that has this entry alone.
    fn list(entry: &Value) -> TokenSecret {
        TokenSecret::parse(&json!({"tokens": [entry]}).to_string()).expect("a list")
    }

    fn sha256() -> String {
        format!("{:x}", Sha256::digest(TOKEN))
    }

    fn caller(secret: TokenSecret, token: &str) -> Option<Caller> {
        let (TokenSecret::Single(set) | TokenSecret::List { tokens: set, .. }) = secret;
        set.find(&TokenDigest::of(token.as_bytes()), now()).cloned()
    }

    #[test]
    fn a_single_token_may_do_everything() {
        let object = json!({"token": TOKEN}).to_string();
        for text in [
            TOKEN.to_owned(),
            format!("{TOKEN}\r\n"),
            format!("\u{feff}{TOKEN}"),
            format!(" {TOKEN}\t\n"),
            format!("\u{feff}{object}\n"),
            object,
            json!({"token": TOKEN, "description": "of the platform team", "rotated_at": "2026-11-24"}).to_string(),
        ] {
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
        let found = caller(list(&entry), TOKEN).expect("the token");
        assert_eq!(found.id.as_deref(), Some("ci"));
        assert!(found.may(Scope::Read) && !found.may(Scope::Submit));
        assert!(found.sees(&"training".parse().expect("a namespace")));
        assert!(!found.sees(&"training-two".parse().expect("a namespace")));

        let mut expired = entry.clone();
        expired["expires_at"] = json!("2026-11-24T00:00:00Z");
        assert_eq!(caller(list(&expired), TOKEN), None, "from that moment on");
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
            format!("\"{TOKEN}\""),
            format!("{TOKEN} {TOKEN}"),
            format!("{TOKEN}\u{feff}"),
            format!("{}x", "-\u{a0}".repeat(20)),
        ] {
            assert_eq!(TokenSecret::parse(&text), Err(TokenSecretError::Characters), "{text}");
        }
        let both = json!({"token": TOKEN, "tokens": []}).to_string();
        let twice = format!(r#"{{"token": "{TOKEN}", "token": "{TOKEN}"}}"#);
        for text in [both, twice] {
            assert_eq!(TokenSecret::parse(&text), Err(TokenSecretError::Form), "{text}");
        }
        for text in ["", "short", r#"{"token": ""}"#, "\u{feff}"] {
            assert_eq!(TokenSecret::parse(text), Err(TokenSecretError::TooShort), "{text}");
        }
    }

    #[test]
    fn a_restriction_that_would_restrict_nothing_lets_nobody_in() {
        let entry = json!({"id": "ci", "sha256": sha256(), "scopes": ["submit", "read"]});
        for (field, value, known) in [
            ("scopes", json!(["read"]), "scopes"),
            ("scope", json!("read"), "scopes"),
            ("Namespace", json!("training"), "namespaces"),
            ("expires", json!("2026-11-24T00:00:00Z"), "expires_at"),
            ("expiresAt", json!(null), "expires_at"),
        ] {
            for mut secret in [json!({"token": TOKEN}), json!({"tokens": [entry]})] {
                secret[field] = value.clone();
                let parsed = TokenSecret::parse(&secret.to_string());
                assert_eq!(parsed, Err(TokenSecretError::Restriction(known)), "{secret}");
            }
        }
    }

    #[test]
    fn an_entry_that_cannot_be_understood_lets_nobody_in_and_keeps_nobody_else_out() {
        let good = json!({"id": "ci", "sha256": sha256(), "scopes": ["read"]});
        let other = json!({"id": "other", "sha256": format!("{:x}", Sha256::digest("other")), "scopes": ["submit"]});
        let mut entries = vec![json!("ci"), json!({"id": "ci"})];
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
            // Each could be a restriction, misspelt or of a later release.
            ("not_before", json!("2026-11-24T00:00:00Z")),
            ("namespace", json!("training")),
            ("comment", json!("of the build server")),
        ] {
            let mut entry = good.clone();
            entry[field] = value;
            entries.push(entry);
        }
        let mut entries: Vec<_> = entries.iter().map(|entry| (entry["id"] == "ci", entry.to_string())).collect();
        // A field twice: the first could be the restriction.
        entries.push((true, good.to_string().replace(r#""scopes":"#, r#""scopes":[],"scopes":"#)));
        for (is_named, entry) in entries {
            let text = format!("\u{feff}{{\"tokens\": [{entry}, {other}], \"comment\": \"rotated in May\"}}\n");
            let secret = TokenSecret::parse(&text).expect("a list");
            assert_eq!(caller(secret.clone(), TOKEN), None, "{entry}");
            assert!(caller(secret.clone(), "other").is_some_and(|caller| caller.may(Scope::Submit)), "{entry}");
            let TokenSecret::List { refused, .. } = secret else { panic!("not a list") };
            let [refused] = refused.as_slice() else { panic!("{refused:?}") };
            let told = refused.to_string();
            let name = if is_named { "the entry `ci` of" } else { "entry 0 of" };
            assert!(told.starts_with(name) && !told.contains(&sha256()[..8]), "{told}");
        }
    }

    #[test]
    fn entries_that_contradict_each_other_let_nobody_in() {
        let entry = |id: &str, digest: &str, scope: &str| json!({"id": id, "sha256": digest, "scopes": [scope]});
        let (ours, other) = (sha256(), format!("{:x}", Sha256::digest("other")));
        for (second, told) in [
            (entry("ci", &other, "read"), "has the id of another entry"),
            (entry("another", &ours, "submit"), "has the digest of another entry"),
            (entry("another", &ours.to_uppercase(), "submit"), "has the digest of another entry"),
            // It would have been a restriction of the first one's token.
            (
                json!({"id": "another", "sha256": ours, "scopes": ["read"], "until": "now"}),
                "has the digest of another entry",
            ),
        ] {
            let third = entry("third", &format!("{:x}", Sha256::digest("third")), "read");
            let text = json!({"tokens": [entry("ci", &ours, "read"), second, third]}).to_string();
            let secret = TokenSecret::parse(&text).expect("a list");
            assert_eq!(caller(secret.clone(), TOKEN), None, "{text}");
            assert_eq!(caller(secret.clone(), "other"), None, "{text}");
            assert!(caller(secret.clone(), "third").is_some(), "{text}");
            let TokenSecret::List { refused, .. } = secret else { panic!("not a list") };
            assert_eq!(refused.iter().map(|entry| entry.reason).collect::<Vec<_>>(), [told, told]);
        }
    }

    #[test]
    fn what_is_beyond_the_most_entries_keeps_nobody_else_out() {
        let token = |index: usize| format!("token {index}");
        let entries: Vec<_> = (0..=MAX_TOKENS)
            .map(|index| json!({"id": index.to_string(), "sha256": format!("{:x}", Sha256::digest(token(index))), "scopes": []}))
            .collect();
        let secret = TokenSecret::parse(&json!({"tokens": entries}).to_string()).expect("a list");
        for (index, is_known) in [(0, true), (MAX_TOKENS - 1, true), (MAX_TOKENS, false)] {
            assert_eq!(caller(secret.clone(), &token(index)).is_some(), is_known, "{index}");
        }
        let TokenSecret::List { refused, .. } = secret else { panic!("not a list") };
        let told: Vec<_> = refused.iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [format!("the entry `{MAX_TOKENS}` of the token list is one too many: at most {MAX_TOKENS} count")]
        );
    }

    #[test]
    fn no_text_of_ours_holds_a_digest() {
        let secret = TokenSecret::parse(TOKEN).expect("a secret");
        assert!(!format!("{secret:?}").contains(&sha256()));
    }
}
