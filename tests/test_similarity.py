"""CKA and Gram distance: against numpy's formulas, and what must leave them as they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.similarity import LinearCka, cosines, gram_distance, linear_cka


def rows(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rotation(seed: int, dim: int) -> torch.Tensor:
    return torch.linalg.qr(rows(seed, dim, dim))[0]


def by_formula(x: torch.Tensor, y: torch.Tensor) -> float:
    a, b = (t.double().numpy() - t.double().numpy().mean(axis=0) for t in (x, y))
    norm = np.linalg.norm
    return norm(b.T @ a) ** 2 / (norm(a.T @ a) * norm(b.T @ b))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 999), st.integers(2, 40), st.integers(1, 6), st.integers(1, 9))
def test_cka_is_the_textbook_formula(seed: int, n: int, d: int, e: int):
    x, y = rows(seed, n, d), rows(seed + 1, n, e)
    assert linear_cka(x, y) == pytest.approx(by_formula(x, y), rel=1e-9)
    assert linear_cka(x, x) == pytest.approx(1)
    assert linear_cka(x, y) == pytest.approx(linear_cka(y, x))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 999), st.floats(0.01, 100))
def test_cka_does_not_see_rotation_shift_and_scale(seed: int, scale: float):
    x, y = rows(seed, 30, 5), rows(seed + 1, 30, 4)
    moved = scale * (x @ rotation(seed + 2, 5)) + 7
    assert linear_cka(moved, y) == pytest.approx(linear_cka(x, y), rel=1e-3)
    assert linear_cka(moved, x) == pytest.approx(1, rel=1e-3)


def test_cka_sees_a_scale_that_is_not_the_same_for_all_directions():
    x = rows(0, 200, 4)
    assert linear_cka(x * torch.tensor([1.0, 1, 1, 30]), x) < 0.7


def test_cka_of_batches_is_that_of_all_rows_however_large_their_mean():
    x, y = rows(0, 100, 5) + 1000, rows(1, 100, 3)
    found = LinearCka()
    for part in (slice(0, 1), slice(1, 1), slice(1, 40), slice(40, 100)):  # one of them empty
        found.add(x[part], y[part])
    assert found.rows == 100
    assert found.value() == pytest.approx(by_formula(x, y), rel=1e-7)


def test_cka_with_what_does_not_vary_is_0():
    x = rows(0, 20, 4)
    assert linear_cka(x, torch.full((20, 3), 0.1)) == 0
    assert linear_cka(torch.ones(20, 4) * (1 + 1e-9 * x.double()), x) == 0  # within rounding
    assert LinearCka().value() == 0


def test_the_gram_distance_equals_a_case_computed_by_hand():
    x = torch.tensor([[[1.0, 0], [0, 5]]])  # cosines 1 0 / 0 1
    y = torch.tensor([[[2.0, 0, 0], [3, 4, 0]]])  # 1 .6 / .6 1
    assert gram_distance(x, y).item() == pytest.approx((2 * 0.6**2) ** 0.5 / 2)
    torch.testing.assert_close(cosines(y), torch.tensor([[[1, 0.6], [0.6, 1]]]))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 999))
def test_the_gram_distance_is_0_for_itself_rotated_and_any_norms(seed: int):
    x = rows(seed, 3, 8, 5)
    same = (x @ rotation(seed, 5)) * (0.1 + rows(seed + 1, 3, 8, 1).abs())
    assert gram_distance(x, same).max() < 1e-5
    assert gram_distance(x, rows(seed + 2, 3, 8, 7)).min() > 0.1


def test_tokens_that_are_not_kept_change_nothing():
    x, y = rows(0, 2, 6, 4), rows(1, 2, 6, 3)
    keep = torch.tensor([[1, 1, 0, 1, 0, 1], [0, 0, 0, 0, 0, 0]]).bool()
    found = gram_distance(x, y, keep)
    assert found[0].item() == pytest.approx(gram_distance(x[:1, keep[0]], y[:1, keep[0]]).item(), rel=1e-5)
    assert found[1] == 0  # none is kept
    torch.testing.assert_close(gram_distance(x, y, torch.ones(2, 6).bool()), gram_distance(x, y))
