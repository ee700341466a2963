"""Small inputs after public reports of people who train models, each with where it was reported, and what is right."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from training import model, model_files, settings
from training.data.texts import Reader, Texts
from training.errors import UserError


def texts(tmp_path, content):
    (tmp_path / "data").write_bytes(content)
    return list(Texts(Reader("s3://bucket/", "text"), ["data.jsonl"], [tmp_path / "data"]))


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b'\xef\xbb\xbf{"text": "a"}\n{"text": "b"}\n', ["a", "b"]),  # microsoft/promptflow 4172: a byte order mark
        (b'{"text": "a"}\r\n{"text": "b"}\r\n', ["a", "b"]),  # huggingface/datasets: lines of Windows
        ('{"text": "a\u2028b"}\n'.encode(), ["a\u2028b"]),  # a line separator within a text ends no line
    ],
    ids=["bom", "crlf", "u2028"],
)
def test_data_that_are_read(tmp_path, content, found):
    assert texts(tmp_path, content) == found


@pytest.mark.parametrize(
    ("content", "says"),
    [
        # huggingface/datasets: a list of objects in place of lines
        (
            b'[{"text": "a"}, {"text": "b"}]',
            "line 1: a list, where each text has to be in an object on a line of its own",
        ),
        (b'[\n{"text": "a"},\n{"text": "b"}\n]', "line 1: not JSON, an object a line"),
        (b'{"text": "a"},\n{"text": "b"}\n', "line 1: not JSON, an object a line: Extra data"),
        (b'{"text": "a"}\n{"text": null}\n', "line 2: no text in field 'text'"),
        (
            b'{"prompt": "a", "completion": "b"}',
            "line 1: no text in field 'text', which is what dataset_text_field names",
        ),
        (b"PAR1\x15\x04\x15", "line 1: this is Parquet, and JSON lines are read"),
        (b"\x1f\x8b\x08\x00", "line 1: this is gzip, and JSON lines are read"),
        # git-lfs: a clone without it
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n",
            "this is a pointer of Git LFS instead of the",
        ),
        ('{"text": "a"}\n'.encode("utf-16"), "line 1: not JSON, an object a line"),
    ],
    ids=["list", "pretty", "commas", "null", "columns", "parquet", "gzip", "lfs", "utf-16"],
)
def test_data_that_are_refused(tmp_path, content, says):
    with pytest.raises(UserError) as refused:
        texts(tmp_path, content)
    assert str(refused.value).startswith("s3://bucket/data.jsonl, line ")
    assert says in str(refused.value)


@pytest.fixture
def folder(tmp_path, model_dir):
    shutil.copytree(model_dir / "tiny", tmp_path / "model")
    return tmp_path / "model"


def loaded(folder):
    return model.load(model_files.locate(str(folder), folder))


def change(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_bytes()) | fields))


@pytest.mark.parametrize("name", ["model.safetensors", "model-00001-of-00002.safetensors", "tokenizer.json"])
def test_a_file_that_is_a_pointer_of_git_lfs(folder, name):
    """huggingface/transformers: "Error while deserializing header: HeaderTooLarge"."""
    (folder / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n")
    with pytest.raises(UserError, match=rf"has a pointer of Git LFS for {name}: fetch it with `git lfs pull`$"):
        loaded(folder)


def test_weights_that_were_cut_short(folder):
    """huggingface/safetensors: "incomplete metadata, file not fully covered"."""
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cannot be loaded"):
        loaded(folder)


def test_a_classifier_in_place_of_a_language_model(folder):
    """huggingface/peft 2367: `score.weight` of MistralForSequenceClassification."""
    weights = load_file(folder / "model.safetensors")
    weights["score.weight"] = weights.pop("lm_head.weight")[:2].clone()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"its file lacks lm_head.weight; the model has no score.weight"):
        loaded(folder)


def test_names_of_weights_that_another_tool_has_changed(folder):
    """unslothai/unsloth 733: layers are "newly initialized" and the loss is NaN."""
    weights = load_file(folder / "model.safetensors")
    renamed = {name.replace("input_layernorm", "pre_feedforward_layernorm"): weight for name, weight in weights.items()}
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"its file lacks model.layers.0.input_layernorm.weight, "):
        loaded(folder)


def test_a_tokenizer_of_a_larger_model(folder):
    """huggingface/transformers 1848: device-side assert, as the embedding was not resized."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_bytes())
    tokenizer["model"]["vocab"]["<one more>"] = 511
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match=r"the tokenizer in .* is not the model's: it has ids up to"):
        loaded(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json"])
def test_a_file_that_is_missing(folder, name):
    """huggingface/transformers: weights alone were uploaded."""
    (folder / name).unlink()
    if name == "tokenizer.json":
        (folder / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match=name if name == "config.json" else "cannot be loaded"):
        loaded(folder)


@pytest.mark.parametrize(
    "fields",
    [{"model_type": "of-tomorrow"}, {"model_type": None}, {"hidden_size": "64"}, {"num_attention_heads": 0}],
    ids=["unknown", "none", "text", "zero"],
)
def test_a_config_that_makes_no_model(folder, fields):
    """huggingface/transformers: "does not recognize this architecture"."""
    change(folder / "config.json", **fields)
    with pytest.raises(UserError, match=r"the model in .* cannot be loaded"):
        loaded(folder)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"learning_rate": "2e-5"}, 'learning_rate must be a number, not "2e-5"'),  # hiyouga/LlamaFactory 4014
        ({"bf16": "true"}, 'bf16 must be true or false, not "true"'),
        ({"save_total_limit": 0}, "keep_last must be at least 1, not 0"),
        ({"num_train_epochs": 0}, "num_epochs must be above 0"),
        ({"max_steps": 0}, "max_steps must be at least 1"),
        ({"per_device_train_batch_size": "auto"}, 'per_device_train_batch_size must be a whole number, not "auto"'),
        (
            {"fsdp": "shard_grad_op"},
            "fsdp cannot be set: how the processes work together follows from num_nodes",
        ),
        ({"report_to": "all"}, "report_to must be one of none, tensorboard, not 'all'"),
        ({"optim": "adamw_hf"}, "optim must be one of adamw_torch, adamw_torch_fused, adafactor, sgd"),
        ({"load_in_4bit": True}, "load_in_4bit cannot be set: the weights are trained, in fp32, and a quantized"),
    ],
)
def test_settings_that_are_refused(given, says):
    with pytest.raises(UserError) as refused:
        settings.parse(json.dumps(given))
    assert says in str(refused.value)
