"""What the command line says: tables, lists, checks, exports; and an experiment kept in its workspace. No torch."""

from __future__ import annotations

import importlib.resources
import shutil
from collections.abc import Sequence
from pathlib import Path

import yaml
from tabulate import tabulate

from harness import students
from harness.asked import asked_by
from harness.catalogue import Catalogue, Entry, catalogue
from harness.config import Experiment
from harness.errors import UserError, unknown
from harness.records import read_records, write_atomic
from harness.runs import Workspace, bound_runs, student_runs, task_runs
from harness.specs import EXPORTED, LOCAL


def shipped(name: str) -> Path:
    """A configuration that comes with the package."""
    with importlib.resources.as_file(importlib.resources.files("configs") / name) as path:
        return path


def remember(experiment: Experiment, workspace: Workspace) -> None:
    """Keep the experiment in its workspace, so that `status` knows what is pending. Paths become absolute."""
    plain = experiment.model_dump(mode="json")
    plain["plugins"] = [str(Path(p).resolve()) for p in experiment.plugins]
    places = [plain["teacher"], plain["student"], plain["data"]]
    places += [method["teacher"] for method in plain["methods"]]
    places += [task["data"] for task in plain["tasks"] if task["data"]]
    for place in places:
        for key in ("checkpoint", "root"):
            if place.get(key) is not None:
                place[key] = str(Path(place[key]).resolve())
        if str(place.get("model")).startswith(LOCAL):
            place["model"] = LOCAL + str(Path(place["model"].removeprefix(LOCAL)).resolve())
    try:
        write_atomic(workspace.root / "experiments" / f"{experiment.name}.yaml", yaml.safe_dump(plain, sort_keys=False))
    except OSError as error:
        raise UserError(f"cannot write into the workspace {str(workspace.root)!r}: {error.strerror}") from error


def leaderboard(experiment: Experiment, workspace: Workspace, format: str = "markdown", width: int = 120) -> str:
    """The primary metrics of one experiment as a text; all of them go into the workspace's leaderboard.md, .csv.

    Args:
        format: of `leaderboard.render`. width: of plain text, in characters.
    """
    from leaderboard.drafts import Asked
    from leaderboard.render import render
    from leaderboard.table import rows_and_columns

    runs = {run.id: run for run in bound_runs(experiment) + student_runs(experiment)}
    columns = {workspace.task_id(task): task.spec.title() for task in task_runs(experiment)}
    records, problems = read_records(workspace.records)
    # Rows and columns are called what the experiment calls them now, not what they were called when measured.
    mine = [
        r.model_copy(update={"run": runs[r.run.id].info, "task": columns[r.task_id]})
        for r in records
        if r.run.id in runs and r.task_id in columns
    ]
    if not mine:
        return "no results yet\n"
    asked = [Asked(*one) for one in asked_by(experiment, workspace)]
    whole = rows_and_columns(mine, metrics="all", costs=True, problems=problems, asked=asked)
    for kept, suffix in (("markdown", "md"), ("csv", "csv")):
        write_atomic(workspace.root / f"leaderboard.{suffix}", render(whole, kept))
    short = render(rows_and_columns(mine, problems=problems, asked=asked), format, width)
    return f"{short}\nAll metrics and costs: {workspace.root / 'leaderboard.md'}\n"


def listing(kind: str, verbose: bool, plugins: Sequence[str], width: int = 120) -> str:
    """What is registered, as a table at most `width` characters wide; `verbose`: parameters and defaults too."""
    known = catalogue(plugins)
    kinds = {"methods": known.methods, "tasks": known.tasks, "sources": known.sources}
    if kind not in kinds:
        raise UserError(unknown("kind", kind, kinds))
    entries = sorted(kinds[kind].values(), key=lambda e: (e.family, e.preset_of or e.name, e.preset_of or "", e.name))
    if kind == "methods":
        header = ["method", "family", "source", "what it does"]
        rows = [[e.name, e.family, e.cite, _summary(e, known)] for e in entries]
    else:
        header, rows = [kind[:-1], "what it does"], [[e.name, e.summary] for e in entries]
    text = tabulate(rows, header, maxcolwidths=_widths(rows, header, width))
    if not verbose:
        return text
    parts = [text]
    for entry in entries:
        parameters = [f"  {k}: {p.annotation} = {p.default!r}" for k, p in entry.hyperparameters.items()]
        comments = [f"  # {p.comment}" if p.comment else "" for p in entry.hyperparameters.values()]
        said = [line + comment for line, comment in zip(parameters, comments, strict=True)]
        parts.append("\n".join([f"\n{entry.name}  ({entry.module or entry.path})", *(said or ["  (nothing to set)"])]))
    return "\n".join(parts)


def _summary(entry: Entry, known: Catalogue) -> str:
    """What it does; of a preset, how it differs from its method."""
    if entry.preset_of is None:
        return entry.summary
    values = known.methods[entry.preset_of].presets[entry.name]
    return f"{entry.preset_of} with {', '.join(f'{key}={value}' for key, value in values.items())}"


def _widths(rows: Sequence[Sequence[str]], header: Sequence[str], width: int) -> list[int]:
    """Names in full, a third of what they leave for sources, the rest for the last column; 24 is the least."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    free = width - 2 * (len(header) - 1) - sum(widths[:-1][:2])
    if len(header) > 2:
        widths[2] = min(widths[2], max(24, free // 3))
        free -= widths[2]
    return [*widths[:-1], max(24, free)]


def check(name: str, plugins: Sequence[str]) -> tuple[list[str], bool]:
    """Run the contract checks on a method, a task or every one of a file; lines to print, and whether all passed."""
    file = Path(name)
    is_file = file.suffix == ".py"
    known = catalogue([*plugins, *([name] if is_file else [])])
    if is_file:
        mine = [e for e in known.of_file(file) if e.kind != "source"]
        if not mine:
            raise UserError(f"{name} defines no method and no task, and a source has no checks")
    else:
        everything = {**known.tasks, **known.methods}
        if name not in everything:
            raise UserError(unknown("method or task", name, everything) + "; or give a file's path, ending in .py")
        mine = [everything[name]]
    from harness.checking.checks import run_checks
    from harness.registry import load_plugin

    for plugin in [*plugins, *([name] if is_file else [])]:
        load_plugin(plugin)
    lines, good = [], True
    for entry in mine:
        for outcome in run_checks(entry):
            good = good and outcome.ok
            lines.append(f"{'ok  ' if outcome.ok else 'FAIL'}  {entry.name}: {outcome.check}")
            if not outcome.ok:
                lines.append(f"      {outcome.message}")
    lines.append("all checks passed" if good else "some checks failed")
    return lines, good


def export(student: Path, output: Path) -> str:
    """Copy what timm needs of a student into a new folder."""
    missing = [name for name in EXPORTED if not (student / name).is_file()]
    if missing:
        inside = sorted(p.name for p in (student / "students").glob("*") if p.is_dir() and p.suffix != ".partial")
        hint = f"; name one of {student / 'students'}: {', '.join(inside)}" if inside else ""
        raise UserError(f"{str(student)!r} is no student's folder, since it lacks {' and '.join(missing)}{hint}")
    if (student / "run.yaml").is_file():
        students.checked(student, EXPORTED)
    try:
        output.mkdir(parents=True, exist_ok=True)
        if any(output.iterdir()):
            raise UserError(f"{str(output)!r} exists and is not empty; name a new folder")
        for name in (*EXPORTED, "run.yaml"):
            if (student / name).is_file():
                shutil.copy2(student / name, output / name)
    except OSError as error:
        raise UserError(f"cannot write into {str(output)!r}: {error.strerror}; name a new folder") from error
    return f'{output}: timm.create_model("{LOCAL}{output}", pretrained=True)'
