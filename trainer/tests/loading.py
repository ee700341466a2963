"""What a host pays for a model that four processes load in parts: `loading.py OTHER FOLDER`.

Each prints its bytes a weight. The other model is loaded first, so that all that is needed is imported.
"""

import re
import sys
import threading
from pathlib import Path

import torch.distributed as dist

sys.path[:0] = [str(Path(__file__).parents[1])]

from training import model  # noqa: E402
from training.sharded import Split  # noqa: E402


def memory():
    """Bytes of this process's own; the pages of a file that it has read are the machine's, which may drop them."""
    return int(re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def watch():
    while not done.wait(0.002):
        peaks.append(memory())


dist.init_process_group("gloo")
split = Split(processes=dist.get_world_size(), device="cpu", precision="bf16")
model.load(sys.argv[1], split)  # so that everything is imported
done, peaks, before = threading.Event(), [], memory()
watcher = threading.Thread(target=watch)
watcher.start()
network, _ = model.load(sys.argv[2], split)
done.set()
watcher.join()
parameters = sum(weight.numel() for weight in network.parameters())
print(f"{(max(peaks) - before) / parameters:.2f} bytes of {parameters}")  # noqa: T201
dist.destroy_process_group()
