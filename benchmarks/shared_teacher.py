"""What five methods on one teacher pass cost, against one method alone.

    python benchmarks/shared_teacher.py [--quick] [--alone METHOD] [--batch N] [--precision P] [--threads N]
                                        [--device D]

harness.training.train.Group with logit_kd, fitnet, norm_clip, target_norm and singer, and a group with one of them
alone: the same teacher, fresh weights, the same noise images, which are in memory before the clock starts. So neither
group pays for data, which real groups share too: with it the ratio would be smaller. Ratio: seconds of a step of five
/ of one, median over rounds in which both take turns; beside it the ratio of their floating-point operations, which no
implementation of the same arithmetic comes far below.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from machine import describe
from pairs import Seconds, in_turns, ratio, spread
from shapes import LAPTOP, LARGE, Shape, group_of, stream, teacher_of

from harness.api import Batch
from harness.config import Training
from harness.training.train import Group

GOAL = 1.3
METHODS = ("logit_kd", "fitnet", "norm_clip", "target_norm", "singer")


def measure(shape: Shape, alone: str, training: Training, device: str) -> float:
    """Print what both groups took and where; returns the ratio."""
    rounds = (training.steps or 0) - 1  # the first step warms
    teacher = teacher_of(shape, device)
    with tempfile.TemporaryDirectory() as folder:
        five = group_of(shape, METHODS, teacher, training, Path(folder), device, log_steps=rounds + 1)
        one = group_of(shape, (alone,), teacher, training, Path(folder), device, log_steps=rounds + 1)
        for_five, for_one = stream(shape, rounds + 1, device), stream(shape, rounds + 1, device)
        operations = counted(five, next(for_five)) / counted(one, next(for_one))
        before = five.clock.totals(), one.clock.totals()
        pairs = in_turns(lambda: five.train_step(next(for_five)), lambda: one.train_step(next(for_one)), rounds, device)
    failed = {m.id: m.failure["reason"] for m in five.members + one.members if m.failure is not None}
    if failed:
        raise SystemExit(f"nothing was measured: {failed}")

    print(f"\n{shape.title}, batch {shape.batch_size}, {training.precision}, seconds a step:")
    parts = spent("five", five, [a for a, _ in pairs], before[0])
    spent("one", one, [b for _, b in pairs], before[1])
    print(f"  five against {alone} alone: {spread(pairs)}")
    print(f"  by floating-point operations: {operations:.3f}", end="")
    print(f"; by processor time: {ratio(pairs, 'processor_s'):.3f}" if device == "cpu" else "")
    teacher_s = parts.pop("teacher")
    apart = len(parts) * teacher_s + sum(parts.values())
    print(
        f"  five groups of one would take {apart / (teacher_s + sum(parts.values())):.2f} times as long as one of five"
    )
    return ratio(pairs)


def counted(group: Group, batch: Batch) -> int:
    """Floating-point operations of a first step, which also warms, and tells the group whose logits are read."""
    with FlopCounterMode(display=False) as counter:
        group.train_step(batch)
    return counter.get_total_flops()


def spent(title: str, group: Group, turns: Sequence[Seconds], before: Mapping[str, float]) -> dict[str, float]:
    """Print a step's seconds and whose they were; returns the latter: teacher and each method."""
    parts = {name: (s - before[name]) / len(turns) for name, s in group.clock.totals().items()}
    mean_s = statistics.fmean(turn.wall_s for turn in turns)
    print(f"  {title}: {mean_s:.3f} = " + " + ".join(f"{name} {s:.3f}" for name, s in parts.items()))
    return parts


def main() -> None:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="two rounds, small batches, in which a student weighs more"
    )
    parser.add_argument("--alone", choices=METHODS, default="fitnet", help="the method that five are compared with")
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
    if args.quick:
        large, laptop, rounds = dataclasses.replace(large, batch_size=2), dataclasses.replace(laptop, batch_size=8), 2
    if args.batch:
        large, laptop = (dataclasses.replace(s, batch_size=args.batch) for s in (large, laptop))
    training = Training(steps=rounds + 1, precision=args.precision)
    at_hand = measure(laptop, args.alone, training, args.device)
    found = measure(large, args.alone, training, args.device)
    print(f"\nratio at laptop shapes: {at_hand:.2f}; no goal there, where a student costs much of its teacher")
    print(f"ratio: {found:.2f} (goal <= {GOAL})")


if __name__ == "__main__":
    main()
