"""Protocols by name, and how two differ in words."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import UserError
from harness.protocols import described, differences, find, listing, of_workspace
from harness.records import Record, write_record

ROOT = Path(__file__).parents[1]
BASE = {"summary": "short", "steps": 200, "images": None, "data": {"image_size": 160, "train": "train.tar"}}


def record(task: str, task_id: str, protocol: dict, run: str = "ab12") -> Record:
    info = {"id": run, "kind": "student", "label": "fitnet", "method": "fitnet", "seed": 0, "teacher": "t"}
    info |= {"student": "s", "data": "scenes", "condition": "c"}
    return Record.model_validate(
        {
            "task": task,
            "task_kind": "classification",
            "task_id": task_id,
            "metrics": {"top1": {"unit": "fraction", "direction": "up"}},
            "values": {"top1": 0.5},
            "protocol": protocol,
            "run": info,
            "seed": 0,
        }
    )


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    place = tmp_path / "work"
    write_record(place / "records", record("classification", "aa11", BASE))
    write_record(place / "records", record("classification", "aa11", BASE, run="cd34"))
    longer = {**BASE, "steps": 500, "data": {"image_size": 224, "train": "train.tar"}, "summary": "long"}
    write_record(place / "records", record("longer", "bb22", longer))
    return place


def test_a_protocol_is_found_by_column_hash_and_record(workspace):
    assert [n.id for n in of_workspace(workspace)] == ["aa11", "bb22"]
    by = [f"{workspace}/classification", f"{workspace}/aa", str(workspace / "records" / "ab12.aa11.json")]
    assert {find(where).id for where in by} == {"aa11"}
    assert listing(workspace) == "aa11  classification: short\nbb22  longer: long"


def test_every_difference_is_said_with_both_values(workspace):
    text = described(find(f"{workspace}/classification"), find(f"{workspace}/longer"))
    assert "2 settings differ: their numbers never share a column." in text
    assert "  - steps is 200 in the first and 500 in the second" in text
    assert "  - data.image_size is 160 in the first and 224 in the second" in text
    assert "images" not in text.split("never share")[1] and "summary is" not in text


def test_what_one_does_not_set_is_said():
    assert differences({"a": 1}, {"b": {}}) == [
        "a is 1 in the first and not set in the second",
        "b is not set in the first and {} in the second",
    ]
    assert differences({"a": None}, {"a": 0}) == ["a is none in the first and 0 in the second"]


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4) | st.lists(st.integers(), max_size=2),
    lambda inner: st.dictionaries(st.text("abc", min_size=1, max_size=2), inner, max_size=3),
    max_leaves=8,
)
protocols = st.dictionaries(st.text("abc", min_size=1, max_size=2), plain, max_size=4)


@given(protocols, protocols)
def test_nothing_is_said_exactly_where_nothing_differs(one, other):
    assert differences(one, one) == []
    assert bool(differences(one, other)) == (one != other) or _as_json(one) == _as_json(other)
    assert len(differences(one, other)) == len(differences(other, one))


def _as_json(value):
    """True and 1, and numbers of one value, are one in Python and two in JSON."""
    import json

    return json.dumps(value, sort_keys=True)


def test_the_same_protocol_shares_a_column(workspace):
    same = find(f"{workspace}/classification")
    assert described(same, same).endswith("Nothing differs: their numbers share a column.")


@pytest.mark.parametrize(
    ("where", "words"),
    [("clasification", "did you mean 'classification'"), ("zz", "no protocol 'zz'")],
)
def test_an_unknown_protocol_names_the_nearest(workspace, where, words):
    with pytest.raises(UserError, match=words):
        find(f"{workspace}/{where}")


def test_a_title_of_two_protocols_is_to_be_named_by_its_hash(workspace):
    write_record(workspace / "records", record("longer", "cc33", {**BASE, "steps": 900}))
    with pytest.raises(UserError, match=r"fits 2 protocols; name one by its hash: .*bb22, .*cc33"):
        find(f"{workspace}/longer")


def test_mistakes_are_one_line_and_exit_code_2(workspace, tmp_path):
    (tmp_path / "no.json").write_text("{}")
    commands = {
        ("diff", str(tmp_path / "no.json"), f"{workspace}/longer"): "is no record",
        ("diff", "nowhere/x", f"{workspace}/longer"): "no workspace 'nowhere'",
        ("list", str(tmp_path)): "has no records yet",
    }
    for arguments, words in commands.items():
        done = subprocess.run(
            [sys.executable, "-m", "harness.cli", "protocols", *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr
    done = subprocess.run(
        [sys.executable, "-m", "harness.cli", "protocols", "show", f"{workspace}/longer"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0 and '"steps": 500' in done.stdout
