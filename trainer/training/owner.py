"""Whose the run is. The control plane says so before it makes a job; the trainer only reads it.

A pod that was cut off and comes back must not write into a run that has gone on without it. Other launchers write no
owner, and neither do people: a run without one is everybody's.
"""

import json
import logging

from training import layout
from training.errors import SupersededError
from training.storage import Storage

logger = logging.getLogger(__name__)


class Owner:
    def __init__(self, storage: Storage, submission: str) -> None:
        self.storage = storage
        self.submission = submission
        self.warned = False

    def check(self) -> None:
        """Raise SupersededError when the run is another submission's; one read."""
        try:
            body = self.storage.read(layout.owner_key())
        except FileNotFoundError:
            return
        owner = self._submission(body)
        if owner not in (None, self.submission):
            raise SupersededError(
                f"the run belongs to submission {owner} now: {self.submission} stops and writes no more"
            )

    def _submission(self, body: bytes) -> str | None:
        try:
            value = json.loads(body)
            if not isinstance(value, dict) or not layout.is_submission(value.get("submission")):
                raise ValueError("it names no submission")
        except ValueError as error:
            if not self.warned:
                logger.warning("cannot tell whose the run is from its %s: %s", layout.owner_key(), error)
                self.warned = True
            return None
        return value["submission"]
