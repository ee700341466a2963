"""JSON objects that others wrote, read as the control plane reads them, so that both take or refuse the same ones."""

import json
import re
import typing

MAX_DEPTH = 64  # objects and lists in each other, the object itself counted

_TEXT_OR_BRACKET = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)


def load(body: bytes) -> dict[str, typing.Any]:
    """Raises ValueError, whose sentence begins with "JSON"."""
    if depth(body) > MAX_DEPTH:
        raise ValueError(f"JSON nested deeper than {MAX_DEPTH} levels")
    try:
        value = json.loads(body.decode(), parse_constant=no_number, parse_int=whole_number)
    except ValueError as error:
        raise ValueError(f"JSON cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise ValueError("JSON of another kind than an object")
    return value


def depth(body: bytes) -> int:
    """How deep objects and lists nest in a JSON text; brackets in texts do not count."""
    deepest = level = 0
    for found in _TEXT_OR_BRACKET.finditer(body):
        match found[0]:
            case b"[" | b"{":
                level += 1
                deepest = max(deepest, level)
            case b"]" | b"}":
                level = max(level - 1, 0)
    return deepest


def no_number(text: str) -> typing.Any:
    """NaN and the infinities, which are Python's and not JSON's."""
    raise ValueError(f"{text} is no number")


def whole_number(text: str) -> int | float:
    """As the control plane reads it: what does not fit into 64 bits, and minus nought, is a float."""
    fits = len(text) <= 20 and text != "-0" and -(2**63) <= int(text) < 2**64
    return int(text) if fits else float(text)
