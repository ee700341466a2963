import itertools
import json
import random
from pathlib import Path

import pytest
from pods import start_pods

import make_tiny_model


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory) -> Path:
    """A MODEL_DIR with the tiny model as `tiny`. It has dropout, so that a random state that is lost shows."""
    directory = tmp_path_factory.mktemp("models")
    make_tiny_model.make(directory / "tiny")
    path = directory / "tiny" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"attention_dropout": 0.1}))
    return directory


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> Path:
    """Texts of many lengths: 101, so that no batch size divides them."""
    chance = random.Random(1)
    words = make_tiny_model.WORDS.split()
    path = tmp_path_factory.mktemp("data") / "texts.jsonl"
    rows = [{"text": " ".join(chance.choices(words, k=chance.randint(1, 40)))} for _ in range(101)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def start(tmp_path, model_dir, dataset):
    """start_pods, in a new directory each time."""
    number = itertools.count()
    return lambda *job, **options: start_pods(tmp_path / f"pods-{next(number)}", model_dir, dataset, *job, **options)
