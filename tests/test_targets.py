"""What a method has the student imitate, as `targets` tells it: it is what the loss compares with."""

from __future__ import annotations

import pytest
import torch
from toy import Shape, batch, identity, outputs

from baselines.fitnet import FitNet
from baselines.norm_clip import NormClip
from baselines.target_norm import TargetNorm
from harness.norms import token_norms

TEACHER = [[3.0, 4.0], [7.0, 7.0], [0.6, 0.8], [6.0, 8.0]]  # CLS, a register, patches of norms 1 and 10


@pytest.mark.parametrize(
    ("method", "settings"),
    [(FitNet, {}), (NormClip, {"quantile": 0.5}), (TargetNorm, {}), (TargetNorm, {"kind": "l2"})],
)
def test_a_student_that_says_the_targets_has_no_loss_and_any_other_has(method, settings):
    found, teacher = identity(method(Shape(2), Shape(2), **settings)), outputs(TEACHER, num_prefix_tokens=2)
    target = found.targets(teacher)
    assert set(target) == {0} and target[0].shape == (1, 4, 2)
    said = outputs(target[0][0].tolist(), num_prefix_tokens=2)
    assert found.losses(said, teacher, batch())["kd"].item() == pytest.approx(0, abs=1e-9)
    off = outputs((target[0][0] + 1).tolist(), num_prefix_tokens=2)
    assert found.losses(off, teacher, batch())["kd"].item() == pytest.approx(1)


def test_clipped_targets_have_clipped_patches_alone():
    target = NormClip(Shape(2), Shape(2), quantile=0.5).targets(outputs(TEACHER, num_prefix_tokens=2))[0]
    assert token_norms(target)[0].tolist() == pytest.approx([5, 98**0.5, 1, 5.5])


def test_normalised_targets_are_all_of_one_norm():
    target = TargetNorm(Shape(2), Shape(2), kind="l2").targets(outputs(TEACHER, num_prefix_tokens=2))[0]
    assert torch.allclose(token_norms(target), torch.tensor(2**0.5))
