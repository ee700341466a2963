"""Weights that no step has trained, as the parts of a model that a text never reaches, are resumed as such."""

import pytest
import torch
from alone import ALONE
from pods import FIRST, run_of, same
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

import make_tiny_model
from training import model
from training.checkpoint import states
from training.distributed import sharding
from training.runners import meta
from training.settings import Settings
from training.sharded import Split

BATCH = {"input_ids": torch.arange(16).reshape(2, 8), "attention_mask": torch.ones(2, 8, dtype=torch.long)}
BATCH["labels"] = BATCH["input_ids"]


class Sighted(nn.Module):
    """Its eyes see nothing."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.body, self.eyes, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, numbers):
        return self.head(self.body(numbers)).sum()


def made(*, split):
    network = Sighted()
    if split:
        fully_shard(network, mesh=init_device_mesh("cpu", (1,)))
    return network, torch.optim.AdamW(network.parameters(), fused=True)


def step(network, optimizer):
    network(torch.ones(2, 4)).backward()
    optimizer.step()
    optimizer.zero_grad()


def whole(network, optimizer):
    """What the optimizer keeps, by the weights' names, and the weights."""
    names = {id(weight): name for name, weight in network.named_parameters()}
    kept = {f"{names[id(weight)]} {key}": value for weight, of in optimizer.state.items() for key, value in of.items()}
    tensors = kept | dict(network.named_parameters())
    return {name: getattr(tensor, "full_tensor", lambda t=tensor: t)() for name, tensor in tensors.items()}


@pytest.mark.parametrize("as_parts", [True, False])
@pytest.mark.parametrize("split", [True, False])
def test_what_was_never_trained_is_resumed_so(tmp_path, as_parts, split):
    with sharding(ALONE):
        network, optimizer = made(split=as_parts)
        step(network, optimizer)
        again, its_optimizer = made(split=split)
        if as_parts:
            parts = {"model": states.weights(network), "optimizer": states.moments(network, optimizer)}
            states.write_parts(parts, tmp_path / "saved", states.group())
            states.read_weights(again, tmp_path / "saved", "model", lambda ranges: ranges())
            states.read_moments(again, its_optimizer, tmp_path / "saved", "optimizer", lambda ranges: ranges())
        else:
            states.set_weights(again, network.state_dict())
            states.set_moments(again, its_optimizer, optimizer.state_dict())
        assert same(whole(again, its_optimizer), whole(network, optimizer))
        assert {name for name in whole(again, its_optimizer) if "eyes" in name} == {"eyes.weight", "eyes.bias"}
        step(again, its_optimizer)


@pytest.mark.parametrize("as_parts", [True, False])
def test_meta_resumes_what_was_never_trained(tmp_path, model_dir, as_parts):
    def training():
        network, _ = model.load(str(model_dir / "tiny"), Split(processes=1, device="cpu", precision="fp32"))
        network.eyes = fully_shard(nn.Linear(4, 4), mesh=init_device_mesh("cpu", (1,)))
        return meta.Training(network, Settings(precision="fp32", lr=0.1), ALONE, 10)

    with sharding(ALONE):
        one, path = training(), tmp_path / "saved"
        one.step([BATCH], lambda optimizer: None)
        if as_parts:
            states.write_parts(one.state(1), path, one.saving_group)
        else:
            one.write(one.state(1), path)
        other = training()
        other.load(path, lambda ranges: ranges())
        assert same(whole(other.network, other.optimizer), whole(one.network, one.optimizer))
        other.step([BATCH], lambda optimizer: None)


def sharded_or_not(sharded):
    return {} if sharded else {"sharded": False, "ddp_find_unused_parameters": True}


@pytest.mark.parametrize(("before", "after"), [(True, True), (True, False), (False, True)])
def test_a_model_with_eyes_is_resumed(warm, tmp_path, before, after):
    """Of Gemma 3 a text trains the language part alone. Its checkpoints were complete, and none could be resumed."""
    folder = tmp_path / "models/tiny"
    make_tiny_model.make(folder)
    tokenizer = make_tiny_model.make_tokenizer()
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text |= {"num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 256, "vocab_size": len(tokenizer)}
    text |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    eyes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    eyes |= {"image_size": 28, "patch_size": 14}
    tokens = {"mm_tokens_per_image": 1, "image_token_index": 5, "boi_token_index": 6, "eoi_token_index": 7}
    Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=eyes, **tokens)).save_pretrained(folder)
    job = {"environment": {"MODEL_DIR": str(folder.parent)}, "save_steps": 2}
    with warm(tmp_path / "store", FIRST, max_steps=2, **job, **sharded_or_not(before)) as pods:
        assert pods.end() == [0], pods.log
    with warm(tmp_path / "store", FIRST, max_steps=4, **job, **sharded_or_not(after)) as pods:
        assert pods.end() == [0], pods.log
        assert pods.steps() == [3, 4]
    assert (run_of(tmp_path / "store") / "model" / FIRST / "config.json").exists()
