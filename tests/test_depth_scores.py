"""Depth errors pooled over pixels, against hand computations and mmsegmentation's; crops, losses, the bins' mean."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from harness.mmseg_guard import mmseg
from tasks.depth_heads import (
    between_centres,
    bin_cross_entropy,
    bin_head,
    depth_of,
    gradient_loss,
    resized,
    sig_loss,
    upsampled,
)
from tasks.depth_scores import OF_MMSEG, MeanOfImages, PooledErrors, counted, crop_window


def pooled(*images: tuple[np.ndarray, np.ndarray]) -> PooledErrors:
    errors = PooledErrors()
    for predicted, truth in images:
        errors.add(np.ravel(predicted).astype(float), np.ravel(truth).astype(float))
    return errors


def of_mmseg(*images: tuple[np.ndarray, np.ndarray], **options) -> dict[str, float]:
    """DepthMetric as a user of mmsegmentation runs it, on images [H, W] (predicted, true)."""
    metric = mmseg("mmseg.evaluation").DepthMetric(**options)
    samples = [
        {key: {"data": torch.from_numpy(array)[None]} for key, array in (("pred_depth_map", p), ("gt_depth_map", t))}
        for p, t in images
    ]
    metric.process({}, samples)
    return {OF_MMSEG[k]: v for k, v in metric.compute_metrics(metric.results).items() if k in OF_MMSEG}


def test_errors_by_hand():
    found = pooled(([2.0, 1.0], [1.0, 1.0]), ([4.0], [5.0])).metrics()
    assert found["rmse"] == pytest.approx(math.sqrt((1 + 0 + 1) / 3))
    assert found["abs_rel"] == pytest.approx((1 + 0 + 0.2) / 3)
    assert found["delta1"] == pytest.approx(1 / 3)  # 5 / 4 is not under 1.25
    assert found["delta2"] == found["delta3"] == pytest.approx(2 / 3)  # 2 is over 1.25 ** 3
    logs = np.array([math.log(2), 0, math.log(0.8)])
    assert found["log10"] == pytest.approx(np.abs(logs).mean() / math.log(10))
    assert found["silog"] == pytest.approx(math.sqrt((logs**2).mean() - logs.mean() ** 2 / 2))
    assert found["silog_full"] == pytest.approx(logs.std())


def test_the_error_of_all_pixels_is_not_the_mean_of_the_images_errors():
    one, other = (np.full((2, 2), 3.0), np.full((2, 2), 1.0)), (np.full((2, 2), 1.0), np.full((2, 2), 1.0))
    averaged = MeanOfImages()
    for predicted, truth in (one, other):
        averaged.add(predicted.ravel(), truth.ravel())
    assert averaged.metrics()["rmse_mean_of_images"] == pytest.approx(1.0)  # of 2 and 0
    assert pooled(one, other).rmse == pytest.approx(math.sqrt(2))  # of 4 and 0


sizes = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 6), st.floats(0, 1)), min_size=1, max_size=5)


def random_images(shapes: list, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    draw = np.random.default_rng(seed)
    images = []
    for height, width, known in shapes:
        truth = draw.uniform(0.5, 9.0, (height, width)) * (draw.random((height, width)) < known)
        images.append((draw.uniform(0.5, 9.0, (height, width)), truth))
    return images


@settings(max_examples=60, deadline=None)
@given(shapes=sizes, seed=st.integers(0, 10_000))
def test_pooled_errors_are_those_of_all_known_pixels_at_once_and_an_empty_image_adds_nothing(shapes, seed):
    images = random_images(shapes, seed)
    errors, averaged = PooledErrors(), MeanOfImages()
    for predicted, truth in [*images, (np.ones((2, 2)), np.zeros((2, 2)))]:
        where = counted(truth, 0.5, 10.0)
        errors.add(predicted[where], truth[where])
        averaged.add(predicted[where], truth[where])
    p = np.concatenate([p[t > 0] for p, t in images])
    t = np.concatenate([t[t > 0] for _, t in images])
    assert errors.pixels == len(t)
    if not len(t):
        assert errors.rmse == math.inf
        with pytest.raises(ValueError, match="no pixel was seen"):
            errors.metrics()
        return
    found = errors.metrics()
    # mmsegmentation on all pixels as one image is the pooled error; on the images one by one it is their mean.
    for name, value in of_mmseg((p[None], t[None])).items():
        assert found[name] == pytest.approx(value, rel=1e-5, abs=1e-7)
    for name, value in of_mmseg(*(image for image in images if image[1].any())).items():
        assert averaged.metrics()[f"{name}_mean_of_images"] == pytest.approx(value, rel=1e-5, abs=1e-7)
    assert found["rmse"] == pytest.approx(math.sqrt(((p - t) ** 2).mean()))
    assert found["delta1"] <= found["delta2"] <= found["delta3"]
    scaled = pooled((1.7 * p, t)).metrics()
    assert scaled["silog_full"] == pytest.approx(found["silog_full"], abs=1e-6)  # what the name says


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), low=st.floats(0, 4), high=st.floats(4.1, 9))
def test_the_truth_alone_decides_what_counts(seed, low, high):
    (_, truth) = random_images([(5, 6, 0.7)], seed)[0]
    found = counted(truth, low, high)
    np.testing.assert_array_equal(found, (truth > 0) & (truth >= low) & (truth <= high))


def test_the_eigen_crop_is_mmsegmentations_and_scales_with_the_label():
    truth = np.random.default_rng(0).uniform(1, 9, (480, 640))
    found = np.zeros((480, 640), bool)
    found[crop_window("eigen", 480, 640)] = True
    metric = mmseg("mmseg.evaluation").DepthMetric(max_depth_eval=10.0, crop_type="nyu_crop")
    np.testing.assert_array_equal(found, metric._get_eval_mask(torch.from_numpy(truth)).numpy())
    rows, columns = crop_window("eigen", 240, 320)
    assert (rows.start, rows.stop) == (22, 236) and (columns.start, columns.stop) == (20, 300)
    assert counted(truth, 0.1, 10.0, "eigen").sum() == 426 * 560


def test_the_garg_crop_of_kittis_375_by_1242_pixels():
    rows, columns = crop_window("garg", 375, 1242)
    assert (rows.start, rows.stop, columns.start, columns.stop) == (153, 371, 44, 1197)
    assert crop_window("none", 7, 9) == (slice(0, 7), slice(0, 9))


# ---- the head and its losses


def test_features_upsampled_before_the_head_are_its_logits_upsampled():
    torch.manual_seed(0)
    head, maps = bin_head(5), torch.randn(2, 5, 3, 4)
    features = F.interpolate(maps, scale_factor=4, mode="bilinear", align_corners=False)
    torch.testing.assert_close(upsampled(head(maps)), head(features), atol=1e-5, rtol=1e-5)


def test_a_window_upsampled_is_the_maps_part_between_its_outer_centres():
    logits = torch.randn(2, 5, 6, 7, generator=torch.Generator().manual_seed(0))
    window = logits[:, :, 1:4, 3:7]  # places 1 .. 3 and 3 .. 6: their centres are 4.5 cells and so on from the corner
    torch.testing.assert_close(between_centres(window), upsampled(logits)[:, :, 6:14, 14:26])


@pytest.mark.parametrize("how", ["linear", "softmax"])
def test_the_mean_of_the_bins_by_hand_and_inside_the_range(how):
    logits = torch.randn(2, 7, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    bins = torch.linspace(0.5, 8.0, 7, dtype=torch.float64).view(1, 7, 1, 1)
    shares = logits.relu() + 0.1 if how == "linear" else (logits / 0.03).softmax(dim=1)
    expected = (shares * bins).sum(dim=1) / shares.sum(dim=1)
    found = depth_of(logits, 0.5, 8.0, how)
    torch.testing.assert_close(found, expected)
    assert (found >= 0.5).all() and (found <= 8.0).all()


def test_sig_loss_by_hand_and_while_warming_up():
    truth = torch.tensor([[[1.0, 2.0], [0.0, 4.0]]])
    predicted = torch.tensor([[[2.0, 2.0], [9.0, 4.0]]])
    g = (predicted + 1e-3).log()[truth > 0] - (truth + 1e-3).log()[truth > 0]  # [3]
    expected = (g.var(correction=0) + 0.15 * g.mean() ** 2).sqrt()
    assert sig_loss(predicted, truth).item() == pytest.approx(expected.item(), rel=1e-5)
    assert sig_loss(predicted, truth, warming_up=True).item() == pytest.approx((0.15**0.5 * g.mean()).item(), rel=1e-5)
    assert sig_loss(truth + 0.0, truth).item() == pytest.approx(0, abs=2e-6)


def test_the_gradient_loss_by_hand():
    truth = torch.ones(1, 3, 3)
    predicted = torch.ones(1, 3, 3)
    predicted[0, 0, 0] = math.e * 1.001 - 0.001  # its log error is 1
    # Two pairs of cells one apart differ by 1, two that are two apart, of 9 known cells; none are three apart.
    assert gradient_loss(predicted, truth).item() == pytest.approx(4 / 9, rel=1e-4)
    truth[0, 0, 2] = 0  # unknown: one of the pairs is gone, and a cell
    assert gradient_loss(predicted, truth).item() == pytest.approx(3 / 8, rel=1e-4)
    assert gradient_loss(3 * torch.ones(1, 9, 9), torch.ones(1, 9, 9)).item() == 0  # a wrong scale has no gradient


def test_unknown_pixels_and_batches_without_any_train_nothing():
    truth = torch.rand(2, 9, 9, generator=torch.Generator().manual_seed(0)) + 1
    truth[:, ::2] = 0
    predicted = (truth + 0.5).requires_grad_()
    (sig_loss(predicted, truth) + gradient_loss(predicted, truth)).backward()
    assert predicted.grad is not None and predicted.grad[truth > 0].abs().sum() > 0
    assert (predicted.grad[truth == 0] == 0).all()
    logits = torch.zeros(2, 5, 9, 9, requires_grad=True)
    bin_cross_entropy(logits, truth, 0.5, 2.0).backward()
    assert logits.grad is not None and (logits.grad.abs().sum(dim=1)[truth == 0] == 0).all()
    for loss in (sig_loss, gradient_loss, lambda p, t: bin_cross_entropy(p[:, None].expand(-1, 4, -1, -1), t, 0.5, 2)):
        nothing = loss(predicted, torch.zeros(2, 9, 9))
        nothing.backward(retain_graph=True)
        assert nothing.item() == 0


def test_a_bin_is_the_nearest_value():
    truth = torch.tensor([[[1.0, 1.2, 1.3, 3.0, 9.0]]])  # bins 1, 1.5, 2, 2.5, 3; what is beyond is the last
    logits = nn.functional.one_hot(torch.tensor([[[0, 0, 1, 4, 4]]]), 5).permute(0, 3, 1, 2) * 50.0
    assert bin_cross_entropy(logits, truth, 1.0, 3.0).item() == pytest.approx(0, abs=1e-6)


def test_a_map_is_brought_to_the_labels_size():
    ramp = torch.arange(4.0).expand(1, 4, 4)
    assert resized(ramp, (8, 6)).shape == (1, 8, 6)
    torch.testing.assert_close(resized(torch.full((1, 3, 3), 2.5), (10, 7)), torch.full((1, 10, 7), 2.5))
