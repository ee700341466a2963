"""Files that would run code, in the forms in which a checkpoint or a model could bring it."""

import io
import os
import pickle
import tarfile

MODEL = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]


class Trap:
    """Makes a directory where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def saved(value, **options):
    import torch  # not at the top: conftest.py imports this file for every test

    body = io.BytesIO()
    torch.save(value, body, **options)
    return body.getvalue()


def archive(trap):
    """As torch wrote it before 2016."""
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w") as tar:
        for name in ("storages", "tensors", "pickle"):
            info = tarfile.TarInfo(name)
            info.size = len(pickle.dumps(trap))
            tar.addfile(info, io.BytesIO(pickle.dumps(trap)))
    return body.getvalue()


FORMS = {
    "a pickle": pickle.dumps,
    "an old pickle": lambda trap: pickle.dumps(trap, protocol=0),
    "a file of torch": saved,
    "an old file of torch": lambda trap: saved(trap, _use_new_zipfile_serialization=False),
    "beside data": lambda trap: saved({"step": 1, "trap": trap}),
    "a pickle that breaks off": lambda trap: pickle.dumps(trap)[:-1] + b"\xff",
    "an archive": archive,
}
