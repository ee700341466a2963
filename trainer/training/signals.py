"""SIGTERM: the first one asks a process to stop, the second one ends it where it is."""

import os
import signal
import threading

from training.errors import STOPPED


def stop_at_sigterm() -> threading.Event:
    """Set at the first SIGTERM from now on, so that the work can be saved.

    A handler of Python's runs only when the main thread is back from what it waits for in C, another process perhaps.
    So a thread of its own is told, by a pipe into which Python writes each signal's number at once.
    """
    stop = threading.Event()
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
