"""Runs one event per function in Docker with `sam local invoke`, and judges the answers.

    sam_local.py

The template and the functions are those that `make up` built; the twin need not be up, since these three events are
answered before anything behind the function is asked. Where no Docker daemon answers, a private one runs meanwhile
(as root only); where no registry can be reached, a stand-in for Lambda's base image does (see base_image.py).

Exit code 1: a wrong answer; 2: it could not be run.
"""

import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import base_image
from samcli.local.docker.lambda_image import LambdaImage

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / ".local" / "sam"
EVENTS = ROOT / "events"
SAM = Path(sys.executable).with_name("sam")
CASES = {
    "SubmitFunction": "submit-missing-token.json",
    "StatusFunction": "status-healthz.json",
    "IndexerFunction": "indexer-test-event.json",
}
ARCHITECTURES = {"x86_64": "x86_64", "aarch64": "arm64"}
# The functions do not start without these; none of them is used by the events above.
PARAMETERS = {"ClusterName": "training", "RunsBucketName": "training-runs", "DefaultImage": "trainer:local"}
# What the SAM CLI does not make of the template: the attributes of resources.
VARIABLES = {"Parameters": {"TOKEN_SECRET_ARN": "arn:aws:secretsmanager:us-east-1:000000000000:secret:unused"}}
ENVIRONMENT = {
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_ACCESS_KEY_ID": "unused",
    "AWS_SECRET_ACCESS_KEY": "unused",
    "AWS_EC2_METADATA_DISABLED": "true",
    "SAM_CLI_TELEMETRY": "0",
}
DAEMON_STARTS_WITHIN_SECONDS = 60
PULL_SECONDS = 300
INVOKE_SECONDS = 120


def main() -> int:
    docker = shutil.which("docker")
    if docker is None:
        stop("Docker is needed (on Debian and Ubuntu: apt-get install docker.io)")
    functions = [BUILD / name / "bootstrap" for name in CASES]
    if not all(function.is_file() for function in functions):
        stop("the functions are not built: run `make up`")
    with daemon(docker), image(docker, functions):
        wrong = [name for name in CASES if not answers(name)]
    return 1 if wrong else 0


@contextlib.contextmanager
def daemon(docker: str) -> Iterator[None]:
    """A Docker daemon that answers: the one at hand, or a private one for as long as this takes."""
    if answers_docker(docker):
        yield
        return
    dockerd = shutil.which("dockerd", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if dockerd is None:
        stop("no Docker daemon answers, and there is none to start (on Debian and Ubuntu: apt-get install docker.io)")
    if os.geteuid() != 0:
        stop("no Docker daemon answers, and only root can start one")
    with tempfile.TemporaryDirectory(prefix="dockerd-") as folder, Path(folder, "log").open("w+") as log:
        url = f"unix://{folder}/docker.sock"
        # The SAM CLI reaches containers by ports of 127.0.0.1, for which Docker's own proxy is enough: the machine's
        # firewall stays as it is.
        command = [dockerd, "--host", url, "--iptables=false", "--ip6tables=false", "--ip-forward=false"]
        for option, name in (("--data-root", "data"), ("--exec-root", "exec"), ("--pidfile", "pid")):
            command += [option, f"{folder}/{name}"]
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        os.environ["DOCKER_HOST"] = url
        try:
            deadline = time.monotonic() + DAEMON_STARTS_WITHIN_SECONDS
            while not answers_docker(docker):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    stop(f"the Docker daemon does not start:\n{log.read()[-2000:]}")
                time.sleep(0.2)
            print("started a private Docker daemon", file=sys.stderr)
            yield
        finally:
            # It ends its containers and unmounts what lies in the folder.
            process.terminate()
            process.wait()


def answers_docker(docker: str) -> bool:
    """Whether a Docker daemon answers."""
    return subprocess.run([docker, "version"], capture_output=True, check=False).returncode == 0


@contextlib.contextmanager
def image(docker: str, functions: list[Path]) -> Iterator[None]:
    """Lambda's base image: the one at hand, pulled, or else a stand-in that is gone afterwards."""
    # The name under which the SAM CLI looks for it.
    repository = f"{LambdaImage._INVOKE_REPO_PREFIX}/provided"
    system, machine = "al2023", architecture()
    tag = f"{repository}:{system}-{machine}"
    at_hand = subprocess.run([docker, "image", "inspect", tag], capture_output=True, check=False).returncode == 0
    if at_hand or pulls(docker, tag):
        yield
        return
    print(f"{tag} cannot be pulled: a stand-in takes its place", file=sys.stderr)
    base_image.make(docker, tag, functions)
    try:
        yield
    finally:
        # Under the real one's name it would deceive others. The second is what the SAM CLI makes of it.
        names = [tag, f"{repository}:{system}-rapid-{machine}"]
        subprocess.run([docker, "image", "rm", "--force", *names], capture_output=True, check=False)


def pulls(docker: str, tag: str) -> bool:
    """Whether a registry has the image for us."""
    try:
        pull = subprocess.run([docker, "pull", tag], capture_output=True, check=False, timeout=PULL_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return pull.returncode == 0


def answers(function: str) -> bool:
    """Whether a function answers its event as expected. The exit code of `sam local invoke` proves nothing: it is 0
    when the function fails, and when no answer comes."""
    event = CASES[function]
    parameters = {**PARAMETERS, "Architecture": architecture()}
    print(f"=== {function} {event}", flush=True)
    with tempfile.NamedTemporaryFile("w", suffix=".json") as variables:
        variables.write(json.dumps(VARIABLES))
        variables.flush()
        command = [SAM, "local", "invoke", function, "--skip-pull-image", "--template", BUILD / "template.yaml"]
        command += ["--event", EVENTS / event, "--env-vars", variables.name, "--parameter-overrides"]
        command += [f"{name}={value}" for name, value in parameters.items()]
        environment = {**os.environ, **ENVIRONMENT}
        try:
            run = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=False, timeout=INVOKE_SECONDS
            )
        except subprocess.TimeoutExpired:
            print(f"no answer within {INVOKE_SECONDS} s")
            return False
    print(run.stdout.strip())
    wrong = what_is_wrong(event, run.stdout)
    if wrong:
        print(f"{wrong}\n{run.stderr}")
    return wrong is None


def what_is_wrong(event: str, output: str) -> str | None:
    """Judges what a function printed."""
    try:
        answer = json.loads(output)
    except json.JSONDecodeError:
        return "this is no JSON"
    if isinstance(answer, dict) and "errorType" in answer:
        return "the function failed"
    expected = json.loads((EVENTS / "expected.json").read_text())[event]
    if "answer" in expected:
        return None if answer == expected["answer"] else f"expected {expected['answer']}"
    if not isinstance(answer, dict) or "statusCode" not in answer:
        return "this is no HTTP answer"
    found = (answer["statusCode"], json.loads(answer["body"]).get("code"))
    wanted = (expected["status"], expected["code"])
    return None if found == wanted else f"expected {wanted}"


def architecture() -> str:
    """This machine's, in Lambda's words."""
    return ARCHITECTURES[platform.machine()]


def stop(reason: str) -> NoReturn:
    """Ends with a sentence for a person."""
    print(reason, file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    # `kill` ends like Ctrl-C: by way of the code that ends the daemon.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
