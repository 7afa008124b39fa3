"""Records: what is written is what is read, nothing is half-written, and nothing damaged is trusted."""

from __future__ import annotations

import gc
import hashlib
import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from harness import migrations, records
from harness.errors import UserError
from harness.records import (
    SCHEMA,
    Record,
    RecordError,
    has_record,
    read_record,
    read_records,
    record_path,
    write_atomic,
    write_record,
)

ROOT = Path(__file__).parents[1]

words = st.text(max_size=12)
ids = st.text("0123456789abcdef", min_size=1, max_size=16)
finite = st.floats(allow_nan=False, allow_infinity=False, min_value=-records.LARGEST, max_value=records.LARGEST)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
plains = st.dictionaries(words, plain, max_size=3)
maybe = st.none() | st.floats(0, 1e9)


def values(**changes: Any) -> dict[str, Any]:
    """The fields of a small valid record."""
    run = {
        "id": "ab12",
        "kind": "student",
        "label": "fitnet",
        "method": "fitnet",
        "seed": 0,
        "teacher": "vit_large",
        "student": "vit_tiny",
        "data": "scenes",
        "condition": "c0ffee",
    }
    base = {
        "task": "recognition",
        "task_kind": "classification",
        "task_id": "cd34",
        "metrics": {"top1": {"unit": "fraction", "direction": "up"}},
        "values": {"top1": 0.5},
        "protocol": {"epochs": 10},
        "run": {**run, **changes.pop("run", {})},
        "seed": 0,
    }
    return {**base, **changes}


@st.composite
def any_record(draw: st.DrawFn) -> Record:
    metrics = draw(st.dictionaries(words, st.sampled_from(["up", "down"]), min_size=1, max_size=4))
    measured = draw(st.lists(st.sampled_from(list(metrics)), unique=True))
    fields = dict(
        task=draw(words),
        task_kind=draw(words),
        task_id=draw(ids),
        metrics={name: {"unit": draw(words), "direction": way} for name, way in metrics.items()},
        values={name: draw(finite) for name in measured},
        details=draw(plains),
        protocol=draw(plains),
        run={
            **values()["run"],
            "id": draw(ids),
            "kind": draw(st.sampled_from(["student", "teacher", "untrained"])),
            "label": draw(words),
            "seed": draw(st.integers(-(2**70), 2**70)),
            "hyperparameters": draw(plains),
            "spec": draw(plains),
        },
        cost={"steps": draw(st.none() | st.integers(0, 10**9)), "own_s": draw(maybe), "peak_memory_gb": draw(maybe)},
        seed=draw(st.integers(0, 2**63 - 1)),
        environment=draw(plains),
        created=draw(words),
        origin=draw(st.sampled_from(["measured", "reported"])),
    )
    return Record.model_validate(fields)


@settings(max_examples=60, deadline=None)
@given(record=any_record())
def test_a_written_record_is_read_back_equal(record: Record, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("records")
    path = write_record(folder, record)
    assert path == record_path(folder, record.run.id, record.task_id)
    found, problems = read_records(folder)
    assert (found, problems) == ([record], [])
    assert list(found[0].metrics) == list(record.metrics)  # the primary one stays first


def test_tuples_and_integer_keys_are_what_the_file_makes_of_them() -> None:
    record = Record(**values(details={"layers": (8, 11), "per_layer": {8: 0.5}}))
    assert record.details == {"layers": [8, 11], "per_layer": {"8": 0.5}}


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 1e151])
def test_a_value_that_is_not_a_finite_number_is_refused_by_name(number: float) -> None:
    with pytest.raises(ValidationError, match=r"values\.top1 of task 'recognition' is .*finite"):
        Record(**values(values={"top1": number}))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"details": {"curve": [1.0, math.nan]}}, r"details\.curve\[1\] is nan"),
        ({"protocol": {"a": {"b": math.inf}}}, r"protocol\.a\.b is inf"),
        ({"run": {"spec": {"path": Path("x")}}}, r"spec\.path is a \w*Path"),
        ({"environment": {"name": "\ud800"}}, "surrogates"),
        ({"cost": {"own_s": math.nan}}, r"cost\.own_s\n.*finite"),
        ({"values": {"top2": 0.5}}, r"values\.top2 .* not a declared metric \(top1\)"),
        ({"extra": 1}, "extra"),
        ({"run": {"kind": "pupil"}}, "'student', 'teacher' or 'untrained'"),
    ],
)
def test_what_a_record_cannot_hold_is_refused_by_name(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        Record(**values(**changes))


def test_records_come_sorted_by_file_name(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        write_record(tmp_path, Record(**values(run={"id": name})))
    assert [r.run.id for r in read_records(tmp_path)[0]] == ["a", "b", "c"]


def test_writing_leaves_one_file_and_writing_again_replaces_it(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "records"
    write_record(folder, Record(**values()))
    path = write_record(folder, Record(**values(values={"top1": 0.75})))
    assert os.listdir(folder) == [path.name] == ["ab12.cd34.json"]
    assert read_record(path).values == {"top1": 0.75}


def test_an_error_before_the_rename_leaves_the_old_record_and_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = Record(**values())
    path = write_record(tmp_path, old)

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        write_record(tmp_path, Record(**values(values={"top1": 0.75})))
    assert os.listdir(tmp_path) == [path.name]
    assert read_record(path) == old


def test_a_kill_before_the_rename_leaves_the_old_record_and_what_remains_is_ignored(tmp_path: Path) -> None:
    old = Record(**values())
    write_record(tmp_path, old)
    program = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom harness.records import Record, write_record\n"
        "os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_record(Path(sys.argv[1]), Record.model_validate_json(sys.argv[2]))"
    )
    new = Record(**values(values={"top1": 0.75})).model_dump_json()
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path), new], cwd=ROOT, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert len(os.listdir(tmp_path)) == 2  # the record and the temporary file of the killed process
    assert read_records(tmp_path) == ([old], [])


def test_what_is_renamed_has_been_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda n: (calls.append("sync"), fsync(n)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("rename"), replace(a, b)))
    write_atomic(tmp_path / "file", "text")
    assert calls == ["sync", "rename", "sync"]  # the file, then the folder


def sealed(text: str) -> str:
    """The text of a record with the checksum that belongs to it, whatever is wrong with it."""
    return f'{text[: -len("}") - 2]},\n  "sha256": "{hashlib.sha256(text.encode()).hexdigest()}"\n}}\n'


def unsealed(text: str) -> str:
    return re.sub(r',\n  "sha256": "[0-9a-f]{64}"\n}\n$', "\n}\n", text)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda text: text[: len(text) // 2], "cut short"),
        (lambda text: "", "cut short"),
        (lambda text: "[]", "not a record"),
        (lambda text: text.replace('"top1": 0.5', '"top1": 0.6'), "its checksum is not that of its content"),
        (lambda text: unsealed(text), "changed or cut short since it was written"),
        (lambda text: json.dumps(json.loads(text)), "changed or cut short since it was written"),
    ],
)
def test_a_damaged_file_is_reported_by_name_and_the_others_are_read(tmp_path: Path, damage: Any, reason: str) -> None:
    path = write_record(tmp_path, Record(**values()))
    sound = Record(**values(run={"id": "ff"}))
    write_record(tmp_path, sound)
    path.write_text(damage(path.read_text()))
    found, problems = read_records(tmp_path)
    assert found == [sound]
    assert [p.path for p in problems] == [path]
    assert reason in problems[0].reason and str(problems[0]).startswith("ab12.cd34.json: ")
    with pytest.raises(UserError, match=r"ab12\.cd34\.json"):
        read_record(path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda text: text.replace(f'"schema_version": {SCHEMA}', f'"schema_version": {SCHEMA + 1}'), "newer"),
        (lambda text: text.replace(f'"schema_version": {SCHEMA}', '"schema_version": 0'), "schema_version: 0"),
        (lambda text: text.replace(f'"schema_version": {SCHEMA},', ""), "schema_version: None"),
        (lambda text: text.replace('"top1": 0.5', '"top1": NaN'), "NaN"),
        (lambda text: text.replace('"epochs": 10', '"epochs": Infinity'), "Infinity"),
        (lambda text: text.replace('"top1": 0.5', '"top1": "much"'), "values.top1"),
        (lambda text: text.replace('"label": "fitnet",', ""), "run.label"),
        (lambda text: text.replace('"id": "ab12"', '"id": "ab13"'), "name does not fit"),
        (lambda text: text.replace('"task_id": "cd34"', '"task_id": "cd35"'), "name does not fit"),
    ],
)
def test_what_no_record_of_ours_holds_is_told_by_name_though_its_checksum_fits(
    tmp_path: Path, change: Any, reason: str
) -> None:
    path = write_record(tmp_path, Record(**values()))
    path.write_text(sealed(change(unsealed(path.read_text()))))
    found, problems = read_records(tmp_path)
    assert found == [] and [p.path for p in problems] == [path] and reason in problems[0].reason


def test_any_truncation_and_any_changed_byte_is_noticed(tmp_path: Path) -> None:
    path = write_record(tmp_path, Record(**values()))
    whole = path.read_bytes()
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1
        for text in (whole[:place], bytes(changed)):
            path.write_bytes(text)
            assert read_records(tmp_path)[0] == [], place


def test_the_checksum_in_a_record_is_that_of_the_rest_of_its_text(tmp_path: Path) -> None:
    path = write_record(tmp_path, Record(**values()))
    text = path.read_text()
    assert json.loads(text)["sha256"] == hashlib.sha256(unsealed(text).encode()).hexdigest()


# ---- older schemas

OLD = ROOT / "tests" / "samples" / "db7ef3feae26fc0a.ad4d248c8a5bca84.json"


def test_a_record_of_the_first_schema_is_read_and_written_as_one_of_this(tmp_path: Path) -> None:
    assert json.loads(OLD.read_text())["schema_version"] == 1
    record = read_record(OLD)
    assert record.schema_version == SCHEMA and record.values["max_over_median"] == 1.1347008019685745
    assert record.run.label == "fitnet" and next(iter(record.metrics)) == "outlier_share"
    assert has_record(OLD.parent, record.run.id, record.task_id)
    assert read_record(write_record(tmp_path, record)) == record


def test_an_older_record_that_is_damaged_is_noticed(tmp_path: Path) -> None:
    text = OLD.read_text()
    for damaged in (
        text[:-20],
        text.replace('"outlier_share": 0.0', '"outlier_share": NaN'),
        text.replace("cost", "c"),
    ):
        (tmp_path / OLD.name).write_text(damaged)
        assert read_records(tmp_path)[0] == []
        assert not has_record(tmp_path, *OLD.stem.split("."))


@pytest.mark.parametrize(("kind", "independent"), [("few_shot", False), ("classification", True)])
def test_items_of_schema_3_are_independent_but_for_episodes(kind: str, independent: bool) -> None:
    old = {"schema_version": 3, "task_kind": kind, "items": {"count": 3}}
    assert migrations.migrated(old, 4)["items"] == {"count": 3, "independent": independent}
    assert migrations.migrated({**old, "items": None}, 4)["items"] is None


def test_every_older_schema_has_its_migration() -> None:
    assert set(migrations.MIGRATIONS) == set(range(migrations.FIRST, SCHEMA))


def test_a_record_goes_through_every_version_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = {n: lambda record, n=n: {**record, "seen": [*record.get("seen", []), n]} for n in (1, 2, 3)}
    monkeypatch.setattr(migrations, "MIGRATIONS", steps)
    assert migrations.migrated({"schema_version": 2}, 4) == {"schema_version": 4, "seen": [2, 3]}


def test_a_schema_that_is_newer_is_said_before_its_unknown_fields(tmp_path: Path) -> None:
    path = write_record(tmp_path, Record(**values()))
    newer = {**json.loads(path.read_text()), "schema_version": SCHEMA + 1, "new_field": 1}
    path.write_text(json.dumps(newer))
    assert "update singer-bench" in read_records(tmp_path)[1][0].reason


def test_strings_that_look_like_bad_numbers_are_strings(tmp_path: Path) -> None:
    record = Record(**values(run={"label": "NaN Infinity"}))
    write_record(tmp_path, record)
    assert read_records(tmp_path) == ([record], [])


def test_other_files_and_folders_are_no_records(tmp_path: Path) -> None:
    for name in (".x.json", ".ab.json.12.tmp", "notes.txt"):
        (tmp_path / name).write_text("{")
    (tmp_path / "folder.json").mkdir()
    found, problems = read_records(tmp_path)
    assert found == [] and [p.path.name for p in problems] == ["folder.json"]


def test_a_workspace_without_results_has_no_records(tmp_path: Path) -> None:
    assert read_records(tmp_path / "records") == ([], [])


def test_reading_leaves_the_garbage_collector_as_it_was(tmp_path: Path) -> None:
    write_record(tmp_path, Record(**values()))
    assert gc.isenabled()
    read_records(tmp_path)
    assert gc.isenabled()


def test_only_a_valid_record_counts_as_done(tmp_path: Path) -> None:
    assert not has_record(tmp_path, "ab12", "cd34")
    path = write_record(tmp_path, Record(**values()))
    assert has_record(tmp_path, "ab12", "cd34")
    text = path.read_text()
    path.write_text(text[:50])
    assert not has_record(tmp_path, "ab12", "cd34")
    path.write_text(sealed(unsealed(text).replace(f'"schema_version": {SCHEMA}', f'"schema_version": {SCHEMA + 1}')))
    with pytest.raises(RecordError, match="newer"):  # an older program must not write over it
        has_record(tmp_path, "ab12", "cd34")


@pytest.mark.parametrize("bad", ["", "../x", "a/b", "a.b", "a b", "a\n"])
def test_an_id_cannot_lead_out_of_the_folder(bad: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot name a file"):
        record_path(tmp_path, bad, "cd34")
    with pytest.raises(ValueError, match="cannot name a file"):
        record_path(tmp_path, "ab12", bad)


def test_records_and_the_leaderboard_import_no_torch() -> None:
    modules = [f"leaderboard.{path.stem}" for path in (ROOT / "leaderboard").glob("[!_]*.py")]
    program = f"import sys, harness.records, {', '.join(modules)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=60).returncode == 0
