"""The schemas of the settings say what the trainer does, and the checked-in files are the ones that are made."""

import json

import jsonschema
import pytest

from training import schema, settings, training_arguments
from training.errors import UserError
from training.layout import FRAMEWORKS

frameworks = pytest.mark.parametrize("framework", FRAMEWORKS)
MANY = [
    None, True, False, -1, -1.0, 0, 1, 2, 7, 2**32, 0.03, 0.0, 0.9, 0.999, 1e-8, 1.0, 1.5, 7.0, -0.5, "", "x", "no",
    "steps", "epoch", "main", "auto", "eval_loss", "loss", "linear", "cosine", "constant_with_warmup", "polynomial",
    "bf16", "info", "passive", "all", "underflow_overflow", ["underflow_overflow"], ["foo"], [None],
    "tensorboard", "wandb", "adamw_torch", "adamw_torch_fused", "adafactor", "adamw_8bit", [], ["none"],
    ["tensorboard"], ["tensorboard", "wandb"], {}, {"a": 1},
]  # fmt: skip
# What only several settings together decide.
TOGETHER = {
    "eval_strategy", "evaluation_strategy", "load_best_model_at_end", "optim_args", "optim_target_modules",
    "liger_kernel_config", "activation_checkpointing_kwargs", "gradient_checkpointing_kwargs",
    *training_arguments.OF_DDP,
}  # fmt: skip


@pytest.mark.parametrize(("path", "text"), schema.files().items(), ids=lambda part: getattr(part, "name", ""))
def test_the_checked_in_files_are_up_to_date(path, text):
    assert path.read_text(encoding="utf-8") == text, "run `make settings`"


@frameworks
def test_a_schema_is_one(framework):
    jsonschema.Draft202012Validator.check_schema(schema.schema(framework))


@frameworks
def test_a_schema_and_the_trainer_take_the_same_values(framework, monkeypatch):
    monkeypatch.setattr(training_arguments, "is_installed", lambda package: package in schema.locked())
    monkeypatch.setattr(training_arguments.shutil, "which", lambda program: program)
    validator = jsonschema.Draft202012Validator(schema.schema(framework))
    names = [*schema.properties(framework), "max_step", "training_arguments"]
    differ = []
    for name, value in ((name, value) for name in names for value in MANY if name not in TOGETHER):
        try:
            settings.parse(json.dumps({name: value}), framework=framework)
            takes = True
        except UserError:
            takes = False
        if takes is not validator.is_valid({name: value}):
            differ.append((name, value, takes))
    assert not differ


@frameworks
def test_every_property_says_what_it_must_be(framework):
    for name, about in schema.properties(framework).items():
        assert "x-expected" in about or set(about) == {"description"}, name


@frameworks
def test_every_name_that_the_trainer_knows_is_a_property(framework):
    names = {*settings.names(framework), *settings.ALIASES, *training_arguments.known()}
    assert names == set(schema.properties(framework))


def test_what_the_image_has_comes_from_its_lock():
    assert {"torch", "transformers"} <= schema.locked()
    optimizers = schema.properties("hf")["optim"]
    assert {"adamw_torch", "adamw_torch_fused", "adafactor", "sgd"} <= set(optimizers["enum"])
    for package, names in training_arguments._OPTIMIZERS.items():
        for name in names.split():
            assert (name in optimizers["enum"]) is (package in schema.locked()), name
    known = training_arguments.enumerated(training_arguments.kinds("optim"))
    assert set(training_arguments.PACKAGES["optim"]) < set(known), "each is one that transformers knows"
