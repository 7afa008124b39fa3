"""Values checked against a hyperparameter's annotation, as text. Imports no torch, and pydantic only to check.

The annotation comes from a syntax tree, so only a small language of plain types is understood: bool, int,
float, str, None, Any, Literal, tuple, list, Sequence, dict, Mapping, Optional, Union and `|`.
"""

from __future__ import annotations

import ast
import functools
import json
import re
from typing import Any

from harness.errors import unknown

PLAIN = ("bool", "int", "float", "str", "None", "Any", "object")
CONTAINERS = ("tuple", "Tuple", "list", "List", "Sequence", "dict", "Dict", "Mapping")
GENERIC = (*CONTAINERS, "Literal", "Optional", "Union")


def fault_of(annotation: str) -> str | None:
    """What is wrong with an annotation, in words, or None. Runs no code."""
    try:
        tree = ast.parse(annotation, mode="eval").body
    except SyntaxError:
        return f"the annotation {annotation!r} is not valid Python"
    strange = _strange(tree)
    if strange is None:
        return None
    return (
        f"the annotation {annotation!r} has {strange!r}; write it out with bool, int, float, str, None, Literal, "
        "tuple, list, Sequence, dict or Mapping"
    )


def _strange(node: ast.expr) -> str | None:
    """The first part that is not of the small language."""
    if isinstance(node, ast.Constant):
        return None if node.value is None or node.value is ... else ast.unparse(node)
    if isinstance(node, ast.Name | ast.Attribute):
        return None if _last(node) in PLAIN + CONTAINERS else ast.unparse(node)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _strange(node.left) or _strange(node.right)
    if isinstance(node, ast.Subscript) and _last(node.value) in GENERIC:
        if _last(node.value) == "Literal":
            return None if _literals(node.slice) else ast.unparse(node)
        inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        return next(filter(None, map(_strange, inner)), None)
    return ast.unparse(node)


def _last(node: ast.expr) -> str:
    """`Literal` of both `Literal` and `typing.Literal`."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _literals(node: ast.expr) -> tuple[Any, ...]:
    """The values in Literal[...]; empty where one is not a literal."""
    try:
        value = ast.literal_eval(node)
    except ValueError:
        return ()
    return value if isinstance(value, tuple) else (value,)


class _Bare(ast.NodeTransformer):
    """`typing.Literal` -> `Literal`, so that the namespace below is enough."""

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        return ast.Name(node.attr, ast.Load())


def _as_float(value: Any) -> Any:
    """YAML 1.1 reads `1e-3` as text; a number that looks like one is taken as one."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value.strip()):
        return float(value)
    return value


@functools.cache
def _adapter(annotation: str) -> Any:
    import typing
    from collections.abc import Mapping, Sequence

    from pydantic import BeforeValidator, ConfigDict, TypeAdapter

    space = {"bool": bool, "int": int, "str": str, "object": Any, "Sequence": Sequence, "Mapping": Mapping}
    space |= {name: getattr(typing, name) for name in ("Any", "Literal", "Optional", "Union", "Tuple", "List", "Dict")}
    space |= {"tuple": tuple, "list": list, "dict": dict}
    space["float"] = typing.Annotated[float, BeforeValidator(_as_float)]
    # Only names of the small language are left (`fault_of`), and no builtins: nothing can be called.
    tree = ast.fix_missing_locations(_Bare().visit(ast.parse(annotation, mode="eval")))
    found = eval(compile(tree, "<annotation>", "eval"), {"__builtins__": {}}, space)
    return TypeAdapter(found, config=ConfigDict(strict=True, allow_inf_nan=False))


def checked(what: str, annotation: str, value: Any) -> Any:
    """`value` as the annotation has it: a whole number becomes a float for float, a list a tuple for tuple.

    Args:
        what: names the value in the error, such as "weight of fitnet".

    Raises:
        ValueError: one sentence; the value is of another type, not finite, or not a plain value.
    """
    from pydantic import PydanticUserError, ValidationError

    try:
        adapter = _adapter(annotation)
    except (TypeError, ValueError, IndexError, PydanticUserError) as error:
        raise ValueError(f"{what}: the annotation {annotation!r} makes no type: {error}") from None
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        raise ValueError(f"{what} is {value!r}; it must be a finite plain value of type {annotation}") from None
    try:
        # As JSON, where strict typing still lets a list be a tuple and 1 a float, but not "1" an int or 1 a bool.
        return adapter.validate_json(text)
    except ValidationError:
        pass
    known = _literals_of(annotation)
    if isinstance(value, str) and known and all(isinstance(k, str) for k in known):
        raise ValueError(unknown(what, value, known))
    raise ValueError(f"{what} is {value!r} ({type(value).__name__}); it must be {annotation}")


def _literals_of(annotation: str) -> tuple[Any, ...]:
    """The values that an annotation lists, where text can only be one of them."""
    tree = ast.parse(annotation, mode="eval")
    if any(node.id == "str" for node in ast.walk(tree) if isinstance(node, ast.Name)):
        return ()
    found = [n for n in ast.walk(tree) if isinstance(n, ast.Subscript) and _last(n.value) == "Literal"]
    return tuple(value for node in found for value in _literals(node.slice) if value is not None)


def plain(value: Any) -> Any:
    """The value as JSON has it, so that it hashes alike however it was written: tuples as lists."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value
