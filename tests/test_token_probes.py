"""Token probes find what tokens hold and nothing else, on equal terms for outliers and others."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeCV
from sklearn.preprocessing import StandardScaler

from tasks.token_probes import (
    RIDGE,
    Tokens,
    coordinates,
    drawn,
    enough,
    patch_pixels,
    read_out,
    ridge,
    split,
)

GRID = (3, 4)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# More rows than features, and fewer; so few rows that the mean's own leverage decides.
@pytest.mark.parametrize("n, width, seed", [(60, 8, 0), (20, 40, 0), *((5, 3, seed) for seed in range(20))])
def test_ridge_and_its_penalty_are_scikit_learns(n: int, width: int, seed: int):
    x, new = noise(n, width, seed=3 * seed) * torch.logspace(-2, 2, width) + 5, noise(7, width, seed=3 * seed + 1)
    y = x[:, :3] / x[:, :3].std(dim=0) + noise(n, 3, seed=3 * seed + 2)
    (found,) = ridge(x, [y.double()], new)
    scaler = StandardScaler().fit(x.double().numpy())
    theirs = RidgeCV(alphas=[r * n for r in RIDGE]).fit(scaler.transform(x.double().numpy()), y.double().numpy())
    np.testing.assert_allclose(found, theirs.predict(scaler.transform(new.double().numpy())), rtol=1e-6, atol=1e-8)


def test_each_target_has_a_penalty_of_its_own():
    x = noise(50, 10)
    easy, hard = x.double() @ noise(10, 2, seed=1).double(), noise(50, 2, seed=2).double()
    together = ridge(x, [easy, hard], noise(5, 10, seed=3))
    alone = [ridge(x, [y], noise(5, 10, seed=3))[0] for y in (easy, hard)]
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other)


def test_features_and_targets_that_are_equal_everywhere_give_the_mean():
    (found,) = ridge(torch.ones(10, 3), [noise(10, 2).double()], torch.ones(4, 3))
    torch.testing.assert_close(found, noise(10, 2).double().mean(dim=0).expand(4, 2))
    (found,) = ridge(noise(10, 3), [torch.ones(10, 1).double()], noise(4, 3))
    torch.testing.assert_close(found, torch.ones(4, 1).double())


def made(holding: str, images: int = 60, a_image: int = 6) -> tuple[Tokens, torch.Tensor]:
    """Tokens that hold one thing and noise, with the class of each image."""
    count, classes = images * a_image, torch.arange(images) % 3
    number = torch.arange(images).repeat_interleave(a_image)
    places = torch.randint(12, (count,), generator=torch.Generator().manual_seed(1))
    pixels = noise(count, 6, seed=2)
    held = {
        "place": torch.nn.functional.one_hot(places, 12).float(),
        "pixels": pixels @ noise(6, 12, seed=3),
        "class": torch.nn.functional.one_hot(classes[number], 12).float(),
    }.get(holding, torch.zeros(count, 12))
    return Tokens(held + 0.01 * noise(count, 12, seed=4), places, pixels, number), classes


@pytest.mark.parametrize("holding", ["place", "pixels", "class", "nothing"])
def test_what_tokens_hold_is_found_and_nothing_else(holding: str):
    tokens, classes = made(holding)
    parted = split(classes.numpy())
    assert parted is not None
    found = read_out(tokens, *parted, GRID)
    assert (found["position_top1"] > 0.99) == (holding == "place")
    assert (found["pixel_error"] < 0.01) == (holding == "pixels")
    assert (found["class_top1"] > 0.99) == (holding == "class")
    if holding == "place":
        assert found["position_distance"] < 0.1
        return
    assert found["position_top1"] < 0.3
    assert found["position_distance"] == pytest.approx(found["position_distance_chance"], rel=0.15)


def test_chances_are_those_of_the_most_frequent_answer_and_of_the_mean_place():
    images = torch.arange(8).repeat_interleave(2)
    held_out = torch.arange(8) >= 4
    places = torch.tensor([5, 5, 5, 0, 5, 5, 5, 11, 5, 0, 5, 1, 5, 1, 2, 3])
    found = read_out(Tokens(torch.zeros(16, 2), places, noise(16, 3), images), held_out, None, GRID)
    tested, where = places[8:], coordinates(places, GRID)
    assert found["position_top1_chance"] == (tested == 5).double().mean()
    expected = (where[:8].mean(dim=0) - where[8:]).norm(dim=1).mean()
    assert found["position_distance_chance"] == pytest.approx(float(expected))
    assert found["position_distance"] == pytest.approx(float(expected))  # tokens that are all equal tell no more
    assert "class_top1" not in found


def test_pixels_that_are_all_equal_tell_nothing():
    tokens, classes = made("place")
    tokens.pixels = torch.ones_like(tokens.pixels)
    parted = split(classes.numpy())
    assert parted is not None and read_out(tokens, *parted, GRID)["pixel_error"] == 1


def test_equally_many_others_are_drawn_and_the_same_whoever_asks():
    outlier = torch.zeros(20).bool()
    outlier[[3, 7, 11]] = True
    first, others = drawn(outlier, 5, 10)
    assert set(first.tolist()) == {3, 7, 11} and len(others) == 3 and not outlier[others].any()
    assert [len(d) for d in drawn(outlier, 5, 2)] == [2, 2]
    assert [len(d) for d in drawn(torch.zeros(20).bool(), 5, 2)] == [0, 0]
    torch.rand(3)
    again = drawn(outlier, 5, 10)
    assert torch.equal(again[1], others)
    assert not torch.equal(drawn(outlier, 6, 10)[1], others)


def test_the_pixels_of_a_patch_are_its_own():
    images = torch.arange(3 * 6 * 8.0).view(1, 3, 6, 8)
    found = patch_pixels(images, GRID, (6, 8))
    assert found.shape == (1, 12, 12)
    for place in range(12):
        row, column = divmod(place, 4)
        expected = images[0, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].flatten()
        assert torch.equal(found[0, place], expected)
    assert patch_pixels(torch.rand(2, 3, 12, 16), GRID, (6, 8)).shape == (2, 12, 12)  # the encoder's own size


def test_images_are_held_out_with_every_class():
    labels = np.arange(40) % 4
    parted = split(labels)
    assert parted is not None
    held_out, classes = parted
    assert classes is not None and held_out.sum() == 12  # .25 * 10, rounded up, of each of 4 classes
    assert set(labels[held_out.numpy()]) == set(range(4))


@pytest.mark.parametrize("labels", [[-1] * 8, [2] * 8, list(range(8)), [-1, 0, 0, 1, 1, 1, 2, 2]])
def test_images_without_classes_to_tell_apart_are_held_out_all_the_same(labels: list[int]):
    parted = split(np.array(labels))
    assert parted is not None
    assert parted[0].sum() == 2 and parted[1] is None


def test_a_single_image_cannot_be_parted():
    assert split(np.array([0])) is None


@pytest.mark.parametrize(
    "count, tested, expected", [(100, 20, True), (99, 20, False), (100, 19, False), (100, 100, False)]
)
def test_too_few_outliers_are_no_sample(count: int, tested: int, expected: bool):
    images = (torch.arange(count) < tested).long()  # image 1 is held out
    tokens = Tokens(torch.zeros(count, 1), images, torch.zeros(count, 1), images)
    assert enough(tokens, torch.tensor([False, True])) is expected
