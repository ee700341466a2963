"""What a cause is, and how a process says it."""

import errno
import json
import os
import threading

import pytest
import torch
from safetensors import SafetensorError

from training import errors, last_words
from training.errors import (
    AccessDeniedError,
    CheckpointError,
    PeerLostError,
    RefusedError,
    StoppedError,
    StorageError,
    SupersededError,
    UserError,
    cause_of,
    is_consequence,
)

GLOO = "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:12345"
CPU = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: 9 bytes."


@pytest.mark.parametrize(
    ("error", "cause", "consequence"),
    [
        (UserError("no"), "user_error", False),
        (SupersededError("no"), "superseded", False),
        (RefusedError("out_of_memory", "no"), "out_of_memory", False),
        (MemoryError(), "out_of_memory", False),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "out_of_memory", False),
        (RuntimeError("CUDA error: out of memory"), "out_of_memory", False),
        (RuntimeError(CPU), "out_of_memory", False),
        (StorageError("key: no"), "storage", False),
        (AccessDeniedError("key: no"), "storage", False),
        (OSError(errno.ENOSPC, "No space left on device"), "storage", False),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "storage", False),
        (RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 576 vs 534"), "storage", False),
        (FileNotFoundError("some file"), "crash", False),
        (ValueError("shape"), "crash", False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), "crash", False),
        (RuntimeError(GLOO), "crash", True),
        (RuntimeError("Gloo connectFullMesh failed with [...] timed out"), "crash", True),
        (
            torch.distributed.DistBackendError("NCCL error: remote process exited or there was a network error"),
            "crash",
            True,
        ),
        (PeerLostError("not all came"), "crash", True),
        (CheckpointError(1, OSError(errno.ENOSPC, "No space left on device")), "storage", False),
        (CheckpointError(1, MemoryError()), "out_of_memory", False),
        (CheckpointError(1, RuntimeError(GLOO)), "crash", True),
    ],
)
def test_each_exception_has_a_cause(error, cause, consequence):
    assert (cause_of(error), is_consequence(error)) == (cause, consequence)


def test_what_torch_really_raises_is_known():
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**60, dtype=torch.uint8)
    assert cause_of(error.value) == "out_of_memory"
    assert last_words.sentence(error.value).startswith("out of memory; lower batch_size")


@pytest.mark.parametrize(
    "error",
    [UserError("why"), SupersededError("why"), RefusedError("crash", "why"), StoppedError()],
    ids=lambda error: type(error).__name__,
)
def test_what_rank_zero_knows_travels_to_the_others(error):
    other = errors.from_json(json.loads(json.dumps(errors.to_json(error))))
    assert (type(other), cause_of(other), str(other)) == (type(error), cause_of(error), str(error))


def test_all_exceptions_of_one_sentence_travel():
    kinds, seen = [errors.KnownError], set()
    while kinds:
        kinds += (below := kinds.pop().__subclasses__())
        seen |= set(below)
    assert seen == set(errors._TRAVELLING.values())


@pytest.mark.parametrize(
    "body",
    [
        {"error": "SystemExit", "cause": "crash", "message": "why"},
        {"error": "CheckpointError", "cause": "crash", "message": "why"},
        {"error": "RefusedError", "cause": "another", "message": "why"},
    ],
)
def test_no_other_exception_comes_from_another_process(body):
    with pytest.raises((KeyError, ValueError)):
        errors.from_json(body)


@pytest.fixture
def file(tmp_path, monkeypatch):
    path = tmp_path / "termination"
    path.touch()
    monkeypatch.setenv("TERMINATION_LOG", str(path))
    return path


def test_each_process_leaves_a_line(file):
    last_words.leave("user_error", 0, "MODEL_ID x is\nno folder")
    last_words.leave("crash", 1, last_words.sentence(RuntimeError(GLOO)), consequence=True)
    assert [json.loads(line) for line in file.read_text().splitlines()] == [
        {"cause": "user_error", "rank": 0, "message": "MODEL_ID x is no folder"},
        {
            "cause": "crash",
            "rank": 1,
            "message": "another process of the job ended first; its line or its log says why",
            "consequence": True,
        },
    ]


@pytest.mark.parametrize(
    "message", ["x" * 5000, "é" * 5000, '"' * 5000, "\\" * 700, "\x01" * 3000, "😀" * 900, "\ud800" * 2000]
)
def test_a_line_is_short_and_json_whatever_it_says(file, message):
    last_words.leave("crash", 1234567, message)
    line = file.read_bytes()
    assert 900 < len(line) <= 1024
    assert line.endswith(b"\n")
    assert json.loads(line)["message"].endswith("…")


def test_lines_of_many_processes_do_not_mix(file):
    threads = [threading.Thread(target=last_words.leave, args=("crash", rank, "x" * 500)) for rank in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(json.loads(line)["rank"] for line in file.read_text().splitlines()) == list(range(16))


def test_without_a_file_for_it_nothing_is_written_and_nothing_fails(tmp_path, monkeypatch):
    monkeypatch.setenv("TERMINATION_LOG", str(tmp_path / "none"))
    last_words.leave("crash", 0, "x")
    assert os.listdir(tmp_path) == []  # noqa: PTH208
    monkeypatch.setenv("TERMINATION_LOG", str(tmp_path))
    last_words.leave("crash", 0, "x")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (UserError("seed must be at least 0"), "seed must be at least 0"),
        (ValueError("\n\n first \n second"), "ValueError: first"),
        (ValueError(), "ValueError"),
        (PeerLostError("not all 2 processes came"), "not all 2 processes came"),
        (CheckpointError(1, ValueError("first\nsecond")), "CheckpointError: rank 1: ValueError: first"),
        (StorageError("a/b: gone"), "reading or writing objects failed, also after retries: StorageError: a/b: gone"),
    ],
)
def test_a_sentence_is_the_first_line_with_what_to_do(error, says):
    assert last_words.sentence(error) == says
