"""Ten thousand records to a page, and 300 methods in 30 columns in a browser: drawn, sorted, filtered.

    python benchmarks/page.py [--quick] [--no-browser]

Needs the package installed; the second part Chromium, its driver and the dev extra. The records are those of
records.py, in a temporary folder, each student with a log of 200 steps. --quick: a tenth of the conditions, its time
scaled by the number of records.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from machine import describe
from records import CONDITIONS, RECORDS, write_all

from harness.records import Record, write_record
from leaderboard.page.build import write_page

BUILD_GOAL_S = 20.0  # for RECORDS
DRAW_GOAL_S, ACT_GOAL_S = 2.0, 0.5  # from the file to a whole table; from a click to the next frame
METHODS, TASKS, ROUNDS = 300, 15, 5  # two metrics a task

_DRAWN = "return document.querySelectorAll('#board tbody tr').length"
_FRAME = "requestAnimationFrame(() => requestAnimationFrame(() => done((performance.now() - start) / 1000)));"
_ACTS = {
    "sort": "document.querySelector('#board thead th:nth-child(8)').click();",
    "find": "const field = document.getElementById('find'); field.value = field.value ? '' : '9';"
    "field.dispatchEvent(new Event('input'));",
    "columns": "document.getElementById('all-columns').click();",
}


def log_all(workspace: Path) -> None:
    """A training's log for every student."""
    lines = [{"step": step, "lr": 1e-3, "loss": 1 / (1 + step), "kd": 0.5, "norm": 3.0} for step in range(1, 201)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    for path in (workspace / "records").iterdir():
        folder = workspace / "students" / path.name.partition(".")[0]
        if not folder.is_dir():
            folder.mkdir(parents=True)
            (folder / "train.jsonl").write_text(text)


def wide() -> Iterator[Record]:
    """METHODS on TASKS, one seed each."""
    draws = random.Random(0)
    metrics = {name: {"unit": "fraction", "direction": "up", "shown": True} for name in ("top1", "top5")}
    for method in range(METHODS):
        run = {
            "id": f"run{method}",
            "kind": "student",
            "label": f"method_{method}",
            "method": f"method_{method}",
            "seed": 0,
            "teacher": "teacher",
            "student": "student",
            "data": "data",
            "condition": "c",
        }
        for task in range(TASKS):
            plain = {
                "task": f"task_{task}",
                "task_kind": "classification",
                "task_id": f"task{task}",
                "metrics": metrics,
                "values": {name: draws.random() for name in metrics},
                "protocol": {"task": task},
                "run": run,
                "cost": {"own_s": draws.random() * 100, "peak_memory_gb": 3.0},
                "seed": 0,
            }
            yield Record.model_validate(plain)


def build(conditions: int) -> tuple[int, float, float, float]:
    """Records, seconds for the page, for making it anew where nothing changed, and megabytes of its files."""
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        (home / "records").mkdir()
        count = write_all(home / "records", conditions)
        log_all(home)
        times = []
        for _ in range(2):
            start = time.perf_counter()
            write_page(home, home / "page")
            times.append(time.perf_counter() - start)
        size = sum(path.stat().st_size for path in (home / "page").rglob("*") if path.is_file())
    return count, times[0], times[1], size / 1e6


def browse() -> dict[str, float]:
    """Median seconds for each thing that a reader does with a wide table."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    tools = importlib.import_module("browser")  # of the tests
    if reason := tools.reason_not_available():
        raise SystemExit(reason)
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        for record in wide():
            write_record(home / "records", record)
        page = write_page(home, home / "page")
        browser = tools.Browser()
        try:
            found: dict[str, list[float]] = {"draw": []}
            for _ in range(ROUNDS):
                browser.show(page, "metrics=all&costs=1")
                found["draw"].append(browser.run("return performance.now() / 1000"))
                assert browser.run(_DRAWN) == METHODS
                for act, script in _ACTS.items():
                    timed = f"const done = arguments[0], start = performance.now(); {script} {_FRAME}"
                    found.setdefault(act, []).append(browser.driver.execute_async_script(timed))
        finally:
            browser.close()
    return {act: statistics.median(times) for act, times in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Ten thousand records to a page.")
    parser.add_argument("--quick", action="store_true", help="a tenth of the conditions, scaled")
    parser.add_argument("--no-browser", action="store_true", help="only the making of the page")
    options = parser.parse_args()
    count, first_s, again_s, size_mb = build(1 if options.quick else CONDITIONS)
    scale = RECORDS / count
    print(describe())
    print(f"{count} records, scaled to {RECORDS}: page {first_s * scale:.1f} s (goal {BUILD_GOAL_S:.0f}), ", end="")
    print(f"anew {again_s * scale:.1f} s, {size_mb * scale:.0f} MB")
    if not options.no_browser:
        times = browse()
        goals = {act: DRAW_GOAL_S if act == "draw" else ACT_GOAL_S for act in times}
        print(f"{METHODS} methods, {2 * TASKS} columns in a browser: ", end="")
        print(", ".join(f"{act} {seconds:.2f} s (goal {goals[act]:g})" for act, seconds in times.items()))
    print(f"ratio: {first_s * scale / BUILD_GOAL_S:.2f} (goal <= 1.00)")


if __name__ == "__main__":
    main()
