"""Checkpoints: files, and the marker that makes them one.

Saving is: files under names of this attempt's own, everybody done, marker, and then away with what was there before. So
a marker always speaks of files that are there and that no other process touches, and whatever has no marker, or whose
marker speaks of other files than are there, is no checkpoint.
Files are written and uploaded in the background, and only the two ends of saving stop the training: where a framework
can write while it trains, it goes on meanwhile.
"""

import concurrent.futures
import dataclasses
import logging
import math
import posixpath
import shutil
import time
import typing
from collections.abc import Callable, Mapping
from pathlib import Path

from training import layout
from training.background import in_background
from training.checkpoint.lineage import in_order
from training.checkpoint.marker import MAX_BYTES, File, Marker, parse, rebuilt
from training.errors import StorageError, UserError
from training.owner import Owner
from training.storage import Entry, Storage, WithheldError

if typing.TYPE_CHECKING:
    from training.distributed import World

TRANSFERS = 8  # at a time
NAMED = 10  # steps, at most, in the message that refuses one

logger = logging.getLogger(__name__)


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Saving:
    """A checkpoint that is being made."""

    step: int
    path: Path  # of its file or folder on this node
    metrics: Mapping[str, float | None]
    sizes: "concurrent.futures.Future[dict[str, int]]"  # in bytes, by key: of what this process has uploaded


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
        self.owner = Owner(storage, submission, world.attempt)
        self.parent: dict[str, typing.Any] | None = None
        self.own: set[int] = set()  # steps that this submission has a marker of; known on rank 0
        self.unfinished: set[str] = set()  # keys of what its earlier attempts left; known on rank 0
        self.saving: Saving | None = None

    def choose(self, resume: bool, step: int | None = None) -> Marker | None:
        """The checkpoint to start from, None for step 0; together.

        A restart always goes on from its own submission's newest. Before it has one, `resume` says what to do:
        begin, or go on from the run's newest, or from that of the given step and no other.
        """
        fields = self.world.on_rank_zero(
            lambda: dataclasses.asdict(found) if (found := self._choose(resume, step)) else None
        )
        chosen = rebuilt(fields) if fields else None
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
        self.unfinished = self._unfinished(listing, markers)
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
            except (ValueError, WithheldError) as error:
                logger.warning("%s is not a marker: %s", key, error)
                return None
            return marker

        keys = [entry.key for entry in listing if layout.parse_marker_key(entry.key) is not None]
        with concurrent.futures.ThreadPoolExecutor(TRANSFERS) as pool:
            return [marker for marker in pool.map(read, keys) if marker]

    def _unfinished(self, listing: list[Entry], markers: list[Marker]) -> set[str]:
        """Files of this submission that no marker names: attempts ended before they had saved, or removed, all."""
        named = {layout.CHECKPOINTS + file.path for marker in markers for file in marker.files or ()}
        unread = {layout.parse_marker_key(entry.key) for entry in listing} - {marker.step for marker in markers}
        saved = {entry.key: layout.parse_checkpoint_key(entry.key) for entry in listing if entry.key not in named}
        return {key for key, file in saved.items() if file and file[1] == self.submission and file[0] not in unread}

    # === loading ===

    def download(self, marker: Marker, directory: Path) -> Path:
        """Bring a checkpoint's files below `directory` on each node; together. Returns its file or folder."""
        assert marker.files, "only complete checkpoints are chosen"
        files = marker.files

        def download(file: File) -> None:
            target = directory / file.path
            self.storage.download(layout.CHECKPOINTS + file.path, target)
            if target.stat().st_size != file.size:
                raise StorageError(f"{file.path} has {target.stat().st_size} bytes, its marker says {file.size}")

        def download_all() -> None:
            with concurrent.futures.ThreadPoolExecutor(TRANSFERS) as pool:
                list(pool.map(download, files))

        self.world.agreed(lambda: download_all() if self.world.local_rank == 0 else None)
        return directory / posixpath.commonpath([file.path for file in files])

    # === saving ===

    def save(self, path: Path, *, step: int, metrics: Mapping[str, float | None]) -> None:
        """Make a checkpoint of a local file or folder of each node, and remove it; together."""
        self.begin(path, step=step, metrics=metrics)
        self.finish()

    def begin(
        self,
        path: Path,
        *,
        step: int,
        metrics: Mapping[str, float | None],
        write: Callable[[], object] = lambda: None,
    ) -> None:
        """Begin to make a checkpoint of a file or folder, and return; together.

        `write` makes it in the background, with those of the other processes, and returns when all of them are done
        with theirs. It must touch nothing that training changes. One checkpoint at a time: an unfinished one is first
        waited for.
        """
        self.finish()
        self.world.barrier()  # what a framework has written itself, each process of the node has written

        def write_and_upload() -> dict[str, int]:
            write()
            return self._upload(path, step) if self.world.local_rank == 0 else {}

        self.saving = Saving(step=step, path=path, metrics=metrics, sizes=in_background(write_and_upload))

    def pending(self) -> bool:
        """Whether this process is still making its part of a checkpoint. When none is, finish() does not wait."""
        return self.saving is not None and not self.saving.sizes.done()

    def finish(self) -> None:
        """Wait for the checkpoint that was begun, if any, and make it one; together."""
        if self.saving is None:
            return
        saving, self.saving = self.saving, None
        uploaded = self.world.gather(self.world.together(saving.sizes.result))
        everything = {key: size for sizes in uploaded for key, size in sizes.items()}
        self.world.on_rank_zero(lambda: self._commit(saving, everything))
        if self.world.local_rank == 0:
            # Where rank 0 alone writes, other nodes have nothing.
            shutil.rmtree(saving.path) if saving.path.is_dir() else saving.path.unlink(missing_ok=True)

    def _prefix(self, step: int) -> str:
        return layout.checkpoint_prefix(self.framework, step, self.submission, self.world.attempt)

    def _upload(self, path: Path, step: int) -> dict[str, int]:
        """Sizes by key."""
        base, files = (path.parent, [path]) if path.is_file() else (path, path.rglob("*"))
        sources = {self._prefix(step) + file.relative_to(base).as_posix(): file for file in files if not file.is_dir()}
        with concurrent.futures.ThreadPoolExecutor(TRANSFERS) as pool:
            list(pool.map(self.storage.upload, sources.values(), sources.keys()))
        return {key: file.stat().st_size for key, file in sources.items()}

    def _commit(self, saving: Saving, uploaded: dict[str, int]) -> None:
        there = {entry.key: entry for entry in self._files(saving.step)}
        for key, size in uploaded.items():
            if key not in there or there[key].size != size:
                raise StorageError(f"{key} was uploaded with {size} bytes and is not there so")
        prefix = self._prefix(saving.step)
        marker = Marker(
            framework=self.framework,
            step=saving.step,
            saved_at=time.time(),
            submission=self.submission,
            attempt=self.world.attempt,
            parent=self.parent,
            world_size=self.world.size,
            files=tuple(
                File(path=key.removeprefix(layout.CHECKPOINTS), size=size, etag=there[key].etag)
                for key, size in sorted(uploaded.items())
            ),
            metrics={
                metric: value if value is not None and math.isfinite(value) else None
                for metric, value in saving.metrics.items()
            },
            metadata={"hf_checkpoint_dir": prefix.rstrip("/")} if self.framework == "hf" else {},
        )
        # A higher step is one that could not be gone on from: it takes no good one's place.
        reached = sorted(step for step in {*self.own, saving.step} if step <= saving.step)
        leaving = {
            step: (self._read_if_there(layout.marker_key(step)), self._files(step))
            for step in (reached[: -self.keep_last] if self.keep_last else [])
        }
        replaced, unfinished = self._read_if_there(layout.marker_key(saving.step)), self._still_unfinished()

        # All that goes away was seen before this check, so that nothing of a newer submission or attempt is in it. What
        # they write under the same keys until it goes is told by its content.
        self.owner.check()
        self._write_marker(marker, replaced)
        logger.info("saved step %d: %d files, %d bytes", saving.step, len(uploaded), sum(uploaded.values()))
        self.storage.delete([*(key for key in there if key not in uploaded), *unfinished])
        for step, (old, files) in leaving.items():
            # The marker first: without its files it would promise what is not there.
            if old is not None:
                self.storage.remove(layout.marker_key(step), old)
            self.storage.delete(entry.key for entry in files)
        self.own = (self.own | {saving.step}) - leaving.keys()
        self.unfinished = set()

    def _write_marker(self, marker: Marker, replaced: bytes | None) -> None:
        key, body = layout.marker_key(marker.step), marker.dump()
        if len(body) > MAX_BYTES:
            files = len(marker.files or ())
            raise UserError(f"a checkpoint of {files} files is more than a marker can list: train with fewer processes")
        try:
            if replaced is None:
                self.storage.write(key, body, only_if_absent=True)
            else:
                self.storage.replace(key, replaced, body)
        except FileExistsError:
            # A retry after a lost answer finds what its first try wrote. Anything else is another writer's.
            if self._read_if_there(key) != body:
                self.owner.check()  # that one's sentence is the better one
                raise

    def _read_if_there(self, key: str) -> bytes | None:
        try:
            return self.storage.read(key)
        except FileNotFoundError:
            return None

    def _files(self, step: int) -> list[Entry]:
        """Whoever saved them."""
        return self.storage.list(layout.step_prefix(self.framework, step))

    def _still_unfinished(self) -> set[str]:
        """Asked again, as the marker of an earlier attempt may have been under way when this one began."""
        if not self.unfinished:
            return set()
        listing = self.storage.list(layout.CHECKPOINTS)
        return self.unfinished & self._unfinished(listing, self._read_markers(listing))
