"""The artifacts task: cases computed by hand, planted outliers found, what does not exist left out, no NaN."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from harness.api import Layers, Outputs
from harness.data import Data
from harness.errors import UserError
from harness.features import Encoder
from harness.norms import OUTLIER_Z, outlier_energy, outlier_share, outliers, over_median, robust_z
from harness.reference import Reference
from harness.similarity import gram_distance, linear_cka
from harness.sources import Sample, Source
from harness.toys import Colours, PixelVit
from tasks.artifact_measures import Gradient, Likeness, cls_attention, entropy
from tasks.artifacts import Artifacts

# Median 5; deviations 4 3 2 1 0 1 2 3 95, MAD 2; z of 100 is .6745 * 95 / 2 = 32.04.
NINE = torch.tensor([[1.0, 2, 3, 4, 5, 6, 7, 8, 100]])


PER_LAYER = ("outlier_share", "max_over_median", "p99_over_median", "outlier_energy")
PROBES = [f"{kind}_{name}" for kind in ("outlier", "inlier") for name in ("position_top1", "position_distance")]
PROBES += [f"{kind}_{name}" for kind in ("outlier", "inlier") for name in ("pixel_error", "class_top1")]
LIKENESS = ["cka_inliers", "cka_all", "gram_inliers", "gram_all"]
ATTENTION = ["attention_entropy", "attention_largest", "attention_on_outliers"]


def measure(
    vit: PixelVit, source: Source | None = None, teacher: PixelVit | None = None, **options
) -> dict[str, float]:
    source = Colours(12, split="test") if source is None else source
    data = Data.of_sources({"test": source}, image_size=32, name="colours")
    reference = None if teacher is None else Reference.of(teacher)
    encoder = Encoder(vit, identity="toy", cache=None, batch_size=5, reference=reference)
    return Artifacts(data=data, **options).evaluate(encoder, seed=0)


def test_statistics_equal_a_case_computed_by_hand():
    assert robust_z(NINE)[0, -1].item() == pytest.approx(0.6745 * 95 / 2)
    assert outlier_share(NINE).item() == pytest.approx(1 / 9)
    assert over_median(NINE, 1.0).item() == pytest.approx(100 / 5)
    assert over_median(NINE, 0.99).item() == pytest.approx((8 + 0.92 * 92) / 5, rel=1e-5)  # place .99 * 8 = 7.92


@pytest.mark.parametrize("z, expected", [(OUTLIER_Z - 0.01, 0.0), (OUTLIER_Z + 0.01, 1 / 9)])
def test_the_threshold_is_a_robust_z_of_five_and_a_half(z: float, expected: float):
    norms = NINE.clone()
    norms[0, -1] = 5 + 2 * z / 0.6745
    assert outlier_share(norms).item() == pytest.approx(expected)


def test_statistics_are_of_each_image_for_itself_and_of_no_scale():
    both = torch.cat([NINE, 1000 * NINE, torch.ones(1, 9)])
    torch.testing.assert_close(outlier_share(both), torch.tensor([1 / 9, 1 / 9, 0]))
    torch.testing.assert_close(over_median(both, 1.0), torch.tensor([20.0, 20.0, 1.0]))


@pytest.mark.parametrize(
    "norms, share, top",
    [
        ([2.0, 2, 2, 2], 0.0, 1.0),  # MAD 0, nothing stands out
        ([2.0, 2, 2, 8], 0.25, 4.0),  # MAD 0, one does
        ([0.0, 0, 0, 0], 0.0, 1.0),
        ([0.0, 0, 0, 8], 0.25, 1 / torch.finfo(torch.float32).eps),  # median 0
    ],
)
def test_equal_norms_and_zero_medians_give_numbers(norms: list[float], share: float, top: float):
    assert outlier_share(torch.tensor([norms])).item() == share
    assert over_median(torch.tensor([norms]), 1.0).item() == pytest.approx(top)


@pytest.mark.parametrize("planted", [1, 3])
def test_planted_outliers_are_found_in_every_block(planted: int):
    clean, found = measure(PixelVit(depth=3)), measure(PixelVit(depth=3, planted=planted))
    for block in range(3):
        assert clean[f"outlier_share/block{block}"] == 0
        assert found[f"outlier_share/block{block}"] == planted / 16
        assert found[f"max_over_median/block{block}"] > 30
    assert found["p99_over_median"] > 20 * clean["p99_over_median"]


def test_metrics_are_those_of_the_last_block_and_a_block_shows_where_artifacts_are_born():
    found = measure(PixelVit(depth=3, planted=1, planted_from=1))
    assert [found[f"outlier_share/block{i}"] for i in range(3)] == [0, 1 / 16, 1 / 16]
    found = measure(PixelVit(depth=3, planted=1, planted_from=2))
    assert [found[name] for name in PER_LAYER] == [found[f"{name}/block2"] for name in PER_LAYER]
    assert found["outlier_share"] == 1 / 16
    assert set(found) == {*PER_LAYER, *(f"{n}/block{i}" for n in PER_LAYER for i in range(3)), "outlier_gradient"} | {
        *ATTENTION
    }
    found = measure(PixelVit(depth=3, planted=1, planted_from=2), layer=1)
    assert found["outlier_share"] == found["outlier_share/block1"] == found["outlier_gradient"] == 0


def test_the_oracle_beats_the_blind_encoder_in_the_declared_direction():
    tiny = Artifacts.tiny()
    oracle, blind = (
        tiny.task.evaluate(Encoder(vit, identity="toy", cache=None), seed=0) for vit in (tiny.oracle, tiny.blind)
    )
    for name in ("outlier_share", "max_over_median", "p99_over_median", "outlier_energy", "outlier_gradient"):
        assert Artifacts.metrics[name].direction == "down" and oracle[name] < blind[name]
    assert not any(metric.ranked for metric in Artifacts.metrics.values())


def test_means_are_over_images_whatever_the_batch():
    source = Colours(12, split="test")
    data = Data.of_sources({"test": source}, image_size=32)
    vit = PixelVit(planted=1)
    found = [
        Artifacts(data=data).evaluate(Encoder(vit, identity="toy", cache=None, batch_size=b), seed=0)
        for b in (1, 5, 64)
    ]
    by_hand = np.mean(
        [
            norms.max() / np.median(norms)
            for i in range(12)
            for norms in [vit(data.view()(source.read(i).image)[None], layers=[1]).patches(1)[0].norm(dim=-1).numpy()]
        ]
    )
    assert all(f["max_over_median"] == pytest.approx(by_hand, rel=1e-5) for f in found)


class Black(Colours):
    """Images of one value."""

    def read(self, index: int) -> Sample:
        return Sample(Image.new("RGB", (32, 32)), 0)


def test_images_without_any_content_give_finite_numbers():
    found = measure(PixelVit(), Black(4), teacher=PixelVit())
    assert all(math.isfinite(v) for v in found.values())
    assert found["outlier_share"] == found["outlier_gradient"] == found["cka_all"] == found["gram_all"] == 0
    planted = measure(PixelVit(planted=2), Black(60), teacher=PixelVit())
    assert all(math.isfinite(v) for v in planted.values())
    assert planted["outlier_pixel_error"] == 1  # there is nothing to tell


def test_only_as_many_images_as_asked_for_are_read_and_every_class_is_among_them():
    read = []

    class Watched(Colours):
        def read(self, index: int) -> Sample:
            read.append(index % 4)
            return super().read(index)

    measure(PixelVit(), Watched(100), images=8)
    assert sorted(read) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_norms_that_are_not_finite_are_an_error_and_no_number():
    with pytest.raises(UserError, match="patch norms after block 0 are not finite"):
        measure(PixelVit(planted=1, planted_norm=math.inf))


def test_wrong_options_and_empty_data_are_named():
    with pytest.raises(UserError, match="images of the artifacts task is 0"):
        measure(PixelVit(), images=0)
    with pytest.raises(UserError, match="tokens of the artifacts task is 0"):
        measure(PixelVit(), tokens=0)
    with pytest.raises(UserError, match="layer of the artifacts task: layer 7 does not exist"):
        measure(PixelVit(), layer=7)
    with pytest.raises(UserError, match="empty"):
        measure(PixelVit(), Colours(0))


# ---- energy and gradient


def test_the_share_of_the_squared_norm_equals_a_case_computed_by_hand():
    small = sum(n * n for n in range(1, 9))
    torch.testing.assert_close(outlier_energy(NINE), torch.tensor([100**2 / (small + 100**2)]))
    torch.testing.assert_close(outlier_energy(torch.zeros(1, 4)), torch.zeros(1))
    assert outliers(NINE).tolist() == [[False] * 8 + [True]]


def test_the_share_of_the_gradient_is_that_of_autograd_at_the_mean_token():
    tokens = torch.randn(3, 20, 6, generator=torch.Generator().manual_seed(0)) + 3  # [B, P, D]
    tokens[:, 4] *= 30
    gradient = Gradient(0)
    for image in tokens:  # whatever the batches
        gradient.add(torch.zeros(1), Outputs(Layers({0: image[None]}), logits=None, num_prefix_tokens=0))
    said = tokens.mean(dim=(0, 1)).expand_as(tokens).clone().requires_grad_()
    torch.nn.functional.mse_loss(said, tokens).backward()
    assert said.grad is not None
    norms = said.grad.square().sum(dim=-1)
    outlier = outliers(tokens.norm(dim=-1))
    assert outlier.sum() == 3
    assert gradient.values()["outlier_gradient"] == pytest.approx(float(norms[outlier].sum() / norms.sum()), rel=1e-5)


# ---- attention


def test_attention_of_cls_equals_a_case_computed_by_hand():
    maps = torch.tensor([[[[0.5, 0.1, 0.3, 0.1], *[[0.25] * 4] * 3], [[0.1, 0.0, 0.6, 0.3], *[[0.25] * 4] * 3]]])
    weights = cls_attention(maps, 2)  # CLS and a register come first
    torch.testing.assert_close(weights, torch.tensor([[0.45, 0.2]]) / 0.65)
    p = 0.45 / 0.65
    expected = -(p * math.log(p) + (1 - p) * math.log(1 - p)) / math.log(2)
    assert entropy(weights).item() == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(entropy(torch.tensor([[0.25] * 4, [1.0, 0, 0, 0]])), torch.tensor([1.0, 0]))
    assert entropy(torch.ones(2, 1)).tolist() == [1, 1]
    assert cls_attention(torch.zeros(1, 1, 3, 3), 1).sum() == 0  # attention that has underflowed is no NaN


def test_attention_on_outliers_is_what_a_planted_encoder_gives_them():
    clean, planted = measure(PixelVit()), measure(PixelVit(planted=2, planted_norm=50))
    assert clean["attention_on_outliers"] == 0
    assert planted["attention_on_outliers"] == pytest.approx(2 * 50 / (2 * 50 + 14), abs=0.02)  # in proportion to norms
    assert planted["attention_largest"] > 0.4 > 0.1 > clean["attention_largest"]
    assert planted["attention_entropy"] < 0.6 < 0.99 < clean["attention_entropy"]


def test_a_model_without_cls_has_no_attention_of_cls():
    assert not set(ATTENTION) & set(measure(PixelVit(has_cls=False)))


# ---- likeness to the teacher


def test_an_encoder_is_like_itself_and_without_a_reference_like_nothing_known():
    found = measure(PixelVit(), teacher=PixelVit())
    assert [found[name] for name in LIKENESS] == pytest.approx([1, 1, 0, 0], abs=1e-6)
    assert not set(LIKENESS) & set(measure(PixelVit()))


def test_inliers_are_told_by_the_teachers_norms():
    found = measure(PixelVit(), teacher=PixelVit(planted=2))
    assert found["cka_inliers"] == pytest.approx(1) and found["gram_inliers"] == pytest.approx(0, abs=1e-6)
    assert found["cka_all"] < 0.5  # the outliers are all that varies there
    found = measure(PixelVit(planted=2), teacher=PixelVit())
    assert found["cka_inliers"] == found["cka_all"] < 0.5


def test_likeness_is_that_of_all_patches_at_once_whatever_the_batch():
    vit, teacher = PixelVit(), PixelVit(blind=True)
    images = torch.rand(7, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    other = torch.rand(7, 16, 5, generator=torch.Generator().manual_seed(1))

    class Other(PixelVit):
        def __call__(self, images, layers=(), attention_layers=(), keep=None):
            rows = other[: len(images)] if len(images) == 4 else other[-len(images) :]
            return Outputs(Layers({1: rows}), logits=None, num_prefix_tokens=0, has_cls=False, grid=(4, 4))

    encoder = Encoder(vit, identity="toy", cache=None)
    likeness = Likeness(1, encoder, Other())
    for part in (images[:4], images[4:]):
        likeness.add(part, encoder(part, [1]))
    ours = encoder(images, [1]).patches(1)
    found = likeness.values()
    assert found["cka_all"] == pytest.approx(linear_cka(ours.flatten(0, 1), other.flatten(0, 1)))
    assert found["gram_all"] == pytest.approx(gram_distance(ours, other).mean().item(), rel=1e-5)
    assert Likeness(0, encoder, teacher).theirs == 0
    assert Likeness(1, encoder, PixelVit(depth=12)).theirs == 11
    assert Likeness(0, encoder, PixelVit(depth=12)).theirs == 5


def test_grids_of_other_sizes_are_brought_together_and_no_part_of_an_outlier_counts_as_inlier():
    finer = PixelVit(patch=4, planted=1)  # 8 x 8 patches, one of them planted
    found = measure(PixelVit(), teacher=finer)
    assert found["cka_inliers"] > 0.5 > found["cka_all"]
    coarser = measure(PixelVit(patch=4), teacher=PixelVit(planted=1))
    assert coarser["cka_inliers"] > 0.5 > coarser["cka_all"]


# ---- what tokens tell


def test_too_few_outliers_leave_the_probes_out():
    assert not set(PROBES) & set(measure(PixelVit(planted=1), Colours(90, split="test")))
    assert set(PROBES) <= set(measure(PixelVit(planted=1), Colours(100, split="test")))
    assert not set(PROBES) & set(measure(PixelVit(planted=3), Colours(60, split="test"), tokens=60))  # one an image


def test_tokens_of_colours_tell_their_class_and_planted_ones_sit_where_they_were_planted():
    found = measure(PixelVit(planted=2), Colours(100, split="test"))
    assert found["outlier_class_top1"] > 0.9 and found["inlier_class_top1"] > 0.9
    assert found["outlier_position_top1"] == pytest.approx(found["outlier_position_top1_chance"], abs=0.2)
    assert found["outlier_position_top1_chance"] == pytest.approx(0.5, abs=0.01)  # of two places, always the same
    assert found["inlier_position_top1"] < 0.25
    assert found["outlier_pixel_error"] < 1 and found["inlier_pixel_error"] < 1
    unlabelled = measure(PixelVit(planted=2), Unlabelled(100, split="test"))
    assert {name for name in PROBES if name not in unlabelled} == {"outlier_class_top1", "inlier_class_top1"}


class Unlabelled(Colours):
    """Images without classes."""

    def labels(self) -> np.ndarray:
        return np.full(self.count, -1)


def test_the_seed_changes_nothing():
    data = Data.of_sources({"test": Colours(64, split="test")}, image_size=32)
    encoder = Encoder(PixelVit(planted=2), identity="toy", cache=None, reference=Reference.of(PixelVit()))
    one, other = (Artifacts(data=data).evaluate(encoder, seed=seed) for seed in (0, 1))
    assert one == other and set(Artifacts.metrics) <= set(one)
