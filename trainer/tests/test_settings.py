import dataclasses
import json
import math
import re

import pytest
from alone import ALONE
from transformers import TrainingArguments

from training import configuration, settings, training_arguments
from training.errors import UserError
from training.layout import FRAMEWORKS

# A usual set of the Trainer's arguments, which names what the Trainer would do anyway too.
USUAL = {
    "output_dir": "out", "num_train_epochs": 3, "max_steps": -1, "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 8, "gradient_accumulation_steps": 4, "eval_strategy": "steps", "eval_steps": 200,
    "save_strategy": "steps", "save_steps": 200, "save_total_limit": 3, "learning_rate": 1e-4, "weight_decay": 0.0,
    "lr_scheduler_type": "cosine", "logging_steps": 10, "logging_first_step": True, "bf16": True, "tf32": True,
    "gradient_checkpointing": True, "optim": "adamw_torch_fused", "report_to": ["tensorboard"],
    "load_best_model_at_end": True, "warmup_steps": 0.05, "metric_for_best_model": "eval_loss",
    "greater_is_better": False, "ddp_timeout": 3600, "push_to_hub": False,
    "remove_unused_columns": False, "dataloader_num_workers": 4,
    "seed": 7, "do_train": True, "overwrite_output_dir": True, "logging_dir": "logs", "run_name": "x",
}  # fmt: skip


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(
    ("given", "name", "value"),
    [
        ({}, "keep_last", 5),
        ({}, "batch_size", None),
        ({"micro_batch_size": 2}, "batch_size", 2),
        ({"train_batch_size": 8}, "global_batch_size", 8),
        ({"max_steps": 5}, "max_steps", 5),
        ({"max_steps": 5.0}, "max_steps", 5),
        ({"save_steps": 0.1}, "save_steps", 0.1),
        ({"save_steps": 200.0}, "save_steps", 200),
        ({"warmup_steps": 0.03}, "warmup_steps", 0.03),
        ({"warmup_ratio": 0.03}, "warmup_steps", 0.03),
        ({"warmup_ratio": 0.03, "warmup_steps": 0}, "warmup_steps", 0.03),
        ({"warmup_ratio": 0.0, "warmup_steps": 7}, "warmup_steps", 7),
        ({"warmup_ratio": 0}, "warmup_steps", 0),
        ({"learning_rate": 1}, "lr", 1.0),
        ({"num_train_epochs": 3, "max_steps": -1}, "num_epochs", 3.0),
        ({"max_length": 64}, "max_seq_len", 64),
        ({"bf16": True}, "precision", "bf16"),
        ({"report_to": ["tensorboard"]}, "report_to", "tensorboard"),
        ({"lr": 1}, "lr", 1.0),
        ({"num_epochs": 0.5}, "num_epochs", 0.5),
        ({"gradient_accumulation": 3}, "gradient_accumulation", 3),
        ({"gradient_accumulation_steps": 3}, "gradient_accumulation", 3),
        ({"keep_last": None}, "keep_last", None),
        ({"keep_last": 2}, "keep_last", 2),
        ({"precision": "bf16"}, "precision", "bf16"),
        ({"max_seq_len": 64}, "max_seq_len", 64),
        ({"save_steps": 7}, "save_steps", 7),
        ({"report_to": "tensorboard"}, "report_to", "tensorboard"),
        ({"eval_steps": 7}, "eval_steps", 7),
        ({"logging_steps": 7}, "logging_steps", 7),
        ({"dataset_text_field": "body"}, "dataset_text_field", "body"),
        ({"dataloader_workers": 2}, "dataloader_workers", 2),
        ({"streaming": True}, "streaming", True),
        ({"seed": 7}, "seed", 7),
        ({"warmup_steps": 7}, "warmup_steps", 7),
        ({"weight_decay": 0.1}, "weight_decay", 0.1),
        ({"scheduler": "cosine"}, "scheduler", "cosine"),
    ],
)
def test_accepts(framework, given, name, value):
    found = getattr(settings.parse(json.dumps(given), framework=framework), name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(
    ("given", "named"),
    [
        ('{"max_step": 5}', "max_step is no setting of .*: did you mean max_steps?"),
        ('{"gradient_acumulation": 5}', "did you mean gradient_accumulation?"),
        ('{"framework": "hf"}', "framework is no setting of .*; there are: max_steps, num_epochs, lr,"),
        ('{"training_arguments": {}}', "training_arguments is no setting"),
        ('{"max_steps": "5"}', "max_steps"),
        ('{"max_steps": 5.5}', "max_steps must be a whole number, not 5.5"),
        ('{"save_steps": 5.5}', "save_steps must be a whole number, or a part of all steps below 1, not 5.5"),
        ('{"save_steps": -0.5}', "save_steps"),
        ('{"max_steps": true}', "max_steps"),
        ('{"max_steps": 0}', "max_steps"),
        ('{"save_steps": null}', "save_steps"),
        ('{"warmup_ratio": 1.5}', "warmup_ratio must be a part of all steps, from 0 to 1, not 1.5"),
        ('{"warmup_ratio": 5}', "warmup_ratio must be a part of all steps, from 0 to 1, not 5"),
        ('{"warmup_ratio": -0.1}', "warmup_ratio must be a part of all steps, from 0 to 1, not -0.1"),
        ('{"warmup_ratio": true}', "warmup_ratio must be a part of all steps, from 0 to 1, not true"),
        ('{"lr": "3e-5"}', "lr"),
        ('{"lr": 0}', "lr"),
        ('{"lr": NaN}', "lr"),
        ('{"lr": Infinity}', "lr"),
        ('{"lr": 1e999}', "lr must be a number, not Infinity"),
        ('{"lr": 1' + 400 * "0" + "}", "lr must be a number, not 1000"),
        ('{"lr": 1, "seed": 1, "lr": 2}', "extra_args cannot be read: lr is given twice"),
        ('{"lr": ' + 9999 * "[" + 9999 * "]" + "}", "extra_args cannot be read: "),
        ('{"seed": -1}', "seed"),
        ('{"seed": 4294967296}', "seed"),
        ('{"batch_size": 1' + 30 * "0" + "}", "batch_size must be at most 1048576, not 1000"),
        ('{"gradient_accumulation": 1' + 30 * "0" + "}", "gradient_accumulation must be at most 1048576, not 1000"),
        ('{"dataloader_workers": 1000000}', "dataloader_workers must be at most 256, not 1000000"),
        ('{"max_seq_len": 1}', "max_seq_len"),
        ('{"precision": "fp8"}', "precision"),
        ('{"scheduler": "step"}', "scheduler must be one of linear, cosine, constant"),
        ('{"report_to": "wandb"}', "report_to must be one of none, tensorboard, not 'wandb'"),
        ('{"eval_steps": 0}', "eval_steps"),
        ('{"dataloader_workers": -1}', "dataloader_workers"),
        ('{"streaming": 1}', "streaming must be true or false"),
        ('{"dataset_text_field": ""}', "dataset_text_field"),
        ('{"dataset_text_field": ["text"]}', "dataset_text_field"),
        ('{"max_steps": 5, "num_epochs": 1}', "num_epochs"),
        ('{"gradient_accumulation": 2, "gradient_accumulation_steps": 2}', "gradient_accumulation_steps"),
        ("[]", "extra_args"),
        ("{", "extra_args"),
    ],
)
def test_refuses_and_names_the_setting(framework, given, named):
    with pytest.raises(UserError, match=named):
        settings.parse(given, framework=framework)


def test_everything_that_is_wrong_is_said_at_once(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("batch_size: many\nseed: 1\n")
    given = {"lr": "high", "save_step": 5, "max_steps": 5, "num_epochs": 1, "scheduler": "step", "warmup_steps": -1}
    with pytest.raises(UserError) as refused:
        settings.parse(json.dumps(given), str(path), "meta")
    assert str(refused.value) == (
        'extra_args.lr must be a number, not "high"; '
        "extra_args.save_step is no setting of meta: did you mean save_steps?; "
        f'CONFIG_PATH {path}: batch_size must be a whole number, not "many"; '
        "max_steps 5 and num_epochs 1.0 exclude each other: give one; "
        "warmup_steps must be at least 0, not -1; "
        "scheduler must be one of linear, cosine, constant, not 'step'"
    ).join(["6 settings are refused: ", ""])


def test_no_hint_names_what_would_be_refused_too():
    with pytest.raises(UserError, match=r"save_strateg is no setting of hf: did you mean (?!save_strategy)"):
        settings.parse('{"save_strateg": "steps"}')
    with pytest.raises(UserError, match=r"output_di is no setting of hf(?!: did you mean output_dir)"):
        settings.parse('{"output_di": "out"}')

    for framework in FRAMEWORKS:
        with pytest.raises(
            UserError, match=r"evalstrategy is no setting of (hf|nemo|meta)(?!: did you mean ev\w+_strategy)"
        ):
            settings.parse('{"evalstrategy": "no"}', framework=framework)
    with pytest.raises(
        UserError, match=r"gradient_clipping is no setting of meta: did you mean gradient_checkpointing"
    ):
        settings.parse('{"gradient_clipping": 1}', framework="meta")


def test_a_whole_number_is_a_number():
    """torch takes betas that are both of one kind."""
    found = settings.parse('{"adam_beta1": 0, "max_steps": -1.0, "local_rank": -1.0}')
    assert found.training_arguments == {"adam_beta1": 0.0}
    assert type(found.training_arguments["adam_beta1"]) is float


def test_a_setting_of_one_framework_is_no_other_ones():
    given = '{"load_best_model_at_end": true, "eval_steps": 1, "save_steps": 1}'
    assert settings.parse(given).load_best_model_at_end
    for framework in ("nemo", "meta"):
        with pytest.raises(UserError, match="load_best_model_at_end cannot be set: framework hf alone"):
            settings.parse(given, framework=framework)


@pytest.mark.parametrize(
    ("framework", "size", "given", "sharded"),
    [
        ("hf", 1, {}, False),
        ("hf", 2, {}, True),
        ("hf", 2, {"sharded": False}, False),
        ("hf", 2, {"optim": "sgd"}, True),
        ("hf", 2, {"optim": "adafactor"}, False),
        ("nemo", 1, {}, False),
        ("nemo", 1, {"sharded": True}, True),
        ("nemo", 2, {}, True),
        ("meta", 1, {}, False),
        ("meta", 1, {"sharded": True}, True),
        ("meta", 2, {}, True),
        ("meta", 2, {"sharded": True}, True),
    ],
)
def test_several_processes_split_the_weights(framework, size, given, sharded):
    world = dataclasses.replace(ALONE, size=size)
    found = settings.parse(json.dumps(given), framework=framework)
    assert configuration.on_these_processes(found, framework, world).sharded is sharded


def test_fp16_splits_no_weights():
    assert settings.unsplit(settings.parse('{"precision": "fp16"}')) == "precision fp16"


@pytest.mark.parametrize(
    ("framework", "given", "says"),
    [
        ("nemo", {"sharded": True, "precision": "fp16"}, "precision fp16 does not go with sharded: leave sharded out"),
        ("hf", {"sharded": True, "optim": "adafactor"}, "optim adafactor does not go with sharded: leave sharded out"),
        ("hf", {"ddp_bucket_cap_mb": 1}, "ddp_bucket_cap_mb is of processes that have all weights each: say sharded "),
        ("meta", {"sharded": False}, "sharded cannot be false in framework meta: leave it out"),
    ],
)
def test_what_does_not_go_with_split_weights_is_refused(framework, given, says):
    with pytest.raises(UserError, match=says):
        settings.parse(json.dumps(given), framework=framework)


def test_hf_takes_the_fields_of_training_arguments():
    given = {"max_grad_norm": 0.5, "optim": "adafactor", "torch_compile": False, "adam_epsilon": 1e-8}
    found = settings.parse(json.dumps(given | {"max_steps": 5}))
    assert found.training_arguments == given
    assert found.max_steps == 5
    for framework in ("nemo", "meta"):
        said = (
            f"max_grad_norm cannot be set: framework hf alone takes it, and {framework} trains in one way; leave it out"
        )
        with pytest.raises(UserError, match=said):
            settings.parse('{"max_grad_norm": 0.5}', framework=framework)
        anyway = {"max_grad_norm": 1.0, "optim": "adamw_torch", "adam_beta2": 0.999, "lr_scheduler_type": "cosine"}
        found = settings.parse(json.dumps(anyway), framework=framework)
        assert (found.scheduler, found.training_arguments) == ("cosine", {})


def test_the_trainers_names_are_those_of_the_settings_of_all():
    given = {"learning_rate": 1, "per_device_train_batch_size": 2, "num_train_epochs": 3, "save_total_limit": 4}
    found = settings.parse(json.dumps(given))
    assert (found.lr, found.batch_size, found.num_epochs, found.keep_last) == (1.0, 2, 3.0, 4)
    with pytest.raises(UserError, match="learning_rate is given twice, as lr too"):
        settings.parse('{"lr": 1, "learning_rate": 1}')


def test_hf_takes_what_people_set():
    assert len(USUAL) >= 30
    found = settings.parse(json.dumps(USUAL))
    assert (found.max_steps, found.num_epochs, found.precision, found.report_to) == (None, 3.0, "bf16", "tensorboard")
    assert found.training_arguments == {
        "lr_scheduler_type": "cosine", "tf32": True, "optim": "adamw_torch_fused",
    }  # fmt: skip
    assert settings.parse('{"evaluation_strategy": "no", "report_to": [], "fp16": false}').report_to == "none"
    assert settings.parse('{"bf16": true, "precision": "bf16"}').precision == "bf16"


@pytest.mark.parametrize(
    ("given", "precision"),
    [
        ({"bf16": False}, "fp32"),
        ({"bf16": False, "fp16": False}, "fp32"),
        ({"bf16": False, "fp16": True}, "fp16"),
        ({"fp16": False}, None),
        ({"bf16": None, "fp16": None}, None),
        ({"bf16": False, "precision": "fp32"}, "fp32"),
        ({"fp16": False, "precision": "bf16"}, "bf16"),
    ],
)
def test_bf16_and_fp16_are_the_precision(given, precision):
    assert settings.parse(json.dumps(given)).precision == precision


def test_extra_args_take_the_place_of_the_files_under_whatever_name(tmp_path):
    path = tmp_path / "config.json"

    def of(file, given):
        path.write_text(json.dumps(file))
        return settings.parse(json.dumps(given), str(path))

    assert of({"bf16": True}, {"bf16": False}).precision == "fp32"
    assert of({"bf16": True, "precision": "bf16"}, {"precision": "fp32"}).precision == "fp32"
    assert of({"max_steps": 500}, {"max_steps": -1}).max_steps is None
    assert of({"eval_strategy": "no"}, {"eval_strategy": "steps", "eval_steps": 5}).eval_steps == 5
    assert of({"eval_steps": 5}, {"evaluation_strategy": "steps"}).eval_steps == 5
    assert of({"learning_rate": 1}, {"lr": 2}).lr == 2.0
    assert of({"max_steps": 5}, {"fsdp": None, "deepspeed": None}).training_arguments == {}


def test_what_changes_nothing_is_known_by_its_type():
    for name in training_arguments.HARMLESS:
        says_anything = not training_arguments.HARMLESS[name]
        together = {"load_best_model_at_end": True}
        assert training_arguments.changes_nothing(name, 12345.5, together, "meta") is says_anything, name
        assert says_anything or name == "max_steps" or name in training_arguments.OWNED, f"{name} has a reason"


def test_a_part_of_all_steps_is_counted_when_these_are_known():
    given = {"warmup_ratio": 0.05, "save_steps": 0.1, "eval_steps": 0.5, "logging_steps": 10}
    found = settings.parse(json.dumps(given)).in_steps(61)
    assert (found.warmup_steps, found.save_steps, found.eval_steps, found.logging_steps) == (4, 7, 31, 10)
    for all_steps in (1, 1.0):
        assert settings.parse(json.dumps({"warmup_ratio": all_steps})).in_steps(1234).warmup_steps == 1234
    best = settings.parse('{"load_best_model_at_end": true, "save_steps": 0.2, "eval_steps": 0.1}')
    for total, eval_steps in [(100, 10), (12, 2), (1234, 124)]:
        assert (best.in_steps(total).eval_steps, best.in_steps(total).save_steps) == (eval_steps, 2 * eval_steps)
    for save_steps, eval_steps in [(0.5, 0.3), (0.1, 0.2), (200, 0.1), (0.5, 100)]:
        given = {"load_best_model_at_end": True, "save_steps": save_steps, "eval_steps": eval_steps}
        with pytest.raises(UserError, match=rf"needs save_steps \({save_steps}\) to be a multiple of eval_steps"):
            settings.parse(json.dumps(given))


@pytest.mark.parametrize(
    ("given", "name", "value"),
    [
        ({"dataloader_workers": 0, "dataloader_num_workers": 4}, "dataloader_workers", 4),
        ({"dataloader_num_workers": 4, "dataloader_workers": 0}, "dataloader_workers", 4),
        ({"per_device_train_batch_size": 8, "per_gpu_train_batch_size": None}, "batch_size", 8),
        ({"max_seq_length": None, "max_length": 64}, "max_seq_len", 64),
        ({"warmup_steps": 0, "warmup_ratio": 0.0}, "warmup_steps", 0),
    ],
)
def test_of_two_names_in_a_dump_one_says_it(given, name, value):
    assert getattr(settings.parse(json.dumps(given)), name) == value


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_dump_of_all_arguments_at_their_defaults_is_taken(framework):
    dump = TrainingArguments(output_dir="out").to_dict()
    del dump["accelerator_config"]  # a mapping, which submit's schema compares with nothing
    assert len(dump) > 100
    assert settings.parse(json.dumps(dump), framework=framework).num_epochs == 3.0


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_what_cannot_be_run_here_is_refused_at_the_start(framework, monkeypatch):
    monkeypatch.setattr(training_arguments.shutil, "which", lambda program: None)
    for given, says in [
        (
            {"optim": "adamw_8bit"},
            'optim "adamw_8bit" needs the package bitsandbytes, which this image does not have; ',
        ),
        ({"use_liger_kernel": True}, "use_liger_kernel true needs the package liger_kernel"),
        ({"torch_compile": True}, "torch_compile needs a compiler, and this image has none of cc, gcc, clang"),
        ({"torch_compile_backend": "inductor"}, "torch_compile_backend needs a compiler, and this image has none of"),
        ({"torch_compile_mode": "default"}, "torch_compile_mode needs a compiler, and this image has none of cc"),
    ]:
        with pytest.raises(UserError, match=says if framework == "hf" else "framework hf alone takes it"):
            settings.parse(json.dumps(given), framework=framework)
    with pytest.raises(
        UserError, match=r"there are: adamw_torch, adamw_torch_fused, adafactor, sgd, adagrad, rmsprop$"
    ):
        settings.parse('{"optim": "adamw_8bit"}')
    with pytest.raises(
        UserError, match=r"must be one of adamw_torch, adamw_torch_fused, adafactor, sgd, .*rmsprop, not"
    ):
        settings.parse('{"optim": "adam"}')


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"skip_non_finite_steps": -1}, "skip_non_finite_steps must be at least 0, not -1"),
        ({"skip_non_finite_steps": 1, "precision": "fp16"}, "skip_non_finite_steps does not go with precision fp16"),
        ({"max_grad_norm": "0.5"}, 'extra_args.max_grad_norm must be a number, not "0.5"'),
        ({"gradient_checkpointing": 1}, "gradient_checkpointing must be true or false, not 1"),
        ({"optim": "adam"}, "optim must be one of adamw_torch, adamw_torch_fused, "),
        ({"lr_scheduler_type": "greedy"}, "lr_scheduler_type must be one of linear, cosine, "),
        ({"lr_scheduler_type": "cosine", "scheduler": "cosine"}, "exclude each other"),
        ({"lr_scheduler_kwargs": [1]}, "lr_scheduler_kwargs must be a mapping, not a list"),
        ({"lr_scheduler_kwargs": "{}"}, 'lr_scheduler_kwargs must be a mapping, not "{}"'),
        ({"lr_scheduler_kwargs": {"cycles": [1.0, math.inf]}}, "lr_scheduler_kwargs must have finite numbers"),
        ({"max_grad_norm": math.nan}, "max_grad_norm must have finite numbers"),
        ({"max_grad_norm": 10**400}, "max_grad_norm must have finite numbers"),
        ({"max_grad_nrom": 1}, "max_grad_nrom is no setting of hf: did you mean max_grad_norm?"),
        ({"project": "x"}, "project cannot be set: where it writes is the platform's: CHECKPOINT_BASE_URI"),
        (
            {"save_strategy": "epoch"},
            "save_strategy cannot be set: save_steps decides when it saves, and below 1 it is a part of all",
        ),
        (
            {"do_train": 1},
            "do_train cannot be set: eval_steps decides when it evaluates, below 1 it is a part of all steps; texts "
            "are held out for it; leave it out, or say true",
        ),
        (
            {"eval_strategy": "steps"},
            "eval_strategy cannot be set: eval_steps decides when it evaluates",
        ),
        ({"eval_strategy": "no", "eval_steps": 5}, "eval_strategy cannot be set"),
        ({"load_best_model_at_end": True}, "load_best_model_at_end needs eval_steps: nothing is evaluated without"),
        (
            {"load_best_model_at_end": True, "eval_steps": 200, "save_steps": 300},
            "load_best_model_at_end needs save_steps (300) to be a multiple of eval_steps (200)",
        ),
        (
            {"load_best_model_at_end": True, "eval_steps": 500, "metric_for_best_model": "accuracy"},
            "metric_for_best_model cannot be set: the best model is the one with the least eval_loss; leave it out",
        ),
        ({"save_steps": 0.1, "learning_rte": 1}, "did you mean learning_rate?"),
        ({"trust_remote_code": True}, "trust_remote_code cannot be set: no code of a model's folder is run: build an"),
        (
            {"optim_args": "eps=1"},
            "optim_args has eps, which optim adamw_torch_fused does not read: it reads nothing of it, beside "
            "adam_beta1, adam_beta2, adam_epsilon, weight_decay",
        ),
        (
            {"optim_args": "eps=1", "optim": "adafactor"},
            "optim_args has eps, which optim adafactor does not read: it reads nothing of it, beside weight_decay",
        ),
        (
            {"optim_args": "momentum=0.9, mu=1", "optim": "sgd"},
            "optim_args has mu, which optim sgd does not read: it reads momentum, dampening, nesterov, beside "
            "weight_decay",
        ),
        ({"optim_args": "alpha=1", "optim": "adagrad"}, "optim_args has alpha, which optim adagrad does not read: it"),
        ({"optim_args": "weight_decay=1", "optim": "rmsprop"}, "optim_args has weight_decay, which optim rmsprop does"),
        (
            {"adam_beta2": 0.9, "adam_epsilon": 1e-6, "optim": "adafactor"},
            "adam_beta2, adam_epsilon is not read by optim adafactor: leave it out",
        ),
        ({"adam_beta1": 0.8, "optim": "sgd"}, "adam_beta1 is not read by optim sgd"),
        ({"optim_target_modules": "all-linear"}, "optim_target_modules is not read by optim adamw_torch_fused"),
        ({"liger_kernel_config": {"rope": True}}, "liger_kernel_config is not read without use_liger_kernel"),
        (
            {"lr_scheduler_type": "constant", "lr_scheduler_kwargs": {"x": 1}},
            "lr_scheduler_kwargs is not read by the schedule constant: leave it out",
        ),
        ({"scheduler": "constant", "lr_scheduler_kwargs": {"x": 1}}, "lr_scheduler_kwargs is not read by the schedule"),
        (
            {"activation_checkpointing_kwargs": {"use_reentrant": False}},
            "activation_checkpointing_kwargs is not read without gradient_checkpointing: leave it out",
        ),
        (
            {"gradient_checkpointing_kwargs": {"x": 1}},
            "gradient_checkpointing_kwargs is not read without gradient_check",
        ),
        (
            {"gradient_checkpointing": True, "activation_checkpointing": False},
            "activation_checkpointing is given twice, as gradient_checkpointing too",
        ),
        ({"torch_compile": False, "torch_compile_mode": "default"}, "torch_compile_mode goes with torch_compile true"),
        ({"debug": ["foo"]}, 'debug must be one of "", underflow_overflow, [], ["underflow_overflow"], not a list'),
        ({"debug": "foo"}, 'debug must be one of "", underflow_overflow, '),
        (
            {"include_num_input_tokens_seen": "foo"},
            "include_num_input_tokens_seen must be one of false, true, no, all,",
        ),
        ({"label_smoothing_factor": 1.5}, "label_smoothing_factor must be a number from 0 to 1, not 1.5"),
        ({"label_smoothing_factor": -0.1}, "label_smoothing_factor must be a number from 0 to 1, not -0.1"),
        ({"neftune_noise_alpha": -5}, "neftune_noise_alpha must be a number of at least 0, not -5"),
        ({"log_level": "loud"}, "log_level must be one of debug, info, warning, error, critical, passive, not"),
        ({"adam_beta1": 1}, "adam_beta1 must be a number from 0 to below 1, not 1.0"),
        ({"adam_epsilon": -1e-8}, "adam_epsilon must be a number of at least 0, not -1e-08"),
        ({"torch_empty_cache_steps": 0}, "torch_empty_cache_steps must be a whole number of at least 1, not 0"),
        ({"max_length": 8, "max_seq_length": 9}, "max_seq_length is given twice, as max_length too"),
        ({"gradient_clipping": 1}, "gradient_clipping is no setting of hf: did you mean max_grad_norm?"),
        ({"report_to": [None]}, "report_to must be text, not a list"),
        ({"ddp_static_graph": True, "gradient_accumulation": 2, "sharded": False}, "ddp_static_graph does not go with"),
        ({"lr": 0, "learning_rate": 1e-4}, "learning_rate is given twice, as lr too"),
        ({"warmup_ratio": 0.1, "warmup_steps": 5}, "warmup_steps is given twice, as warmup_ratio too"),
        ({"bf16": True, "fp16": True}, "bf16 true, fp16 true, precision null contradict each other"),
        (
            {"bf16": True, "precision": "fp32"},
            'bf16 true, precision "fp32" contradict each other: precision alone says it',
        ),
        ({"bf16": False, "precision": "bf16"}, "contradict each other"),
        ({"report_to": ["tensorboard", "wandb"]}, "report_to must be text, not a list"),
        ({"push_to_hub": True}, "push_to_hub cannot be set: nothing is sent to a hub: the model is exported"),
        ({"deepspeed": {}}, "deepspeed cannot be set: how the processes work together follows from"),
        ({"bf16": 1}, "bf16 must be true or false, not 1"),
    ],
)
def test_hf_refuses_what_it_cannot_be_given(given, says):
    with pytest.raises(UserError, match=re.escape(says)) as refused:
        settings.parse(json.dumps(given))
    assert "\n" not in str(refused.value)
