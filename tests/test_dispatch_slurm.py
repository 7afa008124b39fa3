"""Submission to programs that only say that they are Slurm: once, whoever is killed, refused or in a hurry."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading

import pytest
from experiments import tiny, write
from fake_slurm import FakeSlurm

from harness.cli import main as cli
from harness.dispatch import again, sbatch, slurm, slurm_jobs, submit, waiting
from harness.dispatch.ledger import Ledger
from harness.dispatch.slurm_programs import SlurmError, ask
from harness.dispatch.work import Work
from harness.errors import UserError
from harness.progress import Console
from harness.runs import Workspace, student_runs
from harness.specs import Submission

TASKS = [{"task": "classification", "options": {"steps": 5}}]
QUIET = Console(quiet=True)


@pytest.fixture
def fake(tmp_path, monkeypatch) -> FakeSlurm:
    made = FakeSlurm(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{made.programs}:{os.environ['PATH']}")
    monkeypatch.setattr(waiting, "POLL_S", 0.01)
    return made


@pytest.fixture
def grid(tmp_path):
    """Two groups, of two and of one, with an evaluation each."""
    return tiny(tmp_path, tasks=TASKS, runtime={"max_group": 2})


def go(experiment, folder, **options) -> list[str]:
    """Submit without a preflight; the ids of what was submitted."""
    return [e.unit.id for e in submit.submit(experiment, Workspace(folder), "slurm", QUIET, preflight=False, **options)]


def test_trainings_are_an_array_and_evaluations_follow_it(fake, grid, tmp_path):
    submitted = go(grid, tmp_path / "w")
    entries = Ledger(Workspace(tmp_path / "w")).entries()
    assert len(submitted) == len(entries) == 5
    train, first, second = fake.jobs().values()
    assert (train["tasks"], train["asked"].get("dependency")) == (2, None)
    assert (first["tasks"], first["asked"]["dependency"]) == (2, "aftercorr:100")
    assert (second["tasks"], second["asked"]["dependency"]) == (None, "afterok:100_0")
    for entry in entries.values():
        assert entry.log == f"jobs/submitit/{entry.name}/{entry.job}_0_log.err"
        assert (tmp_path / "w" / entry.folder / f"{entry.job}_submitted.pkl").is_file()
        assert (tmp_path / "w" / entry.snapshot / "harness" / "job.py").is_file()
        trained_at = [entries[need].index for need in entry.unit.needs]
        assert all(place == (entry.index or 0) for place in trained_at)


def test_what_was_asked_for_is_in_the_script(fake, tmp_path):
    asked = {"partition": "main", "account": "lab", "qos": "normal", "constraint": "a100", "gpus": 2, "cpus": 3}
    more = {"memory_gb": 1.5, "minutes": 90, "setup": ["module load cuda"], "max_jobs": 1, "signal_seconds": 60}
    go(tiny(tmp_path, submit={**asked, **more, "nodes": 2}, runtime={"max_group": 1}), tmp_path / "w")
    (job,) = fake.jobs().values()
    wanted = {"partition": "main", "account": "lab", "qos": "normal", "constraint": "a100", "gpus-per-node": "2"}
    wanted |= {"cpus-per-task": "3", "mem": "1536MB", "time": "90", "nodes": "2", "ntasks-per-node": "2"}
    wanted |= {"signal": "USR2@60", "array": "0-2%1", "requeue": "", "kill-on-invalid-dep": "yes"}
    assert wanted.items() <= job["asked"].items()
    script = job["script"]
    assert script.index("module load cuda") < script.index("export PYTHONPATH=") < script.index("srun")
    assert "--cpus-per-task=3" in script.split("srun", 1)[1]


def test_arrays_wait_for_one_another_where_jobs_at_once_are_bounded(fake, tmp_path):
    grid = tiny(tmp_path, tasks=TASKS, runtime={"max_group": 2}, submit={"max_jobs": 2})
    go(grid, tmp_path / "w")
    asked = [(job["asked"].get("array"), job["asked"].get("dependency")) for job in fake.jobs().values()]
    assert asked == [("0-1%1", None), ("0-1%1", "aftercorr:100"), (None, "afterok:100_0,afterany:100")]
    said = submit.dry_run(grid, Workspace(tmp_path / "x"), "slurm").splitlines()
    assert [line for line in said if line.startswith("would")] == [
        "would submit: 2 trainings, at most 1 at once",
        "would submit: 2 evaluations, each after its own training, at most 1 at once",
        "would submit: 1 evaluation, after what it needs, once the 2 trainings before have ended",
    ]


def test_submitting_twice_submits_nothing_twice(fake, grid, tmp_path, capfd):
    go(grid, tmp_path / "w")
    before = fake.jobs()
    submit.submit(grid, Workspace(tmp_path / "w"), "slurm", Console(), preflight=False)
    assert fake.jobs() == before
    assert capfd.readouterr().err == "under way already: 5 jobs\nnothing to submit\n"


def test_what_died_is_submitted_again_and_its_first_attempt_is_kept(fake, grid, tmp_path):
    submitted = go(grid, tmp_path / "w")
    fake.end("CANCELLED")
    assert sorted(go(grid, tmp_path / "w")) == sorted(submitted)
    ledger = Ledger(Workspace(tmp_path / "w"))
    for unit, entry in ledger.entries().items():
        assert entry.attempt == 2 and [old.attempt for old in ledger.attempts(unit)] == [1]


@pytest.mark.parametrize("accepted", [0, 1])
def test_retry_of_which_slurm_refuses_a_part_forgets_no_failure_of_what_was_not_submitted(
    accepted, fake, tmp_path, monkeypatch
):
    monkeypatch.setattr(submit, "_preflight", lambda *_: None)
    grid, workspace = tiny(tmp_path, methods=["none"], tasks=TASKS), Workspace(tmp_path / "w")
    (run,) = student_runs(grid)
    go(grid, workspace.root)
    fake.end("CANCELLED")
    workspace.fail(run, reason="the loss is nan", step=3)
    fake.config(refuse_after=2 + accepted)
    with pytest.raises(UserError, match=f"{accepted} of 2 jobs were submitted before"):
        again.retry(workspace, QUIET, ("failed", "lost"), ())
    entries = {entry.unit.kind: entry for entry in Ledger(workspace).entries().values()}
    assert (entries["train"].job is not None, workspace.failure(run.id)) == (bool(accepted), None)
    fake.config()
    assert again.retry(workspace, QUIET, ("failed", "lost"), ()) == {"slurm"}
    assert {entry.job is not None for entry in Ledger(workspace).entries().values()} == {True}
    assert len(fake.jobs()) == 4


def test_what_failed_stays_until_it_is_set_aside(fake, grid, tmp_path):
    go(grid, tmp_path / "w")
    fake.end("FAILED", "train")
    fake.end("CANCELLED", "evaluate")
    assert go(grid, tmp_path / "w") == []
    ledger = Ledger(Workspace(tmp_path / "w"))
    for entry in ledger.entries().values():
        if entry.unit.kind == "train":
            ledger.set_aside(entry)
    assert len(go(grid, tmp_path / "w")) == 5
    assert {entry.attempt for entry in ledger.entries().values()} == {2}


class Killed(BaseException):
    """Nothing catches it, as nothing catches SIGKILL."""


def kill(*_, **__):
    raise Killed


@pytest.mark.parametrize("moment", ["the work is given", "the numbers are noted"])
def test_jobs_whose_submitter_was_killed_after_sbatch_are_taken_over(moment, fake, grid, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        if moment == "the work is given":
            patch.setattr("submitit.core.utils.JobPaths.move_temporary_file", kill)
        else:
            patch.setattr(slurm, "_with_job", kill)
        with pytest.raises(Killed):
            go(grid, tmp_path / "w")
    ledger = Ledger(Workspace(tmp_path / "w"))
    assert len(fake.jobs()) == 1 and {entry.job for entry in ledger.entries().values()} == {None}

    assert {i.partition("-")[0] for i in go(grid, tmp_path / "w")} == {"evaluate"}
    trainings = {i: e for i, e in ledger.entries().items() if e.unit.kind == "train"}
    assert sorted(entry.job for entry in trainings.values()) == ["100_0", "100_1"]
    waits_for = {job["asked"].get("dependency") for job in fake.jobs().values()}
    assert waits_for == {None, "afterok:100_0", "afterok:100_1"}
    from submitit.core.utils import DelayedSubmission, JobPaths

    for entry in trainings.values():
        found = DelayedSubmission.load(JobPaths(tmp_path / "w" / entry.folder, entry.job).submitted_pickle)
        assert found.function == Work.of(Workspace(tmp_path / "w"), entry)
        assert (found._timeout_min, found._timeout_countdown) == (240, 20)


def test_a_job_that_waited_in_vain_for_its_killed_submitter_is_lost_and_submitted_again(
    fake, grid, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr("submitit.core.utils.JobPaths.move_temporary_file", kill)
        with pytest.raises(Killed):
            go(grid, tmp_path / "w")
    fake.end("FAILED")  # after a minute
    ledger = Ledger(Workspace(tmp_path / "w"))
    found = slurm_jobs.look(ledger.workspace, ledger.entries())
    assert {(one.state, one.reason) for one in found.values()} == {
        ("lost", "whoever submitted it was stopped before it was given its work")
    }
    assert len(go(grid, tmp_path / "w")) == 5
    assert all(entry.job is not None for entry in ledger.entries().values())


def test_a_submitter_that_was_killed_before_sbatch_has_submitted_nothing(fake, grid, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("submitit.SlurmExecutor._submit_command", lambda *_: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            go(grid, tmp_path / "w")
    assert fake.jobs() == {}
    found = slurm_jobs.look(Workspace(tmp_path / "w"), Ledger(Workspace(tmp_path / "w")).entries())
    assert {one.state for one in found.values()} == {"lost"}
    assert len(go(grid, tmp_path / "w")) == 5


def test_what_slurm_refuses_is_said_and_the_same_command_submits_the_rest(fake, grid, tmp_path):
    fake.config(refuse_after=1)
    with pytest.raises(UserError, match=r"Batch job submission failed; 2 of 5 jobs were submitted before"):
        go(grid, tmp_path / "w")
    fake.config()
    assert len(go(grid, tmp_path / "w")) == 3
    assert len(fake.jobs()) == 3 and go(grid, tmp_path / "w") == []


def test_two_submitters_at_once_submit_nothing_twice(fake, grid, tmp_path):
    found: list[list[str]] = []
    threads = [threading.Thread(target=lambda: found.append(go(grid, tmp_path / "w"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(len, found)) == [0, 5] and len(fake.jobs()) == 3


def test_arrays_are_no_longer_than_the_cluster_allows(fake, tmp_path):
    fake.config(max_array=2)
    go(tiny(tmp_path, runtime={"max_group": 1}), tmp_path / "w")
    assert [job["tasks"] for job in fake.jobs().values()] == [2, None]


def test_a_dry_run_shows_all_and_writes_nothing(fake, grid, tmp_path):
    said = submit.dry_run(grid, Workspace(tmp_path / "w"), "slurm")
    assert "would submit: 2 trainings\n" in said and "would submit: 2 evaluations, each after its own training" in said
    assert all(run.title in said for run in student_runs(grid)) and "#SBATCH --time=240" in said
    assert fake.jobs() == {} and not (tmp_path / "w").exists()


def test_a_dry_run_says_what_is_under_way_and_what_failed(fake, grid, tmp_path):
    go(grid, tmp_path / "w")
    place = Workspace(tmp_path / "w")
    assert submit.dry_run(grid, place, "slurm") == "under way already: 5 jobs\nnothing to submit"
    fake.end("FAILED", "train")
    fake.end("CANCELLED", "evaluate")
    *failed, remedy, nothing = submit.dry_run(grid, place, "slurm").splitlines()
    assert len(failed) == 2 and all(line.startswith("not submitted: train ") for line in failed)
    assert "retry" in remedy and nothing == "nothing to submit"


def test_what_is_refused_is_not_remembered(fake, grid, tmp_path):
    go(grid, tmp_path / "w")
    kept = (tmp_path / "w" / "experiments" / "tiny.yaml").read_bytes()
    with pytest.raises(UserError, match="rank 500"):
        refused = tiny(tmp_path, methods=[{"method": "singer", "hyperparameters": {"rank": 500}}])
        submit.submit(refused, Workspace(tmp_path / "w"), "slurm", QUIET)
    with pytest.raises(UserError, match="Invalid feature specification"):
        go(tiny(tmp_path, seeds=[5], submit={"constraint": "nowhere"}), tmp_path / "w")
    assert (tmp_path / "w" / "experiments" / "tiny.yaml").read_bytes() == kept


def test_slurm_itself_is_asked_before_anything_is_submitted(fake, tmp_path):
    with pytest.raises(UserError, match="Invalid feature specification"):
        go(tiny(tmp_path, submit={"constraint": "nowhere"}), tmp_path / "w")
    assert fake.jobs() == {} and Ledger(Workspace(tmp_path / "w")).entries() == {}


def test_a_number_that_another_array_has_now_is_not_taken_for_ours(fake, grid, tmp_path):
    """A cluster that was set up anew counts from the beginning."""
    go(grid, tmp_path / "w")
    fake.write({n: {**job, "name": f"other{n}", "state": "RUNNING"} for n, job in fake.jobs().items()})
    found = slurm_jobs.look(Workspace(tmp_path / "w"), Ledger(Workspace(tmp_path / "w")).entries())
    assert {one.state for one in found.values()} == {"lost"}


def test_what_became_of_another_users_jobs_is_known_when_squeue_has_forgotten_them(fake, grid, tmp_path):
    go(grid, tmp_path / "w")
    fake.end("CANCELLED", forgotten=True)
    found = slurm_jobs.look(Workspace(tmp_path / "w"), Ledger(Workspace(tmp_path / "w")).entries())
    # Not lost, which `retry` would submit again; and an evaluation for the same reason as long as squeue knew it.
    wanted = {"train": ("cancelled", "by scancel"), "evaluate": ("cancelled", "what it needs did not end well")}
    assert all((one.state, one.reason) == wanted[i.partition("-")[0]] for i, one in found.items())


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "slurm_load_jobs error: Unable to contact slurm controller (connect failure)",
            "Slurm does not answer (scancel: Unable to contact slurm controller (connect failure))",
        ),
        (
            "scancel: error: Kill job error on job id 5: Invalid job id specified",
            "scancel: Kill job error on job id 5: Invalid job id specified",
        ),
    ],
)
def test_a_complaint_of_slurm_is_told_without_its_functions(said, told, tmp_path, monkeypatch):
    (tmp_path / "scancel").write_text(f"#!/bin/sh\necho '{said}' >&2; exit 1\n")
    (tmp_path / "scancel").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(SlurmError, match=f"^{re.escape(told)}$"):
        ask("scancel", "5")


def test_waiting_ends_when_nothing_is_under_way_and_names_what_went_wrong(fake, grid, tmp_path):
    go(grid, tmp_path / "w")
    fake.end("TIMEOUT", "train")
    fake.end("CANCELLED", "evaluate")
    bad = waiting.wait(grid, Workspace(tmp_path / "w"), QUIET)
    entry = next(e for e in Ledger(Workspace(tmp_path / "w")).entries().values() if e.unit.kind == "train")
    assert len(bad) == 2  # the trainings, not the evaluations that waited for them
    assert f"lost: {entry.unit}: its job has ended: TIMEOUT; log: {tmp_path / 'w' / entry.log}" in bad


def test_waiting_outlives_a_controller_that_does_not_answer(fake, grid, tmp_path, capfd):
    go(grid, tmp_path / "w")
    fake.config(answers=False)
    waiter = threading.Thread(target=waiting.wait, args=(grid, Workspace(tmp_path / "w"), Console()))
    waiter.start()
    said = ""
    while "Unable to contact" not in said:
        said += capfd.readouterr().err
        assert waiter.is_alive()
    fake.end("CANCELLED")
    fake.config()
    waiter.join(60)
    assert not waiter.is_alive()
    assert "jobs: 5 cancelled" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("code", "state", "kills", "restarts", "requeued"),
    [
        (137, "RUNNING", 0, 0, True),
        (137, "RUNNING", 2, 4, True),
        (137, "RUNNING", 3, 4, False),  # something kills it every time
        (137, "RUNNING", 0, 5, False),  # it was started again as often as was asked for
        (137, "COMPLETING", 0, 0, False),  # Slurm's own doing
        (143, "RUNNING", 3, 4, True),  # asked to stop, as by a preemption
        (255, "RUNNING", 0, 0, False),  # submitit has requeued it
        (1, "RUNNING", 0, 0, False),
        (0, "RUNNING", 0, 0, False),
    ],
)
def test_a_job_whose_processes_were_killed_requeues_itself(code, state, kills, restarts, requeued, tmp_path):
    for name, line in (("squeue", f"echo {state}"), ("scontrol", f'echo "$@" >> {tmp_path}/asked')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "7_2.killed").write_text("137\n" * kills)
    lines = [f"(exit {code})", *sbatch._teardown(Submission(requeues=5), tmp_path)]
    array = {"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_RESTART_COUNT": str(restarts)}
    done = subprocess.run(["bash", "-c", "\n".join(lines)], env={**os.environ, **array, **path}, timeout=60)
    asked = tmp_path / "asked"
    assert done.returncode == code and asked.exists() == requeued
    if requeued:
        assert asked.read_text() == "requeue 7_2\n"  # not 7, which is the whole array


# The command


@pytest.fixture
def call(monkeypatch, capfd):
    def run(*args: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["singer-bench", *map(str, args)])
        try:
            cli.main()
            code = 0
        except SystemExit as done:
            code = int(done.code or 0)
        return code, "".join(capfd.readouterr())

    return run


def test_flags_are_laid_over_the_configuration_and_all_mistakes_come_at_once(fake, tmp_path, call):
    config = write(tmp_path, submit={"gpus": 1, "minutes": 30})
    code, said = call("submit", config, "--cluster", "slurm", "--gpus", "two", "--cpus", "-1", "--minutes", "1.5")
    assert code == 2
    assert "submit.gpus: must be a whole number, not 'two'" in said and "submit.cpus: must be greater than 0" in said
    assert "submit.minutes" in said and "3 mistakes" in said
    code, said = call("submit", config, "--cluster", "slurm", "--partition", "mian", "--account", "labs")
    assert code == 2 and "did you mean 'main'?" in said and "did you mean 'lab'?" in said and "2 mistakes" in said
    code, said = call("submit", config, "--cluster", "slrum")
    assert code == 2 and "did you mean 'slurm'?" in said


def test_a_machine_without_slurm_says_so(tmp_path, call, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    code, said = call("submit", write(tmp_path), "--cluster", "slurm", "--workspace", tmp_path / "w")
    assert code == 2 and "there is no sbatch here" in said and not (tmp_path / "w").exists()


def test_a_method_that_cannot_be_built_is_told_before_anything_is_submitted(fake, tmp_path, call):
    config = write(tmp_path, methods=[{"method": "singer", "hyperparameters": {"rank": 500}}])
    code, said = call("submit", config, "--cluster", "slurm", "--workspace", tmp_path / "w")
    assert code == 2 and "rank 500" in said and fake.jobs() == {}


def test_ctrl_c_leaves_the_jobs_alone_and_says_so(fake, tmp_path, call, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("harness.dispatch.waiting.wait", interrupt)
    place = tmp_path / "w"
    code, said = call("submit", write(tmp_path), "--cluster", "slurm", "--workspace", place, "--wait", "--no-preflight")
    assert code == 130 and "the jobs go on without this" in said
    assert {job["state"] for job in fake.jobs().values()} == {"PENDING"}


def test_waiting_exits_with_1_where_something_went_wrong(fake, tmp_path, call, monkeypatch):
    real = waiting.wait

    def wait(*args):
        fake.end("CANCELLED")
        return real(*args)

    monkeypatch.setattr("harness.dispatch.waiting.wait", wait)
    place = tmp_path / "w"
    code, said = call("submit", write(tmp_path), "--cluster", "slurm", "--workspace", place, "--wait", "--no-preflight")
    assert code == 1 and "cancelled: train none seed 0, fitnet seed 0, singer seed 0: by scancel" in said


def test_the_remembered_experiment_is_what_jobs_read_whatever_becomes_of_the_file(fake, tmp_path, call):
    config = write(tmp_path)
    call("submit", config, "--cluster", "slurm", "--workspace", tmp_path / "w", "--no-preflight")
    config.write_text("")
    (entry,) = Ledger(Workspace(tmp_path / "w")).entries().values()
    from harness.dispatch.snapshot import experiment_of

    found = experiment_of(tmp_path / "w" / entry.snapshot)
    assert [run.id for run in student_runs(found)] == [run.id for run in student_runs(tiny(tmp_path))]
    assert json.loads((tmp_path / "w" / entry.snapshot / "snapshot.json").read_text()).keys() >= {"commit", "code"}
