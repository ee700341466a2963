"""The processes of a job: who they are, and the few things that they agree on.

What they tell each other is numbers and JSON. Nothing that a process says can make another one run something.
Agreement runs over gloo on the CPU also where training runs over NCCL, so that asking each step costs the GPU nothing.
"""

import concurrent.futures
import contextlib
import dataclasses
import datetime
import json
import logging
import os
import time
import typing
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from training import errors, work
from training.background import in_background
from training.errors import CheckpointError, KnownError, PeerLostError, StoppedError, UserError
from training.place import Place
from training.signals import Stop

logger = logging.getLogger(__name__)

# torchrun starts the processes once every node has joined, so they differ by their imports' time only.
MEET_WITHIN = datetime.timedelta(seconds=60)
MEET_WITHIN_WHEN_STOPPED = datetime.timedelta(seconds=5)
LOOK_SECONDS = 0.05
LONGEST_LOOK_SECONDS = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class World:
    rank: int
    size: int
    local_rank: int
    node: int
    gpu: bool
    stop: Stop  # this process was told to stop; ask any(), since all have to stop at the same step
    attempt: int = 1  # which start of its submission this is, as the ledger counts: the same for all processes

    def barrier(self) -> None:
        self.total([0.0])

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether some process has it."""
        return tuple(count > 0 for count in self.total([float(flag) for flag in flags]))

    def total(self, numbers: list[float]) -> list[float]:
        """For each number, its sum over all processes."""
        if self.size == 1:
            return numbers
        tensor = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(tensor)
        return tensor.tolist()

    def gather(self, value: typing.Any) -> list[typing.Any]:
        """Everybody's value, by rank, as JSON brings it: a tuple comes as a list, and a key as text."""
        body = json.dumps(value).encode()
        return [json.loads(body) for body in (self._gather_bytes(body) if self.size > 1 else [body])]

    def _gather_bytes(self, body: bytes) -> list[bytes]:
        lengths = [int(length) for length in self._gather_tensors(torch.tensor([len(body)]))]
        padded = torch.frombuffer(bytearray(body.ljust(max(lengths))), dtype=torch.uint8)
        bodies = self._gather_tensors(padded)
        return [padded.numpy()[:length].tobytes() for padded, length in zip(bodies, lengths, strict=True)]

    def _gather_tensors(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        tensors = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(tensors, tensor)
        return tensors

    def on_rank_zero(self, function: Callable[[], typing.Any]) -> typing.Any:
        """Call it on rank 0; everybody waits for its answer, or for its KnownError and raises it too.

        The answer is as gather() brings it.
        """
        return _heard(self.gather(_told(function) if self.rank == 0 else None)[0])

    def agreed(self, function: Callable[[], typing.Any]) -> list[typing.Any]:
        """Everybody calls it; everybody's answers, by rank, or somebody's KnownError, which all of them raise.

        The answers are as gather() brings them.

        For what comes before training: when somebody is told to stop meanwhile, all leave it and raise StoppedError.
        """
        return [_heard(told) for told in self.gather(self.together(lambda: _told(function), unless_stopped=True))]

    def together(self, function: Callable[[], typing.Any], *, unless_stopped: bool = False) -> typing.Any:
        """Everybody calls it, for as long as it takes, and goes on with its own answer when all have theirs.

        Its exception is raised at once, and the others lose a peer. In a collective call nobody could wait for longer
        than half an hour, as long as a large model may take.
        """
        work = in_background(function)
        pause = LOOK_SECONDS
        while True:
            done = bool(concurrent.futures.wait([work], pause).done)
            if done:
                work.result()
            pending, stopped = self.total([float(not done), float(unless_stopped and self.stop.is_set())])
            if stopped:
                raise StoppedError
            if not pending:
                return work.result()
            if done:
                time.sleep(pause)
            pause = min(2 * pause, LONGEST_LOOK_SECONDS)

    def go_on(self) -> None:
        """Raises StoppedError when one of the processes was told to stop; together, while there is nothing to save."""
        if sum(self.total([float(self.stop.is_set())])):
            raise StoppedError

    @contextlib.contextmanager
    def node_directory(self) -> Iterator[Path]:
        """A directory that the processes of a node share, as work.directory() gives and leaves it."""
        with contextlib.ExitStack() as stack:
            mine = None
            if self.local_rank == 0:
                mine = stack.enter_context(work.directory())
            paths = self.gather((self.node, mine))
            yield Path(next(path for node, path in paths if node == self.node and path))
            self.barrier()  # nobody is reading any more


def _told(function: Callable[[], typing.Any]) -> dict[str, typing.Any]:
    """What a process tells the others of its answer, or of its KnownError."""
    try:
        return {"answer": function()}
    except KnownError as ending:
        return errors.to_json(ending)


def _heard(told: dict[str, typing.Any]) -> typing.Any:
    if "error" in told:
        raise errors.from_json(told)
    return told["answer"]


@contextlib.contextmanager
def join(place: Place, gpus_per_node: int | None, num_nodes: int | None, stop: Stop) -> Iterator[World]:
    """Meet the other processes that torchrun started, or be the only one."""
    if gpus_per_node == 0:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # so that no library takes one
    elif not place.under_torchrun:
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    gpu = torch.cuda.is_available() if gpus_per_node is None else gpus_per_node > 0
    if gpu and not torch.cuda.is_available():
        raise UserError(f"GPUS_PER_NODE is {gpus_per_node}, but torch finds no GPU here")
    if num_nodes not in (None, place.nodes):
        raise UserError(f"NUM_NODES is {num_nodes}, but torchrun was started for {place.nodes}")

    world = World(
        rank=place.rank,
        size=place.size,
        local_rank=place.local_rank,
        node=place.node,
        gpu=gpu,
        stop=stop,
    )
    if gpu:
        torch.cuda.set_device(world.local_rank)
    if world.size > 1:
        _meet(world)
        dist.init_process_group(_backend(gpu))
    yield world
    # Not after an error: the others are not coming, and to wait for them would hide it.
    if world.size > 1:
        dist.destroy_process_group()


@contextlib.contextmanager
def sharding(world: World) -> Iterator[None]:
    """What splitting a model over the processes needs: a process group also where there is only one.

    torch's exception for a sharded checkpoint is none that anybody expects: it is no Exception.
    """
    from torch.distributed.checkpoint import CheckpointException

    with _group_of_one(world) if world.size == 1 else contextlib.nullcontext():
        try:
            yield
        except CheckpointException as error:
            for cause, _ in error.failures.values():
                if isinstance(cause, KnownError):
                    raise cause from None
            rank, (first, _) = min(error.failures.items())
            raise CheckpointError(rank, first) from error


@contextlib.contextmanager
def _group_of_one(world: World) -> Iterator[None]:
    dist.init_process_group(_backend(world.gpu), store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _backend(gpu: bool) -> str:
    return "cpu:gloo,cuda:nccl" if gpu else "cpu:gloo"


def _meet(world: World) -> None:
    """Fail soon when some process is not coming.

    A container that restarts at once may join the store of a master that is about to die too. Its processes would wait
    half an hour for ranks that the new master never starts, because that one waits for this node's torchrun in turn.
    Failing here makes the node join again.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return  # the store is then rank 0's own, and init_process_group makes it
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        store = dist.TCPStore(address, port, is_master=False, timeout=MEET_WITHIN, wait_for_workers=False)
        if not _all_came(store, world):
            raise PeerLostError(f"not all {world.size} processes came in time: starting again")
    except dist.DistError as error:
        raise PeerLostError("the rendezvous store is gone: starting again") from error


def _all_came(store: dist.Store, world: World) -> bool:
    """Whether all are there. Who sees it first, or waits no longer, says so for all: also for those who come later."""
    everybody = [f"train/here/{rank}" for rank in range(world.size)]
    store.set(everybody[world.rank], "")
    late, stopped = time.monotonic() + MEET_WITHIN.seconds, False
    while True:
        if world.stop.is_set() and not stopped:
            # Perhaps torchrun says so because one has failed before it came here.
            late, stopped = min(late, time.monotonic() + MEET_WITHIN_WHEN_STOPPED.seconds), True
        said = "yes" if store.check(everybody) else "no" if time.monotonic() > late else ""
        answer = store.compare_set("train/met", "", said)
        if answer:
            return answer == b"yes"
        time.sleep(LOOK_SECONDS)
