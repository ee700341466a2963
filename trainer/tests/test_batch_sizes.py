"""How many texts a step has, and how they are taken: by the settings, the processes and the memory of the GPUs."""

import dataclasses
import json
import re
from pathlib import Path
from unittest import mock

import pytest
import torch
from pods import FIRST, run_of
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, LlamaConfig, MixtralConfig

import make_tiny_model
from training import batch_sizes, fit, layout, model
from training.data.batches import nothing
from training.errors import UserError
from training.settings import Settings

LLAMA = {
    "model_type": "llama",
    "vocab_size": 128256,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}
SIZES = {
    "8B": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
    "70B": {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64},
    "405B": {"hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126, "num_attention_heads": 128},
}


@pytest.fixture
def described(tmp_path):
    """A folder that has a model's config.json and nothing else."""

    def write(size):
        (tmp_path / "config.json").write_text(json.dumps(LLAMA | SIZES[size]))
        return str(tmp_path)

    return write


@pytest.mark.parametrize(
    ("given", "processes", "found"),
    [
        ({}, 2, (8, 4, 1)),
        ({"batch_size": 3, "gradient_accumulation": 2}, 2, (12, 3, 2)),
        ({"global_batch_size": 64}, 2, (64, 4, 8)),
        ({"global_batch_size": 64, "batch_size": 8}, 2, (64, 8, 4)),
        ({"global_batch_size": 64, "gradient_accumulation": 2}, 2, (64, 16, 2)),
        ({"global_batch_size": 7, "batch_size": 2}, 3, (7, 2, 2)),
        ({"global_batch_size": 2}, 2, (2, 1, 1)),
    ],
)
def test_the_texts_of_a_step(given, processes, found):
    settings = Settings(**given)
    settled = batch_sizes.complete(settings, batch_sizes.choose(settings, "", processes, None))
    assert (settled.global_batch_size, settled.batch_size, settled.gradient_accumulation) == found


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"global_batch_size": 3}, "global_batch_size 3 is less than the 4 processes, and each needs a text"),
        (
            {"global_batch_size": 64, "batch_size": 4, "gradient_accumulation": 2},
            "global_batch_size 64 is not batch_size 4 x gradient_accumulation 2 x 4 processes: leave one of them out",
        ),
    ],
)
def test_numbers_that_contradict_each_other_are_refused(given, says):
    with pytest.raises(UserError, match=says):
        batch_sizes.choose(Settings(**given), "", 4, None)


def ways(answer):
    return {(way["micro_batch"], way["gradient_checkpointing"]): way["peak"] / 1e9 for way in answer["ways"]}


def test_8b_fits_on_eight_gpus(described, capsys):
    """The mission's example. Peaks without CUDA's own 3 GB are those of facts: 31 GB at one text, 47 GB at two."""
    assert fit.main([described("8B"), "--gpus", "8", "--gpu-memory", "80", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["parameters"] == 8_030_261_248
    assert (answer["chosen"]["micro_batch"], answer["chosen"]["gradient_checkpointing"]) == (2, False)
    assert 50 < answer["chosen"]["peak"] / 1e9 < 60 < 75
    assert min(peak for (size, _), peak in ways(answer).items() if size > 2) > 75


def test_with_activations_computed_again_all_texts_fit_at_once(described):
    """The logits of 16 texts would take 17 GB in fp32, and the same again for their gradients."""
    wanted = fit.Wanted(processes=8, memory=80e9, texts=16, seq_len=2048, gradient_checkpointing=True)
    answer = fit.choose(model.config_of(described("8B")), wanted)
    assert (answer.chosen.micro_batch, answer.chosen.micro_steps) == (16, 1)
    assert answer.chosen.peak / 1e9 < 40


def test_70b_fits_on_eight_nodes(described, capsys):
    assert fit.main([described("70B"), "--nodes", "8"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^ +2 +1 +yes +3\d\.\d fits$", said, re.M), said
    assert re.search(r"^ +1 +2 +no +\d+\.\d$", said, re.M), "without checkpointing it does not fit"


def test_405b_does_not_fit_on_one_node(described, capsys):
    assert fit.main([described("405B")]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == (
        "nothing fits: 405.9 billion parameters take 812 GB a GPU for weights, gradients and optimizer alone, and 8 of "
        "80 GB have 75 GB each: take at least 96 GPUs"
    )


def test_a_text_that_is_too_long_is_refused_with_what_would_help(described):
    wanted = fit.Wanted(processes=8, memory=80e9, texts=1, seq_len=8192, gradient_checkpointing=False)
    answer = fit.choose(model.config_of(described("8B")), wanted)
    assert answer.refusal.startswith("one text of 8192 tokens takes ")
    assert "say gradient_checkpointing true, or take at least " in answer.refusal


def test_a_job_asks_before_it_loads_anything(described, caplog):
    caplog.set_level("INFO")
    settings = Settings(global_batch_size=128, max_seq_len=2048, precision="bf16", sharded=True)
    chosen = batch_sizes.choose(settings, described("8B"), 8, 80 * 10**9)
    assert (chosen.texts, chosen.batch_size, chosen.gradient_checkpointing) == (16, 2, False)
    assert "takes its 16 texts of a step in 8 micro-steps of 2: 55." in caplog.text
    settled = batch_sizes.complete(settings, chosen)
    assert (settled.global_batch_size, settled.gradient_accumulation) == (128, 8)


@pytest.mark.parametrize("make", [GPT2Config, Gemma2Config, LlamaConfig], ids=lambda make: make.model_type)
@pytest.mark.parametrize("tied", [True, False])
def test_a_weight_with_two_names_is_counted_once(make, tied):
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 500}
    config = make(**small, tie_word_embeddings=tied)
    wanted = fit.Wanted(processes=4, memory=80e9, texts=1, seq_len=8)
    counted, share = fit.parameters(config, wanted)
    assert counted == sum(weight.numel() for weight in AutoModelForCausalLM.from_config(config).parameters())
    assert counted / 4 <= share < counted / 3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--global-batch-size", "3"], "global_batch_size 3 is less than the 8 processes, and each needs a text"),
        (["--max-seq-len", "9000"], "max_seq_len 9000 is beyond the 8192 positions of the model"),
        (["--gpu-memory", "3.2"], "a GPU of 3.2 GB has no room beside the 3 GB of CUDA and NCCL"),
    ],
)
def test_what_a_job_would_refuse_does_not_fit(described, capsys, arguments, says):
    assert fit.main([described("8B"), *arguments]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("fields", [{"hidden_size": 0}, {"hidden_size": -4}, {"vocab_size": 0}])
def test_a_model_that_cannot_be_is_a_sentence(described, capsys, fields):
    path = Path(described("8B")) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | fields))
    assert fit.main([str(path.parent)]) == 2
    assert "cannot be loaded: " in capsys.readouterr().err


@pytest.mark.parametrize("memory", ["0", "-1", "nan", "inf", "x"])
def test_what_is_no_memory_is_refused(memory, capsys):
    with pytest.raises(SystemExit):
        fit.main(["model", f"--gpu-memory={memory}"])
    assert "--gpu-memory" in capsys.readouterr().err


@pytest.mark.soak
def test_128_texts_at_once_are_taken_in_several_micro_steps(described):
    settings = Settings(batch_size=128, max_seq_len=2048, precision="bf16", sharded=True)
    chosen = batch_sizes.choose(settings, described("8B"), 8, 80 * 10**9)
    settled = batch_sizes.complete(settings, chosen)
    assert (settled.global_batch_size, settled.batch_size, settled.gradient_accumulation) == (1024, 2, 64)


def test_after_an_attempt_that_ran_out_of_memory_the_next_takes_less(described, caplog):
    """Its mathematics are the same, and torch's tracker knows nothing of how CUDA's memory is cut up."""
    settings = Settings(global_batch_size=128, max_seq_len=2048, precision="bf16", sharded=True)
    with mock.patch.object(batch_sizes, "ask", side_effect=AssertionError("nobody is asked")):
        found = dataclasses.replace(
            batch_sizes.choose(settings, "", 8, None), memory=80 * 10**9, batch_size=3, peak=7e10
        )
        taken = []
        for _ in range(4):
            found = batch_sizes.choose(settings, "", 8, 80 * 10**9, found, ran_out=True)
            taken.append((found.batch_size, found.gradient_checkpointing))
        assert taken == [(2, False), (1, False), (1, True), (1, True)]
        assert batch_sizes.choose(settings, "", 8, 80 * 10**9, found) == found, "which stays"
    assert "the last attempt ran out of memory: this one takes 2 texts at a time" in caplog.text
    with mock.patch.object(batch_sizes, "ask", return_value=None) as asked:
        batch_sizes.choose(dataclasses.replace(settings, max_seq_len=4096), "", 8, 80 * 10**9, found)
    assert asked.called, "of longer texts"


def test_what_does_not_fit_is_a_sentence(described):
    with pytest.raises(UserError, match=r"^this training does not fit: 405\.9 billion parameters take 812 GB a GPU"):
        batch_sizes.choose(Settings(max_seq_len=64, precision="bf16", sharded=True), described("405B"), 8, 80 * 10**9)


def test_a_model_that_cannot_be_followed_takes_few_texts_at_a_time_and_asks_again(tmp_path, caplog):
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "mamba", "num_hidden_layers": 2, "hidden_size": 64})
    )
    settings = Settings(global_batch_size=1024, max_seq_len=64, precision="bf16", sharded=True)
    chosen = batch_sizes.choose(settings, str(tmp_path), 8, 80 * 10**9)
    assert (chosen.texts, chosen.batch_size, chosen.peak) == (128, 4, None)
    assert "nobody can tell how much fits" in caplog.text
    with mock.patch.object(batch_sizes, "ask", return_value=None) as asked:
        batch_sizes.choose(settings, str(tmp_path), 8, 80 * 10**9, chosen)
    assert asked.called


def test_an_optimizer_that_keeps_less_is_not_refused(described, caplog):
    settings = Settings(max_seq_len=64, precision="fp16", sharded=False, training_arguments={"optim": "adafactor"})
    assert batch_sizes.choose(settings, described("8B"), 1, 80 * 10**9).batch_size == 4
    assert "nobody can tell how much fits (8.0 billion parameters take 128 GB" in caplog.text


def test_a_restart_takes_what_was_taken_before():
    settings = Settings(global_batch_size=64)
    fresh = batch_sizes.choose(settings, "", 2, None)
    earlier = dataclasses.replace(fresh, batch_size=2, gradient_checkpointing=True, peak=1e9)
    assert batch_sizes.choose(settings, "", 2, None, earlier) == earlier
    for other in (
        dataclasses.replace(earlier, processes=3),
        dataclasses.replace(earlier, memory=1),
        dataclasses.replace(earlier, texts=31),
        dataclasses.replace(earlier, batch_size=33),
    ):
        assert batch_sizes.choose(settings, "", 2, None, other) == fresh


@pytest.mark.parametrize("framework", layout.FRAMEWORKS)
def test_as_many_texts_give_the_same_losses_whoever_shares_them(warm, tmp_path, framework):
    """One process with seven texts at once, and three with three, two and two of them, one at a time."""
    make_tiny_model.make(tmp_path / "models" / "tiny")  # without dropout
    job = {"framework": framework, "global_batch_size": 7, "gradient_accumulation": ..., "max_steps": 4}
    losses = {}
    for processes, batch_size in [(0, 7), (3, 1)]:
        store = tmp_path / str(processes)
        environment = {"MODEL_DIR": str(tmp_path / "models")}
        with warm(store, FIRST, processes=processes, batch_size=batch_size, environment=environment, **job) as pods:
            assert pods.end() == [0], pods.log
        losses[processes] = [float(loss) for loss in re.findall(r"step \d+/4 loss (\S+)", pods.log)]
        written = json.loads((run_of(store, framework) / f"config/{FIRST}/run.json").read_bytes())
        assert written["settings"]["global_batch_size"] == 7
        assert written["batches"]["batch_size"] == batch_size
    assert len(losses[0]) == 4
    assert losses[3] == pytest.approx(losses[0], abs=2e-4)


def test_the_loss_that_balances_experts_counts_once_in_a_step(tmp_path):
    """Models add it to the loss of each batch, and a step takes the sum: eight micro-steps had eight times of it."""
    make_tiny_model.make(tmp_path / "model")
    small = {"vocab_size": 512, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    experts = {"num_local_experts": 4, "num_key_value_heads": 2, "num_hidden_layers": 2, "output_router_logits": True}
    AutoModelForCausalLM.from_config(MixtralConfig(**small, **experts)).save_pretrained(tmp_path / "model")
    network, _ = model.load(str(tmp_path / "model"))
    texts = torch.randint(0, 512, (8, 12), generator=torch.Generator().manual_seed(1))

    def of_step(batches):
        """The part of a step's loss that balances the experts."""
        found = [
            network(input_ids=batch, labels=batch, num_items_in_batch=88, use_cache=False)
            for batch in texts.chunk(batches)
        ]
        logits = torch.cat([one.logits for one in found])[:, :-1].flatten(0, 1)
        words = torch.nn.functional.cross_entropy(logits, texts[:, 1:].flatten())
        return float(sum(one.loss for one in found) - words)

    once = of_step(1)
    assert of_step(8) > 7 * once > 0, "as the model has it"
    model.share_router_loss(network, 8)
    assert of_step(8) == pytest.approx(once, rel=0.2)
    assert of_step(3) == pytest.approx(once, rel=0.2), "of three, three and two texts"
    assert float(network(**nothing(), num_items_in_batch=88, use_cache=False).loss) == 0, "it has no text"
    assert network.config.router_aux_loss_coef == MixtralConfig().router_aux_loss_coef
