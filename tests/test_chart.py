"""The bar chart shows what the table says."""

from __future__ import annotations

import pytest

from harness.errors import UserError
from harness.records import Cost, MetricInfo, Record, RunInfo
from leaderboard.chart import chart
from leaderboard.table import rows_and_columns


def record(label: str, seed: int, top1: float, kind: str = "student") -> Record:
    run = RunInfo(
        id=f"{label}{seed}",
        kind=kind,  # type: ignore[arg-type]
        label=label,
        method=label,
        seed=seed,
        teacher="large",
        student="" if kind == "teacher" else "small",
        data="images",
        condition="c",
    )
    metrics = {"top1": MetricInfo(unit="fraction", direction="up"), "rmse": MetricInfo(unit="m", direction="down")}
    return Record(
        task="classification",
        task_kind="classification",
        task_id="t",
        metrics=metrics,
        values={"top1": top1, "rmse": 1 - top1},
        protocol={},
        run=run,
        cost=Cost(),
        seed=seed,
    )


def board(metrics="primary"):
    records = [record("fitnet", s, 0.2 + s / 100) for s in (0, 1)] + [record("singer", s, 0.4) for s in (0, 1)]
    return rows_and_columns([*records, record("teacher", 0, 0.7, "teacher")], metrics=metrics)


def drawn(path) -> str:
    return path.read_text()


def test_bars_are_ordered_and_named_and_bounds_are_lines(tmp_path, monkeypatch):
    import matplotlib

    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "none")  # words stay words
    svg = drawn(chart(board(), tmp_path / "chart.svg"))
    assert svg.index(">fitnet<") < svg.index(">singer<") and ">teacher: 70<" in svg
    assert "classification top1 (%), higher is better" in svg and "large to small, images" in svg


def test_another_metric_may_be_drawn(tmp_path, monkeypatch):
    import matplotlib

    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "none")
    svg = drawn(chart(board("all"), tmp_path / "chart.svg", "rmse"))
    assert "classification rmse (m), lower is better" in svg
    assert svg.index(">fitnet<") < svg.index(">singer<")  # the best on top, whichever way that is


def test_one_seed_has_no_error_bar_and_ties_are_no_mistake(tmp_path, monkeypatch):
    from matplotlib import pyplot

    figures = []
    monkeypatch.setattr(pyplot, "close", figures.append)  # looked at before it is thrown away
    records = [record("fitnet", s, 0.2 + s / 100) for s in (0, 1)] + [record("once", 0, 0.205)]
    chart(rows_and_columns(records), tmp_path / "chart.svg")
    (axes,) = figures[0].axes
    (bars,) = (container for container in axes.containers if getattr(container, "errorbar", None) is not None)
    errors = [segment[:, 0] for segment in bars.errorbar.lines[2][0].get_segments() if segment.ndim == 2]
    monkeypatch.undo()
    pyplot.close("all")
    drawn_widths = [abs(x[1] - x[0]) for x in errors if len(x) == 2 and x[0] == x[0]]
    assert len(drawn_widths) == 1 and drawn_widths[0] > 1


def test_mistakes_are_named(tmp_path):
    with pytest.raises(UserError, match="no metric 'topp1'; did you mean 'top1'"):
        chart(board(), tmp_path / "x.png", "topp1")
    with pytest.raises(UserError, match="cannot write"):
        chart(board(), tmp_path / "x.nonsense")
    with pytest.raises(UserError, match="no student"):
        chart(rows_and_columns([record("teacher", 0, 0.7, "teacher")]), tmp_path / "x.png")
