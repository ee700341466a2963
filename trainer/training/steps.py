"""What comes after each step: the processes agree whether to log, evaluate, save or stop, and rank 0 tells.

When to save is decided here and not by a framework, which would go by the settings of the checkpoint that it resumes.
"""

import dataclasses
import logging
import math
import time
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path

from training.checkpoint.checkpoints import Checkpoints
from training.distributed import World
from training.errors import UserError
from training.events import Events
from training.progress import Progress
from training.settings import Settings

if typing.TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)


SKIPPED = 10  # steps that fp16 may pass over in a row


def all_finite(tensors: "Iterable[torch.Tensor]") -> bool:
    """Whether they have finite numbers alone, as far as this process has them."""
    import torch

    own = [tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in map(torch.Tensor.detach, tensors)]
    largest = torch.nn.utils.get_total_norm([tensor for tensor in own if tensor.numel()], math.inf)
    return math.isfinite(float(largest))


def trained(optimizer: "torch.optim.Optimizer") -> "list[torch.Tensor]":
    """The weights that an optimizer trains."""
    return [weight for group in optimizer.param_groups for weight in group["params"]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Next:
    """What all processes do after a step."""

    evaluate: bool
    save: bool
    stop: bool  # as told by SIGTERM


class Steps:
    def __init__(
        self,
        settings: Settings,
        world: World,
        checkpoints: Checkpoints,
        progress: Progress,
        total: int,
        directory: Path,
    ) -> None:
        self.settings = settings
        self.world = world
        self.checkpoints = checkpoints
        self.progress = progress
        self.total = total
        self.directory = directory
        self.events: Events | None = None
        if settings.report_to == "tensorboard" and world.rank == 0:
            self.events = Events(progress.storage, progress.submission, world.attempt, directory / "events")
        self.first = True
        self.judged = 0  # the step up to which all losses were judged
        self.broken: typing.Any = 0.0  # of the losses since, those that are not finite
        self.skipped = 0  # steps of this attempt that were passed over
        self.skips = False  # the step that is being taken
        self.metrics: dict[str, float | None] = {}  # of the last step that was asked for its own

    def begin(self, step: int) -> None:
        """Together; raises StoppedError."""
        self.world.go_on()
        self.judged = step
        self.progress.start(step)
        if self.events:
            self.events.start(step)

    def before_update(self, optimizer: "torch.optim.Optimizer") -> None:
        """Together, when a step's gradients are there. Without them the optimizer changes nothing of what it has.

        A step whose gradients are not finite is passed over so, as often as the settings allow. Raises UserError then.
        """
        if not self.settings.skip_non_finite_steps:
            return  # asking costs the GPU a wait
        gradients = [weight.grad for weight in trained(optimizer) if weight.grad is not None]
        (self.skips,) = self.world.any(not all_finite(gradients))
        if not self.skips:
            return
        self.skipped += 1
        if self.skipped > self.settings.skip_non_finite_steps:
            self.diverged(f"the gradients of {self.skipped} steps were not finite")
        logger.warning(
            "a step is passed over: its gradients are not finite (%d of skip_non_finite_steps %d)",
            self.skipped,
            self.settings.skip_non_finite_steps,
        )
        for weight in trained(optimizer):
            weight.grad = None

    def after(self, step: int, loss: typing.Any, tokens: typing.Any, optimizer: "torch.optim.Optimizer") -> Next:
        """Together. `loss` is this process's share in the mean over all, `tokens` are those of it since it began.

        Both may be numbers on a GPU, for which nobody waits when nobody asks.

        Raises UserError where a loss was not finite, or a weight that is to be saved is not.
        """
        last = step >= self.total
        stop, due, saving = self.world.any(
            self.world.stop.is_set(), self.world.rank == 0 and self.progress.due(), self.checkpoints.pending()
        )
        if stop or not saving:
            self.checkpoints.finish()
        evaluate = bool(self.settings.eval_steps) and not stop and (last or step % (self.settings.eval_steps or 1) == 0)
        save = last or step % self.settings.save_steps == 0
        if stop and not last:
            (too_late,) = self.world.any(self.checkpoints.too_late(self.world.stop.left()))
            save = not too_late
            if too_late:
                logger.info("step %d is not saved: a save takes longer than is left until SIGKILL", step)
        report = self.first or last or stop or due
        log = report or step % self.settings.logging_steps == 0
        if not self.skips:
            self.broken = self.broken + (loss - loss != 0)
        self.skips = False
        if log or save:
            weights = float(save and not all_finite(trained(optimizer)))
            sum_of_losses, all_tokens, broken, weights = self.world.total(
                [float(loss), float(tokens), float(self.broken), weights]
            )
            self.judge(step, broken, weights)
            self.metrics = {"loss": sum_of_losses / self.world.size}
            if log:
                logger.info("step %d/%d loss %.4f", step, self.total, self.metrics["loss"])
                if self.events:
                    self.events.step(step, self.metrics["loss"], optimizer.param_groups[0]["lr"], all_tokens)
            if report and self.world.rank == 0:
                self.progress.report(step, self.metrics["loss"], all_tokens)
        self.first = False
        self.checkpoints.asked = time.monotonic()
        return Next(evaluate=evaluate, save=save, stop=stop)

    def judge(self, step: int, broken: float, weights: float) -> None:
        """Together, with the sums of all processes. Raises UserError where training has diverged."""
        steps = step - self.judged
        # In fp16 the scaler passes over a step that overflows, and only when all of them do nothing is learnt.
        fp16 = self.settings.precision == "fp16"
        if fp16 and steps < SKIPPED and step < self.total:
            losses = False
        else:
            losses = broken >= steps * self.world.size if fp16 else broken > 0
            self.judged, self.broken = step, 0.0
        if not losses and not weights:
            return
        what = "a weight" if weights else "every loss" if fp16 else "a loss"
        when = f"between steps {step - steps + 1} and {step}" if losses and steps > 1 else f"at step {step}"
        self.diverged(f"{what} is not finite {when}")

    def diverged(self, what: str) -> typing.NoReturn:
        """Together. Raises UserError."""
        self.checkpoints.finish()  # what is still on its way is from before
        raise UserError(
            f"training has diverged: {what}, with lr {self.settings.lr:g}; the checkpoints from "
            "before stay, and no other is saved. Lower lr, add warmup_steps, or check the texts of these steps"
        )

    def evaluated(self, step: int, loss: float, tokens: float) -> None:
        """Tell the mean loss of the texts that are held out; together. Both are this process's sums."""
        loss, tokens = self.world.total([loss, tokens])
        self.metrics = self.metrics | {"eval_loss": loss / tokens if tokens else math.nan}
        logger.info("step %d/%d eval_loss %.4f", step, self.total, self.metrics["eval_loss"])
        if self.events:
            self.events.add(step, {"eval_loss": self.metrics["eval_loss"]})
        self.checkpoints.asked = time.monotonic()

    def reached_before(self, step: int, metrics: Mapping[str, typing.Any]) -> None:
        """Tell that there is nothing to train."""
        logger.info("step %d of %d was reached before", step, self.total)
        if self.world.rank == 0:
            self.progress.report(step, metrics.get("loss"), 0.0)

    def finish(self) -> None:
        """Wait for what is still being told."""
        self.progress.finish()
        if self.events:
            self.events.finish()
