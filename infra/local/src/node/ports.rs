//! The substitute for the cluster's network: a free port of this machine for the rendezvous of each job, and invented
//! addresses for pods.
//!
//! The ports are stored, so that all pods of a job get the same one, also after a restart of the node.

use std::{
    collections::{HashMap, HashSet},
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use anyhow::Context as _;
use sha2::{Digest as _, Sha256};
use tokio::net::TcpSocket;

/// The ports lie below those that the kernel gives to outgoing connections.
const LOWEST_PORT: u16 = 20_000;
const PORTS: u16 = 12_000;

/// The rendezvous port of each job, by the job's uid.
#[derive(Debug)]
pub(crate) struct JobPorts {
    file: PathBuf,
    ports: HashMap<String, u16>,
}

/// The addresses of the pods, by their uids. They only have to differ, because no packet is ever sent to one.
#[derive(Debug, Default)]
pub(crate) struct PodAddresses(HashMap<String, Ipv4Addr>);

// === impl JobPorts ===

impl JobPorts {
    /// Reads the stored ports.
    pub(crate) fn open(file: PathBuf) -> anyhow::Result<Self> {
        let ports = match fs::read(&file) {
            Ok(text) => serde_json::from_slice(&text).with_context(|| format!("{} is not valid", file.display()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => HashMap::new(),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
        };
        Ok(Self { file, ports })
    }

    /// The port of a job. The first call chooses it.
    pub(crate) fn of_job(&mut self, job_uid: &str) -> anyhow::Result<u16> {
        if let Some(port) = self.ports.get(job_uid) {
            return Ok(*port);
        }
        let taken: HashSet<u16> = self.ports.values().copied().collect();
        // The search starts at the job's hash, so that two twins on one machine seldom try the same port.
        let [high, low] = hash(job_uid);
        let first = u16::from_be_bytes([high, low]) % PORTS;
        let port = (0..PORTS)
            .map(|offset| LOWEST_PORT + (first + offset) % PORTS)
            .find(|port| !taken.contains(port) && is_free(*port))
            .context("no free port is left for a job")?;
        self.ports.insert(job_uid.to_owned(), port);
        self.write()?;
        Ok(port)
    }

    /// Forgets the jobs that have no pod any more.
    pub(crate) fn keep_only(&mut self, job_uids: &HashSet<String>) -> anyhow::Result<()> {
        self.ports.retain(|job_uid, _| job_uids.contains(job_uid));
        self.write()
    }

    fn write(&self) -> anyhow::Result<()> {
        let unfinished = self.file.with_extension("new");
        fs::write(&unfinished, serde_json::to_vec(&self.ports)?)
            .and_then(|()| fs::rename(&unfinished, &self.file))
            .with_context(|| format!("cannot write {}", self.file.display()))
    }
}

// === impl PodAddresses ===

impl PodAddresses {
    /// The address of a pod: the one it already has, or a new one.
    pub(crate) fn of_pod(&mut self, pod_uid: &str, present: Option<Ipv4Addr>) -> Ipv4Addr {
        if let Some(address) = present.or_else(|| self.0.get(pod_uid).copied()) {
            self.0.insert(pod_uid.to_owned(), address);
            return address;
        }
        let taken: HashSet<Ipv4Addr> = self.0.values().copied().collect();
        let first = u16::from_be_bytes(hash(pod_uid));
        let address = (0..=u16::MAX)
            .map(|offset| first.wrapping_add(offset).to_be_bytes())
            // The address of a network and its broadcast address are no pod's.
            .filter(|[_, host]| !matches!(host, 0 | 255))
            .map(|[network, host]| Ipv4Addr::new(10, 244, network, host))
            .find(|address| !taken.contains(address))
            .unwrap_or(Ipv4Addr::new(10, 244, 0, 1));
        self.0.insert(pod_uid.to_owned(), address);
        address
    }

    pub(crate) fn release(&mut self, pod_uid: &str) {
        self.0.remove(pod_uid);
    }
}

fn hash(text: &str) -> [u8; 2] {
    let digest: [u8; 32] = Sha256::digest(text).into();
    [digest[0], digest[1]]
}

/// Whether the port is free on all addresses, because the rendezvous store listens on all of them.
fn is_free(port: u16) -> bool {
    TcpSocket::new_v4().is_ok_and(|socket| socket.bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_keeps_its_port_and_shares_it_with_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ports.json");
        let mut ports = JobPorts::open(file.clone()).unwrap();
        let first = ports.of_job("a").unwrap();
        let second = ports.of_job("b").unwrap();
        assert_ne!(first, second);
        assert!((20_000..32_768).contains(&first), "{first}");
        let mut reopened = JobPorts::open(file).unwrap();
        assert_eq!(reopened.of_job("a").unwrap(), first);
        reopened.keep_only(&HashSet::from(["b".to_owned()])).unwrap();
        assert_eq!(reopened.of_job("b").unwrap(), second);
        assert_eq!(reopened.ports.len(), 1);
    }

    #[test]
    fn a_port_in_use_is_not_given() {
        let folder = tempfile::tempdir().unwrap();
        let mut ports = JobPorts::open(folder.path().join("ports.json")).unwrap();
        let wanted = LOWEST_PORT + u16::from_be_bytes(hash("job")) % PORTS;
        let _listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, wanted)).unwrap();
        assert_ne!(ports.of_job("job").unwrap(), wanted);
    }

    #[test]
    fn pods_have_addresses_of_their_own() {
        let mut addresses = PodAddresses::default();
        let given: HashSet<Ipv4Addr> = (0..250).map(|pod| addresses.of_pod(&format!("pod-{pod}"), None)).collect();
        assert_eq!(given.len(), 250);
        let present = Ipv4Addr::new(10, 244, 1, 2);
        assert_eq!(addresses.of_pod("adopted", Some(present)), present);
        assert_eq!(addresses.of_pod("adopted", None), present);
    }
}
