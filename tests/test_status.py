"""Status, retry, cancel: the workspace is believed first, the ledger and Slurm second; what needs a person is said."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from experiments import tiny
from processes import crashed_at

from harness.cli import main as cli
from harness.cli import queue as cli_queue
from harness.config import Experiment, merge, parse
from harness.dispatch import again, processes, slurm_jobs, submit
from harness.dispatch.ledger import Entry, Ledger
from harness.dispatch.slurm_programs import SlurmError
from harness.dispatch.states import Seen
from harness.dispatch.units import plan
from harness.errors import UserError
from harness.monitoring import watching
from harness.monitoring.pace import NAME, Pace, progress_in
from harness.monitoring.status import Item, Status, status
from harness.monitoring.status_text import described
from harness.planning import plans
from harness.records import write_atomic
from harness.results import remember
from harness.runs import Run, Workspace, bound_runs, fit_runs, student_runs, task_runs
from harness.storage.locks import Lock

HOST = socket.gethostname()
RAW: dict[str, Any] = {
    "name": "small",
    "teacher": {"width": 48},
    "student": {"width": 24},
    "training": {"steps": 100, "batch_size": 64},
    "methods": ["none", "fitnet"],
    "seeds": [0, 1],
    "tasks": ["artifacts"],
    "bounds": False,
}


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    return Workspace(tmp_path / "workspace")


@pytest.fixture
def experiment(workspace) -> Experiment:
    return started(workspace)


@pytest.fixture
def seen(monkeypatch) -> dict[str, Seen]:
    """What Slurm says, by unit id."""
    told: dict[str, Seen] = {}
    monkeypatch.setattr(slurm_jobs, "seen", lambda workspace, entries: told)
    return told


@pytest.fixture
def call(monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """The command line in this process: exit code, standard output, standard error."""

    def run(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["singer-bench", *map(str, args)])
        try:
            cli.main()
            code = 0
        except SystemExit as done:
            code = done.code
        return code, *capsys.readouterr()

    return run


def started(workspace: Workspace, **changes: Any) -> Experiment:
    experiment = parse(merge(RAW, changes))
    remember(experiment, workspace)
    return experiment


def submitted(experiment: Experiment, workspace: Workspace, cluster: str = "slurm", **known: Any) -> dict[str, Entry]:
    """As `submit` leaves the ledger. Unit id -> entry; its job on Slurm is 7_<number>."""
    ledger = Ledger(workspace)
    for number, unit in enumerate(plan(experiment, workspace, {}, {}).units):
        job = {"job": f"7_{number}", "name": "small.train.ab"} if cluster == "slurm" else {}
        entry = Entry(unit, cluster, "jobs/submitit/x", "jobs/snapshots/y", stamp(), index=number, **{**job, **known})  # type: ignore[arg-type]
        ledger.write(entry)
    return ledger.entries()


def stamp() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def train(run: Run, workspace: Workspace) -> None:
    workspace.student(run.id).mkdir(parents=True)


def fail(run: Run, workspace: Workspace) -> None:
    workspace.fail(run, reason="loss kd is nan", step=7)


def training(workspace: Workspace, runs: list[Run], **known: Any) -> Lock:
    """A group that is trained by whoever acquires the lock."""
    folder = workspace.groups / "g"
    folder.mkdir(parents=True)
    (folder / "group.json").write_text(json.dumps({"runs": [run.id for run in runs]}))
    if known:
        told = {"step": 40, "steps": 100, "per_s": 2.0, "batch_size": 64, "device": "cpu", "began": stamp(), **known}
        (folder / NAME).write_text(json.dumps(told))
    return Lock(workspace.locks / "train-g.lock")


def items(workspace: Workspace) -> dict[tuple[str, str], Item]:
    """(kind, title) -> item."""
    (one,) = status(workspace).experiments
    return {(item.kind, item.title): item for item in one.items}


def states(workspace: Workspace) -> dict[tuple[str, str], str]:
    return {key: item.state for key, item in items(workspace).items()}


def lines(workspace: Workspace, **how: bool) -> list[str]:
    return described(status(workspace), **how)


# ---- where things stand


def test_without_any_job_the_workspace_alone_tells(experiment, workspace):
    runs = student_runs(experiment)
    train(runs[0], workspace)
    fail(runs[1], workspace)
    told = states(workspace)
    assert told == {
        ("train", "none seed 0"): "done",
        ("train", "fitnet seed 0"): "failed",
        ("train", "none seed 1"): "pending",
        ("train", "fitnet seed 1"): "pending",
        ("evaluate", "none seed 0"): "pending",
        ("evaluate", "none seed 1"): "pending",
        ("evaluate", "fitnet seed 1"): "pending",  # of what failed there is none
    }


@pytest.mark.parametrize(
    ("job", "state", "reason"),
    [
        (Seen("7_0", "PENDING", "Priority"), "queued", "Priority"),
        (Seen("7_0", "PENDING", "Dependency"), "waiting", "Dependency"),
        (Seen("7_0", "PENDING", "BeginTime", restarts=2), "requeued", "BeginTime"),
        (Seen("7_0", "RUNNING", node="n3"), "running", None),
        (Seen("7_0", "CANCELLED"), "cancelled", "by scancel"),
        (Seen("7_0", "NODE_FAIL"), "lost", "NODE_FAIL"),
        (Seen("7_0", "FAILED"), "failed", "error"),
        (None, "lost", "left nothing"),
    ],
)
def test_what_slurm_says_of_a_job_is_where_its_runs_stand(experiment, workspace, seen, job, state, reason):
    entries = submitted(experiment, workspace)
    unit = next(entry.unit for entry in entries.values() if entry.unit.kind == "train")
    if job is not None:
        seen[unit.id] = job
    for title in unit.titles:
        item = items(workspace)["train", title]
        assert item.state == state and (item.reason is None if reason is None else reason in (item.reason or ""))
        assert item.requeued == (job.restarts if job is not None else 0)


def test_the_workspace_is_believed_before_slurm(experiment, workspace, seen):
    runs = student_runs(experiment)
    entries = submitted(experiment, workspace)
    seen.update((i, Seen("7_0", "FAILED")) for i in entries)
    train(runs[0], workspace)
    with training(workspace, [runs[1]]) as lock:
        assert lock.acquire()
        told = states(workspace)
    assert told["train", "none seed 0"] == "done" and told["train", "fitnet seed 0"] == "running"
    assert told["train", "none seed 1"] == "failed"


def test_a_lock_that_a_dead_process_left_is_nobody_at_work(experiment, workspace):
    with training(workspace, student_runs(experiment)) as lock:
        assert lock.acquire()
        held = json.loads(lock.path.read_text())
        assert states(workspace)["train", "none seed 0"] == "running"
        lock.path.write_text(json.dumps({**held, "started": "1"}))
        assert states(workspace)["train", "none seed 0"] == "pending"


def test_whoever_trains_what_a_job_still_waits_for_is_not_called_that_job(experiment, workspace, seen):
    entries = submitted(experiment, workspace)
    seen.update((i, Seen("7_0", "PENDING", "Priority")) for i in entries)
    with training(workspace, student_runs(experiment)[:2]) as lock:
        assert lock.acquire()
        told = items(workspace)
    assert (told["train", "none seed 0"].state, told["train", "none seed 0"].job) == ("running", None)
    assert (told["train", "none seed 1"].state, told["train", "none seed 1"].job) == ("queued", "7_1")


def test_an_evaluation_stands_where_its_own_job_does(experiment, workspace, seen):
    runs = student_runs(experiment)
    entries = submitted(experiment, workspace)
    for run in runs:
        train(run, workspace)
    seen[f"evaluate-{runs[0].id}"] = Seen("7_2", "RUNNING", node="n1")
    seen[f"evaluate-{runs[1].id}"] = Seen("7_3", "PENDING", "Resources")
    assert f"evaluate-{runs[0].id}" in entries
    told = items(workspace)
    assert told["evaluate", "none seed 0"].state == "running" and told["evaluate", "none seed 0"].host == "n1"
    assert told["evaluate", "fitnet seed 0"].state == "queued" and told["evaluate", "none seed 1"].state == "lost"
    with Lock(workspace.locks / f"evaluate-{runs[2].id}.lock") as lock:
        assert lock.acquire()
        assert items(workspace)["evaluate", "none seed 1"].pid == os.getpid()


def test_a_unit_under_way_hides_the_one_that_went_before(experiment, workspace, seen):
    run = student_runs(experiment)[0]
    submitted(experiment, workspace)
    ledger = Ledger(workspace)
    first = ledger.entries()[f"evaluate-{run.id}"]
    more = dataclasses.replace(first, unit=dataclasses.replace(first.unit, id=f"evaluate-{run.id}-more"), job="8")
    ledger.write(more)
    train(run, workspace)
    seen[first.unit.id] = Seen("7_2", "RUNNING")
    assert items(workspace)["evaluate", "none seed 0"].job == "7_2"
    seen[more.unit.id], seen[first.unit.id] = Seen("8", "RUNNING"), Seen("7_2", "CANCELLED")
    assert items(workspace)["evaluate", "none seed 0"].job == "8"


def test_slurm_that_does_not_answer_is_said_and_hides_nothing_of_the_workspace(experiment, workspace, monkeypatch):
    def silent(*_: object) -> None:
        raise SlurmError("Slurm does not answer: squeue took more than 120 s")

    monkeypatch.setattr(slurm_jobs, "seen", silent)
    runs = student_runs(experiment)
    submitted(experiment, workspace)
    train(runs[0], workspace)
    with training(workspace, [runs[1]]) as lock:
        assert lock.acquire()
        said = lines(workspace)
    assert said[0].startswith("Slurm does not answer: squeue took more than 120 s; of its jobs only what")
    assert said[1].startswith("small: students: 1 trained, 1 running, 2 submitted")
    assert not any("lost" in line for line in said)


def test_jobs_of_this_machine_stand_where_their_entries_and_processes_do(experiment, workspace):
    runs = student_runs(experiment)
    began = processes.started(os.getpid())
    entries = submitted(experiment, workspace, "local", restarts=2)
    units = [entry.unit.id for entry in entries.values() if entry.unit.kind == "train"]
    assert all(state in ("queued", "waiting") for state in states(workspace).values())
    alive = {"state": "running", "pid": os.getpid(), "started": began, "host": HOST, "gpus": (2, 3)}
    Ledger(workspace).write(dataclasses.replace(entries[units[0]], **alive))
    Ledger(workspace).write(dataclasses.replace(entries[units[1]], **{**alive, "started": "1"}))
    told = items(workspace)
    one = told["train", runs[0].title]
    assert (one.state, one.pid, one.host, one.gpus, one.requeued) == ("running", os.getpid(), HOST, (2, 3), 2)
    assert told["train", runs[2].title].state == "lost" and told["train", runs[2].title].reason == "its process is gone"
    assert told["evaluate", runs[0].title].state == "waiting"


def test_a_teachers_own_training_and_bounds_are_told_of(workspace, seen):
    fit = {"fit": {"training": {"steps": 5}}}
    experiment = started(workspace, teacher=fit, bounds=True)
    submitted(experiment, workspace)
    (run,) = fit_runs(experiment)
    seen[f"fit-{run.id}"] = Seen("7_0", "RUNNING")
    told = states(workspace)
    assert told["fit", run.title] == "running"
    assert {title for kind, title in told if kind == "evaluate"} >= {one.title for one in bound_runs(experiment)}


def note(experiment: Experiment, workspace: Workspace, runs: list[Run]) -> None:
    """As an evaluation leaves it: the protocol that this code has, and a record of each run."""
    (task,) = task_runs(experiment)
    noted = {"task_id": "as-ever", "asked": task.asked, "protocol": {}}
    write_atomic(workspace.protocols / f"{task.key}.json", json.dumps(noted))
    for run in runs:
        write_atomic(workspace.records / f"{run.id}.as-ever.json", "")


@pytest.fixture
def edit_the_code(monkeypatch) -> Callable[[], None]:
    monkeypatch.setattr("harness.runs.has_record", lambda folder, run, task: (folder / f"{run}.{task}.json").is_file())
    return lambda: monkeypatch.setattr("harness.runs.protocol_code", lambda: "other code")


def test_records_by_other_code_are_neither_done_nor_missing_until_somebody_looks(experiment, workspace, edit_the_code):
    runs = student_runs(experiment)
    for run in runs:
        train(run, workspace)
    note(experiment, workspace, runs[:3])
    assert lines(workspace) == ["small: students: 4 trained; evaluated: 3 of 4"]
    edit_the_code()
    assert lines(workspace) == [
        "small: students: 4 trained; evaluated: 0 of 4, 3 to be checked",
        "  3 records were made by other code: `run` and `submit` look whether they still count",
    ]
    told = states(workspace)
    assert told["evaluate", "none seed 0"] == "unchecked" and told["evaluate", "fitnet seed 1"] == "pending"
    planned = plans.plan(experiment, workspace).splitlines()
    assert "evaluated: 0 of 4, 3 to be checked (artifacts)" in planned and lines(workspace)[1] in planned
    assert not status(workspace).ended
    note(experiment, workspace, runs)  # the same protocol as before
    assert lines(workspace) == ["small: students: 4 trained; evaluated: 4 of 4"]


def test_watching_ends_where_all_that_is_left_is_to_be_checked(experiment, workspace, edit_the_code):
    runs = student_runs(experiment)
    for run in runs:
        train(run, workspace)
    note(experiment, workspace, runs)
    edit_the_code()
    found = status(workspace)
    assert found.ended and not found.bad


def test_another_task_noted_here_is_no_record_of_this_one(experiment, workspace, edit_the_code):
    runs = student_runs(experiment)
    for run in runs:
        train(run, workspace)
    note(parse(merge(RAW, {"tasks": [{"task": "artifacts", "options": {"images": 7}}]})), workspace, runs)
    assert lines(workspace) == ["small: students: 4 trained; evaluated: 0 of 4"]


def test_what_evaluates_anew_is_under_way_whatever_other_code_has_measured(experiment, workspace, seen, edit_the_code):
    runs = student_runs(experiment)
    for run in runs:
        train(run, workspace)
    note(experiment, workspace, runs)
    edit_the_code()
    submitted(experiment, workspace)
    seen[f"evaluate-{runs[0].id}"], seen[f"evaluate-{runs[1].id}"] = Seen("7_0", "RUNNING"), Seen("7_1", "FAILED")
    told = states(workspace)
    assert told["evaluate", "none seed 0"] == "running" and told["evaluate", "fitnet seed 0"] == "failed"


def test_jobs_of_runs_that_an_edited_experiment_has_no_more_are_told_of_and_waited_for(experiment, workspace, seen):
    entries = submitted(experiment, workspace)
    seen.update((i, Seen("7", "RUNNING")) for i in entries)
    edited = started(workspace, methods=["none"], training={"steps": 101}, tasks=[])
    for run in student_runs(edited):
        train(run, workspace)
    assert "  under way: 6 jobs of runs that this experiment has no more" in lines(workspace)
    assert not status(workspace).ended
    seen.update((i, Seen("7", "COMPLETED")) for i in entries)
    assert status(workspace).ended and "has no more" not in "".join(lines(workspace))


# ---- in words


def test_a_running_group_says_how_far_how_fast_how_long_since_when_and_where(experiment, workspace, seen):
    runs = student_runs(experiment)
    entries = submitted(experiment, workspace)
    unit = next(i for i, entry in entries.items() if runs[0].id in entry.unit.runs and entry.unit.kind == "train")
    seen[unit] = Seen("7_0", "RUNNING", node="n1", restarts=1)
    began = datetime.datetime.now().astimezone().replace(hour=0, minute=0)
    with training(workspace, runs[:2], began=began.isoformat(), device="cuda") as lock:
        assert lock.acquire()
        said = lines(workspace)
        where = f"on {HOST}, process {os.getpid()}, job 7_0, cuda, requeued 1 time"
        pace = "step 40 of 100, 2 steps/s, 128 images/s, 30 s left"
        assert f"  running: none, fitnet seed 0: {pace}, since 00:00, {where}" in said
        assert f"  running: none, fitnet seed 0: since 00:00, {where}" in lines(workspace, moving=False)
        (workspace.groups / "g" / NAME).unlink()
        workspace.partial(runs[0].id).mkdir(parents=True)
        (workspace.partial(runs[0].id) / "train.jsonl").write_text('{"step": 20}\n{"step": 30}\n{"st')
        assert "  running: none, fitnet seed 0: step 30, on " in "\n".join(lines(workspace))


def test_a_training_of_which_nothing_is_heard_is_pointed_out(experiment, workspace):
    with training(workspace, student_runs(experiment)[:2], per_s=2.0) as lock:
        assert lock.acquire()
        path = workspace.groups / "g" / NAME
        assert "no step for" not in "\n".join(lines(workspace))
        os.utime(path, (time.time() - 700, time.time() - 700))
        assert "30 s left, no step for 12 min, since" in "\n".join(lines(workspace))
        path.write_text(json.dumps({**json.loads(path.read_text()), "per_s": 0.01}))  # a step takes 100 s
        os.utime(path, (time.time() - 700, time.time() - 700))
        assert "no step for" not in "\n".join(lines(workspace))


def test_the_summary_counts_and_what_went_wrong_has_its_reason_and_its_log(experiment, workspace, seen):
    runs = student_runs(experiment)
    entries = submitted(experiment, workspace, log="jobs/submitit/x/7_0_log.err")
    for i, entry in entries.items():
        seen[i] = Seen(entry.job or "", "PENDING", "Dependency" if entry.unit.kind == "evaluate" else "Priority")
    fail(runs[0], workspace)
    train(runs[1], workspace)
    seen[f"evaluate-{runs[1].id}"] = Seen("7_3", "FAILED")
    log, begun = workspace.root / "jobs/submitit/x/7_0_log.err", items(workspace)["evaluate", "fitnet seed 0"].reason
    assert lines(workspace) == [
        "small: students: 1 trained, 2 queued, 1 failed; evaluated: 0 of 4 (encoders: 2 waiting, 1 failed)",
        "  jobs wait: 1 for Priority",
        f"  failed: none seed 0 at step 7: loss kd is nan; log: {log}",
        f"  failed: evaluation of fitnet seed 0: {begun}; log: {log}",
        f"  `singer-bench retry {workspace.root}` submits failed and lost ones again",
    ]


def test_one_group_that_was_lost_is_one_line(experiment, workspace, seen):
    entries = submitted(experiment, workspace)
    seen.update((i, Seen("7_0", "TIMEOUT")) for i, entry in entries.items() if entry.unit.kind == "train")
    said = [line for line in lines(workspace) if line.startswith("  lost: none")]
    assert said == [f"  lost: none, fitnet seed {seed}: its job has ended: TIMEOUT" for seed in (0, 1)]


def test_every_remedy_is_said_where_it_helps_and_only_there(experiment, workspace, seen):
    runs = student_runs(experiment)
    fail(runs[0], workspace)
    assert lines(workspace)[-1] == plans.RETRY
    entries = submitted(experiment, workspace)
    seen.update((i, Seen("7_0", "CANCELLED")) for i in entries)
    assert lines(workspace)[-1] == "  `singer-bench submit CONFIG` goes on with cancelled ones where they were"
    for entry in entries.values():
        Ledger(workspace).write(dataclasses.replace(entry, cluster="local"))
    place = workspace.root
    assert lines(workspace)[-1] == f"  nobody serves this machine's queue; `singer-bench queue {place}` does"
    with Lock(workspace.locks / f"queue-{HOST}.lock") as lock:
        assert lock.acquire()
        assert "queue" not in lines(workspace)[-1]


def test_long_lists_are_cut_with_a_count_unless_all_is_asked_for(call, workspace):
    experiment = started(workspace, seeds=list(range(30)), runtime={"max_group": 1})
    for run in student_runs(experiment):
        fail(run, workspace)
    _, out, _ = call("status", workspace.root)
    assert out.count("  failed: ") == 20 and "  ... and 40 failed more: --all shows them" in out
    assert call("status", workspace.root, "--all")[1].count("  failed: ") == 60


def test_programs_get_every_run_as_json(call, experiment, workspace, seen):
    runs = student_runs(experiment)
    entries = submitted(experiment, workspace)
    seen.update((i, Seen(entry.job or "", "RUNNING")) for i, entry in entries.items())
    with training(workspace, runs[:2], per_s=4.0) as lock:
        assert lock.acquire()
        code, out, _ = call("status", workspace.root, "--json")
    found = json.loads(out)
    (one,) = found["experiments"]
    assert code == 0 and found["slurm"] is None and one["records"] == [0, 4]
    assert [item["run"] for item in one["students"]] == [run.id for run in runs]
    assert one["students"][0]["state"] == "running" and one["students"][0]["progress"]["per_s"] == 4.0
    assert call("status", workspace.root, "--json", "--watch")[0] == 2


# ---- pace


def test_a_training_leaves_its_pace_for_others(tmp_path):
    experiment = tiny(tmp_path, training={"steps": 12}, methods=["none"])
    crashed_at(7, experiment, tmp_path / "w")
    (folder,) = (tmp_path / "w/groups").iterdir()
    found = progress_in(folder)
    assert found is not None and 1 <= found.step <= 7
    assert (found.steps, found.batch_size, found.device) == (12, 8, "cpu")
    assert datetime.datetime.fromisoformat(found.began).tzinfo is not None


def test_the_pace_is_that_of_late_and_is_written_seldom(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    pace, written = Pace(tmp_path, 10_000, 64, "cpu"), []
    for step in range(1, 2001):
        clock[0] += 10.0 if step < 100 else 0.5
        pace.update(step)
        path = tmp_path / NAME
        if path.exists():
            written.append(step)
            found = progress_in(tmp_path)
            path.unlink()
    assert len(written) < 200 and written[0] == 1
    assert found is not None and found.per_s == pytest.approx(2.0) and found.left_s == pytest.approx(8000 / 2, rel=0.01)


def test_the_last_step_is_written_and_a_folder_that_is_gone_harms_nothing(tmp_path):
    (tmp_path / "g").mkdir()
    pace = Pace(tmp_path / "g", 3, 64, "cpu")
    seen = []
    beside = pace.beside(seen.append)
    for step in (1, 2, 3):
        beside(step)
    found = progress_in(tmp_path / "g")
    assert seen == [1, 2, 3] and found is not None and found.step == 3
    (tmp_path / "g" / NAME).unlink()
    (tmp_path / "g").rmdir()
    pace.update(3)
    Pace(None, 3, 64, "cpu").update(3)
    assert progress_in(tmp_path / "g") is None and list(tmp_path.iterdir()) == []


def test_a_damaged_progress_file_is_none(tmp_path):
    for text in ("", "{", "[]", '{"step": 1}', '{"strange": 1}'):
        (tmp_path / NAME).write_text(text)
        assert progress_in(tmp_path) is None


# ---- watch


@pytest.fixture
def passing(monkeypatch):
    """Instead of sleeping between looks, the next one of these happens; after the last one, Ctrl-C."""
    steps: list[Callable[[], object]] = []

    def sleep(_: float) -> None:
        if not steps:
            raise KeyboardInterrupt
        steps.pop(0)()

    monkeypatch.setattr(watching.time, "sleep", sleep)
    return steps


def settle(experiment: Experiment, workspace: Workspace, monkeypatch) -> None:
    monkeypatch.setattr("harness.monitoring.glance.Glance.has_record", lambda *_: True)
    for run in student_runs(experiment):
        if not workspace.failure(run.id):
            workspace.student(run.id).mkdir(parents=True, exist_ok=True)


def test_watching_says_what_changes_and_ends_when_all_is_done(call, experiment, workspace, passing, monkeypatch):
    runs = student_runs(experiment)
    passing.append(lambda: None)
    passing.append(lambda: train(runs[0], workspace))
    passing.append(lambda: settle(experiment, workspace, monkeypatch))
    code, out, err = call("status", workspace.root, "--watch", "--every", "0.1")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "small: students: 0 trained, 4 pending; evaluated: 0 of 4",
        "small: students: 1 trained, 3 pending; evaluated: 0 of 4",
        "small: students: 4 trained; evaluated: 4 of 4",
    ]
    assert not passing


def test_steps_alone_are_no_change_to_a_watcher_without_a_terminal(call, experiment, workspace, passing):
    runs = student_runs(experiment)

    def advance() -> None:
        path = workspace.groups / "g" / NAME
        path.write_text(json.dumps({**json.loads(path.read_text()), "step": 60}))

    passing.append(advance)
    with training(workspace, runs, step=40) as lock:
        assert lock.acquire()
        code, out, _ = call("status", workspace.root, "--watch")
    assert code == 130 and out.count("running:") == 1


def test_watching_ends_with_1_where_something_went_wrong(call, experiment, workspace, passing, monkeypatch):
    fail(student_runs(experiment)[1], workspace)
    passing.append(lambda: settle(experiment, workspace, monkeypatch))
    code, out, _ = call("status", workspace.root, "--watch")
    assert code == 1 and out.count("failed: fitnet seed 0 at step 7") == 1


def test_ctrl_c_ends_watching_quietly(call, experiment, workspace, passing):
    code, out, err = call("status", workspace.root, "--watch")
    assert (code, err) == (130, "") and "Traceback" not in out


def test_what_was_submitted_has_ended_when_no_job_is_under_way(experiment, workspace, seen):
    assert not status(workspace).ended  # somebody may be about to begin
    entries = submitted(experiment, workspace)
    seen.update((i, Seen("7", "PENDING")) for i in entries)
    assert not status(workspace).ended
    seen.update((i, Seen("7", "CANCELLED")) for i in entries)
    found = status(workspace)
    assert found.ended and found.bad


def test_on_a_terminal_it_is_redrawn_with_the_pace(experiment, workspace, monkeypatch, capsys):
    runs = student_runs(experiment)
    with training(workspace, runs, step=40) as lock:
        assert lock.acquire()
        looks: Iterator[Status] = iter([status(workspace), status(workspace)])
        last = watching._drawn(looks, False)
    assert not last.bad
    assert "2 steps/s" in re.sub(r"\s+", " ", capsys.readouterr().out)


def test_a_protocol_that_cannot_be_read_is_named_with_its_remedy(call, experiment, workspace):
    submitted(experiment, workspace, "local")
    workspace.protocols.mkdir(parents=True)
    for task in task_runs(experiment):
        (workspace.protocols / f"{task.key}.json").write_text("{")
    code, _, err = call("cancel", workspace.root, "--yes")
    assert code == 2 and str(workspace.protocols) in err and "remove it: it is written anew" in err


# ---- retry


@pytest.fixture
def asked(monkeypatch) -> list[tuple[str, str]]:
    """Submissions: (experiment, cluster)."""
    told: list[tuple[str, str]] = []
    monkeypatch.setattr(
        again, "submit", lambda experiment, workspace, where, console, only: told.append((experiment.name, where))
    )
    monkeypatch.setattr(cli_queue, "serve", lambda *_, **how: told.append(("serve", str(how))))
    return told


def test_retry_sets_failures_and_failed_jobs_aside_and_submits_where_they_ran(call, experiment, workspace, seen, asked):
    runs = student_runs(experiment)
    entries = submitted(experiment, workspace)
    for run in runs:
        fail(run, workspace)
    code, _, err = call("retry", workspace.root, "none seed 0")
    assert code == 0 and asked == [("small", "slurm")]
    assert err == "small: again: none seed 0\n"
    assert workspace.failure(runs[0].id) is None and workspace.failure(runs[1].id) is not None
    kept = workspace.failures / f"{runs[0].id}.1.json"
    assert json.loads(kept.read_text())["step"] == 7
    mine = [i for i, entry in entries.items() if runs[0].id in entry.unit.runs and entry.unit.kind == "train"]
    assert mine and not set(mine) & Ledger(workspace).entries().keys()
    assert [entry.attempt for entry in Ledger(workspace).attempts(mine[0])] == [1]
    fail(runs[0], workspace)
    workspace.forgive(runs[0].id)
    assert kept.with_name(f"{runs[0].id}.2.json").is_file() and kept.is_file()


def test_retry_takes_what_is_asked_for(call, experiment, workspace, seen, asked):
    runs = student_runs(experiment)
    submitted(experiment, workspace)
    fail(runs[0], workspace)  # the others are lost
    assert call("retry", workspace.root, "--lost")[0] == 0
    assert workspace.failure(runs[0].id) is not None and asked == [("small", "slurm")]
    assert call("retry", workspace.root, "--failed", "fitnet")[2] == "nothing is failed\n"
    assert len(asked) == 1
    assert call("retry", workspace.root, "--failed")[0] == 0
    assert workspace.failure(runs[0].id) is None and len(asked) == 2


def test_retry_has_this_machines_queue_served_again(call, experiment, workspace, asked):
    runs = student_runs(experiment)
    for entry in submitted(experiment, workspace, "local").values():
        Ledger(workspace).write(dataclasses.replace(entry, state="failed", reason="out of memory"))
    assert call("retry", workspace.root)[0] == 0
    assert asked == [("small", "local"), ("serve", "{'wait': False}")]
    assert not Ledger(workspace).entries() and not workspace.failure(runs[0].id)


def test_retry_of_what_was_never_submitted_says_what_does_it(call, experiment, workspace, asked):
    fail(student_runs(experiment)[0], workspace)
    code, out, err = call("retry", workspace.root)
    assert (code, out) == (2, "")
    assert err == (
        "error: none seed 0: never submitted; `singer-bench run CONFIG --retry-failed` trains failed ones again\n"
    )
    assert workspace.failure(student_runs(experiment)[0].id) is not None and not asked


def test_retry_does_not_call_it_well_where_slurm_does_not_answer(call, experiment, workspace, monkeypatch, asked):
    def silent(*_):
        raise SlurmError("squeue: Unable to contact slurm controller")

    submitted(experiment, workspace)
    fail(student_runs(experiment)[0], workspace)
    monkeypatch.setattr(slurm_jobs, "seen", silent)
    code, _, err = call("retry", workspace.root, "--lost")
    assert code == 2 and "Unable to contact slurm controller; what has become of its jobs is not known" in err
    assert workspace.failure(student_runs(experiment)[0].id) is not None and not asked


def test_retry_that_is_refused_leaves_all_as_it_was(call, experiment, workspace, seen, monkeypatch):
    def refuse(*_, **__):
        raise UserError("submit.partition: no partition 'mian'")

    def held() -> dict[str, bytes]:
        folders = (workspace.jobs, workspace.failures)
        return {str(p): p.read_bytes() for folder in folders for p in folder.rglob("*") if p.is_file()}

    submitted(experiment, workspace)
    for run in student_runs(experiment):
        fail(run, workspace)
    before = held()
    monkeypatch.setattr(again, "submit", refuse)
    code, _, err = call("retry", workspace.root)
    assert code == 2 and "no partition 'mian'" in err and held() == before


def test_retry_and_cancel_know_the_nearest_run(call, experiment, workspace, seen):
    submitted(experiment, workspace)
    for command in ("retry", "cancel"):
        code, _, err = call(command, workspace.root, "fitnt seed 1")
        assert code == 2 and "no run or row 'fitnt seed 1'; did you mean 'fitnet seed 1'?" in err


def test_retry_submits_a_failed_group_to_this_machine_for_real(tmp_path, monkeypatch, call):
    experiment, workspace = tiny(tmp_path, methods=["none"], tasks=[]), Workspace(tmp_path / "w")
    remember(experiment, workspace)
    monkeypatch.setattr(cli_queue, "serve", lambda *_, **how: None)
    (entry,) = submitted(experiment, workspace, "local", attempt=1).values()
    Ledger(workspace).write(dataclasses.replace(entry, state="done"))
    fail(student_runs(experiment)[0], workspace)
    assert call("retry", workspace.root)[0] == 0
    (found,) = Ledger(workspace).entries().values()
    assert (found.state, found.attempt, found.cluster) == ("queued", 2, "local")


def again_here(call, experiment: Experiment, workspace: Workspace, monkeypatch, *titles: str) -> set[tuple[str, ...]]:
    """What `retry` submits to this machine where all that was submitted is lost or cancelled: titles of each unit."""
    monkeypatch.setattr(cli_queue, "serve", lambda *_, **how: None)
    monkeypatch.setattr(submit, "_preflight", lambda *_: None)
    units = {entry.unit.id: entry.unit for entry in Ledger(workspace).entries().values()}
    for entry in Ledger(workspace).entries().values():
        waits = any(need in units for need in entry.unit.needs)
        Ledger(workspace).write(dataclasses.replace(entry, state="cancelled" if waits else "failed", reason="x"))
    assert call("retry", workspace.root, *titles)[0] == 0
    entries = Ledger(workspace).entries().values()
    return {(entry.unit.kind, *entry.unit.titles) for entry in entries if entry.state == "queued"}


def test_retry_of_a_title_submits_what_was_named_and_nothing_else(call, tmp_path, monkeypatch):
    """Not the rest of its group, not what nobody ever submitted."""
    workspace = Workspace(tmp_path / "w")
    submitted(started(workspace), workspace, "local")
    experiment = started(workspace, seeds=[0, 1, 2])
    found = again_here(call, experiment, workspace, monkeypatch, "none seed 1")
    assert found == {("train", "none seed 1"), ("evaluate", "none seed 1")}


def test_retry_without_a_title_submits_what_went_wrong_and_what_waited_for_it(call, tmp_path, monkeypatch):
    workspace, fit = Workspace(tmp_path / "w"), {"fit": {"training": {"steps": 5}}}
    experiment = started(workspace, teacher=fit, bounds=True)
    submitted(experiment, workspace, "local")
    more = started(workspace, teacher=fit, bounds=True, seeds=[0, 1, 2])
    found = again_here(call, more, workspace, monkeypatch)
    titles = {title for _, *some in found for title in some}
    (teacher,) = fit_runs(experiment)
    assert titles == {teacher.title, *(run.title for run in student_runs(experiment) + bound_runs(experiment))}


def test_retry_of_a_run_brings_the_teacher_that_it_needs(call, tmp_path, monkeypatch):
    workspace, fit = Workspace(tmp_path / "w"), {"fit": {"training": {"steps": 5}}}
    experiment = started(workspace, teacher=fit)
    submitted(experiment, workspace, "local")
    for entry in Ledger(workspace).entries().values():
        state = "failed" if entry.unit.kind == "train" else "cancelled"
        Ledger(workspace).write(dataclasses.replace(entry, state=state, reason="x"))
    monkeypatch.setattr(cli_queue, "serve", lambda *_, **how: None)
    monkeypatch.setattr(submit, "_preflight", lambda *_: None)
    assert call("retry", workspace.root, "none seed 1")[0] == 0
    queued = [entry.unit for entry in Ledger(workspace).entries().values() if entry.state == "queued"]
    (teacher,) = fit_runs(experiment)
    assert [unit.titles for unit in queued] == [(teacher.title,), ("none seed 1",), ("none seed 1",)]


# ---- cancel


@pytest.fixture
def scancelled(monkeypatch) -> list[str]:
    told: list[str] = []

    def ask(*command: str) -> str:
        assert command[0] == "scancel"
        told.extend(command[1:])
        return ""

    monkeypatch.setattr(slurm_jobs, "ask", ask)
    return told


def test_cancel_ends_what_is_under_way_and_nothing_else(call, experiment, workspace, seen, scancelled):
    entries = submitted(experiment, workspace)
    seen.update((i, Seen(entry.job or "", "RUNNING")) for i, entry in entries.items())
    ended = next(iter(entries))
    seen[ended] = Seen("7_0", "FAILED")
    code, _, err = call("cancel", workspace.root, "--yes")
    assert code == 0 and sorted(scancelled) == sorted(e.job for i, e in entries.items() if i != ended)
    assert err == f"cancelled: {len(entries) - 1} jobs; `singer-bench submit CONFIG` goes on where they were\n"


def test_cancel_takes_runs_by_title_and_asks_before_it_does(call, experiment, workspace, seen, scancelled, monkeypatch):
    runs = student_runs(experiment)
    entries = submitted(experiment, workspace)
    seen.update((i, Seen(entry.job or "", "RUNNING")) for i, entry in entries.items())
    code, _, err = call("cancel", workspace.root, "none seed 1")
    assert code == 2 and "--yes ends them" in err and not scancelled  # nobody can be asked
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.confirm", lambda *_, **__: False)
    code, _, err = call("cancel", workspace.root, "none seed 1")
    assert code == 0 and not scancelled
    assert err == "  train none seed 1, fitnet seed 1\n  evaluate none seed 1\n"
    monkeypatch.setattr("typer.confirm", lambda *_, **__: True)
    assert call("cancel", workspace.root, "none seed 1")[0] == 0
    mine = {e.job for e in entries.values() if runs[2].id in e.unit.runs}
    assert set(scancelled) == mine and len(mine) == 2


def test_a_job_whose_number_was_never_noted_is_cancelled_by_what_slurm_says(
    call, experiment, workspace, seen, scancelled
):
    for entry in submitted(experiment, workspace, job=None).values():
        seen[entry.unit.id] = Seen(f"9_{entry.index}", "PENDING")
    assert call("cancel", workspace.root, "--yes")[0] == 0
    assert len(scancelled) == 6 and all(job.startswith("9_") for job in scancelled)


@pytest.fixture
def sleeper():
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def test_cancel_asks_a_running_job_of_this_machine_to_stop_and_takes_queued_ones_out(
    call, experiment, workspace, sleeper
):
    entries = submitted(experiment, workspace, "local")
    one = next(iter(entries.values()))
    alive = {"state": "running", "pid": sleeper.pid, "started": processes.started(sleeper.pid), "host": HOST}
    Ledger(workspace).write(dataclasses.replace(one, **alive))
    assert call("cancel", workspace.root, "--yes")[0] == 0
    assert sleeper.wait(timeout=30) == -signal.SIGTERM
    assert {entry.state for entry in Ledger(workspace).entries().values()} == {"cancelled"}
    assert call("cancel", workspace.root, "--yes")[2] == "nothing of it is under way\n"


@pytest.mark.parametrize("changes", [{"started": "1"}, {"host": "elsewhere"}])
def test_cancel_signals_no_process_but_the_jobs_own(call, experiment, workspace, sleeper, changes):
    entries = submitted(experiment, workspace, "local")
    one = next(iter(entries.values()))
    alive = {"state": "running", "pid": sleeper.pid, "started": processes.started(sleeper.pid), "host": HOST}
    Ledger(workspace).write(dataclasses.replace(one, **{**alive, **changes}))
    code, _, err = call("cancel", workspace.root, "--yes")
    assert code == 0 and ("runs on elsewhere" in err) == ("host" in changes)
    assert Ledger(workspace).entries()[one.unit.id].state == "cancelled"
    assert sleeper.poll() is None


def test_cancel_where_nothing_was_submitted_says_what_stops_a_run(call, experiment, workspace):
    code, _, err = call("cancel", workspace.root)
    assert code == 2 and "Ctrl-C stops a `singer-bench run`" in err
