"""A finished student's folder: what of it is checked, and what an earlier or a newer version wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from test_checkpoint import cut, flip

from harness import students
from harness.errors import UserError
from harness.storage.integrity import Damaged

DAMAGES = {
    "cut weights": ("model.safetensors", lambda path: cut(path, 50)),
    "a flipped bit of the weights": ("model.safetensors", lambda path: flip(path, 50)),
    "a flipped bit of the method": ("method.safetensors", lambda path: flip(path, 50)),
    "another configuration": ("config.json", lambda path: path.write_text("{}")),
    "no method": ("method.safetensors", Path.unlink),
    "a description cut in half": ("run.yaml", lambda path: cut(path, path.stat().st_size // 2)),
    "a description without its checksum": ("run.yaml", lambda path: cut(path, path.read_bytes().rindex(b"#"))),
    "a description without its last letter": ("run.yaml", lambda path: cut(path, path.stat().st_size - 1)),
    "an empty description": ("run.yaml", lambda path: cut(path, 0)),
    "another description": ("run.yaml", lambda path: path.write_text(path.read_text().replace("own_s: 2", "own_s: 1"))),
    "no yaml": ("run.yaml", lambda path: path.write_text("[")),
    "no text": ("run.yaml", lambda path: path.write_bytes(b"\xff\xfe")),
    "no description": ("run.yaml", Path.unlink),
}
DESCRIBED = {"info": {"label": "fitnet"}, "cost": {"own_s": 2}}


@pytest.fixture
def folder(tmp_path) -> Path:
    for i, name in enumerate(("config.json", "model.safetensors", "method.safetensors", "train.jsonl")):
        (tmp_path / name).write_bytes(bytes(range(i, i + 100)))
    students.describe(tmp_path, DESCRIBED)
    return tmp_path


def test_a_whole_student_passes_and_its_description_is_plain_yaml(folder):
    found = students.checked(folder)
    assert {key: found[key] for key in DESCRIBED} == DESCRIBED
    assert found == yaml.safe_load((folder / "run.yaml").read_text())
    assert set(found["files"]) == {"config.json", "model.safetensors", "method.safetensors"}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_noticed_and_the_file_is_named(damage, folder):
    name, harm = DAMAGES[damage]
    harm(folder / name)
    with pytest.raises(Damaged) as error:
        students.checked(folder)
    assert error.value.path == folder / name and str(error.value).startswith(f"{folder / name} is damaged: ")


def test_a_changed_byte_anywhere_in_the_description_is_noticed(folder):
    path = folder / "run.yaml"
    for place in range(0, path.stat().st_size, 5):
        flip(path, place)
        with pytest.raises((Damaged, UserError)):
            students.described(folder)
        flip(path, place)
    students.described(folder)


def test_the_log_of_the_training_decides_no_number_and_may_go(folder):
    (folder / "train.jsonl").unlink()
    students.checked(folder)


def test_what_the_first_version_wrote_is_taken_as_it_is(folder):
    (folder / "run.yaml").write_text(yaml.safe_dump(DESCRIBED, sort_keys=False))
    assert students.checked(folder) == DESCRIBED


def test_what_a_newer_version_wrote_is_refused_and_not_called_damaged(folder):
    path = folder / "run.yaml"
    path.write_text(path.read_text().replace("schema_version: 2", "schema_version: 3"))
    with pytest.raises(UserError, match="schema 3 is newer than this program's 2; update singer-bench") as error:
        students.checked(folder)
    assert not isinstance(error.value, Damaged)


@pytest.mark.parametrize(
    ("log", "step"), [('{"step": 2}\n{"step": 4}\n', 4), ('{"step": 2}\n{"step": 4', 2), ("", 0), (None, 0)]
)
def test_the_last_step_that_was_logged(log, step, tmp_path):
    if log is not None:
        (tmp_path / "train.jsonl").write_text(log)
    assert students.logged_step(tmp_path) == step
