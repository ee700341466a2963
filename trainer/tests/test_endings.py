"""How whole runs end, and what they leave: the ledger, last words, logs, exit codes, the disk."""

import functools
import json
import os
import random
import re
import signal
import time
from pathlib import Path

import pytest
from pods import (
    FIRST,
    SECOND,
    files,
    last_words,
    marker,
    markers,
    message,
    newest_marker,
    progress,
    run_of,
    same,
    state,
)

from training import layout

# The group has ten minutes.
in_soak = functools.partial(pytest.param, marks=pytest.mark.soak)
FAULTY = Path(__file__).with_name("faulty_train.py")


def ledger(store, submission=FIRST, framework="hf"):
    folder = run_of(store, framework) / "attempts" / submission
    return [json.loads((folder / str(number)).read_bytes()) for number in range(1, len(list(folder.iterdir())) + 1)]


def causes(store, submission=FIRST, framework="hf"):
    return [entry["cause"] for entry in ledger(store, submission, framework)]


def log(store, attempt, rank=0, submission=FIRST):
    folder = run_of(store) / "logs" / submission / f"attempt-{attempt}"
    return "".join(path.read_text() for path in sorted(folder.glob(f"rank-{rank}.log*")))


def faulty(**fault):
    return {"script": FAULTY, "environment": {"FAULT": json.dumps(fault)}}


def test_killed_stopped_and_finished_each_start_is_told_as_what_it_was(start, tmp_path):
    store, disk = tmp_path / "store", tmp_path / "disk"
    job = {"processes": 1, "max_steps": 40, "keep_last": 1, "logs": tmp_path} | faulty(disk=str(disk))

    with start(store, FIRST, **job) as pods:
        pods.wait_for_step(random.randint(11, 18))
        os.kill(pods.ranks(0)[0], signal.SIGKILL)
        assert pods.end() == [1]
        killed = pods.steps()
    assert causes(store) == [None], "nobody knows yet"
    assert last_words(tmp_path / "pods-0") == []

    with start(store, FIRST, **job) as pods:
        pods.wait_for_step(killed[-1] + 2)
        pods.processes[0].send_signal(signal.SIGTERM)
        assert pods.end() == [1]
        stopped = pods.steps()
    assert causes(store) == ["crash", "preempted"]
    assert newest_marker(store) == stopped[-1]
    assert (marker(store, stopped[-1])["attempt"], progress(store, FIRST)["attempt"]) == (2, 2)
    assert [(line["cause"], line["rank"]) for line in last_words(tmp_path / "pods-1")] == [("preempted", 0)]
    assert [int(step) for step in re.findall(r"INFO step (\d+)/", log(store, 1))] == killed, "shipped by the second"

    with start(store, FIRST, **job) as pods:
        assert pods.end() == [0], pods.log
        finished = pods.steps()
    assert finished == list(range(stopped[-1] + 1, 41)), "no step twice"
    assert causes(store) == ["crash", "preempted", "finished"]
    assert [entry["pods"] for entry in ledger(store)] == [["pod-0"]] * 3
    assert last_words(tmp_path / "pods-2") == []
    assert (marker(store, 40)["attempt"], progress(store, FIRST)["attempt"]) == (3, 3)
    assert [int(step) for step in re.findall(r"INFO step (\d+)/", log(store, 3))] == finished
    assert not [path for path in (tmp_path / "logs-0").rglob("*") if path.is_file()], "nothing is kept twice"

    checkpoint = sum(file["size"] for file in marker(store, 40)["files"])
    model, data = 600_000, 100_000  # at most
    held = list(map(int, disk.read_text().split()))
    assert checkpoint < max(held) < 2 * checkpoint + model + data
    assert not list((tmp_path / "pods-2" / "tmp-0").glob("train-*")), "nor is anything of the work"


@pytest.mark.parametrize(("processes", "grace", "saves"), [in_soak(0, "2", False), (2, "2", False), (0, "60", True)])
def test_a_save_that_would_not_end_before_sigkill_is_not_begun(start, tmp_path, processes, grace, saves):
    """The older one is complete, and is resumed. Each upload takes a second, and the files of a save two of them."""
    store, fault = tmp_path / "store", faulty(slow=1)
    fault["environment"] |= {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": grace}
    with start(store, FIRST, processes=processes, max_steps=5000, save_steps=100, **fault) as pods:
        pods.wait_for_line("saved step 100")
        pods.processes[0].send_signal(signal.SIGTERM)
        assert pods.end() == [1 if processes else 143]
        reached = pods.steps()[-1]
    assert reached % 100
    assert newest_marker(store) == (reached if saves else 100)
    assert (f"step {reached} is not saved: a save takes longer" in pods.log) is not saves
    assert causes(store) == ["preempted"]
    assert "a restart resumes the newest checkpoint" in message(tmp_path / "pods-0")


def test_a_second_sigterm_ends_it_at_once(start, tmp_path):
    store = tmp_path / "store"
    with start(store, FIRST, processes=0, save_steps=1000, **faulty(slow=60)) as pods:
        pods.wait_for_step(3)
        process = pods.processes[0]
        process.send_signal(signal.SIGTERM)
        time.sleep(1)
        assert process.poll() is None, "it is saving"
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert process.wait(timeout=30) == 143
        assert time.monotonic() - began < 5
    assert not list((run_of(store) / "checkpoints").glob("step-*.json"))
    assert causes(store) == [None]


def test_a_second_sigterm_ends_a_process_that_waits_for_another(start, tmp_path):
    with start(tmp_path / "store", FIRST, max_steps=100_000) as pods:
        pods.wait_for_step(3)
        waits, stands = pods.ranks(0)
        os.kill(stands, signal.SIGSTOP)
        time.sleep(1)
        os.kill(waits, signal.SIGTERM)
        time.sleep(1)
        assert waits in pods.ranks(0), "it has something to save"
        os.kill(waits, signal.SIGTERM)
        deadline = time.monotonic() + 5
        while waits in pods.ranks(0):
            assert time.monotonic() < deadline, "it still waits"
            time.sleep(0.05)


@pytest.mark.parametrize(
    ("processes", "when"), [(0, "before its attempt"), (2, "before its attempt"), in_soak(2, "after")]
)
def test_a_sigterm_before_training_is_no_crash(start, tmp_path, processes, when):
    store = tmp_path / "store"
    began = run_of(store) / "attempts" / FIRST / "1"
    folder = tmp_path / "pods-0" / "logs-0"

    def logs():
        """A process that has one hears signals. They move, and may be seen twice."""
        return {path.name for path in folder.rglob("*.log")}

    with start(store, FIRST, processes=processes) as pods:
        deadline = time.monotonic() + 30
        while len(logs()) < (processes or 1) or (when == "after" and not began.exists()):
            assert time.monotonic() < deadline
            time.sleep(0.002)
        pods.processes[0].send_signal(signal.SIGTERM)
        assert pods.end() == [1 if processes else 143], pods.log
        assert pods.steps() == []
    assert causes(store) == ["preempted"]
    assert {line["cause"] for line in last_words(tmp_path / "pods-0")} == {"preempted"}


def told_while_it_is_stuck(pods):
    """Tell all pods to stop when none of them goes on."""
    deadline = time.monotonic() + 120
    while not all("stuck: " in log.read_text() for log in pods.logs):
        assert time.monotonic() < deadline, pods.log
        time.sleep(0.05)
    for process in pods.processes:
        process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert 0 not in pods.end(), pods.log
    assert time.monotonic() - began < 30
    assert pods.steps() == []


@pytest.mark.parametrize("waits", [1, in_soak(0)])
def test_when_one_pod_is_told_while_they_download_all_stop(start, tmp_path, waits):
    store = tmp_path / "store"
    with start(store, FIRST, nodes=2, processes=1, **faulty(stuck="", rank=0)) as pods:
        while "stuck: " not in pods.log:
            assert pods.processes[0].poll() is None, pods.log
            time.sleep(0.05)
        time.sleep(1)
        pods.processes[waits].send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert 0 not in pods.end(), pods.log
        assert time.monotonic() - began < 20
    assert causes(store) == ["preempted"]


def test_what_takes_longer_than_a_collective_call_waits_is_waited_for(start, tmp_path):
    store = tmp_path / "store"
    with start(store, FIRST, max_steps=5, save_steps=5, **faulty(patience=3)) as pods:
        assert pods.end() == [0], pods.log
    assert markers(store) == [5]
    assert (run_of(store) / "model" / FIRST / "model.safetensors").exists()


@pytest.mark.parametrize("nodes", [2, in_soak(1)])
def test_a_sigterm_while_data_or_model_come_waits_for_neither(start, tmp_path, nodes):
    store = tmp_path / "store"
    job = {"nodes": nodes, "processes": 2 // nodes, **faulty(stuck="")}
    with start(store, FIRST, **job) as pods:
        told_while_it_is_stuck(pods)
    assert causes(store) == ["preempted"]
    assert {line["cause"] for node in range(nodes) for line in last_words(tmp_path / "pods-0", node)} == {"preempted"}


WHOLE_FILES, PARTS = (0, "download checkpoints/"), (2, "range checkpoints/")


@pytest.mark.parametrize(
    ("framework", "processes", "stuck"),
    [
        ("hf", *WHOLE_FILES),
        ("nemo", *PARTS),
        in_soak("hf", *PARTS),
        in_soak("meta", *PARTS),
        in_soak("nemo", *WHOLE_FILES),
        in_soak("meta", *WHOLE_FILES),
    ],
)
def test_a_sigterm_while_a_checkpoint_comes_waits_for_none_and_loses_none(
    start, warm, tmp_path, framework, processes, stuck
):
    store = tmp_path / "store"
    job = {"framework": framework, "processes": processes, "save_steps": 5}
    with warm(store, FIRST, max_steps=5, **job) as pods:
        assert pods.end() == [0], pods.log
    before = files(run_of(store, framework) / "checkpoints")
    with start(store, FIRST, max_steps=10, **job, **faulty(stuck=stuck)) as pods:
        told_while_it_is_stuck(pods)
    assert causes(store, framework=framework) == ["finished", "preempted"]
    assert files(run_of(store, framework) / "checkpoints") == before


@pytest.mark.parametrize("framework", ["hf", in_soak("nemo"), in_soak("meta")])
def test_a_process_fetches_its_own_part_of_a_checkpoint(start, warm, tmp_path, framework):
    """Of two processes each reads half of the weights and moments, and little else."""
    store, fetched = tmp_path / "store", tmp_path / "fetched"
    job = {"framework": framework, "save_steps": 5}
    with warm(store, FIRST, max_steps=5, **job) as pods:
        assert pods.end() == [0], pods.log
    with start(store, FIRST, max_steps=10, **job, **faulty(fetched=str(fetched))) as pods:
        assert pods.end() == [0], pods.log
        assert pods.steps()[0] == 6
    parts = sum(file["size"] for file in marker(store, 5, framework)["files"] if file["path"].endswith(".distcp"))
    of_ranks = [0, 0]
    for line in fetched.read_text().splitlines():
        rank, size = map(int, line.split())
        of_ranks[rank] += size
    assert all(0.4 * parts < size < 0.65 * parts for size in of_ranks), (of_ranks, parts)


@pytest.mark.parametrize("framework", ["hf", "nemo", in_soak("meta")])
def test_when_one_process_is_told_before_the_first_step_none_makes_one(warm, tmp_path, framework):
    store = tmp_path / "store"
    with warm(store, FIRST, framework=framework, **faulty(told=True, rank=1)) as pods:
        assert 0 not in pods.end(), pods.log
        assert pods.steps() == []
    assert causes(store, framework=framework) == ["preempted"]
    words = last_words(tmp_path / "pods-0")
    assert {(line["cause"], line["message"]) for line in words} == {
        ("preempted", "told to stop by SIGTERM before the first step")
    }


@pytest.mark.parametrize(
    ("framework", "own"),
    [in_soak("hf", {}), in_soak("hf", {"sharded": False}), ("nemo", {"sharded": False}), ("meta", {})],
)
def test_a_step_without_finite_gradients_changes_nothing_and_one_too_many_ends_the_job(warm, tmp_path, framework, own):
    """One process alone has them: in micro-steps 3 and 7, of steps 2 and 4."""
    store = tmp_path / "store"
    job = {"framework": framework, "max_steps": 6, "save_steps": 1, "weight_decay": 0.1, "skip_non_finite_steps": 1}
    with warm(store, FIRST, **job, **own, **faulty(nan_at=[3, 7], rank=1)) as pods:
        assert pods.end() == [1]
    assert causes(store, framework=framework) == ["user_error"]
    said = message(tmp_path / "pods-0")
    assert "diverged: the gradients of 2 steps were not finite, with lr 0.01; the checkpoints from before" in said
    assert markers(store, framework) == [1, 2, 3]
    weights = {"hf": "weights", "nemo": "state_dict", "meta": "model"}[framework]
    one, two, three = (state(store, step, framework)[weights] for step in (1, 2, 3))
    assert same(one, two)
    assert not same(two, three)


@pytest.mark.parametrize(
    ("fault", "cause", "rank", "says"),
    [
        in_soak({"memory_at": 4, "rank": 1}, "out_of_memory", 1, "out of memory; lower batch_size or max_seq_len"),
        ({"error_at": 4, "rank": 1}, "crash", 1, "ValueError: the code is wrong"),
    ],
)
def test_the_process_that_fails_says_why_and_the_other_that_it_only_follows(start, tmp_path, fault, cause, rank, says):
    store = tmp_path / "store"
    with start(store, FIRST, **faulty(**fault)) as pods:
        assert pods.end() == [1]
    assert [(line["cause"], line["rank"]) for line in last_words(tmp_path / "pods-0")] == [(cause, rank)]
    assert says in last_words(tmp_path / "pods-0")[0]["message"]
    everything = [json.loads(line) for line in (tmp_path / "pods-0" / "termination-0").read_text().splitlines()]
    assert len(everything) == 2
    assert all(len(json.dumps(line)) <= 1024 for line in everything)
    entry = ledger(store)[0]
    assert (entry["cause"], entry["rank"]) == (cause, rank)
    assert says in entry["message"]
    assert "Traceback" in log(store, 1, rank)
    assert says.partition(";")[0] in log(store, 1, rank)


def test_after_running_out_of_memory_the_same_steps_are_taken_in_smaller_pieces(warm, tmp_path):
    losses = {}
    for name, starts in {"straight": [{}], "again": [faulty(memory_at=3), {}]}.items():
        for how in starts:
            with warm(tmp_path / name, FIRST, processes=0, max_steps=4, batch_size=5, **how) as pods:
                assert pods.end() == [0 if not how else 1], pods.log
        losses[name] = [float(loss) for loss in re.findall(r"step \d+/4 loss (\S+)", pods.log)]
    assert causes(tmp_path / "again") == ["out_of_memory", "finished"]
    assert "the last attempt ran out of memory: this one takes 2 texts at a time" in pods.log
    assert losses["again"] == pytest.approx(losses["straight"], rel=0.02), "but for the dropout"


def test_a_process_that_fails_waits_for_no_upload(start, tmp_path):
    with start(tmp_path / "store", FIRST, framework="meta", save_steps=3, **faulty(error_at=5, slow=60)) as pods:
        pods.wait_for_step(3)
        began = time.monotonic()
        assert pods.end() == [1], pods.log
        assert time.monotonic() - began < 30
    assert "the code is wrong" in last_words(tmp_path / "pods-0")[0]["message"]


def test_a_part_of_a_checkpoint_that_cannot_be_written_is_told_with_its_process(start, tmp_path):
    store = tmp_path / "store"
    with start(store, FIRST, framework="meta", max_steps=20, **faulty(disk_full=True, rank=1)) as pods:
        assert pods.end() == [1], pods.log
    words = last_words(tmp_path / "pods-0")
    assert {line["cause"] for line in words} == {"storage"}
    assert words[0]["message"].endswith("rank 1: OSError: [Errno 28] No space left on device")
    assert causes(store, framework="meta") == ["storage"]


def test_a_bucket_that_fails_is_told_as_such_and_the_next_start_goes_on(start, warm, tmp_path):
    store = tmp_path / "store"
    with start(store, FIRST, processes=0, max_steps=30, **faulty(fails_from=15)) as pods:
        assert pods.end() == [1]
    assert causes(store) == ["storage"]
    assert last_words(tmp_path / "pods-0")[0]["cause"] == "storage"
    saved = newest_marker(store)
    with warm(store, FIRST, processes=0, max_steps=saved + 2) as pods:
        assert pods.end() == [0], pods.log
        assert pods.steps() == [saved + 1, saved + 2]
    assert causes(store) == ["storage", "finished"]


def test_a_setting_that_does_not_exist_is_one_sentence_at_once(start, tmp_path, without_torch):
    with start(tmp_path / "store", FIRST, processes=0, environment=without_torch, colour="blue") as pods:
        assert pods.end() == [1]
    words = last_words(tmp_path / "pods-0")
    assert [(line["cause"], line["rank"]) for line in words] == [("user_error", 0)]
    assert words[0]["message"].startswith("extra_args.colour is no setting")
    assert pods.log == f"train.py: {words[0]['message']}\n"
    assert not (tmp_path / "store").exists()


@pytest.fixture
def without_torch(tmp_path):
    """An environment in which nobody can import what is heavy."""
    for name in ("torch", "accelerate"):
        (tmp_path / "light" / name).mkdir(parents=True)
        (tmp_path / "light" / name / "__init__.py").write_text("raise SystemExit('it was imported')")
    return {"PYTHONPATH": str(tmp_path / "light")}


def test_a_user_error_is_not_tried_again(start, warm, tmp_path, without_torch):
    store = tmp_path / "store"
    with warm(store, FIRST, processes=0, dataset_text_field="body") as pods:
        assert pods.end() == [1]
    assert causes(store) == ["user_error"]
    before = files(store)
    with start(store, FIRST, processes=0, environment=without_torch) as pods:
        assert pods.end() == [1]
    words = last_words(tmp_path / "pods-1")
    assert [line["cause"] for line in words] == ["user_error"]
    assert words[0]["message"].startswith("attempt 1 ended with an error that no restart can fix: ")
    assert "no text in field 'body'" in words[0]["message"]
    assert files(store) == before

    with start(store, SECOND, processes=0, environment=without_torch) as pods:
        assert pods.end() == [1]
    assert "it was imported" in pods.log, "which a new submission does"


@pytest.mark.parametrize(
    ("history", "says"),
    [
        (["out_of_memory", "out_of_memory"], "attempts 1 and 2 ran out of memory"),
        (["crash", "storage", None], "3 attempts have failed and max_restarts is 2"),
    ],
)
def test_a_start_over_budget_ends_before_anything_heavy(start, tmp_path, without_torch, history, says):
    store = tmp_path / "store"
    folder = run_of(store) / "attempts" / FIRST
    folder.mkdir(parents=True)
    for number, cause in enumerate(history, 1):
        entry = {"attempt": number, "pods": ["pod-0"], "started_at": 1.0, "cause": cause}
        (folder / str(number)).write_text(json.dumps(entry))
    environment = without_torch | {"MAX_RESTARTS": "2"}
    began = time.monotonic()
    with start(store, FIRST, processes=0, environment=environment) as pods:
        assert pods.end() == [1]
        assert time.monotonic() - began < 30
    assert says in last_words(tmp_path / "pods-0")[0]["message"]
    assert says in pods.log
    assert len(causes(store)) == len(history)
    assert None not in causes(store)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("framework", layout.FRAMEWORKS)
def test_killed_at_any_call_to_the_storage_it_ends_as_if_nothing_had_happened(start, tmp_path, framework, seed):
    """Whole runs of two processes, killed at random calls, until one gets through."""
    chance = random.Random(f"{framework} {seed}")
    store, straight = tmp_path / "store", tmp_path / "straight"
    job = {"framework": framework, "max_steps": 25, "save_steps": 5, "keep_last": 2, "resume": "true"}
    with start(straight, FIRST, **job) as pods:
        assert pods.end() == [0], pods.log
    checkpoints = run_of(store, framework) / "checkpoints"
    for number in range(40):
        fault = {"rank": chance.randint(0, 1), "kills_at": chance.randint(5, 90), "after": chance.random() < 0.5}
        options = faulty(**fault) if number < 4 else {"environment": {}}
        options["environment"] |= {"MAX_RESTARTS": "50"}
        with start(store, SECOND, **job, **options) as pods:
            ended = pods.end()
        for path in checkpoints.glob("step-*.json"):
            for file in json.loads(path.read_bytes())["files"]:
                assert (checkpoints / file["path"]).stat().st_size == file["size"], (fault, path)
        if ended == [0]:
            break
    assert ended == [0], pods.log
    models = [
        run_of(base, framework) / "model" / submission / "model.safetensors"
        for base, submission in ((straight, FIRST), (store, SECOND))
    ]
    assert models[0].read_bytes() == models[1].read_bytes()
