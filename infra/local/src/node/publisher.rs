//! Publishes a pod's status to the API server, and retries until the API server has it.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Pod, PodCondition, PodStatus};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::time;
use tracing::warn;

/// How long the API server may take to answer.
const ANSWER_TIME: Duration = Duration::from_secs(5);
/// The pause after the first failure. The next failures double it a few times.
const FIRST_PAUSE: Duration = Duration::from_millis(400);
const DOUBLINGS: u32 = 2;
/// The end of a container is published before its restart hides it, unless the API server is away for longer than this.
const UNPUBLISHED_END: Duration = Duration::from_secs(5);

/// What the API server has of one pod.
#[derive(Debug)]
pub(crate) struct Publisher {
    /// The last status that the API server has accepted.
    published: Option<PodStatus>,
    unpublished_since: Option<Instant>,
    try_after: Instant,
    failures: u32,
}

// === impl Publisher ===

impl Publisher {
    pub(crate) fn new() -> Self {
        Self { published: None, unpublished_since: None, try_after: Instant::now(), failures: 0 }
    }

    /// Whether the containers may change state: the present state is published, or was unpublished for too long.
    pub(crate) fn may_advance(&self) -> bool {
        self.unpublished_since.is_none_or(|since| since.elapsed() >= UNPUBLISHED_END)
    }

    /// Whether this node has published a status of the pod.
    pub(crate) fn has_published(&self) -> bool {
        self.published.is_some()
    }

    /// The conditions that the API server has, as far as this node knows.
    pub(crate) fn conditions(&self, present: &[PodCondition]) -> Vec<PodCondition> {
        let own = self.published.as_ref().and_then(|status| status.conditions.as_deref());
        own.unwrap_or(present).to_vec()
    }

    /// Publishes a status that has changed; `true` when the API server has it.
    pub(crate) async fn publish(&mut self, api: &Api<Pod>, name: &str, uid: &str, status: PodStatus) -> bool {
        if self.published.as_ref() == Some(&status) {
            self.unpublished_since = None;
            return true;
        }
        self.unpublished_since.get_or_insert_with(Instant::now);
        if Instant::now() < self.try_after {
            return false;
        }
        let patch = Patch::Strategic(patch(uid, &status));
        let answer = time::timeout(ANSWER_TIME, api.patch_status(name, &PatchParams::default(), &patch)).await;
        let problem = match answer {
            Ok(Ok(_)) => {
                self.published = Some(status);
                self.unpublished_since = None;
                self.failures = 0;
                return true;
            }
            // The pod is gone, or another one has its name. The watch will report that.
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

/// The patch carries the uid, so that a later pod of the same name does not get the status. A strategic merge keeps the
/// scheduler's condition, and removes a field only if the patch sets it to null.
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
