"""Which objects a data set is: one, all below a prefix, or those that a pattern chooses; and that they stay so.

A batch is a function of the texts and the step. So the objects are written down at a submission's first start, and a
later start trains on the same ones. Where one of them is gone or changed it is refused: it would train on some texts
twice, and on others never.
"""

import json
import logging
import re
import typing
from collections.abc import Iterable, Sequence

from training import layout
from training.errors import AccessDeniedError, UserError
from training.storage import Entry, Storage, WithheldError, open_storage, withheld

VARIABLE = "DATASET_URI"
NAMED = 3  # objects, at most, of each kind of change
UNREADABLE = "{} cannot be read; it lists the objects that this submission began with"
WILD = re.compile(r"[*?]")

# Parts of a name that say which split it is, as the `datasets` library knows them.
SPLITS = {
    "train": "train training",
    "validation": "validation valid val dev",
    "test": "test testing eval evaluation",
}
_SPLIT_OF = {word: split for split, words in SPLITS.items() for word in words.split()}
_SPLIT = re.compile(rf"(?<![^-._ 0-9/])({'|'.join(_SPLIT_OF)})(?![^-._ 0-9/])", re.IGNORECASE)

logger = logging.getLogger(__name__)


def base_of(uri: str) -> str:
    """The folder that the keys of a data set are relative to: the last one before any wildcard."""
    return WILD.split(uri, maxsplit=1)[0].rpartition("/")[0] + "/"


def find(uri: str, *, several_splits: bool = False) -> list[Entry]:
    """The objects of a data set, in the order of their keys, which are relative to base_of(). Raises UserError."""
    base = base_of(uri)
    pattern = uri.removeprefix(base)
    storage = open_storage(base, VARIABLE)
    if pattern and not WILD.search(pattern):
        return [one(uri, storage, pattern)]
    try:
        entries = [entry for entry in storage.list(WILD.split(pattern, maxsplit=1)[0]) if entry.size]
    except AccessDeniedError:
        raise UserError(f"{VARIABLE} {uri} may not be listed by this job: access denied") from None
    if pattern:
        chosen = [entry for entry in entries if matches(pattern, entry.key)]
        if entries and not chosen:
            raise UserError(f"{VARIABLE} {uri} matches none of the {len(entries)} objects that share its prefix")
        logger.info("%s matches %d of %d objects that share its prefix", uri, len(chosen), len(entries))
        entries = chosen
    hidden = [entry.key for entry in entries if is_hidden(entry.key)]
    passed_over = f"{len(hidden)} hidden objects, such as {hidden[0]}" if hidden else ""
    if len(hidden) == len(entries):
        raise UserError(f"{VARIABLE} {uri} holds no objects{passed_over and f' but {passed_over}'}")
    if hidden:
        logger.info("passed over %s", passed_over)
    entries = [entry for entry in entries if not is_hidden(entry.key)]
    if not pattern and not several_splits:
        check_one_split(uri, [entry.key for entry in entries])
    return entries


def one(uri: str, storage: Storage, key: str) -> Entry:
    try:
        return storage.stat(key)
    except FileNotFoundError:
        raise UserError(f"{VARIABLE} {uri} does not exist; end it with a slash if it is a prefix") from None
    except AccessDeniedError:
        raise UserError(f"{VARIABLE} {uri} may not be read by this job: access denied") from None


def matches(pattern: str, key: str) -> bool:
    """Whether a pattern chooses a key: `*` is anything within a folder, `?` a character of it, `**` anything.

    `**/` is any number of folders, none too.
    """
    meanings = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    return bool(re.fullmatch("".join(meanings.get(part) or re.escape(part) for part in parts), key, re.S))


def is_hidden(key: str) -> bool:
    """Whether it is no data: a folder's own object, or anything hidden (.ipynb_checkpoints/) or left by a batch system.

    These write _SUCCESS beside their output, and _temporary/ before it. A partition's folder (_year=2024/) is data.
    """
    return key.endswith("/") or any(part.startswith((".", "_")) and "=" not in part for part in key.split("/"))


def check_one_split(uri: str, keys: Iterable[str]) -> None:
    """Raises UserError for objects of several splits: nobody wants to train on what is held out to test with."""
    first: dict[str, str] = {}
    for key in keys:
        if words := _SPLIT.findall(key):
            first.setdefault(_SPLIT_OF[words[-1].lower()], key)
    if len(first) > 1:
        splits = ", ".join(f"{split} ({key})" for split, key in sorted(first.items()))
        pattern = uri + example(first.get("train") or next(iter(first.values())))
        raise UserError(
            f"{VARIABLE} {uri} holds several splits: {splits}. Choose one with a pattern, such as {pattern}, or end it "
            "with ** to train on all of them"
        )


def example(key: str) -> str:
    """A pattern for the split that a key is of: the folder of that name, or the names that differ in numbers."""
    *folders, _ = key.split("/")
    for depth, folder in reversed(list(enumerate(folders, 1))):
        if _SPLIT.fullmatch(folder):
            return "/".join([*folders[:depth], "**"])
    return re.sub("[0-9]+", "*", key)


# === that they stay so ===


def pin(
    storage: Storage, submission: str, uri: str, entries: Sequence[Entry], streams: int = 0
) -> tuple[list[Entry], int]:
    """What a submission trains on, and in how many streams: as at its first start, at which that is written down.

    What was added since is left out. Raises UserError where one of the objects is gone or changed.
    """
    found = {entry.key: [entry.size, entry.etag] for entry in entries}
    body = json.dumps({"uri": uri, "streams": streams, "objects": found}, indent=1).encode()
    key = layout.data_key(submission)
    try:
        storage.write(key, body, only_if_absent=True)
        return list(entries), streams
    except FileExistsError:
        pinned = pinned_before(storage, key)
    try:
        said = json.loads(pinned)
        before = {key: [size, etag] for key, (size, etag) in said["objects"].items()}
        streams = whole(said.get("streams", streams))
        differ = changes(before, found)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(UNREADABLE.format(key)) from None
    if differ:
        raise UserError(
            f"{VARIABLE} {uri} is not what this submission began with: {differ}. Put it back as it was, or submit the "
            "job again, with resume to train on with the new data"
        )
    if added := sorted(found.keys() - before.keys()):
        logger.warning(
            "%d objects were added since this submission began, such as %s: they are left out, and a new submission "
            "takes them",
            len(added),
            added[0],
        )
    return [entry for entry in entries if entry.key in before], streams


def pinned_before(storage: Storage, key: str) -> bytes:
    """Raises UserError for an object that nobody is given: another start would not be given it either."""
    try:
        return storage.read(key)
    except WithheldError as error:
        raise UserError(f"{UNREADABLE.format(key)}: {withheld(error)}") from None


def streams_before(storage: Storage, submission: str, uri: str, entries: Sequence[Entry]) -> int | None:
    """In how many streams an earlier submission read these objects; None where it read others, or nobody knows."""
    objects = {entry.key: [entry.size, entry.etag] for entry in entries}
    try:
        said = json.loads(storage.read(layout.data_key(submission)))
        return whole(said["streams"]) if (said["uri"], said["objects"]) == (uri, objects) else None
    except (FileNotFoundError, WithheldError, ValueError, KeyError, TypeError, RecursionError):
        return None


def whole(found: typing.Any) -> int:
    """Raises ValueError for what is no number of streams."""
    if type(found) is not int or not 0 <= found < 2**20:
        raise ValueError(f"{found!r} is no number of streams")
    return found


def changes(before: dict[str, list[object]], after: dict[str, list[object]]) -> str:
    """What of a listing is no longer there as it was, in words; empty when nothing is."""
    kinds = {
        "gone": sorted(before.keys() - after.keys()),
        "changed": sorted(key for key in before.keys() & after.keys() if before[key] != after[key]),
    }
    return ", ".join(
        f"{len(keys)} {kind} ({', '.join(keys[:NAMED])}{', ...' if len(keys) > NAMED else ''})"
        for kind, keys in kinds.items()
        if keys
    )
