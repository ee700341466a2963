"""What the three runners do alike, one process each, without torchrun."""

import importlib
import json
import os
import shutil
import threading
from unittest import mock

import pytest
from pods import FIRST, SECOND, exported, marker, same
from safetensors.torch import load_file

from training import job
from training.distributed import World
from training.errors import CheckpointError, cause_of
from training.layout import FRAMEWORKS

ALONE = World(rank=0, size=1, local_rank=0, node=0, gpu=False, stop=threading.Event())


@pytest.fixture
def train(tmp_path, model_dir, dataset):
    """Trains in this process, and returns the loss of each step."""

    def run(framework, submission=FIRST, *, begins=0, model=model_dir / "tiny", data=dataset, **settings):
        given = {"lr": 0.01, "save_steps": 1, "batch_size": 3, "gradient_accumulation": 2} | settings
        environment = {
            "FRAMEWORK": framework,
            "MODEL_ID": str(model),
            "RUN_ID": "run",
            "DATASET_URI": f"file://{data}",
            "CHECKPOINT_BASE_URI": f"file://{tmp_path / 'store'}",
            "SUBMISSION": submission,
            "RESUME": "true",
            "TRAINING_EXTRA_ARGS_JSON": json.dumps(given),
        }
        with mock.patch.dict(os.environ):  # Lightning leaves something there
            assert importlib.import_module(f"training.{framework}").train(job.parse([], environment), ALONE)
        steps = range(begins + 1, given["max_steps"] + 1)
        return [marker(tmp_path / "store", step, framework)["metrics"]["loss"] for step in steps]

    return run


def test_with_other_batches_all_go_on_as_if_it_had_always_been_so(train, tmp_path):
    """A step has the texts that it has when the steps before it had as many, and all of them."""
    curves = {}
    for framework, own in [("meta", {}), ("hf", {}), ("nemo", {}), ("nemo", {"sharded": True})]:
        shutil.rmtree(tmp_path / "store", ignore_errors=True)
        train(framework, max_steps=3, **own)
        changed = {"batch_size": 2, "gradient_accumulation": 4}
        curves[framework, bool(own)] = train(framework, SECOND, begins=3, max_steps=6, **changed | own)
    for name, curve in curves.items():
        assert curve == pytest.approx(curves["meta", False], abs=1e-6), name


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_step_that_predicts_nothing_has_no_loss_and_no_gradient(train, tmp_path, model_dir, framework):
    """Texts that are the end token alone have no second token."""
    data = tmp_path / "ends.jsonl"
    data.write_text('{"text": "</s>"}\n' * 8)
    assert train(framework, data=data, max_steps=2) == [0.0, 0.0]
    assert same(exported(tmp_path / "store", FIRST, framework), load_file(model_dir / "tiny" / "model.safetensors"))


def test_a_sharded_checkpoint_that_cannot_be_read_ends_as_any_error(train, tmp_path):
    train("nemo", max_steps=1, sharded=True)
    for path in (tmp_path / "store").rglob("*.distcp"):
        path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(CheckpointError, match=r"^rank 0: UnpicklingError: ") as error:
        train("nemo", SECOND, begins=1, max_steps=2, sharded=True)
    assert cause_of(error.value) == "crash"
