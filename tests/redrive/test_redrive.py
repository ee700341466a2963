"""Replaying the twin's dead-letter queue: what the indexer takes leaves the queue, the rest stays and is told.

.local/venv/sam/bin/python -m pytest -q tests/redrive
"""

import http.server
import json
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
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

    def redrive(self, **variables: str) -> tuple[int, str]:
        """Its exit code and what it prints."""
        command = [sys.executable, ROOT / "infra/redrive.py", STACK]
        environment = self.environment | variables
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
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


def of_sns(event: dict[str, object]) -> dict[str, object]:
    """The event as SNS invokes a function with it."""
    notification = {"Type": "Notification", "Message": json.dumps(event)}
    return {"Records": [{"EventSource": "aws:sns", "EventVersion": "1.0", "Sns": notification}]}


def of_queue(event: dict[str, object]) -> dict[str, object]:
    """The event as SNS puts it into a queue without raw delivery."""
    return {"Type": "Notification", "Message": json.dumps(event)}


# Lambda wraps the event for a destination; a dead-letter queue of Lambda's older kind, or of SQS, has it bare.
@pytest.mark.parametrize("is_wrapped", [True, False])
@pytest.mark.parametrize("sender", [dict, of_sns, of_queue])
def test_an_orphaned_entry_goes_by_its_late_event(twin: Twin, sender: Callable, is_wrapped: bool) -> None:
    twin.s3.put_object(Bucket=twin.bucket, Key=f"{twin.run}/{ENTRY}", Body=b"{}")
    event = sender(twin.event())
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


class Lambda:
    """In Lambda's place, and nothing but its door: what it answers to each event, by the marker's key, turn by turn."""

    def __init__(self, answers: dict[str, list[str]]) -> None:
        self.asked: list[str] = []
        lock = threading.Lock()

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(handler) -> None:
                event = json.loads(handler.rfile.read(int(handler.headers["content-length"])))
                key = event["Records"][0]["s3"]["object"]["key"].rpartition("/")[2]
                with lock:
                    self.asked.append(key)
                    turns = answers[key]
                    answer = turns.pop(0) if len(turns) > 1 else turns[0]
                match answer:
                    case "done":
                        handler.answer(200, b"null")
                    case "failed":
                        said = b'{"errorType": "Restless", "errorMessage": "it changed"}'
                        handler.answer(200, said, {"X-Amz-Function-Error": "Unhandled"})
                    case "throttled":
                        kind = {"X-Amzn-ErrorType": "TooManyRequestsException"}
                        handler.answer(429, b'{"Type": "User", "message": "Rate exceeded"}', kind)
                    case "cut":
                        handler.close_connection = True

            def answer(handler, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
                handler.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                    handler.send_header(name, value)
                handler.end_headers()
                handler.wfile.write(body)

            def log_message(handler, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"


def test_an_event_that_is_refused_or_not_taken_keeps_no_other_from_being_replayed(twin: Twin) -> None:
    answers = {
        "step-000001.json": ["failed"],
        "step-000002.json": ["throttled"],
        "step-000003.json": ["cut"],
        "step-000004.json": ["throttled", "cut", "done"],
        "step-000005.json": ["done"],
    }
    lambda_ = Lambda(answers)
    for name in answers:
        twin.send(json.dumps(twin.event(f"checkpoints/{name}")))
    code, said = twin.redrive(AWS_ENDPOINT_URL_LAMBDA=lambda_.url)
    lambda_.server.shutdown()
    *lines, last = said.splitlines()
    assert (code, last) == (1, "2 done, 3 left in the queue")
    told = {line.partition(".json: ")[0][-len("step-000001") :]: line.partition(".json: ")[2] for line in lines}
    assert told["step-000001"] == 'failed again: {"errorType": "Restless", "errorMessage": "it changed"}'
    assert told["step-000002"].startswith("could not be sent: ") and "Rate exceeded" in told["step-000002"]
    assert told["step-000003"].startswith("could not be sent: ")
    assert (told["step-000004"], told["step-000005"]) == ("done", "done")
    assert {name: lambda_.asked.count(name) for name in answers} == dict(zip(answers, [1, 3, 3, 3, 1], strict=True))
    # What is left may be looked at by others at once; and the indexer itself takes all three.
    assert twin.redrive()[1].splitlines()[-1] == "3 done, 0 left in the queue"
