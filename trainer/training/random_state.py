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


def restore(found: dict[str, typing.Any], world: World) -> None:
    version, internal, gauss = found["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = found["numpy"]
    numpy.random.set_state((name, keys.numpy().astype("uint32"), position, has_gauss, cached))
    torch.set_rng_state(found["torch"])
    if world.gpu and "cuda" in found:
        torch.cuda.set_rng_state(found["cuda"])
