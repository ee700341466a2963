"""train.py in a bad world. What is wrong is told in the variable FAULT, a JSON object:

rank           the process that it happens to; all of them when it is not given
kills_at       the number of the storage call at which the process is killed, `after` it or before
slow           seconds that each upload takes
stuck          how the downloads begin that take for ever, by verb and key; it says when one begins
fails_from     the number of the upload from which on all of them fail
memory_at      the step at which a process asks for more memory than there is
descriptors_at the step at which a process opens files until it may open no more
error_at       the step at which its code fails
nan_at         the numbers of the micro-steps at which what the embedding gives is not a number
patience       seconds that a collective call waits; each download, and the upload of weights, takes longer
logits         how many logits the loss has at once
told           that a process is told to stop when it has loaded the model
disk_full      that a process cannot write its part of a sharded checkpoint
fetched        a file to which is written how many bytes of the parts of a checkpoint each process fetches
disk           a file to which each storage call appends how many bytes the working directories hold
"""

import errno
import json
import os
import runpy
import signal
import sys
import time
from pathlib import Path

TRAINER = Path(__file__).parents[1]
sys.path[:0] = [str(TRAINER), str(Path(__file__).parent)]

from faults import MortalStorage  # noqa: E402

from training import errors, rank_log, storage  # noqa: E402, F401  rank_log's second process keeps the storage as it is

FAULT = json.loads(os.environ["FAULT"])
HERE = FAULT.get("rank") in (None, int(os.environ.get("RANK", "0") if "LOCAL_RANK" in os.environ else "0"))


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def on_call(verb, key):
    if "disk" in FAULT:
        folders = Path(os.environ["TMPDIR"]).glob("train-*")
        held = sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())
        with Path(FAULT["disk"]).open("a") as file:
            file.write(f"{held}\n")
    if verb == "range" and "fetched" in FAULT:
        with Path(FAULT["fetched"]).open("a") as file:
            file.write(f"{os.environ['RANK']} {key.rpartition(' ')[2]}\n")
    if verb in ("download", "range") and HERE and "stuck" in FAULT and f"{verb} {key}".startswith(FAULT["stuck"]):
        print(f"stuck: {key}", file=sys.stderr)  # noqa: T201
        time.sleep(10**6)
    if "patience" in FAULT and (verb in ("download", "range") or (verb, key[-17:]) == ("upload", "model.safetensors")):
        time.sleep(FAULT["patience"] + 2)
    if verb == "upload" and HERE:
        time.sleep(FAULT.get("slow", 0))
        on_call.uploads += 1
        if on_call.uploads > FAULT.get("fails_from", 10**9):
            raise errors.StorageError(f"{key}: the bucket is gone")


on_call.uploads = 0
opened = storage.open_storage


def open_storage(uri, variable="the URI"):
    dies_at = FAULT.get("kills_at") if HERE else None
    return MortalStorage(opened(uri, variable), dies_at, after=FAULT.get("after", False), on_call=on_call, die=kill)


storage.open_storage = open_storage


def fail_in_a_step():
    import torch

    from training.distributed import World

    agree, steps = World.any, iter(range(1, 10**9))

    def any_of(self, *flags):
        step = next(steps)
        if HERE and step == FAULT.get("memory_at"):
            torch.empty(2**60, dtype=torch.uint8)
        while HERE and step == FAULT.get("descriptors_at"):
            os.dup(0)
        if HERE and step == FAULT.get("error_at"):
            raise ValueError("the code is wrong\nin two lines")
        return agree(self, *flags)

    World.any = any_of


def spoil(at):
    from training import model

    load, micro_steps = model.load, iter(range(1, 10**9))

    def give(_, ids, embedded):
        return embedded * (float("nan") if HERE and next(micro_steps) in at else 1.0)

    def and_spoil(*source, **how):
        network, tokenizer = load(*source, **how)
        network.get_input_embeddings().register_forward_hook(give)
        return network, tokenizer

    model.load = and_spoil


def fill_the_disk():
    from torch.distributed.checkpoint import FileSystemWriter

    def write_data(self, *_):
        raise OSError(errno.ENOSPC, "No space left on device")

    FileSystemWriter.write_data = write_data


def lose_patience():
    import datetime

    import torch.distributed as dist

    begin = dist.init_process_group
    dist.init_process_group = lambda *args: begin(*args, timeout=datetime.timedelta(seconds=FAULT["patience"]))


def tell_when_loaded():
    from training import model

    load = model.load

    def and_tell(*source, **how):
        loaded = load(*source, **how)
        os.kill(os.getpid(), signal.SIGTERM)
        return loaded

    model.load = and_tell


if "patience" in FAULT:
    lose_patience()
if "logits" in FAULT:
    from training import loss

    loss.LOGITS, loss.WORTH = FAULT["logits"], 0
if HERE and "told" in FAULT:
    tell_when_loaded()
if {"memory_at", "descriptors_at", "error_at"} & FAULT.keys():
    fail_in_a_step()
if "nan_at" in FAULT:
    spoil(FAULT["nan_at"])
if HERE and "disk_full" in FAULT:
    fill_the_disk()
sys.argv[0] = str(TRAINER / "train.py")
runpy.run_path(sys.argv[0], run_name="__main__")
