"""The ledger of a submission's starts: which one this is, how the others ended, and whether there may be another.

An entry is claimed at a start and closed at its end, by whichever process knows the cause. What nobody closed is judged
at the next start: in the same pods the processes must have died, in others the cluster has moved them.
"""

import dataclasses
import json
import logging
import time
import typing
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from training import errors, layout, strict_json
from training.errors import RefusedError, SupersededError, UserError
from training.owner import Owner
from training.place import Place
from training.storage import Storage, WithheldError
from training.strict_json import is_number, whole

if typing.TYPE_CHECKING:
    from training.distributed import World

MAX_BYTES = 128 * 1024  # of an entry; a thousand pods' UIDs take some forty thousand
MAX_MESSAGE = 1024  # characters; a status shows no more
COUNTED = (errors.CRASH, errors.STORAGE, errors.OUT_OF_MEMORY)  # the rest is no fault of the run
READERS = 8  # at a time

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attempt:
    attempt: int  # from 1
    pods: tuple[str, ...]  # UIDs by node; until all have met, that of the first alone
    started_at: float  # seconds since 1970, by this machine's clock
    cause: str | None = None  # None while it runs, and when it ended without a word
    rank: int | None = None  # who knew the cause
    message: str | None = None  # while it runs, that its disk is full
    ended_at: float | None = None

    def dump(self) -> bytes:
        return json.dumps(dataclasses.asdict(self)).encode()


class Ledger:
    def __init__(self, storage: Storage, submission: str, max_restarts: int) -> None:
        self.storage = storage
        self.submission = submission
        self.max_restarts = max_restarts
        self.doubtful: list[Attempt] = []  # open, and only all pods together can tell how each ended

    # === starting ===

    def start(self, place: Place) -> int | None:
        """Before anything heavy is imported, on the first process of each node. Rank 0 claims a number and returns it.

        Raises SupersededError, RefusedError where the closed entries are reason enough, and UserError where no number
        is left.
        """
        Owner(self.storage, self.submission).check()
        attempts = self.read()
        if place.rank > 0:
            self._check(attempts)  # rank 0 does what has to be written
            return None
        self._check_place(place, attempts)
        attempts = [self._judged(attempt, place) for attempt in attempts]
        self._check(attempts)
        return self._claim(attempts[-1].attempt + 1 if attempts else 1, place)

    def _judged(self, attempt: Attempt, place: Place) -> Attempt:
        """An attempt as it ended. It stays open where only all pods together can tell."""
        if attempt.cause is not None:
            return attempt
        all_had_met = place.nodes > 1 and len(attempt.pods) == place.nodes
        if attempt.message is None and all_had_met and attempt.pods[0] == place.pod:
            self.doubtful.append(attempt)
            return attempt
        return self._close(attempt, self._judge(attempt, (place.pod,)), message=attempt.message)

    def _check_place(self, place: Place, attempts: list[Attempt]) -> None:
        """Raises SupersededError in a pod that the cluster has replaced: its attempt would end the one that goes on.

        That happens on a node that was cut off, whose kubelet starts containers again without asking anybody.
        """
        first = [attempt.pods[0] for attempt in attempts if attempt.pods]
        if place.pod_has_uid and place.pod in first and first[-1] != place.pod:
            raise SupersededError(f"pod {place.pod} was replaced by pod {first[-1]}: it starts nothing more")

    def meet(self, world: "World", place: Place, number: int | None) -> int:
        """Everybody learns rank 0's number, which gets all pods' UIDs; together. Raises RefusedError."""
        pods = dict(sorted(world.gather((place.node, place.pod))))
        return world.on_rank_zero(lambda: self._settle(number, tuple(pods.values())))

    def _settle(self, number: int, pods: tuple[str, ...]) -> int:
        attempts = {attempt.attempt: attempt for attempt in self.read()}
        mine = attempts.pop(number)
        for doubtful in self.doubtful:
            attempts[doubtful.attempt] = self._close(doubtful, self._judge(doubtful, pods))
        if self.doubtful:
            try:
                self._check(list(attempts.values()))
            except RefusedError:
                self.storage.delete([layout.attempt_key(self.submission, number)])  # it has not begun
                raise
        if mine.pods != pods:
            self._write(dataclasses.replace(mine, pods=pods))
        logger.info("attempt %d of submission %s", number, self.submission)
        return number

    def _judge(self, attempt: Attempt, pods: tuple[str, ...]) -> str:
        """How an attempt ended that nobody closed. `pods` may be the first ones only."""
        if attempt.message is not None:
            return errors.STORAGE  # its disk was full, and for that a cluster evicts pods
        same = attempt.pods[: len(pods)] == pods
        return errors.CRASH if same else errors.PREEMPTED

    def _check(self, attempts: list[Attempt]) -> None:
        """Raises RefusedError when there may be no other attempt after these.

        One that is open was moved, as far as anybody can tell yet. It may be this very start's, on another node.
        """
        if not attempts:
            return
        ended = [dataclasses.replace(attempt, cause=attempt.cause or errors.PREEMPTED) for attempt in attempts]
        last = ended[-1]
        said = f": {last.message}" if last.message else ""
        if last.cause == errors.USER_ERROR:
            raise RefusedError(last.cause, f"attempt {last.attempt} ended with an error that no restart can fix{said}")
        if [attempt.cause for attempt in ended[-2:]] == [errors.OUT_OF_MEMORY] * 2:
            raise RefusedError(last.cause, f"attempts {ended[-2].attempt} and {last.attempt} ran out of memory{said}")
        failed = [attempt for attempt in ended if attempt.cause in COUNTED]
        if len(failed) > self.max_restarts:
            raise RefusedError(
                failed[-1].cause or errors.CRASH,
                f"{len(failed)} attempts have failed and max_restarts is {self.max_restarts}; the last, "
                f"attempt {failed[-1].attempt}, by {failed[-1].cause}"
                + (f": {failed[-1].message}" if failed[-1].message else ""),
            )

    def _claim(self, number: int, place: Place) -> int:
        while number <= layout.MAX_ATTEMPT:
            attempt = Attempt(attempt=number, pods=(place.pod,), started_at=time.time())
            key, body = layout.attempt_key(self.submission, number), attempt.dump()
            try:
                self.storage.write(key, body, only_if_absent=True)
                return number
            except FileExistsError:
                # A retry after a lost answer finds what its first try wrote. Anything else is another pod's.
                if self.storage.read(key) == body:
                    return number
                self._check_place(place, self.read())
                number += 1
        last = layout.attempt_key(self.submission, layout.MAX_ATTEMPT)
        raise UserError(f"{last} is the last attempt that a submission can have: submit the job again")

    # === ending ===

    def close(self, number: int, cause: str, rank: int, message: str | None = None) -> None:
        """Say how an attempt ended. Who says so first is right: what follows is often a consequence."""
        attempt = self._read(layout.attempt_key(self.submission, number))
        if attempt and attempt.cause is None:
            self._close(attempt, cause, rank, message)

    def note(self, number: int, message: str | None, instead_of: str | None = None) -> bool:
        """Note in the entry of an attempt that runs that its disk is full; None takes back what was noted before.

        Of several nodes the first one's note stands. An entry that somebody closes meanwhile stays as it is.
        Returns whether it is noted.
        """
        key = layout.attempt_key(self.submission, number)
        body = self.storage.read(key)
        attempt = parse(number, body)
        if attempt.cause is None and attempt.message == instead_of:
            self.storage.replace(key, body, dataclasses.replace(attempt, message=message).dump())
            return True
        return False

    def _close(self, attempt: Attempt, cause: str, rank: int | None = None, message: str | None = None) -> Attempt:
        if message is not None:
            message = message.encode(errors="replace").decode()[:MAX_MESSAGE]
        closed = dataclasses.replace(attempt, cause=cause, rank=rank, message=message, ended_at=time.time())
        self._write(closed)
        return closed

    # === reading and writing ===

    def read(self) -> list[Attempt]:
        """All entries, the first attempt first."""
        keys = [entry.key for entry in self.storage.list(layout.attempts_prefix(self.submission))]
        with ThreadPoolExecutor(READERS) as pool:
            return sorted(filter(None, pool.map(self._read, keys)), key=lambda attempt: attempt.attempt)

    def _read(self, key: str) -> Attempt | None:
        number = layout.parse_attempt_key(key)
        if number is None:
            return None
        try:
            return parse(number, self.storage.read(key))
        except FileNotFoundError:
            return None  # deleted since it was listed
        except (ValueError, WithheldError) as error:
            # Taken for the worst that it may have been, so that damage makes no restart more.
            logger.warning("%s cannot be read and counts as a crash: %s", key, error)
            return Attempt(attempt=number, pods=(), started_at=0.0, cause=errors.CRASH)

    def _write(self, attempt: Attempt) -> None:
        self.storage.write(layout.attempt_key(self.submission, attempt.attempt), attempt.dump())


def parse(number: int, body: bytes) -> Attempt:
    """Raises ValueError for what is not an entry. Fields of later releases are ignored.

    A contract with the control plane: tests/contract/attempts.json holds the vectors that both sides run.
    """
    if len(body) > MAX_BYTES:
        raise ValueError(f"it has {len(body)} bytes, and at most {MAX_BYTES} are read")
    value = strict_json.load(body)

    def field(name: str, fits: Callable[[typing.Any], bool]) -> typing.Any:
        if not fits(found := value.get(name)):
            raise ValueError(f"{name} is not what it must be: {found!r}")
        return found

    if "cause" not in value:
        raise ValueError("its cause is missing")
    return Attempt(
        attempt=number,
        pods=tuple(field("pods", lambda pods: isinstance(pods, list) and all(map(strict_json.is_text, pods)))),
        started_at=field("started_at", is_number),
        cause=field("cause", lambda cause: cause is None or cause in errors.CAUSES),
        rank=field("rank", lambda rank: rank is None or (whole(rank) and rank < 2**32)),
        message=field("message", lambda message: message is None or strict_json.is_text(message)),
        ended_at=field("ended_at", lambda ended_at: ended_at is None or is_number(ended_at)),
    )
