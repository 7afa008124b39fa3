"""Faults that are done to a workspace, to its disk, its data and its processes: nothing lost, nothing trusted blindly.

Each ends the same way: one clear sentence, and the same command goes on to the bits of a run that nobody disturbed.
"""

from __future__ import annotations

import contextlib
import copy
import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from experiments import TINY, run, same, students, tiny
from PIL import Image
from processes import Disturbed, crashed_at
from safetensors.torch import load_file
from test_checkpoint import cut, flip

from harness import data
from harness.catalogue import catalogue
from harness.config import Experiment, merge, parse
from harness.errors import UserError
from harness.job import Job, Outcome
from harness.monitoring.status import status
from harness.monitoring.status_text import described
from harness.planning.plans import plan
from harness.records import read_records
from harness.results import export, remember
from harness.runs import Workspace, pending, student_runs
from harness.specs import Runtime
from harness.workers import loaded
from leaderboard.render import render
from leaderboard.write import load
from tasks.artifacts import Artifacts

FEW = {
    "methods": ["none", "fitnet"],
    "training": {"steps": 16},
    "runtime": {"checkpoint_steps": 4, "log_steps": 2},
}
LOG = list(range(2, 17, 2))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict:
    """The students of a run that nobody touched."""
    folder = tmp_path_factory.mktemp("undisturbed")
    experiment = tiny(folder, **FEW)
    run(experiment, folder / "workspace")
    return students(experiment, folder / "workspace")


@pytest.fixture
def place(tmp_path) -> Path:
    return tmp_path / "workspace"


def unharmed(experiment, workspace: Path, undisturbed: dict) -> None:
    """Every student has the bits of the undisturbed run, every log its lines."""
    found = students(experiment, workspace)
    assert found.keys() == undisturbed.keys()
    for title, weights in undisturbed.items():
        assert same(found[title], weights), title
    for one in student_runs(experiment):
        log = Workspace(workspace).student(one.id) / "train.jsonl"
        assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == LOG


def told(experiment, workspace: Path) -> tuple[Job, Disturbed]:
    """Run it to the end; the job, and the console with what it has said."""
    console = Disturbed()
    job = Job(experiment, Workspace(workspace), console)
    job.run()
    return job, console


def looked_at(experiment, workspace: Path) -> str:
    """What `plan`, `status` and `table` say."""
    place = Workspace(workspace)
    said = [plan(experiment, place), *described(status(place))]
    if any(place.records.glob("*.json")):
        said.append(render(load(workspace), "plain"))
    return "\n".join(said)


def retry(experiment, workspace: Path) -> None:
    """What --retry-failed does."""
    for one in student_runs(experiment):
        (Workspace(workspace).failures / f"{one.id}.json").unlink(missing_ok=True)


# ---- checkpoints

DAMAGES = {
    "cut short": lambda path: cut(path, 1000),
    "empty": lambda path: cut(path, 0),
    "its last bytes are missing": lambda path: cut(path, path.stat().st_size - 10),
    "a flipped bit": lambda path: flip(path, path.stat().st_size // 2),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_is_used(damage, undisturbed, tmp_path, place):
    experiment = tiny(tmp_path, **FEW)
    crashed_at(10, experiment, place)
    (path,) = place.glob("groups/*/checkpoint.pt")
    DAMAGES[damage](path)
    console = Disturbed(11, lambda: names.extend(p.name for p in path.parent.iterdir()))
    names: list[str] = []
    Job(experiment, Workspace(place), console).run()
    assert console.begun == [4]  # the one at step 8 is lost
    assert "checkpoint.pt.damaged-1" in names
    (said,) = [text for text in console.said if "damaged" in text]
    assert "is set aside as checkpoint.pt.damaged-1, and the checkpoint before it is used" in said
    unharmed(experiment, place, undisturbed)


def test_where_no_checkpoint_is_whole_the_group_waits_to_be_asked_and_the_others_go_on(undisturbed, tmp_path, place):
    experiment = tiny(tmp_path, **{**FEW, "runtime": {**FEW["runtime"], "max_group": 1}})
    crashed_at(10, experiment, place)
    paths = list(place.glob("groups/*/checkpoint*.pt"))
    assert len(paths) == 2
    for path in paths:
        cut(path, 1000)
    job, console = told(experiment, place)
    (reason,) = job.outcome.failed.values()
    assert "checkpoint.pt.damaged-1" in reason and "checkpoint.previous.pt.damaged-1" in reason
    assert reason.endswith("(step 10)")
    assert any("--retry-failed trains it from its beginning" in text for text in console.said)
    assert len(job.outcome.trained) == 1
    aside = sorted(place.glob("groups/*/*.damaged-1"))
    assert len(aside) == 2
    # Nothing happens by itself, however often it is started again.
    again, _ = told(experiment, place)
    assert again.outcome.trained == [] and again.outcome.failed == job.outcome.failed
    assert sorted(place.glob("groups/*/*.damaged-1")) == aside
    retry(experiment, place)
    last, console = told(experiment, place)
    assert console.begun == [0] and len(last.outcome.trained) == 1
    unharmed(experiment, place, undisturbed)
    assert not list(place.glob("groups/*"))


def test_a_larger_groups_checkpoint_helps_where_ones_own_is_damaged(undisturbed, tmp_path, place):
    whole = tiny(tmp_path, **FEW)
    crashed_at(5, whole, place)
    alone = tiny(tmp_path, **{**FEW, "methods": ["fitnet"]})
    crashed_at(10, alone, place)
    (own,) = (path for path in place.glob("groups/*/checkpoint.pt") if len(runs_of(path)) == 1)
    for path in own.parent.glob("checkpoint*.pt"):
        cut(path, 1000)
    job, console = told(alone, place)
    assert console.begun == [4] and len(job.outcome.trained) == 1
    unharmed(alone, place, {"fitnet seed 0": undisturbed["fitnet seed 0"]})


def runs_of(checkpoint: Path) -> list[str]:
    return json.loads(checkpoint.with_name("group.json").read_text())["runs"]


def test_a_damaged_list_of_a_group_is_named_with_the_remedy(tmp_path, place):
    experiment = tiny(tmp_path, **FEW)
    crashed_at(10, experiment, place)
    (path,) = place.glob("groups/*/group.json")
    cut(path, 5)
    with pytest.raises(UserError, match=r"group\.json is damaged .*; remove .* to start that group from its beginning"):
        run(experiment, place)


# ---- students

STUDENT_DAMAGES = {
    "model.safetensors": lambda path: flip(path, path.stat().st_size - 100),
    "run.yaml": lambda path: cut(path, path.stat().st_size // 2),
}


@pytest.mark.parametrize("damage", STUDENT_DAMAGES)
def test_a_damaged_student_is_set_aside_and_neither_measured_nor_trained_again(damage, undisturbed, tmp_path, place):
    run(tiny(tmp_path, **FEW), place)
    measured = tiny(tmp_path, tasks=["artifacts"], **FEW)
    fitnet = next(one for one in student_runs(measured) if one.info.label == "fitnet")
    STUDENT_DAMAGES[damage](Workspace(place).student(fitnet.id) / damage)
    job, console = told(measured, place)
    aside = f"students/{fitnet.id}.damaged-1"
    assert list(job.outcome.failed) == ["fitnet seed 0"] and aside in job.outcome.failed["fitnet seed 0"]
    assert damage in job.outcome.failed["fitnet seed 0"] and (place / aside).is_dir()
    assert any("--retry-failed trains it again" in text for text in console.said)
    assert sorted(r.run.label for r in read_records(place / "records")[0]) == ["none"]
    again, _ = told(measured, place)
    assert again.outcome.trained == [] and again.outcome.evaluated == 0 and again.outcome.failed == job.outcome.failed
    retry(measured, place)
    last, _ = told(measured, place)
    assert last.outcome.trained == [fitnet.id] and last.outcome.evaluated == 1
    unharmed(measured, place, undisturbed)


def test_a_damaged_student_is_not_exported(tmp_path, place):
    run(tiny(tmp_path, methods=["fitnet"]), place)
    (path,) = place.glob("students/*/model.safetensors")
    flip(path, path.stat().st_size - 100)
    with pytest.raises(UserError, match=r"model\.safetensors is damaged: its checksum is not that of its content"):
        export(path.parent, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_teacher_that_was_trained_here_stops_everything_that_needs_it(tmp_path, place):
    fit = {"teacher": {"fit": {"training": {"steps": 4, "batch_size": 8}}}}
    run(tiny(tmp_path, methods=["none"], **fit), place)
    teacher = next(p for p in place.glob("students/*") if "label: teacher fit" in (p / "run.yaml").read_text())
    flip(teacher / "model.safetensors", 1000)
    more = tiny(tmp_path, methods=["none", "fitnet"], **fit)
    with pytest.raises(UserError, match=rf"the teacher that was trained here: .*{teacher.name}\.damaged-1"):
        run(more, place)
    with pytest.raises(UserError, match="the teacher's own training failed: its student was damaged"):
        run(more, place)
    (place / "failures" / f"{teacher.name}.json").unlink()
    assert len(run(more, place).outcome.trained) == 2  # the teacher and fitnet


# ---- records


@pytest.mark.parametrize("harm", [lambda path: cut(path, 300), lambda path: flip(path, 900)], ids=["cut", "flipped"])
def test_a_damaged_record_is_set_aside_and_measured_anew(harm, tmp_path, place):
    experiment = tiny(tmp_path, methods=["none", "fitnet"], tasks=["artifacts"])
    run(experiment, place)
    before = {r.run.label: r.values for r in read_records(place / "records")[0]}
    path = sorted(place.glob("records/*.json"))[0]
    harm(path)
    damaged = path.read_bytes()
    assert len(read_records(place / "records")[0]) == 1 and pending(experiment, Workspace(place))
    job, console = told(experiment, place)
    assert job.outcome.evaluated == 1 and job.outcome.trained == []
    aside = path.with_name(f"{path.name}.damaged-1")
    assert aside.read_bytes() == damaged and any(f"set aside as {aside.name}" in text for text in console.said)
    records, problems = read_records(place / "records")
    assert {r.run.label: r.values for r in records} == before and not problems


@pytest.mark.parametrize("name", ["failures", "protocols", "data"])
def test_a_small_file_that_is_damaged_is_named_with_the_remedy(name, tmp_path, place):
    diverging = {"training": {"optimizer": "sgd", "lr": 1e12}} if name == "failures" else {}
    experiment = tiny(tmp_path, methods=["none"], tasks=["artifacts"], **diverging)
    run(experiment, place)
    for path in place.glob(f"{name}/*.json"):
        cut(path, 5)
    with pytest.raises(UserError, match=r"\.json is damaged .*; remove it"):
        pending(experiment, Workspace(place))
        told(tiny(tmp_path, tasks=["artifacts"]), place)


def test_a_damaged_workspace_can_be_looked_at(tmp_path, place):
    experiment = tiny(tmp_path, tasks=["artifacts"], **FEW)
    remember(experiment, Workspace(place))
    run(experiment, place)
    crashed_at(10, tiny(tmp_path, **{**FEW, "seeds": [1]}), place)
    for name in ("students/*/run.yaml", "records/*.json"):
        path = sorted(place.glob(name))[0]
        cut(path, path.stat().st_size // 2)
    for name in ("students/*.partial/train.jsonl", "groups/*/progress.json"):
        for path in place.glob(name):
            cut(path, 10)
    record = sorted(place.glob("records/*.json"))[0].name
    said = looked_at(tiny(tmp_path, tasks=["artifacts"], **{**FEW, "seeds": [0, 1]}), place)
    assert "evaluated: 1 of" in said and f"{record}: cut short" in said


def test_a_workspace_may_move_in_the_middle_of_a_training(undisturbed, tmp_path, place):
    experiment = tiny(tmp_path, **FEW)
    crashed_at(10, experiment, place)
    moved = Path(shutil.copytree(place, tmp_path / "moved"))
    shutil.rmtree(place)
    (tmp_path / "images").rename(tmp_path / "other images")
    elsewhere = experiment.data.model_copy(update={"root": str(tmp_path / "other images")})
    data._OPEN.clear()
    experiment = experiment.model_copy(update={"data": elsewhere})
    _, console = told(experiment, moved)
    assert console.begun == [8]
    unharmed(experiment, moved, undisturbed)


# ---- the disk


def mounted(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True, capture_output=True)


@pytest.fixture
def disk(tmp_path):
    """A disk of 12 MB that can be filled up and made read-only."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        mounted(folder, "size=12m")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a small disk is mounted by root alone, where mounting is allowed: {error}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> None:
    """Not one byte more."""
    with open(disk / "ballast", "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def disturbed(experiment, workspace: Path, step: int | None, then) -> tuple[str, Disturbed]:
    """What a user reads who runs this while `then` happens after a step."""
    console = Disturbed(step, then)
    with pytest.raises(UserError) as error:
        Job(experiment, Workspace(workspace), console).run()
    return str(error.value), console


@pytest.mark.parametrize("step", [1, 5, 16])
def test_a_full_disk_while_training_is_said_and_space_lets_it_go_on(step, undisturbed, tmp_path, disk):
    experiment, workspace = tiny(tmp_path, **FEW), disk / "workspace"
    said, _ = disturbed(experiment, workspace, step, lambda: fill(disk))
    assert "No space left on device" in said and "ree some space" in said
    again, _ = disturbed(experiment, workspace, None, None)  # no harm is done by starting it too soon
    assert "No space left on device" in again
    (disk / "ballast").unlink()
    run(experiment, workspace)
    unharmed(experiment, workspace, undisturbed)
    assert not list(workspace.rglob("*.tmp"))


@pytest.mark.parametrize("file", [1, 2, 3], ids=["its weights", "its method's weights", "the next one's weights"])
def test_a_full_disk_while_students_are_written_loses_nothing(file, undisturbed, tmp_path, disk, monkeypatch):
    experiment, workspace = tiny(tmp_path, **FEW), disk / "workspace"
    write, written = safetensors.torch.save_file, []

    def full(*given, **named) -> None:
        written.append(given)
        if len(written) == file:
            fill(disk)
        write(*given, **named)

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    said, _ = disturbed(experiment, workspace, None, None)
    assert "No space left on device; free some space. What is saved is kept, and the same command goes on" in said
    finished = [folder for folder in workspace.glob("students/*") if folder.suffix != ".partial"]
    assert len(finished) == (file - 1) // 2
    monkeypatch.undo()
    (disk / "ballast").unlink()
    _, console = told(experiment, workspace)
    assert console.begun == [16]  # not one step is done again
    unharmed(experiment, workspace, undisturbed)


def test_a_full_disk_while_evaluating_loses_no_student_and_no_record(tmp_path, disk, monkeypatch):
    experiment, workspace = tiny(tmp_path, tasks=["artifacts"], **FEW), disk / "workspace"
    run(tiny(tmp_path, **FEW), workspace)
    evaluate = Artifacts.evaluate
    monkeypatch.setattr(Artifacts, "evaluate", lambda *given, **named: (evaluate(*given, **named), fill(disk))[0])
    said, _ = disturbed(experiment, workspace, None, None)
    assert "No space left on device" in said and not list(workspace.glob("records/*"))
    monkeypatch.undo()
    (disk / "ballast").unlink()
    job, _ = told(experiment, workspace)
    assert job.outcome.evaluated == 2 and job.outcome.trained == []


def test_a_limit_on_the_size_of_files_is_said_like_a_full_disk(undisturbed, tmp_path, place):
    """Where nothing can be mounted this is what a full disk can be tried with."""
    experiment = tiny(tmp_path, **FEW)
    crashed_at(5, experiment, place)
    said = in_words_of_a_child(lambda: run(experiment, place), limit=200_000)
    assert said.startswith("cannot write the checkpoint ")
    assert said.endswith(
        ": File too large; raise the limit on the size of files (ulimit -f); the checkpoint before it is whole. "
        "Then start again"
    )
    _, console = told(experiment, place)
    assert console.begun == [4]
    unharmed(experiment, place, undisturbed)


def test_a_disk_that_becomes_read_only_is_said_and_nothing_is_lost(undisturbed, tmp_path, disk):
    experiment, workspace = tiny(tmp_path, tasks=["artifacts"], **FEW), disk / "workspace"
    remember(experiment, Workspace(workspace))
    remount = ["mount", "-o", "remount,ro", str(disk)]
    console = Disturbed(5, lambda: subprocess.run(remount, check=True))
    said = in_words_of_a_child(Job(experiment, Workspace(workspace), console).run)
    assert "Read-only file system; make the file system writable" in said
    assert "Read-only file system" in in_words_of_a_child(lambda: run(experiment, workspace))
    with pytest.raises(UserError, match=r"cannot write into the workspace .*Read-only file system"):
        remember(experiment, Workspace(workspace))
    looked_at(experiment, workspace)  # needs no writing
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    run(experiment, workspace)
    unharmed(experiment, workspace, undisturbed)


# ---- two users


def in_words_of_a_child(work, limit: int | None = None, user: int | None = None) -> str:
    """The UserError, or "", of what a child process does under a limit on files' size, or as another user."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        said = "it came to no end"
        try:
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            if user is not None:
                os.chdir("/")  # where tests run is another user's own
                os.setgroups([])
                os.setgid(user)
                os.setuid(user)
                os.umask(0o002)
            work()
            said = ""
        except UserError as error:
            said = str(error)
        except BaseException as error:
            said = f"no UserError but {error!r}"
        finally:
            os.write(write, said.encode())
            os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(child, 0)
    return said


NOBODY = 65534


@pytest.fixture
def shared():
    """A folder that other users can reach into."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("only root can be two users")
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


def test_a_workspace_of_another_user_is_said_and_a_group_shares_it(undisturbed, shared):
    experiment, workspace = tiny(shared, tasks=["artifacts"], **FEW), shared / "workspace"
    remember(experiment, Workspace(workspace))
    crashed_at(10, experiment, workspace)
    said = in_words_of_a_child(lambda: run(experiment, workspace), user=NOBODY)
    assert "Permission denied; " in said and "belongs to root" in said and "docs/operations.md" in said
    assert in_words_of_a_child(lambda: looked_at(experiment, workspace), user=NOBODY) == ""  # may look
    # What docs/operations.md tells them to do.
    subprocess.run(["chgrp", "-R", str(NOBODY), str(workspace)], check=True)
    subprocess.run(["chmod", "-R", "g+rwX", str(workspace)], check=True)
    subprocess.run(["find", str(workspace), "-type", "d", "-exec", "chmod", "g+s", "{}", "+"], check=True)
    assert in_words_of_a_child(lambda: run(experiment, workspace), user=NOBODY) == ""
    unharmed(experiment, workspace, undisturbed)
    assert told(experiment, workspace)[0].outcome == Outcome()  # the first user finds all of it done


def test_a_plugin_that_may_not_be_read_is_said(shared):
    (shared / "closed").mkdir(mode=0o700)
    (shared / "closed" / "mine.py").write_text("")
    said = in_words_of_a_child(lambda: catalogue([shared / "closed" / "mine.py"]), user=NOBODY)
    assert said == f"plugin file {shared}/closed/mine.py cannot be read: Permission denied"


# ---- data


def on_files(root: Path, **data: object) -> Experiment:
    """The experiment on images in files."""
    place = {"source": "folder", "name": "files", "root": str(root), **data}
    return parse(merge(copy.deepcopy(TINY), {**FEW, "data": place}))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    root, generator = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number in range(80):
        path = root / ("train" if number < 40 else "test") / f"class{number % 4}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path)
    return root


@pytest.fixture(scope="module")
def undisturbed_on_files(pictures, tmp_path_factory) -> dict:
    workspace = tmp_path_factory.mktemp("undisturbed_on_files")
    run(on_files(pictures), workspace)
    return students(on_files(pictures), workspace)


@pytest.fixture
def files(pictures, tmp_path) -> Path:
    """A copy that may be harmed."""
    return Path(shutil.copytree(pictures, tmp_path / "files"))


def test_an_image_that_breaks_while_training_is_named_and_no_step_is_lost(files, undisturbed_on_files, place):
    path = files / "train" / "class1" / "5.png"
    whole = path.read_bytes()
    said, console = disturbed(on_files(files), place, 6, lambda: path.write_bytes(whole[:60]))
    assert said.startswith("image 'class1/5.png' cannot be read: ") and "data.on_bad_image: skip" in said
    (state,) = place.glob("groups/*/checkpoint.pt")
    step = torch.load(state, weights_only=True)["step"]
    assert step >= 6
    path.write_bytes(whole)
    _, console = told(on_files(files), place)
    assert console.begun == [step]
    unharmed(on_files(files), place, undisturbed_on_files)


@pytest.mark.parametrize("on_bad_image", ["raise", "skip"])
@pytest.mark.parametrize("workers", [0, 2])
def test_data_that_vanishes_while_training_is_said_and_never_skipped(
    on_bad_image, workers, files, undisturbed_on_files, place
):
    runtime = {**FEW["runtime"], "num_workers": workers}
    experiment = on_files(files, on_bad_image=on_bad_image).model_copy(update={"runtime": Runtime(**runtime)})
    away = files.with_name("away")
    said, _ = disturbed(experiment, place, 6, lambda: files.rename(away))
    assert "No such file or directory" in said and "Is the data still in its place, connected" in said
    away.rename(files)
    run(experiment, place)
    unharmed(experiment, place, undisturbed_on_files)


def test_data_that_is_gone_at_the_start_is_said(files, place):
    experiment = on_files(files)
    crashed_at(6, experiment, place)
    files.rename(files.with_name("away"))
    data._OPEN.clear()
    with pytest.raises(UserError, match=r"files.*"):
        run(experiment, place)


def test_a_killed_data_worker_is_replaced_and_no_method_is_to_blame(undisturbed, tmp_path, place, capfd):
    experiment = tiny(tmp_path, **{**FEW, "runtime": {**FEW["runtime"], "num_workers": 2}})

    def kill() -> None:
        worker, _ = multiprocessing.active_children()
        os.kill(worker.pid, signal.SIGKILL)

    console = Disturbed(2, kill)
    job = Job(experiment, Workspace(place), console)
    job.run()
    assert len(job.outcome.trained) == 2 and not job.outcome.failed
    assert "new data workers go on with the same batch" in capfd.readouterr().err
    unharmed(experiment, place, undisturbed)


@pytest.mark.parametrize(
    "death",
    [
        RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"),
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
        ConnectionResetError(104, "Connection reset by peer"),  # while a batch was fetched from it
    ],
)
def test_workers_that_die_again_and_again_are_an_error_in_words(death):
    class Dying:
        def __init__(self, number: int) -> None:
            self.number = number

        def __iter__(self):
            yield self.number
            raise death

    found = []
    with pytest.raises(UserError, match=r"data workers died 4 times, .* lower runtime\.num_workers"):
        for batch in loaded(Dying):  # type: ignore[arg-type]
            found.append(batch)
    assert found == [0, 1, 2, 3]  # every death cost a batch no more than once


def test_another_error_of_a_loader_is_no_workers_death():
    def broken(_: int):
        raise RuntimeError("stack expects each tensor to be equal size")
        yield

    with pytest.raises(RuntimeError, match="equal size"):
        list(loaded(broken))  # type: ignore[arg-type]


# ---- methods


def test_a_loss_that_is_not_finite_fails_one_run_and_leaves_the_others_alone(undisturbed, tmp_path, place):
    diverging = {"method": "fitnet", "label": "diverging", "hyperparameters": {"weight": 1e39}}
    experiment = tiny(tmp_path, **{**FEW, "methods": ["none", diverging, "fitnet"]})
    job, _ = told(experiment, place)
    assert job.outcome.failed == {"diverging seed 0": "the loss is not finite (step 0)"}
    found = {one.title: Workspace(place).student(one.id) for one in student_runs(experiment)}
    for title, weights in undisturbed.items():
        own = {name: value for name, value in weights.items() if not name.startswith("method.")}
        assert same(load_file(found[title] / "model.safetensors"), own), title
