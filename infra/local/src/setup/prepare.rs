//! What the supervisor makes before it starts the first component.

use std::fs;

use anyhow::Result;

use crate::{
    paths::Paths,
    ports::Ports,
    setup::{cluster_objects, kubeconfigs, pki, token_review},
};

/// Makes the folders, keys and configuration files that components read at their start, and chooses the ports.
pub(crate) fn prepare(paths: &Paths) -> Result<Ports> {
    fs::create_dir_all(paths.home())?;
    fs::create_dir_all(paths.pods())?;
    let ports = Ports::settle(paths)?;
    pki::make(paths)?;
    pki::make_other(paths)?;
    kubeconfigs::write(paths, &ports, &token_review::url(paths, &ports)?)?;
    fs::create_dir_all(paths.ministack_state())?;
    fs::create_dir_all(paths.ministack().join("tmp"))?;
    cluster_objects::make_operator_folders(paths)?;
    Ok(ports)
}
