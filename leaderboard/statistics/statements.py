"""Sentences that a comparison allows, and which it does not allow. Pure functions.

Each says what it is about: training again (over seeds), other test items with the same trained students (over items),
or other tasks with the same trained students: what is luck in training is shared by all tasks of a student. Where the
data cannot reach the level whatever they say, that is the sentence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from leaderboard.statistics.comparison import Pair, Scope, SectionComparison, Significance, Statement
from leaderboard.statistics.resampling import LEAST_SEEDS

_THESE = "these trained students on such"


def statements(section: SectionComparison, level: float) -> list[Statement]:
    """All of a section; none where there is nothing to compare."""
    if not section.method:
        return [Statement("data", "The method that was asked for has no number here.")]
    if not section.pairs:
        return [Statement("data", f"Nothing has a seed in common with {section.method}, so nothing is compared.")]
    found = [*_unpaired(section), *_over_seeds(section, level), *_over_items(section, level)]
    return [*found, *_over_tasks(section, level), *_of_ranks(section, level)]


def _unpaired(section: SectionComparison) -> Iterator[Statement]:
    """What is left out, or stands there twice."""
    counts = Counter(column.task for column in section.columns)
    for task, count in counts.items():
        if count > 1:
            yield Statement(
                "data", f"{task} was measured under {count} protocols: {count} columns, and one task where tasks count."
            )
    left = [pair for pair in section.pairs if pair.unpaired]
    if left:
        rows = list(dict.fromkeys(pair.other for pair in left))
        yield Statement(
            "data",
            f"{section.method} does not have the same seeds as {_listed(rows)} everywhere; only the seeds that both "
            "have are compared.",
        )
    if section.missing:
        rows = list(dict.fromkeys(other for other, _ in section.missing))
        yield Statement("data", f"Not every task has a number of both {section.method} and {_listed(rows)}.")


def _over_seeds(section: SectionComparison, level: float) -> Iterator[Statement]:
    tested = [(pair, pair.by_seed) for pair in section.pairs if pair.by_seed is not None]
    family, most = section.families["seeds"], max(len(pair.seeds) for pair in section.pairs)
    if not tested:
        yield Statement(
            "seeds",
            f"No statement about training again: {_seeds([most])} at most are paired, and fewer than {LEAST_SEEDS} "
            "say nothing.",
        )
        return
    least = min(test.smallest for _, test in tested)
    if least * family >= level:
        yield Statement(
            "seeds",
            f"No statement about training again: {_seeds([most])} at most are paired, "
            f"{_out_of_reach(least, family, level)}.",
        )
        return
    about = f"Holm-adjusted p < {p_text(level)} over {family} comparison{'s' * (family > 1)}, signs flipped over "
    yield from _each(section, "seeds", level, lambda pair: pair.by_seed, lambda some: about + _seeds(some))


def _out_of_reach(least: float, family: int, level: float) -> str:
    """Why no p can get below the level, where the least alone or its correction does not."""
    alone = f"the smallest p is {p_text(least)}"
    if least < level:
        alone += f", and {p_text(min(1.0, least * family))} after Holm's correction for {family} comparisons"
    return f"with which {alone}, not below {p_text(level)}, whatever the numbers are"


def _over_items(section: SectionComparison, level: float) -> Iterator[Statement]:
    family = section.families["items"]
    yield from _dependent(section)
    independent = [pair for pair in section.pairs if pair.by_item is not None and pair.independent]
    if family and not independent:
        return
    if not family:
        reasons = list(dict.fromkeys(pair.note for pair in section.pairs if pair.note))
        yield Statement("items", f"No statement over test items: {_listed(reasons, 2) or 'they give no number'}.")
        return
    tests = [(pair.items or 0, pair.by_item.smallest) for pair in independent if pair.by_item is not None]
    most, least = max(count for count, _ in tests), min(smallest for _, smallest in tests)
    if least * family >= level:
        yield Statement(
            "items",
            f"No statement over test items: {most} items at most are paired, {_out_of_reach(least, family, level)}.",
        )
        return
    about = (
        f"Holm-adjusted p < {p_text(level)} over {family} comparison{'s' * (family > 1)}, answers swapped item by "
        f"item; {_THESE} test items, not training again"
    )
    yield from _each(section, "items", level, lambda p: p.by_item if p.independent else None, lambda _: about)


def _dependent(section: SectionComparison) -> Iterator[Statement]:
    """The columns of whose items none is a draw of its own: p is told, and nothing is said by it."""
    columns = {pair.column for pair in section.pairs if pair.by_item is not None and not pair.independent}
    if columns:
        tasks = list(dict.fromkeys(section.columns[number].task for number in sorted(columns)))
        yield Statement(
            "items",
            f"No statement over test items of {_listed(tasks)}: they share images, so p and interval are about these "
            "images alone.",
        )


def _each(
    section: SectionComparison,
    scope: Scope,
    level: float,
    of: Callable[[Pair], Significance | None],
    about: Callable[[Sequence[int]], str],
) -> Iterator[Statement]:
    """A sentence a row and direction in which something is significant; one for all rows where nothing is."""
    undecided = []
    word = "task" if len({column.task for column in section.columns}) == len(section.columns) else "column"
    for other in section.others:
        tested = [(pair, test) for pair in section.pairs if pair.other == other and (test := of(pair)) is not None]
        if not tested:
            continue
        seeds = [len(pair.seeds) for pair, _ in tested]
        apart = [pair for pair, test in tested if test.below(level)]
        ways = {">": sum(pair.better > 0 for pair in apart), "<": sum(pair.better < 0 for pair in apart)}
        first, *more = [f"{sign} {{}}{count}" for sign, count in ways.items() if count] or [""]
        if not first:
            undecided.append((other, seeds))
            continue
        what = f" of {len(tested)} {word}{'s' * (len(tested) > 1)}"
        said = first.format(f"{other} on ") + what + "".join(f", {one.format('on ')}" for one in more)
        yield Statement(scope, f"{section.method} {said} ({about(seeds)}).", other)
    if undecided:
        every = sorted({number for _, seeds in undecided for number in seeds})
        names = _listed([other for other, _ in undecided])
        yield Statement(scope, f"{section.method} and {names} are not told apart on any {word} ({about(every)}).")


def _over_tasks(section: SectionComparison, level: float) -> Iterator[Statement]:
    family = section.families["tasks"]
    if not family:
        return
    least, most = min(one.test.smallest for one in section.over_tasks), max(one.tasks for one in section.over_tasks)
    if least * family >= level:
        yield Statement(
            "tasks",
            f"No statement about other tasks: over {most} tasks and {family} comparison{'s' * (family > 1)} Wilcoxon's "
            f"test can give no adjusted p below {p_text(min(1.0, least * family))}.",
        )
        return
    for one in section.over_tasks:
        if one.test.below(level):
            sign = ">" if one.better > 0 else "<"
            yield Statement(
                "tasks",
                f"{section.method} {sign} {one.other} over {one.tasks} tasks (Wilcoxon's signed-rank test, "
                f"Holm-adjusted {p_is(one.test.adjusted)}; {_THESE} tasks, not training again).",
                one.other,
            )


def _of_ranks(section: SectionComparison, level: float) -> Iterator[Statement]:
    ranks = section.ranks
    if ranks is None:
        yield Statement("ranks", "No average ranks: they need two tasks and two students that have them all.")
        return
    told = "differ" if ranks.p < level else "are not told apart"
    test = "Friedman's test" if len(ranks.labels) > 2 else "the sign test"
    yield Statement(
        "ranks",
        f"Average ranks of {len(ranks.labels)} students over {ranks.tasks} tasks {told} ({test}, {p_is(ranks.p)}"
        f"{f'; {_THESE} tasks, not training again' * (ranks.p < level)}).",
    )
    if ranks.p >= level:
        return
    if section.method in ranks.labels:
        mine = ranks.average[ranks.labels.index(section.method)]
        gaps = [(label, rank - mine) for label, rank in zip(ranks.labels, ranks.average, strict=True)]
        ahead = [label for label, gap in gaps if gap >= ranks.critical_difference]
        behind = [label for label, gap in gaps if -gap >= ranks.critical_difference]
        said = [f"ranks ahead of {_listed(ahead)}"] * bool(ahead) + [f"ranks behind {_listed(behind)}"] * bool(behind)
        yield Statement(
            "ranks",
            f"{section.method} {' and '.join(said) or 'is told apart from no other by its rank'} (Nemenyi's test, "
            f"critical difference {ranks.critical_difference:.2f} at {p_text(level)}; {_THESE} tasks, not training "
            "again).",
        )


def _seeds(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    number = f"{low}" if low == high else f"{low} to {high}"
    return f"{number} seed{'s' * (high != 1)}"


def _listed(names: Sequence[str], most: int = 5) -> str:
    shown = list(names[:most]) + [f"{len(names) - most} more"] * (len(names) > most)
    return " and ".join(filter(None, [", ".join(shown[:-1]), *shown[-1:]]))


def p_text(value: float) -> str:
    """A p value as journals write it.

    >>> [p_text(0.05), p_text(0.0001), p_text(1.0), p_text(0.03125), p_text(1e-9)]
    ['.05', '.0001', '1', '.031', '<.0001']
    """
    text = f"{value:.2g}" if value >= 1e-4 else "<.0001"
    return text.removeprefix("0") if text.startswith("0.") else text


def p_is(value: float) -> str:
    """`p = .03` or `p < .0001`."""
    text = p_text(value)
    return f"p < {text[1:]}" if text.startswith("<") else f"p = {text}"
