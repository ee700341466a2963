//! Everything that is only read: lists, checkpoints, logs, events and readiness, against the real API server and bucket.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::World;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::sleep;
use twin::client::Answer;

const MINUTE: Duration = Duration::from_mins(1);

/// A job that the platform could have made, held back so that it has no pods.
fn suspended(name: &str, framework: &str, run_id: &str) -> Value {
    let template = json!({"spec": {"containers": [{"name": "pytorch", "image": "stub"}]}});
    json!({
        "apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob",
        "metadata": {
            "name": name,
            "labels": {"trainer.deepfinery/framework": framework, "trainer.deepfinery/run-id": run_id},
        },
        "spec": {
            "nprocPerNode": "1",
            "runPolicy": {"suspend": true},
            "pytorchReplicaSpecs": {"Master": {"replicas": 1, "restartPolicy": "OnFailure", "template": template}},
        },
    })
}

/// Make objects in a namespace, as the cluster's administrator.
async fn create(world: &World, namespace: &str, objects: &[Value]) -> Result<()> {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    let output = world.kubectl(&["--namespace", namespace, "create"], Some(&list)).await?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

async fn delete(world: &World, namespace: &str, run_id: &str) -> Result<()> {
    let selector = format!("trainer.deepfinery/run-id={run_id}");
    world.kubectl(&["--namespace", namespace, "delete", "pytorchjobs", "--selector", &selector], None).await?;
    Ok(())
}

fn texts(answer: &Answer, list: &str, field: &str) -> Vec<String> {
    let rows = answer.body[list].as_array().into_iter().flatten();
    rows.map(|row| row[field].as_str().unwrap_or_default().to_owned()).collect()
}

fn lines(answer: &Answer) -> Vec<&str> {
    answer.text_body.lines().collect()
}

#[tokio::test]
async fn a_list_is_paged_and_filtered() -> Result<()> {
    let world = World::meet()?;
    let run_id = World::run_id("list");
    let namespace = "training-list";
    let frameworks = ["hf", "meta", "hf", "nemo", "hf"];
    let names: Vec<_> = (0..frameworks.len()).map(|number| format!("{run_id}-{number}")).collect();
    let jobs: Vec<_> =
        names.iter().zip(frameworks).map(|(name, framework)| suspended(name, framework, &run_id)).collect();
    create(&world, namespace, &jobs).await?;

    let all = format!("/train?namespace={namespace}&run_id={run_id}");
    let whole = world.twin.get(&all).await?.expect(200)?;
    assert_eq!(texts(&whole, "jobs", "name"), names);
    assert_eq!((&whole.body["continue"], &whole.body["links"]["next"]), (&Value::Null, &Value::Null));
    assert_eq!(whole.text("/jobs/0/links/self"), format!("/train/{}?namespace={namespace}", names[0]));

    // By links alone, in name order, each job once.
    let (mut next, mut paged, mut count) = (format!("{all}&limit=2"), Vec::new(), 0);
    while !next.is_empty() {
        let page = world.twin.get(&next).await?.expect(200)?;
        ensure!(page.body["jobs"].as_array().is_some_and(|jobs| jobs.len() <= 2), "{}", page.body);
        paged.extend(texts(&page, "jobs", "name"));
        next = page.text("/links/next").to_owned();
        count += 1;
    }
    assert_eq!((paged, count), (names.clone(), 3));

    let hf = world.twin.get(&format!("{all}&framework=hf")).await?.expect(200)?;
    assert_eq!(texts(&hf, "jobs", "name"), [names[0].clone(), names[2].clone(), names[4].clone()]);
    world.wait(&format!("{all}&status=submitted"), MINUTE, |page| texts(page, "jobs", "name") == names).await?;
    // Nothing of this page is left by the filter, and yet there is a next one.
    let running = world.twin.get(&format!("{all}&status=running&limit=2")).await?.expect(200)?;
    assert_eq!(texts(&running, "jobs", "name"), [""; 0]);
    assert!(!running.text("/continue").is_empty());

    let bad = world.twin.get(&format!("{all}&continue=nonsense")).await?.expect(422)?;
    assert_eq!(bad.text("/errors/0/pointer"), "?continue");
    delete(&world, namespace, &run_id).await
}

#[tokio::test]
async fn a_namespace_is_the_border_of_every_route() -> Result<()> {
    let world = World::meet()?;
    let run_id = World::run_id("border");
    create(&world, "training-two", &[suspended(&run_id, "hf", &run_id)]).await?;
    for tail in ["", "/checkpoints", "/events"] {
        let path = format!("/train/{run_id}{tail}");
        world.twin.get(&format!("{path}?namespace=training-two")).await?.expect(200)?;
        assert_eq!(world.twin.get(&path).await?.expect(404)?.text("/code"), "job_not_found", "{path}");
        let foreign = world.twin.get(&format!("{path}?namespace=kube-system")).await?.expect(403)?;
        assert_eq!(foreign.text("/code"), "namespace_not_allowed", "{path}");
    }
    // It has none of these, and each of them is looked for where the job is.
    for (tail, code) in [
        ("/logs", "log_not_found"),
        ("/checkpoints/latest", "checkpoint_not_found"),
        ("/checkpoints/best", "checkpoint_not_found"),
        ("/checkpoints/10", "checkpoint_not_found"),
    ] {
        let path = format!("/train/{run_id}{tail}");
        let there = world.twin.get(&format!("{path}?namespace=training-two")).await?.expect(404)?;
        assert_eq!(there.text("/code"), code, "{path}");
        assert_eq!(world.twin.get(&path).await?.expect(404)?.text("/code"), "job_not_found", "{path}");
    }
    for action in ["resume", "suspend"] {
        let path = format!("/train/{run_id}/{action}");
        assert_eq!(world.twin.post(&path, &json!({})).await?.expect(404)?.text("/code"), "job_not_found", "{path}");
        let there = world.twin.post(&format!("{path}?namespace=training-two"), &json!({})).await?.expect(409)?;
        assert_eq!(there.text("/code"), "foreign_job", "{path}");
    }
    let answer = world.twin.get(&format!("/train/{run_id}?namespace=training-two")).await?.expect(200)?;
    assert_eq!(answer.text("/links/events"), format!("/train/{run_id}/events?namespace=training-two"));
    // Nobody may do anything in a namespace that is not there: the cluster's refusal, not an empty list.
    for path in ["/train?namespace=training-absent", "/train/x?namespace=training-absent"] {
        let absent = world.twin.get(path).await?;
        assert_eq!((absent.status, absent.text("/code")), (502, "cluster_denied"), "{path}: {}", absent.body);
    }
    delete(&world, "training-two", &run_id).await
}

#[tokio::test]
async fn checkpoints_are_chosen_from_the_newest_submissions_line() -> Result<()> {
    let world = World::meet()?;
    let run_id = World::run_id("line");
    let created = world.twin.post("/train", &world.stub_request(&run_id, json!({"seconds": 1}))?).await?.expect(201)?;
    let (prefix, path) = (format!("runs/{run_id}/framework=hf"), format!("{}/checkpoints", created.location));
    let (older, newer) = ("01970000-0000-7000-8000-00000000000a", created.text("/submission"));
    assert_eq!(world.twin.get(&format!("{path}/latest")).await?.expect(404)?.text("/code"), "checkpoint_not_found");

    let file = |step: u64| format!("{prefix}/checkpoints/checkpoint-{step}/model.safetensors");
    for (step, submission, parent, loss) in [
        (10, older, Value::Null, json!(3.0)),
        (20, older, Value::Null, json!(0.5)),
        (15, newer, json!({"submission": older, "step": 10}), json!(1.0)),
        (30, newer, json!({"submission": older, "step": 10}), json!(2.0)),
        (40, newer, json!({"submission": older, "step": 10}), Value::Null),
    ] {
        world.twin.put(&file(step), vec![0; 16]).await?;
        let marker = json!({
            "layout": 1, "framework": "hf", "step": step, "saved_at": 1.5, "submission": submission, "parent": parent,
            "files": [{"path": format!("checkpoint-{step}/model.safetensors"), "size": 16}],
            "metrics": {"loss": loss}, "metadata": {},
        });
        world.twin.put(&format!("{prefix}/checkpoints/step-{step:06}.json"), marker.to_string().into_bytes()).await?;
    }
    let all_indexed = |answer: &Answer| answer.body["checkpoints"].as_array().map(Vec::len) == Some(5);
    let page = world.wait(&path, MINUTE, all_indexed).await?;
    let rows = page.body["checkpoints"].as_array().context("checkpoints")?;
    let rows: Vec<_> = rows.iter().map(|row| (row["step"].as_u64(), row["superseded"].as_bool())).collect();
    let expected = [(40, false), (30, false), (20, true), (15, false), (10, false)];
    assert_eq!(rows, expected.map(|(step, superseded)| (Some(step), Some(superseded))));

    let status = world.twin.get(&created.location).await?.expect(200)?;
    assert_eq!(status.number("/checkpoints/latest_step"), Some(40));
    let marker = format!("{}/{run_id}/framework=hf/checkpoints/step-000040.json", world.twin.setting("RUNS_BASE_URI")?);
    assert_eq!(status.text("/checkpoints/latest_uri"), marker);

    let at = async |tail: &str| -> Result<Option<u64>> {
        Ok(world.twin.get(&format!("{path}/{tail}")).await?.expect(200)?.number("/step"))
    };
    assert_eq!(at("latest").await?, Some(40));
    assert_eq!((at("best").await?, at("best?metric=loss&mode=max").await?), (Some(15), Some(10)));
    assert_eq!((at("20").await?, at("000030").await?), (Some(20), Some(30)));
    for missing in ["11", "x", "-1", "best?metric=accuracy"] {
        let answer = world.twin.get(&format!("{path}/{missing}")).await?.expect(404)?;
        assert_eq!(answer.text("/code"), "checkpoint_not_found", "{missing}");
    }

    // Files are looked at as they are now: no event tells of one that is lost.
    let bucket = world.twin.setting("RUNS_BUCKET")?;
    for lost in [40, 15] {
        world.twin.s3.delete_object().bucket(bucket).key(file(lost)).send().await?;
    }
    assert_eq!((at("latest").await?, at("best").await?), (Some(30), Some(30)));
    let torn = world.twin.get(&format!("{path}/40")).await?.expect(200)?;
    assert_eq!((torn.text("/state"), &torn.body["superseded"]), ("incomplete", &json!(false)));
    Ok(())
}

#[tokio::test]
async fn logs_are_those_of_the_pod_the_start_and_the_lines_asked_for() -> Result<()> {
    let world = World::meet()?;
    let name = world.submit(&world.stub_request(&World::run_id("logs"), json!({"seconds": 60, "steps": 60}))?).await?;
    let logs = format!("/train/{name}/logs");
    let wait_for_lines = async |query: &str, count: usize| -> Result<Answer> {
        for _ in 0..120 {
            let answer = world.twin.get(&format!("{logs}{query}")).await?;
            if answer.status == 200 && lines(&answer).len() >= count {
                return Ok(answer);
            }
            ensure!(answer.status == 200 || answer.text("/code") == "log_not_found", "{}", answer.text_body);
            sleep(Duration::from_millis(500)).await;
        }
        anyhow::bail!("no {count} lines of {logs}{query} within a minute")
    };
    let master = wait_for_lines("", 3).await?;
    assert_eq!(master.content_type, "text/plain; charset=utf-8");
    for (number, line) in lines(&master).into_iter().enumerate() {
        let (time, text) = line.split_once(' ').context("a time")?;
        ensure!(time.len() >= 20 && time.ends_with('Z') && time.starts_with("20"), "{line}");
        assert_eq!(text, format!("step {}/60", number + 1));
    }
    assert_eq!((master.header("log-truncated"), master.header("log-incomplete")), (None, None));
    let second = lines(&master)[1].split_once(' ').context("a time")?.0.to_owned();

    let last = world.twin.get(&format!("{logs}?tail=1")).await?.expect(200)?;
    assert_eq!(lines(&last).len(), 1, "{}", last.text_body);
    let later = world.twin.get(&format!("{logs}?since={second}")).await?.expect(200)?;
    let first = lines(&later).first().copied().unwrap_or_default().to_owned();
    // Kubernetes looks at whole seconds, so the line before may still be there, but no line is lost.
    ensure!(first.ends_with("step 1/60") || first.ends_with("step 2/60"), "{first}");
    let none = world.twin.get(&format!("{logs}?since=2100-01-01T00:00:00Z")).await?.expect(200)?;
    assert_eq!(none.text_body, "");

    // Two nodes with one rank each.
    for query in ["?replica=worker-0", "?rank=1"] {
        wait_for_lines(query, 1).await?;
    }
    let conflict = world.twin.get(&format!("{logs}?replica=master&rank=1")).await?.expect(422)?;
    assert_eq!(conflict.text("/errors/0/pointer"), "?rank");
    for (query, says) in
        [("?replica=worker-1", "1 workers"), ("?rank=2", "2 ranks"), ("?attempt=2", "newest is attempt 1")]
    {
        let missing = world.twin.get(&format!("{logs}{query}")).await?.expect(404)?;
        assert_eq!(missing.text("/code"), "log_not_found", "{query}");
        ensure!(missing.text("/detail").contains(says), "{query}: {}", missing.body);
    }

    // A second start: the first one's log is still to be had.
    world.tell(&["kill", &format!("{name}-master-0")]).await?;
    let again = wait_for_lines("?attempt=2", 1).await?;
    ensure!(lines(&again)[0].ends_with("step 1/60"), "{}", again.text_body);
    let before = world.twin.get(&format!("{logs}?attempt=1")).await?.expect(200)?;
    ensure!(before.text_body.starts_with(&master.text_body), "{}", before.text_body);
    world.kubectl(&["delete", "pytorchjob", &name, "--wait=false"], None).await?;
    Ok(())
}

#[tokio::test]
async fn a_log_of_any_bytes_is_text_that_fits_an_answer() -> Result<()> {
    let world = World::meet()?;
    let run_id = World::run_id("bytes");
    // A line too long for any answer, many long ones that need escaping, then whatever a program may print.
    let script = r#"
import sys
out = sys.stdout.buffer
out.write(b"a" * 5_000_000 + b"end of the long line\n")
if len(sys.argv) > 1:
    for number in range(9000):
        out.write(b'%05d "%s"\n' % (number, b'"' * 400))
out.write(b"broken \xff\xf0\x9f bytes\r\x1b[31m\x00\n")
out.write("and \u20ac\n".encode())
"#;
    let mut short = suspended(&format!("{run_id}-short"), "hf", &run_id);
    short["spec"]["runPolicy"] = json!({});
    let container = &mut short["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]["containers"][0];
    container["image"] = json!(world.twin.setting("TRAINER_IMAGE")?);
    container["command"] = json!(["python", "-c", script]);
    let mut long = short.clone();
    long["metadata"]["name"] = json!(format!("{run_id}-long"));
    long["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]["containers"][0]["args"] = json!(["many"]);
    create(&world, "training", &[short, long]).await?;
    for name in [format!("{run_id}-short"), format!("{run_id}-long")] {
        world.wait_for_status(&name, "succeeded", MINUTE).await?;
        let answer = world.twin.get(&format!("/train/{name}/logs?tail=10000")).await?.expect(200)?;
        assert_eq!((answer.header("log-truncated"), answer.header("log-incomplete")), (Some("true"), None));
        let lines = lines(&answer);
        let texts = lines.iter().map(|line| line.split_once(' ')).collect::<Option<Vec<_>>>().context("times")?;
        ensure!(texts.iter().all(|(time, _)| time.starts_with("20") && time.ends_with('Z')), "each line has its time");
        let [.., broken, last] = texts.as_slice() else { anyhow::bail!("two lines") };
        assert_eq!(broken.1, "broken \u{fffd}\u{fffd} bytes\r\u{1b}[31m\0");
        assert_eq!(last.1, "and €");
        if name.ends_with("short") {
            // The long line alone is too long, and goes as soon as others need room.
            assert_eq!(lines.len(), 2);
        } else {
            let bytes = serde_json::to_string(&answer.text_body)?.len();
            ensure!((4_000_000..=4 * 1024 * 1024 + 2).contains(&bytes), "{bytes}");
            ensure!(texts[0].1.ends_with("\"\"") && lines.len() > 4_000, "{} lines", lines.len());
        }
    }
    delete(&world, "training", &run_id).await
}

#[tokio::test]
async fn a_log_that_is_not_there_says_where_else_to_look() -> Result<()> {
    let world = World::meet()?;
    let run_id = World::run_id("nolog");
    let mut request = world.stub_request(&run_id, json!({}))?;
    request["gpus_per_node"] = json!(9);
    let created = world.twin.post("/train", &request).await?.expect(201)?;
    let (name, submission) = (created.name(), created.text("/submission"));
    let says = |expected: String| move |answer: &Answer| answer.text("/detail").contains(&expected);
    let archive = format!(
        "{}/{run_id}/framework=hf/logs/{submission}/attempt-<n>/rank-0.log",
        world.twin.setting("RUNS_BASE_URI")?
    );
    let answer = world.twin.get(&format!("/train/{name}/logs")).await?.expect(404)?;
    assert_eq!(answer.text("/code"), "log_not_found");
    ensure!(says(archive)(&answer), "{}", answer.body);

    // The same job's events: the scheduler's have no count and name their reporter.
    let told = |answer: &Answer| {
        let events = answer.body["events"].as_array().cloned().unwrap_or_default();
        events.iter().any(|event| event["reason"] == "FailedScheduling")
            && events.iter().any(|event| event["object"]["kind"] == "PyTorchJob")
    };
    let answer = world.wait(&format!("/train/{name}/events"), MINUTE, told).await?;
    let events = answer.body["events"].as_array().context("events")?;
    let scheduling = events.iter().find(|event| event["reason"] == "FailedScheduling").context("an event")?;
    assert_eq!((&scheduling["type"], &scheduling["source"]), (&json!("Warning"), &json!("default-scheduler")));
    assert_eq!((&scheduling["count"], &scheduling["object"]["kind"]), (&Value::Null, &json!("Pod")));
    let message = scheduling["message"].as_str().unwrap_or_default();
    ensure!(message.contains("Insufficient nvidia.com/gpu"), "{message}");
    let times: Vec<_> =
        events.iter().map(|event| event["last_seen"].as_str().unwrap_or_default()[..19].to_owned()).collect();
    ensure!(times.is_sorted() && times.iter().all(|time| !time.is_empty()), "{times:?}");
    ensure!(events.iter().all(|event| event["object"]["name"].as_str().is_some_and(|object| object.starts_with(name))));
    world.kubectl(&["delete", "pytorchjob", name], None).await?;
    Ok(())
}

#[tokio::test]
async fn readiness_and_the_description_are_there() -> Result<()> {
    let world = World::meet()?;
    let ready = world.twin.get("/readyz").await?.expect(200)?;
    assert_eq!(ready.body["ready"], true);
    for name in ["token", "cluster", "storage"] {
        assert_eq!(ready.body[name], json!({"ok": true, "code": null, "detail": null}), "{name}");
    }
    let absent = world.twin.get("/readyz?namespace=training-absent").await?.expect(503)?;
    assert_eq!((&absent.body["cluster"]["ok"], &absent.body["storage"]["ok"]), (&json!(false), &json!(true)));
    assert_eq!(world.twin.send(Method::GET, "/readyz", None, None).await?.expect(401)?.text("/code"), "missing_token");
    let description = world.twin.send(Method::GET, "/openapi.json", None, None).await?.expect(200)?;
    assert!(description.body.is_object() && description.content_type == "application/json");
    for path in ["/healthz", "/openapi.json", "/train/none"] {
        let get = world.twin.get(path).await?;
        let head = world.twin.send(Method::HEAD, path, Some(world.twin.setting("TRAINER_API_TOKEN")?), None).await?;
        assert_eq!((head.status, head.text_body.as_str()), (get.status, ""), "{path}");
        assert_eq!(head.content_type, get.content_type, "{path}");
    }
    Ok(())
}

#[tokio::test]
async fn the_settings_of_each_framework_are_there() -> Result<()> {
    let world = World::meet()?;
    for framework in ["hf", "nemo", "meta"] {
        let path = format!("/settings/{framework}");
        let settings = world.twin.get(&path).await?.expect(200)?;
        let schema = std::fs::read(world.root.join(format!("trainer/settings/{framework}.json")))?;
        assert_eq!(settings.body, serde_json::from_slice::<serde_json::Value>(&schema)?, "{framework}");
        assert_eq!(
            (settings.content_type.as_str(), settings.header("cache-control")),
            ("application/json", Some("no-store"))
        );
        let head = world.twin.send(Method::HEAD, &path, Some(world.twin.setting("TRAINER_API_TOKEN")?), None).await?;
        assert_eq!((head.status, head.text_body.as_str()), (200, ""), "{framework}");
        assert_eq!(world.twin.send(Method::GET, &path, None, None).await?.expect(401)?.text("/code"), "missing_token");
    }
    let unknown = world.twin.get("/settings/jax").await?.expect(404)?;
    assert_eq!(unknown.text("/code"), "settings_not_found");
    ensure!(unknown.text("/detail").ends_with("there are `nemo`, `hf`, `meta`"), "{}", unknown.body);
    Ok(())
}

#[tokio::test]
async fn routes_that_are_not_there_say_so() -> Result<()> {
    let world = World::meet()?;
    for (method, path, status, code, allow) in [
        (Method::PUT, "/train", 405, "method_not_allowed", Some("GET, HEAD, POST")),
        (Method::PATCH, "/train/x", 405, "method_not_allowed", Some("DELETE, GET, HEAD")),
        (Method::POST, "/train/x/logs", 405, "method_not_allowed", Some("GET, HEAD")),
        (Method::GET, "/train/x/suspend", 405, "method_not_allowed", Some("POST")),
        (Method::GET, "/train/x/logs/y", 404, "route_not_found", None),
        (Method::GET, "/", 404, "route_not_found", None),
    ] {
        let answer = world.twin.send(method.clone(), path, None, None).await?;
        let case = format!("{method} {path}: {}", answer.text_body);
        assert_eq!((answer.status, answer.text("/code"), answer.header("allow")), (status, code, allow), "{case}");
    }
    Ok(())
}
