//! Starts components, keeps them running, and stops them. Each component has a task (`process`). One watched value says
//! what is wanted from the task, and another one says the state of the component.

use std::{
    collections::BTreeMap,
    fs,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, bail, ensure};
use tokio::{sync::watch, time::timeout};

use crate::{
    components::component::Component,
    control::status::{State, Status},
    log_tail::tail,
    paths::Paths,
    spec::{Spec, order::Order},
    supervisor::{
        probe::Probe,
        process::{Launch, Task, Wanted},
    },
};

const READY_WITHIN: Duration = Duration::from_mins(1);

/// A component and the two watched values of its task.
struct Supervised {
    wanted: watch::Sender<Wanted>,
    status: watch::Sender<Status>,
    /// The last specification, for `start` after `stop`.
    last: Mutex<Option<Spec>>,
}

/// All components.
pub(crate) struct Supervisor {
    paths: Paths,
    order: Order<Component>,
    components: BTreeMap<Component, Supervised>,
    launches: AtomicU64,
}

// === impl Supervisor ===

impl Supervisor {
    /// Spawns the tasks, which are idle at first.
    pub(crate) fn new(paths: &Paths, probe: &Probe) -> Result<Self> {
        let components = Component::ALL.map(|component| {
            let (wanted, wants) = watch::channel(None);
            let status = watch::Sender::new(Status {
                name: component.to_string(),
                state: State::Stopped,
                pid: None,
                port: 0,
                restarts: 0,
                last_exit: None,
                launch: 0,
            });
            let task =
                Task { component, paths: paths.clone(), probe: probe.clone(), wanted: wants, status: status.clone() };
            tokio::spawn(task.run());
            (component, Supervised { wanted, status, last: Mutex::new(None) })
        });
        Ok(Self {
            paths: paths.clone(),
            order: Component::order()?,
            components: components.into(),
            launches: AtomicU64::new(0),
        })
    }

    /// The status of each component, in the order of starting.
    pub(crate) fn status(&self) -> Vec<Status> {
        self.order
            .sequence()
            .iter()
            .filter_map(|component| self.components.get(component))
            .map(|supervised| supervised.status.borrow().clone())
            .collect()
    }

    /// Whether the component runs from exactly this specification and program.
    pub(crate) fn runs(&self, component: Component, spec: &Spec) -> bool {
        let Some(supervised) = self.components.get(&component) else { return false };
        let same = supervised
            .wanted
            .borrow()
            .as_ref()
            .is_some_and(|launch| launch.spec == *spec && launch.built == built(spec));
        same && supervised.status.borrow().state == State::Ready
    }

    /// Starts a component, or restarts one that runs from another specification or an older program, and waits until
    /// it is ready.
    pub(crate) async fn ensure(&self, component: Component, spec: Spec) -> Result<()> {
        ensure!(spec.program.exists(), "{} is not built", spec.program.display());
        let supervised = self.supervised(component)?;
        *supervised.last.lock().map_err(|_| anyhow::anyhow!("poisoned"))? = Some(spec.clone());
        let built = built(&spec);
        let mut number = 0;
        supervised.wanted.send_if_modified(|wanted| {
            let running = wanted.as_ref().filter(|launch| launch.spec == spec && launch.built == built);
            number = running.map_or_else(|| self.launches.fetch_add(1, Ordering::Relaxed) + 1, |launch| launch.number);
            let changed = running.is_none();
            if changed {
                *wanted = Some(Launch { spec, built, number });
            }
            changed
        });
        let mut status = supervised.status.subscribe();
        let ready = status.wait_for(|status| status.state == State::Ready && status.launch == number);
        if let Ok(result) = timeout(READY_WITHIN, ready).await {
            return result.map(|_| ()).context("the supervisor's task has ended");
        }
        let log = self.paths.log(component.name());
        let seconds = READY_WITHIN.as_secs();
        bail!("{component} is not ready after {seconds} s; the end of {}:\n{}", log.display(), tail(&log))
    }

    /// Starts a component that was stopped, and waits until it is ready.
    pub(crate) async fn start(&self, component: Component) -> Result<()> {
        let last = self.supervised(component)?.last.lock().map_err(|_| anyhow::anyhow!("poisoned"))?.clone();
        let Some(spec) = last else { bail!("{component} has not been part of this twin yet; run `twin up`") };
        self.ensure(component, spec).await
    }

    /// Stops a component and keeps it stopped; returns when its process is gone.
    pub(crate) async fn stop(&self, component: Component) -> Result<()> {
        let supervised = self.supervised(component)?;
        let mut status = supervised.status.subscribe();
        supervised.wanted.send_replace(None);
        status.wait_for(|status| status.state == State::Stopped).await?;
        Ok(())
    }

    /// Stops everything, each component before those that it depends on.
    pub(crate) async fn stop_all(&self) -> Result<()> {
        self.order.stop(|component| self.stop(component)).await
    }

    fn supervised(&self, component: Component) -> Result<&Supervised> {
        self.components.get(&component).with_context(|| format!("{component} is not supervised"))
    }
}

/// When the program was built.
fn built(spec: &Spec) -> Option<SystemTime> {
    fs::metadata(&spec.program).and_then(|metadata| metadata.modified()).ok()
}

#[cfg(test)]
mod tests {
    use nix::{sys::signal::Signal, unistd::Pid};
    use tokio::{
        net::TcpListener,
        time::{Instant, sleep},
    };

    use super::*;
    use crate::{setup::pki, spec::Ready, supervisor::process::signal};

    /// A process that does nothing. It is ready at once, because the test listens on its port.
    async fn spec(program: &str, arguments: &[&str]) -> (Spec, TcpListener) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let spec = Spec {
            program: program.into(),
            arguments: arguments.iter().map(ToString::to_string).collect(),
            environment: BTreeMap::new(),
            port,
            ready: Ready::Accepts(port),
            grace: Duration::from_millis(200),
            seed: None,
        };
        (spec, listener)
    }

    fn supervisor(folder: &std::path::Path) -> Supervisor {
        // Several tests of this process install the same provider.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let paths = Paths::at(folder);
        fs::create_dir_all(paths.logs()).unwrap();
        pki::make(&paths).unwrap();
        Supervisor::new(&paths, &Probe::new(&paths).unwrap()).unwrap()
    }

    fn lives(pid: u32) -> bool {
        nix::sys::signal::kill(Pid::from_raw(i32::try_from(pid).unwrap()), None).is_ok()
    }

    #[tokio::test]
    async fn a_component_that_dies_is_restarted_and_one_that_is_stopped_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let supervisor = supervisor(folder.path());
        let (spec, _listener) = spec("/bin/sleep", &["60"]).await;
        supervisor.ensure(Component::Etcd, spec.clone()).await.unwrap();
        let first = supervisor.status()[0].pid.unwrap();
        supervisor.ensure(Component::Etcd, spec).await.unwrap();
        assert_eq!(supervisor.status()[0].pid, Some(first), "the same again changes nothing");

        signal(Some(first), Signal::SIGKILL);
        let mut status = supervisor.supervised(Component::Etcd).unwrap().status.subscribe();
        let status =
            status.wait_for(|status| status.restarts == 1 && status.state == State::Ready).await.unwrap().clone();
        let second = status.pid.unwrap();
        assert_ne!(second, first);
        assert!(status.last_exit.unwrap().contains('9'));

        supervisor.stop(Component::Etcd).await.unwrap();
        assert!(!lives(second));
        supervisor.start(Component::Etcd).await.unwrap();
        assert_eq!(supervisor.status()[0].state, State::Ready);
        supervisor.stop(Component::Etcd).await.unwrap();
    }

    #[tokio::test]
    async fn a_component_that_ignores_the_request_to_end_is_killed_with_its_children() {
        let folder = tempfile::tempdir().unwrap();
        let supervisor = supervisor(folder.path());
        let note = folder.path().join("child");
        let script = format!("trap '' TERM; sleep 60 & echo $! > {}; wait; sleep 60", note.display());
        let (spec, _listener) = spec("/bin/sh", &["-c", &script]).await;
        fs::create_dir_all(Paths::at(folder.path()).state()).unwrap();
        supervisor.ensure(Component::Front, spec).await.unwrap();
        while fs::read_to_string(&note).unwrap_or_default().is_empty() {
            sleep(Duration::from_millis(10)).await;
        }
        let child: u32 = fs::read_to_string(&note).unwrap().trim().parse().unwrap();
        let started = Instant::now();
        supervisor.stop(Component::Front).await.unwrap();
        assert!(started.elapsed() < Duration::from_secs(5));
        let gone = async {
            // It may stay a zombie of the process that inherits it.
            while fs::read_to_string(format!("/proc/{child}/stat")).is_ok_and(|stat| !stat.contains(") Z ")) {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(Duration::from_secs(5), gone).await.unwrap();
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_an_error_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let supervisor = supervisor(folder.path());
        let (spec, _listener) = spec("/nonexistent", &[]).await;
        let error = supervisor.ensure(Component::TwinNode, spec).await.unwrap_err().to_string();
        assert!(error.contains("is not built"), "{error}");
    }
}
