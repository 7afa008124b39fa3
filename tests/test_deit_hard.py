"""DeiT's distillation token: the two terms by hand, whose token it is, what the exported student holds."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from torch import nn
from toy import Shape, batch

from baselines.deit_hard import DeiTHard
from harness.api import Layers, Outputs, frozen
from harness.checking.specimen import Size, toy_batch, toy_teacher
from harness.models import as_vit, build_model, build_student, export, load_exported

close = pytest.approx
STUDENT = {"width": 32, "depth": 4, "heads": 2, "patch": 8}


def shape(**changes) -> Shape:
    student = Shape(2)
    student.num_prefix_tokens = 2
    for name, value in changes.items():
        setattr(student, name, value)
    return student


def given(cls, distillation, logits=(0.0, 0.0)) -> Outputs:
    rows = torch.tensor([[cls, distillation, [9.0, 9.0]]])
    return Outputs(Layers({0: rows}), logits=torch.tensor([logits]), num_prefix_tokens=2, norm=lambda x: x)


def plain(**settings) -> DeiTHard:
    """Its head gives the distillation token itself as logits."""
    method = DeiTHard(shape(), Shape(2), **settings)
    nn.init.eye_(method.head_dist.weight)
    return method


def test_both_terms_by_hand():
    # CLS says (3/4, 1/4) of label 1; the token says (1/4, 3/4); the teacher prefers class 0, however little.
    student = given([5.0, 5.0], [0.0, math.log(3)], logits=(math.log(3), 0.0))
    teacher = Outputs(Layers(), logits=torch.tensor([[0.2, 0.1]]))
    terms = plain(alpha=0.25).losses(student, teacher, batch(label=1))
    assert {k: v.item() for k, v in terms.items()} == close({"ce": 0.75 * math.log(4), "kd": 0.25 * math.log(4)})


def test_only_the_teachers_choice_counts():
    student = given([0.0, 0.0], [1.0, -1.0])
    found = {
        plain().losses(student, Outputs(Layers(), logits=torch.tensor([logits])), batch())["kd"].item()
        for logits in ([0.1, 0.0], [50.0, 0.0], [3.0, 2.9])
    }
    assert len(found) == 1


def test_alpha_one_needs_no_labels_and_another_share_is_refused():
    teacher = Outputs(Layers(), logits=torch.zeros(1, 2))
    assert set(plain(alpha=1.0).losses(given([0.0, 0], [0.0, 0]), teacher, batch(label=None))) == {"kd"}
    with pytest.raises(ValueError, match=r"alpha is 1\.5; it is the share"):
        plain(alpha=1.5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"num_prefix_tokens": 1}, "a CLS token and 1 tokens"), ({"has_cls": False}, "no CLS token and 2 tokens")],
)
def test_a_student_without_the_token_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        DeiTHard(shape(**changes), Shape(2))


def test_a_teacher_without_a_head_for_these_classes_is_refused():
    with pytest.raises(ValueError, match="student has 2 classes and the teacher 5"):
        DeiTHard(shape(), Shape(2, num_classes=5))


def student(**spec):
    return build_student({**STUDENT, **spec}, 32, 10, 0, DeiTHard.student_options)


@pytest.mark.parametrize("spec", [{}, {"model": "deit3_small_patch16_224"}, {"width": 48, "depth": 2, "patch": 4}])
def test_any_fresh_student_gets_the_token(spec):
    method = DeiTHard(student(**spec), toy_teacher(Size()))
    assert method.head_dist.weight.shape == (10, {**STUDENT, **spec}["width"])


def test_the_token_has_a_position_of_its_own_as_in_deit():
    ours = student().model
    theirs = timm.create_model("deit_tiny_distilled_patch16_224", img_size=32, patch_size=8, embed_dim=32, num_heads=2)
    assert ours.pos_embed.shape == theirs.pos_embed.shape == (1, 2 + 16, 32)
    start = (ours.reg_token + ours.pos_embed[:, 1:2]).std().item()
    assert 0.01 < start < 0.03


def test_with_deits_weights_both_heads_give_what_timms_distilled_model_gives():
    torch.manual_seed(0)
    spec = {"model": "deit_tiny_distilled_patch16_224", "width": 32, "depth": 4, "heads": 2, "patch": 8}
    theirs = build_model(spec, 32, 10).train()
    theirs.set_distilled_training(True)
    ours = student()
    state = theirs.state_dict()
    dist = {"weight": state.pop("head_dist.weight"), "bias": state.pop("head_dist.bias")}
    state["reg_token"] = state.pop("dist_token")
    ours.model.load_state_dict(state)
    method = DeiTHard(ours, toy_teacher(Size()))
    method.head_dist.load_state_dict(dist)
    images = toy_batch(Size(), 0).images
    outputs = ours(images, method.student_layers)
    cls, distilled = theirs(as_vit(theirs, ours.mean, ours.std).normalise(images))
    assert torch.allclose(outputs.logits, cls, atol=1e-5)
    assert torch.allclose(method.head_dist(outputs.normed(3)[:, 1]), distilled, atol=1e-5)


def test_the_exported_student_is_a_plain_timm_model_with_one_register(tmp_path):
    vit = student()
    with torch.no_grad():
        nn.init.normal_(vit.model.reg_token)
    export(vit, tmp_path / "student")
    model = timm.create_model(f"local-dir:{tmp_path / 'student'}", pretrained=True)
    assert torch.equal(model.reg_token, vit.model.reg_token)
    frozen(vit.model)
    images = toy_batch(Size(), 0).images
    back = load_exported(tmp_path / "student")
    assert torch.equal(back(images, [3]).tokens[3], vit(images, [3]).tokens[3])
