"""Texts from JSON lines, in an order that all frameworks share, and made into batches.

Every line is looked at once before training, so that a bad one is reported at the start and not after hours.
A batch is a function of the data, the seed, the micro-step, the rank and the number of processes, and of nothing that
happened before: to go on from a step, nothing but the step needs to be known.
"""

import array
import bisect
import collections
import concurrent.futures
import json
import math
import os
import signal
import typing
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from training.errors import AccessDeniedError, UserError
from training.storage import Entry, open_storage

if typing.TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from training.distributed import World
    from training.settings import Settings

IGNORED = -100  # the label that torch's cross entropy leaves out
STREAMED = 16 * 2**30  # bytes of data from which on a process has only a part of them on its disk at a time
OPEN = 2  # objects that a process has on its disk at a time, when they are streamed
EVERY = 20  # the how-manieth text of the last object is kept out of training, when there is evaluation
HELD_OUT = 1000  # of them at most

Batch = dict[str, "torch.Tensor"]


# === texts on disk ===


class Texts(Sequence[str]):
    """The texts of some JSON lines files, by number. A text that is empty teaches nothing and is left out."""

    def __init__(self, names: Sequence[str], paths: Sequence[Path], field: str) -> None:
        self.paths = paths
        self.field = field
        self.starts = array.array("Q")  # where a line begins, in bytes
        self.files = array.array("L")  # in which file
        self.handles: dict[tuple[int, int], typing.BinaryIO] = {}
        for number, (name, path) in enumerate(zip(names, paths, strict=True)):
            self._look_through(name, number, path)

    def _look_through(self, name: str, number: int, path: Path) -> None:
        start = 0
        with path.open("rb") as lines:
            for line_number, line in enumerate(lines, 1):
                if line.strip() and self._text(line, f"{name}, line {line_number}").strip():
                    self.starts.append(start)
                    self.files.append(number)
                start += len(line)

    def _text(self, line: bytes, where: str) -> str:
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{where}: not JSON: {error}") from None
        text = row.get(self.field) if isinstance(row, dict) else None
        if not isinstance(text, str):
            raise UserError(f"{where}: no text in field {self.field!r}, which is what dataset_text_field names")
        return text

    def sizes(self) -> list[int]:
        """How many texts each file has."""
        counts = collections.Counter(self.files)
        return [counts[number] for number in range(len(self.paths))]

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> str:
        # A loader's worker is a fork, and would share its parent's position in a file that both have open.
        key = os.getpid(), self.files[index]
        if key not in self.handles:
            self.handles[key] = self.paths[key[1]].open("rb")
        self.handles[key].seek(self.starts[index])
        return self._text(self.handles[key].readline(), f"text {index}")

    def close(self) -> None:
        for handle in self.handles.values():
            handle.close()
        self.handles.clear()


class Streamed(Sequence[str]):
    """The same texts, of which only the objects that are being read are on disk."""

    def __init__(
        self, uri: str, keys: Sequence[str], sizes: Sequence[int], field: str, directory: Path, rank: int
    ) -> None:
        self.uri = uri
        self.keys = keys
        self.field = field
        self.directory = directory
        self.rank = rank
        self.counts = sizes
        self.ends = running_total(sizes)
        self.process = os.getpid()
        self.opened: collections.OrderedDict[int, Texts] = collections.OrderedDict()

    def sizes(self) -> list[int]:
        return list(self.counts)

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: int) -> str:
        number = bisect.bisect(self.ends, index)
        return self._open(number)[index - (self.ends[number] - self.counts[number])]

    def _open(self, number: int) -> Texts:
        if self.process != os.getpid():  # a loader's worker is a fork, and what its parent has open is not its own
            self.process = os.getpid()
            self.opened.clear()
        if number not in self.opened:
            while len(self.opened) >= OPEN:
                _, oldest = self.opened.popitem(last=False)
                remove(oldest)
            path = self.directory / f"streamed-{self.rank}-{self.process}-{number}"
            self.opened[number] = fetch_object(self.uri, self.keys[number], path, self.field)
            if len(self.opened[number]) != self.counts[number]:
                raise UserError(f"{named(self.uri, self.keys[number])} has changed since the job began")
        self.opened.move_to_end(number)
        return self.opened[number]


Data = Texts | Streamed


def prepare(uri: str, settings: "Settings", directory: Path, world: "World") -> Data:
    """Bring the data to this process, or as much as it needs to begin; together.

    All of them to each node's disk, or, when they are large, only to be counted: each process looks through a part.
    """
    # The same for all, whatever is written there meanwhile.
    entries = world.on_rank_zero(lambda: [(entry.key, entry.size) for entry in find(uri)])
    keys = [key for key, _ in entries]
    size = sum(size for _, size in entries)
    streaming = settings.streaming
    if streaming is None:
        streaming = size > STREAMED and len(keys) >= world.size
    if not streaming:
        paths = [directory / f"{number:06d}.jsonl" for number in range(len(keys))]
        world.agreed(lambda: download(uri, keys, paths) if world.local_rank == 0 else None)
        looked_through: list[Texts] = []
        names = [named(uri, key) for key in keys]
        world.agreed(lambda: looked_through.append(Texts(names, paths, settings.dataset_text_field)))
        data: Data = looked_through[0]
    else:
        sizes = world.agreed(lambda: count(uri, keys[world.rank :: world.size], directory, settings, world.rank))
        counted = {key: count for counts in sizes for key, count in counts.items()}
        keys = [key for key in keys if counted[key]]
        if len(keys) < world.size:
            raise UserError(
                f"streaming gives each process objects of its own, but DATASET_URI {uri} has {len(keys)} with texts"
                f" for {world.size} processes: set streaming to false, or split the data"
            )
        data = Streamed(uri, keys, [counted[key] for key in keys], settings.dataset_text_field, directory, world.rank)
    if not len(data):
        raise UserError(f"DATASET_URI {uri} holds no texts")
    return data


def find(uri: str) -> list[Entry]:
    """The objects of a data set: one, or all below a prefix in the order of their keys."""
    folder, _, name = uri.rpartition("/")
    if name:
        return [Entry(key=name, size=0, etag=None)]  # how large it is does not matter, and may not be the job's to list
    try:
        entries = open_storage(f"{folder}/").list("")
    except AccessDeniedError:
        raise UserError(f"DATASET_URI {uri} may not be listed by this job: access denied") from None
    # Hidden files and what batch systems leave beside their output (_SUCCESS) hold no texts.
    entries = [entry for entry in entries if entry.size and entry.key.rpartition("/")[2][:1] not in "._"]
    if not entries:
        raise UserError(f"DATASET_URI {uri} holds no objects")
    return entries


def download(uri: str, keys: Sequence[str], paths: Sequence[Path]) -> None:
    folder, _, name = uri.rpartition("/")
    storage = open_storage(f"{folder}/")
    try:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(storage.download, keys, paths))
    except FileNotFoundError as error:
        if name:
            raise UserError(f"DATASET_URI {uri} does not exist; end it with a slash if it is a prefix") from None
        raise UserError(f"DATASET_URI {uri} has changed since the job began: {error} is gone") from None
    except AccessDeniedError:
        raise UserError(f"DATASET_URI {uri} may not be read by this job: access denied") from None


def count(uri: str, keys: Sequence[str], directory: Path, settings: "Settings", rank: int) -> dict[str, int]:
    """How many texts each object has; one at a time is on disk."""
    sizes = {}
    for key in keys:
        texts = fetch_object(uri, key, directory / f"counted-{rank}", settings.dataset_text_field)
        sizes[key] = len(texts)
        remove(texts)
    return sizes


def fetch_object(uri: str, key: str, path: Path, field: str) -> Texts:
    download(uri, [key], [path])
    return Texts([named(uri, key)], [path], field)


def remove(texts: Texts) -> None:
    texts.close()
    for path in texts.paths:
        path.unlink()


def named(uri: str, key: str) -> str:
    return f"{uri.rpartition('/')[0]}/{key}"


# === their order ===


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


def running_total(sizes: Iterable[int]) -> list[int]:
    totals: list[int] = []
    for size in sizes:
        totals.append(size + (totals[-1] if totals else 0))
    return totals


# === batches ===


class Collator:
    """Texts to a batch. Padding never counts in the loss, also where the padding token is the end token."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", max_seq_len: int) -> None:
        self.tokenizer = tokenizer
        self.max_seq_len = max_seq_len
        self.end: typing.Any = tokenizer.eos_token_id
        self.padding: typing.Any = tokenizer.pad_token_id or 0  # any token will do: it is masked

    def __call__(self, texts: list[str]) -> Batch:
        import torch

        # Truncation and padding by the tokenizer would be saved with it, and so end up in the exported model.
        rows = [self._ended(row)[: self.max_seq_len] for row in self.tokenizer(texts, verbose=False)["input_ids"]]
        shape = (len(rows), max(len(row) for row in rows))
        batch = {
            "input_ids": torch.full(shape, self.padding),
            "attention_mask": torch.zeros(shape, dtype=torch.long),
            "labels": torch.full(shape, IGNORED),
        }
        for number, row in enumerate(rows):
            batch["input_ids"][number, : len(row)] = batch["labels"][number, : len(row)] = torch.tensor(row)
            batch["attention_mask"][number, : len(row)] = 1
        return batch

    def _ended(self, row: list[int]) -> list[int]:
        """With the end token, so that the model learns where a text ends."""
        return row if self.end is None or row[-1:] == [self.end] else [*row, self.end]


def training_batches(
    data: Data, order: Order, collator: Collator, settings: "Settings", world: "World", step: int, total: int
) -> Iterable[Batch]:
    """This process's batches from after one step to the end of another."""
    import torch
    from torch.utils.data import DataLoader

    return DataLoader(
        data,
        batch_sampler=order.rest(step, total),
        collate_fn=collator,
        num_workers=settings.dataloader_workers,
        worker_init_fn=ignore_sigterm,
        pin_memory=world.gpu,
        generator=torch.Generator(),  # or it would draw from the one that dropout draws from
    )


def evaluation_batches(data: Data, order: Order, collator: Collator) -> Iterator[Batch]:
    """This process's batches of what was held out, as many as the others have."""
    for numbers, filling in order.evaluation():
        batch = collator([data[number] for number in numbers])
        if filling:
            batch["labels"].fill_(IGNORED)
        yield batch


def predicted(batch: Batch) -> int:
    """How many of a batch's tokens the model has to predict: not the first one of a text, and no padding."""
    return int((batch["labels"][:, 1:] != IGNORED).sum())


def ignore_sigterm(worker: int) -> None:
    """Of a signal to all, the process itself makes a checkpoint, for which it may need its workers."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
