//! GET /train over 2,000 jobs, which nobody runs: another controller is said to manage them. They stay in their
//! namespace for the next time, because making them takes longest; whatever else is made is removed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use e2e::{
    World, cluster,
    runtime::{Event, EventBody, Function},
};
use futures::{StreamExt, TryStreamExt, stream};
use kube::{
    Api,
    api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

const NAMESPACE: &str = "training-list";
const JOBS: usize = 2_000;
const RUNS: usize = 100;
const LARGE_JOBS: usize = 60;
/// Twice in a manifest, once a replica: more than a MiB in all, which the submit function would refuse.
const LARGE_BYTES: usize = 512 * 1024;
const AT_ONCE: usize = 16;
/// The smallest function that AWS offers.
const MAX_MEMORY_BYTES: u64 = 128 * 1024 * 1024;
const FRAMEWORKS: [&str; 3] = ["hf", "nemo", "meta"];
/// Which jobs a query is for, by their numbers.
type Filter = fn(usize) -> bool;

/// Tests of one process share the jobs.
static MADE: OnceCell<()> = OnceCell::const_new();

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_job_is_missed_or_shown_twice_while_others_come_and_go() -> Result<()> {
    let world = World::meet()?;
    let jobs = cluster::jobs(&world, NAMESPACE).await?;
    MADE.get_or_try_init(|| make_jobs(&jobs)).await?;
    let (stop, changes) = (AtomicBool::new(false), AtomicUsize::new(0));
    let paging = async {
        let mut found = Vec::new();
        for limit in [500, 170, 50] {
            let before = changes.load(Ordering::Relaxed);
            let pages = pages(&world, &format!("/train?namespace={NAMESPACE}&limit={limit}")).await;
            found.push((limit, pages, changes.load(Ordering::Relaxed) - before));
        }
        stop.store(true, Ordering::Relaxed);
        found
    };
    let (found, churned) = tokio::join!(paging, churn(&jobs, &stop, &changes));
    churned?;
    for (limit, pages, changes) in found {
        let pages = pages?;
        // A page is ended early when the cluster is slow.
        let longest = pages.iter().map(Vec::len).max();
        ensure!(longest == Some(limit), "{limit}: the longest page has {longest:?} jobs");
        let names = names(&pages);
        ensure!(names.is_sorted_by(|one, next| one < next), "{limit}: a name twice or out of order");
        let shown: BTreeSet<_> = names.iter().map(String::as_str).collect();
        let missing: Vec<_> = (0..JOBS).map(name).filter(|name| !shown.contains(name.as_str())).collect();
        ensure!(missing.is_empty(), "{limit}: {} jobs are missing: {missing:?}", missing.len());
        ensure!(changes > 0, "{limit}: nothing came or went meanwhile");
        eprintln!("limit {limit}: {} jobs on {} pages during {changes} changes", names.len(), pages.len());
    }
    Ok(())
}

#[tokio::test]
async fn filters_find_what_they_name_and_nothing_else() -> Result<()> {
    let world = World::meet()?;
    let jobs = cluster::jobs(&world, NAMESPACE).await?;
    MADE.get_or_try_init(|| make_jobs(&jobs)).await?;
    let cases: [(&str, Filter); 6] = [
        ("framework=nemo&limit=200", |job| job % 3 == 1),
        ("run_id=list-run-7&limit=7", |job| job % RUNS == 7),
        ("status=running&limit=500", |job| state(job) == Some("Running")),
        ("status=failed&limit=90", |job| state(job) == Some("Failed")),
        ("framework=hf&run_id=list-run-2&status=succeeded", |job| {
            job % 3 == 0 && job % RUNS == 2 && state(job) == Some("Succeeded")
        }),
        ("run_id=list-run-none", |_| false),
    ];
    for (query, is_wanted) in cases {
        let pages = pages(&world, &format!("/train?namespace={NAMESPACE}&{query}")).await?;
        let wanted: Vec<_> = (0..JOBS).filter(|job| is_wanted(*job)).map(name).collect();
        // Other tests have jobs there too, of other runs.
        let is_ours = |job: &&Value| job["run_id"].as_str().is_some_and(|run_id| run_id.starts_with("list-run-"));
        let found: Vec<_> = pages.iter().flatten().filter(is_ours).map(|job| job["name"].clone()).collect();
        ensure!(found == wanted, "{query}: {} jobs instead of {}: {found:?}", found.len(), wanted.len());
        ensure!(query.contains("none") || !wanted.is_empty(), "{query} finds nothing");
    }
    let page = world.twin.get(&format!("/train?namespace={NAMESPACE}")).await?.expect(200)?;
    assert_eq!(page.body["jobs"].as_array().map(Vec::len), Some(50), "a page is of 50 jobs when nobody says");
    Ok(())
}

/// Several conditions are true together, in any order.
#[tokio::test]
async fn the_condition_that_decides_is_the_same_in_a_list_and_alone() -> Result<()> {
    let world = World::meet()?;
    let jobs = cluster::jobs(&world, NAMESPACE).await?;
    let run_id = World::run_id("conditions");
    for (number, (conditions, phase, status)) in [
        (&["Restarting", "Failed"][..], "Failed", "failed"),
        (&["Failed", "Succeeded"], "Failed", "failed"),
        (&["Succeeded", "Running"], "Succeeded", "succeeded"),
        (&["Suspended", "Running"], "Suspended", "submitted"),
        (&["Running", "Restarting"], "Restarting", "running"),
        (&["Created", "Running"], "Running", "running"),
        (&["Created"], "Pending", "submitted"),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("{run_id}-{number}");
        create(&jobs, job(&name, "hf", &run_id)).await?;
        let conditions: Vec<_> = conditions.iter().map(|name| json!({"type": name, "status": "True"})).collect();
        let conditions = json!({"status": {"conditions": conditions}});
        jobs.patch_status(&name, &PatchParams::default(), &Patch::Merge(&conditions)).await?;
        let alone = world.twin.get(&format!("/train/{name}?namespace={NAMESPACE}")).await?.expect(200)?;
        let path = format!("/train?namespace={NAMESPACE}&run_id={run_id}&status={status}");
        let listed = world.twin.get(&path).await?.expect(200)?.body["jobs"].as_array().cloned().unwrap_or_default();
        let listed = listed.iter().find(|job| job["name"] == name.as_str()).context("not in the list")?;
        for told in [&alone.body, listed] {
            ensure!((&told["phase"], &told["status"]) == (&json!(phase), &json!(status)), "{conditions}: {told}");
        }
    }
    let ours = ListParams::default().labels(&format!("trainer.deepfinery/run-id={run_id}"));
    jobs.delete_collection(&DeleteParams::default(), &ours).await?;
    Ok(())
}

#[tokio::test]
async fn a_token_of_long_ago_has_expired() -> Result<()> {
    let world = World::meet()?;
    let jobs = cluster::jobs(&world, NAMESPACE).await?;
    MADE.get_or_try_init(|| make_jobs(&jobs)).await?;
    let path = format!("/train?namespace={NAMESPACE}&limit=20");
    let page = world.twin.get(&path).await?.expect(200)?;
    let token = page.text("/continue");
    cluster::forget_first_revisions(&world).await?;
    // What the API server would have given for the same place in its first minute.
    let mut old: Value = serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(token)?)?;
    ensure!(old["rv"].as_u64().is_some_and(|revision| revision > 2), "{old}");
    old["rv"] = json!(2);
    let old = BASE64_URL_SAFE_NO_PAD.encode(old.to_string());
    let answer = world.twin.get(&format!("{path}&continue={old}")).await?.expect(410)?;
    assert_eq!((answer.text("/code"), answer.content_type.as_str()), ("continue_expired", "application/problem+json"));
    // The token itself still works, and one of no API server is the caller's mistake.
    world.twin.get(&format!("{path}&continue={token}")).await?.expect(200)?;
    let answer = world.twin.get(&format!("{path}&continue=abc")).await?.expect(422)?;
    assert_eq!(answer.text("/errors/0/pointer"), "?continue");
    Ok(())
}

#[tokio::test]
async fn lists_fit_into_the_smallest_function() -> Result<()> {
    let world = World::meet()?;
    let jobs = cluster::jobs(&world, NAMESPACE).await?;
    MADE.get_or_try_init(|| make_jobs(&jobs)).await?;
    let function = Function::start(&world, "status").await?;
    let shown = page_through(&world, &function, "").await?;
    ensure!(shown >= JOBS, "only {shown} jobs are shown");
    let small = function.peak_memory_bytes()?;

    let remove =
        async || jobs.delete_collection(&DeleteParams::default(), &ListParams::default().labels("size=large")).await;
    remove().await?;
    let made = stream::iter(0..LARGE_JOBS).map(|number| create(&jobs, large_job(number))).buffer_unordered(4);
    let made = made.try_collect::<Vec<()>>().await;
    let shown = match &made {
        Ok(_) => page_through(&world, &function, "&run_id=list-large").await,
        Err(_) => Ok(0),
    };
    remove().await?;
    made?;
    assert_eq!(shown?, LARGE_JOBS);
    let large = function.peak_memory_bytes()?;
    function.end().await?;
    eprintln!("{} MiB at most, {} MiB with large manifests", small / 1024 / 1024, large / 1024 / 1024);
    ensure!(large < MAX_MEMORY_BYTES, "{large} bytes of memory");
    Ok(())
}

/// All pages from a first one on, as its links lead.
async fn pages(world: &World, first: &str) -> Result<Vec<Vec<Value>>> {
    let (mut pages, mut next) = (Vec::new(), Some(first.to_owned()));
    while let Some(path) = next {
        ensure!(pages.len() <= JOBS, "{first} has no end");
        let page = world.twin.get(&path).await?.expect(200)?;
        next = page.body["links"]["next"].as_str().map(str::to_owned);
        ensure!(next.is_some() == page.body["continue"].is_string(), "link and token disagree: {}", page.body["links"]);
        pages.push(page.body["jobs"].as_array().context("no jobs")?.clone());
    }
    Ok(pages)
}

fn names(pages: &[Vec<Value>]) -> Vec<String> {
    pages.iter().flatten().map(|job| job["name"].as_str().unwrap_or_default().to_owned()).collect()
}

/// Page through the list with the largest pages in a function of our own; the number of jobs.
async fn page_through(world: &World, function: &Function, filter: &str) -> Result<usize> {
    let (mut count, mut query) = (0, format!("namespace={NAMESPACE}&limit=500{filter}"));
    loop {
        let event = Event {
            method: "GET".to_owned(),
            path: "/train".to_owned(),
            query: query.clone(),
            headers: vec![("x-trainer-token".to_owned(), world.twin.setting("TRAINER_API_TOKEN")?.to_owned())],
            body: EventBody::Absent,
        };
        let reply = function.invoke(&event.to_json()).await?;
        let page = reply.json()?;
        ensure!(reply.status == 200, "{}: {page}", reply.status);
        count += page["jobs"].as_array().context("no jobs")?.len();
        match page["links"]["next"].as_str().and_then(|next| next.split_once('?')) {
            Some((_, next)) => next.clone_into(&mut query),
            None => return Ok(count),
        }
    }
}

/// Create and delete jobs whose names lie between the others', until it is told to stop.
async fn churn(jobs: &Api<DynamicObject>, stop: &AtomicBool, changes: &AtomicUsize) -> Result<()> {
    let mut number = 0;
    let mut present = std::collections::VecDeque::new();
    while !stop.load(Ordering::Relaxed) {
        // Spread over the whole list: 7 and 2,000 have no common factor.
        let between = format!("{}-between-{}", name(number * 7 % JOBS), World::run_id("x"));
        create(jobs, job(&between, "meta", "list-between")).await?;
        present.push_back(between);
        number += 1;
        changes.fetch_add(1, Ordering::Relaxed);
        if present.len() > 5
            && let Some(oldest) = present.pop_front()
        {
            jobs.delete(&oldest, &DeleteParams::default()).await?;
            changes.fetch_add(1, Ordering::Relaxed);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let rest = ListParams::default().labels("trainer.deepfinery/run-id=list-between");
    jobs.delete_collection(&DeleteParams::default(), &rest).await?;
    Ok(())
}

/// Make those of the jobs that an earlier test has not made, and their states.
async fn make_jobs(jobs: &Api<DynamicObject>) -> Result<()> {
    let mut present = BTreeMap::new();
    for job in jobs.list(&ListParams::default()).await?.items {
        let state = job.data.pointer("/status/conditions/0/type").and_then(Value::as_str).map(str::to_owned);
        present.insert(job.metadata.name.unwrap_or_default(), state);
    }
    let present = &present;
    stream::iter((0..JOBS).filter(|number| present.get(&name(*number)).map(Option::as_deref) != Some(state(*number))))
        .map(|number| async move {
            let name = name(number);
            if !present.contains_key(&name) {
                let run = format!("list-run-{}", number % RUNS);
                create(jobs, job(&name, FRAMEWORKS[number % FRAMEWORKS.len()], &run)).await?;
            }
            if let Some(state) = state(number) {
                let condition = json!({"type": state, "status": "True", "reason": "Test", "message": "for the list"});
                let status = json!({"status": {"conditions": [condition]}});
                jobs.patch_status(&name, &PatchParams::default(), &Patch::Merge(&status)).await?;
            }
            Ok(())
        })
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await
}

/// Create a job; one that is there is as good.
async fn create(jobs: &Api<DynamicObject>, job: Value) -> Result<()> {
    match jobs.create(&PostParams::default(), &serde_json::from_value(job)?).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(error)) if error.code == 409 => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn name(number: usize) -> String {
    format!("list-{number:04}")
}

/// The state that the operator would have reported of a job.
fn state(number: usize) -> Option<&'static str> {
    match number % 50 {
        0 => Some("Running"),
        1 => Some("Failed"),
        2 => Some("Succeeded"),
        _ => None,
    }
}

fn job(name: &str, framework: &str, run_id: &str) -> Value {
    let container = json!({
        "name": "pytorch", "image": "stub", "command": ["torchrun"],
        "env": [{"name": "RUN_ID", "value": run_id}, {"name": "FRAMEWORK", "value": framework}],
    });
    let replica = |replicas: u32| json!({"replicas": replicas, "restartPolicy": "OnFailure", "template": {"spec": {"containers": [container]}}});
    json!({
        "apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob",
        "metadata": {
            "name": name, "namespace": NAMESPACE,
            "labels": {"trainer.deepfinery/framework": framework, "trainer.deepfinery/run-id": run_id},
        },
        "spec": {
            "runPolicy": {"managedBy": "kueue.x-k8s.io/multikueue"},
            "pytorchReplicaSpecs": {"Master": replica(1), "Worker": replica(3)},
        },
    })
}

/// A job with the largest manifest.
fn large_job(number: usize) -> Value {
    let mut job = job(&format!("large-{number:03}"), "meta", "list-large");
    job["metadata"]["labels"]["size"] = json!("large");
    for replica in ["Master", "Worker"] {
        let container = &mut job["spec"]["pytorchReplicaSpecs"][replica]["template"]["spec"]["containers"][0];
        container["env"] = json!([{"name": "LARGE", "value": "x".repeat(LARGE_BYTES)}]);
    }
    job
}
