"""Training: neighbours change nothing, failures stay with their owner, the optimiser does what is declared."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor, nn

from harness.api import Batch, Method
from harness.config import Training
from harness.models import build_student, build_teacher
from harness.registry import build_method
from harness.training import train
from harness.training.train import Clock, Group, Member, build_optimizer, lr_share

TEACHER = {"width": 48, "depth": 4, "heads": 4, "patch": 8}
STUDENT = {"width": 32, "depth": 4, "heads": 2, "patch": 8}
CLASSES = 4


class Dropping(Method):
    """Draws random numbers: what it draws must not depend on its neighbours."""

    name, cite = "dropping", "test"

    def __init__(self, student, teacher):
        super().__init__(student, teacher)
        self.projector = nn.Linear(student.dim, teacher.dim)
        self.student_layers = frozenset({3})
        self.teacher_layers = frozenset({3})

    def losses(self, student, teacher, batch) -> dict[str, Tensor]:
        gap = self.projector(nn.functional.dropout(student.tokens[3], 0.5)) - teacher.tokens[3]
        return {"kd": gap.square().mean()}


class Exploding(Method):
    """Its loss is infinite from step 3 on."""

    name, cite = "exploding", "test"

    def losses(self, student, teacher, batch) -> dict[str, Tensor]:
        loss = student.logits.square().mean()
        return {"kd": loss / 0 if batch.progress >= 3 / 12 else loss}


class Raising(Method):
    name, cite = "raising", "test"

    def losses(self, student, teacher, batch) -> dict[str, Tensor]:
        if batch.progress >= 3 / 12:
            raise IndexError("nothing there")
        return {"kd": student.logits.square().mean()}


class Scribbling(Method):
    """Writes into the tokens that everybody reads."""

    name, cite = "scribbling", "test"

    def __init__(self, student, teacher):
        super().__init__(student, teacher)
        self.teacher_layers = frozenset({2, 3})

    def losses(self, student, teacher, batch) -> dict[str, Tensor]:
        teacher.tokens[3].mul_(0)
        return {"kd": student.logits.square().mean()}


def batch(step: int) -> Batch:
    generator = torch.Generator().manual_seed(step)
    images = torch.rand(4, 3, 32, 32, generator=generator)
    return Batch(images, torch.arange(4) % CLASSES, torch.arange(4), step / 12)


def teacher():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_teacher({**TEACHER, "options": {"num_classes": CLASSES}}, 32)


def member(name, kind, tmp_path) -> Member:
    """kind: a registered name with its hyperparameters, or a class."""
    folder = tmp_path / f"{name}-{len(list(tmp_path.iterdir()))}"
    folder.mkdir()
    student = build_student(STUDENT, 32, CLASSES, seed=0)
    torch.manual_seed(1)
    method = kind(student, teacher()) if isinstance(kind, type) else build_method(kind[0], student, teacher(), kind[1])
    return Member(name, 7, student, method, folder)


KINDS = {
    "none": ("none", {}),
    "fitnet": ("fitnet", {}),
    "logit_kd": ("logit_kd", {}),
    "singer": ("singer", {"rank": 8}),
    "dropping": Dropping,
}


def trained(names, tmp_path, steps=12, kinds=KINDS, **settings) -> dict[str, Member]:
    training = Training(steps=12, lr=1e-2, **settings)
    members = [member(name, kinds[name], tmp_path) for name in names]
    group = Group(members, teacher(), training, 12, 5, log_steps=4)
    for step in range(steps):
        group.train_step(batch(step))
    return {m.id: m for m in members}


def weights(one: Member) -> list[Tensor]:
    return [*one.student.model.state_dict().values(), *one.method.state_dict().values()]


def equal(one: Member, other: Member) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))


@pytest.mark.parametrize("name", KINDS)
def test_sharing_a_teacher_pass_changes_nothing(name, tmp_path):
    together = trained(KINDS, tmp_path)
    alone = trained([name], tmp_path)
    assert equal(together[name], alone[name])
    untrained = member(name, KINDS[name], tmp_path)
    assert not equal(alone[name], untrained)


def test_a_neighbour_that_asks_for_attention_maps_changes_nothing(tmp_path):
    class Looking(Method):
        name, cite = "looking", "test"

        def __init__(self, student, teacher):
            super().__init__(student, teacher)
            self.student_attention = self.teacher_attention = frozenset({1, 3})

        def losses(self, student, teacher, batch):
            return {"kd": (student.attention[3].mean(1) - teacher.attention[3].mean(1)).square().mean()}

    together = trained(["fitnet", "looking"], tmp_path, kinds={**KINDS, "looking": Looking})
    assert equal(together["fitnet"], trained(["fitnet"], tmp_path)["fitnet"])
    assert together["looking"].failure is None


def test_a_diverging_student_is_dropped_and_recorded_and_its_neighbours_do_not_notice(tmp_path):
    kinds = {**KINDS, "exploding": Exploding}
    together = trained(["exploding", "fitnet", "dropping"], tmp_path, kinds=kinds)
    assert together["exploding"].failure == {"reason": "the loss is not finite", "step": 3}
    for name in ("fitnet", "dropping"):
        assert equal(together[name], trained([name], tmp_path)[name])


def test_an_exception_in_a_method_is_its_own_failure(tmp_path):
    kinds = {**KINDS, "raising": Raising}
    together = trained(["raising", "fitnet"], tmp_path, kinds=kinds)
    failure = together["raising"].failure
    assert failure is not None and failure["step"] == 3
    assert "IndexError at test_train.py" in failure["reason"] and "nothing there" in failure["reason"]
    assert equal(together["fitnet"], trained(["fitnet"], tmp_path)["fitnet"])


@pytest.mark.parametrize("order", [("scribbling", "fitnet"), ("fitnet", "scribbling")])
def test_writing_into_shared_tokens_fails_the_writer_alone(order, tmp_path):
    kinds = {**KINDS, "scribbling": Scribbling}
    together = trained(order, tmp_path, kinds=kinds)
    failure = together["scribbling"].failure
    assert failure is not None and "wrote into the teacher's tokens" in failure["reason"]
    assert equal(together["fitnet"], trained(["fitnet"], tmp_path)["fitnet"])


@pytest.mark.parametrize("stop", [1, 4, 7])
def test_a_saved_state_goes_on_to_the_same_bits(stop, tmp_path):
    names = ["singer", "dropping"]
    whole = trained(names, tmp_path)
    training = Training(steps=12, lr=1e-2)
    first = Group([member(n, KINDS[n], tmp_path) for n in names], teacher(), training, 12, 5, log_steps=4)
    for step in range(stop):
        first.train_step(batch(step))
    from harness.training import checkpoint

    checkpoint.save(tmp_path / "state.pt", first.state())
    second = Group([member(n, KINDS[n], tmp_path) for n in names], teacher(), training, 12, 5, log_steps=4)
    second.load_state(checkpoint.load(tmp_path / "state.pt"))
    assert second.step == stop
    for step in range(stop, 12):
        second.train_step(batch(step))
    for one in second.members:
        assert equal(one, whole[one.id])


def test_the_log_holds_the_means_of_every_term(tmp_path):
    import json

    done = trained(["singer"], tmp_path)["singer"]
    lines = [json.loads(line) for line in (done.folder / "train.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 8, 12]
    for line in lines:
        assert {"kd", "outlier", "info", "loss", "lr", "epoch"} <= set(line)
        assert line["loss"] == pytest.approx(line["kd"] + line["outlier"] + line["info"], rel=1e-5)


def test_teacher_and_own_seconds_are_measured_apart(tmp_path):
    members = [member(n, KINDS[n], tmp_path) for n in ("none", "singer")]
    group = Group(members, teacher(), Training(steps=12), 12, 5)
    for step in range(3):
        group.train_step(batch(step))
    seconds = group.clock.totals()
    assert set(seconds) == {"teacher", "none", "singer"} and min(seconds.values()) > 0


def test_logits_are_the_teachers_time_after_the_first_step(tmp_path):
    group = Group([member("logit_kd", KINDS["logit_kd"], tmp_path)], teacher(), Training(steps=12), 12, 5)
    assert not group.reads_logits
    group.train_step(batch(0))
    assert group.reads_logits


def test_a_clock_goes_on_from_given_totals():
    clock = Clock("cpu", {"a": 2.0})
    with clock.time("a"):
        pass
    assert clock.totals()["a"] >= 2.0


def test_learning_rate_warms_up_and_falls_as_a_half_cosine():
    shares = [lr_share(step, 100, 10, 0.1) for step in range(100)]
    assert shares[:10] == pytest.approx([(i + 1) / 11 for i in range(10)])
    assert shares[10] == 1.0
    assert shares[55] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 45 / 90)))
    assert shares[10:] == sorted(shares[10:], reverse=True) and len(set(shares[10:])) == 90
    assert shares[-1] >= 0.1


def test_a_submodules_own_learning_rate_is_used(tmp_path):
    plain = trained(["singer"], tmp_path, steps=1)["singer"]
    fast = trained(["singer"], tmp_path, steps=1, kinds={"singer": ("singer", {"rank": 8, "refiner_lr_scale": 10.0})})
    start = member("singer", KINDS["singer"], tmp_path)

    def moved(one: Member, part: str) -> float:
        before, after = start.method.state_dict(), one.method.state_dict()
        return sum(float((after[k] - before[k]).abs().max()) for k in after if k.startswith(part))

    assert moved(fast["singer"], "refiners") == pytest.approx(10 * moved(plain, "refiners"), rel=1e-2)
    assert moved(fast["singer"], "projectors") == pytest.approx(moved(plain, "projectors"), rel=1e-4)


def test_lr_scale_of_a_part_that_does_not_exist_is_refused(tmp_path):
    one = member("fitnet", KINDS["fitnet"], tmp_path)
    one.method.lr_scale = {"projektors": 2.0}
    with pytest.raises(ValueError, match=r"projektors.*projectors"):
        build_optimizer(one.student.model, one.method, Training(steps=1), "cpu")


def test_every_parameter_is_optimised_once_and_norms_and_biases_do_not_decay(tmp_path):
    one = member("singer", KINDS["singer"], tmp_path)
    optimizer = build_optimizer(one.student.model, one.method, Training(steps=1, weight_decay=0.1), "cpu")
    seen = [p for g in optimizer.param_groups for p in g["params"]]
    expected = [*one.student.model.parameters(), *one.method.parameters()]
    assert len(seen) == len(expected) and {id(p) for p in seen} == {id(p) for p in expected}
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    model = one.student.model
    assert decay[id(model.blocks[0].mlp.fc1.weight)] == 0.1
    for free in (model.blocks[0].mlp.fc1.bias, model.norm.weight, model.pos_embed, model.cls_token):
        assert decay[id(free)] == 0.0


def test_adamw_equals_a_bare_loop(tmp_path):
    ours = trained(["none"], tmp_path, weight_decay=0.0)["none"]
    model = build_student(STUDENT, 32, CLASSES, seed=0)
    optimizer = torch.optim.AdamW(model.model.parameters(), lr=1e-2, weight_decay=0.0)
    for step in range(12):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * lr_share(step, 12, 0, 1e-4)
        loss = nn.functional.cross_entropy(model(batch(step).images).logits, batch(step).labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for a, b in zip(ours.student.model.parameters(), model.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_gradients_are_clipped_over_student_and_method_together(tmp_path):
    done = trained(["fitnet"], tmp_path, steps=1, optimizer="sgd", momentum=0.0, weight_decay=0.0, clip_grad=0.01)
    start = member("fitnet", KINDS["fitnet"], tmp_path)
    pairs = zip(weights(done["fitnet"]), weights(start), strict=True)
    step = math.sqrt(sum(float((a - b).square().sum()) for a, b in pairs))
    assert step == pytest.approx(1e-2 * 0.01, rel=1e-3)  # lr times the clipped norm


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_trains(precision, tmp_path):
    done = trained(["logit_kd", "singer"], tmp_path, precision=precision)
    for one in done.values():
        assert one.failure is None
        assert all(torch.isfinite(w).all() for w in weights(one))
        assert all(w.dtype == torch.float32 for w in weights(one) if w.is_floating_point())


def test_compile_gives_what_eager_gives(tmp_path, monkeypatch):
    pytest.importorskip("torch._inductor")
    import shutil

    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler")
    monkeypatch.setitem(STUDENT, "depth", 1)  # a block takes many seconds to compile
    compiled = trained(["none"], tmp_path, steps=2, compile=True)["none"]
    eager = trained(["none"], tmp_path, steps=2)["none"]
    assert compiled.failure is None
    for a, b in zip(weights(compiled), weights(eager), strict=True):
        assert torch.allclose(a, b, atol=1e-3)


def test_train_is_free_of_names_of_methods():
    import ast
    from pathlib import Path

    from harness.catalogue import catalogue

    names = set(catalogue().methods)
    for module in ("job", "runs", "evaluation", "training/train", "training/group_training", "training/checkpoint"):
        path = Path(train.__file__).parents[1] / f"{module}.py"
        strings = {n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant)}
        assert not names & {s for s in strings if isinstance(s, str)}, module


class Noting(Method):
    """A feature method that also notes facts of a step, on request."""

    name, cite = "noting", "test"
    notes = True
    names = ("brightness", "step_times_two")

    def __init__(self, student, teacher):
        super().__init__(student, teacher)
        self.projector = nn.Linear(student.dim, teacher.dim)
        self.student_layers = frozenset({3})
        self.teacher_layers = frozenset({3})

    def losses(self, student, teacher, batch) -> dict[str, Tensor]:
        if self.notes:
            bright, twice = self.names
            self.seen = {bright: batch.images.mean(), twice: torch.tensor(2 * round(12 * batch.progress))}
        return {"kd": (self.projector(student.tokens[3]) - teacher.tokens[3]).square().mean()}


def test_what_a_method_has_seen_is_averaged_into_the_log_and_is_no_part_of_the_loss(tmp_path):
    one = trained(["noting"], tmp_path, kinds={"noting": Noting})["noting"]
    lines = [json.loads(line) for line in (one.folder / "train.jsonl").read_text().splitlines()]
    assert [line["step_times_two"] for line in lines] == [3, 11, 19]  # means of 0 2 4 6, 8 .. 14, 16 .. 22
    bright = [float(batch(step).images.mean()) for step in range(4)]
    assert lines[0]["brightness"] == pytest.approx(sum(bright) / 4)
    assert all(line["loss"] == pytest.approx(line["kd"]) for line in lines)


def test_seeing_more_changes_no_bit_of_what_is_trained(tmp_path):
    class Silent(Noting):
        notes = False

    loud, silent = (trained([n], tmp_path, kinds={n: k})[n] for n, k in (("noting", Noting), ("silent", Silent)))
    assert equal(loud, silent)
    assert "brightness" not in (silent.folder / "train.jsonl").read_text()


@pytest.mark.parametrize("name", ["kd", "loss", "lr", "grad_norm"])
def test_a_fact_under_a_name_that_the_log_has_already_fails_in_words(name, tmp_path):
    class Clashing(Noting):
        names = (name, "other")

    one = trained(["clashing"], tmp_path, kinds={"clashing": Clashing}, steps=1)["clashing"]
    assert one.failure is not None and f"['{name}'], which the log has already" in one.failure["reason"]


def test_a_resumed_group_logs_the_same_facts(tmp_path):
    whole = trained(["noting"], tmp_path, kinds={"noting": Noting})["noting"]
    first = Group([member("noting", Noting, tmp_path)], teacher(), Training(steps=12, lr=1e-2), 12, 5, log_steps=4)
    for step in range(6):
        first.train_step(batch(step))
    second = Group([member("noting", Noting, tmp_path)], teacher(), Training(steps=12, lr=1e-2), 12, 5, log_steps=4)
    second.load_state(first.state())
    for step in range(6, 12):
        second.train_step(batch(step))
    lines = (second.members[0].folder / "train.jsonl").read_text().splitlines()
    assert lines == (whole.folder / "train.jsonl").read_text().splitlines()[1:]
