"""How to train: the job's config file and its extra_args, checked. Nothing that is given is ignored.

A setting that does not exist, has another type or contradicts another one is refused before anything heavy is imported.
"""

import dataclasses
import json
import math
import types
import typing

from training import config_file
from training.errors import UserError

ALIASES = {"gradient_accumulation_steps": "gradient_accumulation"}
PRECISIONS = ("fp32", "bf16", "fp16")
NAMES = {int: "a whole number", float: "a number", str: "text", list: "a list", dict: "a mapping"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    max_steps: int | None = None  # or num_epochs, not both; one epoch when neither is given
    num_epochs: float | None = None
    lr: float = 2e-5  # decays linearly to 0 at the last step
    warmup_steps: int = 0
    weight_decay: float = 0.0
    batch_size: int = 4  # of one process and one micro-step
    gradient_accumulation: int = 1
    max_seq_len: int | None = None  # in tokens; the model's own limit, at most 2048, when not given
    dataset_text_field: str = "text"
    precision: str | None = None  # of the arithmetic, weights stay fp32; bf16 on a GPU that has it, else fp32
    seed: int = 42
    logging_steps: int = 10
    save_steps: int = 500
    keep_last: int | None = None  # checkpoints of this submission; all of them when not given

    def __post_init__(self) -> None:
        if self.max_steps is not None and self.num_epochs is not None:
            raise UserError(f"max_steps {self.max_steps} and num_epochs {self.num_epochs} exclude each other: give one")
        for name in ("max_steps", "batch_size", "gradient_accumulation", "logging_steps", "save_steps", "keep_last"):
            self._at_least(name, 1)
        for name in ("warmup_steps", "weight_decay", "seed"):
            self._at_least(name, 0)
        self._at_least("max_seq_len", 2)  # one token predicts nothing
        for name in ("num_epochs", "lr"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"{name} must be above 0, not {value}")
        if self.seed >= 2**32:
            raise UserError(f"seed must be below 2^32, not {self.seed}")
        if self.precision not in (None, *PRECISIONS):
            raise UserError(f"precision must be one of {', '.join(PRECISIONS)}, not {self.precision!r}")
        if not self.dataset_text_field:
            raise UserError("dataset_text_field must not be empty")

    def _at_least(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if value is not None and value < least:
            raise UserError(f"{name} must be at least {least}, not {value}")


def parse(text: str, config_path: str | None = None) -> Settings:
    """Settings from the JSON object of TRAINING_EXTRA_ARGS_JSON, and from a file where that has none."""
    try:
        arguments = json.loads(text)
    except ValueError as error:
        raise UserError(f"extra_args is not JSON: {error}") from None
    if not isinstance(arguments, dict):
        raise UserError("extra_args must be a JSON object")
    values = checked(arguments, "extra_args.")
    if config_path:
        values = checked(config_file.read(config_path), f"CONFIG_PATH {config_path}: ") | values
    return Settings(**values)


def checked(arguments: dict[str, typing.Any], where: str) -> dict[str, typing.Any]:
    """Values by the names of their settings; `where` is what a refusal puts before the key."""
    types_of = typing.get_type_hints(Settings)
    values: dict[str, typing.Any] = {}
    for key, value in arguments.items():
        name = ALIASES.get(key, key)
        if name not in types_of:
            raise UserError(f"{where}{key} is no setting; there are: {', '.join(types_of)}")
        if name in values:
            raise UserError(f"{where}{key} is given twice, as {name} too")
        values[name] = typed(f"{where}{key}", value, types_of[name])
    return values


def typed(key: str, value: typing.Any, annotation: typing.Any) -> typing.Any:
    """The value as its setting's type; JSON's null only where leaving it out means something."""
    kinds = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    if value is None and type(None) in kinds:
        return None
    kind = kinds[0]
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        # Lists are named and not shown: a few lines of YAML can stand for millions of elements.
        shown = NAMES[type(value)] if isinstance(value, list | dict) else json.dumps(value, default=str)
        raise UserError(f"{key} must be {NAMES[kind]}, not {shown}")
    return value
