//! HEAD: what GET answers, without its body.

use training_store::testing;

use super::world::{
    EVENTS, JOBS, PODS, SUBMISSION, TOKEN, World, checkpoint, job, job_row, list, owner, pod, refusal, row, running,
};

#[tokio::test]
async fn head_answers_as_get_does_without_a_body() {
    let job = job("j");
    let script = vec![
        job_row(&job),
        row(format!("{JOBS}/gone"), 404, refusal(404, r#"pytorchjobs.kubeflow.org "gone" not found"#)),
        row(format!("{JOBS}?"), 200, list(std::slice::from_ref(&job), "")),
        row(EVENTS, 200, list(&[], "")),
        row("/log?", 200, "2026-11-24T03:00:00Z \u{e9}\n"),
        row(format!("{PODS}?"), 200, list(&[running("j-master-0", 0)], "")),
        row(format!("{PODS}/j-master-0"), 200, running("j-master-0", 0)),
        row(format!("{PODS}/j-worker-0"), 200, pod("j-worker-0", "another", 0, &serde_json::json!({"running": {}}))),
    ];
    let objects = checkpoint(20, SUBMISSION, 1.0).into_iter().chain([owner("training", "j", SUBMISSION)]);
    let world = World::new(script, testing::holding(objects));
    for (path, token, status) in [
        ("/healthz", None, 200),
        ("/openapi.json", None, 200),
        ("/readyz", Some(TOKEN), 200),
        ("/train", Some(TOKEN), 200),
        ("/train/j", Some(TOKEN), 200),
        ("/train/j/checkpoints", Some(TOKEN), 200),
        ("/train/j/checkpoints/latest", Some(TOKEN), 200),
        ("/train/j/checkpoints/best", Some(TOKEN), 200),
        ("/train/j/checkpoints/20", Some(TOKEN), 200),
        ("/train/j/logs", Some(TOKEN), 200),
        ("/train/j/events", Some(TOKEN), 200),
        ("/settings/hf", Some(TOKEN), 200),
        ("/settings/jax", Some(TOKEN), 404),
        ("/train/gone", Some(TOKEN), 404),
        ("/train/j/checkpoints/30", Some(TOKEN), 404),
        ("/train?limit=0", Some(TOKEN), 422),
        ("/train/j", None, 401),
        ("/nothing", None, 404),
    ] {
        let get = world.send("GET", path, token).await;
        let head = world.send("HEAD", path, token).await;
        assert_eq!((get.status, head.status), (status, status), "{path}");
        assert_eq!(head.text, "", "{path}");
        let length = get.text.len().to_string();
        assert!(get.text.len() > 1, "{path}");
        assert_eq!(head.header("content-length"), Some(length.as_str()), "{path}");
        let mut headers = head.headers;
        headers.remove("content-length");
        assert_eq!(headers, get.headers, "{path}");
    }
    // What changes something is not a GET's.
    let refused = world.send("HEAD", "/train/j/suspend", Some(TOKEN)).await;
    assert_eq!((refused.status, refused.header("allow"), refused.text.as_str()), (405, Some("POST"), ""));
}
