"""What settings do, in whole runs of each framework: nothing that is given is ignored."""

import json
import re
import shutil

import pytest
from pods import FIRST, SETTINGS, exported, marker, markers, run_of, same, state
from safetensors.torch import load_file, save_file
from test_settings import USUAL

import make_tiny_model
from training import training_arguments
from training.layout import FRAMEWORKS

frameworks = pytest.mark.parametrize("framework", FRAMEWORKS)


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """Texts in a field of another name, in objects of several sizes."""
    folder = tmp_path_factory.mktemp("shards")
    sentences = make_tiny_model.sentences()
    for number, (begin, end) in enumerate([(0, 40), (40, 50), (50, 90), (90, 160)]):
        rows = [json.dumps({"body": text}) + "\n" for text in sentences[begin:end]]
        (folder / f"{number}.jsonl").write_text("".join(rows))
    return folder


# 160 texts, 3 of them held out; two processes with 4 texts each make that 20 micro-steps an epoch.
EVERYTHING = {
    "max_steps": ...,
    "num_epochs": 1.5,
    "lr": 0.02,
    "batch_size": 4,
    "gradient_accumulation": ...,
    "gradient_accumulation_steps": 3,
    "max_seq_len": 16,
    "save_steps": 4,
    "eval_steps": 5,
    "logging_steps": 2,
    "dataset_text_field": "body",
    "precision": "bf16",
    "dataloader_workers": 1,
    "streaming": True,
    "seed": 3,
    "warmup_steps": 4,
    "weight_decay": 0.1,
    "scheduler": "constant",
    "keep_last": 2,
}


@frameworks
def test_all_of_them_together(warm, tmp_path, shards, framework):
    store = tmp_path / "store"
    own = {"max_grad_norm": 2.5, "optim": "adamw_torch"} if framework == "hf" else {}
    environment = {"DATASET_URI": f"file://{shards}/"}
    with warm(store, FIRST, framework=framework, environment=environment, **EVERYTHING | own) as pods:
        assert pods.end() == [0], pods.log
    assert markers(store, framework) == [8, 10], "20 micro-steps, half of them again, by 3; the last two are kept"
    left = {path.name.partition(".")[0] for path in (run_of(store, framework) / "checkpoints").iterdir()}
    assert all(name.endswith(("8", "10")) for name in left), left
    assert re.findall(r"step (\d+)/10 loss", pods.log) == ["1", "2", "4", "6", "8", "10"]
    assert re.findall(r"step (\d+)/10 eval_loss", pods.log) == ["5", "10"]
    assert marker(store, 8, framework)["metrics"].keys() == {"loss"}
    at_the_end = marker(store, 10, framework)["metrics"]
    assert 0 < at_the_end["eval_loss"] < 6.2, "less than chance"

    assert {str(weight.dtype) for weight in exported(store, FIRST, framework).values()} == {"torch.float32"}
    groups = groups_of(state(store, 10, framework))
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(0.02, 0.1), (0.02, 0.0)]
    written = json.loads((run_of(store, framework) / "config/run.json").read_bytes())["settings"]
    expected = {name: value for name, value in EVERYTHING.items() if value is not ...}
    expected["gradient_accumulation"] = expected.pop("gradient_accumulation_steps")
    assert written.items() >= expected.items()
    assert written["training_arguments"] == own


def groups_of(found):
    """The optimizer's groups, wherever a framework keeps them."""
    if "optimizer.pt" in found:
        return found["optimizer.pt"]["param_groups"]
    if "optimizer_states" in found:
        return found["optimizer_states"][0]["param_groups"]
    return found["optimizer_0" if "optimizer_0" in found else "optimizer"]["param_groups"]


# The optimizer and its fp32 weights are the same in all three.
@frameworks
def test_weights_move_by_less_than_bf16_can_hold(warm, tmp_path, model_dir, framework):
    """A model whose file is bf16, trained in bf16 by steps that a bf16 weight would round away."""
    models = tmp_path / "models"
    shutil.copytree(model_dir, models)
    path = models / "tiny" / "model.safetensors"
    weights = {name: weight.bfloat16() for name, weight in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})
    store = tmp_path / "store"
    job = {"precision": "bf16", "lr": 1e-7, "max_steps": 2, "scheduler": "constant", "processes": 0}
    with warm(store, FIRST, framework=framework, environment={"MODEL_DIR": str(models)}, **job) as pods:
        assert pods.end() == [0], pods.log
    after = exported(store, FIRST, framework)
    name = "model.layers.0.mlp.up_proj.weight"
    moved = after[name] - weights[name].float()
    assert (moved != 0).float().mean() > 0.9
    assert (after[name].bfloat16() == weights[name]).float().mean() > 0.9, "and yet few bf16 weights would have moved"


@pytest.mark.parametrize(
    ("framework", "given", "says"),
    [
        ("hf", {"max_step": 5}, "extra_args.max_step is no setting of hf: did you mean max_steps?"),
        ("nemo", {"max_grad_norm": 2}, "extra_args.max_grad_norm cannot be set: framework hf alone takes it"),
        ("meta", {"lr": "fast"}, 'extra_args.lr must be a number, not "fast"'),
        ("meta", {"precision": "fp16"}, "precision fp16 needs a GPU; bf16 and fp32 do not"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_trained(warm, tmp_path, framework, given, says):
    with warm(tmp_path / "store", FIRST, framework=framework, processes=0, **given) as pods:
        assert pods.end() == [1]
    words = json.loads((tmp_path / "pods-0/termination-0").read_text())
    assert (words["cause"], words["rank"]) == ("user_error", 0)
    assert words["message"].startswith(says)
    assert pods.steps() == []


def test_the_best_model_is_exported_and_kept(warm, tmp_path):
    """A learning rate that is far too high makes the losses of the last steps greater than those of the first ones."""
    store = tmp_path / "store"
    given = {
        "max_steps": 12,
        "save_steps": 0.25,
        "eval_steps": 0.25,
        "lr": 0.6,
        "scheduler": "constant",
        "keep_last": 1,
    }
    with warm(store, FIRST, load_best_model_at_end=True, tf32=True, warmup_ratio=0.5, **given) as pods:
        assert pods.end() == [0], pods.log
    losses = {int(step): float(loss) for step, loss in re.findall(r"step (\d+)/12 eval_loss (\S+)", pods.log)}
    assert list(losses) == [3, 6, 9, 12]
    best = min(losses, key=lambda step: losses[step])
    assert best != 12, losses
    assert f"the best step is {best}, with eval_loss {losses[best]:.4f}" in pods.log
    assert markers(store) == [best, 12], "the others are not kept"
    assert same(exported(store, FIRST, "hf"), state(store, best)["weights"])


def test_a_usual_set_of_arguments_trains_at_the_first_try(warm, tmp_path):
    replaced = dict.fromkeys(SETTINGS, ...)
    with warm(tmp_path / "store", FIRST, processes=0, **replaced | USUAL) as pods:
        assert pods.end() == [0], pods.log
    total = 9  # 96 texts are not held out, 32 a step, three epochs
    assert markers(tmp_path / "store") == [total]
    (state_of,) = {group["lr"] for group in groups_of(state(tmp_path / "store", total))}
    assert state_of == 0.0, "a cosine ends there"
    assert f"the best step is {total}" in pods.log
    assert list((run_of(tmp_path / "store") / "logs" / FIRST / "tensorboard").iterdir())


@pytest.mark.soak
@pytest.mark.parametrize(
    ("name", "value"),
    [
        (name, value)
        for name in ("optim", "lr_scheduler_type")
        for value in training_arguments.runnable(name, training_arguments.enumerated(training_arguments.kinds(name)))
    ],
)
def test_each_value_of_an_enumeration_trains(warm, tmp_path, name, value):
    needed = {
        "cosine_with_min_lr": {"lr_scheduler_kwargs": {"min_lr": 1e-5}},
        "cosine_warmup_with_min_lr": {"lr_scheduler_kwargs": {"min_lr": 1e-5}},
        "warmup_stable_decay": {"lr_scheduler_kwargs": {"num_decay_steps": 1}},
    }.get(value, {})
    with warm(tmp_path / "store", FIRST, processes=0, max_steps=2, **{name: value}, **needed) as pods:
        assert pods.end() == [0], pods.log
        assert pods.steps() == [1, 2]
