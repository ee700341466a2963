"""The texts of a data set: JSON lines in objects, on disk or streamed, each by its number.

Every line is read once before training, so that a bad one is reported at the start and not after hours.
"""

import array
import bisect
import collections
import concurrent.futures
import json
import logging
import os
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path

from training.errors import AccessDeniedError, UserError
from training.storage import Entry, open_storage

if typing.TYPE_CHECKING:
    from training.distributed import World
    from training.settings import Settings

logger = logging.getLogger(__name__)

STREAMED = 16 * 2**30  # bytes; larger data are streamed, where the settings leave it open
OPEN = 2  # streamed objects that a process has on its disk at a time


class Texts(Sequence[str]):
    """The texts of JSON lines files, by number. Empty texts are left out, as they teach nothing."""

    def __init__(self, names: Sequence[str], paths: Sequence[Path], field: str) -> None:
        self.paths = paths
        self.field = field
        self.starts = array.array("Q")  # for each text, where its line begins in bytes
        self.files = array.array("L")  # for each text, the number of its file
        self.handles: dict[tuple[int, int], typing.BinaryIO] = {}
        for number, (name, path) in enumerate(zip(names, paths, strict=True)):
            self._add(name, number, path)

    def _add(self, name: str, number: int, path: Path) -> None:
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
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not JSON: {error}") from None
        text = row.get(self.field) if isinstance(row, dict) else None
        if not isinstance(text, str):
            raise UserError(f"{where}: no text in field {self.field!r}, which is what dataset_text_field names")
        try:
            text.encode()
        except UnicodeEncodeError as error:  # JSON can say half of a character, and no tokenizer takes it
            half = f"\\u{ord(text[error.start]):04x}"
            raise UserError(f"{where}: {half} at character {error.start + 1} is half of a character") from None
        return text

    def sizes(self) -> list[int]:
        """How many texts each file has."""
        counts = collections.Counter(self.files)
        return [counts[number] for number in range(len(self.paths))]

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> str:
        # A loader's worker is a fork. In a file that its parent has opened, both would share one position.
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
    """The same texts. Only the objects that are being read are on disk."""

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
        if self.process != os.getpid():  # a loader's worker is a fork: what is open is its parent's
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
    """Bring the data to this process; together.

    They are downloaded to each node's disk, or streamed. Streamed data are only counted here: each process reads a part
    of the objects.
    """
    # Rank 0 lists the objects for all processes, since some may be added or deleted meanwhile.
    entries = world.on_rank_zero(lambda: [(entry.key, entry.size) for entry in find(uri)])
    keys = [key for key, _ in entries]
    size = sum(size for _, size in entries)
    streaming = settings.streaming
    if streaming is None:
        streaming = size > STREAMED and len(keys) >= world.size
    if not streaming:
        paths = [directory / f"{number:06d}.jsonl" for number in range(len(keys))]
        world.agreed(lambda: download(uri, keys, paths) if world.local_rank == 0 else None)
        read: list[Texts] = []
        names = [named(uri, key) for key in keys]
        world.agreed(lambda: read.append(Texts(names, paths, settings.dataset_text_field)))
        data: Data = read[0]
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
    """The objects of a data set: a single one, or all below a prefix in the order of their keys."""
    folder, _, name = uri.rpartition("/")
    if name:
        # Its size is not needed, and the job may have no access to a listing.
        return [Entry(key=name, size=0, etag=None)]
    try:
        entries = open_storage(f"{folder}/").list("")
    except AccessDeniedError:
        raise UserError(f"DATASET_URI {uri} may not be listed by this job: access denied") from None
    entries = [entry for entry in entries if entry.size]
    hidden = [entry.key for entry in entries if is_hidden(entry.key)]
    passed_over = f"{len(hidden)} hidden objects, such as {hidden[0]}" if hidden else ""
    if len(hidden) == len(entries):
        raise UserError(f"DATASET_URI {uri} holds no objects{passed_over and f' but {passed_over}'}")
    if hidden:
        logger.info("passed over %s", passed_over)
    return [entry for entry in entries if not is_hidden(entry.key)]


def is_hidden(key: str) -> bool:
    """Whether it is no data: a folder's own object, or anything hidden (.ipynb_checkpoints/) or left by a batch system.

    These write _SUCCESS beside their output, and _temporary/ before it. A partition's folder (_year=2024/) is data.
    """
    return key.endswith("/") or any(part.startswith((".", "_")) and "=" not in part for part in key.split("/"))


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
    """How many texts each object has. One object at a time is on disk."""
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


def running_total(sizes: Iterable[int]) -> list[int]:
    totals: list[int] = []
    for size in sizes:
        totals.append(size + (totals[-1] if totals else 0))
    return totals
