"""Whose the run is: one submission's, and of that one's attempts the newest one's.

A pod that was cut off and comes back must not write into a run that has gone on without it. The submission is named by
the control plane before it makes a job; other launchers name none, and neither do people: a run without an owner is
everybody's. The attempts are those of the ledger.
"""

import json
import logging

from training import layout
from training.errors import SupersededError
from training.storage import Storage

logger = logging.getLogger(__name__)


class Owner:
    def __init__(self, storage: Storage, submission: str, attempt: int | None = None) -> None:
        """Without an attempt, its submission's next one is meant, which is the newest."""
        self.storage = storage
        self.submission = submission
        self.attempt = attempt
        self.warned = False

    def check(self) -> None:
        """Raise SupersededError when the run is another submission's, or another attempt's; two requests."""
        self._check_submission()
        if self.attempt is not None:
            self._check_attempt(self.attempt)

    def _check_attempt(self, mine: int) -> None:
        entries = self.storage.list(layout.attempts_prefix(self.submission))
        newest = max((layout.parse_attempt_key(entry.key) or 0 for entry in entries), default=0)
        if newest > mine:
            raise SupersededError(f"attempt {newest} of this submission has begun: attempt {mine} writes no more")

    def _check_submission(self) -> None:
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
