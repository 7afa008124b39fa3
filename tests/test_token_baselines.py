"""UNIC and Proteus: cases by hand, running statistics, and patches of the student that are really masked."""

from __future__ import annotations

import pytest
import torch
from golden_cases import A
from torch import nn
from toy import Shape, labelled

from baselines.proteus import Proteus
from baselines.unic import UNIC
from harness.api import Batch, Layers, Outputs
from harness.catalogue import catalogue
from harness.checking.specimen import MethodSpecimen
from harness.matching import random_keep

close = pytest.approx


def given(tokens, norm=1.0, **fields) -> Outputs:
    """Images [B, N, D] after block 0, with a final norm that multiplies."""
    tokens = torch.as_tensor(tokens, dtype=torch.float32)
    return Outputs(Layers({0: tokens}), logits=torch.zeros(len(tokens), 2), norm=lambda x: norm * x, **fields)


def unic(dim: int = 2, **settings) -> UNIC:
    """On models of one block, with heads that change nothing."""
    method = UNIC(Shape(dim), Shape(dim), **settings)
    method.cls_heads[0] = method.patch_heads[0] = nn.Identity()
    return method


def at(progress: float, count: int) -> Batch:
    return Batch(torch.zeros(count, 3, 2, 2), None, torch.arange(count), progress)


def terms(method, student, teacher, progress=0.0) -> dict[str, float]:
    found = method.losses(student, teacher, at(progress, len(student.tokens[0])))
    return {name: term.item() for name, term in found.items()}


def test_unic_by_hand():
    # CLS (1, 0) against (1, 1): cosine 1 / sqrt 2, SmoothL1 (0 + 1/2) / 2; patches (2, 0), (0, 1) against (0, 1) twice:
    # cosines 0 and 1, SmoothL1 (3/2 + 1/2) / 4. The teacher's norm doubles, the student's does not count.
    student = given([[[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]], norm=9)
    teacher = given([[[0.5, 0.5], [0.0, 0.5], [0.0, 0.5]]], norm=2)
    found = terms(unic(w_cosine=0.5, w_smooth_l1=3.0), student, teacher)
    cls = 0.5 * (1 - 0.5**0.5) + 3 * 0.25
    patches = 0.5 * 0.5 + 3 * 0.5
    assert found == close({"cls": cls / 2, "patches": patches / 2}, rel=1e-4)


def test_unic_standardises_with_what_it_knew_before_and_then_learns_the_batch():
    torch.manual_seed(0)
    method, tokens = unic(3), 5 + 7 * torch.randn(40, 9, 3)
    raw = method.targets(given(tokens))[0]
    assert torch.allclose(raw, tokens, rtol=1e-4)  # mean 0 and deviation 1 at first
    terms(method, given(torch.zeros(40, 9, 3)), given(tokens))
    after = method.targets(given(tokens))[0]
    for part in (after[:, 0], after[:, 1:].flatten(0, 1)):  # CLS and patches, each for itself
        assert torch.allclose(part.mean(dim=0), torch.zeros(3), atol=1e-4)
        assert torch.allclose(part.std(dim=0, correction=0), torch.ones(3), rtol=1e-3)


def test_a_student_that_has_the_standardised_tokens_has_no_loss():
    torch.manual_seed(0)
    method, teacher = unic(3), given(5 + 7 * torch.randn(8, 9, 3))
    assert min(terms(method, given(teacher.tokens[0]), teacher).values()) == close(0, abs=1e-4)
    terms(method, given(teacher.tokens[0]), given(teacher.tokens[0] ** 2))
    assert terms(method, given(method.targets(teacher)[0]), teacher) == close({"cls": 0, "patches": 0}, abs=1e-4)


def test_the_target_of_unic_does_not_see_scale_and_shift_of_the_teachers_channels():
    torch.manual_seed(0)
    tokens, scale, shift = torch.randn(8, 9, 3), torch.tensor([0.1, 1.0, 50.0]), torch.tensor([9.0, 0.0, -3.0])
    found = []
    for teacher in (tokens, tokens * scale + shift):
        method = unic(3)
        terms(method, given(tokens), given(teacher))
        found.append(method.targets(given(teacher))[0])
    assert torch.allclose(*found, atol=1e-3)


@pytest.mark.parametrize(("progress", "momentum"), [(0.0, 1.0), (0.5, 0.5005), (1 / 3, 0.75025), (1.0, 0.001)])
def test_the_momentum_of_unic_falls_by_a_half_cosine(progress, momentum):
    method = unic()
    terms(method, given(torch.zeros(2, 3, 2)), given(torch.full((2, 3, 2), 10.0)), progress)
    assert method.patch_mean.tolist() == close([10 * momentum] * 2, rel=1e-4)
    assert method.patch_std.tolist() == close([1 - momentum] * 2, rel=1e-4, abs=1e-5)


def test_the_statistics_of_unic_move_in_training_alone_and_are_kept_in_its_state():
    method, teacher = unic(), given(torch.randn(4, 3, 2))
    fresh = {name: value.clone() for name, value in method.state_dict().items()}
    method.eval()
    terms(method, given(torch.zeros(4, 3, 2)), teacher)
    method.targets(teacher)
    assert all(torch.equal(value, fresh[name]) for name, value in method.state_dict().items())
    terms(method.train(), given(torch.zeros(4, 3, 2)), teacher)
    moved = {name for name, value in method.state_dict().items() if not torch.equal(value, fresh[name])}
    assert moved == {"cls_mean", "cls_std", "patch_mean", "patch_std"}


def test_registers_of_the_teacher_have_no_part_in_unic():
    tokens = torch.randn(4, 3, 2)
    with_registers = torch.cat([tokens[:, :1], torch.full((4, 2, 2), 99.0), tokens[:, 1:]], dim=1)
    student = given(torch.randn(4, 3, 2))
    plain, registers = unic(), unic()
    expected = terms(plain, student, given(tokens))
    assert terms(registers, student, given(with_registers, num_prefix_tokens=3)) == expected
    assert torch.equal(plain.patch_mean, registers.patch_mean)
    targets = registers.targets(given(with_registers, num_prefix_tokens=3))[0]
    assert torch.equal(targets[:, 1:3], with_registers[:, 1:3])


def test_the_ladder_of_unic_is_the_sum_of_a_head_on_every_block():
    built = A.build()
    method = UNIC(built.student, built.teacher).eval()  # the statistics stay
    assert method.student_layers == {0, 1, 2} and method.teacher_layers == {5}
    assert [head[0].out_features for head in method.patch_heads] == [32, 32, 4 * 32]
    whole = {name: term.item() for name, term in built.losses(method).items()}
    with torch.no_grad():
        for heads in (method.cls_heads, method.patch_heads):
            for head in heads[:-1]:
                head[2].weight.zero_()
    without = {name: term.item() for name, term in built.losses(method).items()}
    alone = UNIC(built.student, built.teacher, ladder=False).eval()
    alone.cls_heads[0].load_state_dict(method.cls_heads[-1].state_dict())
    alone.patch_heads[0].load_state_dict(method.patch_heads[-1].state_dict())
    assert alone.student_layers == {2}
    assert {name: term.item() for name, term in built.losses(alone).items()} == close(without, rel=1e-5)
    assert all(without[name] != close(whole[name], rel=1e-5) for name in whole)


def test_the_rungs_of_unic_are_summed():
    method = UNIC(Shape(2, depth=2), Shape(2))
    for heads in (method.cls_heads, method.patch_heads):
        heads[0] = heads[1] = nn.Identity()
    ours, other = torch.randn(2, 4, 3, 2)
    student = Outputs(Layers({0: ours, 1: other}), logits=torch.zeros(4, 2))
    assert terms(method, student, given(ours + other)) == close({"cls": 0, "patches": 0}, abs=1e-5)


def proteus(**settings) -> Proteus:
    """On models of one block, with heads that change nothing."""
    method = Proteus(Shape(2), Shape(2), w_masked=0.0, **settings)
    for name in method.heads:
        method.heads[name] = nn.Identity()
    return method


def test_proteus_by_hand():
    # after the teacher's norm CLS is (2, 0) and the patches (0, 4), (0, 0); the student's are 0 but for its CLS (1, 0)
    student = given([[[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]], norm=1)
    teacher = given([[[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]]], norm=2)
    found = proteus(w_cls=3.0, w_tokens=5.0).losses(student, teacher, labelled(0))
    assert {k: v.item() for k, v in found.items()} == close({"cls": 3 * 1 / 2, "tokens": 5 * (1 + 16) / 6})


def test_proteus_compares_after_the_norms_of_both_models():
    tokens, teacher = torch.randn(2, 3, 2), given(torch.randn(2, 3, 2))
    method = proteus()
    normed, louder, raw = (terms(method, s, teacher) for s in (given(tokens, 3), given(3 * tokens), given(tokens)))
    assert normed == close(louder) and normed["cls"] != close(raw["cls"])
    assert torch.equal(method.targets(given(tokens, 2))[0], 2 * tokens)


@pytest.mark.parametrize(
    ("weights", "heads"),
    [
        ({"w_cls": 0.0}, {"cls", "patches", "masked"}),  # "all tokens" has CLS too
        ({"w_tokens": 0.0}, {"cls", "masked"}),
        ({"w_cls": 0.0, "w_tokens": 0.0}, {"masked"}),
        ({"w_masked": 0.0}, {"cls", "patches"}),
    ],
)
def test_a_weight_of_zero_leaves_out_term_and_head(weights, heads):
    built = A.build()
    method = Proteus(built.student, built.teacher, **weights)
    assert set(method.heads) == heads
    assert hasattr(method, "mask") is ("masked" in heads)
    left = {"w_cls": "cls", "w_tokens": "tokens", "w_masked": "masked"}
    assert set(built.losses(method)) == {term for weight, term in left.items() if weight not in weights}


def seeded_masks(seed: int, images: int, patches: int = 16) -> torch.Tensor:
    torch.manual_seed(seed)
    return random_keep(torch.zeros(images, patches, 1), 0.5)


def pixels(patches: torch.Tensor, size: int = 8) -> torch.Tensor:
    """A patch mask [B, 16] on a 4 x 4 grid as one of pixels: [B, 1, 32, 32]."""
    return patches.view(-1, 1, 4, 4).repeat_interleave(size, 2).repeat_interleave(size, 3)


def test_masked_patches_of_the_image_have_no_influence_on_proteus():
    built = A.build()
    method = Proteus(built.student, built.teacher)
    given, images = built.outputs(method), built.batch.images
    keep = seeded_masks(3, 2)  # half of the four images

    def masked(images) -> float:
        torch.manual_seed(3)
        return method.losses(*given, Batch(images, None, built.batch.index))["masked"].item()

    def moved(where) -> torch.Tensor:
        return images + torch.cat([pixels(where), torch.zeros(2, 1, 32, 32)])

    assert masked(moved(~keep)) == masked(images) != masked(moved(keep))
    other_half = images.clone()
    other_half[2:] += 1
    assert masked(other_half) == masked(images)


def test_only_masked_patches_have_a_target_in_the_masked_term():
    built = A.build()
    method = Proteus(built.student, built.teacher)
    student, teacher = built.outputs(method)
    keep = seeded_masks(3, 2)

    def masked(where) -> float:
        tokens = teacher.tokens[5].clone()
        tokens[:2, 1:][where] *= -1
        torch.manual_seed(3)
        turned = Outputs(Layers({5: tokens}), logits=teacher.logits, grid=teacher.grid, norm=teacher.norm)
        return method.losses(student, turned, built.batch)["masked"].item()

    nothing = masked(torch.zeros_like(keep))
    assert masked(keep) == nothing != masked(~keep)


def test_the_masked_term_is_the_error_of_the_second_pass_after_its_norm():
    built = A.build()
    method = Proteus(built.student, built.teacher, w_masked=3.0)
    student, teacher = built.outputs(method)
    keep = seeded_masks(3, 2)
    torch.manual_seed(3)
    found = method.losses(student, teacher, built.batch)["masked"].item()
    second = built.student(method.masked(built.batch.images[:2], keep), (2,))
    error = method.heads["masked"](second.normed(2)[:, 1:]) - teacher.normed(5)[:2, 1:]
    assert found == close(3 * error[~keep].square().mean().item(), rel=1e-5)


@pytest.mark.parametrize("term", ["cls", "tokens", "masked"])
def test_every_term_of_proteus_teaches_the_student(term):
    built = A.build()
    built.losses(Proteus(built.student, built.teacher))[term].backward()
    assert built.student.block(0).mlp.fc1.weight.grad.any()


def test_the_mask_of_pixels_is_a_token_before_the_position_embedding():
    """What the source does, written out for timm's ViT."""
    built = A.build()
    method = Proteus(built.student, built.teacher)
    nn.init.normal_(method.mask, std=0.3)
    keep, images, model = seeded_masks(0, 4), built.batch.images, built.student_model
    found = built.student(method.masked(images, keep), (2,)).normed(2)
    token = model.patch_embed.proj((0.5 + method.mask)[None]).flatten()  # [D]
    embedded = torch.where(keep[..., None], model.patch_embed(images), token)  # [B, P, D]
    expected = model.norm(model.blocks(model._pos_embed(embedded)))
    assert torch.allclose(found, expected, atol=1e-5)


def test_an_image_of_another_size_is_masked_at_the_size_of_the_student():
    built = A.build()
    method = Proteus(built.student, built.teacher)
    nn.init.normal_(method.mask)
    keep = seeded_masks(0, 3)
    seen = method.masked(torch.rand(3, 3, 50, 50), keep)
    assert seen.shape == (3, 3, 32, 32)
    tiles = (0.5 + method.mask).repeat(1, 4, 4).expand(3, -1, -1, -1)
    assert torch.equal(seen == tiles, pixels(~keep).expand(-1, 3, -1, -1))


@pytest.mark.parametrize("settings", [{"ratio": 0.0}, {"masked_images": 0.0}, {"masked_images": 1.5}])
def test_proteus_refuses_to_mask_nothing(settings):
    built = A.build()
    with pytest.raises(ValueError, match="leaves nothing to mask"):
        Proteus(built.student, built.teacher, **settings)


def test_proteus_refuses_patches_that_do_not_tile_the_image():
    built = A.build()
    built.student.image_size = (33, 32)
    with pytest.raises(ValueError, match="do not tile its image"):
        Proteus(built.student, built.teacher)


OWN = {"unic": {"cls_heads", "patch_heads"}, "proteus": {"heads", "mask"}}


@pytest.mark.parametrize("name", OWN)
def test_every_head_and_the_mask_move_in_one_step(name):
    specimen = MethodSpecimen(catalogue().entry("method", name))
    rig = specimen.build()
    before = {key: p.detach().clone() for key, p in rig.method.named_parameters()}
    rig.step(specimen.batch(), 0)
    moved = {key for key, p in rig.method.named_parameters() if not torch.equal(p, before[key])}
    assert moved == set(before)
    assert {key.split(".")[0] for key in moved} == OWN[name]
