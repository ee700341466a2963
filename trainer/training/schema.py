"""The settings as JSON Schema, one for each framework, and as a table: made from what settings.py checks.

    python -m training.schema        (in trainer/; `make settings`)

writes settings/<framework>.json anew, and the tables in README.md. The control plane reads the schemas: it tells a
typing error before a GPU is held. They describe the stock image, so what packages it has comes from uv.lock and not
from the environment that this runs in.

Beside JSON Schema's own keywords (2020-12) a property has these:

x-expected   what a value must be, for a sentence: "max_steps must be ..."
x-refusal    why other values are refused. A property that has it is offered to nobody as the nearest name.
x-setting    the setting that it is another name of
"""

import dataclasses
import functools
import json
import re
import tomllib
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path

from training import settings, training_arguments
from training.layout import FRAMEWORKS

TRAINER = Path(__file__).parents[1]
TYPES = {int: "integer", float: "number", bool: "boolean", str: "string", dict: "object", list: "array"}
FIELD_TYPES = {name: kind for name, (kind, *_) in training_arguments.KINDS.items()}
NULL = type(None)

Schema = dict[str, typing.Any]


def schema(framework: str) -> Schema:
    """The JSON Schema of a framework's extra_args."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"How framework {framework} trains: the extra_args of a training job in the stock image",
        "type": "object",
        "properties": properties(framework),
        "additionalProperties": False,
    }


def properties(framework: str) -> dict[str, Schema]:
    own = {name: of_setting(name, hint) for name, hint in settings.names(framework, include_extras=True).items()}
    own["report_to"] = values([*settings.WORDS["report_to"], [], ["none"], ["tensorboard"], None]) | described(
        own["report_to"]
    )
    own["max_steps"] |= {"anyOf": [{"minimum": 1}, {"const": -1}]}  # -1 as if it were not given
    del own["max_steps"]["minimum"]
    for (kind, name), always in settings.ALWAYS.items():
        if kind == framework:
            own[name] = values([always, None]) | described(own[name])
    found = dict(own)
    found |= {
        name: {"type": ["boolean", "null"], "x-setting": "precision"} | expected("true or false")
        for name in ("bf16", "fp16")
    }
    found |= {name: of_field(name) for name in training_arguments.own(framework) if name not in found}
    if framework != "hf":
        schedulers = {"enum": [*training_arguments.SCHEDULERS, "constant", None], "x-setting": "scheduler"}
        found["lr_scheduler_type"] = described(own["scheduler"]) | schedulers | listed(training_arguments.SCHEDULERS)
    for name in training_arguments.known():
        if name not in found:
            found[name] = of_no_setting(name, framework)
    for alias, name in settings.ALIASES.items():
        found[alias] = found[name] | {"x-setting": name}
    part = {"type": "number", "minimum": 0, "maximum": 1} | expected("a part of all steps, from 0 to 1")
    found["warmup_ratio"] = part | described(own["warmup_steps"]) | {"x-setting": "warmup_steps"}
    return found


def of_setting(name: str, hint: typing.Any) -> Schema:
    """A setting of ours."""
    annotation, meaning, *otherwise = typing.get_args(hint)
    kinds = typing.get_args(annotation) or (annotation,)
    default = next(field.default for field in dataclasses.fields(settings.Settings) if field.name == name)
    about = {"description": meaning, "default": default} if default is not None else {"description": meaning}
    if otherwise:
        about["description"] += f"; when not given: {otherwise[0]}"
    if name in settings.WORDS:
        return values([*settings.WORDS[name], None]) | about
    null = ["null"] if NULL in kinds else []
    if name in settings.COUNTS:
        least = settings.LEAST[name]
        whole = {"type": "integer", "minimum": least}
        part = {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}
        either = [whole, part, *({"type": kind} for kind in null)]
        return (
            {"anyOf": either} | expected(f"a whole number of at least {least}, or a part of all steps below 1") | about
        )
    kind = kinds[0]
    found: Schema = {"type": [TYPES[kind], *null] if null else TYPES[kind]}
    says = settings.NAMES[kind]
    if name in settings.LEAST:
        found["minimum"] = settings.LEAST[name]
        says += f" of at least {settings.LEAST[name]}"
    if name in settings.ABOVE:
        found["exclusiveMinimum"] = settings.ABOVE[name]
        says += f" above {settings.ABOVE[name]}"
    if name in settings.MOST:
        found["maximum"] = settings.MOST[name]
        says += f" and at most {settings.MOST[name]}"
    if kind is str:
        found["minLength"] = 1
        says += " that is not empty"
    return found | expected(says) | about


def of_field(name: str) -> Schema:
    """A field that hf passes on to the Trainer."""
    kinds = training_arguments.kinds(name)
    if words := training_arguments.enumerated(kinds):
        missing = packages_missing(name, words)
        found = values([word for word in words if word not in missing] + [None] * ("None" in kinds))
        if missing:
            found["x-refusal-of"] = {
                word: f"needs the package {package}, which the stock image does not have"
                for word, package in missing.items()
            }
        return found
    if name in training_arguments.VALUES:
        return values([*training_arguments.VALUES[name], *([None] * ("None" in kinds))])
    if missing := packages_missing(name, [True]):
        return {
            "enum": [False, *([None] * ("None" in kinds))],
            "x-refusal": f"needs the package {missing[True]}, which the stock image does not have",
        } | expected("false")
    names = list(dict.fromkeys(TYPES[FIELD_TYPES[kind]] for kind in kinds if kind in FIELD_TYPES))
    null = ["null"] * ("None" in kinds)
    says = dict.fromkeys(training_arguments.MEANINGS[kind] for kind in kinds if kind in training_arguments.MEANINGS)
    bounds, words = training_arguments.BOUNDS.get(name, ({}, ""))
    found: Schema = {"type": [*names, *null] if len([*names, *null]) > 1 else names[0]}
    return found | bounds | expected(f"{' or '.join(says)} {words}".strip())


def of_no_setting(name: str, framework: str) -> Schema:
    """A name that people know, and that says what happens anyway or is refused."""
    harmless = training_arguments.harmless(name, framework)
    if harmless == ():
        return {"description": "changes nothing"}
    if name in training_arguments.OF_BEST:
        return {"description": "decides nothing unless load_best_model_at_end is true"}
    if name == "eval_strategy":
        harmless = ("no", "steps")  # which of them follows from eval_steps
    refusal = training_arguments.reason(name, framework, instead=False)
    return values([*(harmless or ()), None]) | {"x-refusal": refusal}


def packages_missing(name: str, words: Iterable[typing.Any]) -> dict[typing.Any, str]:
    """Of these values, those that need a package that uv.lock does not have, and which."""
    needed = training_arguments.PACKAGES.get(name, {})
    return {word: needed[word] for word in words if word in needed and needed[word] not in locked()}


@functools.cache
def locked() -> set[str]:
    """The packages of the stock image, by the modules that they are imported as."""
    lock = tomllib.loads((TRAINER / "uv.lock").read_text(encoding="utf-8"))
    return {package["name"].replace("-", "_") for package in lock["package"]}


def values(enumeration: list[typing.Any]) -> Schema:
    return {"enum": enumeration} | listed(value for value in enumeration if not isinstance(value, list))


def listed(enumeration: Iterable[typing.Any]) -> Schema:
    words = [value if isinstance(value, str) and value else json.dumps(value) for value in enumeration]
    return expected(words[0] if len(words) == 1 else f"one of {', '.join(words)}")


def expected(says: str) -> Schema:
    return {"x-expected": says}


def described(found: Schema) -> Schema:
    return {name: found[name] for name in ("description", "default") if name in found}


# === README.md's tables ===


def settings_table() -> Iterator[str]:
    yield "| name | default | meaning |"
    yield "|---|---|---|"
    aliases: dict[str, list[str]] = {}
    for alias, name in settings.ALIASES.items():
        aliases.setdefault(name, []).append(alias)
    for field in dataclasses.fields(settings.Settings):
        if field.name == settings.EXTRA:
            continue
        _, meaning, *otherwise = typing.get_args(
            typing.get_type_hints(settings.Settings, include_extras=True)[field.name]
        )
        default = otherwise[0] if otherwise else json.dumps(field.default).strip('"')
        alone = f"{settings.ALONE[field.name]} alone: " if field.name in settings.ALONE else ""
        also = f"; also {', '.join(aliases[field.name])}" if field.name in aliases else ""
        yield f"| {field.name} | {default} | {alone}{meaning}{also} |"


def refused_table() -> Iterator[str]:
    yield "| refused | why, and what to use instead | taken with |"
    yield "|---|---|---|"
    for reason, names in training_arguments.refused():
        taken = [
            f"{name} {' or '.join(map(json.dumps, harmless))}"
            for name in names
            if (harmless := training_arguments.harmless(name, "hf"))
        ]
        yield f"| {', '.join(names)} | {reason} | {', '.join(taken)} |"


TABLES = {"settings": settings_table, "refused": refused_table}


def readme(text: str) -> str:
    """README.md's text with its tables made anew."""
    for name, rows in TABLES.items():
        begin, end = f"<!-- {name}: made by training/schema.py -->", f"<!-- end of {name} -->"
        pattern = f"{re.escape(begin)}.*{re.escape(end)}"
        assert re.search(pattern, text, re.S), f"README.md has no place for its table of {name}"
        table = "\n".join([begin, *rows(), end])
        text = re.sub(pattern, lambda _, table=table: table, text, flags=re.S)
    return text


def files() -> dict[Path, str]:
    """All that is made here, by its path."""
    path = TRAINER / "README.md"
    made = {TRAINER / f"settings/{name}.json": json.dumps(schema(name), indent=2) + "\n" for name in FRAMEWORKS}
    return made | {path: readme(path.read_text(encoding="utf-8"))}


if __name__ == "__main__":
    for path, text in files().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
