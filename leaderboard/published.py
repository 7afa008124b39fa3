"""Numbers that were published, for reading beside what was measured here: never in a mean, a rank or a mark.

published.csv holds Table 1 of the SiNGER paper: linear heads on frozen backbones, accuracies and mIoU in percent, RMSE
in metres, one run each, no spread.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import importlib.resources
import re
from collections.abc import Mapping, Sequence
from typing import Literal

from harness.errors import UserError
from leaderboard.board import Cell, Column, Costs, Row, Section


@dataclasses.dataclass(frozen=True)
class PaperColumn:
    """A column of the publication's table, and the task, metric and data sets that measure the same thing here.

    Of several data sets it is the mean. decimals: as it was published.
    """

    key: str
    title: str
    kind: str
    metric: str
    data: tuple[str, ...]
    unit: str = "fraction"
    direction: Literal["up", "down"] = "up"
    decimals: int = 2

    def fits(self, kind: str, metric: str, data: str) -> str | None:
        """Which of its data sets a measured column is of, or None."""
        if (kind, metric) != (self.kind, self.metric):
            return None
        return next((name for name in self.data if _folded(name) == _folded(data)), None)


def _folded(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold())


COLUMNS = (
    PaperColumn("in1k_top1", "ImageNet-1k", "classification", "top1", ("imagenet1k",)),
    PaperColumn("ade20k_miou", "ADE20K", "segmentation", "mIoU", ("ade20k",)),
    PaperColumn("nyuv2_rmse", "NYUv2", "depth", "rmse", ("nyuv2",), "m", "down", 4),
    PaperColumn("inat2019_top1", "iNat-2019", "classification", "top1", ("inat2019",)),
    # The two means are of these sets presumably: the publication does not say it where it could be read.
    PaperColumn("domain_shift_top1", "domain shift", "shifted", "top1", ("imagenet_r", "imagenet_v2")),
    PaperColumn(
        "fine_grained_top1",
        "fine-grained",
        "classification",
        "top1",
        ("fgvc_aircraft", "oxford_pets", "food101", "flowers102"),
    ),
)
_WEIGHTS = (".augreg_in21k_ft_in1k", ".fb_in1k")  # timm's tags of the publication's teachers; others are other models
# A student of the publication that timm does not name -> as it is called in configs/paper/ and so in records.
_BUILT = {"deit3_tiny_patch16_224": "deit3_small_patch16_224 width=192 heads=3"}


@dataclasses.dataclass(frozen=True)
class Published:
    """A row of published.csv. student: "" for a model of its own. values: key of a column -> number, in its unit."""

    teacher: str
    student: str
    method: str
    values: Mapping[str, float]
    source: str


@functools.cache
def published() -> tuple[Published, ...]:
    """Every published row, in the publication's order."""
    text = importlib.resources.files("leaderboard").joinpath("published.csv").read_text(encoding="utf-8")
    rows = []
    for line in csv.DictReader(text.splitlines()):
        values = {c.key: round(float(line[c.key]) / (100 if c.unit == "fraction" else 1), 6) for c in COLUMNS}
        rows.append(Published(line["teacher"], line["student"], line["method"], values, line["source"]))
    return tuple(rows)


def pairs() -> list[tuple[str, str]]:
    """Teacher and student of every published distillation, in the publication's order."""
    return list(dict.fromkeys((row.teacher, row.student) for row in published() if row.student))


def model(title: str) -> str:
    """A model's title in records as the publication calls it: without timm's tag of its weights.

    >>> model("vit_large_patch16_224.augreg_in21k_ft_in1k")
    'vit_large_patch16_224'
    """
    tag = next((tag for tag in _WEIGHTS if title.endswith(tag)), "")
    bare = title.removesuffix(tag)
    return next((name for name, built in _BUILT.items() if built == bare), bare)


def rows_of(teacher: str, student: str) -> list[tuple[Row, Mapping[str, float]]]:
    """The published rows of a pair with their numbers: the teacher, the student's own weights, the methods."""
    found = []
    for one in published():
        if (one.teacher, one.student) == (teacher, student):
            kind, label = "student", one.method
        elif one.student == "" and one.teacher in (teacher, student):
            kind, label = ("teacher", "teacher") if one.teacher == teacher else ("student", one.method)
        else:
            continue
        row = Row(label, kind, "reported", label, {}, (), None, Costs(), False, source=one.source)
        found.append((row, one.values))
    return found if any(row.label not in ("teacher", "none") for row, _ in found) else []


def reported_too(sections: Sequence[Section]) -> list[Section]:
    """The sections with the published rows of their pairs, in the columns of the same task, metric and data set.

    Raises:
        UserError: nothing that was published is of a pair and a data set of theirs.
    """
    found = [_with_reported(section) for section in sections]
    if not any(row.origin == "reported" for section in found for row in section.rows):
        known = ", ".join(f"{teacher} to {student}" for teacher, student in pairs())
        sets = ", ".join(column.title for column in COLUMNS if len(column.data) == 1)
        raise UserError(
            f"--reported: no published number is of these tables' models and data sets; published: {known}; on {sets}"
        )
    return found


def _with_reported(section: Section) -> Section:
    keys = [_key(column) for column in section.columns]
    found = [
        (row, [Cell(values[key], None, 1) if key else None for key in keys])
        for row, values in rows_of(model(section.key.teacher), model(section.key.student))
    ]
    new = [(row, line) for row, line in found if any(line)]
    end = next((i for i, row in enumerate(section.rows) if row.kind == "untrained"), len(section.rows))
    more = section.with_rows([row for row, _ in new], [line for _, line in new])
    total = len(more.rows)
    return more.in_order([*range(end), *range(len(section.rows), total), *range(end, len(section.rows))])


def _key(column: Column) -> str:
    """The published column of one data set that a measured one corresponds to, or ""."""
    fitting = (c.key for c in COLUMNS if len(c.data) == 1 and c.fits(column.kind, column.metric, column.data))
    return next(fitting, "")
