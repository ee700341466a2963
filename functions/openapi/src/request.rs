//! The body of POST /train as a schema, made of the table of its fields. The parser decides what is taken; the tests hold
//! the two together.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};
use training_run::names::Framework;

use training_core::request::fields::{FIELDS, Field, Shape, Text};

const DESCRIPTION: &str = "One training job. Unknown fields, duplicate keys and values of another type are refused; null \
    means absent. The body has at most 128 KiB.";

/// The body, for its schema.
pub(crate) struct RequestBody;

// === impl RequestBody ===

impl JsonSchema for RequestBody {
    fn schema_name() -> Cow<'static, str> {
        "TrainingJobRequest".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let framework = generator.subschema_for::<Framework>();
        let properties: Map<String, Value> =
            FIELDS.iter().map(|field| (field.name.to_owned(), property(field, &framework))).collect();
        let required = FIELDS.iter().filter(|field| field.is_required).map(|field| field.name);
        schemars::json_schema!({
            "type": "object",
            "additionalProperties": false,
            "properties": properties,
            "required": required.collect::<Vec<_>>(),
            "description": DESCRIPTION
        })
    }
}

/// The schema of a field.
fn property(field: &Field, framework: &Schema) -> Value {
    let nullable = |name: &str| if field.is_required { json!(name) } else { json!([name, "null"]) };
    let (kind, bounds) = match &field.shape {
        Shape::Framework => (framework.clone().into(), json!({})),
        Shape::Text(text) => (json!({"type": nullable("string")}), constraints(*text)),
        Shape::Count { bounds, default } => (
            json!({"type": nullable("integer"), "format": "uint32", "minimum": bounds.start()}),
            match default {
                Some(default) => json!({"maximum": bounds.end(), "default": default}),
                None => json!({"maximum": bounds.end()}),
            },
        ),
        Shape::BooleanOr(text) => (
            json!({"anyOf": [{"anyOf": [{"type": "boolean"}, of_texts(*text)]}, {"type": "null"}]}),
            json!({"default": false}),
        ),
        Shape::Object(names) => (
            json!({"type": nullable("object"), "additionalProperties": true}),
            json!({"propertyNames": constraints(*names)}),
        ),
        Shape::Texts(names, values) => (
            json!({"type": nullable("object"), "additionalProperties": of_texts(*values)}),
            json!({"propertyNames": constraints(*names)}),
        ),
    };
    joined([kind, json!({"description": field.description}), bounds])
}

fn of_texts(text: Text) -> Value {
    joined([json!({"type": "string"}), constraints(text)])
}

/// What a text must be, but for its type.
fn constraints(text: Text) -> Value {
    let lengths = [("minLength", text.min), ("maxLength", text.max)];
    let lengths = lengths.into_iter().filter_map(|(keyword, length)| Some((keyword.to_owned(), length?.into())));
    let pattern = text.pattern.map(|pattern| ("pattern".to_owned(), pattern.into()));
    lengths.chain(pattern).collect::<Map<_, _>>().into()
}

/// One object with the members of several.
fn joined<const N: usize>(objects: [Value; N]) -> Value {
    objects.into_iter().filter_map(|object| object.as_object().cloned()).flatten().collect::<Map<_, _>>().into()
}
