"""The order of the texts: which ones a process has in a step, by the data, the seed and the step alone."""

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

EVERY = 20  # the how-manieth text of the last object is kept out of training, when there is evaluation
HELD_OUT = 1000  # of them at most


class Order:
    """Which texts a process has in a micro-step.

    Each epoch has all texts that are not held out, in an order of its own, dealt to the processes in turn; the last
    batches are filled from its beginning. Streamed data are dealt by objects: a process has its objects of the epoch
    one after the other, and how many texts it has of them differs a little from its share. Those above are not used
    in that epoch, those below are filled from its beginning.
    """

    def __init__(self, data: Data, settings: "Settings", world: "World") -> None:
        self.world = world
        self.seed = settings.seed
        self.batch_size = settings.batch_size
        self.accumulation = settings.gradient_accumulation
        self.streamed = isinstance(data, Streamed)
        *sizes, last = (size for size in data.sizes() if size)
        self.held_out = held_out(sum(sizes), last) if settings.eval_steps else []
        self.gaps = [number - place for place, number in enumerate(self.held_out)]  # other texts before each of them
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
        """How often the data have been seen after so many steps."""
        return step * self.accumulation / self.micro_steps

    def batch(self, micro_step: int) -> list[int]:
        """Numbers of texts; micro-steps are counted from the training's beginning."""
        epoch, position = divmod(micro_step, self.micro_steps)
        if epoch != self.epoch:
            kind = _Streams if self.streamed else _Shuffled
            self.texts, self.epoch = kind(self.sizes, self.seed, epoch, self.world), epoch
        return [self._number(index) for index in self.texts.batch(position, self.batch_size)]

    def _number(self, index: int) -> int:
        """Of the text that is the index-th when those held out are not counted."""
        return index + bisect.bisect(self.gaps, index)

    def rest(self, step: int, total: int) -> Iterator[list[int]]:
        """The batches from after one step to the end of another."""
        for micro_step in range(step * self.accumulation, total * self.accumulation):
            yield self.batch(micro_step)

    def evaluation(self) -> Iterator[tuple[list[int], bool]]:
        """Batches of what was held out, as many for each process, and whether a batch only fills up."""
        batches = [
            self.held_out[start : start + self.batch_size] for start in range(0, len(self.held_out), self.batch_size)
        ]
        for first in range(0, len(batches), self.world.size):
            mine = first + self.world.rank
            yield (batches[mine], False) if mine < len(batches) else (batches[0], True)


def held_out(first: int, size: int) -> list[int]:
    """Numbers of the texts for evaluation, spread over the last object, which begins with the first one."""
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
    """An epoch in which each object is one process's."""

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
    """0 to size - 1 in an order that the seeds decide, on any machine."""
    import numpy
    import torch

    seed = numpy.random.SeedSequence(seeds).generate_state(1, numpy.uint64)[0]  # not their sum: 1 + 2 is 2 + 1
    return torch.randperm(size, generator=torch.Generator().manual_seed(int(seed) % 2**63))
