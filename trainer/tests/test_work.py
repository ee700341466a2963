"""Work files that outlive a container: whole ones are used again, all others are gone."""

import json

import boto3
import pytest
from pods import FIRST

from training import work
from training.errors import StorageError
from training.storage import Entry


class Counting:
    """Storage that knows what was asked of it."""

    def __init__(self, **objects):
        self.objects = objects
        self.brought = []

    def download(self, key, target):
        self.brought.append(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(self.objects[key])


def entry(key, body, etag="1"):
    return Entry(key=key, size=len(body), etag=etag and f'"{etag}"')


@pytest.fixture
def pod(tmp_path, monkeypatch):
    """The directory of a pod's containers."""
    monkeypatch.setenv("TRAINER_WORK_DIR", str(tmp_path))
    monkeypatch.setenv("POD_UID", "pod-0")
    return tmp_path / "train-pod-0"


def names(path):
    return sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())


def container(storage, entries):
    """One container of the pod, which fetches a model and fails in its training; returns what it finds at its start."""
    found = []
    with pytest.raises(ZeroDivisionError), work.directory() as directory:
        model = work.kept_path() / "model"
        found = names(model)
        wanted = {model / entry.key: entry for entry in entries}
        missing = work.prepare(model, wanted)
        before = len(storage.brought)
        for target, entry in wanted.items():
            work.bring(storage, entry, target)
        assert missing == sum(len(storage.objects[key]) for key in storage.brought[before:])
        (work.kept_path() / "work").mkdir()
        (work.kept_path() / "work" / "checkpoint").write_bytes(b"half of it")
        assert str(work.kept_path()) == directory
        raise ZeroDivisionError
    return found


def test_whole_files_are_brought_once_and_changed_ones_again(pod):
    storage = Counting(a=b"abc", b=b"de")
    entries = [entry("a", b"abc"), entry("b", b"de")]
    assert container(storage, entries) == []
    assert names(pod) == ["model/.a.whole", "model/.b.whole", "model/a", "model/b"]
    assert container(storage, entries) == [".a.whole", ".b.whole", "a", "b"]
    assert storage.brought == ["a", "b"]
    storage.objects["b"] = b"xy"
    container(storage, [entries[0], entry("b", b"xy", etag="2")])
    assert storage.brought == ["a", "b", "b"]
    assert (pod / "model/b").read_bytes() == b"xy"
    container(storage, entries[:1])
    assert names(pod) == ["model/.a.whole", "model/a"], "what is not wanted any more takes no room"
    with work.directory():
        pass
    assert not pod.exists(), "at the end of the job nothing is left"


@pytest.mark.parametrize(
    "tear",
    [
        lambda model: (model / "a").write_bytes(b"ab"),
        lambda model: (model / ".a.whole").unlink(),
        lambda model: (model / ".a.whole").write_bytes((model / ".a.whole").read_bytes()[:-5]),
        lambda model: (model / ".a.whole").write_text("[]"),
        lambda model: (model / "a").unlink(),
    ],
    ids=["short", "no note", "torn note", "another note", "gone"],
)
def test_what_is_torn_is_brought_again(pod, tear):
    storage, entries = Counting(a=b"abc"), [entry("a", b"abc")]
    container(storage, entries)
    tear(pod / "model")
    assert "a" not in container(storage, entries)
    assert storage.brought == ["a", "a"]
    assert (pod / "model/a").read_bytes() == b"abc"


def test_after_another_start_of_the_machine_nothing_counts(pod, tmp_path, monkeypatch):
    storage, entries = Counting(a=b"abc"), [entry("a", b"abc")]
    container(storage, entries)
    monkeypatch.setattr(work, "BOOT_ID", tmp_path / "boot")
    work.BOOT_ID.write_text("another\n")
    assert container(storage, entries) == []


def test_what_a_killed_container_was_writing_is_gone(pod):
    storage = Counting(a=b"abc")
    container(storage, [entry("a", b"abc")])
    (pod / "model/b.C0ffee12").write_bytes(b"part")
    (pod / "data").mkdir()
    (pod / "data/000000.jsonl").write_text("{}")
    work.clear(work.kept_path())
    assert names(pod) == ["model/.a.whole", "model/a"]


def test_without_an_etag_nothing_is_used_again(pod):
    storage, entries = Counting(a=b"abc"), [entry("a", b"abc", etag=None)]
    container(storage, entries)
    assert container(storage, entries) == []
    assert storage.brought == ["a", "a"]


def test_another_size_than_was_listed_is_no_file(pod, tmp_path):
    with pytest.raises(StorageError, match=r"^a has 3 bytes here, and 4 where it was listed$"):
        work.bring(Counting(a=b"abc"), entry("a", b"abcd"), tmp_path / "model" / "a")


def test_outside_a_pod_a_directory_is_fresh_and_gone_at_the_end(tmp_path, monkeypatch):
    monkeypatch.delenv("TRAINER_WORK_DIR", raising=False)
    with work.directory() as one, work.directory() as other:
        assert one != other
        work.bring(Counting(a=b"abc"), entry("a", b"abc"), tmp_path / "a")
    assert names(tmp_path) == ["a"]


def test_a_container_resumes_from_the_files_of_the_one_before(start, warm, s3, tmp_path, model_dir):
    """A whole run: the model and the checkpoint to resume are downloaded once, though three containers need them."""
    bucket = boto3.client("s3", endpoint_url=s3["AWS_ENDPOINT_URL"], aws_access_key_id="test",
                          aws_secret_access_key="test", region_name="us-east-1")  # fmt: skip
    for path in (model_dir / "tiny").iterdir():
        bucket.upload_file(str(path), "bucket", f"models/reused/{path.name}")
    work_dir = tmp_path / "w"
    work_dir.mkdir()
    job = {
        "framework": "meta",
        "processes": 0,
        "max_steps": 16,
        "save_steps": 5,
        "environment": s3 | {"TRAINER_WORK_DIR": str(work_dir), "MODEL_ID": "s3://bucket/models/reused"},
    }
    for step in (7, 6):
        with start("s3://bucket/reused", FIRST, **job) as pods:
            pods.wait_for_step(step)
            pods.processes[0].kill()
            pods.processes[0].wait()
    kept = {json.loads(note.read_text())["key"] for note in work_dir.rglob("*.whole")}
    assert any(key.startswith("checkpoints/step-000005/") for key in kept), kept
    with warm("s3://bucket/reused", FIRST, **job) as pods:
        assert pods.end() == [0], pods.log
        assert "resumes its own step 5" in pods.log
        assert "1 of 1 files are there already" in pods.log
    assert not list(work_dir.glob("train-*"))
