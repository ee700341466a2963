//! The front, which passes requests on to the HTTP API. Its program is `twin front`.

use std::time::Duration;

use anyhow::Result;

use crate::{
    paths::{Paths, sibling},
    ports::Ports,
    setup::command::clean_environment,
    spec::{Ready, Spec},
};

pub(crate) fn spec(paths: &Paths, ports: &Ports, upstream: &str) -> Result<Spec> {
    Ok(Spec {
        program: sibling("twin")?,
        arguments: vec![
            "front".into(),
            format!("--listen=127.0.0.1:{}", ports.front),
            format!("--upstream={upstream}"),
        ],
        environment: clean_environment(paths),
        port: ports.front,
        ready: Ready::Accepts(ports.front),
        grace: Duration::from_secs(2),
        seed: None,
    })
}
