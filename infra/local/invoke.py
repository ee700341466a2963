"""Runs functions without Docker: the built bootstraps under Lambda's runtime interface emulator, against the twin.

    invoke.py <event file>... | --expected

A file's name begins with its function (submit-, status-, indexer-). The function gets the environment of the deployed
one and a session of its role, so cluster and storage treat it alike. ${NAME} in an event becomes the value of NAME in
.local/env. --expected sends every event whose answer events/expected.json fixes, none of which changes anything.

Prints each answer. Exit code 1: a function failed, or its answer is not the expected one; 2: it could not be run.
Not what the twin's API calls (MiniStack does), and not a measurement: the emulator's limits are not Lambda's.
"""

import base64
import contextlib
import json
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import boto3
import requests
import samcli
from botocore.exceptions import BotoCoreError, ClientError

ROOT = Path(__file__).resolve().parents[2]
LOCAL = ROOT / ".local"
EVENTS = ROOT / "events"
EXPECTED = EVENTS / "expected.json"
STACK = "training"
FUNCTIONS = {"submit": "SubmitFunction", "status": "StatusFunction", "indexer": "IndexerFunction"}
MACHINES = {"x86_64": "x86_64", "aarch64": "arm64"}
STARTS_WITHIN_SECONDS = 10


def main(arguments: list[str]) -> int:
    settings = read_settings()
    expected = json.loads(EXPECTED.read_text())
    if arguments == ["--expected"]:
        files = [EVENTS / name for name, answer in expected.items() if is_fixed(answer)]
    else:
        files = [Path(argument) for argument in arguments]
    by_function: dict[str, list[Path]] = {}
    for file in files:
        by_function.setdefault(function_of(file), []).append(file)

    failures = []
    for function, events in by_function.items():
        with running(function, settings) as url:
            for file in events:
                event = filled(file, settings)
                print(f"=== {file.name}", flush=True)
                answer = requests.post(url, data=json.dumps(event), timeout=120)
                wrong = show(answer, expected.get(file.name))
                if wrong:
                    print(wrong)
                    failures.append(file.name)
    judged = [file for file in files if is_fixed(expected.get(file.name))]
    if judged:
        print(f"{sum(file.name not in failures for file in judged)} of {len(judged)} as expected")
    if failures:
        print("wrong:", *failures, sep="\n  ")
    return 1 if failures else 0


def is_fixed(expected: dict[str, Any] | None) -> bool:
    """Whether the answer does not depend on what is in the cluster and in the bucket."""
    return expected is not None and expected.get("status", True) is not None


def read_settings() -> dict[str, str]:
    """What `make up` wrote into .local/env."""
    try:
        lines = (LOCAL / "env").read_text().splitlines()
    except FileNotFoundError:
        stop("no twin is up (.local/env is missing): run `make up`")
    return dict(line.removeprefix("export ").split("=", 1) for line in lines if "=" in line)


def function_of(file: Path) -> str:
    """The function that a file's name begins with."""
    if not file.is_file():
        stop(f"there is no event {file}")
    function = file.name.split("-")[0]
    if function not in FUNCTIONS:
        stop(f"{file}: the name of an event begins with {'-, '.join(FUNCTIONS)}-")
    if not bootstrap(function).is_file():
        stop(f"the function {function} is not built: run `make up`")
    return function


def bootstrap(function: str) -> Path:
    """The program of a function, as `make up` builds it."""
    return LOCAL / "sam" / FUNCTIONS[function] / "bootstrap"


def filled(file: Path, settings: dict[str, str]) -> Any:
    """The event with the settings in their places and the length of the body that this makes."""

    def value(match: re.Match[str]) -> str:
        return settings.get(match[1]) or stop(f"{file}: .local/env has no {match[1]}")

    event = json.loads(re.sub(r"\$\{(\w+)\}", value, file.read_text()))
    if "body" in event:
        body = base64.b64decode(event["body"]) if event["isBase64Encoded"] else event["body"].encode()
        event["headers"]["content-length"] = str(len(body))
    return event


@contextlib.contextmanager
def running(function: str, settings: dict[str, str]) -> Iterator[str]:
    """The function behind an emulator; yields the URL that invokes it, and ends both."""
    emulator = Path(samcli.__file__).with_name("local") / "rapid" / f"aws-lambda-rie-{MACHINES[platform.machine()]}"
    listen, runtime = free_ports(2)
    command = [
        # When this script is killed, the emulator ends as it does below.
        *("setpriv", "--pdeathsig", "TERM"),
        *(emulator, "--log-level", "error"),
        *("--runtime-interface-emulator-address", f"127.0.0.1:{listen}"),
        *("--runtime-api-address", f"127.0.0.1:{runtime}"),
        bootstrap(function),
    ]
    process = subprocess.Popen(command, env=environment(function, settings), stdout=sys.stderr, start_new_session=True)
    try:
        wait_until_it_listens(process, listen)
        yield f"http://127.0.0.1:{listen}/2015-03-31/functions/function/invocations"
    finally:
        # The emulator takes its bootstrap along.
        process.terminate()
        process.wait()


def environment(function: str, settings: dict[str, str]) -> dict[str, str]:
    """What the deployed function has: its variables, a session of its role, and nothing of this shell but PATH."""
    access = {"endpoint_url": settings["AWS_ENDPOINT_URL"], "region_name": settings["AWS_REGION"]}
    session = boto3.Session(settings["AWS_ACCESS_KEY_ID"], settings["AWS_SECRET_ACCESS_KEY"])
    try:
        resource = session.client("cloudformation", **access).describe_stack_resource(
            StackName=STACK, LogicalResourceId=FUNCTIONS[function]
        )
        name = resource["StackResourceDetail"]["PhysicalResourceId"]
        deployed = session.client("lambda", **access).get_function_configuration(FunctionName=name)
        role = session.client("sts", **access).assume_role(RoleArn=deployed["Role"], RoleSessionName=name)
    except (BotoCoreError, ClientError) as error:
        stop(f"the twin does not answer, or has no {FUNCTIONS[function]}: run `make up` ({error})")
    credentials = role["Credentials"]
    return {
        **deployed["Environment"]["Variables"],
        "PATH": os.defpath,
        "AWS_ENDPOINT_URL": settings["AWS_ENDPOINT_URL"],
        "AWS_REGION": settings["AWS_REGION"],
        "AWS_DEFAULT_REGION": settings["AWS_REGION"],
        "AWS_ACCESS_KEY_ID": credentials["AccessKeyId"],
        "AWS_SECRET_ACCESS_KEY": credentials["SecretAccessKey"],
        "AWS_SESSION_TOKEN": credentials["SessionToken"],
        "AWS_LAMBDA_FUNCTION_NAME": name,
        "AWS_LAMBDA_FUNCTION_VERSION": deployed["Version"],
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(deployed["MemorySize"]),
        "AWS_LAMBDA_FUNCTION_TIMEOUT": str(deployed["Timeout"]),
    }


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


def wait_until_it_listens(process: subprocess.Popen[bytes], port: int) -> None:
    """Waits for the emulator's port."""
    deadline = time.monotonic() + STARTS_WITHIN_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    stop("the runtime interface emulator does not start")


def show(answer: requests.Response, expected: dict[str, Any] | None) -> str | None:
    """Prints an answer; returns what is wrong with it."""
    try:
        result = answer.json()
    except requests.JSONDecodeError:
        return f"the emulator answered {answer.status_code} and no JSON: {answer.text!r}"
    if answer.status_code != 200 or (isinstance(result, dict) and "errorType" in result):
        failed = f"the function failed: {json.dumps(result)}"
        if answer.status_code != 200 or not (expected or {}).get("fails"):
            return failed
        print(failed)
        return None
    if not isinstance(result, dict) or "statusCode" not in result:
        print(json.dumps(result, indent=2))
        return None if expected is None or expected.get("answer", "HTTP") == result else f"expected {expected}"
    print(result["statusCode"])
    headers = {**result.get("headers", {}), **result.get("multiValueHeaders", {})}
    for name, value in sorted(headers.items()):
        print(f"{name}: {', '.join(value) if isinstance(value, list) else value}")
    text = result.get("body") or ""
    if result.get("isBase64Encoded"):
        text = base64.b64decode(text).decode()
    try:
        body = json.loads(text)
        print(json.dumps(body, indent=2, ensure_ascii=False))
    except json.JSONDecodeError:
        body = None
        print(text)
    if expected is None or expected["status"] is None:
        return None
    code = body.get("code") if isinstance(body, dict) else None
    if (result["statusCode"], code) == (expected["status"], expected["code"]):
        return None
    return f"expected {expected['status']} {expected['code'] or ''}, got {result['statusCode']} {code or ''}"


def stop(reason: str) -> NoReturn:
    """Ends with a sentence for a person."""
    print(reason, file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    # `kill` ends like Ctrl-C: by way of the code that ends the emulator.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(main(sys.argv[1:] or [str(EVENTS / "status-healthz.json")]))
    except KeyboardInterrupt:
        sys.exit(130)
