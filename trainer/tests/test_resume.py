"""Killed or told to stop at any moment, a run ends with the very bits that it would have had undisturbed.

In each framework, with one process and with two, in a folder and in a bucket. Equal means torch.equal on every tensor
of model, optimizer and random states; on one machine, with as many threads and processes as before.
"""

import contextlib
import functools
import math
import os
import posixpath
import random
import shutil
import signal
import time

import pytest
import torch
from pods import (
    FIRST,
    SECOND,
    exported,
    last_words,
    marker,
    markers,
    newest_marker,
    progress,
    run_of,
    same,
    start_pods,
    state,
    whole,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

from training.layout import FRAMEWORKS

TOTAL, EVERY = 20, 5
TRIES = 5  # a run of a second may be over before the signal comes; then another one is begun
JOB = {"max_steps": TOTAL, "save_steps": EVERY, "weight_decay": 0.1, "warmup_steps": 3}
# Of several processes each has a part of the weights; with these names each has all of them.
WHOLE = {"hf whole": "hf", "nemo whole": "nemo"}

frameworks = pytest.mark.parametrize("framework", FRAMEWORKS)
stores = pytest.mark.parametrize("kind", ["folder", "bucket"])


def settings(name, **more):
    """The framework and the settings that a name stands for."""
    if name not in WHOLE:
        return {"framework": name} | JOB | more
    return {"framework": WHOLE[name], "sharded": False} | JOB | more


@pytest.fixture(scope="session")
def straight(tmp_path_factory, model_dir, dataset, warm_processes):
    """The storage of a run that nothing disturbed; each is made when it is first asked for."""

    @functools.cache
    def make(name, processes):
        directory = tmp_path_factory.mktemp("straight")
        # One process saves each step, so that its losses are all known to the last digit.
        job = settings(name, save_steps=1 if processes == 1 else EVERY)
        job |= {"processes": kind(processes), "begin": warm_processes.begin}
        with start_pods(directory, model_dir, dataset, directory / "store", FIRST, **job) as pods:
            assert pods.end() == [0], pods.log
            assert pods.steps() == list(range(1, TOTAL + 1))
        return directory / "store"

    return make


def kind(processes):
    """One process is plain python, as on a laptop."""
    return 0 if processes == 1 else processes


class Run:
    """A run that is disturbed: where it is kept, and how its pods are started again."""

    def __init__(self, start, name, processes, store_kind, s3, fetch, tmp_path):
        self.start, self.fetch, self.tmp_path = start, fetch, tmp_path
        self.processes = processes
        self.job = settings(name, processes=kind(processes))
        self.framework = self.job["framework"]
        self.bucket = store_kind == "bucket"
        # Of its own, as the bucket is all tests'.
        self.name = f"{name.replace(' ', '-')}-{processes}-{tmp_path.name}" if self.bucket else "store"
        self.job["environment"] = s3 if self.bucket else {}
        self.begun = 0
        self.begin_anew()

    def begin_anew(self):
        """Leave everything, and go elsewhere."""
        self.begun += 1
        assert self.begun <= TRIES, "the signal always comes too late to tell anything"
        name = f"{self.name}-{self.begun}"
        self.place = name if self.bucket else self.tmp_path / name
        self.where = f"s3://bucket/{name}" if self.bucket else self.place

    def pods(self, **more):
        return self.start(self.where, SECOND, **self.job | more)

    def store(self):
        return self.fetch(self.place) if self.bucket else self.place

    def killed(self, chance, latest=14):
        """Start it, kill one of its processes, and tell the last step that it is known to have reached."""
        step, pause, rank = chance.randint(1, latest), chance.uniform(0, 0.15), chance.randrange(self.processes)
        with self.pods() as pods:
            pods.wait_for_step(step)
            time.sleep(pause)
            # Where there is nobody left, it came too late.
            with contextlib.suppress(ProcessLookupError, FileNotFoundError, IndexError):
                victims = [process.pid for process in pods.processes] if self.processes == 1 else pods.ranks(0)
                os.kill(victims[rank], signal.SIGKILL)
            ended = pods.end()
            reached = pods.steps()[-1]
        saved = whole(self.store(), self.framework)
        if TOTAL in saved:
            self.begin_anew()
            return self.killed(chance, latest)
        assert 0 not in ended, pods.log
        assert reached - (saved[-1] if saved else 0) <= 2 * EVERY, "saving goes on beside training, but not for ever"
        return reached

    def stopped(self, step, node):
        """Start it as two pods, tell one to stop, and tell the step at which both did.

        A worker that makes batches changes none, and survives the signal.
        """
        before = markers(self.store(), self.framework)
        with self.pods(nodes=2, processes=1, dataloader_workers=1) as pods:
            pods.wait_for_step(step)
            pods.processes[node].send_signal(signal.SIGTERM)
            ended = pods.end()
            steps = pods.steps()
        if not before and steps[-1] == TOTAL:
            self.begin_anew()
            return self.stopped(step, node)
        assert 0 not in ended, "a run that was cut short is not done"
        words = [line["cause"] for pod in (0, 1) for line in last_words(pods.logs[0].parent, pod)]
        assert words == ["preempted"] * 2, "and nothing else happened to either"
        assert steps[0] == (before[-1] + 1 if before else 1)
        store = self.store()
        assert whole(store, self.framework)[-1] == steps[-1] < TOTAL, "it saved where it was"
        assert progress(store, SECOND, self.framework)["step"] == steps[-1]
        assert not (run_of(store, self.framework) / "model").exists()
        return steps[-1]

    def finished(self, straight_store, **how):
        """Start it, and compare what it comes to."""
        saved = markers(self.store(), self.framework)
        with self.pods(**how) as pods:
            assert pods.end() == [0], pods.log
            begins = saved[-1] + 1 if saved else 1
            assert pods.steps() == list(range(begins, TOTAL + 1)), "no step twice, and none left out"
        store = self.store()
        assert whole(store, self.framework)[-1] == TOTAL
        assert same(state(store, TOTAL, self.framework), state(straight_store, TOTAL, self.framework))
        assert same(exported(store, SECOND, self.framework), exported(straight_store, FIRST, self.framework))
        ours, theirs = (marker(which, TOTAL, self.framework) for which in (store, straight_store))
        assert ours["metrics"] == theirs["metrics"]
        assert (ours["world_size"], ours["parent"]) == (self.processes, None)


@pytest.fixture
def run(start, s3, fetch, tmp_path):
    return lambda name, processes, kind: Run(start, name, processes, kind, s3, fetch, tmp_path)


# The other three pairs of processes and stores are in the soak below, ten times each, and so are the other stops.
@frameworks
def test_killed_it_ends_as_if_nothing_had_happened(run, straight, warm_processes, framework):
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - pytest shows it when the test fails
    one = run(framework, 2, "bucket")
    one.killed(random.Random(seed))
    one.finished(straight(framework, 2), begin=warm_processes.begin)


@pytest.mark.parametrize("name", ["hf", pytest.param("nemo whole", marks=pytest.mark.soak)])
def test_told_to_stop_it_goes_on_from_there(run, straight, warm_processes, name):
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201
    chance = random.Random(seed)
    one = run(name, 2, "folder")
    one.stopped(chance.randint(1, 12), chance.randrange(2))
    one.finished(straight(name, 2), begin=warm_processes.begin)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(10))
@stores
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("name", [*FRAMEWORKS, *WHOLE])
def test_killed_anywhere(run, straight, warm_processes, name, processes, kind, seed):
    one = run(name, processes, kind)
    one.killed(random.Random(seed))
    one.finished(straight(name, processes), begin=warm_processes.begin)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("name", [*FRAMEWORKS, *WHOLE])
def test_killed_and_stopped_anywhere(run, straight, warm_processes, name, seed):
    chance = random.Random(seed)
    one = run(name, 2, "folder")
    reached = one.killed(chance, latest=6)
    one.stopped(min(reached + chance.randint(1, 4), 13), chance.randrange(2))
    one.finished(straight(name, 2), begin=warm_processes.begin)


# === what frameworks have in common ===


def losses(store, framework):
    return [marker(store, step, framework)["metrics"]["loss"] for step in range(1, TOTAL + 1)]


def test_the_loss_curves_agree(straight):
    curves = {name: losses(straight(name, 1), name) for name in FRAMEWORKS}
    assert all(math.isfinite(loss) for curve in curves.values() for loss in curve)
    assert curves["meta"][-1] < curves["meta"][0] / 1.2, "it learns"
    for name in ("nemo", "hf"):
        furthest = max(abs(one - other) for one, other in zip(curves[name], curves["meta"], strict=True))
        assert furthest < 1e-6, (name, furthest)


@frameworks
def test_the_export_is_a_model_of_hugging_face(straight, framework):
    store = straight(framework, 2)
    folder = run_of(store, framework) / "model" / FIRST
    network = AutoModelForCausalLM.from_pretrained(folder)
    weights = exported(store, FIRST, framework)
    assert all(weight.dtype == torch.float32 for weight in weights.values())
    assert same(dict(network.state_dict()), weights)
    ids = AutoTokenizer.from_pretrained(folder)("the model reads", return_tensors="pt")
    assert network.generate(**ids, max_new_tokens=3, do_sample=False).shape[1] > ids["input_ids"].shape[1]


FORMS = {
    ("hf", 1): f"checkpoint-20/{FIRST}-1",
    ("hf", 2): f"checkpoint-20/{FIRST}-1",
    ("nemo", 1): f"step-000020/{FIRST}-1/step-000020.ckpt",
    ("nemo whole", 2): f"step-000020/{FIRST}-1/step-000020.ckpt",
    ("nemo", 2): f"step-000020/{FIRST}-1",
    ("meta", 1): f"step-000020/{FIRST}-1/step-000020.pt",
    ("meta", 2): f"step-000020/{FIRST}-1",
}


@pytest.mark.parametrize(("name", "processes"), FORMS)
def test_a_checkpoint_has_the_form_of_its_framework(straight, name, processes):
    listed = marker(straight(name, processes), TOTAL, settings(name)["framework"])["files"]
    assert posixpath.commonpath([file["path"] for file in listed]) == FORMS[name, processes]


# From what another number of processes, or another way to hold the weights, has saved.
@pytest.mark.parametrize(
    ("before", "processes_before", "after", "processes"),
    [
        ("hf", 2, "hf", 1),
        ("hf", 1, "hf", 2),
        ("hf whole", 2, "hf", 2),
        ("hf", 2, "hf whole", 2),
        ("nemo", 2, "nemo", 1),
        ("nemo", 1, "nemo", 2),
        ("nemo whole", 2, "nemo", 2),
        ("nemo", 2, "nemo whole", 2),
        ("meta", 2, "meta", 1),
        ("meta", 1, "meta", 2),
    ],
)
def test_another_world_goes_on(straight, warm, tmp_path, before, processes_before, after, processes):
    job = settings(after, max_steps=TOTAL + 2)
    framework = job["framework"]
    store = tmp_path / "store"
    source = straight(before, processes_before)
    shutil.copytree(source, store)
    with warm(store, SECOND, processes=kind(processes), resume="true", **job) as pods:
        assert pods.end() == [0], pods.log
        assert pods.steps() == [TOTAL + 1, TOTAL + 2]
    assert newest_marker(store, framework) == TOTAL + 2
    found = marker(store, TOTAL + 2, framework)
    assert (found["world_size"], found["parent"]) == (processes, {"submission": FIRST, "step": TOTAL})
    loss, loss_before = found["metrics"]["loss"], marker(source, TOTAL, framework)["metrics"]["loss"]
    assert loss < loss_before * 1.15, "it has not begun again"
