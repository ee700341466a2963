"""Jobs in processes that have imported everything already: for what a job does, not for how its processes live and die.

torchrun, or plain python, starts warm_train.py once for each number of processes, which forks for each job. Signals,
deaths and faults of the storage are for pods of their own.
"""

import contextlib
import json
import os
import signal
import time
from pathlib import Path

from pods import Pods, free_port

SCRIPT = Path(__file__).with_name("warm_train.py")
# The others are put into modules before they are imported, or are about how processes die.
SAFE_FAULTS = {"rank", "logits", "nan_at", "memory_at", "told"}


class Warm:
    """The processes of all jobs of a session, by their number in a pod; a context that leaves none behind."""

    def __init__(self, directory):
        self.directory = directory
        self.kept = {}
        self.stack = contextlib.ExitStack()

    def begin(self, command, environments, directory):
        """A running job, as Pods is one."""
        assert len(environments) == 1, "a job of several nodes has pods of its own"
        environment = environments[0]
        fault = json.loads(environment.get("FAULT", "{}"))
        assert fault.keys() <= SAFE_FAULTS, f"{fault} needs pods of its own"
        processes = int(environment.get("PET_NPROC_PER_NODE", "0"))
        if processes not in self.kept or self.kept[processes].broken:
            kept = Kept(command[:-1], environment, self.directory / f"{processes}-{time.monotonic_ns()}")
            self.kept[processes] = self.stack.enter_context(kept)
        return self.kept[processes].begin(command[-1], environment, directory)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stack.close()


class Kept:
    """Processes that fork for each job."""

    def __init__(self, command, environment, directory):
        self.orders = directory / "orders"
        self.orders.mkdir(parents=True)
        self.ranks = range(max(1, int(environment.get("PET_NPROC_PER_NODE", "0"))))
        self.number = 0
        self.broken = False
        self.pods = Pods([*command, SCRIPT, self.orders], [environment | {"TESTS": str(os.getpid())}], directory)

    def begin(self, script, environment, directory):
        self.number += 1
        log = directory / "pod-0.log"
        log.touch()
        order = {"script": str(script), "environment": environment, "log": str(log), "port": free_port()}
        new = self.orders / "new"
        new.write_text(json.dumps(order))
        new.rename(self.orders / str(self.number))
        return Job(self, self.number, log)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.pods.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        self.pods.__exit__()


class Job(Pods):
    """One of the jobs, which ends by itself."""

    def __init__(self, kept, number, log):
        self.kept = kept
        self.ended = [kept.orders / f"{number}.{rank}" for rank in kept.ranks]
        self.logs = [log]

    def end(self):
        """As torchrun says it: 1 where a process failed. Nobody ends the others here: they end each other."""
        deadline = time.monotonic() + 120
        while not all(path.exists() for path in self.ended):
            assert not self.kept.pods.processes[0].poll(), self.kept.pods.log
            assert time.monotonic() < deadline, f"no end in time:\n{self.log}"
            time.sleep(0.01)
        codes = [int(path.read_text()) for path in self.ended]
        return codes if len(codes) == 1 else [int(any(codes))]

    def __exit__(self, *_):
        self.kept.broken = not all(path.exists() for path in self.ended)
