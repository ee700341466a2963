"""The names that people know from transformers' TrainingArguments: what each of them does here.

Those that only say what happens anyway are taken in all frameworks, and some are settings of all frameworks under
another name. framework=hf takes the others too, unless they would go past the platform. The fields are read from the
source of transformers, as importing it takes seconds, and a refusal should not.
"""

import ast
import functools
import importlib.util
import json
import math
import os
import shutil
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path

from training.errors import UserError

# Those that are settings of all frameworks, which the Trainer calls otherwise.
ALIASES = {
    "learning_rate": "lr",
    "num_train_epochs": "num_epochs",
    "per_device_train_batch_size": "batch_size",
    "per_gpu_train_batch_size": "batch_size",  # of older versions
    "dataloader_num_workers": "dataloader_workers",
    "save_total_limit": "keep_last",
    "evaluation_strategy": "eval_strategy",  # of older versions
    "warmup_ratio": "warmup_steps",  # of older versions
    "max_length": "max_seq_len",  # of trl's SFTTrainer
    "max_seq_length": "max_seq_len",  # of its older versions
    "activation_checkpointing": "gradient_checkpointing",
}
# The settings of nemo and meta that are lr_scheduler_type's values.
SCHEDULERS = {"linear": "linear", "cosine": "cosine", "constant_with_warmup": "constant"}

# What changes nothing, by the values that say what happens anyway; whatever it says where there are none. Some are of
# older versions, some of trl's SFTTrainer. Why their other values are refused is in _OWNED.
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
    "per_gpu_eval_batch_size": (),
    "prediction_loss_only": (True, False),
    "eval_delay": (0, 0.0),
    "eval_on_start": (False,),
    "bf16_full_eval": (False,),
    "fp16_full_eval": (False,),
    "half_precision_backend": ("auto",),
    "load_best_model_at_end": (False,),
    "metric_for_best_model": ("eval_loss", "loss"),
    "greater_is_better": (False,),
    "push_to_hub": (False,),
    "hub_token": ("<HUB_TOKEN>",),  # what a dump has in the place of one
    "include_for_metrics": ([],),
    "resume_from_checkpoint": (False,),
    "remove_unused_columns": (True, False),  # the data have one column
    "group_by_length": (False,),
    "auto_find_batch_size": (False,),
    "dataloader_drop_last": (False,),
    "dataloader_pin_memory": (True,),
    "dataset_num_proc": (),
    "packing": (False,),
    "completion_only_loss": (False,),
    "assistant_only_loss": (False,),
    "attn_implementation": ("sdpa",),
    "use_peft": (False,),
    "load_in_4bit": (False,),
    "load_in_8bit": (False,),
    "trust_remote_code": (False,),
    "revision": ("main",),
    "ddp_timeout": (),  # no process waits for another's long work in a collective call
    "fsdp": ("", False, True, "full_shard", "full_shard auto_wrap"),  # as sharded does by itself
    "average_tokens_across_devices": (True,),
    "local_rank": (-1,),
    "no_cuda": (False,),
    "adafactor": (False,),
}
# What nemo and meta do anyway, of what hf passes on to its Trainer.
HARMLESS_BESIDE_HF: dict[str, tuple[typing.Any, ...]] = {
    "optim": ("adamw_torch", "adamw_torch_fused"),
    "adam_beta1": (0.9,),
    "adam_beta2": (0.999,),
    "adam_epsilon": (1e-8,),
    "max_grad_norm": (1, 1.0),
    "label_smoothing_factor": (0, 0.0),
    "torch_compile": (False,),
    "use_liger_kernel": (False,),
    "tf32": (False,),
    "full_determinism": (False,),
    "debug": ([], ""),
    "ddp_find_unused_parameters": (False,),
}
OF_BEST = ("metric_for_best_model", "greater_is_better")  # without load_best_model_at_end they decide nothing
PRECISIONS = ("bf16", "fp16")

# What would go past the platform or is not there, by the reason, which says what to use instead.
_OWNED = {
    "where it writes is the platform's: CHECKPOINT_BASE_URI and RUN_ID decide": "output_dir project log_on_each_node",
    "save_steps decides when it saves, and below 1 it is a part of all steps": """
        save_strategy save_only_model save_on_each_node save_safetensors enable_jit_checkpoint""",
    "logging_steps decides when it logs": """
        logging_strategy logging_first_step logging_nan_inf_filter disable_tqdm""",
    "eval_steps decides when it evaluates, below 1 it is a part of all steps; texts are held out for it": """
        eval_strategy eval_delay eval_on_start eval_accumulation_steps eval_do_concat_batches eval_use_gather_object
        prediction_loss_only bf16_full_eval fp16_full_eval include_for_metrics include_inputs_for_metrics
        batch_eval_metrics label_names do_train do_eval do_predict eval_dataset""",
    "the best model is the one with the least eval_loss": "metric_for_best_model greater_is_better",
    "framework hf alone exports the best model; GET /train/{name}/checkpoints/best names it in all": (
        "load_best_model_at_end"
    ),
    "the job's own resume decides": """
        resume_from_checkpoint ignore_data_skip restore_callback_states_from_checkpoint""",
    "the order of the data follows from seed, and is the same in all frameworks": """
        data_seed train_sampling_strategy group_by_length length_column_name remove_unused_columns
        dataloader_drop_last dataloader_in_order dataloader_pin_memory dataloader_persistent_workers
        dataloader_prefetch_factor dataloader_multiprocessing_context""",
    "every run trains to its last step: DELETE ends it, and max_steps says where": (
        "early_stopping_patience early_stopping_threshold"
    ),
    "attention is torch's own": "attn_implementation",
    "batch_size and gradient_accumulation decide": "auto_find_batch_size",
    "a text is a row of its own here, with all of its tokens in the loss": """
        packing completion_only_loss assistant_only_loss""",
    "all weights are trained here": "use_peft lora_r lora_alpha lora_dropout lora_target_modules",
    "the weights are trained, in fp32, and a quantized model cannot be": "load_in_4bit load_in_8bit",
    "no code of a model's folder is run: build an image of your own that knows the model": "trust_remote_code",
    "the newest revision is taken from the hub: put another one into a bucket or the image": "revision",
    "how the processes work together follows from num_nodes, gpus_per_node and sharded": """
        use_cpu no_cuda local_rank ddp_backend accelerator_config parallelism_config average_tokens_across_devices
        fsdp fsdp_config deepspeed""",
    "precision says it": "bf16 fp16 half_precision_backend",
    "optim says it": "adafactor",
    "nothing is sent to a hub: the model is exported into the bucket": """
        push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision
        trackio_space_id trackio_bucket_id trackio_static_space_id""",
}
OWNED = {name: reason for reason, names in _OWNED.items() for name in names.split()}

# The package that an optimizer needs beside torch and transformers, by the module that it is imported as.
_OPTIMIZERS = {
    "apollo_torch": "apollo_adamw apollo_adamw_layerwise",
    "bitsandbytes": """
        adamw_bnb_8bit adamw_8bit ademamix ademamix_8bit lion_8bit lion_32bit paged_adamw_32bit paged_adamw_8bit
        paged_ademamix_32bit paged_ademamix_8bit paged_lion_32bit paged_lion_8bit
        rmsprop_bnb rmsprop_bnb_8bit rmsprop_bnb_32bit""",
    "galore_torch": """
        galore_adamw galore_adamw_8bit galore_adafactor
        galore_adamw_layerwise galore_adamw_8bit_layerwise galore_adafactor_layerwise""",
    "grokadamw": "grokadamw",
    "lomo_optim": "lomo adalomo",
    "optimi": "stable_adamw",
    "schedulefree": "schedule_free_radam schedule_free_adamw schedule_free_sgd",
    "torch_npu": "adamw_torch_npu_fused",
    "torch_xla": "adamw_torch_xla",
    "torchao": "adamw_torch_4bit adamw_torch_8bit",
    "torchdistx": "adamw_anyprecision",
}
PACKAGES: dict[str, dict[typing.Any, str]] = {
    "optim": {name: package for package, names in _OPTIMIZERS.items() for name in names.split()},
    "use_liger_kernel": {True: "liger_kernel"},
}
DEFAULT_OPTIMIZER = "adamw_torch_fused"
OF_DDP = ("ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph")
SPLIT = ("adamw_torch", "adamw_torch_fused", "sgd", "adagrad", "rmsprop")  # those whose weights may be split
# What each of torch's optimizers reads of optim_args; it passes over the others. weight_decay is a setting.
ARGUMENTS = {
    "sgd": ("momentum", "dampening", "nesterov"),
    "adagrad": ("lr_decay", "eps"),
    "rmsprop": ("momentum", "alpha", "eps", "centered"),
    "adamw_torch": (),
    "adamw_torch_fused": (),
    "adafactor": (),
}
OF_ADAM = {"adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8}  # what only some read, with the defaults
WITHOUT_ADAM = ("adafactor", "sgd", "adagrad", "rmsprop", "rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit")
OF_LOW_RANK = ("galore", "apollo")  # how the optimizers are called that read optim_target_modules
# What the numbers of a field may be, as JSON Schema says it, and in words.
BOUNDS: dict[str, tuple[dict[str, float], str]] = {
    "adam_beta1": ({"minimum": 0, "exclusiveMaximum": 1}, "from 0 to below 1"),
    "adam_beta2": ({"minimum": 0, "exclusiveMaximum": 1}, "from 0 to below 1"),
    "adam_epsilon": ({"minimum": 0}, "of at least 0"),
    "label_smoothing_factor": ({"minimum": 0, "maximum": 1}, "from 0 to 1"),
    "neftune_noise_alpha": ({"minimum": 0}, "of at least 0"),
    "torch_empty_cache_steps": ({"minimum": 1}, "of at least 1"),
}
_LEVELS = ("debug", "info", "warning", "error", "critical", "passive")
# The values of fields that transformers types as text or a list, and passes over or fails at later.
VALUES: dict[str, tuple[typing.Any, ...]] = {
    "log_level": _LEVELS,
    "log_level_replica": _LEVELS,
    "debug": ("", "underflow_overflow", [], ["underflow_overflow"]),
    "include_num_input_tokens_seen": (False, True, "no", "all", "non_padding"),
}
# What people who know another library call a field.
CALLED = dict.fromkeys(
    ("gradient_clipping", "gradient_clip_val", "grad_clip", "clip_grad", "clip_grad_norm", "max_norm"), "max_grad_norm"
)
COMPILERS = (("CC", "cc gcc clang"), ("CXX", "c++ g++ clang++"))

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


def own(framework: str) -> list[str]:
    """The fields that a framework passes on to the Trainer, under the Trainer's names."""
    return [name for name in _fields() if name not in OWNED and name not in HARMLESS] if framework == "hf" else []


def harmless(name: str, framework: str) -> tuple[typing.Any, ...] | None:
    """The values with which a name says what happens anyway: none when all do, None when it is no such name.

    The default of a field that is no setting is one of them: a dump of all arguments has it.
    """
    of_others = {} if framework == "hf" else HARMLESS_BESIDE_HF
    values = HARMLESS.get(name, of_others.get(name))
    default = _defaults().get(name)
    if (
        values == ()
        or default is None
        or name in own(framework)
        or any(is_same(default, value) for value in values or ())
    ):
        return values
    return (*(values or ()), default)


def changes_nothing(name: str, value: typing.Any, arguments: Mapping[str, typing.Any], framework: str) -> bool:
    """Whether a setting says what happens anyway, given all arguments."""
    if name == "eval_strategy":
        return value == ("no" if arguments.get("eval_steps") is None else "steps")
    if name == "load_best_model_at_end" and framework == "hf":
        return False  # a setting
    if name in OF_BEST and not arguments.get("load_best_model_at_end"):
        return True
    values = harmless(name, framework)
    if values is None:
        return False
    return not values or any(is_same(value, other) for other in values)


def is_same(value: typing.Any, other: typing.Any) -> bool:
    """Whether JSON says the same: 1 and 1.0 are one number there, and true is none."""
    numbers = all(type(one) in (int, float) for one in (value, other))
    return (numbers or type(value) is type(other)) and value == other


def known() -> list[str]:
    """All names that are taken with some value, or refused with a reason."""
    return list(dict.fromkeys([*_fields(), *HARMLESS, *OWNED]))


def refused() -> list[tuple[str, list[str]]]:
    """The names that cannot be set freely in any framework, by the reason."""
    return [(reason, names.split()) for reason, names in _OWNED.items()]


def reason(name: str, framework: str, *, instead: bool = True) -> str | None:
    """Why a known name cannot be set to anything, and what can be said instead; None where there is no such name."""
    if name not in OWNED and name not in _fields():
        return None
    why = OWNED.get(name) or f"framework hf alone takes it, and {framework} trains in one way"
    if not instead:
        return why
    values = harmless(name, framework)
    said = " or ".join(json.dumps(value) for value in values or ())
    return why + (f"; leave it out, or say {said}" if said else "")


def best_refusals(save_steps: typing.Any, eval_steps: typing.Any) -> Iterator[str]:
    """What load_best_model_at_end needs, as in transformers: save_steps is a multiple of eval_steps, of its kind."""
    if eval_steps is None:
        yield "load_best_model_at_end needs eval_steps: nothing is evaluated without"
        return
    if type(save_steps) is not type(eval_steps):
        multiple = False  # a number of steps and a part of all steps
    elif isinstance(save_steps, float):
        multiple = math.isclose(save_steps / eval_steps, max(round(save_steps / eval_steps), 1))
    else:
        multiple = save_steps % max(eval_steps, 1) == 0
    if not multiple:
        yield f"load_best_model_at_end needs save_steps ({save_steps}) to be a multiple of eval_steps ({eval_steps})"


def precision(arguments: Mapping[str, typing.Any]) -> str | None:
    """What bf16 and fp16 say, where they say anything. Raises UserError for a contradiction, and for another type."""
    said = {name: arguments[name] for name in PRECISIONS if arguments.get(name) is not None}
    for name, value in said.items():
        if not isinstance(value, bool):
            raise UserError(f"{name} must be true or false, not {shown(value)}")
    wanted = [name for name, value in said.items() if value] or ["fp32"] * (said.get("bf16") is False)
    given = arguments.get("precision")
    if not isinstance(given, str | None):
        return None  # refused as a setting
    if len(wanted) > 1 or (given is not None and (said.get(given) is False or wanted not in ([], [given]))):
        shows = ", ".join(f"{name} {shown(value)}" for name, value in [*said.items(), ("precision", given)])
        raise UserError(f"{shows} contradict each other: precision alone says it")
    return wanted[0] if wanted else None


def check(key: str, name: str, value: typing.Any) -> typing.Any:
    """The value. Raises UserError for a value that a field of `own` cannot have, or that this image cannot run."""
    types = kinds(name)
    words = enumerated(types)
    if isinstance(value, str) and words:
        if value not in words:
            raise UserError(f"{key} must be one of {', '.join(runnable(name, words))}, not {shown(value)}")
        check_runs(key, name, value, words)
        return value
    if value is None and "None" in types:
        return None
    if name in VALUES:
        if not any(is_same(value, other) for other in VALUES[name]):
            words = ", ".join(word if isinstance(word, str) and word else json.dumps(word) for word in VALUES[name])
            raise UserError(f"{key} must be one of {words}, not {shown(value)}")
        return value
    if "int" in types and isinstance(value, float) and value.is_integer():
        value = int(value)  # in JSON 7.0 is 7
    if not any(type(value) in KINDS.get(kind, ()) for kind in types):
        meanings = dict.fromkeys(MEANINGS[kind] for kind in types if kind in MEANINGS)
        raise UserError(f"{key} must be {' or '.join(meanings)}, not {shown(value)}")
    if not finite(value):
        raise UserError(f"{key} must have finite numbers and plain values alone")
    if "float" in types and type(value) is int:
        value = float(value)  # torch takes no whole number for some
    if name in BOUNDS and isinstance(value, int | float) and not within(value, BOUNDS[name][0]):
        kind = MEANINGS["int" if "int" in types else "float"]
        raise UserError(f"{key} must be {kind} {BOUNDS[name][1]}, not {shown(value)}")
    check_runs(key, name, value)
    return value


def within(value: float, bounds: Mapping[str, float]) -> bool:
    return bounds.get("minimum", -math.inf) <= value <= bounds.get("maximum", math.inf) and value < bounds.get(
        "exclusiveMaximum", math.inf
    )


def unread(arguments: Mapping[str, typing.Any], scheduler: str | None, checkpointing: bool) -> Iterator[str]:
    """What would be passed over, a sentence each: fields of hf that only go with others."""
    optimizer = arguments.get("optim", DEFAULT_OPTIMIZER)
    if given := arguments.get("optim_args"):
        reads = ARGUMENTS.get(optimizer)
        keys = [part.partition("=")[0].strip() for part in given.split(",")]
        for key in keys if reads is not None else ():
            if key not in reads:
                what = f"it reads {', '.join(reads)}" if reads else "it reads nothing of it"
                beside = [*(() if optimizer in WITHOUT_ADAM else OF_ADAM), "weight_decay"]
                yield f"optim_args has {key}, which optim {optimizer} does not read: {what}, beside {', '.join(beside)}"
                break
    of_adam = [name for name, default in OF_ADAM.items() if arguments.get(name, default) not in (None, default)]
    if of_adam and optimizer in WITHOUT_ADAM:
        yield f"{', '.join(of_adam)} is not read by optim {optimizer}: leave it out"
    if arguments.get("optim_target_modules") is not None and not optimizer.startswith(OF_LOW_RANK):
        yield f"optim_target_modules is not read by optim {optimizer}: leave it out"
    if arguments.get("liger_kernel_config") is not None and not arguments.get("use_liger_kernel"):
        yield "liger_kernel_config is not read without use_liger_kernel: leave it out"
    schedule = arguments.get("lr_scheduler_type") or scheduler
    if arguments.get("lr_scheduler_kwargs") and schedule in ("constant", "constant_with_warmup"):
        yield f"lr_scheduler_kwargs is not read by the schedule {schedule}: leave it out"
    for name in ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"):
        if arguments.get(name) and not checkpointing:
            yield f"{name} is not read without gradient_checkpointing: leave it out, or say gradient_checkpointing true"
    for name in ("torch_compile_backend", "torch_compile_mode"):
        if arguments.get(name) is not None and arguments.get("torch_compile") is False:
            yield f"{name} goes with torch_compile true alone: leave one of them out"


def check_runs(key: str, name: str, value: typing.Any, words: typing.Sequence[str] = ()) -> None:
    """Raises UserError for a value that needs what this image does not have."""
    package = PACKAGES.get(name, {}).get(value) if isinstance(value, str | bool) else None
    if package and not is_installed(package):
        there = f"; there are: {', '.join(runnable(name, words))}" if words else ""
        raise UserError(f"{key} {shown(value)} needs the package {package}, which this image does not have{there}")
    compiles = name in ("torch_compile", "torch_compile_mode") and value
    if compiles or (name == "torch_compile_backend" and value == "inductor"):
        for variable, programs in COMPILERS:
            if not any(map(shutil.which, [os.environ.get(variable) or "", *programs.split()])):
                raise UserError(f"{key} needs a compiler, and this image has none of {', '.join(programs.split())}")


def runnable(name: str, words: typing.Iterable[str]) -> list[str]:
    """Those values of an enumeration that this image has the packages for."""
    packages = PACKAGES.get(name, {})
    return [word for word in words if word not in packages or is_installed(packages[word])]


def is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


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


def kinds(name: str) -> tuple[str, ...]:
    """The names of the types that a field takes."""
    types = _fields()[name]
    return ("dict", "None") if "dict" in types else types  # transformers would read it from text too


def enumerated(kinds: typing.Iterable[str]) -> list[str]:
    """The values of a field of these types, where there is a list of them."""
    return [word for kind in kinds for word in _words().get(kind, ()) if word not in UNSCHEDULED]


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
def _defaults() -> dict[str, typing.Any]:
    """The default of each field that is written down as a plain value."""
    (arguments,) = (node for node in _classes() if node.name == "TrainingArguments")
    found = {}
    for node in arguments.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(node.value, ast.Call):
            for keyword in node.value.keywords:
                if keyword.arg == "default" and isinstance(keyword.value, ast.Constant):
                    found[node.target.id] = keyword.value.value
    return found


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
