"""What makes files a checkpoint, and which one a submission starts from."""

import collections
import dataclasses
import json
import logging
import threading
import types

import pytest

from training import layout
from training.checkpoint import resume as resuming
from training.checkpoint.checkpoints import Checkpoints
from training.checkpoint.marker import File, parse
from training.disk import Disk
from training.distributed import World
from training.errors import SupersededError, UserError
from training.signals import Stop
from training.storage import Folder, WithheldError

OLD, OTHER, MINE = (f"0198000{number}-0000-7000-8000-000000000000" for number in (1, 2, 3))


@pytest.fixture
def storage(tmp_path):
    return Folder(tmp_path / "run")


@pytest.fixture
def checkpoints(storage, tmp_path):
    """Makes a submission's view of the run; each is as its next attempt would have it."""
    attempts = collections.Counter()

    def make(submission, keep_last=None):
        attempts[submission] += 1
        world = World(rank=0, size=1, local_rank=0, node=0, gpu=False, stop=Stop(), attempt=attempts[submission])
        return Checkpoints(storage, world, framework="hf", submission=submission, keep_last=keep_last)

    return make


def save(checkpoints, tmp_path, *steps, loss=1.5):
    for step in steps:
        folder = tmp_path / f"checkpoint-{step}"
        (folder / "sub").mkdir(parents=True)
        (folder / "weights").write_text(f"{checkpoints.submission} {step}")
        (folder / "sub" / "rng").write_text("r")
        checkpoints.begin(folder, step=step, metrics={"loss": loss})
        checkpoints.finish()
        assert not folder.exists()


def trained(checkpoints, tmp_path, submission, *steps, resume=False, step=None):
    """A submission that starts and saves these steps; returns the step from which it started."""
    one = checkpoints(submission)
    start = one.choose(resume, step)
    save(one, tmp_path, *steps)
    return start.step if start else 0


def weights(storage, step):
    (file,) = (file for file in parse(storage.read(layout.marker_key(step))).files if file.path.endswith("/weights"))
    return layout.CHECKPOINTS + file.path


def start(checkpoints, submission, resume, step=None):
    chosen = checkpoints(submission).choose(resume, step)
    return (chosen.submission, chosen.step) if chosen else None


def test_saving_writes_files_and_a_marker_of_them(checkpoints, storage, tmp_path):
    trained(checkpoints, tmp_path, MINE, 500)
    assert [entry.key for entry in storage.list("")] == [
        f"checkpoints/checkpoint-500/{MINE}-1/sub/rng",
        f"checkpoints/checkpoint-500/{MINE}-1/weights",
        "checkpoints/step-000500.json",
    ]
    body = json.loads(storage.read("checkpoints/step-000500.json"))
    assert body.pop("saved_at") > 1.7e9
    assert body == {
        "layout": 1,
        "framework": "hf",
        "step": 500,
        "submission": MINE,
        "attempt": 1,
        "parent": None,
        "world_size": 1,
        "files": [
            {"path": f"checkpoint-500/{MINE}-1/sub/rng", "size": 1},
            {"path": f"checkpoint-500/{MINE}-1/weights", "size": 40},
        ],
        "metrics": {"loss": 1.5},
        "metadata": {"hf_checkpoint_dir": f"checkpoints/checkpoint-500/{MINE}-1"},
    }


def test_more_files_than_a_marker_can_list_are_refused(checkpoints, storage, tmp_path, monkeypatch):
    monkeypatch.setattr("training.checkpoint.saving.MAX_BYTES", 100)
    with pytest.raises(UserError, match="a checkpoint of 2 files is more than a marker can list"):
        save(checkpoints(MINE), tmp_path, 1)
    assert storage.list("checkpoints/step-") == []


def test_a_loss_that_is_no_number_is_null(checkpoints, storage, tmp_path):
    one = checkpoints(MINE)
    save(one, tmp_path, 1, loss=float("nan"))
    assert parse(storage.read(layout.marker_key(1))).metrics == {"loss": None}


def test_an_empty_run_starts_at_step_zero(checkpoints):
    assert start(checkpoints, MINE, resume=True) is None


def test_a_restart_goes_on_from_its_own_newest_whatever_it_was_told(checkpoints, tmp_path):
    trained(checkpoints, tmp_path, OTHER, 9, 10)
    trained(checkpoints, tmp_path, MINE, 100)  # a newer one does not change that
    trained(checkpoints, tmp_path, OLD, 200)  # nor a higher step
    for resume in (False, True):
        assert start(checkpoints, OTHER, resume) == (OTHER, 10)


def test_before_it_has_one_of_its_own_a_submission_does_as_told(checkpoints, tmp_path):
    trained(checkpoints, tmp_path, OTHER, 10, 20)
    assert start(checkpoints, MINE, resume=False) is None
    assert start(checkpoints, MINE, resume=True) == (OTHER, 20)


def test_who_goes_on_from_another_names_it_also_after_a_restart(checkpoints, storage, tmp_path):
    trained(checkpoints, tmp_path, OTHER, 20)
    trained(checkpoints, tmp_path, MINE, 30, resume=True)
    trained(checkpoints, tmp_path, MINE, 40, resume=True)
    for step in (30, 40):
        assert parse(storage.read(layout.marker_key(step))).parent == {"submission": OTHER, "step": 20}


def test_steps_are_ordered_as_numbers(checkpoints, tmp_path):
    trained(checkpoints, tmp_path, OTHER, 999_999, 1_000_000)
    assert start(checkpoints, MINE, resume=True) == (OTHER, 1_000_000)


def test_a_run_begun_again_does_not_jump_to_its_former_life(checkpoints, tmp_path):
    trained(checkpoints, tmp_path, OLD, 10, 20, 30)
    trained(checkpoints, tmp_path, OTHER, 10)
    assert start(checkpoints, MINE, resume=True) == (OTHER, 10)


def test_beyond_the_step_it_went_on_from_a_parents_steps_do_not_count(checkpoints, storage, tmp_path):
    trained(checkpoints, tmp_path, OLD, 10, 20)
    assert trained(checkpoints, tmp_path, OTHER, 25, resume=True) == 20
    trained(checkpoints, tmp_path, OLD, 30)  # a step of the old one that no chain leads to
    storage.delete([weights(storage, 25)])
    assert start(checkpoints, MINE, resume=True) == (OLD, 20)


def test_where_a_newer_submission_has_nothing_whole_an_older_one_serves(checkpoints, storage, tmp_path):
    trained(checkpoints, tmp_path, OLD, 10)
    trained(checkpoints, tmp_path, OTHER, 20)
    storage.delete([weights(storage, 20)])
    assert start(checkpoints, MINE, resume=True) == (OLD, 10)


TEARS = pytest.mark.parametrize(
    "tear",
    [
        lambda storage: storage.delete([weights(storage, 20)]),
        lambda storage: storage.write(weights(storage, 20), b"shorter"),
        lambda storage: storage.delete(["checkpoints/step-000020.json"]),
        lambda storage: storage.write("checkpoints/step-000020.json", b"{"),
        lambda storage: storage.write("checkpoints/step-000020.json", storage.read("checkpoints/step-000010.json")),
        lambda storage: storage.write(
            "checkpoints/step-000020.json",
            b'{"framework": "hf", "step": 20, "saved_at": 1.0, "metadata": {}}',  # lists no files
        ),
    ],
    ids=["file missing", "file shorter", "no marker", "marker is no JSON", "marker of another step", "unverified"],
)


@TEARS
@pytest.mark.parametrize("submission", [MINE, OTHER])
def test_a_torn_checkpoint_is_passed_over(checkpoints, storage, tmp_path, tear, submission):
    trained(checkpoints, tmp_path, OTHER, 10, 20)
    tear(storage)
    assert start(checkpoints, submission, resume=True) == (OTHER, 10)


@TEARS
def test_a_step_that_was_asked_for_and_is_torn_is_refused(checkpoints, storage, tmp_path, tear):
    trained(checkpoints, tmp_path, OTHER, 10, 20)
    tear(storage)
    with pytest.raises(UserError, match=r"RESUME is step-20, but .*: submit the job again .*\(step-10\)$"):
        start(checkpoints, MINE, resume=True, step=20)


@pytest.mark.parametrize(
    ("tear", "says"),
    [
        (lambda storage: storage.delete(["checkpoints/step-000020.json"]), "the run has no such checkpoint"),
        (
            lambda storage: storage.delete([weights(storage, 20)]),
            "that checkpoint's files are incomplete",
        ),
    ],
)
def test_a_refusal_tells_missing_from_torn_and_what_to_do(checkpoints, storage, tmp_path, tear, says):
    trained(checkpoints, tmp_path, OTHER, 20)
    tear(storage)
    with pytest.raises(UserError, match=f"{says}: submit the job again without resuming, as it has no complete one"):
        start(checkpoints, MINE, resume=True, step=20)


def test_the_same_size_with_another_etag_is_refused(checkpoints, storage, tmp_path, monkeypatch):
    etags = {}
    listed = storage.list
    monkeypatch.setattr(
        storage,
        "list",
        lambda prefix: [dataclasses.replace(entry, etag=etags.get(entry.key)) for entry in listed(prefix)],
    )
    etags[f"checkpoints/checkpoint-20/{OTHER}-1/weights"] = '"one"'
    trained(checkpoints, tmp_path, OTHER, 20)
    assert start(checkpoints, MINE, resume=True, step=20) == (OTHER, 20)
    etags[weights(storage, 20)] = '"other"'
    with pytest.raises(UserError, match="incomplete"):
        start(checkpoints, MINE, resume=True, step=20)


def test_a_step_that_was_asked_for_may_be_any_submissions(checkpoints, storage, tmp_path):
    trained(checkpoints, tmp_path, OLD, 10, 20, 30)
    trained(checkpoints, tmp_path, OTHER, 15)
    assert start(checkpoints, MINE, resume=True) == (OTHER, 15), "which no chain leads from to 20"
    with pytest.raises(UserError, match="RESUME is step-0, but the run has no such checkpoint"):
        start(checkpoints, MINE, resume=True, step=0)
    assert trained(checkpoints, tmp_path, MINE, 25, resume=True, step=20) == 20
    assert parse(storage.read(layout.marker_key(25))).parent == {"submission": OLD, "step": 20}


def test_a_restart_goes_on_from_its_own_newest_and_not_again_from_the_step(checkpoints, storage, tmp_path):
    trained(checkpoints, tmp_path, OLD, 10, 20)
    trained(checkpoints, tmp_path, MINE, 15, 18, resume=True, step=10)
    assert trained(checkpoints, tmp_path, MINE, 21, resume=True, step=10) == 18
    assert parse(storage.read(layout.marker_key(21))).parent == {"submission": OLD, "step": 10}
    storage.delete([weights(storage, 10)])
    assert start(checkpoints, MINE, resume=True, step=10) == (MINE, 21), "which needs the step no longer"


def own(storage, submission):
    owner = {"submission": submission, "namespace": "training", "job": "job"}
    storage.write(layout.owner_key(), json.dumps(owner).encode())


def test_a_start_in_anothers_run_is_superseded(checkpoints, storage, tmp_path):
    trained(checkpoints, tmp_path, MINE, 10)
    own(storage, OTHER)
    with pytest.raises(SupersededError, match=f"belongs to submission {OTHER} now: {MINE} stops"):
        start(checkpoints, MINE, resume=False)


@pytest.mark.parametrize("step", [10, 20])
def test_who_is_superseded_writes_no_marker_and_harms_none(checkpoints, storage, tmp_path, step):
    old = checkpoints(OLD)
    old.choose(False)
    own(storage, OTHER)
    trained(checkpoints, tmp_path, OTHER, 10)
    before = {entry.key: storage.read(entry.key) for entry in storage.list("checkpoints/")}
    with pytest.raises(SupersededError):
        save(old, tmp_path, step)
    after = {entry.key: storage.read(entry.key) for entry in storage.list("checkpoints/")}
    assert after.items() >= before.items()
    assert [key for key in after if layout.parse_marker_key(key)] == ["checkpoints/step-000010.json"]


def begun(storage, submission, attempt):
    storage.write(layout.attempt_key(submission, attempt), b"{}")


@pytest.mark.parametrize(
    "take",
    [lambda storage: own(storage, OTHER), lambda storage: begun(storage, MINE, 10)],
    ids=["another submission", "a newer attempt"],
)
def test_who_is_superseded_while_it_uploads_writes_no_marker(checkpoints, storage, tmp_path, monkeypatch, take):
    begun(storage, MINE, 1)
    trained(checkpoints, tmp_path, MINE, 10)
    before = {entry.key: storage.read(entry.key) for entry in storage.list("checkpoints/")}
    begun(storage, MINE, 2)
    one = checkpoints(MINE, keep_last=1)
    one.choose(False)
    upload = storage.upload
    monkeypatch.setattr(storage, "upload", lambda source, key: (upload(source, key), take(storage)))
    with pytest.raises(SupersededError, match=r"belongs to|attempt 10 of this submission has begun: attempt 2 writes"):
        save(one, tmp_path, 20)
    after = {entry.key: storage.read(entry.key) for entry in storage.list("checkpoints/")}
    assert after.items() >= before.items()
    assert [key for key in after if layout.parse_marker_key(key)] == ["checkpoints/step-000010.json"]


@pytest.mark.parametrize("successor", [MINE, OTHER], ids=["a newer attempt", "another submission"])
def test_what_a_late_process_uploads_touches_nobodys_files(checkpoints, storage, tmp_path, successor):
    late = checkpoints(MINE)
    begun(storage, MINE, 1)
    folder = tmp_path / "late" / "checkpoint-10"
    release = threading.Event()

    def write():
        folder.mkdir(parents=True)
        (folder / "weights").write_text("of the same length".ljust(40))
        release.wait(30)

    late.begin(folder, step=10, metrics={"loss": 1.5}, write=write)
    if successor == OTHER:
        own(storage, OTHER)
    else:
        begun(storage, MINE, 2)
    trained(checkpoints, tmp_path, successor, 10)
    before = {entry.key: storage.read(entry.key) for entry in storage.list("checkpoints/")}
    release.set()
    with pytest.raises(SupersededError):
        late.finish()
    after = {entry.key: storage.read(entry.key) for entry in storage.list("checkpoints/")}
    assert after.items() >= before.items()
    assert len(after) == len(before) + 1, "what it has uploaded, which nothing names"
    assert start(checkpoints, successor, resume=False) == (successor, 10)


@pytest.mark.parametrize("owner", [None, MINE])
def test_the_owner_is_read_once_a_marker(checkpoints, storage, tmp_path, monkeypatch, owner):
    if owner:
        own(storage, owner)
    read, keys = storage.read, []
    monkeypatch.setattr(storage, "read", lambda key: (keys.append(key), read(key))[1])
    one = checkpoints(MINE)
    one.choose(False)
    assert keys == ["owner"]
    save(one, tmp_path, 10, 20)
    assert keys == ["owner", layout.marker_key(10), "owner", layout.marker_key(20), "owner"]
    assert [entry.key for entry in storage.list("checkpoints/step-")] == [layout.marker_key(step) for step in (10, 20)]


BROKEN = [b"", b"\xff", b"{", b"[]", b"{}", b'{"submission": 1}', b'{"submission": "other"}', b"[" * 100_000]


@pytest.mark.parametrize("body", BROKEN, ids=lambda body: repr(body[:12]))
def test_where_an_owner_cannot_be_understood_nobody_writes(checkpoints, storage, tmp_path, body):
    """It may be another's. What was saved before stays."""
    one = checkpoints(MINE)
    one.choose(False)
    save(one, tmp_path, 10)
    storage.write("owner", body)
    with pytest.raises(SupersededError, match=r"cannot read this run's owner record, .* delete owner"):
        save(one, tmp_path, 20)
    with pytest.raises(SupersededError, match="cannot read this run's owner record"):
        start(checkpoints, MINE, resume=False)
    assert [entry.key for entry in storage.list("checkpoints/step-")] == [layout.marker_key(10)]


def test_what_is_passed_over_is_said(checkpoints, storage, tmp_path, caplog):
    trained(checkpoints, tmp_path, MINE, 10, 20)
    storage.delete([weights(storage, 20)])
    with caplog.at_level(logging.WARNING):
        start(checkpoints, MINE, resume=True)
    assert "skips step 20" in caplog.text


def test_saving_a_step_again_replaces_all_of_it(checkpoints, storage, tmp_path):
    trained(checkpoints, tmp_path, OTHER, 10)
    storage.write(f"checkpoints/checkpoint-10/{OTHER}-7/of-an-unfinished-save", b"")
    storage.write(f"checkpoints/checkpoint-100/{OTHER}-7/another", b"")
    trained(checkpoints, tmp_path, MINE, 10)
    assert [entry.key for entry in storage.list("checkpoints/checkpoint-10")] == [
        f"checkpoints/checkpoint-10/{MINE}-1/sub/rng",
        f"checkpoints/checkpoint-10/{MINE}-1/weights",
        f"checkpoints/checkpoint-100/{OTHER}-7/another",
    ]
    assert parse(storage.read(layout.marker_key(10))).submission == MINE


def test_what_unfinished_saves_left_goes_with_the_next_one(checkpoints, storage, tmp_path):
    trained(checkpoints, tmp_path, MINE, 10)
    for name in (f"checkpoint-15/{MINE}-1/weights", f"checkpoint-15/{OTHER}-1/weights", "checkpoint-15/notes"):
        storage.write(f"checkpoints/{name}", b"")
    storage.write("checkpoints/step-000017.json", b"of a later release")
    storage.write(f"checkpoints/checkpoint-17/{MINE}-1/weights", b"")
    one = checkpoints(MINE)
    one.choose(False)
    save(one, tmp_path, 20)
    assert [entry.key for entry in storage.list("checkpoints/checkpoint-1")] == [
        f"checkpoints/checkpoint-10/{MINE}-1/sub/rng",
        f"checkpoints/checkpoint-10/{MINE}-1/weights",
        f"checkpoints/checkpoint-15/{OTHER}-1/weights",
        "checkpoints/checkpoint-15/notes",
        f"checkpoints/checkpoint-17/{MINE}-1/weights",
    ]


def test_what_is_spelt_otherwise_is_nobodys_unfinished_save(checkpoints, storage, tmp_path):
    trained(checkpoints, tmp_path, MINE, 10)
    others = (f"checkpoint-0009/{MINE}-1/x", f"checkpoint-9/{MINE}-10000000000/x", f"step-000009/{MINE}-1/x")
    for name in others:
        storage.write(f"checkpoints/{name}", b"")
    one = checkpoints(MINE)
    one.choose(False)
    save(one, tmp_path, 20)
    kept = {entry.key for entry in storage.list("checkpoints/")}
    assert kept >= {f"checkpoints/{name}" for name in others}


@pytest.mark.parametrize("before", [None, b"an older one"])
def test_a_marker_that_another_wrote_meanwhile_is_an_error(checkpoints, storage, tmp_path, monkeypatch, before):
    one = checkpoints(MINE)
    if before:
        storage.write(layout.marker_key(10), before)
    check = one.owner.check
    monkeypatch.setattr(one.owner, "check", lambda: (check(), storage.write(layout.marker_key(10), b"another's")))
    with pytest.raises(FileExistsError):
        save(one, tmp_path, 10)
    assert storage.read(layout.marker_key(10)) == b"another's"


def test_a_marker_whose_answer_was_lost_is_written(checkpoints, storage, tmp_path, monkeypatch):
    one = checkpoints(MINE)
    write, replace = storage.write, storage.replace

    def retried(key, body, **condition):
        write(key, body, **condition)
        write(key, body, **condition)  # as botocore does when the first answer does not arrive

    def replaced(key, old, new):
        replace(key, old, new)
        replace(key, old, new)

    monkeypatch.setattr(storage, "write", retried)
    monkeypatch.setattr(storage, "replace", replaced)
    save(one, tmp_path, 10)
    assert start(checkpoints, MINE, resume=False) == (MINE, 10)
    save(checkpoints(MINE), tmp_path, 10)
    assert parse(storage.read(layout.marker_key(10))).attempt == 3


def test_keeping_the_last_ones_removes_only_ones_own(checkpoints, storage, tmp_path):
    trained(checkpoints, tmp_path, OTHER, 1, 2)
    for steps in ((3, 4), (5, 6)):  # the second process knows what the first one left
        one = checkpoints(MINE, keep_last=2)
        one.choose(True)
        save(one, tmp_path, *steps)
    markers = [layout.parse_marker_key(entry.key) for entry in storage.list("checkpoints/step-")]
    folders = {entry.key.split("/")[1] for entry in storage.list("checkpoints/checkpoint-")}
    assert markers == [1, 2, 5, 6]
    assert folders == {"checkpoint-1", "checkpoint-2", "checkpoint-5", "checkpoint-6"}


def test_keeping_the_last_ones_removes_no_marker_that_another_has_put_there(
    checkpoints, storage, tmp_path, monkeypatch
):
    trained(checkpoints, tmp_path, MINE, 10)
    one = checkpoints(MINE, keep_last=1)
    one.choose(False)
    check = one.owner.check

    def slow():
        check()
        trained(checkpoints, tmp_path, OTHER, 10)  # which has taken the run over

    monkeypatch.setattr(one.owner, "check", slow)
    save(one, tmp_path, 20)
    assert parse(storage.read(layout.marker_key(10))).submission == OTHER
    assert start(checkpoints, OTHER, resume=False) == (OTHER, 10)


def test_a_marker_that_nobody_is_given_is_passed_over(checkpoints, storage, tmp_path, monkeypatch, caplog):
    trained(checkpoints, tmp_path, MINE, 10, 20)
    read = storage.read

    def archived(key):
        if key == layout.marker_key(20):
            raise WithheldError(f"{key}: it is archived")
        return read(key)

    monkeypatch.setattr(storage, "read", archived)
    assert start(checkpoints, MINE, resume=False) == (MINE, 10)
    assert "step-000020.json is not a marker" in caplog.text


def test_a_torn_one_takes_no_good_ones_place(checkpoints, storage, tmp_path):
    trained(checkpoints, tmp_path, MINE, 40)
    storage.delete([weights(storage, 40)])
    one = checkpoints(MINE, keep_last=1)
    assert one.choose(False) is None
    save(one, tmp_path, 10, 20)
    assert start(checkpoints, MINE, resume=False) == (MINE, 20)
    save(one, tmp_path, 40)
    assert [layout.parse_marker_key(entry.key) for entry in storage.list("checkpoints/step-")] == [40]


def test_a_marker_goes_before_its_files(checkpoints, storage, tmp_path, monkeypatch):
    trained(checkpoints, tmp_path, MINE, 1)
    one = checkpoints(MINE, keep_last=1)
    one.choose(False)
    order = []
    delete = storage.delete
    monkeypatch.setattr(storage, "delete", lambda keys: (order.extend(keys := list(keys)), delete(keys)))
    save(one, tmp_path, 2)
    assert order == [
        "checkpoints/step-000001.json",
        f"checkpoints/checkpoint-1/{MINE}-1/sub/rng",
        f"checkpoints/checkpoint-1/{MINE}-1/weights",
    ]


def test_a_checkpoint_comes_back_as_it_was_saved(checkpoints, tmp_path):
    trained(checkpoints, tmp_path, MINE, 10)
    one = checkpoints(MINE)
    folder = one.download(one.choose(False), tmp_path / "resume").path
    assert (folder / "weights").read_text() == f"{MINE} 10"
    assert (folder / "sub" / "rng").read_text() == "r"


def test_a_resumed_checkpoint_stays_on_the_disk_until_the_next_one_is_saved(checkpoints, tmp_path, monkeypatch):
    trained(checkpoints, tmp_path, MINE, 10)
    one = checkpoints(MINE)
    one.resumed, one.size_on_node = tmp_path / "resume", 10**6
    one.download(one.choose(False), one.resumed)
    asked = []
    monkeypatch.setattr(Disk, "require", lambda disk, size, what: asked.append((size, one.resumed, what)))
    (one.resumed / "large").write_bytes(bytes(400_000))
    one.check_room("the first checkpoint")
    assert one.resumed.exists()
    save(one, tmp_path, 20)
    assert not (tmp_path / "resume").exists()
    assert 5e5 < asked[0][0] <= 6e5, "what it takes is free then"
    assert asked[1:] == [(10**6, None, "the checkpoint of step 20")]
    assert start(checkpoints, MINE, resume=False) == (MINE, 20)


def test_the_processes_of_a_node_share_out_what_they_fetch_of_parts(tmp_path, monkeypatch):
    """Each byte comes once to a node, whoever of its processes wants it, and no request is for more than there is."""
    fetched = []
    body = bytes(range(256)) * 1024
    (tmp_path / "checkpoints/step").mkdir(parents=True)
    (tmp_path / "checkpoints/step/__0_0.distcp").write_bytes(body)
    found = types.SimpleNamespace(files=(File(path="step/__0_0.distcp", size=len(body), etag=None),))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(resuming, "LARGEST", 1024)
    wants = {0: [(0, 4096)], 1: [(2048, 6144)], 2: [(100_000, 101_000)]}

    class OfTwoNodes(World):
        def agreed(self, function):
            mine = function()
            if mine is None:
                return [None] * 3
            return [[rank // 2, {"step/__0_0.distcp": ranges}] for rank, ranges in wants.items()]

    class Counted(Folder):
        def download_range(self, key, start, end, target, etag):
            fetched.append((rank, start, end))
            super().download_range(key, start, end, target, etag)

    for rank in (0, 1):
        world = OfTwoNodes(rank=rank, size=3, local_rank=rank, node=0, gpu=False, stop=Stop())
        download = resuming.Download(Counted(tmp_path), found, tmp_path / "here", world)
        download.ranges(lambda rank=rank, download=download: {next(iter(download.files)): wants[rank]})
    assert sorted((start, end) for _, start, end in fetched) == [(at, at + 1024) for at in range(0, 6144, 1024)]
    assert {rank for rank, _, _ in fetched} == {0, 1}
    assert (tmp_path / "here/step/__0_0.distcp").read_bytes()[:6144] == body[:6144]
    for wrong in ([(0, len(body) + 1)], [(0, 2**60)]):
        with pytest.raises(UserError, match=r"shorter than its \.metadata says"):
            download.ranges(lambda wrong=wrong: {next(iter(download.files)): wrong})
    with pytest.raises(UserError, match="is not there"):
        download.ranges(lambda: {tmp_path / "here/step/__9_0.distcp": [(0, 1)]})
