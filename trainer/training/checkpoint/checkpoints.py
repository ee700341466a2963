"""The checkpoints of a run as the processes of one submission choose, download and save them together.

Files are written and uploaded in the background. Only the two ends of saving, begin() and finish(), stop the training.
A framework that can write while it trains goes on training between them.
"""

import dataclasses
import logging
import shutil
import time
import typing
from collections.abc import Callable, Mapping
from pathlib import Path

from training.background import in_background
from training.checkpoint import snapshot
from training.checkpoint.marker import Marker, best_step, rebuilt
from training.checkpoint.resume import Download, checkpoint_to_resume
from training.checkpoint.retention import Retention
from training.checkpoint.saving import Saver
from training.disk import Disk, size_of
from training.errors import DiskFullError
from training.owner import Owner
from training.storage import Storage

if typing.TYPE_CHECKING:
    import concurrent.futures

    from training.distributed import World

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Saving:
    """A checkpoint that is being saved."""

    step: int
    path: Path  # of its file or folder on this node
    metrics: Mapping[str, float | None]
    began: float  # by time.monotonic()
    waited: float  # seconds that the training did
    uploaded: "concurrent.futures.Future[tuple[dict[str, int], float]]"  # bytes by key, of this process, and until when


class Checkpoints:
    """All processes call a method whose docstring says `together`."""

    def __init__(
        self,
        storage: Storage,
        world: "World",
        *,
        framework: str,
        submission: str,
        keep_last: int | None,
        keep_best: bool = False,
    ) -> None:
        self.storage = storage
        self.world = world
        self.framework = framework
        self.submission = submission
        self.owner = Owner(storage, submission, world.attempt)
        self.retention = Retention(
            storage, framework=framework, submission=submission, keep_last=keep_last, keep_best=keep_best
        )
        self.saver = Saver(
            storage,
            self.owner,
            self.retention,
            framework=framework,
            submission=submission,
            attempt=world.attempt,
            world_size=world.size,
        )
        self.parent: dict[str, typing.Any] | None = None  # submission and step that this submission resumed
        self.saving: Saving | None = None
        self.asked = time.monotonic()  # since when the training has waited for begin()
        self.took: float | None = None  # seconds of the last save of this attempt, with the copy and the marker
        self.size_on_node = 0  # bytes that a checkpoint has on this node's disk, as far as it is known
        self.resumed: Path | None = None  # the files of the checkpoint that was resumed, until the next one is saved

    def choose(self, resume: bool, step: int | None = None) -> Marker | None:
        """The checkpoint to resume, None to start from scratch; together. The rule is checkpoint_to_resume()'s."""
        fields = self.world.on_rank_zero(
            lambda: dataclasses.asdict(found) if (found := self._choose(resume, step)) else None
        )
        chosen = rebuilt(fields) if fields else None
        if chosen is None:
            logger.info("starts at step 0%s", ": the run has no complete checkpoint" if resume else "")
        elif chosen.submission == self.submission:
            self.parent = chosen.parent
            logger.info("resumes its own step %d", chosen.step)
        else:
            self.parent = {"submission": chosen.submission, "step": chosen.step} if chosen.submission else None
            logger.info("resumes step %d of submission %s", chosen.step, chosen.submission)
        return chosen

    def _choose(self, resume: bool, step: int | None) -> Marker | None:
        self.owner.check()
        found = snapshot.read(self.storage, self.framework)
        self.retention.note(found)
        return checkpoint_to_resume(found, self.submission, resume=resume, step=step)

    def best(self) -> Marker | None:
        """Of this submission's complete checkpoints the one with the least eval_loss; None without any; together."""
        fields = self.world.on_rank_zero(lambda: dataclasses.asdict(found) if (found := self._best()) else None)
        return rebuilt(fields) if fields else None

    def _best(self) -> Marker | None:
        found = snapshot.read(self.storage, self.framework)
        complete = {
            marker.step: marker
            for marker in found.markers
            if marker.submission == self.submission and marker.state(found.listing) == "complete"
        }
        step = best_step({step: marker.metrics for step, marker in complete.items()})
        return None if step is None else complete[step]

    def download(self, marker: Marker, directory: Path) -> Download:
        """Download a checkpoint's files below `directory` on each node, but for the processes' parts; together."""
        download = Download(self.storage, marker, directory, self.world)
        download.whole_files(f"the checkpoint of step {marker.step}")
        return download

    def begin(
        self,
        path: Path,
        *,
        step: int,
        metrics: Mapping[str, float | None],
        write: Callable[[], object] = lambda: None,
    ) -> None:
        """Begin to save a file or folder as a checkpoint, and return; together.

        `write` makes it in the background, with the `write` of the other processes, and returns when all of them have
        written. It must not touch anything that training changes. One checkpoint is saved at a time: begin() first
        finishes the previous one.
        """
        self.finish()
        if self.resumed and self.world.local_rank == 0:
            # All have read it by now. A container that starts again before this has it still; two take twice the disk.
            shutil.rmtree(self.resumed, ignore_errors=True)
        self.resumed = None
        self.check_room(f"the checkpoint of step {step}")
        # A framework that writes by itself has now written in each process of the node.

        writing = [write]

        def write_and_upload() -> tuple[dict[str, int], float]:
            writing.pop()()  # and what it has written needs no memory any more
            sizes = self.saver.upload(path, step, rank=self.world.rank, local_rank=self.world.local_rank)
            return sizes, time.monotonic()

        began = time.monotonic()
        waited = began - self.asked
        self.saving = Saving(
            step=step, path=path, metrics=metrics, began=began, waited=waited, uploaded=in_background(write_and_upload)
        )

    def too_late(self, left: float | None) -> bool:
        """Whether a save would not end within so many seconds, and this attempt has saved one that stays."""
        return left is not None and self.took is not None and left < self.took

    def check_room(self, what: str) -> None:
        """Raises DiskFullError in all processes where one node's disk has no room for a checkpoint; together."""
        size = self.size_on_node - (size_of(self.resumed) if self.resumed else 0)

        def lacks() -> str | None:
            try:
                Disk.here().require(max(size, 0), what)
            except DiskFullError as error:
                return str(error)
            return None

        for lacking in self.world.gather(lacks() if self.world.local_rank == 0 else None):
            if lacking is not None:
                raise DiskFullError(lacking)

    def pending(self) -> bool:
        """Whether this process still writes or uploads. When no process does, finish() does not wait."""
        return self.saving is not None and not self.saving.uploaded.done()

    def finish(self) -> None:
        """Wait for the checkpoint that was begun, if any, and commit it; together."""
        if self.saving is None:
            return
        saving, self.saving = self.saving, None
        sizes, until = self.world.together(saving.uploaded.result)
        uploaded = {key: size for of_process in self.world.gather(sizes) for key, size in of_process.items()}
        commits = time.monotonic()
        self.world.on_rank_zero(
            lambda: self.saver.commit(
                saving.step, uploaded, metrics=saving.metrics, parent=self.parent, waited=saving.waited
            )
        )
        self.took = saving.waited + until - saving.began + time.monotonic() - commits
        if self.world.local_rank == 0:
            # Where rank 0 alone writes, other nodes have nothing.
            shutil.rmtree(saving.path) if saving.path.is_dir() else saving.path.unlink(missing_ok=True)
