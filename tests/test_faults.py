"""Faults that are done to a workspace, to its disk, its data and its processes: nothing lost, nothing trusted blindly.

Each ends the same way: one clear sentence, and the same command goes on to the bits of a run that nobody disturbed.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from experiments import run, same, students, tiny
from processes import Disturbed, crashed_at
from test_checkpoint import cut, flip

from harness.errors import UserError
from harness.job import Job
from harness.records import read_records
from harness.results import export
from harness.runs import Workspace, pending, student_runs

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
