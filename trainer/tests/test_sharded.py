"""Weights that are split over the processes: what a host pays for them, and that they are the model's."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import torch
from alone import ALONE
from pods import TORCHRUN, same
from transformers import AutoModelForCausalLM, LlamaConfig, MambaConfig, PreTrainedConfig

import make_tiny_model
from training import sharded
from training.distributed import sharding
from training.errors import UserError
from training.sharded import Split

# What is given back is given back, as on a GPU; the C library would keep much of it for later.
ENVIRONMENT = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def test_a_process_has_its_part_of_a_model_in_memory_and_no_more(tmp_path, model_dir):
    """Of four: four bytes a weight by four, and a layer or two while its loss is tried. It had a whole model before."""
    folder = tmp_path / "large"
    make_tiny_model.make(folder)
    config = LlamaConfig(
        vocab_size=16000, hidden_size=1024, intermediate_size=2816, num_hidden_layers=11, num_attention_heads=8
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    script = Path(__file__).with_name("loading.py")
    command = [TORCHRUN, "--standalone", "--nproc-per-node=4", script, model_dir / "tiny", folder]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=ENVIRONMENT)
    found = re.findall(r"(\d+\.\d+) bytes of (\d+)", ended.stdout)
    assert len(found) == 4, ended.stderr
    for bytes_of_a_weight, weights in found:
        assert int(weights) > 150_000_000
        assert float(bytes_of_a_weight) < 2


def test_the_peak_of_a_real_step_is_the_expected_one(tmp_path, model_dir):
    folder = tmp_path / "large"
    make_tiny_model.make(folder)
    config = LlamaConfig(
        vocab_size=8000, hidden_size=384, intermediate_size=1056, num_hidden_layers=8, num_attention_heads=6
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    script = Path(__file__).with_name("peak.py")
    command = [TORCHRUN, "--standalone", "--nproc-per-node=2", script, model_dir / "tiny", folder]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=ENVIRONMENT)
    found = re.findall(r"^(\d+) of (\d+)$", ended.stdout, re.M)
    assert len(found) == 2, ended.stderr
    (plain, _), (again, _) = found
    assert int(again) < 0.8 * int(plain)
    for peak, expected in found:
        assert int(peak) == pytest.approx(int(expected), rel=0.15)


def test_a_model_that_is_made_without_weights_has_the_buffers_of_one_that_is_loaded(model_dir):
    config = AutoModelForCausalLM.from_pretrained(model_dir / "tiny").config
    split = Split(processes=1, device="cpu", precision="fp32")
    with sharding(ALONE):
        made, (loaded, _) = split.make(config), split.load(str(model_dir / "tiny"), config)
    assert {name: weight.shape for name, weight in made.state_dict().items()} == {
        name: weight.shape for name, weight in loaded.state_dict().items()
    }
    assert same(dict(made.named_buffers()), dict(loaded.named_buffers()))


def test_a_model_without_layers_cannot_be_split():
    with pytest.raises(UserError, match="has no layers by which it could be split: say sharded false"):
        sharded.layers(
            type("Flat", (torch.nn.Linear,), {"_no_split_modules": None, "config": PreTrainedConfig()})(1, 1)
        )


def test_a_layer_that_has_layers_in_it_is_split():
    """Of Mamba transformers names the block and the mixer in it."""
    config = MambaConfig(vocab_size=100, hidden_size=16, num_hidden_layers=2, state_size=4)
    network = AutoModelForCausalLM.from_config(config)
    ids = torch.arange(20).reshape(2, 10)
    whole = network(input_ids=ids, labels=ids).loss
    with sharding(ALONE):
        Split(processes=1, device="cpu", precision="fp32").shard(network)
        split = network(input_ids=ids, labels=ids).loss
        split.backward()
    assert float(split) == float(whole)
    assert all(weight.grad is not None for weight in network.parameters())
