"""SIGTERM: the first one asks a process to stop, the second one ends it where it is."""

import os
import signal
import threading
import time

from training.errors import STOPPED

GRACE = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"  # the seconds after which torchrun kills what it has told to stop


class Stop(threading.Event):
    """Set when this process is told to stop. It remembers when that was."""

    def __init__(self, grace: float | None = None) -> None:
        """`grace` is how long the process may go on after that, in seconds; None where nobody says."""
        super().__init__()
        self.grace = grace
        self.deadline: float | None = None  # by time.monotonic()

    def set(self) -> None:
        if self.grace is not None and self.deadline is None:
            self.deadline = time.monotonic() + self.grace
        super().set()

    def left(self) -> float | None:
        """Seconds until the process is killed; None where nobody knows, or nobody has told it to stop."""
        return None if self.deadline is None else self.deadline - time.monotonic()


def stop_at_sigterm() -> Stop:
    """Set at the first SIGTERM from now on, so that the work can be saved.

    A handler of Python's runs only when the main thread is back from what it waits for in C, another process perhaps.
    So a thread of its own is told, by a pipe into which Python writes each signal's number at once.
    """
    grace = os.environ.get(GRACE, "")
    stop = Stop(float(grace) if grace.isdecimal() else None)
    told, tell = os.pipe()
    os.set_blocking(tell, False)
    signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    # torchrun tells the whole process group, so also a child that still has this pipe: that would be the second one.
    os.register_at_fork(before=_block, after_in_parent=_unblock, after_in_child=_forget)

    def listen() -> None:
        while True:
            for number in os.read(told, 1024):
                if number == signal.SIGTERM and stop.is_set():
                    os._exit(STOPPED)
                elif number == signal.SIGTERM:
                    stop.set()

    threading.Thread(target=listen, name="signals", daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: None)  # or it would end the process, and tell nobody
    return stop


def _block() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])


def _unblock() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])


def _forget() -> None:
    signal.set_wakeup_fd(-1)
    _unblock()
