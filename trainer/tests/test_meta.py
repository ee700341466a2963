"""What is saved beside the training must not change with it."""

import torch

from training import model
from training.distributed import World, sharding
from training.runners import meta
from training.settings import Settings
from training.sharded import Split
from training.signals import Stop

ALONE = World(rank=0, size=1, local_rank=0, node=0, gpu=False, stop=Stop())


def tensors(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors(item)


def test_what_is_being_saved_does_not_change_with_the_next_step(model_dir):
    batch = {"input_ids": torch.arange(16).reshape(2, 8), "attention_mask": torch.ones(2, 8, dtype=torch.long)}
    batch["labels"] = batch["input_ids"]
    with sharding(ALONE):
        network, _ = model.load(str(model_dir / "tiny"), Split(processes=1, device="cpu", precision="fp32"))
        training = meta.Training(network, Settings(precision="fp32", lr=0.1), ALONE, 10)
        training.step([batch], lambda optimizer: None)
        state = training.state(1)
        before = [tensor.clone() for tensor in tensors(state)]
        training.step([batch], lambda optimizer: None)
        after = list(tensors(training.state(2)))
        assert all(map(torch.equal, before, tensors(state)))
    changed = sum(not torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert changed > 0.9 * len(before), "which training does change"
