"""The order of the texts: which ones a process has in a micro-step."""

import bisect
import functools
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

    The texts that are not held out come in epochs, each in an order of its own and without a gap: a step goes on where
    the one before it has ended. So which texts a step has depends on the global batch alone, not on how many processes
    share it, nor on how they cut their shares into micro-steps. A process with fewer texts than others has empty
    micro-steps at the end.

    Streamed data have another order: the places of a step are cut into as many streams as the submission began with
    processes, and each stream has objects of its own, one after the other. So a process reads few of them at a time.
    """

    def __init__(self, data: Data, settings: "Settings", world: "World") -> None:
        self.world = world
        self.seed = settings.seed
        assert settings.batch_size and settings.gradient_accumulation and settings.global_batch_size, "not settled"
        self.batch_size = settings.batch_size
        self.accumulation = settings.gradient_accumulation
        self.texts = settings.global_batch_size  # of a step
        self.streams = min(data.streams, self.texts) if isinstance(data, Streamed) else 0
        *sizes, last = (size for size in data.sizes() if size)
        self.held_out = held_out(sum(sizes), last) if settings.eval_steps else []
        # For each held-out text, how many texts before it are not held out.
        self.gaps = [number - place for place, number in enumerate(self.held_out)]
        self.sizes = [*sizes, last - len(self.held_out)]
        if not sum(self.sizes):
            raise UserError("eval_steps holds a text of the last object out, and that has no other to train on")
        self.epoch: int | None = None
        self.order: _Shuffled | _Streams

    def steps(self, settings: "Settings") -> int:
        """Optimizer steps of the whole training."""
        if settings.max_steps:
            return settings.max_steps
        return math.ceil(round((settings.num_epochs or 1) * sum(self.sizes) / self.texts, 9))

    def epochs(self, step: int) -> float:
        """How many epochs a number of steps is."""
        return step * self.texts / sum(self.sizes)

    @property
    def is_even(self) -> bool:
        """Whether all micro-steps of all processes have as many texts."""
        return self.texts == self.world.size * self.batch_size * self.accumulation

    def batch(self, step: int, micro_step: int) -> list[int]:
        """The numbers of the texts of a step's micro-step; steps and micro-steps are counted from 0."""
        first, end = (rank * self.texts // self.world.size for rank in (self.world.rank, self.world.rank + 1))
        mine = range(first, end)[micro_step * self.batch_size :][: self.batch_size]
        return [self._number(*divmod(step * self.texts + place, sum(self.sizes))) for place in mine]

    def _number(self, epoch: int, place: int) -> int:
        """The number of the text at a place of an epoch."""
        if epoch != self.epoch:
            if self.streams:
                self.order = _Streams(self.sizes, self.seed, epoch, self.streams, self.texts)
            else:
                self.order = _Shuffled(self.sizes, self.seed, epoch)
            self.epoch = epoch
        index = self.order.text(place)
        return index + bisect.bisect(self.gaps, index)  # of those that are not held out it is the index-th

    def rest(self, step: int, total: int) -> Iterator[list[int]]:
        """The batches of the steps after `step`, up to `total`."""
        for number in range(step, total):
            for micro_step in range(self.accumulation):
                yield self.batch(number, micro_step)

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

    def __init__(self, sizes: Sequence[int], seed: int, epoch: int) -> None:
        self.order = shuffled(sum(sizes), seed, epoch)

    def text(self, place: int) -> int:
        return int(self.order[place])


class _Streams:
    """An epoch in which a range of the places of each step belongs to a stream, and a range of the texts too."""

    def __init__(self, sizes: Sequence[int], seed: int, epoch: int, streams: int, of_step: int) -> None:
        ends = running_total(sizes)
        self.starts = [end - size for end, size in zip(ends, sizes, strict=True)]
        self.sizes = sizes
        self.seeds = (seed, epoch)
        self.objects = shuffled(len(sizes), seed, epoch).tolist()
        self.ends = running_total([sizes[number] for number in self.objects])
        self.of_step = of_step
        self.firsts = [number * of_step // streams for number in range(streams)]  # of each stream's places in a step
        self.widths = [end - first for first, end in zip(self.firsts, [*self.firsts[1:], of_step], strict=True)]
        steps, rest = divmod(self.ends[-1], of_step)
        of_streams = [
            steps * width + min(max(rest - first, 0), width)
            for first, width in zip(self.firsts, self.widths, strict=True)
        ]
        self.before = [end - size for end, size in zip(running_total(of_streams), of_streams, strict=True)]
        self.order_of = functools.lru_cache(streams + 1)(self._order_of)

    def text(self, place: int) -> int:
        step, of_step = divmod(place, self.of_step)
        stream = bisect.bisect(self.firsts, of_step) - 1
        place = self.before[stream] + step * self.widths[stream] + of_step - self.firsts[stream]
        turn = bisect.bisect(self.ends, place)
        number = self.objects[turn]
        return self.starts[number] + int(self.order_of(number)[place - (self.ends[turn] - self.sizes[number])])

    def _order_of(self, number: int) -> "torch.Tensor":
        return shuffled(self.sizes[number], *self.seeds, number)


def shuffled(size: int, *seeds: int) -> "torch.Tensor":
    """0 to size - 1 in an order that depends on the seeds alone, on any machine."""
    import numpy
    import torch

    # Not the seeds' sum, which is the same for (1, 2) and (2, 1).
    seed = numpy.random.SeedSequence(seeds).generate_state(1, numpy.uint64)[0]
    return torch.randperm(size, generator=torch.Generator().manual_seed(int(seed) % 2**63))
