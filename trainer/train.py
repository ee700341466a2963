"""Train one job: parse, number the attempt, run the framework's runner, say how it ended.

On a laptop, without a GPU, a cluster or a network:

    python make_tiny_model.py /tmp/models/tiny
    for i in 1 2 3 4 5 6 7 8; do echo '{"text": "the quick brown fox jumps over the lazy dog"}'; done > /tmp/data.jsonl
    export MODEL_DIR=/tmp/models TRAINING_EXTRA_ARGS_JSON='{"max_steps": 20, "lr": 0.001}'
    python train.py --framework hf --model-id tiny --run-id first --dataset-uri file:///tmp/data.jsonl \\
        --checkpoint-base-uri file:///tmp/runs

In a pod torchrun starts it without arguments, once for each process, and everything comes from the environment.
"""

import contextlib
import dataclasses
import gc
import importlib
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from training import last_words, work
from training.attempts import Ledger
from training.disk import Disk
from training.disk_watch import Watch
from training.errors import FINISHED, PREEMPTED, STOPPED, KnownError, StoppedError, UserError, cause_of, is_consequence
from training.job import Job, parse
from training.place import Place
from training.rank_log import RankLog
from training.reserve import Reserve
from training.signals import Stop, stop_at_sigterm
from training.storage import open_storage

logger = logging.getLogger("training")


def main() -> int:
    settle_environment()
    stop = stop_at_sigterm()
    reserve = Reserve()
    # One thread unless told otherwise: several processes share a machine, and results must not depend on its cores.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    place = Place.here()
    start_logging(place)
    try:
        job = parse(sys.argv[1:], os.environ)
    except UserError as error:
        last_words.leave(error.cause, place.rank, str(error))
        print(f"train.py: {error}", file=sys.stderr)  # noqa: T201
        return 1
    with RankLog(job.prefix, job.submission, place.rank) as log:
        return attempt(job, place, log, stop, reserve)


def settle_environment() -> None:
    """Nothing that a request may set runs, sends files or reports: before huggingface_hub and transformers are read.

    HF_HOME says where models and data are. Code and a token would lie there too, so theirs are paths that nobody has.
    """
    nowhere = Path(os.environ.get("TMPDIR", "/tmp"), f"hf-{os.urandom(16).hex()}")
    os.environ["HF_MODULES_CACHE"] = str(nowhere / "modules")
    os.environ["HF_TOKEN_PATH"] = str(nowhere / "token")
    os.environ["DISABLE_KUBEFLOW_INTEGRATION"] = "TRUE"


def attempt(job: Job, place: Place, log: RankLog, stop: Stop, reserve: Reserve) -> int:
    """One attempt at the job. Returns the process's exit code."""
    ledger = Ledger(open_storage(job.prefix, "CHECKPOINT_BASE_URI"), job.submission, job.max_restarts)
    number = watch = None
    try:
        if place.local_rank == 0:
            work.clear(work.kept_path())
            number = ledger.start(place)
            log.number(number)
        # Not before it is known that there may be one: these import torch, and more.
        with without_collections():
            from training import distributed

            runner = importlib.import_module(f"training.runners.{job.framework}")
        with distributed.join(place, job.gpus_per_node, job.num_nodes, stop) as world:
            number = ledger.meet(world, place, number)
            log.number(number)
            if place.local_rank == 0:
                watch = Watch(Disk.here(), ledger, number, place.rank).start()
            world.go_on()
            finished = runner.train(job, dataclasses.replace(world, attempt=number))
    except Exception as error:
        if watch:
            watch.stop()
        reserve.release()
        message, consequence = last_words.sentence(error), is_consequence(error)
        if not isinstance(error, KnownError):
            traceback.print_exc()
        logger.error("%s", message)
        last_words.leave(cause_of(error), place.rank, message, consequence=consequence)
        if not consequence:
            close(ledger, number, cause_of(error), place.rank, message)
        return STOPPED if isinstance(error, StoppedError) else 1
    if watch:
        watch.stop()
    if place.rank == 0:
        close(ledger, number, FINISHED if finished else PREEMPTED, place.rank)
    if finished:
        return 0
    logger.info("stopped before the last step, as told by SIGTERM")
    message = "told to stop by SIGTERM before the last step; a restart resumes the newest checkpoint"
    last_words.leave(PREEMPTED, place.rank, message)
    return STOPPED


@contextlib.contextmanager
def without_collections() -> Iterator[None]:
    """While modules are imported. What they make stays, and to look for garbage in it took a sixth of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # nor is it looked at again
        gc.enable()


def close(ledger: Ledger, number: int | None, cause: str, rank: int, message: str | None = None) -> None:
    """Without a number the attempt has not begun, as far as this process knows."""
    try:
        if number is not None:
            ledger.close(number, cause, rank, message)
    except Exception as error:  # the next start judges it by its pods
        logger.warning("attempt %d could not be closed: %s", number, error)


def start_logging(place: Place) -> None:
    """Rank 0 tells the story, the others speak when something is wrong. Libraries say their own warnings."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING if place.rank > 0 else logging.INFO)


if __name__ == "__main__":
    code = main()
    if code:
        # Now, or Python would wait for uploads that are under way for nothing, and with it the other processes.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
