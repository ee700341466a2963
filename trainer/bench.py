"""What the look-through of the data costs at a start: `make bench`.

usage: python bench.py [<MB of JSON lines>]

Texts of two sizes, with the tiny model's tokenizer: CPU seconds for each GB of reading every line, which all texts of a
job go through, and CPU seconds of counting what max_seq_len cuts off, which looks at some of them.
"""

import json
import sys
import tempfile
import threading
import time
from pathlib import Path

import make_tiny_model
from training.data.batches import Collator
from training.data.lengths import measure
from training.data.texts import Reader, Texts
from training.distributed import World

SIZES = {"chat": 600, "documents": 20_000}  # characters of a text


def main() -> None:
    megabytes = int(sys.argv[1]) if len(sys.argv) > 1 else 128
    world = World(rank=0, size=1, local_rank=0, node=0, gpu=False, stop=threading.Event())
    collator = Collator(make_tiny_model.make_tokenizer(), 2048)
    print("| texts | of | lines read, CPU s/GB | cut off counted, CPU s |\n|---|---|---|---|")  # noqa: T201
    for name, size in SIZES.items():
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory, "data.jsonl")
            line = json.dumps({"text": (make_tiny_model.WORDS + " ") * (size // len(make_tiny_model.WORDS) + 1)}) + "\n"
            count = megabytes * 10**6 // len(line)
            with path.open("w") as file:
                for _ in range(count):
                    file.write(line)
            began = time.process_time()
            texts = Texts(Reader("file:///", "text"), ["data.jsonl"], [path])
            read = time.process_time()
            measure(texts, collator, world)
            counted = time.process_time()
            gigabytes = path.stat().st_size / 1e9
            print(f"| {name} | {len(line)} bytes | {(read - began) / gigabytes:.1f} | {counted - read:.1f} |")  # noqa: T201


if __name__ == "__main__":
    main()
