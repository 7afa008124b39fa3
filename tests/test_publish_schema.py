"""docs/record.schema.json is what the code says, and what a record's file holds."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from publications import first_record, lab, named, with_items
from test_leaderboard import record

from harness.records import SCHEMA, record_text
from leaderboard.publishing.schema import record_schema, schema_text

COMMITTED = Path(__file__).parents[1] / "docs" / "record.schema.json"


def faults(plain) -> list[str]:
    validator = jsonschema.Draft202012Validator(record_schema())
    return ["/".join(map(str, error.absolute_path)) for error in validator.iter_errors(plain)]


def test_the_committed_schema_is_up_to_date():
    assert COMMITTED.read_text() == schema_text(), "run: singer-bench schema > docs/record.schema.json"


def test_the_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(record_schema())
    assert record_schema()["properties"]["schema_version"]["const"] == SCHEMA


def test_written_records_fit(tmp_path):
    for folder in (lab(tmp_path / "one", "fitnet"), with_items(tmp_path / "two")):
        for path in (folder / "records").iterdir():
            assert not faults(json.loads(path.read_text())), path


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("sha256", "0"),
        ("schema_version", 1),
        ("values", {"top1": 1e200}),
        ("values", {"top1": "0.5"}),
        ("task_id", "../x"),
        ("origin", "guessed"),
        ("more", 1),
        ("items", {"file": "x"}),
        ("created", None),
    ],
)
def test_what_is_no_record_does_not_fit(place, value):
    plain = json.loads(record_text(named(record("fitnet"))))
    assert not faults(plain)
    assert faults({**plain, place: value})


def test_every_field_is_needed():
    plain = json.loads(record_text(named(record("fitnet"))))
    for key in plain:
        assert faults({k: v for k, v in plain.items() if k != key}), key
    for key in plain["run"]:
        assert faults({**plain, "run": {k: v for k, v in plain["run"].items() if k != key}}), key


def test_published_records_of_older_schemas_fit_too(tmp_path):
    from publications import published

    ours = lab(tmp_path / "ours", "fitnet")
    path = first_record(ours)
    plain = {**json.loads(path.read_text()), "schema_version": 1}
    del plain["sha256"], plain["items"]
    path.write_text(json.dumps(plain))
    published(ours, tmp_path / "out")
    assert not faults(json.loads((tmp_path / "out" / "records" / path.name).read_text()))
