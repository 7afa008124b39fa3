"""The classification task: what it chooses by, what it reports, and what it refuses."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from harness.api import Vit, frozen
from harness.data import Data
from harness.errors import UserError
from harness.features import Encoder, weights_identity
from harness.head_choice import RATES, choose_head, feature_sets
from harness.models import as_vit
from harness.probes import score_heads, train_linear_heads
from harness.sources import Source
from harness.toys import Colours, PixelVit
from tasks import classification
from tasks.classification import Classification


class Relabelled(Source):
    """Another source with other labels or classes."""

    name = "relabelled"

    def __init__(
        self, source: Source, labels: np.ndarray | None = None, classes: tuple[str, ...] | None = None
    ) -> None:
        self.source = source
        self.changed = source.labels() if labels is None else labels
        self.classes = source.classes if classes is None else classes

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int):
        return self.source.read(index)

    def labels(self) -> np.ndarray:
        return self.changed

    def sample_name(self, index: int) -> str:
        return self.source.sample_name(index)

    def identity(self) -> str:
        return self.source.identity()


TRAIN, TEST = Colours(120, cast=0.2), Colours(60, cast=0.2, split="test")


def task(train: Source = TRAIN, test: Source = TEST, **options) -> Classification:
    data = Data.of_sources({"train": train, "test": test}, image_size=32, name="colours")
    return Classification(data=data, **{"steps": 60, "batch": 32, **options})


def seeing(vit: Vit | None = None, **options) -> Encoder:
    return Encoder(PixelVit() if vit is None else vit, identity="toy", cache=None, **options)


@pytest.mark.parametrize("protocol", ["linear", "published"])
def test_an_encoder_that_sees_beats_a_blind_one_in_every_metric(protocol: str):
    tiny = Classification.tiny()
    measured = Classification(data=tiny.task.data, protocol=protocol, steps=200, batch=32)  # type: ignore
    oracle, blind = (measured.evaluate(seeing(vit), seed=0) for vit in (tiny.oracle, tiny.blind))
    for metric in ("top1", "balanced_accuracy", "knn_top1"):
        assert oracle[metric] > 0.9
        assert blind[metric] == pytest.approx(0.25)
    assert oracle["top5"] == blind["top5"] == 1  # four classes


def test_every_declared_metric_is_there_and_everything_is_a_finite_number():
    for protocol in ("linear", "published"):
        found = task(protocol=protocol).evaluate(seeing(), seed=0)
        assert set(Classification.metrics) <= set(found)
        assert all(type(v) is float and math.isfinite(v) for v in found.values())


def chosen(found: dict[str, float]) -> dict[str, float]:
    measured = set(Classification.metrics) | {"own_head_top1"}
    return {k: v for k, v in found.items() if k not in measured}


@pytest.mark.parametrize("protocol", ["linear", "published"])
def test_the_choice_never_looks_at_test_labels(protocol: str):
    honest = task(protocol=protocol).evaluate(seeing(), seed=0)
    poisoned = Relabelled(TEST, (TEST.labels() + 1) % 4)
    other = task(test=poisoned, protocol=protocol).evaluate(seeing(), seed=0)
    assert chosen(honest) == chosen(other)
    assert honest["top1"] > 0.5 > other["top1"]


def test_the_chosen_head_is_the_best_of_its_table_and_the_one_that_is_measured():
    found = task().evaluate(seeing(), seed=0)
    table = {k.split("/", 1)[1]: v for k, v in found.items() if k.startswith("held_out_top1/")}
    (winner,) = [k.split("/", 1)[1] for k, v in found.items() if k.startswith("chosen/") and v == 1]
    assert set(table) == {"cls/1", "cls/2", "cls+mean_patch/1", "cls+mean_patch/2"}
    assert found["held_out_top1"] == table[winner] == max(table.values())
    assert found["chosen_lr"] == found[f"lr/{winner}"] in RATES
    assert found["chosen_lr_at_edge"] == float(found["chosen_lr"] in (RATES[0], RATES[-1]))


def test_heads_are_chosen_on_images_that_they_were_not_trained_on(monkeypatch: pytest.MonkeyPatch):
    trained, judged = [], []

    def train(*args, index, **options):
        trained.append(set(index.tolist()))
        return train_linear_heads(*args, index=index, **options)

    def score(heads, rows, labels, index, device):
        judged.append(set(index.tolist()))
        return score_heads(heads, rows, labels, index, device)

    monkeypatch.setattr("harness.head_choice.train_linear_heads", train)
    monkeypatch.setattr("harness.head_choice.score_heads", score)
    task().evaluate(seeing(), seed=0)
    assert len(trained) == 1 and len(judged) == 4
    for held_out in judged:
        assert len(held_out) == 12 and not held_out & trained[0] and held_out | trained[0] == set(range(120))


def test_a_head_that_overflows_never_wins(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("harness.head_choice.RATES", (1e39, 0.01, 1e39))
    found = task().evaluate(seeing(), seed=0)
    assert found["chosen_lr"] == 0.01 and found["top1"] > 0.5
    monkeypatch.setattr("harness.head_choice.RATES", (1e39,))
    with pytest.raises(UserError, match="every linear head overflowed"):
        task().evaluate(seeing(), seed=0)


def test_evaluations_are_reproducible_and_the_seed_counts():
    one, again, other = (task().evaluate(seeing(), seed=s) for s in (0, 0, 1))
    assert one == again
    assert one != other


def test_a_model_without_cls_is_probed_on_mean_patches():
    found = task(steps=200).evaluate(seeing(PixelVit(has_cls=False)), seed=0)
    assert {k for k in found if k.startswith("chosen/")} == {"chosen/mean_patch/1", "chosen/mean_patch/2"}
    assert found["top1"] > 0.5 and found["knn_top1"] > 0.5


def test_feature_sets_are_the_last_blocks_cls_with_the_last_blocks_mean_patch():
    deep = PixelVit(depth=6)
    pooled = seeing(deep).pooled(TRAIN, task().data.view(), range(2, 6))
    sets = feature_sets(pooled)
    assert {name: rows.width for name, rows in sets.items()} == {
        "cls/1": 12,
        "cls+mean_patch/1": 24,
        "cls/4": 48,
        "cls+mean_patch/4": 60,
    }
    assert {
        name: rows.width
        for name, rows in feature_sets(seeing(PixelVit(depth=1)).pooled(TRAIN, task().data.view(), [0])).items()
    } == {"cls/1": 12, "cls+mean_patch/1": 24}
    last = sets["cls+mean_patch/4"].take(np.arange(3))[:, -12:].numpy()
    np.testing.assert_array_equal(last, pooled.mean_patch(5)[:3])


def small_vit() -> VisionTransformer:
    torch.manual_seed(0)
    return frozen(VisionTransformer(img_size=32, patch_size=8, embed_dim=12, depth=5, num_heads=2, num_classes=4))


def test_the_published_protocol_reads_cls_before_the_final_norm_and_linear_after_it(monkeypatch: pytest.MonkeyPatch):
    asked = []
    original = Encoder.pooled

    def spy(self, source, view, layers=(-1,), *, norm=True, logits=False):
        asked.append((list(layers), norm))
        return original(self, source, view, layers, norm=norm, logits=logits)

    monkeypatch.setattr(Encoder, "pooled", spy)
    encoder = Encoder(as_vit(small_vit()), identity="vit", cache=None)
    task(protocol="published").evaluate(encoder, seed=0)
    task().evaluate(encoder, seed=0)
    assert asked == [([4], False)] * 2 + [([1, 2, 3, 4], True)] * 2


def test_a_second_evaluation_reads_the_cache_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    module = small_vit()
    encoder = Encoder(as_vit(module), identity=weights_identity(module), cache=tmp_path)
    first = task().evaluate(encoder, seed=0)
    monkeypatch.setattr(Encoder, "__call__", None)
    assert task().evaluate(encoder, seed=0) == first


def test_the_own_head_is_measured_only_where_it_was_trained_on_these_classes():
    vit = as_vit(small_vit())
    view, labels = task().data.view(), TEST.labels()
    with torch.no_grad():
        logits = vit(torch.stack([view(TEST.read(i).image) for i in range(60)])).logits
    expected = (logits.argmax(dim=-1).numpy() == labels).mean()
    trained = Encoder(vit, identity="vit", cache=None, head_classes=TRAIN.classes)
    assert trained.head_trained
    assert task().evaluate(trained, seed=0)["own_head_top1"] == pytest.approx(expected)
    for classes in (None, ("a", "b", "c", "d"), TRAIN.classes[:3]):
        other = Encoder(vit, identity="vit", cache=None, head_classes=classes)
        assert "own_head_top1" not in task().evaluate(other, seed=0)


def test_different_class_lists_are_refused_naming_both():
    strange = Relabelled(TEST, classes=("colour 0", "colour 1", "colour 2", "green"))
    with pytest.raises(UserError, match="only in train: \\('colour 3'\\), only in test: \\('green'\\)"):
        task(test=strange).evaluate(seeing(), seed=0)


def test_an_image_without_a_label_is_refused_by_name():
    labels = TEST.labels()
    labels[7] = -1
    with pytest.raises(UserError, match="'test/7' of the test split has none"):
        task(test=Relabelled(TEST, labels)).evaluate(seeing(), seed=0)


def test_one_image_a_class_is_refused():
    with pytest.raises(UserError, match="no class with two images"):
        task(train=Colours(4)).evaluate(seeing(), seed=0)


def test_a_batch_larger_than_the_data_is_all_of_it():
    found = task(batch=5000, steps=30).evaluate(seeing(), seed=0)
    assert found["top1"] > 0.5


@pytest.mark.parametrize(
    "change", [{"protocol": "published"}, {"steps": 61}, {"batch": 33}, {"steps": None}, {"batch": None}]
)
def test_whatever_decides_the_number_is_in_the_protocol(change: dict):
    assert task(**change).protocol() != task().protocol()


def test_wrong_options_are_named():
    with pytest.raises(UserError, match="steps of the classification task is 0"):
        task(steps=0)
    with pytest.raises(ValueError, match="did you mean 'linear'"):
        task(protocol="linea")


def test_fewer_training_images_keep_every_class_and_are_part_of_the_protocol():
    task, oracle, _ = Classification.tiny()
    few = Classification(data=task.data, steps=20, images=len(task.data.open("train").classes) * 4)
    assert few.protocol() != Classification(data=task.data, steps=20).protocol()
    found = few.evaluate(Encoder(oracle, identity="oracle", cache=None), seed=0)
    assert found["knn_top1"] > 0.5
    with pytest.raises(UserError, match="images of the classification task is 0"):
        Classification(data=task.data, images=0)


def test_mirrored_images_train_heads_and_are_no_neighbours_and_not_held_out(monkeypatch: pytest.MonkeyPatch):
    seen = {}

    def choose(sets, labels, *, train, held_out, **options):
        seen.update(sets=sets, labels=labels, train=train, held_out=held_out)
        return choose_head(sets, labels, train=train, held_out=held_out, **options)

    monkeypatch.setattr(classification, "choose_head", choose)
    sees = Encoder(PixelVit(), identity="sees", cache=None)
    found, plain = task(views=2).evaluate(sees, seed=0), task().evaluate(sees, seed=0)
    assert found["knn_top1"] == plain["knn_top1"] and found["knn_held_out_top1"] == plain["knn_held_out_top1"]

    task(views=2).evaluate(sees, seed=0)
    n = len(TRAIN)
    assert (seen["held_out"] < n).all() and len(seen["labels"]) == 2 * n
    assert not set(seen["train"] % n) & set(seen["held_out"]) and (seen["train"] >= n).sum() * 2 == len(seen["train"])
    rows, view = next(iter(seen["sets"].values())), task().data.view()
    mirrored = feature_sets(sees.pooled(TRAIN, dataclasses.replace(view, mirror=True), range(sees.depth)))
    whole = feature_sets(sees.pooled(TRAIN, view, range(sees.depth)))
    name = next(iter(seen["sets"]))
    index = np.array([3, n + 3, 2 * n - 1, 0])
    expected = torch.stack([whole[name].take(index % n)[0], *mirrored[name].take(index % n)[1:3]])
    torch.testing.assert_close(rows.take(index)[:3], expected)
    assert not torch.equal(*rows.take(np.array([3, n + 3])))


def test_views_are_part_of_the_protocol_and_of_the_linear_one_alone():
    assert task(views=2).protocol() != task().protocol() and "views" not in task().protocol()
    for options in ({"views": 3}, {"views": 2, "protocol": "published"}):
        with pytest.raises(UserError, match="views is"):
            task(**options)
