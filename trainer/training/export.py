"""The trained model as a Hugging Face folder, which is what a submission has made in the end.

Weights are written in the numbers that the model came with, and in files of at most 5 GB. Each file is gathered by one
process, which writes and uploads it while others do theirs: no process ever has the whole of a large model.
"""

import concurrent.futures
import json
import logging
import os
import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.distributed.tensor import DTensor
from transformers.core_model_loading import revert_weight_conversion

from training import layout
from training.background import in_background
from training.disk import Disk
from training.distributed import World
from training.model import OWN_NUMBERS
from training.storage import Storage

if typing.TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LARGEST = 5 * 10**9  # bytes of a file; one with a larger layer has only that
WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
LAYER = re.compile(r".*?\.[0-9]+(?=\.)")  # begins the names of a layer's weights

Kinds = Mapping[str, torch.dtype]  # by the weight's name

logger = logging.getLogger(__name__)


def export(
    network: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    folder: Path,
    storage: Storage,
    submission: str,
    world: World,
) -> None:
    """Write and upload the model; together. `folder` is the processes' of a node."""
    weights = state(network)
    own, kinds = own_numbers(network, weights, world)
    sizes = {name: weight.numel() * kinds[name].itemsize for name, weight in weights.items()}
    files = shared_out(sizes, LARGEST)
    prefix = layout.model_prefix(submission)

    def write(number: int, part: dict[str, torch.Tensor]) -> Sequence[str]:
        """Returns the names that the weights have in the file, which may be others than while they are trained."""
        saved = revert_weight_conversion(network, part)
        path = folder / name_of(number, len(files))
        Disk.here().require(sum(weight.nbytes for weight in saved.values()), "the exported model")
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: weight.contiguous() for name, weight in saved.items()}, path, {"format": "pt"})
        storage.upload(path, prefix + path.name)
        path.unlink()
        return list(saved)

    written: dict[int, concurrent.futures.Future[Sequence[str]]] = {}  # by this process
    of_node = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    nodes = max(world.size // of_node, 1)
    for number, names in enumerate(files):
        # A node's processes have files when all other nodes have one: they are in its memory and on its disk.
        mine = number % nodes * of_node + number // nodes % of_node == world.rank
        if mine:
            concurrent.futures.wait(written.values())  # it has one file at a time
        part = {name: gathered(weights[name], kinds[name], keep=mine) for name in names}
        if mine:
            written[number] = in_background(lambda number=number, part=part: write(number, part))
    world.together(lambda: [names.result() for names in written.values()])
    found = world.gather({name: number for number, names in written.items() for name in names.result()})

    def describe() -> None:
        target = folder / "description"
        network.config.save_pretrained(target)
        settle(target / "config.json", own)
        if network.can_generate():
            network.generation_config.save_pretrained(target)
        tokenizer.save_pretrained(target)
        if len(files) > 1:
            places = {name: name_of(number, len(files)) for names in found for name, number in names.items()}
            index = {"metadata": {}, "weight_map": dict(sorted(places.items()))}
            (target / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        for path in sorted(path for path in target.rglob("*") if path.is_file()):  # chat templates have a folder
            storage.upload(path, prefix + path.relative_to(target).as_posix())

    world.together(lambda: describe() if world.rank == 0 else None)
    logger.info("exported the model to %s", prefix)


def state(network: "PreTrainedModel") -> dict[str, torch.Tensor]:
    """What a file of the model has, whole or this process's part of it; of tied weights there is one copy."""
    own = {name for name, _ in network.named_parameters()}
    again = {name for name, _ in network.named_parameters(remove_duplicate=False)} - own
    again |= set(network._keys_to_ignore_on_save or ())
    return {name: weight for name, weight in get_model_state_dict(network).items() if name not in again}


def own_numbers(
    network: "PreTrainedModel", weights: Mapping[str, torch.Tensor], world: World
) -> tuple[torch.dtype, Kinds]:
    """The numbers that the model came with, and those of each weight; together.

    They stay fp32 where fp16 is too narrow for what the weights have become.
    """
    own = getattr(torch, getattr(network.config, OWN_NUMBERS, "float32"))
    kinds = {name: kind_of(network, name, weight, own) for name, weight in weights.items()}
    if own == torch.float16 and world.any(not fit(weights, kinds))[0]:
        logger.warning("the weights have grown beyond fp16, in which the model came: they are exported in fp32")
        return torch.float32, {name: weight.dtype for name, weight in weights.items()}
    return own, kinds


def kind_of(network: "PreTrainedModel", name: str, weight: torch.Tensor, own: torch.dtype) -> torch.dtype:
    """transformers keeps some weights in fp32, whatever the others are."""
    always = set(network._keep_in_fp32_modules_strict or ())
    if own == torch.float16:
        always |= set(network._keep_in_fp32_modules or ())
    if not weight.dtype.is_floating_point or any(re.search(rf"(^|\.){module}($|\.)", name) for module in always):
        return weight.dtype
    return own


def fit(weights: Mapping[str, torch.Tensor], kinds: Kinds) -> bool:
    """Whether the parts that this process has are finite in those numbers."""
    parts = (
        (weight.to_local() if isinstance(weight, DTensor) else weight, kinds[name]) for name, weight in weights.items()
    )
    return all(bool(part.to(kind).isfinite().all()) for part, kind in parts)


def shared_out(sizes: Mapping[str, int], largest: int) -> list[list[str]]:
    """The names of each file's weights, in their order. A layer is in one file: its weights may be saved as one."""
    files: list[list[str]] = [[]]
    room = largest
    for names in by_layer(sizes):
        size = sum(sizes[name] for name in names)
        if size > room and files[-1]:
            files.append([])
            room = largest
        files[-1] += names
        room -= size
    return files


def by_layer(names: Iterable[str]) -> Iterable[list[str]]:
    layers: dict[str, list[str]] = {}
    for name in names:
        found = LAYER.match(name)
        layers.setdefault(found[0] if found else name, []).append(name)
    return layers.values()


def gathered(weight: torch.Tensor, kind: torch.dtype, *, keep: bool) -> torch.Tensor:
    """A whole weight on the CPU of the processes that `keep` it; together where it is split."""
    whole = weight.full_tensor() if isinstance(weight, DTensor) else weight
    return whole.to("cpu", kind) if keep else torch.empty(0)


def name_of(number: int, files: int) -> str:
    """As transformers names its files."""
    return WHOLE if files == 1 else f"model-{number + 1:05d}-of-{files:05d}.safetensors"


def settle(config: Path, own: torch.dtype) -> None:
    """Say in a config.json what numbers its weights are, also of the parts of a model."""
    name = str(own).removeprefix("torch.")
    body = json.loads(config.read_text(encoding="utf-8"))
    body.pop(OWN_NUMBERS, None)
    body["dtype"] = name
    for part in body.values():
        if isinstance(part, dict) and "dtype" in part:
            part["dtype"] = name
    config.write_text(json.dumps(body, indent=2, sort_keys=True) + "\n", encoding="utf-8")
