"""AdamW and its learning rate, the same in all frameworks; the transformers Trainer makes its own likewise."""

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler
from transformers.trainer_pt_utils import get_parameter_names

from training.settings import Settings

CLIP = 1.0  # greatest norm of the gradients, the Trainer's default

# Parts of names of what never decays, biases and norms: those of Trainer.get_decay_parameter_names.
UNDECAYED = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]

# The Trainer's name of each schedule.
SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}


def adamw(network: nn.Module, settings: Settings, *, fused: bool = True) -> torch.optim.AdamW:
    decayed = set(get_parameter_names(network, [nn.LayerNorm], UNDECAYED))
    parameters = [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for name, p in parameters if name in decayed], "weight_decay": settings.weight_decay},
        {"params": [p for name, p in parameters if name not in decayed], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.lr, fused=fused)


def schedule(optimizer: torch.optim.Optimizer, settings: Settings, total: int) -> LambdaLR:
    return get_scheduler(
        SCHEDULES[settings.scheduler or "linear"],
        optimizer,
        num_warmup_steps=settings.warmup_steps,
        num_training_steps=total,
    )


def follow_settings(
    optimizer: torch.optim.Optimizer, scheduler: LambdaLR, settings: Settings, step: int | None = None
) -> None:
    """Train by this job's settings, not by the checkpoint's: another end means another learning rate.

    With the checkpoint's own settings this changes no bit. A schedule that was not loaded goes on from the step.
    """
    if step is not None:
        scheduler.last_epoch = step
    scheduler.base_lrs = [settings.lr for _ in scheduler.base_lrs]
    for group, factor in zip(optimizer.param_groups, scheduler.lr_lambdas, strict=True):
        group |= {name: value for name, value in optimizer.defaults.items() if name not in ("lr", "weight_decay")}
        group["initial_lr"] = settings.lr
        group["lr"] = settings.lr * factor(scheduler.last_epoch)
    decayed = optimizer.param_groups[0]  # the second group is what never decays
    decayed["weight_decay"] = settings.weight_decay
