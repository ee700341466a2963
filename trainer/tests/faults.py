"""A storage whose process dies at one of its calls: before it has an effect, or after.

Deleting and uploading many objects is many calls. A call of a thread that is still under way when another one dies
may have an effect or not, as in life.
"""

import itertools
import threading


class DiedError(BaseException):
    """No handler of errors may see it: the process is gone."""


class MortalStorage:
    def __init__(self, inner, dies_at=None, *, after=False, on_call=lambda verb, key: None, die=None):
        self.inner = inner
        self.dies_at = dies_at  # number of the call, from 0
        self.after = after
        self.on_call = on_call
        self.die = die or self._die
        self.numbers = itertools.count()
        self.dead = threading.Event()
        self.calls = []

    def _die(self):
        self.dead.set()
        raise DiedError

    def _call(self, verb, key, function):
        number = next(self.numbers)
        self.calls.append((verb, key))
        self.on_call(verb, key)
        if self.dead.is_set():
            raise DiedError
        if number == self.dies_at and not self.after:
            self.die()
        try:
            return function()
        finally:
            if number == self.dies_at:
                self.die()

    def stat(self, key):
        return self._call("stat", key, lambda: self.inner.stat(key))

    def read(self, key):
        return self._call("read", key, lambda: self.inner.read(key))

    def write(self, key, body, *, only_if_absent=False):
        return self._call("write", key, lambda: self.inner.write(key, body, only_if_absent=only_if_absent))

    def replace(self, key, old, new):
        return self._call("replace", key, lambda: self.inner.replace(key, old, new))

    def remove(self, key, old):
        return self._call("remove", key, lambda: self.inner.remove(key, old))

    def upload(self, source, key):
        return self._call("upload", key, lambda: self.inner.upload(source, key))

    def download(self, key, target):
        return self._call("download", key, lambda: self.inner.download(key, target))

    def download_range(self, key, start, end, target, etag):
        what = f"{key} {end - start}"
        return self._call("range", what, lambda: self.inner.download_range(key, start, end, target, etag))

    def list(self, prefix):
        return self._call("list", prefix, lambda: self.inner.list(prefix))

    def delete(self, keys):
        for key in keys:
            self._call("delete", key, lambda key=key: self.inner.delete([key]))
