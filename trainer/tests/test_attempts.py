"""The ledger: which start this is, how earlier ones are judged, and when there is no other."""

import dataclasses
import json
import logging
import threading

import pytest

from training import errors, layout
from training.attempts import Attempt, Ledger, RefusedError
from training.distributed import World
from training.errors import SupersededError, UserError
from training.place import Place
from training.signals import Stop
from training.storage import Folder, WithheldError

SUBMISSION, OTHER = (f"0198000{number}-0000-7000-8000-000000000000" for number in (1, 2))


@pytest.fixture
def storage(tmp_path):
    return Folder(tmp_path / "run")


def ledger(storage, max_restarts=3):
    return Ledger(storage, SUBMISSION, max_restarts)


def place(pod="pod-0", rank=0, nodes=1, uid=True):
    return Place(
        rank=rank,
        size=nodes,
        local_rank=0,
        node=rank,
        nodes=nodes,
        pod=pod,
        under_torchrun=nodes > 1,
        pod_has_uid=uid,
    )


class Told(World):
    """A world of many nodes as rank 0 sees it: what the others say is given."""

    def gather(self, value):
        return getattr(self, "values", [value])


def world(*pods):
    told = Told(rank=0, size=len(pods), local_rank=0, node=0, gpu=False, stop=Stop())
    object.__setattr__(told, "values", list(enumerate(pods)))
    object.__setattr__(told, "on_rank_zero", lambda function: function())
    return told


def begin(storage, *pods, max_restarts=3):
    """A start of a job with these pods, as far as rank 0 does it; returns its number."""
    book, here = ledger(storage, max_restarts), place(pods[0], nodes=len(pods))
    return book.meet(world(*pods), here, book.start(here))


def entries(storage):
    return [(attempt.attempt, attempt.cause) for attempt in ledger(storage).read()]


def ended(storage, *causes, pod="pod-0"):
    """Attempts that ended so; None is an end without a word."""
    for number, cause in enumerate(causes, 1):
        message = None if cause is None else f"why {number}"
        attempt = Attempt(attempt=number, pods=(pod,), started_at=1.0, cause=cause, message=message)
        storage.write(layout.attempt_key(SUBMISSION, number), attempt.dump())


@pytest.mark.parametrize("pods", [("pod-0",), ("pod-0", "pod-1")])
def test_pods_that_go_with_a_full_disk_were_not_just_moved(storage, pods):
    """The cluster evicts them for it, in each next pod again: for free that would go on for ever."""
    for number in (1, 2, 3):
        assert begin(storage, *(f"{pod}-{number}" for pod in pods), max_restarts=2) == number
        ledger(storage).note(number, "the disk is full")
    with pytest.raises(RefusedError, match=r"^3 attempts have failed .*, attempt 3, by storage: the disk is full$"):
        begin(storage, *(f"{pod}-4" for pod in pods), max_restarts=2)
    closed = [(attempt.cause, attempt.message) for attempt in ledger(storage).read()]
    assert closed == [("storage", "the disk is full")] * 3


def test_an_entry_says_who_when_and_how(storage):
    book = ledger(storage)
    assert begin(storage, "pod-0", "pod-1") == 1
    book.close(1, errors.OUT_OF_MEMORY, 3, "too much")
    body = json.loads(storage.read(f"attempts/{SUBMISSION}/1"))
    assert 1.7e9 < body.pop("started_at") <= body.pop("ended_at")
    assert body == {
        "attempt": 1,
        "pods": ["pod-0", "pod-1"],
        "cause": "out_of_memory",
        "rank": 3,
        "message": "too much",
    }


def test_starts_are_counted_also_beyond_nine(storage):
    ended(storage, *[errors.PREEMPTED] * 10)
    assert begin(storage, "pod-0") == 11
    ledger(storage).close(11, errors.FINISHED, 0)
    assert begin(storage, "pod-0") == 12


def test_the_next_number_is_one_more_than_the_greatest(storage):
    ended(storage, *[errors.PREEMPTED] * 3)
    storage.delete([layout.attempt_key(SUBMISSION, 2)])
    assert begin(storage, "pod-0") == 4


def test_after_the_last_number_there_is_none(storage):
    last = Attempt(attempt=layout.MAX_ATTEMPT, pods=("pod-0",), started_at=1.0, cause=errors.PREEMPTED)
    storage.write(layout.attempt_key(SUBMISSION, last.attempt), last.dump())
    with pytest.raises(UserError, match=f"^attempts/{SUBMISSION}/999999999 is the last .*: submit the job again$"):
        begin(storage, "pod-0")
    assert entries(storage) == [(last.attempt, "preempted")]


def test_of_two_first_processes_each_gets_its_own_number(storage):
    numbers = []
    threads = [
        threading.Thread(target=lambda pod=pod: numbers.append(ledger(storage)._claim(1, place(f"pod-{pod}"))))
        for pod in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(1, 9))
    assert len({attempt.pods for attempt in ledger(storage).read()}) == 8


def test_a_claim_whose_answer_was_lost_is_not_made_twice(storage, monkeypatch):
    write = storage.write

    def retried(key, body, **condition):
        write(key, body, **condition)
        write(key, body, **condition)  # as botocore does when the first answer does not arrive

    monkeypatch.setattr(storage, "write", retried)
    assert ledger(storage).start(place()) == 1
    assert entries(storage) == [(1, None)]


@pytest.mark.parametrize(
    ("before", "now", "cause"),
    [
        (("pod-0",), ("pod-0",), "crash"),
        (("pod-0",), ("pod-9",), "preempted"),
        (("pod-0", "pod-1"), ("pod-0", "pod-1"), "crash"),
        (("pod-0", "pod-1"), ("pod-9", "pod-1"), "preempted"),
        (("pod-0", "pod-1"), ("pod-0", "pod-9"), "preempted"),
    ],
)
def test_what_nobody_closed_is_judged_by_its_pods(storage, before, now, cause):
    begin(storage, *before)
    assert entries(storage) == [(1, None)]
    assert begin(storage, *now) == 2
    assert entries(storage) == [(1, cause), (2, None)]


@pytest.mark.parametrize(("pod", "cause"), [("pod-0", "crash"), ("pod-9", "preempted")])
def test_who_ended_before_all_had_met_is_judged_by_the_first_pod(storage, pod, cause):
    ledger(storage).start(place("pod-0", nodes=2))
    begin(storage, pod, "pod-1")
    assert entries(storage) == [(1, cause), (2, None)]


def test_who_is_first_to_say_how_it_ended_is_right(storage):
    begin(storage, "pod-0")
    ledger(storage).close(1, errors.OUT_OF_MEMORY, 1, "first")
    ledger(storage).close(1, errors.CRASH, 0, "second")
    assert entries(storage) == [(1, "out_of_memory")]
    ledger(storage).close(7, errors.CRASH, 0)
    assert entries(storage) == [(1, "out_of_memory")], "what was not claimed is not closed"


@pytest.mark.parametrize(
    ("causes", "refused"),
    [
        ([], None),
        (["finished"], None),
        (["user_error"], ("user_error", "attempt 1 ended with an error that no restart can fix: why 1")),
        (["crash", "user_error"], ("user_error", "attempt 2 ended with an error that no restart can fix: why 2")),
        (["out_of_memory"], None),
        (["out_of_memory", "out_of_memory"], ("out_of_memory", "attempts 1 and 2 ran out of memory: why 2")),
        (["out_of_memory", "preempted", "out_of_memory"], None),
        (["crash", "storage", "out_of_memory"], None),
        (
            ["crash", "storage", "out_of_memory", "crash"],
            ("crash", "4 attempts have failed and max_restarts is 3; the last, attempt 4, by crash: why 4"),
        ),
        (["preempted"] * 30, None),
        (["preempted", "crash"] * 3, None),
        (
            ["preempted", "crash"] * 4 + ["preempted"],
            ("crash", "4 attempts have failed and max_restarts is 3; the last, attempt 8, by crash: why 8"),
        ),
        (["crash", "crash", "crash", None], ("crash", "4 attempts have failed and max_restarts is 3")),
    ],
)
def test_when_there_is_no_other_start(storage, causes, refused):
    ended(storage, *causes)
    if refused is None:
        assert begin(storage, "pod-0") == len(causes) + 1
        return
    for rank in (0, 1):  # the other nodes see what rank 0 has closed
        with pytest.raises(RefusedError) as error:
            ledger(storage).start(place(rank=rank, nodes=1))
        assert (error.value.cause, str(error.value)[: len(refused[1])]) == refused
    assert len(entries(storage)) == len(causes), "nothing was begun"


def test_a_node_that_comes_later_does_not_take_this_start_for_a_dead_one(storage):
    ended(storage, "crash", "crash", "crash")
    number = ledger(storage).start(place("pod-0", nodes=2))
    assert ledger(storage).start(place("pod-1", rank=1, nodes=2)) is None
    assert (number, entries(storage)[3:]) == (4, [(4, None)])


def test_no_restart_means_none(storage):
    assert begin(storage, "pod-0", max_restarts=0) == 1
    with pytest.raises(RefusedError, match="1 attempts have failed and max_restarts is 0"):
        begin(storage, "pod-0", max_restarts=0)


def test_where_only_all_pods_can_tell_the_budget_is_asked_again(storage):
    for _ in range(4):
        begin(storage, "pod-0", "pod-1")
    with pytest.raises(RefusedError, match="4 attempts have failed"):
        begin(storage, "pod-0", "pod-1")
    assert entries(storage) == [(1, "crash"), (2, "crash"), (3, "crash"), (4, "crash")]
    with pytest.raises(RefusedError):
        ledger(storage).start(place("pod-0", nodes=2))


def test_where_only_all_pods_can_tell_a_move_costs_nothing(storage):
    for _ in range(4):
        begin(storage, "pod-0", "pod-1")
    assert begin(storage, "pod-0", "pod-9") == 5
    assert entries(storage)[3:] == [(4, "preempted"), (5, None)]


def test_who_is_superseded_begins_nothing(storage):
    storage.write("owner", json.dumps({"submission": OTHER, "namespace": "n", "job": "j"}).encode())
    with pytest.raises(SupersededError):
        ledger(storage).start(place())
    assert entries(storage) == []


def test_a_pod_that_was_replaced_begins_nothing(storage):
    begin(storage, "pod-0", "pod-1")
    begin(storage, "pod-9", "pod-1")
    with pytest.raises(SupersededError, match="pod pod-0 was replaced by pod pod-9"):
        ledger(storage).start(place("pod-0", nodes=2))
    assert entries(storage) == [(1, "preempted"), (2, None)]
    assert ledger(storage).start(place("pod-0", nodes=2, uid=False)) == 3, "a host may get the job back"


def test_a_pod_that_is_replaced_while_it_claims_begins_nothing(storage, monkeypatch):
    begin(storage, "pod-0")
    write, on_the_way = storage.write, []

    def slow(key, body, **condition):
        if condition and not on_the_way:
            on_the_way.append(key)
            assert begin(storage, "pod-9") == 2
        write(key, body, **condition)

    monkeypatch.setattr(storage, "write", slow)
    with pytest.raises(SupersededError, match="pod pod-0 was replaced by pod pod-9"):
        ledger(storage).start(place("pod-0"))
    assert entries(storage) == [(1, "crash"), (2, None)]
    assert begin(storage, "pod-9") == 3


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"{}", b'{"cause": "luck", "pods": [], "started_at": 1}'])
def test_a_damaged_entry_counts_as_a_crash_and_is_said(storage, body, caplog):
    ended(storage, "crash", "crash", "crash")
    storage.write(layout.attempt_key(SUBMISSION, 2), body)
    with caplog.at_level(logging.WARNING):
        assert begin(storage, "pod-0") == 4
    assert "attempts/" in caplog.text
    assert "cannot be read" in caplog.text
    ledger(storage).close(4, errors.CRASH, 0)
    with pytest.raises(RefusedError, match="4 attempts have failed"):
        begin(storage, "pod-0")


def test_an_entry_that_nobody_is_given_counts_as_a_crash(storage, monkeypatch):
    ended(storage, "preempted", "preempted")
    read = storage.read

    def withheld(key):
        if key == layout.attempt_key(SUBMISSION, 1):
            raise WithheldError("it is archived")
        return read(key)

    monkeypatch.setattr(storage, "read", withheld)
    assert entries(storage) == [(1, "crash"), (2, "preempted")]


def test_whatever_was_said_last_can_be_read_again(storage):
    book = ledger(storage)
    for number, message in enumerate(["x" * 1_000_000, "half a character: \ud800", "\U0001f600" * 2000], 1):
        assert begin(storage, *(f"pod-{number}-{node:050}" for node in range(1000))) == number
        book.close(number, errors.USER_ERROR if number == 3 else errors.PREEMPTED, 0, message)
    assert entries(storage) == [(1, "preempted"), (2, "preempted"), (3, "user_error")]
    assert [len(attempt.message) for attempt in book.read()] == [1024, 19, 1024]


def test_what_is_no_entry_is_passed_over(storage):
    ended(storage, "crash")
    storage.write(f"attempts/{SUBMISSION}/notes", b"mine")
    storage.write(f"attempts/{OTHER}/5", b"{}")
    assert begin(storage, "pod-0") == 2


def test_an_entry_is_read_as_it_was_written():
    attempt = Attempt(attempt=3, pods=("a", "b"), started_at=1.5, cause="storage", rank=1, message="m", ended_at=2.5)
    storage_body = attempt.dump()
    from training.attempts import parse

    assert parse(3, storage_body) == attempt
    assert parse(3, dataclasses.replace(attempt, cause=None).dump()).cause is None
