"""The order of the texts: which ones a process has in a micro-step."""

import bisect
import math
import typing
from collections.abc import Iterator, Sequence

from training.data.texts import Data, Streamed, running_total
from training.errors import UserError

if typing.TYPE_CHECKING:
    import torch

    from training.distributed import World
    from training.settings import Settings

EVERY = 20  # with evaluation, every 20th text of the last object is held out of training
HELD_OUT = 1000  # texts, at most


class Order:
    """Which texts a process has in a micro-step.

    Each epoch has all texts that are not held out, in an order of its own. They are dealt to the processes in turn, and
    the last batches are filled up from the epoch's beginning.

    Streamed data are dealt by objects. A process has its objects of the epoch one after the other, and their number of
    texts differs a little from its share. Texts above the share are not used in that epoch. A process with fewer texts
    begins with its objects again.
    """

    def __init__(self, data: Data, settings: "Settings", world: "World") -> None:
        self.world = world
        self.seed = settings.seed
        self.batch_size = settings.batch_size
        self.accumulation = settings.gradient_accumulation
        self.streamed = isinstance(data, Streamed)
        *sizes, last = (size for size in data.sizes() if size)
        self.held_out = held_out(sum(sizes), last) if settings.eval_steps else []
        # For each held-out text, how many texts before it are not held out.
        self.gaps = [number - place for place, number in enumerate(self.held_out)]
        self.sizes = [*sizes, last - len(self.held_out)]
        if not sum(self.sizes) or (self.streamed and not self.sizes[-1]):
            raise UserError("eval_steps holds a text of the last object out, and that has no other to train on")
        self.micro_steps = math.ceil(math.ceil(sum(self.sizes) / self.batch_size) / world.size)  # of an epoch
        self.epoch: int | None = None
        self.texts: _Shuffled | _Streams

    def steps(self, settings: "Settings") -> int:
        """Optimizer steps of the whole training."""
        if settings.max_steps:
            return settings.max_steps
        return math.ceil((settings.num_epochs or 1) * self.micro_steps / self.accumulation)

    def epochs(self, step: int) -> float:
        """How many epochs a number of steps is."""
        return step * self.accumulation / self.micro_steps

    def batch(self, micro_step: int) -> list[int]:
        """The numbers of a micro-step's texts. Micro-steps are counted from step 0."""
        epoch, position = divmod(micro_step, self.micro_steps)
        if epoch != self.epoch:
            kind = _Streams if self.streamed else _Shuffled
            self.texts, self.epoch = kind(self.sizes, self.seed, epoch, self.world), epoch
        return [self._number(index) for index in self.texts.batch(position, self.batch_size)]

    def _number(self, index: int) -> int:
        """The number of the index-th text that is not held out."""
        return index + bisect.bisect(self.gaps, index)

    def rest(self, step: int, total: int) -> Iterator[list[int]]:
        """The batches of the steps after `step`, up to `total`."""
        for micro_step in range(step * self.accumulation, total * self.accumulation):
            yield self.batch(micro_step)

    def evaluation(self) -> Iterator[tuple[list[int], bool]]:
        """Batches of held-out texts, the same number for each process, and whether a batch only fills up."""
        batches = [
            self.held_out[start : start + self.batch_size] for start in range(0, len(self.held_out), self.batch_size)
        ]
        for first in range(0, len(batches), self.world.size):
            mine = first + self.world.rank
            yield (batches[mine], False) if mine < len(batches) else (batches[0], True)


def held_out(first: int, size: int) -> list[int]:
    """Numbers of the texts for evaluation, spread over the last object. It has `size` texts from number `first` on."""
    every = min(EVERY, size)
    return [first + place for place in range(every - 1, size, every)][:HELD_OUT]


class _Shuffled:
    """An epoch in which every process may have any text."""

    def __init__(self, sizes: Sequence[int], seed: int, epoch: int, world: "World") -> None:
        self.order = shuffled(sum(sizes), seed, epoch)
        self.world = world

    def batch(self, position: int, size: int) -> list[int]:
        first = (position * self.world.size + self.world.rank) * size
        return [int(self.order[place % len(self.order)]) for place in range(first, first + size)]


class _Streams:
    """An epoch in which each object belongs to one process."""

    def __init__(self, sizes: Sequence[int], seed: int, epoch: int, world: "World") -> None:
        ends = running_total(sizes)
        self.starts = [end - size for end, size in zip(ends, sizes, strict=True)]
        self.sizes = sizes
        self.seeds = (seed, epoch)
        self.objects = shuffled(len(sizes), seed, epoch)[world.rank :: world.size].tolist()
        self.ends = running_total([sizes[number] for number in self.objects])
        self.current: tuple[int, torch.Tensor] | None = None

    def batch(self, position: int, size: int) -> list[int]:
        return [self._text(place % self.ends[-1]) for place in range(position * size, (position + 1) * size)]

    def _text(self, place: int) -> int:
        turn = bisect.bisect(self.ends, place)
        number = self.objects[turn]
        if self.current is None or self.current[0] != number:
            self.current = number, shuffled(self.sizes[number], *self.seeds, number)
        before = self.ends[turn] - self.sizes[number]
        return self.starts[number] + int(self.current[1][place - before])


def shuffled(size: int, *seeds: int) -> "torch.Tensor":
    """0 to size - 1 in an order that depends on the seeds alone, on any machine."""
    import numpy
    import torch

    # Not the seeds' sum, which is the same for (1, 2) and (2, 1).
    seed = numpy.random.SeedSequence(seeds).generate_state(1, numpy.uint64)[0]
    return torch.randperm(size, generator=torch.Generator().manual_seed(int(seed) % 2**63))
