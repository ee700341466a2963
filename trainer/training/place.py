"""Where a process stands among those that torchrun started, as its environment says. Imports nothing heavy."""

import dataclasses
import os
import socket
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    rank: int
    size: int  # processes in all
    local_rank: int
    node: int
    nodes: int
    pod: str  # the pod's UID, the host's name outside a cluster
    under_torchrun: bool
    pod_has_uid: bool = False  # then no other pod is ever called so, while a host may get a job a second time

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Place":
        # torchrun replaces the operator's WORLD_SIZE and RANK, which count nodes, by those of the processes.
        under_torchrun = "LOCAL_RANK" in environment
        number = (lambda name, alone: int(environment[name])) if under_torchrun else (lambda name, alone: alone)
        return cls(
            rank=number("RANK", 0),
            size=number("WORLD_SIZE", 1),
            local_rank=number("LOCAL_RANK", 0),
            node=number("GROUP_RANK", 0),
            nodes=number("GROUP_WORLD_SIZE", 1),
            pod=environment.get("POD_UID") or socket.gethostname(),
            under_torchrun=under_torchrun,
            pod_has_uid=bool(environment.get("POD_UID")),
        )

    @classmethod
    def here(cls) -> "Place":
        return cls.of(os.environ)
