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
    def __init__(self, storage: Storage, submission: str, attempt: int, total: int) -> None:
        self.storage = storage
        self.submission = submission
        self.attempt = attempt
        self.total = total
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
        body = {
            "submission": self.submission,
            "attempt": self.attempt,
            "step": step,
            "total": self.total,
            "loss": loss if loss is not None and math.isfinite(loss) else None,
            "tokens_per_second": round((tokens - tokens_before) / seconds, 1) if steps > 0 and seconds > 0 else None,
            "eta_seconds": round(max(self.total - step, 0) * seconds / steps, 1) if steps > 0 else None,
            "updated_at": time.time(),
        }
        self.pending = self.writer.submit(self._write, json.dumps(body).encode())

    def finish(self) -> None:
        """Wait for what is still being written."""
        self.writer.shutdown()

    def _write(self, body: bytes) -> None:
        try:
            self.storage.write(layout.progress_key(self.submission), body)
        except Exception as error:  # whatever it is, training goes on
            logger.warning("progress could not be written: %s", error)
