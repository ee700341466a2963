//! `twin demo`: the main job as a user sees it. Each step is checked, so the demo fails unless it has shown what it is
//! for.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use tokio::time::sleep;
use twin::client::{Answer, Twin};

use crate::{cli::terminal::say, paths::Paths};

const STEPS: u64 = 80;
const STEPS_AFTER_RESUME: u64 = 120;
const SAVE_STEPS: u64 = 20;
/// One more than the twin's node has.
const TOO_MANY_GPUS: u64 = 9;
const POLL: Duration = Duration::from_millis(500);
const END_WITHIN: Duration = Duration::from_mins(5);
const SHOWN_WITHIN: Duration = Duration::from_mins(1);

/// What the status of a job showed until the job ended.
struct Followed {
    first_step: u64,
    last_step: u64,
}

struct Demo {
    twin: Twin,
    started: Instant,
}

/// Runs the main job on a twin that is up.
pub(crate) async fn run(paths: &Paths) -> Result<()> {
    let demo = Demo { twin: Twin::connect(&paths.env())?, started: Instant::now() };
    let run_id = format!("demo-{}", SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs());

    demo.say("putting a small data set into the bucket");
    let dataset_uri = demo.twin.put_data_set().await?;

    demo.say(&format!("POST /train: two nodes, {STEPS} steps on {dataset_uri}"));
    let request = demo.twin.two_node_request(&run_id, &dataset_uri, STEPS, SAVE_STEPS)?;
    let name = demo.submit("/train", &request).await?;
    let trained = demo.follow(&name).await?;
    ensure!(trained.last_step == STEPS, "trained to step {}, not to {STEPS}", trained.last_step);

    demo.checkpoints(&name, STEPS).await?;

    demo.say(&format!("POST /train?restart=true: the same run goes on to step {STEPS_AFTER_RESUME}"));
    let mut request = demo.twin.two_node_request(&run_id, &dataset_uri, STEPS_AFTER_RESUME, SAVE_STEPS)?;
    request["resume_from_checkpoint"] = json!(true);
    demo.submit("/train?restart=true", &request).await?;
    let resumed = demo.follow(&name).await?;
    ensure!(
        resumed.first_step > STEPS && resumed.last_step == STEPS_AFTER_RESUME,
        "the resumed run was first seen at step {} and ended at {}",
        resumed.first_step,
        resumed.last_step
    );
    demo.say(&format!("it went on after step {STEPS}: the first step seen was {}", resumed.first_step));
    demo.checkpoints(&name, STEPS_AFTER_RESUME).await?;

    demo.say(&format!("POST /train: a job that asks for {TOO_MANY_GPUS} GPUs a node"));
    let mut request = demo.twin.two_node_request(&format!("{run_id}-large"), &dataset_uri, STEPS, SAVE_STEPS)?;
    request["gpus_per_node"] = json!(TOO_MANY_GPUS);
    let large = demo.submit("/train", &request).await?;
    demo.pending(&large).await?;

    demo.say("done; the twin stays up");
    next_commands(&name, &large);
    Ok(())
}

// === impl Demo ===

impl Demo {
    async fn submit(&self, path: &str, request: &serde_json::Value) -> Result<String> {
        let answer = self.twin.post(path, request).await?.expect(201)?;
        self.say(&format!("201 Created: {} is {}", answer.name(), answer.text("/status")));
        Ok(answer.name().to_owned())
    }

    /// Prints each change of a job's status until the job ends.
    async fn follow(&self, name: &str) -> Result<Followed> {
        let (mut shown, mut first_step) = (String::new(), None);
        let began = Instant::now();
        while began.elapsed() < END_WITHIN {
            let answer = self.twin.get(&format!("/train/{name}")).await?.expect(200)?;
            let step = answer.number("/progress/step");
            first_step = first_step.or(step);
            let line = format!("{:<9} {}", answer.text("/phase"), answer.text("/detail"));
            if line != shown {
                self.say(&format!("  {line}"));
                shown = line;
            }
            match answer.text("/status") {
                "succeeded" => {
                    let last_step = step.context("the job succeeded without any progress")?;
                    return Ok(Followed { first_step: first_step.unwrap_or(last_step), last_step });
                }
                "failed" => bail!("the job failed: {}", answer.text("/detail")),
                _ => sleep(POLL).await,
            }
        }
        bail!("the job did not end within {} s; `kubectl describe` it, see below .local/logs", END_WITHIN.as_secs())
    }

    /// Shows what the indexer has made of the markers. The indexer gets a moment, because it runs after the trainer.
    async fn checkpoints(&self, name: &str, last_step: u64) -> Result<()> {
        let newest = |answer: &Answer| answer.number("/checkpoints/0/step") == Some(last_step);
        let answer = self.wait(&format!("/train/{name}/checkpoints"), "the index has the last step", newest).await?;
        self.say(&format!("GET /train/{name}/checkpoints, from the index:"));
        for entry in answer.body["checkpoints"].as_array().into_iter().flatten() {
            let (step, state, files, bytes) =
                (&entry["step"], &entry["state"], &entry["file_count"], &entry["size_bytes"]);
            let loss = entry["metrics"]["loss"].as_f64().unwrap_or(f64::NAN);
            self.say(&format!(
                "  step {step:>4}  {}  loss {loss:.4}  {files} files, {bytes} bytes",
                state.as_str().unwrap_or_default()
            ));
        }
        Ok(())
    }

    async fn pending(&self, name: &str) -> Result<()> {
        let diagnosed = |answer: &Answer| answer.text("/diagnosis/code") == "unschedulable";
        let answer = self.wait(&format!("/train/{name}"), "the scheduler says why", diagnosed).await?;
        self.say(&format!("  {:<9} {}", answer.text("/phase"), answer.text("/detail")));
        self.say(&format!("  what to do: {}", answer.text("/diagnosis/next_step")));
        Ok(())
    }

    async fn wait(&self, path: &str, what: &str, holds: impl Fn(&Answer) -> bool) -> Result<Answer> {
        let began = Instant::now();
        loop {
            let answer = self.twin.get(path).await?.expect(200)?;
            if holds(&answer) {
                return Ok(answer);
            }
            ensure!(began.elapsed() < SHOWN_WITHIN, "not within {} s: {what}: {}", SHOWN_WITHIN.as_secs(), answer.body);
            sleep(POLL).await;
        }
    }

    fn say(&self, text: &str) {
        say(&format!("{:>6.1} s  {text}", self.started.elapsed().as_secs_f64()));
    }
}

fn next_commands(name: &str, large: &str) {
    say(&format!(
        "
Try next:
  source .local/env
  export PATH=$PWD/.local/bin:$PATH
  curl -s -H \"X-TRAINER-TOKEN: $TRAINER_API_TOKEN\" $API_URL/train/{name}
  curl -s -H \"X-TRAINER-TOKEN: $TRAINER_API_TOKEN\" $API_URL/train/{name}/checkpoints/best
  curl -s -H \"X-TRAINER-TOKEN: $TRAINER_API_TOKEN\" \"$API_URL/train/{name}/logs?tail=20\"
  curl -s -H \"X-TRAINER-TOKEN: $TRAINER_API_TOKEN\" $API_URL/train/{large}/events
  curl -s -H \"X-TRAINER-TOKEN: $TRAINER_API_TOKEN\" -X DELETE $API_URL/train/{large}
  kubectl --kubeconfig $KUBECONFIG -n $NAMESPACE get pytorchjobs,pods
  make status
  make down"
    ));
}
