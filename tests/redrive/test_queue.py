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

INVOKE_SECONDS = 60  # as long as the indexer may take


class Queue:
    """A queue and the function that its events are sent to, both as boto3 shows them."""

    exceptions = types.SimpleNamespace(MessageNotInflight=type("MessageNotInflight", (Exception,), {}))

    def __init__(self, failing: list[bool]) -> None:
        self.now = 0
        self.visible_at = dict.fromkeys(range(len(failing)), 0)
        self.failing = failing
        self.invoked: list[int] = []
        self.late: list[int] = []  # invoked when others could already see the message

    def receive_message(self, *, MaxNumberOfMessages: int, VisibilityTimeout: int, **_: Any) -> dict[str, Any]:
        # What comes again stands before what is new.
        visible = sorted((-at, name) for name, at in self.visible_at.items() if at <= self.now)
        received = [name for _, name in visible[:MaxNumberOfMessages]]
        for name in received:
            self.visible_at[name] = self.now + VisibilityTimeout
        body = [{"MessageId": str(name), "ReceiptHandle": name, "Body": json.dumps({"at": name})} for name in received]
        return {"Messages": body} if body else {}

    def delete_message(self, *, ReceiptHandle: int, **_: Any) -> None:
        del self.visible_at[ReceiptHandle]

    def change_message_visibility(self, *, ReceiptHandle: int, VisibilityTimeout: int, **_: Any) -> None:
        self.visible_at[ReceiptHandle] = self.now + VisibilityTimeout

    def invoke(self, *, Payload: str, **_: Any) -> dict[str, Any]:
        name = json.loads(Payload)["at"]
        self.now += INVOKE_SECONDS
        self.invoked.append(name)
        if self.visible_at[name] <= self.now:
            self.late.append(name)
        failure = {"FunctionError": "Unhandled"} if self.failing[name] else {}
        return {"Payload": io.BytesIO(b"null"), **failure}


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
