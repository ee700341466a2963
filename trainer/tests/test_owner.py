"""A run's owner: what is waited for, and for how long. The rule itself has vectors in tests/contract/owner.json."""

import json
import time
import uuid

import pytest

from training import owner
from training.errors import SupersededError
from training.storage import WithheldError, open_storage

MINE = "019a0000-0000-7000-8000-00000000000a"
OTHER = "019b0000-0000-7000-8000-00000000000b"


def id_of(seconds):
    """A UUIDv7 of this time."""
    return str(uuid.UUID(int=(int(seconds * 1000) << 80) | (7 << 76) | (2 << 62) | 1))


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Storage of a run, and a clock that only waiting moves."""
    clock = {"now": time.time(), "waited": 0.0, "then": lambda: None}

    def sleep(seconds):
        clock["now"] += seconds
        clock["waited"] += seconds
        clock["then"]()

    monkeypatch.setattr(owner.time, "sleep", sleep)
    monkeypatch.setattr(owner.time, "time", lambda: clock["now"])
    monkeypatch.setattr(owner.time, "monotonic", lambda: clock["now"])
    storage = open_storage(f"file://{tmp_path}")
    clock["write"] = lambda **value: storage.write("owner", json.dumps(value).encode())
    clock["check"] = owner.Owner(storage, MINE).check
    clock["storage"] = storage
    return clock


def test_a_claim_whose_request_is_refused_supersedes_nobody(run):
    run["write"](submission=id_of(run["now"]), namespace="n", job="j")
    run["then"] = lambda: run["write"](submission=MINE, namespace="n", job="j") if run["waited"] >= 3 else None
    run["check"]()
    assert run["waited"] == 3


def test_a_claim_whose_job_appears_supersedes_when_it_is_old(run):
    run["write"](submission=id_of(run["now"]), namespace="n", job="j")
    with pytest.raises(SupersededError, match="belongs to submission"):
        run["check"]()
    assert 34 <= run["waited"] <= 36


def test_a_claim_that_was_given_up_long_ago_ends_no_run_that_nobody_has_claimed(run):
    """As a refused request leaves it where a laptop or another launcher trains."""
    run["write"](submission=OTHER, namespace="n", job="j", released=True)
    run["check"]()
    assert run["waited"] == 0


def test_a_claim_that_was_given_up_a_moment_ago_is_waited_out(run):
    run["write"](submission=id_of(run["now"]), namespace="n", job="j", released=True)
    run["check"]()
    assert 34 <= run["waited"] <= 36


def test_claims_that_are_given_up_one_after_the_other_are_waited_out_together(run):
    run["write"](submission=id_of(run["now"]), namespace="n", job="j", released=True)
    run["then"] = lambda: run["write"](submission=id_of(run["now"]), namespace="n", job="j", released=True)
    run["check"]()
    assert 34 <= run["waited"] <= 36


def test_a_claim_from_a_far_future_is_not_waited_for(run):
    run["write"](submission=id_of(run["now"] + 3600), namespace="n", job="j")
    with pytest.raises(SupersededError):
        run["check"]()
    assert run["waited"] == 0


def test_claims_that_follow_each_other_are_not_waited_for_for_ever(run):
    run["write"](submission=id_of(run["now"]), namespace="n", job="j")
    run["then"] = lambda: run["write"](submission=id_of(run["now"]), namespace="n", job="j")
    with pytest.raises(SupersededError):
        run["check"]()
    assert 34 <= run["waited"] <= 36


def test_an_old_owner_supersedes_at_once(run):
    run["write"](submission=OTHER, namespace="n", job="j")
    with pytest.raises(SupersededError):
        run["check"]()
    assert run["waited"] == 0


def test_an_owner_that_storage_gives_to_nobody_supersedes(run, monkeypatch):
    """It may be another's: functions/run/FORMAT.md, "owner"."""

    def withheld(key):
        raise WithheldError(f"{key}: it is archived")

    monkeypatch.setattr(run["storage"], "read", withheld)
    with pytest.raises(SupersededError, match=r"cannot read this run's owner record.*it is archived.*delete owner"):
        run["check"]()
    assert run["waited"] == 0


def test_an_object_in_a_folder_below_the_attempts_is_no_newer_attempt(tmp_path):
    storage = open_storage(f"file://{tmp_path}")
    storage.write(f"attempts/{MINE}/old/9", b"{}")
    owner.Owner(storage, MINE, attempt=1).check()
    storage.write(f"attempts/{MINE}/9", b"{}")
    with pytest.raises(SupersededError, match="attempt 9 of this submission has begun"):
        owner.Owner(storage, MINE, attempt=1).check()
