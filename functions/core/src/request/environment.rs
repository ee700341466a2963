//! Which environment variables a request may set: all but those that the platform sets, and those by which `env` would be
//! a shell in the pod or a way for the trainer's credentials out of it. What the pod gets, the platform's variables included,
//! is built in `job/manifest.rs`.
//!
//! Sources: sudo's `env_delete`, glibc's `unsecvars`, the manuals of the programs that a training image has, and what
//! torch, transformers and botocore read. `tests/contract/environment.json` has the trick of each name, and the trainer's
//! tests play it.

mod names;

use names::{HARMLESS, REFUSED, RESERVED, matches};

/// What is wrong with the name of an environment variable, by code and sentence; or with its value, where that is known.
pub(super) fn variable(name: &str, value: Option<&str>) -> Option<(&'static str, String)> {
    let begins = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_');
    if !begins || name.len() > 256 || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
        let detail = "must have a name of at most 256 letters, digits and _, not beginning with a digit";
        return Some(("format", detail.to_owned()));
    }
    if HARMLESS.contains(&name) {
        return None;
    }
    if RESERVED.iter().any(|pattern| matches(pattern, name)) {
        return Some(("reserved", "is set by the platform; choose another name".to_owned()));
    }
    if let Some(rule) = REFUSED.iter().find(|rule| rule.refuses(name)) {
        return Some(("not_allowed", format!("cannot be set by a request: {}", rule.why)));
    }
    // torch looks for the module that a word with a dot names, and imports what the word begins with.
    let imports = name == "TORCH_LOGS" && value.is_none_or(|value| value.contains('.'));
    imports.then(|| ("not_allowed", "must have no dot in its value: torch would import the module".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        access::caller::Caller,
        api::problem::Problem,
        request::{
            TrainingJobRequest,
            tests::{body, rules},
        },
    };
    use serde_json::{Value, json};

    /// The table that the trainer's tests read, too.
    fn table() -> Value {
        serde_json::from_str(include_str!("../../../../tests/contract/environment.json")).expect("JSON")
    }

    fn entries<'a>(table: &'a Value, list: &str) -> &'a [Value] {
        table[list].as_array().expect("a list")
    }

    fn name(row: &Value) -> &str {
        row.as_str().or_else(|| row["name"].as_str()).expect("a name")
    }

    fn parse(variables: &Value) -> Result<TrainingJobRequest, Problem> {
        let mut body = body();
        for (field, value) in variables.as_object().expect("an object") {
            body[field] = value.clone();
        }
        TrainingJobRequest::parse(body.to_string().as_bytes(), None, &rules(), &Caller::unrestricted())
    }

    /// The pointers, codes and sentences of what is wrong.
    fn errors(variables: &Value) -> Vec<(String, &'static str, String)> {
        let problem = parse(variables).err();
        let errors = problem.into_iter().flat_map(|problem| problem.errors);
        errors.map(|error| (error.pointer, error.code, error.detail)).collect()
    }

    #[test]
    fn each_refused_name_is_named_by_pointer_and_sentence_in_both_fields() {
        for row in entries(&table(), "refused") {
            let name = name(row);
            for (field, value) in [("env", "1"), ("env_from_secrets", "hugging-face/token")] {
                let errors = errors(&json!({field: {name: value}}));
                let [(pointer, "not_allowed", detail)] = errors.as_slice() else { panic!("{name}: {errors:?}") };
                assert_eq!(*pointer, format!("/{field}/{name}"));
                assert!(detail.starts_with("cannot be set by a request: ") && detail.len() > 40, "{detail}");
            }
        }
    }

    #[test]
    fn a_shell_by_two_names_is_refused_at_both() {
        let errors =
            errors(&json!({"env": {"PYTHONWARNINGS": "all:0:antigravity.x:0:0", "BROWSER": "/bin/sh -c \"id\" #%s"}}));
        let pointers: Vec<_> = errors.iter().map(|(pointer, code, _)| (pointer.as_str(), *code)).collect();
        assert_eq!(pointers, [("/env/PYTHONWARNINGS", "not_allowed"), ("/env/BROWSER", "not_allowed")]);
    }

    #[test]
    fn what_people_set_for_training_stays_theirs() {
        for row in entries(&table(), "allowed") {
            let request = parse(&json!({"env": {name(row): "1"}}));
            assert!(request.is_ok_and(|request| request.env[name(row)] == "1"), "{row}");
        }
    }

    #[test]
    fn a_value_that_imports_a_module_is_refused_and_so_is_one_that_nobody_sees() {
        let logs = |value: &str| errors(&json!({"env": {"TORCH_LOGS": value}}));
        for row in entries(&table(), "refused_values") {
            assert_eq!(name(row), "TORCH_LOGS", "no other name is judged by its value");
            let errors = logs(row["value"].as_str().expect("text"));
            assert!(
                matches!(errors.as_slice(), [(pointer, "not_allowed", _)] if pointer == "/env/TORCH_LOGS"),
                "{errors:?}"
            );
        }
        assert_eq!(logs("+dynamo,recompiles"), []);
        let errors = errors(&json!({"env_from_secrets": {"TORCH_LOGS": "hugging-face/token"}}));
        assert!(matches!(errors.as_slice(), [(_, "not_allowed", _)]), "{errors:?}");
    }

    #[test]
    fn each_rule_has_a_name_in_the_table_that_it_alone_refuses() {
        let table = table();
        let names: Vec<_> = entries(&table, "refused").iter().map(name).collect();
        for pattern in REFUSED.iter().flat_map(|rule| rule.names) {
            let is_met = |name: &&&str| matches(pattern, name) || matches(pattern, &name.to_ascii_uppercase());
            assert!(names.iter().any(|name| is_met(&name)), "no name for {pattern}");
        }
        for harmless in HARMLESS {
            assert!(REFUSED.iter().any(|rule| rule.refuses(harmless)), "{harmless} needs no exception");
            assert!(entries(&table, "allowed").iter().any(|row| name(row) == harmless), "{harmless}");
        }
    }

    #[test]
    fn a_star_stands_for_any_text() {
        for (pattern, name, is_met) in [
            ("A", "A", true),
            ("A", "AB", false),
            ("A*", "A", true),
            ("A*", "BA", false),
            ("*_A", "B_A", true),
            ("*_A", "_A", true),
            ("*_A", "A", false),
            ("*_A", "B_A_", false),
            ("A_*_B", "A_x_B", true),
            ("A_*_B", "A_B", false),
            ("A_*P*", "A_xPy", true),
            ("A_*P*", "A_P", true),
            ("A_*P*", "A_x", false),
        ] {
            assert_eq!(matches(pattern, name), is_met, "{pattern} {name}");
        }
    }
}
