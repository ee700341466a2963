//! One container of a pod: what it does now, and what happens next. The pod asks it to look (`observe`), to go on
//! (`advance`) and to stop (`signal`), many times a second; nothing here waits for a program.

use std::{
    collections::BTreeMap,
    fs,
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
    attempt::{self, AttemptFolder, Exit, Observation},
    back_off::BackOff,
    environment::{self, Additions},
    events::Happening,
    images, process,
    references::References,
    shared_state::Node,
    status::{ContainerView, RestartPolicy, State, Termination},
    termination,
};

/// The init container that the training operator adds to workers: it waits until the master's name resolves.
const WAITS_FOR_MASTER: &str = "init-pytorch";
/// How long a failed pull stands as `ErrImagePull` before it becomes `ImagePullBackOff`.
const PULL_ERROR_SHOWN: Duration = Duration::from_secs(1);
/// How soon something that the container needs is looked for again, and how soon that is an event again.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
const TELL_AGAIN: Duration = Duration::from_secs(10);

/// A container and the attempts at running it so far.
#[derive(Debug)]
pub(crate) struct Container {
    spec: Spec,
    /// `<pod uid>/<container>`, the beginning of each attempt's id.
    id: String,
    /// The pod's name in log lines and messages.
    pod: String,
    /// Where the container stands in the pod's manifest, as events name it.
    field_path: String,
    /// An init container that runs on beside the others.
    sidecar: bool,
    folder: PathBuf,
    pid_file: PathBuf,
    home: PathBuf,
    volumes: PathBuf,
    activity: Activity,
    /// The end of the attempt before the present one.
    last: Option<Termination>,
    /// The newest attempt, counted from 0.
    attempt: Option<u32>,
    restarts: BackOff,
    pulls: BackOff,
    base_delay: Duration,
    /// When something was missing last, as events have told it.
    told: Option<(String, Instant)>,
}

#[derive(Debug)]
enum Activity {
    /// Not running until then.
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
    /// The pull that failed is tried again at this time, and not before.
    PullAgain {
        at: Instant,
    },
}

/// What a container needs to know of its pod to start.
pub(crate) struct Surroundings<'a> {
    pub(crate) node: &'a Node,
    pub(crate) pod: &'a Pod,
    pub(crate) job_port: Option<u16>,
    pub(crate) master_has_started: bool,
}

// === impl Container ===

impl Container {
    /// Find a container as an earlier node left it, or not started yet.
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
            pid_file: pod_folder.join(format!("{}.pid", spec.name)),
            home: pod_folder.join("work"),
            volumes: pod_folder.join("volumes"),
            spec: spec.clone(),
            activity: Activity::Waiting { reason, message: None, until: Instant::now(), next: Next::Start },
            last: None,
            attempt: None,
            restarts: BackOff::new(base_delay),
            pulls: BackOff::new(base_delay),
            base_delay,
            told: None,
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

    /// Go by what the API server remembers of a pod whose folder was lost.
    fn restore(&self, pod: &Pod) -> anyhow::Result<Option<u32>> {
        let Some(status) = reported(pod, &self.spec.name) else { return Ok(None) };
        let state = status.state.clone().unwrap_or_default();
        let ended = match (state.terminated, state.running) {
            (Some(ended), _) => Some(ended),
            (None, Some(_)) => None,
            (None, None) => status.last_state.clone().unwrap_or_default().terminated,
        };
        if ended.is_none() && self.is_virtual() {
            return Ok(None);
        }
        let attempt = u32::try_from(status.restart_count)?;
        let folder = self.attempt_folder(attempt);
        fs::create_dir_all(folder.path())?;
        let now = Timestamp::now();
        folder.write_exit(&match ended {
            Some(ended) => Exit {
                code: ended.exit_code,
                started_at: ended.started_at.map_or(now, |time| time.0),
                finished_at: ended.finished_at.map_or(now, |time| time.0),
                refused: None,
            },
            // It ran when it was last heard of.
            None => Exit::of_lost(now),
        })?;
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

    /// Whether an attempt was ever made.
    pub(crate) fn has_started(&self) -> bool {
        self.attempt.is_some()
    }

    /// Look whether the running attempt has ended; `true` when it has just been found so.
    pub(crate) fn observe(&mut self) -> bool {
        let (Activity::Running { started_at }, Some(attempt)) = (&self.activity, self.attempt) else {
            return false;
        };
        let folder = self.attempt_folder(attempt);
        let exit = match folder.observe() {
            Observation::Lost if self.is_virtual() => return false,
            Observation::Running => return false,
            Observation::Ended(exit) => exit,
            Observation::Lost => {
                let exit = Exit::of_lost(*started_at);
                if let Err(error) =
                    fs::create_dir_all(folder.path()).map_err(Into::into).and_then(|()| folder.write_exit(&exit))
                {
                    warn!("cannot write down the end of {}: {error:#}", self.attempt_id(attempt));
                }
                exit
            }
        };
        self.end(attempt, exit);
        true
    }

    /// Do what is due: start, start again, or show why not.
    pub(crate) async fn advance(&mut self, policy: RestartPolicy, surroundings: &Surroundings<'_>) {
        match &self.activity {
            Activity::Running { .. } => {
                if self.is_virtual() && surroundings.master_has_started {
                    self.end_virtual(0);
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

    /// Signal the container's first process, which is what a runtime does; the rest dies with it.
    pub(crate) fn signal(&mut self, signal: Signal) -> bool {
        let (true, Some(attempt)) = (self.is_running(), self.attempt) else {
            return false;
        };
        if self.is_virtual() {
            self.end_virtual(137);
            return true;
        }
        let reached = self.attempt_folder(attempt).signal(signal);
        if reached {
            info!("{signal} sent to {}", self.attempt_id(attempt));
        }
        reached
    }

    async fn start(&mut self, surroundings: &Surroundings<'_>) {
        if self.is_virtual() {
            self.attempt = Some(0);
            self.activity = Activity::Running { started_at: Timestamp::now() };
            for happening in [Happening::image_is_present(self.image()), Happening::created(), Happening::started()] {
                self.record(surroundings, happening);
            }
            return;
        }
        let config = &surroundings.node.config;
        let image = match images::pull(config, self.image()) {
            Ok(image) => image,
            Err(message) => {
                warn!("{}: {message}", self.id);
                self.record(surroundings, Happening::pulling(self.image()));
                self.record(surroundings, Happening::pull_failed(self.image(), &message));
                self.record(surroundings, Happening::failed("ErrImagePull"));
                let now = Instant::now();
                let at = now + self.pulls.delay(now).max(self.base_delay);
                self.wait("ErrImagePull", Some(message), now + PULL_ERROR_SHOWN, Next::PullAgain { at });
                return;
            }
        };
        let attempt = self.attempt.map_or(0, |attempt| attempt + 1);
        let folder = self.attempt_folder(attempt);
        let session = match surroundings.node.sessions.session().await {
            Ok(session) => session,
            Err(error) => return self.wait_for_configuration(surroundings, format!("{error:#}")),
        };
        let namespace = surroundings.pod.metadata.namespace.as_deref().unwrap_or_default();
        let references = match References::read(&surroundings.node.client.0, namespace, &self.spec).await {
            Ok(references) => references,
            Err(message) => return self.wait_for_configuration(surroundings, message),
        };
        let additions = Additions {
            config,
            image,
            job_port: surroundings.job_port,
            termination: &folder.termination(),
            volumes: &self.volumes,
            home: &self.home,
            session: &session,
            references: &references,
        };
        let environment = match environment::environment(surroundings.pod, &self.spec, &additions) {
            Ok(environment) => environment,
            Err(message) => return self.wait_for_configuration(surroundings, message),
        };
        if let Err(error) = self.prepare(surroundings.pod, &folder) {
            let message = format!("cannot make the attempt's folder: {error}");
            return self.wait_for_configuration(surroundings, message);
        }
        self.attempt = Some(attempt);
        self.record(surroundings, Happening::image_is_present(self.image()));
        self.record(surroundings, Happening::created());
        let started = environment::command(&self.spec, &environment, image, config)
            .and_then(|command| self.spawn(surroundings.node, &folder, &command, &environment));
        match started {
            Ok(shim) => {
                info!("{} started, watched by process {shim}", self.attempt_id(attempt));
                self.record(surroundings, Happening::started());
                self.activity = Activity::Running { started_at: Timestamp::now() };
            }
            Err(message) => {
                self.record(surroundings, Happening::failed(&message));
                let exit = Exit::of_refused(message);
                if let Err(error) = folder.write_exit(&exit) {
                    warn!("cannot write down the end of {}: {error:#}", self.attempt_id(attempt));
                }
                self.end(attempt, exit);
            }
        }
    }

    fn prepare(&self, pod: &Pod, folder: &AttemptFolder) -> std::io::Result<()> {
        fs::create_dir_all(&self.home)?;
        for (name, _) in pod.spec.iter().flat_map(|spec| environment::own_volumes(spec, &self.spec)) {
            fs::create_dir_all(self.volumes.join(name))?;
        }
        fs::create_dir_all(folder.path())?;
        fs::write(folder.termination(), "")
    }

    fn spawn(
        &self,
        node: &Node,
        folder: &AttemptFolder,
        command: &[String],
        environment: &BTreeMap<String, String>,
    ) -> Result<u32, String> {
        let program = process::Program { command, environment, home: &self.home, pid_file: &self.pid_file };
        process::spawn(&node.isolation, folder, &program).map_err(|error| format!("{error:#}"))
    }

    fn wait_for_configuration(&mut self, surroundings: &Surroundings<'_>, message: String) {
        let known = |(told, at): &(String, Instant)| *told == message && at.elapsed() < TELL_AGAIN;
        if !self.told.as_ref().is_some_and(known) {
            warn!("{}: {message}", self.id);
            self.record(surroundings, Happening::image_is_present(self.image()));
            self.record(surroundings, Happening::failed(&message));
            self.told = Some((message.clone(), Instant::now()));
        }
        self.wait("CreateContainerConfigError", Some(message), Instant::now() + LOOK_AGAIN, Next::Start);
    }

    fn wait(&mut self, reason: &'static str, message: Option<String>, until: Instant, next: Next) {
        self.activity = Activity::Waiting { reason, message, until, next };
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

    /// The operator's waiting init container is no process here.
    fn is_virtual(&self) -> bool {
        self.spec.name == WAITS_FOR_MASTER
    }

    /// It leaves an exit on disk like any other, for the next node.
    fn end_virtual(&mut self, exit_code: i32) {
        let Activity::Running { started_at } = self.activity else { return };
        let folder = self.attempt_folder(0);
        let exit = Exit { code: exit_code, started_at, finished_at: Timestamp::now(), refused: None };
        if let Err(error) =
            fs::create_dir_all(folder.path()).map_err(Into::into).and_then(|()| folder.write_exit(&exit))
        {
            warn!("cannot write down the end of {}: {error:#}", self.id);
        }
        self.end(0, exit);
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

/// What the API server knows of a container that has started at least once.
fn reported<'a>(pod: &'a Pod, container: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    let statuses = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
    statuses.into_iter().find(|status| status.name == container && status.container_id.is_some())
}
