"""DKD, DIST and NKD: golden values, cases by hand, and the invariances that the sources claim."""

from __future__ import annotations

import math

import pytest
import torch
from golden_cases import CASES, TOLERANCE
from torch.nn import functional as F
from toy import Shape, batch, labelled, outputs

from baselines.dist import DIST, pearson
from baselines.dkd import DKD
from baselines.nkd import NKD
from harness.api import Layers, Outputs
from harness.matching import without_target

close = pytest.approx
log = math.log


def three(*logits: float) -> Outputs:
    return outputs(logits=logits)


def shape(num_classes: int = 3) -> tuple[Shape, Shape]:
    return Shape(2, num_classes=num_classes), Shape(2, num_classes=num_classes)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_dkd_of_small_images_is_that_of_the_authors_code(case):
    built = case.build()
    method = DKD(built.student, built.teacher, **DKD.presets["dkd_small_images"])
    kd = method.losses(*case.loud_logits(built), built.batch)["kd"].item()
    assert kd == close(case.expected["dkd"], rel=TOLERANCE)


def test_dkd_by_hand():
    # teacher (1/2, 1/4, 1/4), student (1/4, 1/4, 1/2), label 0: two-way (1/2, 1/2) against (1/4, 3/4); the
    # others (1/2, 1/2) against (1/3, 2/3)
    teacher, student = three(log(2), 0, 0), three(0, 0, log(2))
    target = 0.5 * log(2) + 0.5 * log(2 / 3)
    others = 0.5 * log(3 / 2) + 0.5 * log(3 / 4)
    terms = DKD(*shape(), alpha=2.0, beta=3.0, w_ce=0.5).losses(student, teacher, batch())
    assert {k: v.item() for k, v in terms.items()} == close({"ce": 0.5 * log(4), "kd": 2 * target + 3 * others})


def test_dkd_with_the_teachers_own_weighting_is_plain_distillation():
    # KD = TCKD + (1 - p_t) NCKD, the identity that the source starts from
    z_s, z_t = torch.randn(1, 5), torch.randn(1, 5)
    given = [Outputs(Layers(), logits=z) for z in (z_s, z_t)]
    beta = 1 - z_t.softmax(dim=1)[0, 2].item()
    kd = DKD(*shape(5), beta=beta).losses(*given, labelled(2))["kd"].item()
    plain = F.kl_div(z_s.log_softmax(1), z_t.softmax(1), reduction="batchmean").item()
    assert kd == close(plain, rel=1e-5)


def test_dkd_stays_finite_for_a_teacher_that_is_certain():
    teacher, student = three(1000, 0, 0), Outputs(Layers(), logits=torch.zeros(1, 3, requires_grad=True))
    loss = DKD(*shape()).losses(student, teacher, batch())["kd"]
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(student.logits.grad).all()


def test_nkd_by_hand():
    # T = 1, the models of test_dkd_by_hand: -1/2 log 1/4, and the others' cross-entropy
    teacher, student = three(log(2), 0, 0), three(0, 0, log(2))
    others = -(0.5 * log(1 / 3) + 0.5 * log(2 / 3))
    kd = NKD(*shape(), gamma=3.0).losses(student, teacher, batch())["kd"].item()
    assert kd == close(0.5 * log(4) + 3 * others)


def test_nkd_temperature_softens_the_other_classes_alone():
    # at T = 2 the same others come from squared odds
    teacher, student = three(log(2), 0, 0), three(0, 0, 2 * log(2))
    others = -(0.5 * log(1 / 3) + 0.5 * log(2 / 3))
    kd = NKD(*shape(), temperature=2.0).losses(student, teacher, batch())["kd"].item()
    assert kd == close(0.5 * log(6) + 4 * others)


def test_dist_is_zero_for_equal_and_largest_for_opposite_predictions():
    logits = torch.randn(6, 3)
    given = Outputs(Layers(), logits=logits)
    assert DIST(*shape()).losses(given, given, labelled(*[0] * 6))["kd"].item() == close(0, abs=1e-6)
    two = torch.tensor([[1.0, -1.0], [2.0, 0.5], [-1.0, 1.5]])
    opposite = Outputs(Layers(), logits=-two)  # probabilities 1 - p: each row and column correlates with -1
    kd = DIST(*shape(2), beta=3.0, gamma=5.0).losses(opposite, Outputs(Layers(), logits=two), labelled(0, 0, 0))["kd"]
    assert kd.item() == close(3 * 2 + 5 * 2)


def test_dist_by_hand_separates_rows_from_columns():
    # probabilities: student (.75, .25), (.25, .75); teacher (.75, .25), (.6, .4). Rows of two values correlate
    # with +1 and -1; columns of two values with +1 and +1.
    student = torch.tensor([[0.75, 0.25], [0.25, 0.75]]).log()
    teacher = torch.tensor([[0.75, 0.25], [0.6, 0.4]]).log()
    given = [Outputs(Layers(), logits=z) for z in (student, teacher)]
    inter = DIST(*shape(2), gamma=0.0).losses(*given, labelled(0, 1))["kd"].item()
    intra = DIST(*shape(2), beta=0.0).losses(*given, labelled(0, 1))["kd"].item()
    assert (inter, intra) == close((1.0, 0.0), abs=1e-5)


def dist(student, teacher) -> float:
    """Of log-probabilities or logits [B, C]."""
    given = [Outputs(Layers(), logits=z) for z in (student, teacher)]
    return DIST(*shape(student.shape[1])).losses(*given, labelled(*[0] * len(student)))["kd"].item()


@pytest.mark.parametrize("whose", ["student", "teacher"])
def test_dist_does_not_change_under_positive_affine_changes_of_the_probabilities(whose):
    """Pearson's correlation, which the source takes in place of the divergence for that reason."""
    torch.manual_seed(0)
    logits = {"student": torch.randn(6, 5), "teacher": torch.randn(6, 5)}
    before = dist(**logits)
    smoothed = (0.4 * logits[whose].softmax(dim=1) + 0.6 / 5).log()  # mixed with the uniform distribution
    assert dist(**{**logits, whose: smoothed}) == close(before, rel=1e-4)
    assert dist(**{**logits, whose: logits[whose] + torch.randn(6, 1)}) == close(before, rel=1e-4)
    assert dist(**{**logits, whose: 3 * logits[whose]}) != close(before, rel=1e-3)  # a scale of logits is no such


def test_pearson_does_not_change_under_positive_affine_changes_of_each_row():
    torch.manual_seed(0)
    a, b, scale, shift = torch.randn(6, 5), torch.randn(6, 5), torch.rand(6, 1) + 0.2, torch.randn(6, 1)
    assert pearson(scale * a + shift, b).item() == close(pearson(a, b).item(), abs=1e-5)
    assert pearson(-a, b).item() == close(-pearson(a, b).item(), abs=1e-5)


def test_dist_of_one_image_is_finite_with_a_finite_gradient():
    logits = torch.randn(1, 3, requires_grad=True)
    kd = DIST(*shape()).losses(Outputs(Layers(), logits=logits), three(1, 2, 3), batch())["kd"]
    kd.backward()
    assert torch.isfinite(kd) and torch.isfinite(logits.grad).all()


def test_without_target_drops_the_labelled_class_and_keeps_the_order():
    logits = torch.tensor([[10, 11, 12], [20, 21, 22], [30, 31, 32]])
    assert without_target(logits, torch.tensor([0, 1, 2])).tolist() == [[11, 12], [20, 22], [30, 31]]


@pytest.mark.parametrize("method", [DKD, DIST, NKD])
def test_models_with_different_classes_are_refused(method):
    with pytest.raises(ValueError, match="cannot be compared"):
        method(Shape(2, num_classes=3), Shape(2, num_classes=4))


@pytest.mark.parametrize("method", [DKD, NKD])
def test_losses_on_the_labelled_class_refuse_data_without_labels(method):
    with pytest.raises(ValueError, match="the data has none"):
        method(*shape(), w_ce=0.0).losses(three(0, 0, 0), three(0, 0, 0), batch(label=None))
