"""`singer-bench table` as its user meets it: what it reads of a workspace, where it writes, what it refuses."""

# ruff: noqa: F401, F811 - fixtures are imported
from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tables import on, pairs, paper
from test_cli import call, measure, refused, started, workspace
from test_leaderboard import seeds

from harness.asked import asked_for
from harness.records import Record, write_record
from harness.runs import Workspace, student_runs


def written(root: Path, records: list[Record]) -> Path:
    for one in records:
        write_record(root / "records", one)
    return root


@pytest.fixture
def place(tmp_path) -> Path:
    return written(tmp_path / "place", pairs())


def test_rows_tasks_metrics_and_what_is_excluded_are_options(call, place):
    code, out, err = call("table", place, "--rows", "singer,fit*", "--tasks", "depth", "--metrics", "all", "--no-costs")
    assert (code, err) == (0, "")
    first, _ = out.split("###")[1:]
    assert [line.split()[1] for line in first.split("\n") if line.startswith("| ") and "±" in line] == [
        "singer",
        "fitnet",
    ]
    assert "depth delta1" in first and "depth rmse" in first and "cls" not in first.split("\n\n")[1]
    code, out, _ = call("table", place, "--exclude", "singer,depth", "--format", "json")
    board = json.loads(out)
    assert all(row["label"] != "singer" for section in board["sections"] for row in section["rows"])
    assert {column["title"] for section in board["sections"] for column in section["columns"]} == {"cls"}


def test_pairs_differences_and_table_1_are_options(call, place, tmp_path):
    _, out, _ = call("table", place, "--group-by", "pair", "--difference", "singer", "--no-costs")
    assert out.count("| method") == 1 and out.count("| singer − best other |") == 2
    mine = written(tmp_path / "mine", on("imagenet-1k", "classification", "top1", "singer", 0.7, 0.72))
    _, out, _ = call("table", mine, "--reported", "--no-costs")
    assert "singer (reported)" in out and "ADE20K" not in out
    _, out, _ = call("table", mine, "--like-paper", "--format", "plain")
    assert "71.00 ± 1.41" in out and "[70.59]" in out and "ADE20K" in out and "vit_small" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "singr"], "no row 'singr'; did you mean 'singer'?"),
        (["--tasks", "dept"], "no task 'dept'; did you mean 'depth'?"),
        (["--exclude", "sgner"], "no row, task or metric 'sgner'; did you mean 'singer'?"),
        (["--difference", "singr"], "no student 'singr'; did you mean 'singer'?"),
        (["--group-by", "pairs"], "no grouping 'pairs'; did you mean 'pair'?"),
        (["--reported"], "no published number is of these tables' models and data sets"),
        (["--like-paper", "--metrics", "all"], "leave out --metrics and --gap"),
        (["--like-paper", "--gap", "a", "b"], "leave out --metrics and --gap"),
    ],
)
def test_a_mistake_is_one_sentence(refused, place, arguments, message):
    assert message in refused("table", place, *arguments)


@pytest.mark.parametrize(
    ("name", "start"),
    [("t.tex", "% Needs"), ("t.csv", "teacher,"), ("t.json", "{"), ("t.txt", "big →"), ("t", "###"), ("t.md", "###")],
)
def test_the_ending_of_a_file_names_the_format_unless_that_is_given(call, place, tmp_path, name, start):
    assert call("table", place, "-o", tmp_path / name)[0] == 0
    assert (tmp_path / name).read_text().startswith(start)
    call("table", place, "-o", tmp_path / name, "--format", "csv")
    assert (tmp_path / name).read_text().startswith("teacher,")


def test_a_terminal_gets_a_table_that_fits_and_a_pipe_markdown(call, place, monkeypatch):
    monkeypatch.setenv("COLUMNS", "90")
    assert call("table", place)[1].startswith("###")
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda self: True)
    out = call("table", place)[1]
    assert out.startswith("big → small") and max(map(len, out.split("\n"))) <= 90
    assert call("table", place, "--format", "markdown")[1].startswith("###")


def test_a_task_in_two_columns_is_hinted_at_beside_the_table(call, tmp_path):
    old, new = seeds("a", 0.5, protocol={"steps": 1}), seeds("a", 0.6, protocol={"steps": 2})
    code, out, err = call("table", written(tmp_path, [*old, *new]))
    assert code == 0 and "hint" not in out
    assert err.startswith("hint: cls stands in 2 columns, since it was measured under 2 protocols: `--tasks ")


def test_students_that_failed_or_have_not_run_are_told_of(call, workspace):
    experiment = started(workspace)
    measure(experiment, workspace)
    singer = [run for run in student_runs(experiment) if run.info.label == "singer"]
    fitnet = [run for run in student_runs(experiment) if run.info.label == "fitnet"]
    for run in (*singer, *fitnet):
        for path in workspace.records.glob(f"{run.id}.*"):
            path.unlink()
    workspace.fail(singer[0], reason="loss kd is nan", step=7)
    _, out, err = call("table", workspace.root, "--format", "plain")
    assert err == ""
    (line,) = [line for line in out.split("\n") if line.startswith("singer")]
    assert line.split()[:5] == ["singer", "0", "of", "2", "failed"]
    assert "Training failed: singer seed 0 at step 7: loss kd is nan." in out
    assert "Without any result yet, so not shown: fitnet." in out


def test_an_experiment_that_cannot_be_read_hides_no_record(call, workspace):
    experiment = started(workspace)
    measure(experiment, workspace)
    path = workspace.root / "experiments" / "small.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "plugins": ["gone.py"]}))
    code, out, _ = call("table", workspace.root)
    assert code == 0 and "| fitnet" in out and "What experiment small asks for is not known: " in out
    started(workspace)
    workspace.failures.mkdir(parents=True)
    (workspace.failures / f"{student_runs(experiment)[0].id}.json").write_text("{")
    code, out, _ = call("table", workspace.root)
    assert code == 0 and "| fitnet" in out and "What experiment small asks for is not known: " in out


def test_what_is_asked_for_comes_once_with_its_failure(workspace):
    experiment = started(workspace)
    started(workspace, name="again")
    run = student_runs(experiment)[0]
    workspace.fail(run, reason="diverged", step=3)
    found, unknown = asked_for(workspace)
    assert unknown == [] and sorted(info.id for info, _ in found) == sorted(r.id for r in student_runs(experiment))
    assert {info.id: why for info, why in found if why} == {run.id: "at step 3: diverged"}
    assert asked_for(Workspace(workspace.root / "none")) == ([], [])


def test_a_chart_of_reported_rows_draws_only_what_was_measured(call, tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    drawn: dict[str, Any] = {}
    bars, line = Axes.barh, Axes.plot
    monkeypatch.setattr(Axes, "barh", lambda *a, **k: drawn.update(bars=a[1]) or bars(*a, **k))
    monkeypatch.setattr(Axes, "plot", lambda *a, **k: drawn.update(lines=True) or line(*a, **k))
    mine = written(tmp_path / "mine", on("imagenet-1k", "classification", "top1", "singer", 0.7))
    code, _, err = call("table", mine, "--reported", "--chart", tmp_path / "c.png")
    assert (code, err, drawn) == (0, "", {"bars": ["singer"]})


def documented() -> list[str]:
    text = (Path(__file__).parents[1] / "docs" / "tables.md").read_text()
    return [line for line in text.split("\n") if line.startswith("singer-bench table WORKSPACE")]


@pytest.mark.parametrize("line", documented())
def test_documented_commands_work_as_they_stand(call, tmp_path, monkeypatch, line):
    assert len(documented()) > 10
    place = written(tmp_path / "WORKSPACE", paper())
    monkeypatch.chdir(tmp_path)
    code, out, _ = call(*shlex.split(line)[1:])
    assert code == 0 and (out or (tmp_path / "table.tex").is_file()) and place.is_dir()
