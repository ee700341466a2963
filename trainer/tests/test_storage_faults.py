"""A bucket on a bad day: throttled, cut off in the middle, out of order. The wire is faked below botocore's retries."""

import io

import boto3
import moto
import pytest
from botocore.awsrequest import AWSResponse
from botocore.exceptions import ClientError, ConnectionClosedError, ReadTimeoutError

from training import storage as storages
from training.errors import AccessDeniedError, StorageError
from training.storage import open_storage

SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


class Wire:
    """Lets requests through to the bucket, except where it is told not to."""

    def __init__(self, client):
        self.faults = []  # (operation, what to do), the first that fits is used up
        self.seen = []
        client.meta.events.register_first("before-send.s3.*", self.send)

    def send(self, request, event_name, **_):
        operation = event_name.rpartition(".")[2]
        self.seen.append((operation, request))
        for fault in self.faults:
            if fault[0] == operation:
                self.faults.remove(fault)
                return fault[1](request)
        return None

    def count(self, operation):
        return sum(name == operation for name, _ in self.seen)


def answer(status, body, headers=None):
    return lambda request: AWSResponse(request.url, status, headers or {}, Raw(body))


def closed(request):
    raise ConnectionClosedError(endpoint_url=request.url)


def timed_out(request):
    raise ReadTimeoutError(endpoint_url=request.url)


class Raw(io.BytesIO):
    """As urllib3 hands a body over."""

    def stream(self, *_, **__):
        yield self.read()


def short(body):
    """An answer that ends before its body does."""
    return answer(200, body[:-10], {"content-length": str(len(body)), "etag": '"e"'})


FAULTS = {
    "throttled": answer(503, SLOW_DOWN),
    "an error inside": answer(500, b"<Error><Code>InternalError</Code></Error>"),
    "a lost connection": closed,
    "no answer": timed_out,
}


@pytest.fixture
def bucket(monkeypatch):
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with moto.mock_aws():
        boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="bucket")
        storage = open_storage("s3://bucket/runs")
        storage.wire = Wire(storage.client)
        yield storage


VERBS = {
    "GetObject": lambda storage, path: storage.read("there") == b"body",
    "PutObject": lambda storage, path: storage.write("new", b"body") or storage.read("new") == b"body",
    "ListObjectsV2": lambda storage, path: [entry.key for entry in storage.list("")] == ["there"],
    "DeleteObjects": lambda storage, path: storage.delete(["there"]) or storage.list("") == [],
    "HeadObject": lambda storage, path: storage.download("there", path) or path.read_bytes() == b"body",
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("operation", VERBS)
def test_each_verb_survives_what_passes(bucket, tmp_path, operation, fault):
    bucket.write("there", b"body")
    bucket.wire.faults = [(operation, FAULTS[fault])] * 3
    assert VERBS[operation](bucket, tmp_path / "file")
    assert bucket.wire.faults == []


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("operation", VERBS)
def test_what_does_not_pass_is_an_error_of_the_storage(bucket, tmp_path, operation, fault):
    bucket.write("there", b"body")
    bucket.wire.faults = [(operation, FAULTS[fault])] * 100
    with pytest.raises(StorageError):
        VERBS[operation](bucket, tmp_path / "file")
    assert len(bucket.wire.faults) > 50, "it gives up"


@pytest.mark.parametrize("other", [b"another's", None], ids=["replaced", "deleted"])
def test_what_changes_between_reading_and_replacing_is_not_replaced(bucket, monkeypatch, other):
    bucket.write("there", b"old")
    get = bucket._get

    def race(key):
        answer = get(key)
        bucket.delete(["there"]) if other is None else bucket.write("there", other)
        return answer

    monkeypatch.setattr(bucket, "_get", race)
    with pytest.raises(FileExistsError):
        bucket.replace("there", b"old", b"new")
    assert [get(entry.key)[0] for entry in bucket.list("")] == ([] if other is None else [other])


@pytest.mark.parametrize("verb", ["write", "replace"])
def test_a_conflict_of_two_conditions_is_tried_again(bucket, monkeypatch, verb):
    bucket.write("there", b"old")
    calls = {
        "write": lambda: bucket.write("new", b"new", only_if_absent=True) or bucket.read("new"),
        "replace": lambda: bucket.replace("there", b"old", b"new") or bucket.read("there"),
    }
    put, left = bucket.client.put_object, 3

    def conflicting(**request):  # not by the wire, which lets even a request through that it answers itself
        nonlocal left
        left -= 1
        if left >= 0:
            raise ClientError({"Error": {"Code": "ConditionalRequestConflict"}}, "PutObject")
        return put(**request)

    monkeypatch.setattr(bucket.client, "put_object", conflicting)
    assert calls[verb]() == b"new"
    left = 100
    with pytest.raises(StorageError):
        bucket.write("another", b"", only_if_absent=True)
    assert left > 90, "it gives up"


def test_a_body_that_breaks_off_is_read_again(bucket, tmp_path):
    bucket.write("there", b"x" * 100)
    bucket.wire.faults = [("GetObject", short(b"x" * 100))] * 3
    assert bucket.read("there") == b"x" * 100
    bucket.wire.faults = [("GetObject", short(b"x" * 100))] * 3
    bucket.download("there", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"x" * 100
    bucket.wire.faults = [("GetObject", short(b"x" * 100))] * 100
    with pytest.raises(StorageError):
        bucket.read("there")


def test_a_body_that_does_not_fit_its_checksum_is_read_again(bucket):
    bucket.write("there", b"right")
    headers = {"content-length": "5", "x-amz-checksum-crc32": "AAAAAA=="}
    bucket.wire.faults = [("GetObject", answer(200, b"wrong", headers))] * 2
    assert bucket.read("there") == b"right"
    assert bucket.wire.faults == []


@pytest.mark.parametrize("fault", FAULTS)
def test_a_large_file_travels_in_parts_and_a_part_that_fails_is_sent_again(bucket, tmp_path, fault):
    body = bytes(range(256)) * (20 * 1024 * 1024 // 256)
    source = tmp_path / "source"
    source.write_bytes(body)
    bucket.wire.faults = [("UploadPart", FAULTS[fault])] * 4
    bucket.upload(source, "large")
    assert bucket.wire.count("UploadPart") == 3 + 4
    assert [(entry.key, entry.size) for entry in bucket.list("")] == [("large", len(body))]
    bucket.wire.faults = [("GetObject", FAULTS[fault])] * 2
    bucket.download("large", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == body
    assert bucket.wire.count("GetObject") > 2, "in parts too"


@pytest.mark.parametrize("operation", ["UploadPart", "CompleteMultipartUpload"])
def test_a_large_file_that_cannot_be_sent_leaves_nothing(bucket, tmp_path, operation):
    source = tmp_path / "source"
    source.write_bytes(b"x" * (20 * 1024 * 1024))
    bucket.wire.faults = [(operation, closed)] * 100
    with pytest.raises(StorageError):
        bucket.upload(source, "large")
    assert bucket.list("") == []
    assert bucket.wire.count("AbortMultipartUpload") == 1
    assert "Uploads" not in bucket.client.list_multipart_uploads(Bucket="bucket")


def test_what_is_sent_carries_a_checksum(bucket, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(b"x" * (20 * 1024 * 1024))
    bucket.write("small", b"x")
    bucket.upload(source, "large")
    for operation in ("PutObject", "UploadPart"):
        headers = [str(dict(request.headers)).lower() for name, request in bucket.wire.seen if name == operation]
        assert headers
        assert all("x-amz-checksum-crc32" in header for header in headers), operation


def test_of_many_objects_those_that_were_not_deleted_are_tried_again(bucket):
    for key in ("a", "b", "c"):
        bucket.write(key, b"")
    slow = b"<DeleteResult><Error><Key>runs/b</Key><Code>SlowDown</Code></Error></DeleteResult>"
    bucket.client.delete_objects(Bucket="bucket", Delete={"Objects": [{"Key": "runs/a"}, {"Key": "runs/c"}]})
    bucket.wire.seen.clear()
    bucket.wire.faults = [("DeleteObjects", answer(200, slow))] * 2
    bucket.delete(["a", "b", "c"])
    assert bucket.list("") == []
    bodies = [bytes(request.body).decode() for name, request in bucket.wire.seen if name == "DeleteObjects"]
    assert [body.count("<Key>") for body in bodies] == [3, 1, 1]


def test_an_object_that_may_not_be_deleted_is_not_tried_again(bucket):
    denied = (
        b"<DeleteResult><Error><Key>runs/a</Key><Code>AccessDenied</Code><Message>no</Message></Error></DeleteResult>"
    )
    bucket.wire.faults = [("DeleteObjects", answer(200, denied))]
    with pytest.raises(StorageError, match="could not delete runs/a: no"):
        bucket.delete(["a"])
    assert bucket.wire.count("DeleteObjects") == 1


@pytest.mark.parametrize(
    "error",
    [
        b"<Error><Code>InvalidObjectState</Code><Message>archived</Message></Error>",
        b"<Error><Code>InvalidRequest</Code><Message>stored using a form of Server Side Encryption</Message></Error>",
    ],
)
def test_what_nobody_is_given_is_told_from_what_fails(bucket, error):
    bucket.wire.faults = [("GetObject", answer(400, error))]
    with pytest.raises(storages.WithheldError):
        bucket.read("there")


def test_what_is_refused_is_not_tried_again(bucket):
    bucket.wire.faults = [("GetObject", answer(403, b"<Error><Code>AccessDenied</Code></Error>"))]
    with pytest.raises(AccessDeniedError):
        bucket.read("there")
    assert bucket.wire.count("GetObject") == 1


def test_a_folder_that_fails_is_an_error_of_the_storage_too(tmp_path):
    (tmp_path / "file").write_text("in the way")
    folder = open_storage(f"file://{tmp_path}")
    for action in (
        lambda: folder.write("file/x", b""),
        lambda: folder.upload(tmp_path / "file", "file/x"),
        lambda: folder.read("file/x"),
        lambda: folder.download("file/x", tmp_path / "copy"),
    ):
        with pytest.raises(StorageError):
            action()
    with pytest.raises(StorageError):
        storages.Folder(tmp_path / "file").write("x", b"")
