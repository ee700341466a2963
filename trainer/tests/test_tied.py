"""Tied weights: one weight under two names, trained as one and exported once."""

import json
import re

import pytest
from pods import FIRST, exported
from safetensors.torch import load_file, save_file

import make_tiny_model


@pytest.fixture
def tied(tmp_path):
    """A MODEL_DIR whose model has one weight for the embedding and the head."""
    folder = tmp_path / "models" / "tiny"
    make_tiny_model.make(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"tie_word_embeddings": True}))
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder.parent


def test_tied_weights_are_trained_as_one_and_exported_once(start, tmp_path, tied):
    names = set(load_file(tied / "tiny" / "model.safetensors"))
    losses = {}
    for name, given in {
        "DDP": {"framework": "nemo", "sharded": False},
        "hf, FSDP2": {"framework": "hf"},
        "nemo, FSDP2": {"framework": "nemo"},
        "meta, FSDP2": {"framework": "meta"},
    }.items():
        store = tmp_path / name
        with start(store, FIRST, max_steps=4, environment={"MODEL_DIR": str(tied)}, **given) as pods:
            assert pods.end() == [0], pods.log
        losses[name] = [float(loss) for loss in re.findall(r"step \d+/4 loss (\S+)", pods.log)]
        assert set(exported(store, FIRST, given["framework"])) == names, name
    assert len(losses["DDP"]) == 4
    for name, of_name in losses.items():
        assert of_name == pytest.approx(losses["DDP"], abs=2e-4), name
