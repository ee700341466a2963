"""What the three runners do before they train, in one order.

open_run() agrees on the settings, opens the run and chooses the checkpoint to resume. Then the runner fetches the model
as its framework needs it, and read() prepares the texts: what is wrong with them is said before weights are loaded.
settled() completes the settings and finds how the texts fit into the memory, which is said before too. make_plan()
counts the steps and the tokens that are cut off, and writes the configuration.
"""

import contextlib
import dataclasses
import logging
import os
import traceback
import typing
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from training import batch_sizes, configuration, host_memory, loss, model, model_files, training_arguments
from training.attempts import Ledger
from training.batch_sizes import Chosen
from training.checkpoint.checkpoints import Checkpoints
from training.checkpoint.marker import Marker
from training.checkpoint.resume import Download
from training.data import lengths, listing
from training.data.batches import Batch, Collator, evaluation_batches, training_batches
from training.data.order import Order
from training.data.texts import Data, prepare, streams_of
from training.distributed import World
from training.errors import OUT_OF_MEMORY, UserError, is_of_what_was_asked, said_of
from training.job import Job
from training.progress import Progress
from training.settings import Settings
from training.sharded import Split
from training.steps import Steps
from training.storage import Entry, Storage, open_storage

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A job's run as its processes open it."""

    job: Job
    world: World
    settings: Settings  # rank 0's; settled() makes them complete
    storage: Storage
    checkpoints: Checkpoints
    directory: Path  # of this node's processes, deleted at the end
    start: Marker | None  # the checkpoint to resume; None from scratch
    chosen: Chosen | None = None  # how the processes take their texts; settled() knows

    def settled(self, source: str) -> "Run":
        """The run with complete settings, by the config.json of a model's folder; together. Raises UserError."""
        settings = configuration.complete(self.settings, model.config_of(source))
        memory = None
        if self.world.gpu:
            own = torch.cuda.get_device_properties(self.world.local_rank).total_memory
            memory = min(self.world.gather(own))

        def choose() -> dict[str, typing.Any]:
            again = self.world.attempt > 1
            earlier = batch_sizes.pinned(self.storage, self.job.submission) if again else None
            ran_out = again and self._before() == OUT_OF_MEMORY
            chosen = batch_sizes.choose(settings, source, self.world.size, memory, earlier, ran_out=ran_out)
            return dataclasses.asdict(chosen)

        first = self.world.rank == 0
        chosen = Chosen(**self.world.agreed(lambda: choose() if first else None)[0])
        return dataclasses.replace(self, settings=batch_sizes.complete(settings, chosen), chosen=chosen)

    def _before(self) -> str | None:
        """The cause by which the attempt before this one has ended."""
        attempts = Ledger(self.storage, self.job.submission, 0).read()
        return next((attempt.cause for attempt in reversed(attempts) if attempt.attempt < self.world.attempt), None)

    def fetch_model(self, files: Sequence[str] | None = None) -> str:
        """Bring the job's model, or those of its files, to each node; together. Returns its folder."""
        return model_files.fetch(self.job.model_id, self.directory / "model", self.world, files)

    def fetch_model_without_weights(self) -> str:
        """Bring all that describes the job's model and its tokenizer; together. Returns its folder."""
        return self.fetch_model(model_files.BESIDE_WEIGHTS)

    @property
    def split(self) -> Split | None:
        """How the model is split over the processes; None where each has all of it."""
        if not self.settings.sharded:
            return None
        return Split(
            processes=self.world.size,
            device="cuda" if self.world.gpu else "cpu",
            precision=self.settings.precision or "fp32",
        )

    def fetch_checkpoint(self) -> Download | None:
        """Begin to bring the checkpoint to resume to each node; together. None from scratch."""
        if self.start is None:
            return None
        self.checkpoints.resumed = self.directory / "resume"
        return self.checkpoints.download(self.start, self.checkpoints.resumed)

    def read(self, source: str) -> Data:
        """The texts, each of them looked at with the tokenizer of a model's folder; together."""
        uri = self.job.dataset_uri

        def found() -> tuple[list[tuple[str, int]], int]:
            # Rank 0 lists the objects for all processes, since some may be added or deleted meanwhile. What an earlier
            # attempt has trained on is not refused for its names.
            entries = listing.find(uri, several_splits=self.world.attempt > 1)
            # A submission that resumes another one goes on in its order, with as many processes or others.
            resumed = self.start.submission if self.start else None
            streams = listing.streams_before(self.storage, resumed, uri, entries) if resumed else None
            if streams is None or self.settings.streaming not in (None, bool(streams)):
                streams = streams_of(entries, self.settings, self.world)
            entries, streams = listing.pin(self.storage, self.job.submission, uri, entries, streams)
            return [(entry.key, entry.size) for entry in entries], streams

        listed, streams = self.world.on_rank_zero(found)
        entries = [Entry(key=key, size=size, etag=None) for key, size in listed]
        unknown = self.world.on_rank_zero(lambda: model.unknown_tokens(source))
        normalize = model.normalizer(source) if unknown else None
        return prepare(uri, entries, self.settings, self.directory / "data", self.world, unknown, normalize, streams)

    def fetch_best(self) -> Download | None:
        """As fetch_checkpoint(), of this submission's best one. None where none was evaluated."""
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
    texts: Data
    settings: Settings  # complete
    reached: int  # the step that is resumed; 0 from scratch
    total: int
    order: Order
    collator: Collator
    steps: Steps

    def batches(self) -> Iterable[Batch]:
        """This process's batches of all steps that are left."""
        return training_batches(
            self.texts, self.order, self.collator, self.settings, self.run.world, self.reached, self.total
        )

    def held_out(self) -> Iterator[Batch]:
        """This process's batches of an evaluation."""
        return evaluation_batches(self.texts, self.order, self.collator)


@contextlib.contextmanager
def open_run(job: Job, world: World) -> Iterator[Run]:
    """Everything that comes before the model; together."""
    transformers_logging.disable_progress_bar()
    if world.rank > 0:
        transformers_logging.set_verbosity_error()
    settings = configuration.on_these_processes(configuration.agree(job.settings, world), job.framework, world)
    storage = open_storage(job.prefix, "CHECKPOINT_BASE_URI")
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
        yield Run(
            job=job,
            world=world,
            settings=settings,
            storage=storage,
            checkpoints=checkpoints,
            directory=directory,
            start=start,
        )


@contextlib.contextmanager
def as_asked(steps: Steps) -> Iterator[None]:
    """Around what a library does. What it refuses before the first step is over, it would refuse at each start.

    Raises UserError then.
    """
    try:
        yield
    except (
        ArithmeticError,
        AttributeError,
        ImportError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        if not steps.first or not is_of_what_was_asked(error):
            raise
        traceback.print_exc()
        kind = type(error).__name__
        said = said_of(error).removeprefix(f"{kind}: ")
        raise UserError(f"the model cannot be trained with these settings: {kind}: {said}") from error


def make_plan(run: Run, texts: Data, network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Plan:
    """Everything that depends on the model and comes before the first step."""
    settings = run.settings
    order = Order(texts, settings, run.world)
    total = order.steps(settings)
    settings = settings.in_steps(total)
    if run.world.rank == 0:
        configuration.write(run.storage, run.job, settings, run.world, total, run.chosen)
    if loss.can_be(network.config) and not settings.training_arguments.get("torch_compile"):
        loss.install(network)
    model.share_router_loss(network, order.texts)
    collator = Collator(tokenizer, settings.max_seq_len, model.embeddings(network))
    found = lengths.measure(texts, collator, run.world)
    if settings.warmup_steps >= total:
        logger.warning("warmup_steps %d take all %d steps: lr is not reached", settings.warmup_steps, total)
    size = run.checkpoints.size_on_node = size_on_node(network, settings, run.world)
    run.world.agreed(lambda: host_memory.check(size))
    if total > (run.start.step if run.start else 0):
        run.checkpoints.check_room("the first checkpoint")
    if collator.end is None:
        logger.warning("tokenizer and config.json name no end token: no text gets one, and no end is learnt")
    if found.cut_tokens:
        logger.info("%s", found.sentence(settings.max_seq_len))
    peak = run.chosen.peak if run.chosen else None
    progress = Progress(
        run.storage,
        run.job.submission,
        run.world.attempt,
        total,
        cut_off=round(found.share, 4),
        micro_batch=settings.batch_size,
        expected_peak_bytes=None if peak is None else round(peak),
    )
    return Plan(
        run=run,
        texts=texts,
        settings=settings,
        reached=run.start.step if run.start else 0,
        total=total,
        order=order,
        collator=collator,
        steps=Steps(settings, run.world, run.checkpoints, progress, total, run.directory),
    )


def size_on_node(network: PreTrainedModel, settings: Settings, world: World) -> int:
    """The bytes that this node has of a checkpoint, at least: weights and, of an AdamW in fp32, moments."""
    optim = settings.training_arguments.get("optim", training_arguments.DEFAULT_OPTIMIZER)
    keeps_moments = str(optim).startswith("adamw") and "bit" not in str(optim)
    whole = sum(weight.numel() for weight in network.parameters()) * 4 * (3 if keeps_moments else 1)
    if settings.sharded and world.size > 1:
        return whole * int(os.environ.get("LOCAL_WORLD_SIZE", "1")) // world.size
    return whole if world.node == 0 else 0
