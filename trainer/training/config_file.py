"""The file that CONFIG_PATH names, as a mapping. What its keys mean is settings.py's."""

import json
import re
import typing
from pathlib import Path

from training.errors import UserError
from training.storage import open_storage

OBJECT = re.compile(r"(s3://[^/]+(?:/.*)?)/([^/]+)")  # its folder and its name


def read(path: str) -> dict[str, typing.Any]:
    """JSON or YAML from an s3:// object or a local file. Raises UserError that begins with CONFIG_PATH."""
    location = OBJECT.fullmatch(path)
    if not location and not path.startswith("/"):
        raise UserError(f"CONFIG_PATH must be an s3:// object or an absolute path, not {path!r}")
    try:
        body = open_storage(location[1], "CONFIG_PATH").read(location[2]) if location else Path(path).read_bytes()
        value = parse(body, path)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"CONFIG_PATH {path} does not exist") from None
    except PermissionError:
        raise UserError(f"CONFIG_PATH {path} may not be read by this job: access denied") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"CONFIG_PATH {path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(value, dict):
        raise UserError(f"CONFIG_PATH {path} must hold one mapping of settings to values")
    return value


def parse(body: bytes, name: str) -> typing.Any:
    """Raises ValueError, also for a key that is given twice."""
    try:
        return json.loads(body, object_pairs_hook=without_twins)
    except json.JSONDecodeError:
        if name.endswith(".json"):
            raise
    return _yaml(body)


def without_twins(pairs: list[tuple[str, typing.Any]]) -> dict[str, typing.Any]:
    """A JSON object. Raises ValueError for a key that is given twice."""
    _no_twins([key for key, _ in pairs])
    return dict(pairs)


def _no_twins(keys: list[typing.Any]) -> None:
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"{key} is given twice")


def _yaml(body: bytes) -> typing.Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """Plain words mean what they mean in JSON, and all others are text.

        By itself PyYAML takes 2e-5 for text, no for false, 010 for eight and 1:30 for ninety.
        """

        yaml_implicit_resolvers: typing.ClassVar = {}

        def construct_mapping(self, node, deep=False):
            _no_twins([key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)])
            return super().construct_mapping(node, deep)

    number = r"-?(0|[1-9][0-9]*)"
    for kind, pattern, first in (
        ("null", "null|", ["n", ""]),
        ("bool", "true|false", list("tf")),
        ("int", number, list("-0123456789")),
        ("float", rf"{number}(\.[0-9]+)?([eE][-+]?[0-9]+)?", list("-0123456789")),
    ):
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", re.compile(rf"({pattern})\Z"), first)
    try:
        return yaml.load(body, Loader)  # a SafeLoader
    except (yaml.YAMLError, AttributeError, LookupError, TypeError) as error:  # all but the first: an ill-used !!tag
        raise ValueError(f"neither JSON nor YAML: {error}") from None
