"""A process that has imported all that training needs, and forks for each job that it is told: `warm_train.py ORDERS`.

The folder ORDERS has one file for each job, named by its number: JSON with the script, its environment and its log. A
process that has ended writes its code beside it. The imports are nine tenths of what a job of the tests costs.

The forked process is torchrun's in all but its parent. It begins with no thread, no process group and no random number
drawn, and meets the others at a port of its job's own.
"""

import json
import os
import re
import runpy
import sys
import tempfile
import time
from pathlib import Path

TRAINER = Path(__file__).parents[1]
sys.path[:0] = [str(TRAINER), str(Path(__file__).parent)]

import train  # noqa: E402

train.settle_environment()  # as train.py does before it imports
with train.without_collections():
    import training.runners.hf
    import training.runners.meta
    import training.runners.nemo  # noqa: F401

GIVEN = re.compile("(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE|NAME)|MASTER_ADDR|TORCHELASTIC_.*")  # by torchrun
LOOK_SECONDS = 0.03


def order(path: Path, tests: int) -> dict:
    """The order that the file has when it is there. Nobody waits for ever: not longer than the tests."""
    while not path.exists():
        if not Path(f"/proc/{tests}").exists():
            os._exit(0)
        time.sleep(LOOK_SECONDS)
    return json.loads(path.read_bytes())


def become(order: dict, given: dict[str, str]) -> None:
    """Make the forked process the job's."""
    os.environ.clear()
    os.environ.update(order["environment"] | given)
    if given:
        os.environ |= {"MASTER_PORT": str(order["port"]), "TORCHELASTIC_USE_AGENT_STORE": "False"}
    tempfile.tempdir = None
    log = os.open(order["log"], os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)
    sys.argv[:] = [order["script"]]


def next_job() -> str:
    """The script of the next job, in a process of its own; what has forked it stays here."""
    orders, tests = Path(sys.argv[1]), int(os.environ["TESTS"])
    given = {name: value for name, value in os.environ.items() if GIVEN.fullmatch(name) and "LOCAL_RANK" in os.environ}
    number = 0
    while True:
        number += 1
        told = order(orders / str(number), tests)
        child = os.fork()
        if not child:
            become(told, given)
            return told["script"]
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        written = orders / f"{number}.{given.get('RANK', 0)}.new"
        written.write_text(str(code))
        written.rename(written.with_suffix(""))


runpy.run_path(next_job(), run_name="__main__")
