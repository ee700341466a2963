//! Why a job does not run, told from its pods: the cluster's own words, where they stand, and what to do. Why it failed is
//! told in `failure`.

use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStateWaiting, ContainerStatus, Pod};
#[cfg(feature = "schema")]
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use training_run::text::{MAX_MESSAGE, bounded};

/// By these the kubelet's messages on evictions name a disk, its own and that of a pod
/// (<https://github.com/kubernetes/kubernetes/blob/v1.36.0/pkg/kubelet/eviction/helpers.go>).
const DISK_WORDS: [&str; 4] =
    ["ephemeral-storage", "ephemeral local storage", "local ephemeral storage", "EmptyDir volume"];

/// What keeps a job from running, or why it failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub struct Diagnosis {
    /// A stable word: `unschedulable`, `image_pull`, `container_config`, `evicted` or `crash_loop`; `failed` for a job that has ended.
    pub code: &'static str,
    /// What the cluster or the trainer says.
    pub message: String,
    /// Where it says so.
    pub evidence: Vec<String>,
    /// What to do.
    pub next_step: &'static str,
}

/// The first reason found in the pods' own conditions and container states: what keeps pods from starting comes before
/// what makes them fail.
#[must_use]
pub fn of_pods(pods: &[Pod]) -> Option<Diagnosis> {
    let not_started = [unschedulable, image_pull, container_config];
    let not_started = not_started.into_iter().find_map(|look| pods.iter().find_map(look));
    not_started.or_else(|| pods.iter().find_map(evicted)).or_else(|| crash_loop(pods))
}

fn unschedulable(pod: &Pod) -> Option<Diagnosis> {
    let conditions = pod.status.as_ref()?.conditions.as_deref()?;
    let condition =
        conditions.iter().find(|condition| condition.type_ == "PodScheduled" && condition.status == "False")?;
    let message = condition.message.clone().unwrap_or_else(|| "the scheduler gives no message".to_owned());
    Some(Diagnosis {
        code: "unschedulable",
        next_step: if message.contains("ephemeral-storage") {
            "lower disk_per_node_gb to what one node of the cluster has to give, add nodes with larger disks, or wait \
             until other jobs end"
        } else {
            "request no more than one node of the cluster has, add larger nodes, or wait until other jobs end"
        },
        message,
        evidence: vec![evidence(pod, "PodScheduled=False")],
    })
}

/// The operator replaces such a pod, so it is seen for a short time only.
fn evicted(pod: &Pod) -> Option<Diagnosis> {
    let status = pod.status.as_ref()?;
    let is_evicted = status.phase.as_deref() == Some("Failed") && status.reason.as_deref() == Some("Evicted");
    let message = status.message.as_deref().unwrap_or("its node gives no message").trim();
    is_evicted.then(|| Diagnosis {
        code: "evicted",
        message: bounded(message, MAX_MESSAGE),
        evidence: vec![evidence(pod, "Evicted")],
        next_step: if DISK_WORDS.iter().any(|word| message.contains(word)) {
            "raise disk_per_node_gb, or set it so that pods get nodes with as much disk: DELETE the job, and submit it again \
             with resume_from_checkpoint"
        } else {
            "nothing, if it happens once: the job goes on in a new pod; else read the job's events"
        },
    })
}

fn image_pull(pod: &Pod) -> Option<Diagnosis> {
    let reasons = ["ErrImagePull", "ImagePullBackOff", "InvalidImageName"];
    let (_, waiting, reason) = waiting_for(pod, &reasons)?;
    Some(Diagnosis {
        code: "image_pull",
        message: waiting.message.clone().unwrap_or_else(|| reason.to_owned()),
        evidence: vec![evidence(pod, reason)],
        next_step: "check the image's name and that the nodes may pull it",
    })
}

fn container_config(pod: &Pod) -> Option<Diagnosis> {
    let reasons = ["CreateContainerConfigError", "CreateContainerError", "RunContainerError"];
    let (_, waiting, reason) = waiting_for(pod, &reasons)?;
    Some(Diagnosis {
        code: "container_config",
        message: waiting.message.clone().unwrap_or_else(|| reason.to_owned()),
        evidence: vec![evidence(pod, reason)],
        next_step: "check that the Secrets of env_from_secrets have those keys in the job's namespace, and check the \
                    PodTemplate `training-defaults` there",
    })
}

/// A line that the trainer leaves for each process that fails.
#[derive(Deserialize)]
struct LastWords {
    cause: String,
    rank: u32,
    message: String,
    /// It ended only because another process did.
    #[serde(default)]
    consequence: bool,
}

/// When one process ends, the pods of all others end too; the one that knows why is told.
fn crash_loop(pods: &[Pod]) -> Option<Diagnosis> {
    let waiting = pods.iter().filter_map(|pod| {
        let (container, _, reason) = waiting_for(pod, &["CrashLoopBackOff"])?;
        let ended = container.last_state.as_ref().and_then(|state| state.terminated.as_ref());
        let (weight, said) = ended.map_or_else(|| (0, "its container keeps exiting".to_owned()), last_words);
        Some((weight, said, container.restart_count, evidence(pod, reason)))
    });
    // The first of the greatest weight: `max_by_key` takes the last.
    let (_, ended, restarts, evidence) = waiting.rev().max_by_key(|(weight, ..)| *weight)?;
    Some(Diagnosis {
        code: "crash_loop",
        message: format!("{ended} (started {} times)", restarts.saturating_add(1)),
        evidence: vec![evidence],
        next_step: "read the job's logs; when the request has to change, DELETE the job and submit it again",
    })
}

/// What a container said at its end, and how much that tells: the first process that knew why, else the last line of
/// other images, else a process that only knew that another one was gone, else the exit code.
fn last_words(ended: &ContainerStateTerminated) -> (u8, String) {
    let lines = || ended.message.as_deref().unwrap_or_default().lines().map(str::trim).filter(|line| !line.is_empty());
    let words = || lines().filter_map(|line| serde_json::from_str::<LastWords>(line).ok());
    let told =
        |words: LastWords| bounded(&format!("{}: {} (rank {})", words.cause, words.message, words.rank), MAX_MESSAGE);
    if let Some(words) = words().find(|words| !words.consequence) {
        return (3, told(words));
    }
    match (words().next(), lines().next_back()) {
        (Some(words), _) => (1, told(words)),
        (None, Some(line)) => (2, bounded(line, MAX_MESSAGE)),
        (None, None) => (0, format!("its container ended with exit code {}", ended.exit_code)),
    }
}

/// The first container that waits for one of these reasons.
fn waiting_for<'a>(
    pod: &'a Pod,
    reasons: &[&str],
) -> Option<(&'a ContainerStatus, &'a ContainerStateWaiting, &'a str)> {
    let status = pod.status.as_ref()?;
    let mut containers = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    containers.find_map(|container| {
        let waiting = container.state.as_ref()?.waiting.as_ref()?;
        let reason = waiting.reason.as_deref().filter(|reason| reasons.contains(reason))?;
        Some((container, waiting, reason))
    })
}

fn evidence(pod: &Pod, what: &str) -> String {
    format!("pod {}: {what}", pod.metadata.name.as_deref().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(state: &Value, last_state: &Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "j-master-0"},
            "status": {"containerStatuses": [{
                "name": "pytorch", "image": "", "imageID": "", "ready": false, "restartCount": 2,
                "state": state, "lastState": last_state,
            }]},
        }))
        .expect("a pod")
    }

    #[test]
    fn a_container_that_does_not_start_says_why() {
        let waiting = |reason: &str, message: &str| json!({"waiting": {"reason": reason, "message": message}});
        let ended = |message: &str| json!({"terminated": {"exitCode": 1, "message": message}});
        let nothing = json!({});
        for (state, last_state, code, message) in [
            (waiting("ImagePullBackOff", "no such image"), nothing.clone(), Some("image_pull"), "no such image"),
            (
                waiting("CreateContainerConfigError", "secret \"x\" not found"),
                nothing.clone(),
                Some("container_config"),
                "secret \"x\" not found",
            ),
            (
                waiting("CrashLoopBackOff", "back-off 10s"),
                ended("Traceback\nUserError: no such data set\n\n"),
                Some("crash_loop"),
                "UserError: no such data set (started 3 times)",
            ),
            (
                waiting("CrashLoopBackOff", "back-off 10s"),
                ended(""),
                Some("crash_loop"),
                "its container ended with exit code 1 (started 3 times)",
            ),
            (waiting("ContainerCreating", ""), nothing.clone(), None, ""),
            (json!({"running": {}}), ended("once"), None, ""),
            (
                waiting("CrashLoopBackOff", "back-off 10s"),
                ended(concat!(
                    "mory; the head of a line that the kubelet cut\"}\n",
                    "{\"cause\": \"crash\", \"rank\": 1, \"message\": \"another process is gone\", \"consequence\": true}\n",
                    "{\"cause\": \"out_of_memory\", \"rank\": 3, \"message\": \"lower batch_size\"}\n",
                    "{\"cause\": \"crash\", \"rank\": 2, \"message\": \"another process is gone\", \"consequence\": true}\n",
                )),
                Some("crash_loop"),
                "out_of_memory: lower batch_size (rank 3) (started 3 times)",
            ),
        ] {
            let diagnosis = of_pods(&[pod(&state, &last_state)]);
            assert_eq!(diagnosis.as_ref().map(|diagnosis| diagnosis.code), code, "{state}");
            assert_eq!(diagnosis.map(|diagnosis| diagnosis.message).unwrap_or_default(), message);
        }
    }

    #[test]
    fn a_disk_that_is_too_small_is_told_by_the_fields_name() {
        let pod = |status: Value| -> Pod {
            serde_json::from_value(json!({"metadata": {"name": "j-master-0"}, "status": status})).expect("a pod")
        };
        let raise = "raise disk_per_node_gb";
        for (message, code, begin) in [
            ("0/3 nodes are available: 3 Insufficient ephemeral-storage.", "unschedulable", "lower disk_per_node_gb"),
            ("0/3 nodes are available: 3 Insufficient cpu.", "unschedulable", "request no more"),
            ("Usage of EmptyDir volume \"trainer-work\" exceeds the limit \"1Gi\". ", "evicted", raise),
            ("Pod ephemeral local storage usage exceeds the total limit of containers 1Gi. ", "evicted", raise),
            ("Container pytorch exceeded its local ephemeral storage limit \"1Gi\". ", "evicted", raise),
            ("The node was low on resource: ephemeral-storage. Threshold quantity: 1", "evicted", raise),
            ("The node was low on resource: memory. ", "evicted", "nothing, if it happens once"),
        ] {
            let pod = pod(if code == "evicted" {
                json!({"phase": "Failed", "reason": "Evicted", "message": message})
            } else {
                json!({"conditions": [{"type": "PodScheduled", "status": "False", "message": message}]})
            });
            let found = of_pods(&[pod]).expect("a diagnosis");
            assert_eq!(found.code, code);
            assert!(found.next_step.starts_with(begin), "{found:?}");
        }
        let others = json!({"phase": "Failed", "reason": "NodeLost", "message": "ephemeral-storage"});
        assert_eq!(of_pods(&[pod(others)]), None);
    }

    #[test]
    fn the_pod_that_knows_why_is_told() {
        let waiting = json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}});
        let pods = [
            r#"{"cause": "crash", "rank": 0, "message": "another process is gone", "consequence": true}"#,
            r#"{"cause": "crash", "rank": 1, "message": "ValueError: x"}"#,
            r#"{"cause": "crash", "rank": 2, "message": "ValueError: y"}"#,
        ]
        .map(|message| pod(&waiting, &json!({"terminated": {"exitCode": 1, "message": message}})));
        let message = |pods: &[Pod]| of_pods(pods).map(|diagnosis| diagnosis.message);
        assert_eq!(message(&pods).as_deref(), Some("crash: ValueError: x (rank 1) (started 3 times)"));
        assert_eq!(message(&pods[..1]).as_deref(), Some("crash: another process is gone (rank 0) (started 3 times)"));
    }
}
