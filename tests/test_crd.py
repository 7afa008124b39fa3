"""CRD: the loss as a plain loop has it, the banks, and a training that goes on where it was interrupted."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from toy import Shape, vectors

from baselines import crd
from baselines.crd import CRD, similarities
from harness.api import Batch, Calibration
from harness.catalogue import catalogue
from harness.checking.checks import specimen
from harness.checking.specimen import same_bits
from harness.training.group_training import save_method

close = pytest.approx


class Count(Calibration):
    def __init__(self, samples: int) -> None:
        self.samples = samples

    def outputs(self, images, layers, attention_layers=()):
        raise NotImplementedError


def built(samples: int = 100, width: int = 3, **settings) -> CRD:
    torch.manual_seed(0)
    method = CRD(Shape(width), Shape(width), **{"dim": width, "negatives": 8, "w_ce": 0.0, **settings})
    method.calibrate(Count(samples))
    return method


def numbered(*index: int) -> Batch:
    return Batch(torch.zeros(len(index), 3, 2, 2), None, torch.tensor(index))


def unit(row: torch.Tensor) -> torch.Tensor:
    return row / row.norm()


def by_loops(method: CRD, student: torch.Tensor, teacher: torch.Tensor, index: list[int], drawn: torch.Tensor) -> float:
    """Equation 18 one number at a time, both directions, before the banks move."""
    n, k = len(method.bank_student), drawn.shape[1]
    sides = [
        (method.embed_student, student, method.bank_teacher),
        (method.embed_teacher, teacher, method.bank_student),
    ]
    total = 0.0
    for side, (embed, rows, bank) in enumerate(sides):
        h = []
        for b, own in enumerate(index):
            anchor = unit(embed(rows[b])).detach()
            h.append([math.exp(float(anchor @ bank[j]) / method.temperature) for j in [own, *drawn[b].tolist()]])
        mean = sum(map(sum, h)) / (len(index) * (k + 1))
        z = float(method.z[side]) if method.z[side] > 0 else mean * n
        for row in h:
            p, *others = (value / z for value in row)
            noise = k / n
            total -= math.log(p / (p + noise + 1e-7)) / len(index)
            total -= sum(math.log(noise / (q + noise + 1e-7)) for q in others) / len(index)
    return method.weight * total


@pytest.mark.parametrize("samples", [5, 20, 64, 65, 200])  # fewer places than the 8 negatives; counted; gathered
def test_the_loss_is_equation_18_in_both_directions_with_z_of_the_first_batch(samples):
    method, index = built(samples), [0, 3, 4]
    for step in range(3):  # z is set at the first and kept, the banks move
        student, teacher = torch.randn(3, 3), torch.randn(3, 3)
        torch.manual_seed(step)
        drawn = torch.randint(samples, (3, 8))
        expected = by_loops(method, student, teacher, index, drawn)
        torch.manual_seed(step)
        found = method.losses(vectors(student), vectors(teacher), numbered(*index))["kd"].item()
        assert found == close(expected, rel=1e-4)


def test_counting_the_draws_is_the_sum_over_them_and_has_its_gradient():
    torch.manual_seed(0)
    bank, drawn = torch.randn(6, 4), torch.randint(6, (2, 50))
    sums, gradients = [], []
    for anchors in (torch.ones(2, 4, requires_grad=True), torch.ones(2, 4, requires_grad=True)):
        if sums:
            value = (torch.bmm(bank[drawn], anchors.unsqueeze(2)) ** 2).sum()
        else:
            similarity, times = similarities(anchors, bank, drawn)
            assert similarity.shape == (2, 6)
            assert times.sum(dim=1).tolist() == [50, 50]
            value = (times * similarity**2).sum()
        value.backward()
        sums.append(value.item())
        gradients.append(anchors.grad)
    assert sums[0] == close(sums[1], rel=1e-5)
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-4)


def test_the_place_of_an_image_moves_towards_its_embedding_and_no_other_does():
    method = built()
    nn.init.eye_(method.embed_student.weight)
    nn.init.zeros_(method.embed_student.bias)
    before = method.bank_student.clone()
    method.losses(vectors([[3.0, 0, 0], [0, 0, 2.0]]), vectors(torch.randn(2, 3)), numbered(7, 2))
    expected = before.clone()
    expected[7] = unit(0.5 * before[7] + 0.5 * torch.tensor([1.0, 0, 0]))
    expected[2] = unit(0.5 * before[2] + 0.5 * torch.tensor([0, 0, 1.0]))
    assert torch.allclose(method.bank_student, expected, atol=1e-6)
    assert not torch.allclose(method.bank_teacher[7], built().bank_teacher[7])


def test_momentum_zero_replaces_the_place():
    method = built(momentum=0.0)
    method.losses(vectors(torch.randn(1, 3)), vectors([[1.0, 2.0, 3.0]]), numbered(4))
    expected = unit(method.embed_teacher(torch.tensor([1.0, 2.0, 3.0])))
    assert torch.allclose(method.bank_teacher[4], expected, atol=1e-6)


def test_z_is_set_once():
    method = built()
    assert method.z.tolist() == [-1, -1]
    method.losses(vectors(torch.randn(2, 3)), vectors(torch.randn(2, 3)), numbered(0, 1))
    first = method.z.clone()
    assert (first > 0).all() and first[0] != first[1]
    method.losses(vectors(torch.randn(2, 3)), vectors(torch.randn(2, 3)), numbered(2, 3))
    assert torch.equal(method.z, first)


def test_embeddings_that_agree_across_models_cost_less_than_those_that_do_not():
    method = built(samples=4, width=4, negatives=64, momentum=0.0)
    for embed in (method.embed_student, method.embed_teacher):
        nn.init.eye_(embed.weight)
        nn.init.zeros_(embed.bias)
    rows, index = torch.eye(4), numbered(0, 1, 2, 3)
    method.losses(vectors(rows), vectors(rows), index)
    agreed = method.losses(vectors(rows), vectors(rows), index)["kd"].item()
    crossed = method.losses(vectors(rows.roll(1, 0)), vectors(rows), index)["kd"].item()
    assert agreed < 0.8 * crossed


def test_negatives_come_from_the_global_stream_and_cover_the_samples(monkeypatch):
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(crd, "similarities", lambda a, b, drawn: (seen.append(drawn), similarities(a, b, drawn))[1])
    for _ in range(2):
        method = built(samples=30, negatives=400)
        torch.manual_seed(5)
        method.losses(vectors(torch.randn(2, 3)), vectors(torch.randn(2, 3)), numbered(0, 1))
    assert len(seen) == 4 and all(torch.equal(seen[0], other) for other in seen)  # both directions, both times
    assert set(seen[0].flatten().tolist()) == set(range(30))
    assert not torch.equal(seen[0][0], seen[0][1])


def test_before_calibrate_the_losses_say_what_is_missing():
    method = CRD(Shape(3), Shape(3), w_ce=0.0)
    with pytest.raises(ValueError, match="memory banks are empty: calibrate"):
        method.losses(vectors(torch.randn(1, 3)), vectors(torch.randn(1, 3)), numbered(0))


@pytest.mark.parametrize(
    "wrong", [{"negatives": 0}, {"dim": 0}, {"temperature": 0.0}, {"momentum": 1.0}, {"momentum": -0.1}]
)
def test_values_that_make_no_sense_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))} is "):
        CRD(Shape(3), Shape(3), **wrong)


def test_a_training_that_is_interrupted_goes_on_with_equal_bits():
    found = specimen(catalogue().entry("method", "crd"))
    rig = found.build()
    for step in range(3):
        rig.step(found.batch(step), step)
    saved = copy.deepcopy((rig.student.model.state_dict(), rig.method.state_dict(), rig.optimizer.state_dict()))
    again = found.build(seed=1)  # calibrated from another stream: other banks
    assert not torch.equal(again.method.bank_student, rig.method.bank_student)
    again.seed = rig.seed
    again.student.model.load_state_dict(saved[0])
    again.method.load_state_dict(saved[1], strict=True)
    again.optimizer.load_state_dict(saved[2])
    for step in range(3, 6):
        one, other = rig.step(found.batch(step), step), again.step(found.batch(step), step)
        assert all(same_bits(one[name], other[name]) for name in one)
    one, other = rig.method.state_dict(), again.method.state_dict()
    assert set(one) >= set(CRD.training_only) and all(same_bits(one[key], other[key]) for key in one)


def test_the_banks_are_checkpointed_and_not_kept_beside_the_student(tmp_path):
    method = built()
    save_method(method, tmp_path / "method.safetensors")
    kept = load_file(tmp_path / "method.safetensors")
    parameters = {name for name, _ in method.named_parameters()}
    assert set(kept) == parameters == set(method.state_dict()) - set(CRD.training_only)
