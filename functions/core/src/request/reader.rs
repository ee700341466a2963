//! Reading the fields of a body one by one: what is wrong is noted and reading goes on, so that one answer names every
//! violated rule.

use std::{collections::BTreeMap, fmt::Display, str::FromStr};

use serde_json::{Map, Value};
use training_run::text::bounded;

use crate::{
    api::problem::FieldError,
    nearest::nearest,
    request::fields::{self, Field, Shape},
};

/// The fields of a body that are still to be read, and the rules found broken so far.
pub(super) struct Reader {
    fields: Map<String, Value>,
    errors: Vec<FieldError>,
}

// === impl Reader ===

impl Reader {
    pub(super) fn new(fields: Map<String, Value>) -> Self {
        Self { fields, errors: Vec::new() }
    }

    /// Note a broken rule at a JSON Pointer.
    pub(super) fn refuse(&mut self, pointer: &str, code: &'static str, detail: impl Into<String>) {
        self.errors.push(FieldError { pointer: pointer.to_owned(), code, detail: detail.into() });
    }

    /// Take a field as text.
    pub(super) fn text(&mut self, field: &str) -> Option<String> {
        match self.take(field)? {
            Value::String(text) => Some(text),
            other => {
                self.refuse(&format!("/{field}"), "type", format!("must be a string, not {}", kind(&other)));
                None
            }
        }
    }

    /// Take a field as a value that a text stands for; the error's text says what it must be.
    pub(super) fn value<T: FromStr<Err: Display>>(&mut self, field: &str) -> Option<T> {
        let text = self.text(field)?;
        text.parse().map_err(|error: T::Err| self.refuse(&format!("/{field}"), "format", error.to_string())).ok()
    }

    /// Take a whole number: the field's default where it is absent, and nothing where it breaks a rule.
    pub(super) fn count(&mut self, field: &str) -> Option<u32> {
        let Shape::Count { bounds, default } = &Field::named(field)?.shape else { return None };
        let Some(value) = self.take(field) else { return *default };
        let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
        let number = number.filter(|number| bounds.contains(number));
        if number.is_none() {
            let code = if value.is_i64() || value.is_u64() { "range" } else { "type" };
            let (min, max) = (bounds.start(), bounds.end());
            self.refuse(
                &format!("/{field}"),
                code,
                format!("must be a whole number from {min} to {max}, not in quotes"),
            );
        }
        number
    }

    /// Take an object, empty when it is absent.
    pub(super) fn object(&mut self, field: &str) -> Map<String, Value> {
        match self.take(field) {
            None => Map::new(),
            Some(Value::Object(object)) => object,
            Some(other) => {
                self.refuse(&format!("/{field}"), "type", format!("must be an object, not {}", kind(&other)));
                Map::new()
            }
        }
    }

    /// Take an object whose values are strings; `check` says what is wrong with an entry, by code and sentence.
    pub(super) fn texts(
        &mut self,
        field: &str,
        check: impl Fn(&str, &str) -> Option<(&'static str, String)>,
    ) -> BTreeMap<String, String> {
        let mut entries = BTreeMap::new();
        for (name, value) in self.object(field) {
            match value {
                Value::String(value) => match check(&name, &value) {
                    None => {
                        entries.insert(name, value);
                    }
                    Some((code, detail)) => self.refuse(&pointer(field, &name), code, detail),
                },
                other => {
                    let detail = format!("must be a string, not {}: write it in quotes", kind(&other));
                    self.refuse(&pointer(field, &name), "type", detail);
                }
            }
        }
        entries
    }

    /// Take a field as it is; null means absent, and a required one is then refused.
    pub(super) fn take(&mut self, field: &str) -> Option<Value> {
        let field = Field::named(field)?;
        let value = self.fields.remove(field.name).filter(|value| !value.is_null());
        if value.is_none() && field.is_required {
            self.refuse(&format!("/{}", field.name), "required", "is required");
        }
        value
    }

    /// Refuses every field that was not read, and returns all broken rules.
    pub(super) fn finish(mut self) -> Result<(), Vec<FieldError>> {
        let known = fields::names();
        let mut told = false;
        for field in std::mem::take(&mut self.fields).keys() {
            let detail = match nearest(field, &known) {
                Some(known) => format!("is not a field of this request; did you mean `{known}`?"),
                None if told => "is not a field of this request".to_owned(),
                None => {
                    told = true;
                    format!("is not a field of this request; the fields are {}", known.join(", "))
                }
            };
            self.refuse(&format!("/{}", escape(field)), "unknown_field", detail);
        }
        if self.errors.is_empty() { Ok(()) } else { Err(self.errors) }
    }
}

/// The JSON Pointer of an entry of a field.
pub(super) fn pointer(field: &str, key: &str) -> String {
    format!("/{field}/{}", escape(key))
}

/// Escape one reference token of a JSON Pointer (RFC 6901, section 3), bounded so that a hostile key cannot fill an answer.
fn escape(token: &str) -> String {
    bounded(token, 128).replace('~', "~0").replace('/', "~1")
}

/// What a value is, in a sentence.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
