"""Average ranks as a critical-difference diagram (Demšar, JMLR 7, 2006): SVG, the same bytes for the same ranks."""

from __future__ import annotations

from html import escape

from leaderboard.labels import clean
from leaderboard.statistics.comparison import Ranks

WIDTH, MARGIN = 880, 290  # pixels; the names of methods stand in the margins, 32 wide letters of 7 pixels and a rank
LINE, BAR = 20, 10  # pixels between names, and between bars
LONGEST = 32  # characters of a name
# Its own ink and paper: as a picture in a dark page it cannot see the colour of the text around it.
_STYLE = "rect{fill:#fff}text{font:13px sans-serif;fill:#000}path{stroke:#000;fill:none}.bar{stroke-width:4}"


def diagram(ranks: Ranks, title: str = "") -> str:
    """An SVG document: an axis of ranks, 1 on the left; the better half of the names left of it, the others right.

    Bars join rows that are not told apart. Black on white. A name that is cut short is whole where the mouse rests.
    """
    count = len(ranks.labels)
    last = max(count, 2)

    def x(rank: float) -> float:
        return MARGIN + (WIDTH - 2 * MARGIN) * (rank - 1) / (last - 1)

    said = f"Average ranks over {ranks.tasks} tasks, critical difference {ranks.critical_difference:.2f}"
    below = 82  # of the axis
    foot = below + 14 + BAR * len(ranks.bars)  # of the bars
    left = (count + 1) // 2
    height = foot + LINE * (max(left, count - left) + 1)
    parts = [_text(WIDTH / 2, 16, _short(title, WIDTH // 8), "middle")] if title else []
    parts.append(_text(WIDTH / 2, 36, said, "middle"))
    ticks = range(1, last + 1) if last <= 12 else sorted({1, *range(5, last, max(5, last // 50 * 5)), last})
    parts.append(_path(f"M{x(1):.1f} {below}H{x(last):.1f}"))
    for tick in ticks:
        parts += [_path(f"M{x(tick):.1f} {below}v-6"), _text(x(tick), below - 10, f"{tick}", "middle")]
    apart = min(x(1 + ranks.critical_difference), x(last))
    parts.append(_path(f"M{x(1):.1f} 51v-6m0 3H{apart:.1f}m0 3v-6"))
    for place, (first, end) in enumerate(ranks.bars):
        y = below + 12 + BAR * place
        parts.append(_path(f"M{x(ranks.average[first]) - 4:.1f} {y}H{x(ranks.average[end]) + 4:.1f}", "bar"))
    for i, (label, rank) in enumerate(zip(ranks.labels, ranks.average, strict=True)):
        y = foot + LINE * ((i if i < left else count - 1 - i) + 1)
        side, anchor = (MARGIN - 10, "end") if i < left else (WIDTH - MARGIN + 10, "start")
        parts.append(_path(f"M{x(rank):.1f} {below}V{y - 4}H{side + (4 if i < left else -4)}"))
        parts.append(_text(side, y, f"{_short(label, LONGEST)} {rank:.2f}", anchor, label))
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(clean(f"{title}: {said}" if title else said))}">\n'
        f'<style>{_STYLE}</style>\n<rect width="{WIDTH}" height="{height}"/>\n{body}\n</svg>\n'
    )


def _short(name: str, longest: int) -> str:
    text = clean(name)
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _text(x: float, y: float, text: str, anchor: str, name: str = "") -> str:
    """name: whole, where the text holds it cut short."""
    whole = f"<title>{escape(clean(name))}</title>" if len(clean(name)) > LONGEST else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{whole}{escape(clean(text))}</text>'


def _path(d: str, kind: str = "line") -> str:
    return f'<path class="{kind}" d="{d}"/>'
