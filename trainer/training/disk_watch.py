"""A look at the disk every few seconds while an attempt runs, for what grows there unasked, such as caches."""

import logging
import os
import threading
import time
import typing
from collections.abc import Callable

from training import errors, last_words
from training.disk import Disk

if typing.TYPE_CHECKING:
    from training.attempts import Ledger

SELDOM = 20  # times as long as a look takes, at least, between two of them
EVERY_SECONDS = 5.0  # a kubelet counts every ten seconds, or less often

logger = logging.getLogger(__name__)


class Watch:
    """A thread of one process of a node.

    Beyond the limit it ends the process, and the ledger says why. While the node's disk is nearly full, the ledger has
    a note of that: if the pod is evicted now, the next start knows that the cluster has not just moved it.
    """

    def __init__(self, disk: Disk, ledger: "Ledger", number: int, rank: int, end: Callable[[int], object] = os._exit):
        self.disk = disk
        self.ledger = ledger
        self.number = number
        self.rank = rank
        self.end = end
        self.noted: str | None = None
        self.stopped = threading.Event()

    def start(self) -> "Watch":
        threading.Thread(target=self._run, name="disk", daemon=True).start()
        return self

    def stop(self) -> None:
        self.stopped.set()

    def _run(self) -> None:
        took = 0.0
        while not self.stopped.wait(max(EVERY_SECONDS, SELDOM * took)):
            began = time.monotonic()
            try:
                self.look()
            except Exception as error:  # whatever it is, training goes on
                logger.debug("the disk could not be looked at: %s", error)
            took = time.monotonic() - began

    def look(self) -> None:
        limit = self.disk.limit
        used = 0 if limit is None else self.disk.used()
        if limit is not None and used > limit:  # a kubelet that counts now evicts the pod
            said = self.disk.state()
            logger.error("%s", said)
            last_words.leave(errors.STORAGE, self.rank, said)
            try:
                self.ledger.close(self.number, errors.STORAGE, self.rank, said)
            finally:
                self.end(1)
            return
        is_full = self.disk.available(used) <= 0
        if is_full and self.noted is None:
            said = self.disk.state()
            logger.warning("%s", said)
            if self.ledger.note(self.number, said):
                self.noted = said
        elif not is_full and self.noted is not None:
            self.ledger.note(self.number, None, instead_of=self.noted)
            self.noted = None
