"""Saving as one process does it: files are uploaded, and a marker makes them a checkpoint.

Each attempt uploads to keys of its own. The marker is written after all files, and it replaces the step's previous
marker by compare-and-swap. So a marker always names files that are there and that no other process touches, and files
without a marker, or with a marker that names others, are not a checkpoint.
"""

import concurrent.futures
import logging
import math
import re
import time
import typing
from collections.abc import Mapping
from pathlib import Path

from training import layout
from training.checkpoint.marker import MAX_BYTES, File, Marker
from training.checkpoint.retention import Retention
from training.checkpoint.snapshot import stored_marker
from training.errors import StorageError, UserError
from training.owner import Owner
from training.storage import Storage

UPLOADS = 8  # at a time

PART = re.compile(r"__([0-9]+)_[0-9]+\.distcp")  # as torch.distributed.checkpoint names what a rank writes

logger = logging.getLogger(__name__)


class Saver:
    """Saves the checkpoints of one attempt."""

    def __init__(
        self,
        storage: Storage,
        owner: Owner,
        retention: Retention,
        *,
        framework: str,
        submission: str,
        attempt: int,
        world_size: int,
    ) -> None:
        self.storage = storage
        self.owner = owner
        self.retention = retention
        self.framework = framework
        self.submission = submission
        self.attempt = attempt
        self.world_size = world_size

    def upload(self, path: Path, step: int, *, rank: int, local_rank: int) -> dict[str, int]:
        """Upload this process's part of a folder, and on local rank 0 all that is nobody's part, or a file.

        Returns their sizes in bytes, by key.
        """
        base, files = (path.parent, [path]) if path.is_file() else (path, path.rglob("*"))
        mine = [file for file in files if not file.is_dir() and is_mine(file.name, rank, local_rank)]
        sources = {self._prefix(step) + file.relative_to(base).as_posix(): file for file in mine}
        with concurrent.futures.ThreadPoolExecutor(UPLOADS) as pool:
            list(pool.map(self.storage.upload, sources.values(), sources.keys()))
        return {key: file.stat().st_size for key, file in sources.items()}

    def commit(
        self,
        step: int,
        uploaded: Mapping[str, int],
        *,
        metrics: Mapping[str, float | None],
        parent: dict[str, typing.Any] | None,
        waited: float = 0.0,
    ) -> None:
        """Make what all processes have uploaded the checkpoint of a step, then delete what is no longer kept.

        `uploaded` are sizes by key, `parent` is what the submission resumed, and `waited` for how many seconds training
        did. Raises SupersededError, and then neither
        writes a marker nor deletes anything, when the run is another submission's or a newer attempt has begun.
        """
        there = {entry.key: entry for entry in self.storage.list(layout.step_prefix(self.framework, step))}
        for key, size in uploaded.items():
            if key not in there or there[key].size != size:
                raise StorageError(f"{key} was uploaded with {size} bytes, and the bucket has none of that size")
        marker = Marker(
            framework=self.framework,
            step=step,
            saved_at=time.time(),
            submission=self.submission,
            attempt=self.attempt,
            parent=parent,
            world_size=self.world_size,
            files=tuple(
                File(path=key.removeprefix(layout.CHECKPOINTS), size=size, etag=there[key].etag)
                for key, size in sorted(uploaded.items())
            ),
            metrics={
                metric: value if value is not None and math.isfinite(value) else None
                for metric, value in metrics.items()
            },
            metadata={"hf_checkpoint_dir": self._prefix(step).rstrip("/")} if self.framework == "hf" else {},
        )
        removal = self.retention.plan(step, marker.metrics, [key for key in there if key not in uploaded])
        replaced = stored_marker(self.storage, step)

        # Everything that is deleted was read before this check, so nothing of a newer submission or attempt is in it.
        # A marker that such a writer puts under one of the keys meanwhile has other content, and stays.
        self.owner.check()
        self._write_marker(marker, replaced)
        size = sum(uploaded.values())
        logger.info("saved step %d: %d files, %d bytes; training waited %.2f s", step, len(uploaded), size, waited)
        self.retention.remove(removal)

    def _prefix(self, step: int) -> str:
        return layout.checkpoint_prefix(self.framework, step, self.submission, self.attempt)

    def _write_marker(self, marker: Marker, replaced: bytes | None) -> None:
        """Compare and swap. Raises FileExistsError where the marker is no longer the one that was read."""
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
            # A retry after a lost response finds what the first try wrote. Any other content is another writer's.
            if stored_marker(self.storage, marker.step) != body:
                self.owner.check()  # its SupersededError says more than FileExistsError
                raise


def is_mine(name: str, rank: int, local_rank: int) -> bool:
    """Whether a process uploads a file of its node: many upload more in a second than one."""
    part = PART.fullmatch(name)
    return rank == int(part[1]) if part else local_rank == 0
