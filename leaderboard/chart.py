"""One metric of one table as a bar chart: mean, spread, the bounds as lines."""

from __future__ import annotations

from pathlib import Path

from harness.errors import UserError
from leaderboard.board import Leaderboard, Section


def chart(board: Leaderboard, path: Path, metric: str | None = None) -> Path:
    """Draw `metric` (the first column's by default) of the board's first table; the suffix names the format.

    Students are bars from the best, whiskers are the sample standard deviation over seeds, the teacher and the
    untrained student are lines.

    Raises:
        UserError: no such metric, no row with a number, or a format that matplotlib does not write.
    """
    section = board.sections[0]
    j = _column(section, metric)
    import matplotlib

    matplotlib.use("Agg")  # no display needed
    from matplotlib import pyplot

    column = section.columns[j]
    factor = 100.0 if column.unit == "fraction" else 1.0
    pairs = zip(section.rows, section.cells, strict=True)
    cells = [(row, cells[j]) for row, cells in pairs if cells[j] is not None and row.origin == "measured"]
    bars = [(c.mean, c.spread, r.label) for r, c in cells if c and r.competes]
    bars.sort(key=lambda bar: (bar[0], bar[2]))
    if column.direction == "down":
        bars.reverse()
    if not bars:
        raise UserError(f"no student has a number for {column.title} {column.metric}")
    figure, axes = pyplot.subplots(figsize=(7.5, 1.2 + 0.34 * len(bars)), layout="constrained")
    means = [mean * factor for mean, _, _ in bars]
    # One seed has no spread: no error bar, rather than one of width 0.
    spreads = [float("nan") if spread is None else spread * factor for _, spread, _ in bars]
    axes.barh([label for *_, label in bars], means, xerr=spreads, color="#3d6fa5", ecolor="#222222", capsize=3)
    widest = 1.15 * max(mean + (spread or 0.0) * factor for mean, (_, spread, _) in zip(means, bars, strict=True))
    for row, cell in cells:
        if cell and row.kind != "student":
            style, value = "--" if row.kind == "teacher" else ":", cell.mean * factor
            # A bound far away would squeeze the bars, which are what is compared: it is told in words.
            beyond = ", off the scale" if value > 2 * widest else ""
            place = [float("nan")] if beyond else [value, value]
            axes.plot(place, [0, 1][: len(place)], style, color="#b3541e", transform=axes.get_xaxis_transform())
            axes.lines[-1].set_label(f"{row.label}: {value:.3g}{beyond}")
    axes.set_xlim(left=min(0.0, *means))
    arrow = "higher is better" if column.direction == "up" else "lower is better"
    unit = "%" if column.unit == "fraction" else column.unit
    axes.set_xlabel(f"{column.title} {column.metric} ({unit}), {arrow}")
    axes.set_title(f"{section.key.teacher} to {section.key.student}, {section.key.data}", fontsize=10)
    if any(row.kind != "student" for row, _ in cells):
        axes.legend(loc="lower right", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write {path}: {error}") from error
    finally:
        pyplot.close(figure)
    return path


def _column(section: Section, metric: str | None) -> int:
    if metric is None:
        return 0
    names = [column.metric for column in section.columns]
    if metric not in names:
        from harness.errors import unknown

        raise UserError(unknown("metric", metric, names))
    return names.index(metric)
