"""Which checkpoints of a run count, and in which order they are tried.

The rule is that of functions/core/README.md, "Which checkpoints count". A contract with the control plane:
tests/contract/lineage.json holds the vectors that both sides run.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping

from training import layout
from training.checkpoint.marker import Marker


def lineage(markers: Iterable[Marker]) -> dict[str | None, int]:
    """The newest submission of some markers, of which there is one at least, and its ancestors, the nearest first; of
    each the greatest step that counts.

    The rule is that of functions/core/README.md, "Which checkpoints count"; functions/core/src/lineage.rs has it too.
    """
    by_submission: dict[str | None, list[Marker]] = {}
    for marker in sorted(markers, key=lambda marker: marker.step, reverse=True):
        by_submission.setdefault(marker.submission, []).append(marker)
    reach: dict[str | None, int] = {}
    submission, limit = max(by_submission, key=lambda submission: submission or ""), layout.MAX_STEP
    while submission not in reach:
        reach[submission] = limit
        of_it = by_submission.get(submission, [])
        # All of them name one parent, unless a restart found them torn and started elsewhere.
        teller = next((marker for marker in of_it if marker.step <= limit), of_it[-1] if of_it else None)
        if teller is None or teller.parent is None:
            break
        submission, limit = teller.parent["submission"], min(limit, teller.parent["step"])
    return reach


def in_line(markers: Collection[Marker], reach: Mapping[str | None, int]) -> list[Marker]:
    """Those of a lineage: of its newest submission from the last step down, then of the one it resumed, and so on."""
    counting = [marker for marker in markers if marker.step <= reach.get(marker.submission, -1)]
    generations = list(reach)
    return sorted(counting, key=lambda marker: (generations.index(marker.submission), -marker.step))


def in_order(markers: Iterable[Marker]) -> Iterator[Marker]:
    """Markers, the one to try first at the head: the lineage of the newest submission, then that of the newest one that
    is left, and so on.

    Not simply from the highest step down: a run that was begun again must not jump to a step of its former life, unless
    its new one has no complete checkpoint.
    """
    left = list(markers)
    while left:
        reach = lineage(left)
        yield from in_line(left, reach)
        left = [marker for marker in left if marker.submission not in reach]
