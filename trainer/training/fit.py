"""Whether a training fits into the memory of its GPUs, and with which micro-batches: from a model's config.json alone.

    python -m training.fit MODEL_ID --nodes 1 --gpus 8 --gpu-memory 80 --global-batch-size 128 --max-seq-len 2048

prints a table, and exits 1 where nothing fits. A job on GPUs asks the same before it loads any weights.

torch's own tracker follows a step of the model, split as the runners split it, over tensors that have no memory. What
it cannot see is added: the optimizer's moments, and what CUDA and NCCL take. Of a model with many equal layers two
short ones are followed, since each layer more adds the same.
"""

import argparse
import dataclasses
import json
import math
import sys
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path

from training.errors import KnownError, UserError

if typing.TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from training.sharded import Split

GB = 1e9
CONTEXT = 3 * GB  # of CUDA and NCCL
USABLE = 15 / 16  # of a GPU's memory; the rest is lost between blocks of other sizes
MOMENTS = 8  # bytes a weight that AdamW keeps
GRADIENT = 4  # bytes a weight, in fp32
BUCKETS = 4  # bytes a weight, of DDP
STATE = 16  # bytes a weight: fp32 weights and gradients, and moments
SHORT = 4  # layers that are followed at least, and once more as many


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is to be trained, and where."""

    processes: int  # of which each has a GPU
    memory: float  # bytes of a GPU
    texts: int  # of a process in a step
    seq_len: int  # tokens of a text
    precision: str = "bf16"
    sharded: bool = True
    gradient_checkpointing: bool | None = None  # None: where nothing fits without
    most: int | None = None  # texts that a micro-batch may have

    @property
    def usable(self) -> float:
        return self.memory * USABLE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Way:
    """A way to train it."""

    micro_batch: int  # texts
    micro_steps: int  # of a step
    gradient_checkpointing: bool
    peak: float  # bytes of the GPU that has most, CUDA's own included


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    parameters: int
    share: int  # of them, of the process that has most
    ways: list[Way]  # all that were looked at
    chosen: Way | None
    refusal: str | None  # one sentence, where nothing fits


class Model:
    """A model as its config.json describes it; its peaks are followed when they are first asked for."""

    def __init__(self, config: "PreTrainedConfig", wanted: Wanted) -> None:
        self.config = config
        self.wanted = wanted
        self.layers = getattr(config.get_text_config(), "num_hidden_layers", 0) or 0
        self.parameters, self.share = parameters(config, wanted)
        self.state = STATE * self.share
        self.peaks: dict[tuple[int, bool], float] = {}

    def way(self, micro_batch: int, gradient_checkpointing: bool) -> Way:
        key = micro_batch, gradient_checkpointing
        if key not in self.peaks:
            self.peaks[key] = self._peak(*key)
        micro_steps = math.ceil(self.wanted.texts / micro_batch)
        # After the first micro-step there are gradients from the beginning.
        gradients = 0 if micro_steps == 1 else GRADIENT * self.share
        return Way(
            micro_batch=micro_batch,
            micro_steps=micro_steps,
            gradient_checkpointing=gradient_checkpointing,
            peak=self.peaks[key] + gradients,
        )

    def _peak(self, micro_batch: int, gradient_checkpointing: bool) -> float:
        from training.sharded import shortened

        one, other = short(self.config)
        if self.layers > other:
            few, more = (
                followed(shortened(self.config, layers), self.wanted, micro_batch, gradient_checkpointing)
                for layers in (one, other)
            )
            peak = more + (more - few) / (other - one) * (self.layers - other)
        else:
            peak = followed(self.config, self.wanted, micro_batch, gradient_checkpointing)
        return peak + self.share * added(self.wanted) + CONTEXT


def added(wanted: Wanted) -> float:
    """Bytes for each weight of a process that the tracker does not see."""
    return MOMENTS + (BUCKETS if not wanted.sharded and wanted.processes > 1 else 0)


def choose(config: "PreTrainedConfig", wanted: Wanted) -> Answer:
    """The largest micro-batch that fits; with checkpointing only where not even one text fits without."""
    if wanted.usable <= CONTEXT:
        raise UserError(
            f"a GPU of {wanted.memory / GB:g} GB has no room beside the {CONTEXT / GB:g} GB of CUDA and NCCL"
        )
    model = Model(config, wanted)
    if model.state + CONTEXT > wanted.usable:
        return Answer(parameters=model.parameters, share=model.share, ways=[], chosen=None, refusal=too_large(model))
    allowed = wanted.gradient_checkpointing
    looked: list[Way] = []
    for checkpointing in (False, True) if allowed is None else (allowed,):
        for size in sizes(wanted.texts, wanted.most):
            way = model.way(size, checkpointing)
            looked.append(way)
            if way.peak <= wanted.usable:
                return Answer(parameters=model.parameters, share=model.share, ways=looked, chosen=way, refusal=None)
    return Answer(
        parameters=model.parameters, share=model.share, ways=looked, chosen=None, refusal=too_long(model, looked[-1])
    )


def sizes(texts: int, most: int | None = None) -> Iterator[int]:
    """Micro-batches to look at, the largest first: those of as many micro-steps as powers of two."""
    last, steps = 0, math.ceil(texts / (most or texts))
    while last != 1:
        size = math.ceil(texts / steps)
        if size != last:
            yield size
        last, steps = size, 2 * steps


def too_large(model: Model) -> str:
    wanted, state = model.wanted, model.state
    said = (
        f"{model.parameters / GB:.1f} billion parameters take {state / GB:.0f} GB a GPU for weights, gradients and "
        f"optimizer alone, and {wanted.processes} of {wanted.memory / GB:.0f} GB have {wanted.usable / GB:.0f} GB each"
    )
    if not wanted.sharded and wanted.processes > 1:
        return f"{said}: leave sharded out, so that they share them"
    return f"{said}: take at least {enough(STATE * model.parameters, wanted.usable - CONTEXT)} GPUs"


def too_long(model: Model, least: Way) -> str:
    wanted = model.wanted
    rest = least.peak - model.state
    said = (
        f"one text of {wanted.seq_len} tokens takes {least.peak / GB:.0f} GB at the peak"
        f"{', with activations computed again' if least.gradient_checkpointing else ''}, and a GPU of "
        f"{wanted.memory / GB:.0f} GB has {wanted.usable / GB:.0f} GB"
    )
    ways = []
    if not least.gradient_checkpointing:
        ways.append("say gradient_checkpointing true")
    if not wanted.sharded and wanted.processes > 1:
        ways.append("leave sharded out")
    elif wanted.sharded and rest < wanted.usable:
        ways.append(f"take at least {enough(STATE * model.parameters, wanted.usable - rest)} GPUs")
    ways.append("a smaller max_seq_len")
    return f"{said}: {', or '.join(ways)}"


def enough(total: float, each: float) -> int:
    """GPUs, in whole nodes of eight where they are more than one node."""
    least = math.ceil(total / each)
    return least if least <= 8 else 8 * math.ceil(least / 8)


# === following a model ===


def parameters(config: "PreTrainedConfig", wanted: Wanted) -> tuple[int, int]:
    """How many weights the model has, and how many of them the process that has most."""
    from training.sharded import without_weights

    weights, split = list(without_weights(config).parameters()), split_of(wanted)
    return sum(weight.numel() for weight in weights), sum(map(split.share, weights))


def split_of(wanted: Wanted) -> "Split":
    from training.sharded import Split

    return Split(processes=wanted.processes if wanted.sharded else 1, device="cpu", precision=wanted.precision)


def short(config: "PreTrainedConfig") -> tuple[int, int]:
    """Two numbers of layers. From one to the other come layers of each kind, as often as in the whole model."""
    kinds = getattr(config.get_text_config(), "layer_types", None) or []
    period = next((every for every in range(1, len(kinds)) if kinds[every:] == kinds[:-every]), 1)
    one = period * math.ceil(SHORT / period)
    return one, 2 * one


def followed(config: "PreTrainedConfig", wanted: Wanted, micro_batch: int, gradient_checkpointing: bool) -> float:
    """Bytes at the peak of a first micro-step as torch's tracker has it. The process belongs to no other group."""
    import torch
    import torch.distributed as dist
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
    from torch.distributed._tools.mem_tracker import MemTracker
    from torch.distributed.device_mesh import init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore
    from transformers import AutoModelForCausalLM

    from training import loss

    split, in_chunks = split_of(wanted), loss.can_be(config)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=split.processes)
    try:
        mesh = init_device_mesh("cpu", (split.processes,))
        with FakeTensorMode():
            network = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
            if gradient_checkpointing:
                network.activation_checkpointing_enable({"use_reentrant": False})
            if in_chunks:
                loss.install(network)
            network.train()
            texts = torch.zeros((micro_batch, wanted.seq_len), dtype=torch.long)
            # As it is made of a batch that has padding; transformers would look into it.
            mask = torch.ones((micro_batch, 1, wanted.seq_len, wanted.seq_len), dtype=torch.bool)
            if wanted.sharded:
                split.shard(network, mesh)
                tracker: MemTracker = FSDPMemTracker(network, torch.optim.AdamW(network.parameters()))
                tracker.track_inputs((texts, mask))
            else:
                tracker = MemTracker()
                tracker.track_external(network, texts, mask)
            # A model that is not split has fp32 weights, and autocast makes of them what it computes with.
            casts = not wanted.sharded and wanted.precision != "fp32"
            with tracker:
                with torch.autocast("cpu", torch.bfloat16, enabled=casts):
                    found = network(input_ids=texts, labels=texts, attention_mask=mask, use_cache=False).loss
                found.backward()
            return sum(sizes["Total"] for sizes in tracker.get_tracker_snapshot("peak").values())
    finally:
        dist.destroy_process_group()


# === the command ===


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    about, _, _ = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(prog="python -m training.fit", description=about)
    parser.add_argument(
        "model_id", metavar="MODEL_ID", help="a folder, an s3:// folder or a hub name; config.json is enough"
    )
    parser.add_argument("--nodes", type=positive, default=1, help="default %(default)s")
    parser.add_argument("--gpus", type=positive, default=8, help="of each node; default %(default)s")
    parser.add_argument(
        "--gpu-memory", type=gigabytes, default=80.0, metavar="GB", help="of each GPU; default %(default)s"
    )
    parser.add_argument("--global-batch-size", type=positive, default=128, help="texts of a step; default %(default)s")
    parser.add_argument("--max-seq-len", type=positive, default=2048, help="tokens of a text; default %(default)s")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16", help="default %(default)s")
    parser.add_argument("--framework", choices=("hf", "nemo", "meta"), default="hf", help="all three shard alike")
    parser.add_argument("--sharded", choices=("true", "false"), default="true", help="default %(default)s")
    parser.add_argument("--gradient-checkpointing", choices=("true", "false"), help="default: where it is needed")
    parser.add_argument("--json", action="store_true", help="print the answer for programs")
    parser.add_argument("--most", type=positive, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value


def gigabytes(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no memory of a GPU")
    return value


def wanted_by(arguments: argparse.Namespace) -> Wanted:
    processes = arguments.nodes * arguments.gpus
    checkpointing = arguments.gradient_checkpointing
    return Wanted(
        processes=processes,
        memory=arguments.gpu_memory * GB,
        texts=math.ceil(arguments.global_batch_size / processes),
        seq_len=arguments.max_seq_len,
        precision=arguments.precision,
        sharded=arguments.sharded == "true",
        gradient_checkpointing=None if checkpointing is None else checkpointing == "true",
        most=arguments.most,
    )


def table(answer: Answer, wanted: Wanted) -> Iterator[str]:
    state = answer.share * STATE / GB
    yield (
        f"{answer.parameters / GB:.2f} billion parameters on {wanted.processes} GPUs of {wanted.memory / GB:g} GB, of "
        f"which {wanted.usable / GB:.1f} GB are used; weights, gradients and optimizer take {state:.1f} GB a GPU"
    )
    yield f"{wanted.texts} texts of {wanted.seq_len} tokens a process and step, in {wanted.precision}"
    if answer.ways:
        yield f"{'micro-batch':>11} {'micro-steps':>11} {'checkpointing':>13} {'peak GB':>9}"
    for way in answer.ways:
        checkpointing = "yes" if way.gradient_checkpointing else "no"
        fits = "fits" if way.peak <= wanted.usable else ""
        yield f"{way.micro_batch:>11} {way.micro_steps:>11} {checkpointing:>13} {way.peak / GB:>9.1f} {fits}".rstrip()
    if answer.refusal:
        yield f"nothing fits: {answer.refusal}"


def main(arguments: Sequence[str] | None = None) -> int:
    import tempfile

    from training import batch_sizes, configuration, model, model_files
    from training.settings import Settings

    given = parsed(arguments)
    wanted = wanted_by(given)
    try:
        batch_sizes.texts_of_a_step(Settings(global_batch_size=given.global_batch_size), wanted.processes)
        with tempfile.TemporaryDirectory() as directory:
            source = model_files.locate(given.model_id, Path(directory), ["config.json"])
            config = model.config_of(source)
            configuration.longest(config, wanted.seq_len)
            with model.loading(source):
                answer = choose(config, wanted)
    except KnownError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 2
    lines = [json.dumps(dataclasses.asdict(answer))] if given.json else table(answer, wanted)
    for line in lines:
        print(line)  # noqa: T201
    return 0 if answer.chosen else 1


if __name__ == "__main__":
    sys.exit(main())
