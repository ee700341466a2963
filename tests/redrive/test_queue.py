"""How redrive goes through a queue, whose clock is the test's: each invoke takes its time.

.local/venv/sam/bin/python -m pytest -q tests/redrive/test_queue.py
"""

import importlib.util
import io
import json
import types
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

INVOKE_SECONDS = 60  # as long as the indexer may take
RECEIVE_SECONDS = 1


class Queue:
    """A queue and the function that its events are sent to, both as boto3 shows them."""

    def __init__(self, failing: list[bool], invoke_seconds: int = INVOKE_SECONDS, newest_first: bool = True) -> None:
        self.said = b"null"
        self.now = 0
        self.invoke_seconds = invoke_seconds
        self.newest_first = newest_first  # what comes again stands before what is new
        self.visible_at = dict.fromkeys(range(len(failing)), 0)
        self.failing = failing
        self.invoked: list[int] = []
        self.gone: set[int] = set()  # others took them away meanwhile
        self.late: list[int] = []  # invoked when others could already see the message

    def receive_message(self, *, MaxNumberOfMessages: int, VisibilityTimeout: int, **_: Any) -> dict[str, Any]:
        self.now += RECEIVE_SECONDS
        assert self.now < 24 * 60 * 60, "it does not end"
        order = -1 if self.newest_first else 1
        visible = sorted((order * at, name) for name, at in self.visible_at.items() if at <= self.now)
        received = [name for _, name in visible[:MaxNumberOfMessages]]
        for name in received:
            self.visible_at[name] = self.now + VisibilityTimeout
        body = [{"MessageId": str(name), "ReceiptHandle": name, "Body": json.dumps({"at": name})} for name in received]
        return {"Messages": body} if body else {}

    def delete_message(self, *, ReceiptHandle: int, **_: Any) -> None:
        del self.visible_at[ReceiptHandle]

    def change_message_visibility(self, *, ReceiptHandle: int, VisibilityTimeout: int, **_: Any) -> None:
        if ReceiptHandle in self.gone:
            error = {"Code": "InvalidParameterValue", "Message": "Message does not exist or is not available"}
            raise ClientError({"Error": error}, "ChangeMessageVisibility")
        self.visible_at[ReceiptHandle] = self.now + VisibilityTimeout

    def invoke(self, *, Payload: str, **_: Any) -> dict[str, Any]:
        name = json.loads(Payload)["at"]
        self.now += self.invoke_seconds
        self.invoked.append(name)
        if self.visible_at[name] <= self.now:
            self.late.append(name)
        failure = {"FunctionError": "Unhandled"} if self.failing[name] else {}
        return {"Payload": io.BytesIO(self.said), **failure}


@pytest.fixture
def redrive() -> types.ModuleType:
    path = Path(__file__).resolve().parents[2] / "infra/redrive.py"
    spec = importlib.util.spec_from_file_location("redrive", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_message_is_replayed_once_while_it_is_hidden(redrive: types.ModuleType, monkeypatch: Any) -> None:
    # Those that fail are seen again long before the rest is done.
    queue = Queue([at < 12 for at in range(30)])
    monkeypatch.setattr(redrive.boto3, "client", lambda *_, **__: queue)
    assert redrive.redrive("queue", "function") == 12
    assert sorted(queue.invoked) == list(range(30))
    assert queue.late == []
    assert {name for name, at in queue.visible_at.items() if at <= queue.now} == set(range(12))


def test_it_ends_though_what_is_left_comes_again_before_all_of_it_was_received(
    redrive: types.ModuleType, monkeypatch: Any
) -> None:
    count = redrive.HIDDEN_SECONDS // RECEIVE_SECONDS + 100
    queue = Queue([at != 7 for at in range(count)], invoke_seconds=0, newest_first=False)
    monkeypatch.setattr(redrive.boto3, "client", lambda *_, **__: queue)
    assert redrive.redrive("queue", "function") == count - 1
    assert sorted(queue.invoked) == list(range(count))


def test_a_message_that_others_took_away_keeps_none_hidden(redrive: types.ModuleType, monkeypatch: Any) -> None:
    queue = Queue([True] * 3)
    queue.gone = {0, 1}
    monkeypatch.setattr(redrive.boto3, "client", lambda *_, **__: queue)
    assert redrive.redrive("queue", "function") == 3
    assert queue.visible_at[2] <= queue.now


@pytest.mark.parametrize(("failures", "left"), [([{"itemIdentifier": "1"}], 1), ([], 0)])
def test_a_batch_of_which_a_message_failed_stays(
    redrive: types.ModuleType, monkeypatch: Any, failures: list[dict[str, str]], left: int
) -> None:
    queue = Queue([False])
    queue.said = json.dumps({"batchItemFailures": failures}).encode()
    monkeypatch.setattr(redrive.boto3, "client", lambda *_, **__: queue)
    assert redrive.redrive("queue", "function") == left
    assert len(queue.visible_at) == left


NOTIFIED = {"Records": [{"s3": {"bucket": {"name": "b"}, "object": {"key": "a+b%2Bc/step-000001.json"}}}]}
SENT = {"source": "aws.s3", "detail": {"bucket": {"name": "b"}, "object": {"key": "a b+c/step-000001.json"}}}


@pytest.mark.parametrize("event", [NOTIFIED, SENT])
@pytest.mark.parametrize("is_dead_letter_of_lambda", [True, False])
def test_an_object_has_its_name_whatever_the_event_came_in(
    redrive: types.ModuleType, event: dict[str, Any], is_dead_letter_of_lambda: bool
) -> None:
    notification = {"Type": "Notification", "Message": json.dumps(event)}
    for wrapped, count in [
        (event, 1),
        (notification, 1),
        ({"Records": [{"EventSource": "aws:sns", "Sns": notification}]}, 1),
        ({"Records": [{"eventSource": "aws:sqs", "body": json.dumps(inner)} for inner in (event, notification)]}, 2),
    ]:
        body = json.dumps({"requestPayload": wrapped} if is_dead_letter_of_lambda else wrapped)
        assert redrive.names(body) == ", ".join(["s3://b/a b+c/step-000001.json"] * count)


@pytest.mark.parametrize(
    "body",
    [
        "no JSON",
        "[]",
        '{"Records": 5}',
        '{"Records": []}',
        '{"Type": "Notification", "Message": "no JSON"}',
        '{"Records": [5]}',
        '{"Records": [{"s3": {"bucket": {"name": "b"}, "object": {"key": 5}}}]}',
        '{"Records": [{"s3": {"bucket": {"name": "b"}, "object": {"key": null}}}]}',
    ],
)
def test_a_message_that_is_no_event_has_a_name_too(redrive: types.ModuleType, body: str) -> None:
    assert redrive.names(body) == "a message that is no S3 event"
