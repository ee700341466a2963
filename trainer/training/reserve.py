"""A few descriptors and a little memory that are kept back for how a process ends: its last words and the ledger."""

import resource

DESCRIPTORS = 32  # a connection or two, the files of certificates and names, and the termination message
MEMORY = 4 * 2**20  # bytes


class Reserve:
    """What a process that runs out of descriptors or memory has left, once it is released."""

    def __init__(self) -> None:
        self.limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.memory: bytearray | None = bytearray(MEMORY)
        soft, hard = self.limits
        if soft > 2 * DESCRIPTORS:  # an unlimited number is -1
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft - DESCRIPTORS, hard))

    def release(self) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, self.limits)
        self.memory = None
