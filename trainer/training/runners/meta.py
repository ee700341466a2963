"""The runner for framework=meta: torch alone, with FSDP2 and torch.distributed.checkpoint.

Several processes split weights, gradients and optimizer. A checkpoint is written and uploaded while training goes on.
One process writes a file; several write a folder, each its own part.
"""

import dataclasses
import functools
import typing
from collections.abc import Callable
from pathlib import Path

import torch
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from transformers import PreTrainedModel

from training import layout, model, optimizer, random_state, sharded, untrusted
from training.checkpoint import states
from training.data.batches import Batch, predicted
from training.distributed import World, sharding
from training.errors import UserError
from training.export import export
from training.job import Job
from training.runners import prologue
from training.settings import Settings


def train(job: Job, world: World) -> bool:
    """Train to the last step. Returns False when SIGTERM stopped it earlier; the step that it reached is saved then."""
    with prologue.open_run(job, world) as run, sharding(world):
        resume = run.fetch_checkpoint()  # a checkpoint has the weights too
        source = run.fetch_model_without_weights() if resume else run.fetch_model()
        texts = run.read(source)
        run = run.settled(source)
        network, tokenizer = model.load(source, run.split, weights=not resume)
        if resume:
            run.check_same_model(model.shapes(network), model.saved_shapes(resume.path, "model"))
        plan = prologue.make_plan(run, texts, network, tokenizer)

        steps, reached, total = plan.steps, plan.reached, plan.total
        with prologue.as_asked(steps):
            training = Training(network, plan.settings, world, total)
            if resume:
                training.load(resume.path, resume.ranges)
            else:
                random_state.begin(plan.settings.seed, world)
            if reached < total:
                batches = iter(plan.batches())
                steps.begin(reached)
                for step in range(reached + 1, total + 1):
                    micro = [next(batches) for _ in range(plan.settings.gradient_accumulation)]
                    training.step(micro, steps.before_update)
                    reached = step
                    then = steps.after(step, training.step_loss, training.tokens, training.optimizer)
                    if then.evaluate:
                        with training.arithmetic():
                            evaluated = model.evaluate(network, plan.held_out(), training.device)
                        steps.evaluated(step, *evaluated)
                    if then.save:
                        run.checkpoints.finish()  # before the next one is copied: there is one in memory at a time
                        path = run.directory / "work" / layout.checkpoint_name("meta", step, sharded=world.size > 1)
                        write = functools.partial(training.write, training.state(step), path)
                        run.checkpoints.begin(path, step=step, metrics=steps.metrics, write=write)
                    if then.stop:
                        break
                run.checkpoints.finish()
            else:
                steps.reached_before(reached, run.start.metrics if run.start else {})
        steps.finish()

        if reached < total:
            return False
        export(network, tokenizer, run.directory / "export", run.storage, job.submission, world)
        return True


class Training:
    """The model, its optimizer, and all else that changes with each step.

    Gradients are summed over the processes at each micro-step, so that each process only ever has its part of them.
    """

    def __init__(self, network: PreTrainedModel, settings: Settings, world: World, total: int) -> None:
        if not model.takes_items(network):
            raise UserError(f"{type(network).__name__} computes its loss in a way that framework hf alone can train")
        self.network = network
        self.settings = settings
        self.world = world
        self.device = torch.device("cuda", world.local_rank) if world.gpu else torch.device("cpu")
        if settings.gradient_checkpointing:
            network.activation_checkpointing_enable({"use_reentrant": False})
        network.to(self.device)  # the buffers; the weights are there already
        self.optimizer = optimizer.adamw(network, settings)
        self.schedule = optimizer.schedule(self.optimizer, settings, total)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=settings.precision == "fp16")
        self.saving_group = states.group()
        self.step_loss: torch.Tensor | float = 0.0
        self.tokens: torch.Tensor | float = 0.0

    def arithmetic(self) -> typing.ContextManager[object]:
        """Around what a model computes whose weights are not split: FSDP2 brings their parts in their arithmetic."""
        precision = self.settings.precision or "fp32"
        casts = precision != "fp32" and not self.settings.sharded
        return torch.autocast(self.device.type, sharded.ARITHMETIC[precision] if casts else None, enabled=casts)

    def step(self, batches: list[Batch], before_update: Callable[[torch.optim.Optimizer], None]) -> None:
        """One step of the optimizer; the loss is the mean over all tokens of all processes' batches."""
        (items,) = self.world.total([float(sum(map(predicted, batches)))])
        self.step_loss = 0.0
        for batch in batches:
            batch = model.to_device(batch, self.device)
            self.tokens = self.tokens + batch["attention_mask"].sum()
            # Gradients are averaged over the processes, but the loss is divided by the tokens of all of them.
            with self.arithmetic():
                loss = self.network(**batch, num_items_in_batch=max(items, 1), use_cache=False).loss * self.world.size
            self.scaler.scale(loss).backward()
            self.step_loss = self.step_loss + loss.detach()
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), optimizer.CLIP)
        before_update(self.optimizer)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        self.optimizer.zero_grad()

    def state(self, step: int) -> dict[str, typing.Any]:
        """A copy of everything, on the CPU; together."""
        options = StateDictOptions(full_state_dict=self.world.size == 1, cpu_offload=True)
        weights, moments = get_state_dict(self.network, self.optimizer, options=options)
        state = {"model": weights, "optimizer": moments, "scaler": self.scaler.state_dict(), "step": step}
        state[self._random_key()] = random_state.state(self.world)
        return states.copied(state, of_gpu=self.world.gpu)

    def write(self, state: dict[str, typing.Any], path: Path) -> None:
        if self.world.size > 1:
            states.write_parts(state, path, self.saving_group)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(state, path)

    def load(self, path: Path, fetch: untrusted.Fetch) -> None:
        """Resume a checkpoint of any number of processes; together."""
        options = StateDictOptions(full_state_dict=path.is_file())
        if path.is_file():
            state = untrusted.load(path)
            world_size = 1
        else:
            weights, moments = get_state_dict(self.network, self.optimizer)
            state = {"model": weights, "optimizer": moments, "scaler": self.scaler.state_dict(), "step": 0}
            metadata = untrusted.read_metadata(path)
            states.leave_out_untrained(moments, metadata, "optimizer")
            keys = metadata.state_dict_metadata
            world_size = next(int(key.partition("of")[2].partition(".")[0]) for key in keys if key.startswith("random"))
            if world_size == self.world.size:
                state[self._random_key()] = random_state.state(self.world)
            untrusted.load_sharded(state, path, fetch)
        set_model_state_dict(self.network, state["model"], options=options)
        options = dataclasses.replace(options, strict=False)  # there are weights that nothing has trained
        set_optimizer_state_dict(self.network, self.optimizer, state["optimizer"], options=options)
        states.forget_untrained(self.network, self.optimizer, state["optimizer"])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        optimizer.follow_settings(self.optimizer, self.schedule, self.settings, state["step"])
        if world_size == self.world.size:
            random_state.restore(state[self._random_key()], self.world)
        else:
            random_state.begin(self.settings.seed, self.world)

    def _random_key(self) -> str:
        return f"random{self.world.rank}of{self.world.size}"
