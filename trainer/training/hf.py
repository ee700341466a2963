"""The runner for framework=hf: the transformers Trainer on a causal language model.

The Trainer trains, and its checkpoint folders are the files. When to save, what counts as a checkpoint and where to go
on is decided here and in checkpoint.py, never by the Trainer's own guess.
"""

import dataclasses
import json
import logging
import math
import shutil
from pathlib import Path

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
)
from transformers.trainer import Trainer
from transformers.trainer_callback import PrinterCallback
from transformers.training_args import TrainingArguments
from transformers.utils import logging as transformers_logging

from training import layout, model
from training.checkpoint import Checkpoints, Marker
from training.data import Collator, Texts, download
from training.distributed import World
from training.errors import UserError
from training.job import Job
from training.progress import Progress
from training.settings import Settings
from training.storage import Storage, open_storage

LONGEST = 2048  # tokens of a text, where neither the job nor the model says

logger = logging.getLogger(__name__)


def train(job: Job, world: World) -> bool:
    """Train to the last step. False when it was told to stop before; what it had reached is saved then."""
    transformers_logging.disable_progress_bar()
    if world.rank > 0:
        transformers_logging.set_verbosity_error()
    settings = world.on_rank_zero(lambda: job.settings)  # a config file may have changed between two ranks' reading
    storage = open_storage(job.prefix)
    checkpoints = Checkpoints(
        storage, world, framework=job.framework, submission=job.submission, keep_last=settings.keep_last
    )
    with world.node_directory() as directory:
        start = checkpoints.choose(job.resume, job.resume_step)
        source = fetch(job, world, checkpoints, start, directory)
        texts = Texts(job.dataset_uri, sorted((directory / "data").iterdir()), settings.dataset_text_field)
        network, tokenizer = load(source)
        settings, max_seq_len = complete(settings, network.config, world)
        total = total_steps(len(texts), settings, world.size)
        if world.rank == 0:
            write_configuration(storage, job, settings, world, total)

        progress = Progress(storage, job.submission, world.attempt, total)
        if start is None or start.step < total:
            reporter = Reporter(settings, world, checkpoints, progress, directory / "work", total)
            trainer = StepTrainer(
                model=network,
                args=arguments(settings, world, directory / "work", total),
                train_dataset=texts,
                data_collator=Collator(tokenizer, max_seq_len),
                processing_class=tokenizer,
                callbacks=[reporter],
            )
            trainer.remove_callback(PrinterCallback)
            reporter.trainer = trainer
            trainer.train(resume_from_checkpoint=source if start else None)
            reached = trainer.state.global_step
        else:
            reached = start.step
            logger.info("step %d of %d was reached before", reached, total)
            if world.rank == 0:
                progress.report(reached, start.metrics.get("loss"), 0.0)
        progress.finish()

        if reached < total:
            return False
        if world.rank == 0:
            export(network, tokenizer, directory / "export", storage, job.submission)
        return True


def fetch(job: Job, world: World, checkpoints: Checkpoints, start: Marker | None, directory: Path) -> str:
    """Bring data, and the checkpoint or else the model, to each node. Returns where to load the model from."""
    if world.local_rank == 0:
        download(job.dataset_uri, directory / "data")
    if start:
        return str(checkpoints.download(start, directory / "resume"))
    found = model.locate(job.model_id, directory / "model") if world.local_rank == 0 else None
    return next(place for node, place in world.gather((world.node, found)) if node == world.node and place)


def load(source: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer. Weights are fp32 whatever the file has: in bf16 small steps would be rounded away."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        return AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32), tokenizer
    except (OSError, ValueError) as error:
        raise UserError(f"the model in {source} cannot be loaded: {str(error).splitlines()[0]}") from None


def complete(settings: Settings, config: PreTrainedConfig, world: World) -> tuple[Settings, int]:
    """The settings with what depends on model and machine filled in and checked against them, and max_seq_len."""
    limit = getattr(config, "max_position_embeddings", None)
    max_seq_len = settings.max_seq_len or min(limit or LONGEST, LONGEST)
    if limit and max_seq_len > limit:
        raise UserError(f"max_seq_len {max_seq_len} is beyond the {limit} positions of the model")
    bf16 = world.gpu and torch.cuda.is_bf16_supported()
    precision = settings.precision or ("bf16" if bf16 else "fp32")
    if precision == "fp16" and not world.gpu:
        raise UserError("precision fp16 needs a GPU; bf16 and fp32 do not")
    if precision == "bf16" and world.gpu and not bf16:
        raise UserError("precision bf16 is not supported by this GPU")
    return dataclasses.replace(settings, max_seq_len=max_seq_len, precision=precision), max_seq_len


def total_steps(texts: int, settings: Settings, processes: int) -> int:
    if settings.max_steps:
        return settings.max_steps
    batches = math.ceil(math.ceil(texts / settings.batch_size) / processes)
    return math.ceil((settings.num_epochs or 1) * math.ceil(batches / settings.gradient_accumulation))


def arguments(settings: Settings, world: World, directory: Path, total: int) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(directory),
        max_steps=total,
        learning_rate=settings.lr,
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation,
        bf16=settings.precision == "bf16",
        fp16=settings.precision == "fp16",
        seed=settings.seed,
        data_seed=settings.seed,
        use_cpu=not world.gpu,
        ddp_backend=None if world.size == 1 else "nccl" if world.gpu else "gloo",
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=world.gpu,
        remove_unused_columns=False,  # the data set gives texts, not columns
        # The Reporter saves and logs. The Trainer would go by the steps in the checkpoint that it resumes.
        save_strategy="no",
        logging_strategy="no",
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
    )


def write_configuration(storage: Storage, job: Job, settings: Settings, world: World, total: int) -> None:
    """What this submission trains, and how, with every default spelled out."""
    body = dataclasses.asdict(dataclasses.replace(job, settings=settings)) | {
        "world_size": world.size,
        "total_steps": total,
    }
    for key in layout.config_keys(job.submission):
        storage.write(key, json.dumps(body, indent=2).encode())


def export(
    network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, target: Path, storage: Storage, submission: str
) -> None:
    """The trained model as a Hugging Face folder."""
    network.save_pretrained(target)
    tokenizer.save_pretrained(target)
    for path in sorted(target.iterdir()):
        storage.upload(path, layout.model_prefix(submission) + path.name)
    logger.info("exported the model to %s", layout.model_prefix(submission))


class StepTrainer(Trainer):
    """A Trainer that remembers the last step's loss and counts tokens, on the device and without waiting for it."""

    step_loss: torch.Tensor | float = 0.0
    tokens: torch.Tensor | float = 0.0

    def training_step(self, model, inputs, num_items_in_batch=None):
        self.tokens = self.tokens + inputs["attention_mask"].sum()
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.step_loss = self.step_loss + loss
        return loss


class Reporter(TrainerCallback):
    """Decides at each step, together with the other processes, what to say and whether to save or stop."""

    trainer: StepTrainer

    def __init__(
        self,
        settings: Settings,
        world: World,
        checkpoints: Checkpoints,
        progress: Progress,
        directory: Path,
        total: int,
    ) -> None:
        self.settings = settings
        self.world = world
        self.checkpoints = checkpoints
        self.progress = progress
        self.directory = directory
        self.total = total
        self.first = True
        self.loss: float | None = None

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        follow_settings(kwargs["optimizer"], kwargs["lr_scheduler"], self.settings)
        self.progress.start(state.global_step)

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        self.trainer.step_loss = 0.0

    def on_step_end(self, args, state, control, **kwargs) -> None:
        step, last = state.global_step, state.global_step >= self.total
        stop, due = self.world.any(self.world.stop.is_set(), self.world.rank == 0 and self.progress.due())
        save = last or stop or step % self.settings.save_steps == 0
        report = self.first or last or stop or due
        log = report or step % self.settings.logging_steps == 0
        if log or save:
            loss, tokens = self.world.total([float(self.trainer.step_loss), float(self.trainer.tokens)])
            self.loss = loss / self.world.size
            if log:
                logger.info("step %d/%d loss %.4f", step, self.total, self.loss)
            if report and self.world.rank == 0:
                self.progress.report(step, self.loss, tokens)
        if self.first and self.world.local_rank == 0:
            # Every process has read what it needs of it; a disk holds one checkpoint at a time, two while saving.
            shutil.rmtree(self.directory.with_name("resume"), ignore_errors=True)
        self.first = False
        control.should_save = save
        if stop:
            control.should_training_stop = True

    def on_save(self, args, state, control, **kwargs) -> None:
        folder = self.directory / layout.checkpoint_name(state.global_step)
        self.checkpoints.save(folder, step=state.global_step, loss=self.loss)


def follow_settings(optimizer: torch.optim.Optimizer, scheduler: LambdaLR, settings: Settings) -> None:
    """Train by this job's settings, not by the checkpoint's: another end means another learning rate.

    With the checkpoint's own settings this changes no bit.
    """
    scheduler.base_lrs = [settings.lr for _ in scheduler.base_lrs]
    for group, factor in zip(optimizer.param_groups, scheduler.lr_lambdas, strict=True):
        group["initial_lr"] = settings.lr
        group["lr"] = settings.lr * factor(scheduler.last_epoch)
    decayed = optimizer.param_groups[0]  # the Trainer's second group is what never decays: biases and norms
    decayed["weight_decay"] = settings.weight_decay
