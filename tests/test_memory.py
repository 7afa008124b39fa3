"""How many students are trained at once: as asked, as measured, and fewer where a device's memory runs out."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from experiments import same, students, tiny

from harness.errors import UserError
from harness.interrupts import Interrupted
from harness.job import Job
from harness.progress import Console
from harness.runs import Workspace, groups, student_runs
from harness.storage.sizes import UNMEASURED, largest, note, noted
from harness.training import fitting, memory, train
from harness.training.fitting import PROBED, how_many

REASON = "CUDA out of memory. Tried to allocate 2.00 GiB."


class Heard(Console):
    """A console that keeps what it is told."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def ran(experiment, workspace: Path) -> tuple[Job, list[str]]:
    console = Heard()
    job = Job(experiment, Workspace(workspace), console)
    job.run()
    return job, console.lines


def full(monkeypatch, too_many: Callable[[train.Group], bool]) -> list[int]:
    """A device whose memory runs out in the step of the last student of a group that is `too_many`.

    Returns the sizes of the groups that it happened to.
    """
    happened: list[int] = []
    step = train.Group._member_step

    def member_step(self, one, *rest):
        if one is self.alive[-1] and too_many(self):
            happened.append(len(self.members))
            raise torch.OutOfMemoryError(f"{REASON}\nmore about it")
        step(self, one, *rest)

    monkeypatch.setattr(train.Group, "_member_step", member_step)
    return happened


# ---- what a workspace notes


def spec_of(tmp_path, **changes):
    return student_runs(tiny(tmp_path, **changes))[0].spec


def test_what_is_noted_holds_for_all_methods_and_seeds_and_for_nothing_else(tmp_path):
    here = tmp_path / "sizes"
    note(here, spec_of(tmp_path), 5, "measured")
    assert noted(here, spec_of(tmp_path, seeds=[3], methods=["sp"])) == 5
    for other in ({"training": {"batch_size": 4}}, {"student": {"depth": 2}}, {"teacher": {"depth": 5}}):
        assert noted(here, spec_of(tmp_path, **other)) is None


def test_a_note_only_ever_becomes_smaller(tmp_path):
    spec = spec_of(tmp_path)
    for students_, known in ((6, 6), (9, 6), (3, 3), (4, 3)):
        note(tmp_path / "sizes", spec, students_, "found")
        assert noted(tmp_path / "sizes", spec) == known


def test_a_damaged_note_is_named_with_its_remedy(tmp_path):
    note(tmp_path / "sizes", spec_of(tmp_path), 5, "measured")
    next((tmp_path / "sizes").iterdir()).write_text('{"stud')
    with pytest.raises(UserError, match="remove it"):
        noted(tmp_path / "sizes", spec_of(tmp_path))


@pytest.mark.parametrize(
    ("asked", "known", "wanted"),
    [(3, None, 3), (3, 5, 3), (8, 5, 5), ("auto", None, UNMEASURED), ("auto", 5, 5), ("auto", 40, 40)],
)
def test_groups_are_as_large_as_asked_and_never_larger_than_noted(tmp_path, asked, known, wanted):
    if known is not None:
        note(tmp_path, spec_of(tmp_path), known, "found")
    assert largest(tmp_path, spec_of(tmp_path), asked) == wanted


def test_a_training_under_way_parts_where_it_does_not_fit(tmp_path):
    experiment, workspace = tiny(tmp_path), Workspace(tmp_path / "w")
    runs = student_runs(experiment)
    (whole,) = groups(runs, workspace, 8)
    path = workspace.checkpoint(whole.id)
    path.parent.mkdir(parents=True)
    path.with_name("group.json").write_text(json.dumps({"runs": [run.id for run in runs]}))
    path.touch()
    assert [len(group.runs) for group in groups(runs, workspace, 1)] == [3]
    note(workspace.sizes, runs[0].spec, 2, "found")
    assert [len(group.runs) for group in groups(runs, workspace, 8)] == [2, 1]


# ---- memory that runs out


@pytest.mark.parametrize(("step", "begins"), [(0, []), (7, ["going on at step 5 of 12"] * 2)])
def test_a_group_that_does_not_fit_is_halved_and_no_bit_is_lost(tmp_path, monkeypatch, step, begins):
    experiment = tiny(tmp_path, seeds=[0, 1])
    ran(experiment, tmp_path / "undisturbed")
    happened = full(monkeypatch, lambda group: len(group.members) > 2 and group.step == step)
    job, said = ran(experiment, tmp_path / "w")
    assert happened == [3]  # the second seed's group is planned smaller
    undisturbed, halved = (students(experiment, tmp_path / name) for name in ("undisturbed", "w"))
    assert all(same(undisturbed[title], halved[title]) for title in undisturbed)
    logs = [(tmp_path / name / "students") for name in ("undisturbed", "w")]
    for run in student_runs(experiment):
        one, other = ((folder / run.id / "train.jsonl").read_text() for folder in logs)
        assert one == other
    assert len(job.outcome.trained) == 6 and not job.outcome.failed
    assert said[0].startswith(
        f"3 students do not fit into the device's memory at once ({REASON}); they go on in groups"
    )
    assert [line for line in said if line.startswith("going on")] == begins


def test_halving_goes_on_until_it_fits(tmp_path, monkeypatch):
    happened = full(monkeypatch, lambda group: len(group.members) > 1)
    job, _ = ran(tiny(tmp_path), tmp_path / "w")
    assert happened == [3, 2] and len(job.outcome.trained) == 3


def test_a_student_that_does_not_fit_alone_fails_in_words_and_the_others_are_trained(tmp_path, monkeypatch):
    experiment = tiny(tmp_path)
    hungry = student_runs(experiment)[2]
    full(monkeypatch, lambda group: hungry.id in [m.id for m in group.members])
    job, _ = ran(experiment, tmp_path / "w")
    assert len(job.outcome.trained) == 2 and list(job.outcome.failed) == [hungry.title]
    assert f"not even alone ({REASON}); lower training.batch_size" in job.outcome.failed[hungry.title]


def test_a_teachers_pass_that_does_not_fit_halves_the_group_too(tmp_path, monkeypatch):
    give = train.Group._give

    def out_of_memory(self, *args):
        if len(self.members) > 2:
            raise torch.OutOfMemoryError(REASON)
        return give(self, *args)

    monkeypatch.setattr(train.Group, "_give", out_of_memory)
    job, _ = ran(tiny(tmp_path), tmp_path / "w")
    assert len(job.outcome.trained) == 3


def test_a_stop_that_was_asked_for_meanwhile_is_not_forgotten(tmp_path, monkeypatch):
    experiment = tiny(tmp_path)
    ran(experiment, tmp_path / "undisturbed")
    job = Job(experiment, Workspace(tmp_path / "w"), Heard())

    def too_many(group: train.Group) -> bool:
        job.stop.asked = signal.SIGTERM
        return True

    with monkeypatch.context() as patch:
        happened = full(patch, too_many)
        with pytest.raises(Interrupted, match="SIGTERM"):
            job.run()
    assert happened == [3] and not job.outcome.trained
    again, _ = ran(experiment, tmp_path / "w")
    assert len(again.outcome.trained) == 3
    undisturbed, halved = (students(experiment, tmp_path / name) for name in ("undisturbed", "w"))
    assert all(same(undisturbed[title], halved[title]) for title in undisturbed)


# ---- memory that is measured


def growing(first: float, *added: float) -> Callable[[int], float]:
    """Peaks of a group to which one student after another is added."""
    left, peak = iter(added), [first]

    def peak_with(row: int) -> float:
        now, peak[0] = peak[0], peak[0] + next(left, 0.0)
        return now

    return peak_with


@pytest.mark.parametrize(
    ("peaks", "rows", "budget", "wanted"),
    [
        ((100, 10, 10, 10), 4, 125, 3),  # the fourth is measured not to fit
        ((100, 10, 10, 10), 4, 130, 4),
        ((100, 10, 10, 10), 4, 169, 7),  # more of the kind would fit
        ((100, 10, 30, 10), 4, 209, 5),  # and are taken to be like the dearest
        ((100, 10), 2, 90, 1),  # one must be tried
        ((100, 20), 1, 150, 3),  # a single row is added twice
        ((100, *[10] * PROBED), 99, 100 + 10 * PROBED, PROBED + 1),  # not all of many rows are measured
    ],
)
def test_as_many_students_fit_as_measured_and_then_as_the_dearest_would(peaks, rows, budget, wanted):
    assert how_many(growing(*peaks), rows, budget) == wanted


def test_memory_that_runs_out_while_measuring_is_a_measurement(tmp_path):
    def peak_with(row: int) -> float:
        if row == 3:
            raise torch.OutOfMemoryError(REASON)
        return 100.0 + row

    assert how_many(peak_with, 6, 10_000) == 3


class FakeGpu:
    """Of 10 and 1 for each student; `rooms` students fit."""

    def __init__(self, rooms: int) -> None:
        self.rooms, self.used = rooms, 0
        self.steps: list[int] = []

    def budget(self) -> float:
        return 10 + self.rooms

    def peak(self, work: Callable[[], None]) -> float:
        work()
        self.used += 1
        return 10 + self.used


def test_auto_measures_once_and_plans_groups_that_fit(tmp_path, monkeypatch):
    experiment = tiny(tmp_path, seeds=[0, 1], runtime={"max_group": "auto"})
    ran(tiny(tmp_path, seeds=[0, 1]), tmp_path / "undisturbed")
    asked: list[FakeGpu] = []

    def gpu(device: str) -> FakeGpu:
        asked.append(FakeGpu(rooms=2))
        return asked[-1]

    monkeypatch.setattr(fitting, "memory_of", gpu)
    sizes: list[int] = []
    step = train.Group._train_step
    monkeypatch.setattr(
        train.Group, "_train_step", lambda self, *a: (sizes.append(len(self.members)), step(self, *a))[1]
    )
    _, said = ran(experiment, tmp_path / "w")
    dry = [1] * 2 + [2] * 2 + [3] * 2  # a student more at a time, two steps each
    assert sizes == dry + ([2] * 12 + [1] * 12) * 2
    assert sum(gpu.used for gpu in asked) == 3
    assert "2 students fit into the GPU's memory at once, as dry steps tell" in said
    undisturbed, measured = (students(experiment, tmp_path / name) for name in ("undisturbed", "w"))
    assert all(same(undisturbed[title], measured[title]) for title in undisturbed)


def test_auto_on_a_cpu_measures_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "_measured", lambda *args: pytest.fail("a dry step on a CPU"))
    job, _ = ran(tiny(tmp_path, runtime={"max_group": "auto"}), tmp_path / "w")
    assert len(job.outcome.trained) == 3 and not (tmp_path / "w" / "sizes").exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpus_peak_is_that_of_the_work():
    gpu = memory.Gpu()
    few = gpu.peak(lambda: None)
    assert gpu.peak(lambda: torch.zeros(1 << 28, dtype=torch.uint8, device="cuda").sum().item()) >= few + (1 << 28)
    assert gpu.budget() > 1 << 28
