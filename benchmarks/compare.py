"""One method against 299 others in 30 columns, three seeds each, by seed and by test item: files to text.

    python benchmarks/compare.py [--quick]

Needs the package installed. Of the columns 20 are right or wrong on 10,000 images, 5 are a mean over 21 classes on 500
images, 5 an error over the pixels of 650 images; files in a temporary folder, just written, so the disk itself is not
measured. --quick: a tenth of the methods, its time scaled.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from machine import describe

from harness.items import Items
from harness.records import Record, record_path, record_text
from harness.seeds import content_hash
from harness.storage.items import write_items
from leaderboard.statistics.show import render
from leaderboard.statistics.write import load

GOAL_S = 60.0
METHODS, SEEDS, TASKS = 300, 3, 30
IMAGES, MAPS, CLASSES, DEPTHS = 10_000, 500, 21, 650


def items_of(task: int, skill: float, difficulty: dict[int, np.ndarray], rng: np.random.Generator) -> tuple[str, Items]:
    """The metric's direction and what each test item gave; the same items for all."""
    kind = task % 6
    if kind < 4:
        return "up", Items({"x": rng.normal(size=IMAGES) + skill > difficulty[task]}, {"value": ("mean", "x")})
    if kind == 4:
        union = difficulty[task]  # [MAPS, CLASSES] pixels
        share = np.clip(0.5 + 0.1 * skill + 0.2 * rng.normal(size=union.shape), 0, 1)
        return "up", Items(
            {"i": (union * share).astype(np.uint16), "u": union.astype(np.uint16)}, {"value": ("class_mean", "i", "u")}
        )
    squared = (rng.gamma(2, 1 - 0.1 * skill, DEPTHS)).astype(np.float32)
    return "down", Items(
        {"e": squared, "w": difficulty[task].astype(np.uint32)}, {"value": ("root_weighted_mean", "e", "w")}
    )


def every(methods: int, workspace: Path) -> Iterator[Record]:
    rng = np.random.default_rng(0)
    difficulty = {
        task: rng.normal(size=IMAGES)
        if task % 6 < 4
        else rng.integers(0, 9_000, (MAPS, CLASSES)) * (rng.random((MAPS, CLASSES)) < 0.3)
        if task % 6 == 4
        else rng.integers(1_000, 60_000, DEPTHS)
        for task in range(TASKS)
    }
    for task in range(TASKS):
        protocol = {"summary": f"set {task}", "set": task}
        for method in range(methods):
            for seed in range(SEEDS):
                label = f"method_{method}"
                spec = {"method": label, "seed": seed}
                run, task_id = content_hash(spec), content_hash(protocol)
                direction, items = items_of(task, method / methods * 0.1 + 0.01 * rng.normal(), difficulty, rng)
                info = write_items(workspace / "items", run, task_id, items)
                yield Record.model_validate(
                    {
                        "task": f"task_{task}",
                        "task_kind": "any",
                        "task_id": task_id,
                        "metrics": {"value": {"unit": "fraction", "direction": direction}},
                        "values": {"value": items.number("value")},
                        "protocol": protocol,
                        "run": {
                            "id": run,
                            "kind": "student",
                            "label": label,
                            "method": label,
                            "seed": seed,
                            "teacher": "teacher",
                            "student": "student",
                            "data": "data",
                            "condition": "c0ffee00",
                            "spec": spec,
                        },
                        "seed": seed,
                        "items": info,
                    }
                )


def write_all(methods: int, workspace: Path) -> None:
    (workspace / "records").mkdir()
    for record in every(methods, workspace):
        record_path(workspace / "records", record.run.id, record.task_id).write_text(record_text(record))


def main() -> None:
    parser = argparse.ArgumentParser(description="One method against all others, by seed and by test item.")
    parser.add_argument("--quick", action="store_true", help="a tenth of the methods, scaled")
    methods = METHODS // 10 if parser.parse_args().quick else METHODS
    with tempfile.TemporaryDirectory() as name:
        write_all(methods, Path(name))
        start, used = time.perf_counter(), time.process_time()
        found = load(Path(name))
        compared = time.perf_counter()
        render(found, "markdown")
        done, used = time.perf_counter(), time.process_time() - used
    (section,) = found.sections
    assert len(section.pairs) == (methods - 1) * TASKS and all(pair.by_item is not None for pair in section.pairs)
    scale = (METHODS - 1) / (methods - 1)
    print(describe())
    print(f"{methods} methods x {TASKS} columns x {SEEDS} seeds, seconds scaled to {METHODS} methods: ", end="")
    print(f"compared {(compared - start) * scale:.1f}, text {(done - compared) * scale:.1f}, ", end="")
    print(f"of the processor {used * scale:.1f}")  # far below the total: others were using the machine
    print(f"ratio: {(done - start) * scale / GOAL_S:.2f} (goal <= 1.00)")


if __name__ == "__main__":
    main()
