"""Which checkpoint a submission resumes, and how it comes to a node."""

import concurrent.futures
import logging
import os
import posixpath
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from training import layout, work
from training.checkpoint.lineage import in_order
from training.checkpoint.marker import File, Marker
from training.checkpoint.saving import PART
from training.checkpoint.snapshot import Snapshot
from training.disk import Disk
from training.errors import UserError
from training.storage import Entry, Storage

DOWNLOADS = 8  # at a time, of a process
LARGEST = 64 * 2**20  # bytes of a request for a part of a file
GAP = 2**14  # bytes that are rather read than made a reason for another request
NAMED = 10  # steps, at most, in the message that refuses one

if typing.TYPE_CHECKING:
    from training.distributed import World

logger = logging.getLogger(__name__)


def checkpoint_to_resume(found: Snapshot, submission: str, *, resume: bool, step: int | None) -> Marker | None:
    """The checkpoint to resume; None to start from scratch. Raises UserError where `step` has no complete one.

    A restart resumes the newest complete checkpoint of its own submission, whatever it was told. A submission without
    one does as told: it resumes the first complete checkpoint in lineage order (`resume`), or that of `step`.
    """
    own = [marker for marker in found.markers if marker.submission == submission]
    others = [marker for marker in found.markers if marker.submission != submission]
    candidates = sorted(own, key=lambda marker: marker.step, reverse=True)
    if resume and step is None:
        candidates += in_order(others)
    for marker in candidates:
        state = marker.state(found.listing)
        if state == "complete":
            return marker
        logger.warning("skips step %d of submission %s: its files are %s", marker.step, marker.submission, state)
    return None if step is None else exactly(step, found)


def exactly(step: int, found: Snapshot) -> Marker:
    """The complete checkpoint of a step, of any submission. Raises UserError rather than take another step."""
    complete = {marker.step: marker for marker in found.markers if marker.state(found.listing) == "complete"}
    if step in complete:
        return complete[step]
    states = [marker.state(found.listing) for marker in found.markers if marker.step == step]
    wrong = f"that checkpoint's files are {states[0]}" if states else "the run has no such checkpoint"
    names = ", ".join(f"step-{other}" for other in sorted(complete)[-NAMED:])
    instead = f"from a complete one ({names})" if names else "without resuming, as it has no complete one"
    raise UserError(f"RESUME is step-{step}, but {wrong}: submit the job again {instead}")


Ranges = Mapping[Path, Sequence[tuple[int, int]]]  # of local files, each from its first byte to before its last


class Download:
    """A checkpoint on its way to a node. What is split over processes comes by the parts that each of them needs."""

    def __init__(self, storage: Storage, marker: Marker, directory: Path, world: "World") -> None:
        self.storage = storage
        self.world = world
        self.directory = directory
        self.files = {directory / file.path: file for file in files_of(marker)}

    @property
    def path(self) -> Path:
        """The file or folder that it is."""
        return self.directory / posixpath.commonpath([file.path for file in self.files.values()])

    def whole_files(self, what: str) -> None:
        """Bring all files but those that have the processes' parts; together.

        Raises DiskFullError where `what` it is does not fit on the disk.
        """
        whole = {target: entry_of(file) for target, file in self.files.items() if not PART.fullmatch(target.name)}

        def download() -> None:
            Disk.here().require(work.prepare(self.directory, whole), what)
            self._at_once(work.bring, [(self.storage, entry, target) for target, entry in whole.items()])

        self.world.agreed(lambda: download() if self.world.local_rank == 0 else None)

    def ranges(self, wanted: Callable[[], Ranges]) -> None:
        """Bring what the processes of this node want of the parts; together. The rest of each file is a hole.

        Raises UserError where a file has no such bytes, and DiskFullError.
        """
        names = {str(target.relative_to(self.directory)): target for target in self.files}

        def mine() -> tuple[int, dict[str, list[tuple[int, int]]]]:
            from training import untrusted  # not before it is known that there is an attempt: it imports torch

            found = wanted()
            for target, ranges in found.items():
                if target not in self.files or max(end for _, end in ranges) > self.files[target].size:
                    raise untrusted.refusal(target, "is not there, or shorter than its .metadata says")
            return self.world.node, {str(target.relative_to(self.directory)): found[target] for target in found}

        of_node: dict[Path, list[tuple[int, int]]] = {}
        for node, found in self.world.agreed(mine):
            for name, ranges in found.items() if node == self.world.node else ():
                of_node.setdefault(names[name], []).extend((start, end) for start, end in ranges)
        requests = [(target, *request) for target, ranges in of_node.items() for request in in_requests(ranges)]

        def make_room() -> None:
            Disk.here().require(sum(end - start for _, start, end in requests), f"the parts of {self.path.name}")
            for target in of_node:
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("ab") as file:
                    file.truncate(self.files[target].size)

        def download(target: Path, start: int, end: int) -> None:
            file = self.files[target]
            self.storage.download_range(layout.CHECKPOINTS + file.path, start, end, target, file.etag)

        self.world.agreed(lambda: make_room() if self.world.local_rank == 0 else None)
        own = requests[self.world.local_rank :: int(os.environ.get("LOCAL_WORLD_SIZE", "1"))]
        self.world.agreed(lambda: self._at_once(download, own))

    @staticmethod
    def _at_once(download: Callable[..., None], what: Iterable[tuple[typing.Any, ...]]) -> None:
        with concurrent.futures.ThreadPoolExecutor(DOWNLOADS) as pool:
            list(pool.map(lambda one: download(*one), what))


def in_requests(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges of a file as few requests of a size that several connections share out well."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if joined and start - joined[-1][1] <= GAP:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((start, end))
    return [
        (begin, min(begin + LARGEST, end))
        for start, end in joined
        for begin in range(start, end, LARGEST)
        if begin < end
    ]


def entry_of(file: File) -> Entry:
    """What the bucket has of a checkpoint's file, as its marker says."""
    return Entry(key=layout.CHECKPOINTS + file.path, size=file.size, etag=file.etag)


def files_of(marker: Marker) -> tuple[File, ...]:
    assert marker.files, "only complete checkpoints are chosen"
    return marker.files
