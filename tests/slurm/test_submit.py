"""A grid on a real Slurm, disturbed in every way that a cluster knows: the same students and the same table."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from experiments import same, students

from harness.config import load
from harness.dispatch import slurm_jobs
from harness.dispatch.ledger import Entry, Ledger
from harness.records import read_records
from harness.runs import Workspace

SLOW = '''
"""FitNet on the last block, a second a step until a file is there: time to disturb a short training."""

import time
from pathlib import Path

from torch import Tensor
from torch.nn import functional as F

from harness.api import Batch, Method, Outputs, Vit
from harness.matching import linear_projectors, match_layers, paired_tokens


class Slow(Method):
    """MSE of the last block's tokens."""

    name = "slow"
    family = "feature"
    cite = "made up"

    def __init__(self, student: Vit, teacher: Vit, *, until: str = "", weight: float = 1.0) -> None:
        super().__init__(student, teacher)
        self.of_student, self.of_teacher = match_layers(student, teacher, (-1,), None)
        self.student_layers, self.teacher_layers = frozenset(self.of_student), frozenset(self.of_teacher)
        self.projectors = linear_projectors(student, teacher, 1)
        self.until, self.weight = Path(until), weight

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        if not self.until.exists():
            time.sleep(1)
        tokens, target = paired_tokens(student, teacher, self.of_student[0], self.of_teacher[0])
        return {"kd": self.weight * F.mse_loss(self.projectors[0](tokens).float(), target.float())}
'''


LIMIT_S = 300  # to wait for what takes seconds on an idle machine


@pytest.fixture
def grid(tmp_path) -> Path:
    """Two groups, `steady` with `none` and `shaken` alone, on scenes; `go` makes them quick."""
    (tmp_path / "slow.py").write_text(SLOW)

    def slow(label: str, weight: float) -> dict:
        hyperparameters = {"until": str(tmp_path / f"go-{label}"), "weight": weight}
        return {"method": "slow", "label": label, "hyperparameters": hyperparameters}

    config = {
        "name": "grid",
        "teacher": {"width": 32, "depth": 2, "heads": 2, "patch": 8},
        "student": {"width": 16, "depth": 2, "heads": 2, "patch": 8},
        "data": {"source": "scenes", "name": "few", "image_size": 32, "options": {"count": 45}},
        "training": {"steps": 300, "batch_size": 8},
        "methods": [slow("steady", 1.0), "none", slow("shaken", 2.0)],
        "tasks": [{"task": "classification", "options": {"steps": 3}}],
        "bounds": False,
        "plugins": [str(tmp_path / "slow.py")],
        "runtime": {"num_workers": 0, "device": "cpu", "max_group": 2, "checkpoint_steps": 2, "log_steps": 1},
        "submit": {"cpus": 1, "minutes": 20, "signal_seconds": 60},
    }
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def bench(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command line, with one thread, as its jobs have."""
    command = [sys.executable, "-m", "harness.cli", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)


class Watched:
    """A submitted grid: its jobs by the label of a row, and how far they are."""

    def __init__(self, cluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        self.workspace = Workspace(folder / "jobs")

    def submit(self, *arguments: str) -> str:
        place = ("--cluster", "slurm", "--workspace", self.workspace.root)
        done = bench("submit", self.folder / "grid.yaml", *place, "--no-preflight", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stderr

    def entry(self, label: str, kind: str = "train") -> Entry:
        entries = Ledger(self.workspace).entries().values()
        return next(e for e in entries if e.unit.kind == kind and any(label in title for title in e.unit.titles))

    def job(self, label: str, kind: str = "train") -> str:
        return self.entry(label, kind).job or ""

    def state(self, label: str, kind: str = "train") -> str:
        entries = Ledger(self.workspace).entries()
        return slurm_jobs.look(self.workspace, entries)[self.entry(label, kind).unit.id].state

    def step(self, label: str) -> int:
        run = self.entry(label).unit.runs[0]
        path = self.workspace.partial(run) / "train.jsonl"
        lines = path.read_text().splitlines() if path.is_file() else []
        return json.loads(lines[-1])["step"] if lines else 0

    def resumed(self, label: str) -> int:
        """How often its training went on at a checkpoint."""
        return self.log(label).count("going on at step")

    def log(self, label: str) -> str:
        entry = self.entry(label)
        path = self.workspace.root / (entry.log or "")
        return path.read_text() if entry.log and path.is_file() else ""

    def leave_lock(self, label: str, **owner: object) -> None:
        """As a start leaves it whose node has died: nobody touches the lock of its group, which is young."""
        (group,) = (i for i, runs in self.workspace.run_ids().items() if self.entry(label).unit.runs[0] in runs)
        path = self.workspace.locks / f"train-{group}.lock"
        path.write_text(json.dumps({"space": None, "pid": 1, "started": "1", "nonce": "n", **owner}))

    def until_further(self, label: str, steps: int = 3) -> None:
        """Until the training is so many steps further than now."""
        goal = self.step(label) + steps
        self.cluster.until(lambda: self.step(label) >= goal, f"{label} is at step {goal}", LIMIT_S)

    def until_resumed(self, label: str, times: int) -> None:
        self.cluster.until(lambda: self.resumed(label) >= times, f"{label} has gone on {times} times", LIMIT_S)

    def processes(self, label: str) -> list[int]:
        return [pid for pid in self.cluster.processes(self.cluster.job(self.job(label))["JobId"]) if _is_task(pid)]

    def finish(self, *labels: str) -> None:
        for label in labels:
            (self.folder / f"go-{label}").touch()


def _is_task(pid: int) -> bool:
    try:
        return b"submitit.core._submit" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def equal_to_undisturbed(folder: Path) -> None:
    """Students bit for bit, and every value of every record, against `run` in another workspace."""
    done = bench("run", folder / "grid.yaml", "--workspace", folder / "run", "--quiet")
    assert done.returncode == 0, done.stderr
    experiment = load(folder / "grid.yaml")
    found, wanted = students(experiment, folder / "jobs"), students(experiment, folder / "run")
    assert all(same(found[title], weights) for title, weights in wanted.items())
    values = [
        sorted((r.run.id, r.task_id, tuple(r.values.items())) for r in read_records(folder / place / "records")[0])
        for place in ("jobs", "run")
    ]
    assert values[0] == values[1] and len(values[0]) == 3


def test_a_grid_that_is_requeued_preempted_killed_and_cancelled_ends_as_an_undisturbed_run(slurm, grid):
    watched = Watched(slurm, grid)
    said = watched.submit("--max-jobs", "3")
    assert "submitted: 2 trainings" in said and "submitted: 2 evaluations, each after its own training" in said
    assert "under way already: 5 jobs\nnothing to submit" in watched.submit()

    watched.until_further("steady")
    watched.until_further("shaken")
    slurm.scontrol("requeue", watched.job("steady"))
    for pid in watched.processes("shaken"):
        os.kill(pid, signal.SIGKILL)
    slurm.until(lambda: watched.state("steady") == "requeued", "the requeue is seen", LIMIT_S)
    watched.leave_lock(
        "steady", host="a-dead-node", job={"cluster": "tests", "number": watched.job("steady"), "restarts": 0}
    )
    watched.until_resumed("steady", 1)
    watched.until_resumed("shaken", 1)  # by the job itself, though nobody waits

    # A cluster that is not set up to send the signal that was asked for: steps get SIGTERM, and end by themselves.
    with slurm.without("SlurmctldParameters=preempt_send_user_signal"):
        urgent = slurm.submit("sleep 1", "--partition=urgent", "--ntasks=2")
        slurm.wait(urgent, "COMPLETED", LIMIT_S)
    watched.until_resumed("steady", 2)
    watched.until_resumed("shaken", 2)
    assert "Exited with exit code 143" in watched.log("steady") and slurm.restarts(watched.job("steady")) == 2

    watched.until_further("steady")
    urgent = slurm.submit("sleep 1", "--partition=urgent", "--ntasks=2")
    slurm.wait(urgent, "COMPLETED", LIMIT_S)
    watched.until_resumed("steady", 3)
    watched.until_resumed("shaken", 3)

    slurm.run("scancel", watched.job("shaken"))
    slurm.until(lambda: watched.state("shaken") == "cancelled", "the cancelled job is seen", LIMIT_S)
    slurm.until(lambda: watched.state("shaken", "evaluate") == "cancelled", "its evaluation is cancelled", LIMIT_S)
    assert {watched.state("steady"), watched.state("steady", "evaluate")} <= {"running", "waiting"}
    assert "submitted: 1 training;" in watched.submit()
    assert watched.entry("shaken").attempt == 2

    watched.finish("steady", "shaken")
    place = ("--cluster", "slurm", "--workspace", watched.workspace.root)
    done = bench("submit", grid / "grid.yaml", *place, "--no-preflight", "--wait")
    assert done.returncode == 0, done.stderr
    assert "| shaken" in done.stdout and "| none" in done.stdout
    equal_to_undisturbed(grid)


def test_a_job_that_is_out_of_time_goes_on_up_to_the_bound_and_then_when_it_is_submitted_again(slurm, grid):
    watched = Watched(slurm, grid)
    watched.submit("--minutes", "5", "--signal-seconds", "120", "--requeues", "1")
    watched.until_further("shaken")
    job = watched.job("shaken")
    ran_min = int(slurm.job(job)["RunTime"].split(":")[1])
    slurm.scontrol("update", f"JobId={job}", f"TimeLimit={ran_min + 2}")  # less than two minutes are left
    slurm.until(lambda: slurm.restarts(job) == 1, "Slurm has seen that the time is nearly over", LIMIT_S)
    slurm.scontrol("update", f"JobId={job}", "TimeLimit=5")
    watched.until_resumed("shaken", 1)

    watched.until_further("shaken")
    slurm.run("scancel", "--signal=USR2", job)
    slurm.until(lambda: watched.state("shaken") == "lost", "it is not started a third time", LIMIT_S)
    entry = watched.entry("shaken")
    end = Ledger(watched.workspace).end(entry)
    assert end is not None and end.outcome == "stopped" and "timed-out too many times" in (end.reason or "")
    slurm.until(lambda: watched.state("shaken", "evaluate") == "cancelled", "its evaluation is cancelled", LIMIT_S)

    watched.submit()
    watched.until_resumed("shaken", 1)


def test_a_job_with_an_error_fails_and_takes_its_evaluations_along(slurm, grid):
    watched = Watched(slurm, grid)
    done = bench(
        "submit",
        grid / "grid.yaml",
        "--cluster",
        "slurm",
        "--workspace",
        grid / "jobs",
        "--no-preflight",
        "--wait",
        "--setup",
        "false",
    )
    assert done.returncode == 1
    assert "failed: train steady seed 0, none seed 0: its job ended with an error before it could begin" in done.stderr
    assert f"log: {watched.workspace.root / (watched.entry('steady').log or '')}" in done.stderr
    assert watched.log("steady").startswith("this line of the job failed: false\n")
    assert "evaluate steady" not in done.stderr  # they are cancelled, which needs no words
    assert watched.state("steady", "evaluate") == "cancelled"
    assert "not submitted: train shaken seed 0; it failed" in watched.submit()


def test_two_ranks_of_a_job_train_as_one(slurm, grid):
    watched = Watched(slurm, grid)
    watched.submit(
        "--ranks", "2", "--wait", *("--set", "methods=[none]", "--set", "training.steps=6", "--set", "tasks=[]")
    )
    (described,) = [yaml.safe_load(path.read_text()) for path in watched.workspace.students.glob("*/run.yaml")]
    assert described["environment"]["ranks"] == 2
