//! Which log is told, and from where.

use serde_json::json;
use training_store::testing;

use super::world::{PODS, RUN, SUBMISSION, World, job, job_row, owner, pod, refusal, row, running};

#[tokio::test]
async fn a_log_is_the_one_that_was_asked_for() {
    let world = World::with_cluster(vec![
        row(format!("{PODS}/j-master-0/log?"), 200, "2026-11-24T03:00:01Z one\n2026-11-24T03:00:02Z \u{1}\n"),
        row(format!("{PODS}/j-worker-0/log?"), 200, ""),
        row(format!("{PODS}/j-master-0"), 200, running("j-master-0", 2)),
        row(format!("{PODS}/j-worker-0"), 200, running("j-worker-0", 0)),
        job_row(&job("j")),
    ]);
    for (query, pod, asked, text) in [
        (
            "",
            "j-master-0",
            &["tailLines=500", "timestamps=true", "container=pytorch"][..],
            "2026-11-24T03:00:01Z one\n2026-11-24T03:00:02Z \u{1}\n",
        ),
        (
            "?attempt=2&tail=10000",
            "j-master-0",
            &["previous=true", "tailLines=10000"],
            "2026-11-24T03:00:01Z one\n2026-11-24T03:00:02Z \u{1}\n",
        ),
        ("?rank=2", "j-worker-0", &["tailLines=500"], ""),
        (
            "?since=2026-11-24T04:00:00.9%2B01:00&replica=worker-0",
            "j-worker-0",
            &["sinceTime=2026-11-24T03%3A00%3A00Z"],
            "",
        ),
    ] {
        let answer = world.get(&format!("/train/j/logs{query}")).await;
        assert_eq!((answer.status, answer.text.as_str()), (200, text), "{query}");
        assert_eq!(answer.header("content-type"), Some("text/plain; charset=utf-8"), "{query}");
        assert_eq!((answer.header("log-truncated"), answer.header("log-incomplete")), (None, None), "{query}");
        assert_eq!((answer.header("log-source"), answer.header("log-attempt")), (Some("cluster"), None), "{query}");
        let sent = world.sent().pop().expect("a request");
        assert!(
            sent.contains(&format!("{pod}/log?")) && asked.iter().all(|part| sent.contains(part)),
            "{query}: {sent}"
        );
        assert_eq!(sent.contains("previous"), query.contains("attempt=2"), "{query}: {sent}");
    }
    let answer = world.get("/train/j/logs?attempt=1").await;
    assert_eq!(answer.code(), "log_not_found");
    assert!(answer.detail().contains("newest is attempt 3"), "{}", answer.detail());
}

#[tokio::test]
async fn what_the_cluster_has_no_more_the_archive_may_have() {
    let archive = |keys: &[&str]| {
        let log = |key: &&str| (format!("{RUN}/logs/{SUBMISSION}/{key}"), format!("one\n{key}\n"));
        testing::holding(keys.iter().map(log).chain([owner("training", "j", SUBMISSION)]))
    };
    let both = ["attempt-1/rank-0.log", "attempt-1/rank-2.log", "attempt-2/rank-0.log", "attempt-2/rank-3.log"];
    let gone = || row("/pods/", 404, refusal(404, "pods not found"));
    let waiting = json!({"waiting": {"reason": "ContainerCreating"}});
    let slow = || row("/log?", 504, refusal(504, "request did not complete within the allotted timeout"));
    let empty = || row("/log?", 200, "");
    let unreachable = || row("/log?", 500, refusal(500, "dial tcp 10.0.0.7:10250: connect: connection refused"));
    for (case, pods, query, told) in [
        ("no pod", vec![gone()], "", Some(("2", both[2]))),
        ("no pod of a rank", vec![gone()], "?rank=3", Some(("2", both[3]))),
        ("no pod of a worker", vec![gone()], "?replica=worker-0&attempt=1", Some(("1", both[1]))),
        ("no log of the newest attempt", vec![gone()], "?replica=worker-0", Some(("1", both[1]))),
        ("no such attempt", vec![gone()], "?attempt=3", None),
        ("times are asked for", vec![gone()], "?since=2026-11-24T03:00:00Z", None),
        ("the cluster's is asked for", vec![gone()], "?source=cluster", None),
        ("not started", vec![row(PODS, 200, pod("j-master-0", "u1", 0, &waiting))], "", Some(("2", both[2]))),
        ("a start by its number", vec![row(PODS, 200, running("j-master-0", 4))], "?attempt=2", None),
        ("no node", vec![unreachable(), row(PODS, 200, running("j-master-0", 0))], "", Some(("2", both[2]))),
        (
            "a node that takes too long",
            vec![slow(), row(PODS, 200, running("j-master-0", 0))],
            "",
            Some(("2", both[2])),
        ),
        ("the archive's is asked for", vec![], "?source=archive&attempt=1", Some(("1", both[0]))),
    ] {
        let script = pods.into_iter().chain([job_row(&job("j"))]).collect();
        let answer = World::new(script, archive(&both)).get(&format!("/train/j/logs{query}")).await;
        let found = (answer.status == 200).then(|| (answer.header("log-attempt").unwrap_or_default(), &*answer.text));
        let told = told.map(|(attempt, key)| (attempt, format!("one\n{key}\n")));
        assert_eq!(found, told.as_ref().map(|(attempt, text)| (*attempt, text.as_str())), "{case}: {}", answer.text);
        assert_eq!(answer.header("log-source"), told.is_some().then_some("archive"), "{case}");
        assert!(told.is_some() || answer.code() == "log_not_found", "{case}: {}", answer.text);
        assert!(told.is_some() || answer.detail().contains("/attempt-"), "{case}: {}", answer.text);
    }
    let answer = World::new(vec![gone(), job_row(&job("j"))], archive(&both)).get("/train/j/logs?tail=1").await;
    assert_eq!(answer.text, format!("{}\n", both[2]));

    let silent = vec![empty(), row(PODS, 200, running("j-master-0", 0)), job_row(&job("j"))];
    let answer = World::new(silent, archive(&both)).get("/train/j/logs").await;
    assert_eq!((answer.header("log-source"), answer.text.as_str()), (Some("cluster"), ""), "it has printed nothing");

    // Where the bucket cannot be read, nobody knows whether there is such a log.
    let denied = World::new(vec![gone(), job_row(&job("j"))], testing::denied());
    let answer = denied.get("/train/j/logs").await;
    assert_eq!(answer.code(), "storage_unavailable");
    assert!(
        answer.detail().starts_with("the pod `j-master-0` does not exist now; the runs bucket"),
        "{}",
        answer.detail()
    );
    assert_eq!(denied.get("/train/j/logs?source=cluster").await.code(), "log_not_found");
    assert_eq!(denied.get("/train/j/logs?source=archive").await.code(), "storage_unavailable");
    let script = vec![unreachable(), row(PODS, 200, running("j-master-0", 0)), job_row(&job("j"))];
    let denied = World::new(script, testing::denied()).get("/train/j/logs").await;
    assert_eq!(denied.code(), "cluster_unavailable");

    // Nor is a run looked at that lies outside the bases.
    let mut job = job("j");
    job["metadata"]["annotations"]["trainer.deepfinery/checkpoint-prefix"] = json!("s3://other/r/framework=hf");
    let world = World::new(vec![gone(), job_row(&job)], testing::denied());
    let answer = world.get("/train/j/logs?source=archive").await;
    assert_eq!((answer.code(), answer.detail()), ("log_not_found", "there is no readable archived log"));
}

#[tokio::test]
async fn a_log_that_is_too_long_loses_its_oldest_lines() {
    let line = |number: u32| format!("2026-11-24T03:00:01Z {number:07} {}\n", "\"".repeat(600));
    let log: String = (0..9_000).map(line).collect();
    let world =
        World::with_cluster(vec![row("/log?", 200, log), row(PODS, 200, running("j-master-0", 0)), job_row(&job("j"))]);
    let answer = world.get("/train/j/logs?tail=10000").await;
    assert_eq!((answer.status, answer.header("log-truncated")), (200, Some("true")));
    assert!(answer.text.ends_with(&line(8_999)) && answer.text.starts_with("2026-11-24T03:00:01Z 000"));
    let bytes = serde_json::to_string(&answer.text).expect("text").len();
    assert!((4_000_000..4 * 1024 * 1024 + 2).contains(&bytes), "{bytes}");
}

#[tokio::test]
async fn a_container_that_has_not_started_has_no_log() {
    for (state, log, says) in [
        (json!({"waiting": {"reason": "ContainerCreating"}}), None, "has not started yet (ContainerCreating)"),
        // Between the two looks its start was undone.
        (
            json!({"running": {}}),
            Some("container \"pytorch\" in pod \"j-master-0\" is waiting to start"),
            "waiting to start",
        ),
    ] {
        let world = World::with_cluster(vec![
            row("/log?", 400, refusal(400, log.unwrap_or("not asked"))),
            row(PODS, 200, pod("j-master-0", "u1", 0, &state)),
            job_row(&job("j")),
        ]);
        let answer = world.get("/train/j/logs").await;
        assert_eq!(answer.code(), "log_not_found", "{}", answer.text);
        assert!(answer.detail().contains(says), "{}", answer.detail());
        assert_eq!(world.sent().iter().any(|asked| asked.contains("/log?")), log.is_some());
    }
}

#[tokio::test]
async fn a_node_that_does_not_answer_is_told_from_a_log_that_is_not_there() {
    let lost = r#"Get "https://10.0.0.7:10250/containerLogs": dial tcp 10.0.0.7:10250: connect: connection refused"#;
    let script =
        vec![row("/log?", 500, refusal(500, lost)), row(PODS, 200, running("j-master-0", 0)), job_row(&job("j"))];
    let world = World::new(script, testing::holding([owner("training", "j", SUBMISSION)]));
    let answer = world.get("/train/j/logs").await;
    assert_eq!((answer.code(), answer.header("retry-after")), ("cluster_unavailable", Some("5")));
    assert!(answer.detail().contains("s3://bucket/") && !answer.text.contains("10.0.0.7"), "{}", answer.text);
}
