"""AttnDistill and MaskedKD: where CLS looks, by hand; what the teacher does not see has no influence."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from toy import Shape, batch

from baselines.attn_distill import AttnDistill
from baselines.logit_kd import LogitKD
from baselines.maskedkd import MaskedKD
from harness.api import Batch, Layers, Outputs
from harness.checking.specimen import PATCH, Size, toy_batch, toy_teacher
from harness.models import as_vit, build_model

close = pytest.approx
BARE = {"class_token": False, "global_pool": "avg"}


def looking(rows, prefix: int = 1, cls=(0.0, 0.0), grid=None) -> Outputs:
    """One image; `rows` [H, N] is what CLS pays to each token, by head."""
    rows = torch.tensor([rows])  # [1, H, N]
    attention = torch.zeros(1, rows.shape[1], rows.shape[2], rows.shape[2])
    attention[:, :, 0] = rows
    tokens = torch.tensor([[cls]])
    return Outputs(
        Layers({0: tokens}),
        logits=torch.zeros(1, 2),
        attention=Layers({0: attention}),
        num_prefix_tokens=prefix,
        grid=grid or (1, rows.shape[2] - prefix),
        norm=lambda x: x,
    )


def attn_distill(**settings) -> AttnDistill:
    method = AttnDistill(Shape(2), Shape(2), **settings)
    nn.init.eye_(method.projector.weight)
    nn.init.zeros_(method.projector.bias)
    return method


def guidance(student: Outputs, teacher: Outputs, **settings) -> float:
    method = attn_distill(**{"temperature": 1.0, "w_attention": 1.0, **settings})
    return method.losses(student, teacher, batch())["attention"].item()


def test_attention_of_heads_is_multiplied_and_compared_over_patches_by_hand():
    # The teacher's heads .2 .4 and .3 .1 make .06 : .04; the student's single head is .1 : .3.
    teacher = looking([[0.4, 0.2, 0.4], [0.6, 0.3, 0.1]])
    student = looking([[0.6, 0.1, 0.3]])
    expected = 0.6 * math.log(0.6 / 0.25) + 0.4 * math.log(0.4 / 0.75)
    assert guidance(student, teacher) == close(expected, rel=1e-5)
    # T = 2: square roots of the products
    a_t, a_s = 0.06**0.5 / (0.06**0.5 + 0.04**0.5), 0.1**0.5 / (0.1**0.5 + 0.3**0.5)
    softer = a_t * math.log(a_t / a_s) + (1 - a_t) * math.log((1 - a_t) / (1 - a_s))
    assert guidance(student, teacher, temperature=2.0, w_attention=3.0) == close(3 * softer, rel=1e-5)


def test_what_cls_pays_to_itself_and_to_registers_does_not_count():
    student = looking([[0.5, 0.2, 0.3]])
    plain = looking([[0.0, 0.4, 0.6]])
    registers = looking([[0.3, 0.6, 0.04, 0.06]], prefix=2)
    assert guidance(student, plain) == close(guidance(student, registers), abs=1e-6)
    assert guidance(student, plain) == close(0, abs=1e-6)


def test_cls_is_the_mean_square_of_the_projected_normed_vector():
    terms = attn_distill(w_cls=2.0).losses(
        looking([[0.5, 0.5]], cls=(1.0, 2.0)), looking([[0.5, 0.5]], cls=(3.0, 5.0)), batch()
    )
    assert terms["kd"].item() == close(2 * (4 + 9) / 2)


def test_a_teacher_of_a_finer_grid_is_resampled():
    coarse = looking([[0.0, 0.1, 0.2, 0.3, 0.4]], grid=(2, 2))
    fine = looking(
        [[0.0, *[v / 4 for row in ([0.1, 0.2], [0.3, 0.4]) for _ in range(2) for v in row for _ in range(2)]]]
    )
    fine = Outputs(fine.tokens, fine.logits, fine.attention, 1, True, (4, 4), fine.norm)
    # Bilinear resampling smooths, but rows and columns keep their order and no weight is lost.
    found = guidance(coarse, fine)
    assert 0 <= found < 0.02
    turned = looking([[0.0, 0.4, 0.3, 0.2, 0.1]], grid=(2, 2))
    assert guidance(turned, fine) > 10 * found


def test_attention_that_half_precision_rounds_to_zero_is_finite():
    student, teacher = looking([[0.0, 1.0, 0.0]]), looking([[0.0, 0.0, 1.0]])
    student.attention[0].requires_grad_()
    value = attn_distill().losses(student, teacher, batch())["attention"]
    value.backward()
    assert torch.isfinite(value) and student.attention[0].grad.isfinite().all()


@pytest.mark.parametrize("whose", ["student", "teacher"])
def test_a_model_without_cls_is_refused_by_attn_distill(whose):
    models = {"student": Shape(2), "teacher": Shape(2)}
    models[whose].has_cls = False
    with pytest.raises(ValueError, match=f"the {whose} has no CLS token"):
        AttnDistill(**models)


def models(**options):
    """A student and a teacher of 4 x 4 patches, with their batch."""
    size = Size()
    spec = {"width": 32, "depth": 3, "heads": 2, "patch": PATCH}
    torch.manual_seed(2)
    student = as_vit(build_model(spec, size.image_size, 10))
    teacher = toy_teacher(size, **options)
    sharpen(teacher.model)
    return student, teacher, toy_batch(size, 0)


def sharpen(model: nn.Module) -> None:
    """Larger weights, so that what a model sees makes a difference."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)


def outputs_of(method, student, images) -> Outputs:
    return student(images, method.student_layers, method.student_attention)


def painted(images: torch.Tensor, patches: torch.Tensor, side: int = 4) -> torch.Tensor:
    """The images with the numbered patches [B, K] blackened."""
    images = images.clone()
    for b, numbers in enumerate(patches.tolist()):
        for i in numbers:
            row, column = PATCH * (i // side), PATCH * (i % side)
            images[b, :, row : row + PATCH, column : column + PATCH] = 0
    return images


def rest(keep: torch.Tensor, count: int = 16) -> torch.Tensor:
    return torch.tensor([[i for i in range(count) if i not in row] for row in keep.tolist()])


@pytest.mark.parametrize("options", [{}, {"reg_tokens": 4}, BARE])
def test_patches_that_are_dropped_do_not_influence_the_teacher_and_kept_ones_do(options):
    student, teacher, given = models(**options)
    method = MaskedKD(student, teacher)
    with torch.no_grad():
        seen = outputs_of(method, student, given.images)
        keep = method.kept_patches(seen)
        assert keep.shape == (6, 8)
        as_is = method.losses(seen, None, given)["kd"].item()
        without = Batch(painted(given.images, rest(keep)), given.labels, given.index)
        assert method.losses(seen, None, without)["kd"].item() == close(as_is, rel=1e-6)
        other = Batch(painted(given.images, keep), given.labels, given.index)
        assert method.losses(seen, None, other)["kd"].item() != close(as_is, rel=1e-3)


def test_the_choice_is_the_largest_head_mean_of_the_attention_of_cls():
    student = Shape(2)
    student.grid = (2, 2)
    method = MaskedKD(student, student, keep_share=0.5)
    # The second head alone would choose 3 and 2; the mean chooses 0 and 3. CLS's own .9 is not a patch.
    rows = [[0.0, 0.8, 0.1, 0.0, 0.1], [0.2, 0.1, 0.1, 0.2, 0.4]]
    assert method.kept_patches(looking(rows, grid=(2, 2))).tolist() == [[0, 3]]
    registers = [[0.3, 0.5, *row[1:]] for row in rows]
    assert method.kept_patches(looking(registers, prefix=2, grid=(2, 2))).tolist() == [[0, 3]]


def test_the_students_map_is_laid_over_the_teachers_grid():
    student, teacher = Shape(2), Shape(2)
    student.grid, teacher.grid = (2, 2), (4, 4)
    method = MaskedKD(student, teacher, keep_share=0.25)
    rows = [[0.0, 0.1, 0.1, 0.1, 0.7]]  # it looks at the lower right
    assert method.kept_patches(looking(rows, grid=(2, 2))).tolist() == [[10, 11, 14, 15]]


@pytest.mark.parametrize("share", [1.0, 0.001])
def test_a_teacher_that_sees_everything_is_logit_kd_and_at_least_one_patch_is_seen(share):
    student, teacher, given = models()
    method, plain = MaskedKD(student, teacher, keep_share=share), LogitKD(student, teacher)
    seen = outputs_of(method, student, given.images)
    expected = plain.losses(seen, teacher(given.images), given)
    found = method.losses(seen, None, given)
    assert found["ce"].item() == expected["ce"].item()
    assert (found["kd"].item() == close(expected["kd"].item(), rel=1e-5)) is (share == 1.0)
    assert method.kept_patches(seen).shape[1] == (16 if share == 1.0 else 1)


def test_the_choice_has_no_gradient_and_the_teacher_none():
    student, teacher, given = models()
    teacher.model.requires_grad_(True)  # so that only the method itself keeps gradients from it
    method = MaskedKD(student, teacher, w_ce=0.0)
    seen = outputs_of(method, student, given.images)
    seen.attention[2].retain_grad()
    method.losses(seen, None, given)["kd"].backward()
    assert seen.attention[2].grad is None
    assert all(p.grad is None for p in teacher.model.parameters())
    assert not list(method.parameters())


@pytest.mark.parametrize("share", [0.0, 1.2])
def test_a_share_outside_the_unit_interval_is_refused(share):
    with pytest.raises(ValueError, match=f"keep_share is {share:g}"):
        MaskedKD(Shape(2), Shape(2), keep_share=share)


def test_a_student_without_cls_and_other_classes_are_refused_by_maskedkd():
    bare = Shape(2)
    bare.has_cls = False
    with pytest.raises(ValueError, match="the student has no CLS token"):
        MaskedKD(bare, Shape(2))
    MaskedKD(Shape(2), bare)  # of the teacher only logits are read
    with pytest.raises(ValueError, match="teacher 7"):
        MaskedKD(Shape(2), Shape(2, num_classes=7))


def test_under_bf16_the_terms_are_finite_and_fp32():
    student, teacher, given = models()
    for method in (MaskedKD(student, teacher), AttnDistill(student, teacher)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with torch.no_grad():
                theirs = teacher(given.images, method.teacher_layers, method.teacher_attention)
            terms = method.losses(outputs_of(method, student, given.images), theirs, given)
        assert all(term.dtype == torch.float32 and torch.isfinite(term) for term in terms.values())
