"""Several ranks: what they train and encode is what one rank does, and what happens to one happens to all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from experiments import same, students, tiny
from ranks import free_port, on_ranks, results, start
from torch import Tensor, nn

from harness import evaluation
from harness.api import Batch, Method
from harness.catalogue import catalogue
from harness.checking.specimen import Size, ToyCalibration, planted_teacher
from harness.config import Training
from harness.errors import UserError
from harness.interrupts import Interrupted
from harness.job import Job
from harness.progress import Console
from harness.records import read_records
from harness.registry import build_method, load
from harness.runs import Workspace
from harness.toys import Colours
from harness.training import orders
from harness.training.distributed import ONE, Ranks, joined
from harness.training.joint import agreed_batches
from harness.training.train import Group, Member

SIZE = Size(48, 6, 4)
BATCH, STEPS = 8, 6
TOLERANCE = 2e-5  # of how far the weights have moved

# Losses per image; coupled by relations, a bank, running statistics, draws; the student run again in losses; no logits.
METHODS = {
    "none": {},
    "fitnet": {},
    "logit_kd": {},
    "attn_distill": {},
    "singer": {"rank": 8},
    "sp": {},
    "rkd": {},
    "crd": {"negatives": 64},
    "unic": {},
    "proteus": {},
    "mgd": {},
}


def batch(step: int, ranks: Ranks = ONE, count: int = BATCH) -> Batch:
    """This rank's part of a batch of noise."""
    rng = torch.Generator().manual_seed(step)
    images = torch.rand(count, 3, SIZE.image_size, SIZE.image_size, generator=rng)
    size = count // ranks.world
    part = slice(ranks.rank * size, (ranks.rank + 1) * size)
    return Batch(images[part], (torch.arange(count) % 10)[part], torch.arange(count)[part] + step, step / STEPS)


def member(name: str, kind, folder: Path, teacher, **options) -> Member:
    """kind: hyperparameters of a registered method, or a class. options: of the student."""
    from harness.models import build_student

    cls = kind if isinstance(kind, type) else load(catalogue().methods[name])
    spec = {"width": 32, "depth": SIZE.student_depth, "heads": 2, "patch": 8, "options": options}
    student = build_student(spec, SIZE.image_size, 10, 0, dict(cls.student_options))
    torch.manual_seed(1)
    if isinstance(kind, type):
        method = kind(student, teacher)
    else:
        method = build_method(name, student, teacher, catalogue().resolve("method", name, kind))
    method.calibrate(ToyCalibration(teacher))
    folder.mkdir(parents=True, exist_ok=True)
    return Member(name, 7, student, method, folder)


def group_of(kinds: dict, folder: Path, ranks: Ranks, **settings) -> Group:
    teacher = planted_teacher(SIZE, 5.0)
    settings = {"optimizer": "sgd", "lr": 1e-2, "clip_grad": 1.0, **settings}
    members = [member(name, kind, folder / f"{name}-{ranks.rank}", teacher) for name, kind in kinds.items()]
    return Group(members, teacher, Training(steps=STEPS, **settings), STEPS, 5, log_steps=2, ranks=ranks)


def weights(one: Member) -> dict[str, Tensor]:
    own = {f"method.{k}": v.clone() for k, v in one.method.state_dict().items()}
    return {**{k: v.clone() for k, v in one.student.model.state_dict().items()}, **own}


def trained(kinds: dict, folder: Path, ranks: Ranks = ONE, batches=batch, **settings) -> dict:
    """Name -> weights before and after, and why it failed."""
    group = group_of(kinds, folder, ranks, **settings)
    before = {m.id: weights(m) for m in group.members}
    for step in range(STEPS):
        group.train_step(batches(step, ranks))
    return {m.id: (before[m.id], weights(m), m.failure) for m in group.members}


def deviation(before: dict[str, Tensor], one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """How far two trainings are apart, as a share of how far the first has moved."""
    floats = [name for name in one if one[name].is_floating_point() and one[name].numel()]
    apart = sum(float((one[n] - other[n]).square().sum()) for n in floats)
    moved = sum(float((one[n] - before[n]).square().sum()) for n in floats)
    return (apart / moved) ** 0.5


def test_two_ranks_train_what_one_trains(tmp_path):
    one = trained(METHODS, tmp_path / "one")
    two = on_ranks(lambda ranks: trained(METHODS, tmp_path / "two", ranks))
    for name, (before, after, failure) in one.items():
        assert failure is None and two[0][name][2] is None
        assert all(torch.equal(a, b) for a, b in zip(two[0][name][1].values(), two[1][name][1].values(), strict=True))
        assert deviation(before, after, two[0][name][1]) < TOLERANCE, name


def test_the_gradient_by_hand(tmp_path):
    """loss = mean over the batch of (w x)^2 plus the square of the batch's mean of w x: the second couples images."""
    x = torch.tensor([1.0, 2.0, -3.0, 5.0])

    def gradient(ranks: Ranks) -> list[float]:
        w, v = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.tensor(3.0))
        part, averaging = slice(2 * ranks.rank, 2 * ranks.rank + 2), ranks.averaging([w, v])
        y = ranks.gathered(w * x[part], (2, 2))
        loss = v * ((y**2).mean() + y.mean() ** 2)
        averaging(loss).backward()
        return [float(w.grad), float(v.grad)]

    # dL/dw = v (2 w mean(x^2) + 2 w mean(x)^2), dL/dv = w^2 (mean(x^2) + mean(x)^2); mean(x^2) = 9.75, mean(x) = 1.25
    by_hand = [3 * (2 * 2 * 9.75 + 2 * 2 * 1.5625), 4 * (9.75 + 1.5625)]
    assert on_ranks(gradient) == [pytest.approx(by_hand)] * 2


def test_parts_of_unequal_size_count_by_their_images(tmp_path):
    """A broken image was skipped on one rank: 3 and 4 images are left, and the losses are those of 7."""
    left = {0: slice(0, 3), 1: slice(4, 8)}
    kinds = {name: METHODS[name] for name in ("fitnet", "sp", "crd")}

    def unequal(ranks: Ranks) -> dict:
        group = group_of(kinds, tmp_path / "two", ranks)
        for step in range(STEPS):
            whole = batch(step)
            mine = left[ranks.rank]
            part = Batch(whole.images[mine], whole.labels[mine], whole.index[mine], whole.progress)
            group.train_step(part, skipped=1)
        assert group.skipped == STEPS
        return {m.id: weights(m) for m in group.members}

    def seven(step: int, _: Ranks) -> Batch:
        kept, whole = [0, 1, 2, 4, 5, 6, 7], batch(step)
        return Batch(whole.images[kept], whole.labels[kept], whole.index[kept], whole.progress)

    one, two = trained(kinds, tmp_path / "one", batches=seven), on_ranks(unequal)
    for name, (before, after, _) in one.items():
        assert deviation(before, after, two[0][name]) < TOLERANCE, name


class Waking(Method):
    """Trains its second module from the middle of the training on, or no longer its first."""

    name, cite, per_image = "waking", "test", True
    falls_asleep = False

    def __init__(self, student, teacher):
        super().__init__(student, teacher)
        self.first, self.second = nn.Linear(student.dim, 1), nn.Linear(student.dim, 1)
        self.student_layers = frozenset({student.depth - 1})

    def losses(self, student, teacher, batch) -> dict[str, Tensor]:
        tokens, late = student.tokens[max(student.tokens)], batch.progress >= 0.5
        first = 0.0 if late and self.falls_asleep else self.first(tokens).square().mean()
        return {"kd": first + self.second(tokens).square().mean() if late or self.falls_asleep else first}


class FallingAsleep(Waking):
    name, falls_asleep = "falling_asleep", True


def test_a_part_that_is_trained_later_is_averaged_from_then_on(tmp_path):
    kinds = {"waking": Waking, "singer": {"rank": 8, "refiner_warmup": 0.4}}
    one, two = trained(kinds, tmp_path / "one"), on_ranks(lambda ranks: trained(kinds, tmp_path / "two", ranks))
    for name, (before, after, failure) in one.items():
        assert failure is None and two[0][name][2] is None
        assert deviation(before, after, two[0][name][1]) < TOLERANCE, name


def test_the_first_step_tells_which_gradients_are_averaged_while_they_are_computed(tmp_path):
    """What nobody trains (the head, the second module at first) is not waited for."""

    def work(ranks: Ranks) -> tuple[bool, list[set[str]]]:
        group = group_of({"waking": Waking}, tmp_path, ranks)
        way, averaged = group.members[0].way, []
        for step in range(STEPS):
            group.train_step(batch(step, ranks))
            averaged.append(set(way.averaged))
        return isinstance(way.averaging, torch.nn.parallel.DistributedDataParallel), averaged

    for parallel, (first, *_, last) in on_ranks(work):
        assert parallel and "student.patch_embed.proj.weight" in first
        assert "first.weight" in first and last - first == {"second.weight", "second.bias"}
        assert not {name for name in last if name.startswith(("student.head", "student.norm"))}


def test_what_differs_between_the_parts_of_a_batch_is_agreed_on(tmp_path):
    def work(ranks: Ranks) -> list[tuple[bool, int]]:
        whole = batch(0)
        unlabelled = Batch(whole.images, None, whole.index)
        parts = [(whole, 0), (whole, 1 + ranks.rank), (unlabelled if ranks.rank else whole, 0)]
        return [(part.labels is None, skipped) for part, skipped in agreed_batches(iter(parts), ranks)]

    assert on_ranks(work) == [[(False, 0), (False, 3), (True, 0)]] * 2


def test_a_part_that_is_trained_no_longer_is_a_failure_in_words(tmp_path):
    two = on_ranks(lambda ranks: trained({"falling_asleep": FallingAsleep, "fitnet": {}}, tmp_path, ranks))
    for found in two:
        failure = found["falling_asleep"][2]
        assert failure["step"] == 3 and "first.weight" in failure["reason"] and "on one rank" in failure["reason"]
        assert found["fitnet"][2] is None


class FailingOn(Method):
    """Raises on rank 1 alone, before or after the student's pass, at its first step or later."""

    name, cite = "failing", "test"
    where, at = "", 0.0

    def __init__(self, student, teacher):
        super().__init__(student, teacher)
        self.student_layers = self.teacher_layers = frozenset({0})
        self.student, self.step = student, 0
        if self.where == "student":
            student.block(1).register_forward_pre_hook(self._fail)

    def _fail(self, *_) -> None:
        self.step += 1
        if os.environ["RANK"] == "1" and self.step > self.at:
            raise IndexError("only here")

    def losses(self, student, teacher, batch) -> dict[str, Tensor]:
        loss = student.logits.square().mean()
        if self.where == "losses":
            self._fail()
        if self.where == "writing" and os.environ["RANK"] == "1":
            teacher.tokens[0].mul_(1)
        return {"kd": loss}


def test_a_lack_of_memory_on_one_rank_is_one_on_all(tmp_path):
    class Large(Method):
        name, cite, per_image = "large", "test", True

        def losses(self, student, teacher, batch) -> dict[str, Tensor]:
            if os.environ["RANK"] == "1":
                raise torch.OutOfMemoryError("no room")
            return {"kd": student.logits.square().mean()}

    found = results(start(lambda ranks: trained({"large": Large}, tmp_path, ranks)))
    assert [type(one) for one in found] == [torch.OutOfMemoryError] * 2


@pytest.mark.parametrize(("where", "at"), [("student", 0), ("losses", 0), ("losses", 3), ("writing", 0)])
def test_a_student_that_fails_on_one_rank_is_dropped_on_all_at_that_step(where, at, tmp_path):
    failing = type("Failing", (FailingOn,), {"where": where, "at": at, "name": "failing", "cite": "test"})
    kinds = {"failing": failing, "sp": {}}
    two = on_ranks(lambda ranks: trained(kinds, tmp_path / "two", ranks))
    alone = trained({"sp": {}}, tmp_path / "one")["sp"]
    for rank, found in enumerate(two):
        assert found["failing"][2]["step"] == at
        if where != "writing":
            named = "" if rank == 1 else "on rank 1: "
            assert found["failing"][2]["reason"].startswith(f"{named}IndexError at test_distributed.py")
        assert found["sp"][2] is None
        assert deviation(alone[0], alone[1], found["sp"][1]) < TOLERANCE


def test_one_rank_that_diverges_diverges_on_all_and_the_log_is_of_the_whole_batch(tmp_path):
    class Exploding(Method):
        name, cite, per_image = "exploding", "test", True

        def losses(self, student, teacher, batch) -> dict[str, Tensor]:
            loss = student.logits.square().mean() + batch.index.float().mean()
            return {"kd": loss / 0 if batch.progress >= 3 / STEPS and os.environ["RANK"] == "1" else loss}

    def work(ranks: Ranks) -> tuple:
        found = trained({"exploding": Exploding}, tmp_path, ranks)
        return found["exploding"][2], (tmp_path / f"exploding-{ranks.rank}/train.jsonl").is_file()

    failure = {"reason": "the loss is not finite", "step": 3}
    assert on_ranks(work) == [(failure, True), (failure, False)]
    (line,) = (tmp_path / "exploding-0/train.jsonl").read_text().splitlines()
    means = json.loads(line)
    assert means["kd"] - 4 == pytest.approx(means["loss"] - 4) and 4.0 < means["kd"] < 6.0  # 3.5 + 0.5, plus logits^2


class Noting(Method):
    """Notes how far the student's tokens of the batch's halves are apart, and a draw of its own."""

    name, cite = "noting", "test"

    def __init__(self, student, teacher):
        super().__init__(student, teacher)
        self.student_layers = frozenset({student.depth - 1})

    def losses(self, student, teacher, batch) -> dict[str, Tensor]:
        tokens, half = student.tokens[max(student.tokens)], len(batch.index) // 2
        self.seen = {"apart": (tokens[:half] - tokens[half:]).abs().max(), "drawn": torch.rand(())}
        return {"kd": tokens.square().mean()}


def test_the_students_draws_differ_between_ranks_and_those_of_the_losses_do_not(tmp_path):
    def work(ranks: Ranks) -> dict[str, float]:
        one = member("noting", Noting, tmp_path / str(ranks.rank), planted_teacher(SIZE, 5.0), drop_path_rate=0.5)
        one.student.model.train()
        group = Group([one], planted_teacher(SIZE, 5.0), Training(steps=STEPS), STEPS, 5, ranks=ranks)
        group.train_step(batch(0))  # the same images on both ranks
        return {name: float(value) for name, value in one.sums.items()}

    first, second = on_ranks(work)
    assert first == second and first["apart"] > 0


def test_a_rank_that_does_not_answer_is_an_error_after_the_time_limit(tmp_path):
    def work(ranks: Ranks) -> None:
        if ranks.rank == 1:
            time.sleep(3)
        ranks.any(True)

    found = results(start(work, timeout_s=1.0))
    assert isinstance(found[0], UserError) and "rank 0 of 2 has lost another one" in str(found[0])


@pytest.mark.parametrize("end", [Interrupted("SIGTERM"), UserError("no such thing"), ValueError("a bug")])
def test_the_others_end_as_rank_0_ends(end):
    def work(ranks: Ranks) -> list[str]:
        if not ranks.first:
            return list(orders.told(ranks))
        with orders.leading(ranks):
            orders.tell(ranks, "first")
            raise end

    first, second = results(start(work))
    assert type(first) is type(end)
    assert str(second) == (str(end) if isinstance(end, Interrupted) else f"on rank 0: {end}")
    assert isinstance(second, Interrupted if isinstance(end, Interrupted) else UserError)


def test_what_cannot_be_sent_is_an_error_in_words_on_all():
    def work(ranks: Ranks) -> None:
        if not ranks.first:
            assert not list(orders.told(ranks))
        with orders.leading(ranks):
            orders.tell(ranks, lambda: None)

    first, second = results(start(work))
    assert isinstance(first, UserError) and "A source must be picklable" in str(first)
    assert isinstance(second, UserError) and "on rank 0" in str(second)


def in_job(experiment, workspace: Path, disturb=lambda ranks: None):
    """What a rank does in a job; `disturb` is called first."""

    def work(ranks: Ranks):
        disturb(ranks)
        return Job(experiment, Workspace(workspace), Console(quiet=True), ranks).run()

    return work


JOB = {
    "training": {"steps": 24, "optimizer": "sgd", "lr": 1e-2},
    "methods": ["fitnet", "sp", {"method": "crd", "hyperparameters": {"negatives": 64}}],
    "runtime": {"checkpoint_steps": 5, "log_steps": 2},
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The tiny experiment on one rank: what it was, and its students."""
    folder = tmp_path_factory.mktemp("alone")
    experiment = tiny(folder, **JOB, tasks=[CLASSIFICATION], bounds=True)
    Job(experiment, Workspace(folder / "workspace"), Console(quiet=True)).run()
    return experiment, folder / "workspace"


@pytest.fixture(scope="module")
def together(alone, tmp_path_factory):
    """The same on two ranks."""
    folder = tmp_path_factory.mktemp("together")

    def noted(ranks: Ranks) -> None:
        """Leaves a file where a rank encodes for another."""
        encode = evaluation.encode

        def noting(*given) -> None:
            (folder / f"rank {ranks.rank} encodes").touch()
            encode(*given)

        evaluation.encode = noting

    outcomes = on_ranks(in_job(alone[0], folder / "workspace", noted))
    return outcomes, folder / "workspace"


CLASSIFICATION = {"task": "classification", "options": {"steps": 20}}


def near(one: dict, other: dict) -> bool:
    return all(torch.allclose(one[k], other[k], rtol=1e-3, atol=1e-5) for k in one if one[k].is_floating_point())


def test_a_job_of_two_ranks_leaves_what_one_leaves(alone, together):
    experiment, here = alone
    (first, second), there = together
    assert len(first.trained) == 3 and first.evaluated == 5 and not second.trained
    ours, theirs = students(experiment, here), students(experiment, there)
    assert all(near(ours[title], theirs[title]) for title in ours)
    for path in here.glob("students/*/run.yaml"):
        one, two = (yaml.safe_load((place / path.relative_to(here)).read_text()) for place in (here, there))
        assert "ranks" not in one["environment"] and two["environment"]["ranks"] == 2
        assert one["cost"]["images_seen"] == two["cost"]["images_seen"] == 192
        logs = [(place / path.relative_to(here)).with_name("train.jsonl") for place in (here, there)]
        lines = [[json.loads(line) for line in log.read_text().splitlines()] for log in logs]
        assert [line["step"] for line in lines[1]] == list(range(2, 25, 2))
        for a, b in zip(*lines, strict=True):
            assert a == pytest.approx(b, rel=1e-3)
    records = [read_records(place / "records")[0] for place in (here, there)]
    assert len(records[1]) == 5
    for one, two in zip(*records, strict=True):
        assert one.run.id == two.run.id and one.values == pytest.approx(two.values, abs=0.11)  # of 40 images
    assert not list(there.glob("locks/*.lock")) and not list(there.glob("groups/*"))


def test_features_that_ranks_share_have_the_bits_of_one(alone, together):
    """The untrained student and the teacher are the same models in both workspaces."""
    files = {path.relative_to(alone[1]): path for path in alone[1].glob("features/*/*.npy")}
    there = {name: together[1] / name for name in files if (together[1] / name).is_file()}
    assert len(there) >= 4 and (together[1].parent / "rank 1 encodes").exists()
    assert all(files[name].read_bytes() == path.read_bytes() for name, path in there.items())


def logged(workspace: Path) -> int:
    """The last step in any log of a training under way."""
    lines = [path.read_text().splitlines() for path in workspace.glob("students/*.partial/train.jsonl")]
    return max((json.loads(of_one[-1])["step"] for of_one in lines if of_one), default=0)


def disturbed(experiment, workspace: Path, number: int, rank: int) -> list:
    """Start on two ranks, send one of them a signal a few steps later, and give what each raised."""
    before = logged(workspace)
    started = start(in_job(experiment, workspace))
    deadline = time.monotonic() + 60
    while logged(workspace) < before + 4:
        assert time.monotonic() < deadline, "no step was logged in time"
        time.sleep(0.002)
    os.kill(started[rank][0].pid, number)
    return results(started)


def test_a_signal_to_one_rank_stops_all_with_a_checkpoint_and_they_go_on_with_the_same_bits(alone, together, tmp_path):
    experiment = alone[0].model_copy(update={"tasks": (), "bounds": False})
    for number, rank in ((signal.SIGUSR2, 1), (signal.SIGINT, 0)):
        found = disturbed(experiment, tmp_path, number, rank)
        assert [type(one) for one in found] == [Interrupted] * 2
        assert str(found[0]) == str(found[1]) == signal.Signals(number).name
        assert list(tmp_path.glob("groups/*/checkpoint.pt"))
    on_ranks(in_job(experiment, tmp_path))
    found, undisturbed = students(experiment, tmp_path), students(experiment, together[1])
    assert all(same(found[title], undisturbed[title]) for title in undisturbed)


def test_a_rank_that_is_killed_is_a_clear_error_in_the_other_and_nothing_is_lost(alone, together, tmp_path):
    experiment = alone[0].model_copy(update={"tasks": (), "bounds": False})
    for rank in (1, 0):
        found = disturbed(experiment, tmp_path, signal.SIGKILL, rank)
        assert found[rank] is None and isinstance(found[1 - rank], UserError)
        assert "has lost another one" in str(found[1 - rank])
    on_ranks(in_job(experiment, tmp_path))
    found, undisturbed = students(experiment, tmp_path), students(experiment, together[1])
    assert all(same(found[title], undisturbed[title]) for title in undisturbed)


@pytest.mark.parametrize("first", [1, 2])
def test_a_checkpoint_of_one_rank_goes_on_with_two_and_back(first, alone, tmp_path):
    experiment, here = alone[0].model_copy(update={"tasks": (), "bounds": False}), alone[1]

    def until_stopped(ranks: Ranks):
        job = Job(experiment, Workspace(tmp_path), Console(quiet=True), ranks)
        job.stop.asked = signal.SIGTERM  # as if a signal had come in the first step
        with pytest.raises(Interrupted):
            job.run()

    def to_the_end(ranks: Ranks):
        Job(experiment, Workspace(tmp_path), Console(quiet=True), ranks).run()

    works = (until_stopped, to_the_end)
    for work, world in zip(works, (first, 3 - first), strict=True):
        on_ranks(work) if world == 2 else work(ONE)
    ours, theirs = students(experiment, here), students(experiment, tmp_path)
    assert all(near(ours[title], theirs[title]) for title in ours)


class Dying(Colours):
    """Ends the process at an image."""

    def read(self, index: int):
        if index == 30:
            os._exit(1)
        return super().read(index)


def test_a_pass_that_ranks_began_is_ended_by_one_rank_and_the_other_way_round(tmp_path, monkeypatch):
    """The bits are those of one process that was never stopped."""
    from harness.features import Encoder
    from harness.models import as_vit, build_model
    from harness.sources import View
    from harness.storage import feature_files
    from harness.training import shared_passes

    monkeypatch.setattr(shared_passes, "SYNC_S", 0.0)
    monkeypatch.setattr(feature_files, "SYNC_S", 0.0)
    torch.manual_seed(0)
    model = build_model({"width": 32, "depth": 2, "heads": 2, "patch": 8}, 32, 4).eval()
    source, view, classes = Colours(50), View(32), (-2, -1)

    def encoder(cache: Path, ranks: Ranks = ONE) -> Encoder:
        def share(one, source, view, wanted, specs) -> None:
            shared_passes.lead(ranks, one, shared_passes.PassOrder("", source, view, wanted, specs, one.batch_size, 0))

        many = None if ranks.alone else share
        return Encoder(as_vit(model), identity="toy", cache=cache, batch_size=4, share=many)

    def encoded(cache: Path, ranks: Ranks = ONE) -> None:
        if not ranks.first:
            for order in orders.told(ranks):
                shared_passes.encode(ranks, lambda: encoder(cache, ranks), order)
            return
        with orders.leading(ranks):
            encoder(cache, ranks).pooled(source, view, classes, logits=True)
            encoder(cache, ranks).tokens(source, view, classes)

    def files(cache: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in cache.rglob("*.npy")}

    encoded(tmp_path / "undisturbed")
    expected, whole = files(tmp_path / "undisturbed"), source
    assert len(expected) == 7
    for name, world in (("alone first", 1), ("ranks first", 2)):
        source = Dying(50)
        assert None in results(start(lambda ranks, to=tmp_path / name: encoded(to, ranks), world))
        progress = [json.loads(path.read_text())["rows"] for path in (tmp_path / name).rglob(".*.progress")]
        assert set(progress) == {28 if world == 1 else 24}
        source = whole
        on_ranks(lambda ranks, to=tmp_path / name: encoded(to, ranks), 3 - world)
        assert files(tmp_path / name) == expected, name
    on_ranks(lambda ranks: encoded(tmp_path / "three", ranks), 3)
    assert files(tmp_path / "three") == expected


def test_a_broken_image_on_one_rank_is_everybodys_error(tmp_path):
    experiment = tiny(tmp_path, methods=["none"], training={"steps": 12})

    def broken(ranks: Ranks) -> None:
        if ranks.rank == 1:
            from tasks.datasets.array import Array

            read = Array.read

            def fails(self, index: int):
                if index == 7:
                    raise ValueError("cut short")
                return read(self, index)

            Array.read = fails

    found = results(start(in_job(experiment, tmp_path / "workspace", broken)))
    assert [type(one) for one in found] == [UserError] * 2
    assert "cut short" in str(found[1]) and str(found[0]) == f"on rank 1: {found[1]}"
    assert list((tmp_path / "workspace").glob("groups/*/checkpoint.pt"))  # saved first


def test_a_batch_that_cannot_be_divided_is_refused_on_all_ranks_before_anything_starts(tmp_path):
    fit = {"fit": {"training": {"steps": 4, "batch_size": 8}}}
    experiment = tiny(tmp_path, training={"batch_size": 9}, teacher=fit)
    found = results(start(in_job(experiment, tmp_path / "workspace")))
    assert [type(one) for one in found] == [UserError] * 2
    assert "training.batch_size is 9" in str(found[0]) and "8 or 10" in str(found[0])
    assert str(found[1]) == f"on rank 0: {found[0]}"
    assert not list((tmp_path / "workspace").glob("students/*"))


def test_a_teacher_that_is_trained_and_repaired_here_is_the_same_on_all_ranks(tmp_path):
    teacher = {
        "fit": {"training": {"steps": 4, "batch_size": 8, "optimizer": "sgd"}},
        "planted": {"layer": 1, "size": 20, "share": 0.1},
        "standardise": {"kind": "channel", "images": 16},
    }
    settings = {"methods": ["fitnet"], "teacher": teacher, "training": {"optimizer": "sgd", "lr": 1e-2}}
    experiment = tiny(tmp_path, **settings)
    Job(experiment, Workspace(tmp_path / "one"), Console(quiet=True)).run()
    outcomes = on_ranks(in_job(experiment, tmp_path / "two"))
    assert len(outcomes[0].trained) == 2
    ours, theirs = students(experiment, tmp_path / "one"), students(experiment, tmp_path / "two")
    assert all(near(ours[title], theirs[title]) for title in ours)


def test_one_process_starts_nothing(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert joined("cpu") is ONE
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert joined("cuda:3") is ONE and not torch.distributed.is_initialized()
    assert ONE.sums(3) == (3,) and ONE.any(True) and ONE.of_each(5) == (5,) and ONE.part(7) == 7
    x = torch.ones(2)
    assert ONE.gathered(x, (2,)) is x and ONE.shared(x) is x


@pytest.mark.parametrize(
    ("changed", "device", "message"),
    [
        ({"MASTER_PORT": None, "RANK": None}, "cpu", "RANK, MASTER_PORT is not set"),
        ({"RANK": "first"}, "cpu", "RANK='first'"),
        ({"RANK": "2"}, "cpu", "RANK is 2"),
        ({}, "cuda:1", "'cuda:1' names one device"),
        ({}, "mps", "'mps' names one device"),
    ],
)
def test_an_environment_that_cannot_be_is_told_in_words(changed, device, message, monkeypatch):
    given = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in (given | changed).items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        joined(device)


def test_the_command_line_runs_under_torchrun(alone, together, tmp_path):
    experiment = alone[0].model_copy(update={"tasks": (), "bounds": False, "methods": alone[0].methods[:1]})
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(experiment.model_dump(mode="json")))
    command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    command += ["-m", "harness.cli", "run", str(config), "--workspace", str(tmp_path / "workspace")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=Path(__file__).parents[1], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("students trained: 1") == 1  # said by rank 0 alone
    found, undisturbed = students(experiment, tmp_path / "workspace"), students(experiment, together[1])
    assert all(same(found[title], undisturbed[title]) for title in undisturbed)
