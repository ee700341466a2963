"""The random numbers of this process: where they begin, and how they go on after a restart.

States are tensors and plain values, so that they can be loaded without unpickling anything.
"""

import random
import typing

import numpy
import torch

from training.distributed import World


def begin(seed: int, world: World) -> None:
    """Other numbers in each process, or all of them would drop the same units out."""
    seed = (seed + world.rank) % 2**32  # numpy takes no more
    random.seed(seed)
    numpy.random.seed(seed)  # libraries draw from the global one
    torch.manual_seed(seed)  # of the GPUs too


def state(world: World) -> dict[str, typing.Any]:
    """What restore() needs to go on from here."""
    name, keys, position, has_gauss, cached = numpy.random.get_state()
    version, internal, gauss = random.getstate()
    found = {
        "python": [version, list(internal), gauss],
        "numpy": [str(name), torch.from_numpy(keys.astype("int64")), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
    }
    if world.gpu:
        found["cuda"] = torch.cuda.get_rng_state()
    return found


def of_all(world: World) -> list[dict[str, typing.Any]]:
    """The states of all processes, by rank; together."""
    return [_from_json(body) for body in world.gather(_to_json(state(world)))]


def _to_json(found: dict[str, typing.Any]) -> dict[str, typing.Any]:
    """As state() has it, with its tensors' numbers as lists."""
    name, keys, *rest = found["numpy"]
    plain = {"python": found["python"], "numpy": [name, keys.tolist(), *rest]}
    return plain | {kind: found[kind].tolist() for kind in ("torch", "cuda") if kind in found}


def _from_json(body: dict[str, typing.Any]) -> dict[str, typing.Any]:
    name, keys, *rest = body["numpy"]
    found = {"python": body["python"], "numpy": [name, torch.tensor(keys, dtype=torch.int64), *rest]}
    return found | {kind: torch.tensor(body[kind], dtype=torch.uint8) for kind in ("torch", "cuda") if kind in body}


def of_trainer(found: dict[str, typing.Any]) -> dict[str, typing.Any]:
    """What the transformers Trainer has saved of a process, as state() has it."""
    name, words, *rest = found["numpy"]
    mine = {"python": found["python"], "numpy": [name, words.numbers(), *rest], "torch": found["cpu"]}
    if "cuda" in found:
        of_devices = found["cuda"]  # one, or with several processes all that the process saw
        mine["cuda"] = of_devices[torch.cuda.current_device()] if isinstance(of_devices, list) else of_devices
    return mine


def restore(found: dict[str, typing.Any], world: World) -> None:
    """Go on from what state() has given. Raises ValueError for a position that numpy would believe."""
    version, internal, gauss = found["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = found["numpy"]
    if not 0 <= position <= len(keys):
        raise ValueError(f"{position} is no position among {len(keys)} numbers")  # numpy would read beyond them
    numpy.random.set_state((name, keys.numpy().astype("uint32"), position, has_gauss, cached))
    torch.set_rng_state(found["torch"])
    if world.gpu and "cuda" in found:
        torch.cuda.set_rng_state(found["cuda"])
