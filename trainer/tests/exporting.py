"""Exports models as the processes of a job do: `exporting.py MODELS STORE`, each below its own submission."""

import sys
from pathlib import Path

import torch.distributed as dist

sys.path[:0] = [str(Path(__file__).parents[1])]

from training import export, model  # noqa: E402
from training.distributed import World, sharding  # noqa: E402
from training.sharded import Split  # noqa: E402
from training.signals import Stop  # noqa: E402
from training.storage import Folder  # noqa: E402

export.LARGEST = 100_000  # so that a tiny model is many files
dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
world = World(rank=rank, size=size, local_rank=rank, node=0, gpu=False, stop=Stop())
models, store = map(Path, sys.argv[1:])
for folder in sorted(models.iterdir()):
    for split in (Split(processes=size, device="cpu", precision="fp32"), None):
        with sharding(world):
            network, tokenizer = model.load(str(folder), split)
            name = f"{folder.name}-{'split' if split else 'whole'}"
            export.export(network, tokenizer, store / "work" / name, Folder(store), name, world)
dist.destroy_process_group()
