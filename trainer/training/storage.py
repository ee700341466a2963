"""Objects under keys, in an S3 bucket or below a local folder. It knows nothing of checkpoints.

An object appears whole or not at all, in both.
"""

import contextlib
import os
import pathlib
import shutil
import tempfile
import time
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from training.errors import AccessDeniedError, StorageError, UserError

LFS_POINTER = b"version https://git-lfs.github.com/spec/"  # begins what a clone without Git LFS has for a file
PART = ".part"  # ends the name of a local file that is still being written
CHUNK = 2**20  # bytes that are read of a body at a time
TRIES = 5  # of what botocore itself does not try again
PASSING = ("InternalError", "ServiceUnavailable", "SlowDown")  # what S3 says of single objects it did not delete

Got = typing.TypeVar("Got")


class ConflictError(StorageError):
    """Two requests with conditions met on one key."""


class NoBucketError(StorageError):
    """There is no such bucket."""


class WithheldError(StorageError):
    """The object is there, and nobody is given it as it is: it is archived, or encrypted with a key of its writer's."""


def withheld(error: WithheldError) -> str:
    """What is wrong, and what to do about it."""
    key = str(error).partition(": ")[0]
    return (
        f"{key} is archived, or encrypted with a key of its writer's: restore it, or copy it, and submit the job again"
    )


MEANINGS = {
    "NoSuchKey": FileNotFoundError,
    "NoSuchBucket": NoBucketError,
    "404": FileNotFoundError,
    "AccessDenied": AccessDeniedError,
    "403": AccessDeniedError,
    "PreconditionFailed": FileExistsError,
    "ConditionalRequestConflict": ConflictError,
    "InvalidObjectState": WithheldError,  # archived
}


@dataclass(frozen=True, kw_only=True)
class Entry:
    key: str
    size: int  # bytes
    etag: str | None  # with its quotes, as S3 gives it; a folder has none


class Storage(typing.Protocol):
    """The verbs that the trainer needs. Keys are relative to the URI that was opened.

    Each raises StorageError when it cannot do what it was asked, also after the retries that may help.
    """

    def read(self, key: str) -> bytes:
        """Raises FileNotFoundError."""
        ...

    def write(self, key: str, body: bytes, *, only_if_absent: bool = False) -> None:
        """Raises FileExistsError when the object was to be the first and is not."""

    def replace(self, key: str, old: bytes, new: bytes) -> None:
        """Raises FileExistsError when the object is not the old one, or no longer."""

    def remove(self, key: str, old: bytes) -> None:
        """Delete the object if it is the old one; if it is another one or gone, that is no error."""

    def upload(self, source: Path, key: str) -> None: ...

    def download(self, key: str, target: Path) -> None:
        """Raises FileNotFoundError; makes the folders that the target needs."""

    def download_range(self, key: str, start: int, end: int, target: Path, etag: str | None) -> None:
        """Bring the bytes from `start` to before `end` to the same place in a file that is there.

        Raises FileNotFoundError, and StorageError where the object is another one than that of the ETag.
        """
        ...

    def stat(self, key: str) -> Entry:
        """One object's entry. Raises FileNotFoundError."""
        ...

    def list(self, prefix: str) -> list[Entry]:
        """All objects whose key begins with the prefix, in the order of their keys."""
        ...

    def delete(self, keys: Iterable[str]) -> None:
        """An object that is not there is no error."""


def open_storage(uri: str, variable: str = "the URI") -> Storage:
    """Storage below a URI, with or without a trailing slash. Touches neither network nor disk.

    The variable is where the URI comes from. Each verb raises UserError with it where there is no such bucket.
    """
    scheme, _, rest = uri.partition("://")
    if scheme == "file" and rest.startswith("/"):
        return Folder(Path(rest))
    bucket, _, prefix = rest.partition("/")
    if scheme == "s3" and bucket:
        return Bucket(bucket, prefix.strip("/"), variable)
    raise UserError(
        f"{variable} {uri!r} is no URI of a bucket or folder: give s3://bucket/prefix or file:///absolute/path"
    )


# === a local folder ===


class Folder:
    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, key: str) -> bytes:
        with _meanings(key):
            return (self.root / key).read_bytes()

    def write(self, key: str, body: bytes, *, only_if_absent: bool = False) -> None:
        with _meanings(key), self._part(self.root / key) as part:
            part.write_bytes(body)
            if only_if_absent:
                os.link(part, self.root / key)  # unlike a rename, it fails when the target exists
            else:
                part.replace(self.root / key)

    def replace(self, key: str, old: bytes, new: bytes) -> None:
        # A folder has no such operation: another process may come between the comparison and the rename.
        with contextlib.suppress(FileNotFoundError):
            if self.read(key) == old:
                return self.write(key, new)
        raise FileExistsError(f"{key} has changed since it was read")

    def remove(self, key: str, old: bytes) -> None:
        with contextlib.suppress(FileNotFoundError):
            if self.read(key) == old:
                self.delete([key])

    def upload(self, source: Path, key: str) -> None:
        with _meanings(key), self._part(self.root / key) as part:
            shutil.copyfile(source, part)
            part.replace(self.root / key)

    def download(self, key: str, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _meanings(key):
            shutil.copyfile(self.root / key, target)

    def download_range(self, key: str, start: int, end: int, target: Path, etag: str | None) -> None:
        with _meanings(key), (self.root / key).open("rb") as source, target.open("r+b") as part:
            source.seek(start)
            part.seek(start)
            part.write(source.read(end - start))

    def stat(self, key: str) -> Entry:
        with _meanings(key):
            if not (self.root / key).is_file():
                raise FileNotFoundError(key)
            return Entry(key=key, size=(self.root / key).stat().st_size, etag=None)

    def list(self, prefix: str) -> list[Entry]:
        entries = []
        for folder, _, names in os.walk(self.root / prefix.rpartition("/")[0]):
            for path in (Path(folder, name) for name in names if not name.endswith(PART)):
                key = pathlib.PurePosixPath(path.relative_to(self.root)).as_posix()
                if key.startswith(prefix):
                    with _meanings(key), contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                        entries.append(Entry(key=key, size=path.stat().st_size, etag=None))
        return sorted(entries, key=lambda entry: entry.key)

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            path = self.root / key
            with _meanings(key):
                path.unlink(missing_ok=True)
            for folder in path.parents:  # a bucket has no empty folders either
                if folder == self.root:
                    break
                try:
                    folder.rmdir()
                except OSError:  # not empty, or another process was faster
                    break

    @contextlib.contextmanager
    def _part(self, target: Path) -> Iterator[Path]:
        for attempt in range(TRIES):
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=PART, dir=target.parent)
                break
            except FileExistsError as error:  # which would mean that the object exists
                raise NotADirectoryError(str(error)) from error
            except FileNotFoundError:  # another process has just found the folder empty, and removed it
                if attempt == TRIES - 1:
                    raise
        os.close(handle)
        try:
            yield Path(name)
        finally:
            Path(name).unlink(missing_ok=True)


# === an S3 bucket ===


class Bucket:
    def __init__(self, bucket: str, prefix: str, variable: str) -> None:
        import boto3
        from botocore.config import Config

        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        self.client = boto3.client(
            "s3",
            region_name=os.environ.get("AWS_REGION") or None,  # boto3 itself reads AWS_DEFAULT_REGION only
            config=Config(
                retries={"mode": "standard", "total_max_attempts": 8},
                connect_timeout=10,
                max_pool_connections=32,
                # A stand-in for S3 has no host name for each bucket.
                s3={"addressing_style": "path" if endpoint else "auto"},
            ),
        )
        self.bucket = bucket
        self.variable = variable
        self.prefix = f"{prefix}/" if prefix else ""

    def read(self, key: str) -> bytes:
        return self._get(key)[0]

    def _get(self, key: str) -> tuple[bytes, str]:
        """The body and its ETag."""

        def get() -> tuple[bytes, str]:
            answer = self.client.get_object(Bucket=self.bucket, Key=self.prefix + key)
            return answer["Body"].read(), answer["ETag"]

        return self._whole(key, get)

    def _whole(self, key: str, get: Callable[[], Got]) -> Got:
        """What is read of an object. A connection that breaks in the middle of it is tried again."""
        from botocore.exceptions import FlexibleChecksumError, HTTPClientError, IncompleteReadError

        with self._meanings(key):
            for attempt in range(TRIES):
                try:
                    return get()
                except (FlexibleChecksumError, HTTPClientError, IncompleteReadError):
                    if attempt == TRIES - 1:
                        raise
                    time.sleep(0.1 * 2**attempt)
        raise AssertionError("unreachable")

    def write(self, key: str, body: bytes, *, only_if_absent: bool = False) -> None:
        condition = {"IfNoneMatch": "*"} if only_if_absent else {}
        self._on_no_conflict(key, self.client.put_object, Body=body, **condition)

    def replace(self, key: str, old: bytes, new: bytes) -> None:
        with contextlib.suppress(FileNotFoundError):
            body, etag = self._get(key)
            if body == old:
                return self._on_no_conflict(key, self.client.put_object, Body=new, IfMatch=etag)
        raise FileExistsError(f"{key} has changed since it was read")

    def remove(self, key: str, old: bytes) -> None:
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            body, etag = self._get(key)
            if body == old:
                self._on_no_conflict(key, self.client.delete_object, IfMatch=etag)

    def _on_no_conflict(self, key: str, request: typing.Callable[..., object], **arguments: object) -> None:
        for attempt in range(TRIES):
            try:
                with self._meanings(key):
                    request(Bucket=self.bucket, Key=self.prefix + key, **arguments)
                return
            except ConflictError:  # with another request on the same key, which may come to nothing
                if attempt == TRIES - 1:
                    raise
                time.sleep(0.1 * 2**attempt)

    def upload(self, source: Path, key: str) -> None:
        with self._meanings(key):
            self.client.upload_file(str(source), self.bucket, self.prefix + key)

    def download(self, key: str, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._meanings(key):
            self.client.download_file(self.bucket, self.prefix + key, str(target))

    def download_range(self, key: str, start: int, end: int, target: Path, etag: str | None) -> None:
        with target.open("r+b") as part:

            def get() -> None:
                wanted = {"Range": f"bytes={start}-{end - 1}"} | ({"IfMatch": etag} if etag else {})
                answer = self.client.get_object(Bucket=self.bucket, Key=self.prefix + key, **wanted)
                part.seek(start)
                for body in answer["Body"].iter_chunks(CHUNK):
                    part.write(body)
                if part.tell() != end:
                    raise StorageError(f"{key} ends at byte {part.tell()}, and is needed up to {end}")

            try:
                self._whole(key, get)
            except FileExistsError:
                raise StorageError(f"{key} has changed since it was read") from None

    def stat(self, key: str) -> Entry:
        with self._meanings(key):
            found = self.client.head_object(Bucket=self.bucket, Key=self.prefix + key)
            return Entry(key=key, size=found["ContentLength"], etag=found["ETag"])

    def list(self, prefix: str) -> list[Entry]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix + prefix)
        with self._meanings(prefix):
            return [
                Entry(key=found["Key"].removeprefix(self.prefix), size=found["Size"], etag=found["ETag"])
                for page in pages
                for found in page.get("Contents", [])
            ]

    def delete(self, keys: Iterable[str]) -> None:
        names = [{"Key": self.prefix + key} for key in keys]
        for start in range(0, len(names), 1000):  # as many as one request takes
            self._delete(names[start : start + 1000])

    def _delete(self, names: Sequence[Mapping[str, str]]) -> None:
        failed: Sequence[Mapping[str, str]] = ()
        for attempt in range(TRIES):
            with self._meanings(names[0]["Key"]):
                answer = self.client.delete_objects(Bucket=self.bucket, Delete={"Objects": names, "Quiet": True})
            failed = answer.get("Errors", [])
            if not failed:
                return
            if any(error["Code"] not in PASSING for error in failed):
                break
            names = [{"Key": error["Key"]} for error in failed]
            time.sleep(0.1 * 2**attempt)
        raise StorageError(f"could not delete {failed[0]['Key']}: {failed[0].get('Message', failed[0].get('Code'))}")

    @contextlib.contextmanager
    def _meanings(self, key: str) -> Iterator[None]:
        try:
            with _meanings(key):
                yield
        except NoBucketError:
            raise UserError(f"{self.variable} names the bucket {self.bucket}, which does not exist") from None


@contextlib.contextmanager
def _meanings(key: str) -> Iterator[None]:
    """Turns what goes wrong into the exceptions that the protocol names."""
    try:
        yield
    except (FileNotFoundError, FileExistsError):
        raise
    except OSError as error:
        raise StorageError(f"{key}: {error}") from error
    except Exception as error:
        if not type(error).__module__.startswith(("boto", "s3transfer")):
            raise
        code = (getattr(error, "response", None) or {}).get("Error", {}).get("Code", "")
        kind = MEANINGS.get(code, StorageError)
        if code == "InvalidRequest" and "Server Side Encryption" in str(error):
            kind = WithheldError
        raise kind(f"{key}: {error}") from error
