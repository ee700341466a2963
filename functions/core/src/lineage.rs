//! Which checkpoints of a run belong together: those of the newest submission and of the submissions from which it came,
//! each up to the step from which its child went on. The others are superseded: listed, and never chosen.
//!
//! Order between submissions is that of their ids (`UUIDv7`), never a trainer's clock.

use std::collections::{BTreeMap, HashMap};

use crate::{index::IndexEntry, marker::Parent};

/// What choosing among checkpoints needs to know of each, and no more: a run may have very many.
#[derive(Clone, Debug, PartialEq)]
pub struct Known {
    /// The step that was reached.
    pub step: u64,
    /// The submission that wrote it; other images' checkpoints may have none.
    pub submission: Option<String>,
    /// From where that submission went on.
    pub parent: Option<Parent>,
    /// The metric that is asked for, where the checkpoint has it.
    pub metric: Option<f64>,
}

/// The newest submission and its ancestors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lineage {
    /// The greatest step that counts, by submission; empty when no checkpoint names a submission.
    reach: HashMap<String, u64>,
}

/// A lineage that is followed from checkpoint to checkpoint, back in time.
#[derive(Clone, Debug)]
pub struct Trace {
    lineage: Lineage,
    /// The ancestor to count next, and the greatest of its steps that counts.
    next: Option<(String, u64)>,
}

/// Which end of a metric is the good one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The smallest value is the best.
    Min,
    /// The greatest value is the best.
    Max,
}

/// In which order checkpoints are preferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preference {
    /// The greatest step first.
    Newest,
    /// The best metric first, of equal ones the greatest step; those without the metric are left out.
    Best(Mode),
}

// === impl Known ===

impl Known {
    /// What an index entry says.
    #[must_use]
    pub fn of(entry: &IndexEntry, metric: &str) -> Self {
        Self {
            step: entry.step,
            submission: entry.submission.clone(),
            parent: entry.parent.clone(),
            metric: entry.metrics.get(metric).and_then(serde_json::Value::as_f64).filter(|metric| metric.is_finite()),
        }
    }
}

// === impl Lineage ===

impl Lineage {
    /// The lineage of all of a run's checkpoints, in any order.
    #[must_use]
    pub fn of(checkpoints: &[Known]) -> Self {
        let mut by_submission: BTreeMap<&str, Vec<&Known>> = BTreeMap::new();
        for known in checkpoints {
            if let Some(submission) = known.submission.as_deref() {
                by_submission.entry(submission).or_default().push(known);
            }
        }
        let mut lineage = Self { reach: HashMap::new() };
        let mut next = by_submission.keys().next_back().map(|newest| ((*newest).to_owned(), u64::MAX));
        while let Some((submission, limit)) = next {
            let of_it = by_submission.get(submission.as_str()).map(Vec::as_slice).unwrap_or_default();
            // All of them say the same, unless a restart found them torn and started elsewhere: the newest that counts
            // is right then.
            let counting = of_it.iter().filter(|known| known.step <= limit).max_by_key(|known| known.step);
            let parent = counting.or(of_it.iter().min_by_key(|known| known.step));
            let parent = parent.and_then(|known| known.parent.as_ref());
            next = lineage.go_on(submission, limit, parent);
        }
        lineage
    }

    /// The lineage of a run whose highest checkpoint is known to be the newest submission's.
    #[must_use]
    pub fn from_highest(highest: &IndexEntry) -> Trace {
        let lineage = Self { reach: HashMap::new() };
        let submission = highest.submission.clone().map(|submission| (submission, u64::MAX));
        let mut trace = Trace { lineage, next: submission };
        trace.meet(highest);
        trace
    }

    /// Count a submission up to a limit; the ancestor to count after it, and its limit.
    fn go_on(&mut self, submission: String, limit: u64, parent: Option<&Parent>) -> Option<(String, u64)> {
        self.reach.insert(submission, limit);
        let next = parent.map(|parent| (parent.submission.to_string(), limit.min(parent.step.get())));
        // Nobody is their own ancestor, except in markers that lie.
        next.filter(|(submission, _)| !self.reach.contains_key(submission))
    }

    /// Whether a checkpoint is not of this lineage. Where no checkpoint names a submission, all are.
    #[must_use]
    pub fn supersedes(&self, submission: Option<&str>, step: u64) -> bool {
        match submission.map(|submission| self.reach.get(submission)) {
            Some(Some(limit)) => step > *limit,
            Some(None) => true,
            None => !self.reach.is_empty(),
        }
    }
}

// === impl Trace ===

impl Trace {
    /// The step whose checkpoint tells how the lineage goes on: the last one that counts of the next ancestor.
    #[must_use]
    pub fn next_step(&self) -> Option<u64> {
        self.next.as_ref().map(|(_, limit)| *limit)
    }

    /// Go on with the checkpoint of that step; whether it is the ancestor's, and so tells anything.
    pub fn meet(&mut self, entry: &IndexEntry) -> bool {
        match self.next.take() {
            Some((submission, limit)) if entry.submission.as_deref() == Some(submission.as_str()) => {
                self.next = self.lineage.go_on(submission, limit, entry.parent.as_ref());
                true
            }
            _ => false,
        }
    }

    /// The lineage, which is whole when there is no next step.
    #[must_use]
    pub fn into_lineage(self) -> Lineage {
        self.lineage
    }
}

/// The steps of the checkpoints that may be chosen, the preferred one first.
#[must_use]
pub fn candidates(checkpoints: &[Known], preference: Preference) -> Vec<u64> {
    let lineage = Lineage::of(checkpoints);
    let in_line = checkpoints.iter().filter(|known| !lineage.supersedes(known.submission.as_deref(), known.step));
    let mut chosen: Vec<&Known> = match preference {
        Preference::Newest => in_line.collect(),
        Preference::Best(_) => in_line.filter(|known| known.metric.is_some()).collect(),
    };
    chosen.sort_by(|a, b| {
        let by_metric = match (preference, a.metric, b.metric) {
            (Preference::Best(Mode::Min), Some(a), Some(b)) => a.total_cmp(&b),
            (Preference::Best(Mode::Max), Some(a), Some(b)) => b.total_cmp(&a),
            (Preference::Newest | Preference::Best(_), _, _) => std::cmp::Ordering::Equal,
        };
        by_metric.then(b.step.cmp(&a.step))
    });
    chosen.into_iter().map(|known| known.step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::Step;

    const A: &str = "01970000-0000-7000-8000-00000000000a";
    const B: &str = "01980000-0000-7000-8000-00000000000b";
    const C: &str = "01990000-0000-7000-8000-00000000000c";

    fn known(step: u64, submission: &str, parent: Option<(&str, u64)>) -> Known {
        let parent = parent.map(|(submission, step)| Parent {
            submission: submission.parse().expect("a submission"),
            step: Step::new(step).expect("a step"),
        });
        let submission = (!submission.is_empty()).then(|| submission.to_owned());
        Known { step, submission, parent, metric: None }
    }

    #[test]
    fn the_newest_submission_and_its_ancestors_are_in_line() {
        let upper = A.to_uppercase();
        for (case, checkpoints, newest_first) in [
            ("no checkpoint", vec![], vec![]),
            ("one submission", vec![known(10, A, None), known(20, A, None)], vec![20, 10]),
            ("other images", vec![known(10, "", None), known(30, "", None), known(20, "", None)], vec![30, 20, 10]),
            ("other images, then ours", vec![known(10, "", None), known(5, A, None)], vec![5]),
            ("a fresh start hides higher steps", vec![known(90, A, None), known(10, B, None)], vec![10]),
            (
                "a parent counts up to the step resumed",
                vec![known(10, A, None), known(20, A, None), known(30, A, None), known(25, B, Some((A, 20)))],
                vec![25, 20, 10],
            ),
            (
                "grandparents too",
                vec![
                    known(10, A, None),
                    known(20, A, None),
                    known(15, B, Some((A, 10))),
                    known(30, B, Some((A, 10))),
                    known(16, C, Some((B, 15))),
                ],
                vec![16, 15, 10],
            ),
            (
                "a grandparent counts no further than the parent was resumed",
                vec![known(10, A, None), known(20, A, None), known(15, B, Some((A, 20))), known(16, C, Some((B, 15)))],
                vec![16, 15, 10],
            ),
            (
                "a sibling is superseded",
                vec![known(10, A, None), known(20, B, Some((A, 10))), known(12, C, Some((A, 10)))],
                vec![12, 10],
            ),
            (
                "a parent without checkpoints ends the chain",
                vec![known(10, A, None), known(40, C, Some((B, 30)))],
                vec![40],
            ),
            (
                "lies go in no circle",
                vec![known(10, A, Some((B, 50))), known(20, B, Some((A, 10))), known(30, B, Some((A, 10)))],
                vec![30, 20, 10],
            ),
            ("nobody is their own parent", vec![known(10, A, None), known(30, B, Some((B, 1)))], vec![30]),
            (
                "of two parents the newest checkpoint's counts",
                vec![known(10, A, None), known(20, A, None), known(15, B, Some((A, 20))), known(30, B, Some((A, 10)))],
                vec![30, 15, 10],
            ),
            (
                "a parent whose resumed checkpoint is gone still has parents",
                vec![known(5, A, None), known(20, B, Some((A, 5))), known(30, C, Some((B, 10)))],
                vec![30, 5],
            ),
            ("a parent in capitals", vec![known(10, A, None), known(20, B, Some((&upper, 10)))], vec![20, 10]),
        ] {
            assert_eq!(candidates(&checkpoints, Preference::Newest), newest_first, "{case}");
            let reversed: Vec<_> = checkpoints.into_iter().rev().collect();
            assert_eq!(candidates(&reversed, Preference::Newest), newest_first, "{case}, listed the other way");
        }
    }

    #[test]
    fn the_best_is_in_line_and_has_the_metric() {
        let of = |step, submission, metric| Known { metric, ..known(step, submission, None) };
        let checkpoints = [
            of(99, A, Some(0.1)),
            of(10, B, Some(2.0)),
            of(20, B, Some(1.0)),
            of(30, B, None),
            of(40, B, Some(1.0)),
            of(50, B, Some(-0.0)),
        ];
        assert_eq!(candidates(&checkpoints, Preference::Best(Mode::Min)), [50, 40, 20, 10]);
        assert_eq!(candidates(&checkpoints, Preference::Best(Mode::Max)), [10, 40, 20, 50]);
    }

    #[test]
    fn only_finite_numbers_are_metrics() {
        let body =
            br#"{"index":1,"step":5,"state":"complete","submission":null,"saved_at":1,"size_bytes":0,"file_count":0,
            "metrics":{"loss":2.5,"text":"2","none":null},"parent":null,"marker_key":"k","marker_etag":"e"}"#;
        let entry = IndexEntry::parse(body).expect("an entry");
        for (metric, value) in [("loss", Some(2.5)), ("text", None), ("none", None), ("absent", None)] {
            assert_eq!(Known::of(&entry, metric).metric, value, "{metric}");
        }
    }
}
