"""A group: one teacher pass a batch, many students, none of which can tell whether it has neighbours.

Every student has its own optimiser, its own schedule and its own random stream, seeded at every step from
(seed, step). A student that diverges or fails is dropped and reported; the others go on unchanged.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from timm.optim._param_groups import param_groups_weight_decay
from torch import Tensor, nn

from harness.api import Batch, Method, Outputs, Vit
from harness.config import Training
from harness.models import TimmVit
from harness.records import write_atomic
from harness.seeds import derive

OWN_COLUMNS = ("step", "epoch", "lr", "loss", "grad_norm")  # of train.jsonl
DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Clock:
    """Seconds by name. On a GPU by events, which are read only when somebody asks, so nothing waits in a step."""

    def __init__(self, device: str, totals: Mapping[str, float] | None = None) -> None:
        self.cuda = device.startswith("cuda")
        self._totals = dict(totals or {})
        self._events: list[tuple[str, Any, Any]] = []

    @contextlib.contextmanager
    def time(self, name: str) -> Iterator[None]:
        if self.cuda:
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            yield
            end.record()
            self._events.append((name, begin, end))
        else:
            begin_s = time.perf_counter()
            yield
            self._totals[name] = self._totals.get(name, 0.0) + time.perf_counter() - begin_s

    def totals(self) -> dict[str, float]:
        if self._events:
            torch.cuda.synchronize()
            for name, begin, end in self._events:
                self._totals[name] = self._totals.get(name, 0.0) + begin.elapsed_time(end) / 1000
            self._events.clear()
        return dict(self._totals)


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

    def prepare(self, training: Training, device: str) -> None:
        """Build the optimiser over student and method, and the counters that live on the device."""
        self.method.to(device).train()
        self.optimizer = build_optimizer(self.student.model, self.method, training, device)
        self.scaler = torch.amp.GradScaler(device.split(":")[0], enabled=training.precision == "fp16")
        self.diverged_at = torch.full((), -1, dtype=torch.int64, device=device)
        self.sums: dict[str, Tensor] = {}
        self.counted = 0
        if training.compile:
            for i in range(self.student.depth):
                self.student.block(i).compile()

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


def build_optimizer(student: nn.Module, method: Method, training: Training, device: str) -> torch.optim.Optimizer:
    """AdamW or SGD; no decay on biases, norms and position embeddings (timm's rule); `Method.lr_scale` applied.

    Raises:
        ValueError: lr_scale names no submodule or parameter of the method.
    """
    skip = set(student.no_weight_decay()) if hasattr(student, "no_weight_decay") else set()  # type: ignore[operator]
    groups = _grouped(student, training.weight_decay, 1.0, skip)
    owned: dict[str, nn.Module | nn.Parameter] = {**dict(method.named_children())}
    owned |= dict(method.named_parameters(recurse=False))
    strange = set(method.lr_scale) - set(owned)
    if strange:
        raise ValueError(f"lr_scale of {method.name!r} names {sorted(strange)}; its submodules are {sorted(owned)}")
    for name, part in owned.items():
        module = part if isinstance(part, nn.Module) else nn.ParameterList([part])
        groups += _grouped(module, training.weight_decay, float(method.lr_scale.get(name, 1.0)), set())
    if training.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=training.lr, momentum=training.momentum)
    return torch.optim.AdamW(groups, lr=training.lr, betas=training.betas, fused=device.startswith("cuda"))


def _grouped(module: nn.Module, weight_decay: float, lr_scale: float, skip: set[str]) -> list[dict[str, Any]]:
    found = param_groups_weight_decay(module, weight_decay=weight_decay, no_weight_decay_list=tuple(skip))
    return [{**group, "lr_scale": lr_scale} for group in found if group["params"]]


def lr_share(step: int, steps: int, warmup_steps: int, minimum: float) -> float:
    """Learning rate of a step as a share of the peak: linear warm-up, then a half cosine down to `minimum`."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    way = (step - warmup_steps) / max(1, steps - warmup_steps)
    return minimum + (1 - minimum) * 0.5 * (1 + math.cos(math.pi * way))


@dataclasses.dataclass
class Group:
    """The training of a group: what `run` needs and what it leaves.

    Attributes:
        steps, steps_an_epoch: in all, and in one pass over the data.
        step: the next one. clock: teacher and own seconds so far. skipped: broken images so far.
    """

    members: list[Member]
    teacher: Vit
    training: Training
    steps: int
    steps_an_epoch: int
    device: str = "cpu"
    log_steps: int = 20
    step: int = 0
    skipped: int = 0
    peak_memory_gb: float = 0.0

    def __post_init__(self) -> None:
        self.clock = Clock(self.device)
        self.reads_logits = False
        for member in self.members:
            member.prepare(self.training, self.device)
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
            _cut_log(member.folder / "train.jsonl", self.step)

    def train_step(self, batch: Batch, skipped: int = 0) -> None:
        """One batch: the teacher once, then every student that is still alive."""
        self.skipped += skipped
        share = lr_share(self.step, self.steps, self.warmup_steps, self.training.min_lr_share)
        alive = self.alive
        teacher = self._teach(batch, alive)
        for member in alive:
            versions = _versions(teacher)
            with self.clock.time(member.id):
                try:
                    self._member_step(member, teacher, batch, share)
                except Exception as error:  # a method is a stranger's code; its neighbours must not suffer
                    member.failure = self._failure(error)
            if _versions(teacher, len(versions)) != versions:
                reason = "it wrote into the teacher's tokens, which every student of the group reads"
                member.failure = {"reason": reason, "step": self.step}
                teacher = self._teach(batch, alive)  # clean again for those who come after
        self.reads_logits = self.reads_logits or teacher.logits_read
        self.step += 1
        if self.step % self.log_steps == 0 or self.step == self.steps:
            self._log(share)

    def _teach(self, batch: Batch, alive: list[Member]) -> Outputs:
        """The shared pass: whatever any of the students wants of the teacher."""
        layers = frozenset().union(*(m.method.teacher_layers for m in alive))
        maps = frozenset().union(*(m.method.teacher_attention for m in alive))
        with self.clock.time("teacher"), torch.no_grad(), self._autocast():
            teacher = self.teacher(batch.images, layers, maps)
            if self.reads_logits:
                _ = teacher.logits  # now, so that its time is the teacher's and not the first student's
        return teacher

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        dtype = DTYPES[self.training.precision]
        return torch.autocast(self.device.split(":")[0], dtype=dtype, enabled=dtype is not None)

    def _member_step(self, member: Member, teacher: Outputs, batch: Batch, share: float) -> None:
        # The same draws whether or not it has neighbours, and wherever it was resumed.
        _seed(derive("step", member.seed, self.step), self.device)
        method = member.method
        with self._autocast():
            student = member.student(batch.images, method.student_layers, method.student_attention)
            terms = method.losses(student, teacher, batch)
        loss = torch.stack([term.float() for term in terms.values()]).sum()
        seen = {**{k: v.detach() for k, v in terms.items()}, "loss": loss.detach(), **_facts(method, terms)}
        member.diverged_at = torch.where(
            (member.diverged_at < 0) & ~torch.isfinite(loss.detach()), self.step, member.diverged_at
        )
        optimizer = member.optimizer
        optimizer.zero_grad(set_to_none=True)
        member.scaler.scale(loss).backward()
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
            line = {"step": self.step, "epoch": self.step / self.steps_an_epoch, "lr": self.training.lr * share}
            with open(member.folder / "train.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps({**line, **means}) + "\n")
            member.sums, member.counted = {}, 0
        self.peak_memory_gb = max(self.peak_memory_gb, peak_memory_gb(self.device))

    def _failure(self, error: Exception) -> dict[str, Any]:
        frames = traceback.extract_tb(error.__traceback__)
        own = next((f for f in reversed(frames) if f"{os.sep}torch{os.sep}" not in f.filename), frames[-1])
        where = f"{Path(own.filename).name}:{own.lineno}"
        return {"reason": f"{type(error).__name__} at {where}: {error}", "step": self.step}


def _facts(method: Method, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a method has seen beside its terms, to be averaged into the log with them; no part of the loss."""
    twice = sorted({*OWN_COLUMNS, *terms} & set(method.seen))
    if twice:
        raise ValueError(f"{method.name!r} calls what it has seen {twice}, which the log has already; rename it")
    return {name: value.detach().float() for name, value in method.seen.items()}


def _seed(seed: int, device: str) -> None:
    """What torch.manual_seed does for the devices in use; it costs a millisecond in the loop of a small model."""
    torch.default_generator.manual_seed(seed)
    if device.startswith("cuda"):
        torch.cuda.manual_seed_all(seed)


def _versions(outputs: Outputs, count: int | None = None) -> list[int]:
    """How often each shared tensor was written to, by torch's own count. Logits last: they may come later."""
    tensors = [outputs.tokens[i] for i in sorted(outputs.tokens)]
    tensors += [outputs.attention[i] for i in sorted(outputs.attention)]
    if outputs.logits_read:
        tensors.append(outputs.logits)
    found = [t._version for t in tensors]
    return found if count is None else found[:count]


def _cut_log(path: Path, step: int) -> None:
    """Drop the lines after `step`, which will be written again."""
    if path.is_file():
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        write_atomic(path, "".join(line + "\n" for line in kept))


def peak_memory_gb(device: str) -> float:
    """The most memory held so far: of the device on a GPU, of this process on a CPU. In units of 1e9 bytes."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 1e9
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


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

    A stop saves first, so that nothing is lost. A group whose students have all failed ends at once.
    """
    saved_s = time.monotonic()
    for batch, skipped in stream:
        group.train_step(batch, skipped)
        progress(group.step)
        if not group.alive or group.step == group.steps:
            break
        stopping = stop()
        if stopping or group.step % save_steps == 0 or time.monotonic() - saved_s > save_minutes * 60:
            save()
            saved_s = time.monotonic()
        if stopping:
            return False
    save()
    return True
