//! The status of a pod, made from the states of its containers by the kubelet's rules for phases, conditions and
//! reasons. Pure.

use std::net::Ipv4Addr;

use k8s_openapi::{
    api::core::v1::{
        ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
        HostIP, PodCondition, PodIP, PodStatus,
    },
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::Timestamp,
};

/// `spec.restartPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

/// The state of a container.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum State {
    Waiting { reason: &'static str, message: Option<String> },
    Running { started_at: Timestamp },
    Terminated(Termination),
}

/// How one attempt of a container ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Termination {
    pub(crate) exit_code: i32,
    pub(crate) reason: &'static str,
    pub(crate) message: Option<String>,
    pub(crate) started_at: Timestamp,
    pub(crate) finished_at: Timestamp,
    pub(crate) container_id: String,
}

/// One container of a pod.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ContainerView {
    pub(crate) name: String,
    pub(crate) image: String,
    pub(crate) state: State,
    /// The end of the attempt before the newest one.
    pub(crate) last: Option<Termination>,
    pub(crate) restart_count: u32,
    /// The id of the newest attempt; `None` before the first one.
    pub(crate) container_id: Option<String>,
    /// Whether this is an init container that keeps running beside the others.
    pub(crate) sidecar: bool,
}

/// Why the node ended a pod with containers that had not ended by themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It was deleted.
    Deleted,
    /// It ran longer than `activeDeadlineSeconds`.
    DeadlineExceeded,
    /// Only sidecars were left.
    Done,
}

/// One pod.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PodView {
    pub(crate) init_containers: Vec<ContainerView>,
    pub(crate) containers: Vec<ContainerView>,
    pub(crate) restart_policy: RestartPolicy,
    pub(crate) ended: Option<Ended>,
    pub(crate) address: Ipv4Addr,
    pub(crate) start_time: Timestamp,
    pub(crate) generation: Option<i64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Pending,
    Running,
    Succeeded,
    Failed,
}

// === impl RestartPolicy ===

impl RestartPolicy {
    pub(crate) fn of(policy: Option<&str>) -> Self {
        match policy {
            Some("Never") => Self::Never,
            Some("OnFailure") => Self::OnFailure,
            _ => Self::Always,
        }
    }

    /// Whether a container that ended with this code is started again.
    pub(crate) fn restarts(self, exit_code: i32) -> bool {
        match self {
            Self::Always => true,
            Self::OnFailure => exit_code != 0,
            Self::Never => false,
        }
    }

    /// The policy of an init container, which only has to succeed once.
    pub(crate) fn for_init_containers(self) -> Self {
        match self {
            Self::Always | Self::OnFailure => Self::OnFailure,
            Self::Never => Self::Never,
        }
    }
}

// === impl ContainerView ===

impl ContainerView {
    fn is_running(&self) -> bool {
        matches!(self.state, State::Running { .. })
    }

    /// The end of the newest attempt, or of the one before while the container waits for the next start.
    fn end(&self) -> Option<&Termination> {
        match &self.state {
            State::Terminated(termination) => Some(termination),
            State::Waiting { .. } => self.last.as_ref(),
            State::Running { .. } => None,
        }
    }

    fn has_succeeded(&self) -> bool {
        matches!(&self.state, State::Terminated(termination) if termination.exit_code == 0)
    }

    /// Whether the containers after an init container may start.
    fn is_past(&self) -> bool {
        if self.sidecar { self.container_id.is_some() } else { self.has_succeeded() }
    }

    fn status(&self, ready: bool) -> ContainerStatus {
        ContainerStatus {
            name: self.name.clone(),
            image: self.image.clone(),
            image_id: if self.container_id.is_some() { format!("twin://{}", self.image) } else { String::new() },
            container_id: self.container_id.clone(),
            restart_count: i32::try_from(self.restart_count).unwrap_or(i32::MAX),
            ready,
            started: Some(self.is_running()),
            state: Some(match &self.state {
                State::Waiting { reason, message } => ContainerState {
                    waiting: Some(ContainerStateWaiting {
                        reason: Some((*reason).to_owned()),
                        message: message.clone(),
                    }),
                    ..ContainerState::default()
                },
                State::Running { started_at } => ContainerState {
                    running: Some(ContainerStateRunning { started_at: Some(Time(*started_at)) }),
                    ..ContainerState::default()
                },
                State::Terminated(termination) => termination.state(),
            }),
            last_state: self.last.as_ref().map(Termination::state),
            ..ContainerStatus::default()
        }
    }
}

// === impl Termination ===

impl Termination {
    fn state(&self) -> ContainerState {
        ContainerState {
            terminated: Some(ContainerStateTerminated {
                exit_code: self.exit_code,
                reason: Some(self.reason.to_owned()),
                message: self.message.clone(),
                started_at: Some(Time(self.started_at)),
                finished_at: Some(Time(self.finished_at)),
                container_id: Some(self.container_id.clone()),
                ..ContainerStateTerminated::default()
            }),
            ..ContainerState::default()
        }
    }
}

// === impl PodView ===

impl PodView {
    /// Whether every init container has succeeded, and every sidecar has started.
    pub(crate) fn is_initialized(&self) -> bool {
        self.init_containers.iter().all(ContainerView::is_past)
    }

    /// Whether no container but a sidecar will run again.
    pub(crate) fn has_done_its_work(&self) -> bool {
        let is_over =
            |container: &ContainerView| container.end().is_some_and(|end| !self.restart_policy.restarts(end.exit_code));
        self.is_initialized() && self.containers.iter().all(is_over)
    }

    pub(crate) fn phase(&self) -> Phase {
        let all = || self.init_containers.iter().chain(&self.containers);
        let stopped = !all().any(ContainerView::is_running);
        if self.ended == Some(Ended::DeadlineExceeded) && stopped {
            return Phase::Failed;
        }
        let init_failed = self.init_containers.iter().any(|container| {
            !container.sidecar && matches!(&container.state, State::Terminated(termination)
                if termination.exit_code != 0 && !self.restart_policy.for_init_containers().restarts(termination.exit_code))
        });
        let succeeded = self.containers.iter().all(|container| container.end().is_some_and(|end| end.exit_code == 0));
        if self.ended.is_some() && stopped {
            return if succeeded { Phase::Succeeded } else { Phase::Failed };
        }
        if init_failed {
            return Phase::Failed;
        }
        let never_started =
            |container: &ContainerView| matches!(container.state, State::Waiting { .. }) && container.last.is_none();
        if !self.is_initialized() || self.containers.iter().any(never_started) {
            return Phase::Pending;
        }
        match (stopped && self.has_done_its_work(), succeeded) {
            (false, _) => Phase::Running,
            (true, true) => Phase::Succeeded,
            (true, false) => Phase::Failed,
        }
    }

    /// The pod's status. A condition that has not changed keeps the time of its last change.
    pub(crate) fn render(&self, present: &[PodCondition], now: Timestamp) -> PodStatus {
        let phase = self.phase();
        let over = matches!(phase, Phase::Succeeded | Phase::Failed);
        let ready = |container: &ContainerView| container.is_running() && !over;
        let names = |containers: &[ContainerView], good: &dyn Fn(&ContainerView) -> bool| {
            let names = containers.iter().filter(|container| !good(container)).map(|container| container.name.clone());
            names.collect::<Vec<_>>().join(" ")
        };
        let not_ready = names(&self.containers, &ready);
        let not_initialized = names(&self.init_containers, &ContainerView::is_past);
        let over_reason = match phase {
            Phase::Succeeded => Some("PodCompleted"),
            Phase::Failed => Some("PodFailed"),
            Phase::Pending | Phase::Running => None,
        };
        let readiness = |kind| match over_reason {
            Some(reason) => condition(kind, false, Some(reason), None),
            None if not_ready.is_empty() => condition(kind, true, None, None),
            None => {
                let message = format!("containers with unready status: [{not_ready}]");
                condition(kind, false, Some("ContainersNotReady"), Some(message))
            }
        };
        let initialized = if not_initialized.is_empty() {
            let reason = (phase == Phase::Succeeded).then_some("PodCompleted");
            condition("Initialized", true, reason, None)
        } else {
            let message = format!("containers with incomplete status: [{not_initialized}]");
            condition("Initialized", false, Some("ContainersNotInitialized"), Some(message))
        };
        let conditions = [initialized, readiness("Ready"), readiness("ContainersReady")]
            .into_iter()
            .map(|condition| PodCondition {
                last_transition_time: present
                    .iter()
                    .find(|old| old.type_ == condition.type_ && old.status == condition.status)
                    .and_then(|old| old.last_transition_time.clone())
                    .or(Some(Time(now))),
                ..condition
            })
            .collect();
        let deadline = self.ended == Some(Ended::DeadlineExceeded) && over;
        PodStatus {
            phase: Some(phase.name().to_owned()),
            reason: deadline.then(|| "DeadlineExceeded".to_owned()),
            message: deadline.then(|| "Pod was active on the node longer than the specified deadline".to_owned()),
            conditions: Some(conditions),
            host_ip: Some("127.0.0.1".to_owned()),
            host_ips: Some(vec![HostIP { ip: "127.0.0.1".to_owned() }]),
            pod_ip: Some(self.address.to_string()),
            pod_ips: Some(vec![PodIP { ip: self.address.to_string() }]),
            start_time: Some(Time(self.start_time)),
            observed_generation: self.generation,
            init_container_statuses: (!self.init_containers.is_empty()).then(|| {
                let ready = |container: &ContainerView| {
                    if container.sidecar { ready(container) } else { container.has_succeeded() }
                };
                self.init_containers.iter().map(|container| container.status(ready(container))).collect()
            }),
            container_statuses: Some(
                self.containers.iter().map(|container| container.status(ready(container))).collect(),
            ),
            ..PodStatus::default()
        }
    }
}

// === impl Phase ===

impl Phase {
    fn name(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Running => "Running",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
        }
    }
}

fn condition(kind: &str, holds: bool, reason: Option<&str>, message: Option<String>) -> PodCondition {
    PodCondition {
        type_: kind.to_owned(),
        status: if holds { "True" } else { "False" }.to_owned(),
        reason: reason.map(str::to_owned),
        message,
        ..PodCondition::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn termination(exit_code: i32) -> Termination {
        Termination {
            exit_code,
            reason: if exit_code == 0 { "Completed" } else { "Error" },
            message: None,
            started_at: Timestamp::UNIX_EPOCH,
            finished_at: Timestamp::UNIX_EPOCH,
            container_id: "twin://uid/pytorch/0".to_owned(),
        }
    }

    fn ended(exit_code: i32) -> State {
        State::Terminated(termination(exit_code))
    }

    fn running() -> State {
        State::Running { started_at: Timestamp::UNIX_EPOCH }
    }

    fn waiting(reason: &'static str) -> State {
        State::Waiting { reason, message: None }
    }

    impl ContainerView {
        fn test(state: State) -> Self {
            Self {
                name: "pytorch".to_owned(),
                image: "stub".to_owned(),
                state,
                last: None,
                restart_count: 0,
                container_id: None,
                sidecar: false,
            }
        }

        fn sidecar(self) -> Self {
            let id = matches!(self.state, State::Running { .. } | State::Terminated(_));
            Self { sidecar: true, container_id: id.then(|| "twin://uid/sidecar/0".to_owned()), ..self }
        }

        fn after(self, exit_code: i32) -> Self {
            Self { last: Some(termination(exit_code)), ..self }
        }
    }

    impl PodView {
        fn test(restart_policy: RestartPolicy, containers: impl IntoIterator<Item = ContainerView>) -> Self {
            Self {
                init_containers: Vec::new(),
                containers: containers.into_iter().collect(),
                restart_policy,
                ended: None,
                address: Ipv4Addr::new(10, 244, 0, 1),
                start_time: Timestamp::UNIX_EPOCH,
                generation: None,
            }
        }

        fn with_init(self, state: State) -> Self {
            Self { init_containers: vec![ContainerView::test(state)], ..self }
        }

        fn with_sidecar(self, state: State) -> Self {
            Self { init_containers: vec![ContainerView::test(state).sidecar()], ..self }
        }

        fn ended(self, why: Ended) -> Self {
            Self { ended: Some(why), ..self }
        }
    }

    #[test]
    fn phases_are_the_kubelets() {
        use RestartPolicy::{Always, Never, OnFailure};
        let one = |policy, state| PodView::test(policy, [ContainerView::test(state)]);
        let two = |policy, first, second| PodView::test(policy, [first, second].map(ContainerView::test));
        let again = || ContainerView::test(waiting("CrashLoopBackOff")).after(1);
        let cases = [
            ("not started", one(OnFailure, waiting("ContainerCreating")), Phase::Pending),
            ("no image", one(OnFailure, waiting("ImagePullBackOff")), Phase::Pending),
            ("runs", one(OnFailure, running()), Phase::Running),
            ("one of two has no image", two(OnFailure, running(), waiting("ErrImagePull")), Phase::Pending),
            ("done", one(OnFailure, ended(0)), Phase::Succeeded),
            ("done, but Always", one(Always, ended(0)), Phase::Running),
            ("failed and will be restarted", one(OnFailure, ended(1)), Phase::Running),
            ("waits for its restart", PodView::test(OnFailure, [again()]), Phase::Running),
            ("runs again", PodView::test(OnFailure, [ContainerView::test(running()).after(1)]), Phase::Running),
            ("failed for ever", one(Never, ended(1)), Phase::Failed),
            ("one of two still runs", two(Never, ended(1), running()), Phase::Running),
            ("one of two failed", two(Never, ended(1), ended(0)), Phase::Failed),
            ("prepares", one(OnFailure, waiting("PodInitializing")).with_init(running()), Phase::Pending),
            ("prepared", one(OnFailure, running()).with_init(ended(0)), Phase::Running),
            ("prepares again", one(OnFailure, waiting("PodInitializing")).with_init(ended(1)), Phase::Pending),
            ("cannot be prepared", one(Never, waiting("PodInitializing")).with_init(ended(1)), Phase::Failed),
            ("its sidecar has not begun", one(OnFailure, running()).with_sidecar(waiting("x")), Phase::Pending),
            ("runs beside its sidecar", one(OnFailure, running()).with_sidecar(running()), Phase::Running),
            ("a sidecar died", one(Never, running()).with_sidecar(ended(1)), Phase::Running),
            ("done but for its sidecar", one(OnFailure, ended(0)).with_sidecar(running()), Phase::Running),
            (
                "done and its sidecar stopped",
                one(OnFailure, ended(0)).with_sidecar(ended(143)).ended(Ended::Done),
                Phase::Succeeded,
            ),
            (
                "failed and its sidecar stopped",
                one(Never, ended(1)).with_sidecar(ended(0)).ended(Ended::Done),
                Phase::Failed,
            ),
            ("is being deleted", one(OnFailure, running()).ended(Ended::Deleted), Phase::Running),
            ("deleted, it ended well", one(OnFailure, ended(0)).ended(Ended::Deleted), Phase::Succeeded),
            ("deleted, it failed", one(OnFailure, ended(143)).ended(Ended::Deleted), Phase::Failed),
            (
                "deleted before its start",
                one(OnFailure, waiting("ContainerCreating")).ended(Ended::Deleted),
                Phase::Failed,
            ),
            ("past its deadline", one(OnFailure, ended(143)).ended(Ended::DeadlineExceeded), Phase::Failed),
            ("past its deadline, but done", one(OnFailure, ended(0)).ended(Ended::DeadlineExceeded), Phase::Failed),
            (
                "past its deadline, still stopping",
                one(OnFailure, running()).ended(Ended::DeadlineExceeded),
                Phase::Running,
            ),
        ];
        for (label, pod, expected) in cases {
            assert_eq!(pod.phase(), expected, "{label}");
        }
    }

    #[test]
    fn conditions_follow_the_containers() {
        let policy = RestartPolicy::OnFailure;
        let one = |state| PodView::test(policy, [ContainerView::test(state)]);
        // (label, pod, Initialized, Ready with its reason)
        let cases = [
            ("starts", one(waiting("ContainerCreating")), "True", "False ContainersNotReady"),
            ("prepares", one(waiting("PodInitializing")).with_init(running()), "False", "False ContainersNotReady"),
            ("runs", one(running()).with_init(ended(0)), "True", "True "),
            ("done", one(ended(0)), "True", "False PodCompleted"),
            ("failed", PodView::test(RestartPolicy::Never, [ContainerView::test(ended(1))]), "True", "False PodFailed"),
        ];
        for (label, pod, initialized, ready) in cases {
            let conditions = pod.render(&[], Timestamp::UNIX_EPOCH).conditions.unwrap();
            let of = |kind: &str| conditions.iter().find(|condition| condition.type_ == kind).unwrap();
            assert_eq!(of("Initialized").status, initialized, "{label}");
            for kind in ["Ready", "ContainersReady"] {
                let condition = of(kind);
                let seen = format!("{} {}", condition.status, condition.reason.as_deref().unwrap_or_default());
                assert_eq!(seen, ready, "{label}: {kind}");
            }
            assert_eq!(conditions.len(), 3, "{label}: PodScheduled is the scheduler's");
        }
    }

    #[test]
    fn a_condition_that_stays_keeps_its_time() {
        let pod = PodView::test(RestartPolicy::Never, [ContainerView::test(running())]);
        let later = Timestamp::from_second(60).unwrap();
        let before = pod.render(&[], Timestamp::UNIX_EPOCH).conditions.unwrap();
        assert_eq!(pod.render(&before, later).conditions.unwrap(), before);
        let over = PodView::test(RestartPolicy::Never, [ContainerView::test(ended(0))]).render(&before, later);
        let times: Vec<_> =
            over.conditions.unwrap().into_iter().map(|condition| condition.last_transition_time).collect();
        assert_eq!(times, [Some(Time(Timestamp::UNIX_EPOCH)), Some(Time(later)), Some(Time(later))]);
    }

    #[test]
    fn a_restart_shows_the_end_before_it() {
        let again = ContainerView {
            restart_count: 1,
            container_id: Some("twin://uid/pytorch/1".to_owned()),
            ..ContainerView::test(running()).after(137)
        };
        let status = PodView::test(RestartPolicy::OnFailure, [again]).render(&[], Timestamp::UNIX_EPOCH);
        let container = status.container_statuses.unwrap().remove(0);
        assert_eq!(container.restart_count, 1);
        assert!(container.ready);
        assert!(container.state.unwrap().running.is_some());
        let last = container.last_state.unwrap().terminated.unwrap();
        assert_eq!((last.exit_code, last.reason.as_deref()), (137, Some("Error")));
    }
}
