"""A group: one teacher pass a batch, many students, none of which can tell whether it has neighbours.

Every student has its own optimiser, its own schedule and its own random stream, seeded at every step from
(seed, step). A student that diverges or fails is dropped and reported; the others go on unchanged.

Several ranks may train a group as one: each takes its part of every batch, and `harness.training.joint` makes of their
parts the losses and gradients of the whole. All ranks drop, log, save and stop at the same steps; rank 0 alone writes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.api import Batch, Method, Vit
from harness.config import Training
from harness.errors import UserError
from harness.models import TimmVit
from harness.records import write_atomic
from harness.training.clock import Clock, peak_memory_gb
from harness.training.compiling import Compiled
from harness.training.distributed import ONE, RankLost, Ranks, lost
from harness.training.joint import Agreed, Given, Joint, Single, elsewhere, gathered, gathered_batch, in_words
from harness.training.optimizers import build_optimizer, lr_share
from harness.training.precision import tf32

OWN_COLUMNS = ("step", "epoch", "lr", "loss", "grad_norm")  # of train.jsonl
DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclasses.dataclass
class Member:
    """One student in training.

    Attributes:
        id: its run. seed: of the run. student, method: what is trained, together.
        folder: where train.jsonl grows. failure: why it was dropped, once it was.
    """

    id: str
    seed: int
    student: TimmVit
    method: Method
    folder: Path
    optimizer: torch.optim.Optimizer = dataclasses.field(init=False)
    scaler: torch.amp.GradScaler = dataclasses.field(init=False)
    failure: dict[str, Any] | None = None

    def prepare(self, training: Training, device: str, ranks: Ranks) -> None:
        """Build the optimiser over student and method, and the counters that live on the device."""
        self.method.to(device).train()
        self.way: Single | Joint = (
            Single(self.student, self.method, device)
            if ranks.alone
            else Joint(self.student, self.method, device, ranks)
        )
        self.optimizer = build_optimizer(self.student.model, self.method, training, device)
        self.scaler = torch.amp.GradScaler(device.split(":")[0], enabled=training.precision == "fp16")
        self.diverged_at = torch.full((), -1, dtype=torch.int64, device=device)
        self.sums: dict[str, Tensor] = {}
        self.counted = 0

    def parameters(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {
            "student": self.student.model.state_dict(),
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "diverged_at": self.diverged_at,
            "sums": self.sums,
            "counted": self.counted,
            "failure": self.failure,
        }

    def load_state(self, state: Mapping[str, Any], device: str) -> None:
        self.student.model.load_state_dict(state["student"])
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.diverged_at = state["diverged_at"].to(device)
        self.sums = {k: v.to(device) for k, v in state["sums"].items()}
        self.counted, self.failure = state["counted"], state["failure"]


@dataclasses.dataclass
class Group:
    """The training of a group: what `run` needs and what it leaves.

    Attributes:
        steps, steps_an_epoch: in all, and in one pass over the data. ranks: who trains it, and which this one is.
        say: hears of what people should know of. logged: hears of each line of a member's train.jsonl, on the first
        rank. step: the next one. clock: this rank's teacher and own seconds so far. skipped: broken images so far.
        compiled: the blocks of all models, with `training.compile`.
    """

    members: list[Member]
    teacher: Vit
    training: Training
    steps: int
    steps_an_epoch: int
    device: str = "cpu"
    log_steps: int = 20
    ranks: Ranks = ONE
    say: Callable[[str], None] = print
    step: int = 0
    skipped: int = 0
    peak_memory_gb: float = 0.0

    def __post_init__(self) -> None:
        self.clock = Clock(self.device)
        self.reads_logits = False
        self.begun = False  # in this process
        self.logged: Callable[[str, dict[str, float]], None] = lambda member, line: None
        for member in self.members:
            member.prepare(self.training, self.device, self.ranks)
        models = [self.teacher, *(member.student for member in self.members)] * self.training.compile
        self.compiled = Compiled((vit.block(i) for vit in models for i in range(vit.depth)), self.say)
        self.warmup_steps = round(self.training.warmup_epochs * self.steps_an_epoch)

    @property
    def alive(self) -> list[Member]:
        return [m for m in self.members if m.failure is None]

    def state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "steps": self.steps,
            "seconds": self.clock.totals(),
            "skipped": self.skipped,
            "peak_memory_gb": self.peak_memory_gb,
            "members": {m.id: m.state() for m in self.members},
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.step, self.skipped = state["step"], state["skipped"]
        self.peak_memory_gb = state["peak_memory_gb"]
        self.clock = Clock(self.device, state["seconds"])
        for member in self.members:
            member.load_state(state["members"][member.id], self.device)
            if self.ranks.first:
                _cut_log(member.folder / "train.jsonl", self.step)

    def train_step(self, batch: Batch, skipped: int = 0) -> None:
        """One batch: the teacher once, then every student that is still alive.

        Args:
            batch: this rank's part of it. skipped: broken images on all ranks.

        Raises:
            torch.OutOfMemoryError: the group is too large for the device; what it holds is of no use any more.
        """
        with tf32(self.training.tf32), self.compiled.inside():
            self._train_step(batch, skipped)

    def _train_step(self, batch: Batch, skipped: int) -> None:
        self.skipped += skipped
        share = lr_share(self.step, self.steps, self.warmup_steps, self.training.min_lr_share)
        counts = self.ranks.of_each(len(batch.images)) if skipped else (len(batch.images),) * self.ranks.world
        alive = self.alive
        given = self._give(batch, counts, alive)
        for member in alive:
            versions = given.versions()
            with self.clock.time(member.id):
                try:
                    self._member_step(member, given, share)
                except torch.OutOfMemoryError:
                    raise  # its neighbours' memory is missing too
                except Exception as error:  # a method is a stranger's code; its neighbours must not suffer
                    member.failure = self._failure(error)
            now = given.versions()
            if self.ranks.any(any(now[tensor] != version for tensor, version in versions.items())):
                reason = "it wrote into the teacher's tokens, which every student of the group reads"
                member.failure = {"reason": reason, "step": self.step}
                given = self._give(batch, counts, alive)  # clean again for those who come after
        self.reads_logits = self.reads_logits or given.reads_logits
        self.begun = True
        self.step += 1
        if self.step % self.log_steps == 0 or self.step == self.steps:
            self._log(share)

    def _give(self, batch: Batch, counts: tuple[int, ...], alive: list[Member]) -> Given:
        """The shared pass: whatever any of the students wants of the teacher, of this rank's images and of all."""
        coupled = [] if self.ranks.alone else [m for m in alive if not m.method.per_image]
        layers = frozenset().union(*(m.method.teacher_layers for m in alive))
        maps = frozenset().union(*(m.method.teacher_attention for m in alive))
        # Whether anybody reads the logits is known after a step, and what is gathered must be there on all ranks.
        ahead = self.reads_logits or (bool(coupled) and not self.begun)
        with self.clock.time("teacher"), torch.no_grad(), self._autocast():
            with self.ranks.together(in_words, elsewhere(UserError)):
                teacher = self.teacher(batch.images, layers, maps)
                if ahead:
                    _ = teacher.logits  # now, so that its time is the teacher's and not the first student's
            whole = None
            if coupled:
                whole = gathered_batch(self.ranks, batch, counts), gathered(self.ranks, teacher, counts)
        return Given(batch, teacher, whole, counts, ahead)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        dtype = DTYPES[self.training.precision]
        return torch.autocast(self.device.split(":")[0], dtype=dtype, enabled=dtype is not None)

    def _member_step(self, member: Member, given: Given, share: float) -> None:
        method, way = member.method, member.way
        with way.agreed():
            with self._autocast():
                terms = way.terms(given, member.seed, self.step)
            loss = torch.stack([term.float() for term in terms.values()]).sum()
            seen = {**{k: v.detach() for k, v in terms.items()}, "loss": loss.detach(), **_facts(method, terms)}
        seen = way.logged(seen)
        member.diverged_at = torch.where(
            (member.diverged_at < 0) & ~torch.isfinite(seen["loss"]), self.step, member.diverged_at
        )
        optimizer = member.optimizer
        optimizer.zero_grad(set_to_none=True)
        way.backward(member.scaler.scale(loss))
        norm = None
        if self.training.clip_grad is not None:
            member.scaler.unscale_(optimizer)
            norm = nn.utils.clip_grad_norm_(member.parameters(), self.training.clip_grad)
        for group in optimizer.param_groups:
            group["lr"] = self.training.lr * group["lr_scale"] * share
        member.scaler.step(optimizer)
        member.scaler.update()
        if norm is not None:
            seen["grad_norm"] = norm.detach()
        for name, value in seen.items():
            member.sums[name] = member.sums[name] + value if name in member.sums else value.clone()
        member.counted += 1

    def _log(self, share: float) -> None:
        """One line a student into train.jsonl: means since the last line. The only place that waits for a GPU."""
        for member in self.alive:
            at = int(member.diverged_at)
            if at >= 0:
                member.failure = {"reason": "the loss is not finite", "step": at}
                continue
            means = {name: float(value) / member.counted for name, value in member.sums.items()}
            line = {
                "step": self.step,
                "epoch": self.step / self.steps_an_epoch,
                "lr": self.training.lr * share,
                **means,
            }
            if self.ranks.first:
                with open(member.folder / "train.jsonl", "a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
                self.logged(member.id, line)
            member.sums, member.counted = {}, 0
        self.peak_memory_gb = max(self.peak_memory_gb, peak_memory_gb(self.device))

    def _failure(self, error: Exception) -> dict[str, Any]:
        """Raises RankLost for what only some of several ranks may know of: they are out of step from here on."""
        if isinstance(error, RankLost):
            raise error
        if not (self.ranks.alone or isinstance(error, Agreed)):
            raise lost(self.ranks, error) from error
        return {"reason": in_words(error), "step": self.step}


def _facts(method: Method, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a method has seen beside its terms, to be averaged into the log with them; no part of the loss."""
    twice = sorted({*OWN_COLUMNS, *terms} & set(method.seen))
    if twice:
        raise ValueError(f"{method.name!r} calls what it has seen {twice}, which the log has already; rename it")
    return {name: value.detach().float() for name, value in method.seen.items()}


def _cut_log(path: Path, step: int) -> None:
    """Drop the lines after `step`, which will be written again."""
    if path.is_file():
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        write_atomic(path, "".join(line + "\n" for line in kept))


def run(
    group: Group,
    stream: Iterator[tuple[Batch, int]],
    *,
    save: Callable[[], None] = lambda: None,
    save_steps: int = 500,
    save_minutes: float = 10.0,
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[int], None] = lambda step: None,
) -> bool:
    """Train to the end, saving every `save_steps` or `save_minutes`; False where `stop` asked to end early.

    A stop saves first, so that nothing is lost; asked on one rank, it stops all. A group whose students have all
    failed ends at once.
    """
    saved_s = time.monotonic()
    for batch, skipped in stream:
        group.train_step(batch, skipped)
        progress(group.step)
        if not group.alive or group.step == group.steps:
            break
        late = time.monotonic() - saved_s > save_minutes * 60
        stopping, late = (count > 0 for count in group.ranks.sums(int(stop()), int(late)))
        if stopping or late or group.step % save_steps == 0:
            save()
            saved_s = time.monotonic()
        if stopping:
            return False
    save()
    return True
