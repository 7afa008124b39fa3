"""Maps for the page: each student beside its own teacher, drawn once; where they cannot be drawn, that is said."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from experiments import run, tiny
from test_page import board, detail

from harness.cli import main as cli
from harness.errors import UserError
from harness.pictures import beside
from harness.pictures.beside import Beside
from harness.results import remember
from harness.runs import Workspace, student_runs

METHODS = ["none", {"method": "fitnet", "teacher": {"planted": {"layer": 1, "size": 10}}}]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("maps")
    experiment = tiny(folder, methods=METHODS, training={"steps": 2}, seeds=[3, 4], tasks=["artifacts"])
    run(experiment, folder / "w")
    remember(experiment, Workspace(folder / "w"))
    return folder / "w"


def runs(home: Path) -> list[str]:
    folder = home.parent
    experiment = tiny(folder, methods=METHODS, training={"steps": 2}, seeds=[3, 4], tasks=["artifacts"])
    return [one.id for one in student_runs(experiment) if one.info.seed == 3]


def test_each_student_of_the_first_seed_has_maps_beside_its_teacher(home):
    said: list[str] = []
    found = Beside(Workspace(home), False, said.append).maps()
    assert set(found) == set(runs(home)) and said == []
    for maps in found.values():
        assert [one.kind for one in maps] == ["Patch norms", "Principal components"]
        assert all(one.data.startswith(b"\x89PNG") for one in maps)
    one, other = found.values()
    assert one[0].data != other[0].data


def test_the_same_maps_are_the_same_bytes_and_drawn_once(home, monkeypatch):
    one = Beside(Workspace(home), False, pytest.fail)
    first = {run: [m.data for m in maps] for run, maps in one.maps().items()}
    again = Beside(Workspace(home), False, pytest.fail).maps()
    assert first == {run: [m.data for m in maps] for run, maps in again.items()}
    hidden = Beside(Workspace(home), True, pytest.fail).maps()
    assert all(first[run][0] != maps[0].data for run, maps in hidden.items())
    monkeypatch.setattr(beside, "compute", lambda *_: pytest.fail("drawn again"))
    assert {run: [m.data for m in maps] for run, maps in one.maps().items()} == first


def test_no_more_than_a_bounded_number_is_drawn_and_that_is_said(home, monkeypatch):
    monkeypatch.setattr(beside, "MOST", 1)
    said: list[str] = []
    drawer = Beside(Workspace(home), False, said.append)
    assert len(drawer.maps()) == len(drawer.maps()) == 1
    assert len(said) == 1 and "first 1 students" in said[0]


def test_what_one_student_lacks_costs_the_others_nothing(home, tmp_path):
    shutil.copytree(home, tmp_path / "w")
    broken, whole = runs(home)
    path = tmp_path / "w" / "students" / broken / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    said: list[str] = []
    drawer = Beside(Workspace(tmp_path / "w"), False, said.append)
    assert set(drawer.maps()) == set(drawer.maps()) == {whole}
    assert len(said) == 1 and said[0].startswith("no maps of none seed 3 in experiment tiny: ")


def test_a_teacher_that_cannot_be_built_is_said_once_for_all_its_students(home, monkeypatch):
    def absent(*_):
        raise UserError("no weights")

    monkeypatch.setattr(beside.Builder, "teacher", absent)
    monkeypatch.setattr(beside, "_by_teacher", lambda runs: [list(runs)])
    said: list[str] = []
    assert Beside(Workspace(home), False, said.append).maps() == {}
    assert said == ["no maps of none seed 3, fitnet seed 3 in experiment tiny: no weights"]


def test_students_and_data_that_have_vanished_are_said(home, tmp_path, monkeypatch):
    shutil.copytree(home, tmp_path / "w")
    monkeypatch.setattr("harness.data._OPEN", {})  # what another process would know
    images = home.parent / "images"
    images.rename(tmp_path / "images")
    said: list[str] = []
    try:
        assert Beside(Workspace(tmp_path / "w"), False, said.append).maps() == {}
    finally:
        (tmp_path / "images").rename(images)
    assert (
        len(said) == 1 and said[0].startswith("no maps of experiment tiny: ") and "test.npz does not exist" in said[0]
    )
    shutil.rmtree(tmp_path / "w" / "students")
    said.clear()
    assert Beside(Workspace(tmp_path / "w"), False, said.append).maps() == {}
    assert said == [f"no maps of experiment tiny: its students are not in {tmp_path / 'w' / 'students'}"]
    shutil.rmtree(tmp_path / "w" / "records")
    assert Beside(Workspace(tmp_path / "w"), False, pytest.fail).maps() == {}


def test_without_the_data_the_page_is_made_without_maps(home, tmp_path, monkeypatch, capsys):
    def absent(*_):
        raise UserError("no folder of images")

    place = tmp_path / "page"
    for options, drawn in ((["--no-maps"], False), ([], True), ([], False)):
        if options == [] and not drawn:
            monkeypatch.setattr(beside, "Builder", absent)
        monkeypatch.setattr(sys, "argv", ["singer-bench", "page", str(home), "-o", str(place), *options])
        cli.main()
        said = capsys.readouterr()
        assert said.out == f"{place / 'index.html'}\n"
        assert ("no maps of experiment tiny: no folder of images" in said.err) == (not options and not drawn)
        rows = [row for section in board(place / "index.html")["sections"] for row in section["rows"]]
        shown = {one["id"]: len(one["pictures"]) for row in rows for one in detail(place / "index.html", row)["runs"]}
        assert {run for run, count in shown.items() if count == 2} == (set(runs(home)) if drawn else set())
