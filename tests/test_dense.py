"""What dense tasks share: labels in their place, maps that are read as they lie, heads that do not see each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from harness.dense import (
    DenseHead,
    TokenMaps,
    fit_heads,
    hold_out_images,
    make_heads,
    nearest,
    token_batches,
    whole_view,
)
from harness.errors import UserError
from harness.features import Encoder, Tokens
from harness.toys import Patchwork, PixelVit

sides = st.integers(1, 9)


def train_heads(heads, features, targets, loss, *, steps, **options) -> None:
    """All heads on kept tokens, as the dense tasks train them."""
    fit_heads(heads, token_batches(heads, features, targets, steps=steps, **options), loss, steps=steps)


@settings(max_examples=60, deadline=None)
@given(height=sides, width=sides, size=sides, mirror=st.booleans())
def test_labels_are_brought_to_size_as_torch_has_it_by_exact_nearest(height, width, size, mirror):
    labels = np.arange(height * width).reshape(height, width)
    given = torch.from_numpy(labels[:, ::-1].copy() if mirror else labels)
    found = nearest(labels, size, mirror)
    reference = F.interpolate(given[None, None].double(), size=(size, size), mode="nearest-exact")[0, 0]
    np.testing.assert_array_equal(found, reference.long().numpy())


@pytest.mark.parametrize("mirror", [False, True])
def test_labels_lie_where_the_view_shows_what_they_name(mirror):
    # A wide image of 2 x 4 blocks of grey, each with its own number: the squashed image shows the number of its label.
    numbers = np.arange(8, dtype=np.uint8).reshape(2, 4).repeat(20, axis=0).repeat(30, axis=1)  # [40, 120]
    image = Image.fromarray(np.repeat((30 * numbers)[..., None], 3, axis=-1))
    shown = whole_view(24, mirror)(image)[0] * 255 / 30  # [24, 24]
    labels = nearest(numbers, 24, mirror)
    inside = np.zeros((24, 24), dtype=bool)
    for row in (6, 18):
        for column in (3, 9, 15, 21):  # middles of blocks, away from blurred edges
            inside[row - 1 : row + 2, column] = True
    np.testing.assert_allclose(shown.numpy()[inside], labels[inside], atol=0.1)


def tokens(n: int, base: float, cls: bool = True) -> Tokens:
    """Block 0 has width 2, block 1 width 3; every value is its own number."""
    patches = {
        i: (base + 100 * i + np.arange(n * 6 * w).reshape(n, 6, w) / 8).astype(np.float16) for i, w in ((0, 2), (1, 3))
    }
    return Tokens(patches, {i: p[:, 0] + 50 for i, p in patches.items()} if cls else {}, (2, 3))


def test_maps_hold_each_view_one_after_the_other_and_blocks_side_by_side():
    first, second = tokens(3, 0), tokens(3, 1000)
    maps = TokenMaps([first, second], [0, 1], cls=True)
    assert (len(maps), maps.width) == (6, 8)
    found = maps.take(np.array([4, 1]))
    assert found.shape == (2, 8, 2, 3) and found.dtype == torch.float32
    for got, (of, i) in zip(found, ((second, 1), (first, 1)), strict=True):
        for place in range(6):
            row, column = divmod(place, 3)
            expected = np.concatenate([of.patches[0][i, place], of.patches[1][i, place], of.cls[1][i]])
            np.testing.assert_array_equal(got[:, row, column].numpy(), expected.astype(np.float32))


def test_a_model_without_cls_gives_patches_alone():
    assert TokenMaps([tokens(2, 0, cls=False)], [1], cls=True).width == 3


def test_kept_and_fresh_tokens_give_the_same_maps(tmp_path):
    source, view = Patchwork(5), whole_view(32)
    vit = PixelVit()
    fresh = TokenMaps([Encoder(vit, identity="p", cache=None).tokens(source, view, [0, 1])], [0, 1])
    kept = Encoder(vit, identity="p", cache=tmp_path)
    kept.tokens(source, view, [0, 1])
    again = TokenMaps([kept.tokens(source, view, [0, 1])], [0, 1])
    index = np.array([3, 0, 3])
    assert torch.equal(fresh.take(index), again.take(index))


# ---- heads


def build(width: int) -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(width), nn.Conv2d(width, 2, 1))


def problem() -> tuple[dict[str, TokenMaps], torch.Tensor]:
    draw = np.random.default_rng(0)
    patches = {i: draw.standard_normal((10, 6, 4)).astype(np.float16) for i in (0, 1)}
    given = Tokens(patches, {}, (2, 3))
    truth = torch.from_numpy(patches[1][:, :, 0] > 0).long().view(10, 2, 3)
    return {"one": TokenMaps([given], [1]), "both": TokenMaps([given], [0, 1])}, truth


def trained(heads: list[DenseHead], **options) -> list[DenseHead]:
    features, truth = problem()
    index = np.arange(10)
    options = {"steps": 12, "batch": 4, "seed": 3} | options
    train_heads(heads, features, lambda i: truth[i], F.cross_entropy, index=index, **options)
    return heads


def heads(rates=(1e-2, 1e-1), seed: int = 0) -> list[DenseHead]:
    return make_heads(build, problem()[0], rates, (0.0, 1e-2), seed)


def same(one: DenseHead, other: DenseHead) -> bool:
    left, right = one.module.state_dict(), other.module.state_dict()
    return all(torch.equal(left[k], right[k]) for k in left)


def test_a_head_alone_ends_as_it_does_among_others():
    together = trained(heads())
    for i, head in enumerate(together):
        (alone,) = trained([heads()[i]])
        assert same(alone, head), head.name
    assert not same(together[0], together[1])  # decay alone tells these apart, and it does


def test_a_head_that_diverged_is_told_and_leaves_the_others_alone():
    with_bad = heads()
    with torch.no_grad():
        with_bad[1].module[1].weight.fill_(float("nan"))
    trained(with_bad)
    assert [head.failed for head in with_bad] == [False, True, *[False] * 6]
    assert same(with_bad[0], trained(heads())[0])


def test_heads_learn_and_begin_alike_wherever_they_are_in_the_grid():
    fresh = heads()
    assert same(fresh[0], fresh[3]) and not same(heads(seed=1)[0], fresh[0])
    features, truth = problem()
    (best, *_) = trained(heads(rates=(1e-1,)), steps=200)
    assert not best.module.training
    with torch.no_grad():
        right = best.module(features["one"].take(np.arange(10))).argmax(dim=1) == truth
    assert right.float().mean() > 0.95


def test_only_the_numbers_given_are_trained_on():
    seen: set[int] = set()

    def targets(index: np.ndarray) -> torch.Tensor:
        seen.update(index.tolist())
        return problem()[1][index]

    train_heads(heads(), problem()[0], targets, F.cross_entropy, index=np.array([1, 5, 7]), steps=5, batch=2, seed=0)
    assert seen == {1, 5, 7}


@pytest.mark.parametrize(("warmup", "final"), [(0.1, 0.0), (0.0, 0.01)])
def test_the_rate_warms_up_linearly_and_falls_as_a_cosine(warmup, final):
    """A loss of slope one under plain SGD: every step moves the weight by that step's rate."""
    module = nn.Conv2d(1, 1, 1)
    head, weights = DenseHead("h", "f", module, 1.0, 0.0), []
    maps = torch.ones(1, 1, 1, 1)

    def batches():
        for _ in range(20):
            weights.append(module.weight.item())
            yield {"f": maps}, torch.zeros(1)

    def slope(out: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return out.sum()

    sgd = lambda h: torch.optim.SGD(h.module.parameters(), lr=h.rate)  # noqa: E731
    fit_heads([head], batches(), slope, steps=20, warmup_share=warmup, final_rate=final, optimiser=sgd)
    rates = -np.diff([*weights, module.weight.item()])
    cosine = lambda i, n: final + (1 - final) * (1 + math.cos(math.pi * i / n)) / 2  # noqa: E731
    expected = [0.5, 1.0, *(cosine(i, 18) for i in range(18))] if warmup else [cosine(i, 20) for i in range(20)]
    np.testing.assert_allclose(rates, expected, atol=1e-5)


@pytest.mark.parametrize("count", [2, 3, 9, 10, 11, 25, 100, 3000])
def test_a_tenth_is_held_out_one_of_each_stretch(count):
    kept, held = hold_out_images(count)
    assert sorted([*kept, *held]) == list(range(count)) and abs(len(held) - count / 10) < 1 <= len(held) and len(kept)
    stretches = len(held)
    assert [int(np.searchsorted(np.arange(1, stretches + 1) * count // stretches, h, "right")) for h in held] == list(
        range(stretches)
    )
    np.testing.assert_array_equal(held, hold_out_images(count)[1])


def test_classes_that_come_in_turn_are_all_held_out():
    _, held = hold_out_images(1500)
    assert len(set(held % 15)) == 15


def test_one_image_cannot_be_divided():
    with pytest.raises(UserError, match="two or more"):
        hold_out_images(1)
