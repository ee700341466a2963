"""What a process prints, on its console and in storage: whole, in time, and never at the training's expense.

What it costs, and what becomes of it when followers die, are late or hear no answer: test_stored_log.py.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from training import rank_log

TRAINER = Path(__file__).parents[1]
SUBMISSION = "01980001-0000-7000-8000-000000000000"
SCRIPT = """
import ctypes, os, signal, subprocess, sys, time
from training import rank_log
rank_log.EVERY_SECONDS = float(os.environ.get("EVERY", "10"))
rank_log.PART = int(os.environ.get("PART", rank_log.PART))
rank_log.LAST_SECONDS = float(os.environ.get("LAST", "10"))
with rank_log.RankLog(os.environ["STORE"], os.environ["SUBMISSION"], 1) as log:
    exec(os.environ["BODY"])
print("after the end")
"""


class Job:
    """Starts processes that print; storage and volume are those of one pod."""

    def __init__(self, path):
        self.store = path / "store"
        self.volume = path / "volume"
        self.temporary = path / "tmp"
        self.temporary.mkdir()

    def start(self, body, *, volume=True, **environment):
        return subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            env={
                "PYTHONPATH": str(TRAINER),
                "STORE": f"file://{self.store}",
                "SUBMISSION": SUBMISSION,
                "TMPDIR": str(self.temporary),
                "BODY": body,
                **({"TRAINER_LOG_DIR": str(self.volume)} if volume else {}),
                **environment,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, body, **options):
        """What the console shows when the process and all that it has started are gone."""
        process = self.start(body, **options)
        shown, _ = process.communicate(timeout=60)
        return process.returncode, shown

    def log(self, attempt):
        folder = self.store / "logs" / SUBMISSION / f"attempt-{attempt}"
        return "".join(path.read_text() for path in sorted(folder.glob("rank-1.log*")))

    def left(self):
        return [path for root in (self.volume, self.temporary) for path in root.rglob("*") if path.is_file()]


@pytest.fixture
def job(tmp_path):
    return Job(tmp_path)


def until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.01)


SPEAKERS = """
print("python")
print("python's errors", file=sys.stderr)
sys.stdout.flush(); sys.stderr.flush()
ctypes.CDLL(None).write(1, b"a library\\n", 10)
ctypes.CDLL(None).write(2, b"its errors\\n", 11)
subprocess.run(["echo", "a process"])
"""
SPOKEN = "python\npython's errors\na library\nits errors\na process\n"


@pytest.mark.parametrize("volume", [True, False])
def test_all_that_is_printed_is_shown_and_kept(job, volume):
    assert job.run(f"log.number(3)\n{SPEAKERS}", volume=volume) == (0, f"{SPOKEN}after the end\n")
    assert job.log(3) == SPOKEN
    assert job.left() == [], "what is in storage is not kept twice"
    assert list(job.temporary.iterdir()) == []


def test_what_was_printed_before_the_number_is_kept_too(job):
    assert job.run("print('early'); log.number(None); log.number(1); log.number(1); print('late')")[0] == 0
    assert job.log(1) == "early\nlate\n"


def test_it_is_in_storage_while_the_process_runs(job):
    process = job.start("log.number(1); print('one'); time.sleep(60)", EVERY="0.2")
    until(lambda: job.log(1) == "one\n")
    process.kill()
    process.communicate(timeout=30)


def test_it_is_never_more_than_15_seconds_behind():
    assert rank_log.EVERY_SECONDS + rank_log.LOOK_SECONDS < 15


def test_a_long_log_goes_on_in_further_objects(job):
    body = (
        "log.number(2)\nfor n in range(5000): print('line', n)\ntime.sleep(0.5)\nfor n in range(50): print('more', n)"
    )
    assert job.run(body, PART="1000", EVERY="0.1")[0] == 0
    names = sorted(path.name for path in (job.store / "logs" / SUBMISSION / "attempt-2").iterdir())
    assert names[:2] == ["rank-1.log", "rank-1.log.000001"]
    assert len(names) > 40
    assert job.log(2) == "".join(f"line {n}\n" for n in range(5000)) + "".join(f"more {n}\n" for n in range(50))


def test_a_process_that_printed_nothing_has_an_empty_log(job):
    assert job.run("log.number(1)")[0] == 0
    assert job.log(1) == ""
    assert (job.store / "logs" / SUBMISSION / "attempt-1" / "rank-1.log").exists()


KILLED = {
    "the process": "os.kill(os.getpid(), signal.SIGKILL)",
    "its whole container": "os.kill(log.follower, signal.SIGKILL); os.kill(os.getpid(), signal.SIGKILL)",
}


@pytest.mark.parametrize("killed", KILLED)
def test_no_line_is_lost_when_the_pod_survives(job, killed):
    lines = "".join(f"line {n}\n" for n in range(3000))
    job.run(f"log.number(1)\nfor n in range(3000): print('line', n)\n{KILLED[killed]}")
    job.run("log.number(2); print('next')")
    assert job.log(1) == lines
    assert job.log(2) == "next\n"
    assert job.left() == []


def test_a_killed_process_still_has_its_last_lines_on_the_console(job):
    code, shown = job.run("log.number(1); print('last'); os.kill(os.getpid(), signal.SIGKILL)")
    assert (code, shown) == (-signal.SIGKILL, "last\n")
    until(lambda: job.log(1) == "last\n")


def test_a_start_that_never_had_a_number_is_told_at_the_head_of_the_next(job):
    assert job.run("print('never counted')") == (0, "never counted\nafter the end\n")
    assert job.run("log.number(1); print('counted')") == (0, "counted\nafter the end\n")
    assert job.log(1) == "never counted\ncounted\n"


def test_what_was_written_before_the_kill_is_not_written_again(job):
    process = job.start("log.number(1); print('one'); time.sleep(60)", EVERY="0.1")
    until(lambda: job.log(1) == "one\n")
    written = job.store / "logs" / SUBMISSION / "attempt-1" / "rank-1.log"
    process.kill()
    process.communicate(timeout=30)
    time.sleep(0.2)
    job.volume.joinpath(SUBMISSION, "attempt-1").mkdir(exist_ok=True)
    job.volume.joinpath(SUBMISSION, "attempt-1", "rank-1.log").write_text("one\n")
    before = written.stat().st_mtime_ns
    job.run("log.number(2)")
    assert written.stat().st_mtime_ns == before
    assert job.left() == []


def test_storage_that_fails_does_not_fail_the_process_and_is_said_once(job):
    job.store.write_text("a file where a folder should be")
    code, shown = job.run("log.number(1); print('one'); time.sleep(0.5); print('two')", EVERY="0.1")
    assert code == 0
    assert shown.count("the log could not be written") == 1
    assert [line for line in shown.splitlines() if "could not" not in line] == ["one", "two", "after the end"]
    assert [path.read_text() for path in job.left()] == ["one\ntwo\n"], "it waits for the next container"
    job.store.unlink()
    job.run("log.number(2)")
    assert job.log(1) == "one\ntwo\n"


def test_what_was_left_is_stored_when_storage_recovers_and_its_failure_is_said_once(job):
    job.store.write_text("a file where a folder should be")
    assert "the log of attempt-1 could not be stored in time" in job.run("log.number(1); print('one')")[1]
    body = "log.number(2); print('two'); time.sleep(0.5); os.remove(os.environ['STORE'][7:]); time.sleep(0.5)"
    code, shown = job.run(body, EVERY="0.1")
    assert (code, job.log(1), job.log(2)) == (0, "one\n", "two\n")
    assert shown.count("the log of attempt-1 could not be written") == 1
    assert "in time" not in shown
    assert job.left() == []


def test_what_could_not_be_stored_in_time_is_named_in_the_log(job):
    job.volume.joinpath(SUBMISSION, "attempt-1").mkdir(parents=True)
    job.volume.joinpath(SUBMISSION, "attempt-1", "rank-1.log").write_text("one\n")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it never answers
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        keys = dict.fromkeys(["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"], "test") | {"AWS_REGION": "us-east-1"}
        code, shown = job.run(
            "log.number(2); print('two')", STORE="s3://bucket/run", AWS_ENDPOINT_URL=endpoint, LAST="0.5", **keys
        )
    assert (code, shown) == (
        0,
        "two\nthe log of attempt-1 and attempt-2 could not be stored in time\nafter the end\n",
    )


def test_a_volume_that_fails_does_not_fail_the_process(job):
    job.volume.write_text("a file where a folder should be")
    code, shown = job.run("log.number(1); print('one')")
    assert code == 0
    assert "the log is not kept" in shown
    assert shown.endswith("one\nafter the end\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_of_the_training_process_do_not_end_the_second_one(job, number):
    process = job.start(
        "signal.signal(signal.SIGTERM, lambda *_: None); signal.signal(signal.SIGINT, lambda *_: None)\n"
        "log.number(1); print('ready')\ntime.sleep(0.3); time.sleep(0.3); print('end')",
    )
    assert process.stdout.readline() == "ready\n"
    os.kill(process.pid, number)
    assert process.communicate(timeout=30)[0] == "end\nafter the end\n"
    assert job.log(1) == "ready\nend\n"


def test_a_second_process_that_dies_does_not_stop_the_first(job):
    body = "log.number(1); os.kill(log.follower, signal.SIGKILL)\nfor n in range(20000): print('line', n)"
    code, shown = job.run(body)
    assert (code, shown) == (0, "after the end\n")
    assert len(job.left()[0].read_text().splitlines()) == 20000
