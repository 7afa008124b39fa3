"""What a row recovers of a gap, by numbers worked out by hand; and the column of trials."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_leaderboard import DEPTH, only, record, seeds

from harness.cli import main as cli
from harness.errors import UserError
from harness.records import Record, read_record, write_record
from leaderboard.board import Row
from leaderboard.gap import recovered
from leaderboard.labels import DASH
from leaderboard.render import FORMATS, render
from leaderboard.table import rows_and_columns

LOW, HIGH, ROW = (0.40, 0.42, 0.41), (0.60, 0.60, 0.63), (0.50, 0.54, 0.52)
# Gaps .20, .18, .22: mean .20, spread .02. Gained .10, .12, .11: mean .11. Each seed's own share 1/2, 2/3, 1/2.
SHARE, SPREAD = 0.55, math.sqrt(1 / 108)


def of(*values: float, first: int = 0) -> dict[int, float]:
    return dict(enumerate(values, first))


def grid(**rows: tuple[float, ...]) -> list[Record]:
    return [one for label, values in rows.items() for one in seeds(label, *values)]


def shares(records: list[Record], low: str = "low", high: str = "high") -> dict[str, tuple[float, float | None, int]]:
    section = only(rows_and_columns(records, gap=(low, high)))
    (gap,) = section.gaps
    rows: tuple[Row, ...] = section.rows
    return {
        row.label: (cell.mean, cell.spread, cell.n)
        for row, cell in zip(rows, gap.cells, strict=True)
        if cell is not None
    }


def test_a_share_is_a_ratio_of_means_and_its_spread_that_of_each_seeds_own():
    cell = recovered(of(*ROW), of(*LOW), of(*HIGH), "up")
    assert cell is not None and cell.n == 3
    assert cell.mean == pytest.approx(SHARE, abs=1e-12)  # the mean of ratios would be 5/9
    assert cell.spread == pytest.approx(SPREAD, abs=1e-12)


def test_seeds_are_paired_and_only_those_that_all_three_have_count():
    cell = recovered(of(9.0, 0.54, 0.52), of(0.42, 0.41, 9.0, first=1), of(0.60, 0.60, 0.63), "up")
    assert cell is not None and cell.n == 2
    # Gaps .18, .22; gained .12, .11.
    assert cell.mean == pytest.approx(0.115 / 0.20) and cell.spread == pytest.approx((2 / 3 - 1 / 2) / math.sqrt(2))
    assert recovered(of(0.5), of(0.4, first=1), of(0.6), "up") is None


def test_of_a_metric_that_goes_down_less_is_more():
    cell = recovered(of(0.7), of(0.8), of(0.4), "down")
    assert cell is not None and cell.mean == pytest.approx(0.25) and cell.spread is None and cell.n == 1
    assert recovered(of(0.7), of(0.8), of(0.4), "up") is None  # the "upper" row is worse: no gap


def test_a_gap_that_is_not_larger_than_its_spread_is_none():
    low, high = of(0.40, 0.40, 0.40), of(0.41, 0.70, 0.30)  # gaps .01, .30, -.10: mean .07, spread .2066
    assert recovered(of(0.5, 0.5, 0.5), low, high, "up") is None
    assert recovered(of(0.5), of(0.4), of(0.4), "up") is None
    assert recovered(of(0.5, 0.5), of(0.3, 0.3), of(0.1 + 0.2, 0.1 + 0.2), "up") is None  # rounding is no gap


def test_where_one_seeds_own_gap_is_noise_there_is_a_share_and_no_spread():
    low, high = of(0.40, 0.40, 0.40), of(0.41, 0.60, 0.65)  # gaps .01, .20, .25: mean .1533, spread .1266
    cell = recovered(of(0.46, 0.46, 0.46), low, high, "up")
    assert cell is not None and cell.mean == pytest.approx(0.06 / (0.46 / 3)) and cell.spread is None


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(*[st.floats(-1, 1)] * 2, st.floats(0.5, 1)), min_size=1, max_size=5),
    st.floats(0.1, 10),
    st.floats(-5, 5),
)
def test_the_ends_are_0_and_1_and_the_scale_of_the_metric_does_not_matter(triples, scale, shift):
    row, low = (of(*column) for column in list(zip(*triples, strict=True))[:2])
    high = {seed: low[seed] + 10 + triples[seed][2] for seed in low}
    cell = recovered(row, low, high, "up")
    assert cell is not None
    for end, value in ((low, 0.0), (high, 1.0)):
        found = recovered(end, low, high, "up")
        assert found is not None and found.mean == pytest.approx(value)
        assert found.spread is None if len(triples) == 1 else found.spread == pytest.approx(0, abs=1e-12)
    other = recovered(
        *({s: -(scale * v + shift) for s, v in values.items()} for values in (row, low, high)), direction="down"
    )
    assert other is not None and other.mean == pytest.approx(cell.mean, abs=1e-9)


def test_every_row_of_a_table_has_its_share_in_every_format():
    records = grid(low=LOW, high=HIGH, mine=ROW, missing=())
    records.append(record("bare", 7, 0.5))  # a seed that the others lack
    found = shares(records)
    assert found["mine"] == (pytest.approx(SHARE), pytest.approx(SPREAD), 3)
    assert found["low"] == (0, 0, 3) and found["high"] == (pytest.approx(1), pytest.approx(0, abs=1e-12), 3)
    assert "bare" not in found
    board = rows_and_columns(records, gap=("low", "high"))
    text = {format: render(board, format) for format in FORMATS}
    assert all("recovered" in text[format] or format == "json" for format in FORMATS)
    for format, shown in (
        ("markdown", "55.0 ± 9.6"),
        ("plain", "55.0 ± 9.6"),
        ("latex", r"\num{55.0} $\pm$ \num{9.6}"),
    ):
        (line,) = [line for line in text[format].splitlines() if line.strip("| ").startswith("mine")]
        assert shown in line
    (bare,) = [line for line in text["plain"].splitlines() if line.startswith("bare")]
    assert DASH in bare
    assert "low: low, high: high" in text["plain"] and f"{DASH} under recovered" in text["plain"]
    row = next(line for line in csv.DictReader(io.StringIO(text["csv"])) if line["label"] == "mine")
    assert float(row["cls top1 recovered of low to high mean"]) == pytest.approx(SHARE)
    assert row["cls top1 recovered of low to high n"] == "3"
    (section,) = json.loads(text["json"])["sections"]
    assert len(section["gaps"][0]["cells"]) == len(section["rows"]) == 4


def test_without_being_asked_no_table_speaks_of_gaps_or_trials():
    for format in set(FORMATS) - {"json"}:
        text = render(rows_and_columns(grid(low=LOW, high=HIGH)), format)
        assert "recovered" not in text and "trials" not in text


def test_each_first_metric_that_ranks_has_its_column_and_each_table_its_own_gap():
    records = grid(low=LOW, high=HIGH, mine=ROW)
    for label, value in (("low", 0.8), ("high", 0.4), ("mine", 0.7)):
        records += seeds(label, value, value, task="depth", metrics=DEPTH)
    records += [record("low", 0, 0.1, condition="other"), record("else", 0, 0.2, condition="other")]
    first, other = rows_and_columns(records, gap=("low", "high")).sections
    if len(first.rows) == 2:
        first, other = other, first
    assert [gap.column.metric for gap in first.gaps] == ["top1", "rmse"] and other.gaps == ()
    mine = [row.label for row in first.rows].index("mine")
    assert first.gaps[1].cells[mine].mean == pytest.approx(0.25)  # type: ignore[union-attr]


def test_a_teachers_one_run_stands_for_every_seed():
    records = [*grid(low=LOW, mine=ROW), record("teacher", 0, 0.80, kind="teacher")]
    found = shares(records, "low", "teacher")
    assert found["mine"][0] == pytest.approx(0.11 / 0.39) and found["mine"][2] == 3
    assert found["teacher"][0] == pytest.approx(1) and found["teacher"][2] == 1


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        ("lw", "high", "--gap: no row 'lw'; did you mean 'low'? Known: alone, high, low, mine"),
        ("low", "hihg", "no row 'hihg'; did you mean 'high'?"),
        ("low", "low", "'low' is named twice"),
        ("low", "alone", "no table has both 'low' and 'alone'"),
    ],
)
def test_rows_that_are_not_there_are_errors_that_name_the_nearest(low, high, said):
    records = [*grid(low=LOW, high=HIGH, mine=ROW), record("alone", 0, 0.1, condition="other")]
    with pytest.raises(UserError) as caught:
        rows_and_columns(records, gap=(low, high))
    assert said in str(caught.value)


def test_the_command_line_takes_two_labels(tmp_path, capsys, monkeypatch):
    for one in grid(low=LOW, high=HIGH, mine=ROW):
        write_record(tmp_path / "records", one)
    for labels, code, said in (
        (("low", "high"), 0, "55.0 ± 9.6"),
        (("low", "hgh"), 2, "did you mean 'high'?"),
    ):
        monkeypatch.setattr(sys, "argv", ["singer-bench", "table", str(tmp_path), "--gap", *labels])
        try:
            cli.main()
            found = 0
        except SystemExit as done:
            found = done.code
        out = capsys.readouterr()
        assert found == code and said in (out.err if code else out.out)


def _tuned(one: Record, trials: int | None) -> Record:
    return one.model_copy(update={"run": one.run.model_copy(update={"trials": trials})})


def test_trials_are_a_column_where_a_row_was_tuned():
    records = [*seeds("plain", 0.1, 0.2), *(_tuned(one, 16) for one in seeds("tuned", 0.3, 0.4))]
    board = rows_and_columns(records)
    text = render(board, "plain").splitlines()
    header = next(line for line in text if line.startswith("method"))
    assert header.split()[:3] == ["method", "seeds", "trials"]
    cells = {line.split()[0]: line.split()[2] for line in text if line.startswith(("plain", "tuned"))}
    assert cells == {"plain": DASH, "tuned": "16"}
    assert any("trials: settings among which" in line for line in text)
    found = {row["label"]: row["trials"] for row in csv.DictReader(io.StringIO(render(board, "csv")))}
    assert found == {"plain": "", "tuned": "16"}


def test_a_record_from_before_there_were_trials_can_still_be_read(tmp_path: Path):
    one = record("old")
    path = write_record(tmp_path, one)
    plain = {**json.loads(path.read_text()), "schema_version": 1}
    del plain["run"]["trials"], plain["sha256"]
    path.write_text(json.dumps(plain))
    assert read_record(path) == one and one.run.trials is None
