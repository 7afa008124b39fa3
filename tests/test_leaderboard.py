"""The leaderboard says what the records say: no more, no less, and whatever their order or their names."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import UserError
from harness.records import Record, write_record
from harness.seeds import content_hash
from leaderboard.board import Leaderboard, Section
from leaderboard.labels import DASH, short_hashes, unique_labels
from leaderboard.ranking import mean_and_spread
from leaderboard.render import render
from leaderboard.table import rows_and_columns
from leaderboard.write import load, write

RECOGNITION = {"top1": ("fraction", "up"), "top5": ("fraction", "up")}
DEPTH = {"rmse": ("m", "down"), "delta1": ("fraction", "up")}


def record(
    label: str,
    seed: int = 0,
    value: float | None = 0.5,
    *,
    task: str = "cls",
    metrics: dict[str, tuple[str, str]] = RECOGNITION,
    second: float | None = None,
    kind: str = "student",
    protocol: dict[str, Any] | None = None,
    condition: str = "c0ffee00",
    student: str = "small",
    hyperparameters: dict[str, Any] | None = None,
    source: str = "v1",
    origin: str = "measured",
    run: str = "",
    teacher: str = "big",
    task_kind: str = "any",
    **cost: Any,
) -> Record:
    """One record; what is not given is equal for all, so that rows and columns differ only where a test says."""
    names = list(metrics)
    measured = {names[0]: value, names[1]: second}
    protocol = protocol if protocol is not None else {"set": task}
    spec = {"method": label, "source": source, "hyperparameters": hyperparameters or {}, "seed": seed}
    fields = dict(
        task=task,
        task_kind=task_kind,
        task_id=content_hash(protocol),
        metrics={name: {"unit": unit, "direction": way} for name, (unit, way) in metrics.items()},
        values={name: number for name, number in measured.items() if number is not None},
        protocol=protocol,
        run={
            "id": run or content_hash([spec, kind, condition, origin, student, teacher]),
            "kind": kind,
            "label": label,
            "method": label,
            "seed": seed,
            "teacher": teacher,
            "student": student,
            "data": "scenes",
            "condition": condition,
            "hyperparameters": hyperparameters or {},
            "spec": spec,
        },
        cost=cost,
        seed=seed,
        origin=origin,
    )
    return Record.model_validate(fields)


def seeds(label: str, *values: float, **rest: Any) -> list[Record]:
    return [record(label, seed, value, **rest) for seed, value in enumerate(values)]


def only(board: Leaderboard) -> Section:
    (section,) = board.sections
    return section


def table(records: list[Record], **options: Any) -> dict[str, list[str]]:
    """Row's name -> its cells in the plain format of the only section, split at the columns."""
    text = render(rows_and_columns(records, **options), "plain").split("\n")
    rule = next(i for i, line in enumerate(text) if line.startswith("---"))
    spans, start = [], 0
    for dashes in text[rule].split():
        start = text[rule].index(dashes, start)
        spans.append((start, start + len(dashes)))
        start += len(dashes)

    def cells(line: str) -> list[str]:
        return [" ".join(line[a:b].split()) for a, b in spans]

    head = [" ".join(filter(None, parts)) for parts in zip(*map(cells, text[2:rule]), strict=True)]
    lines = [head, *map(cells, text[rule + 1 : text.index("", rule)])]
    return {line[0]: line[1:] for line in lines}


def test_evaluation_seconds_add_up_over_tasks_and_average_over_seeds() -> None:
    records = [record("a", s, task=t, evaluation_s=e) for s, t, e in [(0, "x", 1), (0, "y", 3), (1, "x", 8)]]
    (row,) = only(rows_and_columns(records)).rows
    assert row.costs.evaluation_s == 6.0


@given(st.lists(st.just(0.0) | st.floats(1e-100, 1e150) | st.floats(-1e150, -1e-100), min_size=2, max_size=6))
def test_mean_and_spread_are_the_textbook_ones(values: list[float]) -> None:
    mean, spread = mean_and_spread(values)
    largest = max(map(abs, values))
    assert spread is not None
    assert math.isclose(mean, statistics.mean(values), rel_tol=1e-9, abs_tol=1e-12 * largest)
    assert math.isclose(spread, statistics.stdev(values), rel_tol=1e-6, abs_tol=1e-12 * largest)


def test_one_seed_has_no_spread_and_equal_seeds_have_one_of_zero() -> None:
    cells = table([*seeds("one", 0.5), *seeds("same", 0.5, 0.5)])
    assert cells["one"][1] == "50.0*"
    assert cells["same"][1] == "50.0* ± 0.0"


def test_missing_is_shown_and_never_averaged_over() -> None:
    records = [*seeds("full", 0.6, 0.6), *seeds("full", 0.6, 0.6, task="depth"), *seeds("half", 0.9, 0.9)]
    section = only(rows_and_columns(records))
    cells = table(records)
    assert cells["half"] == ["2", "90.0* ± 0.0", DASH, DASH]
    assert cells["full"][-1] == DASH  # nobody to be ranked against
    assert [row.average_rank for row in section.rows] == [None, None]
    assert "half lacks depth" in render(rows_and_columns(records))


def test_incomplete_rows_do_not_move_the_ranks_of_the_complete() -> None:
    complete = [r for t in "ab" for r in (record("x", value=0.6, task=t), record("y", value=0.5, task=t))]
    ranks = {
        row.label: row.average_rank
        for row in only(rows_and_columns([*complete, record("z", value=0.55, task="a")])).rows
    }
    assert ranks == {"x": 1.0, "y": 2.0, "z": None}


def test_a_missing_seed_is_counted_in_its_cell() -> None:
    records = [*seeds("a", 0.5, 0.6, 0.7), *seeds("a", 0.5, 0.6, task="depth")]
    assert table(records)["a"] == ["3", "60.0 ± 10.0", "55.0 ± 7.1 (2 of 3)"]
    assert "only two of the row" in render(rows_and_columns(records))


def test_a_metric_that_a_record_lacks_is_missing() -> None:
    records = [record("a", second=0.9), record("b")]
    cells = table(records, metrics=["top5"])
    assert (cells["a"][1], cells["b"][1]) == ("90.0", "n/a")
    assert "(n/a): b lacks cls." in render(rows_and_columns(records, metrics=["top5"]))
    assert "b lacks cls (top5)" in render(rows_and_columns(records, metrics="all"))


def test_different_protocols_never_share_a_column() -> None:
    records = [record("a", value=0.5, protocol={"px": 224}), record("b", value=0.9, protocol={"px": 512})]
    cells = table(records)
    one, other = content_hash({"px": 224})[:6], content_hash({"px": 512})[:6]
    assert {f"cls [{one}] top1 (%) ↑", f"cls [{other}] top1 (%) ↑"} < set(cells["method"])
    assert cells["a"].count(DASH) == 2 and cells["b"].count(DASH) == 2  # the other's column, and the rank
    assert not any(cell and cell.best for line in only(rows_and_columns(records)).cells for cell in line)
    assert "several protocols" in render(rows_and_columns(records))


def test_protocols_are_told_apart_across_sections_too() -> None:
    records = [record("a", protocol={"px": 1}), record("a", protocol={"px": 2}, condition="other")]
    titles = [column.title for section in rows_and_columns(records).sections for column in section.columns]
    assert len(set(titles)) == 2


def test_one_metric_in_two_units_makes_two_columns() -> None:
    protocol = {"set": "x"}
    records = [
        record("a", metrics={"e": ("m", "down"), "f": ("m", "down")}, protocol=protocol),
        record("b", metrics={"e": ("cm", "down"), "f": ("m", "down")}, protocol=protocol),
    ]
    assert [c.unit for c in only(rows_and_columns(records)).columns] == ["cm", "m"]


def test_all_ties_are_best_and_share_their_rank() -> None:
    records = [record("a", value=0.7), record("b", value=0.7), record("c", value=0.6)]
    section = only(rows_and_columns(records))
    assert [
        (r.label, r.average_rank, line[0] and line[0].best) for r, line in zip(section.rows, section.cells, strict=True)
    ] == [
        ("a", 1.5, True),
        ("b", 1.5, True),
        ("c", 3.0, False),
    ]


def test_rounding_errors_do_not_break_a_tie() -> None:
    section = only(rows_and_columns([*seeds("a", 0.1, 0.2, 0.3), *seeds("b", 0.2, 0.2, 0.2)]))
    assert all(line[0] and line[0].best for line in section.cells)


@pytest.mark.parametrize(("direction", "best"), [("up", "high"), ("down", "low")])
def test_the_best_is_the_best_in_the_declared_direction(direction: str, best: str) -> None:
    metrics = {"m": ("ratio", direction), "n": ("ratio", direction)}
    records = [record("low", value=1.0, metrics=metrics), record("high", value=2.0, metrics=metrics)]
    section = only(rows_and_columns(records))
    assert [row.label for row, line in zip(section.rows, section.cells, strict=True) if line[0] and line[0].best] == [
        best
    ]
    assert section.rows[0].label == best and section.rows[0].average_rank == 1.0


def test_bounds_and_reported_numbers_are_never_best_nor_ranked() -> None:
    records = [
        record("a", value=0.5),
        record("b", value=0.6),
        record("teacher", value=0.9, kind="teacher", student=""),
        record("untrained", value=0.8, kind="untrained"),
        record("paper", value=0.95, origin="reported"),
    ]
    section = only(rows_and_columns(records))
    best = [row.label for row, line in zip(section.rows, section.cells, strict=True) if line[0] and line[0].best]
    assert best == ["b"]
    assert [(row.label, row.average_rank) for row in section.rows] == [
        ("teacher", None),
        ("b", 1.0),
        ("a", 2.0),
        ("paper", None),
        ("untrained", None),
    ]
    assert list(table(records)) == ["method", "teacher (bound)", "b", "a", "paper (reported)", "untrained (bound)"]


def test_a_column_that_only_others_have_does_not_make_students_incomplete() -> None:
    records = [record("a"), record("b"), record("paper", origin="reported", task="theirs")]
    assert all(row.average_rank == 1.5 for row in only(rows_and_columns(records)).rows if row.competes)


def test_one_student_alone_is_not_best() -> None:
    board = rows_and_columns([record("a"), record("teacher", kind="teacher", student="")])
    assert "avg. rank" not in render(board) and "**" not in render(board)


def test_conditions_never_share_a_table() -> None:
    board = rows_and_columns([record("a", value=0.5), record("b", value=0.6, condition="facade00")])
    assert [[row.label for row in section.rows] for section in board.sections] == [["a"], ["b"]]
    text = render(board)
    assert "### big → small on scenes \\[c0ffee\\]" in text and "\\[facade\\]" in text


def test_a_teacher_measured_outside_is_borrowed_for_the_tables_of_its_students() -> None:
    bound = record("teacher", value=0.9, kind="teacher", student="", condition="none")
    stranger = record("teacher", value=0.9, kind="teacher", student="", condition="none", task="other", run="ff")
    board = rows_and_columns([record("a"), record("b", condition="facade00"), bound, stranger])
    for section in board.sections:
        assert [(row.label, row.borrowed) for row in section.rows][:1] == [("teacher", True)]
        assert [column.title for column in section.columns] == ["cls"]
    assert "outside this condition: teacher" in render(board)


def test_a_bound_of_the_condition_is_not_borrowed_by_another() -> None:
    bound = record("teacher", kind="teacher", student="")
    board = rows_and_columns([record("a"), record("b", condition="facade00"), bound])
    assert [len(section.rows) for section in board.sections] == [2, 1]


def test_rows_of_one_name_and_other_hyperparameters_are_told_apart_by_them() -> None:
    records = [
        *seeds("singer", 0.5, 0.6, hyperparameters={"rank": 8, "w": 1.0}),
        *seeds("singer", 0.7, 0.8, hyperparameters={"rank": 16, "w": 1.0}),
    ]
    assert table(records)["singer (rank=8)"][1] == "55.0 ± 7.1"
    assert table(records)["singer (rank=16)"][1] == "75.0* ± 7.1"


def test_rows_of_one_name_with_nothing_to_show_for_it_are_told_apart_by_a_hash() -> None:
    section = only(rows_and_columns([*seeds("a", 0.5, 0.6), *seeds("a", 0.7, source="v2")]))
    labels = [row.label for row in section.rows]
    assert len(set(labels)) == 2 and all(label.startswith("a [") for label in labels)


def test_a_name_that_imitates_another_row_is_told_apart() -> None:
    records = [record("a", hyperparameters={"r": 1}), record("a", hyperparameters={"r": 2}), record("a (r=1)")]
    labels = [row.label for row in only(rows_and_columns(records)).rows]
    assert len(set(labels)) == 3 and "a (r=2)" in labels


def test_one_seed_twice_is_never_counted_as_two() -> None:
    records = [record("a", 0, 0.5, run="aa"), record("a", 0, 0.7, run="bb")]
    assert [len(row.runs) for row in only(rows_and_columns(records)).rows] == [1, 1]
    with pytest.raises(ValueError, match="two records of run aa"):
        rows_and_columns([record("a", run="aa"), record("b", run="aa")])


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "a ", "b", "a (r=1)"]), st.dictionaries(st.sampled_from("rs"), st.integers(0, 2))
        )
    )
)
def test_labels_are_unique_whatever_the_names(rows: list[tuple[str, dict[str, int]]]) -> None:
    named = {i: (label, values, content_hash([i])) for i, (label, values) in enumerate(rows)}
    assert len(set(unique_labels(named).values())) == len(rows)


@given(st.sets(st.text("ab", min_size=8, max_size=8)))
def test_short_hashes_stay_different(hashes: set[str]) -> None:
    short = short_hashes(hashes)
    assert len(set(short.values())) == len(hashes) and all(h.startswith(s) for h, s in short.items())


def test_a_board_without_records_says_so() -> None:
    for name in ("markdown", "plain", "latex"):
        assert "no records" in render(rows_and_columns([]), name)
    assert json.loads(render(rows_and_columns([]), "json"))["sections"] == []


def test_the_workspace_is_written_with_what_could_not_be_read(tmp_path: Path) -> None:
    for made in seeds("a", 0.5, 0.6):
        write_record(tmp_path / "records", made)
    (tmp_path / "records" / "bad.json").write_text('{"schema_version": 1, ')
    paths = write(tmp_path)
    assert [path.name for path in paths] == ["leaderboard.md", "leaderboard.csv"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["leaderboard.csv", "leaderboard.md", "records"]
    assert "bad.json: cut short" in paths[0].read_text()
    assert [render(load(tmp_path), format) for format in ("markdown", "csv")] == [path.read_text() for path in paths]


def test_a_workspace_without_records_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no records in .*run an experiment"):
        write(tmp_path)
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "bad.json").write_text("{")
    with pytest.raises(UserError, match=r"bad\.json: cut short"):
        write(tmp_path)
    with pytest.raises(UserError, match="no table format 'html'"):
        write(tmp_path, ["html"])
    assert [p.name for p in tmp_path.iterdir()] == ["records"]
