//! One container of a pod: its state, and what follows from it. Each round of the pod calls `observe`, which notices
//! that an attempt has ended, and `advance`, which starts the next one. Nothing here waits for a program.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::core::v1::{Container as Spec, ContainerStatus, Pod},
    jiff::Timestamp,
};
use nix::sys::signal::Signal;
use tracing::{info, warn};

use crate::{
    attempt::{self, AttemptFolder, Exit},
    back_off::BackOff,
    events::Happening,
    process,
    runner::{LaunchError, Runner, Signalled, Surroundings},
    status::{ContainerView, RestartPolicy, State, Termination},
    termination,
};

/// How long the status of a failed pull is `ErrImagePull` before it becomes `ImagePullBackOff`.
const PULL_ERROR_SHOWN: Duration = Duration::from_secs(1);
/// How soon a start is tried again after something that the configuration names was missing.
const CONFIGURATION_RETRY: Duration = Duration::from_secs(2);
/// How soon the same missing thing is an event again.
const CONFIGURATION_EVENT: Duration = Duration::from_secs(10);

/// A container and its attempts so far.
#[derive(Debug)]
pub(crate) struct Container {
    spec: Spec,
    /// `<pod uid>/<container>`, with which the id of each attempt begins.
    id: String,
    /// The pod's name in log lines and messages.
    pod: String,
    /// The container's place in the pod's manifest, as events name it.
    field_path: String,
    /// Whether this is an init container that keeps running beside the others.
    sidecar: bool,
    folder: PathBuf,
    runner: Runner,
    activity: Activity,
    /// The end of the attempt before the newest one.
    last: Option<Termination>,
    /// The newest attempt, counted from 0.
    attempt: Option<u32>,
    restarts: BackOff,
    pulls: BackOff,
    base_delay: Duration,
    /// The last event of something that was missing, and its time.
    reported: Option<(String, Instant)>,
}

#[derive(Debug)]
enum Activity {
    /// The container does not run until then.
    Waiting { reason: &'static str, message: Option<String>, until: Instant, next: Next },
    /// The newest attempt runs.
    Running { started_at: Timestamp },
    /// The newest attempt has ended.
    Ended { termination: Termination, noticed_at: Instant },
}

/// What follows a wait.
#[derive(Clone, Debug)]
enum Next {
    Start,
    /// The status changes to `ImagePullBackOff`, and the pull is tried again at this time.
    PullAgain {
        at: Instant,
    },
}

// === impl Container ===

impl Container {
    /// Finds a container as an earlier node left it, or one that has not started yet.
    pub(crate) fn find(pod: &Pod, spec: &Spec, pod_folder: &Path, base_delay: Duration) -> anyhow::Result<Self> {
        let metadata = &pod.metadata;
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        let uid = text(&metadata.uid);
        let init_containers = || pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
        let is_init = init_containers().any(|container| container.name == spec.name);
        let reason = if init_containers().next().is_some() { "PodInitializing" } else { "ContainerCreating" };
        let mut container = Self {
            id: format!("{uid}/{}", spec.name),
            pod: format!("{}_{}({uid})", text(&metadata.name), text(&metadata.namespace)),
            field_path: format!("spec.{}{{{}}}", if is_init { "initContainers" } else { "containers" }, spec.name),
            sidecar: is_init && spec.restart_policy.as_deref() == Some("Always"),
            folder: pod_folder.join(&spec.name),
            runner: Runner::of(spec, pod_folder),
            spec: spec.clone(),
            activity: Activity::Waiting { reason, message: None, until: Instant::now(), next: Next::Start },
            last: None,
            attempt: None,
            restarts: BackOff::new(base_delay),
            pulls: BackOff::new(base_delay),
            base_delay,
            reported: None,
        };
        container.attempt = match attempt::attempts(&container.folder)?.last() {
            Some(newest) => Some(*newest),
            None => container.restore(pod)?,
        };
        if let Some(newest) = container.attempt {
            container.last = newest
                .checked_sub(1)
                .and_then(|before| Some(container.termination(before, container.attempt_folder(before).exit()?)));
            container.activity =
                Activity::Running { started_at: process::started_at(&container.attempt_folder(newest)) };
        }
        Ok(container)
    }

    /// Restores the newest attempt of a pod whose folder was lost, from the status in the API server.
    fn restore(&self, pod: &Pod) -> anyhow::Result<Option<u32>> {
        let Some(status) = reported(pod, &self.spec.name) else { return Ok(None) };
        let state = status.state.clone().unwrap_or_default();
        let ended = match (state.terminated, state.running) {
            (Some(ended), _) => Some(ended),
            (None, Some(_)) => None,
            (None, None) => status.last_state.clone().unwrap_or_default().terminated,
        };
        let now = Timestamp::now();
        let exit = match ended {
            Some(ended) => Some(Exit {
                code: ended.exit_code,
                started_at: ended.started_at.map_or(now, |time| time.0),
                finished_at: ended.finished_at.map_or(now, |time| time.0),
                refused: None,
            }),
            // It was running when the API server last heard of it.
            None => self.runner.lost(now),
        };
        let Some(exit) = exit else { return Ok(None) };
        let attempt = u32::try_from(status.restart_count)?;
        self.attempt_folder(attempt).record_exit(&exit)?;
        Ok(Some(attempt))
    }

    pub(crate) fn view(&self) -> ContainerView {
        ContainerView {
            name: self.spec.name.clone(),
            image: self.spec.image.clone().unwrap_or_default(),
            state: match &self.activity {
                Activity::Waiting { reason, message, .. } => State::Waiting { reason, message: message.clone() },
                Activity::Running { started_at } => State::Running { started_at: *started_at },
                Activity::Ended { termination, .. } => State::Terminated(termination.clone()),
            },
            last: self.last.clone(),
            restart_count: self.attempt.unwrap_or(0),
            container_id: self.attempt.map(|attempt| self.attempt_id(attempt)),
            sidecar: self.sidecar,
        }
    }

    pub(crate) fn field_path(&self) -> &str {
        &self.field_path
    }

    pub(crate) fn is_sidecar(&self) -> bool {
        self.sidecar
    }

    pub(crate) fn is_running(&self) -> bool {
        matches!(self.activity, Activity::Running { .. })
    }

    pub(crate) fn has_succeeded(&self) -> bool {
        matches!(&self.activity, Activity::Ended { termination, .. } if termination.exit_code == 0)
    }

    /// Whether there has been an attempt.
    pub(crate) fn has_started(&self) -> bool {
        self.attempt.is_some()
    }

    /// Returns `true` when the running attempt is found to have ended.
    pub(crate) fn observe(&mut self) -> bool {
        let (Activity::Running { started_at }, Some(attempt)) = (&self.activity, self.attempt) else {
            return false;
        };
        let Some(exit) = self.runner.observe(&self.attempt_folder(attempt), *started_at) else { return false };
        self.end(attempt, exit);
        true
    }

    /// Does what is due: starts an attempt, or shows why none starts.
    pub(crate) async fn advance(&mut self, policy: RestartPolicy, surroundings: &Surroundings<'_>) {
        match &self.activity {
            Activity::Running { started_at } => {
                let exit = self.runner.finish(surroundings.master_has_started, *started_at);
                if let (Some(attempt), Some(exit)) = (self.attempt, exit) {
                    self.record_end(attempt, exit);
                }
            }
            Activity::Ended { termination, noticed_at } => {
                if !policy.restarts(termination.exit_code) {
                    return;
                }
                let noticed_at = *noticed_at;
                self.last = Some(termination.clone());
                let delay = self.restarts.delay(noticed_at);
                if delay.is_zero() {
                    self.start(surroundings).await;
                    return;
                }
                let message = format!(
                    "back-off {}s restarting failed container={} pod={}",
                    delay.as_secs(),
                    self.spec.name,
                    self.pod
                );
                info!("{message}");
                self.record(surroundings, Happening::restart_backs_off(&self.spec.name, &self.pod));
                self.wait("CrashLoopBackOff", Some(message), noticed_at + delay, Next::Start);
            }
            Activity::Waiting { until, .. } if Instant::now() < *until => {}
            Activity::Waiting { next: Next::Start, .. } => self.start(surroundings).await,
            Activity::Waiting { message, next: Next::PullAgain { at }, .. } => {
                let image = self.image();
                let message = message.as_deref().unwrap_or_default();
                let message = format!("Back-off pulling image \"{image}\": ErrImagePull: {message}");
                let at = *at;
                self.record(surroundings, Happening::pull_backs_off(image));
                self.record(surroundings, Happening::failed("ImagePullBackOff"));
                self.wait("ImagePullBackOff", Some(message), at, Next::Start);
            }
        }
    }

    /// Signals the running attempt; `true` when the signal has reached it.
    pub(crate) fn signal(&mut self, signal: Signal) -> bool {
        let (Activity::Running { started_at }, Some(attempt)) = (&self.activity, self.attempt) else {
            return false;
        };
        match self.runner.signal(&self.attempt_folder(attempt), signal, *started_at) {
            Signalled::Unreached => false,
            Signalled::Reached => {
                info!("{signal} sent to {}", self.attempt_id(attempt));
                true
            }
            Signalled::Ended(exit) => {
                self.record_end(attempt, exit);
                true
            }
        }
    }

    async fn start(&mut self, surroundings: &Surroundings<'_>) {
        let attempt = self.runner.next_attempt(self.attempt);
        let (id, folder) = (self.attempt_id(attempt), self.attempt_folder(attempt));
        match self.runner.launch(&self.spec, &id, &folder, surroundings).await {
            Err(LaunchError::Pull(message)) => self.wait_for_image(surroundings, message),
            Err(LaunchError::Configuration(message)) => self.wait_for_configuration(surroundings, message),
            Err(LaunchError::Start(message)) => {
                self.attempt = Some(attempt);
                self.record(surroundings, Happening::image_is_present(self.image()));
                self.record(surroundings, Happening::created());
                self.record(surroundings, Happening::failed(&message));
                self.record_end(attempt, Exit::of_refused(message));
            }
            Ok(()) => {
                self.attempt = Some(attempt);
                self.record(surroundings, Happening::image_is_present(self.image()));
                self.record(surroundings, Happening::created());
                self.record(surroundings, Happening::started());
                self.activity = Activity::Running { started_at: Timestamp::now() };
            }
        }
    }

    fn wait_for_image(&mut self, surroundings: &Surroundings<'_>, message: String) {
        warn!("{}: {message}", self.id);
        self.record(surroundings, Happening::pulling(self.image()));
        self.record(surroundings, Happening::pull_failed(self.image(), &message));
        self.record(surroundings, Happening::failed("ErrImagePull"));
        let now = Instant::now();
        let at = now + self.pulls.delay(now).max(self.base_delay);
        self.wait("ErrImagePull", Some(message), now + PULL_ERROR_SHOWN, Next::PullAgain { at });
    }

    fn wait_for_configuration(&mut self, surroundings: &Surroundings<'_>, message: String) {
        let recent = |(event, at): &(String, Instant)| *event == message && at.elapsed() < CONFIGURATION_EVENT;
        if !self.reported.as_ref().is_some_and(recent) {
            warn!("{}: {message}", self.id);
            self.record(surroundings, Happening::image_is_present(self.image()));
            self.record(surroundings, Happening::failed(&message));
            self.reported = Some((message.clone(), Instant::now()));
        }
        self.wait("CreateContainerConfigError", Some(message), Instant::now() + CONFIGURATION_RETRY, Next::Start);
    }

    fn wait(&mut self, reason: &'static str, message: Option<String>, until: Instant, next: Next) {
        self.activity = Activity::Waiting { reason, message, until, next };
    }

    /// Ends an attempt that no shim watches. Its exit is written to disk, where the next node finds it.
    fn record_end(&mut self, attempt: u32, exit: Exit) {
        if let Err(error) = self.attempt_folder(attempt).record_exit(&exit) {
            warn!("cannot record the end of {}: {error:#}", self.attempt_id(attempt));
        }
        self.end(attempt, exit);
    }

    fn end(&mut self, attempt: u32, exit: Exit) {
        let termination = self.termination(attempt, exit);
        info!("{} ended with exit code {}", self.attempt_id(attempt), termination.exit_code);
        self.activity = Activity::Ended { termination, noticed_at: Instant::now() };
    }

    fn record(&self, surroundings: &Surroundings<'_>, happening: Happening) {
        surroundings.node.events.record(surroundings.pod, Some(self.field_path.clone()), happening);
    }

    fn image(&self) -> &str {
        self.spec.image.as_deref().unwrap_or_default()
    }

    fn termination(&self, attempt: u32, exit: Exit) -> Termination {
        let folder = self.attempt_folder(attempt);
        let fall_back_to_log = self.spec.termination_message_policy.as_deref() == Some("FallbackToLogsOnError");
        Termination {
            exit_code: exit.code,
            reason: match (&exit.refused, exit.code) {
                (Some(_), _) => "StartError",
                (None, 0) => "Completed",
                (None, _) => "Error",
            },
            message: exit.refused.or_else(|| termination::message(&folder, exit.code != 0 && fall_back_to_log)),
            started_at: exit.started_at,
            finished_at: exit.finished_at,
            container_id: self.attempt_id(attempt),
        }
    }

    fn attempt_folder(&self, attempt: u32) -> AttemptFolder {
        AttemptFolder::new(self.folder.join(attempt.to_string()))
    }

    fn attempt_id(&self, attempt: u32) -> String {
        format!("twin://{}/{attempt}", self.id)
    }
}

/// The status in the API server of a container that has started at least once.
fn reported<'a>(pod: &'a Pod, container: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    let statuses = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
    statuses.into_iter().find(|status| status.name == container && status.container_id.is_some())
}
