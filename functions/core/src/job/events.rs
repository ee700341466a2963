//! What the cluster says of a job: the events of the `PyTorchJob` and of its pods, as one story.

use k8s_openapi::{
    api::core::v1::Event,
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::{SignedDuration, Timestamp},
};
#[cfg(feature = "schema")]
use schemars::JsonSchema;
use serde::Serialize;

use crate::job::pytorchjob::PyTorchJob;

/// Events told of a job; of more, the newest.
const MAX_EVENTS: usize = 500;

/// The answer of GET /train/{name}/events.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub struct EventList {
    /// The events, oldest first. The cluster forgets them, usually after an hour.
    pub events: Vec<EventAnswer>,
    /// Whether some are left out, because the job or its namespace has too many.
    pub truncated: bool,
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
#[cfg_attr(feature = "schema", schemars(rename = "Event"))]
pub struct EventAnswer {
    /// Normal or Warning.
    pub r#type: Option<String>,
    /// A word for machines.
    pub reason: Option<String>,
    /// A sentence for people.
    pub message: Option<String>,
    /// What it is about.
    pub object: EventObject,
    /// How often it happened; null when whoever reports it does not count, as the scheduler.
    pub count: Option<i32>,
    /// When it happened first.
    #[cfg_attr(feature = "schema", schemars(with = "Option<Timestamp>"))]
    pub first_seen: Option<Time>,
    /// When it happened last.
    #[cfg_attr(feature = "schema", schemars(with = "Option<Timestamp>"))]
    pub last_seen: Option<Time>,
    /// Who reports it.
    pub source: Option<String>,
}

/// What an event is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema))]
pub struct EventObject {
    /// `PyTorchJob` or `Pod`.
    pub kind: String,
    /// Its name.
    pub name: String,
}

/// Gathers the events of one job out of those of its namespace.
#[derive(Debug)]
pub struct EventGatherer<'a> {
    job: &'a PyTorchJob,
    events: Vec<EventAnswer>,
    truncated: bool,
}

// === impl EventGatherer ===

impl<'a> EventGatherer<'a> {
    /// Nothing yet of this job.
    #[must_use]
    pub fn new(job: &'a PyTorchJob) -> Self {
        Self { job, events: Vec::new(), truncated: false }
    }

    /// Take those events that are about the job.
    pub fn add(&mut self, events: impl IntoIterator<Item = Event>) {
        let mine = events.into_iter().filter(|event| self.is_of_job(event)).map(EventAnswer::from);
        let mine: Vec<_> = mine.filter(|event| self.is_of_its_time(event)).collect();
        self.events.extend(mine);
        // Jobs of one name follow each other, so the oldest events are the least telling.
        self.events.sort_by_key(|event| (seconds(event.last_seen.as_ref()), seconds(event.first_seen.as_ref())));
        let too_many = self.events.len().saturating_sub(MAX_EVENTS);
        self.truncated |= too_many > 0;
        self.events.drain(..too_many);
    }

    /// Note that the namespace has more events than were looked through.
    pub fn give_up(&mut self) {
        self.truncated = true;
    }

    /// The answer.
    #[must_use]
    pub fn finish(self) -> EventList {
        EventList { events: self.events, truncated: self.truncated }
    }

    fn is_of_job(&self, event: &Event) -> bool {
        let object = &event.involved_object;
        let name = self.job.metadata.name.as_deref().unwrap_or_default();
        match object.kind.as_deref() {
            // Names are used again, uids are not.
            Some("PyTorchJob") => object.uid.is_some() && object.uid == self.job.metadata.uid,
            Some("Pod") => object.name.as_deref().is_some_and(|pod| is_pod_of(name, pod)),
            _ => false,
        }
    }

    /// A job of the same name may have gone before. Kubernetes gives the time of a creation in whole seconds.
    fn is_of_its_time(&self, event: &EventAnswer) -> bool {
        match (&event.last_seen, &self.job.metadata.creation_timestamp) {
            (Some(seen), Some(created)) => seen.0 >= created.0,
            _ => true,
        }
    }
}

// === impl EventAnswer ===

impl From<Event> for EventAnswer {
    fn from(event: Event) -> Self {
        let series = event.series;
        let event_time = event.event_time.map(|time| Time(time.0));
        let first_seen = event.first_timestamp.or(event_time).or(event.metadata.creation_timestamp);
        let last_in_series = series.as_ref().and_then(|series| series.last_observed_time.clone());
        let last_seen = last_in_series.map(|time| Time(time.0)).or(event.last_timestamp).or_else(|| first_seen.clone());
        let reporter = event.source.and_then(|source| source.component).or(event.reporting_component);
        Self {
            r#type: event.type_,
            reason: event.reason,
            message: event.message,
            object: EventObject {
                kind: event.involved_object.kind.unwrap_or_default(),
                name: event.involved_object.name.unwrap_or_default(),
            },
            count: event.count.or(series.and_then(|series| series.count)),
            first_seen,
            last_seen,
            source: reporter.filter(|reporter| !reporter.is_empty()),
        }
    }
}

/// Whether the operator gives this name to a pod of the job: `<job>-master-0`, `<job>-worker-12`.
#[must_use]
pub fn is_pod_of(job: &str, pod: &str) -> bool {
    let tail = pod.strip_prefix(job).and_then(|tail| tail.strip_prefix("-master-").or(tail.strip_prefix("-worker-")));
    tail.is_some_and(|index| !index.is_empty() && index.bytes().all(|byte| byte.is_ascii_digit()))
}

/// A time to sort by; an event without one is the oldest.
fn seconds(time: Option<&Time>) -> SignedDuration {
    time.map_or(SignedDuration::MIN, |time| time.0.duration_since(Timestamp::UNIX_EPOCH))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn job() -> PyTorchJob {
        serde_json::from_value(json!({
            "apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "spec": {},
            "metadata": {"name": "hf-r", "uid": "u1", "creationTimestamp": "2026-11-24T03:00:00Z"},
        }))
        .expect("a job")
    }

    fn event(kind: &str, name: &str, uid: &str, time: &str) -> Value {
        json!({"metadata": {}, "involvedObject": {"kind": kind, "name": name, "uid": uid}, "reason": "R", "count": 2,
               "firstTimestamp": time, "lastTimestamp": time, "source": {"component": "operator"}})
    }

    fn gather(events: &[Value]) -> EventList {
        let job = job();
        let mut gatherer = EventGatherer::new(&job);
        gatherer.add(events.iter().map(|event| serde_json::from_value(event.clone()).expect("an event")));
        gatherer.finish()
    }

    #[test]
    fn only_the_jobs_own_events_are_told() {
        let after = "2026-11-24T03:00:05Z";
        for (case, kind, name, uid, time, is_told) in [
            ("the job", "PyTorchJob", "hf-r", "u1", after, true),
            ("an older job of that name", "PyTorchJob", "hf-r", "u0", after, false),
            ("its master", "Pod", "hf-r-master-0", "p", after, true),
            ("the second it was made in", "Pod", "hf-r-worker-11", "p", "2026-11-24T03:00:00Z", true),
            ("before the job", "Pod", "hf-r-master-0", "p", "2026-11-24T02:59:59Z", false),
            ("a pod of a job with a longer name", "Pod", "hf-r-2-master-0", "p", after, false),
            ("a pod of a job called like a pod", "Pod", "hf-r-worker-0-master-0", "p", after, false),
            ("no index", "Pod", "hf-r-master-", "p", after, false),
            ("a service", "Service", "hf-r-master-0", "s", after, false),
        ] {
            assert_eq!(gather(&[event(kind, name, uid, time)]).events.len(), usize::from(is_told), "{case}");
        }
    }

    #[test]
    fn the_oldest_come_first_and_too_many_lose_the_oldest() {
        let times = |list: &EventList| -> Vec<_> {
            list.events.iter().filter_map(|event| Some(event.last_seen.as_ref()?.0.to_string())).collect()
        };
        let at = |second: usize| {
            event("Pod", "hf-r-master-0", "p", &format!("2026-11-24T03:{:02}:{:02}Z", second / 60, second % 60))
        };
        let few = gather(&[at(9), at(3), at(7)]);
        assert_eq!(times(&few), ["2026-11-24T03:00:03Z", "2026-11-24T03:00:07Z", "2026-11-24T03:00:09Z"]);
        assert!(!few.truncated);
        let many = gather(&(0..=MAX_EVENTS).map(at).collect::<Vec<_>>());
        assert_eq!((many.events.len(), many.truncated), (MAX_EVENTS, true));
        assert_eq!(times(&many).first().map(String::as_str), Some("2026-11-24T03:00:01Z"));
    }

    #[test]
    fn the_schedulers_events_have_another_shape() {
        let list = gather(&[json!({
            "metadata": {"creationTimestamp": "2026-11-24T03:00:01Z"}, "involvedObject": {"kind": "Pod", "name": "hf-r-master-0"},
            "type": "Warning", "reason": "FailedScheduling", "message": "0/1 nodes", "source": {},
            "firstTimestamp": null, "lastTimestamp": null, "eventTime": "2026-11-24T03:00:02.123456Z",
            "reportingComponent": "default-scheduler",
        })]);
        let time = serde_json::to_value(&list.events).expect("serialisable");
        assert_eq!(time[0]["count"], Value::Null);
        assert_eq!((&time[0]["source"], &time[0]["type"]), (&json!("default-scheduler"), &json!("Warning")));
        assert_eq!(time[0]["object"], json!({"kind": "Pod", "name": "hf-r-master-0"}));
        assert_eq!(time[0]["first_seen"], time[0]["last_seen"]);
        assert!(time[0]["last_seen"].as_str().is_some_and(|time| time.starts_with("2026-11-24T03:00:02")));
    }
}
