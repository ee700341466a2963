"""How to train: the job's config file and its extra_args, checked. Nothing is ignored that would change anything.

A setting that does not exist, has another type or contradicts another one is refused before anything heavy is imported.
"""

import dataclasses
import difflib
import json
import math
import types
import typing
from typing import Annotated

from training import config_file, training_arguments
from training.errors import UserError

ALIASES = {
    "gradient_accumulation_steps": "gradient_accumulation",
    "micro_batch_size": "batch_size",  # of NeMo and Megatron
    "train_batch_size": "global_batch_size",  # of DeepSpeed
} | training_arguments.ALIASES
WORDS = {
    "precision": ("fp32", "bf16", "fp16"),
    "scheduler": ("linear", "cosine", "constant"),
    "report_to": ("none", "tensorboard"),
}
LEAST = {
    "max_steps": 1,
    "global_batch_size": 1,
    "batch_size": 1,
    "gradient_accumulation": 1,
    "logging_steps": 1,
    "save_steps": 1,
    "keep_last": 1,
    "eval_steps": 1,
    "warmup_steps": 0,
    "skip_non_finite_steps": 0,
    "weight_decay": 0,
    "seed": 0,
    "dataloader_workers": 0,
    "max_seq_len": 2,  # one token predicts nothing
}
ABOVE = {"num_epochs": 0, "lr": 0}
MOST = {
    "seed": 2**32 - 1,
    "global_batch_size": 2**24,
    "batch_size": 2**20,
    "gradient_accumulation": 2**20,
    "dataloader_workers": 256,
}
ALONE = {"load_best_model_at_end": "hf"}  # settings of one framework, and which
ALWAYS = {("meta", "sharded"): True}  # what a framework always does
MOST_SAID = 20  # of what is refused
EXTRA = "training_arguments"  # is no name of a setting, but where hf's own ones are kept
NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    list: "a list",
    dict: "a mapping",
}

Count = int | float  # of steps; below 1 it is a part of all steps, as in transformers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How to train. The table in README.md and the schemas in settings/ are made from it: see schema.py.

    Beside its type a setting has its meaning, and what holds where it is not given, if its default does not say so.
    """

    max_steps: Annotated[int | None, "optimizer steps in all; excludes num_epochs", "num_epochs"] = None
    num_epochs: Annotated[float | None, "passes over the data, when max_steps is not given", "1"] = None
    lr: Annotated[float, "learning rate after the warmup"] = 2e-5
    scheduler: Annotated[
        str | None, "`linear` and `cosine` take it to 0 at the last step, `constant` leaves it", "linear"
    ] = None
    warmup_steps: Annotated[Count, "steps in which it rises first"] = 0
    weight_decay: Annotated[float, "of AdamW, not of biases and norms"] = 0.0
    global_batch_size: Annotated[
        int | None,
        "texts of a step over all processes: it stays with another number of them",
        "batch_size x gradient_accumulation x processes",
    ] = None
    batch_size: Annotated[
        int | None,
        "texts of one process in one micro-step; where a GPU has no room for them, they are taken in several",
        "4, or with global_batch_size what fits",
    ] = None
    gradient_accumulation: Annotated[int | None, "micro-steps of a step", "1, or with global_batch_size its rest"] = (
        None
    )
    max_seq_len: Annotated[int | None, "tokens of a text; the rest is cut", "the model's, at most 2048"] = None
    dataset_text_field: Annotated[str, "field of a JSON line that holds the text"] = "text"
    dataloader_workers: Annotated[int, "processes beside each process that make its batches"] = 0
    streaming: Annotated[
        bool | None,
        "each process has its own objects of an epoch, two at a time on disk; else all data are on each node's disk. "
        "All objects are read once at the start",
        "from 16 GiB on",
    ] = None
    precision: Annotated[str | None, "arithmetic; weights are fp32 always", "bf16 on a GPU that has it, else fp32"] = (
        None
    )
    sharded: Annotated[
        bool | None,
        "weights, gradients and optimizer are split over the processes (FSDP2); with false each has all of them (DDP)",
        "true with several processes, unless precision is fp16 or optim cannot be split",
    ] = None
    gradient_checkpointing: Annotated[
        bool | None,
        "activations are computed again in the backward pass: less memory, some 30 % more time",
        "where a GPU has no room for one text without",
    ] = None
    skip_non_finite_steps: Annotated[
        int,
        "steps of an attempt that may have gradients that are not finite: each changes nothing, and the one after them "
        "ends the job",
    ] = 0
    seed: Annotated[int, "of data order and dropout"] = 42
    logging_steps: Annotated[Count, "steps between log lines"] = 10
    eval_steps: Annotated[
        Count | None,
        "steps between evaluations, the last step included; every 20th text of the last object, 1,000 at most, is then "
        "kept out of training",
        "never",
    ] = None
    save_steps: Annotated[Count, "steps between checkpoints; the last step is always saved"] = 500
    load_best_model_at_end: Annotated[
        bool,
        "the model of the step with the least eval_loss is exported, not the last one, and its checkpoint is kept; "
        "save_steps must be a multiple of eval_steps",
    ] = False
    report_to: Annotated[str | None, "`tensorboard`: event files beside the logs", "none"] = None
    # A checkpoint has 12 bytes a weight: five of an 8B model are half a terabyte, where a week's hundred would be ten.
    keep_last: Annotated[int | None, "checkpoints of this submission that are kept; null keeps all"] = 5
    training_arguments: dict[str, typing.Any] = dataclasses.field(default_factory=dict)  # of hf, by transformers' name

    def __post_init__(self) -> None:
        if refused := list(refusals(self)):
            raise refusal(refused)

    def in_steps(self, total: int) -> "Settings":
        """The settings with each part of all steps as a number of them, rounded up as transformers does."""
        parts = {name: part for name in COUNTS if isinstance(part := getattr(self, name), float)}
        steps = {name: math.ceil(total * part) for name, part in parts.items()}
        if self.load_best_model_at_end and {"save_steps", "eval_steps"} <= parts.keys():
            # Each rounded up alone, the one would be no multiple of the other.
            steps["save_steps"] = steps["eval_steps"] * round(parts["save_steps"] / parts["eval_steps"])
        return dataclasses.replace(self, **steps)


COUNTS = tuple(
    name for name, hint in typing.get_type_hints(Settings).items() if {int, float} <= {*typing.get_args(hint)}
)


def refusals(settings: typing.Any) -> typing.Iterator[str]:
    """What is wrong with settings, a sentence each."""
    if settings.max_steps is not None and settings.num_epochs is not None:
        yield f"max_steps {settings.max_steps} and num_epochs {settings.num_epochs} exclude each other: give one"
    if settings.scheduler is not None and "lr_scheduler_type" in settings.training_arguments:
        yield f"scheduler {settings.scheduler} and lr_scheduler_type exclude each other: give one"
    for name, least in LEAST.items():
        value = getattr(settings, name)
        if value is not None and value < least and not (name in COUNTS and 0 < value < 1):
            yield f"{name} must be at least {least}, not {value}"
    for name, bound in ABOVE.items():
        value = getattr(settings, name)
        if value is not None and not value > bound:
            yield f"{name} must be above {bound}, not {value}"
    for name, most in MOST.items():
        value = getattr(settings, name)
        if value is not None and value > most:
            yield f"{name} must be at most {most}, not {value}"
    for name, words in WORDS.items():
        value = getattr(settings, name)
        if value not in (None, *words):
            yield f"{name} must be one of {', '.join(words)}, not {value!r}"
    if settings.sharded and (reason := unsplit(settings)):
        yield f"{reason} does not go with sharded: leave sharded out"
    if settings.skip_non_finite_steps and settings.precision == "fp16":
        yield "skip_non_finite_steps does not go with precision fp16, which passes over such steps by itself"
    if not settings.dataset_text_field:
        yield "dataset_text_field must not be empty"
    if settings.load_best_model_at_end:
        yield from training_arguments.best_refusals(settings.save_steps, settings.eval_steps)
    yield from training_arguments.unread(
        settings.training_arguments, settings.scheduler, settings.gradient_checkpointing
    )
    ddp = [name for name in training_arguments.OF_DDP if settings.training_arguments.get(name)]
    if ddp and settings.sharded is not False:
        yield f"{', '.join(ddp)} is of processes that have all weights each: say sharded false too, or leave it out"
    if settings.training_arguments.get("ddp_static_graph") and (settings.gradient_accumulation or 1) > 1:
        yield "ddp_static_graph does not go with gradient_accumulation above 1: leave it out"


def unsplit(settings: typing.Any) -> str | None:
    """The setting, as it is said, with which hf and nemo do not split the weights; None where they can."""
    optimizer = settings.training_arguments.get("optim", training_arguments.DEFAULT_OPTIMIZER)
    if settings.precision == "fp16":
        return "precision fp16"
    return None if optimizer in training_arguments.SPLIT else f"optim {optimizer}"


def refusal(refused: list[str]) -> UserError:
    """Everything that is wrong, in one message, of a length that people read."""
    count = f"{len(refused)} settings are refused: " if len(refused) > 1 else ""
    more = [f"and {len(refused) - MOST_SAID} more"] if len(refused) > MOST_SAID else []
    return UserError(count + "; ".join(refused[:MOST_SAID] + more))


def parse(text: str, config_path: str | None = None, framework: str = "hf") -> Settings:
    """Settings from the JSON object of TRAINING_EXTRA_ARGS_JSON, and from a file where that has none."""
    try:
        arguments = json.loads(text, object_pairs_hook=config_file.without_twins)
    except (ValueError, RecursionError) as error:
        raise UserError(f"extra_args cannot be read: {error}") from None
    if not isinstance(arguments, dict):
        raise UserError("extra_args must be a JSON object")
    of_file = config_file.read(config_path) if config_path else {}
    given = {canonical(key, framework) for key in arguments}
    overridden = {key: value for key, value in of_file.items() if canonical(key, framework) in given}
    left = {key: value for key, value in of_file.items() if key not in overridden}
    everything = left | arguments
    where = f"CONFIG_PATH {config_path}: "
    refused: list[str] = []
    values = checked(arguments, "extra_args.", framework, everything, refused)
    values = checked(left, where, framework, everything, refused) | values
    checked(overridden, where, framework, of_file, refused)
    try:
        precision = training_arguments.precision(everything)
        values |= {"precision": precision} if precision else {}
    except UserError as error:
        refused.append(str(error))
    types_of = names(framework)
    extra = {name: value for name, value in values.items() if name not in types_of and value is not None}
    known = {name: value for name, value in values.items() if name in types_of} | {EXTRA: extra}
    if refused:
        defaults = {field.name: field.default for field in dataclasses.fields(Settings)}
        raise refusal(refused + list(refusals(types.SimpleNamespace(**defaults | known))))
    return Settings(**known)


def canonical(key: typing.Any, framework: str) -> typing.Any:
    """The name under which a key is one setting, whatever it is called: extra_args take the place of the file's."""
    if key in training_arguments.PRECISIONS:
        return "precision"
    if key == "lr_scheduler_type" and framework != "hf":
        return "scheduler"
    return ALIASES.get(key, key)


def names(framework: str, *, include_extras: bool = False) -> dict[str, typing.Any]:
    """The types of a framework's settings, but for hf's own ones; with what is annotated beside them, if wanted."""
    hints = typing.get_type_hints(Settings, include_extras=include_extras)
    return {name: hint for name, hint in hints.items() if ALONE.get(name, framework) == framework and name != EXTRA}


def offered(framework: str) -> list[str]:
    """All names that a framework takes with values that change something."""
    own = [name for name in training_arguments.own(framework) if name not in names(framework)]
    return [*names(framework), *(alias for alias, name in ALIASES.items() if name in names(framework)), *own]


def checked(
    arguments: dict[str, typing.Any], where: str, framework: str, everything: dict[str, typing.Any], refused: list[str]
) -> dict[str, typing.Any]:
    """Values by the names of their settings; `where` is what a refusal puts before the key.

    `everything` is what is given in both places. What is wrong goes to `refused`, so that one message names all of it.
    """
    types_of = names(framework)
    values: dict[str, typing.Any] = {}
    keys: dict[str, str] = {}  # under which they are given
    for key, value in arguments.items():
        if key in training_arguments.PRECISIONS:
            continue  # they are judged together with precision
        name = canonical(key, framework)
        if name == "report_to" and isinstance(value, list) and len(value) < 2 and None not in value:
            value = value[0] if value else "none"
        if key == "lr_scheduler_type" and name == "scheduler" and isinstance(value, str):
            value = training_arguments.SCHEDULERS.get(value, value)
        try:
            if key == "warmup_ratio":
                value = part_of_all(f"{where}{key}", value)
            own = name in types_of or name in training_arguments.own(framework)
            if value is None and not own and training_arguments.reason(name, framework):
                continue  # what it has in a dump of all arguments
            if training_arguments.changes_nothing(name, value, everything, framework):
                continue
            if name in values and (says_nothing(name, value) or (value is False and values[name] is False)):
                continue
            if name in values and not says_nothing(name, values[name]):
                raise UserError(f"{where}{key} is given twice, as {keys[name]} too")
            keys[name] = key
            if name in types_of:
                values[name] = typed(f"{where}{key}", value, types_of[name])
                always = ALWAYS.get((framework, name))
                if always is not None and values[name] not in (None, always):
                    raise UserError(
                        f"{where}{key} cannot be {json.dumps(value)} in framework {framework}: leave it out"
                    )
            elif name in training_arguments.own(framework):
                values[name] = training_arguments.check(f"{where}{key}", name, value)
            elif reason := training_arguments.reason(name, framework):
                raise UserError(f"{where}{key} cannot be set: {reason}")
            else:
                there = offered(framework)
                near = [training_arguments.CALLED.get(key)] if training_arguments.CALLED.get(key) in there else []
                near = near or difflib.get_close_matches(str(key), there, n=1)
                instead = f": did you mean {near[0]}?" if near else f"; there are: {', '.join(types_of)}"
                raise UserError(f"{where}{key} is no setting of {framework}{instead}")
        except UserError as error:
            refused.append(str(error))
    return values


def part_of_all(key: str, value: typing.Any) -> typing.Any:
    """A part of all steps as a count of steps has it, in which 1 is one step: the number below it is all steps."""
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise UserError(f"{key} must be a part of all steps, from 0 to 1, not {training_arguments.shown(value)}")
    return math.nextafter(1, 0) if value == 1 else value


def says_nothing(name: str, value: typing.Any) -> bool:
    """Whether another name of the setting may say it: a dump of all arguments has null or zero under the others."""
    return value is None or (type(value) in (int, float) and value == 0 and LEAST.get(name) == 0)


def typed(key: str, value: typing.Any, annotation: typing.Any) -> typing.Any:
    """The value as its setting's type; JSON's null only where leaving it out means something."""
    kinds = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    if value is None and type(None) in kinds:
        return None
    kind = kinds[0]
    if type(value) is int and kind is float and training_arguments.finite(value):
        value = float(value)
    if type(value) is float and kind is int and value.is_integer():  # in JSON 5.0 is 5
        value = int(value)
    if float in kinds and type(value) is float and 0 < value < 1:
        kind = float
    if type(value) is not kind or (kind is float and not training_arguments.finite(value)):
        meaning = f"{NAMES[kind]}, or a part of all steps below 1" if float in kinds[1:] else NAMES[kind]
        raise UserError(f"{key} must be {meaning}, not {training_arguments.shown(value)}")
    return value
