"""Tuning: equal budgets, held-out images only, nothing lost, nothing twice; what it chose can be run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from experiments import tiny, write

from harness import data as harness_data
from harness.cli import main as cli
from harness.config import Experiment, load
from harness.errors import ConfigError, UserError
from harness.evaluation import Evaluation
from harness.interrupts import Interrupted
from harness.job import Job
from harness.monitoring.status import status
from harness.monitoring.status_text import described
from harness.progress import Console
from harness.records import read_records
from harness.runs import Workspace, student_runs
from harness.training.group_training import GroupTraining
from harness.tuning.tune import HELD_OUT, Plan, Tuning, find_goal, make_rungs, tune
from harness.tuning.tuned import table, without_result

PLUGIN = '''
import torch

from harness.api import Metric, Task


class Score(Task):
    """A quick number that depends on the weights and on the test images: any order of trials is as good as another."""

    name = "score"
    metrics = {
        "size": Metric("ratio", "down", ranked=False),
        "value": Metric("ratio", "up"),
        "less": Metric("m", "down"),
    }

    def __init__(self, *, data) -> None:
        self.data = data

    def protocol(self):
        return {"data": self.data.identity()}

    def evaluate(self, encoder, *, seed):
        source = self.data.open("test")
        (images,) = encoder.images(source, self.data.view())
        norm = encoder(images, layers=[0]).tokens[0].norm(dim=-1).mean().item()
        return {"size": 1.0, "value": norm, "less": norm, "images": len(source)}

    @classmethod
    def tiny(cls):
        raise NotImplementedError


class Flat(Task):
    """Every encoder is as good."""

    name = "flat"
    metrics = {"value": Metric("ratio", "up")}

    def __init__(self, *, data) -> None:
        self.data = data

    def protocol(self):
        return {"data": self.data.identity()}

    def evaluate(self, encoder, *, seed):
        return {"value": 0.5}

    @classmethod
    def tiny(cls):
        raise NotImplementedError
'''
METHODS = ["none", {"method": "fitnet", "label": "hints", "search": {"weight": ["log", 0.1, 100.0]}}]
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def plugin(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("plugin") / "score.py"
    path.write_text(PLUGIN)
    return path


@pytest.fixture
def changes(plugin) -> dict[str, Any]:
    training = {"steps": 4, "batch_size": 4, "warmup_epochs": 0.0, "lr": 0.01}
    return {
        "plugins": [str(plugin)],
        "tasks": ["score"],
        "methods": METHODS,
        "seeds": [0, 1],
        "training": training,
        "student": {"depth": 1, "width": 16},
        "teacher": {"depth": 2, "width": 24},
    }


@pytest.fixture
def here(tmp_path, changes) -> Experiment:
    return tiny(tmp_path, **changes)


def choices(tuning: Tuning) -> dict[str, tuple[int, float]]:
    found = {}
    for row in tuning.rows:
        best = row.best(tuning.goal)
        assert best is not None
        found[row.entry.title()] = (best.number, best.values[max(best.values)])
    return found


def records(folder: Path) -> dict[str, float]:
    return {r.run.label: r.values["value"] for r in read_records(Workspace(folder).records)[0]}


def test_the_best_of_all_trials_is_chosen_and_every_trial_is_a_record(here, tmp_path):
    tuning = tune(here, Workspace(tmp_path / "w"), Plan(trials=4), QUIET)
    found = records(tmp_path / "w")
    assert found.keys() == {"none #0", *(f"hints #{n}" for n in range(4))} and len(set(found.values())) == 5
    hints = {n: found[f"hints #{n}"] for n in range(4)}
    assert choices(tuning)["hints"] == (max(hints, key=hints.__getitem__), max(hints.values()))
    assert choices(tuning)["none"] == (0, found["none #0"])
    none, row = tuning.rows
    assert (none.steps, none.images, row.steps, row.images) == (4, 16, 16, 64)
    assert len(list(Workspace(tmp_path / "w").students.iterdir())) == 5
    assert "tiny-tuning: students: 5 trained" in described(status(Workspace(tmp_path / "w")))[0]
    less = tune(here, Workspace(tmp_path / "w"), Plan(trials=4, metric="score.less"), QUIET)
    assert choices(less)["hints"] == (min(hints, key=hints.__getitem__), min(hints.values()))


def test_the_test_split_is_never_opened_and_poison_in_it_changes_nothing(here, tmp_path):
    clean = tune(here, Workspace(tmp_path / "clean"), Plan(trials=3), QUIET)
    poisoned = tmp_path / "images" / "test.npz"
    poisoned.write_bytes(b"poison")
    with pytest.raises(UserError, match=r"test\.npz cannot be read"):
        Job(here, Workspace(tmp_path / "whole"), QUIET).run()
    harness_data._OPEN.clear()  # nothing that was read before may help
    again = tune(here, Workspace(tmp_path / "poisoned"), Plan(trials=3), QUIET)
    assert choices(again) == choices(clean)
    for record in read_records(Workspace(tmp_path / "poisoned").records)[0]:
        assert record.protocol["data"]["held_out"] == HELD_OUT and record.details["images"] == 4  # one of ten a class
        assert record.run.data == "noise, 0.1 of train held out"


def test_a_share_that_the_experiment_holds_out_is_kept_and_a_tasks_own_data_is_closed_too(tmp_path, changes):
    own = {"task": "score", "data": {"source": "array", "root": str(tmp_path / "images"), "image_size": 32}}
    here = tiny(tmp_path, **{**changes, "data": {"held_out": 0.25}, "tasks": [own]})
    (rung,) = make_rungs(here, Plan(trials=1), find_goal(here, None))
    assert rung.experiment.data.held_out == 0.25
    (task,) = rung.experiment.tasks
    assert task.data is not None and task.data.held_out == HELD_OUT and task.title() == "score (held out)"


@pytest.mark.parametrize("halving", [None, 2])
def test_killed_and_started_again_it_ends_with_the_same_choice(here, tmp_path, monkeypatch, halving):
    plan = Plan(trials=4, halving=halving)
    whole = tune(here, Workspace(tmp_path / "whole"), plan, QUIET)
    finish, evaluate = GroupTraining._finish, Evaluation._evaluate
    trained, measured = [], []

    def counted(self, run, member, group):
        trained.append((run.id, group.steps))
        return finish(self, run, member, group)

    def killed(self, run, tasks):
        measured.append(run.id)
        if len(measured) in (2, 5):
            raise Interrupted("SIGTERM")
        evaluate(self, run, tasks)

    monkeypatch.setattr(GroupTraining, "_finish", counted)
    monkeypatch.setattr(Evaluation, "_evaluate", killed)
    workspace = Workspace(tmp_path / "killed")
    kills = 0
    for _ in range(4):
        try:
            again = tune(here, workspace, plan, QUIET)
            break
        except Interrupted:
            kills += 1
    assert kills == 2 and choices(again) == choices(whole)
    assert len(trained) == len(set(trained)) == len(list(workspace.students.iterdir()))  # each is trained once


def test_halving_gives_every_method_the_same_numbers_of_trials_and_steps(tmp_path, changes):
    second = {"method": "fitnet", "label": "other", "search": {"weight": ["log", 1.0, 10.0]}}
    few = {"method": "fitnet", "label": "few", "search": {"weight": ["choice", 2.0, 3.0]}}
    here = tiny(tmp_path, **{**changes, "methods": [*METHODS, second, few], "seeds": [0]})
    rungs = make_rungs(here, Plan(trials=4, halving=2), find_goal(here, None))
    assert [(rung.count, rung.steps) for rung in rungs] == [(4, 1), (2, 2), (1, 4)]
    tuning = tune(here, Workspace(tmp_path / "w"), Plan(trials=4, halving=2), QUIET)
    none, hints, other, few = tuning.rows
    assert hints.steps == other.steps == 4 * 1 + 2 * 2 + 1 * 4 and hints.images == 4 * hints.steps
    assert none.steps == 4  # nothing has to be left out, so it is trained once, in full
    assert len(few.trials) == 3 and few.steps == 3 * 1 + 2 * 2 + 4
    for row in (hints, other):
        for rung, count in ((0, 4), (1, 2), (2, 1)):
            assert sum(rung in trial.values for trial in row.trials) == count
        for rung in (0, 1):  # the best go on
            left = [t.values[rung] for t in row.trials if t.reached == rung]
            assert max(left) <= min(t.values[rung] for t in row.trials if t.reached is not None and t.reached > rung)
        best = row.best(tuning.goal)
        assert best is not None and best.reached == 2
        default = row.trials[0]
        said = f"{default.values[max(default.values)]:.4g}" + ("" if default.reached == 2 else " (after ")
        assert said in table(tuning)


def test_trials_that_diverge_count_are_shown_and_never_win(tmp_path, changes):
    wild = {"method": "fitnet", "search": {"weight": ["choice", 1.0, 1e39]}}
    lost = {"method": "fitnet", "label": "lost", "hyperparameters": {"weight": 1e40}}
    here = tiny(tmp_path, **{**changes, "methods": [wild, lost], "seeds": [0]})
    tuning = tune(here, Workspace(tmp_path / "w"), Plan(trials=2), QUIET)
    row, hopeless = tuning.rows
    assert [bool(trial.failures) for trial in row.trials] == [False, True] and row.steps == 8
    assert choices(Tuning(here, tuning.plan, tuning.goal, tuning.rungs, (row,)))["fitnet"][0] == 0
    assert hopeless.best(tuning.goal) is None and without_result(tuning) == ["lost"]
    text = table(tuning)
    assert "2, 1 failed" in text and "failed: fitnet #1 (weight=1e+39), seed 0, step " in text
    assert "every trial failed" in text


def test_of_equal_trials_the_earlier_one_wins(tmp_path, changes):
    here = tiny(tmp_path, **{**changes, "tasks": ["flat"]})
    tuning = tune(here, Workspace(tmp_path / "w"), Plan(trials=4, halving=2), QUIET)
    assert choices(tuning) == {"none": (0, 0.5), "hints": (0, 0.5)}
    assert [trial.reached for trial in tuning.rows[1].trials] == [2, 1, 0, 0]


def test_rows_of_one_method_share_the_settings_that_they_share(tmp_path, changes):
    twins = [
        {"method": "fitnet", "label": label, "hyperparameters": {"weight": weight}, "search": METHODS[1]["search"]}
        for label, weight in (("a", 1.0), ("b", 2.0))
    ]
    here = tiny(tmp_path, **{**changes, "methods": twins})
    tuning = tune(here, Workspace(tmp_path / "w"), Plan(trials=3), QUIET)
    assert len(list(Workspace(tmp_path / "w").students.iterdir())) == 4  # two of their own, two in common
    a, b = ([trial.values for trial in row.trials] for row in tuning.rows)
    assert a[1:] == b[1:] and a[0] != b[0]


def test_a_trials_value_is_the_mean_over_the_seeds_that_are_asked_for(here, tmp_path):
    tuning = tune(here, Workspace(tmp_path / "w"), Plan(trials=1, seeds=(3, 5)), QUIET)
    found = [r for r in read_records(Workspace(tmp_path / "w").records)[0] if r.run.label == "hints #0"]
    assert sorted(r.run.seed for r in found) == [3, 5]
    assert choices(tuning)["hints"][1] == pytest.approx(sum(r.values["value"] for r in found) / 2)
    assert tuning.rows[1].steps == 8


@pytest.fixture
def call(monkeypatch, capsys):
    def run(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["singer-bench", *map(str, args)])
        try:
            cli.main()
            code = 0
        except SystemExit as done:
            code = done.code
        out = capsys.readouterr()
        return code, out.out, out.err

    return run


def test_what_was_chosen_is_a_configuration_that_trains_all_seeds_on_all_images(call, tmp_path, changes):
    config = write(tmp_path, **{**changes, "data": {"held_out": 0.2}})
    output = tmp_path / "sub" / "tuned.yaml"
    args = ("tune", config, "--trials", 3, "--set", "training.steps=3", "--workspace", tmp_path / "w", "-o", output)
    code, out, err = call(*args, "--quiet")
    assert code == 0, err
    assert f"singer-bench run {output}" in out and "1 of 3, there are no more" in out and "9 x 4 = 36" in out
    found = load(output)
    best = max(range(3), key=lambda n: records(tmp_path / "w")[f"hints #{n}"])
    with_trials = {r.run.label: r for r in read_records(Workspace(tmp_path / "w").records)[0]}
    chosen = with_trials[f"hints #{best}"].run.hyperparameters
    assert [method.title() for method in found.methods] == ["none", "hints"]
    assert [method.trials for method in found.methods] == [1, 3]
    assert found.known().resolve("method", "fitnet", found.methods[1].hyperparameters) == chosen
    assert found.name == "tiny-tuned" and found.seeds == (0, 1) and found.training.steps == 3
    assert found.data.held_out is None and yaml.safe_load(output.read_text())["base"] == "../tiny.yaml"
    code, out, err = call("run", output, "--workspace", tmp_path / "final", "--quiet")
    assert code == 0, err
    header, _, *rows = [line for line in out.splitlines() if line.startswith("|")]
    assert header.split("|")[3].strip() == "trials"
    assert {line.split("|")[1].strip(): line.split("|")[3].strip() for line in rows} == {"none": "1", "hints": "3"}
    final = read_records(Workspace(tmp_path / "final").records)[0]
    assert {r.run.trials for r in final} == {1, 3} and {r.details["images"] for r in final} == {40}
    assert len({r.run.seed for r in final}) == 2


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--trials", 0], "--trials is 0; give 1 or more"),
        (["--trials", 2, "--metric", "score.valu"], "no metric of score 'valu'; did you mean 'value'?"),
        (["--trials", 2, "--metric", "scor.value"], "no task 'scor'; did you mean 'score'?"),
        (["--trials", 2, "--metric", "value"], "give TASK.METRIC"),
        (["--trials", 2, "--metric", "score.size"], "score.size is not ranked"),
        (["--trials", 2, "--set", "tasks=[artifacts]"], "no metric of 'artifacts', the first task, is ranked"),
        (["--trials", 2, "--set", "tasks=[]"], "the experiment has none"),
        (["--trials", 2, "--set", "methods.1.search.wait=[log, 1, 2]"], "fitnet has no hyperparameter 'wait'"),
        (["--trials", 2, "--sampler", "sobl"], "no sampler 'sobl'; did you mean 'sobol'?"),
        (["--trials", 4, "--halving", 1], "--halving is 1; with 4 trials give 2 .. 4"),
        (["--trials", 4, "--halving", 5], "--halving is 5; with 4 trials give 2 .. 4"),
        (["--trials", 2, "--seeds", "0;1"], "--seeds is '0;1'"),
    ],
)
def test_mistakes_are_said_in_words_before_anything_trains(call, tmp_path, changes, args, said):
    code, _, err = call("tune", write(tmp_path, **changes), *args, "--workspace", tmp_path / "w")
    assert code == 2 and said in err and "Traceback" not in err
    assert not (tmp_path / "w").exists()


def test_the_configuration_itself_is_never_written_over(call, tmp_path, changes):
    config = write(tmp_path, **changes)
    before = config.read_text()
    code, _, err = call("tune", config, "--trials", 1, "-o", config)
    assert code == 2 and "is the configuration itself" in err and config.read_text() == before


def test_settings_with_which_a_method_cannot_be_built_are_named_before_anything_trains(tmp_path, changes):
    method = {"method": "fitnet", "search": {"layers": ["choice", [0], [7]], "weight": None}}
    here = tiny(tmp_path, **{**changes, "methods": [method]})
    with pytest.raises(ConfigError) as caught:
        tune(here, Workspace(tmp_path / "w"), Plan(trials=3), QUIET)
    said = str(caught.value)
    assert "method 'fitnet #" in said and "narrow methods.N.search" in said
    assert not Workspace(tmp_path / "w").students.is_dir()


def test_trials_are_runs_of_their_own_identity_and_share_a_group(here):
    (rung,) = make_rungs(here, Plan(trials=2), find_goal(here, None))
    ids = {run.id for run in student_runs(rung.experiment)}
    assert not ids & {run.id for run in student_runs(here)}
    assert len({run.shared for run in student_runs(rung.experiment)}) == 1
    assert json.dumps(student_runs(rung.experiment)[0].spec["data"]["held_out"]) == "0.1"
