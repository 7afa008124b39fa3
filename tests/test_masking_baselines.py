"""Random and norm masks, and attention transfer: what counts, what does not, by hand."""

from __future__ import annotations

import pytest
import torch
from golden_cases import A
from test_train import batch as train_batch
from test_train import equal, member, teacher, trained
from toy import Shape, batch, identity, outputs

from baselines.attention_transfer import AttentionTransfer
from baselines.fitnet import FitNet
from baselines.norm_mask import NormMask
from baselines.random_mask import RandomMask
from harness.config import Training
from harness.matching import random_keep
from harness.training.train import Group

close = pytest.approx
LAYERS = {"layers": A.layers, "student_layers": A.student_layers}
SILENT = [[0.0, 0.0]] * 5
TARGET = [[3.0, 4.0], [0.6, 0.8], [1.2, 1.6], [1.8, 2.4], [60.0, 80.0]]  # CLS of norm 5, patches 1, 2, 3, 100


def kd(method, student=SILENT, teacher=TARGET) -> float:
    return method.losses(outputs(student), outputs(teacher), batch())["kd"].item()


def toy(method, **settings):
    return identity(method(Shape(2), Shape(2), **settings))


def test_norm_mask_leaves_out_the_patches_over_the_quantile_and_keeps_cls():
    assert kd(toy(NormMask, quantile=0.9)) == close((25 + 1 + 4 + 9) / 8)
    assert kd(toy(NormMask, quantile=0.5)) == close((25 + 1 + 4) / 6)  # the quantile lies between 2 and 3


def test_norm_mask_by_robust_z_leaves_out_outliers_alone():
    # median 2.5, MAD 1: the largest norm has z = 65.8 and the others at most 1.02
    assert kd(toy(NormMask, rule="robust_z")) == close((25 + 1 + 4 + 9) / 8)
    plain = [*TARGET[:4], [2.4, 3.2]]
    assert kd(toy(NormMask, rule="robust_z"), teacher=plain) == close(kd(toy(FitNet), teacher=plain))
    assert kd(toy(NormMask, quantile=0.9), teacher=plain) < kd(toy(FitNet), teacher=plain)


def test_norm_mask_refuses_an_unknown_rule():
    with pytest.raises(ValueError, match="no rule 'robust'; did you mean 'robust_z'"):
        toy(NormMask, rule="robust")


@pytest.mark.parametrize("method", [RandomMask, NormMask])
def test_masked_patches_have_no_influence_and_no_gradient(method):
    torch.manual_seed(0)
    teacher = outputs(TARGET)
    student = outputs(SILENT)
    student.tokens[0].requires_grad_()
    toy(method).losses(student, teacher, batch())["kd"].backward()
    felt = student.tokens[0].grad[0].norm(dim=-1) > 0  # CLS and four patches
    assert felt[0]
    assert felt[1:].sum() == (2 if method is RandomMask else 3)


def test_random_mask_leaves_out_the_same_number_of_patches_of_each_image_and_different_ones():
    torch.manual_seed(0)
    keep = random_keep(torch.zeros(50, 16, 2), 0.25)
    assert keep.sum(dim=1).tolist() == [12] * 50
    assert len({tuple(row) for row in keep.tolist()}) > 25
    assert keep.float().mean(dim=0).std() < 0.12  # every place has its turn


def test_randomly_masked_patches_have_no_influence_in_student_or_teacher():
    method = toy(RandomMask)
    tokens = torch.randn(2, 5, 2)  # of student and teacher: CLS and four patches
    torch.manual_seed(0)
    keep = random_keep(torch.zeros(1, 4, 2), 0.5)[0]

    def loss(both) -> float:
        torch.manual_seed(0)
        return kd(method, *both.tolist())

    for who in (0, 1):
        for where, same in ((~keep, True), (keep, False)):
            moved = tokens.clone()
            moved[who, 1:][where] += 9
            assert (loss(moved) == loss(tokens)) is same


MASKS = {name: (name, {}) for name in ("random_mask", "vitkd", "mgd", "proteus")}


@pytest.mark.parametrize("name", MASKS)
def test_neighbours_that_draw_masks_too_change_no_mask(name, tmp_path):
    """To the bit: each student's masks come from its own seed and step."""
    alone = trained([name], tmp_path, steps=3, kinds=MASKS)[name]
    neighbours = [other for other in MASKS if other != name]
    assert equal(trained([*neighbours, name], tmp_path, steps=3, kinds=MASKS)[name], alone)
    other_seed = member(name, MASKS[name], tmp_path)
    other_seed.seed += 1
    group = Group([other_seed], teacher(), Training(steps=12, lr=1e-2), 12, 5, log_steps=4)
    for step in range(3):
        group.train_step(train_batch(step))
    assert not equal(other_seed, alone)  # the same weights at first, other masks


@pytest.mark.parametrize(("ratio", "factor"), [(0.0, 1.0), (1.0, 25 / 2)])
def test_random_mask_of_nothing_is_fitnet_and_of_everything_leaves_cls(ratio, factor):
    expected = kd(toy(FitNet)) if ratio == 0 else factor
    assert kd(toy(RandomMask, ratio=ratio)) == close(expected)


def test_the_random_mask_is_a_function_of_the_global_stream_and_new_at_every_step():
    built = A.build()
    method = RandomMask(built.student, built.teacher, **LAYERS)
    given = built.outputs(method)

    def two(seed: int) -> list[float]:
        torch.manual_seed(seed)
        return [method.losses(*given, built.batch)["kd"].item() for _ in range(2)]

    assert two(1) == two(1)
    assert two(1) != two(2)
    assert two(1)[0] != two(1)[1]


def test_attention_transfer_by_hand():
    # energies 1, 4, 9, 10000 against 0, 0, 0, 1 (halved means): unit vectors
    student = [[0.0, 0.0], [1.0, 1.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
    teacher = [[9.0, 9.0], [3.0, 0.0], [0.0, 2.0**0.5 * 6**0.5], [0.0, 0.0], [0.0, 0.0]]  # squares 9 and 12
    q = torch.tensor([9.0, 12.0]) / 15  # of the teacher; the student's is (1, 0)
    expected = ((1 - q[0]) ** 2 + q[1] ** 2) / 4
    method = AttentionTransfer(Shape(2), Shape(2), weight=10.0)
    assert kd(method, student, teacher) == close(10 * expected.item())


def test_attention_transfer_sees_neither_the_size_of_the_features_nor_cls():
    method = AttentionTransfer(Shape(2), Shape(2))
    student = torch.randn(5, 2)
    louder = 7 * student
    louder[0] = 100
    assert kd(method, louder.tolist()) == close(kd(method, student.tolist()), rel=1e-4)


@pytest.mark.parametrize("whose", [0, 1])
def test_attention_transfer_sees_neither_size_nor_rotation_of_an_images_features(whose):
    """Only where their energy lies, in the student and in the teacher."""
    torch.manual_seed(0)
    method, rotation = AttentionTransfer(Shape(2), Shape(2)), torch.linalg.qr(torch.randn(2, 2))[0]
    given = [torch.randn(5, 2), torch.randn(5, 2)]
    before = kd(method, *(x.tolist() for x in given))
    for scale, same in ((0.3, True), (torch.tensor([[1.0], [9.0], [1.0], [1.0], [1.0]]), False)):
        moved = list(given)
        moved[whose] = scale * given[whose] @ rotation
        assert (kd(method, *(x.tolist() for x in moved)) == close(before, rel=1e-3)) is same


def test_attention_transfer_owns_no_parameters_and_needs_no_equal_width():
    built = A.build()
    method = AttentionTransfer(built.student, built.teacher, **LAYERS)
    assert not list(method.parameters())
    terms = built.losses(method)
    assert set(terms) == {"ce", "kd"} and torch.isfinite(terms["kd"])
