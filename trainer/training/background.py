"""Work in a thread of its own."""

import concurrent.futures
import sys
import threading
import typing
from collections.abc import Callable


def in_background(function: Callable[[], typing.Any]) -> "concurrent.futures.Future[typing.Any]":
    """Its result, to come. Unlike a pool's, the thread never keeps a failed process from ending."""
    future: concurrent.futures.Future[typing.Any] = concurrent.futures.Future()
    # A new thread would take the first GPU, and what it asks of CUDA would cost another process's memory.
    torch: typing.Any = sys.modules.get("torch")
    device = torch.cuda.current_device() if torch and torch.cuda.is_initialized() else None

    def run() -> None:
        try:
            if device is not None:
                torch.cuda.set_device(device)
            future.set_result(function())
        except BaseException as error:  # also what ends a thread: whoever waits must hear of it
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future
