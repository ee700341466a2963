"""JSON objects that others wrote, read as the control plane reads them, so that both take or refuse the same ones."""

import json
import math
import re
import typing

MAX_DEPTH = 64  # objects and lists in each other, the object itself counted

_HALF = re.compile("[\ud800-\udfff]")
_TEXT_OR_BRACKET = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)


class Object(dict[str, typing.Any]):
    """Of two fields of one name the last one counts, and the others are kept in `hidden`: they may be refused too."""

    hidden: tuple[typing.Any, ...] = ()


def load(body: bytes) -> Object:
    """Raises ValueError, whose sentence begins with "JSON"."""
    if depth(body) > MAX_DEPTH:
        raise ValueError(f"JSON nested deeper than {MAX_DEPTH} levels")
    try:
        value = json.loads(
            body.decode(), parse_constant=no_number, parse_int=whole_number, object_pairs_hook=with_hidden
        )
    except ValueError as error:
        raise ValueError(f"JSON cannot be read: {error}") from None
    if not isinstance(value, Object):
        raise ValueError("JSON of another kind than an object")
    if not has_whole_names(value):
        raise ValueError("JSON with half a character in a field's name")
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


def with_hidden(fields: list[tuple[str, typing.Any]]) -> Object:
    found = Object(fields)
    if len(found) < len(fields):
        last = {name: number for number, (name, _) in enumerate(fields)}
        found.hidden = tuple(value for number, (name, value) in enumerate(fields) if last[name] != number)
    return found


def is_text(value: typing.Any) -> bool:
    """Whole characters: halves of them have no UTF-8."""
    return isinstance(value, str) and not _HALF.search(value)


def has_whole_names(value: Object) -> bool:
    return all(map(is_text, value))


def is_sound(value: typing.Any) -> bool:
    """Whether its texts are whole and its numbers in range, down to the last one, and in hidden fields too."""
    match value:
        case str():
            return is_text(value)
        case float():
            return math.isfinite(value)
        case list():
            return all(map(is_sound, value))
        case Object():
            return has_whole_names(value) and all(map(is_sound, (*value.values(), *value.hidden)))
    return True


def no_number(text: str) -> typing.Any:
    """NaN and the infinities, which are Python's and not JSON's."""
    raise ValueError(f"{text} is no number")


def whole_number(text: str) -> int | float:
    """As the control plane reads it: what does not fit into 64 bits, and minus nought, is a float."""
    fits = len(text) <= 20 and text != "-0" and -(2**63) <= int(text) < 2**64
    return int(text) if fits else float(text)


def whole(value: typing.Any) -> bool:
    return type(value) is int and value >= 0


def is_number(value: typing.Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
