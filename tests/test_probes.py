"""Probes against torch's and scikit-learn's own, and the properties that make training them together honest."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score
from sklearn.neighbors import KNeighborsClassifier

from harness.errors import UserError
from harness.probes import (
    LinearHeads,
    Rows,
    balanced_accuracy,
    classification_scores,
    knn_predict,
    minibatches,
    predict,
    score_heads,
    stratified_hold_out,
    train_linear_heads,
)

RATES = (0.01, 0.1, 1.0)


def blobs(count: int = 120, classes: int = 3, width: int = 5, spread: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    centres = 2 * rng.standard_normal((classes, width))
    labels = np.arange(count, dtype=np.int64) % classes
    return (centres[labels] + spread * rng.standard_normal((count, width))).astype(np.float32), labels


def train(features: np.ndarray, labels: np.ndarray, **changes) -> LinearHeads:
    args = dict(num_classes=3, learning_rates=RATES, steps=40, batch=32, seed=5)
    return train_linear_heads({"x": Rows(features)}, labels, **{**args, **changes})["x"]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options", [{}, {"momentum": 0.0, "weight_decay": 1e-2, "final_rate": 1e-3, "init": "uniform"}]
)
def test_a_head_equals_torch_sgd_with_autograd(options: dict):
    features, labels = blobs()
    steps, seed = 60, 5
    heads = train(features, labels, steps=steps, seed=seed, **options)
    start = train(features, labels, steps=0, seed=seed, **options)
    for i, rate in enumerate(RATES):
        reference = torch.nn.Linear(5, 3)
        with torch.no_grad():
            reference.weight.copy_(start.weight[i])
            reference.bias.copy_(start.bias[i])
        momentum, decay = options.get("momentum", 0.9), options.get("weight_decay", 0.0)
        sgd = torch.optim.SGD(reference.parameters(), lr=rate, momentum=momentum, weight_decay=decay)
        final = options.get("final_rate", 0.0)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, T_max=steps, eta_min=final)
        for picked in minibatches(np.arange(len(labels)), 32, steps, seed):
            sgd.zero_grad()
            F.cross_entropy(reference(torch.tensor(features[picked])), torch.tensor(labels[picked])).backward()
            sgd.step()
            cosine.step()
        torch.testing.assert_close(heads.weight[i], reference.weight.detach(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(heads.bias[i], reference.bias.detach(), rtol=1e-4, atol=1e-5)


def test_a_head_does_not_depend_on_its_neighbours():
    features, labels = blobs()
    wide = np.concatenate([features, features], axis=1)
    together = train_linear_heads(
        {"wide": Rows(wide), "x": Rows(features)},
        labels,
        num_classes=3,
        learning_rates=RATES,
        steps=40,
        batch=32,
        seed=5,
    )["x"]
    for i, rate in enumerate(RATES):
        alone = train(features, labels, learning_rates=[rate])
        torch.testing.assert_close(together.weight[i], alone.weight[0], rtol=1e-5, atol=1e-6)


def test_a_diverging_head_disturbs_nobody_and_has_no_score():
    features, labels = blobs()
    index = np.arange(len(labels))
    heads = train(features, labels, learning_rates=[0.01, 1e38, 0.1])
    calm = train(features, labels, learning_rates=[0.01, 0.1])
    assert not heads.weight[1].isfinite().all()
    torch.testing.assert_close(heads.weight[[0, 2]], calm.weight, rtol=1e-5, atol=1e-6)
    top1, loss = score_heads(heads, Rows(features), labels, index)
    assert math.isnan(top1[1]) and loss[1] == math.inf
    assert top1[0] > 0.9 and loss[0] < 1


def test_heads_reach_what_logistic_regression_reaches():
    features, labels = blobs(300, spread=1.5)
    train_part, test_part = np.arange(200), np.arange(200, 300)
    heads = train(features, labels, steps=400, batch=100, index=train_part)
    top1, _ = score_heads(heads, Rows(features), labels, test_part)
    reference = LogisticRegression(max_iter=500).fit(features[train_part], labels[train_part])
    expected = reference.score(features[test_part], labels[test_part])
    assert 0.6 < expected < 1
    assert abs(top1[1] - expected) <= 0.03


def test_the_same_seed_gives_the_same_heads_and_another_does_not():
    features, labels = blobs()
    one, again, other = (train(features, labels, seed=s).weight for s in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.allclose(one, other, atol=1e-4)


def test_rows_outside_the_index_are_never_read():
    features, labels = blobs()
    index = np.arange(0, 90)
    poisoned = features.copy()
    poisoned[90:] = np.nan
    assert torch.equal(train(features, labels, index=index).weight, train(poisoned, labels, index=index).weight)


def test_memory_mapped_parts_are_one_row(tmp_path):
    features, _ = blobs()
    np.save(tmp_path / "x.npy", np.stack([features, 2 * features], axis=1))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    rows = Rows(mapped[:, 0], mapped[:, 1])
    assert rows.width == 10 and len(rows) == 120
    expected = torch.tensor(np.concatenate([features, 2 * features], axis=1))
    assert torch.equal(rows.take(np.array([7, 3])), expected[[7, 3]])


def test_predictions_are_the_same_whatever_the_chunk(monkeypatch: pytest.MonkeyPatch):
    features, labels = blobs()
    heads, rows, index = train(features, labels), Rows(features), np.arange(len(labels))
    whole, scored = predict(heads, rows), score_heads(heads, rows, labels, index)
    monkeypatch.setattr("harness.probes.CHUNK", 50)
    torch.testing.assert_close(predict(heads, rows), whole)
    np.testing.assert_allclose(score_heads(heads, rows, labels, index), scored, rtol=1e-5)
    expected = whole.argmax(dim=-1).numpy() == labels[:, None]
    np.testing.assert_allclose(scored[0], expected.mean(axis=0))


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 20), batch=st.integers(1, 30), steps=st.integers(1, 12))
def test_minibatches_are_permutations_without_a_gap(count: int, batch: int, steps: int):
    index = 100 + np.arange(count)
    stream = np.concatenate(list(minibatches(index, batch, steps, seed=3)))
    assert len(stream) == batch * steps
    for start in range(0, len(stream), count):
        epoch = stream[start : start + count]
        assert len(set(epoch)) == len(epoch) and set(epoch) <= set(index)


@settings(max_examples=50, deadline=None)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6), seed=st.integers(0, 5))
def test_a_stratified_tenth_has_every_class_with_two_images(sizes: list[int], seed: int):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    if max(sizes) == 1:
        with pytest.raises(UserError, match="no class with two images"):
            stratified_hold_out(labels, 0.1, seed)
        return
    kept, held = stratified_hold_out(labels, 0.1, seed)
    assert sorted([*kept, *held]) == list(range(len(labels)))
    for label, size in enumerate(sizes):
        expected = 0 if size == 1 else max(1, int(0.1 * size + 0.5))
        assert (labels[held] == label).sum() == expected


def test_another_seed_holds_out_other_images():
    labels = np.repeat(np.arange(4), 30)
    one, again, other = (stratified_hold_out(labels, 0.1, s)[1].tolist() for s in (0, 0, 1))
    assert one == again != other


def test_scores_equal_scikit_learn():
    rng = np.random.default_rng(0)
    labels = np.concatenate([np.arange(9), rng.choice(9, 191, p=np.arange(1, 10) / 45)])
    logits = rng.standard_normal((200, 9)) + 1.5 * np.eye(9)[labels]
    found = classification_scores(torch.tensor(logits), torch.tensor(labels))
    assert found["top1"] == pytest.approx((logits.argmax(1) == labels).mean())
    assert found["top5"] == pytest.approx(top_k_accuracy_score(labels, logits, k=5))
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, logits.argmax(1)))
    assert abs(found["balanced_accuracy"] - found["top1"]) > 1e-3


def test_balanced_accuracy_leaves_out_classes_that_the_labels_lack():
    assert balanced_accuracy(torch.tensor([0, 0, 3, 5]), torch.tensor([0, 0, 0, 3])) == pytest.approx((2 / 3 + 0) / 2)


def test_top5_of_few_classes_is_one_and_ties_are_not_all_right():
    labels = torch.arange(12) % 4
    assert classification_scores(torch.randn(12, 4), labels)["top5"] == 1
    assert classification_scores(torch.zeros(12, 12), torch.arange(12))["top5"] == pytest.approx(5 / 12)


def test_knn_equals_scikit_learn_with_the_same_weights():
    features, labels = blobs(200, width=30, spread=5.0)
    bank, queries = torch.tensor(features[:150]), torch.tensor(features[150:])
    found = knn_predict(bank, torch.tensor(labels[:150]), queries, [1, 10, 100], num_classes=3)
    unit = F.normalize(torch.tensor(features), dim=-1).numpy()
    answers = set()
    for k in (1, 10, 100):
        reference = KNeighborsClassifier(k, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07))
        expected = reference.fit(unit[:150], labels[:150]).predict(unit[150:])
        assert found[k].tolist() == expected.tolist()
        answers.add(tuple(expected))
    assert len(answers) == 3


def test_knn_is_the_same_whatever_the_chunk(monkeypatch: pytest.MonkeyPatch):
    features, labels = blobs(100, spread=2.5)
    args = torch.tensor(features[:60]), torch.tensor(labels[:60]), torch.tensor(features[60:]), [10]
    whole = knn_predict(*args, num_classes=3)[10]
    monkeypatch.setattr("harness.probes.CHUNK", 130)
    assert torch.equal(knn_predict(*args, num_classes=3)[10], whole)
