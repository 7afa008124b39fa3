"""An experiment from start to records: killed, resumed, grouped, shared between processes, with bad data."""

from __future__ import annotations

import json
import os
import signal

import numpy as np
import pytest
import timm
import torch
import yaml
from experiments import run, same, students, tiny
from processes import SLOW, in_child, when_at
from safetensors.torch import load_file

from harness.errors import ConfigError, UserError
from harness.job import Job
from harness.progress import Console
from harness.records import read_records
from harness.runs import Workspace, groups, pending, student_runs


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The students of a run that nobody touched."""
    folder = tmp_path_factory.mktemp("undisturbed")
    experiment = tiny(folder)
    run(experiment, folder / "workspace")
    return students(experiment, folder / "workspace")


@pytest.fixture(scope="module")
def undisturbed_slow(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slow")
    experiment = tiny(folder, **SLOW)
    run(experiment, folder / "workspace")
    return students(experiment, folder / "workspace")


@pytest.mark.parametrize("steps", [(2,), (10, 24), (8, 16, 30)])
def test_killed_and_started_again_it_ends_with_the_same_bits(steps, undisturbed_slow, tmp_path):
    experiment, workspace = tiny(tmp_path, **SLOW), tmp_path / "workspace"
    for step in steps:
        child = in_child(experiment, workspace)
        when_at(workspace, step, child)
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert pending(experiment, Workspace(workspace))
    run(experiment, workspace)
    found = students(experiment, workspace)
    for title, weights in undisturbed_slow.items():
        assert same(found[title], weights), title
    for log in workspace.glob("students/*/train.jsonl"):
        assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == list(range(2, 41, 2))
    assert not list(workspace.glob("groups/*")) and not list(workspace.glob("students/*.partial"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
def test_a_signal_saves_and_stops_and_the_next_start_goes_on(number, undisturbed_slow, tmp_path):
    experiment, workspace = tiny(tmp_path, **SLOW), tmp_path / "workspace"
    child = in_child(experiment, workspace)
    when_at(workspace, 10, child)
    os.kill(child.pid, number)
    child.join()
    assert child.exitcode == 130
    state = torch.load(next(workspace.glob("groups/*/checkpoint.pt")), weights_only=True)
    assert state["step"] >= 10  # it saved when it was asked to, not just at a multiple of 7
    run(experiment, workspace)
    found = students(experiment, workspace)
    assert all(same(found[title], weights) for title, weights in undisturbed_slow.items())


def test_a_signal_to_every_process_of_a_job_saves_too(undisturbed_slow, tmp_path):
    """What a scheduler does: the data workers get the signal as well and must not take the training down."""
    runtime = {**SLOW["runtime"], "num_workers": 2}
    experiment, workspace = tiny(tmp_path, **{**SLOW, "runtime": runtime}), tmp_path / "workspace"
    child = in_child(experiment, workspace)
    when_at(workspace, 4, child)
    os.killpg(child.pid, signal.SIGTERM)
    child.join(60)
    assert child.exitcode == 130
    run(tiny(tmp_path, **SLOW), workspace)
    found = students(experiment, workspace)
    assert all(same(found[title], weights) for title, weights in undisturbed_slow.items())


@pytest.mark.parametrize("change", [{"max_group": 1}, {"max_group": 2}, {"num_workers": 2}])
def test_grouping_and_workers_change_nothing(change, undisturbed, tmp_path):
    experiment = tiny(tmp_path, runtime=change)
    run(experiment, tmp_path / "workspace")
    found = students(experiment, tmp_path / "workspace")
    for title, weights in undisturbed.items():
        assert same(found[title], weights), title


def test_a_method_added_later_is_trained_alone_and_nothing_twice(undisturbed, tmp_path):
    workspace = tmp_path / "workspace"
    first = tiny(tmp_path, methods=["none", "fitnet"])
    run(first, workspace)
    whole = tiny(tmp_path)
    (left,) = groups(student_runs(whole), Workspace(workspace), 8)
    assert [one.info.label for one in left.runs] == ["singer"]
    job = run(whole, workspace)
    assert len(job.outcome.trained) == 1
    found = students(whole, workspace)
    assert all(same(found[title], weights) for title, weights in undisturbed.items())


def test_a_method_left_out_of_a_killed_group_keeps_its_progress(undisturbed_slow, tmp_path):
    whole, workspace = tiny(tmp_path, **SLOW), tmp_path / "workspace"
    child = in_child(whole, workspace)
    when_at(workspace, 16, child)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    run(tiny(tmp_path, methods=["fitnet"], **SLOW), workspace)
    parked = torch.load(next(workspace.glob("groups/*/checkpoint.pt")), weights_only=True)
    assert parked["step"] >= 7 and len(parked["members"]) == 3
    run(whole, workspace)
    found = students(whole, workspace)
    assert all(same(found[title], weights) for title, weights in undisturbed_slow.items())


def test_two_processes_on_one_workspace_do_the_work_once(undisturbed_slow, tmp_path):
    experiment, workspace = tiny(tmp_path, **SLOW), tmp_path / "workspace"
    children = [in_child(experiment, workspace) for _ in range(2)]
    for child in children:
        child.join(120)
        assert child.exitcode == 0
    found = students(experiment, workspace)
    assert all(same(found[title], weights) for title, weights in undisturbed_slow.items())
    assert not list(workspace.glob("locks/*.lock"))


def test_a_finished_experiment_runs_nothing_again(tmp_path):
    experiment = tiny(tmp_path, tasks=["artifacts"], bounds=True)
    run(experiment, tmp_path / "workspace")
    assert not pending(experiment, Workspace(tmp_path / "workspace"))
    again = run(experiment, tmp_path / "workspace")
    assert again.outcome.trained == [] and again.outcome.evaluated == 0


def test_a_new_task_only_evaluates(tmp_path):
    run(tiny(tmp_path), tmp_path / "workspace")
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("workspace/students/*/model.safetensors")}
    job = run(tiny(tmp_path, tasks=["artifacts"], bounds=True), tmp_path / "workspace")
    assert job.outcome.trained == [] and job.outcome.evaluated == 5  # three students, teacher, untrained
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.glob("workspace/students/*/model.safetensors")}


def test_a_record_tells_who_what_how_and_at_what_cost(tmp_path):
    experiment = tiny(tmp_path, tasks=["artifacts"], bounds=True)
    run(experiment, tmp_path / "workspace")
    records, problems = read_records(tmp_path / "workspace" / "records")
    assert not problems and len(records) == 5
    singer = next(r for r in records if r.run.label == "singer")
    assert singer.run.hyperparameters["rank"] == 8 and singer.run.spec["training"]["steps"] == 12
    assert singer.cost.steps == 12 and singer.cost.images_seen == 96 and singer.cost.group_size == 3
    assert singer.cost.method_parameters == 2 * (32 * 48 + 48) + 2 * (2 * 48 * 8)
    assert singer.cost.teacher_s > 0 and singer.cost.own_s > 0 and singer.cost.evaluation_s > 0
    assert singer.environment["packages"]["torch"] == torch.__version__.split("+")[0]
    assert {r.run.kind for r in records} == {"student", "teacher", "untrained"}
    described = yaml.safe_load((tmp_path / f"workspace/students/{singer.run.id}/run.yaml").read_text())
    assert described["report"]


def test_a_student_is_a_folder_that_timm_loads(tmp_path):
    experiment = tiny(tmp_path, methods=["none"])
    run(experiment, tmp_path / "workspace")
    folder = next(tmp_path.glob("workspace/students/*"))
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    stored = load_file(folder / "model.safetensors")
    assert same(dict(model.state_dict()), stored)
    assert tuple(model.pretrained_cfg["mean"]) == (0.5, 0.5, 0.5) and model.num_classes == 4


def test_only_a_head_that_was_trained_counts_as_trained(tmp_path):
    experiment = tiny(tmp_path)
    run(experiment, tmp_path / "workspace")
    trained = {
        d["info"]["label"]: d["head_trained"]
        for d in (yaml.safe_load(p.read_text()) for p in tmp_path.glob("workspace/students/*/run.yaml"))
    }
    assert trained == {"none": True, "fitnet": False, "singer": False}


def test_data_that_changed_under_its_name_is_refused(tmp_path):
    run(tiny(tmp_path, methods=["none"]), tmp_path / "workspace")
    path = tmp_path / "images" / "train.npz"
    held = dict(np.load(path))
    np.savez(path, images=held["images"][:32], labels=held["labels"][:32])
    from harness import data

    data._OPEN.clear()
    with pytest.raises(UserError, match="40 samples then, 32 now"):
        run(tiny(tmp_path), tmp_path / "workspace")


def test_a_method_that_cannot_be_built_stops_everything_before_it_starts(tmp_path):
    wrong = ["none", {"method": "singer", "hyperparameters": {"rank": 500}}, {"method": "fitnet_published"}]
    with pytest.raises(ConfigError) as caught:
        run(tiny(tmp_path, methods=wrong), tmp_path / "workspace")
    assert len(caught.value.mistakes) == 2 and "rank 500" in str(caught.value) and "layer 11" in str(caught.value)
    assert not list(tmp_path.glob("workspace/students/*"))


def test_too_few_images_for_a_batch_is_a_clear_error(tmp_path):
    with pytest.raises(UserError, match=r"batch_size is 64, but there are only 40"):
        run(tiny(tmp_path, training={"batch_size": 64}), tmp_path / "workspace")


def test_a_failed_run_is_kept_with_its_batch_and_not_tried_again(tmp_path):
    diverging = tiny(tmp_path, training={"optimizer": "sgd", "lr": 1e12}, methods=["none", "fitnet"])
    job = run(diverging, tmp_path / "workspace")
    assert set(job.outcome.failed) == {"none seed 0", "fitnet seed 0"}
    failure = json.loads(next(tmp_path.glob("workspace/failures/*.json")).read_text())
    assert failure["reason"] == "the loss is not finite" and len(failure["batch"]) == 8
    assert not groups(student_runs(diverging), Workspace(tmp_path / "workspace"), 8)


def test_a_fitted_teacher_is_trained_once_and_planted_artifacts_are_seen(tmp_path):
    fit = {"training": {"steps": 4, "batch_size": 8}}
    planted = {"layer": 1, "size": 20, "share": 0.1}
    experiment = tiny(
        tmp_path,
        teacher={"fit": fit, "planted": planted},
        methods=["fitnet", {"method": "fitnet", "label": "oracle", "teacher": {"planted": {"size": 0}}}],
        tasks=["artifacts"],
        bounds=True,
    )
    job = run(experiment, tmp_path / "workspace")
    assert len(job.outcome.trained) == 3  # the teacher, fitnet, oracle
    records, _ = read_records(tmp_path / "workspace" / "records")
    values = {r.run.label: r.values for r in records}
    assert values["teacher"]["max_over_median"] > 10
    labels = {r.run.label: r.run.condition for r in records}
    assert len(set(labels.values())) == 1  # one table: the oracle's teacher is a control, not another comparison


def test_messages_are_quiet_when_asked(tmp_path, capfd):
    Job(tiny(tmp_path, methods=["none"]), Workspace(tmp_path / "workspace"), Console(quiet=True)).run()
    assert capfd.readouterr().err == ""


def test_a_task_that_cannot_be_measured_costs_no_training(tmp_path):
    tasks = [
        {"task": "classification", "options": {"steps": 0}},
        {"task": "classification", "label": "elsewhere", "data": {"source": "folder", "root": str(tmp_path / "no")}},
        {"task": "few_shot", "options": {"ways": 1}},
    ]
    experiment = tiny(tmp_path, tasks=tasks)
    with pytest.raises(ConfigError) as error:
        run(experiment, tmp_path / "workspace")
    said = "\n".join(error.value.mistakes)
    assert len(error.value.mistakes) == 3 and "steps of the classification task is 0" in said
    assert "task 'elsewhere': " in said and "ways of the few_shot task is 1" in said
    assert not list((tmp_path / "workspace").glob("students/*"))


def test_a_protocol_that_the_code_has_changed_is_measured_anew_and_no_other(tmp_path, monkeypatch):
    from tasks.classification import Classification

    experiment = tiny(tmp_path, methods=["none"], tasks=[{"task": "classification", "options": {"steps": 5}}])
    place = tmp_path / "workspace"
    run(experiment, place)
    before = {p.name: p.stat().st_mtime_ns for p in (place / "records").glob("*.json")}
    assert before and not pending(experiment, Workspace(place))

    monkeypatch.setattr("harness.runs.protocol_code", lambda: "code that gives the same protocol")
    run(experiment, place)
    assert {p.name: p.stat().st_mtime_ns for p in (place / "records").glob("*.json")} == before

    protocol = Classification.protocol
    monkeypatch.setattr(Classification, "protocol", lambda self: {**protocol(self), "version": 99})
    monkeypatch.setattr("harness.runs.protocol_code", lambda: "code that gives another")
    assert pending(experiment, Workspace(place))
    run(experiment, place)
    records, _ = read_records(place / "records")
    assert sorted(r.protocol["version"] for r in records) == [1, 99]
    assert not pending(experiment, Workspace(place))
