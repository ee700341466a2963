//! Limits how many trainer pods run at once. They all share this machine, while a real cluster has a machine for each.
//!
//! A job is admitted whole, and jobs are admitted in order of arrival. Two half-admitted jobs would wait for ever.

use std::collections::{HashMap, HashSet, VecDeque};

/// A job that waits for admission, with the places that it needs.
#[derive(Debug)]
struct Request {
    job: String,
    places: usize,
}

/// The admitted jobs and the waiting ones.
#[derive(Debug)]
pub(crate) struct Admission {
    limit: usize,
    /// The places that each admitted job holds, and its pods so far.
    admitted: HashMap<String, (usize, HashSet<String>)>,
    /// The waiting jobs, each with its pods so far.
    waiting: VecDeque<(Request, HashSet<String>)>,
}

// === impl Admission ===

impl Admission {
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, admitted: HashMap::new(), waiting: VecDeque::new() }
    }

    /// Whether a pod may start. A job that needs more places than there are runs alone.
    pub(crate) fn admit(&mut self, job: &str, places: usize, pod_uid: &str) -> bool {
        if !self.admitted.contains_key(job) {
            self.queue(job, places, pod_uid);
            self.let_in();
        }
        match self.admitted.get_mut(job) {
            Some((_, pods)) => {
                pods.insert(pod_uid.to_owned());
                true
            }
            None => false,
        }
    }

    /// Counts a pod that runs already, because an earlier node started it.
    pub(crate) fn adopt(&mut self, job: &str, places: usize, pod_uid: &str) {
        let (_, pods) = self.admitted.entry(job.to_owned()).or_insert((places, HashSet::new()));
        pods.insert(pod_uid.to_owned());
    }

    /// Removes a pod that has ended. The last pod of a job frees the job's places.
    pub(crate) fn release(&mut self, job: &str, pod_uid: &str) {
        if let Some((_, pods)) = self.admitted.get_mut(job) {
            pods.remove(pod_uid);
            if pods.is_empty() {
                self.admitted.remove(job);
            }
        }
        for (_, pods) in &mut self.waiting {
            pods.remove(pod_uid);
        }
        self.waiting.retain(|(_, pods)| !pods.is_empty());
        self.let_in();
    }

    fn queue(&mut self, job: &str, places: usize, pod_uid: &str) {
        match self.waiting.iter_mut().find(|(request, _)| request.job == job) {
            Some((_, pods)) => {
                pods.insert(pod_uid.to_owned());
            }
            None => {
                self.waiting.push_back((Request { job: job.to_owned(), places }, HashSet::from([pod_uid.to_owned()])));
            }
        }
    }

    /// No job overtakes another one. A large job at the head would otherwise starve.
    fn let_in(&mut self) {
        while let Some((request, _)) = self.waiting.front() {
            let held: usize = self.admitted.values().map(|(places, _)| places).sum();
            if !self.admitted.is_empty() && held + request.places > self.limit {
                return;
            }
            if let Some((request, pods)) = self.waiting.pop_front() {
                self.admitted.insert(request.job, (request.places, pods));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_are_let_in_whole_and_in_order() {
        let mut admission = Admission::new(4);
        assert!(admission.admit("a", 2, "a-0"));
        assert!(admission.admit("b", 2, "b-0"));
        assert!(!admission.admit("c", 2, "c-0"), "no place is left, though b-1 has not come yet");
        assert!(!admission.admit("d", 1, "d-0"));
        assert!(admission.admit("b", 2, "b-1"));
        assert!(admission.admit("a", 2, "a-1"));
        admission.release("a", "a-0");
        assert!(!admission.admit("c", 2, "c-0"), "a-1 still runs");
        admission.release("a", "a-1");
        assert!(!admission.admit("d", 1, "d-0"), "c came first and took both places");
        assert!(admission.admit("c", 2, "c-1"));
    }

    #[test]
    fn a_job_larger_than_the_limit_runs_alone() {
        let mut admission = Admission::new(4);
        assert!(admission.admit("small", 1, "s"));
        assert!(!admission.admit("large", 6, "l-0"));
        admission.release("small", "s");
        assert!(admission.admit("large", 6, "l-0"));
        assert!(!admission.admit("small", 1, "s"));
        assert!(admission.admit("large", 6, "l-5"));
    }

    #[test]
    fn a_waiting_job_whose_pods_are_deleted_leaves_the_queue() {
        let mut admission = Admission::new(2);
        assert!(admission.admit("a", 1, "a"));
        assert!(!admission.admit("large", 2, "l"));
        assert!(!admission.admit("b", 1, "b"));
        admission.release("large", "l");
        assert!(admission.admit("b", 1, "b"));
    }

    #[test]
    fn adopted_pods_hold_their_places() {
        let mut admission = Admission::new(2);
        admission.adopt("a", 2, "a-0");
        assert!(!admission.admit("b", 1, "b"));
        assert!(admission.admit("a", 2, "a-1"));
        admission.release("a", "a-0");
        admission.release("a", "a-1");
        assert!(admission.admit("b", 1, "b"));
    }
}
