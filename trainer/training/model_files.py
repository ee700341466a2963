"""Where a model comes from, and which of its files are needed: a folder, a bucket or the hub.

A repository often has the same weights in several formats. Only those are brought that transformers loads, which looks
for safetensors first and then for PyTorch's own files, whole or in parts.
"""

import fnmatch
import json
import logging
import os
import typing
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from training import work
from training.disk import Disk
from training.errors import AccessDeniedError, StorageError, UserError
from training.storage import LFS_POINTER, Storage, WithheldError, open_storage, withheld

if typing.TYPE_CHECKING:
    from training.distributed import World

VARIABLE = "MODEL_ID"
URIS = ("s3://", "file://")
BESIDE_WEIGHTS = ("*.json", "*.model", "*.tiktoken", "*.txt", "*.jinja")  # of a hub's repository
ELSEWHERE = ("*/*", "consolidated*")  # other formats of the same weights
# What transformers looks for, the first of them first: https://github.com/huggingface/transformers, modeling_utils.py.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
FORMATS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".ggml", ".onnx", ".ot", ".ckpt", ".npz")
MAX_INDEX = 64 * 2**20  # bytes

logger = logging.getLogger(__name__)


def fetch(model_id: str, directory: Path, world: "World", files: Sequence[str] | None = None) -> str:
    """Bring the model, or of it the files of those patterns, to each node; together. Returns its folder on this one."""
    places = world.agreed(lambda: (world.node, locate(model_id, directory, files) if world.local_rank == 0 else None))
    return next(place for node, place in places if node == world.node and place)


def locate(model_id: str, directory: Path, files: Sequence[str] | None = None) -> str:
    """A local Hugging Face folder with the model; from a bucket it is brought to `directory` first.

    Looked for as a URI, an absolute path, a folder's name under MODEL_DIR, and at last as a name on the hub.
    """
    if model_id.startswith(URIS):
        download(model_id, directory, files)
        return checked(model_id, directory, files)
    if model_id.startswith("/"):
        return checked(model_id, Path(model_id), files)
    if ".." in Path(model_id).parts:
        raise UserError(f"{VARIABLE} {model_id} must not point outside MODEL_DIR")
    models = Path(os.environ.get("MODEL_DIR") or "/opt/models")
    if (models / model_id).is_dir():
        return checked(model_id, models / model_id, files)
    return checked(model_id, Path(from_hub(model_id, files)), files)


def download(model_id: str, directory: Path, files: Sequence[str] | None) -> None:
    storage = open_storage(model_id, VARIABLE)
    try:
        # Such a folder is flat. What has no name is the empty object that S3's console makes for a folder.
        entries = {entry.key: entry for entry in storage.list("") if "/" not in entry.key}
        keys = [key for key in entries if key not in ("", ".", "..")]
        if files is None:
            wanted = needed(storage, keys)
        else:
            wanted = [key for key in keys if any(fnmatch.fnmatchcase(key, pattern) for pattern in files)]
        missing = work.prepare(directory, {directory / key: entries[key] for key in wanted})
        Disk.here().require(missing, f"{VARIABLE} {model_id}")
        for key in wanted:
            work.bring(storage, entries[key], directory / key)
        left = sorted(set(keys) - set(wanted)) if files is None else []
        if left:
            logger.info("passed over %d files of %s that are not loaded, such as %s", len(left), model_id, left[0])
    except AccessDeniedError:
        raise UserError(f"{VARIABLE} {model_id} may not be read by this job: access denied") from None
    except WithheldError as error:
        raise UserError(f"{VARIABLE} {model_id} cannot be read as it is: {withheld(error)}") from None


def needed(storage: Storage, keys: Collection[str]) -> list[str]:
    """Of a folder's files those that are loaded: its weights in one format, and all that are no weights."""
    loaded: set[str] = set()
    if first := next((name for name in WEIGHTS if name in keys), None):
        loaded = {first} if not first.endswith(".json") else parts(first, storage.read(first)) & set(keys)
    return [key for key in keys if key in loaded or not key.endswith(FORMATS)]


def parts(name: str, index: bytes) -> set[str]:
    """The files that an index of weights names. Raises UserError for one that is none."""
    try:
        if len(index) > MAX_INDEX:
            raise ValueError("it is too large")
        files = json.loads(index)["weight_map"].values()
        if not all(isinstance(file, str) and file == Path(file).name for file in files):
            raise ValueError("it names a file outside its folder")
        return set(files)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{VARIABLE}: {name} is not an index of weights: {error}") from None


def checked(model_id: str, folder: Path, files: Iterable[str] | None = None) -> str:
    """The folder. Raises UserError where it has no model, or none that transformers loads."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if "config.json" not in names:
        adapter = ": it is an adapter; merge it into its model, and save that" if "adapter_config.json" in names else ""
        raise UserError(f"{VARIABLE} {model_id} is not a Hugging Face folder: it has no config.json{adapter}")
    if files is None and not names & set(WEIGHTS):
        others = sorted(name for name in names if name.endswith(FORMATS))
        beside = f"; convert {others[0]} to one of them" if others else ""
        lacks = "neither model.safetensors nor pytorch_model.bin"
        raise UserError(f"{VARIABLE} {model_id} has no weights that can be loaded: {lacks}{beside}")
    for name in sorted(name for name in names if name.endswith((".safetensors", ".bin", ".json", ".jinja", ".model"))):
        with (folder / name).open("rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                raise UserError(
                    f"{VARIABLE} {model_id} has a pointer of Git LFS for {name}: fetch it with `git lfs pull`"
                )
    return str(folder)


# === the hub ===


def from_hub(model_id: str, files: Sequence[str] | None) -> str:
    """A folder with the model's files of the hub."""
    if files is not None:
        return snapshot(model_id, files)
    folder = snapshot(model_id, [*BESIDE_WEIGHTS, "*.safetensors"])
    if not any(Path(folder, name).exists() for name in WEIGHTS[:2]):
        folder = snapshot(model_id, [*BESIDE_WEIGHTS, "pytorch_model*.bin"])
    return folder


def snapshot(model_id: str, patterns: Sequence[str]) -> str:
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(model_id, allow_patterns=list(patterns), ignore_patterns=list(ELSEWHERE))
    except (OSError, ValueError) as error:
        kind = StorageError if may_pass(error) else UserError
        wanted = f"{VARIABLE} {model_id} is not a folder under MODEL_DIR and cannot be fetched from the hub"
        raise kind(f"{wanted}: {because(error)}") from None


def because(error: Exception) -> str:
    """Why the hub does not give a model, and what to do about it."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled

    reason = reason_of(error)
    if isinstance(reason, GatedRepoError):
        return "it is gated: accept its terms on its page, and give the job a token as HF_TOKEN by env_from_secrets"
    if isinstance(reason, HfHubHTTPError) and reason.response.status_code in (401, 403, 404):
        code = reason.response.status_code
        return (
            f"the hub answers {code}: there is no such model, or a private one, for which the job needs HF_TOKEN by "
            "env_from_secrets"
        )
    if isinstance(reason, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, and the image has no copy of the model"
    return next(iter(str(error).splitlines()), type(error).__name__)


def may_pass(error: Exception) -> bool:
    """Whether the hub could not be asked, or had no answer: another start may find it better."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    reason = reason_of(error)
    if isinstance(reason, HfHubHTTPError):
        return reason.response.status_code == 429 or reason.response.status_code >= 500
    return reason not in (None, error) and not isinstance(reason, OfflineModeIsEnabled)


def reason_of(error: Exception) -> BaseException | None:
    """What is not in the cache either has the reason why the hub did not give it as its cause."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    return error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error
