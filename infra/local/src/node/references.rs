//! The Secrets and `ConfigMap`s of a container's environment. They are read when the container starts, as the kubelet
//! does. Their values go only into the container's environment, so no type here implements `Debug`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    time::Duration,
};

use k8s_openapi::api::core::v1::{ConfigMap, Container, Secret};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::time;

/// How long the API server may take to answer.
const ANSWER_TIME: Duration = Duration::from_secs(5);

/// The objects by name; `None` for one that does not exist.
#[derive(Default)]
pub(crate) struct References {
    namespace: String,
    secrets: BTreeMap<String, Option<Secret>>,
    config_maps: BTreeMap<String, Option<ConfigMap>>,
}

// === impl References ===

impl References {
    /// Reads the objects that the container names. The error is the message of the waiting container.
    pub(crate) async fn read(client: &Client, namespace: &str, container: &Container) -> Result<Self, String> {
        let (secrets, config_maps) = names(container);
        Ok(Self {
            namespace: namespace.to_owned(),
            secrets: find(client, namespace, "secret", secrets).await?,
            config_maps: find(client, namespace, "configmap", config_maps).await?,
        })
    }

    /// One value of a Secret; `None` when it is optional and does not exist.
    pub(crate) fn secret_value(&self, name: &str, key: &str, optional: bool) -> Result<Option<String>, String> {
        let Some(secret) = self.secrets.get(name).and_then(Option::as_ref) else {
            return missing(optional, || not_found("secret", name));
        };
        match secret.data.as_ref().and_then(|data| data.get(key)) {
            Some(value) => text(name, key, &value.0).map(Some),
            None => missing(optional, || format!("couldn't find key {key} in Secret {}/{name}", self.namespace)),
        }
    }

    /// One value of a `ConfigMap`; `None` when it is optional and does not exist.
    pub(crate) fn config_map_value(&self, name: &str, key: &str, optional: bool) -> Result<Option<String>, String> {
        let Some(config_map) = self.config_maps.get(name).and_then(Option::as_ref) else {
            return missing(optional, || not_found("configmap", name));
        };
        match config_map.data.as_ref().and_then(|data| data.get(key)) {
            Some(value) => Ok(Some(value.clone())),
            None => missing(optional, || format!("couldn't find key {key} in ConfigMap {}/{name}", self.namespace)),
        }
    }

    /// All values of a Secret.
    pub(crate) fn secret_values(&self, name: &str, optional: bool) -> Result<BTreeMap<String, String>, String> {
        let Some(secret) = self.secrets.get(name).and_then(Option::as_ref) else {
            return missing(optional, || not_found("secret", name)).map(Option::unwrap_or_default);
        };
        let values = secret.data.iter().flatten();
        values.map(|(key, value)| Ok((key.clone(), text(name, key, &value.0)?))).collect()
    }

    /// All values of a `ConfigMap`.
    pub(crate) fn config_map_values(&self, name: &str, optional: bool) -> Result<BTreeMap<String, String>, String> {
        let Some(config_map) = self.config_maps.get(name).and_then(Option::as_ref) else {
            return missing(optional, || not_found("configmap", name)).map(Option::unwrap_or_default);
        };
        Ok(config_map.data.clone().unwrap_or_default())
    }
}

/// The names of the Secrets and of the `ConfigMap`s that a container's environment comes from.
fn names(container: &Container) -> (BTreeSet<&str>, BTreeSet<&str>) {
    let values = || container.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref());
    let sources = || container.env_from.iter().flatten();
    let secrets = values().filter_map(|source| Some(source.secret_key_ref.as_ref()?.name.as_str()));
    let config_maps = values().filter_map(|source| Some(source.config_map_key_ref.as_ref()?.name.as_str()));
    (
        secrets.chain(sources().filter_map(|source| Some(source.secret_ref.as_ref()?.name.as_str()))).collect(),
        config_maps.chain(sources().filter_map(|source| Some(source.config_map_ref.as_ref()?.name.as_str()))).collect(),
    )
}

async fn find<K>(
    client: &Client,
    namespace: &str,
    kind: &str,
    names: BTreeSet<&str>,
) -> Result<BTreeMap<String, Option<K>>, String>
where
    K: Resource<Scope = k8s_openapi::NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    K::DynamicType: Default,
{
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    let mut found = BTreeMap::new();
    for name in names {
        let object = match time::timeout(ANSWER_TIME, api.get_opt(name)).await {
            Ok(Ok(object)) => object,
            Ok(Err(kube::Error::Api(answer))) => return Err(answer.message.clone()),
            // The text of another error may quote what was read.
            Ok(Err(_)) | Err(_) => return Err(format!("failed to read {kind} \"{name}\" from the API server")),
        };
        found.insert(name.to_owned(), object);
    }
    Ok(found)
}

fn not_found(kind: &str, name: &str) -> String {
    format!("{kind} \"{name}\" not found")
}

fn missing<T>(optional: bool, why: impl FnOnce() -> String) -> Result<Option<T>, String> {
    if optional { Ok(None) } else { Err(why()) }
}

fn text(name: &str, key: &str, value: &[u8]) -> Result<String, String> {
    let text = str::from_utf8(value).map(str::to_owned);
    text.map_err(|_| format!("key {key} of secret \"{name}\" is not text, which the twin's node does not support"))
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;

    use super::*;

    /// A Secret `token` and a `ConfigMap` `settings`. `absent` was not found as either.
    pub(crate) fn references() -> References {
        let secret = json!({"metadata": {"name": "token"}, "data": {"HF_TOKEN": "aGlkZGVu", "BINARY": "/w=="}});
        let config_map = json!({"metadata": {"name": "settings"}, "data": {"LEVEL": "high"}});
        References {
            namespace: "training".to_owned(),
            secrets: BTreeMap::from([
                ("token".to_owned(), serde_json::from_value(secret).unwrap()),
                ("absent".to_owned(), None),
            ]),
            config_maps: BTreeMap::from([
                ("settings".to_owned(), serde_json::from_value(config_map).unwrap()),
                ("absent".to_owned(), None),
            ]),
        }
    }

    #[test]
    fn values_are_found_or_missed_in_the_kubelets_words() {
        let found = |value: &str| Ok(Some(value.to_owned()));
        let missed = |why: &str| Err(why.to_owned());
        let all = references();
        let cases = [
            ("a secret's", all.secret_value("token", "HF_TOKEN", false), found("hidden")),
            ("no secret", all.secret_value("absent", "K", false), missed("secret \"absent\" not found")),
            ("no secret, optional", all.secret_value("absent", "K", true), Ok(None)),
            ("no key", all.secret_value("token", "K", false), missed("couldn't find key K in Secret training/token")),
            ("no key, optional", all.secret_value("token", "K", true), Ok(None)),
            ("a config map's", all.config_map_value("settings", "LEVEL", false), found("high")),
            ("no config map", all.config_map_value("absent", "K", false), missed("configmap \"absent\" not found")),
            ("no config map, optional", all.config_map_value("absent", "K", true), Ok(None)),
            (
                "no key of a config map",
                all.config_map_value("settings", "K", false),
                missed("couldn't find key K in ConfigMap training/settings"),
            ),
            (
                "not text",
                all.secret_value("token", "BINARY", true),
                missed("key BINARY of secret \"token\" is not text, which the twin's node does not support"),
            ),
        ];
        for (label, seen, expected) in cases {
            assert_eq!(seen, expected, "{label}");
        }
    }

    #[test]
    fn a_container_needs_what_it_names() {
        let container = serde_json::from_value(json!({
            "name": "pytorch",
            "env": [
                {"name": "A", "value": "1"},
                {"name": "B", "valueFrom": {"secretKeyRef": {"name": "one", "key": "k"}}},
                {"name": "C", "valueFrom": {"configMapKeyRef": {"name": "three", "key": "k"}}},
                {"name": "D", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            ],
            "envFrom": [{"secretRef": {"name": "two"}}, {"secretRef": {"name": "one"}}, {"configMapRef": {"name": "four"}}],
        }))
        .unwrap();
        assert_eq!(names(&container), (BTreeSet::from(["one", "two"]), BTreeSet::from(["three", "four"])));
    }
}
