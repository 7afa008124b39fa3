"""Evaluation: an encoder knows where it came from, nothing of it is built unasked, missing metrics stay missing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from experiments import run, tiny

from harness.checking.specimen import Size, toy_teacher
from harness.features import Encoder
from harness.job import Job
from harness.progress import Console
from harness.records import read_records
from harness.reference import Reference
from harness.runs import Workspace, bound_runs, student_runs
from harness.sources import View
from harness.toys import Colours, PixelVit
from harness.training.builder import TEACHERS, Builder
from leaderboard.render import render
from leaderboard.table import rows_and_columns
from tasks.artifacts import Artifacts
from tasks.refinement import Refinement

PLANTED = {"layer": 1, "size": 20, "share": 0.1}
CHANGES = {
    "teacher": {"planted": PLANTED},
    "methods": ["none", "fitnet", {"method": "fitnet", "label": "oracle", "teacher": {"planted": {"size": 0}}}],
    "tasks": ["artifacts", "refinement"],
    "bounds": True,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    experiment = tiny(folder, **CHANGES)
    return experiment, run(experiment, folder / "workspace"), folder / "workspace"


def by_row(workspace: Path, task: str) -> dict[str, dict[str, float]]:
    records, problems = read_records(workspace / "records")
    assert not problems
    return {r.run.label: r.values for r in records if r.task == task}


def test_each_row_is_compared_with_its_own_teacher(finished):
    _, _, workspace = finished
    found = by_row(workspace, "artifacts")
    assert found["teacher"]["cka_all"] == pytest.approx(1) and found["teacher"]["gram_all"] == pytest.approx(0)
    assert found["teacher"]["max_over_median"] > 10
    assert all(0 <= found[row]["cka_inliers"] < 1 for row in ("none", "fitnet", "oracle", "untrained"))
    assert found["oracle"]["cka_all"] == pytest.approx(found["oracle"]["cka_inliers"], abs=0.05)  # a clean teacher


def test_refinement_tells_what_the_trained_method_has_imitated(finished):
    _, _, workspace = finished
    found = by_row(workspace, "refinement")
    assert found["none"] == {}  # it imitates nothing
    assert found["fitnet"]["max_over_median"] > 10 and found["fitnet"]["cosine_to_clean_outliers"] < 0.5
    assert found["oracle"]["max_over_median"] < 5 and found["oracle"]["cosine_to_clean"] == pytest.approx(1)
    assert "cosine_to_clean_outliers" not in found["oracle"]  # a clean teacher has no outliers
    assert found["teacher"] == found["untrained"]


def test_the_table_shows_what_is_missing_as_missing(finished):
    experiment, job, workspace = finished
    assert job.outcome.evaluated == 2 * 5
    assert Job(experiment, Workspace(workspace), Console(quiet=True)).run().evaluated == 0  # an empty record is one
    records, _ = read_records(workspace / "records")
    board = rows_and_columns(records)
    (section,) = board.sections
    shown = [(c.title, c.metric) for c in section.columns]
    assert shown == [
        (task.name, name)
        for task in (Artifacts, Refinement)
        for i, (name, metric) in enumerate(task.metrics.items())
        if i == 0 or metric.shown
    ]
    (none,) = [cells for row, cells in zip(section.rows, section.cells, strict=True) if row.label == "none"]
    assert [cell is None for cell in none] == [title == "refinement" for title, _ in shown]
    line = next(line for line in render(board, "plain").splitlines() if line.startswith("none"))
    assert line.split()[-4:] == ["n/a"] * 4
    assert len(rows_and_columns(records, metrics="all").sections[0].columns) > 20


def builder(folder: Path, **changes) -> tuple[Job, list]:
    """A job whose builder notes what it builds."""
    job = Job(tiny(folder, **changes), Workspace(folder / "workspace"), Console(quiet=True))
    built: list = []
    build = job.builder._build_teacher

    def noted(spec, **options):
        built.append(spec)
        return build(spec, **options)

    job.builder._build_teacher = noted  # type: ignore[method-assign]
    return job, built


def test_nothing_is_built_until_a_task_asks_and_then_once(tmp_path):
    job, built = builder(tmp_path, **CHANGES)
    untrained = next(r for r in bound_runs(job.experiment) if r.info.kind == "untrained")
    encoder, _ = job.evaluation._encoder(untrained)
    assert isinstance(encoder.reference, Reference) and built == []
    assert encoder.reference.teacher is encoder.reference.teacher
    assert len(built) == 1 and built[0].planted.size == 20
    assert encoder.reference.clean is not None and built[1].planted.size == 0
    assert encoder.reference.method is None
    oracle = student_runs(job.experiment)[2]
    assert oracle.teacher.planted is not None
    reference = job.evaluation._reference(oracle)
    assert reference.teacher is reference.clean is encoder.reference.clean  # it is its own clean twin
    assert len(built) == 2


def test_a_clean_twin_is_not_repaired(tmp_path):
    job, built = builder(tmp_path, teacher={"planted": PLANTED, "clip": {"median": 2.0}}, bounds=True)
    reference = job.evaluation._reference(bound_runs(job.experiment)[0])
    assert reference.teacher is not reference.clean
    assert [(spec.planted.size, spec.clip is None) for spec in built] == [(20, False), (0, True)]


def test_a_teacher_without_planted_artifacts_has_no_clean_twin(tmp_path):
    job, _ = builder(tmp_path, bounds=True)
    (teacher, untrained) = (job.evaluation._encoder(r)[0] for r in bound_runs(job.experiment))
    assert teacher.reference is not None and teacher.reference.clean is None
    assert teacher.reference.teacher is teacher.vit
    assert untrained.reference is not None and untrained.reference.teacher is teacher.vit


def test_a_few_teachers_stay_in_memory_and_the_oldest_goes(tmp_path):
    job, built = builder(tmp_path, teacher={"planted": PLANTED})
    spec = job.experiment.teacher
    specs = [spec.model_copy(update={"planted": spec.planted.model_copy(update={"size": float(i)})}) for i in range(4)]
    assert isinstance(job.builder, Builder) and TEACHERS == 3
    for i in (0, 1, 2, 0, 1, 2, 0):
        job.builder.teacher(specs[i])
    assert len(built) == 3
    job.builder.teacher(specs[3])  # in the place of 1, which nobody has asked for longest
    job.builder.teacher(specs[0])
    assert len(built) == 4
    job.builder.teacher(specs[1])
    assert len(built) == 5


def test_a_trained_method_of_the_reference_is_frozen_and_is_the_one_that_was_trained(finished):
    experiment, job, _ = finished
    fitnet = student_runs(experiment)[1]
    method = job.evaluation._reference(fitnet).method
    assert method is not None and method.name == "fitnet" and not method.training
    assert not any(p.requires_grad for p in method.parameters())


def test_cached_features_do_not_depend_on_the_reference(tmp_path):
    class Counting(PixelVit):
        passes = 0

        def __call__(self, *args, **options):
            type(self).passes += 1
            return super().__call__(*args, **options)

    for reference in (None, Reference.of(PixelVit()), Reference.of(PixelVit(planted=1))):
        Encoder(Counting(), identity="x", cache=tmp_path, reference=reference).pooled(Colours(4), View(32))
    assert Counting.passes == 1


def test_an_encoder_gives_attention_and_passes_tokens_through_a_block_without_gradient():
    vit = toy_teacher(Size())
    encoder = Encoder(vit, identity="x", cache=None)
    images = torch.rand(2, 3, 32, 32)
    outputs = encoder(images, [1, 2], [2])
    assert outputs.attention[2].shape == (2, 4, 17, 17)
    torch.testing.assert_close(outputs.attention[2].sum(dim=-1), torch.ones(2, 4, 17))
    tokens = outputs.tokens[1].clone().requires_grad_()
    after = encoder.through(2, tokens)
    torch.testing.assert_close(after, outputs.tokens[2])
    assert not after.requires_grad


def test_each_part_of_a_reference_is_made_once_and_the_method_for_its_teacher():
    made: list = []

    def making(what):
        def make(*given):
            made.append((what, *given))
            return what

        return make

    reference = Reference(making("teacher"), making("clean"), making("method"))  # type: ignore[arg-type]
    assert made == []
    for _ in range(2):
        assert (reference.method, reference.clean, reference.teacher) == ("method", "clean", "teacher")
    assert made == [("teacher",), ("method", "teacher"), ("clean",)]
