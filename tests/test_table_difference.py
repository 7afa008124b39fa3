"""One method minus the best other, against numbers worked out by hand; groups of pairs in one table."""

from __future__ import annotations

import csv
import io
import json
import math
from typing import Any

import pytest
from tables import DEPTH_TASK, pairs
from test_leaderboard import only, record, seeds, table

from harness.errors import UserError
from harness.records import Record
from leaderboard.board import Difference
from leaderboard.render import FORMATS, render
from leaderboard.table import rows_and_columns


def three() -> list[Record]:
    """Mine beats the others on cls by .03 and loses on depth, where less is better, by .02 m."""
    return [
        *seeds("mine", 0.70, 0.74, 0.75),
        *seeds("first", 0.68, 0.70, 0.72),
        *seeds("second", 0.10, 0.10, 0.10),
        *seeds("mine", 0.43, 0.43, 0.43, **DEPTH_TASK),
        *seeds("first", 0.50, 0.50, 0.50, **DEPTH_TASK),
        *seeds("second", 0.40, 0.41, 0.42, **DEPTH_TASK),
        record("teacher", value=0.99, kind="teacher", student=""),
        record("untrained", value=0.98, kind="untrained"),
        record("elsewhere", value=0.97, origin="reported"),
    ]


def of(records: list[Record], name: str = "mine", **options: Any) -> Difference:
    found = only(rows_and_columns(records, difference=name, **options)).difference
    assert found is not None
    return found


def test_it_is_the_difference_of_the_shown_means_to_the_best_other_student():
    found = of(three())
    assert (found.label, found.others) == ("mine", ("first", "second"))  # no bound, no reported number
    cls, depth = found.cells
    assert cls and depth
    assert cls.mean == pytest.approx(0.03) and depth.mean == pytest.approx(0.02)
    # Seed by seed .02, .04, .03 and .03, .02, .01.
    assert cls.spread == pytest.approx(0.01) and depth.spread == pytest.approx(0.01) and cls.n == 3


def test_its_spread_is_of_the_seeds_own_differences_not_of_the_two_spreads():
    records = [*seeds("mine", 0.2, 0.6), *seeds("other", 0.1, 0.5)]
    (cell,) = of(records).cells
    assert cell and cell.mean == pytest.approx(0.1) and cell.spread == 0.0  # rounding alone is none


def test_without_the_same_seeds_there_is_no_spread_and_the_means_still_count():
    records = [*seeds("mine", 0.2, 0.4, 0.6), *seeds("other", 0.1, 0.3)]
    (cell,) = of(records).cells
    assert cell and cell.mean == pytest.approx(0.2) and cell.spread is None and cell.n == 2
    (cell,) = of([record("mine", 0, 0.5), record("other", 0, 0.4)]).cells
    assert cell and cell.spread is None and cell.n == 1


def test_a_missing_number_gives_no_difference():
    records = [
        *seeds("mine", 0.5),
        *seeds("other", 0.4),
        *seeds("other", 0.4, task="depth"),
        *seeds("mine", 0.1, task="seg"),
    ]
    found = of(records)
    assert [cell is None for cell in found.cells] == [False, True, True] and found.others == ("other", None, None)


def test_only_shown_rows_are_others():
    assert of(three(), exclude="first").others[0] == "second"


def test_a_method_stands_for_its_only_row_and_several_are_refused():
    records = [*seeds("kd", 0.5, hyperparameters={"t": 1}), *seeds("kd", 0.6, hyperparameters={"t": 2}), record("x")]
    assert of(records, "kd (t=2)").label == "kd (t=2)"
    with pytest.raises(UserError, match=r"'kd' means several rows, kd \(t=2\), kd \(t=1\); name one"):
        of(records, "kd")
    assert of([*seeds("kd", 0.5, hyperparameters={"t": 1}), record("x")], "kd").label == "kd"


@pytest.mark.parametrize(
    ("name", "records", "message"),
    [
        ("mien", three(), "--difference: no student 'mien'; did you mean 'mine'?"),
        ("teacher", three(), "--difference: no student 'teacher'"),
        (
            "mine",
            [*seeds("mine", 0.5), *seeds("x", 0.4, task="seg")],
            "no column has numbers of both 'mine' and another",
        ),
    ],
)
def test_what_cannot_be_subtracted_is_refused_in_words(name, records, message):
    with pytest.raises(UserError) as refused:
        of(records, name)
    assert message in str(refused.value)


def test_it_is_a_row_of_every_format_with_its_sign():
    board = rows_and_columns(three(), difference="mine")
    cells = table(three(), difference="mine")["mine − best other"]
    assert cells == ["", "+3.0 ± 1.0", "+0.020 ± 0.010", ""]
    assert r"$+$\num{3.0} $\pm$ \num{1.0}" in render(board, "latex")
    assert "The best others: first (cls top1); second (depth rmse)." in render(board)
    *_, line = csv.DictReader(io.StringIO(render(board, "csv")))
    assert (line["label"], line["kind"]) == ("mine − best other", "difference")
    assert math.isclose(float(line["cls top1 (fraction) mean"]), 0.03)
    (section,) = json.loads(render(board, "json"))["sections"]
    assert section["difference"]["others"] == ["first", "second"]
    for format in set(FORMATS) - {"json"}:
        assert "best other" not in render(rows_and_columns(three()), format)


def test_a_loss_has_a_minus_and_zero_no_sign():
    records = [
        *seeds("mine", 0.5, 0.5),
        *seeds("other", 0.6, 0.6),
        *seeds("mine", 0.5, task="seg"),
        *seeds("other", 0.5, task="seg"),
    ]
    assert table(records, difference="mine")["mine − best other"][1:3] == ["-10.0 ± 0.0", "0.0"]


def test_pairs_stand_in_one_table_each_with_its_own_marks_ranks_and_difference():
    board = rows_and_columns(pairs(), by_pair=True, difference="singer")
    for format, head in (("markdown", "| method"), ("plain", "method"), ("latex", r" method")):
        assert sum(line.startswith(head) for line in render(board, format).split("\n")) == 1
    text = render(board, "plain").split("\n")
    start, other = text.index("big → small"), text.index("big → tiny")
    assert start < other and text[other - 1] == ""
    ours, theirs = text[start:other], text[other:]
    assert sum(line.startswith("singer − best other") for line in ours) == 1
    assert [next(line for line in part if line.startswith("singer ")).split()[-1] for part in (ours, theirs)] == [
        "2.00",
        "1.00",
    ]
    assert "of its group" in render(board) and "of its group" not in render(rows_and_columns(pairs()))


def test_groups_of_the_same_models_are_told_apart_by_their_condition():
    records = [*seeds("a", 0.5), *seeds("a", 0.6, condition="facade00")]
    text = render(rows_and_columns(records, by_pair=True), "plain")
    assert "\nbig → small on scenes [c0ffee]\n" in text and "\nbig → small on scenes [facade]\n" in text


def test_a_group_that_lacks_a_column_of_another_shows_it_as_missing():
    records = [*seeds("a", 0.5), *seeds("b", 0.4, student="tiny", condition="facade00", task="seg")]
    lines = {
        line.split()[0]: line.split()
        for line in render(rows_and_columns(records, by_pair=True), "plain").split("\n")
        if line
    }
    assert lines["a"] == ["a", "1", "50.0", "–"] and lines["b"] == ["b", "1", "–", "40.0"]
