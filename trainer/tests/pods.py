"""Running jobs: real torchrun, real processes over gloo, the tiny model, a local folder or a bucket as storage.

The pods are started as the operator starts them: `torchrun --max-restarts=0 <path>` with PET_* variables, one for each
node, each with a temporary directory, a log volume and a termination message of its own.
"""

import contextlib
import dataclasses
import json
import os
import posixpath
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from training import layout
from training.checkpoint.marker import parse
from training.storage import Entry

TRAINER = Path(__file__).parents[1]
TORCHRUN = Path(sys.executable).with_name("torchrun")
FIRST, SECOND, THIRD = (f"0198000{number}-0000-7000-8000-000000000000" for number in (1, 2, 3))
SETTINGS = {
    "lr": 0.01,
    "max_steps": 60,
    "save_steps": 10,
    "keep_last": None,
    "logging_steps": 1,
    "gradient_accumulation": 2,
    "batch_size": 3,
}


class Pods:
    """A running job; a context that leaves no process behind."""

    def __init__(self, command, environments, directory):
        self.logs = [directory / f"pod-{node}.log" for node in range(len(environments))]
        self.processes = []
        for environment, log in zip(environments, self.logs, strict=True):
            with log.open("wb") as output:
                process = subprocess.Popen(
                    command, env=environment, cwd="/", stdout=output, stderr=subprocess.STDOUT, start_new_session=True
                )
            self.processes.append(process)

    @property
    def log(self):
        return self.logs[0].read_text()

    def steps(self):
        return [int(step) for step in re.findall(r"INFO step (\d+)/", self.log)]

    def wait_for_step(self, step):
        deadline = time.monotonic() + 120
        while not (steps := self.steps()) or steps[-1] < step:
            if self.processes[0].poll() is not None:
                assert self.steps()[-1:] >= [step], f"ended before step {step}:\n{self.log}"
            assert time.monotonic() < deadline, f"no step {step} in time:\n{self.log}"
            time.sleep(0.002)

    def wait_for_line(self, text):
        deadline = time.monotonic() + 120
        while text not in self.log:
            assert self.processes[0].poll() is None, f"ended before {text!r}:\n{self.log}"
            assert time.monotonic() < deadline, f"no {text!r} in time:\n{self.log}"
            time.sleep(0.01)

    def ranks(self, node):
        """Process ids of the node's ranks."""
        pid = self.processes[node].pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def end(self):
        """Exit codes, when all have ended."""
        return [process.wait(timeout=120) for process in self.processes]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for node, process in enumerate(self.processes):
            if process.poll() is None:
                for pid in [*self.ranks(node), process.pid]:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            process.wait()


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def start_pods(
    directory,
    model_dir,
    dataset,
    store,
    submission,
    *,
    framework="hf",
    script=TRAINER / "train.py",
    environment=None,
    uids=None,
    logs=None,
    resume="false",
    nodes=1,
    processes=2,
    configs=None,
    begin=Pods,
    **settings,
):
    """Start a job's pods. `processes` is per node; 0 is plain python, as on a laptop. `...` leaves a setting out.

    `logs` is a directory that outlives the containers, as the pods' volumes do; `begin` starts processes as Pods does.
    """
    port = free_port()
    common = {
        "PATH": os.environ["PATH"],
        "MODEL_DIR": str(model_dir),
        "FRAMEWORK": framework,
        "MODEL_ID": "tiny",
        "RUN_ID": "run",
        "DATASET_URI": f"file://{dataset}",
        "CHECKPOINT_BASE_URI": store if isinstance(store, str) else f"file://{store}",
        "SUBMISSION": submission,
        "RESUME": resume,
        "NUM_NODES": str(nodes),
        "GPUS_PER_NODE": "0",
        "TRAINING_EXTRA_ARGS_JSON": json.dumps(
            {name: value for name, value in (SETTINGS | settings).items() if value is not ...}
        ),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
    } | (environment or {})
    if not processes:
        command, pods = [sys.executable, script], [{}]
    else:
        command = [TORCHRUN, "--max-restarts=0", script]
        rendezvous = {
            "PET_NNODES": str(nodes),
            "PET_NPROC_PER_NODE": str(processes),
            "PET_MASTER_ADDR": "127.0.0.1",
            "PET_MASTER_PORT": port,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "WORLD_SIZE": str(nodes),
            "GLOO_SOCKET_IFNAME": "lo",
        }
        pods = [rendezvous | {"PET_NODE_RANK": str(node), "RANK": str(node)} for node in range(nodes)]
    for node, pod in enumerate(pods):
        pod["CONFIG_PATH"] = str(configs[node]) if configs else ""
        pod["TMPDIR"] = str(directory / f"tmp-{node}")
        pod["POD_UID"] = uids[node] if uids else f"pod-{node}"
        pod["TRAINER_LOG_DIR"] = str((logs or directory) / f"logs-{node}")
        pod["TERMINATION_LOG"] = str(directory / f"termination-{node}")
        Path(pod["TMPDIR"]).mkdir(parents=True)
        Path(pod["TERMINATION_LOG"]).touch()
    return begin(command, [common | pod for pod in pods], directory)


def run_of(store, framework="hf"):
    return Path(store) / "run" / f"framework={framework}"


def files(folder):
    """Of a log the first part alone: how many there are depends on how long a run takes."""
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return {name for name in names if not re.search(r"\.log\.[0-9]{6}$", name)}


def marker(store, step, framework="hf"):
    return json.loads((run_of(store, framework) / f"checkpoints/step-{step:06d}.json").read_bytes())


def markers(store, framework="hf"):
    """The steps that have one, in order."""
    folder = run_of(store, framework) / "checkpoints"
    return sorted(int(path.stem.removeprefix("step-")) for path in folder.glob("step-*.json"))


def newest_marker(store, framework="hf"):
    return markers(store, framework)[-1]


def progress(store, submission, framework="hf"):
    return json.loads((run_of(store, framework) / "progress" / submission).read_bytes())


def state(store, step, framework="hf"):
    """Everything that a checkpoint holds of the training: weights, optimizer, schedule and random states.

    Of a folder of parts all of them are brought together.
    """
    files = [file["path"] for file in marker(store, step, framework)["files"]]
    path = run_of(store, framework) / "checkpoints" / posixpath.commonpath(files)
    found = {}
    if framework == "hf":
        parts = path / "pytorch_model_fsdp_0"
        found["weights"] = together(parts)["model"] if parts.is_dir() else load_file(path / "model.safetensors")
        if parts.is_dir():
            found |= together(path / "optimizer_0")
        for name in ("optimizer.pt", "scheduler.pt"):
            if (path / name).exists():
                found[name] = torch.load(path / name)
        for file in path.glob("rng_state*.pth"):
            found[file.name] = torch.load(file, weights_only=False)["cpu"]
    elif path.is_dir():
        found |= together(path)
        if (path / "meta.pt").exists():
            found |= torch.load(path / "meta.pt")
    else:
        found = torch.load(path)
    assert found
    return found


def together(parts):
    with tempfile.NamedTemporaryFile() as whole:
        dcp_to_torch_save(parts, whole.name)
        return torch.load(whole.name, weights_only=False)


def exported(store, submission, framework="hf"):
    return load_file(run_of(store, framework) / "model" / submission / "model.safetensors")


def whole(store, framework="hf"):
    """The steps that have a marker, each of which must be complete."""
    run = run_of(store, framework)
    # No more than that: a log is still being written when its process is dead.
    paths = (run / layout.CHECKPOINTS / key for key in files(run / layout.CHECKPOINTS))
    listing = [Entry(key=str(path.relative_to(run)), size=path.stat().st_size, etag=None) for path in paths]
    for step in markers(store, framework):
        found = parse((run / layout.marker_key(step)).read_bytes())
        found = dataclasses.replace(found, files=tuple(dataclasses.replace(file, etag=None) for file in found.files))
        assert found.state(listing) == "complete", found
    return markers(store, framework)


def same(one, other):
    """Equal to the last bit, in all depths."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def last_words(directory, node=0):
    """The lines of the termination message, without those that only follow from others."""
    lines = map(json.loads, (directory / f"termination-{node}").read_text().splitlines())
    return [line for line in lines if not line.get("consequence")]


def message(directory):
    """What the first failing process of the first node said."""
    return last_words(directory)[0]["message"]
