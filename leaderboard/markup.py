"""The text formats: how each escapes a name, marks a cell and sets a heading.

Names come from users' files. Whatever is in one must come out as that text: never as markup, a command or
a formula.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence

from leaderboard.labels import DASH, clean

_MARKDOWN = {"<": "&lt;", ">": "&gt;", "&": "&amp;", "|": "&#124;", "@": "&#64;", **{c: f"\\{c}" for c in "\\`*[]~$"}}
_SPECIAL = re.compile(r"[^\w\s.,;+()%±↑↓→-]|_|www", re.IGNORECASE)  # a text without these is its own Markdown
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
    "±": r"$\pm$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "→": r"$\to$",
    DASH: "--",
    **{c: f"\\{c}" for c in "&%$#_{}"},
}


def escape_markdown(name: str) -> str:
    """As GitHub's Markdown, table cells included, shows it literally.

    >>> escape_markdown("logit_kd | <b>*x*")
    'logit_kd &#124; &lt;b&gt;\\\\*x\\\\*'
    """
    text = clean(name)
    if not _SPECIAL.search(text):
        return text
    text = "".join(_MARKDOWN.get(c, c) for c in text)
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)  # within a word it is no markup there
    return re.sub(r"(?i)www\.", lambda m: m[0][:-1] + "&#46;", text.replace("://", "&#58;//"))


def escape_latex(name: str) -> str:
    """As LaTeX text. Scripts beyond Latin need XeLaTeX or LuaLaTeX, and a font that has them."""
    return "".join(_LATEX.get(c, c) for c in clean(name))


def escape_csv(name: str) -> str:
    """A spreadsheet takes a cell that begins with = + - @ for a formula; behind a quote it is text."""
    text = clean(name)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def _same(text: str) -> str:
    return text


@dataclasses.dataclass(frozen=True)
class Markup:
    """One text format.

    Attributes:
        tabulate: tabulate's name of its table. escape: of any text. best, bound: how a cell or a row's name is
        marked, after escaping; best_word, bound_word: the same in words. page: heading, table, escaped legend
        lines -> a section. notes: escaped lines -> the end of everything.
    """

    tabulate: str
    escape: Callable[[str], str]
    best: Callable[[str], str]
    bound: Callable[[str], str]
    best_word: str
    bound_word: str
    page: Callable[[str, str, Sequence[str]], str]
    notes: Callable[[Sequence[str]], str]


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _latex_page(heading: str, table: str, lines: Sequence[str]) -> str:
    rules = iter((r"\toprule", r"\midrule", r"\bottomrule"))
    ruled = "\n".join(next(rules) if line == r"\hline" else line for line in table.split("\n"))
    notes = "\\\\\n".join(lines)
    return (
        "% needs \\usepackage{booktabs}\n\\begin{table}[t]\n\\centering\n"
        f"\\caption{{{heading}}}\n{ruled}\n\n\\smallskip\n"
        f"\\begin{{minipage}}{{\\linewidth}}\\footnotesize\n{notes}\n\\end{{minipage}}\n\\end{{table}}"
    )


MARKUPS = {
    "markdown": Markup(
        tabulate="pipe",
        escape=escape_markdown,
        best=lambda text: f"**{text}**",
        bound=lambda text: f"*{text}*",
        best_word="bold",
        bound_word="in italics",
        page=lambda heading, table, lines: f"### {heading}\n\n{table}\n\n{_list(lines)}",
        notes=_list,
    ),
    "plain": Markup(
        tabulate="simple",
        escape=clean,
        best=lambda text: f"{text}*",
        bound=lambda text: f"{text} (bound)",
        best_word="marked *",
        bound_word="with (bound)",
        page=lambda heading, table, lines: f"{heading}\n\n{table}\n\n{_list(lines)}",
        notes=_list,
    ),
    "latex": Markup(
        tabulate="latex_raw",
        escape=escape_latex,
        best=lambda text: f"\\textbf{{{text}}}",
        bound=lambda text: f"\\emph{{{text}}}",
        best_word="bold",
        bound_word="in italics",
        page=_latex_page,
        notes=lambda lines: "\n".join(f"% {line}" for line in lines),
    ),
}
