"""What a method is, owns, reads and gives: a check each. A check raises Fault with what to change."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from harness.api import Method, Outputs
from harness.checking.specimen import STEPS, Fault, MethodSpecimen, Rig, listed, same_bits, toy_teacher
from harness.checking.watched import Watched
from harness.errors import UserError
from harness.models import TimmVit

RESERVED = ("loss", "grad_norm")  # what train.jsonl calls its own columns


def final_and_cited(specimen: MethodSpecimen) -> None:
    """One complete class that derives from Method directly, with a name, a source and a docstring."""
    cls, entry = specimen.cls, specimen.entry
    above = [c.__name__ for c in cls.__mro__[1:] if issubclass(c, Method) and c is not Method]
    if above or Method not in cls.__bases__:
        raise Fault(
            f"{cls.__name__} derives from {listed(above) or 'no Method'}; a method is one final class that derives "
            "from Method. Share by functions, or make the variant a hyperparameter with a preset"
        )
    missing = sorted(getattr(cls, "__abstractmethods__", ()))
    if missing:
        raise Fault(f"{cls.__name__} does not define {listed(missing)}")
    if cls.name != (entry.preset_of or entry.name):
        raise Fault(f"name is {cls.name!r} when the file runs and {entry.name!r} where it is read; make it a literal")
    if not entry.cite.strip():
        raise Fault(f'{cls.__name__} names no source; add cite = "Authors year, arXiv id", or "control" or "new"')
    if not entry.summary:
        raise Fault(f"{cls.__name__} has no docstring; its first line says what it does in the list of methods")


def hyperparameters(specimen: MethodSpecimen) -> None:
    """Keyword-only, annotated, with literal defaults of their own type; presets the same."""
    entry = specimen.entry
    mistakes = list(entry.mistakes)
    if not mistakes:
        try:
            entry.typed({})
        except UserError as error:
            mistakes.append(str(error))
        actual = {
            name for name, p in inspect.signature(specimen.cls.__init__).parameters.items() if p.kind is p.KEYWORD_ONLY
        }
        if actual != set(entry.hyperparameters):
            mistakes.append(
                f"__init__ takes {sorted(actual)} when the file runs and {sorted(entry.hyperparameters)} where it "
                "is read; write them into its signature"
            )
    if mistakes:
        raise Fault("; ".join(mistakes))


def finite_scalar_terms(specimen: MethodSpecimen) -> None:
    """losses() gives named scalars, all finite."""
    checked_terms(specimen.build().terms(specimen.batch()))


def checked_terms(terms: Any) -> None:
    if not isinstance(terms, dict) or not terms:
        raise Fault(f"losses() returned {type(terms).__name__}; it must return a dict of at least one named term")
    for name, term in terms.items():
        if not isinstance(name, str) or name in RESERVED:
            raise Fault(f"a term is called {name!r}; give it a word other than {listed(RESERVED)}")
        if not isinstance(term, Tensor) or term.ndim != 0 or not term.is_floating_point():
            shape = tuple(term.shape) if isinstance(term, Tensor) else type(term).__name__
            raise Fault(f"term {name!r} is {shape}; it must be a scalar tensor: take the mean or the sum")
        if not torch.isfinite(term):
            raise Fault(f"term {name!r} is {term.item()} on a batch of noise; look for 0/0, log(0), sqrt'(0), overflow")


def declared_layers(specimen: MethodSpecimen) -> None:
    """losses() reads only the layers that the method declares: others are there only while a neighbour asks."""
    rig, batch = specimen.build(), specimen.batch()
    ours, theirs = rig.outputs(batch, every_layer=True)
    rig.method.losses(ours, theirs, batch)
    for side, outputs in (("student", ours), ("teacher", theirs)):
        for what, tensors in (("layers", outputs.tokens), ("attention", outputs.attention)):
            name = f"{side}_{what}"
            declared = set(getattr(rig.method, name))
            undeclared = sorted(_read(tensors) - declared)
            if undeclared:
                raise Fault(
                    f"losses() reads {what} {listed(undeclared)} of the {side}, but {name} is {sorted(declared)}; set "
                    f"self.{name} = frozenset(...) in __init__, counted from the front ({side}.layer(i) does that)"
                )


def _read(tensors: Any) -> set[int]:
    assert isinstance(tensors, Watched)
    return tensors.read


def parameters_move(specimen: MethodSpecimen) -> None:
    """Every parameter that the method owns is trained."""
    rig = specimen.build()
    before = {name: p.detach().clone() for name, p in rig.method.named_parameters()}
    for step in range(STEPS):
        rig.step(specimen.batch(step), step)
    still = [name for name, p in rig.method.named_parameters() if torch.equal(p, before[name])]
    if still:
        raise Fault(
            f"{listed(still)} did not move in {STEPS} steps; let a term of losses() depend on it, or make it a buffer "
            "(register_buffer) if it is not to be trained"
        )


def student_gradient(specimen: MethodSpecimen) -> None:
    """Every block of the student learns."""
    rig, batch = specimen.build(), specimen.batch()
    torch.manual_seed(0)
    ours, theirs = rig.outputs(batch)
    rig.backward(rig.method.losses(ours, theirs, batch))
    checked_gradient(rig, ours)


def checked_gradient(rig: Rig, ours: Outputs) -> None:
    without = rig.blocks_without_gradient()
    if not without:
        return
    read = sorted({rig.student.layer(i) for i in _read(ours.tokens) | _read(ours.attention)})
    if ours.logits_read or (read and read[-1] >= without[0]):
        seen = "the logits" if ours.logits_read else f"layer {read[-1]}"
        why = f"although losses() reads {seen}; is something detached, or weighted with 0?"
    else:
        seen = f"the last student layer that losses() reads is {read[-1]}" if read else "losses() reads no tokens"
        why = f"{seen}, and it does not read the logits; let a term reach the last block, {rig.student.depth - 1}"
    blocks = f"block {without[0]} gets" if len(without) == 1 else f"blocks {listed(without)} get"
    raise Fault(f"student {blocks} no gradient: {why}")


def teacher_untouched(specimen: MethodSpecimen) -> None:
    """The teacher is as before: weights, buffers, requires_grad, mode, hooks, attributes."""
    teacher = toy_teacher(specimen.size)
    before = _state_of(teacher)
    rig = specimen.build(teacher=teacher)
    for step in range(STEPS):
        rig.step(specimen.batch(step), step)
    after = _state_of(teacher)
    changed = [what for what in before if not _equal(before[what], after.get(what))] + sorted(set(after) - set(before))
    if changed:
        raise Fault(
            f"the teacher was changed: {listed(changed)}. All students of a group share it; work on a copy "
            "(copy.deepcopy of a block), or under torch.no_grad() on detached tensors"
        )


def _state_of(vit: TimmVit) -> dict[str, Any]:
    state: dict[str, Any] = {f"weights {k}": v.clone() for k, v in vit.model.state_dict().items()}
    for name, module in vit.model.named_modules():
        state[f"training mode of {name or 'the model'}"] = module.training
        state[f"hooks of {name or 'the model'}"] = len(module._forward_hooks) + len(module._forward_pre_hooks)
    for name, parameter in vit.model.named_parameters():
        state[f"requires_grad of {name}"] = parameter.requires_grad
        state[f"grad of {name}"] = parameter.grad is None
    state.update({f"attribute {name}": True for name in vars(vit)})
    return state


def _equal(a: Any, b: Any) -> bool:
    return isinstance(b, Tensor) and same_bits(a, b) if isinstance(a, Tensor) else a == b


def teacher_unowned(specimen: MethodSpecimen) -> None:
    """No weight of the teacher or of the student is among the method's own."""
    rig = specimen.build()
    for whose, vit in (("teacher", rig.teacher), ("student", rig.student)):
        theirs = {id(t) for t in [*vit.model.parameters(), *vit.model.buffers()]}
        owned = [n for n, t in [*rig.method.named_parameters(), *rig.method.named_buffers()] if id(t) in theirs]
        if owned:
            raise Fault(
                f"{listed(owned)} is the {whose}'s own; a method must not own it. Store the Vit itself "
                f"(self.{whose} = {whose}), which is no module, and reach blocks by {whose}.block(i) when needed"
            )


def shared_tensors_only_read(specimen: MethodSpecimen) -> None:
    """The teacher's tokens, logits and attention, and the batch, are shared by all students of a group."""
    rig, batch = specimen.build(), specimen.batch()
    ours, theirs = rig.outputs(batch)
    shared = {f"teacher.tokens[{i}]": theirs.tokens[i] for i in theirs.tokens}
    shared |= {f"teacher.attention[{i}]": theirs.attention[i] for i in theirs.attention}
    shared |= {"teacher.logits": theirs.logits, "batch.images": batch.images, "batch.index": batch.index}
    shared |= {"batch.labels": batch.labels} if batch.labels is not None else {}
    kept = {name: (tensor.clone(), tensor._version) for name, tensor in shared.items()}
    error = None
    try:
        rig.backward(rig.method.losses(ours, theirs, batch))
    except RuntimeError as raised:
        error = raised  # the damage below is the reason that autograd gives in its own words
    for name, tensor in shared.items():
        bits, version = kept[name]
        if tensor._version != version or not same_bits(tensor, bits):
            raise Fault(
                f"losses() writes into {name}, which every student of the group reads; use the form without "
                "underscore (mul instead of mul_), or clone() first"
            )
    if error is not None:
        raise error


CHECKS: tuple[Callable[[MethodSpecimen], str | None], ...] = (
    final_and_cited,
    hyperparameters,
    finite_scalar_terms,
    declared_layers,
    parameters_move,
    student_gradient,
    teacher_untouched,
    teacher_unowned,
    shared_tensors_only_read,
)
