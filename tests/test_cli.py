"""The command line as a user meets it: exit codes, words on the right stream, nothing heavy where it is not needed."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness import __version__
from harness.checking import checks
from harness.cli import main as cli
from harness.config import Experiment, load, parse
from harness.monitoring.status import status as look
from harness.monitoring.status_text import described
from harness.planning import plans
from harness.planning.plans import plan
from harness.records import MetricInfo, Record, write_record
from harness.results import listing, remember
from harness.runs import Run, Workspace, bound_runs, fit_runs, student_runs, task_runs
from harness.storage.locks import Lock

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "torchvision", "timm", "mmengine", "numpy", "matplotlib")
RAW: dict[str, Any] = {
    "name": "small",
    "teacher": {"width": 48},
    "student": {"width": 24},
    "training": {"steps": 10},
    "methods": ["none", "fitnet", "singer"],
    "seeds": [0, 1],
    "tasks": ["artifacts"],
    "bounds": False,
}
BAD_PLUGIN = '''
from harness.api import Method


class Mine(Method):
    """Reads what it did not ask for."""

    name = "mine"
    cite = "made up"

    def losses(self, student, teacher, batch):
        return {"loss": student.tokens[0].sum()}
'''


@pytest.fixture
def call(monkeypatch, capsys):
    """The command line in this process: exit code, standard output, standard error."""

    def run(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["singer-bench", *map(str, args)])
        try:
            cli.main()
            code = 0
        except SystemExit as done:
            code = done.code
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def refused(call):
    """What a command says that is a user's mistake: on standard error alone, without a traceback, exit code 2."""

    def run(*args: object) -> str:
        code, out, err = call(*args)
        assert (code, out) == (2, "")
        assert "Traceback" not in err and err.endswith("\n")
        return err

    return run


@pytest.fixture
def config(tmp_path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(RAW))
    return path


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    return Workspace(tmp_path / "workspace")


def started(workspace: Workspace, **changes: Any) -> Experiment:
    experiment = parse({**RAW, **changes})
    remember(experiment, workspace)
    return experiment


def train(run: Run, workspace: Workspace, own_s: float = 60.0) -> None:
    """As if it had been trained."""
    folder = workspace.student(run.id)
    folder.mkdir(parents=True)
    (folder / "run.yaml").write_text(
        yaml.safe_dump(
            {
                "info": run.info.model_dump(mode="json"),
                "cost": {"steps": 10, "own_s": own_s, "teacher_s": 120.0},
                "environment": {"device": "cpu", "device_name": "a CPU", "threads": 2},
            }
        )
    )
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_text("{}")


def status(workspace: Workspace) -> str:
    return "\n".join(described(look(workspace)))


def fail(run: Run, workspace: Workspace) -> None:
    workspace.failures.mkdir(parents=True, exist_ok=True)
    (workspace.failures / f"{run.id}.json").write_text(json.dumps({"reason": "loss kd is nan", "step": 7}))


def measure(experiment: Experiment, workspace: Workspace) -> None:
    """A record of every run on every task."""
    for task in task_runs(experiment):
        workspace.protocols.mkdir(parents=True, exist_ok=True)
        (workspace.protocols / f"{task.key}.json").write_text(json.dumps({"task_id": task.key}))
        for i, run in enumerate(bound_runs(experiment) + student_runs(experiment)):
            metrics = {
                "top1": MetricInfo(unit="fraction", direction="up"),
                "ece": MetricInfo(unit="fraction", direction="down"),
            }
            record = Record(
                task=task.spec.title(),
                task_kind=task.spec.task,
                task_id=task.key,
                metrics=metrics,
                values={"top1": 0.5 + i / 100, "ece": 0.125},
                protocol={},
                run=run.info,
                seed=run.info.seed,
            )
            write_record(workspace.records, record)


def settled(experiment: Experiment, workspace: Workspace) -> None:
    for run in student_runs(experiment):
        train(run, workspace)
    measure(experiment, workspace)


# ---- what every command has in common


def test_quick_commands_import_nothing_heavy(tmp_path, workspace, config):
    settled(started(workspace), workspace)
    commands = [
        ["--help"],
        ["list", "methods", "--verbose"],
        ["plan", str(config), "--workspace", str(tmp_path / "empty")],
        ["status", str(workspace.root)],
        ["table", str(workspace.root)],
        ["run", str(config), "--workspace", str(workspace.root)],  # nothing is pending
    ]
    code = f"""
import sys
from harness.cli.main import main
for args in {commands!r}:
    sys.argv = ["singer-bench", *args]
    try:
        main()
    except SystemExit as done:
        assert not done.code
    print(args[0], [m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    heavy = [line for line in done.stderr.splitlines() if line.endswith("]")]
    assert heavy == [f"{args[0]} []" for args in commands]


@pytest.mark.parametrize("unbuffered", ["", "1"])  # it is noticed at the end, or at the first line
def test_a_reader_that_goes_away_is_no_mistake(unbuffered):
    words = f"{sys.executable} -m harness.cli list tasks | true; exit ${{PIPESTATUS[0]}}"
    env = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(["bash", "-c", words], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_it_runs_as_a_module_under_its_own_name():
    done = subprocess.run(
        [sys.executable, "-m", "harness.cli", "plan"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr.startswith("Usage: singer-bench plan")


def test_help_names_every_command_in_a_whole_sentence(call):
    code, out, _ = call("--help")
    assert code == 0
    named = re.findall(r"^  (\w+) +(.*)$", out, re.MULTILINE)
    assert {"run", "demo", "plan", "status", "table", "list", "check", "export"} <= {name for name, _ in named}
    assert all(words.endswith(".") and not words.endswith("...") for _, words in named), named


def test_the_version_is_that_of_the_package(call):
    assert call("--version") == (0, f"singer-bench {__version__}\n", "")


def test_an_interrupt_from_the_keyboard_is_exit_code_130(call, config, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(plans, "plan", interrupted)
    code, out, err = call("plan", config)
    assert (code, out) == (130, "")
    assert "Traceback" not in err


def test_a_fault_of_ours_is_not_told_as_the_users(call, config, monkeypatch):
    monkeypatch.setattr(plans, "plan", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        call("plan", config)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["plan", "no.yaml"], "error: no configuration file 'no.yaml'"),
        (["plan", "CONFIG", "--set", "training.epoch=1"], "training: no setting 'epoch'; did you mean 'epochs'?"),
        (["plan", "CONFIG", "--set", "nonsense"], "error: --set: 'nonsense': give key=value"),
        (["plan", "CONFIG", "--plugin", "no.py"], "no plugin file 'no.py'"),
        (["run", "CONFIG", "--set", "methods=[singr]"], "methods.0: no method 'singr'; did you mean 'singer'?"),
        (["status", "nowhere"], "error: no workspace 'nowhere'; `singer-bench run CONFIG` makes one"),
        (["table", "nowhere"], "error: no workspace 'nowhere'; `singer-bench run CONFIG` makes one"),
        (["status", "EMPTY"], "holds no experiment; `singer-bench run CONFIG --workspace "),
        (["table", "EMPTY"], "error: no records in "),
        (["table", "EMPTY", "--format", "markdwn"], "error: no table format 'markdwn'; did you mean 'markdown'?"),
        (["list", "method"], "error: no kind 'method'; did you mean 'methods'? Known: methods, sources, tasks"),
        (["check", "singr"], "error: no method or task 'singr'; did you mean 'singer'?"),
        (["check", "no.py"], "error: no plugin file 'no.py'"),
        (["export", "EMPTY", "-o", "OUT"], "is no student's folder, since it lacks config.json and model.safetensors"),
        (["plan"], "Missing argument 'CONFIG'"),
        (["plan", "CONFIG", "--sett", "a=1"], "No such option: --sett"),
        (["pln", "CONFIG"], "No such command 'pln'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_message_and_exit_code_2(refused, tmp_path, config, args, said):
    (tmp_path / "empty").mkdir()
    places = {"CONFIG": config, "EMPTY": tmp_path / "empty", "OUT": tmp_path / "out"}
    assert said in refused(*(places.get(arg, arg) for arg in args))


def test_every_mistake_of_a_configuration_is_told_at_once(refused, tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump({**RAW, "methods": ["singr", "fitnt"], "seeds": [0, 0]}))
    said = refused("run", path, "--workspace", tmp_path / "workspace")
    assert said.startswith(f"error: {path}: 3 mistakes:\n  - ") and said.count("\n") == 4
    assert not (tmp_path / "workspace").exists()


# ---- list


@pytest.mark.parametrize("kind", ["methods", "tasks", "sources"])
def test_lists_fit_the_width_and_name_everything(call, monkeypatch, kind):
    known = parse(RAW).known().of_kind(kind[:-1])
    for width in (100, 160):
        monkeypatch.setenv("COLUMNS", str(width))
        code, out, _ = call("list", kind)
        assert code == 0
        assert max(map(len, out.splitlines())) <= width
        assert {line.split()[0] for line in out.splitlines()[2:] if not line.startswith(" ")} == set(known)


def test_a_verbose_list_has_every_parameter_with_its_default(call):
    _, out, _ = call("list", "methods", "--verbose")
    fitnet = out.split("\nfitnet  (baselines.fitnet)\n")[1].split("\n\n")[0]
    assert "  weight: float = 1.0" in fitnet and "  reduction: Literal['mean', 'sum'] = 'mean'" in fitnet
    assert "\nnone  (baselines.none)\n  (nothing to set)" in out
    _, out, _ = call("list", "sources", "--verbose")
    assert "\nscenes  (tasks.datasets.scenes)\n  size: int = 64" in out


def test_a_preset_is_listed_below_its_method_with_how_it_differs():
    lines = listing("methods", False, [], width=250).splitlines()
    names = [line.split()[0] for line in lines]
    at = names.index("singer_paper")
    assert all(name.startswith("singer_") for name in names[names.index("singer") + 1 : at])  # other presets
    assert lines[at].endswith("singer with basis=smallest, outlier=linear, info=gram, reduction=sum")


def test_a_plugins_methods_are_listed(call, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")  # summaries fold on a narrow terminal
    (tmp_path / "mine.py").write_text(BAD_PLUGIN)
    _, out, _ = call("list", "methods", "--plugin", tmp_path / "mine.py")
    assert "\nmine " in out and "Reads what it did not ask for." in out


# ---- plan


def test_the_demos_plan_in_an_empty_workspace_says_what_would_run(call, tmp_path):
    path = ROOT / "configs" / "demo.yaml"
    demo = load(path)
    students, rows, seeds = len(student_runs(demo)), len(demo.methods), len(demo.seeds)
    together = [method.title() for method in demo.methods if not method.teacher]
    (oracle,) = [method.title() for method in demo.methods if method.teacher]
    length = f"{demo.training.epochs:g} epochs"
    code, out, err = call("plan", path, "--workspace", tmp_path / "new")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        f"demo: {students} students ({rows} rows x {seeds} seeds), {length} each, batch {demo.training.batch_size}",
        f"workspace: {tmp_path / 'new'} (new)",
        f"trained: 0 of {students}",
        f"  train the teacher first: {demo.teacher.title()}, {demo.teacher.fit.training.epochs:g} epochs",
        *(
            line
            for seed in demo.seeds
            for line in (
                f"  train together, seed {seed}: {', '.join(together)}",
                f"  train alone, seed {seed}: {oracle}",
            )
        ),
        f"teacher passes: {2 * seeds} x {length}; one student at a time would take {students} x {length}",
        f"training left: how long is not known; {plans.REMEDIES['training']}",
        f"evaluated: 0 of {(students + 1 + seeds) * len(demo.tasks)} "
        "(classification, segmentation, depth, few_shot, artifacts)",
        f"evaluation left: how long is not known; {plans.REMEDIES['evaluation']}",
    ]
    assert not (tmp_path / "new").exists()


def test_a_plan_counts_what_is_done_and_estimates_what_is_left(workspace):
    experiment = started(workspace)
    measure(experiment, workspace)
    runs = student_runs(experiment)
    for run in runs[:3]:  # seed 0
        train(run, workspace, own_s=60.0)
    fail(runs[3], workspace)
    lines = plan(experiment, workspace).splitlines()
    assert lines[1] == f"workspace: {workspace.root}"
    assert "trained: 3 of 6" in lines
    assert "  train together, seed 1: fitnet, singer (about 4 min)" in lines  # 120 + 2 * 60 s
    assert "training left: about 4 min on a CPU, 2 threads" in lines
    assert "  from records here: fitnet, singer" in lines
    assert "evaluated: 6 of 6 (artifacts)" in lines
    assert lines[-2:] == ["  failed: none seed 1 at step 7: loss kd is nan", plans.RETRY]


def test_a_plan_of_what_is_done_has_nothing_to_do(workspace):
    experiment = started(workspace)
    settled(experiment, workspace)
    said = plan(experiment, workspace)
    assert "trained: 6 of 6" in said and "evaluated: 6 of 6" in said
    assert "train together" not in said and "left" not in said and "teacher passes" not in said


def test_a_damaged_record_is_not_counted_as_done(workspace):
    experiment = started(workspace)
    settled(experiment, workspace)
    next(workspace.records.glob("*.json")).write_text("{")
    assert "evaluated: 5 of 6" in plan(experiment, workspace)
    assert "evaluated: 5 of 6" in status(workspace)


# ---- status


def test_status_counts_every_state_and_says_why_a_run_failed(call, workspace):
    experiment = started(workspace)
    runs = student_runs(experiment)
    train(runs[0], workspace)
    fail(runs[1], workspace)
    folder = workspace.groups / "g"
    folder.mkdir(parents=True)
    (folder / "group.json").write_text(json.dumps({"runs": [runs[3].id, runs[4].id]}))
    workspace.partial(runs[3].id).mkdir(parents=True)
    (workspace.partial(runs[3].id) / "train.jsonl").write_text('{"step": 20}\n{"step": 40}\n')
    with (
        Lock(workspace.locks / "train-g.lock") as training,
        Lock(workspace.locks / f"evaluate-{runs[0].id}.lock") as evaluating,
    ):
        assert training.acquire() and evaluating.acquire()
        code, out, err = call("status", workspace.root)
        assert (code, err) == (0, "")
        assert out.splitlines() == [
            "small: students: 1 trained, 2 running, 2 pending, 1 failed; evaluated: 0 of 6 (encoders: 1 running)",
            f"  running: none, fitnet seed 1: step 40, on {socket.gethostname()}, process {os.getpid()}",
            f"  evaluating: none seed 0: on {socket.gethostname()}, process {os.getpid()}",
            "  failed: fitnet seed 0 at step 7: loss kd is nan",
            plans.RETRY,
        ]
    assert "1 trained, 4 pending, 1 failed" in status(workspace)  # its process has gone


def test_status_tells_of_a_teacher_that_is_trained_first(workspace):
    experiment = started(workspace, teacher={"width": 48, "fit": {"training": {"epochs": 1}}})
    (fit,) = fit_runs(experiment)
    assert "train the teacher first: ViT 48x12, 1 epochs" in plan(experiment, workspace)
    fail(fit, workspace)
    assert "  failed: teacher fit seed 0 at step 7: loss kd is nan" in status(workspace)
    assert "train the teacher first" not in plan(experiment, workspace)


def test_status_of_one_experiment_does_not_depend_on_another_that_cannot_be_read(workspace, tmp_path):
    checkpoint = tmp_path / "teacher.safetensors"
    checkpoint.write_bytes(b"x")
    started(workspace, name="moved", teacher={"checkpoint": str(checkpoint)})
    started(workspace, name="whole")
    (workspace.root / "experiments" / "cut.yaml").write_text("name: [")
    checkpoint.unlink()
    cut, moved, whole = status(workspace).splitlines()
    assert cut.startswith("cut: cannot be shown: ") and "is not valid YAML" in cut
    assert moved.startswith("moved: cannot be shown: ") and "no file 'teacher.safetensors'" in moved
    assert whole == "whole: students: 0 trained, 6 pending; evaluated: 0 of 6"


def test_a_remembered_experiment_has_the_same_runs_from_any_folder(workspace, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_text(name)
    (tmp_path / "mine.py").write_text(BAD_PLUGIN)
    row = {"method": "mine", "teacher": {"model": None, "checkpoint": "a/model.safetensors"}}
    raw = {**RAW, "methods": ["none", row], "plugins": ["mine.py"], "student": {"model": "local-dir:b"}}
    raw |= {"teacher": {"model": "local-dir:a"}, "data": {"source": "folder", "root": "data"}}
    experiment = parse({**raw, "tasks": [{"task": "artifacts", "data": {"source": "folder", "root": "more"}}]})
    remember(experiment, workspace)
    before = [run.id for run in student_runs(experiment)], [task.key for task in task_runs(experiment)]
    monkeypatch.chdir("/")
    again = parse(yaml.safe_load((workspace.root / "experiments" / "small.yaml").read_text()))
    assert ([run.id for run in student_runs(again)], [task.key for task in task_runs(again)]) == before


# ---- table


@pytest.mark.parametrize(
    ("format", "holds"),
    [
        ("markdown", "| fitnet"),
        ("plain", "fitnet"),
        ("latex", r"\begin{tabular}"),
        ("csv", "fitnet"),
        ("json", '"fitnet"'),
    ],
)
def test_a_table_in_every_format_on_the_screen_and_in_a_file(call, workspace, tmp_path, monkeypatch, format, holds):
    monkeypatch.setenv("COLUMNS", "120")  # what a file is given, whatever the screen
    settled(started(workspace), workspace)
    code, out, err = call("table", workspace.root, "--format", format)
    assert (code, err) == (0, "")
    assert holds in out and out.endswith("\n") and not out.endswith("\n\n")
    if format == "json":
        assert json.loads(out)
    code, shown, _ = call("table", workspace.root, "--format", format, "-o", tmp_path / "out" / "table")
    assert (code, shown) == (0, "")
    assert (tmp_path / "out" / "table").read_text() == out


def test_a_table_has_the_metrics_and_costs_that_are_asked_for(call, refused, workspace):
    settled(started(workspace), workspace)
    plain, every = (call("table", workspace.root, "--metrics", m, "--no-costs")[1] for m in ("primary", "all"))
    assert "top1" in plain and "ece" not in plain and "ece" in every
    assert call("table", workspace.root, "--metrics", " top1 ,ece", "--no-costs")[1] == every
    assert "own s" in call("table", workspace.root)[1] and "own s" not in plain
    assert "did you mean 'top1'?" in refused("table", workspace.root, "--metrics", "top2")


def test_a_table_names_records_that_cannot_be_read(call, workspace):
    settled(started(workspace), workspace)
    damaged = sorted(workspace.records.glob("*.json"))[0]
    damaged.write_text("{")
    assert damaged.name in call("table", workspace.root)[1]


def test_a_table_that_cannot_be_written_is_a_mistake_in_words(refused, workspace, tmp_path):
    settled(started(workspace), workspace)
    (tmp_path / "file").touch()
    assert "error: cannot write '" in refused("table", workspace.root, "-o", tmp_path / "file" / "table.md")


# ---- run, where nothing is pending


def test_run_prints_the_table_alone_on_standard_output(call, config, workspace):
    settled(started(workspace), workspace)
    code, out, err = call("run", config, "--workspace", workspace.root)
    assert code == 0
    assert err == "nothing is pending\n"
    assert "| fitnet" in out and "own s" not in out and "ece" not in out
    assert out.endswith(f"\nAll metrics and costs: {workspace.root / 'leaderboard.md'}\n")
    whole = (workspace.root / "leaderboard.md").read_text()
    assert "| fitnet" in whole and "own s" in whole and "ece" in whole
    assert "fitnet" in (workspace.root / "leaderboard.csv").read_text()
    assert call("run", config, "--workspace", workspace.root, "--quiet")[2] == ""


def test_run_prints_plain_text_on_a_terminal_and_keeps_markdown(call, config, workspace, monkeypatch):
    settled(started(workspace), workspace)
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda self: True)
    monkeypatch.setenv("COLUMNS", "80")
    out = call("run", config, "--workspace", workspace.root)[1]
    assert "|" not in out and max(map(len, out.split("\n")[:-2])) <= 80
    assert "| fitnet" in (workspace.root / "leaderboard.md").read_text()


def test_run_calls_rows_and_columns_what_the_configuration_calls_them_now(call, config, workspace):
    settled(started(workspace), workspace)
    names = ["--set", "methods.1.label=renamed row", "--set", "tasks.0.label=renamed column"]
    _, out, _ = call("run", config, "--workspace", workspace.root, *names)
    assert "| renamed row" in out and "renamed column" in out and "| fitnet" not in out


def test_run_ends_with_1_and_the_reason_where_a_student_failed(call, config, workspace):
    experiment = started(workspace)
    settled(experiment, workspace)
    failed = student_runs(experiment)[1]
    os.rename(workspace.student(failed.id), workspace.partial(failed.id))
    fail(failed, workspace)
    for path in workspace.records.glob(f"{failed.id}.*"):
        path.unlink()
    code, out, err = call("run", config, "--workspace", workspace.root, "--quiet")
    assert code == 1
    assert "at step 7: loss kd is nan" in out  # the table says it too, and so does the one that is kept
    assert "at step 7: loss kd is nan" in (workspace.root / "leaderboard.md").read_text()
    assert err.splitlines() == [
        "failed: fitnet seed 0 at step 7: loss kd is nan",
        "the same command with --retry-failed trains failed ones again",
    ]


def test_run_retries_failed_students_and_teachers_when_asked(call, tmp_path, workspace, monkeypatch):
    changes = {"teacher": {"width": 48, "fit": {"training": {"epochs": 1}}}}
    config = tmp_path / "fit.yaml"
    config.write_text(yaml.safe_dump({**RAW, **changes}))
    experiment = started(workspace, **changes)
    failed = fit_runs(experiment) + student_runs(experiment)[:1]
    for run in failed:
        fail(run, workspace)
    monkeypatch.setattr("harness.runs.pending", lambda *_: False)  # no training in this test
    assert call("run", config, "--workspace", workspace.root, "--retry-failed")[0] == 0
    assert all(workspace.failure(run.id) is None for run in failed)


def test_a_workspace_that_cannot_be_written_is_a_mistake_in_words(refused, config, tmp_path):
    (tmp_path / "file").touch()
    said = refused("run", config, "--workspace", tmp_path / "file" / "workspace")
    assert said.startswith("error: cannot write into the workspace")


# ---- export and check


def test_export_makes_a_folder_that_timm_loads(call, workspace, tmp_path):
    run = student_runs(started(workspace))[0]
    train(run, workspace)
    code, out, _ = call("export", workspace.student(run.id), "-o", tmp_path / "out")
    assert code == 0
    assert out == f'{tmp_path / "out"}: timm.create_model("local-dir:{tmp_path / "out"}", pretrained=True)\n'
    made = {"README.md", "config.json", "model.safetensors", "run.yaml"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == made


def test_export_refuses_what_it_would_overwrite_and_what_is_no_student(refused, workspace, tmp_path):
    run = student_runs(started(workspace))[0]
    train(run, workspace)
    student = workspace.student(run.id)
    assert "exists and is not empty; name a new folder" in refused("export", student, "-o", tmp_path)
    (tmp_path / "file").touch()
    assert "cannot write into" in refused("export", student, "-o", tmp_path / "file")
    said = refused("export", workspace.root, "-o", tmp_path / "out")
    assert f"name one of {workspace.students}: {run.id}" in said
    assert not (tmp_path / "out").exists()


def test_check_of_a_bad_method_ends_with_1_and_says_what_to_change(call, tmp_path, monkeypatch):
    some = [check for check in checks.method_checks() if "scalar" in check[0]]
    monkeypatch.setattr(checks, "method_checks", lambda: some)  # all of them take ten seconds
    path = tmp_path / "mine.py"
    path.write_text(BAD_PLUGIN)
    code, out, _ = call("check", path)
    assert code == 1
    assert "FAIL  mine: " in out and "layer 0 was not asked for" in out
    assert out.endswith("some checks failed\n")


def test_check_of_a_good_task_ends_with_0(call):
    code, out, err = call("check", "artifacts")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[-1] == "all checks passed" and len(lines) > 3
    assert all(line.startswith("ok    artifacts: ") for line in lines[:-1])


def test_check_of_a_file_with_nothing_to_check_is_refused(refused, tmp_path):
    path = tmp_path / "source.py"
    path.write_text("from harness.data import Source\n\n\nclass Mine(Source):\n    name = 'mine'\n")
    assert "defines no method and no task, and a source has no checks" in refused("check", path)
    path.write_text("class Mine(Method:\n")
    assert f"{path}:1 is not valid Python" in refused("check", path)
