"""Whole runs: real torchrun, real processes over gloo, the tiny model, a local folder as storage."""

import json
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from pods import (
    FIRST,
    SECOND,
    TORCHRUN,
    files,
    last_words,
    marker,
    message,
    newest_marker,
    progress,
    run_of,
    same,
    start_pods,
    state,
    whole,
)
from safetensors.torch import load_file

CHECKPOINT_FILES = {
    "config.json",
    "generation_config.json",
    "pytorch_model_fsdp_0/.metadata",
    "pytorch_model_fsdp_0/__0_0.distcp",
    "pytorch_model_fsdp_0/__1_0.distcp",
    "optimizer_0/.metadata",
    "optimizer_0/__0_0.distcp",
    "optimizer_0/__1_0.distcp",
    "scheduler.pt",
    "tokenizer.json",
    "tokenizer_config.json",
    "trainer_state.json",
    "training_args.bin",
}
MODEL_FILES = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


@pytest.fixture(scope="module")
def straight(tmp_path_factory, model_dir, dataset):
    """The storage of a run of two processes that nothing disturbed, and its log."""
    directory = tmp_path_factory.mktemp("straight")
    with start_pods(directory, model_dir, dataset, directory / "store", FIRST) as pods:
        assert pods.end() == [0], pods.log
        assert not list((directory / "tmp-0").glob("train-*")), "the working directory is gone"
        return directory / "store", pods.log


def test_the_files_of_a_run(straight):
    store, log = straight
    expected = {
        "config/run.json",
        f"config/{FIRST}/run.json",
        f"config/{FIRST}/data.json",
        f"progress/{FIRST}",
        f"attempts/{FIRST}/1",
    }
    expected |= {f"logs/{FIRST}/attempt-1/rank-{rank}.log" for rank in (0, 1)}
    expected |= {f"model/{FIRST}/{name}" for name in MODEL_FILES}
    for step in range(10, 61, 10):
        expected.add(f"checkpoints/step-{step:06d}.json")
        names = CHECKPOINT_FILES | {"rng_state_0.pth", "rng_state_1.pth"}
        expected |= {f"checkpoints/checkpoint-{step}/{FIRST}-1/{name}" for name in names}
    assert files(run_of(store)) == expected
    assert files(store) == {f"run/framework=hf/{name}" for name in expected}

    last = marker(store, 60)
    assert last["world_size"] == 2
    assert {file["path"] for file in last["files"]} == {
        path.removeprefix("checkpoints/") for path in expected if path.startswith("checkpoints/checkpoint-60/")
    }
    at_the_end = progress(store, FIRST)
    assert (at_the_end["step"], at_the_end["total"]) == (60, 60)
    assert at_the_end["loss"] == last["metrics"]["loss"]
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", log)]
    assert len(losses) == 60
    assert losses[-1] < losses[0] / 1.2, "it learns"
    assert losses[-1] == pytest.approx(last["metrics"]["loss"], abs=1e-4), "the step's own, no average"


def test_the_exported_model_is_the_last_checkpoints(straight):
    store, _ = straight
    exported = load_file(run_of(store) / "model" / FIRST / "model.safetensors")
    assert same(exported, state(store, 60)["weights"])


def test_an_export_and_a_checkpoint_are_described_as_the_model_was(straight, model_dir):
    """The Trainer turns the cache off, which makes generation slow and which nobody has asked for."""
    store, _ = straight
    given, *saved = (
        json.loads((folder / "config.json").read_bytes())
        for folder in (
            model_dir / "tiny",
            run_of(store) / "model" / FIRST,
            run_of(store) / marker(store, 60)["metadata"]["hf_checkpoint_dir"],
        )
    )
    assert given["use_cache"]
    for found in saved:
        assert {name: found.get(name) for name in given} == given


def test_a_plain_trainer_resumes_the_folder_that_the_marker_names(straight, model_dir):
    store, _ = straight
    folder = run_of(store) / marker(store, 60)["metadata"]["hf_checkpoint_dir"]
    script = Path(__file__).with_name("plain_trainer.py")
    command = [TORCHRUN, "--standalone", "--nproc-per-node=2", script, model_dir / "tiny", folder]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "DTensor at step 62, 62 updates" in ended.stdout


def test_a_finished_run_goes_on_to_a_later_end(straight, warm, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(straight[0], store)
    with warm(store, SECOND, resume="true", max_steps=75, lr=0.005, keep_last=1) as pods:
        assert pods.end() == [0], pods.log
        assert pods.steps() == list(range(61, 76))
    found = marker(store, 75)
    assert found["parent"] == {"submission": FIRST, "step": 60}
    markers = sorted(path.name for path in (run_of(store) / "checkpoints").glob("step-*.json"))
    assert markers == [f"step-{step:06d}.json" for step in (10, 20, 30, 40, 50, 60, 75)], "70 was its own, 60 is not"
    assert not same(state(store, 60)["weights"], state(store, 75)["weights"])
    schedule = state(store, 75)["scheduler.pt"]
    assert schedule["base_lrs"] == [0.005, 0.005], "this job's learning rate, not the old one's"
    before_the_end = state(store, 75)["optimizer"]["param_groups"][0]["lr"]
    assert before_the_end == 0.0, "the schedule ends where this job ends"


def test_a_torn_checkpoint_is_skipped_and_another_world_goes_on(straight, warm, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(straight[0], store)
    (run_of(store) / f"checkpoints/checkpoint-60/{FIRST}-1/optimizer_0/.metadata").unlink()
    with (run_of(store) / f"checkpoints/checkpoint-50/{FIRST}-1/pytorch_model_fsdp_0/__1_0.distcp").open("r+b") as torn:
        torn.truncate(1000)
    with warm(store, SECOND, resume="true", processes=0, max_steps=42) as pods:
        assert pods.end() == [0], pods.log
        assert re.findall(r"skips step (\d+)", pods.log) == ["60", "50"]
        assert pods.steps() == [41, 42]
    assert marker(store, 42)["world_size"] == 1
    assert not (run_of(store) / f"checkpoints/checkpoint-42/{SECOND}-1/rng_state_1.pth").exists()


def test_it_goes_on_from_the_step_that_was_asked_for_as_its_config_file_says(straight, start, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(straight[0], store)
    configs = [tmp_path / "first.yaml", tmp_path / "second.json"]
    configs[0].write_text("# how to train\nmax_steps: 32\nlr: 1e-3\nwarmup_steps: 1\n")
    configs[1].write_text('{"max_steps": 33}')  # as if it had changed meanwhile: the first process's counts
    options = {"resume": "step-30", "nodes": 2, "processes": 1, "configs": configs, "max_steps": ..., "lr": 0.005}
    with start(store, SECOND, **options) as pods:
        assert pods.end() == [0, 0], pods.log
        assert pods.steps() == [31, 32]
    assert marker(store, 32)["parent"] == {"submission": FIRST, "step": 30}
    written = json.loads((run_of(store) / f"config/{SECOND}/run.json").read_bytes())
    used = {name: written["settings"][name] for name in ("max_steps", "lr", "warmup_steps", "save_steps")}
    assert used == {"max_steps": 32, "lr": 0.005, "warmup_steps": 1, "save_steps": 10}
    assert (written["resume"], written["resume_step"], written["config_path"]) == (True, 30, str(configs[0]))


def test_a_step_that_is_not_there_ends_the_job_and_changes_nothing(straight, warm, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(straight[0], store)
    with warm(store, SECOND, resume="step-35") as pods:
        assert pods.end() == [1]
        assert pods.steps() == []
    instead = ", ".join(f"step-{step}" for step in range(10, 61, 10))
    assert message(tmp_path / "pods-0") == (
        f"RESUME is step-35, but the run has no such checkpoint: submit the job again from a complete one ({instead})"
    )
    assert "Connection closed" not in pods.log, "the other process knows why too"
    ledger = {f"attempts/{SECOND}/1"} | {f"logs/{SECOND}/attempt-1/rank-{rank}.log" for rank in (0, 1)}
    assert files(run_of(store)) == files(run_of(straight[0])) | ledger


def test_who_is_superseded_stops_and_stays_stopped(start, tmp_path):
    store = tmp_path / "store"
    says = f"the run belongs to submission {SECOND} now: {FIRST} stops and writes no more"
    with start(store, FIRST, max_steps=1000) as pods:
        while not (run_of(store) / "checkpoints/step-000010.json").exists():  # which is written beside the training
            pods.wait_for_step((pods.steps() or [0])[-1] + 1)
        (run_of(store) / "owner").write_text(json.dumps({"submission": SECOND, "namespace": "training", "job": "new"}))
        assert pods.end() == [1], pods.log
        stopped_at = pods.steps()[-1]
    assert message(tmp_path / "pods-0") == says
    assert "Connection closed" not in pods.log, "the other process knows why too"
    assert 10 <= newest_marker(store) <= stopped_at - 10
    before = files(store)

    with start(store, FIRST, max_steps=1000) as pods:
        assert pods.end() == [1], pods.log
        assert pods.steps() == []
    assert message(tmp_path / "pods-1") == says
    assert files(store) == before


def test_of_two_pods_the_replaced_one_stops_and_stays_stopped(start, tmp_path):
    store = tmp_path / "store"
    with start(store, FIRST, max_steps=100_000, processes=1, uids=["old"]) as cut_off:
        cut_off.wait_for_step(12)
        with start(store, FIRST, max_steps=100_000, processes=1, uids=["new"]) as pods:
            assert cut_off.end() == [1], cut_off.log
            pods.wait_for_step(newest_marker(store) + 12)
            pods.processes[0].send_signal(signal.SIGTERM)
            pods.end()
            stopped_at = pods.steps()[-1]
    assert message(tmp_path / "pods-0") == "attempt 2 of this submission has begun: attempt 1 writes no more"
    ledger = [json.loads((run_of(store) / f"attempts/{FIRST}/{attempt}").read_bytes())["cause"] for attempt in (1, 2)]
    assert ledger == ["preempted", "preempted"]
    attempts = [marker(store, step)["attempt"] for step in whole(store)]
    assert attempts == sorted(attempts), "never back to the old one"
    assert (newest_marker(store), attempts[-1]) == (stopped_at, 2)
    before = files(store)

    with start(store, FIRST, processes=1, uids=["old"]) as pods:
        assert pods.end() == [1], pods.log
    assert message(tmp_path / "pods-2") == "pod old was replaced by pod new: it starts nothing more"
    assert files(store) == before


def test_an_end_that_was_reached_before_is_exported_again(straight, warm, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(straight[0], store)
    shutil.rmtree(run_of(store) / "model")
    with warm(store, FIRST, processes=0) as pods:
        assert pods.end() == [0], pods.log
        assert pods.steps() == []
    exported = load_file(run_of(store) / "model" / FIRST / "model.safetensors")
    assert same(exported, state(store, 60)["weights"])


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"max_seq_len": 300}, "max_seq_len 300 is beyond the 256 positions of the model"),
        ({"dataset_text_field": "body"}, "texts.jsonl, line 1: no text in field 'body'"),
    ],
)
def test_what_only_model_or_data_can_tell_is_one_sentence_too(warm, tmp_path, changed, says):
    with warm(tmp_path / "store", FIRST, processes=0, **changed) as pods:
        assert pods.end() == [1]
    words = last_words(tmp_path / "pods-0")
    assert [(line["cause"], line["rank"]) for line in words] == [("user_error", 0)]
    assert says in words[0]["message"]
