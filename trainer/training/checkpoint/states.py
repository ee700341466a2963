"""What training changes, as a checkpoint holds it: weights, and by their names what the optimizer keeps of each.

Where the weights are split over the processes, each process has and writes its own part of a folder of
torch.distributed.checkpoint, and any number of processes reads that. A checkpoint of either form, whole or in parts, is
resumed by a training of either form.
"""

import typing
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from training import untrusted
from training.errors import UserError

State = dict[str, typing.Any]


def weights(network: nn.Module) -> State:
    """This process's part of the weights on its CPU; together. Where it trains there, training changes them."""
    return get_model_state_dict(network, options=StateDictOptions(cpu_offload=True))


def moments(network: nn.Module, optimizer: Optimizer) -> State:
    """This process's part of what the optimizer keeps on its CPU; together. As with weights()."""
    return get_optimizer_state_dict(network, optimizer, options=StateDictOptions(cpu_offload=True))


def copied(value: typing.Any, *, of_gpu: bool = False) -> typing.Any:
    """A copy with tensors of its own on the CPU, which training does not change.

    `of_gpu` says that weights and moments are copies already, brought from a GPU; counts of steps may not be.
    """
    if isinstance(value, torch.Tensor):
        if value.device.type != "cpu":
            return value.detach().cpu()
        return value if of_gpu and value.numel() > 1 else value.detach().clone()
    if isinstance(value, Mapping):
        return {key: copied(item, of_gpu=of_gpu) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(copied(item, of_gpu=of_gpu) for item in value)
    return value


def group() -> "dist.ProcessGroup | None":
    """The processes as those who write beside the training, whose messages must not mix with its own; together."""
    return dist.new_group(backend="gloo") if dist.is_initialized() else None


def write_parts(state: State, folder: Path, among: "dist.ProcessGroup | None") -> None:
    """Write this process's part of a state to a folder; together. Returns when all of them have written."""
    folder.mkdir(parents=True, exist_ok=True)
    dcp.save(state, storage_writer=dcp.FileSystemWriter(folder), process_group=among)


# === what a training resumes ===


def read_weights(network: nn.Module, folder: Path, key: str, fetch: untrusted.Fetch) -> None:
    """Fill the weights, whole or in parts, from what a folder has under that key; together. Raises UserError."""
    state = {key: get_model_state_dict(network)}
    untrusted.load_sharded(state, folder, fetch)
    set_model_state_dict(network, state[key])


def read_moments(network: nn.Module, optimizer: Optimizer, folder: Path, key: str, fetch: untrusted.Fetch) -> None:
    """As read_weights(), of what the optimizer keeps."""
    state = {key: get_optimizer_state_dict(network, optimizer)}
    metadata = untrusted.read_metadata(folder)
    check_same_moments(optimizer, moments_in(metadata, key), names_of(state[key]))
    leave_out_untrained(state[key], metadata, key)
    untrusted.load_sharded(state, folder, fetch)
    set_optimizer_state_dict(network, optimizer, state[key], options=StateDictOptions(strict=False))


def leave_out_untrained(state: State, metadata: Metadata, key: str) -> None:
    """Leave out the weights of which a folder has no moments: none of the steps before it had gradients of them."""
    saved = tuple(metadata.state_dict_metadata)
    of_weights = state["state"]
    for name in list(of_weights):
        if not any(entry.startswith(f"{key}.state.{name}.") for entry in saved):
            del of_weights[name]


def set_weights(network: nn.Module, found: Mapping[str, typing.Any]) -> None:
    """Take whole weights; together where they are split, and then each process has them all."""
    set_model_state_dict(network, dict(found), options=StateDictOptions(full_state_dict=True))


def set_moments(network: nn.Module, optimizer: Optimizer, found: Mapping[str, typing.Any]) -> None:
    """Take the whole state_dict() of an optimizer that was made in the same way for the same weights; as set_weights().

    Raises UserError for another optimizer's.
    """
    if not any(isinstance(weight, DTensor) for weight in network.parameters()):
        optimizer.load_state_dict(dict(found))
        return
    theirs = names_of(found)
    if not theirs and not optimizer.state:
        return  # as sgd, which keeps nothing
    check_same_moments(optimizer, theirs, names_of(get_optimizer_state_dict(network, optimizer)))
    whole = by_name(found, network, optimizer)
    set_optimizer_state_dict(network, optimizer, whole, options=StateDictOptions(full_state_dict=True, strict=False))
    forget_untrained(network, optimizer, whole)


def forget_untrained(network: nn.Module, optimizer: Optimizer, found: Mapping[str, typing.Any]) -> None:
    """Take away the zeros that torch gives to weights of which a state, by their names, has nothing."""
    for name, weight in network.named_parameters():
        if name not in found["state"]:
            optimizer.state.pop(weight, None)


def by_name(found: Mapping[str, typing.Any], network: nn.Module, optimizer: Optimizer) -> State:
    """An optimizer's state_dict(), which counts the weights, with the weights' names in the place of the numbers."""
    names = {id(weight): name for name, weight in network.named_parameters()}
    state: State = {}
    groups = []
    for saved, mine in zip(found["param_groups"], optimizer.param_groups, strict=True):
        of_group = [names[id(weight)] for weight in mine["params"]]
        for number, name in zip(saved["params"], of_group, strict=True):
            if number in found["state"]:
                state[name] = found["state"][number]
        groups.append({key: value for key, value in saved.items() if key != "params"} | {"params": of_group})
    return {"state": state, "param_groups": groups}


def names_of(state: Mapping[str, typing.Any]) -> set[str]:
    """What an optimizer keeps of its weights, of a state by their names."""
    return {name for of_weight in state["state"].values() for name in of_weight}


def moments_in(metadata: Metadata, key: str) -> set[str]:
    """What the optimizer kept that wrote a folder's state under that key."""
    prefix = f"{key}.state."
    return {name.rpartition(".")[2] for name in metadata.state_dict_metadata if name.startswith(prefix)}


def check_same_moments(optimizer: Optimizer, theirs: Iterable[str], mine: Iterable[str]) -> None:
    """Raises UserError where a checkpoint's state is another optimizer's."""
    theirs, mine = set(theirs), set(mine)
    if theirs != mine:
        raise other_optimizer(optimizer, theirs)


def other_optimizer(optimizer: Optimizer, moments: Iterable[str]) -> UserError:
    return UserError(
        f"optim is {type(optimizer).__name__}, and the step from which this job goes on was saved by another "
        f"optimizer, which keeps {', '.join(sorted(moments))}: keep its optim, or submit the job without resume"
    )
