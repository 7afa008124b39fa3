"""Units -> job arrays in the order of submission, each with what it waits for. Pure. No torch.

The j-th students of all groups are evaluated by one array whose task i waits for task i of the training array alone
(Slurm's `aftercorr`): each is evaluated as soon as its own group is trained. So larger groups come first in a training
array, and the indices of every evaluation array begin with 0, as submitit's do.

Slurm bounds how many jobs of one array run at once, and knows no bound of several. So where one is asked for, arrays
form queues, in which each begins when the one before it has ended, and the queues share the bound (`turns`).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from harness.dispatch.ledger import Kind, Unit

BESIDE = 4  # one of so many jobs at once may be an evaluation while trainings go on


@dataclass(frozen=True)
class Array:
    """Units that are submitted at once. One alone is a plain job.

    Attributes:
        needs: units that must all have ended well before any of these begins.
        follows: units of an earlier array, one for each of these and at the same index, that it alone waits for.
    """

    kind: Kind
    units: tuple[Unit, ...]
    needs: tuple[str, ...] = ()
    follows: tuple[str, ...] = ()


def arrays(units: Iterable[Unit], longest: int) -> list[Array]:
    """Arrays of at most `longest` units: teachers, trainings, evaluations."""
    by_kind: dict[Kind, list[Unit]] = {"fit": [], "train": [], "evaluate": []}
    for unit in units:
        by_kind[unit.kind].append(unit)
    trained = {unit.id for unit in by_kind["train"]}
    by_kind["train"].sort(key=lambda unit: -len(unit.runs))
    found = [array for kind in ("fit", "train") for array in _by_needs(by_kind[kind], longest)]
    evaluations = by_kind["evaluate"]
    found += _by_needs([unit for unit in evaluations if trained.isdisjoint(unit.needs)], longest)  # can begin first
    rest = [unit for unit in evaluations if not trained.isdisjoint(unit.needs)]
    for training in [array for array in found if array.kind == "train" and len(array.units) > 1]:
        for following in _following(training, rest):
            found.append(following)
            taken = {unit.id for unit in following.units}
            rest = [unit for unit in rest if unit.id not in taken]
    return found + list(_by_needs(rest, longest))


@dataclass(frozen=True)
class Turn:
    """When the jobs of an array may run, apart from what they need.

    Attributes:
        at_once: how many of them; None: all. after: the position of an array that must have ended before, well or not;
            None: of none.
    """

    at_once: int | None = None
    after: int | None = None


def turns(planned: Sequence[Array], max_jobs: int | None) -> list[Turn]:
    """Turns with which never more than `max_jobs` jobs of all these arrays run at once.

    Trainings are one queue. Evaluations that can begin while these go on are another one, with a share of the bound,
    unless the bound is one; those that would have to wait in it until the trainings are over are dealt to both.

    Args:
        planned: as `arrays` gives them: no array needs one behind it.
    """
    if max_jobs is None:
        return [Turn()] * len(planned)
    both = max_jobs > 1 and len({array.kind == "evaluate" for array in planned}) == 2
    beside = max(1, max_jobs // BESIDE)
    shares = [max_jobs - beside, beside] if both else [max_jobs]
    last: list[int | None] = [None] * len(shares)
    left = [0.0] * len(shares)  # jobs of each queue once trainings are over, for each that it runs at once
    trained = {unit.id for array in planned if array.kind == "train" for unit in array.units}
    found = []
    for position, array in enumerate(planned):
        queue = 0 if array.kind != "evaluate" else min(reversed(range(len(shares))), key=left.__getitem__)
        if not trained.isdisjoint((*array.needs, *array.follows)):
            left[queue] += len(array.units) / shares[queue]
        found.append(Turn(shares[queue], last[queue]))
        last[queue] = position
    return found


def _by_needs(units: Sequence[Unit], longest: int) -> Iterator[Array]:
    """Units that need the same ones, together."""
    for needs, same in _grouped((unit.needs, unit) for unit in units).items():
        for start in range(0, len(same), longest):
            chunk = tuple(same[start : start + longest])
            yield Array(chunk[0].kind, chunk, needs)


def _following(training: Array, evaluations: Sequence[Unit]) -> Iterator[Array]:
    """For each j, evaluations of the j-th students, as far as their indices are 0, 1, 2, ... without a gap."""
    place = {(unit.id, run): (i, j) for i, unit in enumerate(training.units) for j, run in enumerate(unit.runs)}
    by_student: dict[int, dict[int, Unit]] = {}
    for unit in evaluations:
        if len(unit.needs) == 1 and (unit.needs[0], unit.runs[0]) in place:
            i, j = place[unit.needs[0], unit.runs[0]]
            by_student.setdefault(j, {})[i] = unit
    for found in by_student.values():
        units = []
        while len(units) in found:
            units.append(found[len(units)])
        if len(units) > 1:  # one alone is no array, and waits as any other
            yield Array("evaluate", tuple(units), follows=tuple(unit.needs[0] for unit in units))


def _grouped(pairs: Iterable[tuple[Hashable, Unit]]) -> dict:
    found: dict[Hashable, list[Unit]] = {}
    for key, unit in pairs:
        found.setdefault(key, []).append(unit)
    return found
