"""Batches: texts as tensors, for training and for evaluation."""

import signal
import typing
from collections.abc import Iterable, Iterator

from training.data.order import Order
from training.data.texts import Data
from training.errors import UserError

if typing.TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from training.distributed import World
    from training.settings import Settings

IGNORED = -100  # the label that torch's cross entropy leaves out

Batch = dict[str, "torch.Tensor"]


class Collator:
    """Makes a batch of texts. Padding never counts in the loss, even where the padding token is the end token."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", max_seq_len: int, embeddings: int | None = None) -> None:
        """`embeddings` are those of the model: a text with a token beyond them is refused."""
        self.tokenizer = tokenizer
        self.max_seq_len = max_seq_len
        self.embeddings = embeddings
        self.begin: typing.Any = tokenizer.bos_token_id
        self.end: typing.Any = tokenizer.eos_token_id
        padding: typing.Any = tokenizer.pad_token_id or 0
        self.padding = padding if embeddings is None or padding < embeddings else 0  # any serves: padding is masked

    def __call__(self, texts: list[str]) -> Batch:
        import torch

        if not texts:
            return nothing()
        rows = [row[: self.max_seq_len] for row in self._rows(texts)]
        for row, text in zip(rows, texts, strict=True):
            self._check(row, text)
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

    def lengths(self, texts: list[str]) -> list[int]:
        """How many tokens each text has before it is cut."""
        return [len(row) for row in self._rows(texts)]

    def _rows(self, texts: list[str]) -> list[list[int]]:
        # The tokenizer's own truncation and padding would be saved with it, and end up in the exported model.
        return [self._bounded(row) for row in self.tokenizer(texts, verbose=False)["input_ids"]]

    def _check(self, row: list[int], text: str) -> None:
        most = max(row, default=0)
        if self.embeddings is not None and most >= self.embeddings:
            token = self.tokenizer.convert_ids_to_tokens(most)
            raise UserError(
                f"the token {token!r} of the text that begins {text[:40]!r} has the id {most}, and the model has "
                f"{self.embeddings} embeddings"
            )

    def _bounded(self, row: list[int]) -> list[int]:
        """The row with one end token, from which the model learns where a text ends, and with one begin token at most.

        Texts that a chat template has rendered have them, and the tokenizer puts its own before and behind them.
        """
        while self.begin is not None and row[:2] == [self.begin, self.begin]:
            row = row[1:]
        while self.end is not None and row[-2:] == [self.end, self.end]:
            row = row[:-1]
        return row if self.end is None or row[-1:] == [self.end] else [*row, self.end]


def nothing() -> Batch:
    """A batch with which a process takes part in a micro-step for which it has no text."""
    import torch

    none = torch.zeros((1, 2), dtype=torch.long)
    return {"input_ids": none, "attention_mask": torch.ones_like(none), "labels": torch.full_like(none, IGNORED)}


def training_batches(
    data: Data, order: Order, collator: Collator, settings: "Settings", world: "World", step: int, total: int
) -> Iterable[Batch]:
    """This process's batches of the steps after `step`, up to `total`."""
    import torch
    from torch.utils.data import DataLoader

    return DataLoader(
        data,
        batch_sampler=order.rest(step, total),
        collate_fn=collator,
        num_workers=settings.dataloader_workers,
        worker_init_fn=ignore_sigterm,
        pin_memory=world.gpu,
        generator=torch.Generator(),  # of its own: dropout draws from the default one
    )


def evaluation_batches(data: Data, order: Order, collator: Collator) -> Iterator[Batch]:
    """This process's batches of the texts that are held out. Each process has the same number of batches."""
    for numbers, filling in order.evaluation():
        batch = collator([data[number] for number in numbers])
        if filling:
            batch["labels"].fill_(IGNORED)
        yield batch


def predicted(batch: Batch) -> int:
    """How many of a batch's tokens the model has to predict: all but the first one of each text and padding."""
    return int((batch["labels"][:, 1:] != IGNORED).sum())


def ignore_sigterm(worker: int) -> None:
    """SIGTERM may reach all processes of a pod. The one that trains then saves, for which it may need its workers."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
