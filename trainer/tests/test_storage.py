"""One contract, two kinds of storage."""

import os
import shutil
import tempfile
import threading

import boto3
import moto
import pytest

from training.errors import UserError
from training.storage import Entry, Folder, open_storage


@pytest.fixture(params=["file", "s3"])
def storage(request, tmp_path, monkeypatch):
    if request.param == "file":
        yield open_storage(f"file://{tmp_path}/store/")
        return
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    with moto.mock_aws():
        boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="bucket")
        yield open_storage("s3://bucket/some/prefix/")


def keys(storage, prefix=""):
    return [entry.key for entry in storage.list(prefix)]


def test_reads_what_was_written(storage):
    storage.write("a/b", b"one")
    storage.write("a/b", b"two")
    assert storage.read("a/b") == b"two"
    with pytest.raises(FileNotFoundError):
        storage.read("a/c")


def test_the_first_to_write_wins(storage):
    storage.write("marker", b"mine", only_if_absent=True)
    with pytest.raises(FileExistsError):
        storage.write("marker", b"yours", only_if_absent=True)
    assert storage.read("marker") == b"mine"
    assert keys(storage) == ["marker"]


def test_who_replaces_must_know_what_is_there(storage):
    storage.write("marker", b"one")
    storage.replace("marker", b"one", b"two")
    for old in (b"one", b"twice", b""):
        with pytest.raises(FileExistsError):
            storage.replace("marker", old, b"three")
    assert storage.read("marker") == b"two"
    with pytest.raises(FileExistsError):
        storage.replace("none", b"", b"three")
    assert keys(storage) == ["marker"]


def test_who_removes_must_know_what_is_there(storage):
    storage.write("marker", b"one")
    storage.remove("marker", b"another")
    storage.remove("none", b"")
    assert keys(storage) == ["marker"]
    storage.remove("marker", b"one")
    assert keys(storage) == []


def test_files_travel_both_ways(storage, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(b"x" * 100_000)
    storage.upload(source, "deep/er/file")
    storage.download("deep/er/file", tmp_path / "new" / "folder" / "copy")
    assert (tmp_path / "new" / "folder" / "copy").read_bytes() == source.read_bytes()
    with pytest.raises(FileNotFoundError):
        storage.download("deep/er/none", tmp_path / "none")


def test_lists_by_prefix_and_not_only_by_folder(storage):
    for key in ("checkpoint-1/a", "checkpoint-10/a", "checkpoint-1/b/c", "other"):
        storage.write(key, key.encode())
    assert keys(storage, "checkpoint-1/") == ["checkpoint-1/a", "checkpoint-1/b/c"]
    assert keys(storage, "checkpoint-1") == ["checkpoint-1/a", "checkpoint-1/b/c", "checkpoint-10/a"]
    assert keys(storage) == ["checkpoint-1/a", "checkpoint-1/b/c", "checkpoint-10/a", "other"]
    assert keys(storage, "nothing/") == []
    assert [entry.size for entry in storage.list("other")] == [5]


def test_deletes_what_is_there(storage):
    for number in range(3):
        storage.write(f"folder/{number}", b"")
    storage.delete(["folder/0", "folder/1", "folder/none"])
    assert keys(storage) == ["folder/2"]
    storage.delete([])
    storage.delete(["folder/2"])
    assert keys(storage) == []


def test_deletes_more_than_one_request_takes(storage):
    for number in range(1001):
        storage.write(f"{number:04d}", b"")
    storage.delete(keys(storage))
    assert keys(storage) == []


def test_a_bucket_gives_etags_with_their_quotes(monkeypatch):
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with moto.mock_aws():
        boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="bucket")
        storage = open_storage("s3://bucket")
        storage.write("key", b"hello")
        assert storage.list("") == [Entry(key="key", size=5, etag='"5d41402abc4b2a76b9719d911017c592"')]


def test_a_bucket_that_is_not_there_or_closed_is_told_apart(monkeypatch):
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with moto.mock_aws():
        for verb in (lambda bucket: bucket.read("key"), lambda bucket: bucket.list(""), lambda b: b.write("key", b"")):
            with pytest.raises(UserError, match=r"^MODEL_ID names the bucket none, which does not exist$"):
                verb(open_storage("s3://none/model", "MODEL_ID"))
        boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="bucket")
        iam = boto3.client("iam", region_name="us-east-1")
        iam.create_user(UserName="nobody")
        key = iam.create_access_key(UserName="nobody")["AccessKey"]
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
        monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it would keep the credentials that it began with
        storage = open_storage("s3://bucket")
        with moto.core.enable_iam_authentication(), pytest.raises(PermissionError):
            storage.read("key")


def test_of_many_writers_one_is_first(tmp_path):
    storage = Folder(tmp_path)
    won = []

    def write(number):
        try:
            storage.write("marker", str(number).encode(), only_if_absent=True)
        except FileExistsError:
            return
        won.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [storage.read("marker")] == [str(number).encode() for number in won]
    assert [path.name for path in tmp_path.iterdir()] == ["marker"]


def test_a_file_that_is_being_written_is_not_there(tmp_path):
    storage = Folder(tmp_path)
    with storage._part(tmp_path / "checkpoints" / "a") as part:
        part.write_bytes(b"half")
        assert storage.list("") == []


def test_what_another_process_deletes_meanwhile_is_no_error(tmp_path, monkeypatch):
    storage = Folder(tmp_path / "run")
    storage.write("folder/there", b"")
    walk = os.walk
    monkeypatch.setattr(os, "walk", lambda top: [(folder, [], [*names, "gone"]) for folder, _, names in walk(top)])
    assert keys(storage) == ["folder/there"]

    make, deletions = tempfile.mkstemp, [["folder/there"], ["folder/again"]]

    def racing(**where):
        if deletions:
            storage.delete(deletions.pop())
            shutil.rmtree(where["dir"], ignore_errors=True)
        return make(**where)

    monkeypatch.setattr(tempfile, "mkstemp", racing)
    storage.write("folder/again", b"body")
    assert storage.read("folder/again") == b"body"


@pytest.mark.parametrize("uri", ["s3://", "file://relative", "http://host/x", "/path", "bucket/key"])
def test_other_uris_are_refused(uri):
    with pytest.raises(UserError, match="no URI"):
        open_storage(uri)
