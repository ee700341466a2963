"""Checkpoints: files, and the marker that makes them one. Written last, read first.

Saving is: old marker away, files, everybody done, marker. So a marker always speaks of files that are there, and
whatever has no marker, or whose marker speaks of other files than are there, is no checkpoint.
The marker is a contract with the control plane: tests/contract/marker.json holds the vectors that both sides run.
"""

import concurrent.futures
import dataclasses
import json
import logging
import math
import shutil
import time
import typing
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from training import layout
from training.errors import StorageError, UserError
from training.owner import Owner
from training.storage import Entry, Storage

if typing.TYPE_CHECKING:
    from training.distributed import World

LAYOUT = 1
TRANSFERS = 8  # at a time
NAMED = 10  # steps, at most, in the message that refuses one

logger = logging.getLogger(__name__)


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


# === choosing where to start ===


def in_order(markers: Iterable[Marker]) -> Iterator[Marker]:
    """Markers, the one to try first at the head.

    Those of the newest submission, from its last step down; then those of the submission that it went on from, from
    that step down, and so on; then the same for the newest submission not yet seen. Not simply from the highest step
    down: a run that was begun again must not jump to a step of its former life.
    """
    left = sorted(markers, key=lambda marker: (marker.submission or "", marker.step), reverse=True)
    while left:
        submission, limit = left[0].submission, layout.MAX_STEP
        seen = set()
        while submission not in seen:
            seen.add(submission)
            of_it = [marker for marker in left if marker.submission == submission]
            reachable = [marker for marker in of_it if marker.step <= limit]
            yield from reachable
            if not of_it or of_it[-1].parent is None:
                break
            submission, limit = of_it[-1].parent["submission"], of_it[-1].parent["step"]
        left = [marker for marker in left if marker.submission not in seen]


def exactly(step: int, markers: list[Marker], listing: list[Entry]) -> Marker:
    """The complete checkpoint of a step, whichever submission's. Raises UserError rather than take another step."""
    complete = {marker.step: marker for marker in markers if marker.state(listing) == "complete"}
    if step in complete:
        return complete[step]
    states = [marker.state(listing) for marker in markers if marker.step == step]
    wrong = f"that checkpoint's files are {states[0]}" if states else "the run has no such checkpoint"
    names = ", ".join(f"step-{other}" for other in sorted(complete)[-NAMED:])
    instead = f"from a complete one ({names})" if names else "without resuming, as it has no complete one"
    raise UserError(f"RESUME is step-{step}, but {wrong}: submit the job again {instead}")


class Checkpoints:
    """The checkpoints of one run as one submission sees them. What says so is called by every process together."""

    def __init__(
        self, storage: Storage, world: "World", *, framework: str, submission: str, keep_last: int | None
    ) -> None:
        self.storage = storage
        self.world = world
        self.framework = framework
        self.submission = submission
        self.keep_last = keep_last
        self.owner = Owner(storage, submission)
        self.parent: dict[str, typing.Any] | None = None
        self.own: set[int] = set()  # steps that this submission has a marker of; known on rank 0

    def choose(self, resume: bool, step: int | None = None) -> Marker | None:
        """The checkpoint to start from, None for step 0; together.

        A restart always goes on from its own submission's newest. Before it has one, `resume` says what to do:
        begin, or go on from the run's newest, or from that of the given step and no other.
        """
        chosen = self.world.on_rank_zero(lambda: self._choose(resume, step))
        if chosen is None:
            logger.info("starts at step 0%s", ": the run has no complete checkpoint" if resume else "")
        elif chosen.submission == self.submission:
            self.parent = chosen.parent
            logger.info("goes on from its own step %d", chosen.step)
        else:
            self.parent = {"submission": chosen.submission, "step": chosen.step} if chosen.submission else None
            logger.info("goes on from step %d of submission %s", chosen.step, chosen.submission)
        return chosen

    def _choose(self, resume: bool, step: int | None) -> Marker | None:
        self.owner.check()
        listing = self.storage.list(layout.CHECKPOINTS)
        markers = self._read_markers(listing)
        own = [marker for marker in markers if marker.submission == self.submission]
        self.own = {marker.step for marker in own}
        others = [marker for marker in markers if marker.submission != self.submission]
        candidates = sorted(own, key=lambda marker: marker.step, reverse=True)
        if resume and step is None:
            candidates += in_order(others)
        for marker in candidates:
            state = marker.state(listing)
            if state == "complete":
                return marker
            logger.warning("skips step %d of submission %s: its files are %s", marker.step, marker.submission, state)
        return None if step is None else exactly(step, markers, listing)

    def _read_markers(self, listing: list[Entry]) -> list[Marker]:
        def read(key: str) -> Marker | None:
            try:
                marker = parse(self.storage.read(key))
                if (marker.framework, marker.step) != (self.framework, layout.parse_marker_key(key)):
                    raise ValueError("its content contradicts its key")
            except FileNotFoundError:
                return None  # deleted since it was listed
            except ValueError as error:
                logger.warning("%s is not a marker: %s", key, error)
                return None
            return marker

        keys = [entry.key for entry in listing if layout.parse_marker_key(entry.key) is not None]
        with concurrent.futures.ThreadPoolExecutor(TRANSFERS) as pool:
            return [marker for marker in pool.map(read, keys) if marker]

    # === loading ===

    def download(self, marker: Marker, directory: Path) -> Path:
        """Bring a checkpoint's files below `directory` on each node; together. Returns the checkpoint's folder."""
        assert marker.files, "only complete checkpoints are chosen"
        if self.world.local_rank == 0:

            def download(file: File) -> None:
                target = directory / file.path
                self.storage.download(layout.CHECKPOINTS + file.path, target)
                if target.stat().st_size != file.size:
                    raise StorageError(f"{file.path} has {target.stat().st_size} bytes, its marker says {file.size}")

            with concurrent.futures.ThreadPoolExecutor(TRANSFERS) as pool:
                list(pool.map(download, marker.files))
        self.world.barrier()
        return directory / layout.checkpoint_name(marker.step)

    # === saving ===

    def save(self, folder: Path, *, step: int, loss: float | None) -> None:
        """Make a checkpoint of the files below a local folder of each node, and remove the folder; together."""
        prefix = f"{layout.CHECKPOINTS}{layout.checkpoint_name(step)}/"
        self.world.on_rank_zero(lambda: self._clear(step))  # and each process has written its own files
        sizes = self._upload(folder, prefix) if self.world.local_rank == 0 else {}
        uploaded = self.world.gather(sizes)
        everything = {key: size for sizes in uploaded for key, size in sizes.items()}
        self.world.on_rank_zero(lambda: self._commit(step, prefix, everything, loss))
        if self.world.local_rank == 0:
            shutil.rmtree(folder)

    def _clear(self, step: int) -> None:
        """Whatever was saved under this step before, by this submission or another, is a checkpoint no longer."""
        files = self._files(step)
        if files:
            # Before the marker the owner is checked anyway, but then another's files would be gone.
            self.owner.check()
        self._remove(step, files)

    def _upload(self, folder: Path, prefix: str) -> dict[str, int]:
        """Sizes by key."""
        sources = {prefix + path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        with concurrent.futures.ThreadPoolExecutor(TRANSFERS) as pool:
            list(pool.map(self.storage.upload, sources.values(), sources.keys()))
        return {key: path.stat().st_size for key, path in sources.items()}

    def _commit(self, step: int, prefix: str, uploaded: dict[str, int], loss: float | None) -> None:
        there = {entry.key: entry for entry in self.storage.list(prefix)}
        for key, size in uploaded.items():
            if key not in there or there[key].size != size:
                raise StorageError(f"{key} was uploaded with {size} bytes and is not there so")
        marker = Marker(
            framework=self.framework,
            step=step,
            saved_at=time.time(),
            submission=self.submission,
            attempt=self.world.attempt,
            parent=self.parent,
            world_size=self.world.size,
            files=tuple(
                File(path=key.removeprefix(layout.CHECKPOINTS), size=size, etag=there[key].etag)
                for key, size in sorted(uploaded.items())
            ),
            metrics={"loss": loss if loss is not None and math.isfinite(loss) else None},
            metadata={"hf_checkpoint_dir": prefix.rstrip("/")},
        )
        self.owner.check()
        self._write_marker(marker)
        self.own.add(step)
        logger.info("saved step %d: %d files, %d bytes", step, len(uploaded), sum(uploaded.values()))
        for old in sorted(self.own)[: -self.keep_last] if self.keep_last else []:
            self._remove(old, self._files(old))
            self.own.remove(old)

    def _write_marker(self, marker: Marker) -> None:
        key, body = layout.marker_key(marker.step), marker.dump()
        try:
            self.storage.write(key, body, only_if_absent=True)
        except FileExistsError:
            # A retry after a lost answer finds what its first try wrote. Anything else is another writer's.
            if self.storage.read(key) != body:
                raise

    def _files(self, step: int) -> list[str]:
        prefix = f"{layout.CHECKPOINTS}{layout.checkpoint_name(step)}/"
        return [entry.key for entry in self.storage.list(prefix)]

    def _remove(self, step: int, files: list[str]) -> None:
        """The marker first: without its files it would promise what is not there."""
        self.storage.delete([layout.marker_key(step)])
        self.storage.delete(files)
