"""Which files of a model's folder are brought, and what is said of one that nothing can be made of."""

import http.server
import json
import shutil
import threading

import huggingface_hub
import pytest
import torch
from pods import FIRST, files
from safetensors.torch import load_file

from training import model, model_files
from training.errors import UserError

CONFIG = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
OTHERS = ["tf_model.h5", "flax_model.msgpack", "model.gguf", "model.onnx", "consolidated.safetensors", "model.ckpt"]


@pytest.fixture
def mirrored(tmp_path, model_dir):
    """Makes a folder as people mirror one: the tiny model's weights in these formats, and others that nobody loads."""

    def make(*weights):
        folder = tmp_path / "mirrored"
        shutil.copytree(model_dir / "tiny", folder)
        tensors = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").rename(tmp_path / "whole")
        for name in OTHERS:
            (folder / name).write_bytes(b"other weights")
        (folder / "onnx").mkdir()
        (folder / "onnx/model.onnx").write_bytes(b"other weights")
        for name in weights:
            if name == "model.safetensors":
                shutil.copy(tmp_path / "whole", folder / name)
            elif name == "pytorch_model.bin":
                torch.save(tensors, folder / name)
            elif name.endswith(".index.json"):
                kind = name.removesuffix(".index.json")
                part = kind.replace(".", "-00001-of-00001.")
                shutil.copy(tmp_path / "whole", folder / part)
                (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(tensors, part)}))
        return f"file://{folder}/"

    return make


@pytest.mark.parametrize(
    ("weights", "brought"),
    [
        (["model.safetensors", "pytorch_model.bin"], {"model.safetensors"}),
        (["pytorch_model.bin"], {"pytorch_model.bin"}),
        (
            ["model.safetensors.index.json", "pytorch_model.bin"],
            {"model.safetensors.index.json", "model-00001-of-00001.safetensors"},
        ),
        (
            ["model.safetensors", "model.safetensors.index.json"],
            {"model.safetensors", "model.safetensors.index.json"},
        ),
    ],
    ids=["both", "bin alone", "parts", "whole and parts"],
)
def test_of_a_mirrored_folder_only_the_weights_that_are_loaded(mirrored, tmp_path, weights, brought):
    target = tmp_path / "target"
    model_files.locate(mirrored(*weights), target)
    assert files(target) == CONFIG | brought
    network, _ = model.load(str(target))
    assert torch.equal(network.state_dict()["lm_head.weight"], load_file(tmp_path / "whole")["lm_head.weight"])


def test_a_folder_without_weights_that_are_loaded(mirrored, tmp_path):
    with pytest.raises(
        UserError, match=r"has no weights that can be loaded: neither model.safetensors nor pytorch_model.bin$"
    ):
        model_files.locate(mirrored(), tmp_path / "target")
    (tmp_path / "mirrored/config.json").rename(tmp_path / "mirrored/adapter_config.json")
    with pytest.raises(
        UserError, match=r"it has no config.json: it is an adapter; merge it into its model, and save that"
    ):
        model_files.locate(f"file://{tmp_path}/mirrored", tmp_path / "again")
    folder = tmp_path / "image"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.gguf").write_text("")
    with pytest.raises(UserError, match=r"nor pytorch_model.bin; convert model.gguf to one of them$"):
        model_files.locate(str(folder), tmp_path / "third")


@pytest.mark.parametrize(
    "index",
    [
        b"",
        b"[]",
        b"{}",
        b'{"weight_map": []}',
        b'{"weight_map": {"a": 1}}',
        b'{"weight_map": {"a": "../x"}}',
        b"[" * 9999,
    ],
)
def test_an_index_that_is_none(mirrored, tmp_path, index):
    uri = mirrored()
    (tmp_path / "mirrored/model.safetensors.index.json").write_bytes(index)
    with pytest.raises(UserError, match=r"^MODEL_ID: model.safetensors.index.json is not an index of weights: "):
        model_files.locate(uri, tmp_path / "target")


def test_a_job_trains_from_pytorchs_own_file_and_exports_safetensors(mirrored, warm, tmp_path):
    environment = {"MODEL_ID": mirrored("pytorch_model.bin")}
    with warm(tmp_path / "store", FIRST, processes=0, max_steps=1, environment=environment) as pods:
        assert pods.end() == [0], pods.log
        assert "passed over 6 files of " in pods.log
    assert (tmp_path / f"store/run/framework=hf/model/{FIRST}/model.safetensors").exists()


# === the hub ===


@pytest.mark.parametrize(
    ("status", "headers", "says"),
    [
        (403, {"X-Error-Code": "GatedRepo"}, "it is gated: accept its terms on its page, and give the job a token as"),
        (
            401,
            {"X-Error-Code": "RepoNotFound"},
            "the hub answers 401: there is no such model, or a private one, for which the job needs",
        ),
        (404, {}, "the hub answers 404: there is no such model, or a private one"),
    ],
)
def test_why_the_hub_does_not_give_a_model(tmp_path, monkeypatch, status, headers, says):
    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

        do_HEAD = do_GET  # noqa: N815

    with http.server.HTTPServer(("127.0.0.1", 0), Hub) as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        ask(monkeypatch, tmp_path, hub)
        with pytest.raises(UserError, match=f"^MODEL_ID team/model is not a folder under MODEL_DIR.* the hub: {says}"):
            model_files.locate("team/model", tmp_path)
        hub.shutdown()


def ask(monkeypatch, cache, hub):
    """Have the hub asked at a server of ours."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    original = huggingface_hub.snapshot_download
    endpoint = f"http://127.0.0.1:{hub.server_port}"
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *args, **given: original(*args, endpoint=endpoint, **given)
    )
