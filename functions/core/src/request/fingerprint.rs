//! What a request was, in few bytes and without its values: by this a repeated request is told from another one of the
//! same name.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::request::{fields::Field, resume::ResumeTarget};

/// Begins every stored fingerprint, so that another way of making them can be told from this one.
const VERSION: &str = "v1:";
/// Fields that say where the job is and not what it is: they decide which job is compared.
const NOT_COMPARED: [&str; 2] = ["namespace", "job_name"];

/// The first 12 hex digits of the SHA-256 of each field's canonical JSON (RFC 8785), over the fields as sent: neither the
/// deployment's defaults nor the query are in it, so that a new release never turns a retry into a conflict. A field that
/// is sent with the value that the contract gives it anyway counts as absent, because some clients send all fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fingerprint(BTreeMap<String, String>);

// === impl Fingerprint ===

impl Fingerprint {
    /// The fingerprint of a request's body. Null means absent; slashes at the end of the base and zeros before a step mean
    /// nothing.
    #[must_use]
    pub fn of(body: &Map<String, Value>) -> Self {
        let digests = body.iter().filter(|(field, value)| !says_nothing(field, value));
        Self(digests.map(|(field, value)| (field.clone(), digest(&parsed(field, value)))).collect())
    }

    /// The text that is stored with the job.
    #[must_use]
    pub fn to_annotation(&self) -> String {
        let digests: Map<String, Value> =
            self.0.iter().map(|(field, digest)| (field.clone(), digest.as_str().into())).collect();
        format!("{VERSION}{}", Value::Object(digests))
    }

    /// Read what is stored with a job; `None` when this release cannot compare it.
    #[must_use]
    pub fn from_annotation(text: &str) -> Option<Self> {
        serde_json::from_str(text.strip_prefix(VERSION)?).ok().map(Self)
    }

    /// The fields in which two requests differ.
    #[must_use]
    pub fn differences<'a>(&'a self, other: &'a Self) -> BTreeSet<&'a str> {
        let fields: BTreeSet<&str> = self.0.keys().chain(other.0.keys()).map(String::as_str).collect();
        fields.into_iter().filter(|field| self.0.get(*field) != other.0.get(*field)).collect()
    }
}

/// A field's value without what means nothing in it.
fn parsed(field: &str, value: &Value) -> Value {
    match (field, value) {
        ("checkpoint_base_uri", Value::String(text)) => text.trim_end_matches('/').into(),
        // Zeros before a step.
        ("resume_from_checkpoint", Value::String(text)) => {
            text.parse().map_or_else(|_| value.clone(), |target: ResumeTarget| target.to_string().into())
        }
        _ => value.clone(),
    }
}

/// Whether a field is as if it were absent, or is not compared at all.
fn says_nothing(field: &str, value: &Value) -> bool {
    NOT_COMPARED.contains(&field) || Field::named(field).is_some_and(|field| field.is_absence(value))
}

/// The value with whole numbers as text where the canonical form, which knows only doubles, would make several the same.
fn exact(value: &Value) -> Value {
    /// Whole numbers up to this are doubles: 2^53.
    const EXACT: u64 = 9_007_199_254_740_992;
    match value {
        Value::Number(number) if number.is_i64() || number.is_u64() => {
            let is_exact = number.as_u64().or(number.as_i64().map(i64::unsigned_abs)).is_some_and(|size| size <= EXACT);
            if is_exact { value.clone() } else { json!({"integer": number.to_string()}) }
        }
        Value::Array(items) => items.iter().map(exact).collect(),
        Value::Object(fields) => fields.iter().map(|(name, value)| (name.clone(), exact(value))).collect(),
        other => other.clone(),
    }
}

fn digest(value: &Value) -> String {
    // Every JSON value has a canonical form, because every number that JSON text can hold is finite.
    let canonical = serde_json_canonicalizer::to_vec(&exact(value)).unwrap_or_default();
    let digest = Sha256::digest(canonical);
    digest.iter().take(6).fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(body: &Value) -> Fingerprint {
        Fingerprint::of(body.as_object().expect("an object"))
    }

    #[test]
    fn equal_requests_are_equal_however_they_are_written() {
        let one = of(&json!({"run_id": "a", "checkpoint_base_uri": "s3://b/runs", "extra_args": {"lr": 1.0, "n": 2}}));
        let two = of(
            &json!({"extra_args": {"n": 2, "lr": 1}, "checkpoint_base_uri": "s3://b/runs//", "run_id": "a", "image": null, "namespace": "x"}),
        );
        assert_eq!(one, two);
        assert_eq!(Fingerprint::from_annotation(&one.to_annotation()), Some(one));
        let resumed = |from: &str| of(&json!({"resume_from_checkpoint": from}));
        assert_eq!(resumed("step-000500"), resumed("step-500"));
        assert_ne!(resumed("step-5000"), resumed("step-500"));
        assert_ne!(resumed("latest"), resumed("best"));
    }

    #[test]
    fn large_whole_numbers_are_told_apart() {
        let seed = |seed: &str| {
            of(&serde_json::from_str(&format!(r#"{{"extra_args": {{"seed": [{seed}]}}}}"#)).expect("JSON"))
        };
        assert_ne!(seed("9007199254740993"), seed("9007199254740992"));
        assert_ne!(seed("-9007199254740993"), seed("-9007199254740992"));
        assert_eq!(seed("9007199254740992"), seed("9007199254740992.0"));
    }

    #[test]
    fn differing_fields_are_named() {
        let one = of(&json!({"run_id": "a", "num_nodes": 3, "env": {"A": "1"}}));
        let two = of(&json!({"run_id": "a", "num_nodes": 2, "labels": {"a": "b"}}));
        assert_eq!(one.differences(&two).into_iter().collect::<Vec<_>>(), ["env", "labels", "num_nodes"]);
    }

    #[test]
    fn the_stored_form_is_fixed() {
        // echo -n 2 | sha256sum
        assert_eq!(of(&json!({"num_nodes": 2})).to_annotation(), r#"v1:{"num_nodes":"d4735e3a265e"}"#);
        for unreadable in ["", "v2:{}", "v1:", "v1:[]", "{}"] {
            assert_eq!(Fingerprint::from_annotation(unreadable), None, "{unreadable}");
        }
    }
}
