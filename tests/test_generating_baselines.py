"""ViTKD and MGD: cases by hand; what is masked has no influence, what is to be trained moves."""

from __future__ import annotations

import pytest
import torch
from golden_cases import CASES, A
from torch import nn
from toy import Shape, labelled

from baselines.mgd import MGD
from baselines.nkd import NKD
from baselines.vitkd import ViTKD
from harness.api import Layers, Outputs
from harness.catalogue import catalogue
from harness.checking.specimen import MethodSpecimen
from harness.matching import random_keep

close = pytest.approx
ROWS, COLUMNS = 2, 2


def shape(dim: int = 2, depth: int = 1) -> Shape:
    made = Shape(dim, depth)
    made.grid = (ROWS, COLUMNS)
    return made


def given(tokens, norm=1.0) -> Outputs:
    """Images [B, 1 + P, D] after block 0, with a final norm that multiplies."""
    tokens = torch.as_tensor(tokens, dtype=torch.float32)
    return Outputs(Layers({0: tokens}), logits=torch.zeros(len(tokens), 2), norm=lambda x: norm * x)


@torch.no_grad()
def plain(method):
    """Aligners and generator that change nothing that is not negative."""
    for module in method.modules():
        if isinstance(module, nn.Linear):
            nn.init.eye_(module.weight)
        elif isinstance(module, nn.Conv2d):
            nn.init.dirac_(module.weight)
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.zeros_(module.bias)
    return method


def vitkd(**settings) -> ViTKD:
    return ViTKD(shape(), shape(), **{"layers": (0,), **settings})


def terms(method, student: Outputs, teacher: Outputs, seed: int = 0) -> dict[str, float]:
    torch.manual_seed(seed)
    found = method.losses(student, teacher, labelled(*[0] * len(student.tokens[0])))
    return {name: term.item() for name, term in found.items()}


def masks(images: int, ratio: float = 0.5, seed: int = 0) -> torch.Tensor:
    """The patches that ViTKD keeps for this seed: [B, P]."""
    torch.manual_seed(seed)
    return random_keep(torch.zeros(images, ROWS * COLUMNS, 2), ratio)


def test_vitkd_mimics_patches_by_a_sum_over_layers_patches_and_channels():
    # images of squares 4 * (3^2 + 4^2) and 4 * (1^2 + 0^2); CLS is far off and does not count
    teacher = given([[[90.0, 90.0], *[[3.0, 4.0]] * 4], [[70.0, 7.0], *[[1.0, 0.0]] * 4]])
    student = given(torch.zeros(2, 5, 2), norm=5)
    assert terms(plain(vitkd(alpha=0.1)), student, teacher)["mimic"] == close(0.1 * (100 + 4) / 2)


def test_vitkd_sums_over_the_shallow_layers():
    built = A.build()
    method = ViTKD(built.student, built.teacher)
    one, other, both = (built.losses(_with(method, built, i))["mimic"].item() for i in ((0,), (1,), (0, 1)))
    assert both == close(one + other, rel=1e-5) and one > 0 and other > 0


def _with(trained: ViTKD, built, layers) -> ViTKD:
    """One of fewer shallow layers with the same aligners."""
    method = ViTKD(built.student, built.teacher, layers=layers)
    for i, layer in enumerate(layers):
        method.aligners[i].load_state_dict(trained.aligners[layer].state_dict())
    return method


def test_vitkd_generates_the_normed_teacher_at_the_masked_half_of_the_patches():
    # two masked patches an image are made of the mask token (1, 1) and miss (6, 8), the normed (3, 4), by 5^2 + 7^2
    teacher = given([[[90.0, 90.0], *[[3.0, 4.0]] * 4]] * 3, norm=2)
    method = plain(vitkd(beta=0.01))
    nn.init.ones_(method.mask_token)
    found = terms(method, given(torch.rand(3, 5, 2)), teacher)["generate"]
    assert found == close(0.01 / (0.5 * 3) * 3 * 2 * 74)


def test_vitkd_divides_by_the_share_that_is_masked():
    teacher = given([[[0.0, 0.0], *[[3.0, 4.0]] * 4]])
    quarter = terms(plain(vitkd(beta=1.0, ratio=0.25)), given(torch.rand(1, 5, 2)), teacher)["generate"]
    assert quarter == close(1 / 0.25 * 1 * 25)


def test_vitkd_reads_the_last_block_of_the_student_after_its_norm_and_the_shallow_ones_before():
    method, tokens = vitkd(), torch.rand(2, 5, 2)
    teacher = given(torch.rand(2, 5, 2))
    normed, louder, raw = (terms(method, s, teacher) for s in (given(tokens, 3), given(3 * tokens), given(tokens)))
    assert normed["generate"] == close(louder["generate"]) and normed["generate"] != close(raw["generate"])
    assert normed["mimic"] == close(raw["mimic"]) and normed["mimic"] != close(louder["mimic"])


def test_masked_patches_of_the_student_have_no_influence_on_what_vitkd_generates():
    method, keep = vitkd(), masks(3)
    tokens, teacher = torch.rand(3, 5, 2), given(torch.rand(3, 5, 2))
    before = terms(method, given(tokens), teacher)["generate"]
    for where, same in ((~keep, True), (keep, False)):
        moved = tokens.clone()
        moved[:, 1:][where] += 100
        assert (terms(method, given(moved), teacher)["generate"] == before) is same


def test_the_patches_that_vitkd_keeps_have_no_target():
    method, keep = vitkd(), masks(3)
    student, tokens = given(torch.rand(3, 5, 2)), torch.rand(3, 5, 2)
    before = terms(method, student, given(tokens))["generate"]
    for where, same in ((keep, True), (~keep, False)):
        moved = tokens.clone()
        moved[:, 1:][where] += 100
        assert (terms(method, student, given(moved))["generate"] == before) is same


def test_vitkd_reads_the_same_shallow_blocks_and_the_last_of_each_model():
    method = ViTKD(Shape(2, depth=12), Shape(2, depth=24))
    assert (method.student_layers, method.teacher_layers) == ({0, 1, 11}, {0, 1, 23})


def test_vitkd_says_that_its_last_target_is_normed():
    method, teacher = ViTKD(Shape(2, depth=2), Shape(2, depth=2), layers=(0,)), torch.rand(2, 5, 2)
    outputs = Outputs(Layers({0: teacher, 1: teacher}), logits=torch.zeros(2, 2), norm=lambda x: 2 * x)
    found = method.targets(outputs)
    assert torch.equal(found[0], teacher) and torch.equal(found[1], 2 * teacher)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_vitkd_nkd_adds_the_loss_of_nkd_and_changes_nothing_else(case):
    built = case.build()
    torch.manual_seed(0)
    both, alone = (ViTKD(built.student, built.teacher, **s) for s in (ViTKD.presets["vitkd_nkd"], {}))
    alone.load_state_dict(both.state_dict())
    found = []
    for method in (both, alone):
        torch.manual_seed(1)
        found.append({name: term.item() for name, term in built.losses(method).items()})
    nkd = built.losses(NKD(built.student, built.teacher))["kd"].item()
    assert found[0] == {**found[1], "nkd": nkd}


@pytest.mark.parametrize("method", [ViTKD, MGD])
@pytest.mark.parametrize("ratio", [1.0, -0.1])
def test_a_share_that_leaves_nothing_is_refused(method, ratio):
    with pytest.raises(ValueError, match=f"ratio is {ratio}; it is the share"):
        method(Shape(2, depth=2), Shape(2, depth=2), ratio=ratio)


def test_vitkd_refuses_to_mask_nothing_and_blocks_that_are_not_there():
    with pytest.raises(ValueError, match="ratio is 0"):
        vitkd(ratio=0.0)
    with pytest.raises(ValueError, match="layer 1 does not exist"):
        vitkd(layers=(0, 1))
    with pytest.raises(ValueError, match="cannot be compared"):
        ViTKD(Shape(2, depth=2, num_classes=3), Shape(2, depth=2), w_nkd=1.0)


def test_mgd_without_a_mask_is_the_summed_error_of_all_patches_before_the_norm():
    teacher = given([[[90.0, 90.0], *[[3.0, 4.0]] * 4], [[70.0, 7.0], *[[1.0, 0.0]] * 4]], norm=7)
    method = plain(MGD(shape(), shape(), weight=0.1, ratio=0.0))
    assert terms(method, given(torch.zeros(2, 5, 2)), teacher)["kd"] == close(0.1 * (100 + 4) / 2)


class Listening(nn.Module):
    """A generator that keeps what it was given and changes nothing."""

    def forward(self, patches):
        self.seen = patches.detach()
        return patches


@pytest.mark.parametrize(("mask", "within", "across"), [("channel", 1, 2), ("spatial", 2, 1)])
def test_mgd_masks_whole_channels_or_whole_patches_and_scales_nothing_up(mask, within, across):
    method = plain(MGD(shape(64), shape(64), mask=mask, ratio=0.3))
    method.generator = heard = Listening()
    tokens = 1 + torch.rand(200, 5, 64)
    terms(method, given(tokens), given(torch.zeros(200, 5, 64)))
    gone = heard.seen == 0  # [B, P, D]
    assert torch.equal(gone.all(dim=within), gone.any(dim=within))  # all or nothing
    assert not torch.equal(gone.all(dim=across), gone.any(dim=across))
    assert len({tuple(row) for row in gone.flatten(1).tolist()}) > 10  # each image for itself
    assert gone.float().mean().item() == close(0.3, abs=0.05)
    assert torch.allclose(heard.seen[~gone], tokens[:, 1:][~gone])


@pytest.mark.parametrize("mask", ["channel", "spatial"])
def test_what_mgd_masks_has_no_influence_and_all_positions_have_a_target(mask):
    method = MGD(shape(8), shape(8), mask=mask, ratio=0.4)
    nn.init.eye_(method.aligner.weight)  # so that the student's channels are the masked ones
    tokens, target = 1 + torch.rand(3, 5, 8), torch.rand(3, 5, 8)
    torch.manual_seed(0)
    keep = method._keep(tokens[:, 1:]).expand(3, 4, 8)
    before = terms(method, given(tokens), given(target))["kd"]
    for where, same in ((~keep, True), (keep, False)):
        moved = tokens.clone()
        moved[:, 1:][where] += 10
        assert (terms(method, given(moved), given(target))["kd"] == before) is same
    for where in (keep, ~keep):
        moved = target.clone()
        moved[:, 1:][where] += 10
        assert terms(method, given(tokens), given(moved))["kd"] != before


def test_mgd_refuses_an_unknown_mask():
    with pytest.raises(ValueError, match="no mask 'spacial'; did you mean 'spatial'"):
        MGD(shape(), shape(), mask="spacial")


OWN = {
    "vitkd": {"aligners.0", "aligners.1", "aligner", "mask_token", "generator.0", "generator.2"},
    "mgd": {"aligner", "generator.0", "generator.2"},
}


@pytest.mark.parametrize("name", OWN)
def test_aligners_generator_and_mask_token_are_owned_and_move(name):
    specimen = MethodSpecimen(catalogue().entry("method", name))
    rig = specimen.build()
    before = {key: p.detach().clone() for key, p in rig.method.named_parameters()}
    for step in range(2):
        rig.step(specimen.batch(step), step)
    moved = {key for key, p in rig.method.named_parameters() if not torch.equal(p, before[key])}
    assert {key.removesuffix(".weight").removesuffix(".bias") for key in moved} == OWN[name]
    assert moved == set(before)
