"""What to train: a job as its pod's environment, or a person's command line, describes it.

It decides nothing about how to train; that is settings.py.
"""

import argparse
import dataclasses
import os
import re
import time
import uuid
from collections.abc import Mapping

from training import layout, settings
from training.errors import UserError

RUN_ID = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
RESUME_STEP = re.compile("step-([0-9]{1,12})")
SCHEMES = ("s3://", "file:///")
MAX_RESTARTS = 3
EXTRA_ARGS = "TRAINING_EXTRA_ARGS_JSON"

# Name of the flag and of the environment variable, and its meaning.
OPTIONS = {
    "framework": "hf, nemo or meta",
    "model-id": "an s3:// or file:// folder, an absolute path, a folder's name under MODEL_DIR, or a hub name",
    "run-id": "name of the run, which keeps its checkpoints over many jobs",
    "dataset-uri": "JSON lines: one object, with a trailing slash all below it, or those of a pattern (train-*.jsonl)",
    "checkpoint-base-uri": "folder of all runs",
    "submission": "UUID of this submission; a fresh one when not given",
    "resume": "false, true (the run's newest checkpoint) or step-N (that one); a restarted submission resumes anyway",
    "max-restarts": f"failed attempts after which there is another one; {MAX_RESTARTS} when not given",
    "num-nodes": "how many nodes the job has",
    "gpus-per-node": "how many GPUs each has; 0 trains on the CPU",
    "config-path": f"an s3:// object or an absolute path: JSON or YAML of settings, which {EXTRA_ARGS} overrides",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    framework: str
    model_id: str
    run_id: str
    dataset_uri: str
    checkpoint_base_uri: str
    submission: str
    resume: bool
    resume_step: int | None  # this one and no other; the newest when not given
    max_restarts: int
    num_nodes: int | None
    gpus_per_node: int | None
    config_path: str | None
    settings: settings.Settings

    @property
    def prefix(self) -> str:
        return layout.run_prefix(self.checkpoint_base_uri, self.run_id, self.framework)


def parse(arguments: list[str], environment: Mapping[str, str]) -> Job:
    """Read a job; a flag wins over its variable. Raises UserError."""
    given = {name: environment.get(variable(name)) for name in OPTIONS}
    given |= {name: value for name, value in flags(arguments).items() if value is not None}
    resume, resume_step = start(given, "resume")
    restarts = count(given, "max-restarts")
    config_path = given["config-path"] or None
    framework = required(given, "framework")
    if framework not in layout.FRAMEWORKS:
        raise UserError(f"FRAMEWORK must be one of {', '.join(layout.FRAMEWORKS)}, not {framework!r}")
    job = Job(
        framework=framework,
        model_id=required(given, "model-id"),
        run_id=required(given, "run-id"),
        dataset_uri=uri(given, "dataset-uri"),
        checkpoint_base_uri=uri(given, "checkpoint-base-uri"),
        submission=given["submission"] or fresh_submission(),
        resume=resume,
        resume_step=resume_step,
        max_restarts=MAX_RESTARTS if restarts is None else restarts,
        num_nodes=count(given, "num-nodes"),
        gpus_per_node=count(given, "gpus-per-node"),
        config_path=config_path,
        settings=settings.parse(environment.get(EXTRA_ARGS) or "{}", config_path, framework),
    )
    if not RUN_ID.fullmatch(job.run_id):
        raise UserError(f"RUN_ID must match {RUN_ID.pattern}, not {job.run_id!r}")
    if not layout.is_submission(job.submission):
        raise UserError(f"SUBMISSION must be a UUID in lower case, not {job.submission!r}")
    if environment.get("CHECKPOINT_PREFIX", job.prefix) != job.prefix:
        raise UserError(f"CHECKPOINT_PREFIX is {environment['CHECKPOINT_PREFIX']}, but this job's is {job.prefix}")
    return job


def flags(arguments: list[str]) -> dict[str, str | None]:
    parser = argparse.ArgumentParser(
        prog="train.py",
        description="Train one job. Each option may come from the environment variable in brackets instead.",
        epilog=f"How to train comes from {EXTRA_ARGS} and the file of CONFIG_PATH alone: "
        + ", ".join(field.name for field in dataclasses.fields(settings.Settings)),
        allow_abbrev=False,
    )
    for name, meaning in OPTIONS.items():
        parser.add_argument(f"--{name}", dest=name, metavar="...", help=f"[{variable(name)}] {meaning}")
    return vars(parser.parse_args(arguments))


def variable(name: str) -> str:
    return name.upper().replace("-", "_")


def required(given: Mapping[str, str | None], name: str) -> str:
    value = given[name]
    if not value:
        raise UserError(f"{variable(name)} is missing: {OPTIONS[name]}")
    return value


def uri(given: Mapping[str, str | None], name: str) -> str:
    value = required(given, name)
    if not value.startswith(SCHEMES):
        raise UserError(f"{variable(name)} must begin with {' or '.join(SCHEMES)}, not {value!r}")
    return value


def start(given: Mapping[str, str | None], name: str) -> tuple[bool, int | None]:
    """Whether to resume, and from which step if it must be that one."""
    value = given[name] or "false"
    if value in ("true", "false"):
        return value == "true", None
    step = RESUME_STEP.fullmatch(value)
    if not step:
        raise UserError(f"{variable(name)} must be true, false or step-N, not {value!r}")
    return True, int(step[1])


def count(given: Mapping[str, str | None], name: str) -> int | None:
    value = given[name]
    if not value:
        return None
    if not re.fullmatch("[0-9]{1,6}", value):
        raise UserError(f"{variable(name)} must be a whole number, not {value!r}")
    return int(value)


def fresh_submission() -> str:
    """A UUIDv7: its order is the order of making, in milliseconds."""
    value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10))
    value = value & ~(0xF << 76) | 0x7 << 76  # version
    value = value & ~(0x3 << 62) | 0x2 << 62  # variant
    return str(uuid.UUID(int=value))
