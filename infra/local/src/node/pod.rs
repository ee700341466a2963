//! The life of one pod on the node: a loop that observes its containers, does what is due and reports the status.
//!
//! ```text
//! scheduled ─> admitted ─> init containers ─> containers ─(restarts)─> Succeeded or Failed
//!                                 └─ deleted, or past its deadline: SIGTERM, grace, SIGKILL ─> reported ─> removed
//! ```
//! Each round reads the state from disk and from the newest manifest, so another node may have made the round before.

use std::{
    fs, future,
    net::Ipv4Addr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::core::v1::{Pod, PodSpec, VolumeMount},
    jiff::{SignedDuration, Timestamp},
};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, Preconditions},
};
use nix::sys::signal::Signal;
use tokio::{sync::watch, time};
use tracing::{info, warn};

use crate::{
    container::Container,
    environment,
    events::Happening,
    images, process,
    publisher::Publisher,
    runner::Surroundings,
    shared_state::{Node, job_uid},
    short_paths,
    status::{Ended, Phase, PodView, RestartPolicy},
};

/// How often the containers are observed.
const ROUND: Duration = Duration::from_millis(200);
/// How long the API server may take to answer.
const ANSWER_TIME: Duration = Duration::from_secs(5);
/// Kubernetes' own default.
const DEFAULT_GRACE_SECONDS: i64 = 30;

/// A pod, and the state of its containers on this node.
#[derive(Debug)]
struct PodWork {
    node: Arc<Node>,
    pod: Arc<Pod>,
    uid: String,
    /// The job's uid, or the pod's own when it has no job.
    job: String,
    folder: PathBuf,
    init_containers: Vec<Container>,
    containers: Vec<Container>,
    address: Ipv4Addr,
    start_time: Timestamp,
    ending: Option<Ending>,
    /// Whether the pod is over, so that no container is started.
    finished: bool,
    publisher: Publisher,
}

/// The pod is being stopped.
#[derive(Debug)]
struct Ending {
    why: Ended,
    since: Instant,
    /// The names of the containers that have been signalled.
    signalled: Vec<String>,
}

/// Starts the task of a pod. It runs until the pod is gone from the API server or the node stops.
///
/// The pod's folder is read before this returns, so that a pod that runs already keeps its place.
pub(crate) fn start(node: &Arc<Node>, pod: Arc<Pod>) -> anyhow::Result<watch::Sender<Option<Arc<Pod>>>> {
    let work = PodWork::find(Arc::clone(node), Arc::clone(&pod))?;
    let (newest, receiver) = watch::channel(Some(pod));
    tokio::spawn(run(work, receiver));
    Ok(newest)
}

async fn run(mut work: PodWork, mut newest: watch::Receiver<Option<Arc<Pod>>>) {
    let mut stopping = work.node.stopping();
    loop {
        let pod = newest.borrow_and_update().clone();
        let pause = match pod {
            Some(pod) => {
                work.pod = pod;
                work.round().await
            }
            None if work.kill() => break,
            None => ROUND,
        };
        tokio::select! {
            () = changed(&mut newest) => {}
            () = time::sleep(pause) => {}
            () = changed(&mut stopping) => return,
        }
    }
    work.clean_up();
}

/// Waits for the next change; for ever, when the sender is gone.
async fn changed<T>(receiver: &mut watch::Receiver<T>) {
    if receiver.changed().await.is_err() {
        future::pending::<()>().await;
    }
}

// === impl PodWork ===

impl PodWork {
    fn find(node: Arc<Node>, pod: Arc<Pod>) -> anyhow::Result<Self> {
        let uid = pod.uid().unwrap_or_default();
        let folder =
            process::pod_folder(&node.config.pods_dir, &pod.namespace().unwrap_or_default(), &pod.name_any(), &uid);
        let base = Duration::from_secs(node.config.back_off_base_seconds);
        let spec = pod.spec.clone().unwrap_or_default();
        let find = |spec| Container::find(&pod, spec, &folder, base);
        let init_containers = spec.init_containers.iter().flatten().map(find).collect::<anyhow::Result<Vec<_>>>()?;
        let containers = spec.containers.iter().map(find).collect::<anyhow::Result<Vec<_>>>()?;
        let status = pod.status.as_ref();
        let present = status.and_then(|status| status.pod_ip.as_ref()?.parse().ok());
        let address = node.addresses().of_pod(&uid, present);
        let start_time =
            status.and_then(|status| status.start_time.as_ref()).map_or_else(Timestamp::now, |time| time.0);
        let phase = status.and_then(|status| status.phase.as_deref());
        let work = Self {
            job: job_uid(&pod).unwrap_or_else(|| uid.clone()),
            finished: matches!(phase, Some("Succeeded" | "Failed")),
            ending: None,
            publisher: Publisher::new(),
            node,
            uid,
            folder,
            init_containers,
            containers,
            address,
            start_time,
            pod,
        };
        let mounts = unmounted(&spec);
        if !mounts.is_empty() && !work.finished {
            warn!(
                "pod {}: not mounted, for containers see this machine's files: {}",
                work.pod.name_any(),
                mounts.join(", ")
            );
        }
        if work.needs_a_place() && !work.finished && work.containers.iter().any(Container::has_started) {
            work.node.admission().adopt(&work.job, work.places(), &work.uid);
        }
        Ok(work)
    }

    /// Observes the containers, does what is due and reports the status. Returns the pause until the next round.
    async fn round(&mut self) -> Duration {
        let mut ended = false;
        for container in self.init_containers.iter_mut().chain(&mut self.containers) {
            ended |= container.observe();
        }
        self.notice_an_end();
        if self.ending.is_some() || self.finished {
            self.stop_containers();
        } else if !ended && self.publisher.may_advance() {
            self.advance().await;
        }
        let reported = self.report().await;
        let running = self.is_running();
        if reported && self.is_over() && !self.finished && !running {
            info!("pod {} is over: {:?}", self.pod.name_any(), self.view().phase());
            self.finished = true;
            self.release();
        }
        if reported && !running && self.is_deleted() {
            self.remove().await;
            return ANSWER_TIME;
        }
        match (ended, self.finished && !running) {
            (true, _) if reported => Duration::ZERO,
            (_, true) if reported => Duration::from_mins(1),
            _ => ROUND,
        }
    }

    /// Begins the end of a pod that was deleted, is past its deadline, or has only sidecars left.
    fn notice_an_end(&mut self) {
        if self.ending.is_some() || self.finished {
            return;
        }
        let deadline = self.spec().and_then(|spec| spec.active_deadline_seconds).map(SignedDuration::from_secs);
        let why = if self.is_deleted() {
            Ended::Deleted
        } else if deadline.is_some_and(|deadline| Timestamp::now().duration_since(self.start_time) >= deadline) {
            Ended::DeadlineExceeded
        } else if self.is_running() && self.view().has_done_its_work() {
            // Only sidecars still run.
            Ended::Done
        } else {
            return;
        };
        info!("pod {} is stopped: {why:?}", self.pod.name_any());
        if why == Ended::DeadlineExceeded {
            self.node.events.record(&self.pod, None, Happening::deadline_exceeded());
        }
        self.ending = Some(Ending { why, since: Instant::now(), signalled: Vec::new() });
    }

    async fn advance(&mut self) {
        if !self.is_admitted() {
            return;
        }
        let policy = self.policy();
        let job_port = match job_uid(&self.pod).map(|job| self.node.ports().of_job(&job)).transpose() {
            Ok(port) => port,
            Err(error) => return warn!("pod {} has to wait: {error:#}", self.pod.name_any()),
        };
        let surroundings = Surroundings {
            node: &self.node,
            pod: &self.pod,
            job_port,
            master_has_started: self.node.master_has_started(&self.job),
        };
        for container in &mut self.init_containers {
            if container.is_sidecar() {
                container.advance(RestartPolicy::Always, &surroundings).await;
                if !container.has_started() {
                    return;
                }
            } else if !container.has_succeeded() {
                container.advance(policy.for_init_containers(), &surroundings).await;
                return;
            }
        }
        for container in &mut self.containers {
            container.advance(policy, &surroundings).await;
        }
    }

    /// Sends SIGTERM once, and SIGKILL when the grace period is over.
    fn stop_containers(&mut self) {
        let grace = self.grace();
        let containers = self.init_containers.iter_mut().chain(&mut self.containers);
        let Some(ending) = &mut self.ending else {
            // The pod has finished according to the API server, so a container that still runs is a leftover.
            return containers.for_each(|container| {
                container.signal(Signal::SIGKILL);
            });
        };
        for container in containers {
            let name = container.view().name;
            let signalled = ending.signalled.contains(&name);
            let over = ending.since.elapsed() >= grace;
            let reached = match (over, signalled) {
                (true, _) => container.signal(Signal::SIGKILL),
                (false, true) => false,
                (false, false) => container.signal(Signal::SIGTERM),
            };
            if reached && !signalled {
                let path = Some(container.field_path().to_owned());
                self.node.events.record(&self.pod, path, Happening::killing(&name));
                ending.signalled.push(name);
            }
        }
    }

    /// Kills the containers of a pod that is gone from the API server; `true` when none runs.
    fn kill(&mut self) -> bool {
        for container in self.init_containers.iter_mut().chain(&mut self.containers) {
            container.signal(Signal::SIGKILL);
            container.observe();
        }
        !self.is_running()
    }

    /// Publishes the status if it has changed; `true` when the API server has the present one.
    async fn report(&mut self) -> bool {
        if self.finished && !self.publisher.has_published() {
            // The pod was over before this node started, so the status in the API server is final.
            return true;
        }
        let present = self.pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        let status = self.view().render(&self.publisher.conditions(present), Timestamp::now());
        self.publisher.publish(&self.api(), &self.pod.name_any(), &self.uid, status).await
    }

    async fn remove(&mut self) {
        let parameters = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions { uid: Some(self.uid.clone()), resource_version: None }),
            ..DeleteParams::default()
        };
        let name = self.pod.name_any();
        let api = self.api();
        match time::timeout(ANSWER_TIME, api.delete(&name, &parameters)).await {
            Ok(Ok(_)) => info!("pod {name} removed"),
            // The pod is gone, or another one has its name. The watch will report that.
            Ok(Err(kube::Error::Api(answer))) if matches!(answer.code, 404 | 409) => {}
            Ok(Err(error)) => warn!("cannot remove pod {name}: {error}"),
            Err(_) => warn!("cannot remove pod {name}: no answer"),
        }
    }

    fn clean_up(&mut self) {
        self.release();
        self.node.addresses().release(&self.uid);
        if let Err(error) = fs::remove_dir_all(&self.folder)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            warn!("cannot remove {}: {error}", self.folder.display());
        }
        short_paths::remove_dangling(&self.node.config.pods_dir);
    }

    fn release(&self) {
        self.node.admission().release(&self.job, &self.uid);
    }

    fn is_admitted(&self) -> bool {
        !self.needs_a_place() || self.node.admission().admit(&self.job, self.places(), &self.uid)
    }

    fn needs_a_place(&self) -> bool {
        let images = self
            .spec()
            .into_iter()
            .flat_map(|spec| &spec.containers)
            .filter_map(|container| container.image.as_deref());
        images.into_iter().any(|image| images::is_trainer(&self.node.config, image))
    }

    /// How many pods the job has. The operator sets the number in the environment of each.
    fn places(&self) -> usize {
        let variables = self
            .spec()
            .into_iter()
            .flat_map(|spec| &spec.containers)
            .flat_map(|container| container.env.iter().flatten());
        let nodes = variables
            .into_iter()
            .filter(|variable| variable.name == "PET_NNODES")
            .find_map(|variable| variable.value.as_deref());
        nodes.and_then(|nodes| nodes.rsplit(':').next()?.parse().ok()).unwrap_or(1)
    }

    fn view(&self) -> PodView {
        PodView {
            init_containers: self.init_containers.iter().map(Container::view).collect(),
            containers: self.containers.iter().map(Container::view).collect(),
            restart_policy: self.policy(),
            ended: self.ending.as_ref().map(|ending| ending.why.clone()),
            address: self.address,
            start_time: self.start_time,
            generation: self.pod.metadata.generation,
        }
    }

    fn is_running(&self) -> bool {
        self.init_containers.iter().chain(&self.containers).any(Container::is_running)
    }

    fn is_over(&self) -> bool {
        matches!(self.view().phase(), Phase::Succeeded | Phase::Failed)
    }

    fn is_deleted(&self) -> bool {
        self.pod.metadata.deletion_timestamp.is_some()
    }

    fn grace(&self) -> Duration {
        let deletion = self.pod.metadata.deletion_grace_period_seconds.filter(|_| self.is_deleted());
        let seconds =
            deletion.or_else(|| self.spec()?.termination_grace_period_seconds).unwrap_or(DEFAULT_GRACE_SECONDS);
        Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
    }

    fn policy(&self) -> RestartPolicy {
        RestartPolicy::of(self.spec().and_then(|spec| spec.restart_policy.as_deref()))
    }

    fn spec(&self) -> Option<&PodSpec> {
        self.pod.spec.as_ref()
    }

    fn api(&self) -> Api<Pod> {
        Api::namespaced(self.node.client.0.clone(), &self.pod.namespace().unwrap_or_default())
    }
}

/// The volumes that a pod does not get here, each with its path in the container. A container uses the machine's shared
/// memory. It finds a volume of the pod's own when one of its variables holds the path.
fn unmounted(spec: &PodSpec) -> Vec<String> {
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    let missing = containers.flat_map(|container| {
        let named = |path: &str| {
            let mut values = container.env.iter().flatten().filter_map(|variable| variable.value.as_deref());
            values.any(|value| environment::below(value, path).is_some())
        };
        let own = environment::own_volumes(spec, container);
        let served = move |mount: &&VolumeMount| {
            let path = mount.mount_path.as_str();
            path == "/dev/shm" || (named(path) && own.contains(&(mount.name.as_str(), path)))
        };
        container.volume_mounts.iter().flatten().filter(move |mount| !served(mount))
    });
    missing.map(|mount| format!("{} at {}", mount.name, mount.mount_path)).collect()
}
