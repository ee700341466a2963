"""What is deleted when a checkpoint has been saved, and in which order.

First go files without a marker: those of the same step that the new marker does not name, and those that earlier
attempts of this submission left. Then go this submission's older checkpoints beyond `keep_last`, each with its marker
before its files; the best one stays where that is wanted. Other submissions' checkpoints of other steps stay.
"""

import dataclasses
import typing
from collections.abc import Collection, Mapping

from training import layout
from training.checkpoint import snapshot
from training.checkpoint.marker import best_step
from training.checkpoint.snapshot import Snapshot, stored_marker
from training.storage import Storage


@dataclasses.dataclass(frozen=True, kw_only=True)
class Expired:
    """A checkpoint beyond `keep_last`, as it was read."""

    step: int
    marker: bytes | None
    files: list[str]  # keys


@dataclasses.dataclass(frozen=True, kw_only=True)
class Removal:
    """What goes when the checkpoint of a step has been saved."""

    step: int
    files: list[str]  # keys that no marker names
    checkpoints: list[Expired]


class Retention:
    """What one submission keeps and deletes, on rank 0 alone."""

    def __init__(
        self, storage: Storage, *, framework: str, submission: str, keep_last: int | None, keep_best: bool = False
    ) -> None:
        self.storage = storage
        self.framework = framework
        self.submission = submission
        self.keep_last = keep_last
        self.keep_best = keep_best
        self.own: dict[int, Mapping[str, typing.Any]] = {}  # metrics of the steps that this submission has a marker of
        self.unfinished: set[str] = set()  # keys of files that its earlier attempts left without a marker

    def note(self, found: Snapshot) -> None:
        """Remember what this submission's earlier attempts have left."""
        own = [marker for marker in found.markers if marker.submission == self.submission]
        # One whose files are not there is not the best, whatever it reached.
        self.own = {own.step: own.metrics if own.state(found.listing) == "complete" else {} for own in own}
        self.unfinished = unfinished(found, self.framework, self.submission)

    def plan(self, step: int, metrics: Mapping[str, typing.Any], replaced: Collection[str]) -> Removal:
        """Read what goes when a step has been saved. `replaced` are the keys that the step had before."""
        # A higher step is one that this submission could not resume. It does not count as one of the last.
        self.own |= {step: metrics}
        reached = sorted(own for own in self.own if own <= step)
        best = best_step({own: self.own[own] for own in reached}) if self.keep_best else None
        beyond = reached[: -self.keep_last] if self.keep_last else []
        expired = [self._expired(own) for own in beyond if own != best]
        return Removal(step=step, files=[*replaced, *self._still_unfinished()], checkpoints=expired)

    def _expired(self, step: int) -> Expired:
        marker = stored_marker(self.storage, step)
        entries = self.storage.list(layout.step_prefix(self.framework, step))
        return Expired(step=step, marker=marker, files=[entry.key for entry in entries])

    def _still_unfinished(self) -> set[str]:
        """Read again, since an earlier attempt's marker may have been under way when this attempt began."""
        if not self.unfinished:
            return set()
        found = snapshot.read(self.storage, self.framework)
        return self.unfinished & unfinished(found, self.framework, self.submission)

    def remove(self, removal: Removal) -> None:
        """Delete what was planned. A marker that another writer has replaced since stays."""
        self.storage.delete(removal.files)
        for expired in removal.checkpoints:
            # The marker first: without its files it would promise what is not there.
            if expired.marker is not None:
                self.storage.remove(layout.marker_key(expired.step), expired.marker)
            self.storage.delete(expired.files)
        for expired in removal.checkpoints:
            self.own.pop(expired.step, None)
        self.unfinished = set()


def unfinished(found: Snapshot, framework: str, submission: str) -> set[str]:
    """Keys of a submission's files that no marker names: an attempt ended before it had saved, or deleted, all.

    Files of a step whose marker cannot be read are not among them.
    """
    named = {layout.CHECKPOINTS + file.path for marker in found.markers for file in marker.files or ()}
    unread = {layout.parse_marker_key(entry.key) for entry in found.listing} - {marker.step for marker in found.markers}
    keys = [entry.key for entry in found.listing if entry.key not in named]
    saved = {key: layout.parse_checkpoint_key(framework, key) for key in keys}
    return {key for key, file in saved.items() if file and file[1] == submission and file[0] not in unread}
