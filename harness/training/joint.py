"""How one student's losses and gradients come about: on one rank, or on several that act as one.

Several ranks have a part of the batch each. Losses that couple images (relations, banks, statistics, draws over the
batch) must be those of the whole batch, so student's and teacher's outputs are gathered, and every rank computes the
same losses. A method that declares `per_image` is spared that: its losses on a part, averaged, are those on the whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.api import Batch, Layers, Method, Outputs
from harness.models import TimmVit
from harness.seeds import derive
from harness.training.distributed import RankLost, Ranks, lost


class Agreed(Exception):
    """A student's failure that all ranks know of, so that they drop it at the same step."""


@dataclasses.dataclass(frozen=True)
class Given:
    """What the students of a group are given at a step.

    Attributes:
        batch, teacher: this rank's part. whole: the same of all ranks together, where a student needs more than a
            part. counts: images on each rank. ahead: whether the teacher's logits were computed before anybody asked.
    """

    batch: Batch
    teacher: Outputs
    whole: tuple[Batch, Outputs] | None
    counts: tuple[int, ...]
    ahead: bool = False

    @property
    def reads_logits(self) -> bool:
        """Whether a student has read the teacher's logits, as far as that can be told."""
        return (self.whole is not None and self.whole[1].logits_read) or (self.teacher.logits_read and not self.ahead)

    def to(self, method: Method) -> tuple[Outputs, Batch]:
        """Teacher's outputs and batch as this method's losses take them."""
        if method.per_image or self.whole is None:
            return self.teacher, self.batch
        return self.whole[1], self.whole[0]

    def versions(self) -> dict[Any, int]:
        """How often each of the teacher's tensors was written to, by torch's own count."""
        found = {}
        for which, outputs in (("part", self.teacher), ("whole", self.whole[1] if self.whole else self.teacher)):
            found |= {(which, "tokens", i): outputs.tokens[i]._version for i in outputs.tokens}
            found |= {(which, "attention", i): outputs.attention[i]._version for i in outputs.attention}
            if outputs.logits_read:
                found[which, "logits"] = outputs.logits._version
        return found


class Single:
    """One rank: nothing to gather and nothing to agree on."""

    def __init__(self, student: TimmVit, method: Method, device: str) -> None:
        self.student, self.method, self.device = student, method, device

    def agreed(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def terms(self, given: Given, seed: int, step: int) -> dict[str, Tensor]:
        """The losses of a step."""
        # The same draws whether or not it has neighbours, and wherever it was resumed.
        set_seed(derive("step", seed, step), self.device)
        method, (teacher, batch) = self.method, given.to(self.method)
        student = self.student(batch.images, method.student_layers, method.student_attention)
        return method.losses(student, teacher, batch)

    def logged(self, seen: dict[str, Tensor]) -> dict[str, Tensor]:
        """Scalars of the losses as the log shows them."""
        return seen

    def backward(self, loss: Tensor) -> None:
        """The gradient of the loss, in every parameter that it depends on."""
        loss.backward()


class Joint:
    """Several ranks. Their parameters, buffers and random draws for the losses are the same, and stay so.

    The first step tells which parameters get a gradient, and averages it by hand; DistributedDataParallel has these
    from then on. A method that begins to train more of itself later gets them averaged from that step on.
    """

    def __init__(self, student: TimmVit, method: Method, device: str, ranks: Ranks) -> None:
        self.student, self.method, self.device, self.ranks = student, method, device, ranks
        self.named = {f"student.{k}": p for k, p in student.model.named_parameters()} | dict(method.named_parameters())
        self.averaging: Callable[[Tensor], Tensor] | None = None
        self.averaged: frozenset[str] = frozenset()
        self.reads_logits: bool | None = None  # the student's; None: not known before its first step
        self.weight = 1.0

    @contextlib.contextmanager
    def agreed(self) -> Iterator[None]:
        """What fails inside on any rank is `Agreed` on all of them, or is a lack of memory on all of them."""
        try:
            with self.ranks.together(in_words, elsewhere(Agreed)):
                yield
        except (RankLost, Agreed, torch.OutOfMemoryError):
            raise
        except Exception as error:  # a method is a stranger's code
            raise Agreed(in_words(error)) from error

    def terms(self, given: Given, seed: int, step: int) -> dict[str, Tensor]:
        """The losses of a step: of the whole batch, or of this rank's part where the method is per image."""
        method, (teacher, batch) = self.method, given.to(self.method)
        with self.agreed():  # whoever fails here would be missing where outputs are gathered
            set_seed(derive("step", seed, step, self.ranks.rank), self.device)
            student = self.student(given.batch.images, method.student_layers, method.student_attention)
            if not method.per_image and self.reads_logits is not False:
                _ = student.logits
        if not method.per_image:
            student = gathered(self.ranks, student, given.counts)
        set_seed(derive("step", seed, step), self.device)
        terms = method.losses(student, teacher, batch)
        self.reads_logits = bool(self.reads_logits) or student.logits_read
        self.weight = given.counts[self.ranks.rank] * self.ranks.world / sum(given.counts) if method.per_image else 1.0
        return terms

    def logged(self, seen: dict[str, Tensor]) -> dict[str, Tensor]:
        """Scalars of the losses as the log shows them: of the whole batch."""
        if not self.method.per_image:
            return seen
        values = torch.stack([value.float() for value in seen.values()]) * self.weight
        self.ranks.average([values])
        return dict(zip(seen, values.unbind(), strict=True))

    def backward(self, loss: Tensor) -> None:
        """The gradient of the loss on the whole batch, the same on all ranks.

        Raises:
            Agreed: it fails on the first step, or a parameter is without gradient that had one before.
            RankLost: it fails later, when gradients are already on their way.
        """
        loss = loss if self.weight == 1.0 else loss * self.weight
        if self.averaging is None:
            with self.agreed():
                loss.backward()
        else:
            try:
                self.averaging(loss).backward()
            except Exception as error:
                raise lost(self.ranks, error) from error
        found = {name for name, p in self.named.items() if p.grad is not None}
        if missing := sorted(self.averaged - found):
            raise Agreed(
                f"{', '.join(missing[:3])} got no gradient, though there was one before: on several ranks what has "
                "been trained once is trained at every step; train this method on one rank"
            )
        if found > self.averaged:
            new = [p.grad for name, p in self.named.items() if p.grad is not None and name not in self.averaged]
            self.ranks.average(new)
            self._average_from_now_on(found)

    def _average_from_now_on(self, names: set[str]) -> None:
        self.averaging = None  # the one before goes first, and takes its hooks along
        self.averaged = frozenset(names)
        self.averaging = self.ranks.averaging([p for name, p in self.named.items() if name in names])


def gathered(ranks: Ranks, outputs: Outputs, counts: tuple[int, ...]) -> Outputs:
    """All ranks' outputs as those of one batch. Logits that nobody has computed yet follow when somebody reads them."""

    def of_all(tensors: Mapping[int, Tensor]) -> Layers:
        return Layers({i: ranks.gathered(tensors[i], counts) for i in sorted(tensors)})

    there = ranks.gathered(outputs.logits, counts) if outputs.logits_read else None
    return dataclasses.replace(
        outputs,
        tokens=of_all(outputs.tokens),
        attention=of_all(outputs.attention),
        logits=lambda: ranks.gathered(outputs.logits, counts) if there is None else there,  # type: ignore[arg-type]
    )


def gathered_batch(ranks: Ranks, batch: Batch, counts: tuple[int, ...]) -> Batch:
    """All ranks' parts of a batch, in order."""
    labels = None if batch.labels is None else ranks.gathered(batch.labels, counts)
    images, index = ranks.gathered(batch.images, counts), ranks.gathered(batch.index, counts)
    return Batch(images, labels, index, batch.progress)


def agreed_batches(stream: Iterator[tuple[Batch, int]], ranks: Ranks) -> Iterator[tuple[Batch, int]]:
    """This rank's parts of batches: an error ends all ranks' alike, broken images are counted over all of them, and
    labels are there on all or on none.
    """
    if ranks.alone:
        yield from stream
        return
    while True:
        with ranks.together():
            found = next(stream, None)
        if found is None:
            return
        batch, skipped = found
        skipped, unlabelled = ranks.sums(skipped, int(batch.labels is None))
        yield dataclasses.replace(batch, labels=None if unlabelled else batch.labels), skipped


def in_words(error: Exception) -> str:
    """What was raised and where: by whom outside of torch."""
    if isinstance(error, Agreed):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    own = next((f for f in reversed(frames) if f"{os.sep}torch{os.sep}" not in f.filename), frames[-1])
    return f"{type(error).__name__} at {Path(own.filename).name}:{own.lineno}: {error}"


def elsewhere(kind: type[Exception]) -> Callable[[str], Exception]:
    """What a failure on another rank, told `in_words`, is on this one: a lack of memory is one here too."""
    short = f"{torch.OutOfMemoryError.__name__} at "
    return lambda reason: (torch.OutOfMemoryError if short in reason else kind)(reason)


def set_seed(seed: int, device: str) -> None:
    """What torch.manual_seed does for the devices in use; it costs a millisecond in the loop of a small model."""
    torch.default_generator.manual_seed(seed)
    if device.startswith("cuda"):
        torch.cuda.manual_seed_all(seed)
