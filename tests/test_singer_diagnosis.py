"""What SiNGER says of its refiners, against models whose null space and artifacts are known."""

from __future__ import annotations

import json

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from harness.api import Batch, frozen
from harness.checking.specimen import ToyCalibration
from harness.models import as_vit, build_student, build_teacher
from harness.teachers.planting import plant
from singer.diagnosis import Agreement, energy
from singer.method import Singer

close = pytest.approx
SPEC = {"width": 48, "depth": 4, "heads": 4, "patch": 4}  # 64 patches of 32 px
SIDE = 32


def planted(size: float):
    teacher = build_teacher(SPEC, SIDE)
    return teacher, plant(teacher, 1, size, share=0.05)


def singer(teacher, **values) -> Singer:
    student = build_student({**SPEC, "width": 32, "heads": 2}, SIDE, 3, 0)
    torch.manual_seed(0)
    method = Singer(student, teacher, **{"layers": (1, 3), "rank": 4, **values})
    method.calibrate(ToyCalibration(teacher))
    return method


def diagnosis(method: Singer) -> dict:
    """As plain JSON would give it back."""
    with torch.no_grad():
        found = method.diagnose(ToyCalibration(method.teacher))
    return json.loads(json.dumps(found, allow_nan=False))


def train(method: Singer, teacher, steps: int) -> None:
    """The refiners alone."""
    optimiser = torch.optim.AdamW(method.refiners.parameters(), lr=1e-2)
    images = torch.rand(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        outputs = teacher(images, method.teacher_layers)
        student = build_student({**SPEC, "width": 32, "heads": 2}, SIDE, 3, 0)(images, method.student_layers)
    for _ in range(steps):
        terms = method.losses(student, outputs, Batch(images, None, torch.arange(4)))
        optimiser.zero_grad()
        (terms["outlier"] + terms["info"]).backward()
        optimiser.step()


def test_planted_artifacts_lie_in_the_null_space_and_the_diagnosis_says_so():
    teacher, _ = planted(20)
    for entry in diagnosis(singer(teacher, basis="smallest", threshold=1e-4))["layers"]:
        assert entry["singular_values"][-1] < 1e-5 < entry["singular_values"][-2]
        assert entry["below_threshold"] == 1 and entry["directions"] == 48
        assert 48 * 3 <= entry["artifacts"] < 48 * 5  # a twentieth of 64 patches, in 48 images
        assert entry["energy"]["artifacts"]["below_threshold"] > 0.95
        assert entry["norms"]["raw"]["max"] > 15 * entry["norms"]["raw"]["median"]
        assert entry["energy"]["up now"]["below_threshold"] == close(1 / 4, rel=1e-4)  # one of four unit rows
        assert entry["energy"]["change"]["below_threshold"] > 0.9  # doubling doubles the artifact


def test_artifacts_outside_the_null_space_are_told_apart():
    teacher, u = planted(20)
    for layer in (2, 3):  # every later MLP reads u again, and most of all
        mlp = teacher.block(layer).mlp
        with torch.no_grad():
            mlp.fc1.weight.copy_(mlp.fc1.weight + 50 * torch.outer(mlp.fc1.weight[:, 0], u))
    for entry in diagnosis(singer(teacher, basis="smallest", threshold=1e-2))["layers"]:
        assert entry["energy"]["artifacts"]["lowest_quarter"] < 0.1


def test_training_suppresses_what_is_planted_and_the_energy_stays_where_it_is_safe():
    teacher, _ = planted(20)
    method = singer(teacher, basis="smallest", rank=1, threshold=1e-4, w_outlier=1.0)
    before = diagnosis(method)["layers"][0]
    train(method, teacher, 100)
    after = diagnosis(method)["layers"][0]
    assert before["norms"]["refined"]["max"] > 1.5 * before["norms"]["raw"]["max"]
    assert after["norms"]["refined"]["max"] < 0.5 * after["norms"]["raw"]["max"]
    assert after["norms"]["raw"] == before["norms"]["raw"]
    assert after["energy"]["down at the start"] == before["energy"]["down now"]
    assert after["energy"]["up at the start"] == before["energy"]["up now"]
    assert after["energy"]["up now"] != before["energy"]["up now"]
    assert after["energy"]["change"]["below_threshold"] > 0.7


def test_without_a_norm_attention_and_activation_the_surrogate_predicts_the_block_exactly():
    torch.manual_seed(1)
    teacher = as_vit(frozen(VisionTransformer(img_size=SIDE, patch_size=8, embed_dim=48, depth=4, num_heads=4)))
    for block in teacher.model.blocks:
        block.norm2, block.mlp.act, block.ls1 = nn.Identity(), nn.Identity(), Zero()
    for kind in ("product", "least_squares"):
        entry = diagnosis(singer(teacher, surrogate=kind, images=48, threshold=5.0))["layers"][0]
        for name, fit in entry["prediction"].items():
            assert fit["cosine"] == close(1, abs=1e-3), (kind, name)
            assert fit["relative_l2"] == close(0, abs=0.02), (kind, name)


class Zero(nn.Module):
    def forward(self, x):
        return torch.zeros_like(x)


def test_what_the_norm_hides_from_the_surrogate_shows_in_the_prediction():
    torch.manual_seed(1)
    teacher = as_vit(frozen(VisionTransformer(img_size=SIDE, patch_size=8, embed_dim=48, depth=4, num_heads=4)))
    for block in teacher.model.blocks:
        block.mlp.act = nn.Identity()
    fits = diagnosis(singer(teacher, threshold=5.0))["layers"][0]["prediction"]
    assert fits["mlp_alone"]["cosine"] == close(1, abs=1e-4)  # it is linear in what it is given
    assert fits["mlp_branch"]["relative_l2"] > 0.1 > fits["mlp_alone"]["relative_l2"]


def test_a_refiner_at_the_identity_changes_nothing_and_has_nothing_to_predict():
    entry = diagnosis(singer(planted(20)[0], gain=0.0))["layers"][0]
    assert entry["norms"]["raw"] == entry["norms"]["refined"]
    assert entry["refined_to_raw"]["tokens"] == {"cosine": close(1), "distance": 0}
    assert entry["refined_to_raw"]["next_block"] == {"cosine": close(1), "distance": 0}
    assert entry["energy"]["up now"] == {"total": 0, **dict.fromkeys(("below_threshold", "above_threshold"))} | {
        "lowest_quarter": None,
        "other_quarters": None,
    }
    assert entry["prediction"]["block"] == {"cosine": None, "relative_l2": None}


def test_the_last_layer_has_no_next_block_and_a_gated_or_random_start_is_diagnosed_too():
    first, last = diagnosis(singer(planted(20)[0]))["layers"]
    assert (first["block"], last["block"]) == (2, 3)
    assert last["prediction"] is None and last["refined_to_raw"]["next_block"] is None
    assert first["prediction"] is not None
    gated = build_teacher({**SPEC, "model": "vit_small_plus_patch16_dinov3"}, SIDE)
    for values in ({}, {"basis": "random"}):
        for entry in diagnosis(singer(gated, images=48, **values))["layers"]:
            assert entry["surrogate"] == "least_squares" and entry["singular_values"][0] > 0
            assert entry["energy"]["up now"] == entry["energy"]["up at the start"]


def test_a_fitted_start_is_remembered_through_a_saved_state():
    gated = build_teacher({**SPEC, "model": "vit_small_plus_patch16_dinov3"}, SIDE)
    method = singer(gated, images=48)
    train(method, gated, 2)
    again = Singer(build_student(SPEC, SIDE, 3, 0), gated, layers=(1, 3), rank=4, images=48)
    state = {k: v for k, v in method.state_dict().items() if not k.startswith("projectors")}
    again.load_state_dict(state, strict=False)
    assert diagnosis(again)["layers"] == diagnosis(method)["layers"]


def test_energy_is_shared_out_among_directions_by_their_singular_values():
    values = torch.tensor([4.0, 3.0, 2.0, 0.4, 0.3, 0.2, 0.1, 0.0])
    parts = torch.tensor([10.0, 0, 0, 20, 0, 0, 30, 40])
    assert energy(parts, values, 0.35) == {
        "total": 100,
        "below_threshold": close(0.7),
        "above_threshold": close(0.3),
        "lowest_quarter": close(0.7),
        "other_quarters": close(0.3),
    }
    assert energy(parts, values, 0.05)["below_threshold"] == close(0.4)


def test_agreement_is_of_direction_and_of_size_and_forgets_what_does_not_move():
    fit = Agreement()
    fit.add(torch.tensor([[[2.0, 0]], [[5.0, 5.0]]]), torch.tensor([[[1.0, 0]], [[0.0, 0.0]]]))
    fit.add(torch.tensor([[[0.0, 2.0]]]), torch.tensor([[[2.0, 0.0]]]))
    assert fit.values()["cosine"] == close((1 + 0) / 2)
    assert fit.values()["relative_l2"] == close(((1 + 50 + 8) / (1 + 4)) ** 0.5)
