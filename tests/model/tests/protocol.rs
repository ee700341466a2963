//! Every order of what submitters, the API server, S3 and people do, within bounds.

use std::time::Instant;

use model::{Asked, Bounds, Protocols};
use stateright::{Checker, Model};

fn asked(job: &'static str, body: u8) -> Asked {
    Asked { job, body, is_restart: false }
}

#[test]
fn a_refused_duplicate_of_a_request_supersedes_the_job_that_was_accepted() {
    let asked = vec![asked("a", 1), asked("a", 1)];
    let bounds = Bounds { asked, quota: 1, faults: 0, cancels: 0, ends: 0, ticks: 0 };
    let started = Instant::now();
    let checker = Protocols::new(bounds).checker().threads(2).spawn_bfs().join();
    eprintln!("{} states in {:.1} s", checker.unique_state_count(), started.elapsed().as_secs_f64());
    for fault in ["a job that somebody was promised is never superseded", "every answer is true"] {
        assert!(checker.discovery(fault).is_some(), "{fault}");
    }
}
