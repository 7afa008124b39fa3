"""Spaces of hyperparameters, and settings drawn from them, equally many for every method. Imports no torch.

A method declares its spaces beside its hyperparameters (`Method.search`), an entry of a configuration may change
them (`methods.N.search`), name by name:

    ("log", low, high)      evenly in the logarithm        ("int", low, high)      whole numbers, both ends too
    ("uniform", low, high)  evenly                         ("choice", a, b, ...)   one of these

What a row *is* is not searched: a hyperparameter that an entry sets, or that defines a preset, stays as it is unless
the entry's own `search` names it. `null` in an entry's `search` takes a hyperparameter out.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from harness.catalogue import Catalogue, Entry
from harness.errors import ConfigError, UserError, unknown
from harness.parsing.annotations import checked, plain
from harness.seeds import content_hash, derive
from harness.specs import MethodSpec

KINDS = ("log", "uniform", "int", "choice")
FORMS = "[log, 0.1, 10], [uniform, 0, 1], [int, 1, 8] or [choice, a, b]"
SAMPLERS = ("sobol", "random")
DIGITS = 4  # of a drawn number: machines whose logarithms differ in the last bit still make the same run
MOST_BITS = 16  # at most 2^16 points are drawn where a space has hardly any settings that differ


@dataclasses.dataclass(frozen=True)
class Space:
    """The values of one hyperparameter. values: (low, high), or the choices as plain values."""

    kind: str
    values: tuple[Any, ...]

    @property
    def size(self) -> float:
        """How many values it has; infinity where they are continuous."""
        if self.kind == "choice":
            return len(self.values)
        return self.values[1] - self.values[0] + 1 if self.kind == "int" else math.inf

    def __contains__(self, value: Any) -> bool:
        if self.kind == "choice":
            return json.dumps(plain(value)) in map(json.dumps, self.values)
        if not isinstance(value, int | float) or not self.values[0] <= value <= self.values[1]:
            return False
        return self.kind != "int" or float(value).is_integer()

    def at(self, u: float) -> Any:
        """The value at u in [0, 1): integers and choices have bins of equal width."""
        if self.kind == "choice":
            return self.values[int(u * len(self.values))]
        low, high = self.values
        if self.kind == "int":
            return low + int(u * (high - low + 1))
        if self.kind == "log":
            value = math.exp((1 - u) * math.log(low) + u * math.log(high))
        else:
            value = (1 - u) * low + u * high
        return min(max(float(f"{value:.{DIGITS}g}"), low), high)


def spaces(known: Catalogue, method: MethodSpec) -> dict[str, Space]:
    """What is searched for one row: hyperparameter -> space, by name; empty where nothing is.

    Raises:
        UserError: no such method. ConfigError: every hyperparameter that does not exist and every space that is
            none, or whose values the hyperparameter cannot have.
    """
    entry, own = known.entry("method", method.method), method.search or {}
    fixed = {*method.hyperparameters, *_defining(known, entry)}
    declared = {name: space for name, space in entry.search.items() if name not in fixed}
    found, mistakes = {}, []
    for name, given in sorted({**declared, **own}.items()):
        where = f"search.{name}" + ("" if name in own else f" (as {entry.name} declares it)")
        if name not in entry.hyperparameters:
            mistakes.append(f"{where}: {entry.name} has {unknown('hyperparameter', name, entry.hyperparameters)}")
        elif given is not None:
            try:
                found[name] = _space(given, f"{name} of {entry.name}", entry.hyperparameters[name].annotation)
            except ValueError as error:
                mistakes.append(f"{where}: {error}")
    if mistakes:
        raise ConfigError(mistakes)
    return found


def _defining(known: Catalogue, entry: Entry) -> Mapping[str, Any]:
    """The values that make a preset what it is."""
    return {} if entry.preset_of is None else known.methods[entry.preset_of].presets[entry.name]


def _space(given: Any, what: str, annotation: str) -> Space:
    """A space as it is written, its values checked against the hyperparameter's annotation.

    Raises:
        ValueError: one sentence.
    """
    if not isinstance(given, list | tuple) or not given or given[0] not in KINDS:
        if isinstance(given, list | tuple) and given and isinstance(given[0], str):
            raise ValueError(f"{unknown('kind of space', given[0], KINDS)}; write {FORMS}")
        raise ValueError(f"a space is written as {FORMS}, not {given!r}")
    kind, *values = given
    if kind == "choice":
        values = [plain(checked(what, annotation, value)) for value in values]
        if len({json.dumps(value) for value in values}) < max(2, len(values)):
            raise ValueError(f"a choice needs two values or more, all of them different, not {given[1:]!r}")
        return Space(kind, tuple(values))
    if len(values) != 2:
        raise ValueError(f"{kind} needs two numbers, low and high, not {values!r}")
    number = "int" if kind == "int" else "float"
    low, high = (checked(f"an end of {kind}", number, value) for value in values)
    if not low < high or (kind == "log" and low <= 0):
        above = " from more than 0" if kind == "log" else ""
        raise ValueError(f"{kind} must go up{above}, low before high, not {low:g}, {high:g}")
    try:
        return Space(kind, (checked(what, annotation, low), checked(what, annotation, high)))
    except ValueError as error:
        raise ValueError(f"{error}; {kind} has other values, write {FORMS}") from None


def settings(
    known: Catalogue, method: MethodSpec, count: int, seed: int = 0, sampler: str = "sobol"
) -> list[dict[str, Any]]:
    """At most `count` settings of a row's hyperparameters, all different, the row's own first.

    The others are points of a scrambled Sobol sequence, or independent random ones, seeded by (seed, method): two
    rows of one method are tried at the same points. Fewer than `count` come back only where the spaces have no more
    (one, where nothing is searched). Those of a smaller count are the first of those of a larger one.

    Raises:
        UserError: count < 1, a sampler that does not exist; as `spaces`.
    """
    if count < 1:
        raise UserError(f"trials is {count}; give 1 or more: the first is the method as it is configured")
    if sampler not in SAMPLERS:
        raise UserError(unknown("sampler", sampler, SAMPLERS))
    searched, own = spaces(known, method), method.hyperparameters
    resolved = known.resolve("method", method.method, own)
    within = all(resolved[name] in space for name, space in searched.items())
    most = math.prod(space.size for space in searched.values()) + (not within)
    wanted = min(count, most)
    found = {content_hash(resolved): dict(own)}
    for bits in range(count.bit_length(), MOST_BITS + 1):
        if len(found) >= wanted:
            break
        for point in _points(sampler, len(searched), bits, derive("search", seed, method.method)):
            drawn = {name: space.at(u) for (name, space), u in zip(searched.items(), point, strict=True)}
            found.setdefault(content_hash({**resolved, **drawn}), {**own, **drawn})
            if len(found) >= wanted:
                break
    return list(found.values())


def _points(sampler: str, dimensions: int, bits: int, seed: int) -> list[list[float]]:
    """The first 2^bits points of the sampler's sequence in [0, 1)^dimensions."""
    import numpy as np

    generator = np.random.default_rng(seed)
    if sampler == "random":
        return generator.random((1 << bits, dimensions)).tolist()
    from scipy.stats import qmc  # half a second, which only tuning pays

    # scipy 1.15 renamed seed to rng and still takes it; older ones know no other name.
    return qmc.Sobol(dimensions, scramble=True, seed=generator).random_base2(bits).tolist()  # type: ignore
