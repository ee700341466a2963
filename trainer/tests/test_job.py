import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from training import job
from training.errors import UserError
from training.place import Place

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
    assert (found.resume_step, found.config_path) == (None, None)


@pytest.mark.parametrize(("given", "restarts"), [(None, 3), ("", 3), ("0", 0), ("100", 100)])
def test_how_often_it_may_fail(given, restarts):
    assert job.parse([], POD if given is None else POD | {"MAX_RESTARTS": given}).max_restarts == restarts


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"POD_UID": "u"}, (0, 1, 0, 0, 1, "u")),
        ({"POD_UID": "u", "RANK": "1", "WORLD_SIZE": "2"}, (0, 1, 0, 0, 1, "u")),  # the operator's, which count nodes
        (
            {
                "POD_UID": "u",
                "RANK": "11",
                "WORLD_SIZE": "16",
                "LOCAL_RANK": "3",
                "GROUP_RANK": "1",
                "GROUP_WORLD_SIZE": "2",
            },
            (11, 16, 3, 1, 2, "u"),
        ),
        ({}, (0, 1, 0, 0, 1, socket.gethostname())),
    ],
)
def test_where_a_process_stands(environment, expected):
    place = Place.of(environment)
    assert (place.rank, place.size, place.local_rank, place.node, place.nodes, place.pod) == expected


@pytest.mark.parametrize(
    ("given", "resume", "step"),
    [
        ("", False, None),
        ("false", False, None),
        ("true", True, None),
        ("step-0", True, 0),
        ("step-500", True, 500),
        ("step-000500", True, 500),
        ("step-999999999999", True, 999_999_999_999),
    ],
)
def test_resume_says_whether_and_from_where(given, resume, step):
    found = job.parse([], POD | {"RESUME": given})
    assert (found.resume, found.resume_step) == (resume, step)


def test_extra_args_override_the_config_file_key_by_key(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("max_steps: 9\ngradient_accumulation_steps: 3\n")
    found = job.parse([], POD | {"CONFIG_PATH": str(config)})
    assert (found.settings.max_steps, found.settings.gradient_accumulation) == (5, 3)
    assert found.config_path == str(config)
    assert job.parse([], POD | {"CONFIG_PATH": ""}).settings.gradient_accumulation is None


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
        ("RESUME", "yes", "RESUME must be true, false or step-N"),
        ("RESUME", "step-", "RESUME"),
        ("RESUME", "step--5", "RESUME"),
        ("RESUME", "step-\N{ARABIC-INDIC DIGIT FIVE}", "RESUME"),
        ("RESUME", "step-1000000000000", "RESUME"),
        ("RESUME", "latest", "RESUME"),
        ("CONFIG_PATH", "config.yaml", "CONFIG_PATH"),
        ("CONFIG_PATH", "/nowhere/config.yaml", "CONFIG_PATH /nowhere/config.yaml does not exist"),
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


def test_a_job_is_read_without_heavy_imports(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("lr: 1e-3")
    code = "import os, sys, train, training.checkpoint.checkpoints; train.parse([], os.environ); print(*sys.modules)"
    trainer = Path(__file__).parents[1]
    pod = POD | {"CONFIG_PATH": str(config)}
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=trainer, env=pod, capture_output=True, text=True, check=True
    )
    assert "yaml" in loaded.stdout.split()
    assert not {"torch", "transformers", "numpy", "boto3"} & set(loaded.stdout.split())
