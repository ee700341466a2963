//! The ports of the twin. They are chosen once and kept over restarts, unless another program has taken one.

use std::{fs, net::TcpListener};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::paths::Paths;

/// The range lies below the ports that the kernel gives to outgoing connections. One of those could be taken before the
/// next start.
const FIRST: u16 = 20_000;
const LAST: u16 = 31_999;

/// One port per listener, all on 127.0.0.1.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Ports {
    pub(crate) etcd: u16,
    pub(crate) etcd_peer: u16,
    pub(crate) apiserver: u16,
    pub(crate) controller_manager: u16,
    pub(crate) scheduler: u16,
    pub(crate) operator_metrics: u16,
    pub(crate) operator_health: u16,
    pub(crate) operator_webhook: u16,
    pub(crate) ministack: u16,
    pub(crate) node: u16,
    pub(crate) front: u16,
    pub(crate) cluster_proxy: u16,
    pub(crate) aws_proxy: u16,
}

impl Ports {
    /// Reads the stored ports, replaces those that are taken, and stores the result. No component may be running.
    pub(crate) fn settle(paths: &Paths) -> Result<Self> {
        let file = paths.state().join("ports.json");
        let mut ports: Self =
            fs::read(&file).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        // Each listener stays open until all ports are chosen, so that no port is chosen twice.
        let mut held = Vec::new();
        for port in ports.each_mut() {
            let listener = match listen(*port) {
                Some(listener) => listener,
                None => free().context("no free port")?,
            };
            *port = listener.local_addr()?.port();
            held.push(listener);
        }
        fs::write(&file, serde_json::to_vec_pretty(&ports)?)?;
        Ok(ports)
    }

    /// Where the API server listens.
    pub(crate) fn apiserver_url(&self) -> String {
        format!("https://127.0.0.1:{}", self.apiserver)
    }

    /// Where `MiniStack` listens.
    pub(crate) fn ministack_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.ministack)
    }

    fn each_mut(&mut self) -> [&mut u16; 13] {
        [
            &mut self.etcd,
            &mut self.etcd_peer,
            &mut self.apiserver,
            &mut self.controller_manager,
            &mut self.scheduler,
            &mut self.operator_metrics,
            &mut self.operator_health,
            &mut self.operator_webhook,
            &mut self.ministack,
            &mut self.node,
            &mut self.front,
            &mut self.cluster_proxy,
            &mut self.aws_proxy,
        ]
    }
}

fn listen(port: u16) -> Option<TcpListener> {
    if port == 0 { None } else { TcpListener::bind(("127.0.0.1", port)).ok() }
}

/// Starts the search at a random port, so that two checkouts that start together seldom try the same one.
fn free() -> Option<TcpListener> {
    let count = LAST - FIRST + 1;
    let start = u16::try_from(uuid::Uuid::now_v7().as_u128() % u128::from(count)).unwrap_or(0);
    (0..count).find_map(|offset| listen(FIRST + (start + offset) % count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_kept_unless_somebody_took_them() {
        let folder = tempfile::tempdir().unwrap();
        let paths = Paths::at(folder.path());
        fs::create_dir_all(paths.state()).unwrap();
        let mut first = Ports::settle(&paths).unwrap();
        let mut distinct: Vec<u16> = first.each_mut().iter().map(|port| **port).collect();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), 13, "no port twice");

        let taken = TcpListener::bind(("127.0.0.1", first.etcd)).unwrap();
        let second = Ports::settle(&paths).unwrap();
        drop(taken);
        assert_ne!(second.etcd, first.etcd);
        assert_eq!((second.front, second.apiserver), (first.front, first.apiserver));
    }
}
