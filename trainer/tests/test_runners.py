"""What the three runners do alike, one process each, without torchrun."""

import functools
import http.server
import json
import re
import shutil
import threading

import huggingface_hub
import pytest
import torch
from alone import train_alone
from conftest import client
from pods import FIRST, SECOND, exported, files, marker, run_of, same, state
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BartConfig,
    BartForCausalLM,
    GenerationConfig,
    GPT2Config,
    MixtralConfig,
    XLNetConfig,
    XLNetLMHeadModel,
)

from training import model, model_files
from training.data.batches import Collator
from training.errors import CheckpointError, StorageError, SupersededError, UserError, cause_of
from training.layout import FRAMEWORKS


@pytest.fixture
def train(tmp_path, model_dir, dataset):
    """Trains in this process, and returns the loss of each step."""

    def run(framework, submission=FIRST, *, begins=0, model=model_dir / "tiny", data=dataset, **settings):
        assert train_alone(tmp_path / "store", model, data, framework, submission, **settings)
        steps = range(begins + 1, settings["max_steps"] + 1)
        return [marker(tmp_path / "store", step, framework)["metrics"]["loss"] for step in steps]

    return run


RUNNERS = [("meta", {}), ("hf", {}), ("hf", {"sharded": True}), ("nemo", {}), ("nemo", {"sharded": True})]


def test_with_other_batches_all_go_on_as_if_it_had_always_been_so(train, tmp_path):
    """A step has the texts that it has when the steps before it had as many, and all of them."""
    curves = {}
    for framework, own in RUNNERS:
        shutil.rmtree(tmp_path / "store", ignore_errors=True)
        train(framework, max_steps=3, **own)
        changed = {"batch_size": 2, "gradient_accumulation": 4}
        curves[framework, bool(own)] = train(framework, SECOND, begins=3, max_steps=6, **changed | own)
    for name, curve in curves.items():
        assert curve == pytest.approx(curves["meta", False], abs=1e-6), name


def made(folder, model_dir, config, kind=AutoModelForCausalLM):
    """A folder of a tiny model of another kind, with the tiny model's tokenizer."""
    shutil.copytree(model_dir / "tiny", folder)
    (folder / "model.safetensors").unlink()
    torch.manual_seed(1)
    network = kind.from_config(config) if kind is AutoModelForCausalLM else kind(config)
    network.save_pretrained(folder)
    return folder


def test_models_whose_class_does_not_name_their_loss_have_the_same_one_everywhere(train, tmp_path, model_dir):
    """The Trainer knows by the class's name whether a loss leaves out the first token, and does not know gpt2's."""
    gpt2 = made(
        tmp_path / "gpt2", model_dir, GPT2Config(vocab_size=512, n_embd=16, n_layer=1, n_head=2, n_positions=64)
    )
    curves = {}
    for framework, own in RUNNERS:
        shutil.rmtree(tmp_path / "store", ignore_errors=True)
        given = {"max_steps": 2, "eval_steps": 2, "max_seq_len": 16}
        curves[framework, bool(own)] = train(framework, model=gpt2, **given | own)
    for name, curve in curves.items():
        assert curve == pytest.approx(curves["meta", False], abs=1e-6), name


OTHER_LOSSES = {
    "bart": (BartConfig, BartForCausalLM, {"is_decoder": True, "is_encoder_decoder": False}),
    "xlnet": (XLNetConfig, XLNetLMHeadModel, {"d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 16}),
}


@pytest.mark.parametrize("name", OTHER_LOSSES)
def test_a_model_with_another_loss_than_that_of_the_next_token_is_refused(tmp_path, model_dir, name):
    """Such a training would end as finished, and its model would have learnt to say each token again."""
    config, kind, fields = OTHER_LOSSES[name]
    small = {"d_model": 16, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 16}
    source = made(tmp_path / "model", model_dir, config(vocab_size=512, **small | fields), kind)
    with pytest.raises(
        UserError, match=rf"computes another loss than that of a causal language model: {kind.__name__}"
    ):
        model.load(str(source))


def test_what_a_model_adds_to_the_loss_of_the_next_token_is_its_own_affair(tmp_path, model_dir):
    """As a mixture of experts does, which balances them."""
    config = MixtralConfig(
        vocab_size=512, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=2, output_router_logits=True,
    )  # fmt: skip
    network, _ = model.load(str(made(tmp_path / "model", model_dir, config)))
    assert network.training


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_step_that_predicts_nothing_has_no_loss_and_no_gradient(train, tmp_path, model_dir, framework):
    """Texts that are the end token alone have no second token."""
    data = tmp_path / "ends.jsonl"
    data.write_text('{"text": "</s>"}\n' * 8)
    assert train(framework, data=data, max_steps=2) == [0.0, 0.0]
    assert same(exported(tmp_path / "store", FIRST, framework), load_file(model_dir / "tiny" / "model.safetensors"))


@pytest.mark.parametrize(("framework", "own"), RUNNERS)
def test_a_loss_that_is_not_finite_ends_training_at_the_next_line_of_the_log(train, tmp_path, framework, own):
    # Rank 0 also reports after a while.
    with pytest.raises(
        UserError, match=r"a loss is not finite (at step 2|between steps 2 and 3), with lr 1e\+25; the "
    ):
        train(framework, max_steps=9, lr=1e25, scheduler="constant", save_steps=9, logging_steps=3, **own)
    assert not list(run_of(tmp_path / "store", framework).rglob("step-*.json"))


@pytest.mark.parametrize(("framework", "own"), RUNNERS)
def test_weights_that_are_not_finite_are_neither_saved_nor_exported(train, tmp_path, framework, own):
    """In fp32, such a step takes finite weights to infinite ones, and its own loss is finite."""
    with pytest.raises(
        UserError, match=r"a weight is not finite at step 1, with lr 1e\+39; the checkpoints from before"
    ):
        train(framework, max_steps=1, lr=1e39, scheduler="constant", **own)
    run = run_of(tmp_path / "store", framework)
    assert not list(run.rglob("step-*.json"))
    assert not (run / "model").exists()


@pytest.mark.parametrize("prefix", model.WRAPPERS)
def test_weights_that_a_wrapper_has_renamed_are_not_made_up(tmp_path, model_dir, prefix):
    weights = load_file(model_dir / "tiny/model.safetensors")
    refused = refused_model(tmp_path, model_dir, {f"{prefix}{name}": weight for name, weight in weights.items()})
    assert f"; a wrapper has left `{prefix}` before the names: save the model that it wraps" in refused


def test_a_model_has_all_its_weights_and_no_others(tmp_path, model_dir):
    weights = load_file(model_dir / "tiny/model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    refused = refused_model(
        tmp_path / "lacks", model_dir, {key: value for key, value in weights.items() if key != name}
    )
    assert refused.endswith(f"is not what config.json describes: its file lacks {name}")
    refused = refused_model(
        tmp_path / "more", model_dir, weights | {f"vision.{at}.weight": weights[name].clone() for at in range(5)}
    )
    assert refused.endswith(": the model has no vision.0.weight, vision.1.weight, vision.2.weight and 2 more weights")


@pytest.mark.parametrize("kind", [torch.int8, torch.bool])
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_weights_that_are_no_floating_point_numbers_are_not_taken_for_some(tmp_path, model_dir, kind, file):
    """Those of a quantized model whose config.json does not say that it is one."""
    shutil.copytree(model_dir / "tiny", tmp_path / "model")
    weights = load_file(model_dir / "tiny/model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    changed = weights | {name: (100 * weights[name]).to(kind), "model.layers.0.attn.bias": torch.ones(2, dtype=kind)}
    (tmp_path / "model/model.safetensors").unlink()
    if file.endswith(".bin"):
        torch.save(changed, tmp_path / "model" / file)
    else:
        save_file(changed, tmp_path / "model" / file, {"format": "pt"})
    said = f"{name} is {str(kind).removeprefix('torch.')} in its file, and only floating-point weights can be trained"
    with pytest.raises(UserError, match=said):
        model.load(str(tmp_path / "model"))


@pytest.mark.parametrize("sharded", [False, True])
def test_a_weight_that_is_not_finite_is_named_before_training(train, tmp_path, model_dir, sharded):
    shutil.copytree(model_dir / "tiny", tmp_path / "model")
    weights = load_file(model_dir / "tiny/model.safetensors")
    weights["model.norm.weight"][3] = torch.nan
    weights["lm_head.weight"][3, 3] = torch.inf
    save_file(weights, tmp_path / "model/model.safetensors", {"format": "pt"})
    with pytest.raises(
        UserError, match=r"numbers that are not finite in its file: (lm_head|model.norm).weight, (model|lm)"
    ):
        train("hf", max_steps=1, model=tmp_path / "model", sharded=sharded)


def test_masks_of_older_versions_are_no_weights(tmp_path, model_dir):
    shutil.copytree(model_dir / "tiny", tmp_path / "model")
    weights = load_file(model_dir / "tiny/model.safetensors")
    names = ["rotary_emb.inv_freq", "attn.masked_bias", "attn.bias", "attn.attention.bias", "attn.causal_mask"]
    masks = {f"model.layers.0.{name}": weights["model.norm.weight"].clone() for name in names}
    masks["v_head.summary.weight"] = weights["model.norm.weight"].clone()
    save_file(weights | masks, tmp_path / "model/model.safetensors", {"format": "pt"})
    model.load(str(tmp_path / "model"))
    refused = refused_model(
        tmp_path / "more", model_dir, weights | {"c_attn.bias": weights["model.norm.weight"].clone()}
    )
    assert refused.endswith("the model has no c_attn.bias")


def test_a_token_beyond_the_embedding_is_refused_where_a_text_has_it(tmp_path, model_dir):
    shutil.copytree(model_dir / "tiny", tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    rows = AutoConfig.from_pretrained(tmp_path / "model").vocab_size
    added = [f"<|added{number}|>" for number in range(rows - len(tokenizer) + 2)]
    tokenizer.add_special_tokens({"additional_special_tokens": added})
    tokenizer.save_pretrained(tmp_path / "model")
    network, tokenizer = model.load(str(tmp_path / "model"))
    collator = Collator(tokenizer, 64, model.embeddings(network))
    collator(["the model"])
    with pytest.raises(UserError, match=rf"the token '<.*>' of the text that begins 'the <.*>' has the id {rows}, and"):
        collator([f"the {added[-2]}"])


def test_a_tokenizer_of_another_model_is_refused(tmp_path, model_dir):
    shutil.copytree(model_dir / "tiny", tmp_path / "model")
    config = AutoConfig.from_pretrained(tmp_path / "model")
    config.vocab_size = 20
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match=r"is not the model's: it has ids up to \d+, and the model 20 embeddings$"):
        model.load(str(tmp_path / "model"))


def refused_model(folder, model_dir, weights):
    shutil.copytree(model_dir / "tiny", folder / "model")
    save_file(weights, folder / "model/model.safetensors", {"format": "pt"})
    with pytest.raises(UserError) as refused:
        model.load(str(folder / "model"))
    return str(refused.value)


def test_a_sharded_checkpoint_that_cannot_be_read_ends_as_any_error(train, tmp_path):
    train("nemo", max_steps=1, sharded=True)
    for path in (tmp_path / "store").rglob("*.distcp"):
        path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(CheckpointError, match=r"^rank 0: UnpicklingError: ") as error:
        train("nemo", SECOND, begins=1, max_steps=2, sharded=True)
    assert cause_of(error.value) == "crash"


@pytest.mark.parametrize(("framework", "own"), RUNNERS)
def test_a_run_does_not_go_on_with_another_model(train, tmp_path, model_dir, framework, own):
    train(framework, max_steps=1, **own)
    other = tmp_path / "other"
    shutil.copytree(model_dir / "tiny", other)
    config = AutoConfig.from_pretrained(other)
    config.intermediate_size = 96
    if framework == "hf":
        (other / "model.safetensors").unlink()  # it takes the checkpoint's weights, and reads no others
        config.save_pretrained(other)
    else:
        AutoModelForCausalLM.from_config(config).save_pretrained(other)
    with pytest.raises(UserError) as error:
        train(framework, SECOND, begins=1, max_steps=2, model=other, **own)
    assert str(error.value) == (
        f"MODEL_ID {other} is another model than the one of step 1, from which this job goes on: "
        "model.layers.0.mlp.gate_proj.weight is 96 x 64, and there 128 x 64"
    )


def test_a_restart_of_hf_asks_for_no_model(train, tmp_path):
    train("hf", max_steps=1)
    train("hf", begins=1, max_steps=2, model=tmp_path / "gone")


def test_of_a_model_in_a_bucket_only_what_is_needed_is_brought(tmp_path, model_dir):
    assert model_files.locate(f"file://{model_dir}/tiny", tmp_path / "config", ["config.json"]) == str(
        tmp_path / "config"
    )
    assert files(tmp_path / "config") == {"config.json"}
    model_files.locate(f"file://{model_dir}/tiny", tmp_path / "all")
    assert files(tmp_path / "all") == files(model_dir / "tiny")


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_who_has_lost_the_run_while_it_loaded_leaves_its_configuration(train, tmp_path, monkeypatch, framework):
    run = run_of(tmp_path / "store", framework)
    train(framework, SECOND, max_steps=1)
    newest = (run / "config/run.json").read_bytes()
    load = model.load

    def load_for_long(source, *how, **more):
        (run / "owner").write_text(json.dumps({"submission": SECOND, "namespace": "n", "job": "j"}))
        return load(source, *how, **more)

    monkeypatch.setattr(model, "load", load_for_long)
    with pytest.raises(SupersededError):
        train(framework, FIRST, max_steps=2)
    assert (run / "config/run.json").read_bytes() == newest
    assert not (run / f"config/{FIRST}/run.json").exists()


@pytest.mark.parametrize("key", ["model/", "model/.", "model/..", "model/onnx/"])
def test_what_a_bucket_has_beside_a_models_files_is_passed_over(s3, tmp_path, model_dir, monkeypatch, key):
    """S3's console makes an empty object for a folder, whose key is the prefix itself."""
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    for path in (model_dir / "tiny").iterdir():
        client(s3).upload_file(str(path), "bucket", f"{tmp_path.name}/model/{path.name}")
    client(s3).put_object(Bucket="bucket", Key=f"{tmp_path.name}/{key}", Body=b"")
    model_files.locate(f"s3://bucket/{tmp_path.name}/model/", tmp_path / "model")
    assert files(tmp_path / "model") == files(model_dir / "tiny")


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, UserError), (404, UserError), (429, StorageError), (500, StorageError), (503, StorageError)],
)
def test_a_hub_that_has_no_answer_now_is_no_fault_of_the_users(tmp_path, monkeypatch, status, kind):
    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.end_headers()

        do_HEAD = do_GET  # noqa: N815

    with http.server.HTTPServer(("127.0.0.1", 0), Hub) as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        asked = functools.partial(huggingface_hub.snapshot_download, endpoint=f"http://127.0.0.1:{hub.server_port}")
        monkeypatch.setattr(huggingface_hub, "snapshot_download", asked)
        with pytest.raises(
            kind, match=r"^MODEL_ID team/model is not a folder under MODEL_DIR and cannot be fetched from the hub"
        ):
            model_files.locate("team/model", tmp_path)
        hub.shutdown()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"lr_scheduler_kwargs": {"cycles": 1}}, "got an unexpected keyword argument 'cycles'"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "One of min_lr or min_lr_rate should be set"),
    ],
)
def test_a_schedule_that_cannot_be_is_a_sentence(train, given, says):
    with pytest.raises(UserError, match=f"^lr_scheduler_type does not go with lr_scheduler_kwargs: .*{says}"):
        train("hf", max_steps=1, **given)


POLYNOMIAL = {"lr_scheduler_type": "polynomial", "max_steps": 3}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"lr_scheduler_type": "inverse_sqrt", "lr_scheduler_kwargs": {"timescale": 0}}, "division by zero"),
        (POLYNOMIAL | {"lr_scheduler_kwargs": {"power": -1}}, r"at step 3: ZeroDivisionError"),
        (POLYNOMIAL | {"lr_scheduler_kwargs": {"power": 0.5, "lr_end": -1}}, r"a learning rate of -0\.\d+ at step 1"),
        (POLYNOMIAL | {"warmup_steps": 3}, r"at step 3: ZeroDivisionError"),
    ],
    ids=["timescale", "power", "negative", "warmup"],
)
def test_a_schedule_is_tried_to_its_end_before_the_first_step(train, tmp_path, given, says):
    with pytest.raises(UserError, match=f"^lr_scheduler_type does not go with .*{says}"):
        train("hf", **{"max_steps": 1} | given)
    assert not list((tmp_path / "store").rglob("step-*"))


@pytest.mark.parametrize(
    "given", [{"neftune_noise_alpha": 1e308}, {"torch_compile_mode": "nope"}], ids=["neftune", "compile"]
)
def test_what_a_library_calls_a_runtime_error_in_the_first_step(train, given):
    with pytest.raises(UserError, match=r"^the model cannot be trained with these settings: \w+Error: "):
        train("hf", max_steps=1, **given)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_model_whose_own_dropout_cannot_be(train, tmp_path, model_dir, framework):
    source = changed(tmp_path, model_dir, attention_dropout=1.5)
    with pytest.raises(UserError, match=r"^the model cannot be trained with these settings: .*1\.5"):
        train(framework, max_steps=1, model=source)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_model_that_gives_more_than_is_asked_for_can_be_saved(train, tmp_path, model_dir, framework):
    source = changed(tmp_path, model_dir, output_attentions=True, output_hidden_states=True)
    assert len(train(framework, max_steps=1, model=source)) == 1


def test_a_model_that_could_not_be_saved_is_refused_before_it_is_trained(tmp_path, model_dir, monkeypatch):
    def refuse(*_, **__):
        raise ValueError("it is no good")

    monkeypatch.setattr(GenerationConfig, "save_pretrained", refuse)
    with pytest.raises(UserError, match=r"tiny cannot be saved as its files describe it: it is no good$"):
        model.load(str(model_dir / "tiny"))


def changed(tmp_path, model_dir, **fields):
    """The tiny model with another config.json."""
    shutil.copytree(model_dir / "tiny", tmp_path / "model")
    path = tmp_path / "model/config.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | fields))
    return tmp_path / "model"


def test_constant_has_a_warmup_whatever_it_is_called(train, tmp_path):
    rates = {}
    for number, given in enumerate([{"scheduler": "constant"}, {"lr_scheduler_type": "constant"}]):
        train("hf", (FIRST, SECOND)[number], begins=2 * number, max_steps=2 + 2 * number, warmup_steps=8, **given)
        (rates[number],) = {
            group["lr"] for group in state(tmp_path / "store", 2 + 2 * number)["optimizer.pt"]["param_groups"]
        }
    assert rates == pytest.approx({0: 0.01 * 2 / 8, 1: 0.01 * 4 / 8})


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_tensorboard_gets_the_numbers_of_each_logged_step(train, tmp_path, framework):
    train(framework, max_steps=3, logging_steps=2, eval_steps=2, report_to="tensorboard")
    (path,) = (run_of(tmp_path / "store", framework) / "logs" / FIRST / "tensorboard").iterdir()
    body = path.read_bytes()
    numbers = ("eval_loss", "loss", "learning_rate", "tokens_per_second")
    assert [len(re.findall(rf"(?<!eval_){number}".encode(), body)) for number in numbers] == [2, 3, 3, 3]
