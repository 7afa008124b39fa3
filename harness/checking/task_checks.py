"""The contract of a task, a check each. A check raises Fault with what to change, or returns None."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from harness.api import Metric, Task, Tiny, Vit
from harness.checking.specimen import ENCODERS, Fault, TaskSpecimen, listed, streams
from harness.data import Data
from harness.features import Encoder
from harness.items import NEAR, Scores
from harness.records import ItemsInfo
from harness.storage.items import packed, unpacked


def final_and_documented(specimen: TaskSpecimen) -> None:
    """One complete class that derives from Task directly, with a name and a docstring."""
    cls, entry = specimen.cls, specimen.entry
    if Task not in cls.__bases__:
        above = listed(c.__name__ for c in cls.__bases__)
        raise Fault(f"{cls.__name__} derives from {above}; a task is one final class that derives from Task")
    missing = sorted(getattr(cls, "__abstractmethods__", ()))
    if missing:
        raise Fault(f"{cls.__name__} does not define {listed(missing)}")
    if cls.name != entry.name:
        raise Fault(f"name is {cls.name!r} when the file runs and {entry.name!r} where it is read; make it a literal")
    if not entry.summary:
        raise Fault(f"{cls.__name__} has no docstring; its first line says what it does in the list of tasks")


def options(specimen: TaskSpecimen) -> None:
    """Options are keyword-only, annotated, with literal defaults of their own type."""
    if specimen.entry.mistakes:
        raise Fault("; ".join(specimen.entry.mistakes))
    specimen.entry.typed({})  # its error says which default is of another type than its annotation


def declared_metrics(specimen: TaskSpecimen) -> None:
    """`metrics` names at least one Metric, each with a unit and a direction, the primary one first."""
    metrics = specimen.cls.metrics
    if not metrics:
        raise Fault('metrics is empty; declare at least one, such as {"top1": Metric("fraction", "up")}')
    for name, metric in metrics.items():
        if not isinstance(metric, Metric) or not metric.unit or metric.direction not in ("up", "down"):
            raise Fault(f'metric {name!r} is {metric!r}; give Metric(unit, "up") or Metric(unit, "down")')


def oracle_beats_blind(specimen: TaskSpecimen) -> None:
    """An encoder that sees the truth is better on the primary metric than one that sees nothing."""
    name, metric = next(iter(specimen.cls.metrics.items()))
    oracle, blind = specimen.values("oracle")[name], specimen.values("blind")[name]
    better = oracle > blind if metric.direction == "up" else oracle < blind
    if not better:
        raise Fault(
            f"{name} is {oracle:.6g} for the oracle and {blind:.6g} for the blind encoder, but {metric.direction!r} "
            "is declared better; turn the direction round, or mend tiny() or the metric"
        )


def finite_metrics(specimen: TaskSpecimen) -> None:
    """The primary metric is there for oracle and blind encoder; all values are finite floats, details too."""
    primary = next(iter(specimen.cls.metrics))
    for which in ("oracle", "blind"):
        _checked_values(specimen, which)
        if primary not in specimen.values(which):
            raise Fault(f"evaluate() of the encoder {which!r} leaves out {primary}, which metrics declares first")


def any_vit(specimen: TaskSpecimen) -> None:
    """It evaluates real ViTs, with registers, without CLS token; every declared metric is there for some encoder."""
    for which in ENCODERS:
        _checked_values(specimen, which)
    absent = {which: [m for m in specimen.cls.metrics if m not in specimen.values(which)] for which in ENCODERS}
    never = [name for name in specimen.cls.metrics if all(name in missing for missing in absent.values())]
    if never:
        where = "; ".join(f"{which}: {listed(missing)}" for which, missing in absent.items())
        raise Fault(
            f"evaluate() gives {listed(never)} for no encoder, although metrics declares it, so nothing tests it; "
            f"let tiny() have an encoder for which it exists. Left out: {where}"
        )


def _checked_values(specimen: TaskSpecimen, which: str) -> None:
    for name, value in specimen.values(which).items():
        if not isinstance(value, float | int) or isinstance(value, bool):
            raise Fault(f"{name} of the encoder {which!r} is a {type(value).__name__}; return a Python float")
        if not math.isfinite(value):
            raise Fault(f"{name} of the encoder {which!r} is {value}; define it where there is nothing to divide by")


def items_make_the_values(specimen: TaskSpecimen) -> None:
    """Values of single items, where it gives some, are whole when they are stored, and make the metric again."""
    for which in ENCODERS:
        values = specimen.values(which)
        if not isinstance(values, Scores):
            continue
        try:
            data = packed(values.per_item)
            info = {"file": "", "sha256": "0" * 64, "count": values.per_item.count, "metrics": values.per_item.metrics}
            items = unpacked(data, ItemsInfo.model_validate(info))
        except ValueError as error:
            raise Fault(f"items of the encoder {which!r}: {error}; see harness.items") from None
        for metric in items.metrics:
            if metric not in specimen.cls.metrics or metric not in values:
                raise Fault(f"items of the encoder {which!r} are of {metric!r}, a metric without a value")
            made = items.number(metric)
            if not math.isclose(made, values[metric], rel_tol=NEAR, abs_tol=NEAR):
                raise Fault(
                    f"items of the encoder {which!r} make {metric} {made:.6g}, and evaluate() gives "
                    f"{values[metric]:.6g}; give what each item adds to it"
                )


def plain_protocol(specimen: TaskSpecimen) -> None:
    """protocol() is JSON, and comes back from it as it was."""
    protocol = specimen.tiny.task.protocol()
    try:
        back = json.loads(json.dumps(protocol, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise Fault(f"protocol() is not plain JSON: {error}; use numbers, strings, lists and dicts") from None
    if back != protocol:
        changed = [key for key in protocol if key not in back or back[key] != protocol[key]]
        raise Fault(
            f"protocol() changes when it is written as JSON: {listed(changed)}; lists for tuples, text for keys"
        )


def protocol_of_data(specimen: TaskSpecimen) -> None:
    """protocol() says which data were read and not where they lie; two instances give the same."""
    given = getattr(specimen.tiny.task, "data", None)
    data = given if isinstance(given, Data) else Data(source="scenes", name="toy")

    def protocol(**changes: Any) -> dict[str, Any]:
        return specimen.cls(data=dataclasses.replace(data, **changes)).protocol()  # type: ignore[call-arg]

    here, there = protocol(root="here"), protocol(root="there")
    if here != there:
        changed = [key for key in here if here[key] != there.get(key)]
        raise Fault(
            f"protocol() depends on the place of the data, or differs from one instance to the next, in "
            f"{listed(changed)}; take data.identity(), which holds no path"
        )
    if protocol(name="another") == here:
        raise Fault("protocol() does not say which data were read; put data.identity() into it")


def reproducible(specimen: TaskSpecimen) -> None:
    """The same encoder and seed give the same values, whatever the global random streams hold."""
    found = []
    for seed in (1, 2):
        with streams(seed):
            found.append(specimen.evaluate(specimen.encoder("oracle")))
    differing = [name for name in found[0] if found[0][name] != found[1].get(name)]
    if differing:
        raise Fault(
            f"{listed(differing)} differ when the oracle is evaluated twice with the same seed; draw every random "
            "number from a generator made of `seed`"
        )


def encoder_untouched(specimen: TaskSpecimen) -> None:
    """The encoder is as before, and what it came from: weights, modes, attributes. Other tasks read them later."""
    for which in ("oracle", "vit"):
        encoder = specimen.encoder(which)
        before = _state_of(encoder)
        specimen.evaluate(encoder)
        after = _state_of(encoder)
        changed = [name for name in before | after if before.get(name) != after.get(name)]
        if changed:
            raise Fault(
                f"evaluate() changed {listed(changed)} of the encoder {which!r}, which other tasks read after this "
                "one; work on what it returns, or on a copy"
            )


def _state_of(encoder: Encoder) -> dict[str, str]:
    """Every attribute of an encoder, its ViT and its reference, as text or a hash of its bytes."""
    state = {f"encoder.{name}": _text(value) for name, value in vars(encoder).items() if name != "vit"}
    parts: dict[str, Any] = {"vit": encoder.vit}
    if encoder.reference is not None:
        known = encoder.reference
        parts |= {"reference.teacher": known.teacher, "reference.clean": known.clean, "reference.method": known.method}
    for place, part in parts.items():
        if isinstance(part, nn.Module):
            state[f"encoder.{place}"] = _text(part)
        elif part is not None:
            state |= {f"encoder.{place}.{name}": _text(value) for name, value in vars(part).items()}
    return state


def _text(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} {tuple(value.shape)} {hashlib.sha256(value.numpy().tobytes()).hexdigest()}"
    if isinstance(value, nn.Module):
        parts = [f"{name} {_text(tensor)}" for name, tensor in value.state_dict().items()]
        parts += [f"{name} {p.requires_grad}" for name, p in value.named_parameters()]
        parts += [f"{name} {module.training}" for name, module in value.named_modules()]
        return "\n".join(parts)
    return repr(value)


def tiny_instance(specimen: TaskSpecimen) -> None:
    """tiny() gives an instance of this task, an oracle and a blind encoder that fit together."""
    tiny = specimen.tiny
    if not isinstance(tiny, Tiny) or type(tiny.task) is not specimen.cls:
        raise Fault(f"tiny() returns {type(tiny).__name__}; return Tiny(task, oracle, blind) with a task of this class")
    for name in ("oracle", "blind"):
        if not isinstance(getattr(tiny, name), Vit | Encoder):
            raise Fault(
                f"{name} of tiny() is a {type(getattr(tiny, name)).__name__}; give a Vit, see harness.toys, or an "
                "Encoder where the task asks where it came from"
            )


CHECKS: tuple[Callable[[TaskSpecimen], str | None], ...] = (
    final_and_documented,
    options,
    declared_metrics,
    tiny_instance,
    plain_protocol,
    protocol_of_data,
    oracle_beats_blind,
    finite_metrics,
    items_make_the_values,
    any_vit,
    reproducible,
    encoder_untouched,
)
