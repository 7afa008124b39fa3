"""Rows and columns by name: what is asked for is shown, in that order, and nothing else is marked or ranked."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_leaderboard import DEPTH, only, record, seeds, table

from harness.errors import UserError
from harness.records import Record
from harness.seeds import content_hash
from leaderboard.choice import names
from leaderboard.legend import hints
from leaderboard.render import render
from leaderboard.table import rows_and_columns

OLD, NEW = {"steps": 100}, {"steps": 200}


def grid() -> list[Record]:
    """Four students on three tasks, a metric beside the first one, and bounds. a is best, d worst."""
    records = []
    for place, label in enumerate(("a", "b", "c", "warm, slow")):
        for task in ("cls", "depth", "seg"):
            metrics = DEPTH if task == "depth" else {"top1": ("fraction", "up"), "top5": ("fraction", "up")}
            value = 0.4 + place / 10 if task == "depth" else 0.6 - place / 10
            records.append(record(label, 0, value, task=task, metrics=metrics, second=0.9))
    return [*records, record("teacher", value=0.9, kind="teacher", student="", task="cls")]


def rows(**options: Any) -> list[str]:
    return [row.label for row in only(rows_and_columns(grid(), **options)).rows]


def columns(records: list[Record] | None = None, **options: Any) -> list[tuple[str, str]]:
    return [(c.title, c.metric) for c in only(rows_and_columns(records or grid(), **options)).columns]


def test_everything_is_shown_where_nothing_is_chosen():
    assert rows() == ["teacher", "a", "b", "c", "warm, slow"]
    assert columns() == [("cls", "top1"), ("depth", "rmse"), ("seg", "top1")]


@pytest.mark.parametrize(
    ("named", "shown"),
    [
        ("b,a", ["b", "a"]),
        (" b , a ,", ["b", "a"]),
        (["c", "teacher"], ["c", "teacher"]),
        ("warm, slow,a", ["warm, slow", "a"]),
        ("[bc],*", ["b", "c", "teacher", "a", "warm, slow"]),  # each once, where it is named first
        ("w*", ["warm, slow"]),
    ],
)
def test_rows_are_those_that_are_named_in_that_order(named, shown):
    assert rows(rows=named) == shown


def test_marks_and_ranks_are_among_the_rows_that_are_shown():
    section = only(rows_and_columns(grid(), rows="c,b,warm*"))
    by_label = {row.label: (row, cells[0]) for row, cells in zip(section.rows, section.cells, strict=True)}
    assert {label: row.average_rank for label, (row, _) in by_label.items()} == {"b": 1.0, "c": 2.0, "warm, slow": 3.0}
    assert [label for label, (_, cell) in by_label.items() if cell and cell.best] == ["b"]
    assert [label for label, (_, cell) in by_label.items() if cell and cell.second] == ["c"]
    text = render(rows_and_columns(grid(), rows="c,b"))
    assert "Left out by choice: 3 rows; marks and ranks are among those that are shown." in text
    assert "Left out" not in render(rows_and_columns(grid()))


def test_a_methods_name_stands_for_its_rows_where_no_row_is_called_so():
    records = [*seeds("kd", 0.5, hyperparameters={"t": 1}), *seeds("kd", 0.6, hyperparameters={"t": 2}), record("x")]
    board = rows_and_columns(records, rows="kd")
    assert [row.label for row in only(board).rows] == ["kd (t=2)", "kd (t=1)"]
    records = [one.model_copy(update={"run": one.run.model_copy(update={"label": "mine"})}) for one in seeds("kd", 0.5)]
    assert [row.label for row in only(rows_and_columns([*records, record("x")], rows="kd")).rows] == ["mine"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": "a,teachr"}, "no row 'teachr'; did you mean 'teacher'?"),
        ({"rows": "z*"}, "no row 'z*'"),
        ({"tasks": "cls,dpth"}, "no task 'dpth'; did you mean 'depth'?"),
        ({"metrics": ["top_5"]}, "no metric 'top_5'; did you mean 'top5'?"),
        ({"metrics": "primry"}, "no metric 'primry'; did you mean 'primary'?"),
        ({"exclude": "sge"}, "--exclude: no row, task or metric 'sge'; did you mean 'seg'?"),
        ({"tasks": "cls", "exclude": "cls"}, "nothing is left to show"),
        ({"rows": "a", "exclude": "a"}, "nothing is left to show"),
        ({"exclude": "*"}, "nothing is left to show"),
    ],
)
def test_a_name_that_nothing_is_called_is_refused_with_the_nearest(options, message):
    with pytest.raises(UserError) as refused:
        rows_and_columns(grid(), **options)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({"tasks": "seg,cls"}, [("seg", "top1"), ("cls", "top1")]),
        ({"tasks": "*s*"}, [("cls", "top1"), ("seg", "top1")]),
        ({"metrics": "top5"}, [("cls", "top5"), ("seg", "top5")]),
        ({"metrics": "top5,top1"}, [("cls", "top5"), ("cls", "top1"), ("seg", "top5"), ("seg", "top1")]),
        ({"metrics": "delta*,primary"}, [("cls", "top1"), ("depth", "delta1"), ("depth", "rmse"), ("seg", "top1")]),
        ({"metrics": "all", "tasks": "depth"}, [("depth", "rmse"), ("depth", "delta1")]),
        ({"metrics": "all", "exclude": "top5,depth"}, [("cls", "top1"), ("seg", "top1")]),
    ],
)
def test_columns_are_those_that_are_named_in_that_order(options, shown):
    assert columns(**options) == shown


def test_what_is_excluded_is_a_row_a_task_or_a_metric():
    board = rows_and_columns(grid(), metrics="all", exclude="warm, slow,seg,top5,teacher")
    section = only(board)
    assert [row.label for row in section.rows] == ["a", "b", "c"]
    assert [(c.title, c.metric) for c in section.columns] == [("cls", "top1"), ("depth", "rmse"), ("depth", "delta1")]


def test_ranks_are_over_the_columns_that_are_shown():
    records = [*grid(), *seeds("half", 0.7, task="cls")]
    found = {row.label: row.average_rank for row in only(rows_and_columns(records, tasks="cls")).rows}
    assert found["half"] == 1.0 and found["a"] == 2.0
    assert {row.label: row.average_rank for row in only(rows_and_columns(records)).rows}["half"] is None
    assert "avg. rank" not in render(rows_and_columns(records, metrics="top5"))  # no first metric is shown


def test_a_row_without_a_number_in_the_chosen_columns_stays_and_says_so():
    records = [*grid(), *seeds("half", 0.7, task="cls")]
    assert table(records, tasks="seg")["half"] == ["1", "–", "–"]


def protocols() -> list[Record]:
    """One task under two protocols, and another one."""
    old, new = ({"task": "cls", "protocol": protocol} for protocol in (OLD, NEW))
    return [
        *seeds("a", 0.5, **old),
        *seeds("b", 0.6, **old),
        *seeds("a", 0.7, **new),
        *seeds("b", 0.8, **new),
        *seeds("a", 0.1, task="seg"),
        *seeds("b", 0.2, task="seg"),
    ]


@pytest.mark.parametrize("choice", ["tasks", "exclude"])
@pytest.mark.parametrize("digits", [4, 6, 16])
def test_an_old_protocol_is_left_out_by_the_first_digits_of_its_id_and_the_title_is_whole_again(choice, digits):
    old, new = content_hash(OLD), content_hash(NEW)
    assert {title for title, _ in columns(protocols())} == {f"cls [{old[:6]}]", f"cls [{new[:6]}]", "seg"}
    named = f"{new[:digits]},seg" if choice == "tasks" else old[:digits]
    section = only(rows_and_columns(protocols(), **{choice: named}))
    assert [(c.title, c.task_id) for c in section.columns if c.title != "seg"] == [("cls", new)]


def test_a_title_a_label_and_a_glob_mean_what_they_say():
    old, new = (f"cls [{content_hash(protocol)[:6]}]" for protocol in (OLD, NEW))
    both = sorted([old, new])
    assert [t for t, _ in columns(protocols(), tasks=old)] == ["cls"]
    for name in ("cls", "cls *"):
        assert sorted(t for t, _ in columns(protocols(), tasks=name)) == both


def test_a_task_in_two_columns_is_hinted_at_and_the_hint_helps():
    board = rows_and_columns(protocols())
    (hint,) = hints(board)
    first = min(content_hash(OLD), content_hash(NEW))
    assert (
        hint.startswith("cls stands in 2 columns") and f"`--tasks {first}`" in hint and f"`--exclude {first}`" in hint
    )
    assert hints(rows_and_columns(protocols(), exclude=first)) == []
    assert hints(rows_and_columns(grid())) == []


def test_a_gap_may_be_between_rows_that_are_not_shown():
    section = only(rows_and_columns(grid(), rows="b", gap=("c", "a")))
    assert [row.label for row in section.rows] == ["b"]
    assert section.gaps[0].cells[0] is not None and section.gaps[0].cells[0].mean == pytest.approx(0.5)


def test_a_table_of_which_no_row_is_named_is_not_shown():
    records = [*grid(), *seeds("x", 0.5, condition="facade00")]
    board = rows_and_columns(records, rows="x")
    assert [[row.label for row in section.rows] for section in board.sections] == [["x"]]


@given(
    st.lists(
        st.text("ab ,*", min_size=1, max_size=5).filter(lambda t: t == t.strip(" ,") != ""), min_size=1, max_size=5
    )
)
def test_known_names_are_found_whatever_commas_they_have(known):
    found = names(", ".join(known), set(known))
    assert set(found) <= set(known) and len(found) <= len(known)
    # "a, b,c" may be "a" and "b,c" or "a, b" and "c", where all four are known; no letter is lost either way.
    assert ",".join(found).replace(" ", "") == ",".join(known).replace(" ", "")


def test_a_name_with_commas_does_not_swallow_the_next():
    assert names("aa, a, aa, a,a", ["aa, a", "aa", "a,a"]) == ["aa, a", "aa", "a,a"]
    assert names("a, b, c", ["a, b", "b, c"]) == ["a, b", "c"]
    assert names("a,, b,", ["b"]) == ["a", "b"]


def test_a_bound_from_elsewhere_is_left_out_where_no_chosen_column_has_a_number_of_it():
    bound = record("teacher", value=0.9, kind="teacher", student="", condition="none")
    records = [*seeds("a", 0.5), *seeds("a", 0.4, task="seg"), bound]
    assert [row.label for row in only(rows_and_columns(records)).rows] == ["teacher", "a"]
    assert [row.label for row in only(rows_and_columns(records, tasks="seg")).rows] == ["a"]
    assert "Left out" not in render(rows_and_columns(records, tasks="seg"))
