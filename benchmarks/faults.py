"""Faults done to a real training, and what they cost: runs lost, and the steps and seconds of work done again.

    python benchmarks/faults.py [--quick] [--seed N]

Toy models, two methods, forty steps, a checkpoint every EVERY steps; see lives.py. The seed draws the moments. A run is
lost when its student has other bits in the end than that of a training that nobody disturbed, its log other lines, or
its record another value. Work is done again from the last checkpoint on, so its bound is runtime.checkpoint_steps and
runtime.checkpoint_minutes, whatever the models; the seconds are those of this machine and of toy models.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import multiprocessing
import os
import random
import resource
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from lives import STEPS, Trial, experiment, images, results
from machine import describe
from tabulate import tabulate

from harness.storage.integrity import generations

EVERY = 5  # steps between checkpoints
Again = tuple[int, float]  # steps and seconds of work done again
Fault = Callable[[Trial, random.Random], Iterator[Again]]


def signalled(kind: signal.Signals, trial: Trial, draws: random.Random) -> Iterator[Again]:
    """The same signal at random moments, again and again."""
    for _ in trial.torture(draws, (kind,), reach=2 * EVERY):
        yield trial.again()


def inside_a_write(trial: Trial, draws: random.Random) -> Iterator[Again]:
    """Killed before a checkpoint is renamed, or between the two renames of it and of the one before."""

    def armed(moment: int) -> None:
        replace, calls = os.replace, []

        def counted(source: str, target: str) -> None:
            calls.extend([target] * ("checkpoint" in str(target)))
            if len(calls) == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(source, target)

        os.replace = counted  # type: ignore[assignment]

    trial.live(draws.randint(EVERY + 2, STEPS - EVERY), then=functools.partial(armed, draws.randint(1, 2)))
    yield trial.again()


def damaged_checkpoint(harm: Callable[[Path], None], trial: Trial, draws: random.Random) -> Iterator[Again]:
    """Killed, and the newest checkpoint damaged before it is started again."""
    trial.live(draws.randint(2 * EVERY + 2, STEPS - EVERY), signal.SIGKILL)
    harm(generations(next(trial.workspace.glob("groups/*/group.json")).with_name("checkpoint.pt"))[0])
    yield trial.again()


def no_room(trial: Trial, draws: random.Random) -> Iterator[Again]:
    """Files may not be larger than half a checkpoint from some step on; the next start may write again."""
    limit = (50_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    trial.live(
        draws.randint(EVERY, STEPS - EVERY), then=functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, limit)
    )
    yield trial.again()


def data_away(trial: Trial, draws: random.Random) -> Iterator[Again]:
    """The images are not where they were, until the next start."""
    root = Path(str(trial.made.data.root))
    away = root.with_name(f"{root.name}-away")
    trial.live(draws.randint(EVERY, STEPS - EVERY), then=functools.partial(root.rename, away))
    away.rename(root)
    yield trial.again()


def worker_killed(trial: Trial, draws: random.Random) -> Iterator[Again]:
    """One of two data workers; the training goes on in the same process."""

    def kill() -> None:
        os.kill(int(multiprocessing.active_children()[0].pid or 0), signal.SIGKILL)

    life = trial.live(draws.randint(2, STEPS // 2), then=kill)
    begins = [event for event in life.events if event.kind == "begin"]
    yield (0 if len(begins) == 1 and life.code == 0 else STEPS), 0.0


def damaged_student(trial: Trial, draws: random.Random) -> Iterator[Again]:
    """After the end, before it is measured by another task; trained again when that is asked for."""
    trial.live()
    flip(draws.choice(sorted(trial.workspace.glob("students/*/model.safetensors"))))
    for record in trial.workspace.glob("records/*.json"):
        record.unlink()
    if trial.live().code != 1:
        raise SystemExit("a damaged student was not noticed")
    for failure in trial.workspace.glob("failures/*.json"):
        failure.unlink()  # what --retry-failed does
    life = trial.live()
    begin, *_, end = life.reached()
    yield end.step - begin.step, end.at_s - begin.at_s


def damaged_record(trial: Trial, draws: random.Random) -> Iterator[Again]:
    """After the end; measured again by the next start."""
    trial.live()
    cut(draws.choice(sorted(trial.workspace.glob("records/*.json"))))
    yield 0, 0.0


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


FAULTS: dict[str, Fault] = {
    "SIGKILL at a random moment": functools.partial(signalled, signal.SIGKILL),
    "SIGTERM at a random moment": functools.partial(signalled, signal.SIGTERM),
    "SIGINT at a random moment": functools.partial(signalled, signal.SIGINT),
    "SIGKILL while a checkpoint is written": inside_a_write,
    "newest checkpoint cut short": functools.partial(damaged_checkpoint, cut),
    "newest checkpoint with a flipped bit": functools.partial(damaged_checkpoint, flip),
    "no room for a checkpoint": no_room,
    "data out of reach": data_away,
    "data worker killed": worker_killed,
    "finished student with a flipped bit": damaged_student,
    "record cut short": damaged_record,
}
WORKERS = {"data worker killed": 2}


@dataclasses.dataclass
class Cost:
    """Faults of one kind: how many were injected, runs lost, work done again after one of them at most."""

    kind: str
    injected: int = 0
    lost: int = 0
    steps: int = 0
    seconds: float = 0.0


def cost_of(kind: str, trials: int, truth: dict[str, str], folder: Path, draws: random.Random) -> Cost:
    """Inject faults of a kind into several trainings, each of which then comes to its end undisturbed."""
    cost = Cost(kind)
    for number in range(trials):
        place = folder / f"{len(list(folder.iterdir()))}-{number}"
        made = experiment(images(place / "images"), checkpoint_steps=EVERY, num_workers=WORKERS.get(kind, 0))
        trial = Trial(made, place / "workspace", truth)
        for steps, seconds in FAULTS[kind](trial, draws):
            cost.injected += 1
            cost.steps, cost.seconds = max(cost.steps, steps), max(cost.seconds, seconds)
        trial.live()
        cost.lost += trial.lost()
    return cost


def main() -> None:
    parser = argparse.ArgumentParser(description="Faults done to a real training, and what they cost.")
    parser.add_argument("--quick", action="store_true", help="one training for each kind of fault")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder, draws = Path(name), random.Random(given.seed)
        calm = Trial(experiment(images(folder / "calm" / "images")), folder / "calm" / "workspace", {})
        if calm.live().code != 0:
            raise SystemExit("the training does not run even where nobody disturbs it")
        truth = results(calm.made, calm.workspace)
        costs = [cost_of(kind, 1 if given.quick else 4, truth, folder, draws) for kind in FAULTS]
    print(describe())
    header = ["fault", "injected", "runs lost", "steps done again, at most", "seconds of work, at most"]
    rows = [[c.kind, c.injected, c.lost, c.steps, f"{c.seconds:.1f}"] for c in costs]
    print(tabulate(rows, header, tablefmt="github"))
    lost, injected = sum(c.lost for c in costs), sum(c.injected for c in costs)
    print(f"runs lost: {lost}, by {injected} faults (goal 0)")


if __name__ == "__main__":
    main()
