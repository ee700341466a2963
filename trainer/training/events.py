"""TensorBoard's event files: a few numbers of each step that is logged, below logs/<submission>/tensorboard/.

S3 cannot append: an object is written anew while its file grows, up to PART bytes; then they go on in the next one.
Best effort: a run never fails, nor waits, because its events could not be written.
"""

import concurrent.futures
import logging
import time
import typing
from collections.abc import Mapping
from pathlib import Path

from training import layout
from training.storage import Storage

if typing.TYPE_CHECKING:
    from tensorboardX.event_file_writer import EventsWriter

PART = 4 * 1024 * 1024  # bytes
EVERY_SECONDS = 10.0

logger = logging.getLogger(__name__)


class Events:
    """Of one attempt. Where it repeats steps of an earlier one, TensorBoard shows those that come later."""

    def __init__(self, storage: Storage, submission: str, attempt: int, directory: Path) -> None:
        """`directory` is this node's own, and gone after the run."""
        self.storage = storage
        self.submission = submission
        self.attempt = attempt
        self.directory = directory
        self.directory.mkdir()
        self.uploader = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="events")
        self.pending: concurrent.futures.Future[None] | None = None
        self.uploaded = time.monotonic()
        self.parts = 0
        self.file = self._next_part()
        self.since = (time.monotonic(), 0.0)  # time and tokens at the last step

    def start(self, step: int) -> None:
        """Steps after this one follow; count the pace from here."""
        from tensorboardX.proto.event_pb2 import SessionLog

        self.since = (time.monotonic(), 0.0)
        self._write(step + 1, session_log=SessionLog(status=SessionLog.START))

    def step(self, step: int, loss: float, learning_rate: float, tokens: float) -> None:
        """`tokens` are all processes' since start()."""
        began, before = self.since
        self.since = (time.monotonic(), tokens)
        pace = (tokens - before) / max(self.since[0] - began, 1e-9)
        self.add(step, {"loss": loss, "learning_rate": learning_rate, "tokens_per_second": pace})

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        from tensorboardX.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=number) for name, number in numbers.items()]
        self._write(step, summary=Summary(value=values))
        self.file.flush()
        full = self._path().stat().st_size >= PART
        idle = self.pending is None or self.pending.done()
        if full or (idle and time.monotonic() - self.uploaded >= EVERY_SECONDS):
            self._upload()
        if full:
            self.file.close()
            self._path().unlink()
            self.file = self._next_part()

    def finish(self) -> None:
        """Upload the rest, and wait for it."""
        self.file.close()
        self._upload()
        self.uploader.shutdown()

    def _write(self, step: int, **what: typing.Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self.file.write_event(Event(wall_time=time.time(), step=step, **what))

    def _next_part(self) -> "EventsWriter":
        from tensorboardX.event_file_writer import EventsWriter

        self.parts += 1
        # TensorBoard takes the files of a folder in the order of their names, which have the time in front.
        return EventsWriter(str(self.directory / "events"), f".attempt-{self.attempt}.{self.parts:06d}")

    def _path(self) -> Path:
        return Path(self.file._file_name)

    def _upload(self) -> None:
        self.uploaded = time.monotonic()
        path = self._path()
        key = layout.tensorboard_prefix(self.submission) + path.name
        self.pending = self.uploader.submit(self._put, key, path.read_bytes())

    def _put(self, key: str, body: bytes) -> None:
        try:
            self.storage.write(key, body)
        except Exception as error:  # whatever it is, training goes on
            logger.warning("events could not be written: %s", error)
