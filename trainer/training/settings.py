"""How to train: the job's config file and its extra_args, checked. Nothing is ignored that would change anything.

A setting that does not exist, has another type or contradicts another one is refused before anything heavy is imported.
"""

import dataclasses
import difflib
import json
import types
import typing

from training import config_file, training_arguments
from training.errors import UserError

ALIASES = {"gradient_accumulation_steps": "gradient_accumulation"}
WORDS = {
    "precision": ("fp32", "bf16", "fp16"),
    "scheduler": ("linear", "cosine", "constant"),
    "report_to": ("none", "tensorboard"),
}
LEAST = {
    "max_steps": 1,
    "batch_size": 1,
    "gradient_accumulation": 1,
    "logging_steps": 1,
    "save_steps": 1,
    "keep_last": 1,
    "eval_steps": 1,
    "warmup_steps": 0,
    "weight_decay": 0,
    "seed": 0,
    "dataloader_workers": 0,
    "max_seq_len": 2,  # one token predicts nothing
}
ALONE = {"sharded": "nemo"}  # settings of one framework, and which
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    max_steps: int | None = None  # or num_epochs, not both; one epoch when neither is given
    num_epochs: float | None = None
    lr: float = 2e-5  # after the warmup, from where the scheduler takes it to 0 at the last step, or leaves it
    warmup_steps: int = 0
    scheduler: str | None = None  # linear when not given
    weight_decay: float = 0.0
    batch_size: int = 4  # of one process and one micro-step
    gradient_accumulation: int = 1
    max_seq_len: int | None = None  # in tokens; the model's own limit, at most 2048, when not given
    dataset_text_field: str = "text"
    dataloader_workers: int = 0  # processes beside each process that make its batches
    streaming: bool | None = None  # read objects one by one; where the data are large when not given
    precision: str | None = None  # of the arithmetic, weights stay fp32; bf16 on a GPU that has it, else fp32
    sharded: bool = False  # nemo: split weights and optimizer over the processes; meta always does, hf never
    seed: int = 42
    logging_steps: int = 10
    eval_steps: int | None = None  # no evaluation when not given
    save_steps: int = 500
    report_to: str | None = None  # tensorboard: event files beside the logs
    keep_last: int | None = None  # checkpoints of this submission; all of them when not given
    training_arguments: dict[str, typing.Any] = dataclasses.field(default_factory=dict)  # of hf, by transformers' name

    def __post_init__(self) -> None:
        if refused := list(refusals(self)):
            raise refusal(refused)


def refusals(settings: typing.Any) -> typing.Iterator[str]:
    """What is wrong with settings, a sentence each."""
    if settings.max_steps is not None and settings.num_epochs is not None:
        yield f"max_steps {settings.max_steps} and num_epochs {settings.num_epochs} exclude each other: give one"
    if settings.scheduler is not None and "lr_scheduler_type" in settings.training_arguments:
        yield f"scheduler {settings.scheduler} and lr_scheduler_type exclude each other: give one"
    for name, least in LEAST.items():
        value = getattr(settings, name)
        if value is not None and value < least:
            yield f"{name} must be at least {least}, not {value}"
    for name in ("num_epochs", "lr"):
        value = getattr(settings, name)
        if value is not None and not value > 0:
            yield f"{name} must be above 0, not {value}"
    if settings.seed >= 2**32:
        yield f"seed must be below 2^32, not {settings.seed}"
    for name, words in WORDS.items():
        value = getattr(settings, name)
        if value not in (None, *words):
            yield f"{name} must be one of {', '.join(words)}, not {value!r}"
    if settings.sharded and settings.precision == "fp16":
        yield "precision fp16 does not go with sharded: bf16 and fp32 do"
    if not settings.dataset_text_field:
        yield "dataset_text_field must not be empty"


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
    if framework == "hf":
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
    if framework != "hf":
        return ALIASES.get(key, key)
    if key in training_arguments.PRECISIONS:
        return "precision"
    return (ALIASES | training_arguments.ALIASES).get(key, key)


def names(framework: str) -> dict[str, typing.Any]:
    """The types of a framework's settings, but for hf's own ones."""
    hints = typing.get_type_hints(Settings)
    return {name: hint for name, hint in hints.items() if ALONE.get(name, framework) == framework and name != EXTRA}


def checked(
    arguments: dict[str, typing.Any], where: str, framework: str, everything: dict[str, typing.Any], refused: list[str]
) -> dict[str, typing.Any]:
    """Values by the names of their settings; `where` is what a refusal puts before the key.

    `everything` is what is given in both places. What is wrong goes to `refused`, so that one message names all of it.
    """
    types_of = names(framework)
    aliases = ALIASES | training_arguments.ALIASES if framework == "hf" else ALIASES
    extra = training_arguments.names() if framework == "hf" else []
    values: dict[str, typing.Any] = {}
    for key, value in arguments.items():
        name = aliases.get(key, key)
        if framework == "hf" and name in training_arguments.PRECISIONS:
            continue  # they are judged together with precision
        if name == "report_to" and isinstance(value, list) and len(value) < 2:
            value = value[0] if value else "none"
        try:
            if framework == "hf" and training_arguments.changes_nothing(name, value, everything):
                continue
            if name in values:
                raise UserError(f"{where}{key} is given twice, as {name} too")
            if name in types_of:
                values[name] = typed(f"{where}{key}", value, types_of[name])
            elif name in extra:
                training_arguments.check(f"{where}{key}", name, value)
                values[name] = value
            else:
                offered = [*types_of, *aliases, *(name for name in extra if name not in training_arguments.OWNED)]
                near = difflib.get_close_matches(str(key), offered, n=1)
                instead = f": did you mean {near[0]}?" if near else f"; there are: {', '.join(types_of)}"
                raise UserError(f"{where}{key} is no setting of {framework}{instead}")
        except UserError as error:
            refused.append(str(error))
    return values


def typed(key: str, value: typing.Any, annotation: typing.Any) -> typing.Any:
    """The value as its setting's type; JSON's null only where leaving it out means something."""
    kinds = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    if value is None and type(None) in kinds:
        return None
    kind = kinds[0]
    if kind is float and type(value) is int and training_arguments.finite(value):
        value = float(value)
    if type(value) is not kind or (kind is float and not training_arguments.finite(value)):
        raise UserError(f"{key} must be {NAMES[kind]}, not {training_arguments.shown(value)}")
    return value
