"""Items: what single test items gave is stored whole, makes the record's numbers again, is never trusted unchecked."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from experiments import run, tiny
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from test_records import values

from harness.catalogue import catalogue
from harness.checking.checks import specimen
from harness.items import NEAR, Items, Scores, classified
from harness.probes import classification_scores
from harness.records import SCHEMA, Record, read_record, read_records, record_text, write_record
from harness.storage.items import ItemsError, packed, read_items, unpacked, write_items

RIGHT = np.array([True, False, True, True, False, True, True, False, True])  # more than a byte of bits


def top1(right: np.ndarray = RIGHT) -> Items:
    return Items({"top1": right}, {"top1": ("mean", "top1")})


def stored(folder: Path, items: Items | None = None, **changes: Any) -> Record:
    """A record whose items are in `folder`."""
    items = top1() if items is None else items
    info = write_items(folder, "ab12", "cd34", items)
    return Record(**values(values={"top1": items.number("top1")}, items=info, **changes))


# ---- numbers made of items


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.data())
def test_a_classifiers_numbers_are_made_of_its_images(labels, data):
    import torch

    truth = np.array(labels)
    best = np.array([data.draw(st.permutations(range(5))) for _ in labels])
    logits = torch.full((len(labels), 5), 0.0)
    for place in range(5):
        logits[np.arange(len(labels)), best[:, place]] = -float(place)
    scores = classification_scores(logits, torch.from_numpy(truth))
    items = classified({"top1": best[:, 0] == truth}, truth, balanced="top1")
    for metric in ("top1", "balanced_accuracy"):
        assert items.number(metric) == pytest.approx(scores[metric], rel=NEAR)


def test_every_rule_by_hand():
    weights, x, squares = (np.array(v, np.float32) for v in ([1, 3], [0.5, 0.1], [0.25, 0.05]))
    items = Items(
        {"x": x, "s": squares, "w": weights},
        {
            "mean": ("mean", "x"),
            "weighted": ("weighted_mean", "x", "w"),
            "root": ("root_weighted_mean", "s", "w"),
            "spread": ("log_spread", "x", "s", "w"),
        },
    )
    assert items.number("mean") == pytest.approx(0.3)
    assert items.number("weighted") == pytest.approx((0.5 + 0.3) / 4)
    assert items.number("root") == pytest.approx(math.sqrt((0.25 + 0.15) / 4))
    assert items.number("spread") == pytest.approx(math.sqrt(0.1 - 0.2**2 / 2))
    above, below = np.array([[1, 0, 0], [2, 1, 0]], np.uint32), np.array([[2, 1, 0], [4, 1, 0]], np.uint32)
    dense = Items({"a": above, "b": below}, {"miou": ("class_mean", "a", "b"), "all": ("pooled", "a", "b")})
    assert dense.number("miou") == pytest.approx((3 / 6 + 1 / 2) / 2)  # the third class is nowhere
    assert dense.number("all") == pytest.approx(4 / 8)


def test_where_nothing_is_left_to_divide_by_there_is_no_number():
    items = Items({"x": RIGHT, "w": np.zeros(9, np.float32)}, {"m": ("weighted_mean", "x", "w")})
    assert math.isnan(items.number("m"))
    nowhere = np.zeros((2, 3), np.uint32)
    assert math.isnan(Items({"a": nowhere}, {"m": ("class_mean", "a", "a")}).number("m"))


@pytest.mark.parametrize("name", ["classification", "few_shot", "low_shot", "long_tail", "shifted", "segmentation"])
def test_every_declared_number_of_a_task_is_made_of_items(name):
    of = specimen(catalogue().entry("task", name))
    found = of.values("oracle")
    assert isinstance(found, Scores) and set(found.per_item.metrics) == of.cls.metrics.keys() & found.keys()


def test_depth_errors_of_images_are_pooled_by_their_pixels():
    from tasks.depth import Depth
    from tasks.depth_scores import PooledErrors, items_of

    rng, pooled, images = np.random.default_rng(0), PooledErrors(), []
    for pixels in (5, 0, 700):
        predicted, truth = rng.uniform(0.1, 9, (2, pixels))
        pooled.add(predicted, truth)
        images.append(PooledErrors())
        images[-1].add(predicted, truth)
    items, whole = items_of(images), pooled.metrics()
    assert set(items.metrics) == set(Depth.metrics) and items.count == 3
    for metric in items.metrics:
        assert items.number(metric) == pytest.approx(whole[metric], rel=NEAR)


# ---- on disk


@given(st.lists(st.booleans(), min_size=1, max_size=70), st.integers(0, 2**32 - 1))
def test_what_is_stored_is_what_is_read(right, large):
    count = len(right)
    columns = {
        "right": np.array(right),
        "two": np.array([right, right]).T.copy(),
        "count": np.full((count, 2), large, dtype=np.uint64),
        "share": np.linspace(0, 1, count, dtype=np.float32),
    }
    items = Items(columns, {"m": ("mean", "right")})
    info = Record(
        **values(
            values={"top1": 0.5},
            items={"file": "ab12.cd34.safetensors", "sha256": "0" * 64, "count": count, "metrics": {}},
        )
    ).items
    assert info is not None
    back = unpacked(packed(items), info)
    assert back.columns.keys() == columns.keys()
    assert all((back.columns[name] == column).all() for name, column in columns.items())


def test_bits_take_an_eighth_of_a_byte_an_image():
    assert len(packed(top1(np.ones(80_000, bool)))) < 10_000 + 200


def test_a_record_names_its_items(tmp_path):
    record = stored(tmp_path / "items")
    assert record.items is not None and record.items.file == "ab12.cd34.safetensors" and record.items.count == 9
    data = (tmp_path / "items" / record.items.file).read_bytes()
    assert record.items.sha256 == hashlib.sha256(data).hexdigest()
    again = read_record(write_record(tmp_path, record))
    assert again == record
    assert (read_items(tmp_path / "items", again).columns["top1"] == RIGHT).all()


@pytest.mark.parametrize("place", [0, 8, 60, -1])
def test_a_changed_byte_is_noticed(tmp_path, place):
    record = stored(tmp_path)
    assert record.items is not None
    path = tmp_path / record.items.file
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(ItemsError, match="damaged: its checksum"):
        read_items(tmp_path, record)


def test_missing_items_are_said(tmp_path):
    record = stored(tmp_path)
    assert record.items is not None
    (tmp_path / record.items.file).unlink()
    with pytest.raises(ItemsError, match="is not there") as error:
        read_items(tmp_path, record)
    assert "fitnet" in str(error.value) and "recognition" in str(error.value)
    with pytest.raises(ItemsError, match="names none"):
        read_items(tmp_path, Record(**values()))


def renamed(data: bytes, count: int, metrics: dict[str, Any], folder: Path) -> Record:
    """A record that names these bytes, whatever they are."""
    (folder / "ab12.cd34.safetensors").write_bytes(data)
    info = {"file": "ab12.cd34.safetensors", "sha256": hashlib.sha256(data).hexdigest(), "count": count}
    return Record(**values(items={**info, "metrics": metrics}))


@pytest.mark.parametrize(
    ("data", "count", "metrics", "said"),
    [
        (b"", 9, {}, "not a safetensors file"),
        (b"\x80\x04N.", 9, {}, "not a safetensors file"),  # a pickle
        (packed(top1()), 99, {}, "does not hold 99 bits"),
        (packed(top1()), 9, {"top1": ("mean", "other")}, "by 'mean' of columns"),
        (packed(top1()), 9, {"top1": ("__import__", "top1")}, "is not one of mean,"),
        (packed(top1()), 9, {"top1": ()}, "at least 1 item"),
        (packed(Items({"x": np.ones(4, np.float32)}, {})), 5, {}, "4 items, and the record says 5"),
    ],
)
def test_bytes_that_are_no_items_are_refused_in_words(tmp_path, data, count, metrics, said):
    with pytest.raises((ItemsError, ValidationError), match=said):
        read_items(tmp_path, renamed(data, count, metrics, tmp_path))


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (np.array([1.0, np.nan], np.float32), "not finite"),
        (np.array([1.0, 2.0]), "float64"),
        (np.zeros(0, bool), "no item"),
        (np.array(3, np.uint8), "shape"),
        (np.zeros((2, 2), np.uint8), "does not take columns of these shapes"),
    ],
)
def test_items_that_break_their_contract_are_never_written(tmp_path, column, said):
    with pytest.raises((ValueError, TypeError), match=said if column.ndim else None):
        write_items(tmp_path, "ab12", "cd34", Items({"x": column}, {"top1": ("mean", "x")}))
    assert list(tmp_path.iterdir()) == []


def test_a_record_names_no_file_but_its_own():
    info = {"sha256": "0" * 64, "count": 1, "metrics": {}}
    for file in ("../../etc/passwd", "ab12.other.safetensors", "/ab12.cd34.safetensors"):
        with pytest.raises(ValidationError, match=r"items\.file is"):
            Record(**values(items={**info, "file": file}))
    with pytest.raises(ValidationError, match="a metric without a value"):
        Record(**values(items={**info, "file": "ab12.cd34.safetensors", "metrics": {"top5": ("mean", "x")}}))


def test_a_sealed_record_of_the_second_schema_is_read_and_a_changed_one_is_not(tmp_path):
    record = Record(**values())
    plain = json.loads(record_text(record))
    del plain["items"], plain["sha256"]
    text = json.dumps({**plain, "schema_version": 2}, indent=2) + "\n"
    seal = hashlib.sha256(text.encode()).hexdigest()
    sealed = text.removesuffix("\n}\n") + f',\n  "sha256": "{seal}"\n}}\n'
    path = tmp_path / "ab12.cd34.json"
    path.write_text(sealed)
    assert read_record(path) == record and read_record(path).schema_version == SCHEMA
    for changed in (sealed.replace("0.5", "0.6"), text):
        path.write_text(changed)
        found, problems = read_records(tmp_path)
        assert not found and "its checksum is not that of its content" in problems[0].reason


# ---- in a run


def test_a_run_leaves_items_that_make_its_records_numbers_again(tmp_path):
    tasks = [{"task": "classification", "options": {"steps": 20}}]
    workspace = tmp_path / "workspace"
    run(tiny(tmp_path, methods=["fitnet"], tasks=tasks, bounds=True), workspace)
    records, problems = read_records(workspace / "records")
    assert not problems and records
    for record in records:
        items = read_items(workspace / "items", record)
        assert set(items.metrics) == set(record.values)
        for metric in items.metrics:
            assert items.number(metric) == pytest.approx(record.values[metric], rel=NEAR)
    assert {path.name for path in (workspace / "items").iterdir()} == {r.items.file for r in records if r.items}


def test_no_record_names_items_that_could_not_be_written(tmp_path, monkeypatch):
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("harness.evaluation.write_items", full)
    tasks = [{"task": "classification", "options": {"steps": 5}}]
    with pytest.raises(Exception, match="No space"):
        run(tiny(tmp_path, methods=["fitnet"], tasks=tasks), tmp_path / "workspace")
    assert read_records(tmp_path / "workspace" / "records") == ([], [])
