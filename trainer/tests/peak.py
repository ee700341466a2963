"""What a step of a real model takes at its peak beside what training.fit expects: `peak.py OTHER FOLDER`.

Two processes on CPUs, of which the first prints both in bytes, without and with activations that are computed again.
The other model is trained first, so that all that is needed is there.
"""

import re
import sys
import threading
from pathlib import Path

import torch
import torch.distributed as dist

sys.path[:0] = [str(Path(__file__).parents[1])]

from training import fit, model  # noqa: E402
from training.sharded import Split  # noqa: E402

TEXTS, TOKENS = 4, 128


def memory():
    return int(re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def watch(done, peaks):
    while not done.wait(0.002):
        peaks.append(memory())


def train(folder, checkpointing, texts=TEXTS, tokens=TOKENS):
    network, _ = model.load(folder, split)
    if checkpointing:
        network.activation_checkpointing_enable({"use_reentrant": False})
    adamw = torch.optim.AdamW(network.parameters(), fused=True)
    ids = torch.zeros((texts, tokens), dtype=torch.long)
    mask = torch.ones((texts, 1, tokens, tokens), dtype=torch.bool)
    for _ in range(2):
        network(input_ids=ids, labels=ids, attention_mask=mask, use_cache=False).loss.backward()
        adamw.step()
        adamw.zero_grad()


dist.init_process_group("gloo")
split = Split(processes=dist.get_world_size(), device="cpu", precision="fp32")
first = dist.get_rank() == 0
train(sys.argv[1], False, 1, 8)
real = {}
for checkpointing in (False, True):
    done, peaks, before = threading.Event(), [], memory()
    watcher = threading.Thread(target=watch, args=(done, peaks))
    watcher.start()
    train(sys.argv[2], checkpointing)
    done.set()
    watcher.join()
    real[checkpointing] = max(peaks) - before
dist.destroy_process_group()
if first:
    wanted = fit.Wanted(processes=split.processes, memory=80e9, texts=TEXTS, seq_len=TOKENS, precision="fp32")
    asked = fit.Model(model.config_of(sys.argv[2]), wanted)
    for checkpointing, peak in real.items():
        print(f"{peak} of {asked.way(TEXTS, checkpointing).peak - fit.CONTEXT:.0f}")  # noqa: T201
