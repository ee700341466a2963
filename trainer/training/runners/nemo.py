"""The runner for framework=nemo: Lightning on a causal language model.

Each process has a part of the model (ModelParallelStrategy, which is FSDP2), or all of it where it is not `sharded`
(DDP). A checkpoint is Lightning's own: a sharded folder or a file. steps.py decides when to save, and no callback of
Lightning's does. Lightning says what a checkpoint has; it is written and uploaded while training goes on.
"""

import contextlib
import functools
import logging
import os
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.load import _METADATA_FILENAME
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy, Strategy
from transformers import PreTrainedModel

from training import layout, model, optimizer, random_state, untrusted
from training.checkpoint import states
from training.checkpoint.resume import Download
from training.data.batches import Batch, predicted
from training.distributed import World, sharding
from training.errors import UserError
from training.export import export
from training.job import Job
from training.runners import prologue
from training.settings import Settings
from training.steps import Steps

PRECISIONS: dict[str, typing.Any] = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def train(job: Job, world: World) -> bool:
    """Train to the last step. Returns False when SIGTERM stopped it earlier; the step that it reached is saved then."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    with prologue.open_run(job, world) as run, sharding(world) if run.settings.sharded else contextlib.nullcontext():
        resume = run.fetch_checkpoint()  # a checkpoint has the weights too
        source = run.fetch_model_without_weights() if resume else run.fetch_model()
        texts = run.read(source)
        run = run.settled(source)
        network, tokenizer = model.load(source, run.split, weights=not resume)
        if resume:
            run.check_same_model(model.shapes(network), model.saved_shapes(resume.path, "state_dict", "network."))
        plan = prologue.make_plan(run, texts, network, tokenizer)

        steps, reached, total = plan.steps, plan.reached, plan.total
        batches = StepBatches(plan.batches(), plan.settings, world)
        module = Module(network, plan.settings, world, total)
        after_step = AfterStep(steps, plan.held_out, run.directory / "work")
        trainer = lightning_trainer(plan.settings, world, total, after_step, run.directory / "lightning")
        with prologue.as_asked(steps), untrusted.data_only(run.directory / "resume"):
            trainer.strategy.resumed = resume
            trainer.fit(module, batches, ckpt_path=resume and resume.path, weights_only=True)
        run.checkpoints.finish()
        if reached < total:
            reached = trainer.global_step
        else:
            steps.reached_before(reached, run.start.metrics if run.start else {})
        steps.finish()

        if reached < total:
            return False
        export(network, tokenizer, run.directory / "export", run.storage, job.submission, world)
        return True


def lightning_trainer(
    settings: Settings, world: World, total: int, after_step: "AfterStep", directory: Path
) -> pl.Trainer:
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    trainer = pl.Trainer(
        accelerator="gpu" if world.gpu else "cpu",
        devices=processes,
        num_nodes=world.size // processes,
        strategy=strategy(settings, world),
        # Where the weights are split, their parts are brought in the precision of the arithmetic.
        precision=PRECISIONS["fp32" if settings.sharded else settings.precision or "fp32"],
        max_steps=total,
        max_epochs=-1,
        accumulate_grad_batches=settings.gradient_accumulation,
        gradient_clip_val=optimizer.CLIP,
        callbacks=[after_step],
        default_root_dir=directory,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    # Lightning's handler of SIGTERM would communicate with other processes at any moment. Ours only sets a flag.
    trainer._signal_connector.register_signal_handlers = lambda: None
    return trainer


def strategy(settings: Settings, world: World) -> Strategy:
    if settings.sharded:
        return Sharded(data_parallel_size=world.size, tensor_parallel_size=1)
    if world.size > 1:
        return Replicated(find_unused_parameters=False)
    return Single(device=torch.device("cuda", world.local_rank) if world.gpu else torch.device("cpu"))


class Resumable:
    """What all strategies do alike: they go on from a checkpoint of either form, and keep what the next one has.

    Lightning would load all of it in each process, and write while the training waits.
    """

    restore_checkpoint_after_setup = True  # when the optimizer is there
    lightning_restore_optimizer = False
    resumed: Download | None = None
    kept: states.State = {}  # noqa: RUF012  set as a whole

    def load_checkpoint(self, checkpoint_path, weights_only=None):
        path, module = Path(checkpoint_path), self.lightning_module
        (adamw,) = self.optimizers
        if path.is_dir():
            states.read_weights(module, path, "state_dict", self.resumed.ranges)
            states.read_moments(module, adamw, path, "optimizer_0", self.resumed.ranges)
            return untrusted.load(path / _METADATA_FILENAME)
        state = untrusted.load(path)
        states.set_weights(module, state.pop("state_dict"))
        (moments,) = state.pop("optimizer_states")
        states.set_moments(module, adamw, moments)
        return state

    def load_model_state_dict(self, checkpoint, strict=True):
        """Done by load_checkpoint()."""

    def save_checkpoint(self, checkpoint, filepath, storage_options=None):
        self.kept = states.copied(checkpoint) if self.global_rank == 0 else {}

    def write(self, kept: states.State, path: Path) -> None:
        """Write what save_checkpoint() has kept; beside the training."""
        if kept:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(kept, path)


class Single(Resumable, SingleDeviceStrategy): ...


class Replicated(Resumable, DDPStrategy): ...


class Sharded(Resumable, ModelParallelStrategy):
    """Each node has its own path of a checkpoint, not rank 0's as in Lightning."""

    def setup_environment(self):
        super().setup_environment()
        self.writers = states.group()

    def broadcast(self, obj, src=0):
        return obj if isinstance(obj, str | Path) else super().broadcast(obj, src)

    def save_checkpoint(self, checkpoint, filepath, storage_options=None):
        self.kept = states.copied(checkpoint, of_gpu=self.root_device.type == "cuda")

    def write(self, kept: states.State, path: Path) -> None:
        (moments,) = kept.pop("optimizer_states")
        parts = {"state_dict": kept.pop("state_dict"), "optimizer_0": moments}
        states.write_parts(parts, path, self.writers)
        if self.global_rank == 0:
            torch.save(kept, path / _METADATA_FILENAME)


class Module(pl.LightningModule):
    """The model, its optimizer, and the random states of all processes. Lightning would save rank 0's alone."""

    def __init__(self, network: PreTrainedModel, settings: Settings, world: World, total: int) -> None:
        super().__init__()
        if not model.takes_items(network):
            raise UserError(f"{type(network).__name__} computes its loss in a way that framework hf alone can train")
        if settings.gradient_checkpointing:
            network.activation_checkpointing_enable({"use_reentrant": False})
        self.network = network
        self.settings = settings
        self.world = world
        self.total = total
        self.random_states: list[typing.Any] = []
        self.step_loss: torch.Tensor | float = 0.0
        self.tokens: torch.Tensor | float = 0.0

    def configure_model(self) -> None:
        """Lightning asks for it. The model was split when it was loaded."""

    def configure_optimizers(self):
        # In mixed precision Lightning does not clip the gradients of a fused optimizer.
        fused = bool(self.settings.sharded) or self.settings.precision == "fp32"
        adamw = optimizer.adamw(self.network, self.settings, fused=fused)
        schedule = optimizer.schedule(adamw, self.settings, self.total)
        return {"optimizer": adamw, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        (scheduler,) = self.trainer.lr_scheduler_configs
        optimizer.follow_settings(self.trainer.optimizers[0], scheduler.scheduler, self.settings)
        if len(self.random_states) == self.world.size:
            random_state.restore(self.random_states[self.world.rank], self.world)
        else:
            random_state.begin(self.settings.seed, self.world)
        self.network.train()

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        if batch_idx % self.settings.gradient_accumulation == 0:
            self.step_loss = 0.0
        self.tokens = self.tokens + batch["attention_mask"].sum()
        # Gradients are averaged over the processes, but the loss is divided by the tokens of all of them.
        loss = self.network(**batch, use_cache=False).loss * self.world.size
        self.step_loss = self.step_loss + loss.detach()
        return loss * self.settings.gradient_accumulation  # by which Lightning divides it

    def on_save_checkpoint(self, checkpoint: dict[str, typing.Any]) -> None:
        checkpoint["random_states"] = random_state.of_all(self.world)

    def on_load_checkpoint(self, checkpoint: dict[str, typing.Any]) -> None:
        self.random_states = checkpoint["random_states"]
        # Lightning steps where accumulation divides its count of batches: count as if it had never been another one.
        batches = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
        missing = checkpoint["global_step"] * self.settings.gradient_accumulation - batches["ready"]
        batches |= {name: number + missing for name, number in batches.items()}


class AfterStep(pl.Callback):
    def __init__(self, steps: Steps, held_out: typing.Callable[[], Iterable[Batch]], directory: Path) -> None:
        self.steps = steps
        self.held_out = held_out
        self.directory = directory

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.steps.begin(trainer.global_step)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        self.steps.before_update(optimizer)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if (batch_idx + 1) % self.steps.settings.gradient_accumulation:
            return
        step = trainer.global_step
        then = self.steps.after(step, pl_module.step_loss, pl_module.tokens, trainer.optimizers[0])
        if then.evaluate:
            with trainer.precision_plugin.val_step_context():
                self.steps.evaluated(
                    step, *model.evaluate(pl_module.network, self.held_out(), trainer.strategy.root_device)
                )
        if then.save:
            sharded = bool(self.steps.settings.sharded)
            path = self.directory / layout.checkpoint_name("nemo", step, sharded=sharded)
            self.steps.checkpoints.finish()  # before the next one is copied: there is one in memory at a time
            trainer.save_checkpoint(path)  # to which the strategy says what to keep
            write = functools.partial(trainer.strategy.write, trainer.strategy.kept, path)
            trainer.strategy.kept = {}
            self.steps.checkpoints.begin(path, step=step, metrics=self.steps.metrics, write=write)
        if then.stop:
            trainer.should_stop = True


class StepBatches:
    """The batches, each with the number of tokens that its step predicts in all batches of all processes."""

    def __init__(self, batches: Iterable[Batch], settings: Settings, world: World) -> None:
        self.batches = batches
        self.accumulation = settings.gradient_accumulation
        self.world = world

    def __iter__(self) -> Iterator[dict[str, typing.Any]]:
        batches = iter(self.batches)
        while step := [batch for _, batch in zip(range(self.accumulation), batches, strict=False)]:
            (items,) = self.world.total([float(sum(map(predicted, step)))])
            for batch in step:
                yield batch | {"num_items_in_batch": max(items, 1)}
