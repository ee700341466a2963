"""Checkpoint and model files, read as data: whoever can write one must not run code in the pod that reads it.

torch reads its own files so when it is told `weights_only`. A sharded folder's `.metadata` and the bytes beside its
tensors it reads with pickle, which calls whatever they name: for these the reader and the planner are here.
"""

import contextlib
import dataclasses
import io
import pickle
import pickletools
import struct
import typing
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint._nested_dict import set_element
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem

from training.errors import KnownError, UserError

_ZIP = b"PK\x03\x04"  # begins what torch.save has written since 1.6
_CALLS = {"GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "REDUCE", "NEWOBJ", "NEWOBJ_EX", "BUILD", "EXT1", "EXT2", "EXT4"}


# === files of torch.save ===


def load(path: Path) -> typing.Any:
    """What a file of torch.save holds, its tensors on the CPU. Raises UserError for one that holds code."""
    with path.open("rb") as file:
        mmap = _is_zip(file)  # it can be no other
    with data_only(path):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def load_with_words(path: Path) -> typing.Any:
    """As load(), with Words in the place of numpy's arrays."""
    names = {
        "numpy._core.multiarray._reconstruct": _make,
        "numpy.ndarray": Words,
        "numpy.dtype": _Kind,
    }
    with torch.serialization.safe_globals([(value, name) for name, value in names.items()]):
        return load(path)


class Words:
    """What a file says of a numpy array.

    numpy itself must not make it, as transformers has it do: where a file says so, it takes bytes for pointers.
    """

    def __setstate__(self, state: typing.Any) -> None:
        _, _, self.kind, _, self.body = state

    def numbers(self) -> torch.Tensor:
        """Those of a flat array of unsigned 32-bit words. Raises ValueError for any other."""
        if type(self.kind) is not _Kind or self.kind.said != ("u4", "<") or type(self.body) is not bytes:
            raise ValueError("not an array of words")
        if len(self.body) % 4:
            raise ValueError("not of whole words")
        return torch.tensor(struct.unpack(f"<{len(self.body) // 4}I", self.body), dtype=torch.int64)


class _Kind:
    """What a file says of a numpy dtype."""

    def __init__(self, name: str, *_: typing.Any) -> None:
        self.said = name, ""

    def __setstate__(self, state: typing.Any) -> None:
        self.said = self.said[0], state[1]


def _make(*_: typing.Any) -> Words:
    return Words()


@contextlib.contextmanager
def data_only(path: Path) -> Iterator[None]:
    """While a library loads that file, or files below that folder, with `weights_only`.

    Raises UserError that names the file where one is refused because it holds code. What is merely damaged is raised
    as it is.
    """
    try:
        yield
    except KnownError:
        raise
    except Exception as error:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and _refuses(file, error):
                raise refusal(file) from None
        raise


def refusal(path: Path, why: str = "holds code where data should be") -> UserError:
    """The sentence for a file that somebody else must have written."""
    return UserError(
        f"{path} {why}, and nothing of it was run: find out who else can write such files, and submit the job again "
        "from another step, without resuming, or with a MODEL_ID that you trust"
    )


def _refuses(path: Path, error: Exception) -> bool:
    """Whether it is this file that torch has refused with that error, and because of code."""
    try:
        torch.load(path, map_location="meta", weights_only=True)
    except Exception as again:
        if (type(again), str(again)) == (type(error), str(error)):
            with path.open("rb") as file:
                return _holds_code(file, again)
    return False


def _holds_code(file: typing.IO[bytes], error: Exception) -> bool:
    """Whether what torch has refused with that error names something to call, and is not just damaged."""
    if isinstance(error, RuntimeError | OSError | MemoryError):
        # Of an archive of code; the others are other errors. Zeros are an archive too, which has nothing in it.
        return "``weights_only=True``" in str(error) and file.read(1) != b"\0"
    if _is_zip(file):
        return True  # torch has compared the checksums: it was written like this
    try:
        while True:  # the files of old are several pickles
            if any(opcode.name in _CALLS for opcode, _, _ in pickletools.genops(file)):
                return True
    except Exception:  # where it is no pickle, or ends
        return False


def _is_zip(file: typing.IO[bytes]) -> bool:
    file.seek(0)
    start = file.read(len(_ZIP))
    file.seek(0)
    return start == _ZIP


# === sharded folders ===


Ranges = dict[Path, list[tuple[int, int]]]  # of files, each from its first byte to before its last


Fetch = typing.Callable[[typing.Callable[[], Ranges]], None]


def load_sharded(state: dict[str, typing.Any], path: Path, fetch: Fetch) -> None:
    """Fill a state from a folder of torch.distributed.checkpoint; together. Raises UserError where it holds code.

    Only `.metadata` has to be there before. `fetch` is called together: it brings the ranges of the other files that
    this process's function says.
    """
    reader = _Reader(path)
    fetch(lambda: reader.ranges(state))
    dcp.load(state, storage_reader=reader, planner=_Planner())


def read_metadata(path: Path) -> Metadata:
    """A sharded folder's `.metadata`: what is saved there, and where. Raises UserError where it is anything else."""
    file = path / ".metadata"
    try:
        with file.open("rb") as stream:
            return _metadata(_Unpickler(stream, file).load())
    except (KnownError, OSError, MemoryError):
        raise
    except Exception:  # there are many of a pickle that is not as it should be
        raise refusal(file, "is not what torch writes") from None


class _Reader(dcp.FileSystemReader):
    """As torch's. It reads no rank's own metadata: nobody writes any here."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.folder = path
        self.metadata = read_metadata(path)  # not first in the middle of a load, which would look for another one
        self.reading: tuple[Path, int, int] | None = None  # a file, and the beginning and length of the part of it

    def ranges(self, state: dict[str, typing.Any]) -> Ranges:
        """What this process reads to fill a state. Where it cannot be filled, load() says why."""
        planner = _Planner()
        planner.set_up_planner(state, self.metadata, is_coordinator=False)
        found: Ranges = {}
        try:
            items = planner.create_local_plan().items
        except (RuntimeError, ValueError):
            items = []
        for item in items:
            place = self._place(item)
            found.setdefault(self.folder / place.relative_path, []).append((place.offset, place.offset + place.length))
        return found

    def _place(self, item: ReadItem) -> _StorageInfo:
        place = self.metadata.storage_data.get(item.storage_index)
        if place is None:
            raise refusal(self.folder / ".metadata", f"does not say where {item.storage_index.fqn} is")
        return place

    def read_metadata(self) -> Metadata:
        return dataclasses.replace(self.metadata, storage_meta=StorageMeta(load_id=self.load_id))

    def _slice_file(self, file: typing.Any, sinfo: _StorageInfo) -> typing.IO[bytes]:
        path = self.folder / sinfo.relative_path
        if sinfo.offset + sinfo.length > path.stat().st_size:
            raise refusal(path, "is shorter than its .metadata says")
        self.reading = path, sinfo.offset, sinfo.length
        return super()._slice_file(file, sinfo)

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> "torch.futures.Future[None]":
        for item in plan.items:
            self._place(item)
        try:
            return super().read_data(plan, planner)
        except (KnownError, OSError):
            raise
        except Exception as error:
            if self.reading is None:
                raise
            path, offset, length = self.reading
            with path.open("rb") as file:
                file.seek(offset)
                part = io.BytesIO(file.read(length))
            if _holds_code(part, error):
                raise refusal(path) from None
            raise


class _Planner(DefaultLoadPlanner):
    """As torch's, which reads with pickle what is no tensor."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        name = read_item.dest_index.fqn
        set_element(self.original_state_dict, self.mappings[name], torch.load(value, weights_only=True))


# === .metadata ===


class _Fields:
    """An object in a pickle, as its fields and with nothing that could be called."""

    fields: typing.Any = None

    def __setstate__(self, state: typing.Any) -> None:
        self.fields = state


class _Metadata(_Fields): ...


class _Tensor(_Fields): ...


class _Bytes(_Fields): ...


class _Chunk(_Fields): ...


class _Properties(_Fields): ...


class _Index(_Fields): ...


class _Place(_Fields): ...


class _Ignored(_Fields):
    """Of no use to a reader: where it was saved."""

    def __init__(self, *_: typing.Any) -> None: ...


# All that the .metadata of a checkpoint names, and what stands for it here.
_ALLOWED: dict[tuple[str, str], typing.Any] = {
    ("torch.distributed.checkpoint.metadata", "Metadata"): _Metadata,
    ("torch.distributed.checkpoint.metadata", "TensorStorageMetadata"): _Tensor,
    ("torch.distributed.checkpoint.metadata", "BytesStorageMetadata"): _Bytes,
    ("torch.distributed.checkpoint.metadata", "ChunkStorageMetadata"): _Chunk,
    ("torch.distributed.checkpoint.metadata", "TensorProperties"): _Properties,
    ("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING"): int,
    ("torch.distributed.checkpoint.metadata", "MetadataIndex"): _Index,
    ("torch.distributed.checkpoint.metadata", "StorageMeta"): _Ignored,
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"): _Place,
    ("torch.serialization", "_get_layout"): str,
    ("torch", "Size"): tuple,
    ("pathlib", "PosixPath"): _Ignored,
    ("pathlib._local", "PosixPath"): _Ignored,  # as Python 3.13 names it
}
_ALLOWED |= {("torch", name): value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: typing.IO[bytes], path: Path) -> None:
        super().__init__(stream)
        self.path = path

    def find_class(self, module: str, name: str) -> typing.Any:
        if (module, name) not in _ALLOWED:
            raise refusal(self.path)
        return _ALLOWED[module, name]


def _metadata(found: typing.Any) -> Metadata:
    """Raises an exception of ill-used values where a field is missing, or not what it must be."""
    fields = _fields(found, _Metadata)
    return Metadata(
        state_dict_metadata={_text(name): _entry(entry) for name, entry in fields["state_dict_metadata"].items()},
        storage_data={_index(index): _place(place) for index, place in fields["storage_data"].items()},
    )


def _entry(found: typing.Any) -> TensorStorageMetadata | BytesStorageMetadata:
    if type(found) is _Bytes:
        return BytesStorageMetadata()
    fields = _fields(found, _Tensor)
    return TensorStorageMetadata(
        properties=_properties(fields["properties"]),
        size=_size(fields["size"]),
        chunks=[_chunk(chunk) for chunk in fields["chunks"]],
    )


def _properties(found: typing.Any) -> TensorProperties:
    dtype, *_ = _fields(found, _Properties)  # the others are deprecated, and a loader needs none of them
    if not isinstance(dtype, torch.dtype):
        raise TypeError("not a dtype")
    return TensorProperties(dtype=dtype)


def _chunk(found: typing.Any) -> ChunkStorageMetadata:
    fields = _fields(found, _Chunk)
    return ChunkStorageMetadata(offsets=_size(fields["offsets"]), sizes=_size(fields["sizes"]))


def _index(found: typing.Any) -> MetadataIndex:
    fields = _fields(found, _Index)
    offset, index = fields.get("offset"), fields.get("index")
    return MetadataIndex(
        _text(fields["fqn"]), None if offset is None else _size(offset), None if index is None else _whole(index)
    )


def _place(found: typing.Any) -> _StorageInfo:
    """A part of one of the folder's own files, as it is: our writer compresses nothing."""
    fields = _fields(found, _Place)
    name = _text(fields["relative_path"])
    if name in ("", ".", "..") or "/" in name or "\x00" in name or fields.get("transform_descriptors"):
        raise ValueError("not a file of this folder")
    return _StorageInfo(relative_path=name, offset=_whole(fields["offset"]), length=_whole(fields["length"]))


def _fields(found: typing.Any, kind: type[_Fields]) -> typing.Any:
    if type(found) is not kind:
        raise TypeError(f"{type(found)} in the place of {kind}")
    return found.fields


def _size(found: typing.Any) -> torch.Size:
    if type(found) is not tuple:
        raise TypeError("not a size")
    return torch.Size(map(_whole, found))


def _whole(found: typing.Any) -> int:
    if type(found) is not int or found < 0:
        raise TypeError("not a whole number")
    return found


def _text(found: typing.Any) -> str:
    if type(found) is not str:
        raise TypeError("not text")
    return found
