"""What the processes tell each other: real processes over gloo."""

import multiprocessing
import os
import pickle
import socket

import pytest
import torch
import torch.distributed as dist
from pods import same

from training import random_state
from training.distributed import World
from training.errors import RefusedError, StoppedError, SupersededError, UserError
from training.signals import Stop

SIZE = 3


def raises(error):
    raise error


def from_one(world, error):
    return raises(error) if world.rank == 1 else None


def ending(call):
    try:
        call()
    except Exception as error:
        return type(error).__name__, str(error), getattr(error, "cause", None)


def talk(world):
    """All that they tell each other, as one of them hears it."""
    random_state.begin(5, world)
    mine = random_state.state(world)
    states = random_state.of_all(world)
    with world.node_directory() as directory:
        return {
            "values": world.gather({"é" * world.rank: [world.rank, None, 0.1, float("nan") if world.rank else 1]}),
            "tuple": world.gather((1, "a")),
            "zero": world.on_rank_zero(lambda: {"rank": world.rank}),
            "all": world.agreed(lambda: world.rank),
            "refused": ending(lambda: world.on_rank_zero(lambda: raises(RefusedError("storage", "why")))),
            "superseded": ending(lambda: world.on_rank_zero(lambda: raises(SupersededError("why")))),
            "stopped": ending(lambda: world.on_rank_zero(lambda: raises(StoppedError()))),
            "user": ending(lambda: world.agreed(lambda: from_one(world, UserError("why")))),
            "directory": str(directory),
            "states": [len(states), same(states[world.rank], mine), same(states[0], states[1])],
            "dtypes": [str(states[0]["numpy"][1].dtype), str(states[0]["torch"].dtype)],
        }


def process(rank, port, results):
    """One of the processes; in it nothing can be unpickled while they talk."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    dist.init_process_group("cpu:gloo", rank=rank, world_size=SIZE)
    world = World(rank=rank, size=SIZE, local_rank=rank, node=0, gpu=False, stop=Stop())
    with pytest.MonkeyPatch.context() as patch:

        def unpickle(*_, **__):
            raise AssertionError("a process was sent a pickle")

        patch.setattr(pickle, "loads", unpickle)
        patch.setattr("torch.distributed.distributed_c10d._unpickler", unpickle)
        heard = talk(world)
    results.put((rank, heard))
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def heard():
    """By each process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=process, args=(rank, port, results), daemon=True) for rank in range(SIZE)]
    for one in processes:
        one.start()
    found = dict(results.get(timeout=120) for _ in processes)
    for one in processes:
        one.join(timeout=60)
    return [found[rank] for rank in range(SIZE)]


def test_all_hear_everybody(heard):
    for found in heard:
        one, *others = found["values"]
        assert one == {"": [0, None, 0.1, 1]}
        assert [list(other) for other in others] == [["é"], ["éé"]]
        assert found["tuple"] == [[1, "a"]] * SIZE
        assert (found["zero"], found["all"]) == ({"rank": 0}, [0, 1, 2])
        assert found["directory"] == heard[0]["directory"]


def test_an_exception_of_one_sentence_reaches_all(heard):
    stopped = "told to stop by SIGTERM before the first step"
    for found in heard:
        assert found["refused"] == ("RefusedError", "why", "storage")
        assert found["superseded"] == ("SupersededError", "why", "superseded")
        assert found["stopped"] == ("StoppedError", stopped, "preempted")
        assert found["user"] == ("UserError", "why", "user_error")


def test_random_states_come_as_they_are(heard):
    for found in heard:
        assert found["states"] == [SIZE, True, False], "the own one is the same, another's is another"
        assert found["dtypes"] == ["torch.int64", "torch.uint8"]


def test_what_is_no_json_is_not_told():
    alone = World(rank=0, size=1, local_rank=0, node=0, gpu=False, stop=Stop())
    with pytest.raises(TypeError):
        alone.gather(torch.ones(1))
