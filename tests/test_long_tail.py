"""Long tail: the imbalanced draw, the bins, and that nothing is chosen by the test split."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data import Data
from harness.errors import UserError
from harness.features import Encoder
from harness.toys import Colours, PixelVit
from tasks.long_tail import LongTail, imbalanced

TRAIN, TEST = Colours(200, cast=0.5), Colours(80, cast=0.5, split="test")
CLASSES = len(TRAIN.classes)


def task(train=TRAIN, test=TEST, **options) -> LongTail:
    data = Data.of_sources({"train": train, "test": test}, image_size=32, name="colours")
    return LongTail(data=data, **{"imbalance": 25.0, "many": 30, "few": 5, "steps": 60, "batch": 32} | options)


def encoder(blind: bool = False) -> Encoder:
    return Encoder(PixelVit(blind=blind), identity=f"pixels {blind}", cache=None)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=9), st.floats(1, 200), st.integers(0, 5))
def test_the_profile_is_exponential_and_never_takes_what_is_not_there(sizes, imbalance, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    chosen = imbalanced(labels, len(sizes), imbalance)
    assert len(np.unique(chosen)) == len(chosen) and (np.diff(chosen) > 0).all()
    counts = np.bincount(labels[chosen], minlength=len(sizes))
    steps = np.arange(len(sizes)) / max(1, len(sizes) - 1)
    profile = np.maximum(1, np.round(max(sizes) * imbalance**-steps))
    # Some order of the classes has this profile, cut to what each class has.
    assert (counts >= 1).all() and (counts <= sizes).all()
    if len(set(sizes)) == 1:
        np.testing.assert_array_equal(np.sort(counts)[::-1], profile)


def test_an_imbalance_of_one_leaves_everything():
    labels = TRAIN.labels()
    np.testing.assert_array_equal(imbalanced(labels, CLASSES, 1.0), np.arange(len(labels)))


def test_rarer_draws_are_part_of_less_rare_ones():
    labels = TRAIN.labels()
    assert set(imbalanced(labels, CLASSES, 50.0)) <= set(imbalanced(labels, CLASSES, 5.0))


def test_bins_are_by_training_images_and_their_accuracies_add_up():
    found = task().evaluate(encoder(), seed=0)
    bins = {name: found[f"{name}_classes"] for name in ("many", "medium", "few")}
    assert sum(bins.values()) == CLASSES and all(bins.values())
    assert found["largest_class"] == 200 / CLASSES and found["smallest_class"] == 200 / CLASSES / 25
    # Every class has as many test images, so the overall accuracy is the bins' weighted mean, and balanced.
    mean = sum(found[f"{name}_top1"] * n for name, n in bins.items()) / CLASSES
    assert found["top1"] == pytest.approx(mean) and found["balanced_accuracy"] == pytest.approx(mean)


def test_rare_classes_are_harder_and_a_blind_encoder_knows_the_commonest_only():
    seeing, blind = task().evaluate(encoder(), seed=0), task().evaluate(encoder(blind=True), seed=0)
    assert seeing["many_top1"] > seeing["few_top1"] and seeing["top1"] > blind["top1"]
    assert blind["few_top1"] == 0 and blind["balanced_accuracy"] == pytest.approx(1 / CLASSES)


def test_a_bin_without_classes_is_left_out():
    found = task(many=10_000, few=5).evaluate(encoder(), seed=0)
    assert "many_top1" not in found and found["many_classes"] == 0 and "medium_top1" in found


def test_data_may_be_long_tailed_by_itself():
    labels = TRAIN.labels()
    from harness.sources import Subset

    drawn = Subset(TRAIN, imbalanced(labels, CLASSES, 25.0))
    own, made = task(train=drawn, imbalance=None), task()
    assert own.evaluate(encoder(), seed=0) == made.evaluate(encoder(), seed=0)
    assert own.protocol() != made.protocol()


def test_poisoned_test_labels_change_no_choice():
    poisoned = Colours(80, cast=0.5, split="test")
    labels = np.random.default_rng(0).permutation(poisoned.labels())
    poisoned.labels = lambda: labels  # type: ignore[method-assign]
    honest, other = task().evaluate(encoder(), seed=0), task(test=poisoned).evaluate(encoder(), seed=0)
    choices = [key for key in honest if key.startswith(("held_out", "chosen", "lr/"))]
    assert choices and all(honest[key] == other[key] for key in choices)
    assert honest["top1"] > other["top1"]


@pytest.mark.parametrize(
    ("option", "words"),
    [({"imbalance": 0.5}, "0.5"), ({"few": 50}, "few is 50"), ({"steps": 0}, "steps"), ({"batch": 0}, "batch")],
)
def test_options_that_cannot_be_are_refused(option, words):
    with pytest.raises(UserError, match=words):
        task(**option)
