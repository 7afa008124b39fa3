"""What the command line says about experiments and workspaces: plans, status, tables, lists. No torch at import."""

from __future__ import annotations

import importlib.resources
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from tabulate import tabulate

from harness.catalogue import catalogue
from harness.config import Experiment, parse
from harness.errors import UserError, unknown
from harness.locks import is_stale
from harness.records import read_records, write_atomic
from harness.runs import Run, Workspace, bound_runs, groups, student_runs, task_runs


def shipped(name: str) -> Path:
    """A configuration that comes with the package."""
    with importlib.resources.as_file(importlib.resources.files("configs") / name) as path:
        return path


def remember(experiment: Experiment, workspace: Workspace) -> None:
    """Keep the experiment in its workspace, so that `status` knows what is pending. Paths become absolute."""
    plain = experiment.model_dump(mode="json")
    plain["plugins"] = [str(Path(p).resolve()) for p in experiment.plugins]
    places = [plain["teacher"], plain["student"]]
    places += [t["data"] for t in plain["tasks"] if t["data"]] + [plain["data"]]
    for place in places:
        for key in ("checkpoint", "root"):
            if place.get(key) is not None:
                place[key] = str(Path(place[key]).resolve())
    try:
        write_atomic(workspace.root / "experiments" / f"{experiment.name}.yaml", yaml.safe_dump(plain, sort_keys=False))
    except OSError as error:
        raise UserError(f"cannot write into the workspace {str(workspace.root)!r}: {error}") from error


def leaderboard(experiment: Experiment, workspace: Workspace) -> str:
    """The primary metrics of one experiment, as markdown; all of them go into the workspace's leaderboard.md, .csv."""
    from leaderboard.render import render
    from leaderboard.table import rows_and_columns

    runs = {run.id: run for run in bound_runs(experiment) + student_runs(experiment)}
    columns = {workspace.task_id(task) for task in task_runs(experiment)}
    records, problems = read_records(workspace.records)
    # A row is called what the experiment calls it now, not what it was called when it was measured.
    mine = [
        r.model_copy(update={"run": runs[r.run.id].info}) for r in records if r.run.id in runs and r.task_id in columns
    ]
    if not mine:
        return "no results yet"
    whole = rows_and_columns(mine, metrics="all", costs=True, problems=problems)
    for format, suffix in (("markdown", "md"), ("csv", "csv")):
        write_atomic(workspace.root / f"leaderboard.{suffix}", render(whole, format))
    short = render(rows_and_columns(mine, problems=problems), "markdown")
    return f"{short}\nAll metrics and costs: {workspace.root / 'leaderboard.md'}"


def _state(run: Run, workspace: Workspace, running: set[str]) -> str:
    if workspace.failure(run.id) is not None:
        return "failed"
    if workspace.is_trained(run):
        return "trained"
    return "running" if run.id in running else "pending"


def _running(workspace: Workspace) -> set[str]:
    """Runs whose group is held by a living process."""
    found: set[str] = set()
    for path in workspace.groups.glob("*/group.json"):
        lock = workspace.locks / f"train-{path.parent.name}.lock"
        if lock.is_file() and not is_stale(lock):
            found |= set(json.loads(path.read_text())["runs"])
    return found


def plan(experiment: Experiment, workspace: Workspace) -> str:
    """What would run and what is done, in words."""
    runs, bounds, tasks = student_runs(experiment), bound_runs(experiment), task_runs(experiment)
    found = groups(runs, workspace, experiment.runtime.max_group)
    training = experiment.training
    length = f"{training.steps} steps" if training.steps else f"{training.epochs:g} epochs"
    trained = sum(workspace.is_trained(run) for run in runs)
    lines = [
        f"{experiment.name}: {len(runs)} students ({len(experiment.methods)} methods x {len(experiment.seeds)} seeds), "
        f"{length} each, batch {training.batch_size}; workspace {workspace.root}",
        f"trained: {trained} of {len(runs)}",
    ]
    for group in found:
        names = ", ".join(run.info.label for run in group.runs)
        lines.append(f"  train together, seed {group.runs[0].info.seed}: {names}")
    left = sum(len(group.runs) for group in found)
    if left:
        lines.append(f"teacher passes: {len(found)} x {length}, instead of {left} x {length} one student at a time")
        lines.append(_estimate(found, runs, workspace))
    everyone = bounds + runs
    done = sum(workspace.has_record(run, task) for run in everyone for task in tasks)
    lines.append(f"evaluated: {done} of {len(everyone) * len(tasks)} ({', '.join(t.spec.title() for t in tasks)})")
    failed = [run for run in runs if workspace.failure(run.id) is not None]
    lines += [f"failed: {run.title}: {(workspace.failure(run.id) or {})['reason']}" for run in failed]
    return "\n".join(line for line in lines if line)


def _estimate(found: Sequence[Any], runs: Sequence[Run], workspace: Workspace) -> str:
    """Minutes, from what runs of the same shape took in this workspace; nothing where there are none."""
    own: dict[str, list[float]] = {}
    teacher: list[float] = []
    for run in runs:
        path = workspace.student(run.id) / "run.yaml"
        if path.is_file():
            cost = yaml.safe_load(path.read_text())["cost"]
            own.setdefault(run.info.label, []).append(cost["own_s"])
            teacher.append(cost["teacher_s"])
    waiting = [run.info.label for group in found for run in group.runs]
    if not teacher or any(label not in own for label in waiting):
        return ""
    seconds = len(found) * sum(teacher) / len(teacher) + sum(sum(own[i]) / len(own[i]) for i in waiting)
    return f"about {seconds / 60:.0f} min of training, from what runs of the same rows took here"


def status(workspace: Workspace) -> str:
    """Every experiment of a workspace: how many runs are in which state, and why the failed ones failed."""
    paths = sorted((workspace.root / "experiments").glob("*.yaml"))
    if not paths:
        raise UserError(
            f"{str(workspace.root)!r} holds no experiment; `singer-bench run CONFIG --workspace` starts one"
        )
    lines: list[str] = []
    running = _running(workspace)
    for path in paths:
        experiment = parse(yaml.safe_load(path.read_text()), str(path))
        runs, tasks = student_runs(experiment), task_runs(experiment)
        everyone = bound_runs(experiment) + runs
        states = {run.id: _state(run, workspace, running) for run in runs}
        count = Counter(states.values())
        done = sum(workspace.has_record(run, task) for run in everyone for task in tasks)
        said = ", ".join(f"{count[s]} {s}" for s in ("trained", "running", "pending", "failed"))
        lines.append(f"{experiment.name}: {said}; {done} of {len(everyone) * len(tasks)} evaluations done")
        for run in runs:
            failure = workspace.failure(run.id)
            if failure is not None:
                lines.append(f"  failed: {run.title} at step {failure['step']}: {failure['reason']}")
            elif states[run.id] == "running":
                lines.append(f"  running: {run.title}{_last_step(workspace, run)}")
    return "\n".join(lines)


def _last_step(workspace: Workspace, run: Run) -> str:
    path = workspace.partial(run.id) / "train.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return f", step {json.loads(lines[-1])['step']}" if lines else ""


def listing(kind: str, verbose: bool, plugins: Sequence[str]) -> str:
    """What is registered, as a table; with `verbose` each one's parameters and defaults."""
    known = catalogue(plugins)
    kinds = {"methods": known.methods, "tasks": known.tasks, "sources": known.sources}
    if kind not in kinds:
        raise UserError(unknown("kind", kind, kinds))
    entries = sorted(kinds[kind].values(), key=lambda e: (e.family or "", e.name))
    if kind == "methods":
        rows = [[e.name, e.family, e.cite, e.summary] for e in entries]
        text = tabulate(rows, ["method", "family", "source", "what it does"], maxcolwidths=[None, None, 36, 60])
    else:
        text = tabulate([[e.name, e.summary] for e in entries], [kind[:-1], "what it does"], maxcolwidths=[None, 90])
    if not verbose:
        return text
    parts = [text]
    for entry in entries:
        parameters = [f"  {k}: {p.annotation} = {p.default!r}" for k, p in entry.hyperparameters.items()]
        parts.append("\n".join([f"\n{entry.name}  ({entry.module})", *(parameters or ["  (nothing to set)"])]))
    return "\n".join(parts)


def check(name: str, plugins: Sequence[str]) -> tuple[list[str], bool]:
    """Run the contract checks on a method, a task or every one of a file; lines to print, and whether all passed."""
    file = Path(name)
    is_file = file.suffix == ".py"
    known = catalogue([*plugins, *([name] if is_file else [])])
    if is_file:
        mine = [e for e in (*known.methods.values(), *known.tasks.values()) if Path(e.path) == file.resolve()]
    else:
        everything = {**known.tasks, **known.methods}
        if name not in everything:
            raise UserError(unknown("method or task", name, everything) + "; or give a file's path, ending in .py")
        mine = [everything[name]]
    from harness.checks import run_checks
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
    files = ["config.json", "model.safetensors"]
    missing = [f for f in files if not (student / f).is_file()]
    if missing:
        raise UserError(f"{str(student)!r} is not a student's folder: {', '.join(missing)} missing")
    if output.exists() and any(output.iterdir()):
        raise UserError(f"{str(output)!r} exists and is not empty; name a new folder")
    output.mkdir(parents=True, exist_ok=True)
    for file in [*files, "run.yaml"]:
        if (student / file).is_file():
            shutil.copy2(student / file, output / file)
    return f'{output}: timm.create_model("local-dir:{output}", pretrained=True)'
