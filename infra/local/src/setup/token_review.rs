//! The webhook to which the API server sends tokens for review. MiniStack serves it and checks them as EKS would.

use std::fs;

use anyhow::Result;
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};

use crate::{
    names::{ACCOUNT, CLUSTER_NAME, REGION},
    paths::Paths,
    ports::Ports,
    private_file::write_private,
};

/// The webhook's address. One part of it is a secret of the API server and MiniStack.
pub(crate) fn url(paths: &Paths, ports: &Ports) -> Result<String> {
    let secret = secret(paths)?;
    Ok(format!("{}/_ministack/eks-auth/{ACCOUNT}/{REGION}/{CLUSTER_NAME}/{secret}", ports.ministack_url()))
}

/// The secret part of the address, made once.
pub(crate) fn secret(paths: &Paths) -> Result<String> {
    let file = paths.state().join("eks-auth-token");
    if let Ok(token) = fs::read_to_string(&file) {
        return Ok(token);
    }
    let mut bytes = [0; 32];
    rustls::crypto::aws_lc_rs::default_provider()
        .secure_random
        .fill(&mut bytes)
        .map_err(|_| anyhow::anyhow!("no random bytes"))?;
    let token = BASE64_URL_SAFE_NO_PAD.encode(bytes);
    write_private(&file, &token)?;
    Ok(token)
}
