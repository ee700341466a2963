"""The marker: the object that makes files a checkpoint. Written last, read first.

A contract with the control plane: tests/contract/marker.json holds the vectors that both sides run.
"""

import dataclasses
import json
import math
import re
import typing
from collections.abc import Iterable, Mapping

from training import layout, strict_json
from training.storage import Entry
from training.strict_json import is_number, whole

LAYOUT = 1
MAX_BYTES = 2 * 1024 * 1024  # of a marker; ten thousand files take some 1.5 MB
MAX_PATH_BYTES = 1024 - len(layout.CHECKPOINTS)  # S3 has no longer keys

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE | re.ASCII)
# S3 lists keys as XML, which cannot hold control characters. Halves of surrogate pairs have no UTF-8.
_UNLISTED = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class File:
    path: str  # relative to checkpoints/
    size: int  # bytes
    etag: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Marker:
    framework: str
    step: int
    saved_at: float  # seconds since 1970, by this machine's clock
    submission: str | None = None
    attempt: int | None = None
    parent: dict[str, typing.Any] | None = None  # {"submission", "step"} that this submission resumed
    world_size: int | None = None
    files: tuple[File, ...] | None = None  # None in other images' markers
    metrics: dict[str, typing.Any] = dataclasses.field(default_factory=dict)
    metadata: dict[str, typing.Any] = dataclasses.field(default_factory=dict)

    def state(self, listing: Iterable[Entry]) -> str:
        """complete, incomplete or unverified; the listing's keys are relative to the run."""
        if self.files is None:
            return "unverified"
        there = {entry.key.removeprefix(layout.CHECKPOINTS): entry for entry in listing}
        all_there = bool(self.files) and all(
            (entry := there.get(file.path)) is not None and entry.size == file.size and file.etag in (None, entry.etag)
            for file in self.files
        )
        return "complete" if all_there else "incomplete"

    def dump(self) -> bytes:
        body: dict[str, typing.Any] = {"layout": LAYOUT} | dataclasses.asdict(self)
        for file in body["files"]:
            if file["etag"] is None:
                del file["etag"]
        return json.dumps(body).encode()


def parse(body: bytes) -> Marker:
    """Raises ValueError that names the field at fault. Fields of later releases are ignored."""
    if len(body) > MAX_BYTES:
        raise ValueError(f"too large: it has {len(body)} bytes, and at most {MAX_BYTES} are read")
    value = strict_json.load(body)

    def field(name: str, fits: typing.Callable[[typing.Any], bool], *, optional: bool = True) -> typing.Any:
        found = value.get(name)
        if found is None and optional:
            return None
        if not fits(found):
            raise ValueError(f"{name} is missing or not what it must be: {found!r}")
        return found

    field("layout", lambda layout: whole(layout) and 1 <= layout <= LAYOUT)
    files = field("files", are_files)
    submission = field("submission", is_uuid)
    parent = field("parent", is_parent)
    return Marker(
        framework=field("framework", lambda name: name in layout.FRAMEWORKS, optional=False),
        step=field("step", is_step, optional=False),
        saved_at=field("saved_at", is_number, optional=False),
        submission=submission and submission.lower(),
        attempt=field("attempt", whole),
        parent=parent and parent | {"submission": parent["submission"].lower()},
        world_size=field("world_size", whole),
        files=None if files is None else tuple(File(path=f["path"], size=f["size"], etag=f.get("etag")) for f in files),
        metrics=field("metrics", are_metrics) or {},
        metadata=field("metadata", is_object) or {},
    )


def rebuilt(fields: dict[str, typing.Any]) -> Marker:
    """The marker with these dataclasses.asdict() fields."""
    files = fields["files"]
    return Marker(**fields | {"files": None if files is None else tuple(File(**file) for file in files)})


def best_step(metrics: Mapping[int, Mapping[str, typing.Any]]) -> int | None:
    """Of these steps with their metrics the one with the least eval_loss, the first of equal ones; None without any."""
    losses = {step: of_step.get("eval_loss") for step, of_step in metrics.items()}
    finite = [(loss, step) for step, loss in losses.items() if is_number(loss) and math.isfinite(loss)]
    return min(finite)[1] if finite else None


def is_step(value: typing.Any) -> bool:
    return whole(value) and value <= layout.MAX_STEP


def is_uuid(value: typing.Any) -> bool:
    return isinstance(value, str) and bool(_UUID.fullmatch(value))


def is_object(value: typing.Any) -> bool:
    return isinstance(value, strict_json.Object) and strict_json.has_whole_names(value)


def is_parent(value: typing.Any) -> bool:
    return is_object(value) and is_uuid(value.get("submission")) and is_step(value.get("step"))


def are_metrics(value: typing.Any) -> bool:
    """Whether it can be written as JSON again."""
    return is_object(value) and strict_json.is_sound(value)


def are_files(value: typing.Any) -> bool:
    """Whether it is one file, or all are below one folder, so that a listing of it covers no other checkpoint."""
    if not isinstance(value, list) or not all(map(is_file, value)):
        return False
    folders = {file["path"].partition("/")[0] if "/" in file["path"] else None for file in value}
    return len(value) < 2 or (len(folders) == 1 and None not in folders)


def is_file(value: typing.Any) -> bool:
    """Whether it has a path that stays below checkpoints/ and can be in a key, a size, and perhaps an ETag."""
    if not is_object(value) or not whole(value.get("size")):
        return False
    path, etag = value.get("path"), value.get("etag")
    inside = isinstance(path, str) and all(part not in ("", ".", "..") for part in path.split("/"))
    return inside and can_be_in_key(path) and (etag is None or strict_json.is_text(etag))


def can_be_in_key(path: str) -> bool:
    return not _UNLISTED.search(path) and len(path.encode()) <= MAX_PATH_BYTES
