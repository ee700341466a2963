//! `.local/env`, the settings that a shell needs to use the twin.

use anyhow::Result;

use crate::{
    names::{CLUSTER_NAME, NAMESPACE, REGION, TRAINER_IMAGE},
    paths::Paths,
    ports::Ports,
    private_file::write_private,
    setup::deploy::{Deployment, allowed_namespaces, bucket},
};

const DEMO_MODEL: &str = "tiny";

/// Writes the file. It also marks the twin as ready.
pub(crate) fn write(paths: &Paths, ports: &Ports, deployment: &Deployment) -> Result<()> {
    let bucket = bucket(paths);
    let variables = [
        ("API_URL", format!("http://127.0.0.1:{}", ports.front)),
        ("TRAINER_API_TOKEN", deployment.token.clone()),
        ("KUBECONFIG", paths.admin_kubeconfig().display().to_string()),
        ("NAMESPACE", NAMESPACE.into()),
        ("ALLOWED_NAMESPACES", allowed_namespaces()),
        ("CLUSTER_NAME", CLUSTER_NAME.into()),
        ("RUNS_BASE_URI", format!("s3://{bucket}/runs")),
        ("RUNS_BUCKET", bucket),
        ("TRAINER_IMAGE", TRAINER_IMAGE.into()),
        ("DEMO_MODEL", DEMO_MODEL.into()),
        ("AWS_ENDPOINT_URL", ports.ministack_url()),
        ("AWS_REGION", REGION.into()),
        // boto3 reads this one only.
        ("AWS_DEFAULT_REGION", REGION.into()),
        ("AWS_ACCESS_KEY_ID", "test".into()),
        ("AWS_SECRET_ACCESS_KEY", "test".into()),
    ];
    let lines = variables.map(|(name, value)| format!("export {name}={}\n", quote(&value)));
    write_private(&paths.env(), &lines.concat())
}

/// Quotes a value for a shell. A plain value stays plain, so that make can include the file too.
fn quote(value: &str) -> String {
    let plain = |character: char| character.is_ascii_alphanumeric() || "_-./:,".contains(character);
    if value.chars().all(plain) { value.into() } else { format!("'{}'", value.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_values_stay_plain_and_others_are_quoted() {
        assert_eq!(quote("http://127.0.0.1:1/a_b-c.d,e"), "http://127.0.0.1:1/a_b-c.d,e");
        assert_eq!(quote("a b"), "'a b'");
        assert_eq!(quote("it's $HOME"), r"'it'\''s $HOME'");
    }
}
