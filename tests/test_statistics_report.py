"""Records -> comparison: what is paired, what is said, and what is not said where the data do not allow it."""

# ruff: noqa: F401, F811 - fixtures are imported
from __future__ import annotations

import json
import math
import random
import shutil
import warnings
import xml.etree.ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cli import call, refused
from test_leaderboard import DEPTH, record, seeds

from harness.errors import UserError
from harness.items import Items
from harness.records import Record, write_record
from harness.storage.items import write_items
from leaderboard.statistics.comparison import Comparison, Pair, SectionComparison
from leaderboard.statistics.diagram import diagram
from leaderboard.statistics.ranks import rank
from leaderboard.statistics.report import compared
from leaderboard.statistics.show import FORMATS, render

DEPTH_TASK: dict[str, Any] = {"task": "depth", "metrics": DEPTH, "protocol": {"summary": "linear head"}}


def only(found: Comparison) -> SectionComparison:
    (section,) = found.sections
    return section


def pair_of(found: Comparison, other: str, title: str = "cls") -> Pair:
    section = only(found)
    (pair,) = [p for p in section.pairs if p.other == other and section.columns[p.column].title == title]
    return pair


def said(found: Comparison, scope: str = "") -> str:
    return "\n".join(one.text for one in only(found).statements if scope in ("", one.scope))


def with_items(folder: Path, label: str, right: np.ndarray, seed: int = 0, **rest: Any) -> Record:
    """A record whose top1 is made of the images `right`, written to the workspace `folder` with its items."""
    items = Items({"top1": right}, {"top1": ("mean", "top1")})
    made = record(label, seed, items.number("top1"), **rest)
    info = write_items(folder / "items", made.run.id, made.task_id, items)
    made = made.model_copy(update={"items": info})
    write_record(folder / "records", made)
    return made


def images(folder: Path, skills: dict[str, float], count: int = 400, over: int = 2, tasks: int = 2) -> list[Record]:
    """Students of several seeds on the same images: the larger the skill, the more of them are right."""
    rng, made = np.random.default_rng(0), []
    for task in range(tasks):
        hard = rng.normal(size=count)
        for label, skill in skills.items():
            for seed in range(over):
                right = skill + 0.5 * rng.normal(size=count) > hard
                made.append(with_items(folder, label, right, seed, task=f"task{task}"))
    return made


# ---- what is paired


def test_seeds_are_paired_and_the_common_ones_alone():
    records = [
        *seeds("singer", 0.5, 0.6, 0.7, 0.8),
        *(record("fitnet", s, v) for s, v in ((1, 0.5), (3, 0.5), (9, 0.1))),
    ]
    pair = pair_of(compared(records), "fitnet")
    assert pair.seeds == (1, 3) and pair.unpaired == (0, 2, 9)
    assert pair.difference == pytest.approx((0.1 + 0.3) / 2) and pair.better == 1
    assert pair.effect is None and pair.superiority == 1  # a spread of two differences measures nothing
    assert "only the seeds that both have are compared" in said(compared(records), "data")


def test_a_metric_that_goes_down_is_better_below():
    records = [*seeds("singer", 0.4, 0.5, 0.6, **DEPTH_TASK), *seeds("fitnet", 0.6, 0.8, 0.7, **DEPTH_TASK)]
    pair = pair_of(compared(records), "fitnet", "depth")
    assert pair.difference == pytest.approx(-0.2) and pair.better == 1 and pair.superiority == 1
    assert pair.effect == pytest.approx(0.2 / 0.1)


def test_only_students_of_one_section_and_primary_metrics_that_rank_are_compared():
    records = [
        *seeds("singer", 0.5, 0.6, second=0.9),
        *seeds("fitnet", 0.5, 0.6, second=0.1),
        *seeds("elsewhere", 0.5, 0.6, condition="facade00"),
        record("teacher", value=0.9, kind="teacher", student=""),
        *seeds("untrained", 0.1, 0.1, kind="untrained"),
        *seeds("published", 0.9, 0.9, origin="reported"),
    ]
    first, second = compared(records).sections
    assert (first.method, first.others) == ("singer", ("fitnet",))
    assert [c.metric for c in first.columns] == ["top1"] and len(first.pairs) == 1
    assert (second.method, second.pairs) == ("elsewhere", ())


def test_metrics_that_are_shown_beside_the_primary_one_or_rank_nothing_are_not_compared():
    records = [*seeds("singer", 0.5, 0.6, second=0.9), *seeds("fitnet", 0.4, 0.5, second=0.1)]
    beside = {"top5": records[0].metrics["top5"].model_copy(update={"shown": True})}
    records = [one.model_copy(update={"metrics": {**one.metrics, **beside}}) for one in records]
    assert [column.metric for column in only(compared(records)).columns] == ["top1"]
    described = {"top1": records[0].metrics["top1"].model_copy(update={"ranked": False})}
    records = [one.model_copy(update={"metrics": {**one.metrics, **described}}) for one in records]
    assert compared(records).sections == ()


def test_numbers_of_two_protocols_are_never_paired():
    records = [*seeds("singer", 0.5, 0.6), *seeds("fitnet", 0.5, 0.6, protocol={"set": "other"})]
    found = only(compared(records))
    assert found.pairs == () and len(found.missing) == 2
    assert "Nothing has a seed in common with singer" in found.statements[0].text


def test_a_missing_cell_is_named_and_the_others_are_compared():
    records = [
        *seeds("singer", 0.5, 0.6),
        *seeds("singer", 0.5, 0.6, **DEPTH_TASK),
        *seeds("fitnet", 0.5, 0.6),
        *seeds("crd", 0.4, 0.3),
        *seeds("crd", 0.4, 0.3, **DEPTH_TASK),
    ]
    found = only(compared(records))
    assert [(other, found.columns[j].title) for other, j in found.missing] == [("fitnet", "depth")]
    assert "Not every task has a number of both singer and fitnet." in said(compared(records), "data")
    assert found.ranks is not None and set(found.ranks.labels) == {
        "singer",
        "crd",
    }  # no average over what happens to be


def test_the_row_is_chosen_by_label_method_or_default():
    records = [*seeds("singer", 0.5), *seeds("fitnet", 0.5), *seeds("crd", 0.5)]
    assert only(compared(records)).method == "singer"
    assert only(compared(records, method="crd")).others == ("fitnet", "singer")
    assert only(compared(records, method="crd", against="fit*")).others == ("fitnet",)
    assert only(compared(records[1:])).method == "crd"  # by name, where none has more numbers
    two = [*records, *seeds("singer", 0.5, hyperparameters={"rank": 8})]
    assert only(compared(two)).method.startswith("singer")
    with pytest.raises(UserError, match="means several rows"):
        compared(two, method="singer")
    for options, message in (
        ({"method": "singr"}, "did you mean 'singer'"),
        ({"against": "fitnt"}, "did you mean 'fitnet'"),
        ({"tasks": "clas"}, "cls"),
        ({"level": 0.0}, "between 0 and 1"),
        ({"level": math.nan}, "between 0 and 1"),
    ):
        with pytest.raises(UserError, match=message):
            compared(records, **options)


# ---- what is said over seeds


def test_fewer_than_three_seeds_say_nothing_about_training_again():
    found = compared([*seeds("singer", 0.9, 0.9), *seeds("fitnet", 0.1, 0.1)])
    assert pair_of(found, "fitnet").by_seed is None and pair_of(found, "fitnet").interval is None
    assert "No statement about training again: 2 seeds at most are paired, and fewer than 3 say nothing." in said(found)
    assert "singer >" not in said(found)


def test_seeds_that_cannot_reach_the_level_are_said_and_their_interval_claims_less():
    found = compared([*seeds("singer", 0.9, 0.91, 0.92, 0.95, 0.9), *seeds("fitnet", 0.1, 0.1, 0.1, 0.1, 0.1)])
    pair = pair_of(found, "fitnet")
    assert pair.by_seed is not None and pair.by_seed.p == pair.by_seed.smallest == 2 / 32
    assert "the smallest p is .062, not below .05, whatever the numbers are" in said(found, "seeds")
    assert pair.interval is not None and pair.interval.of == "seeds"
    assert pair.interval.confidence == pytest.approx(1 - 2 / 32)
    assert 0.8 <= pair.interval.low < pair.difference < pair.interval.high <= 0.85
    assert "singer >" not in said(found)


def test_the_family_decides_what_can_be_reached():
    many = {f"m{i}": seeds(f"m{i}", *[0.1 + i / 100] * 6) for i in range(2)}
    singer = seeds("singer", 0.9, 0.91, 0.92, 0.95, 0.9, 0.94)
    alone = compared([*singer, *many["m0"]])
    assert "singer > m0 on 1 of 1 task (Holm-adjusted p < .05 over 1 comparison, signs flipped over 6 seeds)." in said(
        alone
    )
    two = compared([*singer, *many["m0"], *many["m1"]])
    assert pair_of(two, "m0").by_seed.adjusted == pytest.approx(2 * 2 / 64)  # type: ignore[union-attr]
    assert ".062 after Holm's correction for 2 comparisons, not below .05" in said(two, "seeds")
    assert "singer >" not in said(two)
    wide = compared([*singer, *many["m0"], *many["m1"]], level=0.1)
    assert "singer > m0 on 1 of 1 task (Holm-adjusted p < .1 over 2 comparisons" in said(wide)


def test_better_on_some_tasks_and_worse_on_others_are_one_sentence():
    up, down = [0.9 + i / 1000 for i in range(8)], [0.1 + i / 900 for i in range(8)]
    records = []
    for task, mine, other in (("a", up, down), ("b", up, down), ("c", down, up), ("d", up, up)):
        records += [*seeds("singer", *mine, task=task), *seeds("fitnet", *other, task=task)]
    found = compared(records)
    assert "singer > fitnet on 2 of 4 tasks, < on 1 (Holm-adjusted p < .05 over 4 comparisons" in said(found, "seeds")


def test_without_a_difference_nothing_is_told_apart():
    rng = np.random.default_rng(1)
    found = compared([*seeds("singer", *rng.normal(0.5, 0.1, 8)), *seeds("fitnet", *rng.normal(0.5, 0.1, 8))])
    assert "singer and fitnet are not told apart on any task" in said(found, "seeds")


def test_ties_and_rows_without_spread_are_defined():
    found = compared([*seeds("singer", *[0.5] * 8), *seeds("same", *[0.5] * 8), *seeds("fitnet", *[0.4] * 8)])
    same, fitnet = pair_of(found, "same"), pair_of(found, "fitnet")
    assert (same.better, same.effect, same.superiority) == (0, 0.0, 0.5) and same.by_seed.p == 1  # type: ignore[union-attr]
    assert (fitnet.better, fitnet.effect) == (1, None) and fitnet.by_seed.p == 2 / 256  # type: ignore[union-attr]
    assert same.interval is not None and (same.interval.low, same.interval.high) == (0.0, 0.0)
    rounding = compared([*seeds("singer", *[0.1 + 0.2] * 8), *seeds("same", *[0.3] * 8)])
    assert pair_of(rounding, "same").better == 0 and pair_of(rounding, "same").by_seed.p == 1  # type: ignore[union-attr]


# ---- over tasks


def over(tasks: int, *labels: str) -> list[Record]:
    """The first label is best on every task, the second second, ..."""
    rows = enumerate(labels)
    return [r for i, label in rows for t in range(tasks) for r in seeds(label, 0.9 - i / 10 + t / 100, task=f"t{t}")]


def test_tasks_say_what_they_allow():
    few = compared(over(4, "singer", "fitnet"))
    assert (
        "No statement about other tasks: over 4 tasks and 1 comparison Wilcoxon's test can give no adjusted p below .12"
        in said(few)
    )
    enough = compared(over(7, "singer", "fitnet"))
    assert "singer > fitnet over 7 tasks (Wilcoxon's signed-rank test, Holm-adjusted p = .016;" in said(enough, "tasks")
    ranks = only(compared(over(7, "singer", "fitnet", "crd"))).ranks
    assert ranks is not None and ranks.average == (1.0, 2.0, 3.0) and ranks.p == pytest.approx(1e-4)  # none of 9,999
    assert "singer ranks ahead of crd (Nemenyi's test" in said(compared(over(7, "singer", "fitnet", "crd")), "ranks")


def test_a_task_under_two_protocols_is_one_witness():
    records = [*over(5, "singer", "fitnet"), *seeds("singer", 0.9, task="t0", protocol={"v": 2})]
    records += seeds("fitnet", 0.1, task="t0", protocol={"v": 2})
    found = compared(records)
    assert "t0 was measured under 2 protocols" in said(found, "data")
    assert only(found).ranks.tasks == 5 and only(found).over_tasks[0].tasks == 5  # type: ignore[union-attr]


def test_one_task_gives_no_ranks():
    found = compared([*seeds("singer", 0.5, 0.6), *seeds("fitnet", 0.4, 0.5)])
    assert only(found).ranks is None and "No average ranks" in said(found)


# ---- over items


def test_items_decide_where_seeds_cannot_and_say_what_about(tmp_path):
    records = images(tmp_path, {"singer": 0.6, "fitnet": 0.0, "same": 0.6})
    found = compared(records, tmp_path / "items")
    assert found.problems == ()
    assert "fewer than 3 say nothing" in said(found, "seeds")
    text = said(found, "items")
    assert "singer > fitnet on 2 of 2 tasks (Holm-adjusted p < .05 over 4 comparisons, answers swapped" in text
    assert "these trained students on such test items, not training again" in text
    assert "singer and same are not told apart on any task" in text
    pair = pair_of(found, "fitnet", "task0")
    assert pair.items == 400 and pair.interval is not None and pair.interval.of == "items"
    assert pair.interval.low < pair.difference < pair.interval.high and pair.interval.low > 0
    three = pair_of(
        compared(images(tmp_path, {"singer": 0.6, "fitnet": 0.0}, over=3), tmp_path / "items"), "fitnet", "task0"
    )
    assert three.interval is not None and three.interval.of == "seeds and items"
    assert three.interval.confidence == pytest.approx(0.75)


def test_without_items_of_one_row_the_others_are_compared_by_item(tmp_path):
    records = [*images(tmp_path, {"singer": 0.6, "fitnet": 0.0}, tasks=1), *seeds("older", 0.1, 0.1, task="task0")]
    found = compared(records, tmp_path / "items")
    assert pair_of(found, "fitnet", "task0").by_item is not None
    older = pair_of(found, "older", "task0")
    assert older.by_item is None and older.note == "seed 0 of older was recorded without items"
    assert older.superiority == 1.0


@pytest.mark.parametrize("fault", ["missing", "damaged", "no folder"])
def test_items_that_cannot_be_read_are_said_and_seeds_go_on(tmp_path, fault):
    records = images(tmp_path, {"singer": 0.6, "fitnet": 0.0}, tasks=1, over=3)
    folder: Path | None = tmp_path / "items"
    victim = tmp_path / "items" / next(r.items.file for r in records if r.run.label == "fitnet" and r.items)
    if fault == "missing":
        victim.unlink()
    elif fault == "damaged":
        victim.write_bytes(victim.read_bytes()[:-1] + b"\x01")
    else:
        folder = None
    found = compared(records, folder)
    pair = pair_of(found, "fitnet", "task0")
    assert pair.by_item is None and pair.by_seed is not None and pair.interval.of == "seeds"  # type: ignore[union-attr]
    assert "No statement over test items" in said(found, "items")
    if fault != "no folder":
        assert len(found.problems) == 1 and "fitnet" in found.problems[0]
        assert f"Not compared by item: {found.problems[0][:20]}" in render(found, "plain")
    assert fault != "damaged" or "damaged" in pair.note


def test_other_numbers_of_items_are_not_paired(tmp_path):
    right = np.arange(30) % 3 > 0
    records = [with_items(tmp_path, "singer", right), with_items(tmp_path, "fitnet", right[:-1])]
    pair = pair_of(compared(records, tmp_path / "items"), "fitnet")
    assert pair.by_item is None and pair.note == "fitnet has other items than singer"


def test_a_single_item_and_equal_answers_are_defined(tmp_path):
    one = [with_items(tmp_path, label, np.array([label == "singer"])) for label in ("singer", "fitnet")]
    assert pair_of(compared(one, tmp_path / "items"), "fitnet").note == "there is one item"
    right = np.arange(40) % 3 > 0
    same = [with_items(tmp_path, label, right) for label in ("singer", "fitnet")]
    pair = pair_of(compared(same, tmp_path / "items"), "fitnet")
    assert pair.by_item is not None and pair.by_item.p == 1.0
    assert pair.interval is not None and (pair.interval.low, pair.interval.high) == (0.0, 0.0)


def test_more_items_than_memory_holds_are_said_before_they_are_resampled(tmp_path, monkeypatch):
    monkeypatch.setattr("leaderboard.statistics.by_item.MOST_ITEMS", 49)
    monkeypatch.setattr("leaderboard.statistics.resampling.ItemDraws", lambda *_: pytest.fail("resampled"))
    shares = np.linspace(0, 1, 50, dtype=np.float32)
    records = [with_items(tmp_path, label, shares**k) for k, label in enumerate(("singer", "fitnet"), start=1)]
    assert "50 items are more than the 49 that are resampled" in said(compared(records, tmp_path / "items"), "items")
    right = images(tmp_path, {"singer": 0.6, "fitnet": 0.0}, count=50, tasks=1)
    assert pair_of(compared(right, tmp_path / "items"), "fitnet", "task0").items == 50  # these are counted


def test_seeds_that_are_too_many_to_be_counted_are_multiplied(tmp_path):
    records = images(tmp_path, {"singer": 0.3, "fitnet": 0.0, "crd": 0.2}, count=60, over=6, tasks=1)
    found, back = (compared(records, tmp_path / "items", method=m) for m in ("singer", "fitnet"))
    one, other = pair_of(found, "fitnet", "task0").interval, pair_of(back, "singer", "task0").interval
    assert one is not None and other is not None and one.of == "seeds and items"
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low)) and one.low < one.high


def test_items_of_which_a_record_was_not_made_are_refused(tmp_path):
    records = [with_items(tmp_path, label, np.arange(40) % 3 > 0) for label in ("singer", "fitnet")]
    records[1] = records[1].model_copy(update={"values": {"top1": 0.9}})
    found = compared(records, tmp_path / "items")
    assert "gives top1 0.65, and the record says 0.9" in pair_of(found, "fitnet").note
    assert pair_of(found, "fitnet").by_item is None and len(found.problems) == 1


def test_a_row_with_other_classes_does_not_keep_the_others_from_their_items(tmp_path):
    rng, records = np.random.default_rng(0), []
    for label, classes in (("singer", 4), ("fitnet", 4), ("odd", 5)):
        union = rng.integers(1, 9, (30, classes)).astype(np.uint16)
        items = Items({"i": union // 2, "u": union}, {"top1": ("class_mean", "i", "u")})
        made = record(label, 0, items.number("top1"))
        info = write_items(tmp_path / "items", made.run.id, made.task_id, items)
        records.append(made.model_copy(update={"items": info}))
    found = compared(records, tmp_path / "items")
    assert pair_of(found, "fitnet").by_item is not None
    assert pair_of(found, "odd").note == "odd has other items than singer"


def test_items_that_cannot_reach_the_level_are_said(tmp_path):
    records = [with_items(tmp_path, label, np.full(5, label == "singer")) for label in ("singer", "fitnet")]
    text = said(compared(records, tmp_path / "items"), "items")
    assert "No statement over test items: 5 items at most are paired, with which the smallest p is .062" in text
    assert "not told apart" not in text


# ---- what is luck in training is shared by all tasks of a student


def test_what_is_said_over_tasks_items_and_ranks_is_said_of_these_students(tmp_path):
    """Students of equal methods, one of which was lucky: ahead on all tasks, which says nothing of its method."""
    records = images(tmp_path, {"singer": 1.0, "fitnet": 0.0, "crd": 0.0}, over=1, tasks=7)
    found = only(compared(records, tmp_path / "items"))
    claims = [one for one in found.statements if " > " in one.text or "ahead" in one.text or " differ " in one.text]
    assert {one.scope for one in claims} == {"items", "tasks", "ranks"}
    assert all("these trained students" in one.text and "not training again" in one.text for one in claims)


def test_a_column_without_any_difference_is_a_task_and_a_tie():
    records = [*over(6, "singer", "fitnet"), *seeds("singer", 0.5, task="t9"), *seeds("fitnet", 0.5, task="t9")]
    (one,) = only(compared(records)).over_tasks
    assert one.tasks == 7 and one.test.p == 2 / 2**6  # a zero is left out of the test, not of the tasks


# ---- invariants


@settings(max_examples=6, deadline=None)
@given(st.randoms(), st.integers(2, 4))
def test_order_decides_nothing_and_sides_change_the_sign(tmp_path_factory, shuffler, many):
    folder = tmp_path_factory.mktemp("place")
    records = images(folder, {"singer": 0.2, "fitnet": 0.0, "crd": 0.1}, count=60, over=many)
    found = compared(records, folder / "items", method="singer")
    shuffled = shuffler.sample(records, len(records))
    assert compared(shuffled, folder / "items", method="singer") == found
    there = pair_of(found, "fitnet", "task1")
    back = pair_of(compared(shuffled, folder / "items", method="fitnet"), "singer", "task1")
    assert there.difference == pytest.approx(-back.difference) and there.better == -back.better
    assert there.by_item.p == pytest.approx(back.by_item.p, rel=1e-6)  # type: ignore[union-attr]
    assert (there.by_seed is None) == (back.by_seed is None)
    assert there.interval is not None and back.interval is not None
    assert (there.interval.low, there.interval.high) == pytest.approx((-back.interval.high, -back.interval.low))
    shutil.rmtree(folder)


# ---- shown


HOSTILE = '<script>x</script>"&|\\_{}% \u202e=1+1'


def test_every_format_says_the_same_and_names_are_inert(tmp_path):
    records = images(tmp_path, {"singer": 0.6, HOSTILE: 0.0, "crd": 0.1}, over=3, tasks=3)
    found = compared(records, tmp_path / "items")
    texts = {format: render(found, format) for format in FORMATS}
    assert all("scenes" in text and text.endswith("\n") for text in texts.values())
    assert "<script>" not in texts["markdown"] and "\u202e" not in "".join(texts.values())
    assert r"\_\{\}\%" in texts["latex"]
    plain = json.loads(texts["json"])
    assert plain == json.loads(json.dumps(found.plain())) and plain["sections"][0]["method"] == "singer"
    assert plain["sections"][0]["families"] == {"seeds": 6, "items": 6, "tasks": 2}
    with pytest.raises(UserError, match="did you mean 'plain'"):
        render(found, "plan")
    assert render(compared([]), "plain") == "- There are no students to compare yet.\n"


def test_a_column_that_only_bounds_have_is_compared_without_a_warning():
    students = [*seeds("singer", 0.7, 0.8), *seeds("fitnet", 0.5, 0.6)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (section,) = compared([*students, record("teacher", kind="teacher", task="other")]).sections
    assert {section.columns[pair.column].task for pair in section.pairs} == {"cls"}


def test_the_diagram_is_the_same_bytes_and_well_formed():
    means = np.random.default_rng(0).random((5, 6)) + np.arange(5)[:, None]
    found = rank([HOSTILE, "b", "c", "d", "e" * 90], means, [True] * 6, 0.05)
    assert found is not None
    text = diagram(found, HOSTILE)
    assert text == diagram(found, HOSTILE) and "<script" not in text
    root = xml.etree.ElementTree.fromstring(text)
    space = "{http://www.w3.org/2000/svg}"
    shown = [node.text for node in root.iter(f"{space}text")]
    assert any(label and label.startswith("b ") for label in shown)
    assert [node.text for node in root.iter(f"{space}title")] == ["e" * 90]  # cut short, so whole here
    assert "currentColor" not in text and "rect{fill:#fff}" in text  # it is legible on a dark page too
    bars = [node for node in root.iter(f"{space}path") if node.get("class") == "bar"]
    assert len(bars) == len(found.bars) > 0
    many = rank([f"m{i}" for i in range(300)], np.random.default_rng(1).random((300, 30)), [True] * 30, 0.05)
    assert many is not None and xml.etree.ElementTree.fromstring(diagram(many)) is not None


def test_the_command_line_compares_a_workspace(call, tmp_path):
    images(tmp_path, {"singer": 0.6, "fitnet": 0.0, "crd": 0.0}, over=3)
    code, out, err = call("compare", tmp_path)
    assert (code, err) == (0, "") and "**singer against fitnet**" in out and "singer &gt; fitnet on 2 of 2 tasks" in out
    code, out, _ = call(
        "compare", tmp_path, "--method", "fitnet", "--against", "crd", "--tasks", "task0", "--format", "json"
    )
    (section,) = json.loads(out)["sections"]
    assert (section["method"], section["others"], len(section["columns"])) == ("fitnet", ["crd"], 1)
    assert call("compare", tmp_path, "-o", tmp_path / "out.tex")[:2] == (0, "")
    assert r"\toprule" in (tmp_path / "out.tex").read_text()
    code, out, _ = call("compare", tmp_path, "--diagram", tmp_path / "ranks.svg")
    assert out.strip() == str(tmp_path / "ranks.svg") and (tmp_path / "ranks.svg").read_text().startswith("<svg")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "singr"], "did you mean 'singer'"),
        (["--format", "csv"], "no format of a comparison 'csv'"),
        (["--level", "1.5"], "between 0 and 1"),
        (["--diagram", "x.png"], ".svg"),
        (["--tasks", "task0", "--diagram", "x.svg"], "no ranks to draw"),
        (["-o", "/dev/null/out.md"], "cannot write"),
    ],
)
def test_mistakes_on_the_command_line_are_one_sentence(call, tmp_path, arguments, message):
    images(tmp_path, {"singer": 0.6, "fitnet": 0.0}, count=20)
    code, out, err = call("compare", tmp_path, *arguments)
    assert code == 2 and out == "" and message in err and err.count("\n") == 1


def test_a_workspace_without_records_is_said(call, tmp_path):
    (tmp_path / "records").mkdir()
    code, _, err = call("compare", tmp_path)
    assert code == 2 and "no records in" in err


def test_items_that_share_images_have_a_p_and_no_sentence(tmp_path):
    records = images(tmp_path, {"singer": 1.0, "fitnet": 0.0}, tasks=2)
    records = [
        one.model_copy(update={"items": one.items.model_copy(update={"independent": one.task != "task1"})})  # type: ignore[union-attr]
        for one in records
    ]
    found = compared(records, tmp_path / "items")
    first, second = (pair_of(found, "fitnet", f"task{n}") for n in (0, 1))
    assert first.independent and not second.independent
    assert second.by_item is not None and second.by_item.below(0.05) and second.interval is not None
    text = said(found, "items")
    assert "No statement over test items of task1: they share images" in text
    assert "singer > fitnet on 1 of 1 task (" in text and "over 2 comparisons" in text

    alone = compared([one for one in records if one.task == "task1"], tmp_path / "items")
    assert said(alone, "items") == (
        "No statement over test items of task1: they share images, so p and interval are about these images alone."
    )
