"""A table of texts -> a page of Markdown, LaTeX or plain text, with its heading and its legend. Pure functions."""

from __future__ import annotations

import dataclasses
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

from tabulate import tabulate

from leaderboard.markup import escape_latex, escape_markdown

LONGEST_HEAD = 12  # characters to a line of a plain column's head, where it can be broken and its numbers are shorter
_PREAMBLE = (
    r"% Needs \usepackage{booktabs}. With \usepackage{siunitx} that sets the numbers; without, the first line does.",
    r"% With \usepackage{graphicx} a table that is wider than the line is made as wide as it.",
    r"\providecommand{\num}[2][]{\ensuremath{#2}}",
    r"\providecommand{\firstbest}[1]{\textbf{\boldmath\num[detect-all]{#1}}}",
    r"\providecommand{\secondbest}[1]{\underline{\num{#1}}}",
    r"\providecommand{\fitted}[1]{\sbox0{#1}\ifdim\wd0>\linewidth\ifdefined\resizebox"
    r"\resizebox{\linewidth}{!}{\usebox0}\else\usebox0\fi\else\usebox0\fi}",
)


class Head(NamedTuple):
    """A column's name in two parts, such as a task and its metric; not escaped."""

    over: str
    under: str


@dataclasses.dataclass(frozen=True)
class Sheet:
    """A table.

    Attributes:
        heads: not escaped; of the columns, the first of which names the rows.
        columns: the cells of each, escaped and marked.
        groups: number of a row -> what the group is called that begins there, escaped.
        differences: numbers of the rows that are differences.
        costs: number of the first column of costs.
    """

    heads: Sequence[Head]
    columns: Sequence[Sequence[str]]
    groups: Mapping[int, str]
    differences: Sequence[int]
    costs: int

    @property
    def rows(self) -> list[list[str]]:
        return [list(row) for row in zip(*self.columns, strict=True)]


@dataclasses.dataclass(frozen=True)
class Layout:
    """page: heading, table, legend's lines, width -> a section; all escaped but the heads. notes: lines at the end."""

    page: Callable[[str, Sheet, Sequence[str], int | None], str]
    notes: Callable[[Sequence[str], int | None], str]


def _aligned(rows: Sequence[Sequence[str]], format: str, heads: Sequence[str] = ()) -> list[str]:
    """tabulate's lines. Numbers are right-aligned, and are never written anew."""
    table = tabulate(
        rows,
        headers=heads,
        tablefmt=format,
        disable_numparse=True,
        preserve_whitespace=True,
        colalign=("left", *["right"] * (len(rows[0]) - 1)),
    )
    return table.split("\n")


def _list(lines: Sequence[str], width: int | None) -> str:
    if width is None:
        return "\n".join(f"- {line}" for line in lines)
    return "\n".join(textwrap.fill(line, width, initial_indent="- ", subsequent_indent="  ") for line in lines)


def _markdown_page(heading: str, sheet: Sheet, lines: Sequence[str], width: int | None) -> str:
    heads = [escape_markdown(" ".join(filter(None, head))) for head in sheet.heads]
    table = _aligned(sheet.rows, "pipe", heads)
    for i, name in sorted(sheet.groups.items(), reverse=True):
        table.insert(2 + i, f"| {name} " + "| " * (len(sheet.heads) - 1) + "|")
    return "\n".join([f"### {heading}", "", *table, "", _list(lines, None)])


def _plain_page(heading: str, sheet: Sheet, lines: Sequence[str], width: int | None) -> str:
    heads = [_stacked(head, column) for head, column in zip(sheet.heads, sheet.columns, strict=True)]
    tables = []
    for numbers in _blocks(sheet, heads, width):
        deep = max(len(heads[j]) for j in numbers)
        upper = [[*[""] * (deep - len(heads[j])), *heads[j]] for j in numbers]
        columns = [[*head, *sheet.columns[j]] for head, j in zip(upper, numbers, strict=True)]
        table = _aligned(list(map(list, zip(*columns, strict=True))), "plain")
        rule = "  ".join("-" * max(map(len, column)) for column in columns)
        table.insert(deep, rule)
        for i in sorted({*sheet.groups, *sheet.differences}, reverse=True):
            above = [rule] if i in sheet.differences else [""] * (i > 0) + [sheet.groups[i]]
            table[1 + deep + i : 1 + deep + i] = above
        tables.append("\n".join(line.rstrip() for line in table))
    return "\n\n".join([heading, *tables, _list(lines, width)])


def _stacked(head: Head, column: Sequence[str]) -> list[str]:
    """A head in lines that are no wider than its numbers, or than can be read."""
    wide = max(LONGEST_HEAD, *map(len, column))
    return [line for part in head if part for line in _broken(part, wide)]


def _broken(text: str, width: int) -> list[str]:
    lines = [""]
    for word in re.split(r"(?<=[ _])(?![↑↓])", text):
        if len((lines[-1] + word).rstrip()) > width and lines[-1]:
            lines.append("")
        lines[-1] += word
    return [line.strip() for line in lines]


def _blocks(sheet: Sheet, heads: Sequence[Sequence[str]], width: int | None) -> list[list[int]]:
    """Numbers of columns for each of the tables that are as wide as fits, the names of the rows in each.

    Costs begin a table of their own unless all fit into one.
    """
    pairs = zip(heads, sheet.columns, strict=True)
    wide = [max(map(len, [*head, *column])) for head, column in pairs]
    if width is None or sum(wide) + 2 * (len(wide) - 1) <= width:
        return [list(range(len(wide)))]
    blocks: list[list[int]] = [[0]]
    for j in range(1, len(wide)):
        used = sum(wide[k] + 2 for k in blocks[-1]) + wide[j]
        if len(blocks[-1]) > 1 and (used > width or j == sheet.costs):
            blocks.append([0])
        blocks[-1].append(j)
    return blocks


def _latex_page(heading: str, sheet: Sheet, lines: Sequence[str], width: int | None) -> str:
    heads = [escape_latex(head.under) for head in sheet.heads]
    begin, _, under, _, *rows, _, end = _aligned(sheet.rows, "latex_raw", heads)
    table = [begin, r"\toprule", *_latex_over(sheet.heads), under, r"\midrule"]
    for i, row in enumerate(rows):
        table += [r"\midrule"] * (i in sheet.differences or (i in sheet.groups and i > 0))
        if i in sheet.groups:
            table += [rf"\multicolumn{{{len(sheet.heads)}}}{{l}}{{{sheet.groups[i]}}} \\"]
        table.append(row)
    table += [r"\bottomrule", end]
    notes = [rf"{line}\\" for line in lines[:-1]] + list(lines[-1:])
    return "\n".join(
        [
            *_PREAMBLE,
            r"\begin{table}[t]",
            r"\centering",
            rf"\caption{{{heading}}}",
            r"\smallskip",  # most classes put no space below a caption
            "",
            r"\fitted{%",
            *table[:-1],
            f"{end}}}",
            "",
            r"\smallskip",
            r"\begin{minipage}{\linewidth}\footnotesize",
            *notes,
            r"\end{minipage}",
            r"\end{table}",
        ]
    )


def _latex_over(heads: Sequence[Head]) -> list[str]:
    """The upper line of the heads, one head over columns of the same name that stand together."""
    cells, rules, column = [], [], 1
    for over, together in groupby(head.over for head in heads):
        count = len(list(together))
        if over and count > 1:
            cells.append(rf"\multicolumn{{{count}}}{{c}}{{{escape_latex(over)}}}")
            rules.append(rf"\cmidrule(lr){{{column}-{column + count - 1}}}")
        else:
            cells += [escape_latex(over) if over else ""] * count
        column += count
    return [" & ".join(cells) + r" \\", *([" ".join(rules)] if rules else [])]


LAYOUTS = {
    "markdown": Layout(_markdown_page, lambda lines, width: _list(lines, None)),
    "plain": Layout(_plain_page, _list),
    "latex": Layout(_latex_page, lambda lines, width: "\n".join(f"% {line}" for line in lines)),
}
