"""What a person has to mend ends the job as user_error at its first attempt, with a sentence that names it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from alone import ALONE
from conftest import client
from pods import FIRST, SECOND, last_words, run_of, state

import make_tiny_model
from training import configuration, errors, model, model_files
from training.data.batches import Collator
from training.data.listing import find
from training.data.texts import prepare
from training.distributed import sharding
from training.errors import PeerLostError, StorageError, UserError
from training.layout import FRAMEWORKS
from training.settings import Settings
from training.sharded import Split
from training.storage import LFS_POINTER


def ends_as_user_error(pods, folder, store, says, framework="hf", submission=FIRST):
    assert pods.end() == [1], pods.log
    (words,) = last_words(folder)
    assert words["cause"] == "user_error", pods.log
    assert says in words["message"]
    if store:
        path = run_of(store, framework) / "attempts" / submission / "1"
        assert json.loads(path.read_bytes())["cause"] == "user_error"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"optim": "sgd", "optim_args": "momentum=fast"},
            "the model cannot be trained with these settings: ValueError: could not convert string to float: 'fast'",
        ),
        (
            {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"no_such": True}},
            "the model cannot be trained with these settings: ",
        ),
    ],
    ids=["optim_args", "gradient_checkpointing_kwargs"],
)
def test_what_a_library_refuses_before_the_first_step(warm, tmp_path, settings, says):
    with warm(tmp_path / "store", FIRST, processes=0, **settings) as pods:
        ends_as_user_error(pods, tmp_path / "pods-0", tmp_path / "store", says)
        assert "Traceback" in pods.log, "for whoever wants to know more"


def test_another_optimizer_than_the_checkpoints(warm, tmp_path):
    store = tmp_path / "store"
    with warm(store, FIRST, processes=0, max_steps=3, save_steps=3, optim="adamw_torch") as pods:
        assert pods.end() == [0], pods.log
    with warm(store, SECOND, processes=0, resume="true", max_steps=5, optim="adafactor") as pods:
        said = (
            "optim is Adafactor, and the step from which this job goes on was saved by another optimizer, which keeps "
        )
        ends_as_user_error(pods, tmp_path / "pods-1", store, said, submission=SECOND)
    with warm(store, SECOND[:-1] + "2", processes=0, resume="true", max_steps=5, optim="adamw_torch_fused") as pods:
        assert pods.end() == [0], "it is the same one, computed in another way: " + pods.log
    assert state(store, 5)["optimizer.pt"]["state"][0]["step"] == 5


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("DATASET_URI", "s3://no-such-bucket/data/"),
        ("MODEL_ID", "s3://no-such-bucket/model"),
        ("CHECKPOINT_BASE_URI", "s3://no-such-bucket/runs"),
    ],
)
def test_a_bucket_that_does_not_exist(warm, tmp_path, s3, variable, value):
    store = None if variable == "CHECKPOINT_BASE_URI" else tmp_path / "store"
    with warm(tmp_path / "store", FIRST, processes=0, environment=s3 | {variable: value}) as pods:
        said = f"{variable} names the bucket no-such-bucket, which does not exist"
        ends_as_user_error(pods, tmp_path / "pods-0", store, said)


def test_an_archived_object(warm, tmp_path, s3, dataset):
    put = client(s3).put_object
    put(Bucket="bucket", Key="cold/0.jsonl", Body=dataset.read_bytes(), StorageClass="GLACIER")
    environment = s3 | {"DATASET_URI": "s3://bucket/cold/"}
    with warm(tmp_path / "store", FIRST, processes=0, environment=environment) as pods:
        said = "DATASET_URI cannot be read as it is: s3://bucket/cold/0.jsonl is archived, or encrypted"
        ends_as_user_error(pods, tmp_path / "pods-0", tmp_path / "store", said)


def test_a_restart_that_finds_other_data(warm, tmp_path, dataset):
    data, store = tmp_path / "data", tmp_path / "store"
    data.mkdir()
    shutil.copy(dataset, data / "2026-11-01.jsonl")
    job = {"processes": 0, "save_steps": 3, "environment": {"DATASET_URI": f"file://{data}/"}}
    with warm(store, FIRST, max_steps=3, **job) as pods:
        assert pods.end() == [0], pods.log
    shutil.copy(dataset, data / "2026-11-02.jsonl")
    with warm(store, FIRST, max_steps=6, **job) as pods:
        assert pods.end() == [0], pods.log
        assert pods.steps() == [4, 5, 6]
        assert "1 objects were added since this submission began" in pods.log
    assert json.loads((run_of(store) / "config/run.json").read_bytes())["total_steps"] == 6
    (data / "2026-11-01.jsonl").write_text(dataset.read_text() + '{"text": "more"}\n')
    with warm(store, FIRST, max_steps=9, **job) as pods:
        assert pods.end() == [1], pods.log
    (words,) = last_words(tmp_path / "pods-2")
    assert words["cause"] == "user_error"
    assert "is not what this submission began with: 1 changed (2026-11-01.jsonl)" in words["message"]
    with warm(store, SECOND, max_steps=9, resume="true", **job) as pods:
        assert pods.end() == [0], pods.log
        assert pods.steps() == [7, 8, 9]


def test_optimizers_that_keep_other_moments_are_told_apart():
    """Those of bitsandbytes have settings that torch's AdamW has too, and override load_state_dict."""
    from training.runners.hf import check_same_optimizer

    ours = torch.optim.AdamW([torch.zeros(1)])
    settings = {"lr": 1.0, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "params": [0]}
    saved = {"param_groups": [settings], "state": {0: {"state1": 1, "state2": 2, "step": 3}}}
    with pytest.raises(
        UserError, match=r"optim is AdamW, .* another optimizer, which keeps state1, state2, step: keep"
    ):
        check_same_optimizer(ours, saved)
    theirs = type("AdamW8bit", (torch.optim.AdamW,), {"__module__": "bitsandbytes.optim.adamw"})([torch.zeros(1)])
    check_same_optimizer(theirs, saved)
    older = {
        name: value for name, value in ours.state_dict()["param_groups"][0].items() if name != "decoupled_weight_decay"
    }
    mine = {"param_groups": [older], "state": {0: {"exp_avg": 1, "exp_avg_sq": 2, "step": 3}}}
    check_same_optimizer(ours, mine)
    with pytest.raises(UserError, match=r"optim is AdamW8bit, .* which keeps exp_avg, exp_avg_sq, step"):
        check_same_optimizer(theirs, mine)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_token_that_the_model_lacks_is_told_before_its_weights_are_loaded(warm, tmp_path, framework):
    """After a report of an IndexError in the middle of training: the tokenizer has more ids than the embedding rows."""
    make_tiny_model.make(tmp_path / "models" / "tiny")
    path = tmp_path / "models" / "tiny" / "tokenizer.json"
    tokenizer = json.loads(path.read_bytes())
    token = {"id": 475, "content": "<|extra|>", "special": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tokenizer["added_tokens"].append(flags | token)
    path.write_text(json.dumps(tokenizer))
    (tmp_path / "models" / "tiny" / "model.safetensors").write_bytes(b"nobody reads it")
    rows = ['{"text": "a"}', '{"text": "b <|extra|> c"}']
    (tmp_path / "special.jsonl").write_text("\n".join(rows))
    environment = {"MODEL_DIR": str(tmp_path / "models"), "DATASET_URI": f"file://{tmp_path}/special.jsonl"}
    with warm(tmp_path / "store", FIRST, framework=framework, processes=0, environment=environment) as pods:
        said = "special.jsonl, line 2: it has the token '<|extra|>', for which the model has no embedding"
        ends_as_user_error(pods, tmp_path / "pods-0", tmp_path / "store", said, framework)


def test_its_end_is_told_where_no_descriptor_is_left(start, tmp_path, s3, fetch):
    fault = {"FAULT": json.dumps({"descriptors_at": 4})}
    script = Path(__file__).with_name("faulty_train.py")
    base = f"s3://bucket/{tmp_path.name}"
    with start(base, FIRST, processes=0, script=script, environment=s3 | fault) as pods:
        assert pods.end() == [1], pods.log
    (words,) = last_words(tmp_path / "pods-0")
    assert (words["cause"], words["message"]) == ("crash", "OSError: [Errno 24] Too many open files")
    entry = json.loads((run_of(fetch(tmp_path.name)) / "attempts" / FIRST / "1").read_bytes())
    assert (entry["cause"], entry["message"]) == (words["cause"], words["message"])


# === models, by their config.json ===


@pytest.fixture
def folder(tmp_path, model_dir):
    """Makes a copy of the tiny model with another config.json."""

    def make(**fields):
        shutil.copytree(model_dir / "tiny", tmp_path / "model")
        path = tmp_path / "model" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_bytes()) | fields))
        (tmp_path / "model" / "model.safetensors").unlink()
        return str(tmp_path / "model")

    return make


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (
            {
                "quantization_config": {
                    "quant_method": "bitsandbytes",
                    "load_in_4bit": True,
                    "bnb_4bit_quant_type": "nf4",
                }
            },
            "is quantized by bitsandbytes, and such weights cannot be trained: choose the model that it was made from",
        ),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}}, "is quantized by gptq"),
        ({"quantization_config": {"quant_method": "of-tomorrow"}}, "is quantized by of-tomorrow"),
        ({"quantization_config": {"bits": 4}}, "is quantized, and"),
        (
            {"model_type": "bert", "architectures": ["BertForMaskedLM"]},
            "is a bert with is_decoder false: it sees the tokens",
        ),
        ({"model_type": "roberta", "architectures": ["RobertaModel"]}, "is a roberta with is_decoder false"),
        ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, "is no causal language model"),
        ({"model_type": "bart", "is_encoder_decoder": True}, "is no causal language model"),
        ({"model_type": "vit"}, "is no causal language model, and nothing else is trained: it is a vit"),
    ],
    ids=["bitsandbytes", "gptq", "unknown", "nameless", "bert", "roberta", "t5", "bart", "vit"],
)
def test_a_model_that_cannot_be_trained(folder, fields, says):
    with pytest.raises(UserError) as refused:
        model.described(folder(**fields))
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"hidden_act": "nope"}, "cannot be loaded: KeyError: 'nope' (hidden_act in config.json)"),
        ({"num_attention_heads": 7}, "The hidden size (64) is not a multiple of the number of attention heads (7)."),
        (
            {"intermediate_size": 96},
            "config.json describes: model.layers.0.mlp.down_proj.weight is 64 x 128 in its file, and 64 x 96 there",
        ),
        (["tokenizer.json"], "cannot be loaded: it has no tokenizer.json. Couldn't instantiate the backend tokenizer"),
    ],
    ids=["activation", "heads", "shapes", "tokenizer"],
)
@pytest.mark.parametrize("split", [False, True])
def test_why_a_model_cannot_be_loaded(folder, model_dir, fields, says, split):
    source = Path(folder(**(fields if isinstance(fields, dict) else {})))
    shutil.copy(model_dir / "tiny/model.safetensors", source)
    for name in fields if isinstance(fields, list) else []:
        (source / name).unlink()
    with sharding(ALONE), pytest.raises(UserError) as refused:
        model.load(str(source), Split(processes=1, device="cpu", precision="fp32") if split else None)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"]
)
def test_a_pointer_of_git_lfs_is_named(folder, name):
    source = Path(folder())
    (source / "model.safetensors").write_bytes(b"weights")
    (source / name).write_bytes(LFS_POINTER + b" and so on")
    with pytest.raises(UserError, match=rf"has a pointer of Git LFS for {name}: fetch it with `git lfs pull`"):
        model_files.locate(str(source), source)


def test_a_model_without_a_limit_of_positions(folder):
    config, _ = model.described(folder(max_position_embeddings=-1))
    assert configuration.complete(Settings(), config).max_seq_len == 2048
    assert configuration.complete(Settings(max_seq_len=4000), config).max_seq_len == 4000


def test_a_token_that_only_the_normalized_text_has(folder, tmp_path):
    source = Path(folder())
    path = source / "tokenizer.json"
    tokenizer = json.loads(path.read_bytes())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
    tokenizer["added_tokens"].append(flags | {"id": 475, "content": "<image>", "special": False, "normalized": True})
    tokenizer["normalizer"] = {"type": "Lowercase"}
    path.write_text(json.dumps(tokenizer))
    (tmp_path / "one.jsonl").write_text('{"text": "a"}\n{"text": "an <IMAGE> here"}\n')
    uri = f"file://{tmp_path}/one.jsonl"
    unknown, normalize = model.unknown_tokens(str(source)), model.normalizer(str(source))
    assert unknown == ["<image>"]
    with pytest.raises(UserError, match=r"one.jsonl, line 2: it has the token '<image>', for which the model has no"):
        prepare(uri, find(uri), Settings(), tmp_path, ALONE, unknown, normalize)


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (RuntimeError("uniform_ expects to return a [from, to) range"), True),
        (ZeroDivisionError("division by zero"), True),
        (KeyError("nope"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), False),
        (RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed."), False),
        (RuntimeError("[gloo/transport/tcp/pair.cc:525] Connection closed by peer [10.0.0.1]:2"), False),
        (torch.distributed.DistBackendError("NCCL error in: ProcessGroupNCCL.cpp"), False),
        (torch.distributed.DistNetworkError("The client socket has failed to connect"), False),
        (PeerLostError("rank 1 is gone"), False),
        (StorageError("the bucket does not answer"), False),
        (UserError("told already"), False),
    ],
)
def test_only_what_was_asked_for_is_called_the_users(error, asked):
    assert errors.is_of_what_was_asked(error) is asked


@pytest.mark.parametrize(
    ("said", "end"),
    [({"eos_token_id": 1}, 1), ({"eos_token_id": [1, 0]}, 1), ({"eos_token_id": 50_000}, None), ({}, None)],
)
def test_an_end_token_that_only_the_model_knows(folder, said, end):
    """Else no text would have one, and the model would never learn to end."""
    source = Path(folder())
    path = source / "config.json"
    config = json.loads(path.read_bytes())
    del config["eos_token_id"]
    path.write_text(json.dumps(config | said))
    (source / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    _, tokenizer = model.described(str(source))
    assert tokenizer.eos_token_id == end
    assert (Collator(tokenizer, 64)(["the"])["input_ids"][0, -1] == 1) == (end == 1)


def test_a_decoder_of_an_encoders_kind_can_be_trained(folder):
    config, _ = model.described(folder(model_type="bert", is_decoder=True))
    assert config.model_type == "bert"
