"""Estimates: past work counts for the same arithmetic, every row says who tells, nothing unknown is hidden."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from experiments import run as trained_here
from experiments import tiny

from harness.cli import main as cli
from harness.config import Experiment, merge, parse
from harness.errors import UserError
from harness.monitoring.glance import Glance
from harness.monitoring.pace import duration
from harness.planning.estimates import NO_IMAGES, NO_PAST, Estimate, of_evaluations, of_trainings, wall_s
from harness.planning.past import Machine, Past, add_past, past_here, read_of
from harness.planning.plans import plan
from harness.records import Cost, MetricInfo, Record, record_path, write_record
from harness.runs import Group, Run, Workspace, bound_runs, fit_runs, groups, student_runs, task_runs
from harness.seeds import content_hash
from harness.training import dry_steps
from harness.training.builder import open_data

RAW: dict[str, Any] = {
    "name": "small",
    "teacher": {"width": 48},
    "student": {"width": 24},
    "data": {"source": "scenes", "options": {"count": 1000}},
    "training": {"steps": 10, "batch_size": 64},
    "methods": ["none", "fitnet"],
    "seeds": [0, 1],
    "tasks": ["classification", "artifacts"],
    "bounds": False,
}
RAISES = '''
from harness.api import Method


class RaisesAtOnce(Method):
    """Raises."""

    name = "raises_at_once"
    cite = "made up"

    def losses(self, student, teacher, batch):
        raise ValueError("too little")
'''
CPU, GPU = Machine("a CPU", 2), Machine("a GPU")


def experiment_of(**changes: Any) -> Experiment:
    return parse(merge(RAW, changes))


def environment(machine: Machine) -> dict[str, Any]:
    return {"device": "cuda" if machine.gpu else "cpu", "device_name": machine.name, "threads": machine.threads or 8}


def record(
    experiment: Experiment, run: Run, task: int = 0, machine: Machine = CPU, own_s: float = 20.0, **cost: Any
) -> Record:
    """A record of a run whose step took own_s / 10 seconds, and its teacher's 3."""
    column = task_runs(experiment)[task]
    metrics = {"top1": MetricInfo(unit="fraction", direction="up")}
    return Record(
        task=column.spec.title(),
        task_kind=column.spec.task,
        task_id=column.key,
        metrics=metrics,
        values={"top1": 0.5},
        protocol={"data": open_data(column.spec.data or experiment.data).identity()},
        run=run.info,
        cost=Cost(**{"steps": 10, "own_s": own_s, "teacher_s": 30.0, "evaluation_s": 7.0, **cost}),
        seed=run.info.seed,
        environment=environment(machine),
    )


def past_of(*records: Record, source: str = "there") -> Past:
    past = Past()
    for one in records:
        past.add(one, source)
    return past


def left(experiment: Experiment) -> list[Group]:
    return groups(student_runs(experiment), Workspace("nowhere"), experiment.runtime.max_group)


def measured(experiment: Experiment, **changes: Any) -> Past:
    """A record of each row of the first seed."""
    runs = student_runs(experiment)[: len(experiment.methods)]
    return past_of(*(record(experiment, run, own_s=20.0 * (i + 1), **changes) for i, run in enumerate(runs)))


def training_of(changes: dict[str, Any], past: Past) -> Estimate:
    other = experiment_of(**changes)
    return of_trainings(other, left(other), past)


# ---- trainings


def test_a_group_takes_one_teacher_and_every_students_own():
    experiment = experiment_of()
    found = of_trainings(experiment, left(experiment), measured(experiment))
    assert found.seconds == {0: pytest.approx(30 + 20 + 40), 1: pytest.approx(90)}
    assert found.sources == {"there": ["none", "fitnet"]} and not found.unknown
    assert found.machine == CPU and found.total_s == pytest.approx(180)


@pytest.mark.parametrize(
    ("changes", "times"),
    [
        ({"training": {"steps": 25}}, 2.5),
        ({"seeds": [7]}, 0.5),
        ({"training": {"lr": 0.1, "weight_decay": 0.3}}, 1),
        ({"data": {"options": {"count": 10}, "augment": None}}, 1),  # as many steps of as many pixels
        ({"teacher": {"fit": {"training": {"epochs": 1}}}}, 1),  # its weights
    ],
)
def test_what_changes_no_arithmetic_of_a_step_scales(changes, times):
    assert training_of(changes, measured(experiment_of())).total_s == pytest.approx(180 * times)


@pytest.mark.parametrize(
    "changes",
    [
        {"teacher": {"width": 96}},
        {"student": {"depth": 3}},
        {"data": {"image_size": 128}},
        {"training": {"batch_size": 32}},
        {"training": {"precision": "bf16"}},
        {"teacher": {"shifted_views": {}}},
        {"methods": ["logit_kd", "singer"]},
    ],
)
def test_what_changes_the_arithmetic_is_not_known(changes):
    found = training_of(changes, measured(experiment_of()))
    assert not found.seconds and list(found.unknown) == [NO_PAST] and not found.sources


def test_other_hyperparameters_count_where_there_are_no_equal_ones_and_it_is_said():
    row = {"method": "fitnet", "hyperparameters": {"weight": 5.0}}
    found = training_of({"methods": ["none", row]}, measured(experiment_of()))
    assert found.total_s == pytest.approx(180)
    assert found.sources == {"there": ["none"], "there, of other hyperparameters": ["fitnet"]}
    experiment = experiment_of(methods=["none", row])
    past = measured(experiment_of())
    past.add(record(experiment, student_runs(experiment)[1], own_s=100.0), "there")
    exact = training_of({"methods": ["none", row]}, past)
    assert exact.total_s == pytest.approx(2 * (30 + 20 + 100)) and exact.sources == {"there": ["none", "fitnet"]}


def test_a_group_with_an_unknown_row_is_not_counted_and_the_row_is_named():
    found = training_of({"methods": ["none", "fitnet", "sp"], "runtime": {"max_group": 2}}, measured(experiment_of()))
    assert found.seconds.keys() == {0, 2} and found.unknown == {NO_PAST: ["sp"]}


def test_epochs_need_the_number_of_images_and_say_so():
    epochs = {"training": {"steps": None, "epochs": 2}}
    past = measured(experiment_of())
    found = training_of(epochs, past)
    assert not found.seconds and found.unknown == {NO_IMAGES: ["none", "fitnet"]}
    past.images[content_hash(read_of(experiment_of().data))] = 1000  # 15 whole batches
    assert training_of(epochs, past).total_s == pytest.approx(180 * 30 / 10)


def test_the_number_of_images_is_found_where_a_run_has_noted_it(tmp_path):
    experiment = tiny(tmp_path, training={"steps": 1}, methods=["none"])
    trained_here(experiment, tmp_path / "workspace")
    past = Past()
    past.add_images(experiment.data, Workspace(tmp_path / "workspace"))
    assert list(past.images.values()) == [40]
    told = past_here(student_runs(experiment), [], experiment.data, Glance(tmp_path / "workspace"))
    assert len(told.steps) == 1 and told.steps[0].teacher_s > 0  # from the student's description


def test_one_estimate_is_of_one_machine_the_one_that_knows_most():
    experiment = experiment_of()
    runs = student_runs(experiment)
    past = past_of(*(record(experiment, run, machine=CPU) for run in runs[:2]), source="slow")
    past.add(record(experiment, runs[3], machine=GPU, own_s=1.0), "fast")
    assert of_trainings(experiment, left(experiment), past).machine == CPU
    for changes in ({"submit": {"gpus": 4}}, {"runtime": {"device": "cuda"}}):
        found = training_of(changes, past)
        assert found.machine == GPU and found.unknown == {NO_PAST: ["none"]} and found.sources == {"fast": ["fitnet"]}
    assert training_of({"runtime": {"device": "cpu"}}, past).machine == CPU


def test_what_is_known_here_comes_before_what_is_known_elsewhere():
    experiment = experiment_of()
    past = measured(experiment)
    runs = student_runs(experiment)
    past.add(record(experiment, runs[2], own_s=1e6), "elsewhere")
    assert of_trainings(experiment, left(experiment), past).total_s == pytest.approx(180)


def test_every_teacher_that_is_trained_here_is_a_row_of_its_own():
    fit = {"fit": {"training": {"steps": 5}}}
    other = {"method": "fitnet", "label": "control", "teacher": {"fit": {"seed": 1, "training": {"steps": 20}}}}
    experiment = experiment_of(teacher=fit, methods=["none", other])
    fits = fit_runs(experiment)
    past = past_of(record(experiment, fits[0], own_s=20.0))
    found = of_trainings(experiment, [Group((run,)) for run in fits], past)
    assert found.seconds == {0: pytest.approx(5 * 5), 1: pytest.approx(20 * 5)}


# ---- evaluations


def evaluation_of(experiment: Experiment, past: Past, task_ids: dict[str, str | None] | None = None) -> Estimate:
    tasks = task_runs(experiment)
    missing = [(run, tasks) for run in bound_runs(experiment) + student_runs(experiment)]
    return of_evaluations(experiment, missing, task_ids or {task.key: task.key for task in tasks}, past)


def test_an_evaluation_counts_for_the_same_task_and_an_encoder_of_the_same_name():
    experiment = experiment_of(bounds=True)
    run = student_runs(experiment)[0]
    past = past_of(record(experiment, run), record(experiment, run, task=1, evaluation_s=1.0))
    found = evaluation_of(experiment, past)
    teacher = bound_runs(experiment)[0].id
    assert set(found.seconds.values()) == {8.0} and teacher not in found.seconds
    assert len(found.seconds) == 6  # the untrained ones have a student's passes
    assert found.unknown == {NO_PAST: ["classification", "artifacts"]}  # of the teacher


def test_evaluations_of_other_settings_count_where_nothing_is_known_of_the_same_protocol():
    experiment = experiment_of(tasks=["classification"])
    past = past_of(record(experiment, student_runs(experiment)[0]))
    unknown = {task.key: None for task in task_runs(experiment)}
    assert evaluation_of(experiment, past, unknown).sources == {"there, of other settings": ["classification"]}
    elsewhere = {"task": "classification", "data": {"source": "scenes", "options": {"count": 77}}}
    other = experiment_of(tasks=[elsewhere])
    assert not evaluation_of(other, past).seconds
    assert not evaluation_of(experiment_of(tasks=["artifacts"]), past).seconds


# ---- from start to end


@pytest.mark.parametrize(
    ("submit", "expected_s"),
    [
        ({}, 90 + 14),  # all groups at once, then all evaluations
        ({"max_jobs": 1}, 90 + 90 + 14 * 4),
        ({"max_jobs": 2}, 90 + 14 * 2),
        ({"gpus": 2, "max_jobs": 1}, (90 + 90 + 14 * 4) / 2),
        ({"gpus": 2, "nodes": 2, "max_jobs": 1}, (90 + 90 + 14 * 4) / 4),
    ],
)
def test_the_time_from_start_to_end_honours_jobs_at_once_and_their_gpus(submit, expected_s):
    experiment = experiment_of(submit=submit)
    runs = student_runs(experiment)
    past = past_of(
        record(experiment, runs[0], machine=GPU),
        record(experiment, runs[0], task=1, machine=GPU),
        record(experiment, runs[1], machine=GPU, own_s=40.0),
    )
    found = of_trainings(experiment, left(experiment), past)
    evaluations = evaluation_of(experiment, past)
    assert wall_s(experiment.submit, left(experiment), found, evaluations) == pytest.approx(expected_s)
    evaluations.unknown[NO_PAST] = ["classification"]
    assert wall_s(experiment.submit, left(experiment), found, evaluations) is None


def test_students_begin_once_their_teacher_is_there():
    experiment = experiment_of(teacher={"fit": {"training": {"steps": 5}}}, tasks=[])
    both = [Group((run,)) for run in fit_runs(experiment)] + left(experiment)
    trainings = Estimate(GPU, {0: 1000.0, 1: 10.0, 2: 20.0})
    assert wall_s(experiment.submit, both, trainings, Estimate()) == 1020


# ---- what is read


def write_all(experiment: Experiment, workspace: Workspace) -> None:
    for run in student_runs(experiment)[:2]:
        write_record(workspace.records, record(experiment, run))


def test_past_work_is_read_from_a_workspace_or_a_folder_of_records(tmp_path):
    experiment = experiment_of()
    write_all(experiment, Workspace(tmp_path / "w"))
    (tmp_path / "w/records/cut.json").write_text("{")
    for folder in (tmp_path / "w", tmp_path / "w/records"):
        past = Past()
        add_past(past, folder, experiment.data)
        assert len(past.steps) == 2 and {step.source for step in past.steps} == {f"records in {folder}"}
    for wrong, said in ((tmp_path, "holds no record that says how long"), (tmp_path / "no", "no folder")):
        with pytest.raises(UserError, match=said):
            add_past(Past(), wrong, experiment.data)


def test_a_run_with_several_records_counts_once():
    experiment = experiment_of()
    run = student_runs(experiment)[0]
    past = past_of(record(experiment, run), record(experiment, run, task=1))
    assert len(past.steps) == 1 and len(past.evaluations) == 2


def test_hours_are_those_of_all_processes_that_shared_the_work():
    experiment = experiment_of()
    one = record(experiment, student_runs(experiment)[0])
    shared = one.model_copy(update={"environment": {**one.environment, "ranks": 4}})
    alone, four = past_of(one), past_of(shared)
    assert four.steps[0].own_s == 4 * alone.steps[0].own_s and four.steps[0].teacher_s == 4 * alone.steps[0].teacher_s
    assert four.evaluations[0].seconds == 4 * alone.evaluations[0].seconds


def test_a_glance_answers_as_the_workspace_does(tmp_path):
    experiment = experiment_of()
    workspace = Workspace(tmp_path / "w")
    runs, tasks = student_runs(experiment), task_runs(experiment)
    write_all(experiment, workspace)
    for task in tasks:
        workspace.protocols.mkdir(parents=True, exist_ok=True)
        (workspace.protocols / f"{task.key}.json").write_text(json.dumps({"task_id": task.key}))
    record_path(workspace.records, runs[1].id, tasks[0].key).write_text("{")
    workspace.student(runs[0].id).mkdir(parents=True)
    workspace.partial(runs[1].id).mkdir(parents=True)
    workspace.failures.mkdir()
    (workspace.failures / f"{runs[2].id}.json").write_text('{"reason": "nan", "step": 1}')
    glance = Glance(workspace.root)
    for run in runs:
        assert glance.is_trained(run) == workspace.is_trained(run)
        assert glance.failure(run.id) == workspace.failure(run.id)
        for task in tasks:
            assert glance.task_id(task) == workspace.task_id(task)
            assert glance.has_record(run, task) == workspace.has_record(run, task)
            assert (glance.record(run, task) is None) != workspace.has_record(run, task)
    assert glance.is_trained(runs[0]) and glance.has_record(runs[0], tasks[0])
    assert glance.failure(runs[2].id) is not None and not glance.has_record(runs[1], tasks[0])
    assert not any(Glance(tmp_path / "none").is_trained(run) for run in runs)


# ---- as a person reads it


@pytest.fixture
def said(tmp_path, monkeypatch, capsys):
    """The lines of `singer-bench plan` in an empty workspace."""

    def call(experiment: dict[str, Any], *options: object) -> list[str]:
        (tmp_path / "small.yaml").write_text(yaml.safe_dump(experiment))
        words = ["plan", tmp_path / "small.yaml", "--workspace", tmp_path / "new", *options]
        monkeypatch.setattr(sys, "argv", ["singer-bench", *map(str, words)])
        cli.main()
        return capsys.readouterr().out.splitlines()

    return call


def test_a_plan_says_which_row_is_known_from_where_and_which_is_not(said, tmp_path):
    write_all(experiment_of(), Workspace(tmp_path / "w"))
    raw = merge(RAW, {"methods": ["none", {"method": "fitnet", "hyperparameters": {"weight": 9.0}}, "sp"]})
    lines = said(merge(raw, {"runtime": {"max_group": 2}}), "--records", tmp_path / "w")
    place = f"records in {tmp_path / 'w'}"
    assert "  train together, seed 0: none, fitnet (about 70 s)" in lines and "  train alone, seed 0: sp" in lines
    at = lines.index("training left: about 2 min on a CPU, 2 threads")
    assert lines[at + 1 : at + 4] == [
        f"  from {place}: none",
        f"  from {place}, of other hyperparameters: fitnet",
        f"  not in it: sp: {NO_PAST}",
    ]
    assert "evaluation left: about 42 s on a CPU, 2 threads" in lines
    assert not any("from start to end" in line for line in lines)  # nothing is submitted


def test_a_plan_of_what_is_submitted_says_when_it_is_over_and_counts_gpu_hours(said, tmp_path):
    experiment = experiment_of(tasks=["classification"], training={"steps": 10})
    workspace = Workspace(tmp_path / "w")
    for run in student_runs(experiment)[:2]:
        cost = {"teacher_s": 5400.0, "evaluation_s": 3600.0}
        write_record(workspace.records, record(experiment, run, machine=GPU, own_s=3600.0, **cost))
    raw = merge(RAW, {"tasks": ["classification"], "submit": {"max_jobs": 1, "gpus": 2}})
    lines = said(raw, "--records", tmp_path / "w")
    assert "training left: about 7 GPU hours on a GPU" in lines
    assert "evaluation left: about 4 GPU hours on a GPU" in lines
    assert "from start to end: about 5.5 h with 1 job at once" in lines


def test_long_lists_are_cut_with_a_count_unless_all_is_asked_for(said):
    raw = {**RAW, "seeds": list(range(40))}
    lines = said(raw)
    assert sum("train together" in line for line in lines) == 20
    assert "  ... and 20 groups more: --all shows them" in lines
    assert sum("train together" in line for line in said(raw, "--all")) == 40


def test_steps_are_measured_on_noise_where_that_is_asked_for_and_nothing_is_kept(tmp_path):
    rows = ["none", "fitnet", "crd", "phi_s", {"method": "logit_kd", "teacher": {"shifted_views": {}}}]
    fit = {"fit": {"training": {"steps": 2, "batch_size": 8}}}
    experiment = tiny(tmp_path, methods=rows, teacher=fit, training={"steps": None, "epochs": 3})
    workspace = Workspace(tmp_path / "new")
    lines = plan(experiment, workspace, benchmark=True).splitlines()
    place = next(line for line in lines if line.startswith("  from "))
    assert place == "  from steps measured here and now: teacher fit, none, fitnet, crd, phi_s, logit_kd"
    assert any(line.startswith("training left: about ") for line in lines)
    assert not any("not in it" in line for line in lines)
    assert not workspace.root.exists()


def test_a_group_that_does_not_fit_is_the_users_to_make_smaller(tmp_path, monkeypatch):
    import torch

    def too_large(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")

    monkeypatch.setattr(dry_steps.train.Group, "train_step", too_large)
    with pytest.raises(UserError, match=r"a group of 2 does not fit .* runtime.max_group .* Tried to allocate"):
        plan(tiny(tmp_path, methods=["none", "fitnet"]), Workspace(tmp_path / "new"), benchmark=True)


def test_a_row_that_cannot_be_measured_is_named_with_the_reason(tmp_path):
    plugin = tmp_path / "mine.py"
    plugin.write_text(RAISES)
    experiment = tiny(tmp_path, methods=["none", "raises_at_once"], plugins=[str(plugin)], runtime={"max_group": 1})
    lines = plan(experiment, Workspace(tmp_path / "new"), benchmark=True).splitlines()
    assert any(line.startswith("  not in it: raises_at_once: ValueError at mine.py") for line in lines)
    assert "  from steps measured here and now: none" in lines


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (89, "89 s"), (600, "10 min"), (5399, "90 min"), (9000, "2.5 h"), (4e5, "4.63 days")],
)
def test_a_duration_has_one_unit(seconds, words):
    assert duration(seconds) == words


def test_a_student_that_was_never_measured_tells_too(tmp_path):
    experiment = experiment_of()
    folder = Path(tmp_path / "w/students" / student_runs(experiment)[0].id)
    folder.mkdir(parents=True)
    one = record(experiment, student_runs(experiment)[0])
    described = {"info": one.run.model_dump(mode="json"), "cost": one.cost.model_dump(), "environment": one.environment}
    (folder / "run.yaml").write_text(yaml.safe_dump(described))
    folder.with_name("half.partial").mkdir()
    past = Past()
    add_past(past, tmp_path / "w", experiment.data)
    assert [step.own_s for step in past.steps] == [2.0]


def test_the_benchmark_of_plans_runs_to_its_end(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    program = importlib.import_module("plan")
    for name in ("ROWS", "ROUNDS"):
        monkeypatch.setattr(program, name, 1)
    monkeypatch.setattr(sys, "argv", ["plan.py", "--quick"])
    program.main()
    told = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"ratio: \d+\.\d+ \(goal <= 1\.00\)", told[-1]) and len(told) == 7
