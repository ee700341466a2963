"""The marker: the object that makes files a checkpoint. Written last, read first.

A contract with the control plane: tests/contract/marker.json holds the vectors that both sides run.
"""

import dataclasses
import json
import math
import typing
import uuid
from collections.abc import Iterable

from training import layout
from training.storage import Entry

LAYOUT = 1


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
    parent: dict[str, typing.Any] | None = None  # {"submission", "step"} that this submission went on from
    world_size: int | None = None
    files: tuple[File, ...] | None = None  # None in markers of other images
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
    try:
        value = json.loads(body)
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")

    def field(name: str, fits: typing.Callable[[typing.Any], bool], *, optional: bool = True) -> typing.Any:
        found = value.get(name)
        if found is None and optional:
            return None
        if not fits(found):
            raise ValueError(f"{name} is missing or not what it must be: {found!r}")
        return found

    field("layout", lambda layout: whole(layout) and 1 <= layout <= LAYOUT)
    files = field("files", lambda files: isinstance(files, list) and all(map(is_file, files)))
    return Marker(
        framework=field("framework", lambda name: name in layout.FRAMEWORKS, optional=False),
        step=field("step", is_step, optional=False),
        saved_at=field("saved_at", is_number, optional=False),
        submission=field("submission", is_uuid),
        attempt=field("attempt", whole),
        parent=field("parent", is_parent),
        world_size=field("world_size", whole),
        files=None if files is None else tuple(File(path=f["path"], size=f["size"], etag=f.get("etag")) for f in files),
        metrics=field("metrics", lambda metrics: isinstance(metrics, dict)) or {},
        metadata=field("metadata", lambda metadata: isinstance(metadata, dict)) or {},
    )


def whole(value: typing.Any) -> bool:
    return type(value) is int and value >= 0


def is_number(value: typing.Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def is_step(value: typing.Any) -> bool:
    return whole(value) and value <= layout.MAX_STEP


def is_uuid(value: typing.Any) -> bool:
    try:
        return isinstance(value, str) and bool(uuid.UUID(value))
    except ValueError:
        return False


def is_parent(value: typing.Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("submission"), str) and is_step(value.get("step"))


def is_file(value: typing.Any) -> bool:
    """A path that stays below checkpoints/, a size, and perhaps an ETag."""
    if not isinstance(value, dict) or not whole(value.get("size")):
        return False
    path, etag = value.get("path"), value.get("etag")
    inside = isinstance(path, str) and all(part not in ("", ".", "..") for part in path.split("/"))
    return inside and isinstance(etag, str | None)
