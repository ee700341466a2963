"""The disk of the work files: what fits on it, and what becomes of an attempt whose disk is full."""

import errno
import json
import os
import re
from pathlib import Path

import pytest
from pods import FIRST, last_words, run_of

import training.last_words
from training import disk, errors
from training.attempts import Attempt, Ledger
from training.disk import GIB, Disk, limit_of
from training.disk_watch import Watch
from training.errors import DiskFullError
from training.storage import Folder

SUBMISSION = "01980001-0000-7000-8000-000000000000"
MIB = 2**20


def fill(path: Path, size: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(size))
    return path


def disk_of(path, limit="", **others):
    return Disk.of({"TRAINER_WORK_DIR": str(path), "TRAINER_DISK_LIMIT": limit} | others)


@pytest.mark.parametrize(
    ("quantities", "size"),
    [
        ("", None),
        ("250Gi", 250 * GIB),
        ("250Gi,20Gi", 20 * GIB),
        ("1e9", 10**9),
        ("1.5k", 1500),
        ("7", 7),
        ("2T", 2 * 10**12),
    ],
)
def test_the_least_quantity_counts(quantities, size):
    assert limit_of(quantities) == size


@pytest.mark.parametrize("quantities", ["many", "5Ki5", "1i", "-1Gi"])
def test_other_quantities_are_refused(quantities):
    with pytest.raises(ValueError, match=r"^TRAINER_DISK_LIMIT must have quantities such as 250Gi, not "):
        limit_of(quantities)


def test_what_a_kubelet_counts_is_counted_once(tmp_path):
    whole = fill(tmp_path / "work/deep/file", 3 * MIB)
    os.link(whole, tmp_path / "work/again")
    (tmp_path / "work/name").symlink_to(whole)
    fill(tmp_path / "logs/rank-0.log", MIB)
    fill(tmp_path / "elsewhere", MIB)
    used = disk_of(tmp_path / "work", TRAINER_LOG_DIR=str(tmp_path / "logs")).used()
    assert 4 * MIB <= used < 4 * MIB + MIB // 2
    with (tmp_path / "work/sparse").open("wb") as file:
        file.truncate(GIB)
    assert disk_of(tmp_path / "work").used() < 4 * MIB, "only what is on the disk"


def test_what_does_not_fit_is_refused_with_path_and_sizes(tmp_path):
    fill(tmp_path / "file", 30 * MIB)
    bounded = disk_of(tmp_path, "100Mi")
    bounded.require(60 * MIB, "MODEL_ID m")
    with pytest.raises(DiskFullError) as raised:
        bounded.require(70 * MIB, "MODEL_ID m")  # 5 MiB are kept back, for what else a kubelet counts
    left = bounded.available() / MIB
    assert str(raised.value) == (
        f"MODEL_ID m needs 70.0 MiB on the disk at {tmp_path}, where {left:.1f} MiB are left: "
        "the job may use 100.0 MiB of it; raise disk_per_node_gb"
    )
    assert errors.cause_of(raised.value) == "storage"
    assert str(errors.from_json(errors.to_json(raised.value))) == str(raised.value)


def test_without_a_limit_the_nodes_disk_counts_but_for_what_a_kubelet_keeps(tmp_path, monkeypatch):
    whole, free = 1000 * GIB, [300 * GIB]
    monkeypatch.setattr(disk, "_file_system", lambda path: (whole, free[0]))
    logs = {"TRAINER_LOG_DIR": str(tmp_path / "logs")}
    node = disk_of(tmp_path, **logs)
    assert node.available() == 200 * GIB
    with pytest.raises(
        DiskFullError, match=r"where 200.0 GiB are left: it has 1000.0 GiB for all of its node; set disk_"
    ):
        node.require(201 * GIB, "the first checkpoint")
    free[0] = 99 * GIB
    node.require(0, "nothing")
    assert node.available() < 0, "the node may evict now"
    assert disk_of(tmp_path, **logs).available() == 99 * GIB, "what was so at the start, no kubelet minds"
    free[0] = 300 * GIB
    monkeypatch.setattr(disk, "_device", lambda path: path.name)
    assert disk_of(tmp_path, **logs).available() == 300 * GIB, "no kubelet looks at a volume of its own"
    free[0] = 99 * GIB
    assert Disk.of({"TMPDIR": str(tmp_path)}).available() == 99 * GIB, "on a laptop all of it"


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/w/file"), "the disk at {} is full: "),
        (
            RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 576 vs 534"),
            "the disk at {} is full: ",
        ),
        (RuntimeError("unable to write to file </torch_1_2>: No space left on device (28)"), "reading or writing "),
    ],
)
def test_last_words_of_a_full_disk_name_it(tmp_path, monkeypatch, error, hint):
    monkeypatch.setattr(Disk, "here", staticmethod(lambda: disk_of(tmp_path, "7Gi")))
    said = training.last_words.sentence(error)
    assert said.startswith(hint.format(tmp_path)), said
    assert said.endswith(f"{type(error).__name__}: {error}")
    assert ("the job may use 7.0 GiB of it; raise disk_per_node_gb" in said) == ("disk at" in hint)


@pytest.mark.parametrize("processes", [0, 2])
def test_a_job_whose_checkpoints_do_not_fit_ends_before_it_trains(warm, tmp_path, processes):
    work = tmp_path / "work"
    work.mkdir()
    small = {"TRAINER_WORK_DIR": str(work), "TRAINER_DISK_LIMIT": "1Mi"}
    job = {"framework": "meta", "processes": processes, "max_steps": 20, "environment": small}
    with warm(tmp_path / "store", FIRST, **job) as pods:
        assert pods.end() == [1]
        assert pods.steps() == []
    folder = run_of(tmp_path / "store", "meta") / "attempts" / FIRST
    (entry,) = [json.loads(path.read_bytes()) for path in folder.iterdir()]
    where = re.escape(str(work))
    said = rf"the first checkpoint needs 1\.[0-9] MiB on the disk at {where}, where 0\.[0-9] MiB are left: the job "
    assert entry["cause"] == "storage"
    assert re.match(said, entry["message"]), entry["message"]
    assert {line["cause"] for line in last_words(tmp_path / "pods-0")} == {"storage"}
    assert not [path for path in work.rglob("*") if path.is_file()]


# === the watch ===


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger(Folder(tmp_path / "run"), SUBMISSION, 3)
    ledger._write(Attempt(attempt=1, pods=("pod-0",), started_at=1.0))
    return ledger


def test_beyond_the_limit_an_attempt_ends_as_storage(ledger, tmp_path, monkeypatch):
    monkeypatch.setenv("TERMINATION_LOG", str(tmp_path / "termination"))
    (tmp_path / "termination").touch()
    ends = []
    watch = Watch(disk_of(tmp_path / "work", "2Mi"), ledger, 1, 0, ends.append)
    fill(tmp_path / "work/file", MIB)
    watch.look()
    assert (ends, ledger.read()[0].cause) == ([], None)
    fill(tmp_path / "work/cache/more", 2 * MIB)
    watch.look()
    said = f"the disk at {tmp_path}/work is full: the job may use 2.0 MiB of it; raise disk_per_node_gb"
    (attempt,) = ledger.read()
    assert (ends, attempt.cause, attempt.rank, attempt.message) == ([1], "storage", 0, said)
    assert (tmp_path / "termination").read_bytes() == training.last_words.line("storage", 0, said)


def test_a_nearly_full_disk_is_noted_as_long_as_it_is(ledger, tmp_path, monkeypatch):
    free = [20 * GIB]
    monkeypatch.setattr(disk, "_file_system", lambda path: (100 * GIB, free[0]))
    watch = Watch(disk_of(tmp_path / "work", TRAINER_LOG_DIR=str(tmp_path / "logs")), ledger, 1, 0)
    notes = []
    for left in (20, 9, 8, 20, 9):
        free[0] = left * GIB
        watch.look()
        notes.append(ledger.read()[0].message)
    said = f"the disk at {tmp_path}/work is full: it has 100.0 GiB for all of its node; set disk_per_node_gb to get a"
    assert [note and note.startswith(said) for note in notes] == [None, True, True, None, True]


def test_a_note_changes_nothing_that_was_closed_or_is_another_nodes(ledger):
    assert ledger.note(1, "of this node")
    assert not ledger.note(1, "of another one"), "which tries again"
    ledger.note(1, None, instead_of="of another one")
    assert ledger.read()[0].message == "of this node"
    ledger.close(1, "preempted", 0, "told to stop")
    ledger.note(1, None, instead_of="told to stop")
    assert ledger.read()[0].message == "told to stop"
