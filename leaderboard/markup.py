"""The text formats: how each escapes a name, sets a number and lays out a page.

Names come from users' files. Whatever is in one must come out as that text: never as markup, a command or
a formula.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from leaderboard.labels import DASH, MINUS, clean

_MARKDOWN = {"<": "&lt;", ">": "&gt;", "&": "&amp;", "|": "&#124;", "@": "&#64;", **{c: f"\\{c}" for c in "\\`*[]~$"}}
_SPECIAL = re.compile(r"[^\w\s.,;+()%±↑↓→-]|_|www", re.IGNORECASE)  # a text without these is its own Markdown
_BLOCK = re.compile(r"^[#+-](?=[#+\s-]|$)|^(\d{1,9})([.)])(?=\s|$)")  # would begin a heading, a list, a rule
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # after the end of a row, [ and * would be its arguments
    "]": "{]}",
    "*": "{*}",
    '"': r"\char34{}",  # a command of its own in some languages
    "±": r"$\pm$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "→": r"$\to$",
    MINUS: "$-$",
    DASH: "--",
    **{c: f"\\{c}" for c in "&%$#_{}"},
}
_LIGATURE = re.compile(r"([-,'`])(?=\1)|[?!](?=`)")  # two signs of which LaTeX would make another one
_FORMULA = "=+-@＝＋－＠"  # spreadsheets take the wide ones too
_NUMBER = re.compile(r"(\+?)([<-]?\d+(?:\.\d+)?)(?:e([+-]\d+))?")


def escape_markdown(name: str) -> str:
    """As GitHub's Markdown, table cells included, shows it literally.

    >>> escape_markdown("logit_kd | <b>*x*")
    'logit_kd &#124; &lt;b&gt;\\\\*x\\\\*'
    """
    text = clean(name)
    if _SPECIAL.search(text):
        text = "".join(_MARKDOWN.get(c, c) for c in text)
        text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)  # within a word it is no markup there
        text = re.sub(r"(?i)www\.", lambda m: m[0][:-1] + "&#46;", text.replace("://", "&#58;//"))
        text = re.sub(r":(?=[\w+-]+:)", "&#58;", text)  # an emoji's name
    return _BLOCK.sub(lambda m: f"{m[1] or ''}\\{m[2] or m[0]}", text)


def escape_latex(name: str) -> str:
    """As LaTeX text. Scripts beyond Latin need XeLaTeX or LuaLaTeX, and a font that has them.

    >>> escape_latex("50% of x_1")
    '50\\\\% of x\\\\_1'
    """
    text = _LIGATURE.sub("\\g<0>\0", clean(name))
    return "".join(_LATEX.get(c, c) for c in text).replace("\0", "{}")


def escape_csv(name: str) -> str:
    """A spreadsheet takes a cell that begins with = + - @ for a formula; behind a quote it is text.

    >>> escape_csv("=1+1")
    "'=1+1"
    """
    text = clean(name)
    return f"'{text}" if text.lstrip("'").startswith(tuple(_FORMULA)) else text


class Piece(NamedTuple):
    """A number as a cell shows it: digits, "best" or "second" or "", digits of the spread or "", what stands behind."""

    mean: str
    mark: str = ""
    spread: str = ""
    tail: str = ""


@dataclasses.dataclass(frozen=True)
class Markup:
    """One text format.

    Attributes:
        escape: of any text. strong, bound: how the name of a group and of a bound is marked, after escaping.
        cells: a column's pieces as they stand in the table.
        best, second, bounds: how the legend speaks of them.
    """

    escape: Callable[[str], str]
    strong: Callable[[str], str]
    bound: Callable[[str], str]
    cells: Callable[[Sequence[Piece]], list[str]]
    best: str
    second: str
    bounds: str


def _markdown_cells(pieces: Sequence[Piece]) -> list[str]:
    signs = {"": "", "best": "**", "second": "*"}
    found = []
    for mean, mark, spread, tail in pieces:
        parts = [signs[mark] + escape_markdown(mean) + signs[mark]]
        parts += [f"± {escape_markdown(spread)}"] * bool(spread) + [escape_markdown(tail)] * bool(tail)
        found.append(" ".join(parts))
    return found


def _latex_cells(pieces: Sequence[Piece]) -> list[str]:
    commands = {"": "num", "best": "firstbest", "second": "secondbest"}
    found = []
    for mean, mark, spread, tail in pieces:
        parts = [_latex_number(mean, commands[mark])]
        parts += [rf"$\pm$ {_latex_number(spread, 'num')}"] * bool(spread) + [escape_latex(tail)] * bool(tail)
        found.append(" ".join(parts))
    return found


def _latex_number(text: str, command: str) -> str:
    r"""\num{1.5}; powers of ten and a plus stand outside, where they look the same with siunitx and without."""
    if (parts := _NUMBER.fullmatch(text)) is None:
        return escape_latex(text)
    plus, digits, power = parts.groups()
    return f"{'$+$' * bool(plus)}\\{command}{{{digits}}}" + (rf"$\times10^{{{int(power)}}}$" if power else "")


def _plain_cells(pieces: Sequence[Piece]) -> list[str]:
    """Digits above digits, spreads above spreads."""
    signs = {"": "", "best": "*", "second": "†"}
    wide = [max((len(part) for part in parts), default=0) for parts in zip(*pieces, strict=True)]
    found = []
    for mean, mark, spread, tail in pieces:
        text = mean.rjust(wide[0]) + signs[mark].ljust(bool(wide[1]))
        text += (f" ± {spread}" if spread else "").ljust(wide[2] + 3 if wide[2] else 0)
        found.append(text + (f" {tail}" if tail else "").ljust(wide[3] + 1 if wide[3] else 0))
    return found


MARKUPS = {
    "markdown": Markup(
        escape=escape_markdown,
        strong=lambda text: f"**{text}**",
        bound=lambda text: f"*{text}*",
        cells=_markdown_cells,
        best="bold",
        second="in italics",
        bounds="whose name is in italics",
    ),
    "plain": Markup(
        escape=clean,
        strong=lambda text: text,
        bound=lambda text: f"{text} (bound)",
        cells=_plain_cells,
        best="marked *",
        second="marked †",
        bounds="with (bound)",
    ),
    "latex": Markup(
        escape=escape_latex,
        strong=lambda text: rf"\textbf{{{text}}}",
        bound=lambda text: rf"\emph{{{text}}}",
        cells=_latex_cells,
        best="bold",
        second="underlined",
        bounds="whose name is in italics",
    ),
}
