import json
import logging
import time

from training import progress
from training.progress import Progress
from training.storage import Folder

SUBMISSION = "01980000-0000-7000-8000-000000000001"


def reported(tmp_path, *reports):
    writer = Progress(Folder(tmp_path), SUBMISSION, attempt=2, total=10)
    writer.start(0)
    for report in reports:
        writer.report(*report)
    writer.finish()
    return json.loads((tmp_path / "progress" / SUBMISSION).read_bytes())


def test_the_object_has_these_fields(tmp_path):
    found = reported(tmp_path, (4, 2.5, 100.0))
    assert found.pop("tokens_per_second") > 0
    assert found.pop("eta_seconds") >= 0
    assert abs(found.pop("updated_at") - time.time()) < 60
    nobody_knows = dict.fromkeys(("cut_off", "micro_batch", "expected_peak_bytes"))
    assert found == {"submission": SUBMISSION, "attempt": 2, "step": 4, "total": 10, "loss": 2.5} | nobody_knows


def test_the_newest_report_stands(tmp_path):
    assert reported(tmp_path, (1, 2.5, 10.0), (2, 2.4, 20.0), (10, 2.0, 90.0))["step"] == 10


def test_what_is_no_number_is_null(tmp_path):
    assert reported(tmp_path, (1, float("nan"), 1.0))["loss"] is None
    assert reported(tmp_path, (1, float("inf"), 1.0))["loss"] is None
    assert reported(tmp_path, (1, 1.0, float("nan")))["tokens_per_second"] is None
    assert reported(tmp_path, (0, None, 0.0))["eta_seconds"] is None


def test_it_is_due_again_after_a_while(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    writer = Progress(Folder(tmp_path), SUBMISSION, attempt=2, total=10)
    writer.start(0)
    writer.report(1, 1.0, 1.0)
    writer.pending.result()
    now[0] += 4.9
    assert not writer.due()
    now[0] += 0.1
    assert writer.due()
    writer.finish()


def test_storage_that_fails_is_logged_and_training_goes_on(tmp_path, caplog):
    (tmp_path / "progress").write_text("a file where a folder should be")
    writer = Progress(Folder(tmp_path), SUBMISSION, attempt=2, total=10)
    with caplog.at_level(logging.WARNING):
        writer.report(1, 1.0, 1.0)
        writer.finish()
    assert "progress could not be written" in caplog.text


def test_it_costs_less_than_a_thousandth_of_a_short_step(tmp_path):
    """On the thread that trains: a question each step, and a report each five seconds."""
    writer = Progress(Folder(tmp_path), SUBMISSION, attempt=1, total=10)
    writer.start(0)
    began = time.thread_time()
    for _ in range(10_000):
        writer.due()
    question = (time.thread_time() - began) / 10_000
    began = time.thread_time()
    for step in range(100):
        writer.report(step, 1.0, 1.0)
    report = (time.thread_time() - began) / 100
    writer.finish()
    step = 0.02
    assert question + report * step / progress.EVERY_SECONDS < step / 1000


def test_the_thread_that_trains_never_waits_for_storage(tmp_path):
    class Slow(Folder):
        def write(self, key, body, **condition):
            time.sleep(0.5)
            super().write(key, body, **condition)

    writer = Progress(Slow(tmp_path), SUBMISSION, attempt=1, total=10)
    writer.start(0)
    began = time.monotonic()
    writer.report(1, 1.0, 1.0)
    assert not writer.due(), "not while one is being written"
    assert time.monotonic() - began < 0.4
    writer.finish()
    assert json.loads((tmp_path / "progress" / SUBMISSION).read_bytes())["step"] == 1
