"""How many texts a step has, and how a process takes its share of them: in as many at a time as its GPU has room for.

What is chosen stays for a submission, so that a restart has the same bits.
"""

import dataclasses
import json
import logging
import math
import subprocess
import sys
import typing
from collections.abc import Mapping
from pathlib import Path

from training import layout
from training.errors import UserError
from training.settings import Settings
from training.storage import Storage, WithheldError
from training.training_arguments import DEFAULT_OPTIMIZER

COUNTED = ("adamw_torch", "adamw_torch_fused")  # optimizers that keep what training.fit counts
DEFAULT = 4  # texts of a process in a micro-step
LONGEST_LOOK = 600.0  # seconds that looking for a way that fits may take

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chosen:
    """How a process takes its texts of a step, and what that depends on."""

    max_seq_len: int
    precision: str
    sharded: bool
    processes: int
    memory: int | None  # bytes of the smallest GPU; None without GPUs
    texts: int  # of a process in a step, at most
    batch_size: int  # of them in a micro-step
    gradient_checkpointing: bool
    peak: float | None  # bytes of a GPU that are expected; None where nobody could tell


def texts_of_a_step(settings: Settings, processes: int) -> int:
    """Over all processes. Raises UserError for numbers that contradict each other."""
    wanted, size, micro_steps = settings.global_batch_size, settings.batch_size, settings.gradient_accumulation
    if wanted is None:
        return (size or DEFAULT) * (micro_steps or 1) * processes
    if wanted < processes:
        raise UserError(f"global_batch_size {wanted} is less than the {processes} processes, and each needs a text")
    if size and micro_steps and size * micro_steps * processes != wanted:
        raise UserError(
            f"global_batch_size {wanted} is not batch_size {size} x gradient_accumulation {micro_steps} x {processes} "
            "processes: leave one of them out"
        )
    return wanted


def most_at_once(settings: Settings, texts: int, *, gpu: bool) -> int:
    """Texts that a micro-step may have, where memory sets no limit, of `texts` of a process in a step."""
    if settings.batch_size:
        return min(settings.batch_size, texts)
    if settings.gradient_accumulation and settings.global_batch_size:
        return math.ceil(texts / settings.gradient_accumulation)
    return texts if gpu and settings.global_batch_size else min(DEFAULT, texts)


def choose(
    settings: Settings,
    config: str,
    processes: int,
    memory: int | None,
    earlier: Chosen | None = None,
    *,
    ran_out: bool = False,
) -> Chosen:
    """How the processes take their texts; `config` is a folder with the model's config.json.

    What an earlier attempt has taken stays, unless it had other processes, GPUs or settings, or the last attempt
    `ran_out` of memory with it. Raises UserError where nothing fits.
    """
    texts = math.ceil(texts_of_a_step(settings, processes) / processes)
    most = most_at_once(settings, texts, gpu=memory is not None)
    checkpointing = settings.gradient_checkpointing
    plain = Chosen(
        max_seq_len=settings.max_seq_len or 0,
        precision=settings.precision or "fp32",
        sharded=bool(settings.sharded),
        processes=processes,
        memory=memory,
        texts=texts,
        batch_size=most,
        gradient_checkpointing=bool(checkpointing),
        peak=None,
    )
    same = earlier and earlier == dataclasses.replace(
        plain,
        batch_size=min(earlier.batch_size, most),
        gradient_checkpointing=earlier.gradient_checkpointing if checkpointing is None else checkpointing,
        peak=earlier.peak,
    )
    if earlier and same and ran_out:
        return lesser(earlier, checkpointing)
    if earlier and same and (memory is None or earlier.peak is not None):
        return earlier
    if memory is None:
        return plain
    answer = ask(settings, config, processes, memory, texts, most)
    if answer and answer["refusal"] and is_counted(settings):
        raise UserError(f"this training does not fit: {answer['refusal']}")
    if answer is None or answer["refusal"]:
        why = answer["refusal"] if answer else "torch's tracker cannot follow the model"
        size = min(most, settings.batch_size or DEFAULT)
        logger.warning("nobody can tell how much fits (%s): %d texts are taken at a time", why, size)
        return dataclasses.replace(plain, batch_size=size)
    way = answer["chosen"]
    logger.info(
        "a process takes its %d texts of a step in %d micro-steps of %d%s: %.1f GB of a GPU are expected at the peak",
        texts,
        way["micro_steps"],
        way["micro_batch"],
        ", with gradient_checkpointing" if way["gradient_checkpointing"] else "",
        way["peak"] / 1e9,
    )
    return dataclasses.replace(
        plain,
        batch_size=way["micro_batch"],
        gradient_checkpointing=way["gradient_checkpointing"],
        peak=way["peak"],
    )


def lesser(taken: Chosen, checkpointing: bool | None) -> Chosen:
    """A way that takes less memory and has the same mathematics; the same way where there is none."""
    if taken.batch_size > 1:
        # Of as many texts each, since some models weigh micro-steps alike.
        half = math.ceil(taken.batch_size / 2)
        taken = dataclasses.replace(
            taken, batch_size=next(size for size in range(half, 0, -1) if taken.texts % size == 0)
        )
    elif checkpointing is None and not taken.gradient_checkpointing:
        taken = dataclasses.replace(taken, gradient_checkpointing=True)
    else:
        return taken
    logger.warning(
        "the last attempt ran out of memory: this one takes %d texts at a time%s",
        taken.batch_size,
        ", with gradient_checkpointing" if taken.gradient_checkpointing else "",
    )
    return taken


def ask(
    settings: Settings, config: str, processes: int, memory: int, texts: int, most: int
) -> Mapping[str, typing.Any] | None:
    """What training.fit says, from a process of its own, since it belongs to a group of its own; None if it cannot."""
    command = [sys.executable, "-m", "training.fit", config, "--json", "--gpus", str(processes)]
    command += ["--gpu-memory", str(memory / 1e9), "--global-batch-size", str(texts * processes), "--most", str(most)]
    as_wide = "fp32" if settings.precision == "fp32" else "bf16"
    command += ["--max-seq-len", str(settings.max_seq_len), "--precision", as_wide]
    command += ["--sharded", json.dumps(bool(settings.sharded))]
    if settings.gradient_checkpointing is not None:
        command += ["--gradient-checkpointing", json.dumps(settings.gradient_checkpointing)]
    try:
        ended = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=LONGEST_LOOK,
            check=False,
            cwd=Path(__file__).parents[1],
            start_new_session=True,  # a signal to the trainer's group is the trainer's to answer
        )
        return json.loads(ended.stdout.splitlines()[-1])
    except (OSError, ValueError, IndexError, subprocess.TimeoutExpired) as error:
        logger.warning("training.fit gave no answer: %s", error)
        return None


def is_counted(settings: Settings) -> bool:
    """Whether training.fit knows what the optimizer keeps, and how the loss is computed."""
    own = settings.training_arguments
    return own.get("optim", DEFAULT_OPTIMIZER) in COUNTED and not own.get("use_liger_kernel")


def pinned(storage: Storage, submission: str) -> Chosen | None:
    """What an earlier attempt of the submission has taken, if any."""
    try:
        found = Chosen(**json.loads(storage.read(layout.config_keys(submission)[-1]))["batches"])
    except (FileNotFoundError, WithheldError, KeyError, TypeError, ValueError, RecursionError):
        return None
    is_one = type(found.batch_size) is int and found.batch_size > 0 and type(found.gradient_checkpointing) is bool
    return found if is_one else None


def complete(settings: Settings, chosen: Chosen) -> Settings:
    """The settings with all that concerns batches."""
    return dataclasses.replace(
        settings,
        global_batch_size=texts_of_a_step(settings, chosen.processes),
        batch_size=chosen.batch_size,
        gradient_accumulation=math.ceil(chosen.texts / chosen.batch_size),
        gradient_checkpointing=chosen.gradient_checkpointing,
    )
