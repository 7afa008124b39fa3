"""Tests, intervals and ranks against examples worked by hand or printed, and on data without a difference."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from harness.items import Items
from leaderboard.statistics import by_item as items_of_pairs
from leaderboard.statistics import ranks, resampling, significance
from leaderboard.statistics.resampling import ItemDraws, percentiles, seed_weights, swap_p
from leaderboard.statistics.significance import (
    holm,
    sign_flip,
    sign_flip_of_counts,
    smallest_p,
    standardised,
    superiority,
    wilcoxon,
)

# Heights of crossed minus self-fertilised maize, eighths of an inch: Darwin's, in R. A. Fisher, The Design of
# Experiments (1935), section 21, where 863 of the 32,768 flips reach the sum 314 or more.
DARWIN = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]
differences = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=8)


def four_errors(share: float, tests: int) -> float:
    """Four standard errors of a share: what a seeded draw may be off by."""
    return 4 * math.sqrt(share * (1 - share) / tests)


# ---- tests of paired differences


def test_fishers_own_example():
    assert sum(DARWIN) == 314
    (p,) = sign_flip(np.array([DARWIN]))
    assert p == 2 * 863 / 32_768


@given(differences)
def test_sign_flips_are_counted_as_by_enumeration(found):
    observed = abs(sum(found))
    flips = [abs(sum(s * d for s, d in zip(signs, found))) for signs in itertools.product((1, -1), repeat=len(found))]  # noqa: B905
    (p,) = sign_flip(np.array([found]))
    assert p == sum(flip >= observed for flip in flips) / len(flips)


def test_sign_flips_are_scipys_permutation_test():
    found = np.random.default_rng(0).normal(0.3, 1, 9)
    theirs = stats.permutation_test((found,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip(found[None])[0] == pytest.approx(theirs.pvalue)


@pytest.mark.parametrize("count", [16, 17])
def test_flips_of_many_are_counted_by_halves(count):
    found = np.random.default_rng(count).integers(-3, 5, (5, count)).astype(float)
    flips = significance.all_signs(count) @ found.T
    assert (sign_flip(found) == (np.abs(flips) >= np.abs(found.sum(axis=1))).mean(axis=0)).all()
    assert sign_flip(np.full((1, 30), 0.1)) == 2 / 2**30


def test_no_more_is_promised_of_random_flips_than_they_can_give():
    assert sign_flip(np.arange(1.0, 41.0)[None])[0] == smallest_p(40) == 1 / 10_000


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=10))
def test_flips_of_whole_numbers_are_counted_as_by_enumeration(found):
    assert sign_flip_of_counts(np.array(found)) == pytest.approx(sign_flip(np.array([found]))[0])


@pytest.mark.parametrize(("better", "worse"), [(1, 0), (12, 3), (30, 30), (260, 201), (5_200, 4_800), (70_000, 68_900)])
def test_one_seed_of_right_and_wrong_answers_is_mcnemars_exact_test(better, worse):
    found = np.repeat([1, -1, 0], [better, worse, 100])
    theirs = stats.binomtest(better, better + worse).pvalue
    assert sign_flip_of_counts(found) == pytest.approx(theirs, rel=1e-9)


def test_a_p_that_a_fourier_transform_cannot_tell_from_nothing_is_not_nothing():
    assert sign_flip_of_counts(np.ones(5_000)) == significance.TINY
    assert sign_flip_of_counts(np.ones(20)) == pytest.approx(2 / 2**20)


def test_random_flips_are_near_the_exact_ones(monkeypatch):
    monkeypatch.setattr(significance, "EXACT", 8)
    (p,) = sign_flip(np.array([DARWIN]))
    assert p == pytest.approx(2 * 863 / 32_768, abs=0.01)
    assert sign_flip(np.array([DARWIN]))[0] == p  # drawn from a seed
    assert sign_flip(np.full((1, 20), 3.0))[0] == pytest.approx(1 / 10_000, abs=1e-3)  # and never 0


@given(differences)
def test_no_p_is_below_the_smallest(found):
    assert sign_flip(np.array([found]))[0] >= smallest_p(len(found))
    assert sign_flip(np.abs([found]) + 1)[0] == smallest_p(len(found))  # all of one sign


@given(differences, st.randoms())
def test_neither_order_nor_direction_of_the_differences_matters(found, random):
    shuffled = random.sample(found, len(found))
    assert sign_flip(np.array([found]))[0] == sign_flip(-np.array([shuffled]))[0]
    assert wilcoxon(found)[1] == wilcoxon([-d for d in shuffled])[1]
    assert superiority(found) == pytest.approx(1 - superiority([-d for d in shuffled]))
    one, other = standardised(found), standardised([-d for d in shuffled])
    assert (one is None and other is None) or one == pytest.approx(-(other or 0.0))


def test_differences_that_are_all_zero_decide_nothing():
    assert sign_flip(np.zeros((1, 6)))[0] == 1 and wilcoxon([0.0] * 6) == (0.0, 1.0)
    assert standardised([0.0, 0.0]) == 0 and superiority([0.0, 0.0]) == 0.5


def test_wilcoxons_test_on_darwins_data():
    # Ranks of the two negative differences: 14 and 10; 96 - 24 = 72 above them.
    total, p = wilcoxon(DARWIN)
    assert total == 120 - 2 * 24
    assert p == pytest.approx(stats.wilcoxon(DARWIN, method="exact").pvalue) == pytest.approx(0.0413, abs=5e-5)


def test_wilcoxons_test_with_ties_and_zeros_by_hand():
    # Ranks 1.5, 1.5, 3; the flips' sums of ranks are 6, 3, 3, 0, 0, -3, -3, -6.
    assert wilcoxon([0.0, 1.0, -1.0, 2.0]) == (3.0, 6 / 8)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == [] and holm([0.2]) == [0.2]


@given(st.lists(st.floats(0, 1), max_size=12), st.randoms())
def test_holm_is_between_no_correction_and_bonferroni_in_any_order(p, random):
    adjusted = holm(p)
    assert all(a <= b <= min(1.0, len(p) * a) + 1e-12 for a, b in zip(p, adjusted, strict=True))
    order = random.sample(range(len(p)), len(p))
    assert holm([p[i] for i in order]) == [adjusted[i] for i in order]


def test_effects_by_hand():
    assert standardised([1.0, 2.0, 3.0]) == pytest.approx(2.0)
    assert standardised([2.0, 2.0]) is None and standardised([1.0]) is None  # no spread to measure by
    assert superiority([1.0, 0.0, -1.0, 2.0]) == (2 + 0.5) / 4


# ---- ranks


def test_nemenyis_critical_difference_of_demsars_example():
    # JMLR 7 (2006), section 3.2.2: four classifiers on 14 data sets; 2.569 and 1.25.
    assert ranks.critical_difference(4, 14, 0.05) == pytest.approx(1.25, abs=0.005)
    q = ranks.critical_difference(4, 14, 0.05) / math.sqrt(4 * 5 / (6 * 14))
    assert q == pytest.approx(2.569, abs=5e-4)
    # Table 5 there, two to ten classifiers at .05 and .10.
    for rows, q05, q10 in ((2, 1.960, 1.645), (5, 2.728, 2.459), (10, 3.164, 2.920)):
        unit = math.sqrt(rows * (rows + 1) / 6)
        assert ranks.critical_difference(rows, 1, 0.05) / unit == pytest.approx(q05, abs=1e-3)
        assert ranks.critical_difference(rows, 1, 0.10) / unit == pytest.approx(q10, abs=1e-3)


def test_friedmans_test_by_hand():
    # Three rows on four tasks, sums of ranks 5, 7, 12: 12 / (4 * 3 * 4) * (25 + 49 + 144) - 3 * 4 * 4 = 6.5.
    means = np.array([[9.0, 9.0, 9.0, 5.0], [5.0, 5.0, 5.0, 9.0], [1.0, 1.0, 1.0, 1.0]])
    found = ranks.rank(["a", "b", "c"], means, [True] * 4, 0.05)
    assert found is not None and found.labels == ("a", "b", "c") and found.average == (1.25, 1.75, 3.0)
    assert found.statistic == pytest.approx(6.5)
    assert found.p == pytest.approx(9 / 216, abs=four_errors(9 / 216, 9_999))  # .042 in Friedman's own table


def friedman_p(sums: tuple[float, ...], tasks: int) -> float:
    """p of any ranks with these sums, of which alone it is a function where there are no ties."""
    for ranks_of in itertools.product(itertools.permutations(range(1, len(sums) + 1)), repeat=tasks):
        if tuple(sorted(map(sum, zip(*ranks_of, strict=True)))) == sums:
            return ranks.friedman(np.array(ranks_of, dtype=float))[1]
    raise AssertionError(sums)


def test_friedmans_test_keeps_its_level_where_chi_squared_does_not():
    """All equally likely ranks of three rows on four tasks; the first task's order may be held."""
    orders = list(itertools.permutations((1, 2, 3)))
    sums = [tuple(sorted(map(sum, zip(orders[0], *o, strict=True)))) for o in itertools.product(orders, repeat=3)]
    p = {one: friedman_p(one, 4) for one in set(sums)}
    assert np.mean([p[one] < 0.05 for one in sums]) <= 0.05
    statistics = [12 / (4 * 3 * 4) * sum(s * s for s in one) - 3 * 4 * 4 for one in sums]
    assert np.mean([stats.chi2.sf(s, 2) < 0.05 for s in statistics]) > 0.06  # what it is there for


def test_with_tasks_enough_friedmans_test_is_scipys():
    found = np.random.default_rng(0).integers(0, 3, (12, 5)).astype(float)
    mine = ranks.friedman(stats.rankdata(found, axis=1))
    assert mine == pytest.approx(tuple(stats.friedmanchisquare(*found.T)))


@pytest.mark.parametrize(("tasks", "apart"), [(4, False), (5, False), (6, True), (8, True)])
def test_two_rows_are_told_apart_by_the_sign_test(tasks, apart):
    """One is ahead on all tasks: 2 / 2^n. Nemenyi's critical difference alone would say so from four tasks on."""
    found = ranks.rank(["a", "b"], np.stack([np.ones(tasks), np.zeros(tasks)]), [True] * tasks, 0.05)
    assert found is not None and found.p == 2 / 2**tasks and found.critical_difference < 1
    assert found.bars == (() if apart else ((0, 1),))


def test_ranks_turn_with_the_direction_and_share_ties():
    means = np.array([[0.1, 0.2], [0.1 + 1e-15, 0.3], [0.3, 0.1]])
    found = ranks.rank(["a", "b", "c"], means, [False, True], 0.05)
    assert found is not None
    assert dict(zip(found.labels, found.average, strict=True)) == {"a": 1.75, "b": 1.25, "c": 3.0}


def test_columns_of_one_task_are_one_witness():
    means = np.array([[9.0, 9.0, 9.0, 1.0], [1.0, 1.0, 1.0, 9.0]])
    found = ranks.rank(["a", "b"], means, [True] * 4, 0.05, ["x", "x", "x", "y"])
    assert found is not None and found.average == (1.5, 1.5) and found.tasks == 2
    assert ranks.rank(["a", "b"], means, [True] * 4, 0.05, ["x"] * 4) is None


def test_where_all_are_equal_nothing_is_told_apart():
    found = ranks.rank(["a", "b", "c"], np.ones((3, 5)), [True] * 5, 0.05)
    assert found is not None and found.p == 1.0 and found.bars == ((0, 2),)
    assert ranks.rank(["a"], np.ones((1, 5)), [True] * 5, 0.05) is None


def test_bars_join_what_is_nearer_than_the_critical_difference():
    assert ranks.bars([1.0, 2.0, 3.0], 1.0) == []  # as far as it is apart
    assert ranks.bars([1.0, 1.9, 2.8, 6.0, 6.5], 1.0) == [(0, 1), (1, 2), (3, 4)]
    assert ranks.bars([1.0, 1.2, 1.4], 1.0) == [(0, 2)]  # no group within a group


# ---- data without any difference: a level is kept


def test_sign_flips_find_no_more_than_the_level_where_there_is_nothing():
    found = np.random.default_rng(1).standard_t(3, (4000, 8))
    rejected = float((sign_flip(found) <= 0.05).mean())
    assert rejected <= 0.05 + four_errors(0.05, 4000)
    assert rejected > 0.03  # 12 of the 256 flips
    assert (sign_flip(found + 4) <= 0.05).mean() > 0.9


def test_holms_family_holds_a_false_statement_no_more_often_than_the_level():
    found = np.random.default_rng(2).normal(size=(500 * 10, 10))
    p = sign_flip(found).reshape(500, 10)
    assert np.mean([min(holm(family)) < 0.05 for family in p]) <= 0.05 + four_errors(0.05, 500)
    assert np.mean(p.min(axis=1) < 0.05) > 0.25  # which is what it corrects


def answers(rng: np.random.Generator, count: int, shift: float = 0.0) -> tuple[Items, Items]:
    """Two classifiers on the same images, some of which are hard; right with equal chances where shift is 0."""
    hard = rng.normal(size=count)
    return (
        Items({"x": hard + rng.normal(size=count) + s > 0}, {"top1": ("mean", "x")})  # type: ignore[return-value]
        for s in (shift, 0.0)
    )


def by_item(draws: ItemDraws, one: Items, other: Items):
    return swapped(draws, [one], [other])


def swapped(draws: ItemDraws, own: list[Items], other: list[Items]) -> items_of_pairs.ByItem:
    """What items say of two rows of some seeds, by resamples and swaps."""
    sums = draws.sums([items.terms("top1") for items in (*own, *other)])
    mine, theirs = dict(enumerate(sums[: len(own)])), dict(enumerate(sums[len(own) :]))
    values = {s: np.asarray(own[s].value("top1", one.resampled)) for s, one in mine.items()}
    differing = np.any([a.columns["x"] != b.columns["x"] for a, b in zip(own, other, strict=True)], axis=0)
    return items_of_pairs._said(draws, own[0], "top1", mine, values, theirs, int(differing.sum()), 0)


def test_swapped_items_find_no_more_than_the_level_where_there_is_nothing():
    rng, draws = np.random.default_rng(3), ItemDraws(200, 0)
    p = np.array([by_item(draws, *answers(rng, 200)).p for _ in range(600)], dtype=float)
    assert 0.025 < (p < 0.05).mean() <= 0.05 + four_errors(0.05, 600)
    assert by_item(draws, *answers(rng, 200, shift=1.5)).p < 1e-4


def test_right_and_wrong_answers_find_no_more_than_the_level_where_there_is_nothing():
    """Three seeds of two students with the same chance on every image."""
    rng, p = np.random.default_rng(30), []
    for _ in range(600):
        chance = stats.norm.cdf(rng.normal(size=300))[:, None]
        right = rng.random((300, 6)) < chance
        p.append(sign_flip_of_counts(right[:, :3].sum(axis=1).astype(int) - right[:, 3:].sum(axis=1)))
    assert 0.025 < np.mean(np.array(p) < 0.05) <= 0.05 + four_errors(0.05, 600)


def test_a_pooled_metric_is_tested_by_its_own_value():
    """Two methods whose root mean squared errors are alike, one of them worse on images that weigh little."""
    rng = np.random.default_rng(4)
    weights = rng.integers(1, 1000, 400).astype(np.uint32)
    rule = {"top1": ("root_weighted_mean", "x", "w")}
    draws, p = ItemDraws(400, 1), []
    for _ in range(300):
        one, other = (Items({"x": rng.gamma(2, 1, 400).astype(np.float32), "w": weights}, rule) for _ in range(2))
        p.append(by_item(draws, one, other).p)
    assert 0.02 < np.mean(np.array(p) < 0.05) <= 0.05 + four_errors(0.05, 300)


def test_few_items_are_swapped_in_every_way():
    right = np.array([True] * 6 + [False, True])
    draws = ItemDraws(8, 0)
    rule = {"top1": ("mean", "x")}
    found = by_item(draws, Items({"x": right}, rule), Items({"x": np.zeros(8, bool)}, rule))
    assert draws.exact and len(draws.swaps) == 256 and found.p == 2 * 2 / 256  # the one item that is alike counts twice


def test_a_p_far_in_the_tail_is_a_normals_and_never_nothing():
    swapped = np.random.default_rng(5).normal(size=resampling.SWAPS)
    swapped /= np.sqrt(np.square(swapped).mean())
    assert swap_p(6.0, swapped, exact=False, differing=1000) == pytest.approx(2 * stats.norm.sf(6.0))
    assert swap_p(6.0, swapped, exact=False, differing=5) == 1 / (1 + resampling.SWAPS)
    assert swap_p(0.0, np.zeros(10), exact=False, differing=0) == 1.0
    assert swap_p(math.nan, swapped, exact=False, differing=9) is None


# ---- intervals


def covered(draws: np.ndarray, truth: float, size: int, level: float = 0.05) -> np.ndarray:
    """Whether the interval of each column of draws [B, m] holds the truth."""
    ends = percentiles(draws, level, size)
    assert ends is not None
    return (ends[0] <= truth) & (truth <= ends[1])


@pytest.mark.parametrize(("seeds", "least", "most"), [(20, 0.92, 0.975), (8, 0.91, 1.0), (3, 0.70, 0.80)])
def test_intervals_over_seeds_cover_what_they_claim(seeds, least, most):
    found = np.random.default_rng(6).normal(0.3, 1, (1500, seeds))
    share = covered(seed_weights(seeds, 0) @ found.T, 0.3, seeds).mean()
    assert least <= share <= most


def test_intervals_over_items_cover_what_they_claim():
    rng, draws, inside = np.random.default_rng(7), ItemDraws(300, 0), []
    truth = stats.norm.cdf(0.4 / math.sqrt(2)) - 0.5
    for _ in range(500):
        found = by_item(draws, *answers(rng, 300, shift=0.4))
        inside.append(bool(covered(found.draws[:, None], truth, 300)[0]))
    assert np.mean(inside) == pytest.approx(0.95, abs=0.03)


def test_intervals_over_seeds_and_items_cover_the_difference_of_the_methods():
    """Seeds differ in their skill, images in their difficulty; what is covered is the mean over both."""
    rng, draws, inside, seeds = np.random.default_rng(8), ItemDraws(200, 0), [], 8
    rule = {"top1": ("mean", "x")}
    truth = stats.norm.cdf(0.5 / math.sqrt(2 + 0.2**2)) - 0.5
    for _ in range(200):
        hard = rng.normal(size=200)
        runs = [
            Items({"x": hard + rng.normal(size=200) + 0.2 * rng.normal() + shift > 0}, rule)
            for shift in (0.5, 0.0)
            for _ in range(seeds)
        ]
        found = swapped(draws, runs[:seeds], runs[seeds:])
        inside.append(bool(covered(found.draws[:, None], truth, seeds)[0]))
    assert np.mean(inside) >= 0.91


@pytest.mark.parametrize("seeds", [1, 2, 3, 6])
def test_resamples_by_number_are_distributed_as_by_item(seeds):
    rng = np.random.default_rng(10)
    found = (rng.random((400, seeds)) < 0.6).astype(np.int8) - (rng.random((400, seeds)) < 0.5)
    by_matrix = (seed_weights(seeds, 0) * (ItemDraws(400, 0).counts.astype(float) @ found / 400)).sum(axis=1)
    by_number = resampling.resampled_answers(found, 0)
    assert by_number.std() == pytest.approx(by_matrix.std(), rel=0.1)
    assert by_number.mean() == pytest.approx(by_matrix.mean(), abs=4 * by_matrix.std() / math.sqrt(1_000))
    assert stats.ks_2samp(by_number, by_matrix).pvalue > 1e-3
    assert (resampling.resampled_answers(-found, 0) != -by_number).any()  # callers must choose one of the two


def test_resamples_are_of_equal_size_and_the_same_for_the_same_seed():
    draws, again, other = ItemDraws(50, 3), ItemDraws(50, 3), ItemDraws(50, 4)
    assert (draws.counts.sum(axis=1) == 50).all() and (draws.counts == again.counts).all()
    assert (draws.swaps == again.swaps).all() and not (draws.counts == other.counts).all()
    assert np.allclose(seed_weights(5, 0).sum(axis=1), 1) and (seed_weights(2, 0) == 0.5).all()


def test_pieces_of_a_resample_matrix_are_the_matrix(monkeypatch):
    terms = [np.random.default_rng(9).random((40, k)) for k in (1, 3)]
    whole = ItemDraws(40, 0).sums(terms)
    monkeypatch.setattr(resampling, "_AT_ONCE", 40 * 7)
    draws = ItemDraws(40, 0)
    for one, other, term in zip(whole, draws.sums(terms), terms, strict=True):
        assert other.resampled == pytest.approx(draws.counts.astype(float) @ term, rel=1e-5)
        assert one.swapped == pytest.approx(other.swapped, rel=1e-5) and one.whole == pytest.approx(term.sum(axis=0))


def test_there_is_no_interval_where_resamples_have_no_number():
    draws = np.where(np.arange(100) < 10, np.nan, 1.0)
    assert percentiles(draws, 0.05, 20) is None
    few = np.where(np.arange(100) < 3, np.nan, 1.0)
    ends = percentiles(few, 0.05, 20)
    assert ends is not None and (ends == 1.0).all()
