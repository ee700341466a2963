use std::{collections::BTreeSet, fs};

use jsonschema::Validator;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::{
    document::{document, text},
    examples,
    operation::UNROUTED,
    reference::request_fields,
    routes::{ROUTES, place},
};
use training_core::{
    access::{caller::Caller, namespaces::Namespaces},
    api::{
        problem::{Code, Problem},
        route::Route,
    },
    request::{Rules, TrainingJobRequest, fields},
};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
const METHODS: [&str; 3] = ["delete", "get", "post"];

/// Method, path and operation of each operation in the document.
fn operations(document: &Value) -> Vec<(String, String, Value)> {
    let paths = document["paths"].as_object().expect("paths");
    let of_path = |(path, item): (&String, &Value)| {
        let item = item.as_object().expect("a path item").clone();
        let path = path.clone();
        item.into_iter().map(move |(method, operation)| (method, path.clone(), operation))
    };
    paths.iter().flat_map(of_path).collect()
}

/// A validator of something in the document, which may refer to the rest.
fn validator(document: &Value, schema: &Value) -> Validator {
    jsonschema::validator_for(&json!({"allOf": [schema], "components": document["components"]})).expect("a schema")
}

fn request_schema(document: &Value) -> &Value {
    &document["components"]["schemas"]["TrainingJobRequest"]
}

/// A deployment whose namespaces have names of the greatest length too.
fn rules() -> Rules {
    let namespaces = ["training".to_owned(), "n".repeat(63), "n".repeat(64)];
    let mut namespaces = namespaces.iter().filter_map(|name| name.parse().ok());
    let default = namespaces.next().expect("a namespace");
    Rules { namespaces: Namespaces::new(default, namespaces.collect()), ..examples::deployment() }
}

fn parse(body: &Value) -> Result<TrainingJobRequest, Problem> {
    TrainingJobRequest::parse(body.to_string().as_bytes(), None, &rules(), &Caller::unrestricted())
}

fn with(field: &str, value: Value) -> Value {
    let mut body = examples::smallest_request();
    body[field] = value;
    body
}

#[test]
fn the_files_are_what_the_types_say() {
    for (file, made) in [("openapi.json", text()), ("docs/reference/request-fields.md", request_fields())] {
        let kept = fs::read_to_string(format!("{ROOT}/{file}")).expect("there is a file");
        assert!(kept == made, "{file} is not what the types say: run `make openapi`");
    }
}

#[test]
fn each_field_that_is_read_is_in_the_reference() {
    let table = request_fields();
    let rows: Vec<_> = table.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    assert_eq!(rows, fields::names());
}

#[test]
fn each_route_has_one_operation_and_no_other_has() {
    let document = document();
    let mut described: Vec<_> =
        operations(&document).iter().map(|(method, path, _)| format!("{} {path}", method.to_uppercase())).collect();
    described.sort();
    // What the routes are is said on each variant of `Route`.
    let source = include_str!("../../core/src/api/route.rs");
    let said = source.lines().filter_map(|line| line.trim().strip_prefix("/// "));
    let said =
        said.filter(|line| METHODS.iter().any(|method| line.starts_with(&format!("{} /", method.to_uppercase()))));
    let mut routes: Vec<_> = said.map(|line| line.split(':').next().unwrap_or_default().to_owned()).collect();
    routes.sort();
    assert_eq!(described, routes);
    assert_eq!(described.len(), ROUTES.len());
    for route in ROUTES {
        let (method, path) = place(route);
        assert_eq!(Route::of(&method.to_uppercase(), path), Ok(route), "{method} {path}");
    }
    let ids: BTreeSet<_> =
        operations(&document).into_iter().map(|(_, _, operation)| operation["operationId"].to_string()).collect();
    assert_eq!(ids.len(), ROUTES.len(), "{ids:?}");
}

#[test]
fn each_code_is_told_under_its_status() {
    let document = document();
    let mut told = BTreeSet::new();
    for (method, path, operation) in operations(&document) {
        for code in operation["x-problem-codes"].as_array().expect("codes") {
            let code = Code::ALL.into_iter().find(|known| known.as_str() == code).expect("a code");
            let response = &operation["responses"][code.status().to_string()];
            let text = response["description"].as_str().unwrap_or_default();
            assert!(text.contains(&format!("`{}`", code.as_str())), "{method} {path}: {}", code.as_str());
            assert!(response["content"]["application/problem+json"].is_object(), "{method} {path}: {}", code.as_str());
            told.insert(code.as_str());
        }
    }
    told.extend(UNROUTED.map(Code::as_str));
    assert_eq!(told, Code::ALL.into_iter().map(Code::as_str).collect());
    let words = &document["components"]["schemas"]["ProblemCode"]["enum"];
    assert_eq!(*words, json!(Code::ALL.map(Code::as_str).to_vec()));
}

#[test]
fn only_the_token_opens_what_is_not_public() {
    for (method, path, operation) in operations(&document()) {
        let is_public = ["/healthz", "/openapi.json"].contains(&path.as_str());
        let security = operation.get("security").cloned();
        assert_eq!(security, is_public.then(|| json!([])), "{method} {path}");
        let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
        let namespace = json!({"$ref": "#/components/parameters/namespace"});
        // Settings are the same in all namespaces.
        let has_namespace = !is_public && path != "/settings/{framework}";
        assert_eq!(parameters.contains(&namespace), has_namespace, "{method} {path}");
    }
}

#[test]
fn every_example_is_as_its_schema_says() {
    let document = document();
    let mut count = 0;
    for (method, path, operation) in operations(&document) {
        let responses = operation["responses"].as_object().into_iter().flat_map(Map::values);
        let contents = responses.chain([&operation["requestBody"]]).filter_map(|part| part["content"].as_object());
        for media in contents.flat_map(Map::values) {
            let one = media.get("example").cloned();
            let named = media["examples"].as_object().into_iter().flat_map(Map::values).map(|example| {
                let pointer = example["$ref"].as_str().and_then(|reference| reference.strip_prefix('#'));
                pointer.and_then(|pointer| document.pointer(pointer)).unwrap_or(example)["value"].clone()
            });
            for example in one.into_iter().chain(named) {
                let validator = validator(&document, &media["schema"]);
                if let Err(error) = validator.validate(&example) {
                    panic!("{method} {path}: {error} in {example}");
                }
                count += 1;
            }
        }
    }
    assert!(count > 15, "only {count} examples");
}

#[test]
fn the_example_requests_are_taken() {
    for example in [examples::smallest_request(), examples::full_request()] {
        parse(&example).expect("a good request");
    }
    let full = examples::full_request();
    let of_example: Vec<_> = full.as_object().expect("an object").keys().map(String::as_str).collect();
    assert_eq!(of_example, fields::names(), "the full example has every field");
}

#[test]
fn the_events_hold_requests_as_the_schema_says() {
    let document = document();
    let validator = validator(&document, request_schema(&document));
    let read = |name: &str| {
        let text = fs::read_to_string(format!("{ROOT}/events/{name}")).expect("a file");
        let text =
            text.replace("${RUNS_BASE_URI}", "s3://training-runs/runs").replace("${RUNS_BUCKET}", "training-runs");
        serde_json::from_str::<Value>(&text).expect("JSON")
    };
    let body = |name: &str| serde_json::from_str(read(name)["body"].as_str().expect("a body")).expect("JSON");
    for (name, request) in [
        ("sample-request.json", read("sample-request.json")),
        ("submit-create.json", body("submit-create.json")),
        ("submit-create-full.json", body("submit-create-full.json")),
    ] {
        if let Err(error) = validator.validate(&request) {
            panic!("{name}: {error}");
        }
        parse(&request).expect(name);
    }
}

#[test]
fn the_schema_has_the_fields_of_the_parser() {
    let document = document();
    let schema = request_schema(&document);
    let properties: Vec<_> = schema["properties"].as_object().expect("properties").keys().map(String::as_str).collect();
    assert_eq!(properties, fields::names());
    assert_eq!(schema["additionalProperties"], false);
    let nothing = parse(&json!({})).expect_err("nothing");
    let required: Vec<_> = nothing.errors.iter().map(|error| error.pointer.trim_start_matches('/')).collect();
    assert_eq!(schema["required"], json!(required));
}

#[test]
fn schema_and_parser_agree_on_every_bound_and_default() {
    let document = document();
    let schema = request_schema(&document);
    let validator = validator(&document, schema);
    let mut numbers = 0;
    for (field, property) in schema["properties"].as_object().expect("properties") {
        let (Some(min), Some(max)) = (property["minimum"].as_i64(), property["maximum"].as_i64()) else { continue };
        numbers += 1;
        for (value, good) in [(min - 1, false), (min, true), (max, true), (max + 1, false)] {
            let body = with(field, value.into());
            assert_eq!((validator.is_valid(&body), parse(&body).is_ok()), (good, good), "{field}: {value}");
        }
    }
    let counts = fields::FIELDS.iter().filter(|field| matches!(field.shape, fields::Shape::Count { .. }));
    assert_eq!(numbers, counts.count());
    let request = parse(&examples::smallest_request()).expect("a good request");
    for (field, default) in [
        ("num_nodes", request.num_nodes),
        ("gpus_per_node", request.gpus_per_node),
        ("cpus_per_node", request.cpus_per_node),
        ("memory_per_node_gb", request.memory_per_node_gb),
    ] {
        assert_eq!(schema["properties"][field]["default"], default, "{field}");
    }
}

#[test]
fn schema_and_parser_agree_on_every_length_and_form() {
    let document = document();
    let validator = validator(&document, request_schema(&document));
    let a = |count: usize| "a".repeat(count);
    let subdomain = |count: usize| format!("{}.b", a(count - 2));
    let entry = |key: &str, value: &str| json!({key: value});
    for (field, good, bad) in [
        ("framework", json!("meta"), json!("Hf")),
        ("model_id", json!("é".repeat(256)), json!("é".repeat(257))),
        ("model_id", json!("a"), json!("")),
        ("run_id", json!(a(63)), json!(a(64))),
        ("run_id", json!("A.b_c-9"), json!("a_")),
        ("run_id", json!("a"), json!("")),
        ("checkpoint_base_uri", json!("s3://training-runs/runs/a//"), json!("s3://training-runs//runs")),
        ("checkpoint_base_uri", json!("s3://training-runs/runs"), json!("/training-runs/runs")),
        ("dataset_uri", json!("s3://abc/d/"), json!("s3://abc/d//")),
        ("dataset_uri", json!("s3://abc/d"), json!("s3://abc/")),
        ("dataset_uri", json!("s3://abc/d"), json!("s3://ab/d")),
        ("image", json!(format!("team/{}", a(507))), json!(format!("team/{}", a(508)))),
        ("image", json!("trainer:local"), json!("")),
        ("config_path", json!(format!("/{}", a(1023))), json!(format!("/{}", a(1024)))),
        ("config_path", json!("s3://abc/d"), json!("s3://abc/d/")),
        ("config_path", json!("/etc/a.yaml"), json!("a.yaml")),
        ("config_path", json!("/a"), json!("/")),
        ("resume_from_checkpoint", json!("latest"), json!("newest")),
        ("resume_from_checkpoint", json!("step-000500"), json!("step-")),
        ("resume_from_checkpoint", json!(true), json!(1)),
        ("extra_args", json!({a(256): null}), json!({a(257): null})),
        ("extra_args", json!({"a": {"b": [1, null]}}), json!({"_a": 1})),
        ("env", entry(&a(256), ""), entry(&a(257), "")),
        ("env", entry("_A9", ""), entry("9A", "")),
        ("env", entry("A", &a(32 * 1024)), entry("A", &a(32 * 1024 + 1))),
        ("env", entry("A", "1"), json!({"A": 1})),
        ("env_from_secrets", entry("A", "hugging-face/token"), entry("A", "token")),
        (
            "env_from_secrets",
            entry("A", &format!("hugging-face/{}", a(253))),
            entry("A", &format!("hugging-face/{}", a(254))),
        ),
        ("labels", entry("a", &a(63)), entry("a", &a(64))),
        ("labels", entry("a", ""), entry("a", "a-")),
        ("labels", entry(&format!("{}/{}", subdomain(253), a(63)), ""), entry(&format!("b/{}", a(64)), "")),
        ("labels", entry("example.com/Team", ""), entry("Example.com/team", "")),
        ("annotations", entry("example.com/a", "any text"), entry("/a", "any text")),
        ("annotations", entry("a", "1"), json!({"a": 1})),
        ("priority_class", json!(subdomain(253)), json!(subdomain(254))),
        ("queue", json!(subdomain(63)), json!(subdomain(64))),
        ("namespace", json!("n".repeat(63)), json!("n".repeat(64))),
        ("job_name", json!(a(54)), json!(a(55))),
        ("job_name", json!("a"), json!("9a")),
        ("num_nodes", json!(1), json!("1")),
        ("num_nodes", json!(null), json!(1.5)),
    ] {
        for (value, is_good) in [(good, true), (bad, false)] {
            let body = with(field, value);
            let (schema, parser) = (validator.is_valid(&body), parse(&body));
            assert_eq!((schema, parser.is_ok()), (is_good, is_good), "{field}: {} {parser:?}", body[field]);
        }
    }
}

/// Any JSON, with words and keys that are nearly right.
fn json_value() -> impl Strategy<Value = Value> {
    let text = prop_oneof![
        any::<String>(),
        "[a-zA-Z0-9._/:-]{0,12}",
        "[a-z0-9]([a-z0-9.-]{0,4}[a-z0-9])?",
        "s3://[a-z.]{0,4}(/[a-z.]{0,2}){0,3}",
        "(step-|latest|best|hf|meta)[0-9]{0,2}",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-2i64..2000).prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        text.clone().prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 3, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::vec((text.clone(), inner), 0..3)
                .prop_map(|entries| Value::Object(entries.into_iter().collect())),
        ]
    })
}

thread_local! {
    static VALIDATOR: Validator = {
        let document = document();
        validator(&document, request_schema(&document))
    };
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5000))]

    #[test]
    fn what_the_schema_refuses_the_parser_refuses(field in proptest::sample::select(fields::names()), value in json_value()) {
        let body = with(field, value);
        if !VALIDATOR.with(|validator| validator.is_valid(&body)) {
            prop_assert!(parse(&body).is_err(), "the parser takes {}: {}", field, body[field]);
        }
    }
}
