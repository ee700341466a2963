"""The trained model as it is given away."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from alone import ALONE
from pods import TORCHRUN, same
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, LlamaConfig, MixtralConfig

import make_tiny_model
from training import export, model
from training.storage import Folder

SMALL = {"vocab_size": 512, "hidden_size": 48, "intermediate_size": 144, "num_attention_heads": 4}
MODELS = {
    "bf16": (LlamaConfig(**SMALL, num_hidden_layers=3, tie_word_embeddings=False), torch.bfloat16),
    "tied": (LlamaConfig(**SMALL, num_hidden_layers=3, tie_word_embeddings=True), torch.float16),
    "experts": (
        MixtralConfig(**SMALL, num_hidden_layers=2, num_local_experts=2, num_key_value_heads=2),
        torch.bfloat16,
    ),
    "old": (GPT2Config(vocab_size=512, n_embd=64, n_layer=2, n_head=4), torch.float32),
}


def make(folder, config, dtype):
    make_tiny_model.make(folder)
    (folder / "model.safetensors").unlink()
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(folder)


def weights_of(folder):
    files = sorted(folder.glob("*.safetensors"))
    found = [load_file(file) for file in files]
    together = {name: weight for of_file in found for name, weight in of_file.items()}
    assert len(together) == sum(map(len, found)), "each weight is in one file"
    return files, together


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Folders of models, and a store of what three processes have exported of them."""
    root = tmp_path_factory.mktemp("exported")
    for name, (config, dtype) in MODELS.items():
        make(root / "models" / name, config, dtype)
    script = Path(__file__).with_name("exporting.py")
    command = [TORCHRUN, "--standalone", "--nproc-per-node=3", script, root / "models", root / "store"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 0, ended.stderr
    return root


@pytest.mark.parametrize("form", ["split", "whole"])
@pytest.mark.parametrize("name", MODELS)
def test_three_processes_export_what_the_model_came_as(exported, name, form):
    """In its own numbers and under its own names, in several files that they share out."""
    given, folder = exported / "models" / name, exported / "store/model" / f"{name}-{form}"
    (_, before), (files, after) = weights_of(given), weights_of(folder)
    assert len(files) > 1
    index = json.loads((folder / "model.safetensors.index.json").read_bytes())["weight_map"]
    assert set(index.values()) == {file.name for file in files}
    assert {name: file.name for file in files for name in load_file(file)} == index
    assert {name: weight.dtype for name, weight in after.items()} == {
        name: weight.dtype for name, weight in before.items()
    }
    assert same(after, before)
    described = json.loads((folder / "config.json").read_bytes())
    assert described == json.loads((given / "config.json").read_bytes()) | {
        "architectures": described["architectures"],
        "transformers_version": described["transformers_version"],
    }
    assert AutoTokenizer.from_pretrained(folder)("the model")["input_ids"]
    network = AutoModelForCausalLM.from_pretrained(folder)
    assert network.dtype == MODELS[name][1]
    assert network.generate(torch.tensor([[5, 6]]), max_new_tokens=2, do_sample=False).shape == (1, 4)


def test_weights_that_fp16_is_too_narrow_for_are_exported_in_fp32(tmp_path, caplog):
    make(tmp_path / "model", *MODELS["tied"])
    network, tokenizer = model.load(str(tmp_path / "model"))
    with torch.no_grad():
        network.model.norm.weight[3] = 1e5
    with caplog.at_level("WARNING"):
        export.export(network, tokenizer, tmp_path / "work", Folder(tmp_path), "one", ALONE)
    folder = tmp_path / "model/one"
    assert "the weights have grown beyond fp16" in caplog.text
    assert json.loads((folder / "config.json").read_bytes())["dtype"] == "float32"
    weights = load_file(folder / "model.safetensors")
    assert weights["model.norm.weight"][3] == 1e5
    assert {weight.dtype for weight in weights.values()} == {torch.float32}


def test_a_file_with_other_numbers_than_config_json_says_is_told(tmp_path, caplog):
    make_tiny_model.make(tmp_path)
    model.load(str(tmp_path))
    assert not caplog.text
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"dtype": "float16"}))
    model.load(str(tmp_path))
    said = "config.json says that the weights are float16, and its file has float32: the export has float16"
    assert said in caplog.text


def test_all_chat_templates_are_exported(tmp_path):
    """The others than the default one have a folder, at which each start failed when all was trained."""
    make(tmp_path / "model", *MODELS["tied"])
    path = tmp_path / "model/tokenizer_config.json"
    templates = [{"name": name, "template": f"{name} {{{{ messages }}}}"} for name in ("default", "rag")]
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"chat_template": templates}))
    network, tokenizer = model.load(str(tmp_path / "model"))
    export.export(network, tokenizer, tmp_path / "work", Folder(tmp_path), "one", ALONE)
    assert AutoTokenizer.from_pretrained(tmp_path / "model/one").chat_template == {
        one["name"]: one["template"] for one in templates
    }


def test_a_layer_is_in_one_file():
    sizes = {"embed.weight": 50, "layers.0.a": 30, "layers.0.b": 40, "layers.1.a": 20, "layers.1.b": 5, "head": 90}
    assert export.shared_out(sizes, 60) == [
        ["embed.weight"],
        ["layers.0.a", "layers.0.b"],
        ["layers.1.a", "layers.1.b"],
        ["head"],
    ]
    assert export.shared_out(sizes, 1000) == [list(sizes)]
