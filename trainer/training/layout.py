"""Where a run keeps its objects: every key that the trainer reads or writes is built here.

A contract with the control plane: tests/contract/layout.json holds the vectors that both sides run.
Keys are relative to the run's prefix. No heavy imports, so that anything may import it.
"""

import re
import typing

FRAMEWORKS = ("hf", "nemo", "meta")
CHECKPOINTS = "checkpoints/"
MAX_STEP = 10**12 - 1
MAX_ATTEMPT = 10**9 - 1
MAX_LOG_PART_BYTES = 4 * 1024 * 1024

_MARKER = re.compile(r"checkpoints/step-([0-9]{6}|[1-9][0-9]{6,11})\.json")
_ATTEMPT = re.compile(r"attempts/[^/]+/([1-9][0-9]{0,8})")
_LOG_PART = re.compile(r"\.(?:([0-9]{6})|z([0-9]{9}))")
_SUBMISSION = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_FILE = re.compile(rf"checkpoints/(?:checkpoint|step)-([0-9]{{1,12}})/({_SUBMISSION.pattern})-([1-9][0-9]{{0,8}})/.")


def is_submission(value: typing.Any) -> bool:
    return isinstance(value, str) and bool(_SUBMISSION.fullmatch(value))


def run_prefix(checkpoint_base_uri: str, run_id: str, framework: str) -> str:
    return f"{checkpoint_base_uri.rstrip('/')}/{run_id}/framework={framework}"


def marker_key(step: int) -> str:
    """Six digits are a minimum: order steps as integers, never by key."""
    return f"{CHECKPOINTS}step-{step:06d}.json"


def parse_marker_key(key: str) -> int | None:
    """The step, or None for any other key: a step's marker has one key, that of `marker_key`."""
    match = _MARKER.fullmatch(key)
    return int(match[1]) if match else None


def checkpoint_name(framework: str, step: int, *, sharded: bool = False) -> str:
    """A checkpoint's file or folder on a node. The transformers Trainer gives it the same name."""
    match framework:
        case "hf":
            return f"checkpoint-{step}"
        case "meta":
            return f"step-{step:06d}" if sharded else f"step-{step:06d}.pt"
        case "nemo":
            return f"step-{step:06d}" if sharded else f"step-{step:06d}.ckpt"
    raise AssertionError(f"no layout for {framework}")


def step_prefix(framework: str, step: int) -> str:
    """All files that were ever saved under a step."""
    return f"{CHECKPOINTS}{checkpoint_name(framework, step, sharded=True)}/"


def checkpoint_prefix(framework: str, step: int, submission: str, attempt: int) -> str:
    """The files that one attempt saves under a step: no other writer's have their keys."""
    return f"{step_prefix(framework, step)}{submission}-{attempt}/"


def parse_checkpoint_key(framework: str, key: str) -> tuple[int, str] | None:
    """Step and submission of a checkpoint's file, or None for any other key, such as one that is spelt otherwise."""
    match = _FILE.match(key)
    if not match:
        return None
    step, submission, attempt = int(match[1]), match[2], int(match[3])
    return (step, submission) if key.startswith(checkpoint_prefix(framework, step, submission, attempt)) else None


def progress_key(submission: str) -> str:
    return f"progress/{submission}"


def attempts_prefix(submission: str) -> str:
    return f"attempts/{submission}/"


def attempt_key(submission: str, attempt: int) -> str:
    """The ledger's entry of a submission's start, counted from 1; order them as integers."""
    return f"{attempts_prefix(submission)}{attempt}"


def parse_attempt_key(key: str) -> int | None:
    """The attempt's number, or None for any other object below a submission's attempts."""
    match = _ATTEMPT.fullmatch(key)
    return int(match[1]) if match else None


def log_key(submission: str, attempt: int, rank: int, part: int = 0) -> str:
    """A part of what a process printed, counted from 0. The log is the bytes of all parts, in the order of their keys.

    Six digits last 115 days at a part every ten seconds. Behind them come nine with a `z`, which sorts after digits.
    """
    first = f"logs/{submission}/attempt-{attempt}/rank-{rank}.log"
    if part == 0:
        return first
    return f"{first}.{part:06d}" if part < 10**6 else f"{first}.z{part:09d}"


def parse_log_part(first: str, key: str) -> int | None:
    """The number of a log's part by its key and that of part 0, or None for any other object."""
    if key == first:
        return 0
    match = _LOG_PART.fullmatch(key.removeprefix(first)) if key.startswith(first) else None
    if not match:
        return None
    short, long = match.groups()
    part = int(short or long)
    return part if part >= (1 if short else 10**6) else None


def tensorboard_prefix(submission: str) -> str:
    return f"logs/{submission}/tensorboard/"


def model_prefix(submission: str) -> str:
    return f"model/{submission}/"


def config_keys(submission: str) -> list[str]:
    """The configuration of the newest submission, and of this one."""
    return ["config/run.json", f"config/{submission}/run.json"]


def data_key(submission: str) -> str:
    """The objects of the data set that this submission trains on."""
    return f"config/{submission}/data.json"


def owner_key() -> str:
    """Whose the run is; the control plane writes it."""
    return "owner"
