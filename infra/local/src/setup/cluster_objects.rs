//! The objects that the cluster has before the first job: the operator's CRDs and webhook, and `infra/cluster` for each
//! namespace.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, ensure};
use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::{
    names::{FURTHER_NAMESPACES, NAMESPACE},
    paths::Paths,
    ports::Ports,
    private_file::write_private,
    setup::{command, pki, stamp::Stamp, tools::Tools},
};

const OPERATOR_MODULE: &str = "github.com/kubeflow/training-operator";
/// The name under which the operator looks for its webhook configuration.
const WEBHOOK_CONFIGURATION: &str = "validator.training-operator.kubeflow.org";
/// The files of the webhook's certificate, each with the operator's name for it.
const CERTIFICATE_FILES: [(&str, &str); 4] =
    [(pki::WEBHOOK_CA, "ca.crt"), ("webhook-ca.key", "ca.key"), ("webhook.crt", "tls.crt"), ("webhook.key", "tls.key")];

/// Applies the objects when one of their sources has changed. Only the API server has to run.
pub(crate) async fn apply(paths: &Paths, ports: &Ports, tools: &Tools) -> Result<()> {
    let namespaces = [&[NAMESPACE], FURTHER_NAMESPACES.as_slice()].concat();
    let stamp = Stamp::new(
        paths.state_stamp("cluster"),
        &[paths.source("infra/local/go.sum"), paths.source("infra/cluster"), paths.pki(pki::WEBHOOK_CA)],
        &[&ports.operator_webhook.to_string(), &namespaces.join(",")],
    )?;
    if stamp.is_current() {
        return Ok(());
    }
    let objects = async {
        let module = tools.module_folder(OPERATOR_MODULE).await?;
        kubectl(paths, &["apply", "--server-side", "--force-conflicts", "-k"], module.join("manifests/base/crds"))
            .await?;
        let file = paths.state().join("operator.json");
        let list = json!({"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kubeflow"}},
            certificate_secret(paths)?,
            webhook_configuration(paths, ports, &module.join("manifests/base/webhook/manifests.yaml"))?,
        ]});
        write_private(&file, &list.to_string())?;
        kubectl(paths, &["apply", "--server-side", "--force-conflicts", "-f"], file).await?;
        for namespace in namespaces {
            let overlay = write_overlay(paths, namespace)?;
            kubectl(paths, &["apply", "--server-side", "--force-conflicts", "-k"], overlay).await?;
        }
        let flow_schema = paths.source("infra/cluster/flow-schema");
        kubectl(paths, &["apply", "--server-side", "--force-conflicts", "-k"], flow_schema).await
    };
    stamp.make(tools.progress.step("applying the operator's manifests and infra/cluster", objects)).await
}

/// Writes an overlay that puts `infra/cluster` into a namespace, and returns its folder.
fn write_overlay(paths: &Paths, namespace: &str) -> Result<PathBuf> {
    let folder = paths.state().join("namespaces").join(namespace);
    fs::create_dir_all(&folder)?;
    let overlay = json!({
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": namespace,
        // kustomize takes no absolute path. This one leads from .local/state/namespaces/<namespace> to the checkout.
        "resources": ["../../../../infra/cluster"],
    });
    fs::write(folder.join("kustomization.yaml"), overlay.to_string())?;
    Ok(folder)
}

/// Puts the operator's certificate where its webhook server reads it.
pub(crate) fn make_operator_folders(paths: &Paths) -> Result<()> {
    let served = paths.operator().join("k8s-webhook-server/serving-certs");
    fs::create_dir_all(&served)?;
    for (source, name) in CERTIFICATE_FILES {
        fs::copy(paths.pki(source), served.join(name))?;
    }
    // The operator also waits for these two files in a folder whose name is compiled in. It never reads them.
    // Another twin on this machine may have made them.
    let awaited = PathBuf::from("/tmp/k8s-webhook-server/serving-certs");
    fs::create_dir_all(&awaited).with_context(|| format!("cannot make {}", awaited.display()))?;
    for name in ["ca.crt", "tls.crt"] {
        let file = awaited.join(name);
        if !file.exists() {
            fs::write(&file, "").with_context(|| format!("cannot write {}", file.display()))?;
        }
    }
    Ok(())
}

/// The Secret with the webhook's certificate. Without it the operator would make a certificate without 127.0.0.1.
fn certificate_secret(paths: &Paths) -> Result<Value> {
    let mut data = serde_json::Map::new();
    for (source, name) in CERTIFICATE_FILES {
        data.insert(name.to_string(), json!(BASE64_STANDARD.encode(fs::read(paths.pki(source))?)));
    }
    Ok(json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "training-operator-webhook-cert", "namespace": "kubeflow"},
        "data": data,
    }))
}

/// The operator's webhook configuration, with the address of a process in place of a Service.
fn webhook_configuration(paths: &Paths, ports: &Ports, manifest: &PathBuf) -> Result<Value> {
    let text = fs::read_to_string(manifest).with_context(|| format!("cannot read {}", manifest.display()))?;
    let mut configuration: Value = serde_saphyr::from_str(&text).context("the webhook manifest is not YAML")?;
    configuration["metadata"]["name"] = json!(WEBHOOK_CONFIGURATION);
    let authority = BASE64_STANDARD.encode(fs::read(paths.pki(pki::WEBHOOK_CA))?);
    let webhooks = configuration["webhooks"].as_array_mut().context("the webhook manifest lists no webhooks")?;
    ensure!(!webhooks.is_empty(), "the webhook manifest lists no webhooks");
    for webhook in webhooks {
        let path = webhook["clientConfig"]["service"]["path"].as_str().context("a webhook without a path")?;
        let url = format!("https://127.0.0.1:{}{path}", ports.operator_webhook);
        webhook["clientConfig"] = json!({"url": url, "caBundle": authority});
    }
    Ok(configuration)
}

async fn kubectl(paths: &Paths, arguments: &[&str], input: PathBuf) -> Result<()> {
    let mut command = Command::new(paths.bin("kubectl"));
    command
        .env_clear()
        .envs(command::clean_environment(paths))
        .arg("--kubeconfig")
        .arg(paths.admin_kubeconfig())
        .args(arguments)
        .arg(input);
    command::run(&mut command, &paths.log("kubectl")).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlays_lead_back_to_the_checkout() {
        let folder = tempfile::tempdir().unwrap();
        let paths = Paths::at(folder.path());
        fs::create_dir_all(paths.source("infra/cluster")).unwrap();
        let overlay = write_overlay(&paths, "training-two").unwrap();
        let text = fs::read_to_string(overlay.join("kustomization.yaml")).unwrap();
        let kustomization: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(kustomization["namespace"], "training-two");
        let base = overlay.join(kustomization["resources"][0].as_str().unwrap());
        assert_eq!(base.canonicalize().unwrap(), paths.source("infra/cluster").canonicalize().unwrap());
    }

    #[test]
    fn webhooks_are_called_at_the_address_of_a_process() {
        let folder = tempfile::tempdir().unwrap();
        let paths = Paths::at(folder.path());
        pki::make(&paths).unwrap();
        let manifest = folder.path().join("manifests.yaml");
        let text = "---\nkind: ValidatingWebhookConfiguration\nmetadata: {name: x}\nwebhooks:\n- name: a\n  \
                    clientConfig:\n    service: {name: s, namespace: n, path: /validate-a}\n";
        fs::write(&manifest, text).unwrap();
        let ports = Ports { operator_webhook: 7, ..Ports::default() };
        let made = webhook_configuration(&paths, &ports, &manifest).unwrap();
        assert_eq!(made["metadata"]["name"], WEBHOOK_CONFIGURATION);
        let client = &made["webhooks"][0]["clientConfig"];
        assert_eq!(client["url"], "https://127.0.0.1:7/validate-a");
        assert!(client["service"].is_null() && client["caBundle"].is_string());

        fs::write(&manifest, "kind: ValidatingWebhookConfiguration\nwebhooks: []\n").unwrap();
        assert!(webhook_configuration(&paths, &ports, &manifest).is_err(), "an operator without webhooks is not ours");
    }
}
