"""The disk of a job's work files: how much of it a job may use, what it uses, and whether more fits.

A kubelet evicts a pod that has more on its disk than its limits allow, or whose node has little left. That looks as if
the cluster had moved the pod, which is free, and happens again in the next one. So the trainer counts too, and ends as
`storage` before: what a step of its work needs is asked for first, and disk_watch.py looks at all else.
"""

import dataclasses
import functools
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

from training.errors import DiskFullError

WORK_DIR = "TRAINER_WORK_DIR"
LOG_DIR = "TRAINER_LOG_DIR"
LIMIT = "TRAINER_DISK_LIMIT"
GIB = 2**30
# A kubelet evicts where less than this part of the node's disk is left (its default nodefs.available<10%).
NODE_KEEPS = 0.1
UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}
UNITS |= {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50}
QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?(?:[eE][0-9]+)?)([kKMGTP]?i?)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Disk:
    """Where work files lie. Sizes are in bytes."""

    path: Path
    counted: tuple[Path, ...]  # the folders that a kubelet counts
    limit: int | None  # what they may have together
    kept_back: int  # of the file system

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Disk":
        work = environment.get(WORK_DIR)
        path = Path(work or environment.get("TMPDIR") or tempfile.gettempdir())
        whole, free = _file_system(path)
        # The log's volume is always the node's disk; a volume of its own no kubelet looks at.
        logs = environment.get(LOG_DIR)
        is_of_node = work and logs and _device(path) == _device(Path(logs))
        kept_back = int(whole * NODE_KEEPS) if is_of_node else 0
        return cls(
            path=path,
            counted=tuple(Path(folder) for folder in (work, logs) if folder),
            limit=limit_of(environment.get(LIMIT) or ""),
            # Where less is left already, no kubelet minds.
            kept_back=kept_back if free > kept_back else 0,
        )

    @staticmethod
    @functools.cache
    def here() -> "Disk":
        """This process's, as it was when somebody asked first."""
        return Disk.of(os.environ)

    def available(self, used: int | None = None) -> int:
        """What may be written. Below 0 where a kubelet may evict the pod at any time. `used` is used(), if known."""
        left = _file_system(self.path)[1] - self.kept_back
        if self.limit is None:
            return left
        return min(left, self.limit - min(GIB, self.limit // 20) - (self.used() if used is None else used))

    def used(self) -> int:
        """What is in the folders that a kubelet counts, as it counts."""
        return sum(map(size_of, self.counted))

    def require(self, size: int, what: str) -> None:
        """Raises DiskFullError where so many bytes more do not fit. `what` needs them."""
        left = max(self.available(), 0)
        if size > left:
            where = f"the disk at {self.path}, where {gib(left)} are left"
            raise DiskFullError(f"{what} needs {gib(size)} on {where}: {self._size()}")

    def state(self) -> str:
        """How full it is, and what to do about it."""
        return f"the disk at {self.path} is full: {self._size()}"

    def _size(self) -> str:
        if self.limit is not None:
            return f"the job may use {gib(self.limit)} of it; raise disk_per_node_gb"
        whole = gib(_file_system(self.path)[0])
        return f"it has {whole} for all of its node; set disk_per_node_gb to get a node with room"


def limit_of(quantities: str) -> int | None:
    """The least of Kubernetes' quantities, which commas separate; None without any. Raises ValueError for others."""
    sizes = []
    for quantity in filter(None, quantities.split(",")):
        found = QUANTITY.fullmatch(quantity.strip())
        if not found or found[2] not in UNITS:
            raise ValueError(f"{LIMIT} must have quantities such as 250Gi, not {quantity!r}")
        sizes.append(int(float(found[1]) * UNITS[found[2]]))
    return min(sizes, default=None)


def gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB // 10 else f"{size / 2**20:.1f} MiB"


def _file_system(path: Path) -> tuple[int, int]:
    """Its size, and what is free for this user."""
    found = os.statvfs(_existing(path))
    return found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize


def _device(path: Path) -> int:
    return _existing(path).stat().st_dev


def _existing(path: Path) -> Path:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def size_of(folder: Path) -> int:
    """The blocks of all files below a folder, each file once. Files that go meanwhile do not count."""
    size, seen = 0, set()
    for root, folders, names in os.walk(folder):
        for name in folders + names:
            try:
                status = Path(root, name).lstat()
            except OSError:
                continue
            if (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                size += status.st_blocks * 512
    return size
