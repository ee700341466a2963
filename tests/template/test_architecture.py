"""What README.md says about building and deploying, run by SAM's own command lines up to the work itself.

The processors that `sam build` builds for are those on which the stack runs the functions.
"""

import inspect
import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
import samcli.commands.build.command as build
import samcli.commands.deploy.command as deploy
from deployment import REQUIRED, ROOT, TEMPLATE, Deployment, read
from samcli.lib.providers.sam_function_provider import SamFunctionProvider
from samcli.lib.providers.sam_stack_provider import SamLocalStackProvider

COMMANDS = {"build": build, "deploy": deploy}
DEFAULT = "Architecture=arm64"
OTHER = "Architecture=x86_64"


def of_readme() -> str:
    """The section of README.md about deploying."""
    [section] = re.findall(r"^## Deploy to AWS\n(.*?)^## ", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    return section


def commands_in(text: str) -> list[list[str]]:
    """The calls of `sam build` and `sam deploy` in a text's shell blocks and code spans, or in TOML's comments."""
    code = [*re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE), *re.findall(r"`([^`\n]+)`", text)]
    code += ["\n".join(re.findall(r"^# {3}(.*)$", text, re.MULTILINE))]
    lines = "\n".join(code).replace("\\\n", " ").splitlines()
    calls = [shlex.split(call.replace("<", "'<").replace(">", ">'")) for line in lines for call in line.split("&&")]
    return [call for call in calls if call[:1] == ["sam"] and call[1] in COMMANDS]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with what SAM reads of one, as the working directory."""
    for name in ("template.yaml", "samconfig.toml"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAM_CLI_TELEMETRY", "0")
    return tmp_path


def overrides(call: list[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The template's parameters as the command takes them from its options and from samconfig.toml."""
    _, name, *arguments = call
    module, found = COMMANDS[name], []
    signature = inspect.signature(module.do_cli)

    def work(*values: Any, **more: Any) -> None:
        found.append(signature.bind(*values, **more).arguments["parameter_overrides"])

    # `sam` is the context's parent, from which SAM learns the name of the command in samconfig.toml.
    parent = click.Context(click.Group("sam"), info_name="sam")
    with monkeypatch.context() as patch:
        patch.setattr(module, "do_cli", work)
        module.cli.main(arguments, prog_name=name, parent=parent, standalone_mode=False)
    [parameters] = found
    return parameters


def built_for(parameters: dict[str, str]) -> set[str]:
    """The architectures that `sam build` builds for."""
    stacks, _ = SamLocalStackProvider.get_stacks(str(TEMPLATE), parameter_overrides=parameters)
    return {function.architecture for function in SamFunctionProvider(stacks).get_all()}


def runs_on(parameters: dict[str, str]) -> set[str]:
    """The architectures of the deployed functions."""
    functions = Deployment(**parameters).of_type("AWS::Lambda::Function").values()
    return {architecture for function in functions for architecture in function["Architectures"]}


def test_the_readme_has_both_commands() -> None:
    assert {call[1] for call in commands_in(of_readme())} == set(COMMANDS)


@pytest.mark.parametrize("architecture", ["arm64", "x86_64"])
def test_what_is_built_is_what_the_stack_runs(
    project: Path, monkeypatch: pytest.MonkeyPatch, architecture: str
) -> None:
    configuration = project / "samconfig.toml"
    if architecture == "x86_64":
        # The README names the line, and the file has it.
        assert f"`{OTHER}`" in of_readme()
        assert configuration.read_text().count(DEFAULT) == 1
        configuration.write_text(configuration.read_text().replace(DEFAULT, OTHER))
    calls = commands_in(of_readme()) + commands_in((ROOT / "samconfig.toml").read_text())
    resolved = {"build": set(), "deploy": set()}
    for call in calls:
        parameters = overrides(call, monkeypatch)
        resolved[call[1]] |= built_for(parameters) if call[1] == "build" else runs_on(parameters)
    assert resolved == {"build": {architecture}, "deploy": {architecture}}


def test_a_stack_that_is_not_named_yet_is_not_deployed(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What samconfig.toml leaves open breaks the parameters' rules, so CloudFormation makes nothing of it."""
    given, rules = overrides(["sam", "deploy"], monkeypatch), read()["Parameters"]
    assert given.keys() >= REQUIRED.keys()
    refused = {
        name for name, value in given.items() if not re.fullmatch(rules[name].get("AllowedPattern", ".*"), value)
    }
    assert refused == {"ClusterName", "RunsBucketName"}
