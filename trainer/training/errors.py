"""Why an attempt ends: the exceptions that have a cause of their own, and the cause of all others.

The causes are the ledger's, see attempts.py.
"""

import errno
import re

CRASH = "crash"
FINISHED = "finished"
OUT_OF_MEMORY = "out_of_memory"
PREEMPTED = "preempted"
STORAGE = "storage"
SUPERSEDED = "superseded"
USER_ERROR = "user_error"
CAUSES = (FINISHED, USER_ERROR, OUT_OF_MEMORY, STORAGE, CRASH, PREEMPTED, SUPERSEDED)

# The exit code of a run that was told to stop: 128 + SIGTERM. Never 0, or a job that was cut short would count as done.
STOPPED = 143

# What torch says, in an exception of no type of its own, where memory runs out.
_OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED")
# What gloo and NCCL say where another process has gone. They name no type either.
_PEER_LOST = re.compile(
    r"(gloo|sendBytes|recvBytes|recvValue).*(closed|reset|refused|broken pipe|timed? ?out)"
    r"|remote process exited|communicator was aborted|connection was likely closed",
    re.I | re.S,
)
# What torch says of the machine, of a loader's worker that was killed, and of other processes.
_OF_THE_MACHINE = re.compile(
    r"\b(CUDA|NCCL|NVML|gloo|shm)\b|CUBLAS_|CUDNN|NVIDIA driver|DataLoader worker|shared memory|start new thread", re.I
)
_SHARED_MEMORY = re.compile(r"/dev/shm|</torch_|shared memory", re.I)
MOST_SAID = 400  # characters of a library's message
_FULL = (errno.ENOSPC, errno.EDQUOT)
# What safetensors and torch's writer in C++ make of them.
_DISK_FULL = re.compile(r"No space left on device|Disk quota exceeded|inline_container\.cc.*unexpected pos")


class KnownError(Exception):
    """Has nothing wrong inside: one sentence and no traceback.

    Known to rank 0 alone, it ends the other processes too: see World.on_rank_zero.
    """

    cause: str


class UserError(KnownError, ValueError):
    """What the person who submitted the job can mend. The sentence names the setting at fault."""

    cause = USER_ERROR


class StoppedError(KnownError):
    """Told to stop before there was anything to save."""

    cause = PREEMPTED

    def __str__(self) -> str:
        return "told to stop by SIGTERM before the first step"


class SupersededError(KnownError):
    """The run belongs to another submission now. To start again would not change that."""

    cause = SUPERSEDED


class DiskFullError(KnownError):
    """There is no room for what comes next. The sentence says for what, how much it is, and where."""

    cause = STORAGE


class RefusedError(KnownError):
    """Another start would end as the earlier ones did. The cause is theirs."""

    def __init__(self, cause: str, message: str) -> None:
        super().__init__(message)
        self.cause = cause


class StorageError(OSError):
    """The bucket or folder does not do what it was asked, also after retries."""


class AccessDeniedError(StorageError, PermissionError):
    """It is there, or may be, and this job has no access."""


class PeerLostError(RuntimeError):
    """Another process of the job is gone. Why, only that one knows."""


class CheckpointError(Exception):
    """A process could not write or read its part of a sharded checkpoint, and all of them know."""

    def __init__(self, rank: int, error: BaseException) -> None:
        super().__init__(f"rank {rank}: {type(error).__name__}: {error}")
        self.error = error


_TRAVELLING = {kind.__name__: kind for kind in (UserError, StoppedError, SupersededError, DiskFullError, RefusedError)}


def to_json(error: KnownError) -> dict[str, str]:
    """What another process needs to raise it too."""
    kind = type(error).__name__
    assert _TRAVELLING.get(kind) is type(error), f"{kind} is none that travels"
    return {"error": kind, "cause": error.cause, "message": str(error)}


def from_json(body: dict[str, str]) -> KnownError:
    """The exception of another process. Raises KeyError or ValueError for what is none."""
    kind = _TRAVELLING[body["error"]]
    if kind is RefusedError:
        if body["cause"] not in CAUSES:
            raise ValueError(f"no cause: {body['cause']!r}")
        return RefusedError(body["cause"], body["message"])
    return kind(body["message"])


def cause_of(error: BaseException) -> str:
    """The cause that an exception means."""
    if isinstance(error, CheckpointError):
        return cause_of(error.error)
    if isinstance(error, KnownError):
        return error.cause
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error))):
        return OUT_OF_MEMORY
    if isinstance(error, StorageError) or (isinstance(error, OSError) and error.errno in _FULL):
        return STORAGE
    if _DISK_FULL.search(str(error)):
        return STORAGE
    return CRASH


def is_disk_full(error: BaseException) -> bool:
    """Whether a disk has no room. Shared memory, which torch names so too, is none."""
    if isinstance(error, CheckpointError):
        return is_disk_full(error.error)
    full = (isinstance(error, OSError) and error.errno in _FULL) or bool(_DISK_FULL.search(str(error)))
    return full and not _SHARED_MEMORY.search(str(error))


def is_consequence(error: BaseException) -> bool:
    """Whether a process ends only because another one did."""
    if isinstance(error, CheckpointError):
        return is_consequence(error.error)
    return isinstance(error, PeerLostError) or (
        isinstance(error, RuntimeError) and cause_of(error) == CRASH and bool(_PEER_LOST.search(str(error)))
    )


def is_of_what_was_asked(error: BaseException) -> bool:
    """Whether it may come from what the job was given, and would then come at each start: nothing else explains it."""
    if cause_of(error) != CRASH or is_consequence(error):
        return False
    kinds = {kind.__module__ for kind in type(error).__mro__}
    if any(kind.startswith("torch.distributed") for kind in kinds) or type(error).__name__ == "AcceleratorError":
        return False
    return not (isinstance(error, RuntimeError) and _OF_THE_MACHINE.search(str(error)))


def said_of(error: BaseException) -> str:
    """What an exception of a library says, in a line: its first paragraph, and its type where that is all it tells."""
    first = str(error).strip().partition("\n\n")[0]
    words = " ".join(line.strip() for line in first.splitlines())
    if len(words) > MOST_SAID:
        words = words[:MOST_SAID].rstrip() + " ..."
    return f"{type(error).__name__}: {words}" if isinstance(error, LookupError) or " " not in words else words
