//! Every order of what submitters, the API server, S3 and people do, within bounds.

use std::time::{Duration, Instant};

use model::{Asked, Bounds, Protocols};
use stateright::{Checker, CheckerBuilder, HasDiscoveries, Model, report::WriteReporter};

const NONE: Bounds = Bounds { asked: Vec::new(), quota: 9, faults: 0, cancels: 0, ends: 0, ticks: 0 };

fn asked(job: &'static str, body: u8) -> Asked {
    Asked { job, body, is_restart: false }
}

fn restart(job: &'static str, body: u8) -> Asked {
    Asked { is_restart: true, ..asked(job, body) }
}

/// Longest that a check may take.
const LIMIT: Duration = Duration::from_hours(2);

/// Visit every state within the bounds, or find the shortest path to one in which a property does not hold.
fn check(label: &str, bounds: Bounds) {
    let started = Instant::now();
    judge(label, started, &checker(bounds).spawn_bfs().join());
}

/// The same for very many states: of those that wait, only the way to them is kept. A path is not the shortest one.
fn check_wide(label: &str, bounds: Bounds) {
    let started = Instant::now();
    let mut stderr = std::io::stderr();
    judge(label, started, &checker(bounds).spawn_dfs().join_and_report(&mut WriteReporter::new(&mut stderr)));
}

fn checker(bounds: Bounds) -> CheckerBuilder<Protocols> {
    Protocols::new(bounds).checker().threads(2).timeout(LIMIT).finish_when(HasDiscoveries::AnyFailures)
}

fn judge(label: &str, started: Instant, checker: &impl Checker<Protocols>) {
    let (states, elapsed) = (checker.unique_state_count(), started.elapsed());
    eprintln!("{label}: {states} states in {:.1} s", elapsed.as_secs_f64());
    checker.assert_properties();
    assert!(checker.is_done() && elapsed < LIMIT, "{label}: not every state was visited");
}

#[test]
fn equal_requests_under_a_quota_for_one_job() {
    let two = vec![asked("a", 1); 2];
    check("two equal, no room", Bounds { asked: two.clone(), quota: 0, ticks: 2, ..NONE });
    check("two equal, quota", Bounds { asked: two.clone(), quota: 1, faults: 1, ticks: 2, ..NONE });
    check("two equal, deleted", Bounds { asked: two, quota: 1, cancels: 1, ticks: 2, ..NONE });
    check("three equal, quota", Bounds { asked: vec![asked("a", 1); 3], quota: 1, ..NONE });
}

#[test]
fn different_requests_of_one_name_and_of_several() {
    check("two bodies", Bounds { asked: vec![asked("a", 1), asked("a", 2)], faults: 1, ticks: 2, ..NONE });
    check("two names", Bounds { asked: vec![asked("a", 1), asked("b", 1)], faults: 1, ends: 1, ticks: 2, ..NONE });
}

#[test]
fn restarts_and_deletions() {
    let asked = vec![asked("a", 1), restart("a", 1)];
    check("restart", Bounds { asked, cancels: 1, ends: 1, ticks: 2, ..NONE });
}

#[test]
#[ignore = "minutes: part of the soak"]
fn more_equal_requests_faults_and_time() {
    let equal = vec![asked("a", 1); 2];
    check_wide("two equal", Bounds { asked: equal, quota: 1, faults: 2, cancels: 1, ends: 1, ticks: 3 });
    let three = vec![asked("a", 1), asked("a", 1), asked("b", 1)];
    check_wide("three, two names", Bounds { asked: three, quota: 1, faults: 1, ticks: 2, ..NONE });
}

#[test]
#[ignore = "minutes: part of the soak"]
fn more_restarts() {
    let restarts = vec![asked("a", 1), restart("a", 1), restart("a", 2)];
    check_wide("restarts", Bounds { asked: restarts, cancels: 1, ends: 1, ticks: 2, ..NONE });
}

#[test]
#[ignore = "minutes: part of the soak"]
fn more_faults_of_several_names() {
    let names = vec![asked("a", 1), asked("b", 1)];
    check_wide("two names", Bounds { asked: names, quota: 2, faults: 2, cancels: 1, ends: 1, ticks: 3 });
}
