"""What the three runners do before they train, in one order.

open_run() agrees on the settings, opens the run, chooses the checkpoint to resume and prepares the texts. Then the
runner fetches and loads the model as its framework needs it. make_plan() does what depends on the model: it completes
the settings, counts the steps and writes the configuration.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from training import configuration, model
from training.checkpoint.checkpoints import Checkpoints
from training.checkpoint.marker import Marker
from training.data.batches import Batch, Collator, evaluation_batches, training_batches
from training.data.order import Order
from training.data.texts import Data, prepare
from training.distributed import World
from training.job import Job
from training.progress import Progress
from training.settings import Settings
from training.steps import Steps
from training.storage import Storage, open_storage

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A job's run as its processes open it."""

    job: Job
    world: World
    settings: Settings  # rank 0's; what depends on the model is open
    storage: Storage
    checkpoints: Checkpoints
    directory: Path  # of this node's processes, deleted at the end
    start: Marker | None  # the checkpoint to resume; None from scratch
    texts: Data

    def fetch_model(self, files: Sequence[str] | None = None) -> str:
        """Bring the job's model, or those of its files, to each node; together. Returns its folder."""
        return model.fetch(self.job.model_id, self.directory / "model", self.world, files)

    def fetch_checkpoint(self) -> Path | None:
        """Bring the checkpoint to resume to each node; together. Returns its file or folder; None from scratch."""
        return self.checkpoints.download(self.start, self.directory / "resume") if self.start else None

    def fetch_best(self) -> Path | None:
        """Bring this submission's best checkpoint to each node; together. None where none was evaluated."""
        best = self.checkpoints.best()
        if best is None:
            logger.warning("no step of this submission has an eval_loss: the last one is exported")
            return None
        logger.info("the best step is %d, with eval_loss %.4f", best.step, best.metrics["eval_loss"])
        return self.checkpoints.download(best, self.directory / "best")

    def check_same_model(self, mine: model.Shapes, saved: model.Shapes) -> None:
        """Raises UserError where the checkpoint to resume is another model's."""
        assert self.start, "from scratch there is nothing to compare with"
        model.check_same(self.job.model_id, mine, saved, self.start.step)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What a runner trains: the steps from `reached` to `total`."""

    run: Run
    settings: Settings  # complete
    reached: int  # the step that is resumed; 0 from scratch
    total: int
    order: Order
    collator: Collator
    steps: Steps

    def batches(self) -> Iterable[Batch]:
        """This process's batches of all steps that are left."""
        return training_batches(
            self.run.texts, self.order, self.collator, self.settings, self.run.world, self.reached, self.total
        )

    def held_out(self) -> Iterator[Batch]:
        """This process's batches of an evaluation."""
        return evaluation_batches(self.run.texts, self.order, self.collator)


@contextlib.contextmanager
def open_run(job: Job, world: World) -> Iterator[Run]:
    """Everything that comes before the model; together."""
    transformers_logging.disable_progress_bar()
    if world.rank > 0:
        transformers_logging.set_verbosity_error()
    settings = configuration.agree(job.settings, world)
    storage = open_storage(job.prefix)
    checkpoints = Checkpoints(
        storage,
        world,
        framework=job.framework,
        submission=job.submission,
        keep_last=settings.keep_last,
        keep_best=settings.load_best_model_at_end,
    )
    with world.node_directory() as directory:
        start = checkpoints.choose(job.resume, job.resume_step)
        texts = prepare(job.dataset_uri, settings, directory / "data", world)
        yield Run(
            job=job,
            world=world,
            settings=settings,
            storage=storage,
            checkpoints=checkpoints,
            directory=directory,
            start=start,
            texts=texts,
        )


def make_plan(run: Run, network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Plan:
    """Everything that depends on the model and comes before the first step."""
    settings = configuration.complete(run.settings, network.config, run.world)
    order = Order(run.texts, settings, run.world)
    total = order.steps(settings)
    settings = settings.in_steps(total)
    if run.world.rank == 0:
        configuration.write(run.storage, run.job, settings, run.world, total)
    progress = Progress(run.storage, run.job.submission, run.world.attempt, total)
    return Plan(
        run=run,
        settings=settings,
        reached=run.start.step if run.start else 0,
        total=total,
        order=order,
        collator=Collator(tokenizer, settings.max_seq_len, model.embeddings(network)),
        steps=Steps(settings, run.world, run.checkpoints, progress, total, run.directory),
    )
