"""What shows a training while it runs: everything is there once, and the training knows nothing of it."""

from __future__ import annotations

import json
import math
import sys
import threading
import time
import types
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import pytest
from experiments import run, same, students, tiny, write
from ranks import on_ranks

from harness.cli.main import main
from harness.errors import ConfigError, UserError
from harness.job import Job
from harness.live import live as live_module
from harness.live.live import Live
from harness.live.logger import Logger, Remembered, Shown
from harness.live.mlflow import MLflow
from harness.live.wandb import WandB
from harness.progress import Console
from harness.runs import Workspace, bound_runs, student_runs
from harness.training import train


class Recorder(Logger):
    """Keeps what it is told; `fault` is called first with the name of what is asked."""

    name, package = "wandb", "wandb"
    told: ClassVar[list[tuple]] = []
    fault = staticmethod(lambda what: None)

    @classmethod
    def prepare(cls) -> None:
        pass

    def start(self, run: Shown) -> int:
        self.fault("start")
        self.title = run.title
        self.told.append((run.title, "start", run.step))
        return run.step or 0

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.fault("scalars")
        self.told.append((self.title, step, values))

    def finish(self, outcome) -> None:
        self.fault("finish")
        self.told.append((self.title, "finish", outcome))


@pytest.fixture
def recorder(monkeypatch) -> type[Recorder]:
    """In the place of W&B."""
    fresh = type("Fresh", (Recorder,), {"told": []})
    monkeypatch.setitem(live_module.LOGGERS, "wandb", fresh)
    return fresh


def told_of(recorder: type[Recorder], title: str) -> list[tuple]:
    return [what for who, *what in recorder.told if who == title]


def shown(folder: Path) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """TensorBoard's own reading: row -> tag -> (step, value)."""
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = {}
    for path in sorted((folder / "live" / "tensorboard").iterdir()):
        read = events.EventAccumulator(str(path))
        read.Reload()
        row = path.name.rsplit("-seed-", 1)[0]
        found[row] = {tag: [(e.step, e.value) for e in read.Scalars(tag)] for tag in read.Tags()["scalars"]}
    return found


def logged(folder: Path, experiment, row: str) -> list[dict[str, float]]:
    [one] = [r for r in student_runs(experiment) if r.info.label == row]
    text = (Workspace(folder).student(one.id) / "train.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def killed_after(step: int, monkeypatch, experiment, workspace: Path) -> None:
    """Train, and lose all that was not saved after this step."""

    def until(group, *args, **kwargs):
        if group.step == step:
            raise KeyboardInterrupt
        return step_of(group, *args, **kwargs)

    step_of = train.Group.train_step
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train.Group, "train_step", until)
        run(experiment, workspace)


def test_tensorboard_shows_what_is_logged_and_measured_of_every_run(tmp_path):
    experiment = tiny(tmp_path, tasks=["artifacts"], bounds=True, methods=["none", "fitnet"])
    run(experiment, tmp_path / "w")
    found = shown(tmp_path / "w")
    assert set(found) == {"none", "fitnet", "teacher", "untrained"}
    lines = logged(tmp_path / "w", experiment, "fitnet")
    assert [line["step"] for line in lines] == [4, 8, 12]
    for name in ("loss", "kd", "lr", "epoch"):
        expected = [(line["step"], pytest.approx(line[name], rel=1e-6)) for line in lines]
        assert found["fitnet"][f"train/{name}"] == expected
    speeds = found["fitnet"]["train/images_per_s"], found["fitnet"]["train/step_s"]
    assert all(images == pytest.approx(8 / step_s, rel=1e-5) for (_, images), (_, step_s) in zip(*speeds, strict=True))
    records = [json.loads(path.read_text()) for path in (tmp_path / "w" / "records").glob("*.json")]
    assert len(records) == 4
    for record in records:
        row, step = found[record["run"]["label"]], record["cost"]["steps"] or 0
        assert {k.split("/")[1] for k in row if k.startswith("artifacts/")} == set(record["values"])
        for name, value in record["values"].items():
            assert row[f"artifacts/{name}"] == [(step, pytest.approx(value, rel=1e-5))]


def test_showing_a_training_changes_no_bit_of_it_and_no_run_is_another(tmp_path, recorder):
    told, untold = (tiny(tmp_path, runtime={"log": log}) for log in (["tensorboard", "wandb"], []))
    pytest.importorskip("tensorboard")
    run(told, tmp_path / "told")
    run(untold, tmp_path / "untold")
    assert [r.id for r in student_runs(told)] == [r.id for r in student_runs(untold)]
    assert [r.id for r in bound_runs(told)] == [r.id for r in bound_runs(untold)]
    one, other = students(told, tmp_path / "told"), students(untold, tmp_path / "untold")
    assert one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    assert not (tmp_path / "untold" / "live").exists()
    assert recorder.told


def test_a_training_that_goes_on_shows_no_step_twice(tmp_path, monkeypatch):
    experiment = tiny(tmp_path, methods=["fitnet", "none"])
    killed_after(9, monkeypatch, experiment, tmp_path / "w")  # 8 is logged, 5 is saved
    before = shown(tmp_path / "w")["fitnet"]["train/loss"]
    assert [step for step, _ in before] == [4, 8]
    time.sleep(1)  # TensorBoard tells the order of files by the second in their names
    run(experiment, tmp_path / "w")
    after = shown(tmp_path / "w")
    assert set(after) == {"fitnet", "none"}
    assert [step for step, _ in after["fitnet"]["train/loss"]] == [4, 8, 12]
    assert after["fitnet"]["train/loss"][:2] == before


def test_a_run_has_a_beginning_and_an_end(tmp_path, recorder, monkeypatch):
    experiment = tiny(tmp_path, methods=["fitnet"], tasks=["artifacts"], runtime={"log": "wandb"})
    killed_after(9, monkeypatch, experiment, tmp_path / "w")
    first = told_of(recorder, "fitnet seed 0")
    assert first[0] == ["start", 0] and first[-1] == ["finish", "stopped"]
    recorder.told.clear()
    run(experiment, tmp_path / "w")
    what = told_of(recorder, "fitnet seed 0")
    assert [w[0] for w in what] == ["start", 8, 12, "finish", "start", 12, "finish"]
    assert what[0] == ["start", 5] and what[3] == ["finish", "finished"] and what[4] == ["start", None]


def test_a_method_that_fails_is_shown_as_failed_and_its_neighbour_is_not(tmp_path, recorder, monkeypatch):
    def fails(group, member, *args):
        if group.step == 6 and len(member.method.teacher_layers):
            raise ValueError("no more")
        return step_of(group, member, *args)

    step_of = train.Group._member_step
    monkeypatch.setattr(train.Group, "_member_step", fails)
    run(tiny(tmp_path, methods=["fitnet", "none"], runtime={"log": "wandb"}), tmp_path / "w")
    assert told_of(recorder, "fitnet seed 0")[-1] == ["finish", "failed"]
    assert told_of(recorder, "none seed 0")[-1] == ["finish", "finished"]


@pytest.mark.parametrize("fault", ["start", "scalars", "finish"])
def test_a_logger_that_raises_is_said_once_and_left(fault, tmp_path, recorder, capsys):
    def broken(what):
        if what == fault:
            raise OSError("no room\nat all")

    recorder.fault = staticmethod(broken)
    experiment = tiny(tmp_path, methods=["fitnet", "none"], tasks=["artifacts"], runtime={"log": ["wandb"]})
    job = Job(experiment, Workspace(tmp_path / "w"), Console())
    assert len(job.run().trained) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if "no room" in line]
    assert said == ["wandb shows no more of this: no room; the training itself goes on"]


def test_a_training_never_waits_for_a_logger(tmp_path, recorder, monkeypatch, capsys):
    answer, asked = threading.Event(), threading.Event()

    def silent(what):
        asked.set()
        answer.wait()

    recorder.fault = staticmethod(silent)
    monkeypatch.setattr(live_module, "WAIT_S", 0.01)
    experiment = tiny(tmp_path, methods=["fitnet"], runtime={"log": ["wandb"]})
    job = Job(experiment, Workspace(tmp_path / "w"), Console())
    try:
        assert len(job.run().trained) == 1  # it would never end
    finally:
        answer.set()
    assert asked.is_set()
    assert "has not taken everything" in capsys.readouterr().err


def test_what_is_asked_for_and_absent_is_one_error_before_anything_trains(tmp_path, monkeypatch, capsys):
    for name in ("wandb", "mlflow", "tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    for name in ("wandb", "mlflow", "tensorboard"):
        path = write(tmp_path, runtime={"log": [name]})
        monkeypatch.setattr(sys, "argv", ["singer-bench", "run", str(path), "--workspace", str(tmp_path / "w")])
        with pytest.raises(SystemExit) as left:
            main()
        assert left.value.code == 2
        assert f"runtime.log asks for {name}" in capsys.readouterr().err
    assert not (tmp_path / "w" / "students").exists()


def test_what_is_not_asked_for_and_absent_is_not_spoken_of(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.startswith(("tensorboard", "torch.utils.tensorboard"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    said: list[str] = []
    assert Live(tiny(tmp_path), tmp_path / "live", said.append).senders == []
    assert not said


def test_a_name_that_no_logger_has_is_a_mistake_of_the_configuration(tmp_path):
    with pytest.raises(ConfigError, match=r"runtime\.log.*'tensorbord'; did you mean 'tensorboard'"):
        tiny(tmp_path, runtime={"log": ["tensorbord"]})


def test_of_several_ranks_the_first_alone_shows(tmp_path):
    pytest.importorskip("tensorboard")
    experiment = tiny(tmp_path, methods=["fitnet"])

    def work(ranks):
        job = Job(experiment, Workspace(tmp_path / "w"), Console(quiet=True), ranks)
        job.run()
        return len(job.live.senders)

    assert on_ranks(work) == [1, 0]
    assert [step for step, _ in shown(tmp_path / "w")["fitnet"]["train/loss"]] == [4, 8, 12]
    assert len(list((tmp_path / "w" / "live" / "tensorboard").rglob("*tfevents*"))) == 1


@pytest.mark.parametrize("title", ["../../etc seed 0", "a/b\x00 seed 1", "<script> seed 0", "é" * 300, "..", ""])
def test_a_title_names_a_folder_and_no_other_place(title, tmp_path):
    name = Shown("0123abcd", title, "p", {}, tmp_path, None).file_name
    (tmp_path / name).mkdir()
    assert (tmp_path / name).parent == tmp_path and name.endswith(".0123abcd") and name[0] != "/"


def test_what_is_remembered_of_a_run(tmp_path):
    def at(step):
        return Remembered.of(Shown("id", "title", "p", {}, tmp_path, step))

    first = at(0)
    first.keep(step=8)
    again = at(5)
    assert (again.name, again.step, again.new) == (first.name, 8, False)
    assert at(0).name == first.name  # killed before its first checkpoint
    again.keep(over=True)
    assert at(None).name == first.name  # it is measured
    assert at(0).name != first.name and at(0).step == 0  # trained again, from its beginning
    first.path.write_text("{")
    assert at(5).new


class FakeRun:
    def __init__(self, given):
        self.given, self.lines, self.metrics, self.ends = given, [], [], []

    def define_metric(self, name, step_metric=None):
        self.metrics.append((name, step_metric))

    def log(self, values):
        self.lines.append(values)

    def mark_preempting(self):
        self.ends.append("preempting")

    def finish(self, exit_code):
        self.ends.append(exit_code)


@pytest.fixture
def fake_wandb(monkeypatch):
    """W&B as far as we use it; `runs` are those that were begun."""
    fake = types.ModuleType("wandb")
    settings = types.SimpleNamespace(mode="offline")
    fake.runs, fake.logins = [], []
    fake.setup = lambda: types.SimpleNamespace(settings=settings)
    fake.Settings = dict
    fake.login = lambda: fake.logins.append(1) or True
    fake.init = lambda **given: fake.runs.append(FakeRun(given)) or fake.runs[-1]
    fake.mode = lambda mode: setattr(settings, "mode", mode)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_wandb_gets_one_run_of_each_student_and_no_step_twice(tmp_path, monkeypatch, fake_wandb):
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    experiment = tiny(tmp_path, methods=["fitnet", "none"], tasks=["artifacts"], runtime={"log": ["wandb"]})
    killed_after(9, monkeypatch, experiment, tmp_path / "w")
    run(experiment, tmp_path / "w")
    sessions = [r for r in fake_wandb.runs if r.given["name"] == "fitnet seed 0"]
    assert len({r.given["id"] for r in sessions}) == 1 and len(sessions) == 3
    assert len({r.given["id"] for r in fake_wandb.runs}) == 2
    assert [line["step"] for r in sessions for line in r.lines] == [4, 8, 12, 12]
    assert [r.ends for r in sessions] == [["preempting", 1], [0], [0]]
    given = sessions[0].given
    assert (given["project"], given["resume"], given["reinit"]) == ("tiny", "allow", "create_new")
    assert given["dir"] == str(tmp_path / "w" / "live")
    assert given["config"]["method"] == "fitnet" and given["config"]["training"]["batch_size"] == 8
    assert sessions[0].metrics == [("step", None), ("*", "step")]


def test_wandb_asks_who_one_is_before_anything_trains_unless_it_is_offline(fake_wandb):
    WandB.prepare()
    assert not fake_wandb.logins
    fake_wandb.mode("online")
    WandB.prepare()
    assert fake_wandb.logins
    for login in (lambda: False, lambda: 1 / 0):
        fake_wandb.login = login
        with pytest.raises(UserError, match="WANDB_MODE=offline"):
            WandB.prepare()


class FakeClient:
    """MLflow's, as far as we use it; what it holds is the class's, as a server's would be."""

    def __init__(self):
        self.held = FakeClient.server

    def get_experiment_by_name(self, name):
        return self.held["experiments"].get(name)

    def create_experiment(self, name):
        self.held["experiments"][name] = types.SimpleNamespace(experiment_id=name)
        return name

    def create_run(self, experiment_id, run_name, tags):
        run_id = f"r{len(self.held['runs'])}"
        self.held["runs"][run_id] = {"in": experiment_id, "name": run_name, "tags": tags, "lines": [], "status": []}
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=run_id))

    def log_batch(self, run_id, metrics=(), params=()):
        held = self.held["runs"][run_id]
        held["lines"] += metrics
        held.setdefault("params", {}).update(params)

    def update_run(self, run_id, status):
        self.held["runs"][run_id]["status"].append(status)

    set_terminated = update_run


@pytest.fixture
def fake_mlflow(monkeypatch):
    FakeClient.server = {"experiments": {}, "runs": {}}
    fake = types.ModuleType("mlflow")
    fake.MlflowClient = FakeClient
    fake.is_tracking_uri_set = lambda: True
    fake.entities = types.SimpleNamespace(
        Metric=lambda key, value, timestamp, step: (key, value, step), Param=lambda key, value: (key, value)
    )
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    return fake


def test_mlflow_gets_one_run_of_each_student_and_no_step_twice(tmp_path, monkeypatch, fake_mlflow):
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    tasks = [{"task": "artifacts", "label": "norms (all)"}]
    experiment = tiny(tmp_path, methods=["fitnet", "none"], tasks=tasks, runtime={"log": ["mlflow"]})
    killed_after(9, monkeypatch, experiment, tmp_path / "w")
    run(experiment, tmp_path / "w")
    held = {one["name"]: one for one in FakeClient.server["runs"].values()}
    assert len(FakeClient.server["runs"]) == 2 and set(held) == {"fitnet seed 0", "none seed 0"}
    one = held["fitnet seed 0"]
    assert [step for key, _, step in one["lines"] if key == "train/loss"] == [4, 8, 12]
    assert [step for key, _, step in one["lines"] if key == "norms _all_/outlier_share"] == [12]
    assert one["status"] == ["KILLED", "RUNNING", "FINISHED", "RUNNING", "FINISHED"]
    assert one["in"] == "tiny" and one["params"]["training.batch_size"] == "8"


def test_mlflow_has_to_be_told_where_to_write(fake_mlflow):
    MLflow.prepare()
    fake_mlflow.is_tracking_uri_set = lambda: False
    with pytest.raises(UserError, match="MLFLOW_TRACKING_URI"):
        MLflow.prepare()


def test_wandb_itself_takes_it_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="needs wandb: the extra 'live'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    said: list[str] = []
    experiment = tiny(tmp_path, methods=["fitnet", "none"], tasks=["artifacts"], runtime={"log": ["wandb"]})
    job = Job(experiment, Workspace(tmp_path / "w"), Console(quiet=True))
    for sender in job.live.senders:
        sender.say = said.append
    job.run()
    assert not said
    files = list((tmp_path / "w" / "live" / "wandb").rglob("*.wandb"))
    assert len({path.name for path in files}) == 2
    assert all(path.stat().st_size > 0 for path in files)


def test_mlflow_itself_takes_it_into_a_folder(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="needs mlflow or mlflow-skinny: the extra 'live'")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "runs").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    experiment = tiny(tmp_path, methods=["fitnet"], tasks=["artifacts"], runtime={"log": ["mlflow"]})
    killed_after(9, monkeypatch, experiment, tmp_path / "w")
    run(experiment, tmp_path / "w")
    client = mlflow.MlflowClient()
    [one] = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    assert one.info.status == "FINISHED" and one.info.run_name == "fitnet seed 0"
    history = client.get_metric_history(one.info.run_id, "train/loss")
    assert [metric.step for metric in history] == [4, 8, 12]
    assert all(math.isfinite(metric.value) for metric in history)
    assert "artifacts/outlier_share" in one.data.metrics
