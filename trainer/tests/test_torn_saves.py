"""A process that dies between any two calls to the storage leaves nothing that could be taken for a checkpoint and is
none, and takes away nothing that the next start needs."""

import itertools

import pytest
from faults import DiedError, MortalStorage

from training import layout
from training.checkpoint import snapshot
from training.checkpoint.checkpoints import Checkpoints
from training.distributed import World
from training.signals import Stop
from training.storage import Folder

OLD, MINE = (f"0198000{number}-0000-7000-8000-000000000000" for number in (1, 2))


# What a checkpoint has below its name: a folder of files, or nothing, where it is a file itself.
FORMS = {
    ("hf", False): ("weights", "optimizer", "sub/rng"),
    ("meta", False): ("",),
    ("meta", True): (".metadata", "__0_0.distcp", "__0_1.distcp"),
    ("nemo", False): ("",),
    ("nemo", True): (".metadata", "__0_0.distcp", "meta.pt"),
}


# A folder of parts is written alike by both frameworks that have one.
IN_SOAK = {("nemo", False), ("nemo", True)}
PARAMS = [pytest.param(form, marks=pytest.mark.soak) if form in IN_SOAK else form for form in FORMS]


@pytest.fixture(params=PARAMS, ids=lambda form: f"{form[0]}{' sharded' if form[1] else ''}", autouse=True)
def form(request, monkeypatch):
    monkeypatch.setattr(f"{__name__}.FORM", request.param)


FORM = ("hf", False)


def checkpoints(storage, submission=MINE, keep_last=None, attempt=99):
    world = World(rank=0, size=1, local_rank=0, node=0, gpu=False, stop=Stop(), attempt=attempt)
    return Checkpoints(storage, world, framework=FORM[0], submission=submission, keep_last=keep_last)


def save(one, path, step):
    target = path / layout.checkpoint_name(FORM[0], step, sharded=FORM[1])

    def write():
        for name in FORMS[FORM]:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_text(f"{one.submission} {step} {name}")

    one.begin(target, step=step, metrics={"loss": 1.5}, write=write)
    one.finish()
    assert not target.exists()


def scenario(path, storage, submission, steps, keep_last=None, attempt=1):
    one = checkpoints(storage, submission, keep_last, attempt)
    one.choose(True)
    for step in steps:
        save(one, path, step)


def sound(storage):
    """Steps that have a marker; each marker's files are there."""
    found = snapshot.read(storage, FORM[0])
    assert len(found.markers) == sum(layout.parse_marker_key(entry.key) is not None for entry in found.listing)
    for marker in found.markers:
        assert marker.state(found.listing) == "complete", marker
    return {marker.step for marker in found.markers}


def rubbish(storage):
    """Files that no marker names, of the submission that was resumed."""
    found = snapshot.read(storage, FORM[0])
    named = {layout.CHECKPOINTS + file.path for marker in found.markers for file in marker.files}
    return {entry.key for entry in found.listing if MINE in entry.key} - named


# What was there before, the saves during which the process dies, and the steps that the next start may go on from.
SCENARIOS = {
    "a first save": ([], [10], None, {0, 10}),
    "a second one": ([(MINE, [10])], [20], None, {10, 20}),
    "one that makes an older one go": ([(MINE, [10, 20])], [30], 2, {20, 30}),
    "one that replaces another submission's": ([(OLD, [10, 20, 30])], [20], None, {30, 20}),
    "one that replaces its own": ([(MINE, [10, 20])], [20], None, {20}),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_dying_between_any_two_calls_leaves_no_false_checkpoint(tmp_path, name):
    before, steps, keep_last, resumes = SCENARIOS[name]
    seen = set()
    for dies_at, after in itertools.product(range(1000), (False, True)):
        path = tmp_path / f"{dies_at}-{after}"
        storage = Folder(path / "run")
        for number, (submission, saved) in enumerate(before):
            scenario(path / str(number), storage, submission, saved)
        mortal = MortalStorage(storage, dies_at, after=after)
        try:
            scenario(path / "new", mortal, MINE, steps, keep_last, attempt=2)
            break
        except DiedError:
            pass
        sound(storage)

        start = checkpoints(storage).choose(True)
        seen.add(start.step if start else 0)
        if start:
            download = checkpoints(storage).download(start, path / "resume")
            download.ranges(lambda found=download: {target: [(0, file.size)] for target, file in found.files.items()})
            folder = download.path
            for file in FORMS[FORM]:
                assert (folder / file).read_text() == f"{start.submission} {start.step} {file}"
        scenario(path / "again", storage, MINE, [steps[-1] + 10], attempt=3)
        assert steps[-1] + 10 in sound(storage)
        assert rubbish(storage) == set()
    assert dies_at >= 5, "the save has that many calls at least"
    assert seen == resumes
