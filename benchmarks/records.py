"""Ten thousand records to a table: reading the files, building the board, writing Markdown and CSV text.

    python benchmarks/records.py [--quick]

Needs the package installed. 30 methods x 3 seeds x 10 conditions x 11 tasks, plus the bounds, in a temporary
folder. The files have just been written, so the disk itself is not measured. --quick: a tenth of the
conditions, its time scaled by the number of records.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from machine import describe

from harness.records import Record, read_records, record_path, record_text
from harness.seeds import content_hash
from leaderboard.render import render
from leaderboard.table import rows_and_columns

GOAL_S = 2.0  # for RECORDS, on two laptop cores
RECORDS = 10_000
METHODS, SEEDS, CONDITIONS, ROUNDS = 30, 3, 10, 3

TASKS = {
    "classification": {"top1": "up", "top5": "up", "balanced": "up", "knn": "up"},
    "depth": {"rmse": "down", "abs_rel": "down", "delta1": "up"},
    "artifacts": {"outlier_share": "down", "max_over_median": "down"},
}


def record(kind: str, method: int, seed: int, condition: int, task: int, draws: random.Random) -> dict:
    """One record of realistic size: a nested protocol, a run's specification, an environment, some details."""
    name = list(TASKS)[task % len(TASKS)]
    hyperparameters = {"layers": [8, 11], "rank": 64, "threshold": 0.5, "w_kd": 1.0, "w_info": 0.01}
    spec = {
        "method": f"method_{method}",
        "hyperparameters": hyperparameters,
        "seed": seed,
        "teacher": {"name": "vit_large_patch16_224", "checkpoint": "b" * 64, "image_size": 224},
        "training": {"epochs": 100, "batch": 1024, "lr": 1e-3, "warmup_epochs": 5, "weight_decay": 0.05},
        "condition": condition,
        "kind": kind,
    }
    protocol = {"summary": f"linear heads on set {task}, 224 px", "set": task, "lrs": [1e-3, 1e-2, 0.1], "epochs": 100}
    return {
        "task": f"{name}-{task}",
        "task_kind": name,
        "task_id": content_hash(protocol),
        "metrics": {m: {"unit": "fraction", "direction": d} for m, d in TASKS[name].items()},
        "values": {m: draws.random() for m in TASKS[name]},
        "details": {"chosen": {"lr": 0.01, "head": "cls"}, "curve": [draws.random() for _ in range(20)]},
        "protocol": protocol,
        "run": {
            "id": content_hash(spec),
            "kind": kind,
            "label": f"method_{method}" if kind == "student" else kind,
            "method": f"method_{method}" if kind == "student" else kind,
            "seed": seed,
            "teacher": "vit_large_patch16_224",
            "student": "vit_tiny_patch16_224",
            "data": f"data-{condition}",
            "condition": content_hash(condition),
            "hyperparameters": hyperparameters,
            "spec": spec,
        },
        "cost": {"own_s": 100.0, "teacher_s": 900.0, "group_size": 5, "evaluation_s": 9.5, "peak_memory_gb": 11.0},
        "seed": seed,
        "environment": {"torch": "2.9.0", "timm": "1.0.20", "device": "a GPU", "commit": "c" * 40},
        "created": "2026-01-01T00:00:00Z",
    }


def write_all(folder: Path, conditions: int) -> int:
    """Fill the folder; returns how many records. Without the sync of `write_record`, which is not measured here."""
    draws = random.Random(0)
    count = 0
    for values in every(conditions, draws):
        made = Record.model_validate(values)
        record_path(folder, made.run.id, made.task_id).write_text(record_text(made))
        count += 1
    return count


def every(conditions: int, draws: random.Random) -> Iterator[dict]:
    for condition in range(conditions):
        for task in range(11):
            for method in range(METHODS):
                for seed in range(SEEDS):
                    yield record("student", method, seed, condition, task, draws)
            for kind in ("teacher", "untrained"):
                yield record(kind, 0, 0, condition, task, draws)


def measure(folder: Path) -> tuple[float, float, float]:
    """Seconds for reading, for the board, and for its Markdown and CSV."""
    start = time.perf_counter()
    records, problems = read_records(folder)
    read = time.perf_counter()
    board = rows_and_columns(records, metrics="all", costs=True, problems=problems)
    built = time.perf_counter()
    for format in ("markdown", "csv"):
        render(board, format)
    return read - start, built - read, time.perf_counter() - built


def main() -> None:
    parser = argparse.ArgumentParser(description="Ten thousand records to a table.")
    parser.add_argument("--quick", action="store_true", help="a tenth of the conditions, scaled")
    conditions = 1 if parser.parse_args().quick else CONDITIONS
    with tempfile.TemporaryDirectory() as name:
        count = write_all(Path(name), conditions)
        start = time.process_time()
        rounds = [measure(Path(name)) for _ in range(ROUNDS)]
        processor_s = (time.process_time() - start) / ROUNDS
    scale = RECORDS / count
    parts = [statistics.median(times) * scale for times in zip(*rounds, strict=True)]
    total = statistics.median(sum(times) for times in rounds) * scale
    print(describe())
    print(f"{count} records, seconds scaled to {RECORDS}, median of {ROUNDS}: " + f"reading {parts[0]:.2f}, ", end="")
    print(f"board {parts[1]:.2f}, text {parts[2]:.2f}, total {total:.2f} (goal {GOAL_S:.0f}), ", end="")
    print(f"of the processor {processor_s * scale:.2f}")  # far below the total: others were using the machine
    print(f"ratio: {total / GOAL_S:.2f} (goal <= 1.00)")


if __name__ == "__main__":
    main()
