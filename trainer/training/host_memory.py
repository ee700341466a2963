"""Whether the memory of a pod is large enough for a save, of which the kernel would let nobody speak."""

import contextlib
import os
from pathlib import Path

from training.errors import UserError

GB = 1e9
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of cgroups v2 and v1


def limit() -> int:
    """Bytes that the processes of this pod may have together: its own limit, or the machine's memory."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in map(Path, LIMITS):
        with contextlib.suppress(OSError, ValueError):
            found.append(int(path.read_text()))  # without a limit v2 says max, and v1 a number beyond all memory
    return min(found)


def check(copied: int) -> None:
    """Raises UserError where a node's memory cannot hold so many bytes, which a save copies there."""
    there = limit()
    if copied > there:
        raise UserError(
            f"a checkpoint is copied to the memory of the host before it is written, {copied / GB:.1f} GB on this "
            f"node, and the pod may have {there / GB:.1f} GB: raise memory_per_node_gb, or take more nodes"
        )
