//! Compare the index of checkpoints with what is in the bucket, and repair it with `--write`.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use aws_config::BehaviorVersion;
use clap::Parser;
use reindex::{Difference, Place, places, reindex, runs};
use training_core::layout::S3Uri;
use training_store::Store;

/// How often progress is shown.
const PROGRESS: Duration = Duration::from_secs(2);

/// Compare the index of checkpoints with the markers and files in the bucket, and say what differs.
///
/// Credentials, region and endpoint are those of the AWS environment variables and profiles. Without --write nothing is
/// written; with it, the entries that differ are made anew as the indexer makes them. It may run beside trainers and the
/// indexer, may be ended with Ctrl-C at any time, and may be run again.
///
/// Exit code: 0 all entries are as they should be, or were repaired; 1 some differ; 2 it could not be done; 130 ended by
/// Ctrl-C.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Where the runs are: their bases, such as `s3://bucket/runs`, or the prefix of one run.
    #[arg(required = true, value_name = "S3_URI")]
    uris: Vec<S3Uri>,
    /// Repair the entries that differ.
    #[arg(long)]
    write: bool,
    /// Steps looked at together.
    #[arg(long, value_name = "STEPS", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=256))]
    parallel: u16,
}

/// What came of it so far.
#[derive(Default)]
struct Tally {
    runs: usize,
    compared: usize,
    repaired: usize,
    differing: BTreeMap<String, usize>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut tally = Tally::default();
    let outcome = tokio::select! {
        outcome = run(&arguments, &mut tally) => Some(outcome),
        _ = tokio::signal::ctrl_c() => None,
    };
    let summary = writeln!(io::stdout(), "{tally}");
    let code = match outcome {
        Some(Ok(())) if tally.left() == 0 => 0,
        Some(Ok(())) => 1,
        Some(Err(error)) => {
            eprintln!("reindex: {error:#}");
            2
        }
        // Each entry is one object that is written whole, so there is nothing to undo.
        None => 130,
    };
    ExitCode::from(if summary.is_err() { 2 } else { code })
}

async fn run(arguments: &Arguments, tally: &mut Tally) -> Result<()> {
    let aws = aws_config::load_defaults(BehaviorVersion::latest()).await;
    let store = Store::new(aws_sdk_s3::Client::new(&aws));
    let runs = runs(&store, &arguments.uris).await.context("cannot find the runs")?;
    eprintln!("{} runs", runs.len());
    let (count, mut shown) = (runs.len(), Instant::now());
    for prefix in runs {
        let places = places(&store, &prefix).await?;
        let steps = places.len();
        let mut done = 0;
        let report = |place: &Place, difference: Option<&Difference>, is_repaired: bool| {
            done += 1;
            tally.count(difference, is_repaired);
            if let Some(difference) = difference {
                let repaired = if is_repaired { ", repaired" } else { "" };
                // Nobody listens any more; the exit code still tells.
                let _ = writeln!(io::stdout(), "{place}: {difference}{repaired}");
            }
            if shown.elapsed() > PROGRESS {
                shown = Instant::now();
                eprintln!("run {} of {count}: {done} of {steps} steps; {tally}", tally.runs + 1);
            }
        };
        reindex(&store, places, arguments.parallel.into(), arguments.write, report).await?;
        tally.runs += 1;
    }
    Ok(())
}

// === impl Tally ===

impl Tally {
    fn count(&mut self, difference: Option<&Difference>, is_repaired: bool) {
        self.compared += 1;
        self.repaired += usize::from(is_repaired);
        if let Some(difference) = difference {
            *self.differing.entry(difference.to_string()).or_default() += 1;
        }
    }

    /// Entries that differ still.
    fn left(&self) -> usize {
        self.differing.values().sum::<usize>() - self.repaired
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} steps of {} runs compared", self.compared, self.runs)?;
        for (what, count) in &self.differing {
            write!(f, ", {count} {what}")?;
        }
        write!(f, ", {} repaired", self.repaired)
    }
}
