//! Settings that the default image's trainer would refuse.

use serde_json::{Value, json};
use training_core::request::image::AllowedImages;

use super::world::{Answer, World, request};

/// A request with three settings, of which the trainer would refuse two.
fn with_bad_settings(image: Option<&str>) -> Value {
    let mut body = request();
    body["image"] = json!(image);
    body["extra_args"] = json!({"learning_rat": 0.1, "batch_size": "4", "seed": 7});
    body
}

/// The pointers and codes of a list of findings.
fn told(list: &Value) -> Vec<(&str, &str)> {
    let list = list.as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter().filter_map(|error| Some((error["pointer"].as_str()?, error["code"].as_str()?))).collect()
}

const BOTH: [(&str, &str); 2] = [("/extra_args/learning_rat", "unknown_field"), ("/extra_args/batch_size", "type")];

fn is_refused(answer: &Answer) {
    assert_eq!((answer.outcome(), told(&answer.body["errors"])), ((422, "invalid_request"), BOTH.to_vec()));
    let detail = answer.body["errors"][0]["detail"].as_str().unwrap_or_default();
    assert_eq!(detail, "is not a setting of framework hf; did you mean `learning_rate`?");
}

#[tokio::test]
async fn the_default_image_refuses_them_all_at_once_and_nothing_is_made() {
    for image in [None, Some("trainer:local")] {
        for path in ["/train?dry_run=true", "/train", "/train?restart=true"] {
            let world = World::new();
            is_refused(&world.post(path, &with_bad_settings(image)).await);
            assert_eq!(world.names(), [""; 0], "{path}");
            assert_eq!(world.bucket.keys(), [""; 0], "{path}: the run was claimed");
        }
    }
    let mut good = request();
    good["extra_args"] = json!({"learning_rate": 0.1, "batch_size": 4, "push_to_hub": false});
    let answer = World::new().post("/train", &good).await;
    assert_eq!((answer.outcome(), &answer.body["warnings"]), ((201, ""), &Value::Null));
}

#[tokio::test]
async fn of_another_image_they_are_warnings() {
    let world = World::new();
    let body = with_bad_settings(Some("stub"));
    for (path, status) in [("/train?dry_run=true", 200), ("/train", 201), ("/train", 200)] {
        let answer = world.post(path, &body).await;
        assert_eq!((answer.outcome(), told(&answer.body["warnings"])), ((status, ""), BOTH.to_vec()), "{path}");
    }
}

#[tokio::test]
async fn an_equal_request_that_an_older_release_took_is_replayed() {
    let mut world = World::new();
    let body = with_bad_settings(Some("trainer:local"));
    // To whoever took it, that image was not the default one.
    let default_image = std::mem::replace(&mut world.service.rules.default_image, "older:1".parse().expect("an image"));
    world.service.rules.allowed_images = AllowedImages::from_list("trainer:local");
    let first = world.post("/train", &body).await;
    assert_eq!(first.outcome(), (201, ""));
    world.service.rules.default_image = default_image;
    for path in ["/train", "/train?dry_run=true"] {
        let again = world.post(path, &body).await;
        assert_eq!((again.outcome(), again.header("idempotent-replayed")), ((200, ""), Some("true")), "{path}");
        assert_eq!(again.body["submission"], first.body["submission"]);
        assert_eq!(told(&again.body["warnings"]), BOTH, "{path}");
    }
    // A job in its place would be a new one.
    world.finish("hf-r");
    is_refused(&world.post("/train?restart=true", &body).await);
    assert_eq!(world.names(), ["hf-r"]);
}
