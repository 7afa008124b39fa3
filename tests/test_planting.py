"""Planted artifacts: the clean tokens are known exactly, and the null space of the next block holds them."""

from __future__ import annotations

import pytest
import torch

from harness.errors import UserError
from harness.models import build_model, build_teacher
from harness.teachers.planting import plant

SPEC = {"width": 48, "depth": 4, "heads": 4, "patch": 8}


def planted(size: float, share: float = 0.1, layer: int = 1):
    vit = build_teacher(SPEC, 64)
    with torch.no_grad():  # norms that do something, as trained ones do
        generator = torch.Generator().manual_seed(3)
        for module in vit.model.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.weight.add_(0.2 * torch.randn(48, generator=generator))
                module.bias.add_(0.2 * torch.randn(48, generator=generator))
    direction = plant(vit, layer, size, share)
    return vit, direction


IMAGES = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_planted_tokens_are_the_clean_ones_plus_one_known_vector():
    (dirty, u), (clean, _) = planted(20), planted(0)
    a, b = dirty(IMAGES, layers=range(4)), clean(IMAGES, layers=range(4))
    assert torch.equal(a.tokens[0], b.tokens[0])
    for layer in (1, 2, 3):
        gap = a.tokens[layer] - b.tokens[layer]
        along = gap @ u
        assert torch.allclose(gap, along[..., None] * u, atol=1e-4)
        assert (along > 1).sum(dim=1).tolist() == [6, 6, 6]  # a tenth of 64 patches, in each image
        assert along[:, 0].abs().max() < 1e-4  # never on CLS
    median = b.patches(1).norm(dim=-1).median(dim=1).values
    assert torch.allclose((a.tokens[1] - b.tokens[1]).norm(dim=-1).max(dim=1).values, 20 * median, rtol=1e-4)


@torch.no_grad()
def test_logits_do_not_see_the_artifacts():
    (dirty, _), (clean, _) = planted(20), planted(0)
    assert torch.allclose(dirty(IMAGES).logits, clean(IMAGES).logits, atol=1e-4)


@torch.no_grad()
def test_the_direction_is_in_the_null_space_of_every_later_blocks_mlp():
    vit, u = planted(20)
    for layer in (2, 3):
        mlp = vit.block(layer).mlp
        assert (mlp.fc2.weight @ mlp.fc1.weight @ u).norm() < 1e-5
    assert abs(float(u.sum())) < 1e-5 and float(u.norm()) == pytest.approx(1)


@torch.no_grad()
def test_a_block_is_unchanged_on_inputs_without_the_direction():
    vit, u = planted(0)
    plain = build_teacher(SPEC, 64)
    generator = torch.Generator().manual_seed(3)
    for module in plain.model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.weight.add_(0.2 * torch.randn(48, generator=generator))
            module.bias.add_(0.2 * torch.randn(48, generator=generator))
    x = torch.randn(2, 65, 48)
    x = x - (x @ u)[..., None] * u
    attention = plain.block(2).attn(plain.block(2).norm1(x))
    found = vit.block(2).attn(vit.block(2).norm1(x))
    # The folded weights read norm(x) without its component along u, which the affine had put there.
    assert (attention - found).norm() < 0.3 * attention.norm()


@torch.no_grad()
def test_places_are_the_patches_with_the_least_in_them():
    (dirty, u), (clean, _) = planted(20), planted(0)
    marked = ((dirty(IMAGES, layers=(1,)).patches(1) - clean(IMAGES, layers=(1,)).patches(1)) @ u) > 1
    norms = clean(IMAGES, layers=(1,)).patches(1).norm(dim=-1)
    for row, place in zip(norms, marked, strict=True):
        assert row[place].max() <= row[~place].min()


def test_singer_can_read_a_planted_teacher():
    from harness.models import build_student
    from harness.registry import build_method

    vit, _ = planted(20)
    student = build_student(SPEC, 64, 4, 0)
    method = build_method("singer", student, vit, {"rank": 4, "layers": (1, 3)})
    found = vit(IMAGES, layers=method.teacher_layers)
    terms = method.losses(student(IMAGES, layers=method.student_layers), found, None)
    assert all(torch.isfinite(t) for t in terms.values())


@pytest.mark.parametrize(
    "change, said",
    [({"layer": 9}, "layer 9 does not exist"), ({"share": 0.0}, "share"), ({"size": float("nan")}, "finite")],
)
def test_mistakes_are_named(change, said):
    with pytest.raises(UserError, match=said):
        plant(build_teacher(SPEC, 64), **{"layer": 1, "size": 10.0, "share": 0.1, **change})


def test_a_model_without_plain_norms_is_refused():
    from harness.api import frozen
    from harness.models import as_vit

    gated = {"model": "vit_small_plus_patch16_dinov3", "width": 48, "depth": 3, "heads": 4}
    with pytest.raises(UserError, match=r"block 2 has .* in front of"):
        plant(as_vit(frozen(build_model(gated, 64, 4))), 1, 10.0)
