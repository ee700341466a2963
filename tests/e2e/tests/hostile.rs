//! What nobody should send: 10,000 malformed bodies straight to the submit function, anything at all to the status
//! function, and some of both through the API. Each answer is a problem document of the 4xx range, nothing panics, and
//! memory stays small.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use e2e::{
    World,
    generate::{Chance, Deployment, text, words},
    malformed::{Malformed, malformed},
    runtime::{Event, EventBody, Function, Reply},
};
use proptest::{collection::vec, prelude::*};
use serde_json::{Value, json};
use training_core::api::problem::Code;

const MAX_BODY_BYTES: usize = 128 * 1024;
const BODIES: usize = 10_000;
const REQUESTS: usize = 4_000;
const BODIES_THROUGH_THE_API: usize = 200;
/// The smallest function that AWS offers.
const MAX_MEMORY_BYTES: u64 = 128 * 1024 * 1024;
/// Every hundredth answer or so is good by accident, when bodies are changed at random.
const MAX_GOOD_BY_ACCIDENT: usize = BODIES / 10;

#[tokio::test]
async fn no_body_breaks_the_submit_function() -> Result<()> {
    let (world, mut chance) = (World::meet()?, Chance::new()?);
    let function = Function::start(&world, "submit").await?;
    let bodies = malformed(&Deployment::of(&world)?);
    let token = world.twin.setting("TRAINER_API_TOKEN")?;
    let (mut refused, mut good, mut kinds) = (0, 0, BTreeMap::<_, usize>::new());
    while refused < BODIES {
        let body = chance.next(&bodies)?;
        let event = submission(&body, token, refused % 3);
        let reply = function.invoke(&event.to_json()).await;
        let check = if event.method == "HEAD" { check_head } else { check };
        let answer = reply.and_then(|reply| Ok((reply.status, check(&reply)?)));
        match answer.with_context(|| format!("SEED={}, after {refused} refused: {}", chance.seed, shown(&body)))? {
            (200, answer) if body.may_be_good && answer["dry_run"] == true => good += 1,
            (200..300, answer) => {
                bail!("SEED={}: a malformed body was accepted: {} {answer}", chance.seed, shown(&body))
            }
            (_, answer) => {
                refused += 1;
                *kinds.entry((body.kind, answer["code"].as_str().unwrap_or_default().to_owned())).or_default() += 1;
            }
        }
    }
    let memory = function.peak_memory_bytes()?;
    check_log(&function.end().await?, token)?;
    eprintln!("{refused} refused, {good} good by accident, {} MiB at most, SEED={}", memory / 1024 / 1024, chance.seed);
    for ((kind, code), count) in kinds {
        eprintln!("  {count:5} {kind}: {code}");
    }
    ensure!(good < MAX_GOOD_BY_ACCIDENT, "{good} bodies were good by accident");
    ensure!(memory < MAX_MEMORY_BYTES, "{memory} bytes of memory");
    Ok(())
}

#[tokio::test]
async fn no_request_breaks_the_status_function() -> Result<()> {
    let (world, mut chance) = (World::meet()?, Chance::new()?);
    let function = Function::start(&world, "status").await?;
    let token = world.twin.setting("TRAINER_API_TOKEN")?;
    let requests = requests(token);
    let mut codes = BTreeMap::<_, usize>::new();
    for _ in 0..REQUESTS {
        let event = chance.next(&requests)?;
        let reply = function.invoke(&event.to_json()).await;
        let check = if event.method == "HEAD" { check_head } else { check };
        let answer = reply.and_then(|reply| Ok((reply.status, check(&reply)?)));
        let (status, answer) = answer.with_context(|| format!("SEED={}: {event:?}", chance.seed))?;
        *codes.entry((status, answer["code"].as_str().unwrap_or_default().to_owned())).or_default() += 1;
    }
    let memory = function.peak_memory_bytes()?;
    check_log(&function.end().await?, token)?;
    eprintln!("{} MiB at most, SEED={}: {codes:?}", memory / 1024 / 1024, chance.seed);
    ensure!(memory < MAX_MEMORY_BYTES, "{memory} bytes of memory");
    // Otherwise nothing behind the token check was reached.
    for expected in [(200, ""), (404, "job_not_found"), (404, "route_not_found"), (422, "invalid_request")] {
        ensure!(codes.contains_key(&(expected.0, expected.1.to_owned())), "no {expected:?} among {codes:?}");
    }
    Ok(())
}

#[tokio::test]
async fn no_body_breaks_the_api() -> Result<()> {
    let (world, mut chance) = (World::meet()?, Chance::new()?);
    let bodies = malformed(&Deployment::of(&world)?);
    let (url, token) = (world.twin.setting("API_URL")?, world.twin.setting("TRAINER_API_TOKEN")?);
    let http = reqwest::Client::new();
    let (mut refused, mut good) = (0, 0);
    while refused < BODIES_THROUGH_THE_API {
        let body = chance.next(&bodies)?;
        let mut request = http.post(format!("{url}/train?dry_run=true")).header("X-TRAINER-TOKEN", token);
        if let Some(content_type) = body.content_type {
            request = request.header("Content-Type", content_type);
        }
        let context = || format!("SEED={}, after {refused} refused: {}", chance.seed, shown(&body));
        let response = request.body(body.bytes.clone()).send().await.with_context(context)?;
        let status = response.status().as_u16();
        let headers = response.headers().clone();
        let media_type = headers.get("content-type").and_then(|value| value.to_str().ok()).unwrap_or_default();
        let answer: Value = response.json().await.with_context(context)?;
        if status == 200 && body.may_be_good && answer["dry_run"] == true {
            good += 1;
            continue;
        }
        check_problem(status, media_type, &answer, None).with_context(context)?;
        refused += 1;
    }
    eprintln!("{refused} refused, {good} good by accident, SEED={}", chance.seed);
    Ok(())
}

#[tokio::test]
async fn the_longest_refusal_can_be_sent() -> Result<()> {
    let world = World::meet()?;
    let function = Function::start(&world, "submit").await?;
    let token = world.twin.setting("TRAINER_API_TOKEN")?;
    // As many broken rules as fit into a body, each with its sentence.
    for field in ["", "labels", "extra_args", "env", "env_from_secrets", "annotations"] {
        let entries: Vec<_> = (0..17_000).map(|entry| format!(r#""{}":1"#, shortest_name(entry))).collect();
        let entries = entries.get(..(MAX_BODY_BYTES - 30) / r#""abc":1,"#.len()).context("too few")?.join(",");
        let bytes = if field.is_empty() { format!("{{{entries}}}") } else { format!(r#"{{"{field}":{{{entries}}}}}"#) };
        let body = Malformed { kind: "many mistakes", bytes: bytes.into(), content_type: None, may_be_good: false };
        let reply =
            function.invoke(&submission(&body, token, 0).to_json()).await.with_context(|| format!("in `{field}`"))?;
        let answer = check(&reply).with_context(|| format!("in `{field}`"))?;
        assert_eq!((reply.status, &answer["code"]), (422, &json!("invalid_request")), "{field}");
        eprintln!("{} bytes of refusal for `{field}`", reply.body.len());
    }
    let memory = function.peak_memory_bytes()?;
    function.end().await?;
    ensure!(memory < MAX_MEMORY_BYTES, "{memory} bytes of memory");
    Ok(())
}

fn shortest_name(number: usize) -> String {
    const DIGITS: &[u8; 26] = b"abcdefghijklmnopqrstuvwxyz";
    let digit = |of: usize| char::from(DIGITS[of % 26]);
    [digit(number / 26 / 26), digit(number / 26), digit(number)].iter().collect()
}

/// A body on its way to be a job, but for the dry run.
fn submission(body: &Malformed, token: &str, way: usize) -> Event {
    let mut headers = vec![("x-trainer-token".to_owned(), token.to_owned())];
    headers.extend(body.content_type.map(|content_type| ("content-type".to_owned(), content_type.to_owned())));
    let body = match (String::from_utf8(body.bytes.clone()), way) {
        (Ok(text), 0) => EventBody::Text(text),
        // The characters of JSON that are not those of base64 make it none, unless there are none.
        (Ok(text), 1) if text.contains(['{', '[', '"', ' ']) => EventBody::SaidToBeBase64(text),
        (Ok(text), _) => EventBody::Base64(text.into_bytes()),
        (Err(error), _) => EventBody::Base64(error.into_bytes()),
    };
    Event { method: "POST".to_owned(), path: "/train".to_owned(), query: "dry_run=true".to_owned(), headers, body }
}

/// Requests of any kind for the status function; some are good.
fn requests(token: &str) -> BoxedStrategy<Event> {
    let method = prop_oneof![
        6 => Just("GET".to_owned()),
        2 => words(&["POST", "DELETE", "PUT", "PATCH", "HEAD", "OPTIONS", "TRACE", "PROPFIND"]),
        1 => text("[A-Z!#$%&'*+.^_`|~-]{1,20}"),
    ];
    let own = token.to_owned();
    let token = prop_oneof![
        8 => Just(Some(own.clone())),
        1 => Just(None),
        1 => text("[ -~]{0,100}").prop_map(Some),
        1 => Just(Some(format!("{own}x"))),
    ];
    let body = prop_oneof![
        6 => Just(EventBody::Absent),
        1 => any::<String>().prop_map(EventBody::Text),
        1 => vec(any::<u8>(), 0..100).prop_map(EventBody::Base64),
        1 => any::<String>().prop_map(EventBody::SaidToBeBase64),
    ];
    (method, paths(), queries(), vec(headers(), 0..3), token, body)
        .prop_map(|(method, path, query, mut headers, token, body)| {
            headers.extend(token.map(|token| ("x-trainer-token".to_owned(), token)));
            Event { method, path, query, headers, body }
        })
        .boxed()
}

fn paths() -> BoxedStrategy<String> {
    let name = prop_oneof![
        text("[a-z]([a-z0-9-]{0,60}[a-z0-9])?"),
        text("[!-~]{1,40}").prop_map(|name| name.replace(['/', '?', '#'], "%2F")).boxed(),
        text("(%[0-9a-fA-F]{2}){1,20}"),
        any::<String>().prop_map(|name| name.replace(['/', '?', '#'], "")).boxed(),
        words(&["..", ".", "%2e%2e", "%00", "%0a", "a%2fb", "%", "%zz", "a b", "{name}"]),
        text("[a-z]{300,8000}"),
    ];
    let tail = words(&[
        "",
        "",
        "/checkpoints",
        "/checkpoints/latest",
        "/checkpoints/best",
        "/checkpoints/5",
        "/checkpoints/-1",
        "/logs",
        "/events",
        "/suspend",
        "/",
        "/checkpoints/latest/x",
        "/%2e%2e/..",
    ]);
    let known = [
        "/train",
        "/settings/hf",
        "/settings/%00",
        "/healthz",
        "/readyz",
        "/openapi.json",
        "/",
        "//",
        "/train/",
        "//train",
        "/TRAIN",
        "/healthz/",
    ];
    prop_oneof![
        4 => (name, tail).prop_map(|(name, tail)| format!("/train/{name}{tail}")),
        2 => words(&known),
        1 => any::<String>().prop_map(|path| format!("/{path}")),
        1 => text("(/[!-~]{0,10}){1,10}"),
    ]
    .boxed()
}

fn queries() -> BoxedStrategy<String> {
    let parameter = words(&[
        "limit",
        "continue",
        "framework",
        "run_id",
        "status",
        "namespace",
        "before",
        "metric",
        "mode",
        "replica",
        "rank",
        "attempt",
        "tail",
        "since",
        "dry_run",
        "",
    ]);
    let value = prop_oneof![
        4 => words(&[
            "1", "500", "501", "0", "-1", "hf", "nemo", "running", "training-list", "kube-system", "min", "loss", "master",
            "worker-0", "2026-11-24T03:00:00Z", "99999999999999999999", "", "%", "%ff", "%00", "+", "a%20b", "a=b",
        ]),
        1 => text("[!-~]{0,40}"),
        1 => any::<String>(),
        1 => text("[A-Za-z0-9]{4000,6000}"),
    ];
    let parameters = vec((parameter, value), 1..4).prop_map(|parameters| {
        parameters.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&")
    });
    prop_oneof![
        2 => Just(String::new()),
        4 => parameters,
        1 => any::<String>(),
        1 => text("[ -~]{0,100}"),
    ]
    .boxed()
}

fn headers() -> BoxedStrategy<(String, String)> {
    let known = ["host", "x-forwarded-proto", "x-forwarded-for", "x-forwarded-port", "content-type", "accept", "range"];
    let value = prop_oneof![
        text("[ -~]{0,60}"),
        words(&["", "a b", "https", "[::1", "é", ":", "127.0.0.1:99999999", "a@b/c?d#e"])
    ];
    prop_oneof![(words(&known), value), (text("[a-z0-9-]{1,30}"), text("[ -~]{0,100}"))].boxed()
}

/// The answer, which is a good one or a whole problem document.
fn check(reply: &Reply) -> Result<Value> {
    let media_type = reply.headers.get("content-type").map(String::as_str).unwrap_or_default();
    if (200..300).contains(&reply.status) {
        ensure!(media_type == "application/json", "{}: {media_type}", reply.status);
        return reply.json();
    }
    let answer = reply.json().with_context(|| format!("{}: no JSON", reply.status))?;
    check_problem(reply.status, media_type, &answer, Some(&reply.request_id))?;
    Ok(answer)
}

/// The answer to HEAD, which has the length of the body that GET would get.
fn check_head(reply: &Reply) -> Result<Value> {
    ensure!((200..500).contains(&reply.status) && reply.body.is_empty(), "{}: {:?}", reply.status, reply.body);
    let length = reply.headers.get("content-length").and_then(|length| length.parse::<usize>().ok());
    ensure!(length.is_some_and(|length| length > 0), "{}: {length:?}", reply.status);
    Ok(Value::Null)
}

/// RFC 9457 as the contract has it: all members, of the right kind, and true.
fn check_problem(status: u16, media_type: &str, answer: &Value, request_id: Option<&str>) -> Result<()> {
    let text = |member: &str| answer[member].as_str().unwrap_or_default();
    ensure!((400..500).contains(&status), "{status} {answer}");
    ensure!(media_type == "application/problem+json", "{media_type}: {answer}");
    let members: Vec<_> = answer.as_object().context("no object")?.keys().map(String::as_str).collect();
    ensure!(members == ["type", "title", "status", "detail", "code", "request_id", "errors"], "{members:?}");
    let code = Code::ALL.into_iter().find(|code| code.as_str() == text("code"));
    ensure!(code.is_some_and(|code| code.status() == status) && answer["status"] == status, "{status} {answer}");
    ensure!(text("type").ends_with(&format!(":{}", text("code"))), "{answer}");
    ensure!(!text("title").is_empty() && !text("detail").is_empty(), "{answer}");
    ensure!(request_id.map_or(!text("request_id").is_empty(), |id| id == text("request_id")), "{answer}");
    for error in answer["errors"].as_array().context("no errors")? {
        let members: Vec<_> = error.as_object().context("no object")?.keys().map(String::as_str).collect();
        ensure!(members == ["pointer", "code", "detail"], "{members:?}");
        let pointer = error["pointer"].as_str().context("no pointer")?;
        ensure!(pointer.is_empty() || pointer.starts_with(['/', '?']), "{pointer}");
        ensure!(error["code"].as_str().is_some_and(|code| !code.is_empty()), "{error}");
        ensure!(error["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{error}");
    }
    let is_invalid = text("code") == Code::InvalidRequest.as_str();
    ensure!(!is_invalid || answer["errors"] != json!([]), "no broken rule is named: {answer}");
    Ok(())
}

/// What the function has printed: no panic, and not the token.
fn check_log(log: &str, token: &str) -> Result<()> {
    ensure!(!log.is_empty(), "nothing was logged");
    let panic = log.lines().find(|line| line.contains("panicked"));
    ensure!(panic.is_none(), "{panic:?}");
    ensure!(!log.contains(token), "the token stands in the log");
    Ok(())
}

/// A body for a person who has to find the mistake.
fn shown(body: &Malformed) -> String {
    let text = String::from_utf8_lossy(&body.bytes);
    let beginning: String = text.chars().take(600).collect();
    format!("{} ({} bytes, {:?}): {beginning}", body.kind, body.bytes.len(), body.content_type)
}
