"""Pydantic's errors in words for people: the place, what must stand there, what stands there. Imports no torch."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from harness.errors import unknown

MUST = {
    "string_type": "must be text",
    "int_type": "must be a whole number",
    "int_parsing_size": "must be a smaller number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "dict_type": "must be a mapping of settings (key: value)",
    "model_type": "must be a mapping of settings (key: value)",
    "tuple_type": "must be a list",
    "finite_number": "must be a finite number",
    "greater_than": "must be greater than {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be less than {lt:g}",
    "less_than_equal": "must be at most {le:g}",
}
LONGEST = 80  # characters of a value that are shown
_QUOTED = re.compile("'([^']*)'")


def sentences(error: ValidationError, model: type[BaseModel], within: str = "") -> list[str]:
    """One sentence for each error about a value of `model`, in the order of its settings.

    Args:
        within: where the value stands in the configuration; "" is the top level.
    """
    return list(dict.fromkeys(_sentence(e, model, within) for e in error.errors(include_url=False)))


def _sentence(error: Any, model: type[BaseModel], within: str) -> str:
    loc = [part for part in error["loc"] if not str(part).startswith("function-")]  # a validator, not a setting
    kind, given, context = error["type"], error.get("input"), error.get("ctx", {})
    outside = [within] if within else []
    place = ".".join(map(str, outside + loc)) or "top level"
    above = ".".join(map(str, outside + loc[:-1])) or "top level"
    if kind == "extra_forbidden":
        return f"{above}: {unknown('setting', loc[-1], _fields(model, loc[:-1]))}"
    if kind == "missing":
        return f"{place} is missing" + (": the list is too short" if isinstance(loc[-1], int) else "")
    if kind == "invalid_key" or loc[-1:] == ["[key]"]:
        return f"{above.removesuffix(f'.{given}')}: the key {given!r} must be text; put it in quotes"
    if kind == "too_short":
        return f"{place}: must have at least {_items(context['min_length'])}"
    if kind == "too_long":
        return f"{place}: must have {_items(context['max_length'])}, not {context['actual_length']}"
    if kind == "literal_error" and isinstance(given, str):
        return f"{place}: {unknown('value', given, _QUOTED.findall(context['expected']))}"
    if kind == "value_error":
        return f"{place}: {context['error']}"
    said = MUST[kind].format(**context) if kind in MUST else error["msg"][0].lower() + error["msg"][1:]
    remedy = "; put it in quotes" if kind == "string_type" and not isinstance(given, dict | list | None) else ""
    return f"{place}: {said}, not {_shown(given)}{remedy}"


def _items(count: int) -> str:
    return f"{count} item{'' if count == 1 else 's'}"


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    if value is None:
        return "empty"
    text = repr(value) if isinstance(value, str) else str(value)
    text = text.lower() if isinstance(value, bool) else text  # as YAML writes it
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _fields(model: type[BaseModel], path: Sequence[Any]) -> list[str]:
    """Names of the settings at a place of the configuration."""
    for part in path:
        if isinstance(part, int):
            continue  # an item of the list whose type was already taken
        field = model.model_fields.get(str(part))
        inner = _model_in(field.annotation) if field else None
        if inner is None:
            return []
        model = inner
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model that values of an annotation are, or that its lists hold."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation if issubclass(annotation, BaseModel) else None
    found = (_model_in(a) for a in typing.get_args(annotation))
    return next((m for m in found if m is not None), None)
