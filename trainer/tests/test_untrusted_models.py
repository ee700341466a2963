"""Whatever stands in a model's folder, nothing of it runs.

Each file in turn is replaced by one that would make a directory, and code of the model's own is planted beside them.
"""

import importlib.util
import io
import json
import os
import pickle
import shutil
import sys
import warnings
from unittest import mock

import pytest
from conftest import client
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, dynamic_module_utils
from traps import MODEL

from training import model, model_files
from training.errors import UserError, cause_of


@pytest.fixture
def model_on_s3(s3, model_dir, tmp_path):
    """Puts the model's files into the bucket, changed, and loads it from there."""

    def load(change):
        folder = tmp_path / "to-upload"
        shutil.copytree(model_dir / "tiny", folder)
        change(folder)
        with mock.patch.dict(os.environ, s3):
            for path in folder.iterdir():
                client(s3).upload_file(str(path), "bucket", f"{tmp_path.name}/{path.name}")
            return model.load(model_files.locate(f"s3://bucket/{tmp_path.name}/", tmp_path / "model"))

    return load


@pytest.mark.parametrize("file", MODEL)
def test_a_models_file_is_data(model_on_s3, model_dir, trap, file):
    assert file in {path.name for path in (model_dir / "tiny").iterdir()}
    if file == "generation_config.json":  # without one that it can read it takes its own
        model_on_s3(lambda folder: (folder / file).write_bytes(pickle.dumps(trap)))
        return
    with pytest.raises(UserError, match="cannot be loaded"):
        model_on_s3(lambda folder: (folder / file).write_bytes(pickle.dumps(trap)))


def test_weights_of_torch_are_data(model_on_s3, trap, form):
    def plant(folder):
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(form(trap))

    with warnings.catch_warnings(), pytest.raises(UserError, match=r"pytorch_model\.bin holds code"):
        warnings.simplefilter("ignore")
        model_on_s3(plant)


OF_ITS_OWN = {"AutoConfig": "mine.Config", "AutoModel": "mine.Model", "AutoModelForCausalLM": "mine.Model"}
TOKENS = {"auto_map": {"AutoTokenizer": ["tokens.Slow", "tokens.Fast"]}}
# What config.json and tokenizer_config.json get; the first of these models is of a type that transformers has itself.
OWN_CODE = {
    "known": ({"auto_map": OF_ITS_OWN}, TOKENS),
    "unknown": ({"auto_map": OF_ITS_OWN, "model_type": "mine"}, TOKENS),
    "unknown, and its tokenizer is a config": (
        {"auto_map": OF_ITS_OWN, "model_type": "mine"},
        {"tokenizer_class": "AutoConfig"},
    ),
    "unknown, and its tokenizer is a model": (
        {"auto_map": OF_ITS_OWN, "model_type": "mine"},
        {"tokenizer_class": "AutoModelForCausalLM"},
    ),
    "known, and its tokenizer is a config": ({}, {"tokenizer_class": "AutoConfig"}),
    "known, a part of it not": (
        {"model_type": "fuyu", "text_config": {"auto_map": OF_ITS_OWN, "model_type": "clvp_decoder"}},
        {},
    ),
}


def plant_own_code(folder, trap, variant, source):
    """As a model's folder that will be loaded from `source`."""
    config, tokens = OWN_CODE[variant]
    for name in ("mine", "tokens"):
        (folder / f"{name}.py").write_text(f"import os\nos.mkdir({str(trap.path)!r})\n")
    if "text_config" in config:
        config = config | {"text_config": config["text_config"] | {"_name_or_path": str(source)}}
    for name, own in (("config.json", config), ("tokenizer_config.json", tokens)):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | own))


@pytest.fixture
def willing(monkeypatch):
    """Somebody at the console who would say yes, and must not have been asked."""
    answers = "y\n" * 10
    monkeypatch.setattr("sys.stdin", io.StringIO(answers))
    yield
    assert sys.stdin.read() == answers, "somebody was asked"


@pytest.mark.parametrize("variant", OWN_CODE)
def test_a_models_own_code_is_not_run_and_nobody_is_asked(model_on_s3, trap, tmp_path, willing, variant):
    def plant(folder):
        plant_own_code(folder, trap, variant, tmp_path / "model")

    if variant == "known":
        model_on_s3(plant)  # by our own code
    else:
        with pytest.raises(UserError, match="cannot be loaded") as error:
            model_on_s3(plant)
        assert cause_of(error.value) == "user_error"


@pytest.mark.parametrize("variant", OWN_CODE)
def test_a_models_own_code_is_not_run_for_its_shapes(model_dir, trap, tmp_path, willing, variant):
    shutil.copytree(model_dir / "tiny", tmp_path / "model")
    plant_own_code(tmp_path / "model", trap, variant, tmp_path / "model")
    if variant in ("known", "known, and its tokenizer is a config"):
        assert model.shapes_of_config(str(tmp_path / "model"))
    else:
        with pytest.raises(UserError, match="cannot be loaded"):
            model.shapes_of_config(str(tmp_path / "model"))


def test_a_models_own_code_is_not_run_for_whoever_asks_for_it(model_dir, trap, tmp_path, willing):
    """A file can bring what transformers passes on, and so perhaps the consent."""
    shutil.copytree(model_dir / "tiny", tmp_path / "model")
    model.load(str(tmp_path / "model"))
    plant_own_code(tmp_path / "model", trap, "unknown", tmp_path / "model")
    for auto in (AutoConfig, AutoModelForCausalLM, AutoTokenizer):
        with pytest.raises(UserError, match="code of its own"):
            auto.from_pretrained(str(tmp_path / "model"), trust_remote_code=True)
    with pytest.raises(UserError, match="code of its own"):
        dynamic_module_utils.get_class_from_dynamic_module("mine.Model", str(tmp_path / "model"))


@pytest.mark.parametrize(
    "names",
    [
        {"_attn_implementation": "someone/kernel"},
        {"attn_implementation": "someone/kernel"},
        {"quantization_config": {"quant_method": "torchao", "quant_type": "int4"}},
    ],
)
def test_a_models_config_brings_no_code_from_elsewhere(model_on_s3, names):
    """transformers fetches such code from the hub, or imports it, where packages are there that the lock leaves out."""
    assert not any(map(importlib.util.find_spec, ("kernels", "torchao")))

    def plant(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | names))

    with pytest.raises(UserError, match=r"cannot be loaded: .*kernels|is quantized by torchao"):
        model_on_s3(plant)
