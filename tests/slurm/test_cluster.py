"""The cluster that other tests rely on: jobs, signals, preemption, GPUs, and nothing left behind."""

from __future__ import annotations

import operator
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import submitit

from slurm import cluster as rig
from slurm.cluster import Cluster, reason_not_available
from slurm.daemons import descendants

TESTS = Path(__file__).parents[1]
needs_slurm = pytest.mark.skipif(reason_not_available() is not None, reason=str(reason_not_available()))
# It ignores SIGTERM and has a process that has left the session.
STUBBORN = "trap '' TERM; setsid sleep infinity & sleep infinity"


def test_an_array_of_submitit_gets_its_results(slurm, tmp_path):
    executor = submitit.AutoExecutor(folder=tmp_path, cluster="slurm")
    executor.update_parameters(timeout_min=5, slurm_partition="main")
    jobs = executor.map_array(operator.mul, [1, 2, 3], [10, 20, 30])
    assert [job.result() for job in jobs] == [10, 40, 90]
    assert {job.job_id.partition("_")[0] for job in jobs} == {jobs[0].job_id.partition("_")[0]}
    assert {slurm.state(job.job_id) for job in jobs} == {"COMPLETED"}


def test_accounting_knows_how_jobs_ended(slurm):
    expected = {slurm.submit("true"): "COMPLETED", slurm.submit("exit 3"): "FAILED"}
    for job, state in expected.items():
        slurm.wait(job, state)

    def recorded() -> dict[str, str]:
        lines = slurm.run("sacct", "-X", "--noheader", "--parsable2", "--format=JobID,State").splitlines()
        return dict(line.split("|") for line in lines)

    slurm.until(lambda: expected.items() <= recorded().items(), "sacct says the same as slurmctld")


def test_waiting_for_a_state_ends_when_the_job_ended_in_another(slurm):
    job = slurm.submit("echo because of this; exit 3")
    with pytest.raises(RuntimeError, match=r"(?s)is FAILED, not COMPLETED.*because of this"):
        slurm.wait(job, "COMPLETED")


def test_waiting_for_what_does_not_come_shows_the_queue(slurm):
    job = slurm.submit("sleep infinity", "--job-name=patience")
    with pytest.raises(TimeoutError, match="patience"):
        slurm.wait(job, "COMPLETED", limit_s=0)


def test_what_slurm_refuses_is_said(slurm):
    with pytest.raises(RuntimeError, match="Invalid job id"):
        slurm.state("4711")


def test_a_requeued_job_starts_again(slurm):
    job = slurm.submit("echo start ${SLURM_RESTART_COUNT:-0}; sleep infinity", "--open-mode=append")
    slurm.until(lambda: "start 0" in slurm.output(job), "it has started")
    slurm.scontrol("requeue", job)
    slurm.until(lambda: "start 1" in slurm.output(job), "it has started again")
    assert slurm.restarts(job) == 1


@pytest.mark.parametrize(("asked", "comes"), [(["--signal=B:USR2@60"], "USR2"), ([], "TERM")])
def test_an_urgent_job_preempts_one_of_main_which_is_told_and_starts_again(slurm, asked, comes):
    script = f"echo start; trap 'echo got {comes}' {comes}; while true; do sleep 0.1; done"
    job = slurm.submit(script, "--cpus-per-task=2", "--open-mode=append", *asked)
    slurm.until(lambda: "start" in slurm.output(job), "it has started")
    urgent = slurm.submit("true", "--cpus-per-task=2", "--partition=urgent")
    slurm.wait(urgent, "COMPLETED")
    slurm.until(lambda: slurm.output(job).count("start") == 2, "it has started again")
    assert f"got {comes}" in slurm.output(job)


def test_a_job_near_its_time_limit_gets_the_signal_that_it_asked_for(slurm):
    script = "trap 'echo got USR2; exit' USR2; while true; do sleep 0.1; done"
    job = slurm.submit(script, "--time=1", "--signal=B:USR2@60")
    slurm.wait(job, "COMPLETED")
    assert "got USR2" in slurm.output(job)


def test_jobs_get_different_gpus(slurm):
    jobs = [slurm.submit("echo gpu $CUDA_VISIBLE_DEVICES; sleep infinity", "--gpus-per-node=1") for _ in range(2)]
    slurm.until(lambda: all(map(slurm.output, jobs)), "both have started")
    assert {slurm.output(job) for job in jobs} == {"gpu 0\n", "gpu 1\n"}


def test_a_job_waits_for_a_gpu_while_others_need_none(slurm):
    both = slurm.submit("sleep infinity", "--gpus-per-node=2")
    slurm.wait(both, "RUNNING")
    waiting, other = slurm.submit("true", "--gpus-per-node=1", "--time=1"), slurm.submit("true", "--time=1")
    slurm.wait(other, "COMPLETED")
    assert slurm.state(waiting) == "PENDING"
    slurm.run("scancel", both)
    slurm.wait(waiting, "COMPLETED")


def test_more_gpus_than_there_are_are_refused(slurm):
    with pytest.raises(RuntimeError, match="not available"):
        slurm.submit("true", "--gpus-per-node=3")


def test_a_job_whose_processes_are_killed_has_failed(slurm):
    job = slurm.submit("sleep infinity & wait")
    slurm.until(lambda: len(slurm.processes(job)) == 2, "it has started")
    for pid in slurm.processes(job):
        os.kill(pid, signal.SIGKILL)
    slurm.wait(job, "FAILED")


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


@needs_slurm
def test_after_a_cluster_nothing_is_left(monkeypatch):
    monkeypatch.setenv("SLURM_CONF", "as before")
    with Cluster() as cluster:
        job = cluster.submit(STUBBORN)
        cluster.until(lambda: len(cluster.processes(job)) == 3, "it has started")
        processes = descendants(cluster.keeper.pid)
        assert set(cluster.processes(job)) < set(processes)
    assert alive(processes) == []
    assert not cluster.folder.exists()
    assert os.environ["SLURM_CONF"] == "as before"


@needs_slurm
def test_after_killed_tests_nothing_is_left(running_slurm):
    code = f"""if True:
        from slurm.cluster import *
        with Cluster() as cluster:
            job = cluster.submit({STUBBORN!r})
            cluster.until(lambda: len(cluster.processes(job)) == 3, "it has started")
            print(cluster.keeper.pid, cluster.folder, flush=True)
            input()
    """
    tests = subprocess.Popen(
        [sys.executable, "-c", code], cwd=TESTS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    keeper, folder = tests.stdout.readline().split()
    processes = [int(keeper), *descendants(int(keeper))]
    tests.kill()
    tests.communicate()
    running_slurm.until(lambda: not alive(processes), "all of them have ended")
    assert len(processes) > 8
    assert not Path(folder).exists()


@needs_slurm
def test_a_cluster_that_fails_half_way_says_why_and_leaves_nothing(tmp_path, monkeypatch):
    broken = tmp_path / "bin" / "slurmdbd"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho no tables today; exit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{broken.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("SLURM_CONF", raising=False)
    cluster = Cluster()
    with pytest.raises(RuntimeError, match=r"(?s)slurmdbd ended \(3\).*no tables today"):
        cluster.__enter__()
    assert cluster.keeper.returncode == 0
    assert not cluster.folder.exists()
    assert "SLURM_CONF" not in os.environ


def test_a_program_that_is_missing_is_the_reason(monkeypatch):
    monkeypatch.setattr(rig, "PROGRAMS", ("sh", "slurmofon"))
    assert "need slurmofon (Debian" in reason_not_available()
