"""What CloudFormation makes of template.yaml for given parameters: the SAM transform, then its functions resolved.

Not a CloudFormation: it knows the intrinsic functions that the template uses and fails on any other. What exists only
once it is deployed stays readable, as ``<Token.Id>``.
"""

import re
from pathlib import Path
from typing import Any

from boto3 import Session
from samcli.yamlhelper import yaml_parse
from samtranslator.parser.parser import Parser
from samtranslator.translator.translator import Translator

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = ROOT / "template.yaml"

REQUIRED = {"ClusterName": "training", "RunsBucketName": "training-runs", "DefaultImage": "registry.example/trainer:1"}
# Not the usual partition, so that an ARN that forgets its partition shows.
PSEUDO = {
    "AWS::AccountId": "123456789012",
    "AWS::NoValue": None,
    "AWS::Partition": "aws-cn",
    "AWS::Region": "cn-north-1",
    "AWS::StackName": "stack",
    "AWS::URLSuffix": "amazonaws.com.cn",
}


class Deployment:
    """The resources and outputs of the template as deployed with these parameters, the required ones filled in."""

    def __init__(self, **parameters: str) -> None:
        source = read()
        # `sam deploy` has put the uploaded code in place of the local path before the transform sees it.
        source["Globals"]["Function"]["CodeUri"] = "s3://code/function.zip"
        defaults = {name: value["Default"] for name, value in source["Parameters"].items() if "Default" in value}
        given = {name: str(value) for name, value in {**defaults, **REQUIRED, **parameters}.items()}
        translator = Translator({}, Parser(), boto_session=Session(region_name=PSEUDO["AWS::Region"]))
        translated = translator.translate(source, given)
        self.names: dict[str, str | None] = {**PSEUDO, **given}
        self.conditions = translated["Conditions"]
        self.resources = {
            name: self.resolve(resource)
            for name, resource in translated["Resources"].items()
            if "Condition" not in resource or self.holds(resource["Condition"])
        }
        self.outputs = {name: self.resolve(output["Value"]) for name, output in translated["Outputs"].items()}

    def of_type(self, kind: str) -> dict[str, Any]:
        """The properties of each resource of a type, by logical id."""
        return {name: resource["Properties"] for name, resource in self.resources.items() if resource["Type"] == kind}

    def holds(self, condition: str) -> bool:
        """Whether a condition of the template is true."""
        return self.resolve(self.conditions[condition])

    def resolve(self, value: Any) -> Any:
        """The value with every CloudFormation function in it replaced by its result."""
        if isinstance(value, list):
            return [self.resolve(item) for item in value]
        if not isinstance(value, dict):
            return value
        match list(value.items()):
            case [("Ref", name)]:
                return self.names.get(name, f"<{name}>")
            case [("Fn::GetAtt", path)]:
                return f"<{'.'.join(path)}>"
            case [("Fn::Sub", [text, more])]:
                return self.substitute(text, {**self.names, **self.resolve(more)})
            case [("Fn::Sub", text)]:
                return self.substitute(text, self.names)
            case [("Fn::If", [condition, then, otherwise])]:
                return self.resolve(then if self.holds(condition) else otherwise)
            case [("Fn::Equals", [left, right])]:
                return self.resolve(left) == self.resolve(right)
            case [(name, _)] if name.startswith("Fn::"):
                raise NotImplementedError(name)
        resolved = {key: self.resolve(item) for key, item in value.items()}
        return {key: item for key, item in resolved.items() if item is not None}

    @staticmethod
    def substitute(text: str, names: dict[str, str | None]) -> str:
        """The text with each ``${name}`` replaced."""
        return re.sub(r"\$\{([^}]+)\}", lambda match: str(names.get(match[1], f"<{match[1]}>")), text)


def read() -> dict[str, Any]:
    """The template as written, its short forms (!Ref, !Sub) spelt out."""
    return yaml_parse(TEMPLATE.read_text())
