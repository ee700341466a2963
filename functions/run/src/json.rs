//! JSON objects that others wrote, read field by field, so that both languages take or refuse the same ones:
//! `trainer/training/strict_json.py` is the other.

use std::{fmt, marker::PhantomData, str::FromStr};

use serde::{
    Deserialize,
    de::{Deserializer, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value, value::RawValue};
use thiserror::Error;

/// Largest owner, record, progress or index entry that is read, in bytes. They have some hundred; of an entry, metrics of
/// 4 KiB, two submissions and a key of a kilobyte are not half of it.
pub const MAX_STATEMENT_BYTES: usize = 16 * 1024;

/// Levels of objects and lists in each other at most, the object itself counted: an index entry nests as a marker's metrics
/// do, and parsers have limits.
pub(crate) const MAX_DEPTH: usize = 64;

/// The fields of a JSON object in their order, each a text until it is asked for: what somebody else or a later release
/// adds is passed over, and never takes the memory that values take, up to forty times that of their text.
pub(crate) struct Fields<'a>(pub(crate) Vec<(String, &'a RawValue)>);

struct FieldsVisitor<'a>(PhantomData<Fields<'a>>);

/// JSON as it stands. A [`Value`] by itself parses the text in `{"$serde_json::private::RawValue": "[1]"}`, and is `[1]`.
pub(crate) struct Plain(pub(crate) Value);

struct PlainVisitor;

/// A field that is of a wrong type or out of range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadField(pub(crate) &'static str);

/// Why an object is not an owner, a record, progress or an index entry.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum StatementError {
    /// Larger than any.
    #[error("is larger than {MAX_STATEMENT_BYTES} bytes")]
    TooLarge,
    /// Not a JSON object, or one that nests without end.
    #[error("is not a JSON object")]
    Json,
    /// A field is missing, of a wrong type or out of range.
    #[error("its field `{0}` is missing or not what it must be")]
    Field(&'static str),
}

// === impl StatementError ===

impl From<BadField> for StatementError {
    fn from(BadField(name): BadField) -> Self {
        Self::Field(name)
    }
}

// === impl Fields ===

impl<'a> Fields<'a> {
    pub(crate) fn parse(text: &'a [u8]) -> Option<Self> {
        serde_json::from_slice(text).ok()
    }

    /// The fields of an owner, a record, progress or an index entry.
    pub(crate) fn of_statement(body: &'a [u8]) -> Result<Self, StatementError> {
        if body.len() > MAX_STATEMENT_BYTES {
            return Err(StatementError::TooLarge);
        }
        Self::parse(body).filter(|_| !is_too_deep(body)).ok_or(StatementError::Json)
    }

    /// Whether there is a field of this name, null or not.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(found, _)| found == name)
    }

    /// A field's value; `None` where it is missing or null.
    pub(crate) fn get<T: Deserialize<'a>>(&self, name: &'static str) -> Result<Option<T>, BadField> {
        // Of two equal names the last one counts, as in Python.
        let Some((_, value)) = self.0.iter().rfind(|(found, _)| found == name) else { return Ok(None) };
        serde_json::from_str(value.get()).map_err(|_| BadField(name))
    }

    /// A field that is made of its value; `None` where it is missing or null.
    pub(crate) fn parsed<V: Deserialize<'a>, T>(
        &self,
        name: &'static str,
        parse: impl FnOnce(V) -> Option<T>,
    ) -> Result<Option<T>, BadField> {
        self.get(name)?.map(|value| parse(value).ok_or(BadField(name))).transpose()
    }

    /// A field's value, which must be there.
    pub(crate) fn required<T: Deserialize<'a>>(&self, name: &'static str) -> Result<T, BadField> {
        self.get(name)?.ok_or(BadField(name))
    }

    /// A field that is a text of some form, and must be there.
    pub(crate) fn required_text<T: FromStr>(&self, name: &'static str) -> Result<T, BadField> {
        self.text(name)?.ok_or(BadField(name))
    }

    /// A field that is a text of some form.
    pub(crate) fn text<T: FromStr>(&self, name: &'static str) -> Result<Option<T>, BadField> {
        self.parsed(name, |text: String| text.parse().ok())
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(FieldsVisitor(PhantomData))
    }
}

// === impl FieldsVisitor ===

impl<'de: 'a, 'a> Visitor<'de> for FieldsVisitor<'a> {
    type Value = Fields<'a>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'a>, A::Error> {
        let mut fields = Vec::new();
        while let Some(field) = map.next_entry()? {
            fields.push(field);
        }
        Ok(Fields(fields))
    }
}

// === impl Plain ===

impl<'de> Deserialize<'de> for Plain {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PlainVisitor).map(Self)
    }
}

// === impl PlainVisitor ===

impl<'de> Visitor<'de> for PlainVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Plain(value)) = seq.next_element()? {
            list.push(value);
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some((name, Plain(value))) = map.next_entry()? {
            object.insert(name, value);
        }
        Ok(object.into())
    }
}

/// Whether objects and lists nest deeper than [`MAX_DEPTH`]; brackets in texts do not count.
pub(crate) fn is_too_deep(json: &[u8]) -> bool {
    let (mut depth, mut is_text, mut is_escaped) = (0_usize, false, false);
    json.iter().any(|byte| {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = is_text,
            b'"' => is_text = !is_text,
            b'[' | b'{' if !is_text => depth += 1,
            b']' | b'}' if !is_text => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth > MAX_DEPTH
    })
}
