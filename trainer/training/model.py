"""Where a model comes from."""

import os
from pathlib import Path

from training.errors import UserError
from training.storage import open_storage

URIS = ("s3://", "file://")
NEEDED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]  # of a hub's repository


def locate(model_id: str, directory: Path) -> str:
    """A local Hugging Face folder with the model; from a bucket it is brought to `directory` first.

    Looked for as a URI, an absolute path, a folder's name under MODEL_DIR, and at last as a name on the hub.
    """
    if model_id.startswith(URIS):
        storage = open_storage(model_id)
        # Such a folder is flat. What lies deeper are other formats of the same weights.
        entries = [entry for entry in storage.list("") if "/" not in entry.key]
        for entry in entries:
            storage.download(entry.key, directory / entry.key)
        return checked(model_id, directory)
    if model_id.startswith("/"):
        return checked(model_id, Path(model_id))
    if ".." in Path(model_id).parts:
        raise UserError(f"MODEL_ID {model_id} must not climb out of MODEL_DIR")
    models = Path(os.environ.get("MODEL_DIR") or "/opt/models")
    if (models / model_id).is_dir():
        return checked(model_id, models / model_id)
    return from_hub(model_id)


def checked(model_id: str, folder: Path) -> str:
    if not (folder / "config.json").is_file():
        raise UserError(f"MODEL_ID {model_id} is no Hugging Face folder: it has no config.json")
    return str(folder)


def from_hub(model_id: str) -> str:
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(model_id, allow_patterns=NEEDED)
    except (OSError, ValueError) as error:
        said = str(error).splitlines()[0]
        raise UserError(
            f"MODEL_ID {model_id} is no folder under MODEL_DIR, and the hub does not give it: {said}"
        ) from None
