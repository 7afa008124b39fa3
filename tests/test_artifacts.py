"""The artifacts task: norms against a case computed by hand, planted outliers found, no NaN."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from harness.data import Data
from harness.errors import UserError
from harness.features import Encoder
from harness.norms import OUTLIER_Z, outlier_share, over_median, robust_z
from harness.sources import Sample, Source
from harness.toys import Colours, PixelVit
from tasks.artifacts import Artifacts

# Median 5; deviations 4 3 2 1 0 1 2 3 95, MAD 2; z of 100 is .6745 * 95 / 2 = 32.04.
NINE = torch.tensor([[1.0, 2, 3, 4, 5, 6, 7, 8, 100]])


def measure(vit: PixelVit, source: Source | None = None, **options) -> dict[str, float]:
    source = Colours(12, split="test") if source is None else source
    data = Data.of_sources({"test": source}, image_size=32, name="colours")
    return Artifacts(data=data, **options).evaluate(Encoder(vit, identity="toy", cache=None, batch_size=5), seed=0)


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
    assert [found[name] for name in Artifacts.metrics] == [found[f"{name}/block2"] for name in Artifacts.metrics]
    assert found["outlier_share"] == 1 / 16
    assert len(found) == 3 + 9


def test_the_oracle_beats_the_blind_encoder_in_the_declared_direction():
    tiny = Artifacts.tiny()
    oracle, blind = (
        tiny.task.evaluate(Encoder(vit, identity="toy", cache=None), seed=0) for vit in (tiny.oracle, tiny.blind)
    )
    for name, metric in Artifacts.metrics.items():
        assert metric.direction == "down" and oracle[name] < blind[name]


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
    assert all(math.isfinite(v) for v in measure(PixelVit(), Black(4)).values())
    assert measure(PixelVit(), Black(4))["outlier_share"] == 0


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
    with pytest.raises(UserError, match="empty"):
        measure(PixelVit(), Colours(0))
