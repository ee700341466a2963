"""A model whose weights are split over the processes, by FSDP2: in the same way for all frameworks, GPUs and CPUs.

transformers splits it while it is loaded. The model is made without weights, and each process then reads its own part
of the files, so that a host never holds a whole model for each of its processes.
"""

import contextlib
import copy
import dataclasses
import logging
import math
import typing
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import torch
from safetensors import safe_open
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.distributed import DistributedConfig, mixin
from transformers.distributed.parallel_utils import replace_layer_number_by_wildcard
from transformers.distributed.utils import TransformersDeviceMesh
from transformers.initialization import no_init_weights

from training.errors import UserError

UNEVEN = 1.25  # times its share that a process may have of a weight

ARITHMETIC = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
    """How a model is split."""

    processes: int
    device: str  # the type of their devices
    precision: str  # of the arithmetic; weights and the sums of gradients are fp32

    @property
    def policy(self) -> MixedPrecisionPolicy:
        return MixedPrecisionPolicy(param_dtype=ARITHMETIC[self.precision], reduce_dtype=torch.float32)

    def load(self, source: str, config: PreTrainedConfig) -> tuple[PreTrainedModel, dict[str, typing.Any]]:
        """The model of a folder, and what transformers says of its weights; together. One process has all of it."""
        made = without_weights(config)
        read = {"config": made.config, "dtype": torch.float32, "weights_only": True, "output_loading_info": True}
        read["ignore_mismatched_sizes"] = True  # model.py tells them
        if self.processes == 1:
            network, found = type(made).from_pretrained(source, **read)
            self.shard(network)
            return network, found
        with self._splitting():
            network, found = type(made).from_pretrained(source, distributed_config=self._plan(made), **read)
        network.config.distributed_config = None  # an export is whole
        check_experts(source, network)
        return network, found

    def make(self, config: PreTrainedConfig) -> PreTrainedModel:
        """The model with any weights; together. Nothing is read, and no random numbers are drawn.

        The steps are those of transformers for its own sharded checkpoints (distributed/mixin.py).
        """
        network = without_weights(config)
        devices = None
        if self.processes > 1:
            with self._splitting():
                plan, device, mesh = network.prepare_distribute_model(self._plan(network))
                network = network.maybe_distribute_model(network, plan, mesh)
            devices = {"": device}
            network.config.distributed_config = None
        network._move_missing_keys_from_meta_to_device(set(network.state_dict()), devices, None, None)
        network.tie_weights(recompute_mapping=False)
        for tensor in network.state_dict(keep_vars=True).values():
            tensor._is_hf_initialized = True
        network.initialize_weights()  # the buffers that no checkpoint has
        if self.processes == 1:
            self.shard(network)
        return network

    def _plan(self, network: PreTrainedModel) -> DistributedConfig:
        return DistributedConfig(fsdp_size=self.processes, fsdp_plan=layers(network))

    def shard(self, network: PreTrainedModel, mesh: DeviceMesh | None = None) -> None:
        """Split a model whose weights are there, as load() does."""
        plan = layers(network)
        how: dict[str, typing.Any] = {
            "mesh": mesh or init_device_mesh(self.device, (self.processes,)),
            "mp_policy": self.policy,
            "shard_placement_fn": self._dimension,
        }
        # What a layer has in it comes first: of Mamba both are among them.
        for name, module in reversed(list(network.named_modules())):
            if replace_layer_number_by_wildcard(name) in plan:
                fully_shard(module, **how)
        head = network.get_output_embeddings()
        embedding = network.get_input_embeddings()
        if head is not None and head.weight is not embedding.weight:
            fully_shard(embedding, **how)
            fully_shard(head, **how, reshard_after_forward=False)
        fully_shard(network, **how)
        network._is_distributed_loading_by_transformers = True  # so that its Trainer wraps it in nothing

    def share(self, weight: torch.Tensor) -> int:
        """How many numbers of a weight the process has that has most."""
        if self._dimension(weight) is not None:
            return weight.numel() // self.processes
        rows = weight.shape[0] if weight.ndim else 1
        return math.ceil(rows / self.processes) * (weight.numel() // max(rows, 1))

    def _dimension(self, weight: torch.Tensor) -> Shard | None:
        """The dimension in which a weight is split; None is the first one.

        All experts of a layer are one weight, and fewer than the processes may be. FSDP2 splits other dimensions than
        the first one into equal parts only. Files have the experts apart, and some in two halves, which transformers
        puts together in the middle dimension: so the last one is tried first.
        """
        if not weight.ndim:
            return None
        rows, *others = weight.shape
        if math.ceil(rows / self.processes) * self.processes <= UNEVEN * rows:
            return None
        fitting = (at for at, size in enumerate(others, 1) if size % self.processes == 0)
        return next((Shard(at) for at in sorted(fitting, reverse=True)), None)

    @contextlib.contextmanager
    def _splitting(self) -> Iterator[None]:
        """While transformers makes a model: it is split by shard(), with weights tied that are one.

        transformers would tie them afterwards, when FSDP2 has taken them for two, of which only one is trained. It
        knows no other arithmetic than bf16 either, and takes a machine's GPUs also where the job has none.
        """

        def meshes(_: DistributedConfig) -> tuple[torch.device, TransformersDeviceMesh]:
            shape = (1, 1, self.processes, 1)
            dense = init_device_mesh(self.device, shape, mesh_dim_names=("pp", "dp_replicate", "fsdp", "tp"))
            expert = init_device_mesh(self.device, shape, mesh_dim_names=("pp", "dp_replicate", "efsdp", "ep"))
            gpu = self.device == "cuda"
            own = torch.device("cuda", torch.cuda.current_device()) if gpu else torch.device("cpu")
            return own, TransformersDeviceMesh(dense, expert)

        def split(network: PreTrainedModel, meshes: typing.Any, *_: typing.Any) -> PreTrainedModel:
            network.tie_weights(recompute_mapping=False)
            self.shard(network, meshes.get_mesh("fsdp"))
            return network

        said = logging.getLogger("transformers.distributed.mixin")  # of rules that older models do not have
        level = said.level
        said.setLevel(logging.ERROR)
        try:
            with (
                mock.patch.object(mixin, "initialize_distributed_mesh", meshes),
                mock.patch.object(mixin, "apply_fully_sharded_data_parallelism", split),
            ):
                yield
        finally:
            said.setLevel(level)


def without_weights(config: PreTrainedConfig) -> PreTrainedModel:
    """A model whose tensors have shapes alone."""
    with torch.device("meta"), no_init_weights():
        network = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    network.tie_weights(recompute_mapping=False)  # transformers does it where it draws random weights
    return network


def shortened(config: PreTrainedConfig, layers: int) -> PreTrainedConfig:
    """The same model with fewer layers."""
    short = copy.deepcopy(config)
    text = short.get_text_config()
    many = text.num_hidden_layers
    for name, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == many:
            setattr(text, name, value[:layers])
    text.num_hidden_layers = layers
    return short


def layers(network: PreTrainedModel) -> dict[str, str]:
    """The layers of a model, each of which is whole on a process only while it computes; as transformers writes a plan.

    Raises UserError for a model that has none.
    """
    kinds = set(network._no_split_modules or ())  # the names of its layers' classes
    found = [name for name, module in network.named_modules() if type(module).__name__ in kinds]
    if not found:
        lists = (f"{name}.0" for name, module in network.named_modules() if isinstance(module, nn.ModuleList))
        found = list(lists)[:1]
    if not found:
        raise UserError(f"a {network.config.model_type} has no layers by which it could be split: say sharded false")
    return {replace_layer_number_by_wildcard(name): "free_full_weight" for name in found}


def check_experts(source: str, network: PreTrainedModel) -> None:
    """Raises UserError where transformers has put together parts of experts that do not belong together; together.

    It cuts what it reads before it puts it together, which is right for some ways to do so. One weight of each kind is
    compared with the file.
    """
    first: dict[str, tuple[str, DTensor]] = {}
    for name, weight in network.named_parameters():
        if isinstance(weight, DTensor) and any(isinstance(at, Shard) and at.dim for at in weight.placements):
            first.setdefault(replace_layer_number_by_wildcard(name), (name, weight))
    wholes = {name: weight.full_tensor().detach().cpu() for name, weight in first.values()}
    if not wholes:
        return
    saved = revert_weight_conversion(network, wholes)
    for file in sorted(Path(source).glob("*.safetensors")):
        with safe_open(file, "pt") as found:
            for name in saved.keys() & set(found.keys()):
                if torch.equal(found.get_tensor(name).float(), saved[name].float()):
                    del saved[name]
    if saved:
        raise UserError(
            f"the experts of a {network.config.model_type} cannot be split over more processes than there are experts: "
            f"{min(saved)} would not be what a safetensors file of it has. Take fewer processes"
        )
