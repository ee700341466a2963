"""TensorBoard's event files, read record by record as TensorBoard does."""

import struct

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from training import events
from training.storage import open_storage


@pytest.fixture
def begin(tmp_path):
    return lambda attempt: events.Events(
        open_storage(f"file://{tmp_path}/run"), "a", attempt, tmp_path / f"node-{attempt}"
    )


def records(path):
    body = path.read_bytes()
    while body:
        (size,) = struct.unpack("<Q", body[:8])
        yield Event.FromString(body[12 : 12 + size])
        body = body[16 + size :]


def numbers(event):
    return {value.tag: value.simple_value for value in event.summary.value}


def test_a_long_file_goes_on_in_another(begin, tmp_path, monkeypatch):
    monkeypatch.setattr(events, "PART", 400)
    written = begin(2)
    written.start(10)
    for step in range(11, 21):
        written.step(step, step / 2, 0.125, step * 100.0)
    written.add(20, {"eval_loss": 7.0})
    written.finish()
    paths = sorted((tmp_path / "run/logs/a/tensorboard").iterdir())
    assert len(paths) > 2
    assert [path.name.rpartition(".attempt-2.")[2] for path in paths] == [
        f"{part:06d}" for part in range(1, len(paths) + 1)
    ]
    found = []
    for path in paths:
        assert path.name.startswith("events.out.tfevents.")
        first, *rest = records(path)
        assert first.file_version == "brain.Event:2"
        found += rest
    start, *steps, evaluated = found
    assert (start.session_log.status, start.step) == (SessionLog.START, 11)
    assert [event.step for event in steps] == list(range(11, 21))
    assert [numbers(event)["loss"] for event in steps] == [step / 2 for step in range(11, 21)]
    assert {numbers(event)["learning_rate"] for event in steps} == {0.125}
    assert all(numbers(event)["tokens_per_second"] > 0 for event in steps)
    assert (evaluated.step, numbers(evaluated)) == (20, {"eval_loss": 7.0})


def test_what_was_written_is_there_soon(begin, tmp_path, monkeypatch):
    monkeypatch.setattr(events, "EVERY_SECONDS", 0.0)
    written = begin(1)
    written.step(1, 1.0, 0.1, 1.0)
    written.pending.result()
    (path,) = (tmp_path / "run/logs/a/tensorboard").iterdir()
    assert [event.step for event in records(path)] == [0, 1]
    written.finish()


def test_what_is_written_again_and_again_stays_small(begin, monkeypatch):
    """Twenty minutes of a step a second: each upload is a version that the bucket keeps for days."""
    written = begin(1)
    now, sizes = [written.uploaded], []
    monkeypatch.setattr(events.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(written.storage, "write", lambda key, body: sizes.append(len(body)))
    for step in range(1, 1201):
        now[0] += 1
        written.step(step, 1.0, 0.1, step * 100.0)
        if written.pending:
            written.pending.result()
    written.finish()
    assert 120 <= len(sizes) <= 125, "every ten seconds, and when a file is full"
    assert sum(sizes) < 5 * 1024 * 1024


def test_what_cannot_be_written_fails_nothing(begin, tmp_path, caplog):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/logs").write_text("in the way")
    written = begin(1)
    written.step(1, 1.0, 0.1, 1.0)
    written.finish()
    assert "events could not be written" in caplog.text


def test_a_disk_that_takes_no_more_fails_nothing(begin, tmp_path, caplog):
    written = begin(1)
    (tmp_path / "node-1").write_text("in the way")
    for step in (1, 2):
        written.step(step, 1.0, 0.1, 1.0)
    written.finish()
    assert caplog.text.count("events could not be written, and there are no more of them") == 1
