"""Train one job: parse, choose the framework's runner, run, clean up.

On a laptop, without a GPU, a cluster or a network:

    python make_tiny_model.py /tmp/models/tiny
    for i in 1 2 3 4 5 6 7 8; do echo '{"text": "the quick brown fox jumps over the lazy dog"}'; done > /tmp/data.jsonl
    export MODEL_DIR=/tmp/models TRAINING_EXTRA_ARGS_JSON='{"max_steps": 20, "lr": 0.001}'
    python train.py --framework hf --model-id tiny --run-id first --dataset-uri file:///tmp/data.jsonl \\
        --checkpoint-base-uri file:///tmp/runs

In a pod torchrun starts it without arguments, once for each process, and everything comes from the environment.
"""

import contextlib
import logging
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from training.errors import KnownError, UserError
from training.job import Job, parse

# The exit code of a run that was told to stop: 128 + SIGTERM. Never 0, or a job that was cut short would count as done.
STOPPED = 143

# The frameworks that have a runner here; nemo and meta are known names without one.
RUNNERS = ("hf",)

logger = logging.getLogger("training")


def main() -> None:
    # One thread unless told otherwise: several processes share a machine, and results must not depend on its cores.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    start_logging()
    try:
        job = parse(sys.argv[1:], os.environ)
        if job.framework not in RUNNERS:
            raise UserError(f"framework {job.framework} is not in this image yet, only {', '.join(RUNNERS)}")
    except UserError as error:
        refuse(error)
    recorded(run)(job)


def run(job: Job) -> None:
    # Not before the job is known to be one: these import torch, and more.
    from training import distributed

    match job.framework:
        case "hf":
            from training import hf as runner
        case _:
            raise AssertionError(f"no runner for {job.framework}")

    try:
        with distributed.join(job.gpus_per_node, job.num_nodes) as world:
            finished = runner.train(job, world)
    except KnownError:
        sys.tracebacklimit = 0  # the sentence says it all
        raise
    if not finished:
        logger.info("stopped before the last step, as told by SIGTERM")
        sys.exit(STOPPED)


def refuse(error: UserError) -> NoReturn:
    """End with one sentence, before anything heavy is imported, and leave it where torchrun looks for a cause."""
    if "TORCHELASTIC_ERROR_FILE" in os.environ:

        def cause() -> None:
            raise error

        with contextlib.suppress(UserError):
            recorded(cause)()
    sys.exit(f"train.py: {error}")


def recorded(function: Callable[..., None]) -> Callable[..., None]:
    """The function with its exception written to torchrun's error file, from where it reaches the pod's status."""
    from torch.distributed.elastic.multiprocessing.errors import record  # imports torch, which takes seconds

    return record(function)


def start_logging() -> None:
    """Rank 0 tells the story, the others speak when something is wrong. Libraries say their own warnings."""
    worker = "LOCAL_RANK" in os.environ  # in a pod, RANK alone is the node's
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING if worker and os.environ.get("RANK") != "0" else logging.INFO)


if __name__ == "__main__":
    main()
