"""Maps as pictures for print: images down, columns across, as many bands and pages as they need. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import patheffects
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from harness.pictures.page import ACCENT, HEIGHT_MM, SMALL_PT, TITLE_PT, WIDTH_MM, Page, colour_bar, style, title_mm

if TYPE_CHECKING:
    from harness.pictures.maps import Maps

CELL_MM, LARGEST_MM, GAP_MM = 27.0, 40.0, 1.5  # a map's side where many stand beside each other, and where few do
GUTTER_MM, HEAD_MM, NOTE_MM, BAR_MM = 5.0, 6.0, 3.2, 9.0
PANEL_MM, PANELS = (46.0, 37.0), 3  # a histogram's width and height, and how many stand in a row
EXPANDED = 16  # pixels a patch, so that no viewer smooths a map


@dataclasses.dataclass(frozen=True)
class Shown:
    """The images themselves: [n, H, W, 3] uint8, their names, and the mark's place down and right in [0, 1).

    `hidden` leaves their column out: a licence may allow maps of an image to be published and not the image.
    """

    images: np.ndarray
    names: Sequence[str]
    mark: tuple[float, float]
    hidden: bool = False


@style()
def norm_maps(shown: Shown, maps: Sequence[Maps]) -> list[Figure]:
    """Patch norms; each column has its own colours from 0 to its largest norm, each map says its largest / median."""

    def cell(axes: Any, column: Maps, row: int) -> str:
        norms = column.norms[row]
        axes.imshow(_expanded(norms), cmap="viridis", norm=Normalize(0, float(column.norms.max()) or 1.0))
        return f"max/median {_ratio(norms)}"

    def bar(axes: Any, column: Maps) -> None:
        colour_bar(axes, Normalize(0, float(column.norms.max()) or 1.0), "viridis", "norm")

    return _pages("Patch norms", shown, maps, cell, bar, notes=True)


@style()
def pca_maps(shown: Shown, maps: Sequence[Maps]) -> list[Figure]:
    """The first three principal components as red, green and blue."""

    def cell(axes: Any, column: Maps, row: int) -> str:
        axes.imshow(_expanded(column.rgb[row]))
        return ""

    heading = "First three principal components of unit-length patch tokens, as red, green, blue"
    return _pages(heading, shown, maps, cell)


@style()
def similarity_maps(shown: Shown, maps: Sequence[Maps]) -> list[Figure]:
    """Cosine similarity to the patch under the cross; all columns share their colours."""
    lowest = min(float(column.similarity.min()) for column in maps)
    norm = Normalize(np.floor(min(lowest, 0.9) * 10) / 10, 1.0)

    def cell(axes: Any, column: Maps, row: int) -> str:
        axes.imshow(_expanded(column.similarity[row]), cmap="viridis", norm=norm)
        _cross(axes, column.mark[1] + 0.5, column.mark[0] + 0.5, EXPANDED)
        return ""

    def bar(axes: Any, column: Maps) -> None:
        colour_bar(axes, norm, "viridis", "cosine similarity")

    return _pages("Cosine similarity to the patch under the cross", shown, maps, cell, bar, shared=True)


@style()
def level_charts(maps: Sequence[Maps]) -> list[Figure]:
    """A panel a column: norms of the sample's patches, block by block, with the limit of outliers."""
    positive = [found[found > 0] for column in maps for found in column.levels.values()]
    low = min((float(np.quantile(p, 0.001)) for p in positive if len(p)), default=0.1) / 1.25
    high = max((float(p.max()) for p in positive if len(p)), default=1.0) * 1.25
    edges = np.geomspace(low, high, 61)
    (side, height), left, gap = PANEL_MM, 11.0, 5.0
    rows = [maps[i : i + PANELS] for i in range(0, len(maps), PANELS)]
    heights = [title_mm([column.title for column in row], side) + height + 8.0 for row in rows]
    figures = []
    for batch in _batches(heights, HEIGHT_MM - HEAD_MM - BAR_MM):
        width = left + max(2, *(len(rows[i]) for i in batch)) * (side + gap) + 1  # the words below need two panels
        page = Page(width, HEAD_MM + sum(heights[i] for i in batch) + BAR_MM)
        page.text(0.5, 1.5, "Patch norms block by block", TITLE_PT, weight="bold")
        top = HEAD_MM
        for i in batch:
            above = heights[i] - height - 8.0
            for j, column in enumerate(rows[i]):
                x = left + j * (side + gap)
                page.title(x, top, side, above, column.title)
                axes = page.axes(x, top + above, side, height)
                _levels(axes, column, edges)
                axes.set_ylabel("norm" if j == 0 else "", labelpad=1)
                axes.tick_params(labelleft=j == 0)
            top += heights[i]
        colour_bar(page.axes(left, top + 1, side, 1.8), LogNorm(1e-4, 1), "viridis", "share of the block's patches")
        words = "outliers lie over the line (robust z > 5.5)"
        page.text(left + side + gap, top + 1.9, words, SMALL_PT, color=ACCENT, va="center")
        figures.append(page.figure)
    return figures


def _levels(axes: Any, column: Maps, edges: np.ndarray) -> None:
    """One panel: a histogram a block as a strip of colours."""
    for layer, norms in column.levels.items():
        counts, _ = np.histogram(np.clip(norms, edges[0], edges[-1]), edges)
        share = np.ma.masked_equal(counts / counts.sum(), 0)
        axes.pcolormesh([layer - 0.45, layer + 0.45], edges, share[:, None], cmap="viridis", norm=LogNorm(1e-4, 1))
        limit = column.limits[layer]
        axes.plot([layer - 0.45, layer + 0.45], [limit, limit], color=ACCENT, linewidth=1.2)
    axes.set(yscale="log", xlim=(-0.7, column.depth - 0.3), ylim=(edges[0], edges[-1]))
    axes.set_xlabel("after block", labelpad=1)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    steps = (1, 2, 5) if edges[-1] < 200 * edges[0] else (1, 3) if edges[-1] < 1e5 * edges[0] else (1,)
    ticks = [m * 10.0**e for e in range(-12, 13) for m in steps if edges[0] <= m * 10.0**e <= edges[-1]]
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.tick_params(labelsize=SMALL_PT, pad=1.5, length=2)
    axes.spines[["top", "right"]].set_visible(False)


def _pages(
    heading: str,
    shown: Shown,
    maps: Sequence[Maps],
    cell: Callable[[Any, Maps, int], str],
    bar: Callable[[Any, Maps], None] | None = None,
    *,
    notes: bool = False,
    shared: bool = False,
) -> list[Figure]:
    """Bands of as many columns as fit beside the images, as many bands a page as fit below one another.

    Args:
        cell: draws one map and returns the note under it. bar: draws a column's colour bar.
        notes: whether there are any. shared: one bar a band; the mark is drawn on the images too.
    """
    side, across = _sides(len(maps))
    bands = [maps[i : i + across] for i in range(0, len(maps), across)]
    above = [title_mm([column.title for column in band], side, small=True) for band in bands]
    row_mm = side + (NOTE_MM if notes else 0) + GAP_MM
    below = len(shown.images) * row_mm + (BAR_MM if bar else 2.0)
    figures = []
    for batch in _batches([high + below for high in above], HEIGHT_MM - HEAD_MM):
        width = GUTTER_MM + (1 - shown.hidden + max(len(bands[i]) for i in batch)) * (side + GAP_MM) + 1
        page = Page(width, HEAD_MM + sum(above[i] + below for i in batch))
        page.text(0.5, 1.5, heading, TITLE_PT, weight="bold")
        top = HEAD_MM
        for i in batch:
            _band(page, top, above[i], side, row_mm, shown, bands[i], (cell, bar), shared)
            top += above[i] + below
        figures.append(page.figure)
    return figures


def _batches(heights: Sequence[float], room: float) -> list[list[int]]:
    """Numbers of what fits below one another on a page, page by page; at least one a page."""
    pages: list[list[int]] = []
    left = 0.0
    for number, height in enumerate(heights):
        if not pages or height > left:
            pages.append([])
            left = room
        pages[-1].append(number)
        left -= height
    return pages


def _band(
    page: Page,
    top: float,
    above: float,
    side: float,
    row_mm: float,
    shown: Shown,
    band: Sequence[Maps],
    draw: tuple[Callable[[Any, Maps, int], str], Callable[[Any, Maps], None] | None],
    shared: bool,
) -> None:
    """Images at the left, a column of maps each beside them, colour bars below."""
    cell, bar = draw
    if not shown.hidden:
        page.title(GUTTER_MM, top, side, above, "image")
    for row, (image, name) in enumerate(zip(shown.images, shown.names, strict=True)):
        y = top + above + row * row_mm
        page.text(GUTTER_MM - 0.8, y + side / 2, _short(name, side), SMALL_PT - 1, rotation=90, ha="right", va="center")
        if shown.hidden:
            continue
        axes = _bare(page.axes(GUTTER_MM, y, side, side))
        axes.imshow(image)
        if shared:
            _cross(axes, shown.mark[1], shown.mark[0], image.shape[0])
    for j, column in enumerate(band, start=1):
        x = GUTTER_MM + (j - shown.hidden) * (side + GAP_MM)
        page.title(x, top, side, above, column.title, f"after block {column.layer}")
        for row in range(len(shown.images)):
            y = top + above + row * row_mm
            note = cell(_bare(page.axes(x, y, side, side)), column, row)
            if note:
                page.text(x + side / 2, y + side + 0.5, note, SMALL_PT, ha="center")
        if bar is not None and (j == 1 or not shared):
            bar(page.axes(x + 1, top + above + len(shown.images) * row_mm + 0.3, side - 2, 1.8), column)


def _sides(columns: int) -> tuple[float, int]:
    """A map's side in millimetres, and how many columns stand beside the images."""
    free = WIDTH_MM - GUTTER_MM - 2
    across = min(columns, int(free // (CELL_MM + GAP_MM)) - 1)
    return min(LARGEST_MM, free / (across + 1) - GAP_MM), across


def _short(name: str, side: float) -> str:
    """The end of a file's name, which tells it from its neighbours."""
    room = int(side / 1.15)
    return name if len(name) <= room else "..." + name[-room + 3 :]


def _expanded(values: np.ndarray) -> np.ndarray:
    return values.repeat(EXPANDED, axis=0).repeat(EXPANDED, axis=1)


def _bare(axes: Any) -> Any:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    return axes


def _cross(axes: Any, x: float, y: float, scale: float) -> None:
    """A cross that is seen on any colour, at (x, y) in units of `scale` pixels."""
    outline = [patheffects.withStroke(linewidth=2.2, foreground="white")]
    (line,) = axes.plot([x * scale - 0.5], [y * scale - 0.5], "x", color="black", markersize=4.5, markeredgewidth=1.0)
    line.set_path_effects(outline)


def _ratio(norms: np.ndarray) -> str:
    """Largest over median norm, three figures."""
    median = float(np.median(norms))
    return f"{norms.max() / median:.3g}" if median > 0 else "(median 0)"
