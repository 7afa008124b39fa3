"""Registers at test time: in toy models one neuron is built to make artifacts, so that the truth is known."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import nn

from harness.api import frozen
from harness.errors import UserError
from harness.models import TimmVit, as_vit, build_model
from harness.norms import outlier_share, over_median, token_norms
from harness.registry import build_method
from harness.specs import RegistersAppended
from harness.teachers.planting import plant
from harness.teachers.register_neurons import append_registers, find_neurons, patch_norms

SPEC = {"width": 48, "depth": 4, "heads": 4, "patch": 8}
PLAIN: dict[str, Any] = {}
SCALED = {"options": {"init_values": 0.5}}  # LayerScale
REGISTERED = {"options": {"reg_tokens": 2}}
POOLED = {"model": "vit_little_patch16_reg4_gap_256"}  # no CLS, registers, pooled patches
GATED = {"model": "vit_giant_patch14_dinov2"}  # GluMlp
ROTARY = {"model": "vit_small_patch16_dinov3"}  # Eva with rotary embeddings and registers
SWIGLU = {"model": "vit_small_plus_patch16_dinov3"}  # SwiGLU
NORMED = {"model": "eva02_tiny_patch14_224", "options": {"scale_mlp": True}}  # a norm in front of fc2
MODELS = {
    "plain": PLAIN,
    "LayerScale": SCALED,
    "registers": REGISTERED,
    "pooled": POOLED,
    "GluMlp": GATED,
    "rotary": ROTARY,
    "SwiGLU": SWIGLU,
    "inner norm": NORMED,
}
BLOCK, NEURON = 1, 7


def images(count: int = 6) -> torch.Tensor:
    """Noise at 64 px, with one bright patch of 64 in each image, elsewhere in each."""
    found = 0.4 * torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for i in range(count):
        row, column = divmod(7 * i + 3, 8)
        found[i, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] += 0.6
    return found


IMAGES = images()
BRIGHT = torch.tensor([7 * i + 3 for i in range(len(IMAGES))])


def fresh(change: dict[str, Any]) -> TimmVit:
    torch.manual_seed(0)
    vit = as_vit(frozen(build_model({**SPEC, **change}, 64, 5)))
    for module in vit.model.modules():  # a trained LayerScale is not 1e-5
        for name in ("gamma", "gamma_1", "gamma_2"):
            if isinstance(getattr(module, name, None), nn.Parameter):
                nn.init.constant_(getattr(module, name), 0.5)
    return vit


@torch.no_grad()
def artifacts(change: dict[str, Any] = PLAIN, size: float = 300.0) -> TimmVit:
    """A model in which neuron 7 of block 1 fires at the bright patch alone, and writes a huge vector there."""
    vit = fresh(change)
    mlp = cast(Any, vit.block(BLOCK)).mlp
    caught: list[torch.Tensor] = []
    hook = cast(Any, vit.block(BLOCK)).norm2.register_forward_hook(lambda _, __, out: caught.append(out))
    vit(IMAGES, layers=(BLOCK,))
    hook.remove()
    seen = caught[0][:, vit.num_prefix_tokens :]  # [B, P, D]
    mask = torch.zeros(seen.shape[:2], dtype=torch.bool)
    mask[torch.arange(len(BRIGHT)), BRIGHT] = True
    towards = nn.functional.normalize(seen[mask].mean(0) - seen[~mask].mean(0), dim=0)
    along = seen @ towards  # [B, P]
    middle = (along[mask].min() + along[~mask].max()) / 2
    assert along[mask].min() > along[~mask].max()
    steep = 40 / (along[mask].min() - middle)
    gate, value = rows(mlp)
    gate.weight[NEURON], gate.bias[NEURON] = steep * towards, -steep * middle
    if value is not None:
        value.weight[NEURON], value.bias[NEURON] = 0, 1
    if not isinstance(mlp.norm, nn.Identity):  # its LayerNorm lets the neuron through as a large value
        mlp.norm.weight[NEURON] = 10
    out = torch.randn(vit.dim)
    mlp.fc2.weight[:, NEURON] = size / 40 * out / out.norm() * 10
    return vit


class _Half:
    """The rows of a packed linear map that one half of a gated MLP uses."""

    def __init__(self, linear: nn.Linear, start: int) -> None:
        self.weight, self.bias = linear.weight[start:], linear.bias[start:]


def rows(mlp: Any) -> tuple[Any, Any]:
    """What goes through the activation, and what multiplies it."""
    if hasattr(mlp, "fc1_g"):
        return mlp.fc1_g, mlp.fc1_x
    half = mlp.fc2.in_features
    if mlp.fc1.out_features == 2 * half:
        assert not mlp.gate_last
        return _Half(mlp.fc1, 0), _Half(mlp.fc1, half)
    return mlp.fc1, None


def look(vit: TimmVit, **changes: Any) -> Any:
    return find_neurons(vit, [IMAGES], RegistersAppended(images=len(IMAGES), **changes))


@torch.no_grad()
@pytest.mark.parametrize("change", MODELS.values(), ids=list(MODELS))
def test_the_neuron_that_makes_the_artifacts_is_found_and_its_artifacts_go(change):
    vit = artifacts(change)
    prefix = vit.num_prefix_tokens
    before = patch_norms(vit, IMAGES)[-1]
    assert torch.equal(outlier_share(before), torch.full((len(IMAGES),), 1 / 64))
    assert (over_median(before, 1.0) > 5).all()
    found = look(vit, top=1)
    assert found.neurons == ((BLOCK, NEURON),)
    assert (found.last_layer, found.layer, found.high_tokens) == (BLOCK, 2, len(IMAGES))
    assert found.activations[0] > 20 * found.elsewhere[0]

    repaired = append_registers(vit, found.neurons, 1)
    assert repaired.num_prefix_tokens == prefix + 1
    outputs = repaired(IMAGES, layers=range(4))
    for layer in range(BLOCK, 4):
        # A bright patch is a little larger by itself.
        assert (over_median(token_norms(outputs.patches(layer)), 1.0) < 2).all()
        norms = token_norms(outputs.tokens[layer])
        assert (norms[:, prefix] > 3 * norms[:, prefix + 1 :].amax(dim=1)).all()  # they are on the register now
    assert outputs.patches(3).shape[1] == 64 and repaired.grid == (8, 8)


@torch.no_grad()
@pytest.mark.parametrize("change", MODELS.values(), ids=list(MODELS))
def test_a_register_is_one_more_token_to_attend_to_and_changes_nothing_else(change):
    """Without its column the attention map is the old one: patches keep their rotary embedding, the prefix has none."""
    plain, vit = fresh(change), append_registers(fresh(change), [], 2)
    prefix = plain.num_prefix_tokens
    old = plain(IMAGES, attention_layers=(0,)).attention[0]
    new = vit(IMAGES, layers=(0,), attention_layers=(0,))
    keep = [i for i in range(prefix + 2 + 64) if i not in (prefix, prefix + 1)]
    rest = new.attention[0][:, :, keep][..., keep]
    assert torch.allclose(rest / rest.sum(dim=-1, keepdim=True), old, atol=1e-6)
    assert new.patches(0).shape == (len(IMAGES), 64, plain.dim)


@torch.no_grad()
@pytest.mark.parametrize("change", MODELS.values(), ids=list(MODELS))
def test_the_head_never_reads_a_register(change):
    vit = append_registers(artifacts(change), [(BLOCK, NEURON)], 3)
    tokens = vit(IMAGES, layers=(3,)).tokens[3]
    own = vit.model.num_prefix_tokens
    left = torch.cat([tokens[:, :own], tokens[:, own + 3 :]], dim=1)
    assert torch.allclose(vit(IMAGES).logits, vit.model.forward_head(vit.model.norm(left)), atol=1e-5)


@torch.no_grad()
def test_the_activation_of_largest_magnitude_moves_with_its_sign_and_the_rest_stays():
    vit = append_registers(fresh(REGISTERED), [(1, 5), (1, 2)], 2)
    own, hidden = 3, torch.randn(2, 3 + 2 + 4, 192)
    hidden[0, 5:, 2] = torch.tensor([1.0, -9.0, 3.0, 8.0])
    hidden[1, 5:, 5] = torch.tensor([1.0, -2.0, 7.0, 0.0])
    moved = cast(Any, vit.block(1)).mlp.norm(hidden)
    assert moved[0, own : own + 2, 2].tolist() == [-9, -9] and moved[1, own : own + 2, 5].tolist() == [7, 7]
    assert not moved[:, 5:, [2, 5]].any()
    assert torch.equal(moved[:, :own], hidden[:, :own])  # CLS and the model's own registers
    others = [i for i in range(192) if i not in (2, 5)]
    assert torch.equal(moved[..., others], hidden[..., others])


@torch.no_grad()
@pytest.mark.parametrize("change", [PLAIN, ROTARY, GATED], ids=["plain", "rotary", "GluMlp"])
def test_through_a_block_leads_from_one_layer_to_the_next(change):
    vit = append_registers(artifacts(change), [(BLOCK, NEURON)], 1)
    tokens = vit(IMAGES, layers=range(4)).tokens
    for layer in range(3):
        assert torch.allclose(vit.through(layer + 1, tokens[layer]), tokens[layer + 1], atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("change", [PLAIN, ROTARY], ids=["plain", "rotary"])
def test_some_patches_can_be_left_out(change):
    vit = append_registers(artifacts(change), [(BLOCK, NEURON)], 1)
    every, some = torch.arange(64).expand(len(IMAGES), -1), torch.arange(0, 64, 2).expand(len(IMAGES), -1)
    whole = vit(IMAGES, layers=(3,)).tokens[3]
    assert torch.allclose(vit(IMAGES, layers=(3,), keep=every).tokens[3], whole, atol=1e-4)
    assert vit(IMAGES, layers=(3,), keep=some).patches(3).shape[1] == 32


def test_singer_refines_a_teacher_with_appended_registers():
    vit = append_registers(artifacts(), [(BLOCK, NEURON)], 1)
    student = as_vit(build_model(SPEC, 64, 5))
    method = build_method("singer", student, vit, {"rank": 4, "layers": (1, 3)})
    found = vit(IMAGES, layers=method.teacher_layers)
    terms = method.losses(student(IMAGES, layers=method.student_layers), found, None)
    sum(terms.values()).backward()
    assert all(torch.isfinite(t) for t in terms.values())
    assert method.refiners[0].up.grad is not None


@torch.no_grad()
def test_planted_artifacts_come_from_no_neuron_and_stay():
    vit = fresh(PLAIN)
    u = plant(vit, 1, 30.0, 0.1)
    found = look(vit, top=3)
    assert found.high_tokens == 6 * len(IMAGES)
    repaired = append_registers(vit, found.neurons, 1)
    along = repaired(IMAGES, layers=(3,)).tokens[3] @ u
    assert (along > 1).sum(dim=1).tolist() == [6] * len(IMAGES)  # a tenth of 64 patches
    assert not (along[:, :2] > 1).any()  # neither on CLS nor on the register: planting knows of it


def test_settings_of_the_search():
    vit = artifacts()
    assert look(vit).neurons == ((BLOCK, NEURON),)  # the published share of 2 x 192 neurons is less than one
    assert look(vit, threshold=50.0, top=1).high_tokens == len(IMAGES)
    assert look(vit, threshold=1e-3, top=1).high_tokens == 64 * len(IMAGES)
    later = look(vit, last_layer=3, top=5)
    assert later.last_layer == 3 and later.neurons[0] == (BLOCK, NEURON) and len(later.neurons) == 5
    assert look(vit, last_layer=0, top=2).neurons[0][0] == 0
    assert look(vit, layer=3, top=1).layer == 3


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"threshold": 1e6}, r"none of the patches of 6 training images has a high norm \(norm over 1e\+06\) after bl"),
        ({"top": 500}, "top: blocks 0 .. 1 have 384 neurons, not 500"),
        ({"layer": 9}, "layer: layer 9 does not exist; this model has blocks 0 .. 3"),
        ({"last_layer": 9}, "last_layer: layer 9 does not exist"),
    ],
)
def test_mistakes_are_named(changes, said):
    with pytest.raises(UserError, match=said):
        look(artifacts(), **changes)


def test_a_clean_teacher_is_refused_in_words():
    vit = fresh(PLAIN)
    grey = torch.full((2, 3, 64, 64), 0.5)
    nn.init.zeros_(cast(Any, vit.model).pos_embed)
    with pytest.raises(UserError, match=r"there is nothing to repair in this teacher\. Leave this row out"):
        find_neurons(vit, [grey], RegistersAppended())


def test_finding_leaves_no_hook_behind():
    vit = artifacts()
    before = vit(IMAGES).logits
    look(vit)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in vit.model.modules())
    assert torch.equal(vit(IMAGES).logits, before)
