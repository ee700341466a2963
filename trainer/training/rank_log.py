"""What a process prints, also that of its libraries: on the console as ever, and in the run's logs/ while it runs.

The process's own output goes into a file, so nothing that happens to the rest can stop or fail it. A second process,
which outlives it, copies the file to the console and writes it to storage. What is printed is stored once: S3 cannot
append, so new bytes go into a new object, the log's next part, and no object is written again.

The file is on the pod's volume, where TRAINER_LOG_DIR names one. What the second process could not write any more,
because its container was killed, the next container writes, and tries again for as long as storage fails.
"""

import contextlib
import functools
import os
import re
import select
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
import typing
from pathlib import Path

from training import layout
from training.storage import Storage, open_storage

PART = layout.MAX_LOG_PART_BYTES
EVERY_SECONDS = 10.0
LOOK_SECONDS = 0.05
LAST_SECONDS = 10.0  # for what is left at the end

_ATTEMPT = re.compile("attempt-([0-9]{1,9})")


class RankLog:
    """A context in which the process's output is kept. It never raises."""

    def __init__(self, prefix: str, submission: str, rank: int) -> None:
        self.prefix = prefix
        self.submission = submission
        self.rank = rank
        self.path: Path | None = None
        self.follower = 0
        self.orders = -1
        self.originals: tuple[int, int] = (-1, -1)

    def __enter__(self) -> "RankLog":
        try:
            self._start()
        except OSError as error:
            print(f"the log is not kept: {error}", file=sys.stderr)  # noqa: T201
        return self

    def _start(self) -> None:
        volume = os.environ.get("TRAINER_LOG_DIR")
        root = Path(volume or tempfile.mkdtemp(prefix="train-log-"))
        folder = root / self.submission
        folder.mkdir(parents=True, exist_ok=True)
        left = sorted(folder.glob(f"attempt-*/rank-{self.rank}.log"))
        # A start that ended before it had a number is told at the head of the next one.
        path = folder / f"rank-{self.rank}.log"
        output = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        told = os.fstat(output).st_size
        sys.stdout.flush()
        sys.stderr.flush()
        reading, self.orders = os.pipe()
        parent = os.getpid()
        self.follower = os.fork()
        if not self.follower:
            try:
                os.close(self.orders)
                os.setsid()  # torchrun's signals are for the process that trains
                for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                    signal.signal(number, signal.SIG_IGN)
                shipper = Shipper(self.prefix, self.submission, self.rank, output, left)
                follow(output, told, reading, parent, shipper)
                if shipper.done:
                    remove(folder / f"attempt-{shipper.attempt}" / path.name)
                if not volume:
                    shutil.rmtree(root, ignore_errors=True)
            except Exception:
                traceback.print_exc()
            finally:
                os._exit(0)
        os.close(reading)
        self.path = path
        self.originals = (os.dup(1), os.dup(2))
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]

    def number(self, attempt: int | None) -> None:
        """It is known now where the log belongs; None as long as it is not."""
        if attempt is None or not self.path or self.path.parent.name != self.submission:
            return
        target = self.path.parent / f"attempt-{attempt}" / self.path.name
        with contextlib.suppress(OSError):
            target.parent.mkdir(exist_ok=True)
            self.path = self.path.rename(target)
            os.write(self.orders, f"attempt {attempt}\n".encode())

    def __exit__(self, *_: object) -> None:
        if not self.follower:
            return
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        for original, number in zip(self.originals, (1, 2), strict=True):
            os.dup2(original, number)
            os.close(original)
        os.close(self.orders)  # the order to end
        deadline = time.monotonic() + LAST_SECONDS + 2
        while time.monotonic() < deadline:
            if os.waitpid(self.follower, os.WNOHANG)[0]:
                return
            time.sleep(0.005)


# === in the second process ===


class StoredLog:
    """One log in storage, and the file that it is copied from: it only grows, and every writer of the log has it."""

    def __init__(self, storage: Storage, submission: str, attempt: int, rank: int, file: int) -> None:
        self.storage = storage
        self.file = file
        self.key = functools.partial(layout.log_key, submission, attempt, rank)
        self.part = 0  # the next one to write
        self.stored = 0  # bytes of the file in the parts before it

    def catch_up(self) -> None:
        """Pass over the parts that are there already: of a container that was killed, or a write whose answer was lost.

        They count as the file's beginning if the last one is what the file has there. Else all of the file follows
        them: rather twice than never.
        """
        listed = [(layout.parse_log_part(self.key(), entry.key), entry) for entry in self.storage.list(self.key())]
        parts = [(part, entry) for part, entry in listed if part is not None and part >= self.part]
        if not parts:
            return
        stored = self.stored + sum(entry.size for _, entry in parts)
        last = next((entry for _, entry in reversed(parts) if entry.size), parts[-1][1])
        if last.size <= PART and os.pread(self.file, last.size, stored - last.size) == self.storage.read(last.key):
            self.stored = stored
        self.part = parts[-1][0] + 1

    def write(self) -> None:
        """Store what the file has more. A process that printed nothing has an empty log."""
        end = os.fstat(self.file).st_size
        while (body := os.pread(self.file, min(PART, max(end - self.stored, 0)), self.stored)) or self.part == 0:
            try:
                self.storage.write(self.key(self.part), body, only_if_absent=True)
                self.part, self.stored = self.part + 1, self.stored + len(body)
            except FileExistsError:
                refused = self.part
                self.catch_up()
                if self.part == refused:
                    raise  # what is there is no object of a log


class Shipper:
    """Writes one log to storage while it grows, and what earlier containers have left."""

    def __init__(self, prefix: str, submission: str, rank: int, file: int, left: list[Path]) -> None:
        self.prefix = prefix
        self.submission = submission
        self.rank = rank
        self.file = file
        self.left = list(left)  # what is not in storage yet
        self.attempt: int | None = None
        self.done = False  # all of it is in storage
        self.ended = threading.Event()
        self._failing: set[str] = set()  # whose failure has been said
        self._storage: Storage | None = None
        self._log: StoredLog | None = None

    def run(self) -> None:
        self._ship_left()
        while not self.ended.wait(EVERY_SECONDS):
            self._safely("the log", self._ship)
            self._ship_left()
        self.done = self._safely("the log", self._ship) and self.attempt is not None
        self._ship_left()

    def missing(self) -> list[str]:
        """The attempts whose logs are not all in storage."""
        own = [] if self.attempt is None or self.done else [f"attempt-{self.attempt}"]
        return [path.parent.name for path in self.left] + own

    def _ship(self) -> None:
        if self.attempt is not None:
            self._log = self._log or self._stored(self.attempt, self.file)
            self._log.write()

    def _ship_left(self) -> None:
        for path in list(self.left):
            if self._safely(f"the log of {path.parent.name}", lambda path=path: self._ship_file(path)):
                self.left.remove(path)

    def _ship_file(self, path: Path) -> None:
        number = _ATTEMPT.fullmatch(path.parent.name)
        if not number:
            return
        try:
            file = path.open("rb", buffering=0)
        except FileNotFoundError:  # its own container's second process was faster
            return
        with file:
            log = self._stored(int(number[1]), file.fileno())
            log.catch_up()
            log.write()
        remove(path)

    def _stored(self, attempt: int, file: int) -> StoredLog:
        return StoredLog(self.storage, self.submission, attempt, self.rank, file)

    @property
    def storage(self) -> Storage:
        if self._storage is None:
            self._storage = open_storage(self.prefix, "CHECKPOINT_BASE_URI")
        return self._storage

    def _safely(self, what: str, action: typing.Callable[[], None]) -> bool:
        try:
            action()
        except Exception as error:  # whatever it is, training goes on
            if what not in self._failing:
                say(f"{what} could not be written: {error}")
            self._failing.add(what)
            return False
        self._failing.discard(what)
        return True


def follow(file: int, told: int, orders: int, parent: int, shipper: Shipper) -> None:
    """Copy the file to the console but for the first `told` bytes, until the process that writes it has ended."""
    shipping = threading.Thread(target=shipper.run, daemon=True)
    shipping.start()
    ended = False
    while True:
        while chunk := os.pread(file, 1024 * 1024, told):
            told += len(chunk)
            console(chunk)
        if ended:
            break
        if select.select([orders], [], [], LOOK_SECONDS)[0]:
            order = os.read(orders, 4096)
            ended = not order
            if order:
                shipper.attempt = int(order.split()[-1])
        # Processes that the parent has forked hold the other end of the pipe too.
        ended = ended or os.getppid() != parent
    shipper.ended.set()
    shipping.join(LAST_SECONDS)
    if missing := shipper.missing():
        say(f"the log of {' and '.join(missing)} could not be stored in time")


def say(line: str) -> None:
    console(f"{line}\n".encode(errors="replace"))


def console(chunk: bytes) -> None:
    with contextlib.suppress(OSError):  # nobody looks at it
        while chunk:
            chunk = chunk[os.write(2, chunk) :]


def remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
        path.parent.rmdir()
