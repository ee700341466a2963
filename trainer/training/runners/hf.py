"""The runner for framework=hf: the transformers Trainer on a causal language model.

Each process has a part of the model (FSDP2), or all of it where it is not `sharded` (DDP). The Trainer trains, and the
files of a checkpoint are those of its checkpoint folder, which another Trainer resumes; they are written and uploaded
while training goes on. steps.py decides when to save. checkpoint/ decides what counts as a checkpoint and which one is
resumed. The Trainer decides neither.
"""

import contextlib
import copy
import functools
import math
import typing
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedConfig, TrainerCallback
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME, TRAINING_ARGS_NAME, Trainer
from transformers.trainer_callback import PrinterCallback, TrainerState
from transformers.training_args import TrainingArguments

from training import layout, model, random_state, untrusted
from training.checkpoint import states
from training.checkpoint.resume import Download
from training.distributed import World, sharding
from training.errors import StoppedError, UserError, said_of
from training.export import export
from training.job import Job
from training.optimizer import SCHEDULES, follow_settings
from training.runners import prologue
from training.settings import Settings

# As accelerate calls the parts of weights and optimizer, below which their states have these keys.
WEIGHTS, MOMENTS = ("pytorch_model_fsdp_0", "model"), ("optimizer_0", "optimizer")


def train(job: Job, world: World) -> bool:
    """Train to the last step. Returns False when SIGTERM stopped it earlier; the step that it reached is saved then."""
    with prologue.open_run(job, world) as run, sharding(world) if run.settings.sharded else contextlib.nullcontext():
        resume = run.fetch_checkpoint()  # a checkpoint has the model too
        if resume:
            check_state(resume.path)
        source = str(resume.path) if resume else run.fetch_model()
        texts = run.read(source)
        run = run.settled(source)
        in_parts = resume and (resume.path / WEIGHTS[0]).is_dir()
        network, tokenizer = model.load(source, run.split, weights=not in_parts)
        if resume and in_parts:
            states.read_weights(network, resume.path / WEIGHTS[0], WEIGHTS[1], resume.ranges)
        if run.start and run.start.submission != job.submission:
            config = run.fetch_model(files=["config.json"])
            run.check_same_model(model.shapes_of_config(config), model.shapes(network))
        plan = prologue.make_plan(run, texts, network, tokenizer)

        if not model.takes_items(network) and not plan.order.is_even:
            raise UserError(
                f"{type(network).__name__} weighs micro-steps alike: the processes' shares of global_batch_size "
                f"{plan.settings.global_batch_size} must be as large, and whole micro-steps"
            )
        steps, reached, total = plan.steps, plan.reached, plan.total
        own_config = copy.deepcopy(network.config)  # the Trainer changes it
        if reached < total:
            with prologue.as_asked(steps), untrusted.data_only(run.directory / "resume"):
                trainer = StepTrainer(
                    model=network,
                    args=arguments(plan.settings, world, run.directory / "work", total),
                    train_dataset=texts,
                    data_collator=plan.collator,
                    processing_class=tokenizer,
                )
                trainer.own_config = own_config
                trainer._loss_shifts_labels = True  # it would go by the name of the model's class
                trainer.world = world
                trainer.split = bool(plan.settings.sharded)
                trainer.writers = states.group()
                trainer.resumed = resume
                trainer.remove_callback(PrinterCallback)
                trainer.batches = plan.batches()
                trainer.add_callback(AfterStep(trainer, plan, run.directory / "work"))
                trainer.train(resume_from_checkpoint=source if resume else None)
                run.checkpoints.finish()
            reached = trainer.state.global_step
        else:
            steps.reached_before(reached, run.start.metrics if run.start else {})
        steps.finish()

        if reached < total:
            return False
        network.config = own_config
        try:
            best = run.fetch_best() if plan.settings.load_best_model_at_end else None
        except StoppedError:
            return False  # the next start exports
        if best and (best.path / WEIGHTS[0]).is_dir():
            states.read_weights(network, best.path / WEIGHTS[0], WEIGHTS[1], best.ranges)
        elif best:
            network, _ = model.load(str(best.path), run.split)
        export(network, tokenizer, run.directory / "export", run.storage, job.submission, world)
        return True


def check_state(folder: Path) -> None:
    """Raises UserError where the file of the Trainer's state is not one that the Trainer writes."""
    path = folder / TRAINER_STATE_NAME
    try:
        TrainerState.load_from_json(str(path))
    except (ValueError, TypeError, RecursionError):
        raise untrusted.refusal(path, "is not what the Trainer writes") from None


def arguments(settings: Settings, world: World, directory: Path, total: int) -> TrainingArguments:
    values = {
        "output_dir": str(directory),
        "max_steps": total,
        "learning_rate": settings.lr,
        "lr_scheduler_type": SCHEDULES[settings.scheduler or "linear"],
        "warmup_steps": settings.warmup_steps,
        "weight_decay": settings.weight_decay,
        "per_device_train_batch_size": settings.batch_size,
        "gradient_accumulation_steps": settings.gradient_accumulation,
        "bf16": settings.precision == "bf16" and not settings.sharded,  # where the parts themselves are brought in it
        "fp16": settings.precision == "fp16",
        "activation_checkpointing": bool(settings.gradient_checkpointing),
        "seed": settings.seed,
        "use_cpu": not world.gpu,
        "ddp_backend": None if world.size == 1 else "nccl" if world.gpu else "gloo",
        "ddp_find_unused_parameters": False,
        "remove_unused_columns": False,  # the data set gives texts, not columns
        # steps.py decides what follows a step, and the batches begin at the step that is resumed.
        "save_strategy": "no",
        "logging_strategy": "no",
        "logging_nan_inf_filter": False,
        "ignore_data_skip": True,
        "report_to": "none",
        "disable_tqdm": True,
    }
    given = dict(settings.training_arguments)
    if given.get("lr_scheduler_type") == "constant":
        given["lr_scheduler_type"] = SCHEDULES["constant"]  # the Trainer's one has no warmup
    if not world.gpu:
        given.pop("tf32", None)  # of GPUs alone
    try:
        found = TrainingArguments(**values | given)
    except (ValueError, ImportError) as error:  # of a combination of fields, or of this machine
        raise UserError(f"the TrainingArguments do not go together: {str(error).splitlines()[0]}") from None
    found.report_to = []  # a variable turns some on, whatever report_to says
    return found


class StepTrainer(Trainer):
    """A Trainer with our batches. It keeps the last step's loss and counts tokens without waiting for a GPU.

    Its checkpoints are written beside the training. What they have is copied first: weights and optimizer are `kept`.
    """

    batches: DataLoader
    world: World
    split: bool
    writers: typing.Any
    resumed: Download | None
    own_config: PreTrainedConfig
    kept: states.State
    step_loss: torch.Tensor | float = 0.0
    tokens: torch.Tensor | float = 0.0

    def get_train_dataloader(self) -> DataLoader:
        return self.batches

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        name = "rng_state.pth" if self.world.size == 1 else f"rng_state_{self.world.rank}.pth"
        path = Path(checkpoint) / name
        if not path.is_file():
            return  # another number of processes saved it
        try:
            random_state.restore(random_state.of_trainer(untrusted.load_with_words(path)), self.world)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise untrusted.refusal(path, "is not what the Trainer writes") from None

    def _defer_fsdp_gradient_reduction(self) -> typing.ContextManager[None]:
        """Gradients are summed at each micro-step, so that each process only ever has its part of them."""
        return contextlib.nullcontext()

    def _load_from_checkpoint(self, *args, **kwargs) -> None:
        """The model came with its weights."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        folder, optimizer = Path(checkpoint), self.optimizer.optimizer  # accelerate wraps it
        if (folder / MOMENTS[0]).is_dir():
            states.read_moments(self.model, optimizer, folder / MOMENTS[0], MOMENTS[1], self.resumed.ranges)
        else:
            saved = untrusted.load(folder / OPTIMIZER_NAME)
            check_same_optimizer(optimizer, saved)
            states.set_moments(self.model, optimizer, saved)
        self.lr_scheduler.load_state_dict(untrusted.load(folder / SCHEDULER_NAME))

    def save_model(self, *args, **kwargs) -> None:
        """Keep the weights; write() writes them."""
        self.kept = {}
        if self.split:
            self.kept[WEIGHTS[0]] = states.copied(states.weights(self.model), of_gpu=self.world.gpu)
        elif self.args.should_save:
            self.kept[WEIGHTS[0]] = states.copied(self.model.state_dict())

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        optimizer = self.optimizer.optimizer
        if self.split:
            self.kept[MOMENTS[0]] = states.copied(states.moments(self.model, optimizer), of_gpu=self.world.gpu)
        elif self.args.should_save:
            self.kept[MOMENTS[0]] = states.copied(optimizer.state_dict())
        if self.args.should_save:
            Path(output_dir).mkdir(parents=True, exist_ok=True)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir, SCHEDULER_NAME))

    def write(self, kept: states.State, folder: Path) -> None:
        """Write what was kept; beside the training, in all processes."""
        if self.split:
            for name, key in (WEIGHTS, MOMENTS):
                states.write_parts({key: kept[name]}, folder / name, self.writers)
        elif self.args.should_save:
            self.model.save_pretrained(folder, state_dict=kept[WEIGHTS[0]])
            torch.save(kept[MOMENTS[0]], folder / OPTIMIZER_NAME)
        if self.args.should_save:
            self.own_config.save_pretrained(folder)
            self.model.generation_config.save_pretrained(folder)
            self.processing_class.save_pretrained(folder)
            torch.save(self.args, folder / TRAINING_ARGS_NAME)

    def create_scheduler(self, num_training_steps: int, *args, **kwargs):
        """Tried to its end: some schedules fail at the last step."""
        said = "lr_scheduler_type does not go with lr_scheduler_kwargs"
        try:
            schedule = super().create_scheduler(num_training_steps, *args, **kwargs)
        except (ArithmeticError, TypeError, ValueError) as error:
            raise UserError(f"{said}: {said_of(error)}") from None
        said += " or warmup_steps"
        warmup = self.args.get_warmup_steps(num_training_steps)
        for step in sorted({0, 1, warmup, warmup + 1, num_training_steps - 1, num_training_steps}):
            for factor in getattr(schedule, "lr_lambdas", ()) if 0 <= step <= num_training_steps else ():
                try:
                    rate = self.args.learning_rate * factor(step)
                except (ArithmeticError, TypeError, ValueError) as error:
                    raise UserError(f"{said} at step {step}: {type(error).__name__}: {error}") from None
                if isinstance(rate, complex) or not 0 <= rate < math.inf:
                    raise UserError(f"{said}: they make a learning rate of {rate} at step {step}")
        return schedule

    def get_batch_samples(self, *args, **kwargs):
        batches, items = super().get_batch_samples(*args, **kwargs)
        return batches, None if items is None else items.clamp(min=1)

    def training_step(self, model, inputs, num_items_in_batch=None):
        self.tokens = self.tokens + inputs["attention_mask"].sum()
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.step_loss = self.step_loss + loss
        return loss


def check_same_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, typing.Any]) -> None:
    """Raises UserError where a checkpoint's state is another optimizer's, which torch would load and fail later.

    Each has settings of its own: another version of the same one has more of them, or fewer, but not both. Those of
    bitsandbytes have few, and keep their moments as `state1` and `state2`.
    """
    mine = set(optimizer.defaults)
    theirs = set(saved["param_groups"][0]) - {"params", "initial_lr"}
    moments = states.names_of(saved)
    is_other = bool(mine - theirs and theirs - mine)
    if moments:
        is_other |= ("state1" in moments) is not type(optimizer).__module__.startswith("bitsandbytes")
    if is_other:
        raise states.other_optimizer(optimizer, moments)


class AfterStep(TrainerCallback):
    def __init__(self, trainer: StepTrainer, plan: prologue.Plan, directory: Path) -> None:
        self.trainer = trainer
        self.plan = plan
        self.steps = plan.steps
        self.directory = directory

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        follow_settings(kwargs["optimizer"], kwargs["lr_scheduler"], self.steps.settings)
        # The Trainer then restores the checkpoint's states, where the same number of processes saved it.
        random_state.begin(self.steps.settings.seed, self.steps.world)
        self.steps.begin(state.global_step)

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        self.trainer.step_loss = 0.0

    def on_pre_optimizer_step(self, args, state, control, **kwargs) -> None:
        self.steps.before_update(kwargs["optimizer"])

    def on_step_end(self, args, state, control, **kwargs) -> None:
        state.epoch = self.plan.order.epochs(state.global_step)
        then = self.steps.after(state.global_step, self.trainer.step_loss, self.trainer.tokens, kwargs["optimizer"])
        if then.save:
            self.steps.checkpoints.finish()  # before the next one is copied: there is one in memory at a time
        if then.evaluate:
            held_out = self.plan.held_out()
            self.steps.evaluated(state.global_step, *model.evaluate(self.trainer.model, held_out, args.device))
        control.should_save = then.save
        if then.stop:
            control.should_training_stop = True

    def on_save(self, args, state, control, **kwargs) -> None:
        folder = self.directory / layout.checkpoint_name("hf", state.global_step)
        write = functools.partial(self.trainer.write, self.trainer.kept, folder)
        self.trainer.kept = {}
        self.steps.checkpoints.begin(folder, step=state.global_step, metrics=self.steps.metrics, write=write)
