"""The controls and plain baselines: golden values and cases worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from golden_cases import CASES, TOLERANCE, A
from toy import Shape, batch, identity, outputs

from baselines.fitnet import FitNet
from baselines.logit_kd import LogitKD
from baselines.none import NoDistillation
from baselines.norm_clip import NormClip
from baselines.target_norm import TargetNorm
from harness.api import Batch, Layers, Outputs
from harness.norms import clip_norms, robust_z

close = pytest.approx


# Student tokens are zero in the cases below, so every loss is a mean over the target's squares: CLS, two patches.
SILENT = [[0.0, 0.0]] * 3
TARGET = [[3.0, 4.0], [0.6, 0.8], [6.0, 8.0]]  # norms 5, 1, 10


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_logits_and_divergence_at_t_4_are_those_of_the_authors_code(case):
    built = case.build()
    loud = case.loud_logits(built)
    assert loud[0].logits.abs().sum().item() == close(case.expected["logits_student"], rel=TOLERANCE)
    assert loud[1].logits.abs().sum().item() == close(case.expected["logits_teacher"], rel=TOLERANCE)
    method = LogitKD(built.student, built.teacher, temperature=4.0, w_ce=0.0, w_kd=1.0)
    assert method.losses(*loud, built.batch)["kd"].item() == close(case.expected["kd_T4"], rel=TOLERANCE)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_fitnet_summed_over_layers_is_that_of_the_authors_code(case):
    built = case.build()
    method = FitNet(
        built.student, built.teacher, layers=case.layers, student_layers=case.student_layers, reduction="sum"
    )
    case.fill_projectors(method.projectors)
    assert built.losses(method)["kd"].item() == close(case.expected["fitnet_sum"], rel=TOLERANCE)


def test_none_is_the_cross_entropy_of_the_labels_alone():
    method = NoDistillation(Shape(2), Shape(2))
    terms = method.losses(outputs(logits=(math.log(3), 0.0)), outputs(), batch(label=1))
    assert {k: v.item() for k, v in terms.items()} == close({"ce": math.log(4)})
    assert not list(method.parameters())


def test_none_without_labels_is_refused():
    with pytest.raises(ValueError, match="learns from labels"):
        NoDistillation(Shape(2), Shape(2)).losses(outputs(), outputs(), batch(label=None))


def test_logit_kd_adds_weighted_cross_entropy_and_t_squared_divergence():
    # at T = 2 the student is (1/2, 1/2) and the teacher (3/4, 1/4)
    method = LogitKD(Shape(2), Shape(2), temperature=2.0, w_ce=0.1, w_kd=0.9)
    terms = method.losses(outputs(logits=(0, 0)), outputs(logits=(2 * math.log(3), 0)), batch())
    divergence = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert {k: v.item() for k, v in terms.items()} == close({"ce": 0.1 * math.log(2), "kd": 0.9 * 4 * divergence})


def test_logit_kd_divergence_is_the_mean_over_the_batch():
    method = LogitKD(Shape(2), Shape(2))
    student, teacher = torch.randn(3, 2), torch.randn(3, 2)

    def kd(rows: slice) -> float:
        given = [Outputs(Layers(), logits=z[rows]) for z in (student, teacher)]
        size = len(student[rows])
        return method.losses(*given, Batch(torch.zeros(size, 3, 1, 1), torch.zeros(size).long(), torch.arange(size)))[
            "kd"
        ].item()

    assert kd(slice(0, 3)) == close(sum(kd(slice(i, i + 1)) for i in range(3)) / 3)


def test_logit_kd_without_cross_entropy_needs_no_labels():
    method = LogitKD(Shape(2), Shape(2), w_ce=0.0)
    assert set(method.losses(outputs(), outputs(), batch(label=None))) == {"kd"}


def test_logit_kd_refuses_models_with_different_classes():
    with pytest.raises(ValueError, match="student has 3 classes and the teacher 2"):
        LogitKD(Shape(2, num_classes=3), Shape(2))


def test_fitnet_counts_cls_and_patches_and_leaves_registers_out():
    method = identity(FitNet(Shape(2), Shape(2), weight=3.0))
    expected = 3 * (25 + 1 + 100) / 6
    assert method.losses(outputs(SILENT), outputs(TARGET), batch())["kd"].item() == close(expected)
    registers = [TARGET[0], [70.0, 70.0], *TARGET[1:]]
    given = outputs(registers, num_prefix_tokens=2)
    assert method.losses(outputs(SILENT), given, batch())["kd"].item() == close(expected)


def test_norm_clip_brings_patches_down_to_the_quantile_and_leaves_cls():
    # patch norms 1 and 10: the median is 5.5, so the second patch's square is 5.5^2 and CLS stays at 25
    method = identity(NormClip(Shape(2), Shape(2), quantile=0.5))
    expected = (25 + 1 + 5.5**2) / 6
    assert method.losses(outputs(SILENT), outputs(TARGET), batch())["kd"].item() == close(expected)


def test_norm_clip_at_quantile_one_is_fitnet():
    built = A.build()
    settings = {"layers": A.layers, "student_layers": A.student_layers}
    methods = [FitNet(built.student, built.teacher, **settings)]
    methods += [NormClip(built.student, built.teacher, quantile=q, **settings) for q in (1.0, 0.5)]
    for method in methods:
        A.fill_projectors(method.projectors)
    plain, unclipped, clipped = (built.losses(m)["kd"].item() for m in methods)
    assert unclipped == close(plain)
    assert clipped < 0.99 * plain


def test_clipping_keeps_directions_and_the_order_of_equal_or_zero_norms():
    tokens = torch.tensor([[[0.0, 0.0], [3.0, 4.0], [30.0, 40.0]]])
    assert clip_norms(tokens, 0.5)[0].tolist() == [[0, 0], [3, 4], close([3, 4])]
    equal = torch.ones(1, 4, 2)
    assert torch.equal(clip_norms(equal, 0.97), equal)


@pytest.mark.parametrize(
    ("kind", "loss", "expected"),
    [
        # LayerNorm of a pair (a, b) is (-1, 1); an l2 target has the norm sqrt 2: each token's square is 2
        ("layernorm", "mse", 1.0),
        ("l2", "mse", 1.0),
        ("layernorm", "smooth_l1", 0.5),
        # (.6, .8) sqrt 2 = (.849, 1.131): .849^2 / 2 and 1.131 - 1/2
        ("l2", "smooth_l1", (0.36 + 0.8 * 2**0.5 - 0.5) / 2),
    ],
)
def test_target_norm_of_a_silent_student_by_hand(kind, loss, expected):
    method = identity(TargetNorm(Shape(2), Shape(2), kind=kind, loss=loss))
    assert method.losses(outputs(SILENT), outputs(TARGET), batch())["kd"].item() == close(expected, rel=1e-3)


def test_target_norm_cosine_looks_at_directions_alone():
    method = identity(TargetNorm(Shape(2), Shape(2), kind="l2", loss="cosine"))
    student = outputs([[30.0, 40.0], [-0.6, -0.8], [8.0, -6.0]])  # the same, opposite, orthogonal
    assert method.losses(student, outputs(TARGET), batch())["kd"].item() == close((0 + 2 + 1) / 3)


@pytest.mark.parametrize("kind", ["layernorm", "l2"])
def test_target_norm_does_not_see_the_size_of_a_token(kind):
    method = identity(TargetNorm(Shape(2), Shape(2), kind=kind))
    student = outputs([[1.0, 2.0], [3.0, 4.0], [5.0, 7.0]])
    louder = outputs([TARGET[0], TARGET[1], [600.0, 800.0]])
    losses = [method.losses(student, t, batch())["kd"].item() for t in (outputs(TARGET), louder)]
    assert losses[0] == close(losses[1], rel=1e-4)


@pytest.mark.parametrize("method", [FitNet, NormClip, TargetNorm])
def test_layers_are_averaged_or_summed(method):
    built = A.build()
    settings = {"layers": A.layers, "student_layers": A.student_layers}
    mean, total = (method(built.student, built.teacher, reduction=r, **settings) for r in ("mean", "sum"))
    total.load_state_dict(mean.state_dict())
    assert built.losses(total)["kd"].item() == close(2 * built.losses(mean)["kd"].item())
    with pytest.raises(ValueError, match="no reduction 'men'; did you mean 'mean'"):
        method(built.student, built.teacher, reduction="men", **settings)


def test_the_published_fitnet_preset_is_three_summed_layers_of_weight_ten():
    method = FitNet(Shape(2, depth=12), Shape(2, depth=24), **FitNet.presets["fitnet_published"])
    assert (method.of_teacher, method.of_student) == ((11, 17, 23), (5, 8, 11))
    assert (method.reduction, method.weight, len(method.projectors)) == ("sum", 10.0, 3)


def test_robust_z_is_the_scaled_distance_from_the_median():
    # median 3, absolute deviations 2 1 0 1 97 with median 1
    z = robust_z(torch.tensor([[1.0, 2, 3, 4, 100]]))
    assert z[0].tolist() == close([-2 * 0.6745, -0.6745, 0, 0.6745, 97 * 0.6745])
    flat = robust_z(torch.tensor([[2.0, 2, 2, 9]]))
    assert flat[0].tolist() == [0, 0, 0, math.inf]
