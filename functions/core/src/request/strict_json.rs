//! JSON in which an object must not name a key twice. `serde_json` alone keeps the last of two equal keys in silence, and
//! half of a request would be ignored. Nor may a text hold U+FFFD as it is: API Gateway hands the body of a text type on as
//! a string, in which that character stands for each byte that was no UTF-8.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use training_run::text::bounded;

/// U+FFFD REPLACEMENT CHARACTER.
const MANGLED: &[u8] = "\u{fffd}".as_bytes();

struct Strict(Value);

struct StrictVisitor;

/// Parse a JSON text.
///
/// # Errors
/// The text is not JSON, an object in it has a key twice, or it was not UTF-8; the message says where.
pub fn parse(text: &[u8]) -> Result<Value, serde_json::Error> {
    if let Some(at) = text.windows(MANGLED.len()).position(|window| window == MANGLED) {
        return Err(serde_json::Error::custom(format_args!(
            "it was not UTF-8 at byte {at}; send UTF-8, and the character U+FFFD itself as \\ufffd"
        )));
    }
    serde_json::from_slice(text).map(|Strict(value)| value)
}

// === impl Strict ===

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Self)
    }
}

// === impl StrictVisitor ===

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
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

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(Strict(item)) = sequence.next_element()? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some((key, Strict(value))) = entries.next_entry::<String, Strict>()? {
            if object.contains_key(&key) {
                let key = bounded(&key, 128);
                return Err(A::Error::custom(format_args!("the key `{key}` appears twice in one object")));
            }
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_keys_are_refused_at_any_depth() {
        assert_eq!(
            parse(br#"{"a":[1,null,-2,1.5,"x",true,{}]}"#).expect("JSON"),
            serde_json::json!({"a":[1,null,-2,1.5,"x",true,{}]})
        );
        for twice in [r#"{"a":1,"a":1}"#, r#"{"x":[{"a":1,"a":2}]}"#] {
            let error = parse(twice.as_bytes()).expect_err("a key twice").to_string();
            assert!(error.contains("`a` appears twice"), "{error}");
        }
    }

    #[test]
    fn what_stands_for_bytes_that_were_no_utf8_is_refused() {
        let error = parse("{\"a\":\"\u{fffd}\"}".as_bytes()).expect_err("mangled").to_string();
        assert!(error.contains("not UTF-8 at byte 6") && error.contains(r"as \ufffd"), "{error}");
        assert_eq!(parse(br#""\ufffd""#).expect("JSON"), "\u{fffd}");
    }

    #[test]
    fn nesting_is_bounded() {
        assert!(parse("[".repeat(100_000).as_bytes()).is_err());
    }
}
