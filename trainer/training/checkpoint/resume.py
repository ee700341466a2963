"""Which checkpoint a submission resumes, and downloading its files."""

import concurrent.futures
import logging
import posixpath
from pathlib import Path

from training import layout, work
from training.checkpoint.lineage import in_order
from training.checkpoint.marker import File, Marker
from training.checkpoint.snapshot import Snapshot
from training.errors import UserError
from training.storage import Entry, Storage

DOWNLOADS = 8  # at a time
NAMED = 10  # steps, at most, in the message that refuses one

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


def download_files(storage: Storage, marker: Marker, directory: Path) -> None:
    """Download a checkpoint's files below a directory: local_path() says where they are."""

    def download(file: File) -> None:
        work.bring(storage, entry_of(file), directory / file.path)

    with concurrent.futures.ThreadPoolExecutor(DOWNLOADS) as pool:
        list(pool.map(download, files_of(marker)))


def entry_of(file: File) -> Entry:
    """What the bucket has of a checkpoint's file, as its marker says."""
    return Entry(key=layout.CHECKPOINTS + file.path, size=file.size, etag=file.etag)


def local_path(marker: Marker, directory: Path) -> Path:
    """The file or folder that download_files() leaves below a directory."""
    return directory / posixpath.commonpath([file.path for file in files_of(marker)])


def files_of(marker: Marker) -> tuple[File, ...]:
    assert marker.files, "only complete checkpoints are chosen"
    return marker.files
