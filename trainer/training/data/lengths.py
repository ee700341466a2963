"""How much of the texts max_seq_len cuts off, which is said before training begins.

All texts are counted where that takes seconds, else some of them, which stand for the others.
"""

import dataclasses
import random
import typing
from collections.abc import Sequence

from training.data.batches import Collator
from training.data.texts import Data

if typing.TYPE_CHECKING:
    from training.distributed import World

TEXTS = 5_000  # that a process looks at, at most
CHARACTERS = 16 * 2**20  # of them, at most


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lengths:
    """Sums over the texts that were looked at."""

    texts: int
    cut_texts: int  # of which something is cut off
    tokens: int
    cut_tokens: int
    whole: bool  # whether all texts were looked at

    @property
    def share(self) -> float:
        """Of all tokens, the part that is cut off."""
        return self.cut_tokens / max(self.tokens, 1)

    def sentence(self, max_seq_len: int) -> str:
        about, among = ("", "") if self.whole else ("about ", f" (of {self.texts} texts that were counted)")
        return (
            f"max_seq_len {max_seq_len} cuts {about}{self.cut_texts} of {self.texts} texts, and {about}"
            f"{self.share:.1%} of all tokens are not trained on{among}"
        )


def measure(data: Data, collator: Collator, world: "World") -> Lengths:
    """Look at this process's part of the texts, and add up all processes' parts; together."""
    numbers, whole = chosen(data.part(world.rank, world.size))
    texts = cut_texts = tokens = cut_tokens = characters = 0
    for number in numbers:
        if characters >= CHARACTERS:
            whole = False
            break
        text = data[number]
        characters += len(text)
        (length,) = collator.lengths([text])
        cut = max(length - collator.max_seq_len, 0)
        texts, tokens, cut_tokens, cut_texts = texts + 1, tokens + length, cut_tokens + cut, cut_texts + (cut > 0)
    sums = world.total([float(number) for number in (texts, cut_texts, tokens, cut_tokens, not whole)])
    texts, cut_texts, tokens, cut_tokens, left = map(int, sums)
    all_seen = not left and texts == len(data)
    return Lengths(texts=texts, cut_texts=cut_texts, tokens=tokens, cut_tokens=cut_tokens, whole=all_seen)


def chosen(numbers: Sequence[int]) -> tuple[Sequence[int], bool]:
    """Some of a process's texts, the same at each start, and whether they are all."""
    if len(numbers) <= TEXTS:
        return numbers, True
    return random.Random(0).sample(numbers, TEXTS), False
