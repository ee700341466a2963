"""Why a process ended, as one line of the container's termination message, which the pod's status shows.

Each failing process appends a line of JSON. The kubelet keeps the last 4096 bytes, so a line is short.
"""

import json
import os
from pathlib import Path

from training import errors

LONGEST = 1024  # bytes of a line
KUBELETS = "/dev/termination-log"

HINTS = {
    errors.OUT_OF_MEMORY: "out of memory; lower batch_size or max_seq_len, or say gradient_checkpointing true: ",
    errors.STORAGE: "reading or writing objects failed, also after retries: ",
}


def sentence(error: BaseException) -> str:
    """What a person is told about an exception."""
    if isinstance(error, errors.KnownError | errors.PeerLostError):
        return str(error)
    if errors.is_consequence(error):
        return "another process of the job ended first; its line or its log says why"
    if errors.is_disk_full(error):
        from training.disk import Disk

        return f"{Disk.here().state()}: {_said(error)}"
    return HINTS.get(errors.cause_of(error), "") + _said(error)


def _said(error: BaseException) -> str:
    """The first line of an exception, and its type."""
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {said}".removesuffix(": ")


def leave(cause: str, rank: int, message: str, *, consequence: bool = False) -> None:
    """Append the line, if there is a file for it. A process's end must not fail because of it."""
    path = os.environ.get("TERMINATION_LOG") or KUBELETS
    if not Path(path).exists():
        return
    try:
        file = os.open(path, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(file, line(cause, rank, message, consequence=consequence))
        finally:
            os.close(file)
    except OSError:
        pass


def line(cause: str, rank: int, message: str, *, consequence: bool = False) -> bytes:
    """`consequence` marks what only follows from another process's end."""
    body: dict[str, str | int | bool] = {"cause": cause, "rank": rank, "message": " ".join(message.split())}
    if consequence:
        body["consequence"] = True
    while True:
        text = json.dumps(body, ensure_ascii=False).encode(errors="replace") + b"\n"
        if len(text) <= LONGEST:
            return text
        # A character has at most six bytes in JSON; it ends where it fits.
        body["message"] = str(body["message"])[: -max(1, (len(text) - LONGEST) // 6) - 1].removesuffix("…") + "…"
