"""Each deployed role on the running twin: what it may do and, above all, what it may not.

    .local/venv/sam/bin/python -m pytest -q tests/access

The AWS side is asked with the role's own session, the cluster with a token that this session signs, as the functions
sign theirs. That the functions can do their work with these roles is shown by every other test against the twin. The
table is printed at the end (conftest.py).
"""

import base64
import json
import os
import re
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
import requests
import yaml
from botocore.exceptions import ClientError
from botocore.model import ServiceId
from botocore.signers import RequestSigner

ROOT = Path(__file__).resolve().parents[2]
RUN = f"runs/denials-{uuid.uuid4().hex[:8]}/framework=hf"
ROLES = {"submit": "SubmitRoleArn", "status": "StatusRoleArn", "indexer": "IndexerRoleArn"}
JOBS = "/apis/kubeflow.org/v1/namespaces/training/pytorchjobs"
CORE = "/api/v1/namespaces/training"
DENIED = {"AccessDenied", "AccessDeniedException", "403"}

TRAINERS = [
    *("checkpoints/checkpoint-1/model.safetensors", "progress/x", "attempts/x/1"),
    "logs/x/attempt-1/rank-0.log",
]

# (role, what, whether it is allowed)
BUCKET: list[tuple[str, str, str, bool]] = [
    (role, verb, key, allowed)
    for role, grants in {
        "submit": {
            "GET": ["owner", "_jobs/x/y/z", "index/v1/000000000001", "checkpoints/step-000001.json"],
            "PUT": ["owner", "_jobs/x/y/z"],
            "DELETE": [],
        },
        "status": {
            "GET": [
                *("owner", "progress/x", "attempts/x/1", "logs/x/attempt-1/rank-0.log", "index/v1/000000000001"),
                *("_jobs/x/y/z", "checkpoints/step-000001.json"),
            ],
            "PUT": [],
            "DELETE": [],
        },
        "indexer": {
            "GET": ["checkpoints/step-000001.json"],
            "PUT": ["index/v1/000000000001"],
            "DELETE": ["index/v1/000000000001"],
        },
        "trainer": {
            "GET": [
                *("owner", "_jobs/x/y/z", "index/v1/000000000001", "checkpoints/step-000001.json"),
                *TRAINERS,
            ],
            "PUT": ["checkpoints/step-000001.json", *TRAINERS],
            "DELETE": ["checkpoints/step-000001.json", *TRAINERS],
        },
    }.items()
    for verb in ("GET", "PUT", "DELETE")
    for key in (
        *("owner", "_jobs/x/y/z", "index/v1/000000000001", "checkpoints/step-000001.json"),
        *TRAINERS,
    )
    for allowed in [key in grants[verb]]
]

# Whole keys that look like a granted one, because a wildcard crosses slashes.
BUCKET += [
    ("submit", "PUT", "datasets/owner", False),
    ("submit", "PUT", "datasets/_jobs/x", False),
    ("submit", "GET", "datasets/_jobs/x", False),
    ("submit", "DELETE", "runs/a/_jobs/x/y/z", False),
    ("status", "GET", "datasets/_jobs/x", False),
    ("status", "PUT", "runs/a/_jobs/x/y/z", False),
    ("submit", "PUT", "runs/r/framework=hf/checkpoints/checkpoint-1/owner", False),
    ("submit", "GET", "runs/index/v1/r/framework=hf/checkpoints/checkpoint-1/model.safetensors", False),
    ("status", "GET", "runs/progress/r/framework=hf/checkpoints/checkpoint-1/model.safetensors", False),
    ("status", "GET", "runs/index/v1/framework=hf/logs/x", False),
    ("status", "GET", "runs/r/framework=hf/logs/x/tensorboard/x", False),
    ("indexer", "PUT", "runs/a/index/v1/r/framework=hf/owner", False),
    ("indexer", "DELETE", "runs/index/v1/framework=hf/checkpoints/checkpoint-1/model.safetensors", False),
    ("indexer", "PUT", "runs/r/framework=other/index/v1/000000000001", False),
    # A run may be called so all the same.
    ("trainer", "PUT", "runs/index/framework=hf/checkpoints/step-000001.json", True),
    ("trainer", "PUT", "runs/owner/framework=nemo/progress/x", True),
    ("trainer", "PUT", "runs/index/framework=meta/index/v1/000000000001", False),
    ("trainer", "PUT", "runs/a/b/framework=nemo/owner", False),
    ("trainer", "PUT", "runs/a/_jobs/x/y/z", False),
    # What says whose a run is, wherever annotations may point.
    ("trainer", "PUT", "runs/r/framework=hf/checkpoints/x/framework=hf/owner", False),
    ("trainer", "PUT", "runs/r/framework=hf/checkpoints/_jobs/x/y/z", False),
    ("trainer", "DELETE", "runs/r/framework=hf/checkpoints/_jobs/x/y/z", False),
    ("trainer", "PUT", "datasets/x", False),
]

# What each function's Role grants; all else is refused. A role without an access entry is not even known.
KUBERNETES: list[tuple[str, str, str]] = [
    ("create jobs", "POST", f"{JOBS}?dryRun=All"),
    ("read a job", "GET", f"{JOBS}/none"),
    ("list jobs", "GET", JOBS),
    ("change a job", "PATCH", f"{JOBS}/none"),
    ("delete a job", "DELETE", f"{JOBS}/none"),
    ("delete all jobs", "DELETE", f"{JOBS}?dryRun=All"),
    ("watch jobs", "GET", f"{JOBS}?watch=true&timeoutSeconds=1"),
    ("write a job's status", "PATCH", f"{JOBS}/none/status"),
    ("read the platform's defaults", "GET", f"{CORE}/podtemplates/training-defaults"),
    ("read another template", "GET", f"{CORE}/podtemplates/other"),
    ("list pods", "GET", f"{CORE}/pods"),
    ("create pods", "POST", f"{CORE}/pods?dryRun=All"),
    ("read logs", "GET", f"{CORE}/pods/none/log"),
    ("run in a pod", "POST", f"{CORE}/pods/none/exec?command=id"),
    ("list events", "GET", f"{CORE}/events"),
    ("read secrets", "GET", f"{CORE}/secrets/hugging-face"),
    ("list secrets", "GET", f"{CORE}/secrets"),
    ("list jobs of another namespace", "GET", JOBS.replace("/training/", "/kube-system/")),
    ("list nodes", "GET", "/api/v1/nodes"),
    ("grant itself more", "POST", "/apis/rbac.authorization.k8s.io/v1/namespaces/training/rolebindings?dryRun=All"),
]
GRANTED = {
    "submit": {"create jobs", "read a job", "change a job", "delete a job", "read the platform's defaults"},
    "status": {"read a job", "list jobs", "list pods", "read logs", "list events"},
    "indexer": set(),
    "trainer": set(),
}


@pytest.fixture(scope="session")
def settings() -> dict[str, str]:
    lines = (ROOT / ".local/env").read_text().splitlines()
    return dict(line.removeprefix("export ").split("=", 1) for line in lines if "=" in line)


@pytest.fixture(scope="session")
def sessions(settings: dict[str, str]) -> dict[str, boto3.Session]:
    """Each role's session."""
    os.environ["AWS_ENDPOINT_URL"] = settings["AWS_ENDPOINT_URL"]
    account = boto3.Session(
        settings["AWS_ACCESS_KEY_ID"], settings["AWS_SECRET_ACCESS_KEY"], region_name=settings["AWS_REGION"]
    )
    [stack] = account.client("cloudformation").describe_stacks(StackName="training")["Stacks"]
    outputs = {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}
    arns = {name: outputs[output] for name, output in ROLES.items()}
    arns["trainer"] = "arn:aws:iam::000000000000:role/trainer"
    settings["TOKEN_SECRET_ARN"] = outputs["TokenSecretArn"]
    made = {}
    for name, arn in arns.items():
        credentials = account.client("sts").assume_role(RoleArn=arn, RoleSessionName="denials")["Credentials"]
        made[name] = boto3.Session(
            credentials["AccessKeyId"],
            credentials["SecretAccessKey"],
            credentials["SessionToken"],
            region_name=settings["AWS_REGION"],
        )
    return made


def is_denied(call: Callable[[], Any]) -> bool:
    """Whether a call is refused for want of a permission; that something is absent counts as allowed."""
    try:
        call()
    except ClientError as error:
        if error.response["Error"]["Code"] in DENIED:
            return True
        if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
            return False
        raise
    return False


@pytest.mark.parametrize(("role", "verb", "key", "allowed"), BUCKET)
def test_the_bucket_is_open_where_the_role_needs_it(
    role: str,
    verb: str,
    key: str,
    allowed: bool,
    sessions: dict[str, boto3.Session],
    settings: dict[str, str],
    table: list[tuple[str, str, str]],
) -> None:
    s3 = sessions[role].client("s3", config=boto3.session.Config(s3={"addressing_style": "path"}))
    whole = key.startswith(("runs/", "datasets/"))
    path = key if whole else f"runs/{key}" if key.startswith("_jobs/") else f"{RUN}/{key}"
    where = {"Bucket": settings["RUNS_BUCKET"], "Key": path}
    calls = {
        "GET": lambda: s3.get_object(**where),
        "PUT": lambda: s3.put_object(**where, Body=b""),
        "DELETE": lambda: s3.delete_object(**where),
    }
    denied = is_denied(calls[verb])
    table.append((role, f"s3 {verb} {key}", "denied" if denied else "allowed"))
    assert denied != allowed


@pytest.mark.parametrize(
    ("role", "allowed"), [("submit", True), ("status", True), ("indexer", False), ("trainer", False)]
)
def test_only_those_who_check_tokens_read_the_secret(
    role: str,
    allowed: bool,
    sessions: dict[str, boto3.Session],
    settings: dict[str, str],
    table: list[tuple[str, str, str]],
) -> None:
    client = sessions[role].client("secretsmanager")
    secret = settings["TOKEN_SECRET_ARN"]
    denied = is_denied(lambda: client.get_secret_value(SecretId=secret))
    table.append((role, "secretsmanager get the token secret", "denied" if denied else "allowed"))
    assert denied != allowed
    assert is_denied(lambda: client.put_secret_value(SecretId=secret, SecretString="x" * 40))
    table.append((role, "secretsmanager put the token secret", "denied"))


@pytest.mark.parametrize(
    ("role", "allowed"), [("submit", True), ("status", True), ("indexer", False), ("trainer", False)]
)
def test_only_those_who_sign_in_to_the_cluster_are_told_where_it_is(
    role: str,
    allowed: bool,
    sessions: dict[str, boto3.Session],
    settings: dict[str, str],
    table: list[tuple[str, str, str]],
) -> None:
    eks = sessions[role].client("eks")
    denied = is_denied(lambda: eks.describe_cluster(name=settings["CLUSTER_NAME"]))
    table.append((role, "eks describe the cluster", "denied" if denied else "allowed"))
    assert denied != allowed
    assert is_denied(lambda: eks.describe_cluster(name="another"))
    assert is_denied(lambda: eks.list_clusters())


@pytest.mark.parametrize("role", GRANTED)
def test_the_cluster_is_open_where_the_role_needs_it(
    role: str,
    sessions: dict[str, boto3.Session],
    settings: dict[str, str],
    table: list[tuple[str, str, str]],
    tmp_path: Path,
) -> None:
    kubeconfig = yaml.safe_load(Path(settings["KUBECONFIG"]).read_text())
    cluster = kubeconfig["clusters"][0]["cluster"]
    authority = cluster.get("certificate-authority")
    if authority is None:
        authority = tmp_path / "ca.pem"
        authority.write_bytes(base64.b64decode(cluster["certificate-authority-data"]))
    headers = {"Authorization": f"Bearer {token(sessions[role], settings)}"}
    wrong, flows = [], set()
    for what, method, path in KUBERNETES:
        body = {
            "POST": {"apiVersion": "v1", "kind": "Unknown", "metadata": {"name": "denials"}},
            "PATCH": {"metadata": {"labels": {"denials": "x"}}},
        }.get(method)
        content_type = "application/merge-patch+json" if method == "PATCH" else "application/json"
        answer = requests.request(
            method,
            cluster["server"] + path,
            json=body,
            headers={**headers, "Content-Type": content_type},
            verify=str(authority),
            timeout=10,
        )
        # 401: not known at all; 403: known, and not allowed. Whatever else was answered was let in.
        denied = answer.status_code in (401, 403)
        table.append((role, f"kubernetes {what}", f"denied ({answer.status_code})" if denied else "allowed"))
        if denied == (what in GRANTED[role]):
            wrong.append((what, answer.status_code, answer.text[:200]))
        # Reads of logs are never queued.
        if not denied and what != "read logs":
            flows.add(answer.headers.get("X-Kubernetes-PF-FlowSchema-UID"))
    assert wrong == []
    schema = "/apis/flowcontrol.apiserver.k8s.io/v1/flowschemas/training-control-plane"
    assert flows <= {json.loads(kubectl(settings, "get", "--raw", schema))["metadata"]["uid"]}


def kubectl(settings: dict[str, str], *arguments: str) -> str:
    """Asked as the cluster's administrator."""
    command = [ROOT / ".local/bin/kubectl", "--kubeconfig", settings["KUBECONFIG"], *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def token(session: boto3.Session, settings: dict[str, str]) -> str:
    """A token for the cluster, as aws-iam-authenticator reads it."""
    region = settings["AWS_REGION"]
    signer = RequestSigner(ServiceId("sts"), region, "sts", "v4", session.get_credentials(), session.events)
    url = signer.generate_presigned_url(
        {
            "method": "GET",
            "url": f"https://sts.{region}.amazonaws.com/?Action=GetCallerIdentity&Version=2011-06-15",
            "body": {},
            "headers": {"x-k8s-aws-id": settings["CLUSTER_NAME"]},
            "context": {},
        },
        region_name=region,
        expires_in=60,
        operation_name="",
    )
    return "k8s-aws-v1." + re.sub("=*$", "", base64.urlsafe_b64encode(url.encode()).decode())
