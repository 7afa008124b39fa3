"""What methods, tasks and sources there are, read from syntax trees: nothing is imported, so lists are quick.

Found are the classes with a `name` that derive from Method, Task or Source in the packages baselines, singer
and tasks, behind the entry points `singer_bench.methods`, `.tasks` and `.sources`, and in plugin files.
`harness.registry` imports them when one is built. Imports no torch.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.errors import ConfigError, UserError, unknown
from harness.parsing.annotations import checked, plain
from harness.parsing.syntax import Found, Parameter, read_classes

PACKAGES = ("baselines", "singer", "tasks")
KINDS = ("method", "task", "source")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One method, task or source, or a preset of a method, which is an entry of its own.

    Attributes:
        kind: "method", "task" or "source". name: what configurations call it.
        summary: first line of the docstring. doc: the whole of it.
        hyperparameters: the keyword-only parameters of __init__ (of a task or source: its options).
        module: what to import; a plugin file has none. path: its file. line: of the class. qualname: of the class.
        source_hash: of the code of a file from outside this project, without comments and docstrings; else None.
        preset_of: the method behind a preset. mistakes: sentences about what is wrong with it.
    """

    kind: str
    name: str
    family: str
    cite: str
    summary: str
    doc: str
    hyperparameters: dict[str, Parameter]
    presets: dict[str, dict[str, Any]]
    student_options: dict[str, Any]
    teacher_options: dict[str, Any]
    search: dict[str, Any]
    module: str
    path: Path
    line: int
    qualname: str
    source_hash: str | None = None
    preset_of: str | None = None
    mistakes: tuple[str, ...] = ()

    def typed(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """All hyperparameters, defaults where none is given, as __init__ wants them.

        Raises:
            ConfigError: every unknown name and every value of a wrong type.
        """
        word = "hyperparameter" if self.kind == "method" else "option"
        names = {str(key): value for key, value in given.items()}
        mistakes = [
            f"{self.name} has {unknown(word, key, self.hyperparameters)}"
            for key in names
            if key not in self.hyperparameters
        ]
        values = {}
        for key, parameter in self.hyperparameters.items():
            try:
                values[key] = checked(f"{key} of {self.name}", parameter.annotation, names.get(key, parameter.default))
            except ValueError as error:
                mistakes.append(str(error))
        if mistakes:
            raise ConfigError(mistakes)
        return values


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """Everything that a configuration can name, by kind and name."""

    methods: dict[str, Entry]
    tasks: dict[str, Entry]
    sources: dict[str, Entry]

    def of_kind(self, kind: str) -> dict[str, Entry]:
        """The entries of "method", "task" or "source"."""
        return {"method": self.methods, "task": self.tasks, "source": self.sources}[kind]

    def entry(self, kind: str, name: str) -> Entry:
        """Raises UserError with the nearest name where there is none."""
        entries = self.of_kind(kind)
        if name not in entries:
            raise UserError(unknown(kind, name, entries))
        return entries[name]

    def of_file(self, path: str | Path) -> list[Entry]:
        """The methods, tasks and sources that one file defines."""
        here = Path(path).resolve()
        return [e for kind in KINDS for e in self.of_kind(kind).values() if e.path == here]

    def resolve(self, kind: str, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """All hyperparameters as plain values that hash alike however they were written: `1` for a float is 1.0.

        Args:
            given: values that replace defaults.

        Raises:
            UserError: no such entry. ConfigError: every mistake in the values.
        """
        return {key: plain(value) for key, value in self.entry(kind, name).typed(given).items()}


def catalogue(plugins: Sequence[str | Path] = (), strict: bool = True) -> Catalogue:
    """Everything that is installed, and what the plugin files define.

    Args:
        plugins: files; the same one twice, or one of this project, counts once.
        strict: raise where a class is not as the contract wants it; else its entry carries the mistakes.

    Raises:
        UserError: a plugin that is missing, is not valid Python or defines nothing; one name twice.
        ConfigError: hyperparameters that cannot be read: not keyword-only, not literal, not annotated.
    """
    entries = list(_installed())
    read = {entry.path for entry in entries}
    for plugin in plugins:
        try:
            path = Path(plugin).resolve()
        except (ValueError, OSError) as error:  # a zero byte, a loop of links
            raise UserError(f"plugin {str(plugin)!r} cannot be the name of a file: {error}") from error
        if path not in read:
            entries += _of_plugin(path, str(plugin))
            read.add(path)
    found: dict[str, dict[str, Entry]] = {kind: {} for kind in KINDS}
    for entry in entries:
        other = found[entry.kind].setdefault(entry.name, entry)
        if other is not entry:
            raise UserError(
                f"{entry.kind} {entry.name!r} is defined twice: {shown(other.path)}:{other.line} and "
                f"{shown(entry.path)}:{entry.line}; give one of them another name"
            )
    mistakes = [sentence for entry in entries if entry.preset_of is None for sentence in entry.mistakes]
    if strict and mistakes:
        raise ConfigError(mistakes)
    return Catalogue(found["method"], found["task"], found["source"])


def shown(path: Path) -> str:
    """A path as a person wants it: relative where it is below the working directory."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


@functools.cache
def _installed() -> tuple[Entry, ...]:
    """This project's own and those of installed distributions; neither changes while a program runs."""
    root = Path(__file__).resolve().parents[1]
    entries: list[Entry] = []
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            entries += _entries(path, ".".join(path.relative_to(root).with_suffix("").parts), hashed=False)
    for kind in KINDS:
        for point in importlib.metadata.entry_points(group=f"singer_bench.{kind}s"):
            entries += [entry for entry in _of_entry_point(kind, point) if entry not in entries]
    return tuple(entries)


def _of_entry_point(kind: str, point: importlib.metadata.EntryPoint) -> list[Entry]:
    """The entries behind `package.module` or `package.module:Class`."""
    path = _located(point.module)
    if path is None:
        raise UserError(f"entry point {point.name!r} of singer_bench.{kind}s: there is no module {point.module!r}")
    entries = [e for e in _entries(path, point.module, hashed=True) if e.kind == kind]
    wanted = [e for e in entries if not point.attr or point.attr == e.qualname]
    if not wanted:
        raise UserError(
            f"entry point {point.name!r} = {point.value!r} of singer_bench.{kind}s: {path} defines no such "
            f"{kind}; name the module that defines the class, and derive the class from {kind.capitalize()}"
        )
    return wanted


def _located(module: str) -> Path | None:
    """The file of a module, without importing it or the packages that it lies in."""
    head, *rest = module.split(".")
    spec = importlib.util.find_spec(head)
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin).resolve() if spec.origin else None
    for folder in spec.submodule_search_locations or ():
        place = Path(folder, *rest)
        for path in (place.with_suffix(".py"), place / "__init__.py"):
            if path.is_file():
                return path.resolve()
    return None


def _of_plugin(path: Path, given: str) -> tuple[Entry, ...]:
    try:
        stat = path.stat()
    except PermissionError as error:
        raise UserError(f"plugin file {given} cannot be read: {error.strerror}") from None
    except OSError:
        near = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise UserError(unknown("plugin file", path.name, near) + f" (in {path.parent})") from None
    entries = _read_plugin(path, stat.st_mtime_ns, stat.st_size)
    if not entries:
        raise UserError(
            f"plugin {given} defines no method and no task: it needs a class that derives from Method, Task or "
            'Source (harness.api, harness.data) and sets name = "..."'
        )
    return entries


@functools.lru_cache(maxsize=64)
def _read_plugin(path: Path, changed_ns: int, size: int) -> tuple[Entry, ...]:
    """Read again whenever the file has changed."""
    return tuple(_entries(path, "", hashed=True))


def _entries(path: Path, module: str, hashed: bool) -> list[Entry]:
    """Every entry of one file; presets follow their method."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise UserError(f"{shown(path)} cannot be read: {error.strerror}") from error
    if not any(word in text for word in (b"Method", b"Task", b"Source")):
        return []
    try:
        tree = ast.parse(text, filename=str(path))
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        raise UserError(f"{shown(path)}:{line} is not valid Python: {getattr(error, 'msg', error)}") from None
    source_hash = _code_hash(tree) if hashed else None
    entries = []
    for found in read_classes(tree, text.decode("utf-8", "replace"), shown(path)):
        entry = _entry(found, path, module.removesuffix(".__init__"), source_hash)
        entries += [entry, *_presets(entry)]
    return entries


def _entry(found: Found, path: Path, module: str, source_hash: str | None) -> Entry:
    said = found.attributes
    return Entry(
        kind=found.kind,
        name=found.name,
        family=said.get("family", "other") if found.kind == "method" else "",
        cite=said.get("cite", ""),
        summary=found.doc.split("\n")[0],
        doc=found.doc,
        hyperparameters=found.parameters,
        presets=said.get("presets", {}),
        student_options=said.get("student_options", {}),
        teacher_options=said.get("teacher_options", {}),
        search=said.get("search", {}),
        module=module,
        path=path,
        line=found.line,
        qualname=found.qualname,
        source_hash=source_hash,
        mistakes=found.mistakes,
    )


def _presets(entry: Entry) -> Iterable[Entry]:
    for name, values in entry.presets.items():
        replaced = {
            key: dataclasses.replace(parameter, default=values.get(key, parameter.default))
            for key, parameter in entry.hyperparameters.items()
        }
        yield dataclasses.replace(entry, name=name, hyperparameters=replaced, presets={}, preset_of=entry.name)


def _code_hash(tree: ast.Module) -> str:
    """sha256 of what the code does: comments, layout and docstrings do not count, nor the version of Python."""
    return hashlib.sha256(repr(_shape(tree)).encode()).hexdigest()


def _shape(node: Any) -> Any:
    if isinstance(node, list):
        return [_shape(item) for item in node]
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = dict(ast.iter_fields(node))
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        has_doc = ast.get_docstring(node, clean=False) is not None
        fields["body"] = fields["body"][1:] if has_doc else fields["body"]
    # Newer versions of Python add fields, empty where nothing new is used.
    return type(node).__name__, [(name, _shape(value)) for name, value in fields.items() if value not in (None, [])]
