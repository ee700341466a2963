"""The files and markers of a run at one moment."""

import concurrent.futures
import dataclasses
import logging

from training import layout
from training.checkpoint.marker import Marker, parse
from training.storage import Entry, Storage, WithheldError

READERS = 8  # of markers, at a time

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Snapshot:
    listing: list[Entry]  # of all objects below checkpoints/
    markers: list[Marker]  # those that can be read


def read(storage: Storage, framework: str) -> Snapshot:
    """List a run's objects, then read its markers. A marker that cannot be read is logged and left out."""
    listing = storage.list(layout.CHECKPOINTS)
    keys = [entry.key for entry in listing if layout.parse_marker_key(entry.key) is not None]
    with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
        markers = list(pool.map(lambda key: read_marker(storage, framework, key), keys))
    return Snapshot(listing=listing, markers=[marker for marker in markers if marker])


def read_marker(storage: Storage, framework: str, key: str) -> Marker | None:
    try:
        marker = parse(storage.read(key))
        if (marker.framework, marker.step) != (framework, layout.parse_marker_key(key)):
            raise ValueError("its content contradicts its key")
    except FileNotFoundError:
        return None  # deleted since it was listed
    except (ValueError, WithheldError) as error:
        logger.warning("%s is not a marker: %s", key, error)
        return None
    return marker


def stored_marker(storage: Storage, step: int) -> bytes | None:
    """The bytes under a step's marker key, to be compared when they are replaced; None where there are none."""
    try:
        return storage.read(layout.marker_key(step))
    except FileNotFoundError:
        return None
