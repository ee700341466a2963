"""Training in the test's own process, without torchrun."""

import importlib
import json
import os
from unittest import mock

from training import job
from training.distributed import World
from training.signals import Stop

ALONE = World(rank=0, size=1, local_rank=0, node=0, gpu=False, stop=Stop())


def train_alone(store, model, data, framework, submission, **settings):
    """Whether it came to the end. The store is a folder, the model whatever MODEL_ID may be."""
    given = {"lr": 0.01, "save_steps": 1, "keep_last": None, "batch_size": 3, "gradient_accumulation": 2} | settings
    environment = {
        "FRAMEWORK": framework,
        "MODEL_ID": str(model),
        "RUN_ID": "run",
        "DATASET_URI": f"file://{data}",
        "CHECKPOINT_BASE_URI": f"file://{store}",
        "SUBMISSION": submission,
        "RESUME": "true",
        "TRAINING_EXTRA_ARGS_JSON": json.dumps(given),
    }
    with mock.patch.dict(os.environ):  # Lightning leaves something there
        return importlib.import_module(f"training.runners.{framework}").train(job.parse([], environment), ALONE)
