//! The part of JSON Schema (2020-12) that the schemas in trainer/settings use. The tests compare it with the crate
//! `jsonschema`, and find a keyword that is not in it.

use std::cmp::Ordering;

use serde_json::Value;

/// The code of the rule that a value breaks: `type`, `range` or `format`. `None` where it keeps all of them.
pub(super) fn broken(schema: &Value, value: &Value) -> Option<&'static str> {
    let types = schema.get("type").is_none_or(|types| any(types, |name| is_of_type(value, name)));
    if !types {
        return Some("type");
    }
    if let Some(words) = schema.get("enum").and_then(Value::as_array)
        && !words.iter().any(|word| equal(word, value))
    {
        return Some(if words.iter().any(|word| kind(word) == kind(value)) { "format" } else { "type" });
    }
    if schema.get("const").is_some_and(|word| !equal(word, value)) {
        return Some("format");
    }
    let least = schema.get("minLength").and_then(Value::as_u64);
    if let (Some(least), Some(text)) = (least, value.as_str())
        && u64::try_from(text.chars().count()).is_ok_and(|length| length < least)
    {
        return Some("format");
    }
    let number = value.as_f64();
    let is_within = |keyword: &str, holds: fn(&f64, &f64) -> bool| {
        let bound = schema.get(keyword).and_then(Value::as_f64);
        number.zip(bound).is_none_or(|(number, bound)| holds(&number, &bound))
    };
    if !(is_within("minimum", f64::ge)
        && is_within("exclusiveMinimum", f64::gt)
        && is_within("maximum", f64::le)
        && is_within("exclusiveMaximum", f64::lt))
    {
        return Some("range");
    }
    let alternatives = schema.get("anyOf").and_then(Value::as_array)?;
    let codes: Option<Vec<_>> = alternatives.iter().map(|schema| broken(schema, value)).collect();
    // Of a number that is out of every range this says more than that it is no null.
    codes.map(|codes| if codes.contains(&"range") { "range" } else { codes.first().copied().unwrap_or("type") })
}

/// What a value is, in JSON's own words.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn is_of_type(value: &Value, name: &str) -> bool {
    // In JSON 5.0 is 5.
    let is_whole = || value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|number| number.fract() == 0.0);
    if name == "integer" { is_whole() } else { kind(value) == name }
}

/// Whether something holds for one name, or for one of several.
fn any(names: &Value, holds: impl Fn(&str) -> bool) -> bool {
    match names {
        Value::Array(names) => names.iter().filter_map(Value::as_str).any(holds),
        name => name.as_str().is_some_and(holds),
    }
}

/// Whether two values are the same to JSON Schema, to which 1 and 1.0 are. Lists of numbers and objects are not compared so:
/// no enumeration of the schemas has any.
fn equal(one: &Value, two: &Value) -> bool {
    let numbers = one.as_f64().zip(two.as_f64());
    one == two || numbers.is_some_and(|(one, two)| one.partial_cmp(&two) == Some(Ordering::Equal))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::extra_args;
    use serde_json::{Map, json};
    use training_run::names::Framework;

    /// What constrains a value, as far as this file evaluates it.
    const EVALUATED: [&str; 9] =
        ["type", "enum", "anyOf", "const", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength"];
    const ANNOTATIONS: [&str; 6] = ["description", "default", "x-expected", "x-refusal", "x-refusal-of", "x-setting"];

    fn values() -> Vec<Value> {
        let mut values = vec![
            json!(null),
            json!(true),
            json!(false),
            json!(""),
            json!("é"),
            json!("a text"),
            json!("1"),
            json!([]),
            json!([""]),
            json!([null]),
            json!([[]]),
            json!(["none"]),
            json!(["tensorboard", "none"]),
            json!({}),
            json!({"a": 1}),
        ];
        let whole = [i64::MIN, -2, -1, 0, 1, 2, 3, 4_294_967_295, 4_294_967_296, 9_007_199_254_740_993, i64::MAX];
        values.extend(whole.map(Value::from));
        values.push(u64::MAX.into());
        let parts = [
            f64::MIN,
            -1.5,
            -1.0,
            -0.0,
            0.0,
            f64::MIN_POSITIVE,
            1e-8,
            0.5,
            0.9,
            0.999,
            1.0,
            1.5,
            2.0,
            5.0,
            4_294_967_295.0,
            4_294_967_295.5,
            1e300,
            f64::MAX,
        ];
        values.extend(parts.map(Value::from));
        values
    }

    fn properties() -> impl Iterator<Item = (String, Value)> {
        Framework::ALL.into_iter().flat_map(|framework| {
            let schema: Value = serde_json::from_str(extra_args::schema(framework)).expect("JSON");
            let properties: Map<String, Value> = schema["properties"].as_object().expect("properties").clone();
            properties.into_iter().map(move |(name, schema)| (format!("{framework} {name}"), schema))
        })
    }

    /// All values that a schema names.
    fn named(schema: &Value) -> Vec<Value> {
        let mut found: Vec<Value> = schema["enum"].as_array().cloned().unwrap_or_default();
        found.extend(["const", "default"].iter().filter_map(|keyword| schema.get(keyword).cloned()));
        let alternatives = schema["anyOf"].as_array().into_iter().flatten();
        found.extend(alternatives.flat_map(named));
        found.extend(schema["x-refusal-of"].as_object().into_iter().flat_map(Map::keys).map(|word| json!(word)));
        found
    }

    #[test]
    fn each_value_is_judged_as_a_whole_implementation_judges_it() {
        let values = values();
        let mut count = 0;
        for (name, schema) in properties() {
            let validator = jsonschema::validator_for(&schema).expect("a schema");
            for value in values.iter().chain(&named(&schema)) {
                let ours = broken(&schema, value);
                assert_eq!(ours.is_none(), validator.is_valid(value), "{name}: {value}: {ours:?}");
                count += 1;
            }
        }
        assert!(count > 10_000, "only {count}");
    }

    #[test]
    fn each_keyword_of_the_schemas_is_evaluated() {
        fn unknown(schema: &Value) -> Vec<&str> {
            let schema = schema.as_object().expect("an object");
            let known = |keyword: &str| EVALUATED.contains(&keyword) || ANNOTATIONS.contains(&keyword);
            let own = schema.keys().map(String::as_str).filter(|keyword| !known(keyword));
            own.chain(schema.get("anyOf").and_then(Value::as_array).into_iter().flatten().flat_map(unknown)).collect()
        }
        for (name, schema) in properties() {
            assert_eq!(unknown(&schema), [""; 0], "{name}");
            let lists = named(&schema).into_iter().filter_map(|value| value.as_array().cloned()).flatten();
            assert!(lists.into_iter().all(|item| item.is_string()), "{name}: equal() compares texts in lists alone");
            assert!(!named(&schema).iter().any(Value::is_object), "{name}: equal() compares no objects");
            let is_free =
                schema.as_object().is_some_and(|schema| EVALUATED.iter().all(|word| !schema.contains_key(*word)));
            assert!(is_free || schema["x-expected"].is_string(), "{name} does not say what it must be");
        }
        for framework in Framework::ALL {
            let schema: Map<String, Value> = serde_json::from_str(extra_args::schema(framework)).expect("JSON");
            let keywords: Vec<_> = schema.keys().map(String::as_str).collect();
            assert_eq!(keywords, ["$schema", "title", "type", "properties", "additionalProperties"], "{framework}");
            assert_eq!((&schema["type"], &schema["additionalProperties"]), (&json!("object"), &json!(false)));
        }
    }

    #[test]
    fn a_broken_rule_has_the_code_that_other_fields_have() {
        let steps = json!({"anyOf": [
            {"type": "integer", "minimum": 1}, {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}
        ]});
        let precision = json!({"enum": ["fp32", "bf16", null]});
        for (schema, value, code) in [
            (&steps, json!(5.0), None),
            (&steps, json!(0.1), None),
            (&steps, json!(0), Some("range")),
            (&steps, json!(1.5), Some("range")),
            (&steps, json!("5"), Some("type")),
            (&precision, json!("bf16"), None),
            (&precision, json!(null), None),
            (&precision, json!("fp8"), Some("format")),
            (&precision, json!(16), Some("type")),
            (&json!({"type": "string", "minLength": 1}), json!(""), Some("format")),
            (&json!({"type": ["integer", "null"], "minimum": 1}), json!(0), Some("range")),
            (&json!({"type": ["integer", "null"]}), json!(1.5), Some("type")),
        ] {
            assert_eq!(broken(schema, &value), code, "{schema} {value}");
        }
    }
}
