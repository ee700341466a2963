"""Which checkpoints of a run count, and in which order they are tried.

The rule is that of functions/run/FORMAT.md, "Which checkpoints count". A contract with the control plane:
tests/contract/lineage.json holds the vectors that both sides run.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping

from training import layout
from training.checkpoint.marker import Marker


def lineage(markers: Iterable[Marker]) -> dict[str | None, int]:
    """The newest submission and its ancestors, the nearest first, each with the highest of its steps that counts.

    There must be at least one marker.
    """
    by_submission: dict[str | None, list[Marker]] = {}
    for marker in sorted(markers, key=lambda marker: marker.step, reverse=True):
        by_submission.setdefault(marker.submission, []).append(marker)
    reach: dict[str | None, int] = {}
    submission, limit = max(by_submission, key=lambda submission: submission or ""), layout.MAX_STEP
    while submission not in reach:
        reach[submission] = limit
        of_it = by_submission.get(submission, [])
        # All markers of a submission name one parent, unless a restart found them torn and resumed another checkpoint.
        decisive = next((marker for marker in of_it if marker.step <= limit), of_it[-1] if of_it else None)
        if decisive is None or decisive.parent is None:
            break
        submission, limit = decisive.parent["submission"], min(limit, decisive.parent["step"])
    return reach


def in_line(markers: Collection[Marker], reach: Mapping[str | None, int]) -> list[Marker]:
    """The markers of a lineage in the order in which they are tried.

    First come those of its newest submission, from the highest step down, then those of the submission that it resumed,
    and so on.
    """
    counting = [marker for marker in markers if marker.step <= reach.get(marker.submission, -1)]
    generations = list(reach)
    return sorted(counting, key=lambda marker: (generations.index(marker.submission), -marker.step))


def in_order(markers: Iterable[Marker]) -> Iterator[Marker]:
    """All markers in the order in which they are tried.

    First comes the lineage of the newest submission, then that of the newest submission that is left, and so on. The
    highest step may come late: a run that was restarted from scratch must not resume a step of a superseded submission,
    unless its lineage has no complete checkpoint.
    """
    left = list(markers)
    while left:
        reach = lineage(left)
        yield from in_line(left, reach)
        left = [marker for marker in left if marker.submission not in reach]
