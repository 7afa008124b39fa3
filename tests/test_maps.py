"""Maps show what is there: known norms at known places, colours that no rotation changes, similarity to one patch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from harness.api import Layers, Method, Outputs, Vit
from harness.errors import UserError
from harness.norms import outlier_share
from harness.pictures.maps import (
    Column,
    changed_layers,
    compute,
    counterpart,
    norm_map,
    outlier_limits,
    pca_map,
    similarity_map,
    targets_column,
    vit_column,
)

GRID, DIM, DEPTH = (3, 4), 6, 4


class Known(Vit):
    """A CLS token and patches of norm 1, but for the patch at row 1, column 2: of norm 10 + block."""

    depth, dim, num_classes, num_prefix_tokens, has_cls, grid, image_size = DEPTH, DIM, 0, 1, True, GRID, (12, 16)

    def block(self, layer):
        raise AssertionError("nobody asks for a block")

    def through(self, layer, tokens):
        raise AssertionError("nobody runs a block")

    def __call__(self, images, layers=(), attention_layers=(), keep=None):
        found = Layers()
        for layer in layers:
            generator = torch.Generator().manual_seed(0)
            tokens = torch.randn(1, 13, DIM, generator=generator).repeat(len(images), 1, 1)
            tokens = tokens / tokens.norm(dim=-1, keepdim=True)
            tokens[:, 1 + 1 * 4 + 2] *= 10 + layer
            tokens[:, 0] *= 99
            found[layer] = tokens
        return Outputs(found, torch.zeros(len(images), 1), grid=GRID)


class Halved(Method):
    """Imitates half of block 3 and block 1 as it is."""

    name, cite = "halved", "made up"
    teacher_layers = frozenset({1, 3})

    def losses(self, student, teacher, batch):
        raise AssertionError("nothing is trained")

    def targets(self, teacher):
        return {1: teacher.tokens[1], 3: teacher.tokens[3] / 2}


IMAGES = torch.zeros(3, 3, 12, 16)


def made(column: Column):
    return compute(column, IMAGES[:2], IMAGES, (0.5, 0.5))


def test_a_norm_map_has_the_known_norms_at_the_known_patches():
    maps = made(vit_column("teacher", "teacher", Known(), -1))
    expected = np.ones((2, *GRID))
    expected[:, 1, 2] = 13
    np.testing.assert_allclose(maps.norms, expected, rtol=1e-5)
    assert maps.layer == 3 and sorted(maps.levels) == [0, 1, 2, 3]
    assert [levels.max().round() for levels in maps.levels.values()] == [10, 11, 12, 13]
    assert {levels.shape for levels in maps.levels.values()} == {(3, 12)}  # of the sample, not of what is shown


def test_targets_are_drawn_where_a_method_changes_the_teachers_tokens_and_only_there():
    teacher = Known()
    method = Halved(teacher, teacher)
    changed = changed_layers(method, teacher, IMAGES[:1])
    assert changed == (3,)
    maps = made(targets_column("target", method, teacher, changed, 3))
    raw = made(vit_column("teacher", "teacher", teacher, 3))
    np.testing.assert_allclose(maps.norms, raw.norms / 2, rtol=1e-6)
    assert sorted(maps.levels) == [3]


def test_the_limit_is_where_the_outlier_share_begins_to_count():
    norms = torch.rand(5, 50, generator=torch.Generator().manual_seed(1)) + 1
    limits = outlier_limits(norms)
    for factor, share in ((0.999, 0.0), (1.001, 1 / 50)):
        top = norms.argmax(dim=1, keepdim=True)
        moved = norms.scatter(1, top, (limits * factor)[:, None])
        # The largest norm stays over the median, so median and MAD of 50 norms hardly move.
        assert outlier_share(moved).mean() == pytest.approx(share, abs=1e-6)


def test_pca_colours_are_the_same_for_rotated_tokens():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, 12, 8, generator=generator, dtype=torch.float64) * torch.tensor([5, 4, 3, 1, 1, 1, 1, 1.0])
    tokens = tokens + torch.rand(2, 12, 8, generator=generator) ** 3 * 6
    rotation, _ = torch.linalg.qr(torch.randn(8, 8, generator=generator, dtype=torch.float64))
    colours = pca_map(tokens, GRID)
    assert colours.shape == (2, *GRID, 3) and colours.min() >= 0 and colours.max() <= 1
    torch.testing.assert_close(pca_map(tokens @ rotation, GRID), colours)
    torch.testing.assert_close(pca_map(7 * tokens, GRID), colours)  # tokens are scaled to unit length


def test_pca_colours_tell_two_groups_of_patches_apart_in_every_image_alike():
    left = torch.zeros(2, *GRID, 5)
    left[:, :, :2, 0], left[:, :, 2:, 1] = 3, 1
    red = pca_map(left.flatten(1, 2), GRID)[..., 0]
    assert (red[:, :, :2] == red[0, 0, 0]).all() and (red[:, :, 2:] == red[0, 0, 2]).all()
    assert abs(red[0, 0, 0] - red[0, 0, 2]) == 1


def test_equal_tokens_are_grey():
    assert (pca_map(torch.ones(2, 12, 5), GRID) == 0.5).all()


def test_a_patch_is_as_similar_as_can_be_to_itself_and_less_to_its_opposite():
    tokens = torch.randn(2, 12, 8, generator=torch.Generator().manual_seed(0))
    tokens[:, 0] = -3 * tokens[:, 6]
    similarity = similarity_map(tokens, GRID, (1, 2))
    assert similarity[:, 1, 2].tolist() == pytest.approx([1, 1])
    assert similarity[:, 0, 0].tolist() == pytest.approx([-1, -1])
    assert similarity.abs().max() <= 1


def test_the_mark_is_the_same_place_on_any_grid():
    class Fine(Known):
        grid = (6, 2)

    maps = compute(vit_column("fine", "student", Fine(), 0), IMAGES, IMAGES, (1.5 / 3, 2.5 / 4))
    assert maps.mark == (3, 1)


@pytest.mark.parametrize(
    "layer, depth, of_depth, found", [(11, 6, 12, 5), (23, 12, 24, 11), (17, 12, 24, 8), (0, 4, 24, 0)]
)
def test_a_students_block_stands_for_the_teachers_in_proportion(layer, depth, of_depth, found):
    assert counterpart(layer, depth, of_depth) == found


def test_norm_maps_keep_rows_and_columns_apart():
    tokens = torch.arange(12.0)[None, :, None]
    assert norm_map(tokens, GRID)[0].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


def test_tokens_that_cannot_be_drawn_are_a_mistake_in_words():
    with pytest.raises(UserError, match="teacher: layer 4 does not exist"):
        vit_column("teacher", "teacher", Known(), 4)
    flat = Known()
    flat.grid = ()  # type: ignore[assignment]
    with pytest.raises(UserError, match="no grid of patches"):
        vit_column("teacher", "teacher", flat, 0)
    for tokens, said in (
        (torch.ones(3, 5, 2), "not the 12 patches"),
        (torch.full((3, 12, 2), torch.nan), "not finite"),
    ):
        column = Column("mine", "student", 0, (0,), 1, GRID, lambda images, layers, found=tokens: {0: found})
        with pytest.raises(UserError, match=f"mine: its tokens.*{said}"):
            made(column)
