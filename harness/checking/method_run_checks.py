"""Where a method must work, and that it does the same every time: a check each.

A check raises Fault with what to change, or returns None, or a note about what the method refuses.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.api import Batch
from harness.checking.method_checks import checked_gradient, checked_terms
from harness.checking.specimen import STEPS, Fault, MethodSpecimen, Rig, listed, same_bits, streams, toy_teacher
from harness.errors import UserError
from harness.models import TimmVit

REFUTED = "so per_image cannot be True: on several ranks each would go its own way; leave it out"


def deterministic(specimen: MethodSpecimen) -> None:
    """The same seed gives the same bits."""
    step = _first_difference(specimen.alone, specimen.trained())
    if step is not None:
        raise Fault(
            f"two trainings from the same seed differ at step {step}; draw from torch's global stream, which the "
            "harness seeds at every step, and not from time, the system or a generator of your own"
        )


def alone_as_among_neighbours(specimen: MethodSpecimen) -> None:
    """Other students between its steps change nothing, to the bit."""
    step = _first_difference(specimen.alone, _among(specimen))
    if step is not None:
        raise Fault(
            f"it differs among neighbours at step {step}; it draws from Python's or numpy's random stream, or keeps "
            "state outside self (a class attribute, a global, the teacher). Draw from torch, keep state in self"
        )


def _among(specimen: MethodSpecimen) -> list[dict[str, Tensor]]:
    with streams(1):
        teacher = toy_teacher(specimen.size)
        neighbour = specimen.build(teacher=teacher, seed=1)
        rig = specimen.build(teacher=teacher)
        found = []
        for step in range(STEPS):
            neighbour.step(specimen.batch(step), step)
            _ = random.random(), np.random.rand(), torch.rand(step + 1)
            found.append(rig.step(specimen.batch(step), step))
        return found


def _first_difference(a: list[dict[str, Tensor]], b: list[dict[str, Tensor]]) -> int | None:
    for step, (one, other) in enumerate(zip(a, b, strict=True)):
        if one.keys() != other.keys() or not all(same_bits(one[name], other[name]) for name in one):
            return step
    return None


def bf16_autocast(specimen: MethodSpecimen) -> None:
    """Under bf16 autocast the terms are finite and every student block learns."""
    rig = specimen.build()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _runs(specimen, rig, "under bf16 autocast")


def _runs(specimen: MethodSpecimen, rig: Rig, where: str) -> None:
    """Finite terms and a finite gradient, which reaches every student block where it does so on the plain toys."""
    batch = specimen.batch()
    torch.manual_seed(0)
    ours, theirs = rig.outputs(batch)
    terms = rig.method.losses(ours, theirs, batch)
    try:
        checked_terms(terms)
        with torch.autocast("cpu", enabled=False):
            rig.backward(terms)
        if specimen.learns_everywhere:  # else student_gradient says so, once
            checked_gradient(rig, ours)
    except Fault as fault:
        raise Fault(f"{where}: {fault}") from None
    broken = [
        name
        for name, p in [*rig.student.model.named_parameters(), *rig.method.named_parameters()]
        if p.grad is not None and not bool(p.grad.isfinite().all())
    ]
    if broken:
        raise Fault(f"{where}: the gradient of {listed(broken)} is not finite; compute in fp32 there (tokens.float())")


def teacher_with_registers(specimen: MethodSpecimen) -> None:
    """A teacher with four register tokens."""
    rig = specimen.build(teacher=toy_teacher(specimen.size, reg_tokens=4))
    _runs(specimen, rig, "with a teacher that has 4 registers")


def equal_depth(specimen: MethodSpecimen) -> None:
    """Student and teacher of equal depth."""
    rig = specimen.build(depth=specimen.size.depth)
    _runs(specimen, rig, "with student and teacher of equal depth")


def models_without_cls(specimen: MethodSpecimen) -> str | None:
    """A teacher without CLS token, then both models: it works, or __init__ refuses in words."""
    bare = {"class_token": False, "global_pool": "avg"}
    notes = [_runs_or_refuses(specimen, "with a teacher without CLS", toy_teacher(specimen.size, **bare))]
    if not {"class_token", "global_pool"} & set(specimen.cls.student_options):
        teacher = toy_teacher(specimen.size, **bare)
        notes.append(_runs_or_refuses(specimen, "with both models without CLS", teacher, **bare))
    return "; ".join(filter(None, notes)) or None


def different_grids(specimen: MethodSpecimen) -> str | None:
    """A teacher with twice as many patches a side: it works, or __init__ refuses in words."""
    teacher = toy_teacher(specimen.size, finer=True)
    return _runs_or_refuses(specimen, "with patches of 4 px in the teacher and 8 in the student", teacher)


def _runs_or_refuses(specimen: MethodSpecimen, where: str, teacher: TimmVit, **options: Any) -> str | None:
    try:
        rig = specimen.build(teacher=teacher, **options)
    except (ValueError, UserError) as error:
        return f"refused {where}: {error}"
    _runs(specimen, rig, where)
    return None


def batch_without_labels(specimen: MethodSpecimen) -> str | None:
    """Data without labels: it works, or losses() says in a ValueError that it needs them."""
    rig, batch = specimen.build(), specimen.batch(labels=False)
    try:
        terms = rig.terms(batch)
    except (ValueError, UserError) as error:
        return f"refused without labels: {error}"
    except Exception as error:
        raise Fault(
            f"batch.labels is None where the data has no labels, and losses() fails with {type(error).__name__}: "
            f"{error}; take them by harness.matching.labels_of(batch), which says so in words"
        ) from error
    checked_terms(terms)
    return None


def state_dict_round_trip(specimen: MethodSpecimen) -> None:
    """A method of another seed that loads the state gives the same bits: nothing that matters is kept elsewhere."""
    rig = specimen.build()
    for step in range(STEPS):
        rig.step(specimen.batch(step), step)
    other = specimen.build(seed=1)
    other.seed = rig.seed
    other.student.model.load_state_dict(rig.student.model.state_dict())
    try:
        other.method.load_state_dict(copy.deepcopy(rig.method.state_dict()), strict=True)
    except RuntimeError as error:
        raise Fault(f"its state_dict does not load into a new instance: {' '.join(str(error).split())}") from None
    batch = specimen.batch(STEPS)
    if _first_difference([_detached(rig, batch)], [_detached(other, batch)]) is not None:
        raise Fault(
            "after loading its state_dict into a new instance the losses differ, so a resumed training would; keep "
            "whatever losses() depends on in parameters or buffers (register_buffer)"
        )


def per_image_as_declared(specimen: MethodSpecimen) -> None:
    """Where `per_image` is declared: losses of a batch are the means of its halves', and losses() changes nothing."""
    if not specimen.cls.per_image:
        return
    rig, batch = specimen.build(), specimen.batch()
    whole = _detached(rig, batch)
    outputs = rig.outputs(batch)
    before, draws = copy.deepcopy(rig.method.state_dict()), torch.get_rng_state()
    rig.method.losses(*outputs, batch)
    if not torch.equal(draws, torch.get_rng_state()):
        raise Fault(f"losses() draws random numbers, {REFUTED}")
    changed = [name for name, now in rig.method.state_dict().items() if not same_bits(now, before[name])]
    if changed:
        raise Fault(f"losses() changes {listed(changed)}, {REFUTED}")
    halves = [_detached(rig, part) for part in _halves(batch)]
    for name, term in whole.items():
        mean = torch.stack([half[name] for half in halves]).mean()
        if not torch.allclose(term, mean, rtol=1e-4, atol=1e-6):
            raise Fault(f"term {name!r} is {term:.6g} of a batch and {mean:.6g} as the mean of its halves, {REFUTED}")


def _halves(batch: Batch) -> list[Batch]:
    half = len(batch.index) // 2
    return [
        Batch(
            batch.images[part], None if batch.labels is None else batch.labels[part], batch.index[part], batch.progress
        )
        for part in (slice(half), slice(half, None))
    ]


def _detached(rig: Rig, batch: Batch) -> dict[str, Tensor]:
    return {name: term.detach() for name, term in rig.terms(batch, STEPS).items()}


CHECKS: tuple[Callable[[MethodSpecimen], str | None], ...] = (
    deterministic,
    alone_as_among_neighbours,
    bf16_autocast,
    teacher_with_registers,
    models_without_cls,
    equal_depth,
    different_grids,
    batch_without_labels,
    state_dict_round_trip,
    per_image_as_declared,
)
