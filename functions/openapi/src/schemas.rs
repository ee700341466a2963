//! The schemas of the types that operations refer to, in words for people.

use std::fmt::Write;

use schemars::{
    JsonSchema, Schema,
    generate::{SchemaGenerator, SchemaSettings},
    transform::transform_subschemas,
};
use serde_json::{Map, Value};

/// The schemas of all types that were asked for.
pub(crate) struct Schemas {
    answers: SchemaGenerator,
    requests: SchemaGenerator,
}

// === impl Schemas ===

impl Schemas {
    pub(crate) fn new() -> Self {
        let settings = SchemaSettings::draft2020_12().with_transform(for_people).with(|settings| {
            settings.definitions_path = "/components/schemas".into();
            settings.meta_schema = None;
        });
        let answers = settings.clone().for_serialize().into_generator();
        Self { answers, requests: settings.for_deserialize().into_generator() }
    }

    /// A reference to the schema of what is written.
    pub(crate) fn answer<T: JsonSchema>(&mut self) -> Value {
        self.answers.subschema_for::<T>().into()
    }

    /// A reference to the schema of what is read.
    pub(crate) fn request<T: JsonSchema>(&mut self) -> Value {
        self.requests.subschema_for::<T>().into()
    }

    pub(crate) fn finish(mut self) -> Map<String, Value> {
        let mut schemas = self.requests.take_definitions(true);
        schemas.extend(self.answers.take_definitions(true));
        schemas.sort_keys();
        schemas
    }
}

/// Comments lose their line breaks; words with a meaning each become one `enum`, which more generators know than
/// alternatives of one word.
fn for_people(schema: &mut Schema) {
    let mut description = schema.get("description").and_then(Value::as_str).map(one_line);
    if let Some(words) = schema.get("oneOf").and_then(Value::as_array).and_then(|words| words_with_meanings(words)) {
        let description = description.get_or_insert_default();
        description.push('\n');
        for (word, meaning) in &words {
            // Writing to a String cannot fail.
            let _ = write!(description, "\n- `{word}`: {meaning}");
        }
        schema.remove("oneOf");
        schema.insert("type".to_owned(), "string".into());
        schema.insert("enum".to_owned(), words.into_iter().map(|(word, _)| word).collect());
    }
    if let Some(description) = description {
        schema.insert("description".to_owned(), description.into());
    }
    transform_subschemas(&mut for_people, schema);
}

fn one_line(text: &str) -> String {
    text.split("\n\n").map(|paragraph| paragraph.replace('\n', " ")).collect::<Vec<_>>().join("\n\n")
}

fn words_with_meanings(alternatives: &[Value]) -> Option<Vec<(String, String)>> {
    let word = |alternative: &Value| {
        let meaning = alternative.get("description").and_then(Value::as_str).map(one_line).unwrap_or_default();
        Some((alternative.get("const")?.as_str()?.to_owned(), meaning))
    };
    alternatives.iter().map(word).collect()
}
