"""What 100 epochs of all linear heads cost, against one pass of the backbone that their features come from.

    python benchmarks/probes.py [--quick] [--threads N]

ViT-T/16 at 224 px with random weights, 100 classes: the whole grid of the classification task, 52 heads. The pass
is the forward alone, fp32, no decoding, which is the least that it can cost; the heads' time has everything after
it: reading rows from the memory-mapped cache, training, and scoring on the held-out tenth. Ratio: heads / pass.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from machine import describe

from harness.api import frozen
from harness.features import Encoder
from harness.head_choice import RATES, feature_sets
from harness.models import as_vit
from harness.probes import score_heads, stratified_hold_out, train_linear_heads
from harness.sources import Sample, Source, View

GOAL = 1.5
EPOCHS, CLASSES, SIZE = 100, 100, 224


class Noise(Source):
    """Noise images, classes in turn."""

    name = "noise"
    classes = tuple(str(i) for i in range(CLASSES))

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> Sample:
        pixels = np.random.default_rng(index).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        return Sample(Image.fromarray(pixels), index % CLASSES)

    def labels(self) -> np.ndarray:
        return np.arange(self.count) % CLASSES

    def sample_name(self, index: int) -> str:
        return str(index)

    def identity(self) -> str:
        return f"noise {self.count}"


def backbone_s(encoder: Encoder, images: int) -> float:
    """Seconds of one forward pass over `images` images."""
    batch = torch.rand(encoder.batch_size, 3, SIZE, SIZE, device=encoder.device)
    encoder(batch, layers=[-1])  # warm
    synchronise(encoder.device)
    start = time.perf_counter()
    for first in range(0, images, len(batch)):
        encoder(batch[: images - first], layers=[-1])
    synchronise(encoder.device)
    return time.perf_counter() - start


def synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="256 images instead of 2048")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(describe())

    images, batch = (256, 128) if args.quick else (2048, 1024)
    torch.manual_seed(0)
    model = frozen(timm.create_model("vit_tiny_patch16_224", img_size=SIZE, num_classes=CLASSES)).to(args.device)
    with tempfile.TemporaryDirectory() as cache:
        encoder = Encoder(as_vit(model), identity="random", cache=Path(cache), device=args.device)
        source, view = Noise(images), View(SIZE)
        start = time.perf_counter()
        pooled = encoder.pooled(source, view, range(8, 12))
        caching = time.perf_counter() - start
        before = backbone_s(encoder, images)

        start = time.perf_counter()
        kept, held_out = stratified_hold_out(pooled.labels, 0.1, seed=0)
        steps = round(EPOCHS * len(kept) / batch)
        rows = feature_sets(pooled)
        heads = train_linear_heads(
            rows,
            pooled.labels,
            num_classes=CLASSES,
            learning_rates=[rate * batch / 256 for rate in RATES],
            steps=steps,
            batch=batch,
            seed=0,
            index=kept,
            device=args.device,
        )
        for name, found in heads.items():
            score_heads(found, rows[name], pooled.labels, held_out, args.device)
        own = time.perf_counter() - start
        backbone = min(before, backbone_s(encoder, images))  # before and after, should the machine be busy

    print(f"ViT-T/16, {SIZE} px, {images} images, {CLASSES} classes, {len(heads) * len(RATES)} heads")
    print(f"one backbone pass, forward alone: {backbone:.2f} s ({images / backbone:.0f} images/s)")
    print(f"the caching pass (makes noise images, forward, writes): {caching:.2f} s")
    print(f"{EPOCHS} epochs of heads ({steps} steps of {batch}): {own:.2f} s")
    print(f"everything, caching pass + heads, against one forward pass: {(caching + own) / backbone:.2f}")
    print(f"ratio: {own / backbone:.2f} (goal <= {GOAL})")


if __name__ == "__main__":
    main()
