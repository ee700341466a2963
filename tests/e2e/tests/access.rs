//! Who may call: scopes, namespaces, and rotation while requests come in. Alone, because it changes the deployment's token
//! secret, which it puts back.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use aws_sdk_secretsmanager::config::{BehaviorVersion, Credentials, Region};
use e2e::{
    World,
    runtime::{Event, EventBody, Function, environment, faketime},
};
use reqwest::Method;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::time::sleep;
use twin::client::Twin;

/// A token that was taken out of the secret is dead after this time.
const DEAD_WITHIN: Duration = Duration::from_mins(1);
/// Requests a second while tokens are rotated.
const RATE: u64 = 50;

/// The deployment's token secret.
struct Secret {
    client: aws_sdk_secretsmanager::Client,
    id: String,
    original: String,
}

// === impl Secret ===

impl Secret {
    async fn of(world: &World) -> Result<Self> {
        let twin = &world.twin;
        let (key, secret) = (twin.setting("AWS_ACCESS_KEY_ID")?, twin.setting("AWS_SECRET_ACCESS_KEY")?);
        let config = aws_sdk_secretsmanager::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(twin.setting("AWS_REGION")?.to_owned()))
            .endpoint_url(twin.setting("AWS_ENDPOINT_URL")?)
            .credentials_provider(Credentials::new(key, secret, None, None, "twin"))
            .build();
        let client = aws_sdk_secretsmanager::Client::from_conf(config);
        let token = twin.setting("TRAINER_API_TOKEN")?;
        for listed in client.list_secrets().send().await?.secret_list.unwrap_or_default() {
            let id = listed.arn.context("a secret has an ARN")?;
            let text = client.get_secret_value().secret_id(&id).send().await?.secret_string.unwrap_or_default();
            if text.contains(token) {
                return Ok(Self { client, id, original: text });
            }
        }
        anyhow::bail!("no secret holds the token of the deployment")
    }

    async fn put(&self, text: &str) -> Result<()> {
        self.client.put_secret_value().secret_id(&self.id).secret_string(text).send().await?;
        Ok(())
    }

    /// Replace the content by this list, do something, and put the first content back whatever happened.
    async fn with<T>(&self, entries: &[&Value], work: impl Future<Output = Result<T>>) -> Result<T> {
        self.put(&json!({"tokens": entries}).to_string()).await?;
        let done = work.await;
        self.put(&self.original).await?;
        done
    }
}

/// A token and its entry for the list.
fn token(id: &str, restrictions: &Value) -> (String, Value) {
    let token = format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple());
    (token.clone(), entry(id, &token, restrictions))
}

fn entry(id: &str, token: &str, restrictions: &Value) -> Value {
    let mut entry = json!({"id": id, "sha256": format!("{:x}", Sha256::digest(token)), "scopes": ["submit", "read"]});
    for (field, value) in restrictions.as_object().into_iter().flatten() {
        entry[field] = value.clone();
    }
    entry
}

#[tokio::test]
async fn a_token_may_do_what_its_entry_says() -> Result<()> {
    let world = World::meet()?;
    let twin = &world.twin;
    let secret = Secret::of(&world).await?;
    let deployment = entry("deployment", twin.setting("TRAINER_API_TOKEN")?, &json!({}));
    let (reader, reader_entry) = token("reader", &json!({"scopes": ["read"]}));
    let (writer, writer_entry) = token("writer", &json!({"scopes": ["submit"], "namespaces": ["training"]}));
    let (elsewhere, elsewhere_entry) = token("elsewhere", &json!({"namespaces": ["training-two"]}));
    let (expired, expired_entry) = token("expired", &json!({"expires_at": "2026-01-01T00:00:00Z"}));
    let request = world.stub_request(&World::run_id("scoped"), json!({"seconds": 600}))?;
    let body = Some(request.to_string());
    let name = format!("hf-{}", request["run_id"].as_str().unwrap_or_default());
    let mut resumed = request.clone();
    resumed["resume_from_checkpoint"] = json!(true);
    let resumed = Some(resumed.to_string());
    let (job, two) = (format!("/train/{name}"), format!("/train/{name}?namespace=training-two"));

    let entries = [&deployment, &reader_entry, &writer_entry, &elsewhere_entry, &expired_entry];
    let judged = secret.with(&entries, async {
        for (method, path, token, body, status, code) in [
            (Method::POST, "/train", &reader, body.clone(), 403, "scope_not_allowed"),
            (Method::POST, "/train?dry_run=true", &reader, body.clone(), 403, "scope_not_allowed"),
            (Method::POST, "/train", &expired, body.clone(), 401, "invalid_token"),
            (Method::POST, "/train", &elsewhere, body.clone(), 403, "namespace_not_allowed"),
            (Method::POST, "/train", &writer, body.clone(), 201, ""),
            (Method::GET, job.as_str(), &writer, None, 403, "scope_not_allowed"),
            (Method::GET, job.as_str(), &reader, None, 200, ""),
            (Method::GET, "/train", &reader, None, 200, ""),
            (Method::GET, "/train", &elsewhere, None, 403, "namespace_not_allowed"),
            (Method::GET, "/train?namespace=training-two", &elsewhere, None, 200, ""),
            (Method::GET, job.as_str(), &elsewhere, None, 404, "job_not_found"),
            (Method::DELETE, job.as_str(), &elsewhere, None, 404, "job_not_found"),
            (Method::DELETE, job.as_str(), &reader, None, 403, "scope_not_allowed"),
            (Method::GET, two.as_str(), &elsewhere, None, 404, "job_not_found"),
            (Method::GET, job.as_str(), &expired, None, 401, "invalid_token"),
            // The run is another namespace's, and so it stays when its job is gone.
            (Method::POST, "/train?namespace=training-two", &elsewhere, body.clone(), 409, "run_active"),
            (Method::DELETE, job.as_str(), &writer, None, 202, ""),
            (Method::POST, "/train?namespace=training-two", &elsewhere, body.clone(), 409, "run_active"),
            (
                Method::POST,
                "/train?namespace=training-two&dry_run=true",
                &elsewhere,
                resumed.clone(),
                409,
                "run_active",
            ),
            (Method::POST, "/train?namespace=training-two&restart=true", &elsewhere, body.clone(), 409, "run_active"),
        ] {
            let answer = twin.send(method.clone(), path, Some(token), body).await?;
            let case = format!("{method} {path}: {}", answer.body);
            ensure!((answer.status, answer.text("/code")) == (status, code), "expected {status} {code}: {case}");
            ensure!(code != "run_active" || !answer.text("/detail").contains(&name), "names the job: {case}");
            ensure!(status != 201 || answer.text("/submitted_by") == "writer", "{case}");
        }
        for part in
            ["", "/logs", "/events", "/checkpoints", "/checkpoints/latest", "/checkpoints/best", "/checkpoints/5"]
        {
            refuses(
                twin,
                &Method::GET,
                &format!("{job}{part}"),
                [(&writer, "scope_not_allowed"), (&elsewhere, "job_not_found")],
            )
            .await?;
        }
        for (method, part) in [(Method::POST, "/suspend"), (Method::POST, "/resume"), (Method::DELETE, "")] {
            refuses(
                twin,
                &method,
                &format!("{job}{part}"),
                [(&reader, "scope_not_allowed"), (&elsewhere, "job_not_found")],
            )
            .await?;
        }
        Ok(())
    });
    judged.await?;
    Ok(())
}

/// Whether a route refuses these tokens, each for its reason.
async fn refuses(twin: &Twin, method: &Method, path: &str, tokens: [(&String, &str); 2]) -> Result<()> {
    for (token, code) in tokens {
        let answer = twin.send(method.clone(), path, Some(token), None).await?;
        ensure!(answer.text("/code") == code, "{method} {path}: expected {code}: {}", answer.body);
    }
    Ok(())
}

#[tokio::test]
async fn tokens_are_rotated_under_load_without_a_wrongful_refusal() -> Result<()> {
    let world = Arc::new(World::meet()?);
    let secret = Secret::of(&world).await?;
    let deployment = entry("deployment", world.twin.setting("TRAINER_API_TOKEN")?, &json!({}));
    let (old, old_entry) = token("old", &json!({}));
    let (new, new_entry) = token("new", &json!({}));

    // The callers: each uses the token that it was told last.
    let (used, stopped) = (Arc::new(Mutex::new(old.clone())), Arc::new(AtomicBool::new(false)));
    let callers = {
        let (world, used, stopped) = (Arc::clone(&world), Arc::clone(&used), Arc::clone(&stopped));
        tokio::spawn(async move {
            let (mut requests, mut refused) = (Vec::new(), Vec::new());
            while !stopped.load(Ordering::Relaxed) {
                let (world, token) = (Arc::clone(&world), used.lock().expect("no poison").clone());
                requests.push(tokio::spawn(async move {
                    world.twin.send(Method::GET, "/train/no-such-job", Some(&token), None).await
                }));
                sleep(Duration::from_millis(1_000 / RATE)).await;
            }
            let sent = requests.len();
            for request in requests {
                let answer = request.await??;
                if answer.status != 404 {
                    refused.push(answer.body);
                }
            }
            anyhow::Ok((sent, refused))
        })
    };
    let rotated = async {
        secret.put(&json!({"tokens": [deployment, old_entry]}).to_string()).await?;
        *used.lock().expect("no poison") = old.clone();
        sleep(Duration::from_secs(3)).await;
        // The new entry is added, and the callers change over at once.
        secret.put(&json!({"tokens": [deployment, old_entry, new_entry]}).to_string()).await?;
        *used.lock().expect("no poison") = new.clone();
        sleep(Duration::from_secs(5)).await;
        secret.put(&json!({"tokens": [deployment, new_entry]}).to_string()).await?;
        let removed = Instant::now();
        while world.twin.send(Method::GET, "/train/no-such-job", Some(&old), None).await?.status != 401 {
            ensure!(removed.elapsed() < DEAD_WITHIN, "the removed token lives");
            sleep(Duration::from_millis(500)).await;
        }
        anyhow::Ok(removed.elapsed())
    };
    // Before the list is in place, the old token of the list is unknown: the callers begin with it.
    secret.put(&json!({"tokens": [deployment, old_entry]}).to_string()).await?;
    let rotated = rotated.await;
    stopped.store(true, Ordering::Relaxed);
    let called = callers.await?;
    secret.put(&secret.original).await?;
    let (dead_after, (sent, refused)) = (rotated?, called?);
    eprintln!(
        "{sent} requests, {} refused; the removed token was dead after {:.1} s",
        refused.len(),
        dead_after.as_secs_f64()
    );
    ensure!(sent > 300, "only {sent} requests");
    ensure!(refused.is_empty(), "{} of {sent} refused: {:?}", refused.len(), refused.first());
    Ok(())
}

/// Lambda freezes an environment between two requests, and the clock that only counts stands still; what the secret said
/// before must not live on for that.
#[tokio::test]
async fn a_removed_token_is_dead_after_a_freeze() -> Result<()> {
    let world = World::meet()?;
    let secret = Secret::of(&world).await?;
    let deployment = entry("deployment", world.twin.setting("TRAINER_API_TOKEN")?, &json!({}));
    let (token, listed) = token("frozen", &json!({}));
    let clock = tempfile::NamedTempFile::new()?;
    std::fs::write(clock.path(), "+0")?;
    let mut environment = environment(&world, "status").await?;
    environment.extend(faketime(&world).await?);
    environment.insert("FAKETIME_TIMESTAMP_FILE".to_owned(), clock.path().display().to_string());
    let event = Event {
        method: "GET".to_owned(),
        path: "/train/no-such-job".to_owned(),
        query: String::new(),
        headers: vec![("x-trainer-token".to_owned(), token)],
        body: EventBody::Absent,
    };
    let function = Function::spawn(&Function::bootstrap(&world, "status")?, environment).await?;
    let ask = async || anyhow::Ok(function.invoke(&event.to_json()).await?.status);
    let entries = [&deployment, &listed];
    let asked = secret.with(&entries, async {
        ensure!(ask().await? == 404, "the token is not known");
        secret.put(&json!({"tokens": [deployment]}).to_string()).await?;
        ensure!(ask().await? == 404, "the secret is not remembered");
        std::fs::write(clock.path(), "+2m")?;
        ask().await
    });
    assert_eq!(Box::pin(asked).await?, 401);
    Ok(())
}
