"""The file of CONFIG_PATH: where it comes from, what it may hold, and what is said of all else."""

import boto3
import moto
import pytest

from training import config_file, settings
from training.errors import UserError


@pytest.fixture
def config(tmp_path):
    """Writes a file and gives its path."""

    def write(content, name="config.yaml"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


@pytest.fixture
def bucket(monkeypatch):
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    with moto.mock_aws():
        client = boto3.client("s3", region_name="us-east-1")
        client.create_bucket(Bucket="bucket")
        yield client


@pytest.mark.parametrize("key", ["config.yaml", "deep/er/config"])
def test_an_object(bucket, key):
    bucket.put_object(Bucket="bucket", Key=key, Body=b"lr: 0.5")
    assert config_file.read(f"s3://bucket/{key}") == {"lr": 0.5}


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("s3://bucket/none.yaml", "CONFIG_PATH s3://bucket/none.yaml does not exist"),
        ("s3://other/config.yaml", "CONFIG_PATH names the bucket other, which does not exist"),
    ],
)
def test_an_object_that_is_not_there(bucket, uri, says):
    with pytest.raises(UserError, match=f"^{says}$"):
        config_file.read(uri)


def test_an_object_that_is_closed_to_the_job(bucket, monkeypatch):
    def denied(*_):
        raise PermissionError("config.yaml")

    monkeypatch.setattr("training.storage.Bucket.read", denied)
    with pytest.raises(UserError, match=r"^CONFIG_PATH s3://bucket/config.yaml may not be read by this job"):
        config_file.read("s3://bucket/config.yaml")


@pytest.mark.parametrize(
    "path", ["config.yaml", "s3://bucket", "s3://bucket/", "s3:///key", "s3://", "http://host/config.yaml"]
)
def test_what_is_neither_an_object_nor_an_absolute_path(path):
    with pytest.raises(UserError, match=r"^CONFIG_PATH must be an s3:// object or an absolute path, not"):
        config_file.read(path)


@pytest.mark.parametrize("name", ["config.json", "config.yaml", "config"])
def test_json_under_any_name(config, name):
    assert config_file.read(config('{\n\t"lr": 2e-5, "precision": "\\ud83d\\ude00"}', name)) == {
        "lr": 2e-5,
        "precision": "\N{GRINNING FACE}",
    }


def test_yaml_reads_plain_words_as_json_does(config):
    lines = """
        exponent: 2e-5   # PyYAML's own loader gives text
        number: -1.5E+3
        whole: -10
        nothing: null
        left_out:
        yes_no: no       # and false
        octal: 010       # and 8
        minutes: 1:30    # and 90
        day: 2026-01-02  # and a date
        quoted: "5"
        truth: true
        """
    assert config_file.read(config(lines)) == {
        "exponent": 2e-5,
        "number": -1500.0,
        "whole": -10,
        "nothing": None,
        "left_out": None,
        "yes_no": "no",
        "octal": "010",
        "minutes": "1:30",
        "day": "2026-01-02",
        "quoted": "5",
        "truth": True,
    }


@pytest.mark.parametrize(
    ("content", "name", "says"),
    [
        ("", "a.yaml", "must hold one mapping"),
        ("- lr", "a.yaml", "must hold one mapping"),
        ("[]", "a.json", "must hold one mapping"),
        ("lr: 1\n---\nlr: 2", "a.yaml", "cannot be read: neither JSON nor YAML: expected a single document"),
        ("lr: [", "a.yaml", "cannot be read: neither JSON nor YAML: .*line 1"),
        ("lr: 1", "a.json", "cannot be read: Expecting value"),
        (b"\xff\xfe\xfd", "a.yaml", "cannot be read: "),
        ("lr: 1\nlr: 2", "a.yaml", "cannot be read: lr is given twice"),
        ('{"lr": 1, "lr": 2}', "a.json", "cannot be read: lr is given twice"),
        ("lr: !!python/object/apply:os.system [ls]", "a.yaml", "cannot be read: .*could not determine a constructor"),
        ("lr: !!bool what", "a.yaml", "cannot be read: neither JSON nor YAML"),
        ("lr: !!timestamp what", "a.yaml", "cannot be read: neither JSON nor YAML"),
        ("? [lr]\n: 1", "a.yaml", "cannot be read: .*unhashable key"),
        pytest.param("[" * 100_000, "a.yaml", "cannot be read: ", id="deep YAML"),
        pytest.param("[" * 100_000, "a.json", "cannot be read: ", id="deep JSON"),
    ],
)
def test_what_is_no_mapping_is_refused_in_one_line(config, content, name, says):
    path = config(content, name)
    with pytest.raises(UserError, match=f"^CONFIG_PATH {path} {says}") as refused:
        config_file.read(path)
    assert "\n" not in str(refused.value)


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(UserError, match=f"^CONFIG_PATH {tmp_path} cannot be read: .*Is a directory"):
        config_file.read(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("max_step: 5", "max_step is no setting of hf: did you mean max_steps?"),
        ("1: 5", "1 is no setting"),
        ("framework: hf", "framework is no setting of hf; there are: max_steps, "),
        ("max_steps: '5'", 'max_steps must be a whole number, not "5"'),
        ("seed: 010", 'seed must be a whole number, not "010"'),
        ("lr: [1]", "lr must be a number, not a list"),
        ("lr: !!timestamp 2026-01-02", 'lr must be a number, not "2026-01-02"'),
        ("gradient_accumulation: 2\ngradient_accumulation_steps: 2", "gradient_accumulation_steps is given twice"),
        # Half a page that would be 10^18 words, if somebody wrote them out.
        pytest.param(
            "\n".join(["lr:", "- &a0 [x]", *(f"- &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 19))]),
            "lr must be a number, not a list",
            id="aliases of aliases",
        ),
    ],
)
def test_its_settings_are_refused_as_those_of_extra_args_are(config, content, says):
    path = config(content)
    with pytest.raises(UserError) as refused:
        settings.parse("{}", path)
    assert str(refused.value).startswith(f"CONFIG_PATH {path}: {says}")


def test_each_key_is_checked_also_where_extra_args_override_it(config):
    with pytest.raises(UserError, match="lr must be a number"):
        settings.parse('{"lr": 1}', config("lr: fast"))


def test_what_extra_args_set_to_null_is_as_if_the_file_had_not_said_it(config):
    path = config("max_steps: 5\nkeep_last: 2")
    found = settings.parse('{"max_steps": null, "num_epochs": 2, "keep_last": null}', path)
    assert (found.max_steps, found.num_epochs, found.keep_last) == (None, 2.0, None)
    with pytest.raises(UserError, match="exclude each other"):
        settings.parse('{"num_epochs": 2}', path)
