"""What the harness adds to a bare training loop of the same arithmetic.

    python benchmarks/overhead.py [--quick] [--threads N] [--device D]

FitNet through harness.training.train.run, with all that it does besides (logs, times, random streams, watching for
stray writes and for losses that are not finite), against the loop that one would write for this one case, below. Same
models, batches (in memory beforehand), AdamW and schedule; at the end both students must have the same bits, so
nothing but the harness is in the difference. A turn is five steps and one line of the log, where a real run logs
every twentieth step. Ratio: seconds of a turn with the harness / without, median over rounds in which both take turns,
at the demo's shapes: the smallest models, where whatever is added to a step weighs most.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from machine import describe
from pairs import in_turns, ratio, spread
from shapes import DEMO, LAPTOP, Shape, group_of, stream, teacher_of

from harness.api import Batch
from harness.config import Training
from harness.matching import match_layers
from harness.models import TimmVit, build_student
from harness.seeds import derive
from harness.training.train import run

GOAL = 1.03
STEPS = 5  # of a turn


def tokens_after(model: Any, images: Tensor, layers: Sequence[int], mean: Tensor, std: Tensor) -> list[Tensor]:
    """Tokens [B, N, D] after each of the layers."""
    x = model.norm_pre(model._pos_embed(model.patch_embed((images - mean) / std)))
    kept = []
    for i, block in enumerate(model.blocks):
        x = block(x)
        if i in layers:
            kept.append(x)
    return kept


class BareLoop:
    """FitNet on two layers, AdamW, linear warm-up and cosine: one method and nothing but its arithmetic."""

    def __init__(self, shape: Shape, teacher: TimmVit, training: Training, steps: int, device: str) -> None:
        vit = build_student(shape.student, shape.image_size, shape.classes, seed=0, device=device)
        self.student: Any = vit.model
        self.teacher, self.training, self.steps, self.step = teacher.model, training, steps, 0
        self.of_student, self.of_teacher = match_layers(vit, teacher, None, None)
        torch.manual_seed(derive("method", 0))
        self.projectors = nn.ModuleList(nn.Linear(vit.dim, teacher.dim) for _ in self.of_teacher).to(device)
        self.mean = torch.tensor(vit.mean, device=device).view(1, 3, 1, 1)
        self.std = torch.tensor(vit.std, device=device).view(1, 3, 1, 1)
        named = [*self.student.named_parameters(), *self.projectors.named_parameters()]
        plain = [p for name, p in named if p.ndim < 2 or name in self.student.no_weight_decay()]
        decayed = [p for name, p in named if p.ndim >= 2 and name not in self.student.no_weight_decay()]
        groups = [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": training.weight_decay}]
        self.optimizer = torch.optim.AdamW(
            groups, lr=training.lr, betas=training.betas, fused=device.startswith("cuda")
        )

    def run(self, batches: Iterator[Batch]) -> None:
        for batch in batches:
            self.train_step(batch.images)
            self.step += 1

    def train_step(self, images: Tensor) -> None:
        with torch.no_grad():
            theirs = tokens_after(self.teacher, images, self.of_teacher, self.mean, self.std)
        ours = tokens_after(self.student, images, self.of_student, self.mean, self.std)
        pairs = zip(self.projectors, ours, theirs, strict=True)
        loss = torch.stack([F.mse_loss(project(our), their) for project, our, their in pairs]).mean()
        self.optimizer.zero_grad()
        loss.backward()
        for group in self.optimizer.param_groups:
            group["lr"] = self.training.lr * self.share()
        self.optimizer.step()

    def share(self) -> float:
        """Of the peak learning rate."""
        warm_up = round(self.training.warmup_epochs * self.steps)  # the whole training is one epoch
        if self.step < warm_up:
            return (self.step + 1) / (warm_up + 1)
        way = (self.step - warm_up) / (self.steps - warm_up)
        return self.training.min_lr_share + (1 - self.training.min_lr_share) * 0.5 * (1 + math.cos(math.pi * way))


def measure(shape: Shape, rounds: int, device: str) -> float:
    """Print what was found, and return the ratio. Ends the program where the two students differ."""
    steps = (rounds + 1) * STEPS
    training = Training(steps=steps, batch_size=shape.batch_size, warmup_epochs=0.1)
    teacher = teacher_of(shape, device)
    batches = [*stream(shape, steps, device)]
    for_group, for_bare = iter([(batch, 0) for batch in batches]), iter(batches)
    with tempfile.TemporaryDirectory() as folder:
        group = group_of(shape, ("fitnet",), teacher, training, Path(folder), device, log_steps=STEPS)
        bare = BareLoop(shape, teacher, training, steps, device)
        turns = (
            lambda: run(group, islice(for_group, STEPS)),
            lambda: bare.run(islice(for_bare, STEPS)),
        )
        in_turns(*turns, rounds=1, device=device)  # warm
        pairs = in_turns(*turns, rounds=rounds, device=device)
    compare_students(group.members[0].student.model, bare, device)

    bare_ms = 1000 * sum(b.wall_s for _, b in pairs) / len(pairs) / STEPS
    print(f"{shape.title}, batch {shape.batch_size}: {bare_ms:.1f} ms a bare step")
    print(f"  with the harness against bare: {spread(pairs)}")
    if device == "cpu":
        print(f"  by processor time: {ratio(pairs, 'processor_s'):.3f}")
    return ratio(pairs)


def compare_students(student: nn.Module, bare: BareLoop, device: str) -> None:
    ours, theirs = student.state_dict(), bare.student.state_dict()
    differing = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    if not differing:
        print(f"\nafter {bare.step} steps both students have the same bits")
    elif device == "cpu":
        raise SystemExit(
            f"not the same arithmetic, so no ratio: the students differ in {len(differing)} of {len(ours)}"
        )
    else:  # a GPU's sums may come in another order every time
        print(f"\nafter {bare.step} steps the students differ in {len(differing)} of {len(ours)} tensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the rounds, and the demo's shapes alone")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(describe())
    if not args.quick:
        measure(LAPTOP, 12, args.device)
    found = measure(DEMO, 6 if args.quick else 60, args.device)
    print(f"\nratio: {found:.3f} (goal <= {GOAL})")


if __name__ == "__main__":
    main()
