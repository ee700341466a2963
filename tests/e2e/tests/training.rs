//! Real training: torchrun on two nodes, checkpoints in S3, a death in the middle. Alone, because it needs the cores.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use e2e::World;
use serde_json::{Value, json};
use tokio::time::sleep;

/// One death can cost up to three container restarts, with back-off from the second on.
const TRAINED_WITHIN: Duration = Duration::from_mins(4);
/// The operator makes the pods of a failed job once more and deletes them at once. The first process of a container is deaf
/// to SIGTERM until it handles it, so one of them may end with its grace period of five minutes.
const GONE_WITHIN: Duration = Duration::from_mins(6);
const STEPS: u64 = 120;
const SAVE_STEPS: u64 = 20;

/// The weights of a submission's final export, and the last step's loss, both bit by bit.
async fn result(world: &World, name: &str) -> Result<(Vec<u8>, Value)> {
    let done = world.wait_for_status(name, "succeeded", TRAINED_WITHIN).await?;
    assert_eq!(done.number("/progress/step"), Some(STEPS));
    let key =
        format!("runs/{}/framework=hf/model/{}/model.safetensors", done.text("/run_id"), done.text("/submission"));
    Ok((world.twin.object(&key).await?, done.body["progress"]["loss"].clone()))
}

#[tokio::test]
async fn a_killed_pod_continues_to_the_same_end_bit_for_bit() -> Result<()> {
    let world = World::meet()?;
    let dataset_uri = world.twin.put_data_set().await?;
    let straight = World::run_id("straight");
    let name = world.submit(&world.twin.two_node_request(&straight, &dataset_uri, STEPS, SAVE_STEPS)?).await?;
    let (weights, loss) = result(&world, &name).await?;
    ensure!(loss.is_f64(), "the straight run has no loss");

    let killed = World::run_id("killed");
    let name = world.submit(&world.twin.two_node_request(&killed, &dataset_uri, STEPS, SAVE_STEPS)?).await?;
    // The index shows a checkpoint: there is something to go on from, and something left to train.
    let path = format!("/train/{name}/checkpoints");
    let saved = world.wait(&path, TRAINED_WITHIN, |answer| answer.number("/checkpoints/0/step").is_some()).await?;
    let step = saved.number("/checkpoints/0/step").unwrap_or_default();
    world.tell(&["kill", &format!("{name}-worker-0")]).await?;
    let (killed_weights, killed_loss) = result(&world, &name).await?;

    let pod = world.resource("pod", &format!("{name}-master-0")).await?;
    let restarts = pod["status"]["containerStatuses"][0]["restartCount"].as_u64().unwrap_or_default();
    ensure!(restarts >= 1, "nothing was restarted: the run had ended before it was killed");
    let output = world.kubectl(&["logs", &format!("{name}-master-0")], None).await?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        text.contains("resumes its own step"),
        "it did not go on from a checkpoint, of which {step} was one:\n{text}"
    );
    assert_eq!(killed_loss, loss, "the loss at the end");
    ensure!(killed_weights == weights, "the weights at the end differ");

    // A container that was killed in a pod that stays was a crash, and the next one brings what it had printed.
    let prefix = format!("runs/{killed}/framework=hf");
    let submission = world.twin.get(&format!("/train/{name}")).await?.expect(200)?.text("/submission").to_owned();
    let attempts = attempts(&world, &prefix, &submission).await?;
    let causes: Vec<_> = attempts.iter().map(|attempt| attempt["cause"].clone()).collect();
    ensure!(causes.first() == Some(&json!("crash")) && causes.last() == Some(&json!("finished")), "{causes:?}");
    assert_eq!(attempts[0]["pods"].as_array().map(Vec::len), Some(2));
    let log = world.twin.get(&format!("/train/{name}/logs?source=archive&attempt=1")).await?.expect(200)?;
    ensure!(log.text_body.contains(&format!("saved step {step}")), "the first attempt's log: {}", log.text_body);
    Ok(())
}

/// The ledger of a submission, the first attempt first.
async fn attempts(world: &World, prefix: &str, submission: &str) -> Result<Vec<Value>> {
    let mut attempts = Vec::new();
    for key in world.keys(&format!("{prefix}/attempts/{submission}/")).await? {
        attempts.push(serde_json::from_slice::<Value>(&world.twin.object(&key).await?)?);
    }
    attempts.sort_by_key(|attempt| attempt["attempt"].as_u64());
    Ok(attempts)
}

#[tokio::test]
async fn each_framework_trains_on_two_nodes() -> Result<()> {
    let world = World::meet()?;
    let dataset_uri = world.twin.put_data_set().await?;
    for framework in ["hf", "nemo", "meta"] {
        let run_id = World::run_id(framework);
        let mut request = world.twin.two_node_request(&run_id, &dataset_uri, 20, 10)?;
        request["framework"] = json!(framework);
        let name = world.submit(&request).await?;
        let done = world.wait_for_status(&name, "succeeded", TRAINED_WITHIN).await?;
        let indexed = |answer: &twin::client::Answer| answer.number("/checkpoints/1/step") == Some(10);
        let path = format!("/train/{name}/checkpoints");
        let checkpoints = world.wait(&path, TRAINED_WITHIN, indexed).await?;
        assert_eq!(checkpoints.number("/checkpoints/0/step"), Some(20), "{framework}");
        let (prefix, submission) = (format!("runs/{run_id}/framework={framework}"), done.text("/submission"));
        let attempts = attempts(&world, &prefix, submission).await?;
        assert_eq!(attempts.iter().map(|attempt| &attempt["cause"]).collect::<Vec<_>>(), ["finished"], "{framework}");
        // As one that still runs when the master ends is: gone with its log. The archive has it.
        world.kubectl(&["delete", "pod", &format!("{name}-worker-0"), "--ignore-not-found"], None).await?;
        for (query, source) in [("", "cluster"), ("?rank=1", "archive"), ("?source=archive&tail=2", "archive")] {
            let log = world.twin.get(&format!("/train/{name}/logs{query}")).await?.expect(200)?;
            assert_eq!(log.header("log-source"), Some(source), "{framework} {query}: {}", log.text_body);
            assert_eq!(log.header("log-attempt"), (source == "archive").then_some("1"), "{framework} {query}");
            ensure!(query == "?rank=1" || log.text_body.contains("saved step 20"), "{framework}: {}", log.text_body);
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_job_that_cannot_train_says_why_and_does_not_try_again() -> Result<()> {
    let world = World::meet()?;
    let dataset_uri = world.twin.put_data_set().await?;
    let run_id = World::run_id("wrong");
    let mut request = world.twin.two_node_request(&run_id, &dataset_uri, 20, 20)?;
    request["extra_args"]["max_seq_len"] = json!(100_000);
    let name = world.submit(&request).await?;
    let looping = |answer: &twin::client::Answer| answer.text("/diagnosis/code") == "crash_loop";
    let answer = world.wait(&format!("/train/{name}"), TRAINED_WITHIN, looping).await?;
    let message = answer.text("/diagnosis/message");
    ensure!(message.starts_with("user_error: ") && message.contains("max_seq_len 100000 is beyond"), "{message}");
    let attempts = attempts(&world, &format!("runs/{run_id}/framework=hf"), answer.text("/submission")).await?;
    assert_eq!(attempts.iter().map(|attempt| &attempt["cause"]).collect::<Vec<_>>(), ["user_error"]);

    // When the operator has had enough, the pods go with what they said; the reason and the log stay. Its own limit is
    // some minutes away.
    let limit = r#"{"spec": {"runPolicy": {"backoffLimit": 1}}}"#;
    world.kubectl(&["patch", "pytorchjob", &name, "--type", "merge", "--patch", limit], None).await?;
    let failed = world.wait_for_status(&name, "failed", TRAINED_WITHIN).await?;
    let message = failed.text("/diagnosis/message");
    assert_eq!(failed.text("/diagnosis/code"), "failed", "{}", failed.body);
    ensure!(message.starts_with("attempt 1 ended by user_error: max_seq_len 100000 is beyond"), "{message}");
    ensure!(failed.text("/detail").ends_with(message), "{}", failed.body);
    let gone = |answer: &twin::client::Answer| answer.status == 200 && answer.header("log-source") == Some("archive");
    let log = world.wait(&format!("/train/{name}/logs"), GONE_WITHIN, gone).await?;
    ensure!(log.text_body.contains("max_seq_len 100000 is beyond"), "{}", log.text_body);
    world.twin.delete(&format!("/train/{name}")).await?.expect(202)?;
    Ok(())
}

#[tokio::test]
async fn a_finished_run_goes_on_from_its_last_step() -> Result<()> {
    let world = World::meet()?;
    let dataset_uri = world.twin.put_data_set().await?;
    let run_id = World::run_id("resumed");
    let name = world.submit(&world.twin.two_node_request(&run_id, &dataset_uri, 20, 20)?).await?;
    let first = world.wait_for_status(&name, "succeeded", TRAINED_WITHIN).await?;

    let mut request = world.twin.two_node_request(&run_id, &dataset_uri, 40, 20)?;
    request["resume_from_checkpoint"] = json!(true);
    world.twin.post("/train?restart=true", &request).await?.expect(201)?;
    let (started, mut seen) = (Instant::now(), Vec::new());
    while seen.last() != Some(&40) {
        ensure!(started.elapsed() < TRAINED_WITHIN, "not at step 40, but {seen:?}");
        let answer = world.twin.get(&format!("/train/{name}")).await?.expect(200)?;
        seen.extend(answer.number("/progress/step"));
        sleep(Duration::from_millis(300)).await;
    }
    ensure!(seen.iter().all(|step| *step > 20), "steps seen: {seen:?}");
    world.wait_for_status(&name, "succeeded", TRAINED_WITHIN).await?;

    let newest = |answer: &twin::client::Answer| answer.number("/checkpoints/0/step") == Some(40);
    let checkpoints = world.wait(&format!("/train/{name}/checkpoints"), TRAINED_WITHIN, newest).await?;
    let parent = &checkpoints.body["checkpoints"][0]["parent"];
    assert_eq!(parent, &json!({"submission": first.text("/submission"), "step": 20}));
    Ok(())
}
