"""What infra/cluster applies, rendered by kubectl itself, and that it fits the template: groups, namespace, account."""

import os
import shutil
import subprocess
from typing import Any

import pytest
import yaml
from deployment import ROOT, Deployment, read

# (group, resource) -> verbs: all that the functions may do inside the cluster.
GRANTS = {
    "training-submit": {("kubeflow.org", "pytorchjobs"): {"create", "get", "delete"}},
    "training-status": {("kubeflow.org", "pytorchjobs"): {"get", "list"}, ("", "pods"): {"get", "list"}},
}


@pytest.fixture(scope="module")
def objects() -> dict[tuple[str, str], dict[str, Any]]:
    """The rendered objects by kind and name."""
    # The twin's own kubectl comes first: a machine that can build this project need not have another.
    path = os.pathsep.join([str(ROOT / ".local/bin"), os.environ.get("PATH", "")])
    kubectl = shutil.which("kubectl", path=path)
    assert kubectl, "no kubectl: neither .local/bin/kubectl (made by `make up`) nor one on PATH"
    result = subprocess.run([kubectl, "kustomize", ROOT / "infra/cluster"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    rendered = list(yaml.safe_load_all(result.stdout))
    by_name = {(item["kind"], item["metadata"]["name"]): item for item in rendered}
    assert len(by_name) == len(rendered)
    return by_name


def default(parameter: str) -> str:
    return read()["Parameters"][parameter]["Default"]


def test_these_objects_and_no_others_are_applied(objects: dict[tuple[str, str], dict[str, Any]]) -> None:
    namespace = default("Namespace")
    assert {(*key, item["metadata"].get("namespace")) for key, item in objects.items()} == {
        ("Namespace", namespace, None),
        ("ServiceAccount", default("TrainerServiceAccount"), namespace),
        ("Role", "training-submit", namespace),
        ("Role", "training-status", namespace),
        ("RoleBinding", "training-submit", namespace),
        ("RoleBinding", "training-status", namespace),
    }


@pytest.mark.parametrize("group", GRANTS)
def test_a_group_may_do_exactly(objects: dict[tuple[str, str], dict[str, Any]], group: str) -> None:
    granted: dict[tuple[str, str], set[str]] = {}
    for rule in objects["Role", group]["rules"]:
        assert rule.keys() == {"apiGroups", "resources", "verbs"}
        for api_group in rule["apiGroups"]:
            for resource in rule["resources"]:
                granted.setdefault((api_group, resource), set()).update(rule["verbs"])
    assert granted == GRANTS[group]


@pytest.mark.parametrize("group", GRANTS)
def test_a_role_is_bound_to_its_group_alone(objects: dict[tuple[str, str], dict[str, Any]], group: str) -> None:
    binding = objects["RoleBinding", group]
    assert binding["roleRef"] == {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": group}
    assert binding["subjects"] == [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": group}]


def test_the_bound_groups_are_those_of_the_access_entries(objects: dict[tuple[str, str], dict[str, Any]]) -> None:
    entries = Deployment().of_type("AWS::EKS::AccessEntry").values()
    given = {group for entry in entries for group in entry["KubernetesGroups"]}
    bindings = [item for (kind, _), item in objects.items() if kind == "RoleBinding"]
    assert given == {subject["name"] for binding in bindings for subject in binding["subjects"]}


def test_training_pods_get_no_token_for_the_cluster(objects: dict[tuple[str, str], dict[str, Any]]) -> None:
    assert objects["ServiceAccount", default("TrainerServiceAccount")]["automountServiceAccountToken"] is False
