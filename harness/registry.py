"""METHODS, TASKS, SOURCES (mmengine Registry) and what builds from them. Importing this file is cheap.

What there is comes from `harness.catalogue`; a class is imported when it is asked for, so building `fitnet`
imports baselines.fitnet and no other method. METHODS, TASKS and SOURCES are made at their first use, since
mmengine takes half a second to import.
"""

from __future__ import annotations

import functools
import importlib
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.catalogue import Catalogue, Entry, catalogue, shown
from harness.errors import UserError
from harness.plugins import import_file

if TYPE_CHECKING:
    from mmengine.registry import Registry

    from harness.api import Method, Task, Vit
    from harness.sources import Source

    METHODS: Registry
    TASKS: Registry
    SOURCES: Registry

_REGISTRIES = {"METHODS": "method", "TASKS": "task", "SOURCES": "source"}
_PLUGINS: list[Path] = []  # every file loaded so far, in order


def known(plugins: Sequence[str | Path] = ()) -> Catalogue:
    """What can be built: what is installed, the plugins loaded so far, and `plugins`."""
    return catalogue([*_PLUGINS, *plugins])


def load_plugin(path: str | Path) -> None:
    """Import one file and make its methods, tasks and sources known; a second time changes nothing.

    Raises:
        UserError: a file that is missing, defines nothing, fails while it is imported, or uses a taken name.
    """
    file = Path(path).resolve()
    for entry in catalogue([*_PLUGINS, file]).of_file(file):
        load(entry)
    if file not in _PLUGINS:
        _PLUGINS.append(file)


def load(entry: Entry) -> type:
    """The class behind an entry; for a preset, its method's.

    Raises:
        UserError: its file fails while it is imported, or another package of the same name is found first.
    """
    try:
        module = importlib.import_module(entry.module) if entry.module else import_file(entry.path)
    except Exception as error:
        raise UserError(f"{entry.kind} {entry.name!r} cannot be imported: {where_raised(error, entry.path)}") from error
    file = getattr(module, "__file__", None)
    if file is None or Path(file).resolve() != entry.path:
        raise UserError(
            f"{entry.kind} {entry.name!r} is {shown(entry.path)}, but Python imports {entry.module} from {file}; "
            "rename that file or package, or start the program in another folder"
        )
    return getattr(module, entry.qualname)


def where_raised(error: BaseException, path: Path) -> str:
    """An exception of a user's file in one line: its kind, that file's line, and what it says."""
    frames = traceback.extract_tb(error.__traceback__)
    mine = [f"{shown(path)}:{f.lineno}: " for f in frames if Path(f.filename) == path]
    quoted = isinstance(error, KeyError) and error.args  # by str()
    said = str(error.args[0]) if quoted else str(error)
    return f"{mine[-1] if mine else ''}{type(error).__name__}: {said}"


def method_class(name: str, plugins: Sequence[str | Path] = ()) -> type[Method]:
    """The class of a method, or of the method behind a preset. Raises UserError for an unknown name."""
    return load(known(plugins).entry("method", name))


def task_class(name: str, plugins: Sequence[str | Path] = ()) -> type[Task]:
    """The class of a task. Raises UserError for an unknown name."""
    return load(known(plugins).entry("task", name))


def source_class(name: str, plugins: Sequence[str | Path] = ()) -> type[Source]:
    """The class of a source. Raises UserError for an unknown name."""
    return load(known(plugins).entry("source", name))


def build_method(
    name: str,
    student: Vit,
    teacher: Vit,
    hyperparameters: Mapping[str, Any],
    plugins: Sequence[str | Path] = (),
) -> Method:
    """A method or preset with these hyperparameters, defaults where none is given.

    Raises:
        UserError: unknown name or hyperparameter, wrong types, or values that the method refuses (its ValueError).
    """
    entry = known(plugins).entry("method", name)
    values = entry.typed(hyperparameters)
    cls = load(entry)
    try:
        return cls(student, teacher, **values)
    except ValueError as error:
        raise UserError(f"method {name!r}: {error}") from error


def _registered(entry: Entry) -> Callable[..., Any]:
    """What a registry holds: the class, or for a preset the class with the preset's values as defaults."""
    cls = load(entry)
    if entry.preset_of is None:
        return cls
    own = known().entry("method", entry.preset_of).presets[entry.name]
    preset = functools.partial(cls, **{key: value for key, value in entry.typed({}).items() if key in own})
    preset.__name__, preset.__doc__ = entry.name, cls.__doc__  # type: ignore[attr-defined]
    return preset


@functools.cache
def _registry(kind: str) -> Registry:
    from mmengine.registry import Registry

    class CatalogueRegistry(Registry):
        """mmengine's Registry, filled from the catalogue one name at a time.

        `register_module` and `build` are mmengine's. `get` takes names only: mmengine's own would import a
        module of that name where it finds none.
        """

        def get(self, key: str) -> Any:
            if key not in self._module_dict:
                entry = known().of_kind(kind).get(key)
                if entry is None:
                    return None
                self._module_dict[key] = _registered(entry)  # type: ignore[assignment]
            return self._module_dict[key]

        def import_from_location(self) -> None:
            for name in known().of_kind(kind):
                self.get(name)

        @property
        def module_dict(self) -> dict[str, Any]:
            self.import_from_location()
            return self._module_dict

        def __len__(self) -> int:
            return len(self.module_dict)

        def __repr__(self) -> str:
            self.import_from_location()
            return super().__repr__()

    return CatalogueRegistry(kind, scope="harness")


def __getattr__(name: str) -> Registry:
    if name in _REGISTRIES:
        return _registry(_REGISTRIES[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
