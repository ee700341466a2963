//! Tells the API server a pod's status until it has heard, however long it is away.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Pod, PodCondition, PodStatus};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::time;
use tracing::warn;

/// How long the API server has to answer.
const ANSWER_TIME: Duration = Duration::from_secs(5);
/// The pause after the first failure; it doubles a few times.
const FIRST_PAUSE: Duration = Duration::from_millis(400);
const DOUBLINGS: u32 = 2;
/// A container's end must be seen before its restart hides it, unless the API server is away for longer.
const UNSEEN_END: Duration = Duration::from_secs(5);

/// What the API server knows of one pod.
#[derive(Debug)]
pub(crate) struct Publisher {
    /// What it has heard last.
    heard: Option<PodStatus>,
    unheard_since: Option<Instant>,
    try_after: Instant,
    failures: u32,
}

// === impl Publisher ===

impl Publisher {
    pub(crate) fn new() -> Self {
        Self { heard: None, unheard_since: None, try_after: Instant::now(), failures: 0 }
    }

    /// Whether the containers' present states need not be held still to be seen.
    pub(crate) fn may_go_on(&self) -> bool {
        self.unheard_since.is_none_or(|since| since.elapsed() >= UNSEEN_END)
    }

    /// Whether the API server has heard anything from this node.
    pub(crate) fn has_spoken(&self) -> bool {
        self.heard.is_some()
    }

    /// The conditions that the API server has, as far as is known.
    pub(crate) fn conditions(&self, present: &[PodCondition]) -> Vec<PodCondition> {
        let own = self.heard.as_ref().and_then(|status| status.conditions.as_deref());
        own.unwrap_or(present).to_vec()
    }

    /// Publish a status when it is not the one known; `true` when the API server knows it.
    pub(crate) async fn publish(&mut self, api: &Api<Pod>, name: &str, uid: &str, status: PodStatus) -> bool {
        if self.heard.as_ref() == Some(&status) {
            self.unheard_since = None;
            return true;
        }
        self.unheard_since.get_or_insert_with(Instant::now);
        if Instant::now() < self.try_after {
            return false;
        }
        let patch = Patch::Strategic(patch(uid, &status));
        let answer = time::timeout(ANSWER_TIME, api.patch_status(name, &PatchParams::default(), &patch)).await;
        let problem = match answer {
            Ok(Ok(_)) => {
                self.heard = Some(status);
                self.unheard_since = None;
                self.failures = 0;
                return true;
            }
            // Gone, or another of the same name: the watch will say so.
            Ok(Err(kube::Error::Api(answer))) if matches!(answer.code, 404 | 409) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some("no answer".to_owned()),
        };
        if let Some(problem) = problem.filter(|_| self.failures == 0) {
            warn!("cannot tell the status of pod {name}, and trying on: {problem}");
        }
        self.try_after = Instant::now() + FIRST_PAUSE * 2_u32.pow(self.failures.min(DOUBLINGS));
        self.failures += 1;
        false
    }
}

/// The uid keeps the status from a later pod of the same name. A strategic merge leaves the scheduler's condition alone,
/// and a field is only removed when it is named.
fn patch(uid: &str, status: &PodStatus) -> Value {
    let mut status = json!(status);
    for condition in status["conditions"].as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
        for field in ["reason", "message"] {
            condition.entry(field).or_insert(Value::Null);
        }
    }
    json!({"metadata": {"uid": uid}, "status": status})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_takes_away_what_no_longer_holds() {
        let condition = |reason: Option<&str>| PodCondition {
            type_: "Ready".to_owned(),
            status: "True".to_owned(),
            reason: reason.map(str::to_owned),
            ..PodCondition::default()
        };
        for (label, reason, expected) in
            [("a reason", Some("PodCompleted"), json!("PodCompleted")), ("no reason any more", None, Value::Null)]
        {
            let status = PodStatus { conditions: Some(vec![condition(reason)]), ..PodStatus::default() };
            let patch = patch("uid", &status);
            let condition = patch["status"]["conditions"][0].as_object().unwrap();
            assert_eq!(condition.get("reason"), Some(&expected), "{label}");
            assert_eq!(condition.get("message"), Some(&Value::Null), "{label}");
            assert_eq!(patch["metadata"]["uid"], "uid", "{label}");
        }
    }
}
