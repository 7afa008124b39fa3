"""Locks: one holder at a time, whatever dies, wakes up or comes at the same moment."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from harness.errors import UserError
from harness.interrupts import Interrupted
from harness.storage import locks
from harness.storage.locks import STALE_S, Lock, holder, is_stale, owner

ROOT = Path(__file__).parents[1]
HOLD = """
    lock = Lock(Path(sys.argv[1]))
    print("taken" if lock.acquire() else "busy", flush=True)
    sys.stdin.readline()
    lock.release()
"""
# Everybody is ready before anybody begins; whoever wins holds the lock until all have tried.
CONTEND = """
    print("ready", flush=True)
    sys.stdin.readline()
    lock = Lock(Path(sys.argv[1]))
    print("taken" if lock.acquire() else "busy", flush=True)
    sys.stdin.readline()
"""


def start(program: str, path: Path) -> subprocess.Popen:
    code = "import sys\nfrom pathlib import Path\nfrom harness.storage.locks import Lock\n" + textwrap.dedent(program)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=ROOT, text=True, **pipes)


def said(process: subprocess.Popen) -> str:
    return process.stdout.readline().strip()


def told(process: subprocess.Popen) -> None:
    process.stdin.write("\n")
    process.stdin.flush()


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "locks" / "group.lock"


@pytest.fixture
def other(path):
    """Another process, which holds the lock."""
    process = start(HOLD, path)
    assert said(process) == "taken"
    yield process
    process.kill()
    process.communicate()


def write(path: Path, age_s: float = 0, **changes: object) -> None:
    """A lock that somebody holds who touched it `age_s` ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**locks._me(), "nonce": "n", **changes}))
    os.utime(path, (time.time() - age_s,) * 2)


def dead_pid() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_of_two_processes_one_gets_the_lock_and_the_other_gets_it_next(path, other):
    second = start(HOLD, path)
    assert said(second) == "busy"
    second.communicate("\n")
    assert holder(path) == f"process {other.pid} on {socket.gethostname()}"
    told(other)
    assert other.wait(10) == 0
    assert not path.exists()
    third = start(HOLD, path)
    assert said(third) == "taken"
    third.communicate("\n")


@pytest.mark.parametrize("reaped", [True, False])
def test_a_killed_owner_loses_the_lock_at_once_even_while_its_parent_has_not_noticed(path, other, reaped):
    lock = Lock(path)
    assert not lock.acquire()
    other.send_signal(signal.SIGKILL)
    if reaped:
        other.wait()
    else:
        os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)  # it is dead, and still in the process table
    assert lock.acquire()
    assert owner(path)["pid"] == os.getpid()
    lock.release()


def test_a_lock_is_free_after_release_and_leaves_nothing_behind(path):
    for _ in range(2):
        with Lock(path) as lock:
            assert lock.acquire()
            assert not is_stale(path)
        assert list(path.parent.iterdir()) == []
    lock.release()  # once more does no harm


def test_a_lock_is_given_back_when_an_error_ends_its_block(path):
    with pytest.raises(KeyError), Lock(path) as lock:
        assert lock.acquire()
        raise KeyError
    assert not path.exists()


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize(("place", "name"), [(os, "link"), (threading.Thread, "__init__"), (threading.Thread, "start")])
def test_a_signal_at_any_moment_of_taking_a_lock_leaves_none_behind(path, monkeypatch, place, name, done):
    """Just before or after it is ours, and before or after there is somebody who touches it."""
    really = getattr(place, name)

    def interrupted(*given, **named):
        monkeypatch.undo()
        if done:
            really(*given, **named)
        raise Interrupted("SIGTERM")

    with pytest.raises(Interrupted), Lock(path) as lock:
        monkeypatch.setattr(place, name, interrupted)
        lock.acquire()
    assert not list(path.parent.iterdir())
    with Lock(path) as lock:
        assert lock.acquire()


def test_a_second_lock_in_the_same_process_has_to_wait(path):
    one, two = Lock(path), Lock(path)
    assert one.acquire()
    assert not one.acquire()
    assert not two.acquire()
    two.release()
    assert path.exists()  # two never had it
    one.release()
    assert two.acquire()
    two.release()


def test_a_pid_that_was_given_to_another_process_since_is_no_owner(path):
    write(path, pid=os.getpid(), started="1")
    assert is_stale(path)
    with Lock(path) as lock:
        assert lock.acquire()


def test_a_pid_of_a_living_process_is_its_owner_however_old_the_lock(path):
    write(path, age_s=10 * STALE_S)
    assert not is_stale(path)
    assert not Lock(path).acquire()


def test_a_pid_of_nobody_is_no_owner_however_new_the_lock(path):
    write(path, pid=dead_pid())
    assert is_stale(path)


@pytest.mark.parametrize("elsewhere", [{"host": "another-machine"}, {"space": "pid:[1]"}], ids=str)
def test_a_lock_of_another_machine_or_container_is_stale_only_when_nobody_touches_it(path, elsewhere):
    write(path, age_s=STALE_S - 60, pid=dead_pid(), **elsewhere)
    assert not is_stale(path)
    assert not Lock(path).acquire()
    write(path, age_s=STALE_S + 60, **elsewhere)
    assert is_stale(path)
    with Lock(path) as lock:
        assert lock.acquire()


@pytest.mark.parametrize("text", ["", "not JSON", "[1]", '{"host": 1}'])
def test_a_lock_that_cannot_be_read_is_stale_only_when_nobody_touches_it(path, text):
    write(path)
    path.write_text(text)
    assert not is_stale(path)
    os.utime(path, (time.time() - STALE_S - 60,) * 2)
    assert is_stale(path)
    with Lock(path) as lock:
        assert lock.acquire()


def test_a_lock_that_is_not_there_is_not_stale_and_nobodys(path):
    assert not is_stale(path)
    assert owner(path) is None
    assert holder(path) == "nobody"


@pytest.mark.parametrize("stale", [False, True])
def test_of_many_processes_that_come_at_once_exactly_one_wins(path, stale):
    if stale:
        write(path, pid=dead_pid())
    processes = [start(CONTEND, path) for _ in range(6)]
    assert [said(p) for p in processes] == ["ready"] * 6
    for process in processes:
        told(process)
    assert sorted(said(p) for p in processes) == ["busy"] * 5 + ["taken"]
    for process in processes:
        process.kill()
        process.communicate()


def test_of_many_threads_that_come_at_once_exactly_one_wins_again_and_again(path):
    for _ in range(40):
        write(path, pid=1, started="never")
        begin, mine = threading.Barrier(6), [Lock(path) for _ in range(6)]
        won: list[Lock] = []

        def contend(lock: Lock, begin: threading.Barrier = begin, won: list[Lock] = won) -> None:
            begin.wait()
            if lock.acquire():
                won.append(lock)

        threads = [threading.Thread(target=contend, args=(lock,)) for lock in mine]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        won[0].release()


def test_who_saw_a_stale_lock_and_comes_late_leaves_the_new_owner_alone(path, monkeypatch):
    write(path, pid=dead_pid())
    quick = Lock(path)
    judged = locks.is_stale

    def judged_and_overtaken(of: Path) -> bool:
        stale = judged(of)
        monkeypatch.setattr(locks, "is_stale", judged)
        assert quick.acquire()  # between the judgement and what follows from it
        return stale

    monkeypatch.setattr(locks, "is_stale", judged_and_overtaken)
    assert not Lock(path).acquire()
    assert owner(path) == quick.content
    quick.release()
    assert not path.exists()


def test_who_dies_while_removing_a_stale_lock_keeps_nobody_from_it(path):
    gone = dead_pid()
    write(path, pid=gone)
    write(path.with_name(f".{path.name}.n"), pid=gone)
    with Lock(path) as lock:
        assert lock.acquire()
    assert list(path.parent.iterdir()) == []


def test_while_another_removes_a_stale_lock_it_is_busy(path):
    write(path, pid=dead_pid())
    write(path.with_name(f".{path.name}.n"))
    assert not Lock(path).acquire()
    assert owner(path) is not None


def test_release_leaves_the_lock_of_another_alone(path):
    lock = Lock(path)
    assert lock.acquire()
    path.unlink()  # judged stale while the machine slept
    write(path, host="another-machine")
    taken = path.read_text()
    lock.release()
    assert path.read_text() == taken


def test_the_owner_touches_its_lock_so_that_it_does_not_grow_old(path, monkeypatch):
    monkeypatch.setattr(locks, "BEAT_S", 0.01)
    with Lock(path) as lock:
        assert lock.acquire()
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 10
        while path.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert time.time() - path.stat().st_mtime < 60


def test_the_former_owner_does_not_touch_the_lock_of_another(path, monkeypatch):
    monkeypatch.setattr(locks, "BEAT_S", 0.01)
    with Lock(path) as lock:
        assert lock.acquire()
        beat = lock._beat
        path.unlink()
        write(path, host="another-machine", age_s=1000)
        beat.join(10)
        assert not beat.is_alive()
        assert time.time() - path.stat().st_mtime > 900


def test_a_file_system_without_hard_links_is_refused_in_words(path, monkeypatch):
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(UserError, match="has no hard links, which locks need; put the workspace on"):
        Lock(path).acquire()
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("off_s", [-6 * 3600, 6 * 3600])
def test_a_clock_that_is_hours_off_judges_no_lock_stale_that_is_touched_and_every_one_that_is_not(
    path, off_s, monkeypatch
):
    real = time.time
    write(path, host="another-machine")
    monkeypatch.setattr(time, "time", lambda: real() + off_s)
    assert not is_stale(path) and not Lock(path).acquire()
    monkeypatch.undo()
    write(path, age_s=STALE_S + 60, host="another-machine")
    monkeypatch.setattr(time, "time", lambda: real() + off_s)
    assert is_stale(path)
    with Lock(path) as lock:
        assert lock.acquire()


def test_looking_at_a_lock_leaves_nothing_behind(path):
    write(path, host="another-machine")
    is_stale(path)
    assert list(path.parent.iterdir()) == [path]


def test_who_may_not_write_there_can_still_tell_whether_a_lock_is_stale(path, monkeypatch):
    write(path, age_s=STALE_S + 60, host="another-machine")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "touch", refuse)
    assert is_stale(path)


def test_a_server_that_loses_its_answer_and_says_the_link_exists_is_not_believed(path, monkeypatch):
    link = os.link

    def linked_twice(*args: object) -> None:
        link(*args)  # type: ignore[arg-type]
        raise FileExistsError(errno.EEXIST, "File exists")  # to the same request, sent once more

    monkeypatch.setattr(os, "link", linked_twice)
    with Lock(path) as lock:
        assert lock.acquire()
        assert not Lock(path).acquire()


def test_a_server_that_does_not_answer_for_a_while_costs_nobody_the_lock(path, monkeypatch):
    monkeypatch.setattr(locks, "BEAT_S", 0.01)
    read, answers = locks._read, threading.Event()

    def unanswered(of: Path):
        if not answers.is_set():
            raise TimeoutError(errno.ETIMEDOUT, "Connection timed out")
        return read(of)

    monkeypatch.setattr(locks, "_read", unanswered)
    with Lock(path) as lock:
        assert lock.acquire()
        os.utime(path, (0, 0))
        time.sleep(0.1)
        assert path.stat().st_mtime == 0
        answers.set()
        deadline = time.monotonic() + 10
        while path.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert path.stat().st_mtime > 0


def test_nothing_of_ours_uses_locks_that_a_network_file_system_may_not_have():
    files = [file for package in ("harness", "tasks", "leaderboard") for file in (ROOT / package).rglob("*.py")]
    assert len(files) > 50
    for file in files:
        assert not re.search(r"import fcntl|\.(flock|lockf)\(", file.read_text()), file
