"""A comparison -> text for people: sentences, a line a pair and task, ranks; or JSON. Pure functions."""

from __future__ import annotations

import json
from collections.abc import Sequence

from harness.errors import UserError, unknown
from leaderboard.labels import DASH, clean
from leaderboard.layout import LAYOUTS, Head, Sheet
from leaderboard.legend import heading_of
from leaderboard.markup import MARKUPS, Markup, Piece
from leaderboard.numbers import NumberFormat, number_format, shown_unit
from leaderboard.statistics.comparison import Comparison, Interval, Pair, Ranks, SectionComparison, Significance
from leaderboard.statistics.resampling import LEAST_SEEDS
from leaderboard.statistics.statements import p_text

FORMATS = ("plain", "markdown", "latex", "json")
INTERVALS = {  # what was resampled -> as the legend says it
    "seeds and items": "seeds and items",
    "seeds": "seeds where there are no items",
    "items": f"items where fewer than {LEAST_SEEDS} seeds are paired, which is not about training again",
}


def render(comparison: Comparison, format: str = "markdown", width: int | None = None) -> str:
    """The comparison as text that ends with a newline.

    Args:
        width: characters to a line of plain text; None: as it comes.

    Raises:
        UserError: another format than those of FORMATS.
    """
    if format not in FORMATS:
        raise UserError(unknown("format of a comparison", format, FORMATS))
    if format == "json":
        return json.dumps(comparison.plain(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    markup, layout = MARKUPS[format], LAYOUTS[format]
    pages = []
    for section in comparison.sections:
        title = markup.escape(heading_of(section.key, section.condition))
        said = [markup.escape(statement.text) for statement in section.statements]
        said += [markup.escape(line) for line in _legend(section, comparison.level)]
        if section.pairs:
            pages.append(layout.page(title, _pairs(section, comparison.level, markup), said, width))
        else:
            pages.append(f"{title}\n\n{layout.notes(said, width)}")
        if section.ranks is not None:
            pages.append(layout.page(*_ranks(section.ranks, markup), width))
    ends = [] if pages else ["There are no students to compare yet."]
    ends += [f"Not compared by item: {problem}" for problem in comparison.problems]
    if ends:
        pages.append(layout.notes([markup.escape(line) for line in ends], width))
    return "\n\n".join(pages) + "\n"


def _pairs(section: SectionComparison, level: float, markup: Markup) -> Sheet:
    """A line a task, the lines of each other row together below its name."""
    formats = [_format(section, number) for number in range(len(section.columns))]
    groups: dict[int, str] = {}
    lines: list[list[str]] = []
    differences: list[Piece] = []
    effects: list[Piece] = []
    intervals: list[str] = []
    before = None
    for i, pair in enumerate(section.pairs):
        column, how = section.columns[pair.column], formats[pair.column]
        if pair.other != before:
            groups[i] = markup.strong(markup.escape(f"{section.method} against {pair.other}"))
            before = pair.other
        unit = shown_unit(column.unit)
        arrow = "↑" if column.direction == "up" else "↓"
        name = f"{column.title} {clean(column.metric)}{f' ({clean(unit)})' if unit else ''} {arrow}"
        differences.append(Piece(how.difference(pair.difference)))
        seeds = f"{len(pair.seeds)}" + (f" of {len(pair.seeds) + len(pair.unpaired)}" if pair.unpaired else "")
        effects.append(Piece(DASH if pair.effect is None else f"{pair.effect:+.2f}"))
        intervals.append(_interval(pair, how, level, markup))
        lines.append(
            [
                name,
                seeds,
                _p(pair.by_seed, level),
                DASH if pair.items is None else f"{pair.items}",
                _p(pair.by_item, level),
                f"{pair.superiority:.2f}",
            ]
        )
    name, *tests, better = ([markup.escape(text) for text in column] for column in zip(*lines, strict=True))
    heads = [Head("", "task"), Head("", "difference"), Head("", "interval"), Head("", "seeds")]
    heads += [Head("over seeds", "p"), Head("", "items"), Head("over items", "p"), Head("", "d_z"), Head("", "better")]
    columns = [name, markup.cells(differences), intervals, *tests, markup.cells(effects), better]
    return Sheet(heads, columns, groups, (), len(heads))


def _format(section: SectionComparison, number: int) -> NumberFormat:
    column = section.columns[number]
    return number_format(
        column.unit,
        [pair.difference for pair in section.pairs if pair.column == number],
        [pair.interval.high - pair.interval.low for pair in section.pairs if pair.column == number and pair.interval],
    )


def _interval(pair: Pair, how: NumberFormat, level: float, markup: Markup) -> str:
    if pair.interval is None:
        return markup.escape(DASH)
    # Each by itself, since they do not stand below one another; a minus is then set as one.
    ends = " to ".join(markup.cells([Piece(how.difference(end))])[0] for end in (pair.interval.low, pair.interval.high))
    share = markup.escape(f"({100 * pair.interval.confidence:.3g} %)") if _claims_less(pair.interval, level) else ""
    return f"{ends} {share}".rstrip()


def _claims_less(interval: Interval, level: float) -> bool:
    return interval.confidence < 1 - level - 1e-12


def _p(test: Significance | None, level: float) -> str:
    return DASH if test is None else p_text(test.adjusted) + "*" * test.below(level)


def _ranks(ranks: Ranks, markup: Markup) -> tuple[str, Sheet, Sequence[str]]:
    labels = [markup.escape(label) for label in ranks.labels]
    average = [markup.escape(f"{rank:.2f}") for rank in ranks.average]
    groups = [f"{ranks.labels[first]} to {ranks.labels[last]}" for first, last in ranks.bars]
    said = [f"Nemenyi's critical difference at {p_text(ranks.level)} is {ranks.critical_difference:.2f}."]
    said.append(f"Not told apart: {'; '.join(groups)}." if groups else "All are told apart.")
    title = f"Average ranks over {ranks.tasks} tasks"
    sheet = Sheet([Head("", "method"), Head("avg.", "rank")], [labels, average], {}, (), 2)
    return markup.escape(title), sheet, [markup.escape(line) for line in said]


def _legend(section: SectionComparison, level: float) -> list[str]:
    if not section.pairs:
        return []
    said = [
        "difference: mean over the seeds that both have; under ↓ below 0 is better. d_z: Cohen's, over seeds, above 0 "
        f"where {section.method} is better; better: share of seeds on which it is, ties half.",
    ]
    families = [f"{section.families[scope]} over {scope}" for scope in ("seeds", "items") if section.families[scope]]
    if families:
        said.append(
            f"p: two-sided, Holm-adjusted for all comparisons of this table ({' and '.join(families)}); * below "
            f"{p_text(level)}."
        )
    if section.families["items"]:
        said.append(
            "p over items takes test items as drawn independently. Frames of one video, and episodes that share "
            "images, are not, and it is then too small."
        )
    kinds = {pair.interval.of for pair in section.pairs if pair.interval}
    if kinds:
        each = [INTERVALS[kind] for kind in INTERVALS if kind in kinds]
        text = f"interval: {100 * (1 - level):g} % paired bootstrap of {', '.join(each)}."
        if any(p.interval and _claims_less(p.interval, level) for p in section.pairs):
            text += " Where another share stands behind it, so few seeds can cover no more."
        said.append(text)
    return said
