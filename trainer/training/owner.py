"""Whose the run is: one submission's, and of that one's attempts the newest one's.

A pod that was cut off and comes back must not write into a run that has gone on without it. The submission is named by
the control plane before it makes a job; other launchers name none, and neither do people: a run without an owner is
everybody's. The attempts are those of the ledger.
"""

import logging
import math
import re
import time
import typing
import uuid

from training import layout, strict_json
from training.errors import SupersededError, UserError
from training.storage import Storage, WithheldError

CLAIM_SECONDS = 35  # after a claim, its job may still appear: the control plane's owner.rs
POLL_SECONDS = 1.0

MAX_BYTES = 16 * 1024  # of an owner; submit's have some hundred

_NAMESPACE = re.compile("[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_JOB = re.compile("[a-z]([a-z0-9-]{0,61}[a-z0-9])?")

logger = logging.getLogger(__name__)


class Record(typing.TypedDict):
    """What of an owner's body decides who may write."""

    submission: str
    claimed_by: str | None
    released: bool


def parse(body: bytes) -> Record:
    """Raises ValueError for what the control plane takes for no owner either: the contract's `read`."""
    if len(body) > MAX_BYTES:
        raise ValueError(f"it has {len(body)} bytes, and at most {MAX_BYTES} are read")
    value = strict_json.load(body)

    def field(name: str, fits: typing.Callable[[typing.Any], bool], *, optional: bool = True) -> typing.Any:
        found = value.get(name)
        if not (optional and found is None) and not fits(found):
            raise ValueError(f"its {name} is missing or not what it must be")
        return found

    submission = field("submission", lambda id: _id(id) is not None, optional=False)
    field("namespace", lambda name: isinstance(name, str) and bool(_NAMESPACE.fullmatch(name)), optional=False)
    field("job", lambda name: isinstance(name, str) and bool(_JOB.fullmatch(name)), optional=False)
    field("uid", strict_json.is_text)
    field("request", strict_json.is_text)
    field("previous", lambda id: _id(id) is not None)
    return {
        "submission": submission.lower(),
        "claimed_by": field("claimed_by", strict_json.is_text),
        "released": bool(field("released", lambda released: isinstance(released, bool))),
    }


def _id(value: typing.Any) -> str | None:
    """An id in small letters; None for what is none."""
    text = value.lower() if isinstance(value, str) else None
    return text if layout.is_submission(text) else None


def may_write(owner: Record, submission: str, now: float) -> typing.Literal["allowed", "wait", "superseded"]:
    """Whether this submission may write into a run with this owner; `now` is in milliseconds since 1970.

    The rule is `Owner::write` of the control plane too. A claim that is young settles nothing yet: its request may be
    refused, and the run's owner is then written again. One that was given up where nothing was before claims nothing.
    """
    if owner["submission"] == submission:
        return "allowed"
    request = owner["claimed_by"]
    if _is_young(owner["submission"] if request is None else request, now):
        return "wait"
    return "allowed" if owner["released"] else "superseded"


def _is_young(request: str, now: float) -> bool:
    """By the time at which the request made its id, which may be ahead by as much: clocks differ a little."""
    made = _made_at(request)
    return made is not None and abs(now - made) < CLAIM_SECONDS * 1000


def _made_at(request: str) -> int | None:
    """In milliseconds since 1970; None where the id (UUIDv7 otherwise) does not say."""
    text = _id(request)
    if text is None:
        return None
    made = uuid.UUID(text).int
    return made >> 80 if made >> 76 & 0xF == 7 else None  # whatever the variant


class Owner:
    def __init__(self, storage: Storage, submission: str, attempt: int | None = None) -> None:
        """Without an attempt, its submission's next one is meant, which is the newest."""
        self.storage = storage
        self.submission = submission
        self.attempt = attempt

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
            logger.info("waiting: submission %s has claimed the run, and its job may still appear", owner["submission"])
            time.sleep(POLL_SECONDS)

    def _read(self) -> Record | None:
        """The run's owner; None where there is none. What cannot be read may be another's: nobody writes then."""
        key = layout.owner_key()
        try:
            return parse(self.storage.read(key))
        except FileNotFoundError:
            return None
        except UserError:
            raise  # of a bucket that does not exist
        except (ValueError, WithheldError) as error:
            raise SupersededError(
                f"cannot read this run's owner record, so another job may be training it: {error}; "
                f"if none is, delete {key} from the run's folder"
            ) from None
