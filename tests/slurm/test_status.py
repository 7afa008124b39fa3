"""A grid on a real Slurm as its user sees it: where it stands, cancelled, tried again, watched to its end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml

from harness.dispatch.ledger import Ledger
from harness.runs import Workspace

LIMIT_S = 300  # to wait for what takes seconds on an idle machine
PLUGIN = '''
"""A method that takes its time until a file is there, and one that raises."""

import time
from pathlib import Path

from harness.api import Method


class Patient(Method):
    """Trains the student's logits to be small."""

    name = "patient"
    cite = "made up"

    def __init__(self, student, teacher, *, until: str = "") -> None:
        super().__init__(student, teacher)
        self.until = Path(until)

    def losses(self, student, teacher, batch):
        if not self.until.exists():
            time.sleep(0.5)
        return {"kd": student.logits.square().mean()}


class Raising(Method):
    """Fails at its first step."""

    name = "raising"
    cite = "made up"

    def losses(self, student, teacher, batch):
        raise ValueError("the teacher was asked too much")
'''


def bench(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "harness.cli", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


def test_a_grid_is_looked_at_cancelled_tried_again_and_watched_to_its_end(slurm, tmp_path):
    (tmp_path / "two.py").write_text(PLUGIN)
    config = {
        "name": "two",
        "teacher": {"width": 32, "depth": 2, "heads": 2, "patch": 8},
        "student": {"width": 16, "depth": 2, "heads": 2, "patch": 8},
        "data": {"source": "scenes", "name": "few", "image_size": 32, "options": {"count": 45}},
        "training": {"steps": 200, "batch_size": 8},
        "methods": [{"method": "patient", "hyperparameters": {"until": str(tmp_path / "go")}}, "raising"],
        "tasks": [{"task": "classification", "options": {"steps": 3}}],
        "bounds": False,
        "plugins": [str(tmp_path / "two.py")],
        "runtime": {"num_workers": 0, "device": "cpu", "max_group": 1, "checkpoint_steps": 500},
        "submit": {"cpus": 1, "minutes": 20, "signal_seconds": 60},
    }
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(config))
    workspace = Workspace(tmp_path / "w")

    def submit() -> None:
        place = ("--cluster", "slurm", "--workspace", workspace.root)
        done = bench("submit", tmp_path / "two.yaml", *place, "--no-preflight")
        assert done.returncode == 0, done.stderr

    def look() -> dict[str, dict]:
        done = bench("status", workspace.root, "--json")
        assert done.returncode == 0, done.stderr
        (one,) = json.loads(done.stdout)["experiments"]
        return {f"{item['kind']} {item['title']}": item for kind in ("students", "evaluations") for item in one[kind]}

    def stands(which: str, state: str) -> bool:
        return look()[which]["state"] == state

    submit()
    slurm.until(lambda: look()["train patient seed 0"]["progress"], "patient is at work", LIMIT_S)
    found = look()["train patient seed 0"]
    job = found["job"]
    assert found["state"] == "running" and found["pid"] and found["progress"]["steps"] == 200
    assert slurm.state(job) == "RUNNING"
    slurm.until(lambda: stands("train raising seed 0", "failed"), "raising has failed", LIMIT_S)
    failed = look()["train raising seed 0"]
    assert "the teacher was asked too much" in failed["reason"] and Path(failed["log"]).is_file()

    done = bench("cancel", workspace.root, "patient", "--yes")
    assert done.returncode == 0 and done.stderr.startswith("cancelled: "), done.stderr
    slurm.until(lambda: stands("train patient seed 0", "cancelled"), "patient is cancelled", LIMIT_S)
    assert workspace.checkpoint(found["together"]).is_file()  # it has saved

    (tmp_path / "go").touch()
    done = bench("retry", workspace.root)
    assert done.returncode == 0 and "two: again: raising seed 0" in done.stderr, done.stderr
    assert stands("train patient seed 0", "cancelled")  # which nobody asked for
    submit()
    done = bench("status", workspace.root, "--watch", "--every", "1")
    assert done.returncode == 1, done.stderr  # raising fails again
    assert "two: students: 1 trained, 1 failed; evaluated: " in done.stdout
    assert len(list(workspace.records.glob("*.json"))) == 1
    assert all(entry.attempt == 2 for entry in Ledger(workspace).entries().values())
    log = Path(look()["train patient seed 0"]["log"]).read_text()
    assert "going on at step" in log
