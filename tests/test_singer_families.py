"""SiNGER on every family of timm's ViTs, at toy width with fresh weights; surrogates of MLPs that are no product."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from timm.layers import GluMlp, SwiGLU
from timm.models.eva import Eva
from torch import nn

from harness.api import Batch, Calibration, frozen
from harness.checking.specimen import ToyCalibration
from harness.errors import UserError
from harness.models import as_vit
from singer.least_squares import Regression, least_squares_surrogates, through_mlp
from singer.method import Singer
from singer.null_space import is_plain_mlp, surrogate

# Names in timm; each keeps its class, tokens, norms and MLP, and becomes narrow and shallow.
FAMILIES = (
    "vit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "deit3_small_patch16_224",
    "vit_small_patch14_dinov2",
    "vit_small_patch14_reg4_dinov2",
    "vit_giant_patch14_dinov2",
    "vit_giant_patch14_reg4_dinov2",
    "vit_small_patch16_dinov3",
    "vit_small_plus_patch16_dinov3",
    "vit_base_patch16_clip_224",
    "vit_base_patch16_siglip_224",
    "vit_medium_patch16_reg4_gap_256",
)
GATED = {"vit_giant_patch14_dinov2", "vit_giant_patch14_reg4_dinov2", "vit_small_plus_patch16_dinov3"}


def teacher(name: str, depth: int = 4):
    torch.manual_seed(1)
    side = 4 * (14 if "patch14" in name else 16)  # pixels: 4 x 4 patches
    model = timm.create_model(name, num_classes=3, embed_dim=32, depth=depth, num_heads=2, img_size=side)
    with torch.no_grad():  # LayerScale as if trained; at 1e-5 blocks would do nothing
        for key, parameter in model.named_parameters():
            if "gamma" in key:
                parameter.copy_(torch.linspace(0.2, 1, len(parameter)))
            elif "mlp.fc1" in key and key.endswith("weight"):
                parameter.copy_(torch.randn_like(parameter) * parameter.shape[1] ** -0.5)  # gates that gate
    return as_vit(frozen(model))


def student(patch: int = 8, **options):
    torch.manual_seed(0)
    name = "vit_tiny_patch16_224"
    return as_vit(
        timm.create_model(
            name, embed_dim=16, depth=4, num_heads=2, patch_size=patch, img_size=32, num_classes=3, **options
        )
    )


def trained(method: Singer, ours, theirs, steps: int = 3) -> dict[str, torch.Tensor]:
    """The terms after some steps."""
    optimiser = torch.optim.AdamW([*ours.model.parameters(), *method.parameters()], lr=1e-3)
    terms = {}
    for step in range(steps):
        batch = Batch(torch.rand(2, 3, 32, 32), None, torch.arange(2), step / steps)
        with torch.no_grad():
            seen = theirs(batch.images, method.teacher_layers)
        terms = method.losses(ours(batch.images, method.student_layers), seen, batch)
        optimiser.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        for name, parameter in method.named_parameters():
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.any(), name
        optimiser.step()
    return terms


class Handed(Calibration):
    """Tokens made by hand stand in for those after every block."""

    samples = 4

    def __init__(self, tokens: torch.Tensor, like) -> None:
        self.tokens, self.like = tokens, like

    def outputs(self, images, layers, attention_layers=()):
        made = self.like(torch.rand(len(self.tokens), 3, *self.like.image_size), layers=layers)
        made.tokens.update(dict.fromkeys(made.tokens, self.tokens))
        yield made


@pytest.mark.parametrize("preset", ["singer", "singer_paper"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_trains_and_its_refined_tokens_are_finite(name, preset):
    theirs, ours = teacher(name), student()
    method = Singer(ours, theirs, rank=4, images=48, **Singer.presets.get(preset, {}))
    method.calibrate(ToyCalibration(theirs))
    before = {key: value.clone() for key, value in method.state_dict().items()}
    terms = trained(method, ours, theirs)
    assert set(terms) == {"kd", "outlier", "info"}
    assert all(torch.isfinite(term) and term > 0 for term in terms.values())
    for key, parameter in method.named_parameters():
        assert not torch.equal(parameter, before[key]), key
    with torch.no_grad():
        outputs = theirs(torch.rand(2, 3, 32, 32), method.teacher_layers)
        refined = method.targets(outputs)
    prefix = theirs.num_prefix_tokens
    assert sorted(refined) == list(method.of_teacher)
    for layer, tokens in refined.items():
        assert torch.isfinite(tokens).all()
        assert torch.equal(tokens[:, :prefix], outputs.tokens[layer][:, :prefix])
        assert not torch.allclose(tokens[:, prefix:], outputs.patches(layer))
    kinds = {entry["surrogate"] for entry in method.report()["refiners"]}
    assert kinds == {"least_squares" if name in GATED else "product"}


def test_the_families_are_what_they_are_meant_to_be():
    blocks = {name: teacher(name).block(0) for name in FAMILIES}
    assert {name for name, block in blocks.items() if not is_plain_mlp(block)} == GATED
    assert isinstance(blocks["vit_giant_patch14_dinov2"].mlp, GluMlp)
    assert isinstance(blocks["vit_small_plus_patch16_dinov3"].mlp, SwiGLU)
    assert isinstance(teacher("vit_small_plus_patch16_dinov3").model, Eva)
    prefixes = {name: teacher(name).num_prefix_tokens for name in FAMILIES}
    assert prefixes["vit_base_patch16_siglip_224"] == 0
    assert prefixes["deit_tiny_distilled_patch16_224"] == 2
    assert prefixes["vit_medium_patch16_reg4_gap_256"] == 4
    assert prefixes["vit_small_patch16_dinov3"] == prefixes["vit_small_patch14_reg4_dinov2"] == 5


@pytest.mark.parametrize("options", [{"patch": 16}, {"patch": 4}, {"class_token": False, "global_pool": "avg"}])
@pytest.mark.parametrize("name", ["vit_base_patch16_siglip_224", "vit_giant_patch14_reg4_dinov2"])
def test_students_of_other_patches_and_without_cls_learn_from_gated_and_prefixless_teachers(name, options):
    theirs, ours = teacher(name), student(**options)
    method = Singer(ours, theirs, rank=4, images=48)
    method.calibrate(ToyCalibration(theirs))
    assert all(torch.isfinite(term) for term in trained(method, ours, theirs, steps=2).values())


@pytest.mark.parametrize("layers", [(3,), (0,), (1, 2), (0, 1, 2, 3)])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_plus_patch16_dinov3"])
def test_one_layer_or_many_with_or_without_the_last(name, layers):
    theirs, ours = teacher(name), student()
    method = Singer(ours, theirs, rank=4, layers=layers, images=48)
    method.calibrate(ToyCalibration(theirs))
    trained(method, ours, theirs, steps=1)
    assert [entry["surrogate_of_block"] for entry in method.report()["refiners"]] == [min(i + 1, 3) for i in layers]


@pytest.mark.parametrize("basis", ["null", "smallest"])
def test_a_rank_above_the_null_space_is_padded_or_takes_what_is_smallest(basis):
    theirs, ours = teacher("vit_small_plus_patch16_dinov3"), student()
    method = Singer(ours, theirs, rank=32, basis=basis, threshold=1e-3, images=48)
    method.calibrate(ToyCalibration(theirs))
    for entry in method.report()["refiners"]:
        assert entry["singular_values_below_threshold"] < 32 == entry["rank"]
        assert entry["from_null_space"] + entry["random_padding"] <= 32
        assert (entry["random_padding"] > 0) == (basis == "null")
    trained(method, ours, theirs, steps=1)


@pytest.mark.parametrize("seed", range(3))
def test_the_least_squares_surrogate_of_a_linear_mlp_is_its_product(seed):
    theirs = teacher("deit3_small_patch16_224")  # with LayerScale
    block = theirs.block(2)
    block.mlp.act, block.norm2 = nn.Identity(), nn.Identity()  # no norm: tokens vary in every direction
    nn.init.normal_(block.mlp.fc1.bias), nn.init.normal_(block.mlp.fc2.bias)
    torch.manual_seed(seed)
    tokens = torch.randn(4, 1 + 16, 32) @ torch.randn(32, 32) + torch.randn(32)
    for layer_scale in (True, False):
        found = least_squares_surrogates(theirs, [2], Handed(tokens, theirs), 4, layer_scale)[2]
        product = surrogate(block, layer_scale)
        assert torch.allclose(found, product, atol=1e-3 * float(product.abs().max()))
        other = surrogate(block, not layer_scale)
        assert not torch.allclose(found, other, atol=0.1 * float(other.abs().max()))


def test_behind_a_layernorm_the_surrogate_is_the_product_on_what_the_mlp_can_see_and_zero_beyond():
    theirs = teacher("vit_tiny_patch16_224")
    theirs.block(2).mlp.act = nn.Identity()
    found = least_squares_surrogates(theirs, [2], ToyCalibration(theirs), 48)[2]
    product = surrogate(theirs.block(2))
    ones = torch.ones(32, dtype=torch.float64) / 32**0.5  # a fresh norm's affine is 1 and 0
    seen = torch.eye(32, dtype=torch.float64) - torch.outer(ones, ones)
    assert torch.allclose(seen @ found, seen @ product, atol=1e-3 * float(product.abs().max()))
    assert (ones @ found).norm() < 1e-3 * (ones @ product).norm()


def test_the_surrogate_of_a_gated_mlp_predicts_better_than_any_other_linear_map():
    theirs = teacher("vit_giant_patch14_dinov2")
    weight = least_squares_surrogates(theirs, [2], ToyCalibration(theirs), 48)[2]
    seen, added = [], []
    for outputs in ToyCalibration(theirs).outputs(48, [1]):
        z, a, after = through_mlp(theirs, 2, outputs.tokens[1])
        assert torch.equal(after, theirs.through(2, outputs.tokens[1]))
        seen.append(z[:, 1:].flatten(0, 1).double())
        added.append(a[:, 1:].flatten(0, 1).double())
    z, a = (rows - rows.mean(dim=0) for rows in (torch.cat(seen), torch.cat(added)))
    error = (a - z @ weight).square().sum()
    assert error < 0.5 * a.square().sum()  # it explains something
    for seed in range(5):
        torch.manual_seed(seed)
        assert error <= (a - z @ (weight + 1e-3 * torch.randn(32, 32))).square().sum()


def test_a_regression_is_the_same_in_one_piece_or_many_and_forgets_a_constant():
    x, y = torch.randn(50, 6), torch.randn(50, 6)
    whole, parts, moved = Regression(6), Regression(6), Regression(6)
    whole.add(x, y)
    for rows in range(0, 50, 10):
        parts.add(x[rows : rows + 10], y[rows : rows + 10])
    moved.add(x, y + 7)
    assert torch.allclose(whole.solve(), parts.solve())
    assert torch.allclose(whole.solve(), moved.solve(), atol=1e-6)
    centred = x.double() - x.double().mean(dim=0)
    assert torch.allclose(whole.solve(), torch.linalg.lstsq(centred, y.double()).solution, atol=1e-6)


def test_least_squares_can_be_chosen_for_a_plain_mlp_and_the_product_cannot_for_a_gated_one():
    plain, gated, ours = teacher("vit_tiny_patch16_224"), teacher("vit_giant_patch14_dinov2"), student()
    method = Singer(ours, plain, rank=4, surrogate="least_squares", images=48)
    method.calibrate(ToyCalibration(plain))
    product = Singer(ours, plain, rank=4)
    assert not torch.allclose(method.refiners[0].up, product.refiners[0].up, atol=1e-3)
    trained(method, ours, plain, steps=1)
    with pytest.raises(ValueError, match=r"Block is a GluMlp.*surrogate='least_squares'.*basis='random'"):
        Singer(ours, gated, rank=4, surrogate="product")
    with pytest.raises(ValueError, match="no surrogate 'leastsquares'; did you mean 'least_squares'"):
        Singer(ours, gated, rank=4, surrogate="leastsquares")


def test_calibration_does_nothing_where_products_are_defined():
    theirs, ours = teacher("vit_tiny_patch16_224"), student()
    method = Singer(ours, theirs, rank=4)
    before, stream = copy.deepcopy(method.state_dict()), torch.get_rng_state()
    method.calibrate(Handed(torch.zeros(0), None))  # which would fail if it were asked
    assert torch.equal(stream, torch.get_rng_state())
    assert before.keys() == method.state_dict().keys()
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())


def test_a_gated_teacher_without_calibration_says_what_is_missing():
    theirs, ours = teacher("vit_small_plus_patch16_dinov3"), student()
    method = Singer(ours, theirs, rank=4)
    outputs = theirs(torch.rand(2, 3, 32, 32), method.teacher_layers)
    seen = ours(torch.rand(2, 3, 32, 32), method.student_layers)
    for ask in (
        lambda: method.losses(seen, outputs, Batch(torch.rand(2, 3, 32, 32), None, torch.arange(2))),
        lambda: method.targets(outputs),
        lambda: method.diagnose(ToyCalibration(theirs)),
    ):
        with pytest.raises(ValueError, match=r"blocks \[3\].*call calibrate\(\) before losses\(\)"):
            ask()
    assert "from_null_space" not in method.report()["refiners"][0]


def test_a_trained_state_makes_calibration_unnecessary_and_gives_the_same_targets():
    theirs, ours = teacher("vit_giant_patch14_dinov2"), student()
    method = Singer(ours, theirs, rank=4, images=48)
    method.calibrate(ToyCalibration(theirs))
    trained(method, ours, theirs)
    again = Singer(ours, theirs, rank=4, images=48)
    again.load_state_dict(method.state_dict())
    outputs = theirs(torch.rand(2, 3, 32, 32), method.teacher_layers)
    for layer, tokens in method.targets(outputs).items():
        assert torch.equal(again.targets(outputs)[layer], tokens)
    lacking = {k: v for k, v in method.state_dict().items() if not k.startswith("surrogate_")}
    other = Singer(ours, theirs, rank=4)
    other.load_state_dict(lacking, strict=False)
    with pytest.raises(ValueError, match="calibrate"):
        other.targets(outputs)


def test_the_same_images_and_seed_give_the_same_surrogate_and_padding():
    def start(seed: int) -> list[torch.Tensor]:
        theirs = teacher("vit_small_plus_patch16_dinov3")
        torch.manual_seed(0)
        method = Singer(student(), theirs, rank=32, threshold=1e-3, images=48)
        torch.manual_seed(seed)
        method.calibrate(ToyCalibration(theirs))
        return [method.get_buffer("surrogate_3"), method.refiners[1].up.detach()]

    one, same, other = start(0), start(0), start(1)
    assert torch.equal(one[0], same[0]) and torch.equal(one[1], same[1])
    assert torch.equal(one[0], other[0]) and not torch.equal(one[1], other[1])


def test_too_few_images_and_a_teacher_of_one_block_are_refused_with_the_remedy():
    theirs = teacher("vit_small_plus_patch16_dinov3")
    with pytest.raises(UserError, match=r"images=1 is too few.*give images=3 or more \(16 patches each\)"):
        Singer(student(), theirs, rank=4, images=1).calibrate(ToyCalibration(theirs))
    short = teacher("vit_small_plus_patch16_dinov3", depth=1)
    method = Singer(student(), short, rank=4, layers=(0,), student_layers=(3,))
    with pytest.raises(UserError, match=r"block 0.*two or more blocks"):
        method.calibrate(ToyCalibration(short))
    with pytest.raises(ValueError, match="images is 0"):
        Singer(student(), theirs, rank=4, images=0)


def test_calibration_leaves_the_teacher_as_it_was():
    theirs = teacher("vit_giant_patch14_dinov2")
    before = {key: value.clone() for key, value in theirs.model.state_dict().items()}
    method = Singer(student(), theirs, rank=4, images=48)
    method.calibrate(ToyCalibration(theirs))
    assert all(torch.equal(value, before[key]) for key, value in theirs.model.state_dict().items())
    assert not any(module._forward_hooks for module in theirs.model.modules())
    assert not any(parameter.requires_grad for parameter in theirs.model.parameters())
