import functools
import itertools
import json
import os
import pickle
import random
import socket
import subprocess
import sys
import time
from pathlib import Path

import boto3
import pytest
from pods import start_pods
from traps import FORMS, Trap
from warm_pods import Warm

import make_tiny_model

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # as in train.py: its threads do not survive a fork


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory) -> Path:
    """A MODEL_DIR with the tiny model as `tiny`. It has dropout, so that a random state that is lost shows."""
    directory = tmp_path_factory.mktemp("models")
    make_tiny_model.make(directory / "tiny")
    path = directory / "tiny" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"attention_dropout": 0.1}))
    return directory


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> Path:
    """Texts of many lengths: 101, so that no batch size divides them."""
    chance = random.Random(1)
    words = make_tiny_model.WORDS.split()
    path = tmp_path_factory.mktemp("data") / "texts.jsonl"
    rows = [{"text": " ".join(chance.choices(words, k=chance.randint(1, 40)))} for _ in range(101)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def start(tmp_path, model_dir, dataset):
    """start_pods, in a new directory each time."""
    number = itertools.count()
    return lambda *job, **options: start_pods(tmp_path / f"pods-{next(number)}", model_dir, dataset, *job, **options)


@pytest.fixture(scope="session")
def warm_processes(tmp_path_factory):
    with Warm(tmp_path_factory.mktemp("warm")) as warm:
        yield warm


@pytest.fixture
def warm(start, warm_processes):
    """start for a job that nobody disturbs: its processes have imported everything before."""
    return functools.partial(start, begin=warm_processes.begin)


@pytest.fixture(scope="session")
def s3(tmp_path_factory):
    """The environment in which pods find an S3 with a bucket: a server of its own, on this machine alone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    log = tmp_path_factory.mktemp("s3") / "log"
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as server:
        try:
            deadline = time.monotonic() + 60
            while socket.socket().connect_ex(("127.0.0.1", port)):
                assert time.monotonic() < deadline and server.poll() is None, log.read_text()
                time.sleep(0.1)
            environment = {
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
                "AWS_ACCESS_KEY_ID": "test",
                "AWS_SECRET_ACCESS_KEY": "test",
                "AWS_REGION": "us-east-1",
            }
            client(environment).create_bucket(Bucket="bucket")
            yield environment
        finally:
            server.kill()


def client(environment):
    return boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id="test",
        aws_secret_access_key="test",
        region_name="us-east-1",
    )


@pytest.fixture
def fetch(s3, tmp_path):
    """Brings all objects below a prefix of the bucket to a new folder."""
    number = itertools.count()

    def fetch_objects(prefix):
        target = tmp_path / f"fetched-{next(number)}"
        pages = client(s3).get_paginator("list_objects_v2").paginate(Bucket="bucket", Prefix=f"{prefix}/")
        for key in [found["Key"] for page in pages for found in page.get("Contents", [])]:
            path = target / key.removeprefix(f"{prefix}/")
            path.parent.mkdir(parents=True, exist_ok=True)
            client(s3).download_file("bucket", key, str(path))
        return target

    return fetch_objects


@pytest.fixture(params=FORMS)
def form(request):
    return FORMS[request.param]


@pytest.fixture
def trap(tmp_path):
    """A Trap that must not have snapped at the end; before that it is shown that it would."""
    pickle.loads(pickle.dumps(Trap(tmp_path / "trial")))
    assert (tmp_path / "trial").is_dir()
    yield Trap(tmp_path / "snapped")
    assert not (tmp_path / "snapped").exists(), "code from a file ran"
