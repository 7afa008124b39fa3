"""`singer-bench diagnose`: who is asked, on which images, and how the answer is shown."""

from __future__ import annotations

import json

import pytest
import torch
from experiments import run, tiny, write

from harness.api import Calibration
from harness.cli import main as cli
from harness.diagnosis import Fewer, tables
from harness.runs import Workspace, student_runs

ROWS = ["fitnet", {"method": "singer", "hyperparameters": {"rank": 8}}, {"method": "singer", "label": "other"}]
ROWS[2]["hyperparameters"] = {"rank": 4, "gain": 0.0, "refiner_lr_scale": 10.0}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("diagnosed")
    run(tiny(folder, methods=ROWS, training={"steps": 4}), folder / "w")
    from harness.results import remember

    remember(tiny(folder, methods=ROWS, training={"steps": 4}), Workspace(folder / "w"))
    return folder / "w"


@pytest.fixture
def call(monkeypatch, capsys):
    def run(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["singer-bench", "diagnose", *map(str, args)])
        try:
            cli.main()
            code = 0
        except SystemExit as done:
            code = done.code
        return code, *capsys.readouterr()

    return run


def told(path) -> dict[str, dict]:
    return {one["label"]: one for one in json.loads(path.read_text())}


def test_every_finished_run_that_has_something_to_say_is_asked(call, workspace, tmp_path):
    code, out, err = call(workspace, "--images", 12, "--json", tmp_path / "d.json")
    assert (code, err) == (0, "")
    found = told(tmp_path / "d.json")
    assert set(found) == {"singer", "other"} and all(one["trained"] for one in found.values())
    for label, one in found.items():
        assert f"{label} seed 0, trained ({one['run']})" in out
    first = found["other"]["diagnosis"]["layers"][0]["energy"]
    assert first["up at the start"]["total"] == 0 < first["up now"]["total"]  # the trained state, not the first one
    assert "layers: energy" in out and "singular values" in out


def test_one_row_can_be_named_by_label_title_or_id(call, workspace, tmp_path):
    whole = call(workspace, "--images", 12, "--json", tmp_path / "d.json")
    assert whole[0] == 0
    identity = told(tmp_path / "d.json")["other"]["run"]
    for name in ("other", "other seed 0", identity):
        code, out, _ = call(workspace, "--images", 12, "--run", name)
        assert code == 0 and "other seed 0" in out and "singer seed 0" not in out


def test_mistakes_are_named_with_their_remedy(call, workspace, tmp_path):
    for args, said in (
        ((workspace, "--run", "othr"), "no run 'othr'; did you mean 'other'"),
        ((workspace, "--run", "fitnet"), "no diagnosis is given by fitnet"),
        ((workspace, "--set", "a=b"), "--set, --workspace and --plugin belong to a configuration"),
        ((tmp_path,), "holds no experiment"),
        ((tmp_path / "none.yaml",), "no configuration file"),
        ((workspace, "--images", 4, "--json", tmp_path), "cannot write"),
    ):
        code, _, err = call(*args)
        assert code == 2 and said in err and "Traceback" not in err, (args, err)


def test_nothing_finished_is_said(call, tmp_path):
    from harness.results import remember

    remember(tiny(tmp_path), Workspace(tmp_path / "w"))
    code, _, err = call(tmp_path / "w")
    assert code == 2 and "none of 3 runs is finished" in err


def test_a_configuration_is_diagnosed_before_anything_is_trained(call, tmp_path):
    config = write(tmp_path, methods=ROWS, seeds=[3, 4])
    code, out, _ = call(config, "--images", 12, "--json", tmp_path / "d.json", "--workspace", tmp_path / "w")
    assert code == 0 and "singer seed 3, as initialised" in out and "seed 4" not in out
    found = told(tmp_path / "d.json")
    assert set(found) == {"singer", "other"} and not any(one["trained"] for one in found.values())
    layer = found["singer"]["diagnosis"]["layers"][0]["energy"]
    assert layer["up now"] == layer["up at the start"]
    assert not (tmp_path / "w").exists()


def test_a_fresh_fitted_surrogate_and_a_teacher_that_is_still_to_be_trained(call, tmp_path):
    row = {"method": "singer", "hyperparameters": {"rank": 4, "surrogate": "least_squares", "images": 12}}
    config = write(tmp_path, methods=[row])
    code, out, _ = call(config, "--images", 4, "--workspace", tmp_path / "w")
    assert code == 0 and "least_squares" in out
    fitted = write(tmp_path, methods=[row], teacher={"fit": {"training": {"steps": 2, "batch_size": 8}}})
    code, _, err = call(fitted, "--workspace", tmp_path / "w")
    assert code == 2 and "is not trained yet" in err and "singer-bench run CONFIG" in err


def test_a_fitted_start_survives_the_workspace(call, tmp_path):
    row = {"method": "singer", "hyperparameters": {"rank": 4, "surrogate": "least_squares", "images": 12}}
    experiment = tiny(tmp_path, methods=[row], training={"steps": 2})
    run(experiment, tmp_path / "w")
    from harness.results import remember

    remember(experiment, Workspace(tmp_path / "w"))
    code, _, err = call(tmp_path / "w", "--images", 12, "--json", tmp_path / "trained.json")
    assert code == 0, err
    config = write(tmp_path, methods=[row], training={"steps": 2})
    assert call(config, "--images", 12, "--json", tmp_path / "first.json", "--workspace", tmp_path / "w")[0] == 0
    trained, first = (told(tmp_path / name)["singer"]["diagnosis"]["layers"] for name in ("trained.json", "first.json"))
    for one, other in zip(trained, first, strict=True):
        assert one["singular_values"] == pytest.approx(other["singular_values"], rel=1e-4, abs=1e-6)
        assert one["energy"]["up at the start"] == other["energy"]["up at the start"]
        assert one["energy"]["up now"] != other["energy"]["up now"]


class Counting(Calibration):
    samples = 40

    def __init__(self) -> None:
        self.asked = []

    def outputs(self, images, layers, attention_layers=()):
        self.asked.append((images, tuple(layers)))
        return iter(())


def test_fewer_images_are_given_to_whoever_asks_for_more():
    whole = Counting()
    fewer = Fewer(whole, 12)
    for asked in (5, 12, 40):
        list(fewer.outputs(asked, [1]))
    assert (fewer.samples, whole.asked) == (12, [(5, (1,)), (12, (1,)), (12, (1,))])
    assert Fewer(whole, 100).samples == 40


def test_what_is_told_becomes_tables_of_plain_values_items_and_their_parts():
    found = {
        "threshold": 0.05,
        "layers": [
            {"layer": 8, "spectrum": [float(i) for i in range(9)], "norms": {"raw": {"max": 5.0}, "new": {"max": 1.5}}},
            {"layer": 11, "spectrum": [2.0] * 9, "norms": {"raw": {"max": 7.25}, "new": None}, "fit": {"cosine": None}},
        ],
        "alone": {"a": 1},
    }
    text = tables(found)
    lines = [line.split() for line in text.splitlines()]
    assert ["threshold", "0.05"] in lines
    assert ["8", "0", "..", "8", "(9)"] in lines and ["11", "2", "..", "2", "(9)"] in lines
    assert ["8", "raw", "5"] in lines and ["8", "new", "1.5"] in lines and ["11", "raw", "7.25"] in lines
    assert not any(line[:2] == ["11", "new"] for line in lines)
    assert ["11", "-"] in lines  # a cosine that does not exist
    assert "layers: norms" in text and "alone" in text


def test_a_diagnosis_changes_neither_the_method_nor_its_run(call, workspace):
    students = workspace / "students"
    before = {p: p.read_bytes() for p in sorted(students.rglob("*")) if p.is_file()}
    assert call(workspace, "--images", 4)[0] == 0
    assert before == {p: p.read_bytes() for p in sorted(students.rglob("*")) if p.is_file()}
    assert {p.name for p in students.iterdir()} == {r.id for r in _runs(workspace)}
    assert torch.is_grad_enabled()


def _runs(workspace):
    return student_runs(tiny(workspace.parent, methods=ROWS, training={"steps": 4}))
