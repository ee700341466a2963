//! Compare the index of checkpoints with what is in the bucket, and repair it with `--write`.

use std::{
    collections::BTreeMap,
    fmt::{self, Display},
    io::{self, Write},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
use aws_config::BehaviorVersion;
use clap::Parser;
use reindex::{Compared, Place, places, reindex, runs};
use training_run::layout::S3Uri;
use training_store::Store;

/// How often progress is shown.
const PROGRESS: Duration = Duration::from_secs(2);

/// Compare the index of checkpoints with the markers and files in the bucket, and say what differs.
///
/// Credentials, region and endpoint are those of the AWS environment variables and profiles. Without --write nothing is
/// written; with it, the entries that differ are made anew as the indexer makes them. It may run beside trainers and the
/// indexer, may be ended with Ctrl-C at any time, and may be run again. What fails is told, and the rest is still done.
///
/// Exit code: 0 all entries are as they should be, or were repaired; 1 some differ; 2 something failed, or there is no run;
/// 130 ended by Ctrl-C.
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
    /// Steps, runs and folders of runs.
    failed: usize,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut tally = Tally::default();
    let is_whole = tokio::select! {
        () = run(&arguments, &mut tally) => true,
        _ = tokio::signal::ctrl_c() => false,
    };
    let summary = writeln!(io::stdout(), "{tally}");
    // Each entry is one object that is written whole, so there is nothing to undo where it was ended.
    ExitCode::from(match (is_whole, summary) {
        (false, _) => 130,
        (true, Err(_)) => 2,
        (true, Ok(())) => tally.code(),
    })
}

async fn run(arguments: &Arguments, tally: &mut Tally) {
    let aws = aws_config::load_defaults(BehaviorVersion::latest()).await;
    let store = Store::new(aws_sdk_s3::Client::new(&aws));
    let runs = runs(&store, &arguments.uris, |folder, error| tally.fail(&folder, &error.into())).await;
    note(format_args!("{} runs", runs.len()));
    if runs.is_empty() && tally.failed == 0 {
        for uri in &arguments.uris {
            tally.fail(uri, &anyhow!("there is no run at or below it"));
        }
    }
    let (count, mut shown) = (runs.len(), Instant::now());
    for prefix in runs {
        let places = match places(&store, &prefix).await {
            Ok(places) => places,
            Err(error) => {
                tally.fail(&prefix, &error);
                continue;
            }
        };
        let steps = places.len();
        let mut done = 0;
        let report = |place: &Place, compared: Result<Compared>| {
            done += 1;
            match compared {
                Ok(compared) => tally.count(place, &compared),
                Err(error) => tally.fail(place, &error),
            }
            if shown.elapsed() > PROGRESS {
                shown = Instant::now();
                note(format_args!("run {} of {count}: {done} of {steps} steps; {tally}", tally.runs + 1));
            }
        };
        reindex(&store, places, arguments.parallel.into(), arguments.write, report).await;
        tally.runs += 1;
    }
}

// === impl Tally ===

impl Tally {
    fn count(&mut self, place: &Place, Compared { difference, is_repaired }: &Compared) {
        self.compared += 1;
        self.repaired += usize::from(*is_repaired);
        if let Some(difference) = difference {
            *self.differing.entry(difference.to_string()).or_default() += 1;
            let repaired = if *is_repaired { ", repaired" } else { "" };
            // Nobody listens any more; the exit code still tells.
            let _ = writeln!(io::stdout(), "{place}: {difference}{repaired}");
        }
    }

    fn fail(&mut self, what: &impl Display, error: &anyhow::Error) {
        self.failed += 1;
        note(format_args!("{what}: failed: {error:#}"));
    }

    fn code(&self) -> u8 {
        match (self.failed, self.left()) {
            (0, 0) => 0,
            (0, _) => 1,
            _ => 2,
        }
    }

    /// Entries that differ still.
    fn left(&self) -> usize {
        self.differing.values().sum::<usize>() - self.repaired
    }
}

impl Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} steps of {} runs compared", self.compared, self.runs)?;
        for (what, count) in &self.differing {
            write!(f, ", {count} {what}")?;
        }
        write!(f, ", {} repaired", self.repaired)?;
        if self.failed > 0 { write!(f, ", {} failed", self.failed) } else { Ok(()) }
    }
}

/// Tell whoever listens; that nobody does is no reason to end.
fn note(line: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use reindex::Difference;

    #[test]
    fn the_exit_code_and_the_last_line_tell_what_came_of_it() {
        let place = Place {
            prefix: "s3://bucket/runs/r/framework=hf".parse().expect("a prefix"),
            step: "5".parse().expect("a step"),
        };
        let differing = |is_repaired| Compared { difference: Some(Difference::Stale), is_repaired };
        let mut tally = Tally { runs: 1, ..Tally::default() };
        tally.count(&place, &Compared { difference: None, is_repaired: false });
        tally.count(&place, &differing(true));
        assert_eq!((tally.code(), tally.to_string().as_str()), (0, "2 steps of 1 runs compared, 1 stale, 1 repaired"));
        tally.count(&place, &differing(false));
        assert_eq!(tally.code(), 1);
        tally.fail(&place, &anyhow::anyhow!("denied"));
        let line = "3 steps of 1 runs compared, 2 stale, 1 repaired, 1 failed";
        assert_eq!((tally.code(), tally.to_string().as_str()), (2, line));
    }
}
