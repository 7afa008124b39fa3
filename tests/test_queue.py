"""The queue of this machine with fake GPUs and jobs of a moment: order, adoption, death, signals."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import fake_jobs
import pytest
from fake_jobs import FakeWork

from harness.cli import main as cli
from harness.dispatch import local, processes, queue, server
from harness.dispatch.inventory import Gpu, Inventory
from harness.dispatch.ledger import Entry, Ledger, Unit
from harness.dispatch.server import Server
from harness.errors import UserError
from harness.interrupts import Interrupted
from harness.progress import Console
from harness.runs import Workspace
from harness.storage.locks import Lock

pytestmark = pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="processes are told by /proc")
LIMIT_S = 120  # of patience with a loaded machine; nothing is decided by it


class Said(Console):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


class Place:
    """A workspace with entries of fake jobs, and servers of it."""

    def __init__(self, root: Path, gpus: int = 2, slots: int | None = 2) -> None:
        self.workspace, self.said = Workspace(root), Said()
        self.ledger = Ledger(self.workspace)
        self.machine = Inventory(tuple(Gpu(i, "fake", 16) for i in range(gpus)), cores=2, slots=slots)
        snapshot = root / "jobs" / "snapshots" / "fake"
        snapshot.mkdir(parents=True)
        shutil.copy(fake_jobs.__file__, snapshot)
        (root / "let").mkdir()
        self.count = 0

    def add(self, name: str, what: str = "hold", kind: str = "train", needs: tuple[str, ...] = (), **resources) -> str:
        """Queue a unit; its id."""
        unit = Unit(f"{kind}-{name}", kind, (name,), (name,), "fake", needs, ("no-task",) if kind == "evaluate" else ())
        asked = {"what": what, "requeues": 5, **resources}
        self.ledger.write(Entry(unit, "local", "", "jobs/snapshots/fake", f"{self.count:04d}", resources=asked))
        self.count += 1
        return unit.id

    def server(self, **changes) -> Server:
        machine = dataclasses.replace(self.machine, **changes)
        return Server(self.workspace, self.said, machine, FakeWork.of)

    def entry(self, unit: str) -> Entry:
        return self.ledger.entries()[unit]

    def state(self, unit: str) -> str:
        return self.entry(unit).state

    def let(self, *units: str) -> None:
        for unit in units:
            (self.workspace.root / "let" / unit).touch()

    def notes(self, unit: str) -> list[str]:
        """What a unit's jobs noted."""
        path = self.workspace.root / "notes"
        lines = path.read_text().splitlines() if path.is_file() else []
        return [line.removeprefix(f"{unit} ") for line in lines if line.startswith(f"{unit} ")]

    def begun(self, unit: str, times: int = 1) -> bool:
        return sum(note.startswith("begin") for note in self.notes(unit)) >= times

    def rank(self, unit: str) -> int:
        """The process of a unit's newest job that does the work."""
        return int([note for note in self.notes(unit) if note.startswith("begin")][-1].split()[1])

    def kill_all(self) -> None:
        for entry in self.ledger.entries().values():
            if entry.folder:
                local.kill(self.workspace, entry)


@pytest.fixture
def place(tmp_path):
    made = Place(tmp_path / "workspace")
    yield made
    made.kill_all()


def until(condition, step=lambda: None) -> None:
    """Wait, with a step in between."""
    deadline_s = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "it did not happen"
        step()
        time.sleep(0.02)


def finish(one: Server) -> None:
    """Step until nothing is left to do."""
    until(lambda: not one.step())


def test_jobs_start_in_order_each_on_gpus_of_its_own(place):
    units = [place.add(f"job{i}", gpus=1) for i in range(3)]
    one = place.server()
    one.step()
    until(lambda: all(map(place.begun, units[:2])), one.step)
    assert [place.state(unit) for unit in units] == ["running", "running", "queued"]
    assert [place.entry(unit).gpus for unit in units] == [(0,), (1,), ()]
    assert (
        "CUDA_VISIBLE_DEVICES=0 " in place.notes(units[0])[0] and "CUDA_VISIBLE_DEVICES=1 " in place.notes(units[1])[0]
    )
    place.let(units[1])
    until(lambda: place.begun(units[2]), one.step)
    assert place.state(units[1]) == "done" and place.entry(units[2]).gpus == (1,)
    assert place.entry(units[1]).ended and place.state(units[0]) == "running"
    place.let(*units)
    finish(one)
    assert [place.state(unit) for unit in units] == ["done"] * 3
    assert all(place.notes(unit)[-1] == "end" and len(place.notes(unit)) == 2 for unit in units)


def test_a_job_on_the_cpu_sees_no_gpu_and_waits_for_a_slot(place):
    units = [place.add(f"job{i}", cpus=1) for i in range(3)]
    one = place.server(slots=2)
    one.step()
    until(lambda: all(map(place.begun, units[:2])), one.step)
    assert place.state(units[2]) == "queued"
    assert "CUDA_VISIBLE_DEVICES= " in place.notes(units[0])[0]
    place.let(*units)
    finish(one)
    assert place.state(units[2]) == "done"


def test_an_evaluation_starts_as_soon_as_its_own_student_is_there(place):
    train = place.add("a")
    unit = dataclasses.replace(place.entry(train).unit, runs=("a", "b"), titles=("a", "b"))
    place.ledger.write(dataclasses.replace(place.entry(train), unit=unit))
    evaluations = [place.add(name, "end", kind="evaluate", needs=(train,)) for name in unit.runs]
    one = place.server()
    until(lambda: place.begun(train), one.step)
    assert [place.state(evaluation) for evaluation in evaluations] == ["queued"] * 2
    place.workspace.student("a").mkdir(parents=True)
    until(lambda: place.state(evaluations[0]) == "done", one.step)
    assert place.state(evaluations[1]) == "queued" and place.state(train) == "running"


def test_what_needs_a_failed_training_is_cancelled_and_so_is_what_needs_that(place):
    fit = place.add("teacher", "raise", kind="fit")
    train = place.add("a", needs=(fit,))
    evaluate = place.add("a", kind="evaluate", needs=(train,))
    finish(place.server())
    assert [place.state(unit) for unit in (fit, train, evaluate)] == ["failed", "cancelled", "cancelled"]
    assert place.entry(evaluate).reason == "it needs train a, which did not end well"


def test_what_needs_a_unit_that_nobody_submitted_waits_and_says_so(place):
    unit = place.add("a", kind="evaluate", needs=("train-b",))
    one = place.server()
    finish(one)
    assert place.state(unit) == "queued"
    assert one.left() == ["evaluate a waits for train-b, which is not in this queue"]


def test_evaluations_come_before_trainings_that_were_submitted_with_them(place):
    units = [place.add("a"), place.add("b", kind="evaluate")]
    for unit in units:
        place.ledger.write(dataclasses.replace(place.entry(unit), submitted="0"))
    place.server(slots=1).step()
    assert [place.state(unit) for unit in units] == ["queued", "running"]


def test_no_more_jobs_of_a_submission_run_at_once_than_it_asks_for(place):
    bounded = [place.add(name, gpu_memory_gb=1, max_jobs=2) for name in "abc"]
    for index, unit in enumerate(bounded):
        place.ledger.write(dataclasses.replace(place.entry(unit), submitted="0", index=index))
    other = place.add("d", gpu_memory_gb=1)
    one = place.server()
    one.step()
    one.step()
    assert [place.state(unit) for unit in (*bounded, other)] == ["running", "running", "queued", "running"]
    first = place.entry(bounded[0])
    place.ledger.write(dataclasses.replace(first, state="cancelled"))
    one.step()
    assert place.state(bounded[2]) == "queued"  # the cancelled one is still at work
    place.let(*bounded, other)
    finish(one)
    assert place.state(bounded[2]) == "done"


def test_what_another_machine_runs_of_a_submission_counts(place):
    one, two = place.add("a", max_jobs=1), place.add("b", max_jobs=1)
    away = {"state": "running", "host": "another", "submitted": "0"}
    place.ledger.write(dataclasses.replace(place.entry(one), **away))
    place.ledger.write(dataclasses.replace(place.entry(two), submitted="0"))
    place.server().step()
    assert place.state(two) == "queued"


def test_an_error_fails_at_once_with_its_last_line_and_its_log(place):
    unit = place.add("a", "raise")
    finish(place.server())
    entry = place.entry(unit)
    assert entry.state == "failed" and entry.reason == "ValueError: the data are gone" and entry.restarts == 0
    assert "the data are gone" in (place.workspace.root / entry.log).read_text()
    assert f"failed: train a: {entry.reason}" in place.said.text and str(entry.log) in place.said.text


def test_a_job_that_dies_at_once_again_and_again_is_given_up(place):
    unit = place.add("a", "die")
    finish(place.server())
    entry = place.entry(unit)
    assert entry.state == "failed" and entry.restarts == server.AT_ONCE - 1
    assert entry.reason.startswith("3 times in a row, soon after their start") and "about to be killed" in entry.reason
    assert place.begun(unit, server.AT_ONCE) and not place.begun(unit, server.AT_ONCE + 1)
    assert "  | about to be killed" in place.said.lines


def test_a_killed_job_goes_on_so_often_and_no_oftener(place, monkeypatch):
    monkeypatch.setattr(server, "AT_ONCE_S", 0.0)
    unit = place.add("a", "die", requeues=1)
    finish(place.server())
    assert place.state(unit) == "failed" and place.entry(unit).reason.startswith("started again 1 times; ")
    assert place.begun(unit, 2) and not place.begun(unit, 3)


def test_an_error_for_want_of_a_killed_rank_is_no_error_of_the_job(place):
    unit = place.add("a", "lose", ranks=2, requeues=0)
    finish(place.server())
    reason = place.entry(unit).reason
    assert reason.startswith("started again 0 times; its processes ended without a word"), reason
    assert reason.endswith("RuntimeError: another rank is gone")


def test_what_asks_for_more_than_there_is_stays_queued_and_holds_nobody_up(place):
    large, small = place.add("large", gpus=3), place.add("small", "end", gpus=1)
    one = place.server()
    finish(one)
    assert place.state(small) == "done" and place.state(large) == "queued"
    assert one.left() == ["train large asks for 3 GPUs; here are 2"]


def test_a_line_of_setup_changes_the_jobs_environment_and_a_failing_one_fails_it(place):
    good, bad = place.add("good", "end", setup=("export MINE=yes",)), place.add("bad", "end", setup=("false",))
    finish(place.server())
    assert place.notes(good)[0].endswith("MINE=yes")
    assert place.state(bad) == "failed" and "this line of the job failed: false (" in place.entry(bad).reason


def test_out_of_time_it_goes_on_by_submitits_protocol(place):
    unit = place.add("a", minutes=7, signal_seconds=33)
    one = place.server()
    until(lambda: place.begun(unit), one.step)
    told = Path(f"/proc/{place.entry(unit).pid}/environ").read_text()
    assert "SUBMITIT_LOCAL_TIMEOUT_S=420\0" in told and "SUBMITIT_LOCAL_SIGNAL_DELAY_S=33\0" in told
    os.kill(place.rank(unit), signal.SIGUSR2)  # what its controller does when the time is nearly over
    until(lambda: place.begun(unit, 2), one.step)
    place.let(unit)
    finish(one)
    assert place.state(unit) == "done" and place.entry(unit).restarts == 0 and "requeued" in place.notes(unit)


SERVER = """
import sys
from pathlib import Path
from fake_jobs import FakeWork
from harness.dispatch import server
from harness.dispatch.inventory import Gpu, Inventory
from harness.dispatch.signals import Asked
from harness.interrupts import Interrupted
from harness.storage.locks import Lock
from harness.progress import Console
from harness.runs import Workspace
server.POLL_S = 0.02
machine = Inventory(tuple(Gpu(i, "fake", 16) for i in range(2)), slots=2)
with Asked() as asked:
    try:
        server.Server(Workspace(sys.argv[1]), Console(), machine, FakeWork.of).run(asked)
    except Interrupted as signal:
        print(f"stopped by {signal}", file=sys.stderr)
        raise SystemExit(130)
"""


@pytest.fixture
def apart(place):
    """Starts a server in a process and session of its own."""
    started = []

    def start() -> subprocess.Popen:
        environment = {**os.environ, "PYTHONPATH": str(Path(fake_jobs.__file__).parent)}
        command = [sys.executable, "-c", SERVER, str(place.workspace.root)]
        one = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
        started.append(one)
        return one

    yield start
    for one in started:
        if one.poll() is None:
            one.kill()
        one.communicate()


def test_a_killed_server_leaves_its_jobs_and_the_next_one_takes_them_over(place, apart):
    first, second = place.add("first", gpus=1), place.add("second", gpus=2)
    one = apart()
    until(lambda: place.begun(first) and place.entry(first).pid is not None)
    one.kill()
    one.wait()
    assert local.lives(place.workspace, place.entry(first))
    other = place.server()
    other.adopt()
    for _ in range(3):
        other.step()
    assert place.state(second) == "queued", "the first one's GPU is taken"
    place.let(first, second)
    finish(other)
    assert place.state(first) == place.state(second) == "done"
    assert not place.begun(first, 2) and place.entry(first).restarts == 0


def test_a_job_that_died_with_its_server_goes_on(place, apart):
    unit = place.add("a", gpus=1)
    one = apart()
    until(lambda: place.begun(unit) and place.entry(unit).pid is not None)
    one.kill()
    one.wait()
    local.kill(place.workspace, place.entry(unit))
    until(lambda: not local.lives(place.workspace, place.entry(unit)))
    other = place.server()
    other.adopt()
    assert place.state(unit) == "queued" and place.entry(unit).restarts == 1 and place.entry(unit).gpus == ()
    place.let(unit)
    finish(other)
    assert place.state(unit) == "done" and place.begun(unit, 2)


def test_a_job_that_saved_while_there_was_no_server_goes_on_uncounted(place):
    unit = place.add("a")
    one = place.server()
    until(lambda: place.begun(unit), one.step)
    os.kill(place.entry(unit).pid, signal.SIGTERM)
    until(lambda: not local.lives(place.workspace, place.entry(unit)))
    place.server().adopt()
    assert place.state(unit) == "queued" and place.entry(unit).restarts == 0


def test_a_job_stopped_by_somebody_else_is_not_started_again(place):
    unit = place.add("a")
    one = place.server()
    until(lambda: place.begun(unit), one.step)
    os.kill(place.entry(unit).pid, signal.SIGTERM)
    finish(one)
    assert place.state(unit) == "cancelled" and place.entry(unit).reason == "stopped by SIGTERM"


def test_a_job_whose_start_was_not_noted_is_found_by_its_folder(place):
    unit = place.add("a", gpus=1)
    one = place.server()
    until(lambda: place.begun(unit), one.step)
    entry = place.entry(unit)
    place.ledger.write(dataclasses.replace(entry, pid=None, started=None, job=None, log=None))
    (place.workspace.root / entry.folder / "started.json").unlink()
    other = place.server()
    other.adopt()
    other.step()
    assert list(other.live) == [entry.folder] and not place.begun(unit, 2)
    place.let(unit)
    finish(other)
    assert place.state(unit) == "done"


def test_a_job_that_never_began_is_queued_again_uncounted(place):
    unit = place.add("a")
    folder = local.new_folder(place.workspace, place.entry(unit))
    host = place.server().host
    place.ledger.write(dataclasses.replace(place.entry(unit), state="running", host=host, folder=folder))
    place.server().adopt()
    assert place.state(unit) == "queued" and place.entry(unit).restarts == 0


def test_a_rank_that_outlives_its_controller_is_not_joined_by_a_second_one(place):
    unit = place.add("a", gpus=1)
    one = place.server()
    until(lambda: place.begun(unit), one.step)
    controller = place.entry(unit).pid
    os.kill(controller, signal.SIGKILL)
    until(lambda: not processes.living(controller, place.entry(unit).started))
    assert processes.started(place.rank(unit)) is not None
    one.step()
    assert place.state(unit) == "running" and place.entry(unit).gpus == (0,)
    place.let(unit)
    finish(one)
    assert place.state(unit) == "done" and not place.begun(unit, 2)


def test_asked_to_stop_jobs_save_and_are_queued_again(place, apart):
    units = [place.add(f"job{i}", gpus=1) for i in range(3)]
    one = apart()
    until(lambda: all(map(place.begun, units[:2])))
    assert os.getsid(place.rank(units[0])) != os.getsid(one.pid), "Ctrl-C in a terminal would reach the job"
    one.send_signal(signal.SIGINT)
    _, said = one.communicate(timeout=LIMIT_S)
    assert one.returncode == 130 and "stopping: 2 jobs to save and end" in said
    assert [place.state(unit) for unit in units] == ["queued"] * 3
    assert [place.notes(unit)[-1] for unit in units[:2]] == ["saved"] * 2
    assert all(place.entry(unit).restarts == 0 and place.entry(unit).pid is None for unit in units)
    place.let(*units)
    finish(place.server())
    assert [place.state(unit) for unit in units] == ["done"] * 3


def test_asked_once_more_it_kills(place, apart):
    unit = place.add("a", "ignore")
    one = apart()
    until(lambda: place.begun(unit))
    one.send_signal(signal.SIGTERM)
    until(lambda: "stopping" in one.stderr.readline())
    assert processes.started(place.rank(unit)) is not None and one.poll() is None
    one.send_signal(signal.SIGTERM)
    one.communicate(timeout=LIMIT_S)
    assert one.returncode == 130 and processes.started(place.rank(unit)) is None
    assert place.state(unit) == "queued" and place.entry(unit).restarts == 0


def test_what_is_added_while_it_runs_is_seen(place, apart):
    first = place.add("first")
    one = apart()
    until(lambda: place.begun(first))
    second = place.add("second", "end")
    until(lambda: place.state(second) == "done")
    place.let(first)
    one.communicate(timeout=LIMIT_S)
    assert one.returncode == 0 and place.state(first) == "done"


def cancel(place: Place, unit: str) -> None:
    entry = place.entry(unit)
    place.ledger.write(dataclasses.replace(entry, state="cancelled"))
    if entry.pid is not None:
        os.kill(entry.pid, signal.SIGTERM)


def test_a_cancelled_job_keeps_its_place_until_it_has_saved_and_stays_cancelled(place):
    first, second = place.add("first", "ignore", gpus=2), place.add("second", "end", gpus=1)
    one = place.server()
    until(lambda: place.begun(first), one.step)
    cancel(place, first)
    for _ in range(3):
        one.step()
    assert place.state(second) == "queued"
    place.let(first)
    finish(one)
    assert place.state(first) == "cancelled" and place.state(second) == "done"


def test_submitted_anew_after_it_was_cancelled_it_waits_for_the_old_job_to_end(place):
    unit = place.add("a", "ignore", gpus=2)
    one = place.server()
    until(lambda: place.begun(unit), one.step)
    cancel(place, unit)
    place.ledger.set_aside(place.entry(unit))
    place.add("a", "end", gpus=2)
    place.ledger.write(dataclasses.replace(place.entry(unit), attempt=2))
    one.step()
    assert place.state(unit) == "queued"
    place.let(unit)
    finish(one)
    assert place.state(unit) == "done" and place.entry(unit).attempt == 2


def test_what_another_machine_runs_is_not_touched(place):
    unit = place.add("a", "end")
    place.ledger.write(dataclasses.replace(place.entry(unit), state="running", host="elsewhere", pid=1, started="1"))
    before = place.entry(unit)
    one = place.server()
    one.adopt()
    assert not one.step() and place.entry(unit) == before


def test_while_another_machine_starts_jobs_this_one_waits(place):
    unit = place.add("a", "end")
    one = place.server()
    with Lock(place.workspace.locks / "start.lock") as lock:
        assert lock.acquire()
        assert one.step() and place.state(unit) == "queued"
    finish(one)
    assert place.state(unit) == "done"


def test_a_second_submission_finds_the_server_and_waits_for_it(place, monkeypatch):
    """And serves what is left itself where the first one is gone."""
    monkeypatch.setattr(queue.Work, "of", FakeWork.of)
    monkeypatch.setattr(queue, "inventory", lambda gpus, slots: place.machine)
    unit = place.add("a", "end")
    with Lock(queue.lock_of(place.workspace)) as lock:
        assert lock.acquire()
        queue.serve(place.workspace, place.said, wait=False, gpus="0")
        assert place.said.text.endswith("goes on with them, with the GPUs and slots that it was started with")
        watching = Said()
        monkeypatch.setattr(watching, "say", lambda text: (watching.lines.append(text), lock.release()))
        queue.serve(place.workspace, watching, wait=True)
    assert watching.lines[0] == f"process {os.getpid()} on {place.server().host} serves the queue; waiting for it"
    assert place.state(unit) == "done" and not queue.is_served(place.workspace)


def test_what_comes_while_a_server_ends_is_served(place, monkeypatch):
    monkeypatch.setattr(queue.Work, "of", FakeWork.of)
    monkeypatch.setattr(queue, "inventory", lambda gpus, slots: place.machine)
    ends = Server.run
    late = []

    def run(self, asked):
        ends(self, asked)
        if not late:  # its submitter has seen the lock held, and leaves it to this server
            late.append(place.add("late", "end"))

    monkeypatch.setattr(Server, "run", run)
    queue.serve(place.workspace, place.said, wait=True)
    assert place.state(late[0]) == "done"


def test_too_small_a_machine_is_an_error_in_the_end(place, monkeypatch):
    monkeypatch.setattr(queue.Work, "of", FakeWork.of)
    monkeypatch.setattr(queue, "inventory", lambda gpus, slots: place.machine)
    unit = place.add("a", gpu_memory_gb=24)
    with pytest.raises(
        UserError, match=r"cannot start here:\n  train a asks for 24 GB of one GPU; the largest here has 16.0"
    ):
        queue.serve(place.workspace, place.said, wait=True)
    assert place.state(unit) == "queued"


def test_a_queue_that_cannot_start_says_why(place, monkeypatch):
    place.add("a")
    with pytest.raises(UserError, match="--gpus: no GPU '7'"):
        queue.serve(place.workspace, place.said, wait=False, gpus="7")
    monkeypatch.setattr(queue, "inventory", lambda gpus, slots: place.machine)  # here, and not in the server
    with pytest.raises(UserError, match=r"the queue could not be started: error: --gpus: no GPU '7'.*queue.log"):
        queue.serve(place.workspace, place.said, wait=False, gpus="7")


def test_with_nothing_queued_no_server_is_started(place):
    queue.serve(place.workspace, place.said, wait=False)
    assert place.said.lines == [] and not (place.workspace.jobs / "queue.log").exists()


def test_what_is_submitted_keeps_its_order(tmp_path):
    from experiments import tiny

    from harness.dispatch.submit import submit

    experiment = tiny(tmp_path, seeds=[0, 1, 2], tasks=["artifacts"])
    workspace = Workspace(tmp_path / "workspace")
    entries = submit(experiment, workspace, "local", Said(), preflight=False)
    assert [entry.unit.kind for entry in entries] == ["train"] * 3 + ["evaluate"] * 9
    assert list(Ledger(workspace).entries()) == [entry.unit.id for entry in entries]


def test_a_student_is_that_of_a_plain_run_though_its_job_was_killed(tmp_path):
    """A real training and its evaluation, served apart; the job is killed and goes on at its checkpoint."""
    from experiments import run, same, students, tiny

    from harness.dispatch.submit import submit
    from harness.records import read_records

    changes = {
        "methods": ["fitnet"],
        "tasks": ["artifacts"],
        "training": {"steps": 150},
        "runtime": {"checkpoint_steps": 5, "log_steps": 50},
    }
    experiment, said = tiny(tmp_path, **changes), Said()
    run(experiment, tmp_path / "plain")
    workspace = Workspace(tmp_path / "queued")
    train, evaluate = (e.unit.id for e in submit(experiment, workspace, "local", said, preflight=False))
    queue.serve(workspace, said, wait=False, slots=1)
    assert "serves the queue" in said.lines[-1]
    ledger = Ledger(workspace)
    until(lambda: list(workspace.groups.glob("*/checkpoint.pt")))
    local.kill(workspace, ledger.entries()[train])
    queue.serve(workspace, said, wait=True)
    entries = ledger.entries()
    assert (entries[train].state, entries[evaluate].state) == ("done", "done"), said.text
    assert entries[train].restarts == 1
    expected, found = students(experiment, tmp_path / "plain"), students(experiment, workspace.root)
    assert all(same(found[title], weights) for title, weights in expected.items())
    (record,), _ = read_records(workspace.records)
    (plain,), _ = read_records(tmp_path / "plain" / "records")
    assert record.values == plain.values


def test_a_job_that_is_still_being_built_can_be_asked_to_stop(place, monkeypatch):
    """submitit's own handler of SIGTERM would hear it and go on."""
    ledger, entry = place.ledger, place.entry(place.add("a"))
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "local")
    monkeypatch.setattr(queue.Work, "_same_code", lambda self: None)
    monkeypatch.setattr(queue.Work, "_job", lambda self: os.kill(os.getpid(), signal.SIGTERM))
    monkeypatch.setattr(queue.Work, "_do", lambda self, job: None)
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with pytest.raises(SystemExit) as ended:
            queue.Work.of(place.workspace, entry)()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == 128 + signal.SIGTERM
    end = ledger.end(entry)
    assert end is not None and (end.outcome, end.reason) == ("stopped", "stopped by SIGTERM")


def test_the_command_passes_its_options_on_and_ends_with_130_when_it_was_stopped(place, monkeypatch, capsys):
    asked = {}

    def stopped(workspace, console, **how):
        asked.update(how, root=workspace.root)
        raise Interrupted("SIGINT")

    monkeypatch.setattr(queue, "serve", stopped)
    root = place.workspace.root
    monkeypatch.setattr(sys, "argv", ["singer-bench", "queue", str(root), "--gpus", "0,1", "--slots", "4"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130 and "stopped by SIGINT" in capsys.readouterr().err
    assert asked == {"root": root, "wait": True, "gpus": "0,1", "slots": 4}


def test_a_rank_that_lost_another_one_does_not_call_that_a_failure(place, monkeypatch):
    from harness.training.distributed import RankLost

    def lost(self):
        raise RankLost("rank 0 of 2 has lost another one")

    entry = place.entry(place.add("a"))
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "local")
    monkeypatch.setattr(queue.Work, "_same_code", lambda self: None)
    monkeypatch.setattr(queue.Work, "_job", lost)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(RankLost):
            queue.Work.of(place.workspace, entry)()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert place.ledger.end(entry) is None
