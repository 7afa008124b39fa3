"""Standardisations: what they keep and what they make equal; PHI-S as a target."""

from __future__ import annotations

import pytest
import torch
from toy import Shape, batch, identity, outputs

from baselines.fitnet import FitNet
from baselines.phi_s import PhiS
from harness.api import Calibration
from harness.norms import OUTLIER_Z, robust_z, token_norms
from harness.standardise import Moments, channel, hadamard, phi_s, standardised

close = pytest.approx
WIDTHS = [1, 2, 4, 12, 16, 20, 28, 36, 48, 192, 320, 384, 512, 768, 1024, 1152, 1280, 1408, 1536, 1664]


def tokens(count: int, dim: int, mean: float = 5.0) -> torch.Tensor:
    """Tokens whose channels differ in size and depend on one another: [count, D]."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    sizes = torch.logspace(-1, 1, dim, dtype=torch.float64)
    return torch.randn(count, dim, generator=generator, dtype=torch.float64) * sizes @ mix + mean


def moments(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    found = Moments(rows.shape[-1])
    found.add(rows)
    return found.mean, found.covariance


class Images(Calibration):
    """Ready outputs, as many as are asked for."""

    samples = 6

    def __init__(self, *given) -> None:
        self.given, self.asked = given, None

    def outputs(self, images, layers, attention_layers=()):
        self.asked = (images, tuple(layers))
        return iter(self.given)


@pytest.mark.parametrize("n", WIDTHS)
def test_a_hadamard_matrix_is_orthonormal_and_all_its_entries_are_of_one_size(n):
    found = hadamard(n)
    step = max(1, n // 50)  # of the large ones some rows against all
    assert torch.allclose(found[::step] @ found.T, torch.eye(n, dtype=torch.float64)[::step], atol=1e-10)
    assert torch.allclose(found.abs(), torch.full((n, n), n**-0.5, dtype=torch.float64))


@pytest.mark.parametrize(("n", "near"), [(3, "2 and 4"), (90, "88 and 96"), (92, "88 and 96")])
def test_an_order_without_a_known_hadamard_matrix_is_refused_with_the_nearest(n, near):
    with pytest.raises(ValueError, match=f"no Hadamard matrix of order {n} is known here .* the nearest are {near}"):
        hadamard(n)


def test_moments_in_batches_are_those_of_all_tokens_however_far_from_zero():
    rows = tokens(1000, 8, mean=1e6)
    found = Moments(8)
    for part in rows.split([1, 400, 0, 599]):
        found.add(part.reshape(1, -1, 8))
    assert found.count == 1000
    assert torch.allclose(found.mean, rows.mean(dim=0), rtol=1e-12)
    assert torch.allclose(found.covariance, torch.cov(rows.T, correction=0), rtol=1e-8)


def test_moments_of_too_few_tokens_are_refused():
    found = Moments(2)
    with pytest.raises(ValueError, match="statistics of 0 tokens"):
        _ = found.mean
    found.add(torch.ones(1, 2))
    with pytest.raises(ValueError, match="statistics of 1 tokens do not exist; give at least 2"):
        _ = found.covariance


@pytest.mark.parametrize("dim", [4, 12, 48])
def test_phi_s_gives_every_channel_the_variance_one_and_keeps_distances_to_one_scale(dim):
    rows = tokens(2000, dim)
    shift, matrix = phi_s(*moments(rows))
    out = (rows - shift) @ matrix.T
    assert torch.allclose(out.mean(dim=0), torch.zeros(dim, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(out.var(dim=0, correction=0), torch.ones(dim, dtype=torch.float64), rtol=1e-9)
    phi = moments(rows)[1].diagonal().mean().sqrt()
    assert torch.allclose(torch.pdist(out[:20]) * phi, torch.pdist(rows[:20]), rtol=1e-9)


def test_phi_s_can_be_undone():
    rows = tokens(50, 12)
    shift, matrix = phi_s(*moments(rows))
    out = (rows - shift) @ matrix.T
    assert torch.allclose(out @ torch.linalg.inv(matrix).T + shift, rows)


def test_phi_s_of_two_channels_by_hand():
    # Variances 1 and 9 along the axes: phi = sqrt 5, eigenvectors ascending e1, e2, H = [[1, 1], [1, -1]] / sqrt 2
    shift, matrix = phi_s(torch.tensor([1.0, 2.0]), torch.diag(torch.tensor([1.0, 9.0])))
    assert shift.tolist() == [1, 2]
    expected = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64) / 10**0.5
    assert torch.allclose(matrix, expected)


def test_channel_gives_every_channel_the_variance_one_by_itself():
    rows = tokens(500, 6)
    rows[:, 2] = 7  # never varies
    shift, matrix = channel(*moments(rows))
    out = (rows - shift) @ matrix.T
    assert out.var(dim=0, correction=0).tolist() == close([1, 1, 0, 1, 1, 1], rel=1e-9)
    assert torch.equal(matrix, torch.diag(matrix.diagonal()))


@pytest.mark.parametrize("kind", [phi_s, channel])
def test_tokens_that_do_not_vary_are_refused(kind):
    with pytest.raises(ValueError, match="do not vary"):
        kind(torch.ones(4), torch.zeros(4, 4))


def test_standardised_works_in_fp32_under_autocast():
    rows = tokens(64, 16).float()
    shift, matrix = phi_s(*moments(rows))
    plain = standardised(rows, shift, matrix)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(standardised(rows, shift, matrix), plain)


def calibrated(*given, **settings) -> PhiS:
    method = PhiS(Shape(2), Shape(2), **settings)
    method.calibrate(Images(*given))
    return identity(method)


# Patches (0, 1), (0, -1), (3, 0), (-3, 0) around (5, 5): variances 9/2 and 1/2, phi = sqrt(5/2); CLS far away.
PATCHES = [[5.0, 6.0], [5.0, 4.0], [8.0, 5.0], [2.0, 5.0]]
TEACHER = [[100.0, -100.0], *PATCHES]


def test_the_statistics_are_of_patches_alone():
    plain = calibrated(outputs(TEACHER))
    assert plain.shift[0].tolist() == close([5, 5])
    registers = calibrated(outputs([TEACHER[0], [9.0, 9.0], *PATCHES], num_prefix_tokens=2))
    assert torch.equal(registers.matrix, plain.matrix) and torch.equal(registers.shift, plain.shift)


def test_phi_s_is_the_mean_square_of_the_standardised_tokens_for_a_silent_student():
    # Patches: variance 1 in both channels. CLS: its squared distance 2 * 95^2 + ... from the mean, over phi^2 = 5/2.
    method = calibrated(outputs(TEACHER))
    expected = (4 * 2 + (95**2 + 105**2) / 2.5) / 10
    silent = outputs([[0.0, 0.0]] * 5)
    assert method.losses(silent, outputs(TEACHER), batch())["kd"].item() == close(expected, rel=1e-5)


def test_the_targets_are_what_the_student_is_compared_with():
    method = calibrated(outputs(TEACHER), weight=3.0)
    student, teacher = outputs(torch.randn(5, 2).tolist()), outputs(TEACHER)
    found = method.targets(teacher)
    assert set(found) == {0} and found[0].shape == (1, 5, 2)
    expected = 3 * (student.tokens[0] - found[0]).square().mean()
    assert method.losses(student, teacher, batch())["kd"].item() == close(expected.item(), rel=1e-5)


def test_with_the_identity_for_statistics_phi_s_is_fitnet():
    method = identity(PhiS(Shape(2), Shape(2)))
    method.matrix[0] = torch.eye(2)
    student, teacher = outputs(torch.randn(5, 2).tolist()), outputs(TEACHER)
    plain = identity(FitNet(Shape(2), Shape(2))).losses(student, teacher, batch())["kd"]
    assert method.losses(student, teacher, batch())["kd"].item() == close(plain.item(), rel=1e-6)


def test_artifacts_stay_artifacts():
    torch.manual_seed(0)
    rows = torch.randn(1, 65, 16)
    rows[0, 7] *= 30
    method = PhiS(Shape(2), Shape(16))
    method.calibrate(Images(outputs(rows[0].tolist())))
    z = robust_z(token_norms(method.targets(outputs(rows[0].tolist()))[0][:, 1:]))[0]
    assert z[6] > OUTLIER_Z and z[:6].max() < OUTLIER_Z


def test_before_calibrate_the_losses_say_what_is_missing_and_a_loaded_state_is_enough():
    fresh = PhiS(Shape(2), Shape(2))
    with pytest.raises(ValueError, match="statistics are not known: calibrate"):
        fresh.losses(outputs(TEACHER), outputs(TEACHER), batch())
    fresh.load_state_dict(calibrated(outputs(TEACHER)).state_dict())
    assert torch.isfinite(fresh.losses(outputs(TEACHER), outputs(TEACHER), batch())["kd"])


def test_calibrate_asks_for_so_many_images_and_the_methods_layers():
    method, images = PhiS(Shape(2, depth=4), Shape(2, depth=4), images=7, layers=(0,)), Images(outputs(TEACHER))
    method.calibrate(images)
    assert images.asked == (7, (0,))


def test_a_width_without_a_hadamard_matrix_is_refused_at_once():
    with pytest.raises(ValueError, match="no Hadamard matrix of order 90"):
        PhiS(Shape(2), Shape(90))
    with pytest.raises(ValueError, match="images is 0"):
        PhiS(Shape(2), Shape(2), images=0)
