"""What framework=hf takes beside the settings: the fields of transformers' TrainingArguments.

They are read from its source, as importing it takes seconds, and a refusal should not.
"""

import ast
import functools
import importlib.util
import json
import math
import typing
from collections.abc import Mapping
from pathlib import Path

from training.errors import UserError

# Those that are settings of all frameworks, which the Trainer calls otherwise.
ALIASES = {
    "learning_rate": "lr",
    "num_train_epochs": "num_epochs",
    "per_device_train_batch_size": "batch_size",
    "dataloader_num_workers": "dataloader_workers",
    "save_total_limit": "keep_last",
    "evaluation_strategy": "eval_strategy",  # of older versions
}

# What changes nothing, by the values that say what happens anyway; whatever it says where there are none. Some are of
# older versions. Why their other values are refused is in _OWNED.
HARMLESS: dict[str, tuple[typing.Any, ...]] = {
    "output_dir": (),  # a run has a place of its own, beside no other's
    "logging_dir": (),
    "overwrite_output_dir": (),
    "run_name": (),
    "do_train": (True,),
    "do_eval": (True, False),
    "do_predict": (False,),
    "max_steps": (-1,),  # as if it were not given
    "save_strategy": ("steps",),
    "save_safetensors": (True,),
    "save_only_model": (False,),
    "save_on_each_node": (False,),
    "logging_strategy": ("steps",),
    "logging_first_step": (True, False),  # the first step is always reported
    "logging_nan_inf_filter": (True, False),  # what is not finite ends the job
    "disable_tqdm": (True, False),
    "per_device_eval_batch_size": (),  # the loss is a sum over tokens, whatever the batches
    "prediction_loss_only": (True, False),
    "eval_delay": (0, 0.0),
    "eval_on_start": (False,),
    "bf16_full_eval": (False,),
    "fp16_full_eval": (False,),
    "load_best_model_at_end": (False,),
    "metric_for_best_model": (),  # without the one above it decides nothing
    "greater_is_better": (),
    "push_to_hub": (False,),
    "resume_from_checkpoint": (False,),
    "remove_unused_columns": (True, False),  # the data have one column
    "auto_find_batch_size": (False,),
    "dataloader_drop_last": (False,),
    "dataloader_pin_memory": (True,),
    "ddp_timeout": (),  # no process waits for another's long work in a collective call
    "fsdp": ("", False),
    "average_tokens_across_devices": (True,),
    "local_rank": (-1,),
}
PRECISIONS = ("bf16", "fp16")

# What would go past the platform, by the reason.
_OWNED = {
    "where it writes is the platform's": "output_dir run_name project log_on_each_node",
    "when it saves is decided by save_steps": "save_strategy save_only_model save_on_each_node enable_jit_checkpoint",
    "when it logs is decided by logging_steps": """
        logging_strategy logging_first_step logging_nan_inf_filter disable_tqdm""",
    "when and on what it evaluates is decided by eval_steps": """
        eval_strategy eval_delay eval_on_start eval_accumulation_steps eval_do_concat_batches eval_use_gather_object
        per_device_eval_batch_size prediction_loss_only bf16_full_eval fp16_full_eval include_for_metrics
        batch_eval_metrics load_best_model_at_end metric_for_best_model greater_is_better label_names
        do_train do_eval do_predict""",
    "the job's resume_from_checkpoint decides": """
        resume_from_checkpoint ignore_data_skip restore_callback_states_from_checkpoint""",
    "the order of the data is a checkpoint's, and the same in all frameworks": """
        data_seed train_sampling_strategy length_column_name remove_unused_columns auto_find_batch_size
        dataloader_drop_last dataloader_in_order dataloader_pin_memory dataloader_persistent_workers
        dataloader_prefetch_factor dataloader_multiprocessing_context""",
    "how the processes work together follows from num_nodes and gpus_per_node": """
        use_cpu local_rank ddp_backend ddp_timeout accelerator_config parallelism_config average_tokens_across_devices
        fsdp fsdp_config deepspeed""",
    "precision says it": "bf16 fp16",
    "nothing is sent to a hub": """
        push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision
        trackio_space_id trackio_bucket_id trackio_static_space_id""",
}
OWNED = {name: reason for reason, names in _OWNED.items() for name in names.split()}

KINDS = {"int": (int,), "float": (float, int), "bool": (bool,), "str": (str,), "dict": (dict,), "list": (list,)}
MEANINGS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "dict": "a mapping",
    "list": "a list",
}
SOURCES = ("training_args.py", "trainer_utils.py", "debug_utils.py")


# Schedules that need the evaluation's result.
UNSCHEDULED = ("reduce_lr_on_plateau", "greedy")


def names() -> list[str]:
    return list(_fields())


def changes_nothing(name: str, value: typing.Any, arguments: Mapping[str, typing.Any]) -> bool:
    """Whether a field says what happens anyway, given all arguments."""
    if value is None and name in OWNED:
        return True  # what it has in a dump of all arguments
    if name == "eval_strategy":
        return value == ("no" if arguments.get("eval_steps") is None else "steps")
    same = any(type(value) is type(harmless) and value == harmless for harmless in HARMLESS.get(name, ()))
    return name in HARMLESS and (same or not HARMLESS[name])


def precision(arguments: Mapping[str, typing.Any]) -> str | None:
    """What bf16 and fp16 say, where they say anything. Raises UserError for a contradiction, and for another type."""
    said = {name: arguments[name] for name in PRECISIONS if arguments.get(name) is not None}
    for name, value in said.items():
        if not isinstance(value, bool):
            raise UserError(f"{name} must be true or false, not {shown(value)}")
    wanted = [name for name, value in said.items() if value] or ["fp32"] * (said.get("bf16") is False)
    given = arguments.get("precision")
    if len(wanted) > 1 or (given is not None and (said.get(given) is False or wanted not in ([], [given]))):
        shows = ", ".join(f"{name} {shown(value)}" for name, value in [*said.items(), ("precision", given)])
        raise UserError(f"{shows} contradict each other: precision alone says it")
    return wanted[0] if wanted else None


def check(key: str, name: str, value: typing.Any) -> None:
    """Raises UserError for a value that the field cannot have, or a field that is not the job's to set."""
    if name in OWNED:
        harmless = " or ".join(json.dumps(value) for value in HARMLESS.get(name, ()))
        alone = f"; leave it out, or say {harmless}" if harmless else ""
        raise UserError(f"{key} cannot be set: {OWNED[name]}{alone}")
    kinds = _fields()[name]
    if "dict" in kinds:  # transformers would read it from text too
        kinds = ("dict", "None")
    words = [word for kind in kinds for word in _words().get(kind, ()) if word not in UNSCHEDULED]
    if isinstance(value, str) and words:
        if value not in words:
            raise UserError(f"{key} must be one of {', '.join(words)}, not {shown(value)}")
        return
    if value is None and "None" in kinds:
        return
    if not any(type(value) in KINDS.get(kind, ()) for kind in kinds):
        meanings = dict.fromkeys(MEANINGS[kind] for kind in kinds if kind in MEANINGS)
        raise UserError(f"{key} must be {' or '.join(meanings)}, not {shown(value)}")
    if not finite(value):
        raise UserError(f"{key} must have finite numbers and plain values alone")


def finite(value: typing.Any) -> bool:
    """Whether it is JSON, with numbers that a float can hold."""
    try:
        json.dumps(value, allow_nan=False)
        return not isinstance(value, int) or math.isfinite(value)
    except (ValueError, TypeError, OverflowError, RecursionError):
        return False


def shown(value: typing.Any) -> str:
    """Lists are named and not shown: a few lines of YAML can stand for millions of elements."""
    kind = "list" if isinstance(value, list) else "dict" if isinstance(value, dict) else None
    return MEANINGS[kind] if kind else json.dumps(value, default=str)


@functools.cache
def _fields() -> dict[str, tuple[str, ...]]:
    """The names of the types of each field."""
    (arguments,) = (node for node in _classes() if node.name == "TrainingArguments")
    return {
        node.target.id: tuple(dict.fromkeys(_types(node.annotation)))
        for node in arguments.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def _types(annotation: ast.expr) -> typing.Iterator[str]:
    match annotation:
        case ast.BinOp():
            yield from _types(annotation.left)
            yield from _types(annotation.right)
        case ast.Subscript(value=ast.Name(id="Literal")):
            yield "bool"
        case ast.Subscript():
            yield from _types(annotation.value)
        case _:
            yield ast.unparse(annotation)


@functools.cache
def _words() -> dict[str, tuple[str, ...]]:
    """The values of each enumeration."""
    return {
        node.name: tuple(
            entry.value.value
            for entry in node.body
            if isinstance(entry, ast.Assign) and isinstance(entry.value, ast.Constant)
        )
        for node in _classes()
        if any(ast.unparse(base) == "ExplicitEnum" for base in node.bases)
    }


@functools.cache
def _classes() -> list[ast.ClassDef]:
    spec = importlib.util.find_spec("transformers")  # finds it, and imports nothing
    assert spec and spec.submodule_search_locations, "transformers is a dependency"
    (folder,) = map(Path, spec.submodule_search_locations)
    trees = [ast.parse((folder / name).read_text(encoding="utf-8")) for name in SOURCES]
    return [node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)]
