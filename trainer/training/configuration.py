"""The settings as a submission uses them: what model and machine leave open is filled in, checked and written down."""

import dataclasses
import json
import typing

from training import layout
from training.batch_sizes import Chosen
from training.errors import UserError
from training.job import Job
from training.owner import Owner
from training.settings import Settings, unsplit
from training.storage import Storage

if typing.TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from training.distributed import World

LONGEST = 2048  # tokens of a text, where neither the job nor the model says


def agree(settings: Settings, world: "World") -> Settings:
    """Rank 0's settings for all; together. A config file may have changed between two ranks' reading."""
    return Settings(**world.on_rank_zero(lambda: dataclasses.asdict(settings)))


def on_these_processes(settings: Settings, framework: str, world: "World") -> Settings:
    """The settings with precision and sharded, which depend on machine and processes. Raises UserError."""
    import torch

    bf16 = world.gpu and torch.cuda.is_bf16_supported()
    precision = settings.precision or ("bf16" if bf16 else "fp32")
    if precision == "fp16" and not world.gpu:
        raise UserError("precision fp16 needs a GPU; bf16 and fp32 do not")
    if precision == "bf16" and world.gpu and not bf16:
        raise UserError("precision bf16 is not supported by this GPU")
    sharded = settings.sharded
    if sharded is None:
        sharded = world.size > 1 and (framework == "meta" or not unsplit(settings))
    return dataclasses.replace(settings, precision=precision, sharded=sharded)


def complete(settings: Settings, config: "PreTrainedConfig") -> Settings:
    """The settings with max_seq_len, which depends on the model. Raises UserError."""
    return dataclasses.replace(settings, max_seq_len=longest(config, settings.max_seq_len))


def longest(config: "PreTrainedConfig", asked: int | None) -> int:
    """How many tokens a text may have. Raises UserError where the model has fewer positions than are asked for."""
    limit = getattr(config, "max_position_embeddings", None)
    limit = limit if isinstance(limit, int) and limit > 0 else None  # -1 in those that have no limit
    if limit and asked and asked > limit:
        raise UserError(f"max_seq_len {asked} is beyond the {limit} positions of the model")
    return asked or min(limit or LONGEST, LONGEST)


def write(storage: Storage, job: Job, settings: Settings, world: "World", total: int, chosen: Chosen | None) -> None:
    """What this submission trains, and how, with every default spelled out. Raises SupersededError."""
    Owner(storage, job.submission, world.attempt).check()  # data and model may have taken long to load
    body = dataclasses.asdict(dataclasses.replace(job, settings=settings)) | {
        "world_size": world.size,
        "total_steps": total,
        "batches": dataclasses.asdict(chosen) if chosen else None,
    }
    for key in layout.config_keys(job.submission):
        storage.write(key, json.dumps(body, indent=2).encode())
