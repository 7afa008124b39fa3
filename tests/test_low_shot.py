"""Low-shot: what is drawn, both classifiers against references, and what a user's mistake says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.spatial.distance import cdist
from sklearn.linear_model import LogisticRegression

from harness.data import Data
from harness.errors import UserError
from harness.features import Encoder
from harness.toys import Colours, PixelVit
from tasks.low_shot import SHOTS, LowShot, draw_images, predictions

TRAIN, TEST = Colours(100, cast=0.5), Colours(80, cast=0.5, split="test")


def task(train=TRAIN, test=TEST, **options) -> LowShot:
    return LowShot(data=Data.of_sources({"train": train, "test": test}, image_size=32, name="colours"), **options)


def encoder(blind: bool = False) -> Encoder:
    return Encoder(PixelVit(blind=blind), identity=f"pixels {blind}", cache=None)


def test_a_draw_has_so_many_images_of_every_class_and_none_twice():
    labels = TRAIN.labels()
    drawn = draw_images(labels, TRAIN, 3)
    assert drawn.shape == (3, len(TRAIN.classes), max(SHOTS))
    assert (labels[drawn] == np.arange(len(TRAIN.classes))[:, None]).all()
    assert all(len(np.unique(one)) == one.size for one in drawn)
    assert len({one.tobytes() for one in drawn}) == 3


def test_a_draw_does_not_depend_on_how_many_there_are():
    labels = TRAIN.labels()
    np.testing.assert_array_equal(draw_images(labels, TRAIN, 2), draw_images(labels, TRAIN, 5)[:2])


@pytest.mark.parametrize("shots", [1, 5])
def test_both_classifiers_are_those_of_scikit_learn_and_scipy(shots):
    draw = torch.Generator().manual_seed(0)
    support = F.normalize(torch.randn(2, 4, shots, 16, generator=draw) + torch.eye(4, 16)[:, None] * 3, dim=-1)
    queries = F.normalize(torch.randn(60, 16, generator=draw), dim=-1)
    labels = np.repeat(np.arange(4), shots)
    found = predictions(support, queries)
    for i in range(2):
        shown = support[i].flatten(0, 1).double().numpy()
        linear = LogisticRegression(C=1.0, fit_intercept=False, tol=1e-8, max_iter=2000).fit(shown, labels)
        np.testing.assert_array_equal(found["linear"][i], linear.predict(queries.double().numpy()))
        means = support[i].double().mean(dim=1).numpy()
        np.testing.assert_array_equal(found["ncm"][i], cdist(queries.double().numpy(), means).argmin(axis=1))


def test_more_images_help_and_a_blind_encoder_guesses():
    seeing, blind = task().evaluate(encoder(), seed=0), task().evaluate(encoder(blind=True), seed=0)
    assert seeing["linear_10shot"] > seeing["linear_1shot"] > blind["linear_10shot"]
    assert seeing["ncm_10shot"] > seeing["ncm_1shot"]
    assert blind["ncm_5shot"] == pytest.approx(1 / len(TRAIN.classes), abs=0.05)
    assert seeing["linear_1shot_std"] > 0 and blind["linear_1shot_std"] == 0


def test_the_run_s_seed_changes_nothing():
    assert task().evaluate(encoder(), seed=0) == task().evaluate(encoder(), seed=1)


def test_test_images_are_looked_at_for_measuring_only():
    shuffled = Colours(80, cast=0.5, split="test")
    poisoned = np.random.default_rng(0).permutation(shuffled.labels())
    shuffled.labels = lambda: poisoned  # type: ignore[method-assign]
    seen: list[int] = []

    class Watched(Encoder):
        def pooled(self, source, *args, **options):
            seen.append(len(source))
            return super().pooled(source, *args, **options)

    found = task(test=shuffled, mean_images=50).evaluate(
        Watched(PixelVit(), identity="pixels False", cache=None), seed=0
    )
    assert found["linear_10shot"] < task().evaluate(encoder(), seed=0)["linear_10shot"]
    assert len(seen) == 3 and seen[-1] == 80 and max(seen[:2]) < len(TRAIN)  # no image that nobody needs is encoded


def test_a_class_with_too_few_images_is_named():
    with pytest.raises(UserError, match=r"10 training images of every class; class 'colour 0' has 4"):
        task(train=Colours(4 * len(TRAIN.classes))).evaluate(encoder(), seed=0)


@pytest.mark.parametrize("option", [{"draws": 1}, {"mean_images": 0}])
def test_options_that_cannot_be_are_refused(option):
    with pytest.raises(UserError, match=next(iter(option))):
        task(**option)
