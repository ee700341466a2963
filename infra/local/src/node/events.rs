//! The events of pods in the kubelet's words, which `kubectl describe` shows.
//!
//! As in the kubelet, a repeated event raises a count, a pod can have 25 events at once and then one in five minutes,
//! and the node loses events rather than waits for the API server.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference, Pod},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::{sync::mpsc, time};
use tracing::warn;

const COMPONENT: &str = "kubelet";
/// How many events may wait for the API server.
const QUEUE: usize = 1000;
/// How long the API server may take to answer, how often an event is tried, and the pause between two tries.
const ANSWER_TIME: Duration = Duration::from_secs(5);
const TRIES: u32 = 60;
const RETRY: Duration = Duration::from_secs(2);
/// How many events a pod may have at once, and how soon it may have one more.
const BURST: u32 = 25;
const REFILL: Duration = Duration::from_mins(5);
/// The API server forgets an event after this time.
const KEPT: Duration = Duration::from_hours(1);

/// Something that happened to a pod or to one of its containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Happening {
    reason: &'static str,
    kind: Kind,
    message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Normal,
    Warning,
}

/// Queues events for the API server.
#[derive(Clone, Debug)]
pub(crate) struct Recorder {
    node_name: String,
    queue: mpsc::Sender<Event>,
}

/// The events of each pod, by its uid.
#[derive(Debug, Default)]
struct Correlator(HashMap<String, Said>);

/// The events of one pod.
#[derive(Debug)]
struct Said {
    /// How many more events the pod may have now, and the time of the last increase.
    allowance: u32,
    counted_from: Instant,
    newest: Instant,
    /// The events as the API server has them, by container, reason and message.
    events: HashMap<[Option<String>; 3], Event>,
}

// === impl Happening ===

impl Happening {
    fn normal(reason: &'static str, message: String) -> Self {
        Self { reason, kind: Kind::Normal, message }
    }

    fn warning(reason: &'static str, message: String) -> Self {
        Self { reason, kind: Kind::Warning, message }
    }

    /// The images that the node knows are always present.
    pub(crate) fn image_is_present(image: &str) -> Self {
        Self::normal("Pulled", format!("Container image \"{image}\" already present on machine"))
    }

    pub(crate) fn pulling(image: &str) -> Self {
        Self::normal("Pulling", format!("Pulling image \"{image}\""))
    }

    pub(crate) fn pull_failed(image: &str, why: &str) -> Self {
        Self::warning("Failed", format!("Failed to pull image \"{image}\": {why}"))
    }

    pub(crate) fn pull_backs_off(image: &str) -> Self {
        Self::normal("BackOff", format!("Back-off pulling image \"{image}\""))
    }

    /// The container was not started.
    pub(crate) fn failed(why: &str) -> Self {
        Self::warning("Failed", format!("Error: {why}"))
    }

    pub(crate) fn created() -> Self {
        Self::normal("Created", "Container created".to_owned())
    }

    pub(crate) fn started() -> Self {
        Self::normal("Started", "Container started".to_owned())
    }

    /// `pod` is `<name>_<namespace>(<uid>)`.
    pub(crate) fn restart_backs_off(container: &str, pod: &str) -> Self {
        Self::warning("BackOff", format!("Back-off restarting failed container {container} in pod {pod}"))
    }

    pub(crate) fn killing(container: &str) -> Self {
        Self::normal("Killing", format!("Stopping container {container}"))
    }

    pub(crate) fn deadline_exceeded() -> Self {
        let message = "Pod was active on the node longer than the specified deadline";
        Self::normal("DeadlineExceeded", message.to_owned())
    }

    /// The event as an object, about a pod or about the container at a path of the pod's manifest.
    fn event(self, pod: &Pod, field_path: Option<String>, node_name: &str, now: Timestamp) -> Event {
        let metadata = &pod.metadata;
        let name = metadata.name.as_deref().unwrap_or_default();
        Event {
            metadata: ObjectMeta {
                name: Some(format!("{name}.{:x}", now.as_nanosecond())),
                namespace: metadata.namespace.clone(),
                ..ObjectMeta::default()
            },
            involved_object: ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                name: metadata.name.clone(),
                namespace: metadata.namespace.clone(),
                uid: metadata.uid.clone(),
                resource_version: metadata.resource_version.clone(),
                field_path,
            },
            reason: Some(self.reason.to_owned()),
            message: Some(self.message),
            type_: Some(self.kind.name().to_owned()),
            source: Some(EventSource { component: Some(COMPONENT.to_owned()), host: Some(node_name.to_owned()) }),
            reporting_component: Some(COMPONENT.to_owned()),
            reporting_instance: Some(node_name.to_owned()),
            first_timestamp: Some(Time(now)),
            last_timestamp: Some(Time(now)),
            count: Some(1),
            ..Event::default()
        }
    }
}

// === impl Kind ===

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

// === impl Recorder ===

impl Recorder {
    /// Starts the task that sends the events.
    pub(crate) fn start(node_name: &str, client: Client) -> Self {
        let (queue, events) = mpsc::channel(QUEUE);
        tokio::spawn(send(client, events));
        Self { node_name: node_name.to_owned(), queue }
    }

    /// Queues an event, if the queue has room.
    pub(crate) fn record(&self, pod: &Pod, field_path: Option<String>, happening: Happening) {
        let event = happening.event(pod, field_path, &self.node_name, Timestamp::now());
        if self.queue.try_send(event).is_err() {
            warn!("an event is lost: too many wait for the API server");
        }
    }
}

// === impl Correlator ===

impl Correlator {
    /// The event to write: a new one, or a known one with a higher count. `None` when the pod has had too many.
    fn correlate(&mut self, event: Event, now: Instant) -> Option<Event> {
        self.0.retain(|_, said| now.duration_since(said.newest) < KEPT);
        let uid = event.involved_object.uid.clone().unwrap_or_default();
        let said = self.0.entry(uid).or_insert_with(|| Said {
            allowance: BURST,
            counted_from: now,
            newest: now,
            events: HashMap::new(),
        });
        said.newest = now;
        let key = [&event.involved_object.field_path, &event.reason, &event.message].map(Clone::clone);
        let known = said.events.entry(key).and_modify(|known| {
            known.count = known.count.map(|count| count.saturating_add(1));
            known.last_timestamp.clone_from(&event.last_timestamp);
        });
        let event = known.or_insert(event).clone();
        said.may_say(now).then_some(event)
    }
}

// === impl Said ===

impl Said {
    fn may_say(&mut self, now: Instant) -> bool {
        while self.allowance < BURST && now.duration_since(self.counted_from) >= REFILL {
            self.allowance += 1;
            self.counted_from += REFILL;
        }
        if self.allowance == BURST {
            self.counted_from = now;
        }
        match self.allowance.checked_sub(1) {
            Some(rest) => {
                self.allowance = rest;
                true
            }
            None => false,
        }
    }
}

async fn send(client: Client, mut events: mpsc::Receiver<Event>) {
    let mut correlator = Correlator::default();
    while let Some(event) = events.recv().await {
        let Some(event) = correlator.correlate(event, Instant::now()) else { continue };
        for attempt in 1..=TRIES {
            match time::timeout(ANSWER_TIME, write(&client, &event)).await {
                // A refusal is final. Most likely the namespace is being removed.
                Ok(Ok(()) | Err(kube::Error::Api(_))) => break,
                Ok(Err(_)) | Err(_) if attempt == TRIES => warn!("an event is lost: the API server does not answer"),
                Ok(Err(_)) | Err(_) => time::sleep(RETRY).await,
            }
        }
    }
}

/// Creates the event, or raises its count. The request can be repeated when its answer was lost.
async fn write(client: &Client, event: &Event) -> Result<(), kube::Error> {
    let api: Api<Event> = Api::namespaced(client.clone(), event.metadata.namespace.as_deref().unwrap_or_default());
    if event.count > Some(1) {
        let name = event.metadata.name.as_deref().unwrap_or_default();
        let again = json!({"count": event.count, "lastTimestamp": event.last_timestamp});
        match api.patch(name, &PatchParams::default(), &Patch::Merge(again)).await {
            // The API server has forgotten the event, or has never had it.
            Err(kube::Error::Api(answer)) if answer.code == 404 => {}
            other => return other.map(|_| ()),
        }
    }
    api.create(&PostParams::default(), event).await.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(uid: &str, happening: Happening) -> Event {
        let pod =
            json!({"metadata": {"name": "job-master-0", "namespace": "training", "uid": uid, "resourceVersion": "7"}});
        let pod: Pod = serde_json::from_value(pod).unwrap();
        happening.event(&pod, Some("spec.containers{pytorch}".to_owned()), "twin", Timestamp::from_second(1).unwrap())
    }

    #[test]
    fn an_event_is_the_kubelets() {
        let event = event("u", Happening::restart_backs_off("pytorch", "job-master-0_training(u)"));
        assert_eq!(
            serde_json::to_value(event).unwrap(),
            json!({
                "apiVersion": "v1", "kind": "Event",
                "metadata": {"name": "job-master-0.3b9aca00", "namespace": "training"},
                "involvedObject": {
                    "apiVersion": "v1", "kind": "Pod", "namespace": "training", "name": "job-master-0", "uid": "u",
                    "resourceVersion": "7", "fieldPath": "spec.containers{pytorch}",
                },
                "type": "Warning", "reason": "BackOff", "count": 1,
                "message": "Back-off restarting failed container pytorch in pod job-master-0_training(u)",
                "source": {"component": "kubelet", "host": "twin"},
                "reportingComponent": "kubelet", "reportingInstance": "twin",
                "firstTimestamp": "1970-01-01T00:00:01Z", "lastTimestamp": "1970-01-01T00:00:01Z",
            })
        );
    }

    #[test]
    fn what_is_said_again_is_counted() {
        let mut correlator = Correlator::default();
        let now = Instant::now();
        let mut count = |uid, happening| correlator.correlate(event(uid, happening), now).unwrap().count;
        assert_eq!(count("a", Happening::started()), Some(1));
        assert_eq!(count("a", Happening::started()), Some(2));
        assert_eq!(count("a", Happening::created()), Some(1), "something else");
        assert_eq!(count("a", Happening::failed("one")), Some(1));
        assert_eq!(count("a", Happening::failed("two")), Some(1), "another message");
        assert_eq!(count("b", Happening::started()), Some(1), "another pod");
    }

    #[test]
    fn a_count_belongs_to_the_event_that_was_written_first() {
        let mut correlator = Correlator::default();
        let first = event("a", Happening::started());
        let mut second = first.clone();
        second.metadata.name = Some("job-master-0.2".to_owned());
        second.last_timestamp = Some(Time(Timestamp::from_second(60).unwrap()));
        let now = Instant::now();
        correlator.correlate(first.clone(), now);
        let expected = Event { count: Some(2), last_timestamp: second.last_timestamp.clone(), ..first };
        assert_eq!(correlator.correlate(second, now), Some(expected));
    }

    #[test]
    fn a_pod_that_says_too_much_is_heard_now_and_then() {
        let mut correlator = Correlator::default();
        let begin = Instant::now();
        let mut heard = |minutes| {
            let now = begin + Duration::from_mins(minutes);
            (0..100).filter(|_| correlator.correlate(event("a", Happening::started()), now).is_some()).count()
        };
        // (minutes since the first event, how many of a hundred are heard)
        for (minutes, expected) in [(0, 25), (4, 0), (5, 1), (9, 0), (20, 3), (600, 25)] {
            assert_eq!(heard(minutes), expected, "after {minutes} minutes");
        }
    }
}
