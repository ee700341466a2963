//! The kubeconfig files: the administrator's, and the API server's for the webhook that reviews tokens.

use std::fs;

use anyhow::Result;
use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::json;

use crate::{paths::Paths, ports::Ports, private_file::write_private, setup::pki::CA};

/// Writes both as JSON, which is YAML.
pub(crate) fn write(paths: &Paths, ports: &Ports, token_review_url: &str) -> Result<()> {
    let admin = kubeconfig(
        &json!({
            "server": ports.apiserver_url(),
            "certificate-authority-data": BASE64_STANDARD.encode(fs::read(paths.pki(CA))?),
        }),
        &json!({
            "client-certificate-data": BASE64_STANDARD.encode(fs::read(paths.pki("admin.crt"))?),
            "client-key-data": BASE64_STANDARD.encode(fs::read(paths.pki("admin.key"))?),
        }),
    );
    write_private(&paths.admin_kubeconfig(), &admin)?;
    let review = kubeconfig(&json!({ "server": token_review_url }), &json!({}));
    write_private(&paths.token_review_kubeconfig(), &review)
}

fn kubeconfig(cluster: &serde_json::Value, user: &serde_json::Value) -> String {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "twin", "cluster": cluster}],
        "users": [{"name": "twin", "user": user}],
        "contexts": [{"name": "twin", "context": {"cluster": "twin", "user": "twin"}}],
        "current-context": "twin",
    })
    .to_string()
}
