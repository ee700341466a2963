"""The work files of a node's processes, and what a container finds of those that an earlier one of its pod has left.

A pod's volume outlives its containers. Whole files of a model or a checkpoint are used again there: each has a note
beside it with the size and ETag of its object, written when the file was whole. All else is deleted at the next start.
"""

import contextlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from training.disk import WORK_DIR
from training.errors import StorageError
from training.storage import Entry, Storage

NOTE = ".whole"  # ends the name of a note
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def directory() -> Iterator[str]:
    """A directory for this node's processes. At its end only what a next container could use is left of it."""
    path = kept_path()
    if path is None:
        # What was left when it was told to stop may still be writing.
        with tempfile.TemporaryDirectory(prefix="train-", ignore_cleanup_errors=True) as name:
            yield name
        return
    clear(path)
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield str(path)
    except BaseException:
        clear(path)
        raise
    shutil.rmtree(path, ignore_errors=True)


def kept_path() -> Path | None:
    """The directory that outlives a container; None outside a pod. No other pod has it, whatever volume it lies on."""
    root, pod = os.environ.get(WORK_DIR), os.environ.get("POD_UID")
    return Path(root, f"train-{pod}") if root and pod else None


def clear(path: Path | None) -> None:
    """Delete all that no other container can use. Without it a full disk would be full at each start."""
    if path and path.is_dir():
        with contextlib.suppress(OSError):
            _delete(path, {file for file in path.rglob("*") if _is_whole(file, _noted(file))})


def prepare(path: Path, wanted: Mapping[Path, Entry]) -> int:
    """Delete what is below a path and is not wanted, another object's or torn. Returns the bytes to be brought."""
    whole = {file for file, entry in wanted.items() if _is_whole(file, _note(entry))}
    if path.is_dir():
        _delete(path, whole)
    if whole:
        logger.info("%d of %d files are there already, from an earlier container", len(whole), len(wanted))
    return sum(entry.size for file, entry in wanted.items() if file not in whole)


def bring(storage: Storage, entry: Entry, target: Path) -> None:
    """Bring an object to a file, unless an earlier container has brought it. Raises StorageError for another size."""
    expected = _note(entry)
    if _is_whole(target, expected):
        return
    note = _path_of_note(target)
    note.unlink(missing_ok=True)
    storage.download(entry.key, target)
    if (size := target.stat().st_size) != entry.size:
        raise StorageError(f"{entry.key} has {size} bytes here, and {entry.size} where it was listed")
    if expected:
        note.write_text(json.dumps(expected))


def _note(entry: Entry) -> dict[str, object] | None:
    """What is noted of an object's file; None where nothing tells one content of a size from another.

    After another start of the machine a file may lack what was not on the disk yet, so it does not count any more.
    """
    if not entry.etag or kept_path() is None:
        return None
    return {"key": entry.key, "size": entry.size, "etag": entry.etag, "boot": BOOT_ID.read_text().strip()}


def _noted(file: Path) -> dict[str, object] | None:
    try:
        found = json.loads(_path_of_note(file).read_text())
        return found if found["boot"] == BOOT_ID.read_text().strip() else None
    except (OSError, ValueError, LookupError, TypeError):  # there is none, or it is torn itself
        return None


def _is_whole(file: Path, expected: Mapping[str, object] | None) -> bool:
    return bool(expected) and _noted(file) == expected and file.is_file() and file.stat().st_size == expected["size"]


def _path_of_note(file: Path) -> Path:
    return file.with_name(f".{file.name}{NOTE}")


def _delete(path: Path, but: set[Path]) -> None:
    """Delete all below a directory but these files and their notes."""
    kept = but | set(map(_path_of_note, but))
    for file in sorted(path.rglob("*"), reverse=True):  # what is in a folder before the folder
        if file in kept:
            continue
        if file.is_dir() and not file.is_symlink():
            with contextlib.suppress(OSError):  # it has something that is kept
                file.rmdir()
        else:
            file.unlink(missing_ok=True)
