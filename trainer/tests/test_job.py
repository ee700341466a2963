import re
import subprocess
import sys
from pathlib import Path

import pytest

from training import job
from training.errors import UserError

POD = {
    "FRAMEWORK": "hf",
    "MODEL_ID": "tiny",
    "RUN_ID": "first",
    "DATASET_URI": "s3://bucket/data/",
    "CHECKPOINT_BASE_URI": "s3://bucket/runs",
    "SUBMISSION": "01980000-0000-7000-8000-000000000001",
    "RESUME": "true",
    "NUM_NODES": "2",
    "GPUS_PER_NODE": "0",
    "TRAINING_EXTRA_ARGS_JSON": '{"max_steps": 5}',
    "CHECKPOINT_PREFIX": "s3://bucket/runs/first/framework=hf",
}


def test_a_pods_environment_is_a_job():
    found = job.parse([], POD)
    assert found.prefix == POD["CHECKPOINT_PREFIX"]
    assert (found.resume, found.num_nodes, found.gpus_per_node, found.settings.max_steps) == (True, 2, 0, 5)


def test_a_flag_wins_over_its_variable():
    found = job.parse(
        ["--run-id", "second", "--resume=false"], POD | {"CHECKPOINT_PREFIX": "s3://bucket/runs/second/framework=hf"}
    )
    assert (found.run_id, found.resume) == ("second", False)


def test_a_laptop_gets_fresh_submissions_in_order():
    alone = {
        key: value for key, value in POD.items() if key not in ("SUBMISSION", "RESUME", "NUM_NODES", "GPUS_PER_NODE")
    }
    found = job.parse([], alone)
    assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", found.submission)
    assert not found.resume
    assert job.parse([], alone).submission != found.submission


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("MODEL_ID", "", "MODEL_ID is missing"),
        ("FRAMEWORK", "jax", "FRAMEWORK"),
        ("RUN_ID", "a/b", "RUN_ID"),
        ("RUN_ID", "a" * 64, "RUN_ID"),
        ("DATASET_URI", "/data.jsonl", "DATASET_URI"),
        ("CHECKPOINT_BASE_URI", "gs://bucket", "CHECKPOINT_BASE_URI"),
        ("SUBMISSION", "../other", "SUBMISSION"),
        ("RESUME", "yes", "RESUME"),
        ("NUM_NODES", "two", "NUM_NODES"),
        ("CHECKPOINT_PREFIX", "s3://bucket/elsewhere", "CHECKPOINT_PREFIX"),
        ("TRAINING_EXTRA_ARGS_JSON", '{"max_steps": "5"}', "max_steps"),
    ],
)
def test_refuses_in_one_sentence(variable, value, says):
    with pytest.raises(UserError, match=says) as refused:
        job.parse([], POD | {variable: value})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("flag", ["--model", "--data", "--res", "--max-steps"])
def test_no_flag_is_guessed(flag, capsys):
    with pytest.raises(SystemExit):
        job.parse([flag, "x"], POD)
    assert "unrecognized arguments" in capsys.readouterr().err


def test_a_job_is_read_without_heavy_imports():
    code = "import sys, train, training.job, training.layout, training.checkpoint; print(*sys.modules)"
    trainer = Path(__file__).parents[1]
    loaded = subprocess.run([sys.executable, "-c", code], cwd=trainer, capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "numpy", "boto3"} & set(loaded.stdout.split())
