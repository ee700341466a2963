//! Which checkpoints of a run belong together: those of the newest submission and of the submissions from which it came,
//! each up to the step that its child resumed. The others are superseded: listed, and never chosen.
//!
//! The rule is written down in FORMAT.md, "Which checkpoints count". `lineage` of
//! `trainer/training/checkpoint/lineage.py` has it too, and `tests/contract/lineage.json` holds the vectors that both run.

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;

use crate::{
    entry::IndexEntry,
    marker::Parent,
    names::{Step, Submission},
};

/// What choosing among checkpoints needs to know of each, and no more: a run may have very many.
#[derive(Clone, Debug, PartialEq)]
pub struct Known {
    /// The step that was reached.
    pub step: Step,
    /// The submission that wrote it; other images' checkpoints may have none.
    pub submission: Option<Submission>,
    /// The checkpoint that the submission resumed.
    pub parent: Option<Parent>,
    /// The metric that is asked for, where the checkpoint has it.
    pub metric: Option<f64>,
}

/// The newest submission and its ancestors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lineage {
    /// By submission; empty when no checkpoint names one.
    reach: HashMap<Submission, Reach>,
}

/// What counts of a submission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reach {
    /// How many resumed one another until the newest; 0 is the newest.
    generation: usize,
    /// The greatest step that counts.
    limit: Step,
}

/// A lineage that is followed from submission to submission, back in time. This alone knows which submission is next.
#[derive(Clone, Debug)]
pub struct Trace {
    lineage: Lineage,
    /// The submission to count next, and the greatest of its steps that counts.
    next: Option<(Submission, Step)>,
}

/// The metric by which the best checkpoint is chosen when nobody says; the least is the best.
pub const DEFAULT_METRIC: &str = "loss";

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
    /// Those of the newest submission first, from its greatest step down; then those of its parent, and so on.
    Newest,
    /// The best metric first, of equal ones the newest; those without the metric are left out.
    Best(Mode),
}

// === impl Known ===

impl Known {
    /// What an index entry says, with one of its metrics if that is asked for.
    #[must_use]
    pub fn of(entry: &IndexEntry, metric: Option<&str>) -> Self {
        Self {
            step: entry.step,
            submission: entry.submission.clone(),
            parent: entry.parent.clone(),
            metric: metric.and_then(|metric| finite(entry.metrics.get(metric)?)),
        }
    }
}

/// A metric that can be compared; texts and null are none.
#[must_use]
pub(crate) fn finite(metric: &Value) -> Option<f64> {
    metric.as_f64().filter(|metric| metric.is_finite())
}

// === impl Lineage ===

impl Lineage {
    /// The lineage of all of a run's checkpoints, in any order.
    #[must_use]
    pub fn of(checkpoints: &[Known]) -> Self {
        let mut by_submission: BTreeMap<&Submission, Vec<&Known>> = BTreeMap::new();
        for known in checkpoints {
            if let Some(submission) = &known.submission {
                by_submission.entry(submission).or_default().push(known);
            }
        }
        let Some(newest) = by_submission.keys().next_back() else { return Self::default() };
        let mut trace = Trace::of(newest);
        while let Some((submission, limit)) = trace.asks() {
            let of_it = by_submission.get(submission).map(Vec::as_slice).unwrap_or_default();
            let counting = of_it.iter().filter(|known| known.step <= limit).max_by_key(|known| known.step);
            let teller = counting.or(of_it.iter().min_by_key(|known| known.step));
            trace.go_on(teller.and_then(|known| known.parent.as_ref()));
        }
        trace.into_lineage()
    }

    /// Whether a checkpoint is not of this lineage. Where no checkpoint names a submission, all are.
    #[must_use]
    pub fn supersedes(&self, submission: Option<&Submission>, step: Step) -> bool {
        self.generation(submission, step).is_none()
    }

    /// The generation of a checkpoint's submission; `None` when the checkpoint is superseded.
    fn generation(&self, submission: Option<&Submission>, step: Step) -> Option<usize> {
        match submission {
            Some(submission) => {
                self.reach.get(submission).filter(|reach| step <= reach.limit).map(|reach| reach.generation)
            }
            None => self.reach.is_empty().then_some(0),
        }
    }
}

// === impl Trace ===

impl Trace {
    /// From the run's newest submission.
    #[must_use]
    pub fn of(newest: &Submission) -> Self {
        Self { lineage: Lineage::default(), next: Some((newest.clone(), Step::LAST)) }
    }

    /// The submission whose parent is to be told, and the greatest of its steps that counts. The newest checkpoint that
    /// counts tells it, or where none does, the submission's first one.
    #[must_use]
    pub fn asks(&self) -> Option<(&Submission, Step)> {
        self.next.as_ref().map(|(submission, limit)| (submission, *limit))
    }

    /// Count the next submission, and continue with its parent.
    pub fn go_on(&mut self, parent: Option<&Parent>) {
        let Some((submission, limit)) = self.next.take() else { return };
        let generation = self.lineage.reach.len();
        self.lineage.reach.insert(submission, Reach { generation, limit });
        let next = parent.map(|parent| (parent.submission.clone(), limit.min(parent.step)));
        // Nobody is their own ancestor, except in markers that lie.
        self.next = next.filter(|(submission, _)| !self.lineage.reach.contains_key(submission));
    }

    /// The lineage, which is whole when there is no next submission.
    #[must_use]
    pub fn into_lineage(self) -> Lineage {
        self.lineage
    }
}

/// The steps of the checkpoints that may be chosen, the preferred one first.
#[must_use]
pub fn candidates(checkpoints: &[Known], preference: Preference) -> Vec<Step> {
    let lineage = Lineage::of(checkpoints);
    let in_line = checkpoints.iter().filter_map(|known| {
        let generation = lineage.generation(known.submission.as_ref(), known.step)?;
        Some((generation, known))
    });
    let mut chosen: Vec<(usize, &Known)> = match preference {
        Preference::Newest => in_line.collect(),
        Preference::Best(_) => in_line.filter(|(_, known)| known.metric.is_some()).collect(),
    };
    chosen.sort_by(|(one_generation, one), (other_generation, other)| {
        let by_metric = match (preference, one.metric, other.metric) {
            (Preference::Best(Mode::Min), Some(one), Some(other)) => one.total_cmp(&other),
            (Preference::Best(Mode::Max), Some(one), Some(other)) => other.total_cmp(&one),
            (Preference::Newest | Preference::Best(_), _, _) => std::cmp::Ordering::Equal,
        };
        by_metric.then(one_generation.cmp(other_generation)).then(other.step.cmp(&one.step))
    });
    chosen.into_iter().map(|(_, known)| known.step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "01970000-0000-7000-8000-00000000000a";
    const B: &str = "01980000-0000-7000-8000-00000000000b";

    #[test]
    fn the_best_is_in_line_and_has_the_metric() {
        let of = |step, submission: &str, metric| Known {
            step: Step::new(step).expect("a step"),
            submission: Some(submission.parse().expect("a submission")),
            parent: None,
            metric,
        };
        let checkpoints = [
            of(99, A, Some(0.1)),
            of(10, B, Some(2.0)),
            of(20, B, Some(1.0)),
            of(30, B, None),
            of(40, B, Some(1.0)),
            of(50, B, Some(-0.0)),
        ];
        let best =
            |mode| candidates(&checkpoints, Preference::Best(mode)).into_iter().map(Step::get).collect::<Vec<_>>();
        assert_eq!(best(Mode::Min), [50, 40, 20, 10]);
        assert_eq!(best(Mode::Max), [10, 40, 20, 50]);
    }

    #[test]
    fn only_finite_numbers_are_metrics() {
        let body =
            br#"{"index":1,"step":5,"state":"complete","submission":null,"saved_at":1,"size_bytes":0,"file_count":0,
            "metrics":{"loss":2.5,"text":"2","none":null},"parent":null,"marker_key":"k","marker_etag":"e"}"#;
        let entry = IndexEntry::parse(body).expect("an entry");
        for (metric, value) in [("loss", Some(2.5)), ("text", None), ("none", None), ("absent", None)] {
            assert_eq!(Known::of(&entry, Some(metric)).metric, value, "{metric}");
        }
    }
}
