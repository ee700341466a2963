"""Whatever stands in a checkpoint, nothing of it runs.

Each file in turn is replaced by one that would make a directory. It is refused as the user's error, or is not read.
"""

import importlib.util
import inspect
import json
import os
import pickle
import re
import shutil
import struct
import warnings

import numpy
import pytest
import torch
import torch.distributed.checkpoint as dcp
from alone import ALONE, train_alone
from pods import FIRST, SECOND, last_words, run_of, start_pods
from torch import _weights_only_unpickler
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, TensorStorageMetadata
from traps import MODEL, saved

from training import random_state, untrusted
from training.distributed import sharding
from training.errors import UserError, cause_of
from training.layout import FRAMEWORKS

FILES = {
    "hf": [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "optimizer.pt",
        "rng_state.pth",
        "scheduler.pt",
        "tokenizer.json",
        "tokenizer_config.json",
        "trainer_state.json",
        "training_args.bin",
    ],
    "hf, sharded": [
        "config.json",
        "generation_config.json",
        "optimizer_0/.metadata",
        "optimizer_0/__0_0.distcp",
        "pytorch_model_fsdp_0/.metadata",
        "pytorch_model_fsdp_0/__0_0.distcp",
        "rng_state.pth",
        "scheduler.pt",
        "tokenizer.json",
        "tokenizer_config.json",
        "trainer_state.json",
        "training_args.bin",
    ],
    "nemo": ["step-000001.ckpt"],
    "nemo, sharded": [".metadata", "__0_0.distcp", "meta.pt"],
    "meta": ["step-000001.pt"],
    "meta, two processes": [".metadata", "__0_0.distcp", "__1_0.distcp"],
}
UNREAD = {("hf", "training_args.bin"), ("hf", "generation_config.json")}


@pytest.fixture(scope="module")
def stores(tmp_path_factory, model_dir, dataset, warm_processes):
    """A store with the checkpoint of one step, by its name in FILES."""
    made = {}

    def make(name):
        if name not in made:
            directory = tmp_path_factory.mktemp("stores")
            framework, _, way = name.partition(", ")
            if way == "two processes":
                options = {"framework": framework, "max_steps": 1, "save_steps": 1, "begin": warm_processes.begin}
                with start_pods(directory, model_dir, dataset, directory / "store", FIRST, **options) as pods:
                    assert pods.end() == [0], pods.log
            else:
                own = {"sharded": True} if way == "sharded" else {}
                assert train_alone(
                    directory / "store", model_dir / "tiny", dataset, framework, FIRST, max_steps=1, **own
                )
            made[name] = directory / "store"
        return made[name]

    return make


@pytest.fixture
def resumed(stores, tmp_path, model_dir, dataset):
    """Changes the files of a checkpoint, as who can write to the bucket can, and goes on from it."""

    def resume(name, change):
        store = tmp_path / "store"
        shutil.copytree(stores(name), store)
        framework, _, way = name.partition(", ")
        folder = checkpoint(store, framework)
        change(folder)
        path = run_of(store, framework) / "checkpoints/step-000001.json"
        body = json.loads(path.read_bytes())
        for file in body["files"]:
            file["size"] = (path.parent / file["path"]).stat().st_size
        path.write_text(json.dumps(body))
        own = {"sharded": True} if way == "sharded" else {}
        train_alone(store, model_dir / "tiny", dataset, framework, SECOND, max_steps=2, **own)

    return resume


def checkpoint(store, framework):
    (path,) = (run_of(store, framework) / "checkpoints").glob(f"*/{FIRST}-1")
    return path


@pytest.mark.parametrize("name", FILES)
def test_the_files_are_all_that_there_are(stores, name):
    folder = checkpoint(stores(name), name.partition(",")[0])
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()) == FILES[name]


@pytest.mark.parametrize(
    ("name", "file"),
    # What hf has beside its parts is read as where it has none.
    [(name, file) for name, files in FILES.items() for file in files if name != "hf, sharded" or "/" in file],
)
def test_a_checkpoints_file_is_data(resumed, trap, name, file):
    def plant(folder):
        of_torch = file.endswith((".bin", ".ckpt", ".pt", ".pth"))
        (folder / file).write_bytes(saved(trap) if of_torch else pickle.dumps(trap))

    if (name, file) in UNREAD:
        resumed(name, plant)
        return
    with pytest.raises(UserError, match="cannot be loaded" if file in MODEL else re.escape(file)) as error:
        resumed(name, plant)
    assert cause_of(error.value) == "user_error"


PART = pytest.mark.parametrize("kind", [BytesStorageMetadata, TensorStorageMetadata])


def plant_parts(folder, kind, body):
    """In the place of all values of a kind, beside a .metadata as torch writes it."""
    path = folder / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    # What belongs to one process goes unread by another number of them.
    entries = metadata.state_dict_metadata.items()
    names = {name for name, entry in entries if type(entry) is kind and "random" not in name}
    assert names
    for index, place in metadata.storage_data.items():
        if index.fqn in names:
            with (folder / place.relative_path).open("ab") as file:
                start = file.tell()
                file.write(body)
            metadata.storage_data[index] = _StorageInfo(place.relative_path, start, len(body))
    path.write_bytes(pickle.dumps(metadata))


@PART
@pytest.mark.parametrize("name", ["nemo, sharded", "meta, two processes"])
def test_a_part_of_a_sharded_file_is_data(resumed, trap, name, kind):
    with pytest.raises(UserError, match=r"__[01]_0\.distcp holds code"):
        resumed(name, lambda folder: plant_parts(folder, kind, pickle.dumps(trap)))


@PART
def test_a_part_of_a_sharded_file_is_data_whatever_its_form(tmp_path, trap, kind, form):
    with sharding(ALONE):
        dcp.save({"tensor": torch.ones(3), "list": [1, {"a": 2.5}]}, checkpoint_id=tmp_path / "saved")
        state = {"tensor": torch.zeros(3), "list": [0, {"a": 0.0}]}
        untrusted.load_sharded(state, tmp_path / "saved", lambda ranges: ranges())
        assert (state["tensor"].tolist(), state["list"]) == ([1, 1, 1], [1, {"a": 2.5}])

    plant_parts(tmp_path / "saved", kind, form(trap))
    with pytest.raises(UserError, match=r"__0_0\.distcp holds code"), sharding(ALONE):
        untrusted.load_sharded(state, tmp_path / "saved", lambda ranges: ranges())


def test_two_processes_refuse_alike(stores, warm, tmp_path, trap):
    store = tmp_path / "store"
    shutil.copytree(stores("meta, two processes"), store)
    folder = checkpoint(store, "meta")
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    place = next(place for index, place in metadata.storage_data.items() if index.fqn.startswith("random1of2.python"))
    body = pickle.dumps(trap)
    assert len(body) < place.length
    with (folder / place.relative_path).open("r+b") as file:  # in its place, as S10
        file.seek(place.offset)
        file.write(body)
    with warm(store, SECOND, framework="meta", resume="true", max_steps=2) as pods:
        assert pods.end() == [1], pods.log
    words = last_words(tmp_path / "pods-0")
    assert {line["cause"] for line in words} == {"user_error"}
    assert all(".distcp holds code where data should be" in line["message"] for line in words)
    assert {line["rank"] for line in words} == {0, 1}, "both know it"


@pytest.mark.parametrize(
    "value",
    [
        os.system,
        torch.load,
        torch.nn.Linear,
        eval,
        getattr,
        torch.distributed.checkpoint.FileSystemReader,
    ],
    ids=lambda value: value.__name__,
)
def test_metadata_may_name_its_own_classes_alone(tmp_path, value):
    (tmp_path / ".metadata").write_bytes(pickle.dumps(value))
    with pytest.raises(UserError, match=r"\.metadata holds code"):
        untrusted.read_metadata(tmp_path)


@pytest.mark.parametrize(
    "place",
    [
        _StorageInfo("../../secret", 0, 10),
        _StorageInfo("/etc/passwd", 0, 10),
        _StorageInfo("..", 0, 10),
        _StorageInfo("__0_0.distcp", -1, 10),
        _StorageInfo("__0_0.distcp", 0, 10, ["zstd"]),
        "__0_0.distcp",
        None,
    ],
)
def test_metadata_leads_to_files_of_its_folder_alone(stores, tmp_path, place):
    metadata = pickle.loads((checkpoint(stores("nemo, sharded"), "nemo") / ".metadata").read_bytes())
    (tmp_path / ".metadata").write_bytes(pickle.dumps(metadata))
    untrusted.read_metadata(tmp_path)
    metadata.storage_data[next(iter(metadata.storage_data))] = place
    (tmp_path / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(UserError, match=r"\.metadata is not what torch writes"):
        untrusted.read_metadata(tmp_path)


@PART
@pytest.mark.parametrize("name", ["nemo, sharded", "meta, two processes"])
def test_metadata_says_where_each_part_is(resumed, name, kind):
    def plant(folder):
        path = folder / ".metadata"
        metadata = pickle.loads(path.read_bytes())
        entries = metadata.state_dict_metadata.items()
        names = {name for name, entry in entries if type(entry) is kind and "random" not in name}
        assert names
        places = metadata.storage_data.items()
        metadata.storage_data = {index: place for index, place in places if index.fqn not in names}
        path.write_bytes(pickle.dumps(metadata))

    with pytest.raises(UserError, match=r"\.metadata does not say where .+ is") as error:
        resumed(name, plant)
    assert cause_of(error.value) == "user_error"


@pytest.mark.parametrize(
    "body",
    [
        b"ctorch.distributed.checkpoint.metadata\nMetadata\n(N}Vfields\nVx\nsu\x86b.",
        b"ctorch.distributed.checkpoint.metadata\nMetadata\n(N}X\x06\x00\x00\x00fieldsI1\nstb.",
        b"ctorch\nSize\n(N}X\x01\x00\x00\x00xI1\nstb.",
        b"ctorch\nfloat32\n(N}X\x01\x00\x00\x00xI1\nstb.",
    ],
)
def test_a_pickle_changes_no_class(tmp_path, body):
    """pickle can set the attributes of what it has found by name."""
    before = dict(vars(untrusted._Metadata))
    (tmp_path / ".metadata").write_bytes(body)
    with pytest.raises(Exception, match=r".*"):
        untrusted.read_metadata(tmp_path)
    assert dict(vars(untrusted._Metadata)) == before


def test_metadata_is_read_as_torch_reads_it(stores):
    for name in ("nemo, sharded", "meta, two processes"):
        folder = checkpoint(stores(name), name.partition(",")[0])
        found, expected = untrusted.read_metadata(folder), torch.distributed.checkpoint.FileSystemReader(folder)
        expected = expected.read_metadata()
        assert found.storage_data == expected.storage_data
        assert found.state_dict_metadata.keys() == expected.state_dict_metadata.keys()
        for key, entry in expected.state_dict_metadata.items():
            mine = found.state_dict_metadata[key]
            assert type(mine) is type(entry)
            if isinstance(entry, TensorStorageMetadata):
                assert (mine.size, mine.chunks, mine.properties.dtype) == (
                    entry.size,
                    entry.chunks,
                    entry.properties.dtype,
                )


def test_a_file_of_torch_is_data(tmp_path, trap, form):
    path = tmp_path / "file.pt"
    path.write_bytes(form(trap))
    with warnings.catch_warnings(), pytest.raises(UserError, match=r"file\.pt holds code where data should be"):
        warnings.simplefilter("ignore")  # of the pickle's age
        untrusted.load(path)


@pytest.mark.parametrize("body", [b"", bytes(1000), b"PK\x03\x04" + bytes(1000), saved({"a": torch.ones(9)})[:-400]])
def test_damage_is_no_fault_of_the_users(tmp_path, body):
    path = tmp_path / "file.pt"
    path.write_bytes(body)
    with pytest.raises(Exception, match=r".*") as error:
        untrusted.load(path)
    assert cause_of(error.value) == "crash"


def test_numpy_takes_no_bytes_of_a_file_for_pointers(resumed, trap):
    """What transformers lets numpy make, from a file that it reads with weights_only, may be of any memory."""

    class Objects:
        def __reduce__(self):
            return numpy.dtype, ("O",)

    class Pointers:
        def __reduce__(self):
            return numpy.ndarray, ((1,), Objects(), bytearray(b"A" * 8))

    def plant(folder):
        found = torch.load(folder / "rng_state.pth", weights_only=False)
        torch.save(found | {"numpy": ("MT19937", Pointers(), 1, 0, 0.0)}, folder / "rng_state.pth")

    with pytest.raises(UserError, match=r"rng_state\.pth holds code where data should be"):
        resumed("hf", plant)


def with_torch(left, position, *, seeded=1):
    """Changes a state of torch's generator on the CPU, which has 624 numbers."""

    def change(found):
        said = bytearray(struct.pack("=iiQ", left, seeded, position))
        found["torch" if "torch" in found else "cpu"][8:24] = torch.frombuffer(said, dtype=torch.uint8)

    return change


def with_numpy(position):
    def change(found):
        found["numpy"] = type(found["numpy"])((*found["numpy"][:2], position, *found["numpy"][3:]))

    return change


@pytest.mark.parametrize("change", [with_torch(624, 624), with_numpy(625)], ids=["torch", "numpy"])
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_random_numbers_are_not_read_from_beyond_their_state(resumed, framework, change):
    def plant(folder):
        (path,) = folder.glob({"hf": "rng_state.pth", "nemo": "*.ckpt", "meta": "*.pt"}[framework])
        found = torch.load(path, weights_only=False)
        change({"hf": [found], "nemo": found.get("random_states"), "meta": [found.get("random0of1")]}[framework][0])
        torch.save(found, path)

    with pytest.raises(UserError, match="random numbers") as error:
        resumed(framework, plant)
    assert cause_of(error.value) == "user_error"


@pytest.mark.parametrize(
    "change",
    [
        with_torch(624, 2),
        with_torch(2, 624),
        with_torch(3, 1),
        with_torch(0, 625),
        with_torch(-1, 626),
        with_torch(1, 2**63),
        with_torch(624, 1, seeded=0),
        lambda found: found.update(torch=found["torch"][:-8]),
        lambda found: found.update(torch=torch.zeros(0, dtype=torch.uint8)),
        lambda found: found.update(torch=found["torch"].to(torch.float32)),
        lambda found: found.update(torch=found["torch"].tolist()),
        with_numpy(-1),
        with_numpy(float("nan")),
    ],
)
def test_random_numbers_whose_fields_do_not_go_together_are_refused(change):
    random_state.begin(7, ALONE)
    found = random_state.state(ALONE)
    change(found)
    with pytest.raises(UserError, match="random numbers"):
        random_state.restore(found, ALONE)


@pytest.mark.parametrize("drawn", [0, 1, 2, 622, 623, 624, 625, 1247, 1248, 1249])
def test_random_numbers_go_on_from_every_position(drawn):
    random_state.begin(7, ALONE)
    for _ in range(drawn):
        torch.rand(1)
    found = random_state.state(ALONE)
    expected = torch.rand(1000).tolist()
    random_state.restore(found, ALONE)
    assert torch.rand(1000).tolist() == expected


@pytest.mark.parametrize("size", [3, 4 * 624 - 1, 4 * 624 + 1, 4 * 623])
def test_an_array_of_words_is_as_long_as_the_trainer_writes_it(resumed, size):
    body = bytes(size)

    class Kind:
        def __reduce__(self):
            return numpy.dtype, ("u4", False, True), (3, "<", None, None, None, -1, -1, 0)

    class Array:
        def __reduce__(self):
            make = numpy._core.multiarray._reconstruct
            return make, (numpy.ndarray, (0,), b"b"), (1, (size // 4,), Kind(), False, body)

    def plant(folder):
        found = torch.load(folder / "rng_state.pth", weights_only=False)
        torch.save(found | {"numpy": ("MT19937", Array(), 0, 0, 0.0)}, folder / "rng_state.pth")

    with pytest.raises(UserError, match=r"rng_state\.pth is not what the Trainer writes"):
        resumed("hf", plant)


def test_torch_takes_no_more_for_data_than_is_known():
    """Whatever the libraries add to its list when they are imported: it must be no function."""
    for framework in FRAMEWORKS:
        importlib.import_module(f"training.runners.{framework}")
    assert {f"{value.__module__}.{value.__qualname__}" for value in torch.serialization.get_safe_globals()} == {
        "torch._dynamo.decorators._DimRange",
        "torch.distributed._mesh_layout._FlatLayout",
        "torch.distributed._mesh_layout._MeshLayout",
        "torch.distributed.device_mesh.DeviceMesh",
        "torch.distributed.tensor.DTensor",
        "torch.distributed.tensor._dtensor_spec.DTensorSpec",
        "torch.distributed.tensor._dtensor_spec.ShardOrderEntry",
        "torch.distributed.tensor._dtensor_spec.TensorMeta",
        "torch.distributed.tensor.placement_types.Partial",
        "torch.distributed.tensor.placement_types.Replicate",
        "torch.distributed.tensor.placement_types.Shard",
        "torch.distributed.tensor.placement_types._StridedShard",
    }
    own = _weights_only_unpickler._get_allowed_globals()
    assert {name for name in own if not name.startswith("torch.")} == {
        "_codecs.encode",
        "builtins.bytearray",
        "builtins.complex",
        "builtins.set",
        "collections.Counter",
        "collections.OrderedDict",
    }
    functions = {name for name, value in own.items() if inspect.isroutine(value)} - {"_codecs.encode"}
    assert functions and all("._rebuild_" in name or name == "torch.serialization._get_layout" for name in functions)
