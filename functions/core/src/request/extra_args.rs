//! `extra_args` as the trainer of the default image takes them: the schemas that it writes (trainer/settings) say which
//! settings each framework has. What several settings together mean is for the trainer to check.

use std::sync::OnceLock;

use serde_json::{Map, Value};
use training_run::{names::Framework, text::bounded};

use crate::{
    api::problem::{FieldError, MAX_ERRORS},
    nearest::nearest,
    request::{
        json_schema::broken,
        reader::{kind, pointer},
        rules,
    },
};

/// Settings of which each name says a part, so that several names may stand together.
const IN_PARTS: [&str; 1] = ["precision"];

/// The JSON Schema of a framework's `extra_args`.
#[must_use]
pub fn schema(framework: Framework) -> &'static str {
    match framework {
        Framework::Hf => include_str!("../../../../trainer/settings/hf.json"),
        Framework::Nemo => include_str!("../../../../trainer/settings/nemo.json"),
        Framework::Meta => include_str!("../../../../trainer/settings/meta.json"),
    }
}

/// What the trainer of the default image would refuse, one error for each setting. Names that no trainer can have are
/// refused elsewhere.
pub(super) fn findings(framework: Framework, arguments: &Map<String, Value>) -> Vec<FieldError> {
    if arguments.is_empty() {
        return Vec::new();
    }
    let settings = settings(framework);
    let mut findings: Vec<FieldError> = Vec::new();
    for (name, value) in arguments.iter().filter(|(name, _)| rules::argument_name(name).is_none()) {
        let found = match settings.get(name) {
            Some(setting) => unfit(setting, value).or_else(|| named_twice(name, value, arguments, settings)),
            // Nobody is told more, and a guess takes its time.
            None if findings.len() >= MAX_ERRORS => Some(("unknown_field", String::new())),
            None => Some(("unknown_field", unknown(name, framework))),
        };
        if let Some((code, detail)) = found {
            findings.push(FieldError { pointer: pointer("extra_args", name), code, detail });
        }
    }
    findings
}

/// The settings of a framework by their names, read once.
fn settings(framework: Framework) -> &'static Map<String, Value> {
    static READ: [OnceLock<Map<String, Value>>; Framework::ALL.len()] =
        [const { OnceLock::new() }; Framework::ALL.len()];
    let [hf, nemo, meta] = &READ;
    let read = match framework {
        Framework::Hf => hf,
        Framework::Nemo => nemo,
        Framework::Meta => meta,
    };
    read.get_or_init(|| match serde_json::from_str(schema(framework)) {
        Ok(Value::Object(mut schema)) => match schema.remove("properties") {
            Some(Value::Object(properties)) => properties,
            _ => Map::new(),
        },
        _ => Map::new(),
    })
}

fn unknown(name: &str, framework: Framework) -> String {
    let offered = settings(framework).iter().filter(|(_, setting)| setting.get("x-refusal").is_none());
    let offered: Vec<&'static str> = offered.map(|(name, _)| name.as_str()).collect();
    match nearest(name, &offered) {
        Some(near) => format!("is not a setting of framework {framework}; did you mean `{near}`?"),
        None => format!("is not a setting of framework {framework}; GET /settings/{framework} lists them"),
    }
}

/// What is wrong with a setting's value, by code and sentence.
fn unfit(setting: &Value, value: &Value) -> Option<(&'static str, String)> {
    let code = broken(setting, value)?;
    let text = |keyword: &str| setting.get(keyword).and_then(Value::as_str);
    if let Some(reason) = text("x-refusal") {
        // The value is not shown: it may be a token.
        return Some(("not_allowed", format!("cannot be set: {reason}; leave it out{}", instead(setting))));
    }
    let expected = text("x-expected").unwrap_or("another value");
    let shown = shown(value);
    let reason = value.as_str().and_then(|word| setting.get("x-refusal-of")?.get(word)?.as_str());
    Some(match reason {
        Some(reason) => ("not_allowed", format!("cannot be {shown}: it {reason}")),
        None => (code, format!("must be {expected}, not {shown}")),
    })
}

/// What a setting that is refused may say all the same.
fn instead(setting: &Value) -> String {
    let words = setting.get("enum").and_then(Value::as_array).into_iter().flatten();
    let words: Vec<String> = words.filter(|word| !word.is_null()).map(Value::to_string).collect();
    if words.is_empty() { String::new() } else { format!(", or say {}", words.join(" or ")) }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Array(_) | Value::Object(_) => kind(value).to_owned(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => bounded(&value.to_string(), 64),
    }
}

/// Whether a name before this one is another name of the same setting. A zero says nothing beside another name: who sends
/// all arguments of transformers sends `warmup_steps` and `warmup_ratio`.
fn named_twice(
    name: &str,
    value: &Value,
    arguments: &Map<String, Value>,
    settings: &Map<String, Value>,
) -> Option<(&'static str, String)> {
    fn setting_of<'a>(name: &'a str, settings: &'a Map<String, Value>) -> &'a str {
        settings.get(name).and_then(|setting| setting.get("x-setting")?.as_str()).unwrap_or(name)
    }
    let says_nothing = |value: &Value| value.as_f64() == Some(0.0);
    let setting = setting_of(name, settings);
    if IN_PARTS.contains(&setting) || says_nothing(value) {
        return None;
    }
    let mut before = arguments.iter().take_while(|(other, _)| *other != name);
    let (other, _) = before.find(|(other, value)| setting_of(other, settings) == setting && !says_nothing(value))?;
    Some(("duplicate", format!("is another name of `{other}`, which is set too; keep one of the two")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::tests::{body, rules};
    use crate::{access::caller::Caller, api::problem::Problem, request::TrainingJobRequest};
    use serde_json::json;

    /// Pointers, codes and sentences.
    fn found(framework: Framework, arguments: &Value) -> Vec<(String, &'static str, String)> {
        let arguments = arguments.as_object().expect("an object");
        let findings = findings(framework, arguments).into_iter();
        findings.map(|error| (error.pointer, error.code, error.detail)).collect()
    }

    #[test]
    fn each_setting_that_the_trainer_would_refuse_is_told_by_code_and_sentence() {
        use Framework::{Hf, Meta, Nemo};
        for (framework, name, value, code, says) in [
            (Hf, "learning_rat", json!(1), "unknown_field", "framework hf; did you mean `learning_rate`?"),
            (Nemo, "max-steps", json!(1), "unknown_field", "did you mean `max_steps`?"),
            (Meta, "quite_another", json!(1), "unknown_field", "framework meta; GET /settings/meta lists them"),
            // What is refused in any case is not offered.
            (Hf, "hub_tokens", json!("x"), "unknown_field", "GET /settings/hf lists them"),
            (Meta, "sharded", json!(false), "format", "must be one of true, null, not false"),
            (Hf, "lr", json!("0.1"), "type", "must be a number above 0, not \"0.1\""),
            (Hf, "lr", json!(null), "type", "must be a number above 0, not null"),
            (Hf, "lr", json!(0), "range", "must be a number above 0, not 0"),
            (Hf, "lr", json!([1]), "type", "not a list"),
            (Hf, "lr", json!({"a": 1}), "type", "not an object"),
            (Hf, "max_steps", json!(0), "range", "must be a whole number of at least 1, not 0"),
            (Hf, "batch_size", json!(2.5), "type", "must be a whole number of at least 1 and at most 1048576, not 2.5"),
            (Hf, "batch_size", json!(true), "type", "not true"),
            (Nemo, "scheduler", json!("lineal"), "format", "one of linear, cosine, constant, null, not \"lineal\""),
            (Hf, "dataset_text_field", json!(""), "format", "must be text that is not empty"),
            (Hf, "scheduler", json!("x".repeat(1000)), "format", "xxx"),
            (Hf, "push_to_hub", json!(true), "not_allowed", "cannot be set: nothing is sent to a hub"),
            (Hf, "push_to_hub", json!(true), "not_allowed", "; leave it out, or say false"),
            (Hf, "hub_token", json!("secret"), "not_allowed", "exported into the bucket; leave it out"),
            (
                Hf,
                "optim",
                json!("galore_adamw"),
                "not_allowed",
                "cannot be \"galore_adamw\": it needs the package galore_torch",
            ),
        ] {
            let found = found(framework, &json!({name: value}));
            let [(pointer, is, detail)] = found.as_slice() else { panic!("{name}: {found:?}") };
            assert_eq!((pointer.as_str(), *is), (format!("/extra_args/{name}").as_str(), code), "{detail}");
            assert!(detail.contains(says) && detail.len() < 400, "{name}: {detail}");
            assert!(!detail.contains("secret"), "{detail}");
        }
    }

    #[test]
    fn what_changes_nothing_is_taken_and_so_is_a_usual_set() {
        let usual = json!({
            "output_dir": "out", "num_train_epochs": 3, "max_steps": -1, "per_device_train_batch_size": 8,
            "per_device_eval_batch_size": 8, "gradient_accumulation_steps": 4, "eval_strategy": "steps",
            "eval_steps": 200, "save_strategy": "steps", "save_steps": 200, "save_total_limit": 3,
            "learning_rate": 1e-4, "weight_decay": 0.0, "warmup_steps": 0.05, "lr_scheduler_type": "cosine",
            "logging_steps": 10, "logging_first_step": true, "bf16": true, "tf32": true,
            "gradient_checkpointing": true, "optim": "adamw_torch_fused", "report_to": ["tensorboard"],
            "load_best_model_at_end": true, "metric_for_best_model": "eval_loss", "greater_is_better": false,
            "ddp_timeout": 3600, "push_to_hub": false, "remove_unused_columns": false,
            "dataloader_num_workers": 4, "seed": 7
        });
        assert_eq!(found(Framework::Hf, &usual), []);
        for framework in Framework::ALL {
            for good in [
                json!({}),
                json!({"max_steps": 5.0, "save_steps": 0.1, "push_to_hub": null, "fsdp": "", "run_name": {"any": []}}),
                json!({"bf16": true, "fp16": false, "precision": "bf16"}),
                json!({"warmup_ratio": 0.03, "warmup_steps": 0}),
                json!({"warmup_steps": 100, "warmup_ratio": 0.0}),
                // Only the trainer sees that these contradict each other.
                json!({"max_steps": 5, "num_epochs": 1}),
            ] {
                assert_eq!(found(framework, &good), [], "{framework} {good}");
            }
        }
    }

    #[test]
    fn two_names_of_one_setting_are_one_error() {
        for (framework, arguments, pointer, other) in [
            (Framework::Hf, json!({"lr": 1e-3, "learning_rate": 1e-3}), "/extra_args/learning_rate", "`lr`"),
            (Framework::Nemo, json!({"learning_rate": 1e-3, "seed": 1, "lr": 1e-3}), "/extra_args/lr", "learning_rate"),
            (Framework::Hf, json!({"max_length": 9, "max_seq_length": 9}), "/extra_args/max_seq_length", "max_length"),
            (Framework::Meta, json!({"warmup_steps": 5, "warmup_ratio": 0.1}), "/extra_args/warmup_ratio", "warmup"),
            (
                Framework::Meta,
                json!({"scheduler": "linear", "lr_scheduler_type": "linear"}),
                "/extra_args/lr_scheduler_type",
                "`scheduler`",
            ),
        ] {
            let found = found(framework, &arguments);
            let [(at, "duplicate", detail)] = found.as_slice() else { panic!("{arguments}: {found:?}") };
            assert!(at == pointer && detail.contains(other), "{at} {detail}");
        }
    }

    fn parse(body: &Value) -> Result<TrainingJobRequest, Problem> {
        TrainingJobRequest::parse(body.to_string().as_bytes(), None, &rules(), &Caller::unrestricted())
    }

    #[test]
    fn the_default_image_refuses_what_others_are_warned_of() {
        let mut body = body();
        body["extra_args"] = json!({"lr": "fast", "batch_sise": 4, "seed": 1});
        let pointers = |errors: &[FieldError]| errors.iter().map(|error| error.pointer.clone()).collect::<Vec<_>>();
        for (image, refuses) in [(json!(null), true), (json!("trainer:local"), true), (json!("team/trainer:2"), false)]
        {
            body["image"] = image;
            let request = parse(&body).expect("no other rule is broken");
            assert_eq!(pointers(&request.findings), ["/extra_args/lr", "/extra_args/batch_sise"]);
            let problem = request.settings_problem(&rules());
            assert_eq!(problem.is_some(), refuses, "{}", body["image"]);
            if let Some(problem) = problem {
                assert_eq!(pointers(&problem.errors), ["/extra_args/lr", "/extra_args/batch_sise"]);
                assert!(
                    problem.detail.starts_with("the request breaks 2 rules: /extra_args/lr must be a number above 0")
                );
            }
        }
        body["extra_args"] = json!({"seed": 1});
        body["image"] = json!(null);
        assert_eq!(parse(&body).expect("good").settings_problem(&rules()), None);
    }

    #[test]
    fn broken_fields_and_settings_are_told_in_one_answer() {
        let mut body = body();
        body["extra_args"] = json!({"lr": "fast", "run-id": "x", "batch_sise": 4});
        body["num_nodes"] = json!(0);
        let pointers = |body: &Value| {
            let problem = parse(body).expect_err("a bad request");
            problem.errors.into_iter().map(|error| error.pointer).collect::<Vec<_>>()
        };
        let fields = ["/num_nodes", "/extra_args/run-id"];
        let settings = ["/extra_args/lr", "/extra_args/batch_sise"];
        assert_eq!(pointers(&body), [fields, settings].concat());
        body["image"] = json!("team/trainer:2");
        assert_eq!(pointers(&body), fields);
        // Whose settings they would be is not known.
        body["image"] = json!(null);
        body["framework"] = json!("jax");
        assert_eq!(pointers(&body), [&["/framework"], fields.as_slice()].concat());
    }

    #[test]
    fn thousands_of_unknown_settings_are_counted_and_a_hundred_told() {
        let mut body = body();
        body["extra_args"] = (0..6_000).map(|number| (format!("a{number}"), json!(1))).collect::<Map<_, _>>().into();
        let problem = parse(&body).expect("no field is broken").settings_problem(&rules()).expect("refused");
        assert!(problem.detail.starts_with("the request breaks 6000 rules"), "{}", problem.detail);
        assert_eq!(problem.errors.len(), 100);
        assert!(problem.errors.iter().all(|error| !error.detail.is_empty()));
    }
}
