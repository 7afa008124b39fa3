"""Where a number is missing the table says so and why: failed, not run, or no such number."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest
from tables import DEPTH_TASK, asked, pair
from test_leaderboard import only, record, seeds, table

from harness.records import Record
from leaderboard.board import Failure, Section
from leaderboard.drafts import Asked
from leaderboard.render import render
from leaderboard.table import rows_and_columns


def board(**options: Any) -> Section:
    return only(rows_and_columns(pair(), asked=asked(), **options))


def missing(section: Section) -> dict[str, tuple[str, ...]]:
    return {row.label: why for row, why in zip(section.rows, section.missing, strict=True)}


def test_every_empty_cell_has_its_reason_and_every_full_one_none():
    section = board()
    assert missing(section) == {
        "teacher": ("", "not run"),
        "logit_kd": ("", ""),
        "singer": ("", ""),
        "fitnet": ("", ""),
        "crd": ("", "not run"),
        "vitkd": ("failed", "failed"),
        "untrained": ("", "no value"),
    }
    for why, cells in zip(section.missing, section.cells, strict=True):
        assert [reason != "" for reason in why] == [cell is None for cell in cells]


def test_the_reasons_are_told_apart_in_the_table_and_named_under_it():
    cells = table(pair(), asked=asked())
    assert (cells["crd"][2], cells["vitkd"][1:3], cells["untrained (bound)"][2]) == ("–", ["failed", "failed"], "n/a")
    text = render(rows_and_columns(pair(), asked=asked()))
    for sentence in (
        "Not run (–): teacher, crd lack depth.",
        "No such number of this encoder (n/a): untrained lacks depth.",
        "Training failed: crd seed 3 at step 9: out of memory; vitkd seed 0 at step 7: loss kd is nan.",
        "Without any result yet, so not shown: later.",
    ):
        assert sentence in text, sentence


def test_seeds_that_were_asked_for_and_gave_nothing_are_counted():
    section = board()
    found = {row.label: (len(row.runs), row.asked, row.failures) for row in section.rows}
    assert found["crd"] == (3, 4, (Failure(3, "at step 9: out of memory"),))
    assert found["vitkd"] == (0, 1, (Failure(0, "at step 7: loss kd is nan"),))
    assert found["singer"] == (3, None, ())  # no experiment is known to name it
    cells = table(pair(), asked=asked())
    assert (cells["crd"][0], cells["vitkd"][0], cells["singer"][0]) == ("3 of 4", "0 of 1", "3")
    whole = [Asked(one.run, None) for one in seeds("singer", 0.1, 0.1, 0.1)]
    assert table(pair(), asked=whole)["singer"][0] == "3"


def test_a_seed_that_failed_belongs_to_its_row_though_no_other_seed_was_asked_for():
    found = {row.label: (row.asked, row.failures) for row in only(rows_and_columns(pair(), asked=asked()[1:2])).rows}
    assert found["crd"] == (1, (Failure(3, "at step 9: out of memory"),)) and len(found) == 6


def test_a_row_that_failed_is_neither_ranked_nor_marked_and_moves_nobody():
    ranks = {row.label: row.average_rank for row in only(rows_and_columns(pair())).rows}
    assert {row.label: row.average_rank for row in board().rows} == {**ranks, "vitkd": None}


def test_programs_are_told_the_reasons_too():
    whole = rows_and_columns(pair(), asked=asked())
    lines = {line["label"]: line for line in csv.DictReader(io.StringIO(render(whole, "csv")))}
    assert lines["vitkd"]["missing"] == "cls top1: failed; depth rmse: failed; seed 0 failed at step 7: loss kd is nan"
    assert lines["crd"]["missing"] == "depth rmse: not run; seed 3 failed at step 9: out of memory"
    assert lines["singer"]["missing"] == ""
    (section,) = json.loads(render(whole, "json"))["sections"]
    row = next(row for row in section["rows"] if row["label"] == "vitkd")
    assert row["missing"] == ["failed", "failed"] and row["failures"][0]["reason"] == "at step 7: loss kd is nan"
    assert section["waiting"] == ["later"]


def test_a_workspace_in_which_every_student_failed_has_a_table():
    failed = [Asked(record("vitkd", seed).run, "at step 7: loss kd is nan") for seed in (0, 1)]
    bound = record("untrained", value=0.1, kind="untrained")
    section = only(rows_and_columns([bound], asked=failed))
    assert [row.label for row in section.rows] == ["vitkd", "untrained"]
    assert table([bound], asked=failed)["vitkd"] == ["0 of 2", "failed"]


def test_a_failure_of_another_condition_is_in_another_table():
    other = Asked(record("vitkd", condition="facade00").run, "at step 7: loss kd is nan")
    here = rows_and_columns([*pair(), *seeds("a", 0.5, condition="facade00")], asked=[other])
    assert [("vitkd" in [row.label for row in section.rows]) for section in here.sections] == [False, True]


def test_a_failure_that_was_mended_is_none():
    (one,) = seeds("a", 0.5)
    section = only(rows_and_columns([one], asked=[Asked(one.run, "at step 7: loss kd is nan")]))
    assert section.rows[0].failures == () and "failed" not in render(
        rows_and_columns([one], asked=[Asked(one.run, "x")])
    )


def test_a_row_that_was_renamed_since_is_still_the_one_that_was_asked_for():
    info = seeds("a", 0.5, 0.6)[0].run
    later = [Asked(one.run.model_copy(update={"label": "new name"}), None) for one in seeds("a", 0.5, 0.6, 0.7)]
    assert later[0].run.id == info.id
    section = only(rows_and_columns(seeds("a", 0.5, 0.6), asked=later))
    assert [(row.label, row.asked) for row in section.rows] == [("a", 3)]


def lacking(count: int) -> list[Record]:
    """Many students that lack the same task."""
    return [*seeds("full", 0.5), *seeds("full", 0.5, **DEPTH_TASK), *(record(f"m{i}") for i in range(count))]


@pytest.mark.parametrize("count", [3, 40])
def test_rows_that_lack_the_same_are_named_together_and_not_all_of_them(count):
    (line,) = [line for line in render(rows_and_columns(lacking(count))).split("\n") if "Not run" in line]
    more = "" if count == 3 else " and 34 more"
    names = ", ".join(sorted(f"m{i}" for i in range(count))[:6])
    assert line == f"- Not run (–): {names}{more} lack depth."


def test_columns_that_no_student_has_do_not_stand_in_the_ranks_sentence():
    bound = [record("teacher", value=0.5, kind="teacher", student="", task="extra")]
    text = render(rows_and_columns([*seeds("a", 0.5), *seeds("b", 0.4), *bound]))
    assert "mean rank over cls; 1 is best" in text


def test_over_what_ranks_are_averaged_is_said_of_every_group():
    more: dict[str, Any] = {"student": "tiny", "condition": "facade00"}
    records = [*seeds("singer", 0.5), *seeds("kd", 0.4), *seeds("singer", 0.5, **more), *seeds("kd", 0.4, **more)]
    records += [*seeds("singer", 0.5, **more, **DEPTH_TASK)]
    text = render(rows_and_columns(records, by_pair=True), "plain")
    assert "over the tasks that any of them has (big → small: cls; big → tiny: cls, depth)" in text
    assert text.rstrip().count("One such row alone has no rank.") == 1  # singer has both tasks
    assert "mean rank over cls; 1 is best" in render(rows_and_columns(records[:2]), "plain")
