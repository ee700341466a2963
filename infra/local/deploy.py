"""After `sam deploy`: what MiniStack's CloudFormation leaves out, made through its APIs.

    deploy.py <stack> <cluster> <runs bucket>

- the HTTP API's integrations and routes: SAM puts them into the API's OpenAPI body, which MiniStack ignores; they are
  read from the same body;
- the EKS access entries: it knows no such resource, so the template is deployed with ManageAccessEntries=false;
- the trainer's IAM role, which stands for EKS Pod Identity.

Can be repeated. Prints one JSON object: the API's id and the token that it asks for.
"""

import contextlib
import json
import re
import sys
from typing import Any

import boto3
from botocore.exceptions import ClientError

ANY_METHOD = "x-amazon-apigateway-any-method"
DEFAULT_ROUTE = "$default"
TRAINER_ROLE = "trainer"
FRAMEWORKS = ("hf", "nemo", "meta")
# The role in the stack's outputs and the Kubernetes group that infra/cluster binds.
ACCESS = {"SubmitRoleArn": "training-submit", "StatusRoleArn": "training-status"}


def main(stack: str, cluster: str, bucket: str) -> None:
    cloudformation = boto3.client("cloudformation")
    outputs = {
        output["OutputKey"]: output["OutputValue"]
        for output in cloudformation.describe_stacks(StackName=stack)["Stacks"][0]["Outputs"]
    }
    make_routes(stack, outputs["ApiId"])
    for role, group in ACCESS.items():
        make_access_entry(cluster, outputs[role], group)
    make_trainer_role(bucket)
    secret = boto3.client("secretsmanager").get_secret_value(SecretId=outputs["TokenSecretArn"])
    json.dump({"api_id": outputs["ApiId"], "token": json.loads(secret["SecretString"])["token"]}, sys.stdout)


def make_routes(stack: str, api_id: str) -> None:
    """Makes the API's routes those of the template, one integration per function."""
    gateway = boto3.client("apigatewayv2")
    wanted = {key: function_arn(stack, uri) for key, uri in routes(stack).items()}
    integrations = {
        item["IntegrationUri"]: item["IntegrationId"] for item in gateway.get_integrations(ApiId=api_id)["Items"]
    }
    for arn in set(wanted.values()) - set(integrations):
        made = gateway.create_integration(
            ApiId=api_id, IntegrationType="AWS_PROXY", IntegrationUri=arn, PayloadFormatVersion="2.0"
        )
        integrations[arn] = made["IntegrationId"]
    targets = {key: f"integrations/{integrations[arn]}" for key, arn in wanted.items()}
    for route in gateway.get_routes(ApiId=api_id)["Items"]:
        if targets.get(route["RouteKey"]) == route.get("Target"):
            del targets[route["RouteKey"]]
        else:
            gateway.delete_route(ApiId=api_id, RouteId=route["RouteId"])
    for key, target in targets.items():
        gateway.create_route(ApiId=api_id, RouteKey=key, Target=target)


def routes(stack: str) -> dict[str, Any]:
    """Route keys and integration URIs in the OpenAPI body that SAM made of the template's events."""
    template = boto3.client("cloudformation").get_template(StackName=stack, TemplateStage="Processed")["TemplateBody"]
    if isinstance(template, str):
        template = json.loads(template)
    apis = [
        resource["Properties"]["Body"]["paths"]
        for resource in template["Resources"].values()
        if resource["Type"] == "AWS::ApiGatewayV2::Api"
    ]
    if len(apis) != 1:
        raise ValueError(f"the template has {len(apis)} HTTP APIs, expected one")
    found = {}
    for path, methods in apis[0].items():
        for method, operation in methods.items():
            integration = operation.get("x-amazon-apigateway-integration")
            if integration is None:
                continue
            if path.lstrip("/") == DEFAULT_ROUTE:
                key = DEFAULT_ROUTE
            else:
                key = f"{'ANY' if method == ANY_METHOD else method.upper()} {path}"
            found[key] = integration["uri"]
    return found


def function_arn(stack: str, uri: Any) -> str:
    """The deployed function that an integration URI such as {"Fn::Sub": "...${SubmitFunction.Arn}..."} names."""
    match = re.search(r"\$\{(\w+)\.Arn\}", json.dumps(uri))
    if match is None:
        raise ValueError(f"no function in the integration URI {uri!r}")
    resource = boto3.client("cloudformation").describe_stack_resource(StackName=stack, LogicalResourceId=match.group(1))
    name = resource["StackResourceDetail"]["PhysicalResourceId"]
    return boto3.client("lambda").get_function(FunctionName=name)["Configuration"]["FunctionArn"]


def make_access_entry(cluster: str, role: str, group: str) -> None:
    eks = boto3.client("eks")
    try:
        eks.create_access_entry(clusterName=cluster, principalArn=role, kubernetesGroups=[group])
    except ClientError as error:
        if error.response["Error"]["Code"] != "ResourceInUseException":
            raise
        eks.update_access_entry(clusterName=cluster, principalArn=role, kubernetesGroups=[group])


def make_trainer_role(bucket: str) -> None:
    """The trainer reads data sets and runs, and writes runs except what the control plane owns: index, owner, jobs."""
    iam = boto3.client("iam")
    trust = statement("Allow", "sts:AssumeRole", Principal={"AWS": "arn:aws:iam::000000000000:root"})
    with contextlib.suppress(iam.exceptions.EntityAlreadyExistsException):
        iam.create_role(RoleName=TRAINER_ROLE, AssumeRolePolicyDocument=policy(trust))
    runs = f"arn:aws:s3:::{bucket}/runs/*"
    writes = ["s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"]
    # With the folder of the framework, so that a run may be called `index`.
    parts = [f"*/framework={framework}/{part}" for framework in FRAMEWORKS for part in ("index/*", "owner")]
    theirs = [f"arn:aws:s3:::{bucket}/runs/{part}" for part in (*parts, "*/_jobs/*", "_jobs/*")]
    iam.put_role_policy(
        RoleName=TRAINER_ROLE,
        PolicyName="runs",
        PolicyDocument=policy(
            statement("Allow", ["s3:GetObject", *writes], Resource=runs),
            statement("Allow", "s3:GetObject", Resource=f"arn:aws:s3:::{bucket}/datasets/*"),
            statement("Allow", "s3:ListBucket", Resource=f"arn:aws:s3:::{bucket}"),
            statement("Deny", writes, Resource=theirs),
        ),
    )


def statement(effect: str, action: str | list[str], **rest: Any) -> dict[str, Any]:
    return {"Effect": effect, "Action": action, **rest}


def policy(*statements: dict[str, Any]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": list(statements)})


if __name__ == "__main__":
    main(*sys.argv[1:])
