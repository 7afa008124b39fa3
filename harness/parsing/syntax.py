"""Classes that derive from Method, Task or Source, read from a syntax tree, with every mistake in words."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator
from typing import Any

from harness.errors import unknown
from harness.parsing.annotations import fault_of

POSITIONAL = {  # what __init__ takes by position, after self
    "method": ("student", "teacher"),
    "task": ("data",),
    "source": ("root", "split"),
}
BASES = {"Method": "method", "Task": "task", "Source": "source"}
READ = {
    "family": str,
    "cite": str,
    "presets": dict,
    "student_options": dict,
    "teacher_options": dict,
    "search": dict,
}
NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One hyperparameter: its annotation as text, its default, and the comment behind it in the source."""

    annotation: str
    default: Any
    comment: str = ""


@dataclasses.dataclass(frozen=True)
class Found:
    """One class. attributes: those of READ that it sets."""

    kind: str
    name: str
    qualname: str
    line: int
    doc: str
    parameters: dict[str, Parameter]
    attributes: dict[str, Any]
    mistakes: tuple[str, ...]


def read_classes(tree: ast.Module, text: str, where: str) -> Iterator[Found]:
    """Every class of a module with a `name` that derives from Method, Task or Source, directly or within the module.

    Args:
        where: the file, as mistakes name it.
    """
    kinds = dict(BASES)
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            kinds.update({a.asname: BASES[a.name] for a in node.names if a.asname and a.name in BASES})
    lines = text.split("\n")  # as the parser counts them; splitlines() knows more line ends
    for node in tree.body:
        if not isinstance(node, ast.ClassDef):
            continue
        kind = next(filter(None, (kinds.get(_last(base)) for base in node.bases)), None)
        if kind is not None:
            kinds[node.name] = kind
            found = _read(node, kind, lines, where)
            if found is not None:
                yield found


def _last(base: ast.expr) -> str:
    if isinstance(base, ast.Attribute):
        return base.attr
    return base.id if isinstance(base, ast.Name) else ""


def _read(node: ast.ClassDef, kind: str, lines: list[str], where: str) -> Found | None:
    values = _assigned(node)
    if "name" not in values:
        return None  # an abstract class, or one that is not for configurations
    mistakes: list[str] = []
    name = _literal(values["name"], str, f"{where}:{values['name'].lineno}: name of {node.name}", mistakes)
    if name is None:
        name = node.name
    elif not NAME.fullmatch(name):
        mistakes.append(f"{where}:{values['name'].lineno}: name {name!r} must be of a-z, 0-9 and _, a letter first")
    attributes = {}
    for key, wanted in READ.items():
        if key in values:
            place = f"{where}:{values[key].lineno}: {key} of {node.name}"
            value = _literal(values[key], wanted, place, mistakes)
            if value is not None:
                attributes[key] = value
    init = next((i for i in node.body if isinstance(i, ast.FunctionDef) and i.name == "__init__"), None)
    parameters = {} if init is None else _parameters(init, node.name, kind, lines, where, mistakes)
    names = [] if init is None else [argument.arg for argument in init.args.kwonlyargs]
    for key in ("presets", "search"):
        if key in attributes:
            line = values[key].lineno
            mistakes += _strange_names(key, attributes[key], names, f"{where}:{line}: {key} of {node.name}")
    if not all(isinstance(v, dict) for v in attributes.get("presets", {}).values()):
        attributes["presets"] = {}  # said above; nothing to derive from
    doc = ast.get_docstring(node) or ""
    return Found(kind, name, node.name, node.lineno, doc, parameters, attributes, tuple(mistakes))


def _assigned(node: ast.ClassDef) -> dict[str, ast.expr]:
    """Class-level `a = value` and `a: T = value`."""
    values: dict[str, ast.expr] = {}
    for item in node.body:
        if isinstance(item, ast.Assign):
            values.update({target.id: item.value for target in item.targets if isinstance(target, ast.Name)})
        elif isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and item.value is not None:
            values[item.target.id] = item.value
    return values


def _literal(node: ast.expr, wanted: type, what: str, mistakes: list[str]) -> Any:
    try:
        value = ast.literal_eval(node)
    except ValueError:
        mistakes.append(f"{what} must be a literal, not {ast.unparse(node)}: it is read without running the file")
        return None
    if not isinstance(value, wanted):
        mistakes.append(f"{what} must be a {wanted.__name__}, not {value!r}")
        return None
    return value


def _strange_names(key: str, value: dict[str, Any], known: list[str], place: str) -> list[str]:
    """Hyperparameters that presets or search name and __init__ does not have."""
    named = [("", value)]
    if key == "presets":
        if not all(isinstance(v, dict) for v in value.values()):
            return [f"{place} must map a name to hyperparameters, such as {{'mine_large': {{'weight': 2.0}}}}"]
        named = [(f" preset {name!r} has", values) for name, values in value.items()]
    return [
        f"{place}:{of} {unknown('hyperparameter', name, known)}"
        for of, values in named
        for name in values
        if name not in known
    ]


def _parameters(
    init: ast.FunctionDef, owner: str, kind: str, lines: list[str], where: str, mistakes: list[str]
) -> dict[str, Parameter]:
    arguments = init.args
    given = POSITIONAL[kind]
    for argument in [*arguments.posonlyargs, *arguments.args][1:]:
        if argument.arg not in given:
            mistakes.append(
                f"{where}:{argument.lineno}: {argument.arg} of {owner} must be keyword-only; the signature is "
                f"(self, {', '.join(given)}, *, {argument.arg}: ... = ...)"
            )
    for packed, stars in ((arguments.vararg, "*"), (arguments.kwarg, "**")):
        if packed is not None:
            mistakes.append(
                f"{where}:{packed.lineno}: {owner} takes {stars}{packed.arg}; name every hyperparameter with "
                "its annotation and default, since configurations are checked against them"
            )
    parameters = {}
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        if argument.arg not in given:
            found = _parameter(argument, default, lines, f"{where}:{argument.lineno}: {argument.arg} of {owner}")
            if isinstance(found, str):
                mistakes.append(found)
            else:
                parameters[argument.arg] = found
    return parameters


def _parameter(argument: ast.arg, default: ast.expr | None, lines: list[str], what: str) -> Parameter | str:
    """The parameter, or the sentence about what is wrong with it."""
    if argument.annotation is None:
        return f"{what} has no annotation; write its type, such as {argument.arg}: float = 1.0"
    text = argument.annotation.value if isinstance(argument.annotation, ast.Constant) else None
    annotation = text if isinstance(text, str) else ast.unparse(argument.annotation)
    fault = fault_of(annotation)
    if fault is not None:
        return f"{what}: {fault}"
    if default is None:
        return f"{what} has no default; give the one of its source"
    try:
        value = ast.literal_eval(default)
    except ValueError:
        return f"{what} has the default {ast.unparse(default)}, which is not a literal; write its value out"
    return Parameter(annotation, value, _comment(lines, default))


def _comment(lines: list[str], default: ast.expr) -> str:
    """The comment on the line where a default ends, if nothing but a comma stands between."""
    if default.end_lineno is None:
        return ""
    # Columns of syntax trees count bytes.
    rest = lines[default.end_lineno - 1].encode()[default.end_col_offset :].decode("utf-8", "replace")
    found = re.match(r"\s*,?\s*#\s*(.*?)\s*$", rest)
    return found.group(1) if found else ""
