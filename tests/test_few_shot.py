"""Few-shot episodes: what is drawn, both classifiers against references, and what a user's mistake says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from harness.data import Data
from harness.errors import UserError
from harness.features import Encoder
from harness.logistic import fit_logistic
from harness.toys import Colours, PixelVit
from tasks.few_shot import FewShot, accuracies, draw_episodes, predictions


def encoder(blind: bool = False) -> Encoder:
    return Encoder(PixelVit(blind=blind), identity=f"pixels {blind}", cache=None)


def task(**options) -> FewShot:
    novel = Colours(160, classes=8, cast=0.3, split="novel")
    sources = {"train": Colours(40, cast=0.3), "test": Colours(40, cast=0.3, split="test"), "novel": novel}
    data = Data.of_sources(sources, image_size=32, name="colours")
    return FewShot(data=data, **{"split": "novel", "queries": 5, "episodes": 40} | options)


@pytest.mark.parametrize("strength", [1.0, 0.1])
@pytest.mark.parametrize("shots", [1, 5])
def test_logistic_regression_is_scikit_learns(strength, shots):
    draw = torch.Generator().manual_seed(0)
    features = F.normalize(torch.randn(3, 4 * shots, 24, generator=draw), dim=-1)
    labels = torch.arange(4).repeat_interleave(shots).expand(3, -1)
    found = fit_logistic(features, labels, 4, strength=strength)
    for i in range(3):
        reference = LogisticRegression(C=1 / strength, fit_intercept=False, tol=1e-8, max_iter=1000)
        reference.fit(features[i].double().numpy(), labels[i].numpy())
        np.testing.assert_allclose(found[i].T.numpy(), reference.coef_, atol=2e-4)


def test_a_logistic_regression_does_not_depend_on_its_neighbours():
    draw = torch.Generator().manual_seed(1)
    features = F.normalize(torch.randn(5, 10, 16, generator=draw), dim=-1)
    labels = torch.arange(5).repeat_interleave(2).expand(5, -1)
    together = fit_logistic(features, labels, 5)
    alone = torch.cat([fit_logistic(features[i : i + 1], labels[i : i + 1], 5) for i in range(5)])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)


def test_a_penalty_is_needed():
    with pytest.raises(ValueError, match="must be positive"):
        fit_logistic(torch.ones(1, 2, 3), torch.tensor([[0, 1]]), 2, strength=0)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=4, max_size=7),
    ways=st.integers(2, 4),
    shots=st.integers(1, 2),
    queries=st.integers(1, 3),
)
def test_an_episode_holds_what_it_says(sizes, ways, shots, queries):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    classes = np.array([c for c, size in enumerate(sizes) if size >= shots + queries])
    if len(classes) < ways:
        return
    found = draw_episodes(labels, classes, ways, shots, queries, 6)
    assert found.support.shape == (6, ways, shots) and found.query.shape == (6, ways, queries)
    for support, query in zip(found.support, found.query, strict=True):
        shown = np.concatenate([support, query], axis=1)
        assert len(np.unique(shown)) == shown.size  # no image twice, so none is support and query
        of = labels[shown]
        assert (of == of[:, :1]).all() and len(np.unique(of[:, 0])) == ways
        assert set(of[:, 0]) <= set(classes)


def test_an_episode_does_not_depend_on_how_many_there_are():
    labels = np.repeat(np.arange(6), 10)
    few, many = (draw_episodes(labels, np.arange(6), 3, 1, 4, count) for count in (5, 9))
    np.testing.assert_array_equal(few.query, many.query[:5])
    assert len({tuple(row.ravel()) for row in many.support}) > 1  # and they differ from one another


def test_every_class_and_image_is_drawn_about_equally_often():
    labels = np.repeat(np.arange(8), 10)
    found = draw_episodes(labels, np.arange(8), 4, 2, 3, 800)
    classes = np.bincount(labels[found.support[:, :, 0]].ravel(), minlength=8) / 800
    np.testing.assert_allclose(classes, 0.5, atol=0.08)
    images = np.bincount(found.query.ravel(), minlength=80) / 800
    np.testing.assert_allclose(images, 0.15, atol=0.06)


def test_the_nearest_mean_by_hand():
    # Means (1, 0) and (0, 1); (.6, .5) is nearer to the first, (.4, .9) to the second.
    support = torch.tensor([[[[1.0, 0.2], [1.0, -0.2]], [[0.1, 1.0], [-0.1, 1.0]]]])  # [1, 2, 2, 2]
    query = torch.tensor([[[[0.6, 0.5]], [[0.4, 0.9]]]])  # [1, 2, 1, 2]
    assert predictions(support, query)["ncm"].tolist() == [[[0], [1]]]
    # Nearest, not most similar: a mean of small norm wins where a dot product would choose the large one.
    support = torch.tensor([[[[3.0, 0.0]], [[0.5, 0.0]]]])
    assert predictions(support, torch.tensor([[[[1.0, 0.0]], [[2.5, 0.0]]]]))["ncm"].tolist() == [[[1], [0]]]


def test_accuracy_counts_queries_of_their_own_way():
    vectors = torch.eye(4)[[0, 0, 1, 1, 1, 0]]  # samples 0, 1 look alike, and 2, 3, 4; sample 5 looks like 0
    plan = draw_episodes(np.array([0, 0, 1, 1, 1, 1]), np.array([0, 1]), 2, 1, 1, 3)
    plan = type(plan)(np.array([[[0], [2]], [[0], [2]]]), np.array([[[1], [3]], [[1], [5]]]))
    assert accuracies(vectors, plan)["ncm"].tolist() == [1.0, 0.5]
    assert accuracies(vectors, plan)["linear"].tolist() == [1.0, 0.5]


def test_answers_do_not_depend_on_the_other_queries():
    draw = torch.Generator().manual_seed(2)
    support, query = torch.randn(2, 5, 1, 8, generator=draw), torch.randn(2, 5, 6, 8, generator=draw)
    whole, part = predictions(support, query), predictions(support, query[:, :, :2])
    assert all(torch.equal(whole[head][:, :, :2], part[head]) for head in whole)


def test_more_shots_help_and_blind_encoders_guess():
    seeing, blind = task().evaluate(encoder(), seed=0), task().evaluate(encoder(blind=True), seed=0)
    assert seeing["ncm_5shot"] > seeing["ncm_1shot"] > 0.4 and seeing["linear_5shot"] > 0.5
    assert blind["ncm_1shot"] == pytest.approx(0.2) and blind["linear_5shot"] == pytest.approx(0.2)
    assert seeing["classes"] == 8


def test_the_interval_is_that_of_the_mean():
    found = task(episodes=50).evaluate(encoder(), seed=0)
    labels = Colours(160, classes=8).labels()
    plan = draw_episodes(labels, np.arange(8), 5, 1, 5, 50)
    instance, seeing = task(), encoder()
    base = seeing.pooled(instance.data.open("train"), instance.data.view(), [1])
    pooled = seeing.pooled(instance.data.open("novel"), instance.data.view(), [1])
    vectors = F.normalize(torch.from_numpy(pooled.vector(1) - base.vector(1).mean(axis=0)), dim=-1)
    right = accuracies(vectors, plan)["ncm"].numpy()
    assert found["ncm_1shot"] == pytest.approx(right.mean())
    assert found["ncm_1shot_interval95"] == pytest.approx(1.96 * right.std(ddof=1) / 50**0.5)


def test_all_seeds_answer_the_same_episodes():
    assert task().evaluate(encoder(), seed=0) == task().evaluate(encoder(), seed=7)


def test_too_few_images_say_what_is_needed():
    with pytest.raises(UserError, match=r"needs 5 classes with 35 images each; split 'novel' has 0 of them among 8"):
        task(queries=30).evaluate(encoder(), seed=0)


def test_an_unknown_split_names_those_there_are():
    with pytest.raises(UserError, match=r"'novle'.*'novel'"):
        task(split="novle").evaluate(encoder(), seed=0)


@pytest.mark.parametrize(("option", "value"), [("ways", 1), ("queries", 0), ("episodes", 1), ("mean_images", 0)])
def test_numbers_out_of_range(option, value):
    with pytest.raises(UserError, match=f"{option} of the few_shot task is {value}"):
        task(**{option: value})


def test_any_change_of_the_protocol_shows():
    changes = [{}, {"split": "test"}, {"ways": 4}, {"queries": 6}, {"episodes": 41}, {"mean_images": 5}]
    assert len({str(task(**change).protocol()) for change in changes}) == len(changes)


def test_a_regression_that_does_not_converge_says_so():
    features, labels = torch.randn(1, 6, 4) * 1e4, torch.tensor([[0, 1, 2, 0, 1, 2]])
    with pytest.raises(UserError, match=r"not converged after 20 steps.*normalise"):
        fit_logistic(features, labels, 3, strength=1e-3, iterations=20)
