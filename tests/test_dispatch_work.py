"""What a job runs: the code as it was when it was submitted, one unit, saved and requeued when it is asked to stop."""

from __future__ import annotations

import json
import multiprocessing
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from experiments import run, same, students, tiny
from submitit.core.submission import process_job
from submitit.core.utils import DelayedSubmission, JobPaths
from submitit.local.local import LOCAL_REQUEUE_RETURN_CODE

from harness import code_state
from harness.dispatch import slurm_jobs
from harness.dispatch.dead import release
from harness.dispatch.ledger import Entry, Ledger, Unit, now
from harness.dispatch.slurm_programs import SlurmError
from harness.dispatch.snapshot import shell_lines, take
from harness.dispatch.states import Seen
from harness.dispatch.units import plan
from harness.dispatch.work import Work
from harness.errors import UserError
from harness.results import remember
from harness.runs import Workspace, student_runs
from harness.storage import locks
from harness.storage.locks import Lock

ROOT = Path(__file__).parents[1]
FORK = multiprocessing.get_context("fork")
PLUGIN = '''
from torch import Tensor

from harness.api import Batch, Method, Outputs


class Mine(Method):
    """The cross entropy, twice."""

    name = "mine"
    family = "logit"
    cite = "made up"

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        return {"ce": 2 * student.logits.float().logsumexp(dim=-1).mean()}
'''


def taken(experiment, workspace: Workspace) -> Path:
    remember(experiment, workspace)
    return workspace.root / take(workspace, experiment)


def in_a_job(folder: Path, code: str) -> str:
    """What Python prints in a job's shell, which begins in the repository."""
    lines = [*shell_lines(folder), f"{sys.executable} -c {shlex.quote(code)}"]
    done = subprocess.run(["bash", "-c", "\n".join(lines)], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# The snapshot


def test_a_job_finds_the_snapshot_before_the_installation_and_the_working_directory(tmp_path):
    folder = taken(tiny(tmp_path), Workspace(tmp_path / "w"))
    found = in_a_job(
        folder, "import harness, baselines, tasks; print(harness.__file__, baselines.__path__[0], tasks.__file__)"
    )
    assert all(Path(place).is_relative_to(folder) for place in found.split())
    assert "__pycache__" not in {path.name for path in taken(tiny(tmp_path), Workspace(tmp_path / "x")).rglob("*")}


@pytest.mark.parametrize("name", ["harness.toys", "harness.storage.disk", "tasks.depth", "leaderboard.text", "configs"])
def test_what_the_snapshot_lacks_is_found_nowhere_else(name, tmp_path):
    folder = taken(tiny(tmp_path), Workspace(tmp_path / "w"))
    place = folder.joinpath(*name.split("."))
    if place.is_dir():
        shutil.rmtree(place)
    else:
        place.with_suffix(".py").unlink()
    code = f"import harness\ntry: import {name}\nexcept ModuleNotFoundError as error: print(error, error.name)"
    said = in_a_job(folder, code)
    assert said == f"no module {name!r} in {folder}, the code that this job was submitted with {name}"


def test_what_is_no_module_of_ours_is_found_as_ever_in_a_snapshot(tmp_path):
    (tmp_path / "mine.py").write_text("WHAT = 'a plugin'")
    folder = taken(tiny(tmp_path), Workspace(tmp_path / "w"))
    code = f"""
import importlib.resources, importlib.util
from pathlib import Path
from harness.plugins import import_file
print(import_file(Path({str(tmp_path / "mine.py")!r})).WHAT, importlib.util.find_spec("no_such_module"))
print(importlib.resources.files("configs") / "tasks" / "depth.yaml")
"""
    said = in_a_job(folder, code).splitlines()
    assert said[0] == "a plugin None" and Path(said[1]).is_relative_to(folder)


def test_a_job_that_imported_other_code_before_its_own_is_refused(tmp_path):
    workspace = Workspace(tmp_path / "w")
    folder, strange = taken(tiny(tmp_path), workspace), tmp_path / "strange" / "tasks" / "__init__.py"
    strange.parent.mkdir(parents=True)
    strange.touch()
    code = f"""
import sys
sys.path.insert(0, {str(strange.parents[1])!r})
import tasks
from harness.dispatch.ledger import Unit
from harness.dispatch.work import Work
try: Work({str(workspace.root)!r}, {str(folder)!r}, Unit("train-a", "train", ("r",), ("t",), "e"), 1, 0)()
except Exception as error: print(error)
"""
    assert in_a_job(folder, code).endswith(f"alone, but has imported tasks ({strange})")


def test_the_records_of_a_job_tell_commit_changes_and_hash_of_its_code(tmp_path):
    folder = taken(tiny(tmp_path), Workspace(tmp_path / "w"))
    told = json.loads(
        in_a_job(folder, "import json; from harness.code_state import code_state; print(json.dumps(code_state()))")
    )
    here = code_state.code_state()
    assert told.keys() == {"commit", "modified", "diff", "code"} and here.items() <= told.items()
    assert told["diff"] == code_state.difference() and len(told["code"]) == 64
    assert (told["diff"] is not None) == bool(here["modified"])


def test_the_same_content_is_copied_once_and_any_other_anew(tmp_path):
    workspace = Workspace(tmp_path / "w")
    first = taken(tiny(tmp_path), workspace)
    (first / "harness" / "__pycache__").mkdir()
    (first / "harness" / "__pycache__" / "job.pyc").write_text("what jobs leave behind")
    assert taken(tiny(tmp_path), workspace) == first
    assert taken(tiny(tmp_path, training={"steps": 13}), workspace) != first
    assert not list(first.parent.glob(".*"))  # nothing half copied is left


def test_a_snapshot_that_was_changed_is_refused(tmp_path):
    workspace = Workspace(tmp_path / "w")
    folder = taken(tiny(tmp_path), workspace)
    (folder / "harness" / "errors.py").write_text("")
    with pytest.raises(UserError, match=f"{folder.name} has been changed"):
        taken(tiny(tmp_path), workspace)


def test_plugins_are_copied_and_an_edit_afterwards_changes_no_job(tmp_path):
    plugin = tmp_path / "mine.py"
    plugin.write_text(PLUGIN)
    inside = str(ROOT / "baselines" / "fitnet.py")
    experiment = tiny(tmp_path, plugins=[str(plugin), inside], methods=["mine", "fitnet"])
    before = [one.id for one in student_runs(experiment)]
    folder = taken(experiment, Workspace(tmp_path / "w"))
    plugin.write_text(PLUGIN.replace("2 *", "3 *"))
    code = (
        "from pathlib import Path; from harness.runs import student_runs; "
        f'from harness.dispatch.snapshot import experiment_of; found = experiment_of(Path("{folder}")); '
        "print(*[run.id for run in student_runs(found)], *found.plugins)"
    )
    copies = [folder / "plugins" / "0" / "mine.py", folder / "baselines" / "fitnet.py"]
    assert in_a_job(folder, code).split() == [*before, *map(str, copies)]


# The work


def work_in(experiment, workspace: Workspace, requeues: int = 2) -> Work:
    """The first training of an experiment, as a job would get it."""
    folder = str(taken(experiment, workspace).relative_to(workspace.root))
    unit = plan(experiment, workspace, {}, {}).units[0]
    entry = Entry(unit, "local", "jobs/x", folder, now(), resources={"requeues": requeues})
    Ledger(workspace).write(entry)
    return Work.of(workspace, entry)


def end_of(workspace: Workspace):
    (entry,) = Ledger(workspace).entries().values()
    return Ledger(workspace).end(entry)


def test_other_code_than_the_snapshot_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"Python found .* first"):
        work_in(tiny(tmp_path), Workspace(tmp_path / "w"))()


@pytest.fixture
def here(monkeypatch):
    """As if this process were a job that runs the snapshot."""
    monkeypatch.setattr(Work, "_same_code", lambda self: None)
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setenv("SLURM_JOB_ID", "1")


def test_a_job_that_was_started_too_often_says_so_and_stops(here, tmp_path, monkeypatch):
    workspace = Workspace(tmp_path / "w")
    work = work_in(tiny(tmp_path), workspace, requeues=2)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    with pytest.raises(UserError, match="started again 3 times, and requeues is 2"):
        work()
    assert end_of(workspace).outcome == "stopped" and not (tmp_path / "w" / "students").exists()


def test_an_error_is_noted_in_one_line(here, tmp_path):
    workspace = Workspace(tmp_path / "w")
    work = work_in(tiny(tmp_path), workspace)
    for path in (tmp_path / "images").iterdir():
        path.unlink()
    with pytest.raises(UserError):
        work()
    end = end_of(workspace)
    assert end.outcome == "failed" and "train.npz" in end.reason and "\n" not in end.reason


def test_a_method_that_diverges_is_a_result_and_no_error(here, tmp_path):
    workspace = Workspace(tmp_path / "w")
    experiment = tiny(tmp_path, training={"optimizer": "sgd", "lr": 1e12}, methods=["none"])
    work_in(experiment, workspace)()
    assert end_of(workspace).outcome == "done" and len(list((tmp_path / "w" / "failures").iterdir())) == 1


def test_a_teacher_is_trained_by_a_unit_of_its_own(here, tmp_path):
    workspace = Workspace(tmp_path / "w")
    work = work_in(tiny(tmp_path, teacher={"fit": {"training": {"steps": 2, "batch_size": 8}}}), workspace)
    assert work.unit.kind == "fit"
    work()
    assert [path.name for path in (tmp_path / "w" / "students").iterdir()] == list(work.unit.runs)


def test_an_evaluation_does_the_tasks_of_its_run_alone(here, tmp_path):
    workspace = Workspace(tmp_path / "w")
    experiment = tiny(tmp_path, tasks=["artifacts"], bounds=True, methods=["none"])
    folder = str(taken(experiment, workspace).relative_to(workspace.root))
    unit = next(unit for unit in plan(experiment, workspace, {}, {}).units if unit.titles == ("untrained seed 0",))
    Work(str(workspace.root), folder, unit, 1, 0)()
    assert [path.name.split(".")[0] for path in (tmp_path / "w" / "records").iterdir()] == list(unit.runs)


def started(work: Work, folder: Path):
    """A task of submitit's, in a process that has imported all that it needs."""

    def task() -> None:
        variables = {"EXECUTOR": "local", "LOCAL_JOB_ID": "1", "LOCAL_GLOBALID": "0", "LOCAL_NTASKS": "1"}
        os.environ.update({f"SUBMITIT_{key}": value for key, value in variables.items()})
        Work._same_code = lambda self: None
        process_job(folder)

    child = FORK.Process(target=task)
    child.start()
    return child


def when_training(workspace: Path, child) -> None:
    while not any(path.stat().st_size for path in workspace.glob("students/*.partial/train.jsonl")):
        assert child.is_alive(), "it ended before it could be disturbed"
        time.sleep(0.002)


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_a_job_that_is_asked_to_stop_saves_and_goes_on_with_the_same_bits(number, tmp_path):
    slow = {"training": {"steps": 40}, "runtime": {"checkpoint_steps": 1000, "log_steps": 2}}
    experiment, workspace = tiny(tmp_path, **slow), Workspace(tmp_path / "w")
    work, paths = work_in(experiment, workspace), JobPaths(tmp_path / "job", "1")
    (tmp_path / "job").mkdir()
    delayed = DelayedSubmission(work)
    delayed.set_timeout(60, 2)
    delayed.dump(paths.submitted_pickle)
    child = started(work, tmp_path / "job")
    when_training(tmp_path / "w", child)
    os.kill(child.pid, number)
    child.join()
    if number == signal.SIGUSR2:
        assert child.exitcode == LOCAL_REQUEUE_RETURN_CODE and end_of(workspace) is None
    else:
        assert child.exitcode == 128 + number and end_of(workspace).reason == "stopped by SIGTERM"
    assert list((tmp_path / "w" / "groups").glob("*/checkpoint.pt"))

    child = started(work, tmp_path / "job")
    child.join()
    assert child.exitcode == 0 and end_of(workspace).outcome == "done"
    run(experiment, tmp_path / "undisturbed")
    found, wanted = students(experiment, workspace.root), students(experiment, tmp_path / "undisturbed")
    assert all(same(found[title], weights) for title, weights in wanted.items())


# Locks that a dead job has left on another machine


@pytest.fixture
def held(here, tmp_path, monkeypatch):
    """A lock of a job of this cluster whose node has died: gives what writes it."""
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "big")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")

    def write(cluster: str = "big", number: str = "1", restarts: int = 0) -> Path:
        path = tmp_path / "w" / "locks" / "train-g.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        job = {"cluster": cluster, "number": number, "restarts": restarts}
        path.write_text(json.dumps({**locks._me(), "host": "dead-node", "nonce": "n", "job": job}))
        return path

    return write


def says(monkeypatch, *jobs: Seen) -> None:
    monkeypatch.setattr(slurm_jobs, "_squeue", lambda which: [("", job) for job in jobs])


def test_an_earlier_start_of_this_job_is_dead_whatever_slurm_says(held, tmp_path, monkeypatch):
    def silent(_: str) -> None:
        raise SlurmError("Slurm does not answer")

    monkeypatch.setattr(slurm_jobs, "_squeue", silent)
    path = held()
    assert not Lock(path).acquire()
    assert release(Workspace(tmp_path / "w")) == [path]
    with Lock(path) as lock:
        assert lock.acquire()
        assert release(Workspace(tmp_path / "w")) == [] and path.exists()  # this very start's
    assert list(path.parent.iterdir()) == []
    held(number="2")
    assert release(Workspace(tmp_path / "w")) == []  # of other jobs nothing is known


@pytest.mark.parametrize(
    ("job", "dead"),
    [
        (None, True),
        (Seen("2_1", "NODE_FAIL"), True),
        (Seen("2_1", "PENDING", restarts=1), True),
        (Seen("2_1", "RUNNING", restarts=1), True),
        (Seen("2_1", "RUNNING"), False),
        (Seen("2_1", "COMPLETING"), False),  # its processes may be there yet
    ],
)
def test_another_job_is_dead_where_slurm_says_so(job, dead, held, tmp_path, monkeypatch):
    path = held(number="2_1")
    says(monkeypatch, *[job] * (job is not None))
    assert release(Workspace(tmp_path / "w")) == [path] * dead
    assert path.exists() != dead


def test_nothing_is_said_of_other_clusters_and_outside_of_jobs(held, tmp_path, monkeypatch):
    says(monkeypatch)
    path = held(cluster="other")
    assert release(Workspace(tmp_path / "w")) == []
    held()
    monkeypatch.delenv("SLURM_JOB_ID")
    assert release(Workspace(tmp_path / "w")) == [] and path.exists()


def test_a_job_takes_the_locks_of_its_earlier_start_before_it_begins(held, tmp_path):
    work = work_in(tiny(tmp_path, methods=["none"]), Workspace(tmp_path / "w"))
    path = held()
    work()
    assert not path.exists() and end_of(Workspace(tmp_path / "w")).outcome == "done"


def test_the_snapshot_holds_every_package_that_is_installed():
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert {name.removesuffix("*") for name in listed["find"]["include"]} == set(code_state.PACKAGES)


def test_a_unit_is_what_its_title_says():
    assert str(Unit("train-a", "train", ("r", "s"), ("a seed 0", "b seed 0"), "e")) == "train a seed 0, b seed 0"
    assert str(Unit("fit-a", "fit", ("r",), ("teacher fit seed 0",), "e")) == "train teacher fit seed 0"
