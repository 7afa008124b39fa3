"""What five methods on one teacher pass cost, against one method alone.

    python benchmarks/shared_teacher.py [--quick] [--threads N] [--device D] [--precision P] [--batch B]

harness.train.Group with logit_kd, fitnet, norm_clip, target_norm and singer, and a group with fitnet alone: the same
teacher, fresh weights, the same noise images, which are in memory before the clock starts. So neither group pays for
data, which real groups share too: with it the ratio would be smaller. Ratio: seconds of a step of five / of one,
median over rounds in which both take turns.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from machine import describe
from pairs import Pairs, in_turns, ratio, spread
from shapes import LAPTOP, LARGE, Shape, group_of, stream, teacher_of

from harness.config import Training
from harness.train import Group

GOAL = 1.3
METHODS = ("logit_kd", "fitnet", "norm_clip", "target_norm", "singer")
ALONE = "fitnet"


def measure(shape: Shape, rounds: int, precision: str, device: str) -> float:
    """Print what both groups took and where; returns the ratio."""
    steps = rounds + 1
    training = Training(steps=steps, precision=precision, batch_size=shape.batch_size)
    teacher = teacher_of(shape, device)
    with tempfile.TemporaryDirectory() as folder:
        five = group_of(shape, METHODS, teacher, training, Path(folder), device, log_steps=steps)
        one = group_of(shape, (ALONE,), teacher, training, Path(folder), device, log_steps=steps)
        for_five, for_one = stream(shape, steps, device), stream(shape, steps, device)
        five.train_step(next(for_five))  # warm, and from here on the head is the teacher's time
        one.train_step(next(for_one))
        before = five.clock.totals(), one.clock.totals()
        pairs = in_turns(
            lambda: five.train_step(next(for_five)), lambda: one.train_step(next(for_one)), rounds, device
        )
    failed = {m.id: m.failure["reason"] for m in five.members + one.members if m.failure is not None}
    if failed:
        raise SystemExit(f"nothing was measured: {failed}")
    report(shape, pairs, five, one, before)
    return ratio(pairs)


def report(shape: Shape, pairs: Pairs, five: Group, one: Group, before: tuple[dict, dict]) -> None:
    print(f"\n{shape.title}, batch {shape.batch_size}, {five.training.precision}, seconds a step:")
    for title, group, was, turns in (
        ("five", five, before[0], [a for a, _ in pairs]),
        ("one", one, before[1], [b for _, b in pairs]),
    ):
        parts = {name: (s - was[name]) / len(pairs) for name, s in group.clock.totals().items()}
        mean = sum(turn.wall_s for turn in turns) / len(turns)
        print(f"  {title}: {mean:.3f} = " + " + ".join(f"{name} {s:.3f}" for name, s in parts.items()))
    print(f"  five against one: {spread(pairs)}")
    if five.device == "cpu":
        print(f"  by processor time: {ratio(pairs, 'processor_s'):.3f}")


def main() -> None:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two rounds, small batches, in which a student weighs more")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="bf16" if cuda else "fp32")
    parser.add_argument("--batch", type=int, help="images a step; default: 4 of ViT-L's and 64, on a GPU 128")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(describe())

    large, laptop, rounds = LARGE, LAPTOP, 9
    if args.device.startswith("cuda"):
        large, laptop = (dataclasses.replace(s, batch_size=128) for s in (large, laptop))
    if args.batch:
        large, laptop = (dataclasses.replace(s, batch_size=args.batch) for s in (large, laptop))
    if args.quick:
        large, laptop, rounds = dataclasses.replace(large, batch_size=2), dataclasses.replace(laptop, batch_size=8), 2
    at_hand = measure(laptop, rounds, args.precision, args.device)
    found = measure(large, rounds, args.precision, args.device)
    print(f"\nratio at laptop shapes: {at_hand:.2f}; no goal there, a student's step costs much of the teacher's pass")
    print(f"ratio: {found:.2f} (goal <= {GOAL})")


if __name__ == "__main__":
    main()
