"""What infra/cluster applies, rendered by kubectl itself, and that it fits the template: groups, namespace, account."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from deployment import ROOT, Deployment, read

# (group, resource, names) -> verbs: all that the functions may do inside the cluster. No names means all of them.
GRANTS = {
    "training-submit": {
        ("kubeflow.org", "pytorchjobs", ()): {"create", "get", "patch", "delete"},
        ("", "podtemplates", ("training-defaults",)): {"get"},
    },
    "training-status": {
        ("kubeflow.org", "pytorchjobs", ()): {"get", "list"},
        ("", "pods", ()): {"get", "list"},
        ("", "pods/log", ()): {"get"},
        ("", "events", ()): {"list"},
    },
}

Objects = dict[tuple[str, str], dict[str, Any]]


@pytest.fixture(scope="module")
def objects() -> Objects:
    return render(ROOT / "infra/cluster")


def render(folder: Path) -> Objects:
    """The objects of a kustomization by kind and name."""
    # The twin's own kubectl comes first: a machine that can build this project need not have another.
    path = os.pathsep.join([str(ROOT / ".local/bin"), os.environ.get("PATH", "")])
    kubectl = shutil.which("kubectl", path=path)
    assert kubectl, "no kubectl: neither .local/bin/kubectl (made by `make up`) nor one on PATH"
    result = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    rendered = list(yaml.safe_load_all(result.stdout))
    by_name = {(item["kind"], item["metadata"]["name"]): item for item in rendered}
    assert len(by_name) == len(rendered)
    return by_name


def default(parameter: str) -> str:
    return read()["Parameters"][parameter]["Default"]


def test_these_objects_and_no_others_are_applied(objects: Objects) -> None:
    assert places(objects) == all_in(default("Namespace"))


def test_an_overlay_serves_a_further_namespace(tmp_path: Path) -> None:
    base = os.path.relpath(ROOT / "infra/cluster", tmp_path.resolve())
    overlay = {"namespace": "further", "resources": [base]}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    assert places(render(tmp_path)) == all_in("further")


def places(objects: Objects) -> set[tuple[str, str, str | None]]:
    return {(*key, item["metadata"].get("namespace")) for key, item in objects.items()}


def all_in(namespace: str) -> set[tuple[str, str, str | None]]:
    return {
        ("Namespace", namespace, None),
        ("ServiceAccount", default("TrainerServiceAccount"), namespace),
        ("Role", "training-submit", namespace),
        ("Role", "training-status", namespace),
        ("RoleBinding", "training-submit", namespace),
        ("RoleBinding", "training-status", namespace),
    }


@pytest.mark.parametrize("group", GRANTS)
def test_a_group_may_do_exactly(objects: Objects, group: str) -> None:
    granted: dict[tuple[str, str, tuple[str, ...]], set[str]] = {}
    for rule in objects["Role", group]["rules"]:
        assert rule.keys() - {"resourceNames"} == {"apiGroups", "resources", "verbs"}
        names = tuple(rule.get("resourceNames", ()))
        for api_group in rule["apiGroups"]:
            for resource in rule["resources"]:
                granted.setdefault((api_group, resource, names), set()).update(rule["verbs"])
    assert granted == GRANTS[group]


@pytest.mark.parametrize("group", GRANTS)
def test_a_role_is_bound_to_its_group_alone(objects: Objects, group: str) -> None:
    binding = objects["RoleBinding", group]
    assert binding["roleRef"] == {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": group}
    assert binding["subjects"] == [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": group}]


def test_the_bound_groups_are_those_of_the_access_entries(objects: Objects) -> None:
    entries = Deployment().of_type("AWS::EKS::AccessEntry").values()
    given = {group for entry in entries for group in entry["KubernetesGroups"]}
    bindings = [item for (kind, _), item in objects.items() if kind == "RoleBinding"]
    assert given == {subject["name"] for binding in bindings for subject in binding["subjects"]}


def test_training_pods_get_no_token_for_the_cluster(objects: Objects) -> None:
    assert objects["ServiceAccount", default("TrainerServiceAccount")]["automountServiceAccountToken"] is False


def test_the_flow_schema_is_of_the_functions_and_of_what_they_may_do() -> None:
    [((kind, _), schema)] = render(ROOT / "infra/cluster/flow-schema").items()
    assert kind == "FlowSchema"
    [rule] = schema["spec"]["rules"]
    assert {subject["group"]["name"] for subject in rule["subjects"]} == GRANTS.keys()
    [resources] = rule["resourceRules"]
    granted = [grant for grants in GRANTS.values() for grant in grants.items() if grant[0][1] != "pods/log"]
    assert set(resources["apiGroups"]) == {group for (group, _, _), _ in granted}
    assert set(resources["resources"]) == {resource for (_, resource, _), _ in granted}
    assert set(resources["verbs"]) == {verb for _, verbs in granted for verb in verbs}
