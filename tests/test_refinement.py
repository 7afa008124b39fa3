"""The refinement task: what is imitated against raw and clean tokens, whatever its scale."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from harness.api import Method, Vit
from harness.checking.specimen import Size, planted_teacher, toy_teacher
from harness.data import Data
from harness.errors import UserError
from harness.features import Encoder
from harness.models import TimmVit
from harness.reference import Reference
from harness.toys import Colours, Cured, PixelVit
from tasks.refinement import Refinement

DATA = Data.of_sources({"test": Colours(12, split="test")}, image_size=32, name="colours")
PLANTED, CLEAN = PixelVit(depth=3, planted=2), PixelVit(depth=3)
OF_CLEAN = ["cosine_to_clean", "error_to_clean", "cosine_to_clean_outliers", "error_to_clean_outliers"]


class Imitating(Method):
    """Imitates whatever a function makes of the teacher's tokens."""

    name = "imitating"
    cite = "a toy"

    def __init__(self, teacher: Vit, layers, made=lambda tokens: tokens) -> None:
        super().__init__(teacher, teacher)
        self.teacher_layers, self.made = frozenset(layers), made

    def losses(self, student, teacher, batch):
        raise NotImplementedError

    def targets(self, teacher):
        return {layer: self.made(teacher.tokens[layer]) for layer in sorted(self.teacher_layers)}


def measure(method: Method | None, teacher: Vit = PLANTED, clean: Vit | None = CLEAN, **options) -> dict[str, float]:
    data = options.pop("data", DATA)
    reference = Reference.of(teacher, clean, method)
    encoder = Encoder(PixelVit(), identity="toy", cache=None, batch_size=5, reference=reference)
    return Refinement(data=data, **options).evaluate(encoder, seed=0)


def test_without_a_method_the_teachers_own_tokens_are_described():
    found = measure(None)
    assert found["cosine_to_raw"] == pytest.approx(1) and found["error_to_raw"] == pytest.approx(0, abs=1e-6)
    assert found["outlier_share"] == 2 / 16 and found["max_over_median"] > 30
    assert found["cosine_to_clean"] == pytest.approx(1)  # the toy's artifacts are a norm, and no direction
    assert found["error_to_clean_outliers"] == pytest.approx(49, rel=1e-4)  # 50 times what it should be
    assert set(found) - {name for name in found if "/" in name} == set(Refinement.metrics) - {
        "next_cosine",
        "next_error",
    }
    assert all(name.endswith("/block2") for name in found if "/" in name)


def test_a_method_that_undoes_the_artifacts_reaches_the_clean_tokens():
    found = measure(Cured(CLEAN, PLANTED))
    assert found["outlier_share"] == 0 and found["max_over_median"] < 3
    for name in OF_CLEAN:
        assert found[name] == pytest.approx(float(name.startswith("cosine")), abs=1e-5)
    assert found["next_cosine"] == pytest.approx(1)  # the toy's blocks do nothing
    assert {name for name in found if name.startswith("next_cosine/")} == {"next_cosine/block1"}  # 2 is the last
    assert {name for name in found if name.startswith("scale/")} == {"scale/block1", "scale/block2"}


@pytest.mark.parametrize("factor", [0.01, 7.0])
def test_a_scale_of_the_targets_changes_nothing_but_the_scale(factor: float):
    vit, twin = planted_teacher(Size(), 20.0), planted_teacher(Size(), 0.0)

    def shifted(tokens):
        return factor * (tokens + 0.1)

    one = measure(Imitating(vit, [3], lambda tokens: tokens + 0.1), vit, twin)
    other = measure(Imitating(vit, [3], shifted), vit, twin)
    assert other["scale/block3"] == pytest.approx(one["scale/block3"] / factor, rel=1e-4)
    for name in Refinement.metrics:
        assert other[name] == pytest.approx(one[name], rel=1e-3), name


def test_errors_and_cosines_equal_torchs_own_on_real_tokens():
    vit = toy_teacher(Size())
    (found,) = [measure(Imitating(vit, [2], lambda t: t.clamp(min=0)), vit, None)]
    images = torch.stack([DATA.view()(DATA.open("test").read(i).image) for i in range(12)])
    with torch.no_grad():
        outputs = vit(images, [2, 3])
        raw, tokens = outputs.patches(2), outputs.tokens[2].clamp(min=0)
        scale = (tokens[:, 1:] * raw).sum() / tokens[:, 1:].square().sum()  # a fresh ViT has no outliers
        after = vit.through(3, scale * tokens)[:, 1:]
    assert found["scale/block2"] == pytest.approx(float(scale), rel=1e-5)
    assert found["cosine_to_raw"] == pytest.approx(
        float(F.cosine_similarity(tokens[:, 1:], raw, dim=-1).mean()), rel=1e-5
    )
    assert found["error_to_raw"] == pytest.approx(float((scale * tokens[:, 1:] - raw).norm() / raw.norm()), rel=1e-5)
    expected = outputs.patches(3)
    assert found["next_cosine"] == pytest.approx(float(F.cosine_similarity(after, expected, dim=-1).mean()), rel=1e-5)
    assert found["next_error"] == pytest.approx(float((after - expected).norm() / expected.norm()), rel=1e-5)


def test_raw_planted_tokens_of_a_real_vit_are_far_from_clean_at_their_places_alone():
    vit, twin = planted_teacher(Size(), 20.0), planted_teacher(Size(), 0.0)
    found = measure(Imitating(vit, [1, 4]), vit, twin)  # planted after block 3
    assert found["cosine_to_clean/block1"] == pytest.approx(1)
    assert "cosine_to_clean_outliers/block1" not in found  # nothing stands out yet
    assert found["cosine_to_clean_outliers/block4"] < 0.2
    assert found["error_to_clean_outliers/block4"] > 10
    assert found["cosine_to_clean/block4"] == pytest.approx(
        (15 + found["cosine_to_clean_outliers/block4"]) / 16, rel=1e-4
    )
    assert found["cosine_to_clean_outliers"] == found["cosine_to_clean_outliers/block4"]
    assert found["cosine_to_raw"] == pytest.approx(1)
    assert found["next_cosine"] == pytest.approx(1)


def test_metrics_are_means_over_layers():
    found = measure(Imitating(PLANTED, [0, 2]), PixelVit(depth=3, planted=2, planted_from=1))
    assert found["outlier_share/block0"] == 0 and found["outlier_share/block2"] == 2 / 16
    assert found["outlier_share"] == 1 / 16
    expected = (found["max_over_median/block0"] + found["max_over_median/block2"]) / 2
    assert found["max_over_median"] == pytest.approx(expected)


def test_what_does_not_exist_is_left_out():
    assert not set(OF_CLEAN) & set(measure(None, clean=None))
    assert measure(Imitating(PLANTED, [])) == {}  # it imitates no tokens
    alone = Encoder(PixelVit(), identity="toy", cache=None)
    assert Refinement(data=DATA).evaluate(alone, seed=0) == {}
    assert not set(OF_CLEAN[2:]) & set(measure(None, teacher=CLEAN))  # there are no outliers


def test_targets_of_0_give_finite_numbers():
    found = measure(Imitating(PLANTED, [0, 2], torch.zeros_like))
    assert all(math.isfinite(value) for value in found.values())
    assert found["error_to_raw"] == 1 and found["cosine_to_raw"] == 0 and found["scale/block0"] == 1
    opposed = measure(Imitating(PLANTED, [2], lambda tokens: -tokens))
    assert opposed["cosine_to_raw"] == pytest.approx(-1) and opposed["scale/block2"] == 0


def test_batches_and_registers_change_nothing():
    vit = toy_teacher(Size(), reg_tokens=4)
    assert isinstance(vit, TimmVit) and vit.num_prefix_tokens == 5
    method = Imitating(vit, [2, 5], lambda tokens: tokens.clamp(min=0))
    found = []
    for batch in (1, 64):
        encoder = Encoder(
            PixelVit(), identity="toy", cache=None, batch_size=batch, reference=Reference.of(vit, None, method)
        )
        found.append(Refinement(data=DATA).evaluate(encoder, seed=batch))
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_tokens_that_are_not_finite_are_an_error_and_no_number():
    with pytest.raises(UserError, match="block 2 is not finite"):
        measure(Imitating(PLANTED, [2], lambda tokens: tokens / 0))


def test_wrong_options_and_empty_data_are_named():
    with pytest.raises(UserError, match="images of the refinement task is 0"):
        measure(None, images=0)
    with pytest.raises(UserError, match="empty"):
        measure(None, data=Data.of_sources({"test": Colours(0)}, image_size=32))


def test_a_repaired_teacher_in_other_units_is_compared_with_the_clean_one_by_a_scale_of_its_own():
    class InOtherUnits(PixelVit):
        def __call__(self, *args, **options):
            outputs = super().__call__(*args, **options)
            return dataclasses.replace(outputs, tokens={i: 3 * t for i, t in outputs.tokens.items()})

    found = measure(None, teacher=InOtherUnits(), clean=PixelVit())
    assert found["scale/block1"] == pytest.approx(1)
    assert found["error_to_clean"] == pytest.approx(0, abs=1e-6)
