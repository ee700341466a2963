//! docs/reference/request-fields.md: the fields of POST /train as a table, made of the same schema as openapi.json.

use std::fmt::Write;

use serde_json::Value;

use crate::document::document;

const HEAD: &str = "# Fields of `POST /train`

Written by `make openapi`; do not edit. [README](../../README.md#request-fields) says how a body is read, and openapi.json has
the same for programs.

| field | default | must be | |
|---|---|---|---|
";

/// The table as the file has it.
///
/// # Panics
/// Never, as long as the crate's tests pass: the schema is ours.
#[must_use]
pub fn request_fields() -> String {
    let document = document();
    let schemas = &document["components"]["schemas"];
    let request = &schemas["TrainingJobRequest"];
    let required = request["required"].as_array().expect("a list of names");
    let mut table = HEAD.to_owned();
    for (name, schema) in request["properties"].as_object().expect("an object") {
        let default = match &schema["default"] {
            _ if required.iter().any(|field| field == name) => "required".to_owned(),
            Value::Null => String::new(),
            value => format!("`{value}`"),
        };
        // Of a type with a name, the words stand elsewhere.
        let referred = schema["$ref"].as_str().and_then(|place| place.rsplit_once('/'));
        let shape = referred.map_or(schema, |(_, name)| &schemas[name]);
        let description = schema["description"].as_str().expect("a description");
        // Writing to a String cannot fail.
        let _ = writeln!(table, "| `{name}` | {default} | {} | {} |", cell(&must_be(shape)), cell(description));
    }
    table
}

/// What a value must be, in words.
fn must_be(schema: &Value) -> String {
    let number = |key: &str| schema[key].as_u64();
    let alternatives = schema["anyOf"].as_array().into_iter().flatten().map(must_be);
    let mut alternatives: Vec<_> = alternatives.filter(|words| !words.is_empty()).collect();
    if let Some(last) = alternatives.pop() {
        return if alternatives.is_empty() { last } else { format!("{}, or {last}", alternatives.join(", ")) };
    }
    if let Some(words) = schema["enum"].as_array() {
        return words.iter().filter_map(Value::as_str).map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ");
    }
    let kinds = match &schema["type"] {
        Value::String(kind) => vec![kind.as_str()],
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    let pattern = |schema: &Value| schema["pattern"].as_str().map(|pattern| format!("matching `{pattern}`"));
    match kinds.iter().find(|kind| **kind != "null") {
        Some(&"integer") => {
            let bounds = number("minimum").zip(number("maximum"));
            bounds.map_or_else(|| "a whole number".to_owned(), |(min, max)| format!("{min} to {max}"))
        }
        Some(&"boolean") => "a boolean".to_owned(),
        Some(&"string") => {
            let length = match (number("minLength"), number("maxLength")) {
                (Some(min), Some(max)) => Some(format!("{min} to {max} characters")),
                (None, Some(max)) => Some(format!("at most {max} characters")),
                _ => None,
            };
            let words: Vec<_> = length.into_iter().chain(pattern(schema)).collect();
            if words.is_empty() { "a text".to_owned() } else { words.join(", ") }
        }
        Some(&"object") => {
            let names = pattern(&schema["propertyNames"]).map(|names| format!("names {names}"));
            let value = &schema["additionalProperties"];
            let values = value.is_object().then(|| format!("values: {}", must_be(value)));
            let words: Vec<_> = ["an object".to_owned()].into_iter().chain(names).chain(values).collect();
            words.join("; ")
        }
        _ => String::new(),
    }
}

/// A text as a table's cell has it.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}
