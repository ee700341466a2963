"""What the look-through of the data costs, and what a step and a save cost beside the library alone: `make bench`.

usage: python bench.py [<MB of JSON lines>]

Looking: texts of two sizes, with the tiny model's tokenizer. CPU seconds for each GB of reading every line, which all
texts of a job go through, and CPU seconds of counting what max_seq_len cuts off, which looks at some of them.

Steps: of the tiny model in one process, here and with the framework's own library alone, in turns. The least of some
medians of each.

Saving: a model of 34 million weights on two processes, in each framework. How long training waits for each GB of the
checkpoint: for what the save before still writes, and for the copy.
"""

import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import make_tiny_model
from training.data.batches import Collator
from training.data.lengths import measure
from training.data.texts import Reader, Texts
from training.distributed import World
from training.layout import FRAMEWORKS
from training.signals import Stop

TESTS = Path(__file__).parent / "tests"
TURNS = 3
sys.path.append(str(TESTS))

SIZES = {"chat": 600, "documents": 20_000}  # characters of a text


def main() -> None:
    looking(int(sys.argv[1]) if len(sys.argv) > 1 else 128)
    steps()
    saving()


def looking(megabytes: int) -> None:
    world = World(rank=0, size=1, local_rank=0, node=0, gpu=False, stop=Stop())
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


def steps() -> None:
    print("\n| framework | a step here, ms | with the library alone, ms | ratio |\n|---|---|---|---|")  # noqa: T201
    with tempfile.TemporaryDirectory(prefix="b") as name:
        directory = Path(name)
        model, data = directory / "model", directory / "data.jsonl"
        make_tiny_model.make(model)
        data.write_text(json.dumps({"text": make_tiny_model.WORDS}) + "\n", encoding="utf-8")
        for framework in FRAMEWORKS:
            turns = {"here": [], "alone": []}
            for turn in range(TURNS):  # in turns, as the machine is not always as fast
                for who, times in turns.items():
                    command = [sys.executable, str(TESTS / "steps.py"), who, framework, str(model), str(data)]
                    store = directory / f"{framework}-{turn}"
                    ended = subprocess.run([*command, str(store)], capture_output=True, text=True, check=True)
                    times.append(float(ended.stdout.split()[-1]))
            here, alone = (min(times) * 1e3 for times in turns.values())
            print(f"| {framework} | {here:.2f} | {alone:.2f} | {here / alone:.2f} |")  # noqa: T201


def saving() -> None:
    from pods import FIRST, marker, start_pods
    from transformers import AutoModelForCausalLM, LlamaConfig

    every = 8
    print("\n| framework | checkpoint, MB | training waits for a save, s | s/GB |\n|---|---|---|---|")  # noqa: T201
    with tempfile.TemporaryDirectory(prefix="b") as name:
        directory = Path(name)
        folder = directory / "models" / "tiny"
        make_tiny_model.make(folder)
        config = LlamaConfig(
            vocab_size=8000, hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8
        )
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        data = directory / "data.jsonl"
        data.write_text(json.dumps({"text": make_tiny_model.WORDS}) + "\n", encoding="utf-8")
        for framework in FRAMEWORKS:
            store = directory / framework
            job = {"framework": framework, "max_steps": 5 * every, "save_steps": every, "max_seq_len": 32}
            job |= {"batch_size": 1, "gradient_accumulation": 1}
            with start_pods(directory / f"{framework}-pods", folder.parent, data, store, FIRST, **job) as pods:
                assert pods.end() == [0], pods.log
            waited = statistics.median(map(float, re.findall(r"training waited (\S+) s", pods.log)))
            size = sum(file["size"] for file in marker(store, every, framework)["files"]) / 1e9
            print(f"| {framework} | {size * 1e3:.0f} | {waited:.2f} | {waited / size:.2f} |")  # noqa: T201


if __name__ == "__main__":
    main()
