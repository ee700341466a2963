//! The two proxies: one before the Kubernetes API and one before AWS.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use anyhow::Result;

use crate::{
    faults::{
        active::Faults,
        fault::{Fault, Target},
        proxy::{Proxy, Tls},
    },
    paths::Paths,
    ports::Ports,
    setup::pki,
};

/// The faults of both proxies. The proxies run as long as this process.
pub(crate) struct Proxies {
    cluster: Arc<Faults>,
    aws: Arc<Faults>,
}

// === impl Proxies ===

impl Proxies {
    pub(crate) fn start(paths: &Paths, ports: &Ports) -> Result<Self> {
        let tls = Tls {
            server: Arc::new(pki::server_config(paths, "server")?),
            strange: Arc::new(pki::server_config(paths, "other")?),
            client: Arc::new(pki::client_config(paths)?),
        };
        let proxies = Self { cluster: Arc::default(), aws: Arc::default() };
        let start = |listen: u16, upstream: u16, tls, faults: &Arc<Faults>| {
            let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            let proxy = Proxy { listen: local(listen), upstream: local(upstream), tls, faults: Arc::clone(faults) };
            tokio::spawn(proxy.run());
        };
        start(ports.cluster_proxy, ports.apiserver, Some(tls), &proxies.cluster);
        start(ports.aws_proxy, ports.ministack, None, &proxies.aws);
        Ok(proxies)
    }

    pub(crate) fn add(&self, target: Target, fault: Fault) -> Result<()> {
        fault.check(target == Target::Cluster)?;
        let faults = match target {
            Target::Cluster => &self.cluster,
            Target::Aws => &self.aws,
        };
        faults.add(fault);
        Ok(())
    }

    pub(crate) fn clear(&self) {
        self.cluster.clear();
        self.aws.clear();
    }

    pub(crate) fn list(&self) -> Vec<(Target, Fault, u64)> {
        [(Target::Cluster, &self.cluster), (Target::Aws, &self.aws)]
            .into_iter()
            .flat_map(|(target, faults)| faults.list().into_iter().map(move |(fault, left)| (target, fault, left)))
            .collect()
    }
}
