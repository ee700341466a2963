"""The loss that never has all logits: the same numbers as the model's own, where it is the model's own."""

import json
import re
from pathlib import Path

import pytest
import torch
from alone import ALONE
from pods import FIRST
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    PhiConfig,
)

import make_tiny_model
from training import loss
from training.distributed import sharding
from training.sharded import Split

SMALL = {
    "vocab_size": 512,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
}
OWN = {
    "llama": LlamaConfig(**SMALL),
    "tied": LlamaConfig(**SMALL, tie_word_embeddings=True),
    "gpt2": GPT2Config(vocab_size=512, n_embd=48, n_layer=2, n_head=4),
    "with a bias": PhiConfig(**SMALL),
}
TEXTS = torch.randint(0, 512, (4, 30), generator=torch.Generator().manual_seed(1))
LABELS = TEXTS.clone()
LABELS[0, 20:] = -100
FAULTY = Path(__file__).with_name("faulty_train.py")


def of_step(network, **named):
    network.zero_grad()
    found = network(input_ids=TEXTS, attention_mask=torch.ones_like(TEXTS), labels=LABELS, use_cache=False, **named)
    found.loss.backward()
    gradients = {name: weight.grad for name, weight in network.named_parameters() if weight.grad is not None}
    return float(found.loss), {name: getattr(grad, "full_tensor", grad.clone)() for name, grad in gradients.items()}


@pytest.mark.parametrize("split", [True, False], ids=["split", "whole"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", OWN)
def test_rows_at_a_time_are_the_same(name, precision, split, monkeypatch):
    torch.manual_seed(1)
    network = AutoModelForCausalLM.from_config(OWN[name]).eval()  # without dropout
    cast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16" and not split)
    with sharding(ALONE), cast:
        if split:
            Split(processes=1, device="cpu", precision=precision).shard(network)
        expected = [of_step(network), of_step(network, num_items_in_batch=100)]
        assert loss.can_be(network.config)
        loss.install(network)
        monkeypatch.setattr(loss, "WORTH", 0)
        for rows, exact in ((2**20, True), (7, False)):
            monkeypatch.setattr(loss, "LOGITS", 512 * rows)
            for (value, gradients), named in zip(expected, ({}, {"num_items_in_batch": 100}), strict=True):
                found, of_weights = of_step(network, **named)
                if exact and named:
                    assert found == value, "to the last bit"
                    assert all(torch.equal(of_weights[key], gradients[key]) for key in gradients)
                assert found == pytest.approx(value, rel=1e-6)
                for key, gradient in gradients.items():
                    furthest = (of_weights[key] - gradient).abs().max() / gradient.abs().max()
                    assert furthest < (1e-5 if precision == "fp32" else 0.02), key
        logits = network(input_ids=TEXTS, use_cache=False).logits
    assert logits.shape == (4, 30, 512), "who asks for no loss has logits"


@pytest.mark.parametrize(
    "config",
    [
        Gemma2Config(**SMALL, head_dim=12, num_key_value_heads=2),  # bounds its logits
        CohereConfig(**SMALL, num_key_value_heads=2),  # scales them
        GraniteConfig(**SMALL, num_key_value_heads=2),
    ],
    ids=lambda config: config.model_type,
)
def test_a_model_that_changes_its_logits_keeps_its_own_loss(config):
    assert not loss.can_be(config)


def test_a_model_that_changes_its_logits_after_all_is_no_silent_error():
    network = AutoModelForCausalLM.from_config(Gemma2Config(**SMALL, head_dim=12, num_key_value_heads=2))
    loss.install(network)
    with pytest.raises(RuntimeError, match="computes its loss from something else than what its head gives"):
        of_step(network)


@pytest.mark.parametrize(
    ("framework", "sharded"),
    [
        ("hf", True),
        ("nemo", True),
        ("meta", True),
        ("hf", False),
        ("nemo", False),
    ],
)
def test_a_job_has_the_same_losses(warm, tmp_path, framework, sharded):
    """On two processes, with three rows at a time and with all of them."""
    folder = tmp_path / "models/tiny"
    make_tiny_model.make(folder)
    losses = []
    for fault in ({"logits": 3 * 512}, {}):
        how = {"MODEL_DIR": str(folder.parent), "FAULT": json.dumps(fault)}
        job = {"framework": framework, "max_steps": 4} | ({} if sharded else {"sharded": False})
        with warm(tmp_path / f"{len(fault)}", FIRST, script=FAULTY, environment=how, eval_steps=4, **job) as pods:
            assert pods.end() == [0], pods.log
        losses.append([float(found) for found in re.findall(r" (?:eval_)?loss (\S+)", pods.log)])
    assert losses[0] == pytest.approx(losses[1], abs=2e-4)
    assert len(losses[0]) == 5
