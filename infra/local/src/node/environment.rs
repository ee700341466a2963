//! The environment and the command line of a container's program. Pure.
//!
//! Both are what the manifest says, with changes that stand for what a cluster gives a container: an image, a network,
//! a file for the termination message, volumes, an AWS identity. Nothing is mounted. A program finds the termination
//! message and the volumes only through variables that hold their paths, or paths below them, which are replaced by paths
//! of this machine. That of `TMPDIR` is a short one: sockets lie there, whose paths may have 107 bytes.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use k8s_openapi::api::core::v1::{Container, EnvFromSource, EnvVar, Pod, PodSpec};

use crate::{
    config::Config,
    credentials::Session,
    expansion::expand,
    images::{Image, is_executable},
    references::References,
};

/// The default search path of images.
const IMAGE_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The folder of the trainer image's scripts. Here they are those of the checkout.
const TRAINER_FOLDER: &str = "/opt/trainer/";

/// The default path of the termination message.
const TERMINATION_LOG: &str = "/dev/termination-log";

/// What the node adds for one attempt of a container.
pub(crate) struct Additions<'a> {
    pub(crate) config: &'a Config,
    pub(crate) image: Image,
    /// The job's rendezvous port on this machine, for pods that belong to a job.
    pub(crate) job_port: Option<u16>,
    /// The file that stands for `terminationMessagePath`.
    pub(crate) termination: &'a Path,
    /// The folder of the pod's own volumes, which are named as in the manifest.
    pub(crate) volumes: &'a Path,
    /// A short path that leads to the folder of the pod's own volumes.
    pub(crate) short_volumes: &'a Path,
    /// The working directory.
    pub(crate) home: &'a Path,
    pub(crate) session: &'a Session,
    pub(crate) references: &'a References,
}

/// Builds the environment of a container. The error names the variable that cannot be set.
pub(crate) fn environment(
    pod: &Pod,
    container: &Container,
    additions: &Additions<'_>,
) -> Result<BTreeMap<String, String>, String> {
    let mut environment = BTreeMap::from([
        // Container runtimes set these by themselves.
        ("PATH".to_owned(), IMAGE_PATH.to_owned()),
        ("HOSTNAME".to_owned(), pod.metadata.name.clone().unwrap_or_default()),
        ("HOME".to_owned(), additions.home.display().to_string()),
    ]);
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        let values = values_of(source, additions.references)?;
        environment.extend(values.into_iter().map(|(key, value)| (format!("{prefix}{key}"), value)));
    }
    for variable in container.env.iter().flatten() {
        let value = match network_value(&variable.name, additions.job_port) {
            Some(value) => Some(value),
            None => value_of(pod, variable, &environment, additions.references)?,
        };
        let value = value.map(|value| path_value(pod, container, &variable.name, &value, additions).unwrap_or(value));
        if let Some(value) = value {
            environment.insert(variable.name.clone(), value);
        }
    }
    let config = additions.config;
    if additions.image == Image::Trainer {
        let path = environment.get("PATH").map_or(IMAGE_PATH, String::as_str);
        environment.insert("PATH".to_owned(), format!("{}:{path}", config.trainer_bin.display()));
    }
    let session = additions.session;
    for (name, value) in [
        ("GLOO_SOCKET_IFNAME", "lo".to_owned()),
        ("MODEL_DIR", config.model_dir.display().to_string()),
        ("AWS_ENDPOINT_URL", config.aws_endpoint_url.clone()),
        ("AWS_REGION", config.aws_region.clone()),
        ("AWS_ACCESS_KEY_ID", session.access_key_id.clone()),
        ("AWS_SECRET_ACCESS_KEY", session.secret_access_key.clone()),
        ("AWS_SESSION_TOKEN", session.token.clone()),
    ] {
        environment.insert(name.to_owned(), value);
    }
    Ok(environment)
}

/// Builds the command line of a container. The error is that of a container runtime that cannot start the program.
pub(crate) fn command(
    container: &Container,
    environment: &BTreeMap<String, String>,
    image: Image,
    config: &Config,
) -> Result<Vec<String>, String> {
    if image == Image::Stub {
        return Ok(vec![config.stub_binary.display().to_string()]);
    }
    let words = container.command.iter().flatten().chain(container.args.iter().flatten());
    let mut words = words.map(|word| {
        let word = expand(word, |name| environment.get(name).cloned());
        match word.strip_prefix(TRAINER_FOLDER) {
            Some(script) => config.trainer_dir.join(script).display().to_string(),
            None => word,
        }
    });
    let program = words.next().ok_or("no command specified")?;
    let path = environment.get("PATH").map_or("", String::as_str);
    let program = find_program(&program, path)
        .ok_or_else(|| format!("exec: \"{program}\": executable file not found in $PATH"))?;
    Ok([program.display().to_string()].into_iter().chain(words).collect())
}

/// The value of a variable that names the job's master, which is another process of this machine.
fn network_value(name: &str, job_port: Option<u16>) -> Option<String> {
    let port = job_port?;
    match name {
        "MASTER_ADDR" | "PET_MASTER_ADDR" => Some("127.0.0.1".to_owned()),
        "MASTER_PORT" | "PET_MASTER_PORT" => Some(port.to_string()),
        "PET_RDZV_ENDPOINT" => Some(format!("127.0.0.1:{port}")),
        _ => None,
    }
}

/// The path on this machine of the container's termination message, or of something in one of the pod's own volumes.
fn path_value(pod: &Pod, container: &Container, name: &str, value: &str, additions: &Additions<'_>) -> Option<String> {
    let termination = container.termination_message_path.as_deref().unwrap_or(TERMINATION_LOG);
    if value == termination {
        return Some(additions.termination.display().to_string());
    }
    let volumes = if name == "TMPDIR" { additions.short_volumes } else { additions.volumes };
    own_volumes(pod.spec.as_ref()?, container).into_iter().find_map(|(volume, path)| {
        let rest = below(value, path)?;
        Some(format!("{}{rest}", volumes.join(volume).display()))
    })
}

/// What a value has after a path, empty or from the next slash on; `None` where it is not at or below that path.
pub(crate) fn below<'a>(value: &'a str, path: &str) -> Option<&'a str> {
    value.strip_prefix(path).filter(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The pod's own volumes (`emptyDir`), each with its path in the container. Shared memory is the machine's.
pub(crate) fn own_volumes<'a>(spec: &'a PodSpec, container: &'a Container) -> Vec<(&'a str, &'a str)> {
    let is_own =
        |name: &str| spec.volumes.iter().flatten().any(|volume| volume.name == name && volume.empty_dir.is_some());
    let mounts = container.volume_mounts.iter().flatten();
    let mounts = mounts.filter(|mount| mount.mount_path != "/dev/shm" && is_own(&mount.name));
    mounts.map(|mount| (mount.name.as_str(), mount.mount_path.as_str())).collect()
}

fn values_of(source: &EnvFromSource, references: &References) -> Result<BTreeMap<String, String>, String> {
    match (&source.secret_ref, &source.config_map_ref) {
        (Some(secret), _) => references.secret_values(&secret.name, secret.optional == Some(true)),
        (None, Some(config_map)) => references.config_map_values(&config_map.name, config_map.optional == Some(true)),
        (None, None) => Ok(BTreeMap::new()),
    }
}

/// The value of a variable; `None` when it comes from an optional object that does not exist.
fn value_of(
    pod: &Pod,
    variable: &EnvVar,
    environment: &BTreeMap<String, String>,
    references: &References,
) -> Result<Option<String>, String> {
    let Some(source) = &variable.value_from else {
        let value = variable.value.as_deref().unwrap_or_default();
        return Ok(Some(expand(value, |name| environment.get(name).cloned())));
    };
    if let Some(secret) = &source.secret_key_ref {
        return references.secret_value(&secret.name, &secret.key, secret.optional == Some(true));
    }
    if let Some(config_map) = &source.config_map_key_ref {
        return references.config_map_value(&config_map.name, &config_map.key, config_map.optional == Some(true));
    }
    let field = source.field_ref.as_ref().map(|field| field.field_path.as_str());
    let value = field.and_then(|field| field_of(pod, field));
    let value = value
        .ok_or_else(|| format!("the value of {} is not supported by the twin's node: {source:?}", variable.name))?;
    Ok(Some(value))
}

fn field_of(pod: &Pod, field: &str) -> Option<String> {
    let quoted = |prefix: &str| Some(field.strip_prefix(prefix)?.strip_prefix("['")?.strip_suffix("']")?.to_owned());
    if let Some(key) = quoted("metadata.labels") {
        return Some(pod.metadata.labels.as_ref()?.get(&key).cloned().unwrap_or_default());
    }
    if let Some(key) = quoted("metadata.annotations") {
        return Some(pod.metadata.annotations.as_ref()?.get(&key).cloned().unwrap_or_default());
    }
    match field {
        "metadata.name" => pod.metadata.name.clone(),
        "metadata.namespace" => pod.metadata.namespace.clone(),
        "metadata.uid" => pod.metadata.uid.clone(),
        "spec.nodeName" => pod.spec.as_ref()?.node_name.clone(),
        "spec.serviceAccountName" => pod.spec.as_ref()?.service_account_name.clone(),
        "status.podIP" => pod.status.as_ref()?.pod_ip.clone(),
        _ => None,
    }
}

fn find_program(program: &str, path: &str) -> Option<PathBuf> {
    if program.contains('/') {
        let program = PathBuf::from(program);
        return is_executable(&program).then_some(program);
    }
    path.split(':').map(|folder| Path::new(folder).join(program)).find(|candidate| is_executable(candidate))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::references;

    fn config() -> Config {
        serde_json::from_value(json!({
            "node_name": "twin", "kubeconfig": "/k", "listen": "127.0.0.1:1", "pods_dir": "/pods",
            "trainer_dir": "/checkout/trainer", "trainer_bin": "/usr/bin", "trainer_image": "trainer:local",
            "model_dir": "/models", "stub_binary": "/stub", "aws_endpoint_url": "http://127.0.0.1:2",
            "aws_region": "us-east-1", "trainer_role_arn": "arn", "running_trainers_limit": 1, "back_off_base_seconds": 10
        }))
        .unwrap()
    }

    fn pod(container: &serde_json::Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "job-worker-0", "namespace": "training", "uid": "u", "labels": {"a/b": "c"}},
            "spec": {"nodeName": "twin", "containers": [container], "volumes": [
                {"name": "logs", "emptyDir": {}}, {"name": "disk", "hostPath": {"path": "/disk"}},
            ]},
        }))
        .unwrap()
    }

    /// The environment and command of a container with these fields.
    fn seen(image: Image, fields: &serde_json::Value) -> (BTreeMap<String, String>, Result<Vec<String>, String>) {
        try_seen(image, fields).unwrap()
    }

    /// The same for a container whose environment may not be there.
    #[expect(clippy::type_complexity, reason = "a test")]
    fn try_seen(
        image: Image,
        fields: &serde_json::Value,
    ) -> Result<(BTreeMap<String, String>, Result<Vec<String>, String>), String> {
        let references = references::tests::references();
        let config = config();
        let mut container = json!({"name": "pytorch"});
        container.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let pod = pod(&container);
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let session = Session::new("key", "secret", "token");
        let additions = Additions {
            config: &config,
            image,
            job_port: Some(20_001),
            termination: Path::new("/pod/termination"),
            volumes: Path::new("/pod/volumes"),
            short_volumes: Path::new("/tmp/v"),
            home: Path::new("/pod/work"),
            session: &session,
            references: &references,
        };
        let environment = environment(&pod, container, &additions)?;
        let command = command(container, &environment, image, &config);
        Ok((environment, command))
    }

    #[test]
    fn nothing_but_the_agreed_changes_is_made() {
        let (environment, _) = seen(Image::Trainer, &json!({"env": [{"name": "OWN", "value": "1"}]}));
        let expected = [
            ("AWS_ACCESS_KEY_ID", "key"),
            ("AWS_ENDPOINT_URL", "http://127.0.0.1:2"),
            ("AWS_REGION", "us-east-1"),
            ("AWS_SECRET_ACCESS_KEY", "secret"),
            ("AWS_SESSION_TOKEN", "token"),
            ("GLOO_SOCKET_IFNAME", "lo"),
            ("HOME", "/pod/work"),
            ("HOSTNAME", "job-worker-0"),
            ("MODEL_DIR", "/models"),
            ("OWN", "1"),
            ("PATH", "/usr/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        ];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(environment.into_iter().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn values_are_made_as_in_a_cluster_with_the_master_on_this_machine() {
        let (environment, _) = seen(
            Image::Trainer,
            &json!({"env": [
                {"name": "RANK", "value": "7"},
                {"name": "EARLY", "value": "$(MASTER_ADDR)"},
                {"name": "MASTER_ADDR", "value": "job-master-0"},
                {"name": "MASTER_PORT", "value": "23456"},
                {"name": "PET_MASTER_ADDR", "value": "job-master-0"},
                {"name": "PET_MASTER_PORT", "value": "23456"},
                {"name": "PET_RDZV_ENDPOINT", "value": "job-worker-0:23456"},
                {"name": "LATE", "value": "$(MASTER_ADDR):$(MASTER_PORT) $$(RANK)"},
                {"name": "RANK", "value": "1"},
                {"name": "ME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                {"name": "LABEL", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['a/b']"}}},
                {"name": "PATH", "value": "/own"},
            ]}),
        );
        let cases = [
            ("a later variable is not known yet", "EARLY", "$(MASTER_ADDR)"),
            ("an earlier one is", "LATE", "127.0.0.1:20001 $(RANK)"),
            ("the last of two counts", "RANK", "1"),
            ("master's host", "PET_MASTER_ADDR", "127.0.0.1"),
            ("master's port", "PET_MASTER_PORT", "20001"),
            ("rendezvous", "PET_RDZV_ENDPOINT", "127.0.0.1:20001"),
            ("a field", "ME", "job-worker-0"),
            ("a label", "LABEL", "c"),
            ("the manifest's own path comes second", "PATH", "/usr/bin:/own"),
        ];
        for (label, name, expected) in cases {
            assert_eq!(environment[name], expected, "{label}");
        }
    }

    #[test]
    fn paths_of_the_container_alone_lie_on_this_machine() {
        let fields = json!({
            "env": [
                {"name": "WORDS", "value": "/dev/termination-log"},
                {"name": "LOGS", "value": "/var/log/x"},
                {"name": "BELOW", "value": "/var/log/x/y"},
                {"name": "BESIDE", "value": "/var/log/xy"},
                {"name": "TMPDIR", "value": "/var/log/x"},
                {"name": "DISK", "value": "/disk"},
                {"name": "UID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}},
            ],
            "volumeMounts": [{"name": "logs", "mountPath": "/var/log/x"}, {"name": "disk", "mountPath": "/disk"}],
        });
        let (environment, _) = seen(Image::Trainer, &fields);
        for (name, expected) in [
            ("WORDS", "/pod/termination"),
            ("LOGS", "/pod/volumes/logs"),
            ("BELOW", "/pod/volumes/logs/y"),
            ("BESIDE", "/var/log/xy"),
            ("TMPDIR", "/tmp/v/logs"),
            ("DISK", "/disk"),
            ("UID", "u"),
        ] {
            assert_eq!(environment[name], expected, "{name}");
        }
        let mut elsewhere = fields;
        elsewhere["terminationMessagePath"] = json!("/var/log/x");
        assert_eq!(seen(Image::Trainer, &elsewhere).0["LOGS"], "/pod/termination");
    }

    #[test]
    fn secrets_and_config_maps_become_variables() {
        let (environment, _) = seen(
            Image::Stub,
            &json!({
                "envFrom": [
                    {"configMapRef": {"name": "settings"}},
                    {"configMapRef": {"name": "settings"}, "prefix": "MY_"},
                    {"secretRef": {"name": "absent", "optional": true}},
                ],
                "env": [
                    {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "token", "key": "HF_TOKEN"}}},
                    {"name": "OWN", "value": "$(TOKEN) $(MY_LEVEL)"},
                    {"name": "LEVEL", "value": "low"},
                    {"name": "GONE", "valueFrom": {"secretKeyRef": {"name": "absent", "key": "k", "optional": true}}},
                ],
            }),
        );
        let cases = [
            ("a secret's value", "TOKEN", Some("hidden")),
            ("of use to later ones", "OWN", Some("hidden high")),
            ("with a prefix", "MY_LEVEL", Some("high")),
            ("the container's own counts more", "LEVEL", Some("low")),
            ("optional and not there", "GONE", None),
        ];
        for (label, name, expected) in cases {
            assert_eq!(environment.get(name).map(String::as_str), expected, "{label}");
        }
        for (label, fields, expected) in [
            (
                "a variable",
                json!({"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "absent", "key": "k"}}}]}),
                "secret \"absent\" not found",
            ),
            ("all of a secret", json!({"envFrom": [{"secretRef": {"name": "absent"}}]}), "secret \"absent\" not found"),
            (
                "all of a config map",
                json!({"envFrom": [{"configMapRef": {"name": "absent"}}]}),
                "configmap \"absent\" not found",
            ),
        ] {
            assert_eq!(try_seen(Image::Stub, &fields).unwrap_err(), expected, "{label}");
        }
    }

    #[test]
    fn commands_are_found_in_the_image() {
        let found = |words: &[&str]| Ok(words.iter().map(|word| (*word).to_owned()).collect());
        let cases = [
            (
                "a script of the image",
                Image::Trainer,
                json!({"command": ["env"], "args": ["--max-restarts=0", "/opt/trainer/train.py"]}),
                found(&["/usr/bin/env", "--max-restarts=0", "/checkout/trainer/train.py"]),
            ),
            (
                "variables of the operator",
                Image::Trainer,
                json!({"command": ["env"], "args": ["$(MASTER_ADDR)"], "env": [{"name": "MASTER_ADDR", "value": "x"}]}),
                found(&["/usr/bin/env", "127.0.0.1"]),
            ),
            (
                "another folder stays",
                Image::Trainer,
                json!({"command": ["/usr/bin/env", "/opt/trainers/train.py"]}),
                found(&["/usr/bin/env", "/opt/trainers/train.py"]),
            ),
            (
                "not there",
                Image::Trainer,
                json!({"command": ["no-such-program"]}),
                Err("exec: \"no-such-program\": executable file not found in $PATH".to_owned()),
            ),
            ("none", Image::Trainer, json!({}), Err("no command specified".to_owned())),
            ("the stub is one program", Image::Stub, json!({"command": ["torchrun"]}), found(&["/stub"])),
        ];
        for (label, image, fields, expected) in cases {
            assert_eq!(seen(image, &fields).1, expected, "{label}");
        }
    }
}
