"""What a log costs in storage, and that it is there once and whole when followers die, are late or hear no answer.

The wire is faked, below botocore's retries.
"""

import contextlib
import functools
import hashlib
import io
import os
import random
import re
import urllib.parse
from unittest import mock

import pytest
from botocore.awsrequest import AWSRequest, AWSResponse
from botocore.exceptions import ConnectionClosedError

from training import layout, rank_log
from training.errors import StorageError
from training.rank_log import Shipper, StoredLog
from training.storage import open_storage

SUBMISSION = "01980001-0000-7000-8000-000000000000"
FIRST_KEY = layout.log_key(SUBMISSION, 1, 0)
DAY = 24 * 60 * 60  # seconds


class Raw(io.BytesIO):
    """As urllib3 hands a body over."""

    def stream(self, *_, **__):
        yield self.read()


class KilledError(BaseException):
    """The process is gone: nothing of it sees this."""


class S3:
    """The other end of the wire: a bucket that keeps versions."""

    def __init__(self):
        self.objects = {}  # key to body
        self.versions = []  # (key, size), in the order in which they came
        self.requests = []  # (operation, key)
        self.before = lambda operation, key: None
        self.after = lambda operation, key: None

    @functools.cached_property
    def storage(self):
        storage = open_storage("s3://bucket/run")
        storage.client.meta.events.register_first("before-send.s3.*", self.send)
        return storage

    def send(self, request, event_name, **_):
        operation = event_name.rpartition(".")[2]
        url = urllib.parse.urlsplit(request.url)
        query = dict(urllib.parse.parse_qsl(url.query))
        key = (query.get("prefix") or urllib.parse.unquote(url.path.removeprefix("/bucket/"))).removeprefix("run/")
        self.before(operation, key)
        self.requests.append((operation, key))
        status, body = getattr(self, operation)(key, request, query)
        self.after(operation, key)
        headers = {"etag": '"e"', "content-length": str(len(body))}
        return AWSResponse(request.url, status, headers, Raw(body))

    def PutObject(self, key, request, _):  # noqa: N802
        if request.headers.get("If-None-Match") and key in self.objects:
            return 412, b"<Error><Code>PreconditionFailed</Code></Error>"
        body = request.body if isinstance(request.body, bytes) else request.body.read()
        self.versions.append((key, len(body)))
        self.keep(key, body)
        return 200, b""

    def keep(self, key, body):
        self.objects[key] = body

    def GetObject(self, key, *_):  # noqa: N802
        if key in self.objects:
            return 200, self.objects[key]
        return 404, b"<Error><Code>NoSuchKey</Code></Error>"

    def ListObjectsV2(self, prefix, _, query):  # noqa: N802
        """Three keys a page."""
        after = query.get("continuation-token", "")
        keys = sorted(key for key in self.objects if key.startswith(prefix) and key > after)
        listed = "".join(
            f"<Contents><Key>run/{key}</Key><Size>{len(self.objects[key])}</Size><ETag>e</ETag></Contents>"
            for key in keys[:3]
        )
        token = f"<NextContinuationToken>{keys[2]}</NextContinuationToken>" if keys[3:] else ""
        more = f"<IsTruncated>{'true' if keys[3:] else 'false'}</IsTruncated>{token}"
        return 200, f"<ListBucketResult>{listed}{more}</ListBucketResult>".encode()

    def log(self):
        """As a reader puts it together."""
        parts = {layout.parse_log_part(FIRST_KEY, key): body for key, body in self.objects.items()}
        parts.pop(None, None)
        return b"".join(parts[part] for part in sorted(parts))

    def count(self, operation):
        return sum(name == operation for name, _ in self.requests)


@pytest.fixture
def s3(monkeypatch):
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    for name, value in {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL_S3": "http://s3.test",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    return S3()


@pytest.fixture
def file(tmp_path):
    file = os.open(tmp_path / "rank-0.log", os.O_RDWR | os.O_APPEND | os.O_CREAT)
    yield file
    os.close(file)


def whole(file):
    return os.pread(file, os.fstat(file).st_size, 0)


def stored_log(s3, file):
    """A follower's, in a process of its own."""
    return StoredLog(s3.storage, SUBMISSION, 1, 0, file)


# === what it costs ===


class Clock:
    """Time that passes when the shipper waits, and what the process prints meanwhile: 100 lines a second."""

    def __init__(self, file, seconds):
        self.file = file
        self.seconds = seconds
        self.now = 0.0
        self.printed = 0
        self.sha256 = hashlib.sha256()
        self.lines = b"".join(b"2026-11-24 03:00:00,%03d INFO step loss 2.3101\n" % line for line in range(99))

    def wait(self, seconds):
        """As of the event that ends the shipper: whether the process has ended."""
        while seconds > 0 and self.now < self.seconds:
            body = b"second %d\n" % self.now + self.lines
            os.write(self.file, body)
            self.sha256.update(body)
            self.printed += len(body)
            self.now += 1
            seconds -= 1
        return self.now >= self.seconds


class Counted(S3):
    """Keeps no bodies, as a day is half a gigabyte, and answers before a request is signed, which takes long."""

    def __init__(self):
        super().__init__()
        self.sha256 = hashlib.sha256()

    @functools.cached_property
    def storage(self):
        storage = open_storage("s3://bucket/run")
        storage.client.meta.events.register_first("before-call.s3.*", self.call)
        return storage

    def call(self, params, model, **_):
        request = AWSRequest("PUT", params["url"], params["headers"], params["body"])
        answer = self.send(request, model.name)
        return answer, {}

    def keep(self, key, body):
        self.objects[key] = b""
        self.sha256.update(body)


def ship(s3, file, clock):
    shipper = Shipper("s3://bucket/run", SUBMISSION, 0, file, [])
    shipper._storage = s3.storage
    shipper.attempt = 1
    shipper.ended = clock
    shipper.run()
    assert shipper.done


def test_a_day_of_a_hundred_lines_a_second_is_stored_once(s3, file):
    bucket, clock = Counted(), Clock(file, DAY)
    ship(bucket, file, clock)
    # Noncurrent versions are paid for like the others.
    assert sum(size for _, size in bucket.versions) <= 1.05 * clock.printed
    assert bucket.sha256.digest() == clock.sha256.digest()
    # Every ten seconds one, as when one object was written again and again.
    assert bucket.count("PutObject") <= DAY / 10
    assert len(bucket.requests) == bucket.count("PutObject"), "and no other request"
    keys = [key for key, _ in bucket.versions]
    assert keys == sorted(set(keys)), "in the order in which a reader takes them"
    parts = [layout.parse_log_part(FIRST_KEY, key) for key in keys]
    assert parts == list(range(len(keys))), "without a gap, so that the end can be searched for"


def test_a_silent_process_costs_one_request(s3, file):
    class Silence(Clock):
        def wait(self, seconds):
            self.now += seconds
            return self.now >= self.seconds

    ship(s3, file, Silence(file, DAY))
    assert (s3.requests, s3.objects) == ([("PutObject", FIRST_KEY)], {FIRST_KEY: b""})


def test_the_objects_of_a_talkative_process_have_bounded_sizes(s3, file):
    os.write(file, os.urandom(2 * layout.MAX_LOG_PART_BYTES + 1))
    stored_log(s3, file).write()
    assert [size for _, size in s3.versions] == [layout.MAX_LOG_PART_BYTES, layout.MAX_LOG_PART_BYTES, 1]
    assert s3.log() == whole(file)


# === what may go wrong ===


def lost(times):
    """Answers of writes that do not come, though each write is done."""
    left = iter(range(times))

    def after(operation, _):
        if operation == "PutObject" and next(left, None) is not None:
            raise ConnectionClosedError(endpoint_url="http://s3.test")

    return after


@pytest.mark.parametrize("times", [1, 8])
def test_a_write_whose_answer_is_lost_is_neither_done_twice_nor_lost(s3, file, times):
    """Of one the SDK asks again itself; of eight it gives up, and more is printed before the next write."""
    log = stored_log(s3, file)
    os.write(file, b"one\n")
    log.write()
    os.write(file, b"two\n")
    s3.after = lost(times)
    with contextlib.suppress(StorageError):
        log.write()
    s3.after = lambda *_: None
    os.write(file, b"three\n")
    log.write()
    os.write(file, b"four\n")
    log.write()
    assert s3.log() == whole(file)
    assert len(s3.versions) == 4


@pytest.mark.parametrize("waits", [[False, True], [True]], ids=["while the process runs", "when it ends"])
def test_what_a_container_left_is_stored_when_s3_answers_again(s3, file, tmp_path, waits):
    left = tmp_path / "attempt-1" / "rank-0.log"
    left.parent.mkdir()
    left.write_bytes(b"one\n")
    os.write(file, b"two\n")
    shipper = Shipper("s3://bucket/run", SUBMISSION, 0, file, [left])
    shipper._storage = s3.storage
    shipper.attempt = 2

    def fail(*_):
        raise ConnectionClosedError(endpoint_url="http://s3.test")

    def wait(_):
        assert not s3.objects
        s3.before = lambda *_: None
        shipper.ended.wait = lambda _: waits[-1]
        return waits[0]

    s3.before = fail
    shipper.ended = mock.Mock(wait=wait)
    shipper.run()
    assert s3.objects == {FIRST_KEY: b"one\n", layout.log_key(SUBMISSION, 2, 0): b"two\n"}
    assert not left.exists() and shipper.done


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("request_", range(6))
def test_what_a_killed_container_has_stored_is_not_stored_again(s3, file, when, request_, monkeypatch):
    monkeypatch.setattr(rank_log, "PART", 10)
    for number in range(5):
        os.write(file, b"line %d\n" % number * 2)
    killed = stored_log(s3, file)

    def kill(*_):
        if len(s3.requests) >= request_ + (when == "after"):
            raise KilledError

    setattr(s3, when, kill)
    with pytest.raises(KilledError):
        killed.write()
        killed.write()  # the last request is none of the first call's
        s3.before("", "")
        s3.after("", "")
    s3.before = s3.after = lambda *_: None
    late = stored_log(s3, file)
    late.catch_up()
    late.write()
    assert s3.log() == whole(file)
    keys = [key for key, _ in s3.versions]
    assert len(keys) == len(set(keys)), "nothing is written again"
    assert sum(size for _, size in s3.versions) == len(whole(file))


@pytest.mark.parametrize("seed", range(20))
def test_followers_that_die_or_are_late_leave_each_byte_once(s3, file, seed, monkeypatch):
    """Any number of followers of one file, at any two requests of each other, with answers that are lost."""
    monkeypatch.setattr(rank_log, "PART", 16)
    chance = random.Random(seed)
    followers = [stored_log(s3, file)]

    def act(log):
        followers.remove(log)  # it does one thing at a time
        try:
            if chance.random() < 0.3:
                log.catch_up()
            log.write()
        except StorageError:
            pass
        except KilledError:
            return
        followers.append(log)

    def before(*_):
        if followers and chance.random() < 0.3:
            act(chance.choice(followers))

    def after(*_):
        if chance.random() < 0.1:
            raise ConnectionClosedError(endpoint_url="http://s3.test")
        if chance.random() < 0.05:
            raise KilledError

    s3.before, s3.after = before, after
    for _ in range(15):
        os.write(file, b"".join(b"line %d\n" % chance.randrange(10**6) for _ in range(chance.randrange(4))))
        if not followers or chance.random() < 0.3:
            followers.append(stored_log(s3, file))
        act(followers[-1])
    s3.before = s3.after = lambda *_: None
    for log in [*followers, stored_log(s3, file)]:
        log.write()
    assert s3.log() == whole(file)
    keys = [key for key, _ in s3.versions]
    assert len(keys) == len(set(keys)), "nothing is written again"


def test_a_log_that_was_written_anew_while_it_grew_goes_on(s3, file):
    """As earlier trainers wrote: full objects, and one that was not yet as long as the file."""
    monkey = b"".join(b"line %d\n" % number for number in range(300))
    os.write(file, monkey)
    old = {FIRST_KEY: monkey[:1000], f"{FIRST_KEY}.000001": monkey[1000:1700]}
    s3.objects |= old
    log = stored_log(s3, file)
    log.catch_up()
    log.write()
    assert s3.log() == monkey
    assert s3.versions == [(f"{FIRST_KEY}.000002", len(monkey) - 1700)]


@pytest.mark.parametrize(
    "others",
    [
        {"": b"another's\n"},
        {"": b"file\n", ".000001": b"another's\n"},
        {"": b"", ".000003": b"x" * 100},
        {".000001": b"x" * (layout.MAX_LOG_PART_BYTES + 1)},
        {".txt": b"no part", ".000001.bak": b"no part"},
    ],
)
def test_what_others_wrote_there_is_kept_and_nothing_is_lost(s3, file, others):
    s3.objects |= {FIRST_KEY + end: body for end, body in others.items()}
    os.write(file, b"file\nlines\n")
    log = stored_log(s3, file)
    log.write()
    os.write(file, b"more\n")
    log.write()
    again = stored_log(s3, file)
    again.catch_up()
    again.write()
    assert {end: s3.objects[FIRST_KEY + end] for end in others} == others
    assert re.fullmatch(rb"(?s).*file\n.*lines\n.*more\n.*", s3.log())
    large = [key for key, body in s3.objects.items() if len(body) > layout.MAX_LOG_PART_BYTES]
    assert not [key for operation, key in s3.requests if operation == "GetObject" and key in large]
