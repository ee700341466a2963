"""Replaying the twin's dead-letter queue: what the indexer takes leaves the queue, the rest stays and is told.

.local/venv/sam/bin/python -m pytest -q tests/redrive
"""

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

ROOT = Path(__file__).resolve().parents[2]
STACK = "training"
KEY = "checkpoints/step-000500.json"
ENTRY = "index/v1/999999999499"


class Twin:
    """The running twin's bucket and queue, seen by its operator."""

    def __init__(self) -> None:
        lines = (ROOT / ".local/env").read_text().splitlines()
        self.settings = dict(line.removeprefix("export ").split("=", 1) for line in lines if "=" in line)
        self.environment = {**os.environ, **self.settings}
        access = {"endpoint_url": self.settings["AWS_ENDPOINT_URL"], "region_name": self.settings["AWS_REGION"]}
        session = boto3.Session(self.settings["AWS_ACCESS_KEY_ID"], self.settings["AWS_SECRET_ACCESS_KEY"])
        self.s3 = session.client("s3", config=boto3.session.Config(s3={"addressing_style": "path"}), **access)
        self.sqs = session.client("sqs", **access)
        stack = session.client("cloudformation", **access)
        described = stack.describe_stack_resource(StackName=STACK, LogicalResourceId="DeadLetters")
        self.queue = described["StackResourceDetail"]["PhysicalResourceId"]
        self.bucket = self.settings["RUNS_BUCKET"]
        self.run = f"runs/redrive-{uuid.uuid4().hex[:8]}/framework=hf"

    def event(self, key: str = KEY) -> dict[str, object]:
        """What S3 sends of a marker of this test's run."""
        place = {"bucket": {"name": self.bucket}, "object": {"key": f"{self.run}/{key}".replace("=", "%3D")}}
        return {"Records": [{"eventVersion": "2.1", "eventName": "ObjectCreated:Put", "s3": place}]}

    def send(self, body: str) -> None:
        self.sqs.send_message(QueueUrl=self.queue, MessageBody=body)

    def redrive(self) -> tuple[int, str]:
        """Its exit code and what it prints."""
        command = [sys.executable, ROOT / "infra/redrive.py", STACK]
        result = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=300)
        assert result.stderr == ""
        return result.returncode, result.stdout

    def exists(self, key: str) -> bool:
        listed = self.s3.list_objects_v2(Bucket=self.bucket, Prefix=f"{self.run}/{key}")
        return listed["KeyCount"] == 1


@pytest.fixture
def twin() -> Iterator[Twin]:
    made = Twin()
    made.redrive()
    yield made
    made.sqs.purge_queue(QueueUrl=made.queue)


# Lambda wraps the event for a destination; a dead-letter queue of Lambda's older kind has it bare.
@pytest.mark.parametrize("is_wrapped", [True, False])
def test_an_orphaned_entry_goes_by_its_late_event(twin: Twin, is_wrapped: bool) -> None:
    twin.s3.put_object(Bucket=twin.bucket, Key=f"{twin.run}/{ENTRY}", Body=b"{}")
    event = twin.event()
    wrapped = {"requestContext": {"condition": "RetriesExhausted"}, "requestPayload": event, "responsePayload": {}}
    twin.send(json.dumps(wrapped if is_wrapped else event))
    code, said = twin.redrive()
    assert (code, said.splitlines()[-1]) == (0, "1 done, 0 left in the queue")
    assert f"s3://{twin.bucket}/{twin.run}/{KEY}: done" in said
    assert not twin.exists(ENTRY)
    assert twin.redrive() == (0, "0 done, 0 left in the queue\n")


def test_what_cannot_be_replayed_stays_in_the_queue(twin: Twin) -> None:
    twin.send("no JSON")
    twin.send(json.dumps(twin.event()))
    for done in (1, 0):
        code, said = twin.redrive()
        assert (code, said.splitlines()[-1]) == (1, f"{done} done, 1 left in the queue")
        assert "a message that is no S3 event: not JSON, left alone" in said
