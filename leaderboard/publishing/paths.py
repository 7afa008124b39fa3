"""Paths of a machine in what is published: taken out, visibly, and the same way on every machine.

`/home/ada/data/imagenet` becomes `(path)/imagenet`. The last part stays, as data sets and checkpoints are called by it;
of a home folder not even that.
"""

from __future__ import annotations

import re
from typing import Any

from harness.records import Record

MARK = "(path)"
_PART = r"[^\s/\\'\"`,;:|<>()\[\]{}]+"
_WHOLE = re.compile(r"(?:local-dir:|file://)?(?:/|~[\w.-]*[/\\]|[A-Za-z]:[/\\]|\\\\\w)")  # a text that begins so is one
_WITHIN = re.compile(
    rf"(?<![\w./\\~)\]}}*-])(?:file://)?(?:(?:~[\w.-]*|[A-Za-z]:)(?:[/\\]{_PART})+|(?:[/\\]{_PART}){{2,}})[/\\]?"
)
_HOMES = ("home", "Users")


def without_paths(value: Any) -> Any:
    """A plain value without the paths of a machine.

    >>> without_paths({"root": "/data/imagenet", "unit": "m/s"})
    {'root': '(path)/imagenet', 'unit': 'm/s'}
    """
    if isinstance(value, dict):
        found: dict[Any, Any] = {}
        for key, item in value.items():
            name = _text(key) if isinstance(key, str) else key  # YAML has numbers as keys, too
            while name in found:  # two folders of one name
                name += "'"
            found[name] = without_paths(item)
        return found
    if isinstance(value, list | tuple):
        return [without_paths(item) for item in value]
    return _text(value) if isinstance(value, str) else value


def record_without_paths(record: Record) -> Record:
    """The same record, itself where no path is in it. Its ids stay what they were: they are hashes of the whole."""
    plain = record.model_dump(mode="json")
    cleared = without_paths(plain)
    return record if cleared == plain else Record.model_validate(cleared)


def marked(value: Any, place: str = "") -> list[str]:
    """The dotted places where a path was taken out.

    >>> marked({"a": [1, "(path)/x"]})
    ['a[1]']
    """
    if isinstance(value, dict):
        named = [(f"{place}.{key}" if place else key, key, item) for key, item in value.items()]
        return [one for below, key, item in named for one in ([below] if MARK in str(key) else marked(item, below))]
    if isinstance(value, list):
        return [one for i, item in enumerate(value) for one in marked(item, f"{place}[{i}]")]
    return [place] if isinstance(value, str) and MARK in value else []


def _text(text: str) -> str:
    if "/" not in text and "\\" not in text:
        return text
    if "\n" not in text and _WHOLE.match(text) and len(_parts(text)) > 1:
        return _short(text)
    return _WITHIN.sub(lambda found: _short(found[0]), text)


def _parts(path: str) -> list[str]:
    return [part for part in re.split(r"[/\\]+", re.sub(r"^(local-dir:|file://)", "", path)) if part]


def _short(path: str) -> str:
    parts = _parts(path)
    begin = "local-dir:" if path.startswith("local-dir:") else ""
    places = parts[1:] if re.fullmatch(r"[A-Za-z]:", parts[0]) else parts  # behind a drive
    is_home = len(places) == 2 and places[0] in _HOMES
    return begin + MARK + ("" if is_home else f"/{parts[-1]}")
