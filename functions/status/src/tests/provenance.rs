//! Whose annotations are followed into the bucket.

use serde_json::{Value, json};
use training_store::{
    Store,
    testing::{self, Bucket, Call},
};

use super::world::{PODS, RUN, SUBMISSION, World, checkpoint, job, job_row, list, owner, record, refusal, row};

/// Of another request for the run.
const OTHER: &str = "01980000-0000-7000-8000-000000000002";

/// What the trainer has left in the bucket of a run, with a line that only those may read who see the run's job.
fn traces() -> Vec<(String, String)> {
    let progress = json!({"submission": SUBMISSION, "attempt": 2, "step": 7, "total": 9, "loss": 1.0,
        "tokens_per_second": null, "eta_seconds": null, "updated_at": 1});
    let attempt = json!({"attempt": 1, "pods": ["u"], "started_at": 1.0, "cause": "crash", "rank": 0,
        "message": "a private line", "ended_at": 2.0});
    let own = [
        (format!("{RUN}/progress/{SUBMISSION}"), progress.to_string()),
        (format!("{RUN}/attempts/{SUBMISSION}/1"), attempt.to_string()),
        (format!("{RUN}/logs/{SUBMISSION}/attempt-1/rank-0.log"), "a private line\n".to_owned()),
    ];
    checkpoint(20, SUBMISSION, 1.0).into_iter().chain(own).collect()
}

/// Whether the answers about a job tell what is in the bucket: all of them do, or none.
async fn is_followed(job: &Value, store: Store, label: &str) -> bool {
    let namespace = job["metadata"]["namespace"].as_str().expect("a namespace");
    let job_path = format!("/namespaces/{namespace}/pytorchjobs/j");
    let script = vec![
        row(job_path, 200, job),
        row("/pods?", 200, list(&[], "")),
        row("/pods/", 404, refusal(404, "pods not found")),
    ];
    let world = World::new(script, store);
    let mut told = Vec::new();
    for (path, refusal) in [
        ("", ""),
        ("/checkpoints", ""),
        ("/checkpoints/latest", "checkpoint_not_found"),
        ("/checkpoints/best", "checkpoint_not_found"),
        ("/checkpoints/20", "checkpoint_not_found"),
        ("/logs", "log_not_found"),
        ("/logs?source=archive", "log_not_found"),
    ] {
        let query = if path.contains('?') { '&' } else { '?' };
        let answer = world.get(&format!("/train/j{path}{query}namespace={namespace}")).await;
        let tells = match path {
            "" => !answer.body["attempts"].is_null() || !answer.body["checkpoints"].is_null(),
            "/checkpoints" => answer.body["checkpoints"] != json!([]),
            _ => answer.status == 200,
        };
        if !tells {
            assert_eq!(answer.code(), refusal, "{label}: {path}: {}", answer.text);
            assert!(!answer.text.contains("private"), "{label}: {path}: {}", answer.text);
            // Not even where it would be: that it is there is the run's own affair.
            assert!(!answer.detail().contains("s3://"), "{label}: {path}: {}", answer.text);
        }
        told.push(tells);
    }
    assert!(told.iter().all(|tells| *tells == told[0]), "{label}: {told:?}");
    told[0]
}

#[tokio::test]
async fn annotations_are_followed_where_the_bucket_confirms_them() {
    for (label, namespace, uid, confirmed_by, is_told) in [
        ("the run's owner", "training", "u1", vec![owner("training", "j", SUBMISSION)], true),
        (
            "its record is of another uid",
            "training",
            "u1",
            vec![owner("training", "j", SUBMISSION), record("training", "j", SUBMISSION, "u2")],
            true,
        ),
        (
            "superseded",
            "training",
            "u1",
            vec![owner("training", "j", OTHER), record("training", "j", SUBMISSION, "u1")],
            true,
        ),
        (
            "made again by another tool after it was superseded",
            "training",
            "u9",
            vec![owner("training", "j", OTHER), record("training", "j", SUBMISSION, "u1")],
            false,
        ),
        ("superseded, and its record is lost", "training", "u1", vec![owner("training", "j", OTHER)], false),
        ("the run is another job's", "training", "u1", vec![owner("training", "other", SUBMISSION)], false),
        (
            "made by another tool in another namespace",
            "two",
            "u1",
            vec![owner("training", "j", SUBMISSION), record("training", "j", SUBMISSION, "u1")],
            false,
        ),
        ("nobody's run", "training", "u1", vec![], false),
    ] {
        let mut job = job("j");
        job["metadata"]["namespace"] = json!(namespace);
        job["metadata"]["uid"] = json!(uid);
        for condition in ["Running", "Failed"] {
            job["status"]["conditions"] =
                json!([{"type": condition, "status": "True", "message": "as the cluster says"}]);
            let store = testing::holding(traces().into_iter().chain(confirmed_by.clone()));
            assert_eq!(is_followed(&job, store, label).await, is_told, "{label}");
        }
        // The cluster's part is told in any case.
        let script = vec![row("/pytorchjobs/j", 200, &job), row("/pods?", 200, list(&[], ""))];
        let store = testing::holding(traces().into_iter().chain(confirmed_by));
        let answer = World::new(script, store).get(&format!("/train/j?namespace={namespace}")).await;
        assert_eq!((answer.status, &answer.body["status"]), (200, &json!("failed")), "{label}");
        assert_eq!(answer.text.contains("private"), is_told, "{label}: {}", answer.text);
    }
}

#[tokio::test]
async fn a_run_that_went_on_in_another_namespace_shows_the_old_jobs_own_alone() {
    let confirmed_by = [owner("two", "other", OTHER), record("training", "j", SUBMISSION, "u1")];
    let world = || {
        let script = vec![job_row(&job("j")), row(PODS, 200, list(&[], ""))];
        World::new(script, testing::holding(traces().into_iter().chain(confirmed_by.clone())))
    };
    let status = world().get("/train/j").await;
    assert_eq!((status.status, &status.body["progress"]["step"]), (200, &json!(7)), "{}", status.text);
    let log = world().get("/train/j/logs?source=archive").await;
    assert!(log.status == 200 && log.text.contains("private"), "{}", log.text);
    // What is the run's is the other namespace's by now.
    assert_eq!(world().get("/train/j/checkpoints").await.body["checkpoints"], json!([]));
    for path in ["latest", "best", "20"] {
        let answer = world().get(&format!("/train/j/checkpoints/{path}")).await;
        assert_eq!((answer.status, answer.code()), (404, "checkpoint_not_found"), "{path}: {}", answer.text);
    }
}

#[tokio::test]
async fn a_status_asks_once_whether_the_job_is_its_runs() {
    let bucket = Bucket::holding(traces().into_iter().chain([owner("training", "j", SUBMISSION)]));
    let world = World::new(vec![job_row(&job("j")), row(PODS, 200, list(&[], ""))], bucket.store());
    world.get("/train/j").await;
    let mut calls = bucket.take_traffic().calls;
    calls.sort_by(|one, other| (one.verb, &one.key).cmp(&(other.verb, &other.key)));
    let call = |verb, key: &str| Call { verb, key: format!("{RUN}/{key}") };
    let entry = format!("index/v1/{:012}", 999_999_999_999_u64 - 20);
    let expected = [
        call("GET", &entry),
        call("GET", "owner"),
        call("GET", &format!("progress/{SUBMISSION}")),
        call("LIST", "index/v1/"),
    ];
    assert_eq!(calls, expected);
}
