"""RKD, SP, PKT, VkD and SRD: golden values, cases by hand, and the invariances that the sources claim."""

from __future__ import annotations

import math

import pytest
import torch
from golden_cases import CASES, TOLERANCE, A
from torch import nn
from toy import Shape, labelled, vectors

from baselines.pkt import PKT
from baselines.rkd import RKD
from baselines.sp import SP
from baselines.srd import EPSILON, SRD
from baselines.vkd import VkD
from harness.config import Training
from harness.training.train import build_optimizer

close = pytest.approx
RELATIONS = [RKD, SP, PKT]


def kd(method, student, teacher) -> float:
    return method.losses(vectors(student), vectors(teacher), labelled(*[0] * len(student)))["kd"].item()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize(("method", "key"), [(RKD, "rkd"), (SP, "sp"), (PKT, "pkt")])
def test_relations_of_the_normed_cls_are_those_of_the_authors_code(case, method, key):
    built = case.build()
    outer = {} if method is RKD else {"weight": 1.0}
    found = built.losses(method(built.student, built.teacher, **outer))["kd"].item()
    assert found == close(case.expected[key], rel=TOLERANCE)


@pytest.mark.parametrize("method", RELATIONS)
def test_a_student_that_is_the_teacher_has_no_loss(method):
    rows = torch.randn(5, 4)
    assert kd(method(Shape(4), Shape(4)), rows, rows) == close(0, abs=1e-4)


@pytest.mark.parametrize("whose", ["student", "teacher"])
@pytest.mark.parametrize("method", RELATIONS)
def test_relations_do_not_change_under_rotation_and_scale(method, whose):
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 4), torch.randn(5, 6)
    method = method(Shape(4), Shape(6))
    before = kd(method, student, teacher)
    if whose == "student":
        student = 3 * student @ torch.linalg.qr(torch.randn(4, 4))[0]
    else:
        teacher = 3 * teacher @ torch.linalg.qr(torch.randn(6, 6))[0]
    assert kd(method, student, teacher) == close(before, rel=1e-3)


@pytest.mark.parametrize("term", [{"w_angle": 0.0}, {"w_distance": 0.0}])
def test_each_term_of_rkd_is_blind_to_rotation_and_scale_and_sees_a_stretch(term):
    torch.manual_seed(0)
    student, teacher, rotation = torch.randn(5, 4), torch.randn(5, 6), torch.linalg.qr(torch.randn(6, 6))[0]
    method = RKD(Shape(4), Shape(6), **term)
    before = kd(method, student, teacher)
    assert kd(method, student, 0.2 * teacher @ rotation + 5) == close(before, rel=1e-3)
    assert kd(method, student, teacher * torch.tensor([9.0, 1, 1, 1, 1, 1])) != close(before, rel=1e-2)


@pytest.mark.parametrize("whose", ["student", "teacher"])
@pytest.mark.parametrize(("method", "same"), [(PKT, True), (SP, False), (RKD, False)])
def test_pkt_alone_does_not_see_how_long_each_image_is(method, same, whose):
    """Its similarity is the cosine."""
    torch.manual_seed(0)
    student, teacher, lengths = torch.randn(5, 4), torch.randn(5, 6), torch.rand(5, 1) + 0.5
    method = method(Shape(4), Shape(6))
    given = (lengths * student, teacher) if whose == "student" else (student, lengths * teacher)
    assert (kd(method, *given) == close(kd(method, student, teacher), rel=1e-3)) is same


@pytest.mark.parametrize(("method", "same"), [(RKD, True), (SP, False), (PKT, False)])
def test_rkd_alone_does_not_change_under_a_shift(method, same):
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 4), torch.randn(5, 6)
    method = method(Shape(4), Shape(6))
    assert (kd(method, student + 7, teacher) == close(kd(method, student, teacher), rel=1e-3)) is same


def test_rkd_distances_by_hand():
    # on a line at 0, 1, 3: distances 1, 3, 2 of mean 2 against 1, 2, 1 of mean 4/3; no turn between them
    student, teacher = [[0.0], [1.0], [3.0]], [[0.0], [1.0], [2.0]]
    gaps = [1 / 2 - 3 / 4, 3 / 2 - 3 / 2, 1 - 3 / 4]
    expected = 2 * sum(g * g / 2 for g in gaps) / 9
    assert kd(RKD(Shape(1), Shape(1), w_distance=4.0, w_angle=0.0), student, teacher) == close(4 * expected)
    assert kd(RKD(Shape(1), Shape(1), w_distance=0.0), student, teacher) == close(0, abs=1e-6)


def test_rkd_angles_by_hand():
    # a right angle against a straight line, both sides 1: at the corner the cosine is 0 and not -1 (twice, for
    # the two orders), at each end it is 1/sqrt 2 and not 1 (twice)
    student, teacher = [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]
    expected = (2 * 0.5 + 4 * (1 - 0.5**0.5) ** 2 / 2) / 27
    assert kd(RKD(Shape(2), Shape(2), w_distance=0.0, w_angle=2.0), student, teacher) == close(2 * expected)


def test_sp_by_hand():
    # Grams: identity against [[1, 1], [1, 1]] / sqrt 2 by rows
    a = 1 / math.sqrt(2)
    expected = (2 * (1 - a) ** 2 + 2 * a**2) / 4
    assert kd(SP(Shape(2), Shape(2), weight=2.0), [[1, 0], [0, 1]], [[1, 0], [1, 0]]) == close(2 * expected)


def test_pkt_by_hand():
    # similarities 1 and 1/2 over 3/2 for orthogonal images, 1 and 1 over 2 for equal ones
    s, t = (2 / 3, 1 / 3), (1 / 2, 1 / 2)
    expected = 2 * sum(b * math.log(b / a) for a, b in zip(s, t, strict=True)) / 4
    assert kd(PKT(Shape(2), Shape(2), weight=2.0), [[1, 0], [0, 1]], [[1, 0], [1, 0]]) == close(2 * expected, rel=1e-4)


@pytest.mark.parametrize("method", [*RELATIONS, SRD, VkD])
def test_equal_images_give_a_finite_loss_and_gradient(method):
    student = torch.ones(3, 4, requires_grad=True)
    terms = method(Shape(4), Shape(6)).losses(vectors(student), vectors(torch.ones(3, 6)), labelled(0, 0, 0))
    terms["kd"].backward()
    assert torch.isfinite(terms["kd"]) and torch.isfinite(student.grad).all()


@pytest.mark.parametrize("method", [*RELATIONS, SRD, VkD])
def test_bf16_autocast_does_not_coarsen_relations(method):
    torch.manual_seed(0)
    built = A.build()
    method = method(built.student, built.teacher)
    outputs = built.outputs(method)
    exact = method.losses(*outputs, built.batch)["kd"].item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert method.losses(*outputs, built.batch)["kd"].item() == close(exact, rel=1e-5)


@pytest.mark.parametrize(("ours", "theirs"), [(4, 6), (6, 4), (4, 4)])
def test_the_orthogonal_projector_stays_orthogonal_through_steps(ours, theirs):
    torch.manual_seed(0)
    method = VkD(Shape(ours), Shape(theirs))
    optimiser = torch.optim.AdamW(method.parameters(), lr=0.1)
    student, teacher = vectors(torch.randn(8, ours)), vectors(torch.randn(8, theirs))
    before = method.projector.weight.detach().clone()
    for _ in range(5):
        optimiser.zero_grad()
        method.losses(student, teacher, labelled(*[0] * 8))["kd"].backward()
        optimiser.step()
    weight = method.projector.weight.detach()
    gram = weight.T @ weight if theirs >= ours else weight @ weight.T
    assert torch.allclose(gram, torch.eye(min(ours, theirs)), atol=1e-4)
    assert not torch.allclose(weight, before, atol=1e-2)


@pytest.mark.parametrize(("ours", "theirs"), [(4, 6), (6, 4)])
def test_weight_decay_cannot_shrink_the_orthogonal_projector(ours, theirs):
    """With the optimiser of a training, which decays whatever has two dimensions."""
    torch.manual_seed(0)
    method = VkD(Shape(ours), Shape(theirs))
    training = Training(steps=30, lr=0.1, weight_decay=5.0)
    optimiser = build_optimizer(nn.Identity(), method, training, "cpu")
    assert {group["weight_decay"] for group in optimiser.param_groups} >= {5.0}
    student, teacher = vectors(torch.randn(8, ours)), vectors(torch.randn(8, theirs))
    seen = [method.projector.weight.detach().clone()]
    for _ in range(30):
        optimiser.zero_grad()
        method.losses(student, teacher, labelled(*[0] * 8))["kd"].backward()
        optimiser.step()
        weight = method.projector.weight.detach().clone()
        gram = weight.T @ weight if theirs >= ours else weight @ weight.T
        assert torch.allclose(gram, torch.eye(min(ours, theirs)), atol=1e-4)
        seen.append(weight)
    assert not torch.allclose(seen[0], seen[-1], atol=1e-2)


def test_vkd_keeps_the_distances_of_the_student():
    torch.manual_seed(0)
    rows, method = torch.randn(5, 4), VkD(Shape(4), Shape(6))
    assert torch.allclose(
        torch.cdist(method.projector(rows), method.projector(rows)), torch.cdist(rows, rows), atol=1e-4
    )


def test_an_orthogonal_projector_survives_its_state_dict():
    torch.manual_seed(0)
    method, other = VkD(Shape(4), Shape(6)), VkD(Shape(4), Shape(6))
    assert not torch.allclose(other.projector.weight, method.projector.weight, atol=1e-2)
    other.load_state_dict(method.state_dict())
    assert torch.equal(other.projector.weight, method.projector.weight)


def test_vkd_compares_with_the_layernormed_teacher():
    # LayerNorm of (3, 7) is (-1, 1); a silent student misses each by 1, of SmoothL1 1/2
    assert kd(VkD(Shape(2), Shape(2), weight=3.0), [[0.0, 0.0]], [[3.0, 7.0]]) == close(1.5, rel=1e-4)


def test_srd_by_hand():
    # channel 0 correlates with +1, channel 1 with -1: log(0 + 2^4)
    method = SRD(Shape(2), Shape(2), weight=2.0)
    nn.init.eye_(method.projector.weight)
    student, teacher = [[1.0, 1.0], [-1.0, -1.0]], [[2.0, -5.0], [0.0, 5.0]]
    assert kd(method, student, teacher) == close(2 * math.log(16), rel=1e-4)


def test_srd_ignores_the_scale_and_shift_of_every_channel():
    torch.manual_seed(0)
    method = SRD(Shape(4), Shape(6))
    student, teacher = torch.randn(9, 4), torch.randn(9, 6)
    moved = teacher * (torch.rand(6) + 0.5) + torch.randn(6)
    assert kd(method, student, moved) == close(kd(method, student, teacher), rel=1e-3)


@torch.no_grad()
def test_srd_cannot_be_lowered_by_the_size_of_its_projection():
    """Standardised on both sides: only the direction of each row of the projector counts, and its sign."""
    torch.manual_seed(0)
    method, student, teacher = SRD(Shape(4), Shape(6)), torch.randn(9, 4), torch.randn(9, 6)
    before = kd(method, student, teacher)
    assert kd(method, 5 * student + 3, teacher) == close(before, rel=1e-3)
    method.projector.weight.mul_(torch.rand(6, 1) + 0.5)
    assert kd(method, student, teacher) == close(before, rel=1e-3)
    method.projector.weight.neg_()
    assert kd(method, student, teacher) != close(before, rel=1e-2)


def test_a_student_from_which_the_teacher_follows_linearly_has_the_least_srd_loss():
    torch.manual_seed(0)
    method, student = SRD(Shape(4), Shape(6)), torch.randn(9, 4)
    teacher = student @ method.projector.weight.detach().T * torch.arange(1.0, 7) - 2
    assert kd(method, student, teacher) == close(math.log(EPSILON), rel=1e-3)


def test_a_perfect_student_has_a_finite_srd_loss_and_gradient():
    method = SRD(Shape(2), Shape(2))
    nn.init.eye_(method.projector.weight)
    rows = torch.tensor([[1e3, 1e3], [-1e3, -1e3]])
    student = rows.clone().requires_grad_()
    terms = method.losses(vectors(student), vectors(rows), labelled(0, 0))
    terms["kd"].backward()
    assert torch.isfinite(terms["kd"]) and torch.isfinite(student.grad).all()
