"""YAML files -> plain values: inheritance by `base:`, single changes by `a.b=c`. Runs no code, imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from harness.errors import ConfigError, UserError, no_file


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which would let the second of two equal keys win without a word."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else key
            if name in seen:
                raise yaml.MarkedYAMLError(problem=f"{name[1]!r} stands there twice", problem_mark=key.start_mark)
            seen.add(name)
        return node


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` laid over `below`, mappings key by key, anything else replaced."""
    merged = dict(below)
    for key, value in above.items():
        mine = merged.get(key)
        merged[key] = merge(mine, value) if isinstance(mine, dict) and isinstance(value, dict) else value
    return merged


def read_yaml(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """One file with what its `base:` gives it, which is looked for beside it.

    Args:
        above: the files that inherit from this one, the first one first.

    Raises:
        UserError: a file that is missing, cannot be read, is not valid YAML (or would run code), holds a key
            twice, or is not a mapping. ConfigError: a base that is no name, or that leads back to itself.
    """
    if "\0" in str(path):
        raise UserError(f"{str(path)!r} cannot be the name of a file: it holds a zero byte")
    chain = (*above, path)
    if path.resolve() in [p.resolve() for p in above]:
        raise ConfigError([f"base: {' -> '.join(str(p) for p in chain)} leads back to itself"], str(above[0]))
    heirs = f"base of {above[-1]}: " if above else ""
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise UserError(heirs + no_file("configuration file", path, "*.y*ml")) from None
    except UnicodeDecodeError:
        raise UserError(f"{heirs}{path} is no text in UTF-8; a configuration is a YAML file") from None
    except OSError as error:
        raise UserError(f"{heirs}cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date such as 2024-13-45
        raise UserError(f"{path} is not valid YAML: {_where(error)}") from error
    if raw is None:
        raise UserError(f"{path} is empty; see configs/demo.yaml for what belongs there")
    if not isinstance(raw, dict):
        raise UserError(f"{path} must hold a mapping of settings (key: value), not a {type(raw).__name__}")
    base = raw.pop("base", None)
    if base is None:
        return raw
    if not isinstance(base, str):
        raise ConfigError([f"base must name one file, not {base!r}"], str(path))
    return merge(read_yaml(path.parent / base, chain), raw)


def _where(error: Exception) -> str:
    """What a YAML error says, with its line, in one line."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or problem is None:
        return " ".join(str(error).split())
    if "could not determine a constructor" in problem:
        problem += ", and a configuration never runs code"
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}"


def change(raw: dict[str, Any], setting: str, short: Mapping[str, str]) -> None:
    """Apply "a.b=c" to plain values in place; c is read as YAML, an item of a list is chosen by its number.

    Args:
        short: list -> key that an item given as mere text stands for: methods.0 `fitnet` is {method: fitnet}.

    Raises:
        ValueError: one sentence about a setting that cannot be applied.
    """
    key, sign, text = setting.partition("=")
    *path, last = key.strip().split(".")
    if not sign or "" in (*path, last):
        raise ValueError(f"{setting!r}: give key=value, such as training.epochs=5")
    place: Any = raw
    for depth, part in enumerate(path):
        name = _name(place, part, setting)
        inner = place.get(name) if isinstance(place, dict) else place[name]
        if inner is None:
            inner = {}
        elif isinstance(inner, str) and depth == 1 and path[0] in short:
            inner = {short[path[0]]: inner}
        if not isinstance(inner, dict | list):
            raise ValueError(f"{setting!r}: {'.'.join(path[: depth + 1])} is {inner!r} and has no keys")
        place[name] = inner
        place = inner
    place[_name(place, last, setting)] = _value(text)


def _value(text: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text  # checked like any other text


def _name(place: Any, part: str, setting: str) -> Any:
    """`part` as what finds it in a mapping or a list."""
    if isinstance(place, dict):
        return part
    if not part.isdecimal() or int(part) >= len(place):
        there = f"items 0 .. {len(place) - 1}" if place else "no items"
        raise ValueError(f"{setting!r}: no item {part!r}; the list has {there}; to change its length, set all of it")
    return int(part)
