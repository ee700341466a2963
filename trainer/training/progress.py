"""The progress object: how far a submission is, for whoever asks for its status.

Rewritten whole. Best effort: a run never fails, nor waits, because its progress could not be written.
"""

import concurrent.futures
import json
import logging
import math
import time

from training import layout
from training.storage import Storage

EVERY_SECONDS = 5.0

logger = logging.getLogger(__name__)


class Progress:
    def __init__(
        self,
        storage: Storage,
        submission: str,
        attempt: int,
        total: int,
        cut_off: float | None = None,
        micro_batch: int | None = None,
        expected_peak_bytes: int | None = None,
    ) -> None:
        """`cut_off` is the part of all tokens that max_seq_len cuts off, `micro_batch` the texts taken at a time."""
        self.storage = storage
        self.submission = submission
        self.attempt = attempt
        self.total = total
        self.cut_off = cut_off
        self.micro_batch = micro_batch
        self.expected_peak_bytes = expected_peak_bytes
        self.writer = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="progress")
        self.pending: concurrent.futures.Future[None] | None = None
        self.since = (0, time.monotonic(), 0.0)  # step, time and tokens at the last report

    def start(self, step: int) -> None:
        """Count the pace from here."""
        self.since = (step, time.monotonic(), 0.0)

    def due(self) -> bool:
        idle = self.pending is None or self.pending.done()
        return idle and time.monotonic() - self.since[1] >= EVERY_SECONDS

    def report(self, step: int, loss: float | None, tokens: float) -> None:
        """Write in the background; `tokens` are all processes' since start()."""
        before, began, tokens_before = self.since
        now = time.monotonic()
        self.since = (step, now, tokens)
        steps, seconds = step - before, now - began
        body = snapshot(
            submission=self.submission,
            attempt=self.attempt,
            step=step,
            total=self.total,
            loss=loss,
            steps=steps,
            tokens=tokens - tokens_before,
            seconds=seconds,
            cut_off=self.cut_off,
            micro_batch=self.micro_batch,
            expected_peak_bytes=self.expected_peak_bytes,
            now=time.time(),
        )
        self.pending = self.writer.submit(self._write, json.dumps(body).encode())

    def finish(self) -> None:
        """Wait for what is still being written."""
        self.writer.shutdown()

    def _write(self, body: bytes) -> None:
        try:
            self.storage.write(layout.progress_key(self.submission), body)
        except Exception as error:  # whatever it is, training goes on
            logger.warning("progress could not be written: %s", error)


def snapshot(
    *,
    submission: str,
    attempt: int,
    step: int,
    total: int,
    loss: float | None,
    steps: int,
    tokens: float,
    seconds: float,
    cut_off: float | None = None,
    micro_batch: int | None = None,
    expected_peak_bytes: int | None = None,
    now: float,
) -> dict[str, str | int | float | None]:
    """The object's content. `steps`, `tokens` and `seconds` are those since the last report.

    A contract with the control plane, which passes it on: tests/contract/progress.json.
    """
    moved = steps > 0 and seconds > 0
    return {
        "submission": submission,
        "attempt": attempt,
        "step": step,
        "total": total,
        "loss": _finite(loss),
        "tokens_per_second": _finite(round(tokens / seconds, 1)) if moved else None,
        "eta_seconds": _finite(round(max(total - step, 0) * seconds / steps, 1)) if moved else None,
        "cut_off": cut_off,
        "micro_batch": micro_batch,
        "expected_peak_bytes": expected_peak_bytes,
        "updated_at": now,
    }


def _finite(value: float | None) -> float | None:
    """JSON has no other numbers, and nobody could read an object that had one."""
    return value if value is not None and math.isfinite(value) else None
