"""Whose the run is: one submission's, and of that one's attempts the newest one's.

A pod that was cut off and comes back must not write into a run that has gone on without it. The submission is named by
the control plane before it makes a job; other launchers name none, and neither do people: a run without an owner is
everybody's. The attempts are those of the ledger.
"""

import json
import logging
import math
import time
import uuid
from collections.abc import Mapping
from typing import Any, Literal

from training import layout
from training.errors import SupersededError
from training.storage import Storage

CLAIM_SECONDS = 35  # after a claim, its job may still appear: the control plane's owner.rs
POLL_SECONDS = 1.0

logger = logging.getLogger(__name__)


def may_write(owner: Mapping[str, Any], submission: str, now: float) -> Literal["allowed", "wait", "superseded"]:
    """Whether this submission may write into a run with this owner; `now` is in milliseconds since 1970.

    The rule is `Owner::write` of the control plane too. A claim that is young settles nothing yet: its request may be
    refused, and the run's owner is then written again. One that was given up where nothing was before claims nothing.
    """
    if owner["submission"] == submission:
        return "allowed"
    request = owner.get("claimed_by")
    if _is_young(owner["submission"] if request is None else request, now):
        return "wait"
    return "allowed" if owner.get("released") is True else "superseded"


def _is_young(request: str, now: float) -> bool:
    """By the time at which the request made its id, which may be ahead by as much: clocks differ a little."""
    made = _made_at(request)
    return made is not None and abs(now - made) < CLAIM_SECONDS * 1000


def _made_at(request: str) -> int | None:
    """In milliseconds since 1970; None where the id (UUIDv7 otherwise) does not say."""
    try:
        made = uuid.UUID(request).int
    except ValueError:
        return None
    return made >> 80 if made >> 76 & 0xF == 7 else None  # whatever the variant


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
        """Waits for as long as it is not settled whose the run is, but for no claims that follow each other."""
        waits_until = time.monotonic() + CLAIM_SECONDS
        while (owner := self._read()) is not None:
            is_over = time.monotonic() >= waits_until
            verdict = may_write(owner, self.submission, math.inf if is_over else time.time() * 1000)
            if verdict == "allowed":
                return
            if verdict == "superseded":
                other = owner["submission"]
                raise SupersededError(
                    f"the run belongs to submission {other} now: {self.submission} stops and writes no more"
                )
            logger.info("waits: submission %s has claimed the run, and its job may not appear", owner["submission"])
            time.sleep(POLL_SECONDS)

    def _read(self) -> dict[str, Any] | None:
        """The run's owner; None where there is none, or none that names a submission."""
        try:
            value = json.loads(self.storage.read(layout.owner_key()))
            if not isinstance(value, dict) or not layout.is_submission(value.get("submission")):
                raise ValueError("it names no submission")
            if not isinstance(value.get("claimed_by"), str | None):
                raise ValueError("it names no request")
        except FileNotFoundError:
            return None
        except ValueError as error:
            if not self.warned:
                logger.warning("cannot tell whose the run is from its %s: %s", layout.owner_key(), error)
                self.warned = True
            return None
        return value
