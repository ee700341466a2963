"""A client generated from openapi.json, made a caller of the running twin, each answer held to the document."""

import importlib
import json
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "training_client"


class Document:
    """openapi.json, and what it says of an answer."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.content = content

    def operations(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Method, path and operation; paths with fewer parameters first, so that the first match is the route."""
        for path, methods in sorted(self.content["paths"].items(), key=lambda item: item[0].count("{")):
            for method, operation in methods.items():
                yield method, path, operation

    def operation(self, method: str, path: str) -> dict[str, Any]:
        for known, template, operation in self.operations():
            if known == method.lower() and re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", template), path):
                return operation
        raise AssertionError(f"the document has no {method} {path}")

    def check(self, answer: httpx.Response) -> None:
        """An answer has a status, a media type, headers, a form and a code that the document tells of."""
        answer.read()
        request = f"{answer.request.method} {answer.request.url.path}: {answer.status_code}"
        operation = self.operation(answer.request.method, answer.request.url.path)
        told = operation["responses"].get(str(answer.status_code))
        assert told, f"{request} is not told of: {answer.text}"
        media_type = answer.headers["content-type"].split(";")[0]
        assert media_type in told["content"], f"{request} is {media_type}"
        if media_type.startswith("text/"):
            return
        schema = {**told["content"][media_type]["schema"], "components": self.content["components"]}
        Draft202012Validator(schema).validate(answer.json())
        if media_type == "application/problem+json":
            assert answer.json()["code"] in operation["x-problem-codes"], answer.text


@pytest.fixture(scope="session")
def document() -> Document:
    return Document(json.loads((ROOT / "openapi.json").read_text()))


@pytest.fixture(scope="session")
def settings() -> dict[str, str]:
    """What `make up` wrote."""
    file = ROOT / ".local/env"
    assert file.exists(), "no twin is up (.local/env is missing): run `make up`"
    lines = (line.removeprefix("export ").partition("=") for line in file.read_text().splitlines())
    return {name: value.strip("'\"") for name, _, value in lines}


@pytest.fixture(scope="session")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ModuleType]:
    """The modules of the generated client. What the generator does not understand of the document is a failure."""
    folder = tmp_path_factory.mktemp("generated")
    config = folder / "config.json"
    config.write_text(json.dumps({"post_hooks": []}))
    arguments = ["--path", ROOT / "openapi.json", "--meta", "none", "--output-path", folder / PACKAGE]
    generator = Path(sys.executable).parent / "openapi-python-client"
    subprocess.run([generator, "generate", *arguments, "--config", config, "--fail-on-warning"], check=True)
    sys.path.insert(0, os.fspath(folder))
    return lambda module: importlib.import_module(f"{PACKAGE}.{module}")


@pytest.fixture(scope="session")
def connect(load: Callable[[str], ModuleType], settings: dict[str, str], document: Document) -> Callable[[str], Any]:
    """A generated client with this token, whose answers are held to the document."""

    def connect(token: str) -> Any:
        return load("client").AuthenticatedClient(
            base_url=settings["API_URL"],
            token=token,
            prefix="",
            auth_header_name="X-TRAINER-TOKEN",
            timeout=httpx.Timeout(35),
            httpx_args={"event_hooks": {"response": [document.check]}},
        )

    return connect


@pytest.fixture(scope="session")
def client(connect: Callable[[str], Any], settings: dict[str, str]) -> Any:
    return connect(settings["TRAINER_API_TOKEN"])


@pytest.fixture
def request_of(load: Callable[[str], ModuleType], settings: dict[str, str]) -> Callable[..., Any]:
    """A request for a small job of the image `stub`, which trains nothing and does what its arguments say."""

    def request_of(**arguments: Any) -> Any:
        models = load("models")
        return models.TrainingJobRequest(
            framework=models.Framework.HF,
            model_id=settings["DEMO_MODEL"],
            run_id=f"client-{uuid.uuid4().hex[:8]}",
            checkpoint_base_uri=settings["RUNS_BASE_URI"],
            dataset_uri="s3://data/none.jsonl",
            image="stub",
            gpus_per_node=0,
            cpus_per_node=1,
            memory_per_node_gb=1,
            extra_args=models.TrainingJobRequestExtraArgsType0.from_dict(arguments),
        )

    return request_of
