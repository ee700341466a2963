"""The loss of the next tokens, without ever having all logits at once.

The logits of 16 texts of 2,048 tokens are 17 GB in fp32 where there are 128,000 tokens to choose from, more than the
rest of a step that computes its activations again. So the head gives what it gets, and the loss multiplies it with the
head's weight a few rows at a time, forward and again backward. Each row's numbers are those of the model's own loss.

torch's linear_cross_entropy does the same, but gives the sum of the losses of bf16 in bf16, with two or three digits.
"""

import contextlib
import typing
import warnings

import torch
import torch.nn.functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.loss.loss_utils import ForCausalLMLoss

from training.sharded import shortened, without_weights

LOGITS = 2**27  # at once: half a GB in fp32
WORTH = (
    2  # times as many rows as the head has columns: with fewer the gradients of its pieces take more than the logits
)


class Chunked:
    """What stands for a model's head and its loss."""

    def __init__(self, network: PreTrainedModel) -> None:
        self.head = network.get_output_embeddings()
        self.logits = self.head.forward
        self.wanted = False  # whether the model is to compute a loss; else it gives logits
        self.given: torch.Tensor | None = None

    def begin(self, _: torch.nn.Module, arguments: tuple[typing.Any, ...], named: dict[str, typing.Any]) -> None:
        self.wanted, self.given = named.get("labels") is not None, None

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if not self.wanted:
            return self.logits(hidden)
        self.given = hidden
        return hidden

    def loss(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        vocab_size: int,
        num_items_in_batch: torch.Tensor | float | None = None,
        ignore_index: int = -100,
        **_: typing.Any,
    ) -> torch.Tensor:
        """As transformers' ForCausalLMLoss. Raises RuntimeError for logits that the model has changed."""
        if self.given is None or not same(logits, self.given):
            raise RuntimeError("the model computes its loss from something else than what its head gives")
        self.given = None
        following = F.pad(labels, (0, 1), value=ignore_index)[..., 1:].flatten().to(logits.device)
        total = self.total(logits.flatten(0, -2), following, ignore_index)
        items = (following != ignore_index).sum() if num_items_in_batch is None else num_items_in_batch
        return total / (items.to(total.device) if isinstance(items, torch.Tensor) else items)

    def total(self, hidden: torch.Tensor, labels: torch.Tensor, ignore_index: int) -> torch.Tensor:
        words, columns = self.head.weight.shape
        rows = max(LOGITS // words, 1)
        rest = self.head.weight, getattr(self.head, "bias", None), ignore_index
        if len(labels) <= rows or len(labels) < WORTH * columns:
            return of_rows(hidden, labels, *rest)
        parts = [
            checkpoint(of_rows, *chunk, *rest, use_reentrant=False, preserve_rng_state=False)
            for chunk in zip(hidden.split(rows), labels.split(rows), strict=True)
        ]
        return torch.stack(parts).sum()


def of_rows(
    hidden: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, ignore_index: int
) -> torch.Tensor:
    """The sum of the losses of some rows."""
    logits = F.linear(hidden, weight, bias).float()
    return F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="sum")


def install(network: PreTrainedModel) -> None:
    """Let a model compute its loss so, for which can_be() was asked."""
    # FSDP2 warns of changing in place what the head gives. Nobody does.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    chunked = Chunked(network)
    chunked.head.forward = chunked.forward
    network.loss_function = chunked.loss
    network.register_forward_pre_hook(chunked.begin, with_kwargs=True)


def can_be(config: PreTrainedConfig) -> bool:
    """Whether a model's loss is that of what its head gives, unchanged: tried on a layer of it without weights."""
    network = without_weights(shortened(config, 1))
    head = network.get_output_embeddings()
    if type(head) is not torch.nn.Linear or network.loss_function is not ForCausalLMLoss:
        return False
    install(network)
    texts = torch.zeros((1, 2), dtype=torch.long, device="meta")
    for shape in ((1, 1, 2, 2), (1, 2)):  # of a mask: many models look into the second one, and some want no other
        mask = torch.ones(shape, dtype=torch.bool, device="meta")
        with contextlib.suppress(Exception):  # whatever a model's own code raises, also that it needs numbers
            network(input_ids=texts, attention_mask=mask, labels=texts, use_cache=False)
            return True
    return False


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether they are one tensor, also where they are two objects."""
    return one is other or (one.shape == other.shape and one.untyped_storage()._cdata == other.untyped_storage()._cdata)
