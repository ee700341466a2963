//! The components of Kubernetes: etcd, the API server, the controller manager, the scheduler and the training operator.

use std::time::Duration;

use crate::{
    components::component::Component,
    paths::Paths,
    ports::Ports,
    setup::{command::clean_environment, pki},
    spec::{Ready, Spec},
};

pub(crate) fn etcd(paths: &Paths, ports: &Ports) -> Spec {
    let client = format!("http://127.0.0.1:{}", ports.etcd);
    let peer = format!("http://127.0.0.1:{}", ports.etcd_peer);
    Spec {
        ready: Ready::Succeeds(format!("{client}/health")),
        arguments: vec![
            format!("--data-dir={}", paths.state().join("etcd").display()),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster=default={peer}"),
            "--log-level=warn".into(),
            // The state has to survive a crash of a process, but not a power failure.
            "--unsafe-no-fsync".into(),
        ],
        ..kubernetes(paths, Component::Etcd, ports.etcd)
    }
}

pub(crate) fn apiserver(paths: &Paths, ports: &Ports) -> Spec {
    let pki = |file: &str| paths.pki(file).display().to_string();
    Spec {
        ready: Ready::Succeeds(format!("{}/readyz", ports.apiserver_url())),
        arguments: vec![
            format!("--etcd-servers=http://127.0.0.1:{}", ports.etcd),
            "--bind-address=127.0.0.1".into(),
            "--advertise-address=127.0.0.1".into(),
            format!("--secure-port={}", ports.apiserver),
            format!("--tls-cert-file={}", pki("server.crt")),
            format!("--tls-private-key-file={}", pki("server.key")),
            format!("--client-ca-file={}", pki(pki::CA)),
            format!("--service-account-key-file={}", pki("service-accounts.pub")),
            format!("--service-account-signing-key-file={}", pki("service-accounts.key")),
            "--service-account-issuer=https://localhost".into(),
            "--authorization-mode=RBAC".into(),
            format!("--authentication-token-webhook-config-file={}", paths.token_review_kubeconfig().display()),
            "--authentication-token-webhook-version=v1".into(),
            "--authentication-token-webhook-cache-ttl=10s".into(),
            "--service-cluster-ip-range=10.0.0.0/24".into(),
            // Pods get no Kubernetes token, because the trainer does not use the Kubernetes API.
            "--disable-admission-plugins=ServiceAccount".into(),
            format!("--kubelet-client-certificate={}", pki("admin.crt")),
            format!("--kubelet-client-key={}", pki("admin.key")),
            "--profiling=false".into(),
        ],
        ..kubernetes(paths, Component::KubeApiserver, ports.apiserver)
    }
}

pub(crate) fn controller_manager(paths: &Paths, ports: &Ports) -> Spec {
    let mut arguments = control_loop(paths, ports.controller_manager);
    arguments.extend([
        concat!(
            "--controllers=garbage-collector-controller,namespace-controller,serviceaccount-controller,",
            "serviceaccount-token-controller,endpointslice-controller,endpoints-controller,resourcequota-controller,",
            "root-ca-certificate-publisher-controller"
        )
        .into(),
        format!("--service-account-private-key-file={}", paths.pki("service-accounts.key").display()),
        format!("--root-ca-file={}", paths.pki(pki::CA).display()),
    ]);
    Spec {
        ready: Ready::Succeeds(format!("https://127.0.0.1:{}/healthz", ports.controller_manager)),
        arguments,
        ..kubernetes(paths, Component::KubeControllerManager, ports.controller_manager)
    }
}

pub(crate) fn scheduler(paths: &Paths, ports: &Ports) -> Spec {
    Spec {
        ready: Ready::Succeeds(format!("https://127.0.0.1:{}/healthz", ports.scheduler)),
        arguments: control_loop(paths, ports.scheduler),
        ..kubernetes(paths, Component::KubeScheduler, ports.scheduler)
    }
}

pub(crate) fn operator(paths: &Paths, ports: &Ports) -> Spec {
    let mut spec = Spec {
        // The operator's /readyz can succeed a moment before its webhook serves this path. The API server would then
        // refuse the first job with "the server could not find the requested resource".
        ready: Ready::Routed(format!(
            "https://127.0.0.1:{}/validate-kubeflow-org-v1-pytorchjob",
            ports.operator_webhook
        )),
        arguments: vec![
            format!("--metrics-bind-address=127.0.0.1:{}", ports.operator_metrics),
            format!("--health-probe-bind-address=127.0.0.1:{}", ports.operator_health),
            format!("--webhook-server-port={}", ports.operator_webhook),
        ],
        ..kubernetes(paths, Component::TrainingOperator, ports.operator_webhook)
    };
    spec.environment.insert("KUBECONFIG".into(), paths.admin_kubeconfig().display().to_string());
    spec.environment.insert("MY_POD_NAMESPACE".into(), "kubeflow".into());
    // The operator's webhook server reads its certificate below this folder.
    spec.environment.insert("TMPDIR".into(), paths.operator().display().to_string());
    spec
}

/// The flags that the controller manager and the scheduler share.
fn control_loop(paths: &Paths, port: u16) -> Vec<String> {
    vec![
        format!("--kubeconfig={}", paths.admin_kubeconfig().display()),
        "--leader-elect=false".into(),
        "--bind-address=127.0.0.1".into(),
        format!("--secure-port={port}"),
        format!("--tls-cert-file={}", paths.pki("server.crt").display()),
        format!("--tls-private-key-file={}", paths.pki("server.key").display()),
        "--profiling=false".into(),
    ]
}

/// What the components of Kubernetes have in common.
fn kubernetes(paths: &Paths, component: Component, port: u16) -> Spec {
    Spec {
        program: paths.bin(component.name()),
        arguments: Vec::new(),
        environment: clean_environment(paths),
        port,
        ready: Ready::Accepts(port),
        // The API server would drain its watches for a minute. Here nobody waits for them.
        grace: Duration::from_secs(1),
        seed: None,
    }
}
