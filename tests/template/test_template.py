"""What template.yaml deploys: each table here is the whole of what is granted, routed or configured.

Run by the Python that has aws-sam-cli (infra/local/tools/sam.in):  python -m pytest tests/template
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from deployment import REQUIRED, ROOT, Deployment, read

# API Gateway ends a request after this many seconds, whatever the function still does.
GATEWAY_TIMEOUT_SECONDS = 30
# Lambda's limit on the environment of a function: names and values together.
ENVIRONMENT_LIMIT_BYTES = 4096

FUNCTIONS = {"SubmitFunction": "submit", "StatusFunction": "status", "IndexerFunction": "indexer"}
API_FUNCTIONS = ["SubmitFunction", "StatusFunction"]

BUCKET = "arn:aws-cn:s3:::training-runs"
CLUSTER = "arn:aws-cn:eks:cn-north-1:123456789012:cluster/training"
FRAMEWORKS = ["hf", "nemo", "meta"]


def grants(verb: str, *parts: str) -> set[tuple[str, str]]:
    """A verb for parts of every run."""
    return {(f"s3:{verb}", f"{BUCKET}/*/framework={framework}/{part}") for framework in FRAMEWORKS for part in parts}


def records(verb: str) -> set[tuple[str, str]]:
    """A verb for the records of all jobs; the second is of a base URI that is the bucket itself."""
    return {(f"s3:{verb}", f"{BUCKET}/{base}_jobs/*/*/*") for base in ("*/", "")}


GRANTS = {
    "SubmitFunction": {
        ("secretsmanager:GetSecretValue", "<Token.Id>"),
        ("eks:DescribeCluster", CLUSTER),
        ("s3:ListBucket", BUCKET),
        *grants("GetObject", "owner", "index/v1/*", "checkpoints/step-*.json"),
        *grants("PutObject", "owner"),
        *records("GetObject"),
        *records("PutObject"),
    },
    "StatusFunction": {
        ("secretsmanager:GetSecretValue", "<Token.Id>"),
        ("eks:DescribeCluster", CLUSTER),
        ("s3:ListBucket", BUCKET),
        *grants("GetObject", "progress/*", "attempts/*", "logs/*/attempt-*/rank-*"),
        *grants("GetObject", "owner", "index/v1/*", "checkpoints/step-*.json"),
        *records("GetObject"),
    },
    "IndexerFunction": {
        ("s3:ListBucket", BUCKET),
        *grants("GetObject", "checkpoints/step-*.json"),
        *grants("PutObject", "index/v1/*"),
        *grants("DeleteObject", "index/v1/*"),
        ("sqs:SendMessage", "<DeadLetters.Arn>"),
    },
}

LOG_LEVELS = "warn,kube_client=off,lambda_runtime=info,submit={0},status={0},indexer={0},training={0}"
SHARED_ENVIRONMENT = {"RUNS_BASE_URIS": "s3://training-runs/runs", "RUST_LOG": LOG_LEVELS.format("INFO")}
CLUSTER_ENVIRONMENT = {
    "CLUSTER_NAME": "training",
    "NAMESPACE": "training",
    "ALLOWED_NAMESPACES": "training",
    "TOKEN_SECRET_ARN": "<Token.Id>",
}
ENVIRONMENT = {
    "SubmitFunction": SHARED_ENVIRONMENT
    | CLUSTER_ENVIRONMENT
    | {
        "DEFAULT_IMAGE": "registry.example/trainer:1",
        "ALLOWED_IMAGES": "registry.example/trainer:1",
        "TRAIN_SCRIPT": "/opt/trainer/train.py",
        "TRAINER_SERVICE_ACCOUNT": "trainer",
        "JOB_TTL_SECONDS": "604800",
        "MAX_RESTARTS": "3",
        "GRACE_SECONDS": "300",
    },
    "StatusFunction": SHARED_ENVIRONMENT | CLUSTER_ENVIRONMENT,
    "IndexerFunction": SHARED_ENVIRONMENT,
}

ROUTES = {
    ("post", "/train"): "SubmitFunction",
    ("delete", "/train/{name}"): "SubmitFunction",
    ("post", "/train/{name}/suspend"): "SubmitFunction",
    ("post", "/train/{name}/resume"): "SubmitFunction",
    ("x-amazon-apigateway-any-method", "$default"): "StatusFunction",
}


@pytest.fixture(scope="module")
def deployment() -> Deployment:
    return Deployment()


def environment(deployment: Deployment, function: str) -> dict[str, str]:
    return deployment.of_type("AWS::Lambda::Function")[function]["Environment"]["Variables"]


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def statements(deployment: Deployment, function: str) -> list[dict[str, Any]]:
    policies = deployment.of_type("AWS::IAM::Role")[f"{function}Role"]["Policies"]
    return [statement for policy in policies for statement in policy["PolicyDocument"]["Statement"]]


def test_sam_validates_and_lints_the_template() -> None:
    sam = Path(sys.executable).with_name("sam")
    variables = os.environ | {"SAM_CLI_TELEMETRY": "0", "AWS_REGION": "us-east-1"}
    result = subprocess.run([sam, "validate", "--lint"], cwd=ROOT, env=variables, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


# --- functions


def test_there_are_three_functions_built_from_the_workspace() -> None:
    source = read()
    built = {
        name: (resource["Metadata"]["BuildMethod"], resource["Metadata"]["BuildProperties"]["Binary"])
        for name, resource in source["Resources"].items()
        if resource["Type"] == "AWS::Serverless::Function"
    }
    assert built == {name: ("rust-cargolambda", binary) for name, binary in FUNCTIONS.items()}
    assert source["Globals"]["Function"]["CodeUri"] == "."


@pytest.mark.parametrize("architecture", [None, "arm64", "x86_64"])
def test_functions_run_a_bootstrap_of_the_chosen_architecture(architecture: str | None) -> None:
    deployment = Deployment(**({"Architecture": architecture} if architecture else {}))
    for name, function in deployment.of_type("AWS::Lambda::Function").items():
        shape = function["Runtime"], function["Handler"], function["Architectures"]
        assert shape == ("provided.al2023", "bootstrap", [architecture or "arm64"]), name


def test_functions_of_the_api_end_before_the_gateway_gives_up(deployment: Deployment) -> None:
    functions = deployment.of_type("AWS::Lambda::Function")
    for name in API_FUNCTIONS:
        assert 0 < functions[name]["Timeout"] < GATEWAY_TIMEOUT_SECONDS, name


def test_memory_is_small(deployment: Deployment) -> None:
    functions = deployment.of_type("AWS::Lambda::Function")
    assert {name: function["MemorySize"] for name, function in functions.items()} == {
        "SubmitFunction": 256,
        "StatusFunction": 256,
        "IndexerFunction": 128,
    }


def concurrency(deployment: Deployment) -> dict[str, str | None]:
    """What each function has of the account's concurrent executions for itself; at most so many run at once."""
    functions = deployment.of_type("AWS::Lambda::Function")
    return {name: function.get("ReservedConcurrentExecutions") for name, function in functions.items()}


def test_events_of_many_objects_cannot_use_up_the_accounts_concurrency(deployment: Deployment) -> None:
    assert concurrency(deployment) == {"SubmitFunction": None, "StatusFunction": None, "IndexerFunction": "10"}


def test_shares_of_the_accounts_concurrency_are_parameters_and_can_be_left_out() -> None:
    given = Deployment(IndexerConcurrency="3", ApiConcurrency="50")
    assert concurrency(given) == {"SubmitFunction": "50", "StatusFunction": "50", "IndexerFunction": "3"}
    # For an account with 10 in all, where Lambda refuses any share. A share of 0 would be the function's end.
    none = Deployment(IndexerConcurrency="0", ApiConcurrency="0")
    assert concurrency(none) == dict.fromkeys(FUNCTIONS)


def test_each_function_logs_json_into_a_group_that_forgets(deployment: Deployment) -> None:
    groups = deployment.of_type("AWS::Logs::LogGroup")
    functions = deployment.of_type("AWS::Lambda::Function")
    assert len(groups) == len(functions)
    for name, function in functions.items():
        group = name.replace("Function", "Logs")
        logging = {"LogFormat": "JSON", "ApplicationLogLevel": "INFO", "LogGroup": f"<{group}>"}
        assert function["LoggingConfig"] == logging
        assert groups[group] == {"LogGroupName": f"/aws/lambda/stack-{FUNCTIONS[name]}", "RetentionInDays": 30}


# --- environment


@pytest.mark.parametrize("function", FUNCTIONS)
def test_environment_is_exactly(deployment: Deployment, function: str) -> None:
    assert environment(deployment, function) == ENVIRONMENT[function]


@pytest.mark.parametrize("function", API_FUNCTIONS)
def test_a_given_endpoint_and_authority_reach_the_functions_of_the_api(function: str) -> None:
    deployment = Deployment(ClusterEndpoint="https://k8s.example", ClusterCa="QUJD")
    given = {"CLUSTER_ENDPOINT": "https://k8s.example", "CLUSTER_CA": "QUJD"}
    assert environment(deployment, function) == ENVIRONMENT[function] | given


def test_given_lists_and_limits_reach_submit() -> None:
    deployment = Deployment(
        RunsBaseUris="s3://training-runs/a,s3://training-runs/b",
        AllowedImages="one/,two:1",
        AllowedSecrets="one,two.a",
        TrainScript="/train.py",
        TrainerServiceAccount="other",
        JobTtlSeconds="86400",
        MaxRestarts="0",
        GraceSeconds="30",
        LogLevel="DEBUG",
        Namespace="elsewhere",
    )
    assert environment(deployment, "SubmitFunction") == ENVIRONMENT["SubmitFunction"] | {
        "RUNS_BASE_URIS": "s3://training-runs/a,s3://training-runs/b",
        "RUST_LOG": LOG_LEVELS.format("DEBUG"),
        "ALLOWED_IMAGES": "one/,two:1",
        "ALLOWED_SECRETS": "one,two.a",
        "TRAIN_SCRIPT": "/train.py",
        "TRAINER_SERVICE_ACCOUNT": "other",
        "JOB_TTL_SECONDS": "86400",
        "MAX_RESTARTS": "0",
        "GRACE_SECONDS": "30",
        "NAMESPACE": "elsewhere",
        "ALLOWED_NAMESPACES": "elsewhere",
    }


@pytest.mark.parametrize("function", API_FUNCTIONS)
def test_given_namespaces_reach_the_functions_of_the_api(function: str) -> None:
    deployment = Deployment(AllowedNamespaces="training,other")
    assert environment(deployment, function) == ENVIRONMENT[function] | {"ALLOWED_NAMESPACES": "training,other"}


def test_a_large_environment_fits_into_lambdas_limit() -> None:
    deployment = Deployment(
        ClusterName="c" * 100,
        RunsBucketName="b" * 63,
        RunsBaseUris=",".join([f"s3://{'b' * 63}/{'p' * 60}"] * 3),
        DefaultImage="i" * 200,
        AllowedImages=",".join(["i" * 100] * 5),
        AllowedNamespaces=",".join(["n" * 40] * 5),
        AllowedSecrets=",".join(["s" * 40] * 5),
        ClusterEndpoint=f"https://{'e' * 90}",
        # The certificate that EKS gives is RSA-2048: 1,480 characters in base64.
        ClusterCa="Q" * 1600,
    )
    for name in FUNCTIONS:
        variables = environment(deployment, name) | {"TOKEN_SECRET_ARN": "a" * 150}
        size = sum(len(key) + len(value) for key, value in variables.items())
        assert size < ENVIRONMENT_LIMIT_BYTES, f"{name}: {size} bytes"


# --- permissions


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_function_may_do_exactly(deployment: Deployment, function: str) -> None:
    granted = [
        (action, resource)
        for statement in statements(deployment, function)
        for action in as_list(statement["Action"])
        for resource in as_list(statement["Resource"])
    ]
    assert set(granted) == GRANTS[function]
    assert len(granted) == len(set(granted)), "something is granted twice"


@pytest.mark.parametrize("function", FUNCTIONS)
def test_policies_only_allow_and_name_what_they_allow(deployment: Deployment, function: str) -> None:
    for statement in statements(deployment, function):
        assert statement["Effect"] == "Allow"
        assert not {"NotAction", "NotResource", "Principal"} & statement.keys()
        for action in as_list(statement["Action"]):
            assert re.fullmatch(r"[a-z0-9-]+:[A-Za-z0-9]+", action), action
        for resource in as_list(statement["Resource"]):
            # A wildcard stands only for the part of a key that varies, and crosses slashes: what is fixed of a key must
            # be what no base and no run can be called.
            of_run = r"owner|(index/v1|progress|attempts)/\*|logs/\*/attempt-\*/rank-\*|checkpoints/step-\*\.json"
            fixed = rf"(\*/framework=(hf|nemo|meta)/({of_run})|(\*/)?_jobs/\*/\*/\*)"
            assert "*" not in resource or re.fullmatch(re.escape(f"{BUCKET}/") + fixed, resource), resource


def test_every_role_is_a_functions_and_only_lambda_may_take_it(deployment: Deployment) -> None:
    roles = deployment.of_type("AWS::IAM::Role")
    assert roles.keys() == {f"{name}Role" for name in FUNCTIONS}
    for name, role in roles.items():
        [statement] = role["AssumeRolePolicyDocument"]["Statement"]
        assert statement["Principal"] == {"Service": ["lambda.amazonaws.com"]}, name
        # Writing its own logs; SAM gives this to every function.
        managed = ["arn:aws-cn:iam::aws:policy/service-role/AWSLambdaBasicExecutionRole"]
        assert role["ManagedPolicyArns"] == managed, name


def test_only_the_api_and_this_accounts_s3_may_invoke(deployment: Deployment) -> None:
    for name, permission in deployment.of_type("AWS::Lambda::Permission").items():
        source = permission["Principal"], permission["FunctionName"]
        if permission["Principal"] == "apigateway.amazonaws.com":
            assert permission["FunctionName"] in {f"<{function}>" for function in API_FUNCTIONS}, source
            assert permission["SourceArn"].startswith("arn:aws-cn:execute-api:cn-north-1:123456789012:<Api>/"), name
        else:
            assert source == ("s3.amazonaws.com", "<IndexerFunction>")
            assert permission["SourceAccount"] == "123456789012"


# --- the API


def test_routes_are_exactly(deployment: Deployment) -> None:
    paths = deployment.of_type("AWS::ApiGatewayV2::Api")["Api"]["Body"]["paths"]
    routes = {}
    for path, methods in paths.items():
        for method, operation in methods.items():
            integration = operation["x-amazon-apigateway-integration"]
            assert (integration["type"], integration["payloadFormatVersion"]) == ("aws_proxy", "2.0")
            [routes[method, path]] = re.findall(r"functions/<(\w+)\.Arn>/", integration["uri"])
    assert routes == ROUTES


def test_the_stage_is_the_default_one_and_throttled(deployment: Deployment) -> None:
    [stage] = deployment.of_type("AWS::ApiGatewayV2::Stage").values()
    # Another stage's name would stand before every path.
    assert stage["StageName"] == "$default"
    assert stage["DefaultRouteSettings"] == {"ThrottlingBurstLimit": 200, "ThrottlingRateLimit": 100}


def test_the_token_is_generated_with_256_bits_and_needs_no_quoting(deployment: Deployment) -> None:
    [secret] = deployment.of_type("AWS::SecretsManager::Secret").values()
    generated = secret["GenerateSecretString"]
    assert json.loads(generated["SecretStringTemplate"]) == {}
    assert generated["GenerateStringKey"] == "token"
    assert generated["PasswordLength"] >= 43
    assert generated["ExcludePunctuation"] is True
    kept = [chr(code) for code in range(33, 127) if chr(code) not in generated["ExcludeCharacters"]]
    assert "".join(kept).isalnum() and len(kept) == 62
    assert "SecretString" not in secret


# --- the bucket and its events


def test_the_bucket_outlives_the_stack_and_is_private(deployment: Deployment) -> None:
    bucket = deployment.resources["RunsBucket"]
    assert (bucket["DeletionPolicy"], bucket["UpdateReplacePolicy"]) == ("RetainExceptOnCreate", "Retain")
    properties = bucket["Properties"]
    assert properties["BucketName"] == REQUIRED["RunsBucketName"]
    assert properties["VersioningConfiguration"] == {"Status": "Enabled"}
    assert properties["OwnershipControls"] == {"Rules": [{"ObjectOwnership": "BucketOwnerEnforced"}]}
    [encryption] = properties["BucketEncryption"]["ServerSideEncryptionConfiguration"]
    assert encryption["ServerSideEncryptionByDefault"] == {"SSEAlgorithm": "AES256"}
    assert properties["PublicAccessBlockConfiguration"] == {
        "BlockPublicAcls": True,
        "BlockPublicPolicy": True,
        "IgnorePublicAcls": True,
        "RestrictPublicBuckets": True,
    }


# The whole of what a rule may do: nothing here ends an object that is there, whatever its key.
NONCURRENT_ONLY = {"NoncurrentVersionExpiration", "ExpiredObjectDeleteMarker", "AbortIncompleteMultipartUpload"}


def lifecycle(**parameters: str) -> list[dict[str, Any]]:
    return Deployment(**parameters).of_type("AWS::S3::Bucket")["RunsBucket"]["LifecycleConfiguration"]["Rules"]


def test_nothing_that_is_there_expires_by_itself() -> None:
    done = []
    for rule in lifecycle():
        assert rule["Status"] == "Enabled"
        # For the whole bucket: runs lie at any depth, so no prefix could name their checkpoints alone.
        assert rule.keys() - {"Id", "Status", "ObjectSizeGreaterThan"} <= NONCURRENT_ONLY, rule
        done.append({key: value for key, value in rule.items() if key not in ("Id", "Status")})
    assert done == [
        {"NoncurrentVersionExpiration": {"NoncurrentDays": "7"}, "ExpiredObjectDeleteMarker": True},
        {"ObjectSizeGreaterThan": "1048576", "NoncurrentVersionExpiration": {"NoncurrentDays": "1"}},
        {"AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 2}},
    ]


def noncurrent_days(size_bytes: int, **parameters: str) -> int:
    """Days for which a noncurrent object of this size is kept: where rules overlap, S3 honours the shorter one.

    https://docs.aws.amazon.com/AmazonS3/latest/userguide/lifecycle-conflicts.html
    """
    return min(
        int(rule["NoncurrentVersionExpiration"]["NoncurrentDays"])
        for rule in lifecycle(**parameters)
        if "NoncurrentVersionExpiration" in rule and size_bytes > int(rule.get("ObjectSizeGreaterThan", -1))
    )


@pytest.mark.parametrize(
    ("size_bytes", "parameters", "days"),
    [
        (0, {}, 7),
        (1024**2, {}, 7),
        (1024**2 + 1, {}, 1),
        (10 * 1024**3, {}, 1),
        (1024, {"NoncurrentVersionDays": "30"}, 30),
        (1024**3, {"NoncurrentVersionDays": "30"}, 1),
        (1024**3, {"LargeNoncurrentVersionDays": "3"}, 3),
        (1024, {"LargeNoncurrentVersionDays": "3"}, 7),
        (1024**3, {"LargeNoncurrentVersionDays": "30"}, 7),
    ],
)
def test_deleted_checkpoint_files_go_before_what_is_small(size_bytes: int, parameters: dict[str, str], days: int) -> None:
    assert noncurrent_days(size_bytes, **parameters) == days


def test_markers_that_come_and_go_reach_the_indexer(deployment: Deployment) -> None:
    configuration = deployment.of_type("AWS::S3::Bucket")["RunsBucket"]["NotificationConfiguration"]
    assert configuration.keys() == {"LambdaConfigurations"}
    sent = {}
    for notification in configuration["LambdaConfigurations"]:
        assert notification["Function"] == "<IndexerFunction.Arn>"
        sent[notification["Event"]] = notification["Filter"]["S3Key"]["Rules"]
    json_only = [{"Name": "suffix", "Value": ".json"}]
    assert sent == {
        "s3:ObjectCreated:*": json_only,
        "s3:ObjectRemoved:*": json_only,
        "s3:LifecycleExpiration:*": json_only,
    }


def test_events_that_fail_are_kept(deployment: Deployment) -> None:
    [invoke] = deployment.of_type("AWS::Lambda::EventInvokeConfig").values()
    assert invoke["FunctionName"] == "<IndexerFunction>"
    assert invoke["DestinationConfig"] == {"OnFailure": {"Destination": "<DeadLetters.Arn>"}}
    assert (invoke["MaximumRetryAttempts"], invoke["MaximumEventAgeInSeconds"]) == (2, 21600)
    queue = deployment.of_type("AWS::SQS::Queue")["DeadLetters"]
    assert queue == {"SqsManagedSseEnabled": True, "MessageRetentionPeriod": 14 * 24 * 3600}


# --- access to the cluster


def test_access_entries_give_submit_and_status_one_group_each(deployment: Deployment) -> None:
    entries = deployment.of_type("AWS::EKS::AccessEntry")
    assert {entry["PrincipalArn"]: entry["KubernetesGroups"] for entry in entries.values()} == {
        "<SubmitFunctionRole.Arn>": ["training-submit"],
        "<StatusFunctionRole.Arn>": ["training-status"],
    }
    for entry in entries.values():
        assert (entry["ClusterName"], entry["Type"]) == ("training", "STANDARD")
        assert "AccessPolicies" not in entry


def test_access_entries_can_be_left_to_others() -> None:
    assert Deployment(ManageAccessEntries="false").of_type("AWS::EKS::AccessEntry") == {}


# --- parameters and outputs


def test_only_three_parameters_are_required() -> None:
    parameters = read()["Parameters"]
    assert {name for name, parameter in parameters.items() if "Default" not in parameter} == REQUIRED.keys()
    assert [name for name, parameter in parameters.items() if "Description" not in parameter] == []
    for name, parameter in parameters.items():
        assert ("AllowedPattern" in parameter) == ("ConstraintDescription" in parameter), name


@pytest.mark.parametrize(
    ("parameter", "accepted", "refused"),
    [
        ("ClusterName", ["training", "A_1-b"], ["", "-a", "arn:aws:eks:x:1:cluster/a", "c" * 101]),
        ("Namespace", ["training", "a", "a-1"], ["", "Training", "-a", "a-", "a.b", "a" * 64]),
        ("AllowedNamespaces", ["", "training", "a,b-1"], [",", "a,", "a, b", "A", "a.b", "a-,b", "n" * 64]),
        ("ClusterEndpoint", ["", "https://x.example", "https://x:6443"], ["http://x", "https://x/path", "https://"]),
        ("ClusterCa", ["", "QUJD+/=="], ["-----BEGIN CERTIFICATE-----", "QU JD"]),
        ("RunsBucketName", ["training-runs", "abc"], ["", "ab", "Runs", "a.b.c", "-runs", "runs-", "b" * 64]),
        (
            "RunsBaseUris",
            ["", "s3://b1", "s3://b1/a,s3://b1/b/c"],
            ["b1/runs", "s3://b1/", "s3://b1/a, s3://b1/b", "s3://"],
        ),
        ("DefaultImage", ["registry.example/trainer:1"], ["", "a b", "a,b"]),
        ("AllowedImages", ["", "one/,two"], [",", "a,", "a, b"]),
        ("AllowedSecrets", ["", "hugging-face", "a,b.c"], [",", "a,", "a, b", "A", "a_b", "-a", "a/b", "s" * 254]),
        ("TrainScript", ["/opt/trainer/train.py"], ["", "/", "train.py", "/a b"]),
        ("TrainerServiceAccount", ["trainer"], ["", "Trainer", "trainer-"]),
    ],
)
def test_a_parameter_is_checked_by_its_pattern(parameter: str, accepted: list[str], refused: list[str]) -> None:
    pattern = read()["Parameters"][parameter]["AllowedPattern"]
    assert [value for value in accepted if not re.fullmatch(pattern, value)] == []
    assert [value for value in refused if re.fullmatch(pattern, value)] == []


def test_outputs_are_what_an_operator_needs_and_no_secret(deployment: Deployment) -> None:
    assert deployment.outputs == {
        "ApiUrl": "https://<Api>.execute-api.cn-north-1.amazonaws.com.cn",
        "ApiId": "<Api>",
        "TokenSecretArn": "<Token.Id>",
        "RunsBucketName": "<RunsBucket>",
        "SubmitRoleArn": "<SubmitFunctionRole.Arn>",
        "StatusRoleArn": "<StatusFunctionRole.Arn>",
        "IndexerRoleArn": "<IndexerFunctionRole.Arn>",
    }
