"""Runs: an identity is what decides the result and nothing else; groups share a teacher and keep their company."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.config import Experiment, merge, parse
from harness.errors import UserError
from harness.records import Cost, MetricInfo, Record, record_path, write_record
from harness.runs import (
    Run,
    TaskRun,
    Workspace,
    bound_runs,
    condition,
    fit_runs,
    groups,
    pending,
    student_runs,
    task_runs,
    waiting_for_tasks,
)

BASE: dict[str, Any] = {
    "teacher": {"width": 48, "planted": {"layer": 1, "size": 5}},
    "student": {"width": 24},
    "data": {"source": "scenes", "options": {"count": 100}},
    "training": {"epochs": 2},
    "methods": ["fitnet", {"method": "singer", "hyperparameters": {"rank": 8}}],
    "seeds": [0],
}
PLUGIN = """
from harness.api import Method, Task
from harness.sources import Source


class Mine(Method):
    name = "mine"
    cite = "x"

    def losses(self, student, teacher, batch):
        return {"loss": student.logits.sum() * FACTOR}


class MineTask(Task):
    name = "mine_task"


class MineSource(Source):
    name = "mine_source"
"""


def experiment(**changes: Any) -> Experiment:
    return parse(merge(BASE, changes))


def ids(**changes: Any) -> set[str]:
    return {run.id for run in student_runs(experiment(**changes))}


def of(method: Any, **changes: Any) -> str:
    (run,) = student_runs(experiment(methods=[method], **changes))
    return run.id


# ---- identity


def test_ids_of_results_that_exist_stay():
    """Settings that came later are left out of what is hashed while they have their defaults."""
    here = experiment()
    assert next(run.id for run in student_runs(here)) == "aa82ee67ee6912d0"
    assert condition(here) == "9c020221906e72b4"


def test_a_run_is_the_same_whatever_other_seeds_there_are():
    alone = [run for seed in (5, 0, 3) for run in student_runs(parse({**BASE, "seeds": [seed]}))]
    assert student_runs(parse({**BASE, "seeds": [5, 0, 3]})) == alone


def test_search_spaces_and_trials_are_part_of_no_identity_and_what_is_held_out_is():
    tuned = {"method": "fitnet", "trials": 16, "search": {"weight": ["log", 0.1, 10.0]}}
    assert of(tuned) == of("fitnet") != of("fitnet", data={"held_out": 0.1})
    (run,) = student_runs(experiment(methods=[tuned]))
    assert run.info.trials == 16 and student_runs(experiment())[0].info.trials is None
    held = student_runs(experiment(data={"held_out": 0.1}))[0]
    assert held.info.data == "scenes, 0.1 of train held out"
    assert task_runs(experiment(data={"held_out": 0.1}))[0].key != task_runs(experiment())[0].key


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"bounds": False},
        {"tasks": ["artifacts"]},
        {"runtime": {"max_group": 1, "num_workers": 7, "device": "cuda:3", "checkpoint_steps": 1, "batch_size": 9}},
        {"methods": [{"method": "singer", "hyperparameters": {"rank": 8}}, "fitnet"]},
        {"methods": [{"method": "fitnet", "label": "a"}, {**BASE["methods"][1], "label": "b"}]},
        {"methods": [{"method": "fitnet", "hyperparameters": {"weight": 1}}, BASE["methods"][1]]},
        {"methods": [{"method": "fitnet", "hyperparameters": {"weight": 1.0}}, BASE["methods"][1]]},
        {"methods": [{"method": "fitnet", "hyperparameters": {"weight": "1e0"}}, BASE["methods"][1]]},
        {"methods": [{"method": "fitnet", "teacher": {"width": 48}}, BASE["methods"][1]]},
        {"training": {"epochs": 2.0, "lr": "1e-3", "batch_size": 64}},
        {"data": {"on_bad_image": "skip"}},
        {"data": {"options": {"count": 100, "seed": 0}}},
        {"data": {"name": "scenes"}},
    ],
    ids=str,
)  # fmt: skip
def test_a_run_does_not_depend_on(changes):
    assert ids(**changes) == ids()


TRAINING = {
    "epochs": 3,
    "batch_size": 32,
    "optimizer": "sgd",
    "lr": 0.01,
    "betas": [0.9, 0.98],
    "momentum": 0.8,
    "weight_decay": 0.1,
    "warmup_epochs": 1,
    "min_lr_share": 0.1,
    "clip_grad": 1.0,
    "precision": "bf16",
    "tf32": True,
    "compile": True,
}


@pytest.mark.parametrize(
    "changes",
    [
        *({"training": {key: value}} for key, value in TRAINING.items()),
        {"training": {"epochs": None, "steps": 10}},
        {"seeds": [1]},
        {"teacher": {"width": 64}},
        {"teacher": {"planted": {"size": 0}}},
        {"teacher": {"planted": None}},
        {"teacher": {"fit": {"training": {"epochs": 1}}}},
        {"teacher": {"options": {"init_values": 0.1}}},
        {"teacher": {"classes": "imagenet-1k"}},
        {"student": {"depth": 3}},
        {"student": {"pretrained": True, "model": "vit_tiny_patch16_224"}},
        {"data": {"options": {"count": 101}}},
        {"data": {"options": {"seed": 1}}},
        {"data": {"name": "other"}},
        {"data": {"train": "test"}},
        {"data": {"image_size": 32}},
        {"data": {"limit": 50}},
        {"data": {"resize": "squash"}},
        {"data": {"crop_share": 0.5}},
        {"data": {"augment": {"flip": 0}}},
        {"data": {"augment": None}},
    ],
    ids=str,
)
def test_a_run_depends_on(changes):
    assert not ids(**changes) & ids()


def test_identities_do_not_change_by_accident():
    """Workspaces would be computed anew. Where a student or a number does change, raise harness.runs.IDENTITY."""
    here = experiment(methods=["none"])
    assert student_runs(here)[0].id == "0ba9f98bc7e096c8"
    assert [run.id for run in bound_runs(here)] == ["96811a12d1304af1", "b398383110fb97b8"]


def test_every_training_setting_is_part_of_a_run():
    spec = student_runs(experiment(training={"tf32": True}))[0].spec
    assert set(TRAINING) | {"steps"} == set(spec["training"]) == set(type(experiment().training).model_fields)


def test_tf32_is_in_no_identity_while_it_is_off():
    fitted = {"teacher": {"fit": {"training": {"epochs": 1}}}}
    spec = student_runs(experiment(**fitted))[0].spec
    assert "tf32" not in spec["training"] and "tf32" not in spec["teacher"]["fit"]["training"]
    on = merge(fitted, {"teacher": {"fit": {"training": {"tf32": True}}}})
    assert not ids(**on) & ids(**fitted)


def test_a_run_depends_on_its_method_and_every_hyperparameter_of_it():
    rows = [
        "none",
        "fitnet",
        "singer",
        *({"method": "fitnet", "hyperparameters": h} for h in ({"weight": 2.0}, {"reduction": "sum"}, {"layers": [1]})),
        {"method": "fitnet", "teacher": {"planted": {"size": 0}}},
    ]
    assert len({of(row) for row in rows}) == len(rows)


def test_a_preset_is_its_method_with_the_values_written_out():
    entry = experiment().known().methods["singer_paper"]
    given = dict(experiment().known().methods[entry.preset_of].presets["singer_paper"])
    assert of("singer_paper") == of({"method": "singer", "hyperparameters": given}) != of("singer")


def test_two_rows_that_are_the_same_run_are_refused():
    rows = [{"method": "fitnet", "label": "a"}, {"method": "fitnet", "label": "b", "hyperparameters": {"weight": 1}}]
    with pytest.raises(UserError, match="these rows are the same run: a seed 0, b seed 0; change a hyperparameter"):
        student_runs(experiment(methods=rows))


def test_two_columns_that_are_the_same_task_are_refused():
    tasks = ["artifacts", {"task": "artifacts", "label": "b", "options": {"images": 512}}]
    with pytest.raises(UserError, match="these columns are the same task: artifacts, b; change an option"):
        task_runs(experiment(tasks=tasks))


def test_a_checkpoint_is_known_by_its_content_and_not_by_its_place(tmp_path):
    one, two, other = (
        tmp_path / "one.safetensors",
        tmp_path / "deep" / "two.safetensors",
        tmp_path / "other.safetensors",
    )
    two.parent.mkdir()
    one.write_bytes(b"weights")
    two.write_bytes(b"weights")
    other.write_bytes(b"Weights")
    for part in ("teacher", "student"):
        first, second, third = (ids(**{part: {"checkpoint": str(path)}}) for path in (one, two, other))
        assert first == second
        assert not first & third and not first & ids()


def test_a_checkpoint_that_was_written_anew_is_another(tmp_path):
    path = tmp_path / "one.safetensors"
    path.write_bytes(b"weights")
    before = ids(teacher={"checkpoint": str(path)})
    path.write_bytes(b"Weights")
    os.utime(path, ns=(1, 1))  # a clock too coarse to tell the two moments apart
    assert not before & ids(teacher={"checkpoint": str(path)})


def test_an_exported_model_is_known_by_its_content_and_its_title_holds_no_path(tmp_path):
    one = tmp_path / "one"
    one.mkdir()
    (one / "config.json").write_text("{}")
    (one / "model.safetensors").write_bytes(b"weights")
    shutil.copytree(one, tmp_path / "deep" / "one")
    first, second = (experiment(teacher={"model": f"local-dir:{p}"}) for p in (one, tmp_path / "deep" / "one"))
    assert condition(first) == condition(second)
    assert first.teacher.title() == "one width=48"
    (one / "config.json").write_text('{"mean": 0}')  # it decides how images are normalised
    assert condition(first) != condition(second)
    (one / "config.json").unlink()
    with pytest.raises(UserError, match=r"no file 'config\.json'"):
        student_runs(first)


def test_data_is_known_by_its_name_and_not_by_its_place(tmp_path):
    def at(root: str, **more: Any) -> str:
        data = {"source": "folder", "root": str(tmp_path / root), **more}
        return condition(parse({**BASE, "data": data}))

    assert at("a/imagenet") == at("b/imagenet")  # the root's last part is its name
    assert at("a/imagenet") != at("a/other")
    assert at("a/imagenet", name="x") == at("a/other", name="x")
    assert at("a/imagenet") != at("a/imagenet", source="tar")


@pytest.mark.parametrize(
    ("changes", "same"),
    [("FACTOR = 2", False), ("# a comment", True), ('"""A docstring."""', True)],
)
def test_a_run_depends_on_the_code_of_a_plugin_and_not_on_its_comments(tmp_path, changes, same):
    path = tmp_path / "plugin.py"

    def all_ids() -> list[str]:
        here = {**BASE, "plugins": [str(path)], "methods": ["fitnet"], "tasks": []}
        of_method = parse({**here, "methods": ["mine"]})
        of_task = parse({**here, "tasks": ["mine_task"]})
        of_source = parse({**here, "data": {"source": "mine_source"}})
        return [student_runs(of_method)[0].id, task_runs(of_task)[0].key, student_runs(of_source)[0].id]

    path.write_text("FACTOR = 1\n" + PLUGIN)
    before = all_ids()
    path.write_text(f"{changes}\nFACTOR = 1\n" + PLUGIN)
    after = all_ids()
    assert [a == b for a, b in zip(before, after, strict=True)] == [same] * 3


def test_a_task_depends_on_its_options_and_data_and_not_on_its_label_or_the_augmentation():
    def key(task: Any, **changes: Any) -> str:
        return task_runs(experiment(tasks=[task], **changes))[0].key

    plain = key("artifacts")
    assert key({"task": "artifacts", "label": "x"}) == plain
    assert key({"task": "artifacts", "options": {"images": 512}}) == plain
    assert key("artifacts", data={"augment": None}) == plain
    assert key("artifacts", training={"epochs": 9}, teacher={"width": 96}) == plain
    assert key({"task": "artifacts", "data": BASE["data"]}) == plain
    others = [
        key({"task": "artifacts", "options": {"images": 9}}),
        key({"task": "artifacts", "data": {"source": "scenes"}}),
        key("artifacts", data={"image_size": 32}),
        key("classification"),
    ]
    assert len({plain, *others}) == 5


def test_bounds_are_one_teacher_and_one_untrained_student_a_seed():
    bounds = bound_runs(experiment(seeds=[3, 4]))
    assert [(r.info.kind, r.info.seed) for r in bounds] == [("teacher", 0), ("untrained", 3), ("untrained", 4)]
    assert len({r.id for r in bounds}) == 3
    assert not {r.id for r in bounds} & {r.id for r in bound_runs(experiment(student={"depth": 2}))}
    assert bound_runs(experiment(bounds=False)) == []


def test_teachers_that_differ_in_planting_are_fitted_once():
    rows = ["fitnet", {"method": "fitnet", "label": "clean", "teacher": {"planted": None}}]
    fit = {"fit": {"training": {"epochs": 1}}}
    assert len(fit_runs(experiment(methods=rows, teacher=fit))) == 1
    rows.append({"method": "fitnet", "label": "wide", "teacher": {"width": 96}})
    assert len(fit_runs(experiment(methods=rows, teacher=fit))) == 2
    assert fit_runs(experiment(methods=rows)) == []


# ---- workspace


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    return Workspace(tmp_path / "workspace")


def train(run: Run, workspace: Workspace) -> None:
    """As if it had been trained."""
    workspace.student(run.id).mkdir(parents=True)


def fail(run: Run, workspace: Workspace) -> None:
    workspace.failures.mkdir(parents=True, exist_ok=True)
    (workspace.failures / f"{run.id}.json").write_text(json.dumps({"reason": "loss is nan", "step": 3}))


def begin(runs: list[Run], workspace: Workspace, name: str, checkpoint: bool = True) -> None:
    """As if a training of these runs together were under way."""
    folder = workspace.groups / name
    folder.mkdir(parents=True)
    (folder / "group.json").write_text(json.dumps({"runs": [run.id for run in runs]}))
    if checkpoint:
        (folder / "checkpoint.pt").touch()


def note_protocol(task: TaskRun, workspace: Workspace) -> str:
    workspace.protocols.mkdir(parents=True, exist_ok=True)
    (workspace.protocols / f"{task.key}.json").write_text(json.dumps({"task_id": f"id-{task.key}"}))
    return f"id-{task.key}"


def measure(run: Run, task: TaskRun, workspace: Workspace) -> Path:
    record = Record(
        task=task.spec.title(),
        task_kind=task.spec.task,
        task_id=note_protocol(task, workspace),
        metrics={"top1": MetricInfo(unit="fraction", direction="up")},
        values={"top1": 0.5},
        protocol={},
        run=run.info,
        cost=Cost(),
        seed=0,
    )
    return write_record(workspace.records, record)


def test_every_path_of_a_workspace_is_below_its_folder(workspace):
    places = [value for value in vars(workspace).values() if isinstance(value, Path)]
    places += [workspace.student("ab"), workspace.partial("ab")]
    assert len(places) > 8
    assert all(workspace.root in (place, *place.parents) for place in places)
    assert len(set(places)) == len(places)


def test_a_student_that_is_half_written_is_not_trained(workspace):
    run = student_runs(experiment())[0]
    workspace.partial(run.id).mkdir(parents=True)
    assert not workspace.is_trained(run)
    os.rename(workspace.partial(run.id), workspace.student(run.id))
    assert workspace.is_trained(run)


def test_a_bound_needs_no_training(workspace):
    assert all(workspace.is_trained(run) for run in bound_runs(experiment()))


def test_only_a_whole_record_of_this_run_under_this_protocol_counts(workspace):
    here = experiment()
    (run, other), task = student_runs(here), task_runs(here)[0]
    assert not workspace.has_record(run, task)  # no protocol is known yet
    note_protocol(task, workspace)
    assert not workspace.has_record(run, task)
    path = measure(run, task, workspace)
    assert workspace.has_record(run, task)
    assert not workspace.has_record(other, task)
    text = path.read_text()
    for damaged in ("", text[: len(text) // 2], text.replace("0.5", "NaN"), "{}"):
        path.write_text(damaged)
        assert not workspace.has_record(run, task), damaged
    path.write_text(text)
    shutil.copy(path, record_path(workspace.records, other.id, f"id-{task.key}"))
    assert workspace.has_record(run, task) and not workspace.has_record(other, task)


def test_a_record_of_a_newer_version_is_never_taken_for_a_damaged_one(workspace):
    here = experiment()
    run, task = student_runs(here)[0], task_runs(here)[0]
    path = measure(run, task, workspace)
    newer = {**json.loads(path.read_text()), "schema_version": 999}
    path.write_text(json.dumps(newer))
    with pytest.raises(UserError, match="newer"):
        workspace.has_record(run, task)


# ---- groups


def members(found) -> list[list[str]]:
    return [[run.title for run in group.runs] for group in found]


METHODS = ["none", "fitnet", "singer", "sp", "rkd"]


def test_groups_hold_at_most_max_group_runs_of_one_seed_and_teacher(workspace):
    clean = {"method": "fitnet", "label": "clean", "teacher": {"planted": None}}
    runs = student_runs(experiment(methods=[*METHODS, clean], seeds=[0, 1]))
    for max_group, sizes in ((8, [5, 1, 5, 1]), (2, [2, 2, 1, 1, 2, 2, 1, 1]), (1, [1] * 12)):
        found = groups(runs, workspace, max_group)
        assert [len(group.runs) for group in found] == sizes
        assert sorted(run.id for group in found for run in group.runs) == sorted(run.id for run in runs)
        assert all(len({run.shared for run in group.runs}) == 1 for group in found)
    assert members(groups(runs, workspace, 8))[1] == ["clean seed 0"]


def test_what_is_shared_is_teacher_data_training_and_seed():
    def shared(**changes: Any) -> str:
        return student_runs(experiment(**changes))[0].shared

    assert shared() == shared(methods=["none"]) == shared(student={"depth": 2})
    others = [{"seeds": [1]}, {"training": {"lr": 1.0}}, {"data": {"image_size": 32}}, {"teacher": {"width": 96}}]
    assert len({shared(), *(shared(**other) for other in others)}) == 5


def test_a_group_is_known_by_its_runs_in_any_order(workspace):
    runs = student_runs(experiment(methods=METHODS))
    (one,), (two,) = groups(runs, workspace, 8), groups(runs[::-1], workspace, 8)
    assert one.id == two.id
    assert one.id != groups(runs[1:], workspace, 8)[0].id


def test_what_is_trained_or_failed_is_in_no_group(workspace):
    runs = student_runs(experiment(methods=METHODS))
    train(runs[0], workspace)
    fail(runs[2], workspace)
    assert members(groups(runs, workspace, 8)) == [["fitnet seed 0", "sp seed 0", "rkd seed 0"]]
    assert workspace.failure(runs[2].id) == {"reason": "loss is nan", "step": 3}


def test_a_training_under_way_keeps_its_company_even_beyond_max_group(workspace):
    runs = student_runs(experiment(methods=METHODS))
    begin([runs[4], runs[1], runs[3]], workspace, "g")
    assert members(groups(runs, workspace, 2)) == [
        ["rkd seed 0", "fitnet seed 0", "sp seed 0"],
        ["none seed 0", "singer seed 0"],
    ]


def test_a_training_without_a_checkpoint_is_grouped_anew(workspace):
    runs = student_runs(experiment(methods=METHODS))
    begin([runs[4], runs[1]], workspace, "g", checkpoint=False)
    assert len(groups(runs, workspace, 8)) == 1


def test_of_a_training_under_way_only_what_is_left_goes_on_together(workspace):
    runs = student_runs(experiment(methods=METHODS))
    begin(runs[:4], workspace, "g")
    train(runs[0], workspace)
    fail(runs[1], workspace)
    assert members(groups(runs, workspace, 8)) == [["singer seed 0", "sp seed 0"], ["rkd seed 0"]]
    assert members(groups(runs[3:], workspace, 8)) == [["sp seed 0"], ["rkd seed 0"]]  # rows were taken out


def test_a_group_that_was_split_off_a_larger_one_comes_first(workspace):
    runs = student_runs(experiment(methods=METHODS))
    begin(runs[:4], workspace, "a")
    begin(runs[:2], workspace, "b")
    begin(runs[:3], workspace, "c")
    assert members(groups(runs, workspace, 8)) == [
        ["none seed 0", "fitnet seed 0"],
        ["singer seed 0"],
        ["sp seed 0"],
        ["rkd seed 0"],
    ]


# ---- pending


def test_pending_is_whatever_is_neither_trained_nor_failed_nor_measured(workspace):
    here = experiment(tasks=["artifacts"])
    runs, bounds, (task,) = student_runs(here), bound_runs(here), task_runs(here)
    assert pending(here, workspace)
    train(runs[0], workspace)
    fail(runs[1], workspace)
    assert groups(runs, workspace, 8) == []
    assert [run.id for run, _ in waiting_for_tasks(bounds + runs, [task], workspace)] == [
        *(run.id for run in bounds),
        runs[0].id,
    ]
    for run in [*bounds, runs[0]]:
        assert pending(here, workspace)
        last = measure(run, task, workspace)
    assert not pending(here, workspace)
    assert pending(experiment(tasks=["artifacts", "classification"]), workspace)  # a new task only evaluates
    assert groups(student_runs(experiment(tasks=["artifacts", "classification"])), workspace, 8) == []
    last.write_text("damaged")
    assert pending(here, workspace)


def test_an_experiment_without_tasks_or_bounds_is_done_when_it_is_trained(workspace):
    here = experiment(tasks=[], bounds=False)
    for run in student_runs(here):
        assert pending(here, workspace)
        train(run, workspace)
    assert not pending(here, workspace)


def test_a_run_is_written_and_read_as_plain_yaml():
    run = student_runs(experiment())[0]
    assert yaml.safe_load(yaml.safe_dump(run.info.model_dump(mode="json")))["spec"] == run.spec
