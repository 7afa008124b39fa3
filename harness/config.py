"""A YAML file -> a frozen, validated Experiment; one error that lists every mistake. Imports no torch.

`base:` names a file to inherit from; `--set a.b=c` changes one value. Unknown keys and wrong types are
refused with the nearest valid name; a method's hyperparameters are checked against its signature.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

from harness.catalogue import Catalogue, catalogue
from harness.datasets.suites import expanded
from harness.errors import ConfigError, UserError, no_file
from harness.parsing.sentences import sentences
from harness.parsing.yaml_files import change, merge, read_yaml
from harness.search import spaces
from harness.specs import (
    EXPORTED,
    DataSpec,
    FileName,
    MethodItem,
    MethodSpec,
    ModelSpec,
    Runtime,
    Strict,
    Submission,
    TaskItem,
    TaskSpec,
    TeacherSpec,
    Training,
    as_tuple,
)
from harness.twins import twin

SHORT = {"methods": "method", "tasks": "task"}  # `- fitnet` is short for `- {method: fitnet}`


class Experiment(Strict):
    """One comparison: a teacher, a student's shape, data, training, methods, seeds, tasks."""

    name: FileName = "experiment"  # of its workspace
    teacher: TeacherSpec
    student: ModelSpec
    data: DataSpec = DataSpec()
    training: Training
    methods: Annotated[tuple[MethodItem, ...], BeforeValidator(as_tuple), Field(min_length=1)]
    seeds: Annotated[tuple[int, ...], BeforeValidator(as_tuple), Field(min_length=1)] = (0,)
    tasks: Annotated[tuple[TaskItem, ...], BeforeValidator(as_tuple)] = (
        TaskSpec(task="classification"),
        TaskSpec(task="artifacts"),
    )
    bounds: bool = True  # rows for the teacher itself and for the untrained student
    runtime: Runtime = Runtime()
    submit: Submission = Submission()  # what jobs ask for, where it is submitted
    plugins: Annotated[tuple[str, ...], BeforeValidator(as_tuple)] = ()

    def known(self) -> Catalogue:
        """Every method, task and source that this experiment can name."""
        return catalogue(self.plugins)

    def teacher_of(self, method: MethodSpec) -> TeacherSpec:
        """The experiment's teacher with what the method declares, then with its entry's own changes."""
        return _changed(self.teacher, method, self.known())


def _changed(teacher: TeacherSpec, method: MethodSpec, known: Catalogue) -> TeacherSpec:
    changes = merge(dict(known.entry("method", method.method).teacher_options), method.teacher)
    return TeacherSpec.model_validate(merge(teacher.model_dump(), changes)) if changes else teacher


def load(
    path: str | Path,
    settings: Sequence[str] = (),
    plugins: Sequence[str] = (),
    submit: Mapping[str, Any] | None = None,
) -> Experiment:
    """Read a configuration file.

    Args:
        settings: "a.b=c" each; the value is read as YAML; a list's items by number (methods.0.label=x).
        plugins: files with methods or tasks, beside those that the file names.
        submit: changes to its section `submit`.

    Raises:
        UserError: a file that cannot be read. ConfigError: every mistake that was found.
    """
    raw = read_yaml(Path(path))
    mistakes: list[str] = []
    for setting in settings:
        try:
            change(raw, setting, SHORT)
        except ValueError as error:
            mistakes.append(str(error))
    if mistakes:
        raise ConfigError(mistakes, "--set")
    named = raw.get("plugins") or []
    if plugins and isinstance(named, list):  # anything else is refused below
        raw["plugins"] = [*named, *plugins]
    asked = raw.get("submit") or {}
    if submit and isinstance(asked, dict):
        raw["submit"] = merge(asked, submit)
    return parse(raw, str(path))


def parse(raw: dict[str, Any], where: str = "configuration") -> Experiment:
    """Plain values -> Experiment, suites of tasks taken apart. Raises ConfigError with every mistake."""
    raw, mistakes = expanded(raw)
    experiment = None
    try:
        experiment = Experiment.model_validate(raw)
    except ValidationError as error:
        mistakes += sentences(error, Experiment)
    mistakes += _Parts.of(raw).mistakes()
    if experiment is None or mistakes:
        raise ConfigError(mistakes, where)
    return experiment


@dataclasses.dataclass
class _Parts:
    """What of a configuration has the right form, so that one mistake of form hides none of meaning.

    Meaning is what types alone do not show: names that do not exist, hyperparameters, files, rows with one name.
    """

    teacher: TeacherSpec | None
    student: ModelSpec | None
    data: DataSpec | None
    methods: dict[int, MethodSpec]
    tasks: dict[int, TaskSpec]
    seeds: list[Any]
    plugins: tuple[str, ...]
    bounds: bool

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> _Parts:
        def items(kind: Any, key: str) -> dict[int, Any]:
            given = raw.get(key)
            found = enumerate(_valid(kind, item) for item in given) if isinstance(given, list | tuple) else ()
            return {i: item for i, item in found if item is not None}

        seeds, plugins = raw.get("seeds"), raw.get("plugins")
        return cls(
            teacher=_valid(TeacherSpec, raw.get("teacher")),
            student=_valid(ModelSpec, raw.get("student")),
            data=_valid(DataSpec, raw.get("data", {})),
            methods=items(MethodItem, "methods"),
            tasks=items(TaskItem, "tasks"),
            seeds=list(seeds) if isinstance(seeds, list | tuple) else [],
            plugins=_valid(tuple[str, ...], as_tuple(plugins)) or (),
            bounds=raw.get("bounds", True) is True,
        )

    def mistakes(self) -> list[str]:
        """Every mistake of meaning, in words."""
        return [*self._of_names(), *self._of_teachers(), *self._of_rows()]

    def _of_names(self) -> Iterator[str]:
        try:
            known = catalogue(self.plugins)
        except ConfigError as error:
            yield from error.mistakes
            return
        except UserError as error:
            yield str(error)
            return
        places = [(f"methods.{i}", "method", m.method, m.hyperparameters) for i, m in self.methods.items()]
        places += [(f"tasks.{i}", "task", t.task, t.options) for i, t in self.tasks.items()]
        sources = {"data": self.data, **{f"tasks.{i}.data": t.data for i, t in self.tasks.items()}}
        places += [(place, "source", data.source, data.options) for place, data in sources.items() if data]
        if self.teacher is not None and self.teacher.fit is not None:
            places.append(("teacher.fit", "method", self.teacher.fit.method, {}))
        for i, method in self.methods.items():
            if method.search is not None and method.method in known.methods:
                try:
                    spaces(known, method)
                except ConfigError as error:
                    yield from (f"methods.{i}.{mistake}" for mistake in error.mistakes)
        for place, kind, name, given in places:
            try:
                known.resolve(kind, name, given)
            except ConfigError as error:
                yield from (f"{place}: {mistake}" for mistake in error.mistakes)
            except UserError as error:
                yield f"{place}: {error}"

    def _of_teachers(self) -> Iterator[str]:
        """Files that do not exist, and changes to the teacher that make none."""
        for place, spec in (("teacher", self.teacher), ("student", self.student)):
            yield from _missing_files(place, spec)
        yield from _no_twin("teacher", self.teacher)
        try:
            known = catalogue(self.plugins)
        except UserError:
            return  # said among the names
        for i, method in self.methods.items():
            if method.method not in known.methods:
                continue
            try:
                changed = _changed(self.teacher or TeacherSpec(), method, known)
            except ValidationError as error:
                yield from sentences(error, TeacherSpec, f"methods.{i}.teacher")
            else:
                if {"checkpoint", "model"} & method.teacher.keys():
                    yield from _missing_files(f"methods.{i}.teacher", changed)
                if changed != self.teacher:
                    yield from _no_twin(f"methods.{i}.teacher", changed)

    def _of_rows(self) -> Iterator[str]:
        """Rows, columns and seeds that could not be told apart."""
        methods, tasks = ([item.title() for item in part.values()] for part in (self.methods, self.tasks))
        for what, titles, remedy in (
            ("methods", methods, "give each its own label"),
            ("tasks", tasks, "give each its own label"),
            ("seeds", [str(seed) for seed in self.seeds], "leave one out"),
        ):
            twice = sorted({title for title in titles if titles.count(title) > 1})
            yield from (f"{what}: {title!r} stands there twice; {remedy}" for title in twice)
        for title in sorted({"teacher", "untrained"} & set(methods)) if self.bounds else ():
            yield f"methods: {title!r} is the name of a bound's row; choose another label, or set bounds: false"


def _valid(kind: Any, value: Any) -> Any:
    """The value as `kind`, or None: its mistakes of form are told elsewhere."""
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError:
        return None


def _no_twin(place: str, spec: TeacherSpec | None) -> Iterator[str]:
    """A teacher with registers that is asked for and cannot be told, or whose file does not exist."""
    if spec is None or spec.register_teacher is None:
        return
    try:
        found = twin(spec)
    except UserError as error:
        yield f"{place}.{error}"
    else:
        if spec.register_teacher.checkpoint is not None or spec.register_teacher.model is not None:
            yield from _missing_files(f"{place}.register_teacher", found)


def _missing_files(place: str, spec: ModelSpec | None) -> Iterator[str]:
    if spec is None:
        return
    if spec.checkpoint is not None and not Path(spec.checkpoint).is_file():
        yield f"{place}.checkpoint: {no_file('file', Path(spec.checkpoint))}"
    folder = spec.exported()
    if folder is not None:
        absent = [folder / name for name in EXPORTED if not (folder / name).is_file()]
        yield from (f"{place}.model: {no_file('file', path)}; name an exported model's folder" for path in absent)
