"""The random numbers of this process: where they begin, and how they go on after a restart.

States are tensors and plain values, so that they can be loaded without unpickling anything.
"""

import random
import struct
import typing

import numpy
import torch

from training.distributed import World
from training.errors import UserError

NUMBERS = 624  # of the Mersenne Twister that torch has on the CPU, before it makes new ones
_TORCH = struct.Struct("=QiiQ")  # how its state begins: the seed, how many are left, whether seeded, the next one


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
    """Go on from what state() has given. Raises UserError for a position beyond its numbers: that would be believed."""
    version, internal, gauss = found["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = found["numpy"]
    if not 0 <= position <= len(keys):
        raise refusal(f"numpy's is at position {position} of {len(keys)} numbers")
    numpy.random.set_state((name, keys.numpy().astype("uint32"), position, has_gauss, cached))
    check_torch(found["torch"])
    torch.set_rng_state(found["torch"])
    if world.gpu and "cuda" in found:
        torch.cuda.set_rng_state(found["cuda"])


def check_torch(found: typing.Any) -> None:
    """Raises UserError for a state that torch's generator on the CPU cannot have come to."""
    own = torch.get_rng_state()
    if not isinstance(found, torch.Tensor) or (found.dtype, found.shape) != (own.dtype, own.shape):
        raise refusal("torch's is of another form")
    _, left, seeded, position = _TORCH.unpack_from(found.contiguous().numpy())
    # One is left before the first is drawn, and from then on both count: only `left` tells torch where its numbers end.
    if seeded != 1 or not ((left, position) == (1, 0) or (1 <= left <= NUMBERS and left + position == NUMBERS + 1)):
        raise refusal(f"torch's is at position {position} of {NUMBERS} numbers with {left} left")


def refusal(why: str) -> UserError:
    return UserError(
        f"the checkpoint's state of random numbers is invalid: {why}; find out who else can write such files, "
        "and submit the job again from another step or without resuming"
    )
