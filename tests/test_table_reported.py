"""Published numbers stand beside measured ones and touch none of them; the paper's Table 1, in its own layout."""

from __future__ import annotations

import csv
import importlib.resources
import io
from typing import Any

import pytest
from tables import L, S, T, asked, on, pair, paper
from test_leaderboard import record, seeds

from harness.errors import UserError
from harness.records import Record
from leaderboard.board import Section
from leaderboard.paper import like_paper
from leaderboard.published import COLUMNS, model, pairs, published
from leaderboard.render import FORMATS, render
from leaderboard.table import rows_and_columns

TITLES = ["ImageNet-1k", "ADE20K", "NYUv2", "iNat-2019", "domain shift", "fine-grained"]


def measured() -> list[Record]:
    return [one for one in paper() if one.run.teacher == L]


def section_of(board: Any, student: str) -> Section:
    (found,) = [section for section in board.sections if section.key.student == student]
    return found


def numbers(section: Section, label: str, origin: str = "measured") -> dict[str, float | None]:
    (i,) = [i for i, row in enumerate(section.rows) if (row.label, row.origin) == (label, origin)]
    return {c.title: cell and cell.mean for c, cell in zip(section.columns, section.cells[i], strict=True)}


def test_the_published_rows_come_with_the_package_and_their_source():
    lines = list(csv.DictReader(importlib.resources.files("leaderboard").joinpath("published.csv").open()))
    assert len(lines) == len(published()) == 17
    assert {line["source"] for line in lines} == {"SiNGER, ICLR 2026, arXiv 2509.20986, Table 1"}
    assert pairs()[:2] == [("vit_large_patch16_224", S), ("vit_large_patch16_224", T)] and len(pairs()) == 4
    singer = next(row for row in published() if row.method == "singer" and row.student == T)
    assert singer.values == {
        "in1k_top1": 0.7059,
        "ade20k_miou": 0.2176,
        "nyuv2_rmse": 0.9406,
        "inat2019_top1": 0.4111,
        "domain_shift_top1": 0.3887,
        "fine_grained_top1": 0.6461,
    }
    assert [column.title for column in COLUMNS] == TITLES


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("vit_large_patch16_224.augreg_in21k_ft_in1k", "vit_large_patch16_224"),
        ("vit_tiny_patch16_224", "vit_tiny_patch16_224"),
        ("deit3_small_patch16_224 width=192 heads=3", "deit3_tiny_patch16_224"),
        ("deit3_small_patch16_224.fb_in1k", "deit3_small_patch16_224"),
        ("ViT 96x6", "ViT 96x6"),
        ("vit_large_patch16_224.mae", "vit_large_patch16_224.mae"),  # other weights are another model
    ],
)
def test_models_are_found_by_what_records_call_them(title, name):
    assert model(title) == name


def test_the_papers_configurations_are_its_pairs():
    from harness.config import load
    from harness.results import shipped

    found = set()
    for name in ("vit-large-to-small", "vit-large-to-tiny", "deit3-large-to-base", "deit3-small-to-tiny"):
        experiment = load(shipped(f"paper/{name}.yaml"))
        found.add((model(experiment.teacher.title()), model(experiment.student.title())))
    assert found == set(pairs())


def test_reported_rows_are_shown_only_when_asked_for_and_change_nothing_of_the_measured_ones():
    plain, more = (section_of(rows_and_columns(measured(), reported=asked), T) for asked in (False, True))
    assert all(row.origin == "measured" for row in plain.rows)
    keep = [i for i, row in enumerate(more.rows) if row.origin == "measured"]
    assert tuple(more.rows[i] for i in keep) == plain.rows  # with their ranks
    assert tuple(more.cells[i] for i in keep) == plain.cells  # with their marks
    new = [i for i in range(len(more.rows)) if i not in keep]
    assert [more.rows[i].label for i in new] == ["teacher", "none", "fitnet", "vitkd", "singer"]
    assert all(more.rows[i].average_rank is None for i in new)
    assert not any(cell.best or cell.second for i in new for cell in more.cells[i] if cell)


def test_a_reported_number_stands_under_its_data_set_and_metric_and_nowhere_else():
    records = [
        *measured(),
        # The same data and metric, another task.
        *on("imagenet-1k", "low_shot", "top1", "singer", 0.3, task="few", protocol={"data": {"name": "imagenet-1k"}}),
        *on("tiny-imagenet", "classification", "top1", "singer", 0.3),
        *on("ade20k", "segmentation", "aAcc", "singer", 0.6, task="ade20k"),
    ]
    section = section_of(rows_and_columns(records, reported=True, metrics="all"), T)
    (i,) = [i for i, row in enumerate(section.rows) if (row.label, row.origin) == ("vitkd", "reported")]
    shown = {
        (c.kind, c.data, c.metric): cell.mean for c, cell in zip(section.columns, section.cells[i], strict=True) if cell
    }
    assert shown == {("classification", "imagenet-1k", "top1"): 0.0507, ("depth", "nyuv2", "rmse"): 1.1903}


def test_reported_rows_are_marked_in_every_format():
    board = rows_and_columns(measured(), reported=True)
    for format in ("markdown", "plain", "latex"):
        text = render(board, format)
        assert "singer (reported)" in text and "arXiv 2509.20986, Table 1" in text
        assert "70.6" in text
    (line,) = [line for line in render(board, "plain").split("\n") if line.startswith("vitkd (reported)")]
    assert line.split()[2:] == ["–", "–", "[5.1]", "–", "–", "[1.19]", "–"]
    lines = list(csv.DictReader(io.StringIO(render(board, "csv"))))
    reported = [line for line in lines if line["origin"] == "reported"]
    assert len(reported) == 5 and all("arXiv 2509.20986" in line["source"] for line in reported)


def test_decimals_are_those_of_the_measured_numbers():
    (line,) = [
        t for t in render(rows_and_columns(measured(), reported=True), "plain").split("\n") if t.startswith("fitnet  ")
    ]
    assert "61.5  ± 0.7" in line and "1.02  ± 0.01" in line


def test_a_reported_number_decides_no_digits():
    records = on("nyuv2", "depth", "rmse", "singer", 101.2, 102.4)
    text = render(rows_and_columns(records, reported=True), "plain").split("\n")
    assert [line.split()[-1] for line in text if line.startswith(("singer (", "fitnet ("))] == ["[1]", "[1]"]
    assert any(line.startswith("singer") and "102 ± 1" in line for line in text)


def test_another_student_of_a_published_teacher_has_no_reported_rows():
    records = on("imagenet-1k", "classification", "top1", "singer", 0.7, student="ViT 96x6")
    with pytest.raises(UserError, match="no published number"):
        rows_and_columns(records, reported=True)


def test_where_nothing_was_published_that_is_said_with_what_was():
    with pytest.raises(
        UserError, match=r"--reported: no published number .*vit_large_patch16_224 to vit_tiny_patch16_224"
    ):
        rows_and_columns(pair(), reported=True)


# ---- Table 1


def test_table_1_has_every_pair_column_and_reported_row_of_the_paper():
    board = like_paper(pair())
    assert [(model(s.key.teacher), model(s.key.student)) for s in board.sections] == pairs()
    assert all([column.title for column in section.columns] == TITLES for section in board.sections)
    for section in board.sections:
        for row, cells in zip(section.rows, section.cells, strict=True):
            assert row.origin == "reported" and all(cells)
    text = render(board, "plain", 120)
    assert "[79.13]" in text and "[0.9026]" in text and "Nothing in these records is of the pairs" in text


def test_measured_rows_stand_beside_the_reported_ones_of_their_method():
    section = section_of(like_paper(paper()), T)
    assert [(row.label, row.origin[:4]) for row in section.rows] == [
        ("teacher", "meas"),
        ("teacher", "repo"),
        ("none", "repo"),
        ("fitnet", "meas"),
        ("fitnet", "repo"),
        ("vitkd", "repo"),
        ("singer", "meas"),
        ("singer", "repo"),
        ("target_norm", "meas"),
    ]
    assert numbers(section, "singer", "reported")["ADE20K"] == 0.2176
    assert numbers(section, "singer")["ImageNet-1k"] == pytest.approx(0.71)


def test_a_mean_over_data_sets_is_taken_seed_by_seed_and_only_where_all_were_measured():
    section = section_of(like_paper(paper()), T)
    found = numbers(section, "singer")
    assert found["domain shift"] == pytest.approx((0.30 + 0.40 + 0.32 + 0.44) / 4)
    assert found["fine-grained"] is None and found["ADE20K"] is None
    records = [
        *paper(),
        *on("imagenet_r", "shifted", "top1", "fitnet", 0.3, 0.4),
        *on("imagenet_v2", "shifted", "top1", "fitnet", 0.5),
    ]
    (i,) = [
        i
        for i, row in enumerate(section_of(like_paper(records), T).rows)
        if (row.label, row.origin) == ("fitnet", "measured")
    ]
    cell = section_of(like_paper(records), T).cells[i][TITLES.index("domain shift")]
    assert cell is not None and cell.mean == pytest.approx(0.4) and cell.n == 1  # one seed has both
    assert (
        "fine-grained needs all of fgvc_aircraft, oxford_pets, food101, flowers102; missing: fgvc_aircraft, "
        in render(like_paper(paper()), "plain")
    )


def test_only_measured_students_are_marked_and_ranked_there():
    records = [
        *measured(),
        *on("ade20k", "segmentation", "mIoU", "singer", 0.9),
        *on("ade20k", "segmentation", "mIoU", "fitnet", 0.1),
    ]
    section = section_of(like_paper(records), T)
    for row, cells in zip(section.rows, section.cells, strict=True):
        if row.origin == "reported" or row.kind != "student":
            assert row.average_rank is None and not any(cell.best or cell.second for cell in cells if cell)
    best = {
        c.title: [r.label for r, line in zip(section.rows, section.cells, strict=True) if line[j] and line[j].best]
        for j, c in enumerate(section.columns)
    }
    assert best["ImageNet-1k"] == ["target_norm"] and best["ADE20K"] == ["singer"] and best["NYUv2"] == ["singer"]


def test_of_several_protocols_the_published_one_is_shown_or_one_has_to_be_named():
    own = {"data": {"name": "imagenet-1k"}, "kind": "linear"}
    theirs = {"data": {"name": "imagenet-1k"}, "kind": "published"}
    both = [
        *on("imagenet-1k", "classification", "top1", "singer", 0.8, protocol=own, task="a"),
        *on("imagenet-1k", "classification", "top1", "singer", 0.7, protocol=theirs, task="b"),
    ]
    assert numbers(section_of(like_paper(both), T), "singer")["ImageNet-1k"] == 0.7
    assert numbers(section_of(like_paper(both, exclude="b"), T), "singer")["ImageNet-1k"] == 0.8
    more = [
        *both,
        *on("imagenet-1k", "classification", "top1", "singer", 0.6, protocol={**theirs, "steps": 3}, task="c"),
    ]
    with pytest.raises(UserError, match="imagenet1k was measured under several protocols, a, b, c: leave all but one"):
        like_paper(more)
    assert numbers(section_of(like_paper(more, tasks="c"), T), "singer")["ImageNet-1k"] == 0.6


def test_rows_and_failures_can_be_chosen_there_too():
    failed = record("crd", teacher=L, student=T).run
    hopes = [*asked(), type(asked()[0])(failed, "at step 7: loss kd is nan")]
    section = section_of(like_paper(paper(), asked=hopes), T)
    assert "crd" in [row.label for row in section.rows]
    (i,) = [i for i, row in enumerate(section.rows) if row.label == "crd"]
    assert set(section.missing[i]) == {"failed"}
    section = section_of(like_paper(paper(), asked=hopes, rows="fitnet,singer", difference="singer"), T)
    assert {row.label for row in section.rows if row.origin == "measured"} == {"fitnet", "singer"}
    assert section.difference is not None and section.difference.cells[0] is not None
    assert section.difference.cells[0].mean == pytest.approx(0.71 - 0.615)
    assert section.difference.others == ("fitnet", None, "fitnet", None, None, None)


def test_what_table_1_does_not_have_is_named():
    text = render(like_paper([*paper(), *seeds("x", 0.5, teacher=L, student=T)]), "plain")
    assert "Measured pairs that Table 1 does not have: big to small." in text


def test_table_1_in_every_format():
    for format in FORMATS:
        text = render(like_paper(paper()), format)
        assert "fine-grained" in text and "reported" in text
