"""A page for print: places in millimetres, wrapped titles, colour bars, the same bytes every time. No pyplot.

Figures are drawn with matplotlib's own defaults whatever the user's are, and leave the user's as they were.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from harness.errors import UserError

FORMATS = ("png", "svg", "pdf")
WIDTH_MM, HEIGHT_MM = 180.0, 245.0  # of a printed page's text
TITLE_PT, SMALL_PT = 7.5, 6.0
LINE_MM, SMALL_LINE_MM = 3.0, 2.6
ACCENT = "#d55e00"  # vermillion of Okabe and Ito's palette, which the colour-blind tell from the maps' own colours
_UNDATED: dict[str, dict[str, Any]] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "singer-bench",  # names inside the file are not drawn by chance
    "pdf.fonttype": 42,
    "font.size": SMALL_PT,
    "axes.linewidth": 0.5,
    "xtick.major.width": 0.5,
    "ytick.major.width": 0.5,
}


@contextlib.contextmanager
def style() -> Iterator[None]:
    """matplotlib's defaults and ours, for as long as it lasts; also a decorator."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def rendered(figure: Figure, format: str) -> bytes:
    """The figure as a file's bytes, the same ones every time."""
    stream = io.BytesIO()
    with style():
        figure.savefig(stream, format=format, dpi=250, metadata=_UNDATED[format])
    return stream.getvalue()


class Page:
    """A figure on which places are millimetres from the upper left corner."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width / 25.4, height / 25.4))

    def axes(self, x: float, y: float, width: float, height: float) -> Any:
        place = (x / self.width, 1 - (y + height) / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(place)

    def text(self, x: float, y: float, words: str, size: float, **how: Any) -> None:
        self.figure.text(x / self.width, 1 - y / self.height, words, fontsize=size, va=how.pop("va", "top"), **how)

    def title(self, x: float, y: float, width: float, height: float, words: str, small: str = "") -> None:
        """Centred above what begins at y + height; `small` is a line below it."""
        bottom, middle = y + height - 0.7, x + width / 2
        if small:
            self.text(middle, bottom, small, SMALL_PT, ha="center", va="bottom")
            bottom -= SMALL_LINE_MM
        lines = "\n".join(wrapped(words, width))
        self.text(middle, bottom, lines, TITLE_PT, ha="center", va="bottom", linespacing=1.05)


def title_mm(titles: Sequence[str], width: float, small: bool = False) -> float:
    """Room for the highest of some titles."""
    return 1.2 + LINE_MM * max(len(wrapped(title, width)) for title in titles) + (SMALL_LINE_MM if small else 0)


def wrapped(words: str, width_mm: float) -> list[str]:
    """Lines of at most `width_mm`, broken after spaces and any of _ = -, and elsewhere only if need be."""
    room = max(8, int(width_mm / (TITLE_PT * 0.195)))  # characters; a mean one is .55 of the size in points wide
    lines = [""]
    for part in re.findall(r"[^\s_=-]+[\s_=-]*|[\s_=-]+", words):
        if len((lines[-1] + part).rstrip()) > room and lines[-1]:
            lines.append("")
        while len(part.rstrip()) > room:
            lines[-1], part = part[:room], part[room:]
            lines.append("")
        lines[-1] += part
    return [line.rstrip() for line in lines if line.strip()]


def colour_bar(axes: Any, norm: Normalize, cmap: str, label: str) -> None:
    """A lying colour bar that fills `axes`; a logarithmic one is of shares and says per cent."""
    bar = axes.figure.colorbar(ScalarMappable(norm, cmap), cax=axes, orientation="horizontal")
    bar.set_label(label, fontsize=SMALL_PT, labelpad=0.5)
    if isinstance(norm, LogNorm):
        bar.ax.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
    else:
        bar.locator = MaxNLocator(4, steps=[1, 2, 5, 10])
        bar.update_ticks()
    bar.ax.minorticks_off()
    bar.ax.tick_params(labelsize=SMALL_PT, pad=1, length=1.5)
    bar.outline.set_linewidth(0.4)


def save(path: Path, content: bytes) -> Path:
    """Written under another name and renamed, so that the file is the old or the new whole.

    Raises:
        UserError: the folder cannot be written into.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(content)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {str(path)!r}: {error.strerror}; name another folder with -o") from error
    return path
