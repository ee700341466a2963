"""Batches: texts as tensors, for training and for evaluation."""

import signal
import typing
from collections.abc import Iterable, Iterator

from training.data.order import Order
from training.data.texts import Data

if typing.TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from training.distributed import World
    from training.settings import Settings

IGNORED = -100  # the label that torch's cross entropy leaves out

Batch = dict[str, "torch.Tensor"]


class Collator:
    """Texts to a batch. Padding never counts in the loss, also where the padding token is the end token."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", max_seq_len: int) -> None:
        self.tokenizer = tokenizer
        self.max_seq_len = max_seq_len
        self.end: typing.Any = tokenizer.eos_token_id
        self.padding: typing.Any = tokenizer.pad_token_id or 0  # any token will do: it is masked

    def __call__(self, texts: list[str]) -> Batch:
        import torch

        # Truncation and padding by the tokenizer would be saved with it, and so end up in the exported model.
        rows = [self._ended(row)[: self.max_seq_len] for row in self.tokenizer(texts, verbose=False)["input_ids"]]
        shape = (len(rows), max(len(row) for row in rows))
        batch = {
            "input_ids": torch.full(shape, self.padding),
            "attention_mask": torch.zeros(shape, dtype=torch.long),
            "labels": torch.full(shape, IGNORED),
        }
        for number, row in enumerate(rows):
            batch["input_ids"][number, : len(row)] = batch["labels"][number, : len(row)] = torch.tensor(row)
            batch["attention_mask"][number, : len(row)] = 1
        return batch

    def _ended(self, row: list[int]) -> list[int]:
        """With the end token, so that the model learns where a text ends."""
        return row if self.end is None or row[-1:] == [self.end] else [*row, self.end]


def training_batches(
    data: Data, order: Order, collator: Collator, settings: "Settings", world: "World", step: int, total: int
) -> Iterable[Batch]:
    """This process's batches from after one step to the end of another."""
    import torch
    from torch.utils.data import DataLoader

    return DataLoader(
        data,
        batch_sampler=order.rest(step, total),
        collate_fn=collator,
        num_workers=settings.dataloader_workers,
        worker_init_fn=ignore_sigterm,
        pin_memory=world.gpu,
        generator=torch.Generator(),  # or it would draw from the one that dropout draws from
    )


def evaluation_batches(data: Data, order: Order, collator: Collator) -> Iterator[Batch]:
    """This process's batches of what was held out, as many as the others have."""
    for numbers, filling in order.evaluation():
        batch = collator([data[number] for number in numbers])
        if filling:
            batch["labels"].fill_(IGNORED)
        yield batch


def predicted(batch: Batch) -> int:
    """How many of a batch's tokens the model has to predict: not the first one of a text, and no padding."""
    return int((batch["labels"][:, 1:] != IGNORED).sum())


def ignore_sigterm(worker: int) -> None:
    """Of a signal to all, the process itself makes a checkpoint, for which it may need its workers."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
