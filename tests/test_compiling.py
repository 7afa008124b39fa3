"""Compiled blocks compute what eager ones do, and where compiling fails a training goes on without it and says so."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._functorch.config as functorch
import yaml
from experiments import run, same, students, tiny
from test_train import KINDS, batch, equal, member, teacher, trained, weights
from torch import nn

from harness.config import Training
from harness.job import Job
from harness.progress import Console
from harness.runs import Workspace, student_runs
from harness.training.compiling import SETTINGS, Compiled
from harness.training.train import Group

Forward = Callable[..., Any]


def broken(eager: Forward) -> Forward:
    """Stands in for torch.compile where there is no compiler."""

    def forward(*args, **kwargs):
        raise RuntimeError("no working\ncompiler\n\nand much more about it")

    return forward


def student_of(job: Job, experiment) -> Path:
    return job.workspace.student(student_runs(experiment)[0].id)


@pytest.fixture
def said() -> list[str]:
    return []


def group(tmp_path: Path, said: list[str], names=("fitnet", "singer"), **settings) -> Group:
    training = Training(steps=12, lr=1e-2, compile=True, **settings)
    members = [member(name, KINDS[name], tmp_path) for name in names]
    return Group(members, teacher(), training, 12, 5, log_steps=4, say=said.append)


def test_where_compiling_fails_students_have_the_eager_bits_and_it_is_said_once(tmp_path, said, monkeypatch):
    monkeypatch.setattr(torch, "compile", broken)
    here = group(tmp_path, said)
    for step in range(12):
        here.train_step(batch(step))
    eager = trained(["fitnet", "singer"], tmp_path)
    assert all(equal(one, eager[one.id]) and one.failure is None for one in here.members)
    reason = "RuntimeError: no working compiler"
    assert here.compiled.failure == reason
    assert said == [f"torch.compile has failed, and training goes on without it ({reason})"]


def test_run_yaml_tells_that_blocks_ran_eagerly_and_the_run_is_the_same_one(tmp_path, monkeypatch, capsys):
    asked = tiny(tmp_path, methods=["none"], training={"compile": True})
    monkeypatch.setattr(torch, "compile", broken)
    Job(asked, Workspace(tmp_path / "w"), Console()).run()
    (one,) = student_runs(asked)
    told = yaml.safe_load((Workspace(tmp_path / "w").student(one.id) / "run.yaml").read_text())
    assert told["environment"]["compile"] == "failed, blocks ran eagerly: RuntimeError: no working compiler"
    assert capsys.readouterr().err.count("torch.compile has failed") == 1
    plain = tiny(tmp_path, methods=["none"])
    told_plain = yaml.safe_load((student_of(run(plain, tmp_path / "eager"), plain) / "run.yaml").read_text())
    assert "compile" not in told_plain["environment"]
    compiled, eager = students(asked, tmp_path / "w"), students(plain, tmp_path / "eager")
    assert same(compiled[one.title], eager[one.title])


def test_a_mistake_in_the_model_itself_is_not_blamed_on_the_compiler(said, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda eager: eager)
    block = nn.Linear(3, 3)
    here = Compiled([block], said.append)
    with here.inside(), pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        block(torch.zeros(1, 4))
    assert here.failure is None and not said


def test_memory_that_runs_out_is_not_blamed_on_the_compiler(said, monkeypatch):
    def full(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "compile", lambda eager: full)
    block = nn.Linear(3, 3)
    here = Compiled([block], said.append)
    with here.inside(), pytest.raises(torch.OutOfMemoryError):
        block(torch.zeros(1, 3))
    assert here.failure is None and not said


def test_blocks_of_teacher_and_students_are_compiled_in_a_step_and_eager_outside(tmp_path, said, monkeypatch):
    calls: list[nn.Module] = []

    def noting(eager: Any) -> Forward:
        def forward(*args, **kwargs):
            calls.append(eager.__self__)
            return eager(*args, **kwargs)

        return forward

    monkeypatch.setattr(torch, "compile", noting)
    here = group(tmp_path, said, ["none"])
    student, there = here.members[0].student, here.teacher
    here.train_step(batch(0))
    assert calls == [student.block(i) for i in range(student.depth)]  # nobody asks for the teacher's tokens
    calls.clear()
    second = group(tmp_path, said, ["fitnet"])
    second.train_step(batch(0))
    assert {second.teacher.block(i) for i in range(4)} <= set(calls)
    calls.clear()
    there(batch(0).images, (3,))
    student(batch(0).images, (3,))
    assert not calls and "forward" not in vars(student.block(0))


def test_what_is_set_for_compiling_is_set_inside_alone(said, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda eager: eager)
    before = {name: getattr(functorch, name) for name in SETTINGS}
    assert before != SETTINGS
    with Compiled([nn.Identity()], said.append).inside():
        assert {name: getattr(functorch, name) for name in SETTINGS} == SETTINGS
    assert {name: getattr(functorch, name) for name in SETTINGS} == before


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_graph_that_the_compiler_refuses_is_run_eagerly_forward_and_backward(where, said, monkeypatch):
    """With torch's own machinery around a compiler that fails on one of the two graphs."""
    from torch._dynamo.backends.common import aot_autograd

    def refusing(graph, inputs):
        raise NotImplementedError(f"no {where}")

    def taking(graph, inputs):
        return graph.forward

    compilers = {"fw_compiler": taking, "bw_compiler": taking} | {f"{where[0]}w_compiler": refusing}
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda eager: real(eager, backend=aot_autograd(**compilers)))
    block = nn.Linear(3, 3)
    here = Compiled([block], said.append)
    given = torch.ones(2, 3, requires_grad=True)
    with here.inside():
        block(given).sum().backward()
    assert given.grad is not None and len(said) == 1 and f"no {where}" in str(here.failure)


def test_where_there_really_is_no_cpp_compiler_blocks_run_eagerly(tmp_path):
    program = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
import torch
from harness.training.compiling import Compiled
block, given = torch.nn.Linear(3, 3), torch.ones(2, 3)
wanted = block(given)
with Compiled([block], print).inside():
    assert torch.equal(block(given), wanted)
"""
    environment = {**os.environ, "CXX": str(tmp_path / "nothing"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "No working C++ compiler found" in done.stdout and "goes on without it" in done.stdout


def test_compiled_blocks_compute_what_eager_ones_do(tmp_path, said):
    """Tokens and gradients, by torch's machinery without its code generator, which takes many seconds a block."""
    real = torch.compile
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda eager: real(eager, backend="aot_eager"))
        here = group(tmp_path, said)
    for step in range(3):
        here.train_step(batch(step))
    eager = trained(["fitnet", "singer"], tmp_path, steps=3)
    assert not said and here.compiled.failure is None
    for one in here.members:
        for a, b in zip(weights(one), weights(eager[one.id]), strict=True):
            assert torch.allclose(a, b, atol=1e-4)
