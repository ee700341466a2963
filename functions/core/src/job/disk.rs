//! The disk of a job's pods: the volume of the trainer's work files, and how much of it a pod may use.
//!
//! A request that says `disk_per_node_gb` gets a volume, a request and a limit of that size. One that does not gets a volume
//! without a limit, and its pods may use what their nodes have free: submit does not read models, so it knows no size, and
//! any number that suits a large model would keep a small one from every node with a small disk.

use k8s_openapi::{
    api::core::v1::{Container, EnvVar, PodSpec, PodTemplateSpec, Volume},
    apimachinery::pkg::api::resource::Quantity,
};

use crate::job::pytorchjob::CONTAINER;

/// Where the trainer's work files lie, and temporary files and caches. It outlives the container. Sockets below it must
/// have paths of at most 107 bytes, so it is short.
pub(super) const WORK_DIR: &str = "/var/lib/trainer";
/// The name of that volume. The operator's `training-defaults` may have another volume of this name, or at that path.
pub(super) const VOLUME: &str = "trainer-work";
/// The resource of a node's disk.
pub(super) const RESOURCE: &str = "ephemeral-storage";
/// The variable with the amounts that the kubelet allows in `WORK_DIR`, separated by commas. It evicts a pod that has more.
const LIMIT: &str = "TRAINER_DISK_LIMIT";

/// Take the work volume out of a job's pod where the defaults have one: by its name, or by its path. Which disk work files
/// lie on is the operator's to say. Another one than the node's has its own size, so the pod then asks for none of that.
pub(super) fn leave_volume(base: &PodSpec, top: &mut PodSpec) {
    let mounted = base.containers.iter().find_map(|container| mounted_at_work_dir(container)).map(str::to_owned);
    let name = mounted.as_deref().unwrap_or(VOLUME);
    let Some(volume) = base.volumes.iter().flatten().find(|volume| volume.name == name) else { return };
    top.volumes.iter_mut().for_each(|volumes| volumes.retain(|volume| volume.name != VOLUME));
    for container in top.containers.iter_mut().filter(|container| container.name == CONTAINER) {
        if mounted.is_some() {
            container.volume_mounts.iter_mut().for_each(|mounts| mounts.retain(|mount| mount.name != VOLUME));
        }
        if !is_of_nodes_disk(volume)
            && let Some(resources) = &mut container.resources
        {
            for amounts in [&mut resources.limits, &mut resources.requests].into_iter().flatten() {
                amounts.remove(RESOURCE);
            }
        }
    }
}

/// Tell the trainer how much disk it may use, so that it ends with a sentence before the kubelet evicts its pod.
pub(super) fn say_limit(template: &mut PodTemplateSpec) {
    let Some(pod) = &mut template.spec else { return };
    let volumes = pod.volumes.as_deref().unwrap_or_default();
    for container in pod.containers.iter_mut().filter(|container| container.name == CONTAINER) {
        let volume = mounted_at_work_dir(container).and_then(|name| volumes.iter().find(|volume| volume.name == name));
        let allowed: Vec<Quantity> = if let Some(volume) = volume.filter(|volume| is_of_nodes_disk(volume)) {
            let limits = container.resources.as_ref().and_then(|resources| resources.limits.as_ref());
            let of_container = limits.and_then(|limits| limits.get(RESOURCE));
            let of_volume = volume.empty_dir.as_ref().and_then(|volume| volume.size_limit.as_ref());
            of_container.into_iter().chain(of_volume).cloned().collect()
        } else {
            Vec::new() // its own size is the limit, and other pods may have files there
        };
        let variables = container.env.get_or_insert_default();
        variables.retain(|variable| variable.name != LIMIT);
        if !allowed.is_empty() {
            let allowed: Vec<_> = allowed.into_iter().map(|size| size.0).collect();
            let value = Some(allowed.join(","));
            variables.push(EnvVar { name: LIMIT.to_owned(), value, value_from: None });
        }
    }
}

/// The volume that the training container has at `WORK_DIR`.
fn mounted_at_work_dir(container: &Container) -> Option<&str> {
    let mut mounts = container.volume_mounts.iter().flatten().filter(|_| container.name == CONTAINER);
    mounts.find(|mount| mount.mount_path.trim_end_matches('/') == WORK_DIR).map(|mount| mount.name.as_str())
}

/// So many GiB, as Kubernetes writes them.
pub(super) fn gibibytes(number: u32) -> Quantity {
    Quantity(format!("{number}Gi"))
}

/// Whether the kubelet counts a volume to the pod's use of its node's disk.
fn is_of_nodes_disk(volume: &Volume) -> bool {
    volume.empty_dir.as_ref().is_some_and(|volume| volume.medium.as_deref().unwrap_or_default().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::manifest::tests::{manifest, manifest_over, master};
    use serde_json::{Value, json};

    /// The work volume, its mounts, the ephemeral storage that is requested and limited, and what the trainer is told.
    fn disk(manifest: &Value) -> Value {
        let pod = &master(manifest)["spec"];
        let container = &pod["containers"][0];
        let mounts = container["volumeMounts"].as_array().expect("mounts").iter();
        let mounts: Vec<_> = mounts
            .filter(|mount| mount["mountPath"].as_str().is_some_and(|path| path.trim_end_matches('/') == WORK_DIR))
            .collect();
        let [mount] = mounts.as_slice() else { panic!("{mounts:?}") };
        let mut volumes = pod["volumes"].as_array().expect("volumes").iter();
        let resources = &container["resources"];
        let mut told = container["env"].as_array().expect("env").iter();
        json!({
            "volume": volumes.find(|volume| volume["name"] == mount["name"]),
            "amounts": [resources["requests"]["ephemeral-storage"], resources["limits"]["ephemeral-storage"]],
            "told": told.find(|variable| variable["name"] == "TRAINER_DISK_LIMIT").map(|variable| &variable["value"]),
        })
    }

    #[test]
    fn work_files_lie_on_a_volume_of_the_size_that_was_asked_for() {
        assert_eq!(
            disk(&manifest(&json!({"disk_per_node_gb": 150}))),
            json!({
                "volume": {"name": "trainer-work", "emptyDir": {"sizeLimit": "150Gi"}}, "amounts": ["150Gi", "150Gi"],
                "told": "150Gi,150Gi",
            })
        );
        let unbounded =
            json!({"volume": {"name": "trainer-work", "emptyDir": {}}, "amounts": [null, null], "told": null});
        assert_eq!(disk(&manifest(&json!({}))), unbounded);
        let made = manifest(&json!({}));
        let env = master(&made)["spec"]["containers"][0]["env"].as_array().expect("env");
        for (name, path) in [
            ("TMPDIR", "/var/lib/trainer"),
            ("TRAINER_WORK_DIR", "/var/lib/trainer"),
            ("XDG_CACHE_HOME", "/var/lib/trainer/cache"),
            ("TRITON_CACHE_DIR", "/var/lib/trainer/cache/triton"),
        ] {
            assert!(env.contains(&json!({"name": name, "value": path})), "{name}");
        }
        let own = manifest(&json!({"env": {"HF_HOME": "/models"}}));
        let env = master(&own)["spec"]["containers"][0]["env"].as_array().expect("env");
        assert!(
            env.contains(&json!({"name": "HF_HOME", "value": "/models"})),
            "the request's place of the hub's files"
        );
    }

    #[test]
    fn an_operators_own_disk_is_used_as_it_is() {
        let nvme = json!({"name": "nvme", "hostPath": {"path": "/nvme"}});
        let claim = json!({"name": "trainer-work", "ephemeral": {"volumeClaimTemplate": {"spec": {}}}});
        let small = json!({"name": "trainer-work", "emptyDir": {"sizeLimit": "20Gi"}});
        let at_path = json!([{"name": "nvme", "mountPath": "/var/lib/trainer/"}]);
        let limits = json!({"limits": {"ephemeral-storage": "50Gi"}});
        for (label, volumes, container, asked, expected) in [
            (
                "another volume at the path, of whose size the trainer is told nothing: other pods may use it too",
                json!([nvme]),
                json!({"volumeMounts": at_path}),
                Some(100),
                json!({"volume": nvme, "amounts": [null, null], "told": null}),
            ),
            (
                "another volume of the name",
                json!([claim]),
                json!({}),
                None,
                json!({"volume": claim, "amounts": [null, null], "told": null}),
            ),
            (
                "the node's disk with a limit of its own beside the request's",
                json!([small]),
                json!({}),
                Some(100),
                json!({"volume": small, "amounts": ["100Gi", "100Gi"], "told": "100Gi,20Gi"}),
            ),
            (
                "a limit where the request has none",
                json!([]),
                json!({"resources": limits}),
                None,
                json!({"volume": {"name": "trainer-work", "emptyDir": {}}, "amounts": [null, "50Gi"], "told": "50Gi"}),
            ),
            (
                "a limit where the request has one",
                json!([]),
                json!({"resources": limits, "env": [{"name": "TRAINER_DISK_LIMIT", "value": "1Gi"}]}),
                Some(7),
                json!({
                    "volume": {"name": "trainer-work", "emptyDir": {"sizeLimit": "7Gi"}}, "amounts": ["7Gi", "7Gi"],
                    "told": "7Gi,7Gi",
                }),
            ),
        ] {
            let mut own = container;
            own["name"] = json!("pytorch");
            let defaults = json!({"spec": {"volumes": volumes, "containers": [own]}});
            let found = manifest_over(&json!({"disk_per_node_gb": asked}), Some(defaults));
            assert_eq!(disk(&found), expected, "{label}");
        }
    }
}
