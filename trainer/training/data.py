"""Texts from JSON lines, read from disk one at a time, and made into batches.

The whole file is looked through once before training, so that a bad line is reported at the start and not after hours.
"""

import array
import concurrent.futures
import json
import typing
from pathlib import Path

from training.errors import UserError
from training.storage import open_storage

if typing.TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # the label that torch's cross entropy leaves out


def download(uri: str, directory: Path) -> list[Path]:
    """Bring the data set to this node: one object, or all objects below a prefix in the order of their keys."""
    folder, _, name = uri.rpartition("/")
    storage = open_storage(f"{folder}/")
    if name:
        keys = [name]
    else:
        entries = storage.list("")
        # Hidden files and what batch systems leave beside their output (_SUCCESS) hold no texts.
        keys = [entry.key for entry in entries if entry.size and entry.key.rpartition("/")[2][:1] not in "._"]
    if not keys:
        raise UserError(f"DATASET_URI {uri} holds no objects")
    paths = [directory / f"{number:06d}.jsonl" for number in range(len(keys))]
    try:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(storage.download, keys, paths))
    except FileNotFoundError:
        raise UserError(f"DATASET_URI {uri} does not exist; end it with a slash if it is a prefix") from None
    return paths


class Texts:
    """The texts of some JSON lines files, by number. A text that is empty teaches nothing and is left out."""

    def __init__(self, uri: str, paths: list[Path], field: str) -> None:
        self.paths = paths
        self.field = field
        self.starts = array.array("Q")  # where a line begins, in bytes
        self.files = array.array("L")  # in which file
        self.handles: dict[int, typing.BinaryIO] = {}
        for number, path in enumerate(paths):
            self._look_through(f"{uri}{f' (object {number + 1})' if len(paths) > 1 else ''}", number, path)
        if not self.starts:
            raise UserError(f"DATASET_URI {uri} holds no texts")

    def _look_through(self, name: str, number: int, path: Path) -> None:
        start = 0
        with path.open("rb") as lines:
            for line_number, line in enumerate(lines, 1):
                if line.strip() and self._text(line, f"{name}, line {line_number}").strip():
                    self.starts.append(start)
                    self.files.append(number)
                start += len(line)

    def _text(self, line: bytes, where: str) -> str:
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{where}: not JSON: {error}") from None
        text = row.get(self.field) if isinstance(row, dict) else None
        if not isinstance(text, str):
            raise UserError(f"{where}: no text in field {self.field!r}, which is what dataset_text_field names")
        return text

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> str:
        number = self.files[index]
        if number not in self.handles:
            self.handles[number] = self.paths[number].open("rb")
        self.handles[number].seek(self.starts[index])
        return self._text(self.handles[number].readline(), f"text {index}")


class Collator:
    """Texts to a batch. Padding never counts in the loss, also where the padding token is the end token."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", max_seq_len: int) -> None:
        self.tokenizer = tokenizer
        self.max_seq_len = max_seq_len
        self.end: typing.Any = tokenizer.eos_token_id
        self.padding: typing.Any = tokenizer.pad_token_id or 0  # any token will do: it is masked

    def __call__(self, texts: list[str]) -> dict[str, "torch.Tensor"]:
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
