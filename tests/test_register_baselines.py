"""Registers: in the student, in the teacher's twin, at test time. What is declared, and that the loss is FitNet's."""

from __future__ import annotations

import pytest
import torch
from experiments import tiny
from toy import Shape, batch, identity, outputs

from baselines.fitnet import FitNet
from baselines.register_teacher import RegisterTeacher
from baselines.student_registers import StudentRegisters
from baselines.test_time_registers import RegistersAtTestTime
from harness.checking.specimen import Size, toy_batch, toy_teacher
from harness.models import build_student
from harness.specs import MethodSpec

METHODS = [StudentRegisters, RegisterTeacher, RegistersAtTestTime]
STUDENT = {"width": 32, "depth": 4, "heads": 2, "patch": 8}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_loss_is_fitnets(method, reduction):
    torch.manual_seed(0)
    student, teacher = outputs(torch.randn(5, 2).tolist()), outputs(torch.randn(5, 2).tolist())
    settings = {"weight": 3.0, "reduction": reduction}
    found, plain = (identity(m(Shape(2), Shape(2), **settings)) for m in (method, FitNet))
    one, other = (m.losses(student, teacher, batch())["kd"] for m in (found, plain))
    assert torch.equal(one, other)


@pytest.mark.parametrize("method", METHODS)
def test_registers_on_either_side_have_no_target(method):
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 2).tolist(), torch.randn(5, 2).tolist()
    found = identity(method(Shape(2), Shape(2)))
    plain = found.losses(outputs(student), outputs(teacher), batch())["kd"].item()
    for extra in (50.0, -7.0):
        with_registers = [
            outputs([rows[0], *[[extra, extra]] * count, *rows[1:]], num_prefix_tokens=1 + count)
            for rows, count in ((student, 4), (teacher, 1))
        ]
        assert found.losses(*with_registers, batch())["kd"].item() == pytest.approx(plain, rel=1e-6)


def test_the_student_has_four_registers_which_learn_through_attention():
    torch.manual_seed(0)
    student, size = build_student(STUDENT, 32, 10, 0, StudentRegisters.student_options), Size()
    teacher, given = toy_teacher(size), toy_batch(size, 0)
    assert student.num_prefix_tokens == 5
    method = StudentRegisters(student, teacher)
    ours = student(given.images, method.student_layers)
    method.losses(ours, teacher(given.images, method.teacher_layers), given)["kd"].backward()
    assert student.model.reg_token.grad.norm() > 0


def test_only_the_student_differs_from_fitnets():
    with_registers, plain = (
        build_student(STUDENT, 32, 10, 0, m.student_options).model.state_dict() for m in (StudentRegisters, FitNet)
    )
    assert set(with_registers) == set(plain) | {"reg_token"}


@pytest.mark.parametrize("method", [RegisterTeacher, RegistersAtTestTime])
def test_the_run_gets_the_repaired_teacher_and_an_entry_may_change_it(tmp_path, method):
    experiment = tiny(tmp_path)
    spec = experiment.teacher_of(MethodSpec(method=method.name))
    assert getattr(experiment.teacher, method.name) is None
    repaired = getattr(spec, method.name)
    assert repaired is not None and repaired == type(repaired)()  # with the repair's own defaults
    changed = experiment.teacher_of(MethodSpec(method=method.name, teacher={method.name: {"registers": 2}}))
    assert getattr(changed, method.name).registers == 2
    assert experiment.teacher_of(MethodSpec(method="fitnet")) == experiment.teacher
