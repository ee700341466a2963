"""The vectors that trainer and control plane share. An operation that this side does not know fails, unless its file
says that it is the control plane's alone, and so does one of this side's operations that has no vector."""

import json
import tempfile
import types
from pathlib import Path

import pytest

from training import attempts, job, layout, owner, progress
from training.checkpoint import marker
from training.checkpoint.lineage import in_line, in_order, lineage
from training.checkpoint.resume import checkpoint_to_resume
from training.checkpoint.snapshot import Snapshot
from training.errors import RefusedError, SupersededError, UserError
from training.place import Place
from training.storage import Entry, Folder

CONTRACT = Path(__file__).parents[2] / "tests" / "contract"
SUBMISSION = "01980000-0000-7000-8000-000000000001"


def parse(value):
    found = marker.parse(json.dumps(value).encode())
    return {
        "framework": found.framework,
        "step": found.step,
        "submission": found.submission,
        "files": None if found.files is None else len(found.files),
    }


def reject(value):
    return reject_text({"text": json.dumps(value)})


def reject_text(value):
    with pytest.raises(ValueError, match=r".") as refused:
        marker.parse(value["text"].encode())
    return str(refused.value).split()[0]  # what is at fault comes first


def of_size(value):
    body = b'{"framework": "hf", "step": 1, "saved_at": 1.0, "metadata": {}}'.ljust(value["bytes"])
    try:
        marker.parse(body)
    except ValueError as error:
        return str(error).partition(":")[0]
    return "read"


def repeats(value):
    body = value["head"] + value["open"] * value["times"] + value["close"] * value["times"] + value["tail"]
    try:
        marker.parse(body.encode())
    except ValueError:
        return reject_text({"text": body})
    return "read"


def complete(value):
    listing = [
        Entry(key=f"checkpoints/{file['path']}", size=file["size"], etag=file["etag"]) for file in value["listing"]
    ]
    return marker.parse(json.dumps(value["marker"]).encode()).state(listing)


def write(value):
    found = owner.parse(json.dumps(value["owner"]).encode())
    return owner.may_write(found, value["submission"], value["now_ms"])


def body_of(value):
    """Of a vector: `repeated` stands `times` times before the end."""
    if "bytes" in value:
        return bytes(value["bytes"])
    return (value["text"] + value.get("repeated", "") * value.get("times", 0) + value.get("end", "")).encode()


def read_owner(value):
    try:
        return owner.parse(body_of(value))
    except ValueError:
        return "refused"


def checkpoints(value):
    """Markers of which only step, submission and parent are told."""
    return [
        marker.parse(json.dumps({"framework": "hf", "saved_at": 1.0, "files": [], **checkpoint}).encode())
        for checkpoint in value["checkpoints"]
    ]


def steps_in_line(value):
    found = checkpoints(value)
    return [one.step for one in in_line(found, lineage(found))] if found else []


def superseded(value):
    return sorted({one.step for one in checkpoints(value)} - set(steps_in_line(value)))


def resumed_step(value):
    """Of checkpoints with one file each, which is there where the checkpoint is said to be complete."""
    resume, step = job.start({"resume": value["resume"]}, "resume")
    markers, listing = [], []
    for checkpoint in value["checkpoints"]:
        path = f"checkpoint-{checkpoint['step']}/a"
        files = [{"path": path, "size": 1}]
        body = {"framework": "hf", "saved_at": 1.0, "files": files, **checkpoint}
        markers.append(marker.parse(json.dumps(body).encode()))
        if checkpoint["complete"]:
            listing.append(Entry(key=layout.CHECKPOINTS + path, size=1, etag=None))
    found = Snapshot(listing=listing, markers=markers)
    try:
        chosen = checkpoint_to_resume(found, value["submission"], resume=resume, step=step)
    except UserError:
        return "refused"
    return chosen and chosen.step


def read_attempt(value):
    """As the ledger reads an entry, whatever it is."""
    with tempfile.TemporaryDirectory() as folder:
        storage = Folder(Path(folder))
        storage.write(layout.attempt_key(SUBMISSION, 1), body_of(value))
        (found,) = attempts.Ledger(storage, SUBMISSION, 0).read()
    return {"cause": found.cause, "rank": found.rank, "message": found.message}


def next_attempt(value):
    """A start as rank 0 of all these pods does it, and what it has made of the entries before."""
    pods, number = value["pods"], None
    place = Place(
        rank=0,
        size=len(pods),
        local_rank=0,
        node=0,
        nodes=len(pods),
        pod=pods[0],
        under_torchrun=len(pods) > 1,
        pod_has_uid=True,
    )
    world = types.SimpleNamespace(gather=lambda _: list(enumerate(pods)), on_rank_zero=lambda function: function())
    with tempfile.TemporaryDirectory() as folder:
        storage, refused = Folder(Path(folder)), None
        for before, entry in enumerate(value["entries"], 1):
            storage.write(layout.attempt_key(SUBMISSION, before), json.dumps({**entry, "started_at": 1.0}).encode())
        ledger = attempts.Ledger(storage, SUBMISSION, value["max_restarts"])
        try:
            number = ledger.meet(world, place, ledger.start(place))
        except RefusedError as error:
            refused = error.cause
        except SupersededError:
            refused = "superseded"
        causes = [attempt.cause for attempt in ledger.read() if attempt.attempt != number]
    return {"causes": causes, "refused": refused}


def parse_files_key(value):
    found = layout.parse_checkpoint_key(**value)
    return found and list(found)


def name_of_owner(field, value):
    """A name as an owner with it is read; null where the owner is refused."""
    body = {"submission": SUBMISSION, "namespace": "training", "job": "hf-r", field: value["text"]}
    try:
        found = owner.parse(json.dumps(body).encode())
    except ValueError:
        return None
    return found["submission"] if field == "submission" else value["text"]


OPERATIONS = {
    "layout.json": {
        "run_prefix": lambda value: layout.run_prefix(**value),
        "marker_key": lambda value: layout.marker_key(**value),
        "parse_marker_key": lambda value: layout.parse_marker_key(**value),
        "progress_key": lambda value: layout.progress_key(**value),
        "attempt_key": lambda value: layout.attempt_key(**value),
        "log_key": lambda value: layout.log_key(**value),
        "parse_log_part": lambda value: layout.parse_log_part(**value),
        "model_prefix": lambda value: layout.model_prefix(**value),
        "config_keys": lambda value: layout.config_keys(**value),
        "data_key": lambda value: layout.data_key(**value),
        "owner_key": lambda value: layout.owner_key(**value),
        "files_prefix": lambda value: layout.checkpoint_prefix(**value),
        "parse_files_key": parse_files_key,
        "tensorboard_prefix": lambda value: layout.tensorboard_prefix(**value),
    },
    "names.json": {
        "run_id": lambda value: value["text"] if job.RUN_ID.fullmatch(value["text"]) else None,
        "framework": lambda value: value["text"] if value["text"] in layout.FRAMEWORKS else None,
        "namespace": lambda value: name_of_owner("namespace", value),
        "job": lambda value: name_of_owner("job", value),
        "id": lambda value: name_of_owner("submission", value),
    },
    "marker.json": {
        "parse": parse,
        "reject": reject,
        "reject_text": reject_text,
        "of_size": of_size,
        "repeats": repeats,
        "complete": complete,
    },
    "owner.json": {"read": read_owner, "write": write},
    "lineage.json": {
        "in_line": steps_in_line,
        "superseded": superseded,
        "in_order": lambda value: [one.step for one in in_order(checkpoints(value))],
        "resume": resumed_step,
    },
    "attempts.json": {
        "number": lambda value: layout.parse_attempt_key(f"attempts/x/{value['name']}"),
        "read": read_attempt,
        "next": next_attempt,
    },
    "progress.json": {"report": lambda value: progress.snapshot(**value)},
}
DOCUMENTS = {file: json.loads((CONTRACT / file).read_text(encoding="utf-8")) for file in OPERATIONS}
VECTORS = [
    (file, vector)
    for file, document in DOCUMENTS.items()
    for vector in document["vectors"]
    if vector["op"] not in document.get("control_plane_only", [])
]


@pytest.mark.parametrize(
    ("file", "vector"), VECTORS, ids=lambda value: value if isinstance(value, str) else value["case"]
)
def test_vector(file, vector):
    assert vector["op"] in OPERATIONS[file], "an operation that the trainer does not know"
    assert OPERATIONS[file][vector["op"]](vector["input"]) == vector["output"]


@pytest.mark.parametrize(("file", "op"), [(file, op) for file, ops in OPERATIONS.items() for op in ops])
def test_each_operation_has_a_vector(file, op):
    assert any(vector["op"] == op for of, vector in VECTORS if of == file)


def test_nesting_without_end_is_refused_and_no_crash():
    with pytest.raises(ValueError, match=r"^JSON "):
        marker.parse(b"[" * 1_000_000)


def test_what_is_written_can_be_read():
    written = marker.Marker(
        framework="hf",
        step=20,
        saved_at=1.5,
        submission="01980000-0000-7000-8000-000000000001",
        attempt=1,
        parent={"submission": "01970000-0000-7000-8000-000000000001", "step": 10},
        world_size=2,
        files=(
            marker.File(path="checkpoint-20/a", size=1, etag='"e"'),
            marker.File(path="checkpoint-20/b", size=2),
        ),
        metrics={"loss": None},
        metadata={"hf_checkpoint_dir": "checkpoints/checkpoint-20"},
    )
    assert marker.parse(written.dump()) == written
    assert json.loads(written.dump())["layout"] == 1
