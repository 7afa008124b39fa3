"""Ask finished methods, or methods as they are initialised, what they do to real images; show it as tables.

What is asked is the method's own: `Method.diagnose`. Here is only who is asked, on which images, and how the answer,
plain numbers, text, lists and dicts of them, is laid out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tabulate import tabulate

from harness.api import Calibration, Method, Outputs, Vit
from harness.config import Experiment, parse
from harness.environment import device_of
from harness.errors import UserError, unknown
from harness.parsing.yaml_files import read_yaml
from harness.registry import load_plugin, method_class
from harness.runs import Run, Workspace, student_runs
from harness.training.builder import Builder
from harness.training.calibration import SourceCalibration


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What one method said. trained: by its finished run; else as initialised and calibrated."""

    run: Run
    trained: bool
    found: dict[str, Any]

    def plain(self) -> dict[str, Any]:
        info = self.run.info
        return {
            "run": info.id,
            "label": info.label,
            "method": info.method,
            "seed": info.seed,
            "teacher": info.teacher,
            "trained": self.trained,
            "diagnosis": self.found,
        }


class Fewer(Calibration):
    """The same images, but at most `samples` of them, whoever asks for more."""

    def __init__(self, whole: Calibration, samples: int) -> None:
        self.whole, self.samples = whole, min(samples, whole.samples)

    def outputs(self, images: int, layers: Iterable[int], attention_layers: Iterable[int] = ()) -> Iterator[Outputs]:
        return self.whole.outputs(min(images, self.samples), layers, attention_layers)


def of_workspace(workspace: Workspace, name: str | None, images: int) -> list[Diagnosis]:
    """Every finished run of a workspace whose method gives a diagnosis.

    Args:
        name: only runs of this label, title ("label seed 0") or id. images: how many are looked at.

    Raises:
        UserError: no experiment, no such run, or none that is finished and gives a diagnosis.
    """
    paths = sorted((workspace.root / "experiments").glob("*.yaml"))
    if not paths:
        raise UserError(f"{str(workspace.root)!r} holds no experiment; `singer-bench run CONFIG` starts one")
    jobs: dict[str, tuple[Experiment, Run]] = {}
    for path in paths:
        experiment = parse(read_yaml(path), str(path))
        for plugin in experiment.plugins:
            load_plugin(plugin)
        jobs.update({run.id: (experiment, run) for run in student_runs(experiment) if run.id not in jobs})
    wanted = _chosen([run for _, run in jobs.values()], name)
    finished = [run for run in wanted if workspace.is_trained(run)]
    asked = [run for run in finished if gives_diagnosis(run)]
    if not asked:
        raise UserError(_nothing(wanted, finished))
    return [
        _ask(run, experiment, workspace, images, trained=True)
        for experiment, members in _by_experiment(jobs, asked)
        for run in members
    ]


def of_experiment(experiment: Experiment, workspace: Workspace, name: str | None, images: int) -> list[Diagnosis]:
    """Every row of an experiment whose method gives a diagnosis, as initialised and calibrated; the first seed.

    Raises:
        UserError: no such row, or none that gives a diagnosis; a teacher that is still to be trained.
    """
    for plugin in experiment.plugins:
        load_plugin(plugin)
    runs = [run for run in student_runs(experiment) if run.info.seed == experiment.seeds[0]]
    wanted = _chosen(runs, name)
    asked = [run for run in wanted if gives_diagnosis(run)]
    if not asked:
        raise UserError(_nothing(wanted, wanted))
    return [_ask(run, experiment, workspace, images, trained=False) for run in asked]


def gives_diagnosis(run: Run) -> bool:
    """Whether the run's method has a `diagnose` of its own."""
    return method_class(run.spec["method"]).diagnose is not Method.diagnose


def _by_experiment(
    jobs: Mapping[str, tuple[Experiment, Run]], asked: Sequence[Run]
) -> Iterator[tuple[Experiment, list[Run]]]:
    experiments = {id(jobs[run.id][0]): jobs[run.id][0] for run in asked}
    for key, experiment in experiments.items():
        yield experiment, [run for run in asked if id(jobs[run.id][0]) == key]


def _chosen(runs: Sequence[Run], name: str | None) -> list[Run]:
    if name is None:
        return list(runs)
    found = [run for run in runs if name in (run.info.label, run.title, run.id)]
    if not found:
        raise UserError(unknown("run", name, {run.info.label for run in runs}))
    return found


def _nothing(wanted: Sequence[Run], finished: Sequence[Run]) -> str:
    if not finished:
        return f"none of {len(wanted)} runs is finished; `singer-bench run CONFIG` trains them"
    labels = ", ".join(dict.fromkeys(run.info.label for run in finished))
    return f"no diagnosis is given by {labels}; a method gives one by Method.diagnose (harness/api.py)"


def _ask(run: Run, experiment: Experiment, workspace: Workspace, images: int, trained: bool) -> Diagnosis:
    builder = Builder(experiment, workspace, device_of(experiment), _must_be_there(workspace))
    builder.same_as_before(builder.data, "train") if trained else None
    teacher = builder.teacher(run.teacher)
    calibration = SourceCalibration(builder.source, builder.data, teacher, builder.device)
    method = builder.trained_method(run, teacher) if trained else _untrained(builder, run, teacher)
    return Diagnosis(run, trained, method.diagnose(Fewer(calibration, images)))


def _untrained(builder: Builder, run: Run, teacher: Vit) -> Method:
    return builder.method(run, builder.student(run), teacher).to(builder.device).eval()


def _must_be_there(workspace: Workspace):
    """What a builder does for a teacher that is trained first: it is there, or the run says how to make it."""

    def fit(run: Run) -> None:
        if not workspace.is_trained(run):
            raise UserError(
                f"the teacher ({run.info.student}) is not trained yet in {str(workspace.root)!r}; `singer-bench run "
                "CONFIG` trains it, and --workspace names another folder"
            )

    return fit


def shown(diagnoses: Sequence[Diagnosis]) -> str:
    """All of them in tables."""
    return "\n\n".join(
        f"{one.run.title}, {'trained' if one.trained else 'as initialised'} ({one.run.id})\n\n{tables(one.found)}"
        for one in diagnoses
    )


def tables(found: Mapping[str, Any]) -> str:
    """A diagnosis in tables: one of plain values, and one for each list of dicts and each dict of dicts in it.

    In a list's tables a row begins with the first value of the item that it tells of, such as its layer.
    """
    parts = []
    plain = {key: value for key, value in found.items() if not _is_nested(value)}
    if plain:
        parts.append(tabulate([[key, _cell(value)] for key, value in plain.items()], tablefmt="plain"))
    for key, value in found.items():
        if _is_nested(value):
            items = value if isinstance(value, list) else [value]
            parts += _tables_of(key, items)
    return "\n\n".join(parts)


def _is_nested(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and bool(value) and isinstance(value[0], dict))


def _tables_of(title: str, items: Sequence[Mapping[str, Any]]) -> list[str]:
    """One table of the items' plain values, then one for each of their dicts."""
    keys = list(dict.fromkeys(key for item in items for key in item))
    deep = [key for key in keys if any(_is_nested(item.get(key)) for item in items)]
    flat = [key for key in keys if key not in deep]
    found = []
    if flat:
        found.append(_table(title, flat, [[item.get(key) for key in flat] for item in items]))
    for key in deep:
        rows, columns = [], {}
        for item in items:
            lead = [item[flat[0]]] if flat else []
            for name, values in _rows(item.get(key)):
                columns.update(dict.fromkeys(values))
                rows.append((lead, name, values))
        named = any(name for _, name, _ in rows)
        header = [*flat[:1], *([""] if named else []), *columns]
        body = [[*lead, *([name] if named else []), *(values.get(c) for c in columns)] for lead, name, values in rows]
        found.append(_table(f"{title}: {key}", header, body))
    return found


def _rows(value: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """A dict as one row; a dict of dicts, or a list of dicts, as a row each."""
    if isinstance(value, list):
        for item in value:
            yield "", item
    elif isinstance(value, dict) and any(isinstance(inner, dict) for inner in value.values()):
        for name, inner in value.items():
            if inner is not None:  # what there is nothing to tell of
                yield name, inner if isinstance(inner, dict) else {"value": inner}
    elif isinstance(value, dict):
        yield "", value


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    cells = [[_cell(value) for value in row] for row in rows]
    names = [str(name).replace("_", " ") for name in header]
    return f"{title.replace('_', ' ')}\n{tabulate(cells, names, disable_numparse=True)}"


def _cell(value: Any) -> str:
    """A value in a table: four digits of a number; of a list of numbers their extremes and how many they are."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list) and len(value) > 4 and all(isinstance(v, int | float) for v in value):
        return f"{min(value):.4g} .. {max(value):.4g} ({len(value)})"
    if isinstance(value, list | dict):
        return ", ".join(_cell(v) for v in value)
    return str(value)
