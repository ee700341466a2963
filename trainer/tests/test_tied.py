"""Tied weights: one weight under two names, trained as one and exported once."""

import json
import re

import pytest
from alone import ALONE
from pods import FIRST, exported
from safetensors.torch import load_file, save_file

import make_tiny_model
from training import model
from training.distributed import sharding
from training.errors import UserError
from training.sharded import Split


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


@pytest.mark.parametrize("split", [Split(processes=1, device="cpu", precision="fp32"), None])
def test_weights_that_config_json_ties_and_the_file_does_not_are_refused(tmp_path, split):
    """Some tools leave such a file. One of the two would be thrown away, or both trained, and nobody told."""
    make_tiny_model.make(tmp_path / "model")
    path = tmp_path / "model/config.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"tie_word_embeddings": True}))
    with sharding(ALONE):
        with pytest.raises(
            UserError, match=r"ties lm_head\.weight to model\.embed_tokens\.weight, and its file has other"
        ):
            model.load(str(tmp_path / "model"), split)
        weights = load_file(tmp_path / "model/model.safetensors")
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
        save_file(weights, tmp_path / "model/model.safetensors", {"format": "pt"})
        network, _ = model.load(str(tmp_path / "model"), split)
    assert network.lm_head.weight is network.model.embed_tokens.weight


def test_tied_weights_are_trained_as_one_and_exported_once(warm, tmp_path, tied):
    names = set(load_file(tied / "tiny" / "model.safetensors"))
    losses = {}
    for name, given in {
        "DDP": {"framework": "nemo", "sharded": False},
        "hf, FSDP2": {"framework": "hf"},
        "nemo, FSDP2": {"framework": "nemo"},
        "meta, FSDP2": {"framework": "meta"},
    }.items():
        store = tmp_path / name
        with warm(store, FIRST, max_steps=4, environment={"MODEL_DIR": str(tied)}, **given) as pods:
            assert pods.end() == [0], pods.log
        losses[name] = [float(loss) for loss in re.findall(r"step \d+/4 loss (\S+)", pods.log)]
        assert set(exported(store, FIRST, given["framework"])) == names, name
    assert len(losses["DDP"]) == 4
    for name, of_name in losses.items():
        assert of_name == pytest.approx(losses["DDP"], abs=2e-4), name


# Parts are two processes' or those of one that says sharded: true.
PARTS, WHOLE = {}, {"sharded": False}


@pytest.mark.parametrize(
    ("framework", "processes", "before", "after"),
    [
        ("hf", 0, {}, {}),
        ("hf", 2, PARTS, WHOLE),
        ("hf", 2, PARTS, PARTS),
        ("nemo", 0, {}, {}),
        ("nemo", 2, WHOLE, WHOLE),
        ("meta", 0, {}, {}),
        ("meta", 2, PARTS, PARTS),
    ],
)
def test_tied_weights_are_one_after_a_restart_too(warm, tmp_path, tied, framework, processes, before, after):
    names = set(load_file(tied / "tiny" / "model.safetensors"))
    job = {"framework": framework, "processes": processes, "environment": {"MODEL_DIR": str(tied)}}
    losses = {}
    for name, runs in {"straight": [(6, before)], "again": [(3, before), (6, after)]}.items():
        losses[name] = {}
        for steps, how in runs:
            with warm(
                tmp_path / name, FIRST, max_steps=steps, save_steps=3, scheduler="constant", **job, **how
            ) as pods:
                assert pods.end() == [0], pods.log
            losses[name] |= dict(re.findall(r"step (\d+)/\d+ loss (\S+)", pods.log))
        assert set(exported(tmp_path / name, FIRST, framework)) == names, name
    assert len(losses["straight"]) == 6
    assert losses["again"] == losses["straight"]
