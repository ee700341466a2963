"""Which objects a data set is, and what is said when a later start finds others."""

import json
import re
from pathlib import Path

import boto3
import moto
import pytest

from training import layout
from training.data.listing import base_of, find, matches, pin, streams_before
from training.errors import UserError
from training.storage import Entry, WithheldError, open_storage

SUBMISSION = "01980001-0000-7000-8000-000000000001"
FORMAT = Path(__file__).parents[2] / "functions/run/FORMAT.md"


@pytest.fixture
def folder(tmp_path):
    """Makes the files of a data set, and gives its URI with a slash."""

    def make(*keys):
        for key in keys:
            path = tmp_path / "data" / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text('{"text": "a"}\n')
        return f"file://{tmp_path}/data/"

    return make


def keys(uri):
    return [entry.key for entry in find(uri)]


@pytest.mark.parametrize(
    ("pattern", "key", "fits"),
    [
        ("train-*.jsonl", "train-00000-of-00001.jsonl", True),
        ("train-*.jsonl", "deeper/train-0.jsonl", False),
        ("train-*.jsonl", "train-a/b.jsonl", False),
        ("**/train-*.jsonl", "deeper/and/train-0.jsonl", True),
        ("**/train-*.jsonl", "train-0.jsonl", True),
        ("**/train-*.jsonl", "deeper/retrain-0.jsonl", False),
        ("**train**", "deeper/train/0.jsonl", True),
        ("*/train.jsonl", "en/train.jsonl", True),
        ("?.jsonl", "a.jsonl", True),
        ("?.jsonl", "ab.jsonl", False),
        ("a.jsonl*", "aXjsonl", False),
        ("[a]*", "a", False),
    ],
)
def test_a_pattern(pattern, key, fits):
    assert matches(pattern, key) is fits


def test_a_pattern_chooses_objects(folder):
    uri = folder(
        "data/train-0.jsonl", "data/train-1.jsonl", "data/test-0.jsonl", "data/.train-2.jsonl", "x/train-3.jsonl"
    )
    assert keys(f"{uri}data/train-*.jsonl") == ["train-0.jsonl", "train-1.jsonl"]
    assert keys(f"{uri}*/train-*") == ["data/train-0.jsonl", "data/train-1.jsonl", "x/train-3.jsonl"]
    assert base_of(f"{uri}data/train-*.jsonl") == f"{uri}data/"
    assert base_of(f"{uri}*/train-?") == uri
    assert base_of(f"{uri}one.jsonl") == base_of(uri) == uri
    with pytest.raises(UserError, match=r"data/\*\.json matches none of the 4 objects that share its prefix$"):
        find(f"{uri}data/*.json")


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (
            ["data/train-00000-of-00001.jsonl", "data/validation-00000-of-00001.jsonl", "data/test-00000.jsonl"],
            "holds several splits: test (data/test-00000.jsonl), train (data/train-00000-of-00001.jsonl), validation "
            "(data/validation-00000-of-00001.jsonl). Choose one with a pattern, such as "
            "URIdata/train-*-of-*.jsonl, or end it with ** to train on all of them",
        ),
        (["train.jsonl", "dev.jsonl"], "train (train.jsonl), validation (dev.jsonl). Choose"),
        (["train/a.jsonl", "eval/a.jsonl"], "test (eval/a.jsonl), train (train/a.jsonl). Choose"),
        (["my_train_2.jsonl", "my_VAL_2.jsonl"], "train (my_train_2.jsonl), validation"),
        (["val/x.jsonl", "test/x.jsonl"], "such as URItest/**, or"),
        (["en/train/a.jsonl", "en/train/b.jsonl", "en/test/a.jsonl"], "such as URIen/train/**, or"),
    ],
)
def test_several_splits_are_refused(folder, names, says):
    uri = folder(*names)
    with pytest.raises(UserError) as refused:
        find(uri)
    assert says.replace("URI", uri) in str(refused.value)
    assert keys(f"{uri}**") == sorted(names), "the way out that it names"
    assert [entry.key for entry in find(uri, several_splits=True)] == sorted(names), "as an earlier attempt did"


@pytest.mark.parametrize(
    "names",
    [
        ["train/a.jsonl", "train/b.jsonl", "more.jsonl"],
        ["latest.jsonl", "training_data.jsonl", "contest.jsonl", "devices.jsonl", "retrain.jsonl"],
        ["test-project/train-1.jsonl", "test-project/train-2.jsonl"],
        ["validation/a.jsonl"],
    ],
)
def test_one_split_is_none_to_refuse(folder, names):
    assert keys(folder(*names)) == sorted(names)


def test_the_objects_are_pinned_at_the_first_start(tmp_path, folder, caplog):
    """After a report of a run that went on with a file that was added meanwhile."""
    storage = open_storage(f"file://{tmp_path}/run")
    uri = folder("2026-11-01.jsonl", "2026-11-03.jsonl")
    pin(storage, SUBMISSION, uri, find(uri), 2)
    pinned = json.loads(storage.read(layout.data_key(SUBMISSION)))
    assert pinned == {
        "uri": uri,
        "streams": 2,
        "objects": {"2026-11-01.jsonl": [14, None], "2026-11-03.jsonl": [14, None]},
    }
    pin(storage, SUBMISSION, uri, find(uri))

    # What was added since is left out.
    folder("2026-11-02.jsonl")
    kept, streams = pin(storage, SUBMISSION, uri, find(uri), 3)
    assert streams == 2, "as it began"
    assert [entry.key for entry in kept] == ["2026-11-01.jsonl", "2026-11-03.jsonl"]
    assert (
        "1 objects were added since this submission began, such as 2026-11-02.jsonl: they are left out" in caplog.text
    )

    (tmp_path / "data/2026-11-01.jsonl").write_text('{"text": "another"}\n')
    (tmp_path / "data/2026-11-03.jsonl").unlink()
    with pytest.raises(UserError) as refused:
        pin(storage, SUBMISSION, uri, find(uri))
    assert str(refused.value) == (
        f"DATASET_URI {uri} is not what this submission began with: 1 gone (2026-11-03.jsonl), 1 changed "
        "(2026-11-01.jsonl). Put it back as it was, or submit the job again, with resume to train on with the new data"
    )
    assert len(pin(storage, SUBMISSION.replace("1", "2"), uri, find(uri))[0]) == 2
    assert json.loads(storage.read(layout.data_key(SUBMISSION))) == pinned


def test_another_submission_takes_over_in_how_many_streams_the_data_are_read(tmp_path, folder):
    storage = open_storage(f"file://{tmp_path}/run")
    uri = folder("1.jsonl")
    assert streams_before(storage, SUBMISSION, uri, find(uri)) is None
    pin(storage, SUBMISSION, uri, find(uri), 2)
    assert streams_before(storage, SUBMISSION, uri, find(uri)) == 2
    assert streams_before(storage, SUBMISSION, f"{uri}other/", find(uri)) is None, "of other data"
    assert streams_before(storage, SUBMISSION, uri, []) is None
    for other in (None, True, -1, 2**20, "2", [2]):
        storage.write(layout.data_key(SUBMISSION), json.dumps({"uri": uri, "streams": other, "objects": {}}).encode())
        assert streams_before(storage, SUBMISSION, uri, find(uri)) is None
        if other is not None:
            with pytest.raises(UserError, match="cannot be read"):
                pin(storage, SUBMISSION, uri, find(uri), 2)


def test_the_pin_is_what_the_specification_says(tmp_path):
    example = re.search("```json data\n(.*?)```", FORMAT.read_text(), re.S)[1]
    said = json.loads(example)
    assert base_of(said["uri"]) == "s3://data/shards/"
    entries = [Entry(key=key, size=size, etag=etag) for key, (size, etag) in said["objects"].items()]
    storage = open_storage(f"file://{tmp_path}/run")
    pin(storage, SUBMISSION, said["uri"], entries)
    assert json.loads(storage.read(layout.data_key(SUBMISSION))) == said
    storage.write(layout.data_key(SUBMISSION), example.encode())
    assert pin(storage, SUBMISSION, said["uri"], entries) == (entries, said["streams"])


def test_where_streams_are_missing_a_start_takes_its_own(tmp_path):
    storage = open_storage(f"file://{tmp_path}/run")
    storage.write(layout.data_key(SUBMISSION), b'{"uri": "file:///data/a", "objects": {}}')
    assert pin(storage, SUBMISSION, "file:///data/a", [], 3) == ([], 3)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"objects": []}', b'{"objects": {"a": 5}}', b"[" * 9999])
def test_a_damaged_pin_is_refused(tmp_path, body):
    storage = open_storage(f"file://{tmp_path}/run")
    storage.write(layout.data_key(SUBMISSION), body)
    with pytest.raises(UserError, match=r"config/.*/data.json cannot be read"):
        pin(storage, SUBMISSION, "file:///data/a", [Entry(key="a", size=1, etag=None)])


def test_a_pin_that_nobody_is_given_is_refused(tmp_path, monkeypatch):
    """Another start would not be given it either."""
    storage, key = open_storage(f"file://{tmp_path}/run"), layout.data_key(SUBMISSION)
    pin(storage, SUBMISSION, "file:///data/a", [])

    def withheld(key):
        raise WithheldError(f"{key}: the object's storage class is GLACIER")

    monkeypatch.setattr(storage, "read", withheld)
    with pytest.raises(
        UserError, match=f"^{key} cannot be read; it lists .*: {key} is archived, .* submit the job again$"
    ):
        pin(storage, SUBMISSION, "file:///data/a", [])


def test_in_a_bucket_the_same_size_is_not_the_same_object(monkeypatch):
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    with moto.mock_aws():
        client = boto3.client("s3", region_name="us-east-1")
        client.create_bucket(Bucket="bucket")
        storage = open_storage("s3://bucket/run")
        for uri in ("s3://bucket/data/", "s3://bucket/data/one.jsonl", "s3://bucket/data/*.jsonl"):
            client.put_object(Bucket="bucket", Key="data/one.jsonl", Body=b'{"text": "a"}')
            pin(storage, SUBMISSION, uri, find(uri))
            client.put_object(Bucket="bucket", Key="data/one.jsonl", Body=b'{"text": "b"}')
            with pytest.raises(UserError, match=r"1 changed \(one\.jsonl\)"):
                pin(storage, SUBMISSION, uri, find(uri))
            storage.delete([layout.data_key(SUBMISSION)])
        for uri in ("s3://none/data/", "s3://none/data/*"):
            with pytest.raises(UserError, match=r"^DATASET_URI names the bucket none, which does not exist$"):
                find(uri)
        with pytest.raises(UserError, match=r"^DATASET_URI .* does not exist"):
            find("s3://none/one.jsonl")
