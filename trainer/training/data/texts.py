"""The texts of a data set: JSON lines in objects, on disk or streamed, each by its number.

Every line is read once before training, so that a bad one is reported at the start and not after hours.
"""

import array
import bisect
import collections
import concurrent.futures
import dataclasses
import json
import logging
import math
import os
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from training.data.listing import VARIABLE, base_of
from training.disk import Disk
from training.errors import AccessDeniedError, UserError
from training.storage import LFS_POINTER, Entry, WithheldError, open_storage, withheld

if typing.TYPE_CHECKING:
    from training.distributed import World
    from training.settings import Settings

logger = logging.getLogger(__name__)

STREAMED = 16 * 2**30  # bytes; larger data are streamed, where the settings leave it open
# By how a file begins.
OTHER_FORMATS = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PAR1": "Parquet",
    b"ARROW1": "Arrow",
    b"PK\x03\x04": "zip",
    LFS_POINTER: "a pointer of Git LFS instead of the file",
}
HANDLES = 64  # files that a process has open at a time; a thousand descriptors are all that many machines give


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads lines as texts. Raises UserError that names the object and the line."""

    base: str  # the URI below which the objects lie, with a slash
    field: str  # of a line's object, with the text
    unknown: tuple[str, ...] = ()  # tokens that the model does not have
    normalize: Callable[[str], str] | None = None  # what the tokenizer does with a text before it looks for them

    def text(self, line: bytes, key: str, number: int) -> str:
        """The text of a line; lines are counted from 1."""
        where = f"{self.base}{key}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            kind = next((kind for magic, kind in OTHER_FORMATS.items() if line.startswith(magic)), None)
            said = f"this is {kind}, and JSON lines are read" if kind else f"not JSON, an object a line: {error}"
            raise UserError(f"{where}: {said}") from None
        if isinstance(row, list):
            raise UserError(f"{where}: a list, where each text has to be in an object on a line of its own")
        text = row.get(self.field) if isinstance(row, dict) else None
        if not isinstance(text, str):
            raise UserError(f"{where}: no text in field {self.field!r}, which is what dataset_text_field names")
        try:
            text.encode()
        except UnicodeEncodeError as error:  # JSON can say half of a character, and no tokenizer takes it
            half = f"\\u{ord(text[error.start]):04x}"
            raise UserError(f"{where}: {half} at character {error.start + 1} is half of a character") from None
        normal = self.normalize(text) if self.unknown and self.normalize else ""
        for token in self.unknown:
            if token in text or (normal and self.normalize and self.normalize(token) in normal):
                raise UserError(f"{where}: it has the token {token!r}, for which the model has no embedding")
        return text


class Texts(Sequence[str]):
    """The texts of JSON lines files, by number. Empty texts are left out, as they teach nothing."""

    def __init__(self, reader: Reader, keys: Sequence[str], paths: Sequence[Path]) -> None:
        self.reader = reader
        self.keys = keys
        self.paths = paths
        self.starts = array.array("Q")  # for each text, where its line begins in bytes
        self.files = array.array("L")  # for each text, the number of its file
        # By process and file, that of the last use last.
        self.handles: collections.OrderedDict[tuple[int, int], typing.BinaryIO] = collections.OrderedDict()
        for number, (key, path) in enumerate(zip(keys, paths, strict=True)):
            self._add(key, number, path)

    def _add(self, key: str, number: int, path: Path) -> None:
        start = 0
        with path.open("rb") as lines:
            for line_number, line in enumerate(lines, 1):
                if line.strip() and self.reader.text(line, key, line_number).strip():
                    self.starts.append(start)
                    self.files.append(number)
                start += len(line)

    def sizes(self) -> list[int]:
        """How many texts each file has."""
        counts = collections.Counter(self.files)
        return [counts[number] for number in range(len(self.paths))]

    def part(self, rank: int, size: int) -> Sequence[int]:
        """The numbers of the texts that a process looks at, where all of them share the work."""
        return range(rank, len(self), size)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> str:
        # A loader's worker is a fork. In a file that its parent has opened, both would share one position.
        key = os.getpid(), self.files[index]
        if key not in self.handles:
            while len(self.handles) >= HANDLES:
                self.handles.popitem(last=False)[1].close()
            self.handles[key] = self.paths[key[1]].open("rb")
        self.handles.move_to_end(key)
        self.handles[key].seek(self.starts[index])
        return self.reader.text(self.handles[key].readline(), self.keys[key[1]], 0)

    def close(self) -> None:
        for handle in self.handles.values():
            handle.close()
        self.handles.clear()


class Streamed(Sequence[str]):
    """The same texts. Only the objects that are being read are on disk."""

    def __init__(
        self,
        reader: Reader,
        keys: Sequence[str],
        sizes: Sequence[int],
        directory: Path,
        world: "World",
        streams: int,
    ) -> None:
        """`streams` is in how many ranges the objects are read at a time, over all processes."""
        self.reader = reader
        self.streams = streams
        self.room = math.ceil(streams / world.size) + 1  # for objects: a process's share may begin within a range
        self.keys = keys
        self.directory = directory
        self.rank = world.rank
        self.counts = sizes
        self.ends = running_total(sizes)
        self.process = os.getpid()
        self.opened: collections.OrderedDict[int, Texts] = collections.OrderedDict()

    def sizes(self) -> list[int]:
        return list(self.counts)

    def part(self, rank: int, size: int) -> Sequence[int]:
        """Those of one object: each other one would have to be downloaded for it."""
        number = rank % len(self.counts)
        return range(self.ends[number] - self.counts[number], self.ends[number])

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: int) -> str:
        number = bisect.bisect(self.ends, index)
        return self._open(number)[index - (self.ends[number] - self.counts[number])]

    def _open(self, number: int) -> Texts:
        if self.process != os.getpid():  # a loader's worker is a fork: what is open is its parent's
            self.process = os.getpid()
            self.opened.clear()
        if number not in self.opened:
            while len(self.opened) >= self.room:
                _, oldest = self.opened.popitem(last=False)
                remove(oldest)
            path = self.directory / f"streamed-{self.rank}-{self.process}-{number}"
            self.opened[number] = fetch_object(self.reader, self.keys[number], path)
            if len(self.opened[number]) != self.counts[number]:
                raise UserError(f"{self.reader.base}{self.keys[number]} has changed since the job began")
        self.opened.move_to_end(number)
        return self.opened[number]


Data = Texts | Streamed


def prepare(
    uri: str,
    entries: Sequence[Entry],
    settings: "Settings",
    directory: Path,
    world: "World",
    unknown: Sequence[str] = (),
    normalize: Callable[[str], str] | None = None,
    streams: int | None = None,
) -> Data:
    """Bring the objects of a data set to this process, and read each line once; together.

    They are downloaded to each node's disk, or streamed. Streamed data are only counted here: each process reads a part
    of the objects. `streams` is how many of them are read at a time, as streams_of() says where nobody else does.

    `unknown` are tokens that the model does not have. A text with one is refused, also where it has it only when it is
    normalized.
    """
    base = base_of(uri)
    reader = Reader(base, settings.dataset_text_field, tuple(unknown), normalize)
    keys = [entry.key for entry in entries]
    if streams is None:
        streams = streams_of(entries, settings, world)
    if not streams:
        paths = [directory / f"{number:06d}.jsonl" for number in range(len(keys))]
        sizes_by_path = dict(zip(paths, (entry.size for entry in entries), strict=True))

        def bring() -> None:
            Disk.here().require(sum(sizes_by_path.values()), f"{VARIABLE} {uri}")
            download(base, keys, paths, sizes_by_path)

        world.agreed(lambda: bring() if world.local_rank == 0 else None)
        read: list[Texts] = []
        world.agreed(lambda: read.append(Texts(reader, keys, paths)))
        data: Data = read[0]
    else:
        of_process = max((entry.size for entry in entries), default=0) * (math.ceil(streams / world.size) + 1)
        of_node = of_process * max(settings.dataloader_workers, 1) * int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        world.agreed(lambda: Disk.here().require(of_node, f"{VARIABLE} {uri}") if world.local_rank == 0 else None)
        sizes = world.agreed(lambda: count(reader, keys[world.rank :: world.size], directory, world.rank))
        counted = {key: count for counts in sizes for key, count in counts.items()}
        keys = [key for key in keys if counted[key]]
        if not keys:
            raise UserError(f"{VARIABLE} {uri} holds no texts")
        data = Streamed(reader, keys, [counted[key] for key in keys], directory, world, streams)
    if not len(data):
        raise UserError(f"{VARIABLE} {uri} holds no texts")
    return data


def streams_of(entries: Sequence[Entry], settings: "Settings", world: "World") -> int:
    """In how many streams a submission reads its objects; 0 where all of them come to each node's disk.

    A process has its own, and reads no object that another one reads, where there are enough of them.
    """
    size = sum(entry.size for entry in entries)
    streaming = settings.streaming
    if streaming is None:
        streaming = size > STREAMED and len(entries) >= world.size
    return min(world.size, len(entries)) if streaming else 0


def download(base: str, keys: Sequence[str], paths: Sequence[Path], sizes: Mapping[Path, int] | None = None) -> None:
    """Bring objects to files. Raises UserError where one has not the size in bytes that was listed."""
    storage = open_storage(base, VARIABLE)
    try:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(storage.download, keys, paths))
    except FileNotFoundError as error:
        raise UserError(f"{VARIABLE} has changed since the job began: {error} is gone from {base}") from None
    except AccessDeniedError:
        raise UserError(f"{VARIABLE} may not be read by this job: access to {base} is denied") from None
    except WithheldError as error:
        raise UserError(f"{VARIABLE} cannot be read as it is: {base}{withheld(error)}") from None
    for key, path in zip(keys, paths, strict=True):
        if sizes and path.stat().st_size != sizes[path]:
            raise UserError(f"{VARIABLE} has changed since the job began: {base}{key} is another object now")


def count(reader: Reader, keys: Sequence[str], directory: Path, rank: int) -> dict[str, int]:
    """How many texts each object has. One object at a time is on disk."""
    sizes = {}
    for key in keys:
        texts = fetch_object(reader, key, directory / f"counted-{rank}")
        sizes[key] = len(texts)
        remove(texts)
    return sizes


def fetch_object(reader: Reader, key: str, path: Path) -> Texts:
    download(reader.base, [key], [path])
    return Texts(reader, [key], [path])


def remove(texts: Texts) -> None:
    texts.close()
    for path in texts.paths:
        path.unlink()


def running_total(sizes: Iterable[int]) -> list[int]:
    totals: list[int] = []
    for size in sizes:
        totals.append(size + (totals[-1] if totals else 0))
    return totals
