"""Ten thousand runs: how long `singer-bench plan` and `singer-bench status` take to say what they say.

    python benchmarks/plan.py [--quick]

Needs the package installed. 100 rows (methods and presets, each with a hyperparameter of its own) x 100 seeds, two
tasks. `plan` in an empty workspace; `plan` and `status` in one where nine tenths are trained and measured, one in a
hundred has failed and one group is being trained; and both where all of that was submitted to this machine's queue.
Each is a process of its own, and the whole of it is timed. The files have just been written, so the disk itself is not
measured. --quick: ten seeds, the seconds as they are.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from machine import describe
from pydantic import TypeAdapter

from harness import catalogue
from harness.config import Experiment, load
from harness.dispatch.ledger import Entry
from harness.dispatch.units import plan as planned
from harness.records import Cost, MetricInfo, Record, record_path
from harness.results import remember
from harness.runs import Group, Run, TaskRun, Workspace, groups, student_runs, task_runs
from harness.storage.locks import Lock

GOAL_S = 5.0  # of each, on two laptop cores
ROWS, SEEDS, ROUNDS = 100, 100, 3
MAX_GROUP = 8
ENVIRONMENT = {"device": "cuda", "device_name": "a GPU", "threads": 8, "python": "3.11", "packages": {"torch": "2"}}


def configuration(seeds: int) -> dict[str, Any]:
    """The experiment as a YAML file has it."""
    known = [entry for _, entry in sorted(catalogue.catalogue().methods.items()) if real(entry)]
    return {
        "name": "large",
        "teacher": {"model": "vit_large_patch14_dinov2.lvd142m", "pretrained": True},
        "student": {"model": "vit_tiny_patch16_224"},
        "data": {"source": "scenes", "image_size": 224, "options": {"count": 100_000}},
        "training": {"epochs": 100, "batch_size": 256},
        "methods": [row(known[i % len(known)], i) for i in range(ROWS)],
        "seeds": list(range(seeds)),
        "tasks": ["classification", "artifacts"],
        "runtime": {"max_group": MAX_GROUP},
    }


def row(entry: catalogue.Entry, number: int) -> dict[str, Any]:
    """A method whose first real hyperparameter has a value that no other row has."""
    given = {real(entry)[0]: 0.5 + number / 1000}
    return {"method": entry.name, "label": f"{entry.name} {number}", "hyperparameters": given}


def real(entry: catalogue.Entry) -> list[str]:
    """Hyperparameters that are real numbers."""
    return [name for name, parameter in entry.hyperparameters.items() if parameter.annotation == "float"]


def fill(experiment: Experiment, workspace: Workspace) -> Group:
    """Students, records, failures, as if most of it were done; returns the group that is being trained."""
    remember(experiment, workspace)
    runs, tasks = student_runs(experiment), task_runs(experiment)
    for task in tasks:
        write(workspace.protocols / f"{task.key}.json", json.dumps({"task_id": task.key}))
    done = len(runs) * 9 // 10
    for run in runs[:done]:
        described = {"info": run.info.model_dump(), "cost": COST.model_dump(), "environment": ENVIRONMENT}
        write(workspace.student(run.id) / "run.yaml", yaml.dump(described, Dumper=yaml.CSafeDumper))
        for task in tasks:
            record = of(run, task)
            write(record_path(workspace.records, run.id, task.key), record.model_dump_json(indent=2))
    for run in runs[done : done + len(runs) // 100]:
        write(workspace.failures / f"{run.id}.json", json.dumps({"reason": "the loss is not finite", "step": 7}))
    return groups(runs, workspace, MAX_GROUP)[0]


COST = Cost(steps=39_000, teacher_s=9000.0, own_s=1000.0, group_size=MAX_GROUP, evaluation_s=60.0)


def submit(experiment: Experiment, workspace: Workspace) -> int:
    """Entries as they are where all has been submitted; how many."""
    units = planned(experiment, Workspace(workspace.root / "nowhere"), {}, {}).units
    asked = experiment.submit.model_dump(mode="json")
    for unit in units:
        entry = Entry(
            unit, "local", "jobs/submitit/x", "jobs/snapshots/y", "2026-01-01T00:00:00+00:00", resources=asked
        )
        write(workspace.jobs / f"{unit.id}.json", TypeAdapter(Entry).dump_json(entry, indent=2).decode())
    return len(units)


def of(run: Run, task: TaskRun) -> Record:
    values = {name: 0.5 for name in ("top1", "top5", "balanced", "knn")}
    return Record(
        task=task.spec.title(),
        task_kind=task.spec.task,
        task_id=task.key,
        metrics={name: MetricInfo(unit="fraction", direction="up") for name in values},
        values=values,
        details={"chosen": {"lr": 0.01, "head": "cls"}, "curve": [0.123456789] * 20},
        protocol={"summary": "linear heads", "data": task.spec.data, "lrs": [1e-3, 1e-2, 0.1], "epochs": 100},
        run=run.info,
        cost=COST,
        seed=run.info.seed,
        environment=ENVIRONMENT,
        created="2026-01-01T00:00:00+00:00",
    )


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def seconds(*arguments: str) -> tuple[float, float, int]:
    """Of a whole command, the quickest of some, by the wall's clock and of the processor; how many lines it printed."""
    command = [sys.executable, "-m", "harness.cli", *arguments]
    found = []
    for _ in range(ROUNDS):
        start, before = time.perf_counter(), processor_s()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        found.append((time.perf_counter() - start, processor_s() - before))
        if done.returncode != 0:
            raise SystemExit(done.stderr)
    return *min(found), len(done.stdout.splitlines())


def processor_s() -> float:
    """Of all children so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description="Ten thousand runs, planned and looked at.")
    parser.add_argument("--quick", action="store_true", help="ten seeds")
    seeds = 10 if parser.parse_args().quick else SEEDS
    print(f"{describe()}; {ROWS * seeds} runs")
    with tempfile.TemporaryDirectory() as folder:
        config, empty, full = (os.path.join(folder, name) for name in ("large.yaml", "empty", "full"))
        Path(config).write_text(yaml.safe_dump(configuration(seeds)))
        experiment, workspace = load(config), Workspace(full)
        group = fill(experiment, workspace)
        write(workspace.groups / group.id / "group.json", json.dumps({"runs": [run.id for run in group.runs]}))
        taken: list[float] = []

        def time_all(title: str, place: str, *commands: str) -> None:
            for command in commands:
                arguments = ("plan", config, "--workspace", place) if command == "plan" else (command, place)
                wall_s, used_s, lines = seconds(*arguments)
                taken.append(wall_s)
                print(f"{command}, {title}: {wall_s:.2f} s, of the processor {used_s:.2f}; {lines} lines", flush=True)

        with Lock(workspace.locks / f"train-{group.id}.lock") as lock:
            assert lock.acquire()
            time_all("nothing done", empty, "plan")
            time_all("most done", full, "plan", "status")
            time_all(f"and {submit(experiment, workspace)} jobs submitted", full, "plan", "status")
    slowest = max(taken)
    print(f"ratio: {slowest / GOAL_S:.2f} (goal <= 1.00)")


if __name__ == "__main__":
    main()
