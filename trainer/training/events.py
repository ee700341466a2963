"""TensorBoard's event files: a few numbers of each step that is logged, below logs/<submission>/tensorboard/.

S3 cannot append: an object is written anew while its file grows, up to PART bytes; then they go on in the next one. So
PART is small, as a bucket that keeps versions keeps all that was written. It is no smaller, as TensorBoard opens each
file.
Best effort: a run never fails, nor waits, because its events could not be written, on this node's disk or in storage.
"""

import concurrent.futures
import contextlib
import logging
import time
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path

from training import layout
from training.storage import Storage

if typing.TYPE_CHECKING:
    from tensorboardX.event_file_writer import EventsWriter

PART = 64 * 1024  # bytes
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
        self.uploader = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="events")
        self.pending: concurrent.futures.Future[None] | None = None
        self.uploaded = time.monotonic()
        self.parts = 0
        self.file: EventsWriter | None = None  # none before the first event
        self.failed = False  # there are no more then
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

    def finish(self) -> None:
        """Upload the rest, and wait for it."""
        with self._best_effort():
            self._next_part()
        self.uploader.shutdown()

    def _write(self, step: int, **what: typing.Any) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event

        if self.failed:
            return
        with self._best_effort():
            if not self.file:
                self.parts += 1
                self.directory.mkdir(exist_ok=True)
                # TensorBoard takes the files of a folder in the order of their names, which have the time in front.
                self.file = EventsWriter(str(self.directory / "events"), f".attempt-{self.attempt}.{self.parts:06d}")
            self.file.write_event(Event(wall_time=time.time(), step=step, **what))
            self.file.flush()
            if self._path().stat().st_size >= PART:
                self._next_part()
            elif (not self.pending or self.pending.done()) and time.monotonic() - self.uploaded >= EVERY_SECONDS:
                self._upload()

    def _next_part(self) -> None:
        if self.file:
            self.file.close()
            self._upload()
            self._path().unlink()
            self.file = None

    def _path(self) -> Path:
        return Path(self.file._file_name)

    def _upload(self) -> None:
        self.uploaded = time.monotonic()
        path = self._path()
        key = layout.tensorboard_prefix(self.submission) + path.name
        self.pending = self.uploader.submit(self._put, key, path.read_bytes())

    def _put(self, key: str, body: bytes) -> None:
        with self._best_effort():
            self.storage.write(key, body)

    @contextlib.contextmanager
    def _best_effort(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever it is, training goes on
            self.failed = True
            logger.warning("events could not be written, and there are no more of them: %s", error)
