//! The fault table: what a caller is told, how soon, what the log says and when it is over, for everything that can go
//! wrong behind the functions. Alone, because every other test needs what fails here.
//!
//! Real: the webhook, the namespaces, the Roles, the quota, the secret, connections that are refused or cut, late answers,
//! certificates, and wrong clocks (of a submit function of our own, called without the API before it). The proxies' own
//! answers stand for a cluster without the `PyTorchJob` resource, for an overloaded or broken API server, for tokens and
//! credentials that are refused, and for throttling by AWS. `ONLY=<part of a fault's name>` plays fewer rows.

mod cases;

use std::{
    fmt::Write as _,
    io::Write as _,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use aws_sdk_secretsmanager::config::{BehaviorVersion, Credentials, Region};
use cases::{Ask, CASES, Case, POLICY, POLICY_SAYS, Trouble};
use e2e::{
    World, cluster, logs,
    runtime::{Event, EventBody, Function, environment, faketime},
};
use kube::api::ListParams;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::sleep;
use twin::client::Answer;

/// Where nobody else has jobs.
const NAMESPACE: &str = "training-faults";
/// API Gateway gives up after 30 s.
const ANSWERED_WITHIN: Duration = Duration::from_secs(28);
const RECOVERED_WITHIN: Duration = Duration::from_secs(10);
const GONE_WITHIN: Duration = Duration::from_secs(40);
const POLL: Duration = Duration::from_millis(200);

/// A row of the table.
struct Row {
    fault: &'static str,
    request: String,
    answer: String,
    answered: Duration,
    log: String,
    recovered: Option<Duration>,
    /// What is wrong with it.
    complaints: Vec<String>,
}

/// The twin, with what can be broken in it.
struct Stage {
    world: World,
    secrets: aws_sdk_secretsmanager::Client,
    secret: String,
    /// What the secret says when it is whole.
    secret_text: String,
    /// A job to read.
    job: String,
}

#[tokio::test]
async fn every_fault_has_its_answer_and_an_end() -> Result<()> {
    let stage = Stage::set().await?;
    let only = std::env::var("ONLY").unwrap_or_default();
    let mut rows = Vec::new();
    for case in CASES.iter().filter(|case| case.fault.contains(&only)) {
        rows.push(stage.play(case).await);
    }
    ensure!(!rows.is_empty(), "no fault has `{only}` in its name");
    // Past the test harness, which shows nothing of a test that passes.
    writeln!(std::io::stderr(), "\n{}", table(&rows))?;
    let wrong: Vec<String> = rows
        .iter()
        .flat_map(|row| {
            row.complaints.iter().map(move |complaint| format!("{}, {}: {complaint}", row.fault, row.request))
        })
        .collect();
    ensure!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    Ok(())
}

// === impl Stage ===

impl Stage {
    async fn set() -> Result<Self> {
        let world = World::meet()?;
        world.tell(&["fault", "clear"]).await?;
        let setting = |name| world.twin.setting(name);
        let config = aws_sdk_secretsmanager::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(setting("AWS_REGION")?.to_owned()))
            .endpoint_url(setting("AWS_ENDPOINT_URL")?)
            .credentials_provider(Credentials::new(
                setting("AWS_ACCESS_KEY_ID")?,
                setting("AWS_SECRET_ACCESS_KEY")?,
                None,
                None,
                "e2e",
            ))
            .build();
        let secrets = aws_sdk_secretsmanager::Client::from_conf(config);
        let listed =
            secrets.list_secrets().include_planned_deletion(true).send().await?.secret_list.unwrap_or_default();
        let of_stack = |name: &str| name.starts_with("training-Token");
        let secret = listed.into_iter().find(|secret| secret.name.as_deref().is_some_and(of_stack));
        let secret = secret.and_then(|secret| secret.arn).context("the stack has no token secret")?;
        let secret_text = json!({"token": setting("TRAINER_API_TOKEN")?}).to_string();
        let mut stage = Self { world, secrets, secret, secret_text, job: String::new() };
        // An earlier run may have been killed in the middle.
        stage.mend().await?;
        let request = stage.world.stub_request(&World::run_id("faults"), json!({"seconds": 1}))?;
        stage.job = stage.world.submit(&request).await?;
        Ok(stage)
    }

    /// One row. Whatever goes wrong in it, the fault ends.
    async fn play(&self, case: &Case) -> Row {
        let run_id = World::run_id("fault");
        let mut row = Row {
            fault: case.fault,
            request: String::new(),
            answer: String::new(),
            answered: Duration::ZERO,
            log: String::new(),
            recovered: None,
            complaints: Vec::new(),
        };
        let begun = async {
            let replaced = if case.ask == Ask::Restart { self.finished(&run_id).await? } else { String::new() };
            self.begin(&case.trouble).await.map(|()| replaced)
        };
        let result = match begun.await {
            Ok(replaced) => self.ask_under_fault(case, &run_id, &replaced, &mut row).await,
            Err(error) => Err(error.context("the fault did not begin")),
        };
        let ended = self.end(&case.trouble).await;
        for error in [result.err(), ended.err()].into_iter().flatten() {
            row.complaints.push(format!("{error:#}"));
        }
        if case.ask != Ask::SubmitWhereNothingIs
            && let Err(error) = self.recover(case, &run_id, &mut row).await
        {
            row.complaints.push(format!("{error:#}"));
        }
        row
    }

    /// `replaced` is the submission that a restart replaces.
    async fn ask_under_fault(&self, case: &Case, run_id: &str, replaced: &str, row: &mut Row) -> Result<()> {
        if case.ask == Ask::SubmitAfterStranger {
            self.ask(Ask::Stranger, run_id).await?;
        }
        let asked = Instant::now();
        let (request, answer, own_log) = match case.trouble {
            Trouble::Clock(offset) => self.ask_new_function(Some(offset), run_id).await?,
            Trouble::ToldNew(_) => self.ask_new_function(None, run_id).await?,
            _ => {
                let (request, answer) = self.ask(case.ask, run_id).await?;
                (request, answer, None)
            }
        };
        row.answered = asked.elapsed();
        row.request = request;
        let outcome = outcome(&answer);
        row.answer = format!("{} {}", answer.status, answer.text("/code"));
        ensure!(case.expected.contains(&outcome.as_str()), "answered {} {}", answer.status, answer.text_body);
        ensure!(row.answered <= ANSWERED_WITHIN, "answered after {:?}", row.answered);
        // A fault that is counted goes when it has happened as often.
        let left = self.world.told(&["status"]).await?;
        ensure!(!left.contains(r#""times""#), "it has not gone wrong: {left}");
        ensure!(answer.text_body.contains(case.says), "does not say `{}`: {}", case.says, answer.text_body);
        if answer.status < 400 {
            ensure!(answer.text("/submission") != replaced || replaced.is_empty(), "nothing was replaced");
        }
        // Readiness has no problems, but states.
        if answer.status < 400 || case.ask == Ask::Ready {
            row.log = "-".into();
            return Ok(());
        }
        ensure!(answer.content_type == "application/problem+json", "answered as {}", answer.content_type);
        let again_later = matches!(answer.status, 429 | 503 | 504);
        let retry_after = answer.header("retry-after");
        ensure!(!again_later || retry_after.is_some() != case.is_final, "Retry-After is {retry_after:?}");
        ensure!(case.retry_after.is_none() || retry_after == case.retry_after, "Retry-After is {retry_after:?}");
        let function = if case.ask == Ask::Read { "status" } else { "submit" };
        let lines = match own_log {
            Some(log) => log.lines().filter(|line| logs::tells_of_failure(line)).map(str::to_owned).collect(),
            None => logs::failures(&self.world, function, answer.text("/request_id")).await?,
        };
        if answer.status < 500 {
            ensure!(lines.is_empty(), "a refusal is logged as a failure: {lines:?}");
            row.log = "refused".into();
            return Ok(());
        }
        let [line] = lines.as_slice() else { anyhow::bail!("{} failure lines: {lines:?}", lines.len()) };
        logs::cause(line).clone_into(&mut row.log);
        ensure!(!row.log.is_empty(), "no cause in the log: {line}");
        Ok(())
    }

    /// The same request again, until it is answered as if nothing had been.
    async fn recover(&self, case: &Case, run_id: &str, row: &mut Row) -> Result<()> {
        let ended = Instant::now();
        loop {
            // A restart sent again would find its own job running.
            let ask = if case.ask == Ask::Restart { Ask::Submit } else { case.ask };
            let (_, answer) = self.ask(ask, run_id).await?;
            let is_good = match ask {
                Ask::Stranger => answer.text("/code") == "invalid_token",
                Ask::Submit
                | Ask::SubmitAfterStranger
                | Ask::SubmitWhereNothingIs
                | Ask::DryRun
                | Ask::Restart
                | Ask::Read
                | Ask::Ready => answer.status < 300,
            };
            if is_good {
                break;
            }
            ensure!(ended.elapsed() < RECOVERED_WITHIN, "then still {} {}", answer.status, answer.text_body);
            sleep(POLL).await;
        }
        row.recovered = Some(ended.elapsed());
        if matches!(case.ask, Ask::Submit | Ask::SubmitAfterStranger | Ask::Restart) {
            let jobs = cluster::jobs(&self.world, NAMESPACE).await?;
            let selector = format!("trainer.deepfinery/run-id={run_id}");
            let count = jobs.list(&ListParams::default().labels(&selector)).await?.items.len();
            ensure!(count == 1, "{count} jobs of the run");
        }
        Ok(())
    }

    async fn ask(&self, ask: Ask, run_id: &str) -> Result<(String, Answer)> {
        let twin = &self.world.twin;
        let stranger = format!("stranger-{}", uuid::Uuid::new_v4().simple());
        let (namespace, token) = match ask {
            Ask::Read => {
                return Ok(("GET /train/{name}".into(), twin.get(&format!("/train/{}", self.job)).await?));
            }
            Ask::Ready => return Ok(("GET /readyz".into(), twin.get("/readyz").await?)),
            Ask::Submit | Ask::SubmitAfterStranger | Ask::DryRun | Ask::Restart => {
                (NAMESPACE, twin.setting("TRAINER_API_TOKEN")?)
            }
            Ask::SubmitWhereNothingIs => ("training-absent", twin.setting("TRAINER_API_TOKEN")?),
            Ask::Stranger => (NAMESPACE, stranger.as_str()),
        };
        let body = self.world.stub_request(run_id, json!({"seconds": 1}))?.to_string();
        let (how, who) = match ask {
            Ask::DryRun => ("&dry_run=true", ", dry run"),
            Ask::Restart => ("&restart=true", ", restart"),
            Ask::Stranger => ("", ", unknown token"),
            _ => ("", ""),
        };
        let path = format!("/train?namespace={namespace}{how}");
        Ok((format!("POST /train{who}"), twin.send(Method::POST, &path, Some(token), Some(body)).await?))
    }

    /// A finished job of a run; its submission.
    async fn finished(&self, run_id: &str) -> Result<String> {
        let (_, made) = self.ask(Ask::Submit, run_id).await?;
        let path = made.expect(201)?.location;
        let done = self.world.wait(&path, GONE_WITHIN, |answer| answer.text("/status") == "succeeded").await?;
        Ok(done.text("/submission").to_owned())
    }

    /// Ask a submit function of our own, that has just started and whose clock may be off; its log comes along.
    async fn ask_new_function(&self, clock: Option<&str>, run_id: &str) -> Result<(String, Answer, Option<String>)> {
        let mut environment = environment(&self.world, "submit").await?;
        environment.insert("AWS_LAMBDA_LOG_FORMAT".to_owned(), "JSON".to_owned());
        // Through the proxy, as the deployed functions go.
        let aws = format!("http://{}", self.world.address("aws_proxy")?);
        environment.insert("AWS_ENDPOINT_URL".to_owned(), aws);
        if let Some(offset) = clock {
            environment.extend(faketime(&self.world).await?);
            environment.insert("FAKETIME".to_owned(), offset.to_owned());
        }
        let function = Function::spawn(&Function::bootstrap(&self.world, "submit")?, environment).await?;
        let event = Event {
            method: "POST".to_owned(),
            path: "/train".to_owned(),
            query: format!("namespace={NAMESPACE}"),
            headers: vec![
                ("x-trainer-token".to_owned(), self.world.twin.setting("TRAINER_API_TOKEN")?.to_owned()),
                ("content-type".to_owned(), "application/json".to_owned()),
            ],
            body: EventBody::Text(self.world.stub_request(run_id, json!({"seconds": 1}))?.to_string()),
        };
        let reply = function.invoke(&event.to_json()).await?;
        let answer = Answer {
            status: reply.status,
            content_type: reply.headers.get("content-type").cloned().unwrap_or_default(),
            location: reply.headers.get("location").cloned().unwrap_or_default(),
            headers: (&reply.headers).try_into()?,
            body: reply.json()?,
            text_body: String::from_utf8_lossy(&reply.body).into_owned(),
        };
        Ok(("POST /train".to_owned(), answer, Some(function.end().await?)))
    }

    async fn begin(&self, trouble: &Trouble) -> Result<()> {
        match trouble {
            Trouble::Nothing | Trouble::Clock(_) => Ok(()),
            Trouble::Told(faults) | Trouble::ToldNew(faults) => {
                for fault in *faults {
                    self.world.tell(&[&["fault"], *fault].concat()).await?;
                }
                Ok(())
            }
            Trouble::OtherAuthority => {
                self.world.tell(&["fault", "cluster", "authority"]).await?;
                let described = self.describe_with_other_authority().await?;
                self.world.tell(&["fault", "aws", "answer", "200", "--service", "eks", "--body", &described]).await
            }
            Trouble::OperatorStopped => self.world.tell(&["stop", "training-operator"]).await,
            Trouble::NoRoleBinding => self.kubectl(&["delete", "rolebinding", "training-submit"]).await,
            Trouble::QuotaUsedUp => {
                let hard = "--hard=count/pytorchjobs.kubeflow.org=0";
                self.kubectl(&["create", "quota", "no-jobs", hard]).await?;
                // Before it is counted, nothing at all is let in, for another reason.
                let counted = "--for=jsonpath={.status.hard}";
                self.kubectl(&["wait", counted, "--timeout=20s", "resourcequota/no-jobs"]).await
            }
            Trouble::Terminating => {
                // What is held here would go first, and RBAC would refuse before the namespace does.
                self.hold(&json!(["example.com/held"])).await?;
                self.kubectl(&["delete", "namespace", NAMESPACE, "--wait=false"]).await
            }
            Trouble::SecretDeleted => {
                self.secrets.delete_secret().secret_id(&self.secret).recovery_window_in_days(7).send().await?;
                Ok(())
            }
            Trouble::SecretEmpty => self.write_secret("{}").await,
            Trouble::Policy(reason) => self.refuse_by_policy(reason).await,
        }
    }

    async fn refuse_by_policy(&self, reason: &str) -> Result<()> {
        let rule = json!({"apiGroups": ["kubeflow.org"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pytorchjobs"]});
        let message = POLICY_SAYS.trim_start_matches("denied request: ");
        for (kind, spec) in [
            (
                "ValidatingAdmissionPolicy",
                json!({
                    "failurePolicy": "Fail", "matchConstraints": {"resourceRules": [rule]},
                    "validations": [{"expression": "false", "message": message, "reason": reason}],
                }),
            ),
            (
                "ValidatingAdmissionPolicyBinding",
                json!({
                    "policyName": POLICY, "validationActions": ["Deny"],
                    "matchResources": {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": NAMESPACE}}},
                }),
            ),
        ] {
            let object = json!({
                "apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": POLICY}, "spec": spec,
            });
            let output = self.world.kubectl(&["apply"], Some(&object)).await?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        // The API server learns of it a moment later.
        let started = Instant::now();
        while self.ask(Ask::DryRun, &World::run_id("policy")).await?.1.status == 200 {
            ensure!(started.elapsed() < RECOVERED_WITHIN, "the policy has no effect");
            sleep(POLL).await;
        }
        Ok(())
    }

    async fn end(&self, trouble: &Trouble) -> Result<()> {
        self.world.tell(&["fault", "clear"]).await?;
        match trouble {
            Trouble::Nothing | Trouble::Clock(_) | Trouble::Told(_) | Trouble::ToldNew(_) | Trouble::OtherAuthority => {
                Ok(())
            }
            Trouble::OperatorStopped
            | Trouble::NoRoleBinding
            | Trouble::QuotaUsedUp
            | Trouble::Terminating
            | Trouble::SecretDeleted
            | Trouble::SecretEmpty
            | Trouble::Policy(_) => self.mend().await,
        }
    }

    /// Make everything whole that a case breaks, whichever it was.
    async fn mend(&self) -> Result<()> {
        self.world.tell(&["start", "training-operator"]).await?;
        self.kubectl(&["delete", "quota", "no-jobs", "--ignore-not-found"]).await?;
        for kind in ["validatingadmissionpolicybinding", "validatingadmissionpolicy"] {
            self.kubectl(&["delete", kind, POLICY, "--ignore-not-found"]).await?;
        }
        if self.is_terminating().await? {
            self.hold(&Value::Null).await?;
            let started = Instant::now();
            while self.is_terminating().await? {
                ensure!(started.elapsed() < GONE_WITHIN, "the namespace is not gone");
                sleep(POLL).await;
            }
        }
        let state = Path::new(self.world.twin.setting("KUBECONFIG")?).parent().context("no folder")?;
        let overlay = state.join("namespaces").join(NAMESPACE).display().to_string();
        self.kubectl(&["apply", "--server-side", "--force-conflicts", "--kustomize", &overlay]).await?;
        let secret = self.secrets.describe_secret().secret_id(&self.secret).send().await?;
        if secret.deleted_date.is_some() {
            self.secrets.restore_secret().secret_id(&self.secret).send().await?;
        }
        let value = self.secrets.get_secret_value().secret_id(&self.secret).send().await?;
        if value.secret_string.as_deref() == Some("{}") { self.write_secret(&self.secret_text).await } else { Ok(()) }
    }

    async fn write_secret(&self, text: &str) -> Result<()> {
        self.secrets.put_secret_value().secret_id(&self.secret).secret_string(text).send().await?;
        Ok(())
    }

    /// Keep what lets the submit function in, or let it go.
    async fn hold(&self, finalizers: &Value) -> Result<()> {
        let patch = json!({"metadata": {"finalizers": finalizers}}).to_string();
        for kind in ["role", "rolebinding"] {
            self.kubectl(&["patch", kind, "training-submit", "--type=merge", "--patch", &patch]).await?;
        }
        Ok(())
    }

    async fn is_terminating(&self) -> Result<bool> {
        let output =
            self.world.kubectl(&["get", "namespace", NAMESPACE, "--output=jsonpath={.status.phase}"], None).await?;
        Ok(output.stdout == b"Terminating")
    }

    async fn kubectl(&self, arguments: &[&str]) -> Result<()> {
        let output = self.world.kubectl(&[&["--namespace", NAMESPACE], arguments].concat(), None).await?;
        ensure!(output.status.success(), "kubectl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// What EKS says when the cluster at the same address has another authority.
    async fn describe_with_other_authority(&self) -> Result<String> {
        use base64::{Engine, prelude::BASE64_STANDARD};
        let state = Path::new(self.world.twin.setting("KUBECONFIG")?).parent().context("no folder")?;
        let ports: Value = serde_json::from_slice(&tokio::fs::read(state.join("ports.json")).await?)?;
        let authority = tokio::fs::read(state.join("pki/other-ca.crt")).await?;
        Ok(json!({"cluster": {
            "name": self.world.twin.setting("CLUSTER_NAME")?,
            "endpoint": format!("https://127.0.0.1:{}", ports["cluster_proxy"]),
            "certificateAuthority": {"data": BASE64_STANDARD.encode(authority)},
        }})
        .to_string())
    }
}

/// A problem's code, or the status of a good answer.
fn outcome(answer: &Answer) -> String {
    match answer.text("/code") {
        "" => answer.status.to_string(),
        code => code.to_owned(),
    }
}

fn table(rows: &[Row]) -> String {
    let mut text = String::new();
    let mut line = |fault: &str, request: &str, answer: &str, answered: &str, recovered: &str, log: &str| {
        let log: String = log.chars().take(110).collect();
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{fault:42} | {request:26} | {answer:24} | {answered:>6} | {recovered:>9} | {log}");
    };
    line("fault", "request", "answer", "ms", "over, ms", "cause in the log");
    for row in rows {
        let recovered = row.recovered.map_or_else(|| "-".into(), |recovered| recovered.as_millis().to_string());
        let answered = row.answered.as_millis().to_string();
        line(row.fault, &row.request, &row.answer, &answered, &recovered, &row.log);
    }
    text
}
