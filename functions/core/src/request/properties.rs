//! Whatever is sent: no panic, and either a job or a reason.

use super::{tests::rules, *};
use crate::manifest::{self, Origin, Platform, Start};
use proptest::prelude::*;

/// Any JSON value, with the names of fields among its keys.
fn json_value() -> impl Strategy<Value = Value> {
    let text = prop_oneof![
        any::<String>().prop_map(Value::from),
        proptest::sample::select(vec![
            "hf",
            "s3://bucket/runs",
            "s3://bucket/../x",
            "latest",
            "step-5",
            "",
            "$(X)",
            "a/b"
        ])
        .prop_map(Value::from),
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        text,
    ];
    leaf.prop_recursive(3, 24, 6, |inner| {
        let key = prop_oneof![any::<String>(), proptest::sample::select(FIELDS.to_vec()).prop_map(str::to_owned)];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key, inner), 0..6).prop_map(|entries| Value::Object(entries.into_iter().collect())),
        ]
    })
}

/// The smallest good body with some fields replaced by anything.
fn nearly_good() -> impl Strategy<Value = Value> {
    let changes = prop::collection::vec((proptest::sample::select(FIELDS.to_vec()), json_value()), 0..4);
    changes.prop_map(|changes| {
        let mut body = super::tests::body();
        for (field, value) in changes {
            body[field] = value;
        }
        body
    })
}

fn platform() -> Platform {
    Platform {
        train_script: "/opt/trainer/train.py".to_owned(),
        service_account: "trainer".to_owned(),
        job_ttl_seconds: 604_800,
        max_restarts: 3,
        grace_seconds: 300,
    }
}

fn check(body: &[u8]) {
    match TrainingJobRequest::parse(body, None, &rules(), &Caller::unrestricted()) {
        Ok(request) => {
            let submission = "01980000-0000-7000-8000-000000000001".parse().expect("an id");
            let origin = Origin { submission: &submission, submitted_by: None, start: Start::Fresh };
            let job = manifest::build(&request, origin, None, &platform());
            assert_eq!(job.metadata.name.as_deref(), Some(request.job_name.as_str()));
        }
        Err(problem) => {
            assert!(!problem.detail.is_empty());
            assert_eq!(problem.code == Code::InvalidRequest, !problem.errors.is_empty());
            for error in &problem.errors {
                assert!(error.pointer.is_empty() || error.pointer.starts_with('/'), "{error:?}");
            }
        }
    }
}

proptest! {
    #[test]
    fn no_bytes_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
        check(&body);
    }

    #[test]
    fn no_json_panics(body in json_value()) {
        check(body.to_string().as_bytes());
    }

    #[test]
    fn no_nearly_good_body_panics(body in nearly_good()) {
        check(body.to_string().as_bytes());
    }
}
