"""What may be said of the differences in each section: sentences, a line for each pair and task, the rank diagram."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.records import Record
from leaderboard.board import SectionKey
from leaderboard.labels import DASH, clean
from leaderboard.numbers import NumberFormat, number_format, shown_unit
from leaderboard.page.content import Differences, Picture
from leaderboard.statistics.comparison import Pair, SectionComparison, Significance
from leaderboard.statistics.diagram import diagram
from leaderboard.statistics.report import compared
from leaderboard.statistics.statements import p_text


def differences(records: Sequence[Record], items: Path) -> tuple[dict[SectionKey, Differences], tuple[str, ...]]:
    """By section; and sentences about test items that could not be compared."""
    found = compared(records, items)
    sections = {section.key: _of_section(section, found.level) for section in found.sections}
    return sections, tuple(f"Not compared by item: {problem}" for problem in found.problems)


def _of_section(section: SectionComparison, level: float) -> Differences:
    formats = [_format(section, number) for number in range(len(section.columns))]
    plain = {
        "method": section.method,
        "statements": [statement.text for statement in section.statements],
        "pairs": [_line(section, pair, formats[pair.column], level) for pair in section.pairs],
        "legend": (
            "difference: mean over the seeds that both have, in the column's unit; interval: paired bootstrap at "
            f"{100 * (1 - level):g} %, or what stands behind it; p: two-sided, Holm-adjusted over this table, * below "
            f"{p_text(level)}."
        ),
    }
    if section.ranks is None:
        return Differences(plain, None)
    ranks = ", ".join(
        f"{label} {rank:.2f}" for label, rank in zip(section.ranks.labels, section.ranks.average, strict=True)
    )
    text = (
        f"Average ranks over {section.ranks.tasks} tasks, 1 is best; a bar joins rows that are not told apart "
        f"(Nemenyi's critical difference {section.ranks.critical_difference:.2f}): {ranks}."
    )
    return Differences(plain, Picture("Rank diagram", text, diagram(section.ranks).encode()))


def _format(section: SectionComparison, number: int) -> NumberFormat:
    mine = [pair for pair in section.pairs if pair.column == number]
    wide = [pair.interval.high - pair.interval.low for pair in mine if pair.interval]
    return number_format(section.columns[number].unit, [pair.difference for pair in mine], wide)


def _line(section: SectionComparison, pair: Pair, how: NumberFormat, level: float) -> list[str]:
    """The other row, the column, and the numbers as people read them."""
    column = section.columns[pair.column]
    unit = shown_unit(column.unit)
    interval = DASH
    if pair.interval is not None:
        interval = f"{how.difference(pair.interval.low)} to {how.difference(pair.interval.high)}"
        if pair.interval.confidence < 1 - level - 1e-12:
            interval += f" ({100 * pair.interval.confidence:.3g} %)"
    return [
        pair.other,
        f"{column.title} {clean(column.metric)}{f' ({clean(unit)})' if unit else ''}",
        how.difference(pair.difference),
        interval,
        str(len(pair.seeds)),
        _p(pair.by_seed, level),
        _p(pair.by_item, level),
    ]


def _p(test: Significance | None, level: float) -> str:
    return DASH if test is None else p_text(test.adjusted) + "*" * test.below(level)
