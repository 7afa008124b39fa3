"""The leaderboard says what the records say: no more, no less, and whatever their order or their names."""

from __future__ import annotations

import csv
import io
import json
import math
import random
import shutil
import statistics
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import UserError
from harness.records import Record, write_record
from harness.seeds import content_hash
from leaderboard.board import Leaderboard, Section
from leaderboard.labels import DASH, clean, short_hashes, unique_labels
from leaderboard.markup import escape_csv, escape_latex, escape_markdown
from leaderboard.numbers import number_format, three_digits
from leaderboard.ranking import mean_and_spread
from leaderboard.render import FORMATS, render
from leaderboard.table import rows_and_columns
from leaderboard.write import load, write

RECOGNITION = {"top1": ("fraction", "up"), "top5": ("fraction", "up")}
DEPTH = {"rmse": ("m", "down"), "delta1": ("fraction", "up")}
HOSTILE = [
    "=cmd|' /C calc'!A0",
    "+1+1",
    "-2",
    "@SUM(A1)",
    " =1",
    "a|b\\|c",
    "a\nb\r\n| x | y |",
    "<script>alert(1)</script>",
    "&lt;b&gt;",
    "**bold** _it_ `code` ~~x~~",
    "[link](http://evil) ![i](x) www.evil.com https://evil",
    "\\input{x} \\\\ 50% $x^2$ #1 {a} ~ & _",
    "[5pt]",
    "*",
    "# head",
    "\u202egnp.exe\x1b[31m\x00",
    "",
    "- a\n- b",
]


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
    **cost: Any,
) -> Record:
    """One record; what is not given is equal for all, so that rows and columns differ only where a test says."""
    names = list(metrics)
    measured = {names[0]: value, names[1]: second}
    protocol = protocol if protocol is not None else {"set": task}
    spec = {"method": label, "source": source, "hyperparameters": hyperparameters or {}, "seed": seed}
    fields = dict(
        task=task,
        task_kind="any",
        task_id=content_hash(protocol),
        metrics={name: {"unit": unit, "direction": way} for name, (unit, way) in metrics.items()},
        values={name: number for name, number in measured.items() if number is not None},
        protocol=protocol,
        run={
            "id": run or content_hash([spec, kind, condition, origin, student]),
            "kind": kind,
            "label": label,
            "method": label,
            "seed": seed,
            "teacher": "big",
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
    lines = text[rule - 1 : rule] + text[rule + 1 : text.index("", rule)]
    cells = [[line[a:b].strip() for a, b in spans] for line in lines]
    return {line[0]: line[1:] for line in cells}


def small() -> list[Record]:
    """Two methods, two seeds, two tasks, bounds: what the golden tables show."""
    depth: dict[str, Any] = {"task": "depth", "metrics": DEPTH, "protocol": {"summary": "linear head"}}
    return [
        *seeds("fitnet", 0.70, 0.72, own_s=10.0, teacher_s=100.0, group_size=2, method_parameters=12_345),
        *seeds("fitnet", 0.412, **depth),
        *seeds("logit_kd", 0.71, 0.73),
        *seeds("logit_kd", 0.40, 0.42, **depth),
        record("teacher", value=0.8, kind="teacher", student=""),
        record("untrained", value=0.1, kind="untrained"),
    ]


GOLDEN_MARKDOWN = f"""\
### big → small on scenes \\[c0ffee\\]

| method      |   seeds |    cls top1 (%) ↑ |    depth rmse (m) ↓ |   avg. rank |
|:------------|--------:|------------------:|--------------------:|------------:|
| *teacher*   |       1 |              80.0 |                   {DASH} |           {DASH} |
| logit_kd    |       2 |    **72.0** ± 1.4 | **0.410** ± 0.014   |        1.00 |
| fitnet      |       2 |        71.0 ± 1.4 | 0.412 (1 of 2)      |        2.00 |
| *untrained* |       1 |              10.0 |                   {DASH} |           {DASH} |
"""

GOLDEN_CSV = """\
teacher,student,data,condition,label,method,kind,origin,seeds,avg_rank,\
cls top1 (fraction) mean,cls top1 (fraction) std,cls top1 (fraction) n,\
depth rmse (m) mean,depth rmse (m) std,depth rmse (m) n
big,small,scenes,c0ffee,teacher,teacher,teacher,measured,1,,0.8,,1,,,0
big,small,scenes,c0ffee,logit_kd,logit_kd,student,measured,2,1.0,0.72,0.014142135623730963,2,0.41000000000000003,0.014142135623730925,2
big,small,scenes,c0ffee,fitnet,fitnet,student,measured,2,2.0,0.71,0.014142135623730963,2,0.412,,1
big,small,scenes,c0ffee,untrained,untrained,untrained,measured,1,,0.1,,1,,,0
"""

GOLDEN_LATEX_ROWS = [
    r"method & seeds & cls top1 (\%) $\uparrow$ & depth rmse (m) $\downarrow$ & avg. rank \\",
    r"\emph{teacher} & 1 & 80.0 & -- & -- \\",
    r"logit\_kd & 2 & \textbf{72.0} $\pm$ 1.4 & \textbf{0.410} $\pm$ 0.014 & 1.00 \\",
    r"fitnet & 2 & 71.0 $\pm$ 1.4 & 0.412 (1 of 2) & 2.00 \\",
    r"\emph{untrained} & 1 & 10.0 & -- & -- \\",
]


def squeezed(text: str) -> str:
    """Without the padding of a table."""
    return "\n".join(" ".join(line.replace("|", " | ").split()) for line in text.split("\n"))


def dashed(text: str) -> str:
    """Its rule without the width."""
    return "\n".join(line for line in squeezed(text).split("\n") if not line.startswith("| :-"))


def test_golden_markdown() -> None:
    text = render(rows_and_columns(small()), "markdown")
    head, legend = text.split("\n\n- ", 1)
    assert dashed(head) == dashed(GOLDEN_MARKDOWN).strip()
    for sentence in (
        "sample standard deviation (n - 1)",
        "A cell without ± is one seed",
        "The best mean of a column is bold",
        "Rows in italics are bounds",
        "avg. rank: mean rank",
        f"Protocol of depth: {content_hash({'summary': 'linear head'})}, linear head",
        f"Missing ({DASH}): teacher lacks depth; untrained lacks depth.",
    ):
        assert sentence in legend, sentence


def test_golden_csv() -> None:
    assert render(rows_and_columns(small()), "csv") == GOLDEN_CSV


def test_golden_latex() -> None:
    lines = [" ".join(line.split()) for line in render(rows_and_columns(small()), "latex").split("\n")]
    assert [line for line in lines if line.count("&") == 4] == GOLDEN_LATEX_ROWS
    assert [lines.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\hline")] == [1, 1, 1, 0]


def test_golden_json() -> None:
    board = json.loads(render(rows_and_columns(small()), "json"))
    (section,) = board["sections"]
    assert (section["teacher"], section["student"], section["condition"]) == ("big", "small", "c0ffee00")
    assert [(c["title"], c["metric"], c["unit"]) for c in section["columns"]] == [
        ("cls", "top1", "fraction"),
        ("depth", "rmse", "m"),
    ]
    row = section["rows"][2]
    assert (row["label"], len(row["runs"]), row["average_rank"]) == ("fitnet", 2, 2.0)
    assert row["cells"][1] == {"mean": 0.412, "spread": None, "n": 1, "best": False}


def test_costs_are_shown_on_demand() -> None:
    assert "own s" not in render(rows_and_columns(small()))
    cells = table(small(), costs=True)
    assert cells["method"][-5:] == ["own s", "teacher s", "memory GB", "extra M", "eval s"]
    assert cells["fitnet"][-5:] == ["10.0", "100 / 2", DASH, "0.0123", DASH]
    line = next(r for r in csv.DictReader(io.StringIO(render(rows_and_columns(small(), costs=True), "csv"))))
    assert {"own_s", "teacher_s", "group_sizes", "peak_memory_gb", "method_parameters", "evaluation_s"} <= set(line)


def test_evaluation_seconds_add_up_over_tasks_and_average_over_seeds() -> None:
    records = [record("a", s, task=t, evaluation_s=e) for s, t, e in [(0, "x", 1), (0, "y", 3), (1, "x", 8)]]
    (row,) = only(rows_and_columns(records)).rows
    assert row.costs.evaluation_s == 6.0


@settings(max_examples=30, deadline=None)
@given(st.randoms(use_true_random=False))
def test_the_order_of_the_records_changes_nothing(order: random.Random) -> None:
    records = [
        *small(),
        *seeds("x", 0.1, 0.2, 0.7),
        *seeds("x", 0.7, 0.1, 0.2, source="v2"),
        record("y", origin="reported"),
    ]
    records += [record("y", condition="other"), record("z", protocol={"set": "new"})]
    before = {f: render(rows_and_columns(records, metrics="all", costs=True), f) for f in FORMATS}
    order.shuffle(records)
    for name, text in before.items():
        assert render(rows_and_columns(records, metrics="all", costs=True), name) == text


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
    assert (cells["a"][2], cells["b"][2]) == ("90.0", DASH)
    assert "b lacks cls (top5)" in render(rows_and_columns(records, metrics=["top5"]))


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


def test_metrics_are_chosen_and_an_unknown_one_is_named() -> None:
    records = [record("a", second=0.9)]
    shown = {
        name: [c.metric for c in only(rows_and_columns(records, metrics=name)).columns] for name in ("primary", "all")
    }
    assert shown == {"primary": ["top1"], "all": ["top1", "top5"]}
    assert len(only(rows_and_columns(records, metrics=["top5"])).columns) == 2
    with pytest.raises(UserError, match="did you mean 'top5'"):
        rows_and_columns(records, metrics=["top_5"])
    with pytest.raises(UserError, match="did you mean 'primary'"):
        rows_and_columns(records, metrics="primry")
    with pytest.raises(UserError, match="did you mean 'markdown'"):
        render(rows_and_columns(records), "markdwn")


@pytest.mark.parametrize(
    ("unit", "means", "texts"),
    [
        ("fraction", [0.712, 0.05], ["71.2", "5.0"]),
        ("fraction", [0.00034, 0.00121], ["0.03", "0.12"]),
        ("m", [0.4123, 0.5], ["0.412", "0.500"]),
        ("ratio", [12.34, 512.3, 11.0], ["12.3", "512.3", "11.0"]),
        ("", [123456.7], ["123457"]),
        ("", [1.5e100, -2.0], ["1.50e+100", "-2.00e+00"]),
        ("", [0.0], ["0.0"]),
        ("fraction", [-0.00001, 0.5], ["0.0", "50.0"]),
    ],
)
def test_numbers_have_sensible_digits(unit: str, means: list[float], texts: list[str]) -> None:
    how = number_format(unit, means)
    assert [how.mean(m) for m in means] == texts


def test_a_small_spread_never_looks_like_none() -> None:
    how = number_format("fraction", [0.7])
    assert [how.spread(s) for s in (0.0, 0.003, 0.0003, 0.00003)] == ["0.0", "0.3", "0.03", "<0.01"]
    assert [three_digits(v) for v in (0.0, 0.01234, 1.234, 1234.5)] == ["0", "0.0123", "1.23", "1234"]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_inert_in_csv(name: str) -> None:
    board = rows_and_columns([record(name, task=name, metrics={name: ("=1", "up"), "b": ("", "up")})])
    header, line = list(csv.reader(io.StringIO(render(board, "csv"))))
    assert len(header) == len(line)
    for cell in [*header, *line]:
        assert not cell.lstrip().startswith(("=", "+", "-", "@")) and cell.isprintable()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_its_own_text_in_markdown(name: str) -> None:
    markdown_it = pytest.importorskip("markdown_it", reason="needs markdown-it-py, which comes with rich")
    parser = markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"])
    problem = [f"{name}: cut short"]
    text = render(rows_and_columns([record(name, task=name), record("b", task=name)], problems=problem))
    tokens = parser.parse(text)
    cells = [tokens[i + 1] for i, token in enumerate(tokens) if token.type in ("td_open", "th_open")]
    shown = ["".join(child.content for child in cell.children) for cell in cells]
    assert clean(name) in shown
    assert len(shown) == 3 * len(shown[: shown.index("avg. rank") + 1])  # the header and two rows, of equal length
    kinds = {child.type for token in tokens for child in token.children or ()}
    assert kinds <= {"text", "text_special", "softbreak", "strong_open", "strong_close"}  # no html, link, code
    assert {token.tag for token in tokens if token.type.endswith("_open")} <= set(
        ["h3", "table", "thead", "tbody", "tr", "th", "td", "ul", "li", "p"]
    )
    assert not any(raw in text for raw in ("<", "www.", "://"))  # GitHub would make links of the latter


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_inert_in_latex(name: str) -> None:
    escaped = escape_latex(name)
    for command in ("textbackslash", "textasciitilde", "textasciicircum", "textless", "textgreater", "textbar"):
        escaped = escaped.replace(f"\\{command}{{}}", "")
    for harmless in ("{[}", "{]}", "{*}", r"\&", r"\%", r"\$", r"\#", r"\_", r"\{", r"\}"):
        escaped = escaped.replace(harmless, "")
    assert not set(escaped) & set("\\{}$&#^_~%[]*|<>")
    lines = render(rows_and_columns([record(name, task=name)]), "latex").split("\n")
    assert sum(line.count(" & ") for line in lines) == 4  # a header and one row of three cells


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_stays_on_its_line_in_plain_text(name: str) -> None:
    text = render(rows_and_columns([record(name, task=name)]), "plain")
    assert text.replace("\n", "").isprintable()
    lines = text.split("\n")
    assert sum(line.startswith(clean(name)) for line in lines) == 1


@given(st.text())
def test_escaped_names_are_one_printable_line(name: str) -> None:
    for escape in (clean, escape_markdown, escape_latex, escape_csv):
        assert escape(name) and "\n" not in escape(name) and "\x1b" not in escape(name)
    assert not escape_csv(name).startswith(("=", "+", "-", "@"))


def test_the_latex_of_hostile_names_compiles(tmp_path: Path) -> None:
    latex = shutil.which("pdflatex") or shutil.which("xelatex") or shutil.which("lualatex")
    if latex is None:
        pytest.skip("no LaTeX on this machine")
    records = [record(name, task=name) for name in HOSTILE]
    text = render(rows_and_columns(records, costs=True), "latex")
    page = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\n" + text + "\\end{document}\n"
    (tmp_path / "page.tex").write_text(page)
    command = [latex, "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=60).returncode == 0


def test_a_board_without_records_says_so() -> None:
    for name in ("markdown", "plain", "latex"):
        assert "no records" in render(rows_and_columns([]), name)
    assert json.loads(render(rows_and_columns([]), "json"))["sections"] == []


def test_the_workspace_is_written_with_what_could_not_be_read(tmp_path: Path) -> None:
    for made in small():
        write_record(tmp_path / "records", made)
    (tmp_path / "records" / "bad.json").write_text('{"schema_version": 1, ')
    paths = write(tmp_path)
    assert [path.name for path in paths] == ["leaderboard.md", "leaderboard.csv"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["leaderboard.csv", "leaderboard.md", "records"]
    assert "bad.json: cut short" in paths[0].read_text()
    assert paths[1].read_text() == GOLDEN_CSV
    assert render(load(tmp_path)) == paths[0].read_text()


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
